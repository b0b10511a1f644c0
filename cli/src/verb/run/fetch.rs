//! Asking the agent for one reference, as `ephor run` itself.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ephor_crypto::Secret;
use ephor_crypto::digest::{hex, sha256};
use ephor_proto::http::agent::{Credential, CredentialRequest, Credentials, Parameters};
use ephor_proto::id::CredentialId;
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::Ttl;

use crate::client::Peer;
use crate::cred::Wanted;
use crate::exit::Failure;
use crate::login::Login;
use crate::pems::{CERTIFICATE_ITEM, Pems};
use crate::show::kind_word;

/// One credential, taken out of the answer.
pub struct Fetched {
    /// Its id, which renewals keep.
    pub id: CredentialId,
    /// Its kind on the wire.
    pub kind: String,
    /// The secret in one piece: a token, or a key with its certificates after it in PEM.
    pub whole: Secret,
    /// The parts of a certificate, which have files of their own.
    pub pems: Option<Pems>,
    /// A database login, whose form depends on where it goes.
    pub login: Option<Login>,
    /// Its whole life, where it can be told.
    pub life: Option<Ttl>,
    /// True expiry.
    pub expires_at: UnixMillis,
    /// When a newer one is there.
    pub refresh_at: UnixMillis,
}

impl Fetched {
    /// Tells what is handed over from what was before.
    pub fn digest(&self) -> String {
        match (&self.pems, &self.login) {
            (Some(pems), _) => pems.digest(),
            (None, Some(login)) => login.digest(),
            (None, None) => hex(&sha256(self.whole.expose())),
        }
    }

    /// Whether its server's CAs, or its certificate, need a file.
    pub fn needs_files(&self) -> bool {
        let login = self.login.as_ref();
        login.is_some_and(|login| login.ca().is_some() || login.certificate().is_some())
    }

    /// Whether files of it are written anew, however it was handed over.
    pub fn has_certificate(&self) -> bool {
        let login = self.login.as_ref();
        login.is_some_and(|login| login.certificate().is_some())
    }

    /// What people call its kind.
    pub fn word(&self) -> &str {
        kind_word(&self.kind)
    }
}

/// Fetches what `wanted` refers to.
///
/// # Errors
/// The refusal, or that the reference does not name exactly one thing.
pub async fn fetch(
    agent: &Peer,
    wanted: &Wanted,
    reason: Option<&str>,
) -> Result<Fetched, Failure> {
    let request = request(wanted, reason);
    let answer: Credentials = agent.post("/v1/credentials", &request).await?;
    pick(wanted, answer.credentials)
}

fn request(wanted: &Wanted, reason: Option<&str>) -> CredentialRequest {
    let cred = &wanted.cred;
    let audience = cred
        .item()
        .filter(|_| cred.is_identity())
        .map(str::to_owned);
    CredentialRequest {
        entitlement: cred.entitlement().to_owned(),
        reason: reason.map(str::to_owned),
        parameters: audience.map(|audience| Parameters {
            audience: Some(audience),
        }),
        ..CredentialRequest::default()
    }
}

fn pick(wanted: &Wanted, all: Vec<Credential>) -> Result<Fetched, Failure> {
    let item = wanted.cred.item();
    let names: Vec<String> = all.iter().filter_map(item_of).collect();
    let fits = |one: &Credential| item.is_none_or(|item| item_of(one).as_deref() == Some(item));
    let mut fitting = all.into_iter().filter(fits);
    let entitlement = wanted.cred.entitlement();
    match (fitting.next(), fitting.next(), item) {
        (Some(one), None, _) => taken(wanted, one),
        (None, _, None) => Err(Failure::usage(format!(
            "{entitlement} gives nothing that a command could be handed."
        ))),
        (None, _, Some(item)) => Err(Failure::usage(format!(
            "{entitlement} does not give `{item}`; it gives {}.",
            names.join(", ")
        ))),
        (Some(_), Some(_), _) => Err(Failure::usage(format!(
            "{entitlement} gives {}; say which: cred://{entitlement}/{}",
            names.join(" and "),
            names.first().map_or("ITEM", String::as_str)
        ))),
    }
}

/// How one of several credentials is named after the entitlement: a token by its audience, a login by
/// its target.
fn item_of(one: &Credential) -> Option<String> {
    match (&one.certificate, &one.login) {
        (Some(_), _) => Some(CERTIFICATE_ITEM.to_owned()),
        (None, Some(login)) => Some(login.target.clone()),
        (None, None) => one.audience.clone(),
    }
}

fn taken(wanted: &Wanted, one: Credential) -> Result<Fetched, Failure> {
    let login = one
        .login
        .map(|given| Login::new(wanted.cred.entitlement(), given));
    let (life, whole, pems) = match (one.token, one.certificate, &login) {
        (Some(token), _, _) => (life(&token), Secret::from_string(token), None),
        (None, Some(certificate), _) => {
            let pems = Pems::of(certificate);
            (None, pems.in_one(), Some(pems))
        }
        (None, None, Some(_)) => (None, Secret::new(Vec::new()), None),
        (None, None, None) => {
            return Err(Failure::usage(format!(
                "{} is a {}, which a command cannot be handed.",
                wanted.what(),
                one.kind
            )));
        }
    };
    Ok(Fetched {
        life,
        id: one.id,
        kind: one.kind,
        whole,
        pems,
        login,
        expires_at: one.expires_at,
        refresh_at: one.refresh_at,
    })
}

/// From a token's own claims; only for wording, so nothing is verified.
fn life(token: &str) -> Option<Ttl> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let seconds = |name: &str| claims.get(name).and_then(serde_json::Value::as_u64);
    seconds("exp")?
        .checked_sub(seconds("iat")?)
        .map(Ttl::from_seconds)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use ephor_proto::http::agent::Certificate;

    fn wanted(cred: &str) -> Wanted {
        Wanted {
            name: "A".into(),
            cred: cred.parse().unwrap(),
        }
    }

    fn token(audience: &str) -> Credential {
        Credential {
            kind: "jwt".into(),
            id: CredentialId::from_parts(1, [1; 10]),
            expires_at: UnixMillis::from_millis(2),
            refresh_at: UnixMillis::from_millis(1),
            capped_by: "ttl.default".into(),
            audience: Some(audience.into()),
            token: Some(format!("token for {audience}")),
            certificate: None,
            login: None,
        }
    }

    fn refusal(cred: &str, all: Vec<Credential>) -> String {
        match pick(&wanted(cred), all) {
            Ok(_) => panic!("{cred} was taken"),
            Err(failure) => failure.message,
        }
    }

    #[test]
    fn the_item_chooses() {
        let all = || vec![token("a"), token("b")];
        let one = pick(&wanted("cred://x/b"), all()).unwrap();
        assert!(one.whole.eq_ct(b"token for b"));
        assert_eq!(one.word(), "token");
        assert!(refusal("cred://x", all()).contains("gives a and b; say which: cred://x/a"));
        assert!(refusal("cred://x/c", all()).contains("does not give `c`; it gives a, b"));
        assert!(refusal("cred://x", vec![]).contains("gives nothing"));
        assert!(pick(&wanted("cred://x"), vec![token("a")]).is_ok());
    }

    #[test]
    fn a_certificate_beside_tokens_is_named_by_its_kind() {
        let both = || {
            let certificate = Certificate {
                serial: "01".into(),
                chain: "leaf\n".into(),
                private_key: "key\n".into(),
                bundle: "ca\n".into(),
            };
            let certificate = Credential {
                kind: "x509".into(),
                audience: None,
                token: None,
                certificate: Some(certificate),
                ..token("")
            };
            vec![token("a"), certificate]
        };
        let one = pick(&wanted("cred://x/certificate"), both()).unwrap();
        assert!(one.whole.eq_ct(b"key\nleaf\n") && one.pems.is_some());
        assert_eq!(one.word(), "cert");
        assert!(refusal("cred://x", both()).contains("gives a and certificate; say which"));
        assert!(pick(&wanted("cred://x/a"), both()).unwrap().pems.is_none());
    }

    #[test]
    fn a_token_tells_its_life() {
        let claims = URL_SAFE_NO_PAD.encode(r#"{"iat":1000,"exp":1300}"#);
        assert_eq!(life(&format!("h.{claims}.s")), Some(Ttl::from_seconds(300)));
        assert_eq!(life("opaque"), None);
        assert_eq!(
            life(&format!(
                "h.{}.s",
                URL_SAFE_NO_PAD.encode(r#"{"iat":9,"exp":1}"#)
            )),
            None
        );
    }

    #[test]
    fn only_an_identity_is_asked_by_audience() {
        let asked = request(&wanted("cred://identity/billing"), Some("why"));
        assert_eq!(
            asked.parameters.unwrap().audience.as_deref(),
            Some("billing")
        );
        assert_eq!(asked.reason.as_deref(), Some("why"));
        assert!(
            request(&wanted("cred://x/billing"), None)
                .parameters
                .is_none()
        );
    }
}
