//! One held answer on its way to the successor.

use std::sync::Arc;

use ephor_crypto::Secret;
use ephor_crypto::tls::TrustStore;
use ephor_proto::id::{CredentialId, DecisionId, RequestId, TaskId};
use ephor_proto::task_rule::Process;
use ephor_proto::time::{Boottime, UnixMillis};
use serde::{Deserialize, Serialize};

use super::frame::{FrameError, Message};
use crate::attest::Fingerprint;
use crate::hold::entry::{Again, Body, Cost, HeldCredential};
use crate::hold::login::{self, Login};
use crate::hold::{Held, Key, Lifetime};

/// What a successor is told of one held answer.
pub struct Told {
    /// Whose it is.
    pub task: TaskId,
    /// What it was asked by.
    pub key: Key,
    /// The process that asked, if it can be found again.
    pub asker: Option<Process>,
    /// Its identity.
    pub fingerprint: Fingerprint,
    /// The answer.
    pub held: Again,
}

/// Everything but secrets.
#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    task: TaskId,
    reason: String,
    item: String,
    entitlement: String,
    ttl_seconds: Option<u64>,
    subject: String,
    key_request: Option<RequestId>,
    key_fingerprint: Fingerprint,
    asker: Option<Process>,
    fingerprint: Fingerprint,
    request: RequestId,
    decision: DecisionId,
    held_subject: String,
    lifetime: [u64; 3],
    cost: [u64; 3],
    #[serde(default)]
    handed_over: bool,
    credentials: Vec<One>,
}

#[derive(Serialize, Deserialize)]
struct One {
    id: CredentialId,
    kind: String,
    expires_at: u64,
    refresh_at: u64,
    capped_by: String,
    body: Public,
    /// Bytes of its secret, behind the head.
    secret: usize,
}

#[derive(Serialize, Deserialize)]
enum Public {
    Token { audience: String },
    Certificate { serial: String, chain: String },
    Login(login::Public),
}

/// What to send of one held answer: the head, and the secrets in its order.
pub(super) fn tell<'h>(task: TaskId, key: &Key, held: &'h Held) -> (Head, Vec<&'h [u8]>) {
    let (mut credentials, mut secrets) = (Vec::new(), Vec::new());
    for credential in &held.credentials {
        let (body, secret) = match &credential.body {
            Body::Token { audience, token } => {
                let audience = audience.clone();
                (Public::Token { audience }, token.expose())
            }
            Body::Certificate {
                serial,
                chain,
                trust: _,
                key,
            } => {
                let public = Public::Certificate {
                    serial: serial.clone(),
                    chain: chain.clone(),
                };
                (public, key.expose())
            }
            Body::Login(login) => (Public::Login(login.public.clone()), login.secret.expose()),
        };
        credentials.push(One {
            id: credential.id,
            kind: credential.kind.clone(),
            expires_at: credential.expires_at.as_millis(),
            refresh_at: credential.refresh_at.as_millis(),
            capped_by: credential.capped_by.clone(),
            body,
            secret: secret.len(),
        });
        secrets.push(secret);
    }
    let (life, cost) = (held.lifetime, held.cost);
    let head = Head {
        task,
        reason: key.reason.to_string(),
        item: key.item.to_string(),
        entitlement: key.entitlement.to_string(),
        ttl_seconds: key.ttl_seconds,
        subject: key.subject.to_string(),
        key_request: key.request,
        key_fingerprint: key.fingerprint.clone(),
        asker: held.asker.identity.process(),
        fingerprint: held.asker.fingerprint.clone(),
        request: held.request,
        decision: held.decision,
        held_subject: held.subject.clone(),
        lifetime: [life.asked, life.refresh, life.end].map(Boottime::as_millis),
        cost: [cost.attest, cost.decide, cost.issue],
        handed_over: held.is_handed_over(),
        credentials,
    };
    (head, secrets)
}

/// What was told; `trust` is what this agent trusts.
///
/// # Errors
/// When it is not what [`tell`] makes.
pub(super) fn told(message: &Message, trust: &Arc<TrustStore>) -> Result<Told, FrameError> {
    let head: Head = message.head()?;
    let mut rest = message.body.as_slice();
    let mut credentials = Vec::with_capacity(head.credentials.len());
    for one in head.credentials {
        let (secret, after) = rest
            .split_at_checked(one.secret)
            .ok_or(FrameError::Form("a credential without its secret"))?;
        rest = after;
        let secret = Secret::new(secret.to_vec());
        credentials.push(HeldCredential {
            id: one.id,
            kind: one.kind,
            expires_at: UnixMillis::from_millis(one.expires_at),
            refresh_at: UnixMillis::from_millis(one.refresh_at),
            capped_by: one.capped_by,
            body: match one.body {
                Public::Token { audience } => Body::Token {
                    audience,
                    token: secret,
                },
                Public::Certificate { serial, chain } => Body::Certificate {
                    serial,
                    chain,
                    trust: Arc::clone(trust),
                    key: secret,
                },
                Public::Login(public) => Body::Login(Arc::new(Login { public, secret })),
            },
        });
    }
    if credentials.is_empty() || !rest.is_empty() {
        return Err(FrameError::Form("an answer without its credentials"));
    }
    let [asked, refresh, end] = head.lifetime.map(Boottime::from_millis);
    let [attest, decide, issue] = head.cost;
    Ok(Told {
        task: head.task,
        key: Key {
            reason: head.reason.into(),
            item: head.item.into(),
            entitlement: head.entitlement.into(),
            ttl_seconds: head.ttl_seconds,
            subject: head.subject.into(),
            request: head.key_request,
            fingerprint: head.key_fingerprint,
        },
        asker: head.asker,
        fingerprint: head.fingerprint,
        held: Again {
            request: head.request,
            decision: head.decision,
            subject: head.held_subject,
            credentials,
            lifetime: Lifetime {
                asked,
                refresh,
                end,
            },
            cost: Cost {
                attest,
                decide,
                issue,
            },
            handed_over: head.handed_over,
        },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::frame::{receive, send};
    use super::*;
    use crate::hold::tests::{held_login, key};

    /// The program that has the URL goes on with it, whichever agent extends it.
    #[test]
    fn a_login_is_handed_over_whole_and_is_still_what_its_renewal_extends() {
        for handed_over in [false, true] {
            let held = held_login(None);
            if handed_over {
                assert!(held.hand_over() && !held.hand_over());
            }
            let (one, two) = UnixStream::pair().unwrap();
            let (head, secrets) = tell(held.asker.task.id, &key("x"), &held);
            assert!(!serde_json::to_string(&head).unwrap().contains("hunter2"));
            send(&one, &head, &secrets, &[]).unwrap();
            let told = told(&receive(&two).unwrap(), &Arc::default()).unwrap();
            let again = Held::again(told.held, Arc::clone(&held.asker));
            assert_eq!(again.is_handed_over(), handed_over);
            assert_eq!(again.full().unwrap(), held.full().unwrap());
            let renewed = held_login(Some(&again));
            assert_eq!(renewed.is_handed_over(), handed_over);
            assert_eq!(renewed.full().unwrap(), held.full().unwrap());
        }
    }
}
