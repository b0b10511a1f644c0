//! Stage 1: what a caller asks for, parsed into values that cannot be wrong.
//!
//! Nothing here knows who the caller is; limits on size and form come before that costs
//! anything. It must never guess: what is not understood is refused, with what to write.

pub mod query;

use std::pin::Pin;

use ephor_proto::cred::{self, CredRef};
use ephor_proto::grpc::v1;
use ephor_proto::http::agent::{Bind, CredentialRequest};
use ephor_proto::id::{RequestId, TaskId};
use ephor_proto::limits::MAX_REASON_LEN;
use ephor_proto::problem::Code;
use ephor_proto::task_rule::Process;
use ephor_proto::ttl::parse_seconds;

use crate::attest::Fingerprint;
use crate::journal::JournalError;

/// A request in good form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    /// Entitlement asked for.
    pub entitlement: String,
    /// For `identity` the audience of a token, or empty for its certificate; else empty.
    pub item: String,
    /// Why, this time; may be empty.
    pub reason: String,
    /// Wanted lifetime; too large a number is capped by policy.
    pub ttl_seconds: Option<u64>,
    /// Whose task it is; the caller's own when absent.
    pub bind: Option<Bind>,
    /// The caller's idempotency key, if it brought one.
    pub request: Option<RequestId>,
    /// The workload named, or empty.
    pub subject: String,
}

/// A request in bad form: what to answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct BadRequest {
    /// The stable code.
    pub code: Code,
    /// What is wrong and what to write.
    pub detail: String,
}

impl BadRequest {
    /// `invalid_request` with this detail.
    #[must_use]
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self {
            code: Code::InvalidRequest,
            detail: detail.into(),
        }
    }
}

/// The task of a caller, as the agent resolved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundTask {
    /// Its id.
    pub id: TaskId,
    /// `run`, `unit`, `ancestor` or `peer`.
    pub rule: &'static str,
    /// Its process.
    pub pid: u32,
    /// That process's start time.
    pub start_time: u64,
    /// The agent's counter when it opened the task.
    pub opened_seq: u64,
}

impl BoundTask {
    /// As it is told to the broker.
    #[must_use]
    pub fn to_wire(self) -> v1::Task {
        v1::Task {
            id: self.id.to_bytes().to_vec(),
            rule: self.rule.to_owned(),
            pid: self.pid,
            start_time: self.start_time,
            opened_seq: self.opened_seq,
        }
    }
}

/// The identity a request is made for, for as long as it is there to be checked again.
pub struct Asker {
    /// Its task.
    pub task: BoundTask,
    /// Everything that makes it itself.
    pub fingerprint: Fingerprint,
    /// The attested process, for checking again.
    pub identity: Box<dyn Identity>,
}

/// An attested process.
pub trait Identity: Send + Sync {
    /// Whether it is still there and still the same. Cheap: asked before every hand-over.
    ///
    /// # Errors
    /// What changed, safe to be told.
    fn still(&self) -> Result<(), String>;
    /// Whether its task goes on.
    fn is_open(&self) -> bool;
    /// Waits until a restart of the agent would find its task.
    ///
    /// # Errors
    /// When it could not be journalled: nothing may be handed over.
    fn journalled(&self) -> Pin<Box<dyn Future<Output = Result<(), JournalError>> + Send + '_>>;
    /// What to tell the broker of it. The first time this may ask the host's name service: not for
    /// an async thread.
    fn evidence(&self) -> v1::Evidence;
    /// The same, if it was asked for before.
    fn known_evidence(&self) -> Option<v1::Evidence>;
    /// The same with the digest of its executable. May take seconds: not for an async thread.
    ///
    /// # Errors
    /// Why it cannot be hashed, safe to be told.
    fn hashed_evidence(&self) -> Result<v1::Evidence, String>;
    /// Which process it is, for an agent that takes over; none when it cannot be found again.
    fn process(&self) -> Option<Process>;
}

impl Requested {
    /// Parses the body of `POST /v1/credentials`.
    ///
    /// # Errors
    /// Says which field is wrong.
    pub fn from_body(body: &[u8]) -> Result<Self, BadRequest> {
        let body: CredentialRequest =
            serde_json::from_slice(body).map_err(|error| bad_body(body, &error))?;
        let audience = body.parameters.and_then(|parameters| parameters.audience);
        let requested = Self {
            item: item(&body.entitlement, audience)?,
            entitlement: body.entitlement,
            reason: body.reason.unwrap_or_default(),
            ttl_seconds: body.ttl_seconds.map(seconds).transpose()?,
            bind: body.bind,
            request: body.request_id,
            subject: body.subject.unwrap_or_default(),
        };
        if requested.reason.len() > MAX_REASON_LEN {
            let detail = format!("reason is longer than {MAX_REASON_LEN} bytes");
            return Err(BadRequest {
                code: Code::TooLarge,
                detail,
            });
        }
        if requested.subject.len() > ephor_proto::limits::MAX_SPIFFE_ID_LEN {
            return Err(BadRequest::invalid("subject is too long to be a SPIFFE ID"));
        }
        Ok(requested)
    }

    /// Parses the query of `GET /v1/token`.
    ///
    /// # Errors
    /// Says which key is wrong; an unknown one is refused, never ignored.
    pub fn token(raw: Option<&str>) -> Result<Self, BadRequest> {
        let [audience, bind, ttl] = query::only(raw, ["audience", "bind", "ttl_seconds"])?;
        if audience.is_none() {
            return Err(BadRequest::invalid(
                "audience is missing: name who the token is for",
            ));
        }
        Self::flat(cred::IDENTITY.to_owned(), audience, bind, ttl)
    }

    /// Parses the query of `GET /v1/certificate`.
    ///
    /// # Errors
    /// As [`Requested::token`].
    pub fn certificate(raw: Option<&str>) -> Result<Self, BadRequest> {
        let [entitlement, bind, ttl] = query::only(raw, ["entitlement", "bind", "ttl_seconds"])?;
        let entitlement = entitlement.unwrap_or_else(|| cred::IDENTITY.to_owned());
        Self::flat(entitlement, None, bind, ttl)
    }

    /// Parses the query of `GET /v1/database`.
    ///
    /// # Errors
    /// As [`Requested::token`].
    pub fn database(raw: Option<&str>) -> Result<Self, BadRequest> {
        let [entitlement, bind, ttl] = query::only(raw, ["entitlement", "bind", "ttl_seconds"])?;
        let missing =
            || BadRequest::invalid("entitlement is missing: name the one that gives the login");
        Self::flat(entitlement.ok_or_else(missing)?, None, bind, ttl)
    }

    fn flat(
        entitlement: String,
        audience: Option<String>,
        bind: Option<String>,
        ttl: Option<String>,
    ) -> Result<Self, BadRequest> {
        let ttl = ttl.map(|text| {
            // A sign is a value out of range, not a form of its own.
            parse_seconds(&text)
                .map_err(|error| BadRequest::invalid(error.to_string()))
                .and_then(|ttl| not_zero(ttl.as_seconds()))
        });
        Ok(Self {
            item: item(&entitlement, audience)?,
            entitlement,
            reason: String::new(),
            ttl_seconds: ttl.transpose()?,
            bind: bind
                .map(|text| text.parse().map_err(BadRequest::invalid))
                .transpose()?,
            request: None,
            subject: String::new(),
        })
    }
}

/// What is wrong with a body; a fraction for a TTL by name, because the parser's words for it
/// are about commas.
fn bad_body(body: &[u8], error: &serde_json::Error) -> BadRequest {
    let loose = serde_json::from_slice::<serde_json::Value>(body).ok();
    let ttl = loose
        .as_ref()
        .and_then(|body| body.get("ttl_seconds"))
        .filter(|ttl| ttl.is_f64());
    match ttl {
        Some(ttl) => BadRequest::invalid(format!(
            "ttl_seconds is {ttl}: it must be a whole number above 0"
        )),
        None => BadRequest::invalid(format!("the body is no credential request: {error}")),
    }
}

/// The item of an entitlement: `identity` has an audience when a token is asked for, nothing else
/// has one.
fn item(entitlement: &str, audience: Option<String>) -> Result<String, BadRequest> {
    cred::check_entitlement(entitlement).map_err(|error| BadRequest::invalid(error.to_string()))?;
    match (entitlement == cred::IDENTITY, audience) {
        (true, Some(audience)) => {
            CredRef::identity(&audience).map_err(|error| BadRequest::invalid(error.to_string()))?;
            Ok(audience)
        }
        (false, Some(_)) => {
            let detail = format!(
                "parameters.audience is only for `identity`; `{entitlement}` has its audience in policy"
            );
            Err(BadRequest::invalid(detail))
        }
        (true | false, None) => Ok(String::new()),
    }
}

/// Any number above 0 is legal here; what is too large is capped by policy.
fn seconds(value: i128) -> Result<u64, BadRequest> {
    if value < 0 {
        return Err(BadRequest::invalid(format!(
            "ttl_seconds is {value}: it must be a whole number above 0"
        )));
    }
    not_zero(u64::try_from(value).unwrap_or(u64::MAX))
}

fn not_zero(seconds: u64) -> Result<u64, BadRequest> {
    if seconds == 0 {
        let detail = "ttl_seconds is 0: ask for at least 1, or leave it out".to_owned();
        return Err(BadRequest {
            code: Code::TtlZero,
            detail,
        });
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(json: &str) -> Result<Requested, BadRequest> {
        Requested::from_body(json.as_bytes())
    }

    #[test]
    fn a_full_body() {
        let request = RequestId::from_parts(1, [1; 10]);
        let got = body(&format!(
            r#"{{"entitlement":"identity","parameters":{{"audience":"billing"}},"reason":"INC-1","ttl_seconds":60,"bind":"parent","request_id":"{request}","subject":"spiffe://td/a"}}"#
        ));
        let got = got.unwrap();
        assert_eq!(
            (
                got.entitlement.as_str(),
                got.item.as_str(),
                got.reason.as_str()
            ),
            ("identity", "billing", "INC-1")
        );
        assert_eq!(
            (got.ttl_seconds, got.bind, got.request),
            (Some(60), Some(Bind::Parent), Some(request))
        );
        assert_eq!(
            body(r#"{"entitlement":"billing-api","bind":7}"#)
                .unwrap()
                .bind,
            Some(Bind::Ancestor(7))
        );
    }

    #[test]
    fn identity_without_an_audience_is_its_certificate() {
        let got = body(r#"{"entitlement":"identity"}"#).unwrap();
        assert_eq!(
            (got.entitlement.as_str(), got.item.as_str()),
            ("identity", "")
        );
        assert_eq!(Requested::certificate(None).unwrap(), got);
        let other = Requested::certificate(Some("entitlement=web-cert&bind=7")).unwrap();
        assert_eq!(
            (other.entitlement.as_str(), other.bind),
            ("web-cert", Some(Bind::Ancestor(7)))
        );
        for bad in ["audience=a", "entitlement=X", "entitlement="] {
            assert!(Requested::certificate(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_database_is_named() {
        let got = Requested::database(Some("entitlement=orders-db&bind=parent")).unwrap();
        assert_eq!(
            (got.entitlement.as_str(), got.bind),
            ("orders-db", Some(Bind::Parent))
        );
        for bad in [
            None,
            Some(""),
            Some("audience=a"),
            Some("entitlement=A%20B"),
        ] {
            assert!(Requested::database(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bad_bodies_are_refused_by_name() {
        for (json, code, hint) in [
            ("", Code::InvalidRequest, "no credential request"),
            ("[]", Code::InvalidRequest, "no credential request"),
            (
                r#"{"entitlement":"x"} {}"#,
                Code::InvalidRequest,
                "trailing",
            ),
            (
                r#"{"entitlement":"x","entitlement":"y"}"#,
                Code::InvalidRequest,
                "duplicate",
            ),
            (
                r#"{"entitlement":"x","tll_seconds":1}"#,
                Code::InvalidRequest,
                "tll_seconds",
            ),
            (
                r#"{"entitlement":"x","parameters":{"aud":"y"}}"#,
                Code::InvalidRequest,
                "aud",
            ),
            (r#"{"entitlement":"X"}"#, Code::InvalidRequest, "a-z"),
            (
                r#"{"entitlement":"identity","parameters":{"audience":""}}"#,
                Code::InvalidRequest,
                "empty",
            ),
            (
                r#"{"entitlement":"x","parameters":{"audience":"y"}}"#,
                Code::InvalidRequest,
                "only for `identity`",
            ),
            (
                r#"{"entitlement":"x","ttl_seconds":0}"#,
                Code::TtlZero,
                "at least 1",
            ),
            (
                r#"{"entitlement":"x","ttl_seconds":-1}"#,
                Code::InvalidRequest,
                "-1",
            ),
            (
                r#"{"entitlement":"x","ttl_seconds":1.5}"#,
                Code::InvalidRequest,
                "1.5",
            ),
            (
                r#"{"entitlement":"x","bind":0}"#,
                Code::InvalidRequest,
                "pid",
            ),
            (
                r#"{"entitlement":"x","bind":"child"}"#,
                Code::InvalidRequest,
                "child",
            ),
            (
                r#"{"entitlement":"x","request_id":"1"}"#,
                Code::InvalidRequest,
                "id",
            ),
        ] {
            let error = body(json).unwrap_err();
            assert_eq!(error.code, code, "{json}");
            assert!(error.detail.contains(hint), "{json}: {}", error.detail);
        }
        let long = format!(
            r#"{{"entitlement":"x","reason":"{}"}}"#,
            "r".repeat(MAX_REASON_LEN + 1)
        );
        assert_eq!(body(&long).unwrap_err().code, Code::TooLarge);
    }

    #[test]
    fn huge_ttls_are_legal_and_capped_later() {
        for (text, seconds) in [
            ("9223372036854775808", 1 << 63),
            ("18446744073709551615", u64::MAX),
        ] {
            let got = body(&format!(r#"{{"entitlement":"x","ttl_seconds":{text}}}"#)).unwrap();
            assert_eq!(got.ttl_seconds, Some(seconds));
            let query = format!("audience=a&ttl_seconds={text}");
            assert_eq!(
                Requested::token(Some(&query)).unwrap().ttl_seconds,
                Some(seconds)
            );
        }
    }

    #[test]
    fn queries() {
        let got = Requested::token(Some(
            "audience=https%3A%2F%2Fapi%2Fv1&bind=parent&ttl_seconds=30",
        ))
        .unwrap();
        assert_eq!(
            (got.item.as_str(), got.bind, got.ttl_seconds),
            ("https://api/v1", Some(Bind::Parent), Some(30))
        );
        for (query, code, hint) in [
            ("", Code::InvalidRequest, "audience is missing"),
            ("audience=a&x=1", Code::InvalidRequest, "`x`"),
            ("audience=a&audience=b", Code::InvalidRequest, "twice"),
            ("audience=%zz", Code::InvalidRequest, "%zz"),
            ("audience=a&ttl_seconds=0", Code::TtlZero, "at least 1"),
            ("audience=a&ttl_seconds=-5", Code::InvalidRequest, "-5"),
            ("audience=a&bind=x", Code::InvalidRequest, "pid"),
        ] {
            let error = Requested::token(Some(query)).unwrap_err();
            assert_eq!(error.code, code, "{query}");
            assert!(error.detail.contains(hint), "{query}: {}", error.detail);
        }
    }
}
