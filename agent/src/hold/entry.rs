//! One held answer: its lifetimes, and the bytes that go out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use ephor_crypto::Secret;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::TrustStore;
use ephor_crypto::x509::{Leaf, pem, secret_pem};
use ephor_proto::grpc::v1;
use ephor_proto::http::agent as wire;
use ephor_proto::id::{BadId, CredentialId, DecisionId, RequestId, TaskId};
use ephor_proto::kind::Kind;
use ephor_proto::time::{Boottime, UnixMillis};
use zeroize::{Zeroize, Zeroizing};

use super::login::Login;
use crate::request::Asker;

/// Both clocks, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall time.
    pub wall: UnixMillis,
    /// Boot time.
    pub boot: Boottime,
}

/// The bounds of a credential on this host's boot clock, which counts through a suspend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// When it was asked for.
    pub asked: Boottime,
    /// From when on a newer one should be served.
    pub refresh: Boottime,
    /// Never served at or after this.
    pub end: Boottime,
}

/// Clocks of host and broker that differ by no more than this are taken to agree.
const CLOCKS_AGREE_MILLIS: u64 = 2_000;

impl Lifetime {
    /// From the broker's times and this host's clocks when the request left and now.
    ///
    /// The life counts from when the request left, so a slow answer never lengthens it. Where
    /// the wall clocks agree the wall-clock end also holds; where they do not, one second less,
    /// because the broker's times are whole seconds.
    #[must_use]
    pub fn of(
        issued_at: UnixMillis,
        refresh_at: UnixMillis,
        expires_at: UnixMillis,
        sent: Now,
        now: Now,
    ) -> Self {
        let from_sent = |at: UnixMillis| {
            Boottime::from_millis(
                sent.boot
                    .as_millis()
                    .saturating_add(at.millis_since(issued_at)),
            )
        };
        let agree = issued_at.as_millis().saturating_add(CLOCKS_AGREE_MILLIS)
            >= sent.wall.as_millis()
            && issued_at.as_millis() <= now.wall.as_millis().saturating_add(CLOCKS_AGREE_MILLIS);
        let by_life = from_sent(expires_at);
        let end = if agree {
            let left = expires_at.millis_since(now.wall);
            by_life.min(Boottime::from_millis(
                now.boot.as_millis().saturating_add(left),
            ))
        } else {
            Boottime::from_millis(by_life.as_millis().saturating_sub(1_000))
        };
        Self {
            asked: sent.boot,
            refresh: from_sent(refresh_at).min(end),
            end,
        }
    }
}

/// What the stages before the hand-over took for one request, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Here and at the broker.
    pub attest: u64,
    /// At the broker.
    pub decide: u64,
    /// At the broker.
    pub issue: u64,
}

/// One credential of an answer.
pub struct HeldCredential {
    /// Its id.
    pub id: CredentialId,
    /// Its kind.
    pub kind: String,
    /// True expiry by the broker's clock.
    pub expires_at: UnixMillis,
    /// When a caller should fetch again, by the broker's clock.
    pub refresh_at: UnixMillis,
    /// What bounded it.
    pub capped_by: String,
    /// What it is used with.
    pub body: Body,
}

/// What is handed out of one credential.
pub enum Body {
    /// A token.
    Token {
        /// Whom it is for.
        audience: String,
        /// The secret itself.
        token: Secret,
    },
    /// A certificate and its key.
    Certificate {
        /// Serial number in hex.
        serial: String,
        /// The leaf, then intermediates, in PEM.
        chain: String,
        /// The CAs of the trust domain, as they are whenever it is handed out.
        trust: Arc<TrustStore>,
        /// PKCS#8 in PEM. It was made here and is nowhere else.
        key: Secret,
    },
    /// A database login; renewing extends it, so it is the same for as long as the task lives but for the
    /// certificate, where one lets it in.
    Login(Arc<Login>),
}

/// What a certificate needs beside itself to be used.
pub struct Beside {
    /// The key that it is for.
    pub key: Arc<SigningKey>,
    /// The CAs of the trust domain.
    pub trust: Arc<TrustStore>,
}

/// An answer of the broker, kept for its task.
pub struct Held {
    /// The request that got it.
    pub request: RequestId,
    /// The decision that allowed it.
    pub decision: DecisionId,
    /// Who the caller is.
    pub subject: String,
    /// Its credentials; never empty.
    pub credentials: Vec<HeldCredential>,
    /// The shortest of their lifetimes.
    pub lifetime: Lifetime,
    /// Whose identity it was issued to; renewed only while that one is still there.
    pub asker: Arc<Asker>,
    /// What getting it took; of those who asked for it then, not of a later hit.
    pub cost: Cost,
    task: TaskId,
    /// Somebody has it, or is about to.
    handed_over: AtomicBool,
    full: OnceLock<Bytes>,
    flat: OnceLock<Bytes>,
}

/// What another agent tells of one that it held; see [`Held`].
pub struct Again {
    /// See [`Held`].
    pub request: RequestId,
    /// See [`Held`].
    pub decision: DecisionId,
    /// See [`Held`].
    pub subject: String,
    /// See [`Held`].
    pub credentials: Vec<HeldCredential>,
    /// See [`Held`]; boot clocks of one host are the same for both agents.
    pub lifetime: Lifetime,
    /// See [`Held`].
    pub cost: Cost,
    /// See [`Held::hand_over`].
    pub handed_over: bool,
}

/// Why an answer of the broker cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum BadAnswer {
    /// An id is not one.
    #[error("the broker's answer holds a bad id: {0}")]
    Id(#[from] BadId),
    /// A certificate is not one, or not for the key that was sent.
    #[error("the broker's answer holds a certificate that cannot be used: {0}")]
    Certificate(String),
    /// A login that says not enough to connect, or a renewal of one that is not held.
    #[error("the broker's answer holds a login that cannot be used: {0}")]
    Login(&'static str),
    /// No credential at all.
    #[error("the broker's answer holds no credential")]
    Empty,
}

impl Held {
    /// Takes over an answer; the token's bytes move, they are not copied. `renews` is what a renewal
    /// extends: a login is not in its answer, and stays as it was handed out.
    ///
    /// # Errors
    /// When the answer has no credential, a bad id, a certificate for another key, or a login that says
    /// not enough.
    pub fn new(
        answer: v1::IssueResponse,
        asker: Arc<Asker>,
        (beside, renews): (Option<&Beside>, Option<&Self>),
        (sent, now): (Now, Now),
    ) -> Result<Self, BadAnswer> {
        let request = RequestId::from_slice(&answer.request_id)?;
        let decision = DecisionId::from_slice(&answer.decision_id)?;
        let cost = Cost {
            attest: answer.attest_microseconds,
            decide: answer.decide_microseconds,
            issue: answer.issue_microseconds,
        };
        let mut lifetime: Option<Lifetime> = None;
        let mut credentials = Vec::with_capacity(answer.credentials.len());
        for mut given in answer.credentials {
            let [issued_at, refresh_at, expires_at] =
                [given.issued_at, given.refresh_at, given.expires_at].map(UnixMillis::from_millis);
            let one = Lifetime::of(issued_at, refresh_at, expires_at, sent, now);
            lifetime = Some(match lifetime {
                Some(both) => Lifetime {
                    asked: both.asked,
                    refresh: both.refresh.min(one.refresh),
                    end: both.end.min(one.end),
                },
                None => one,
            });
            let id = CredentialId::from_slice(&given.id)?;
            let body = if let Some(login) = given.login.take() {
                let key = beside.map(|beside| &*beside.key);
                Body::Login(Arc::new(Login::new(login, key)?))
            } else if let Some(login) = renews.and_then(|held| held.login(id)) {
                Body::Login(login)
            } else if [Kind::Postgres, Kind::Secret]
                .iter()
                .any(|kind| given.kind == kind.as_str())
            {
                return Err(BadAnswer::Login("it renews one that is not held here"));
            } else if given.certificate_chain_der.is_empty() {
                Body::Token {
                    audience: given.audience,
                    token: Secret::from_string(given.token),
                }
            } else {
                certificate(&given.certificate_chain_der, beside)?
            };
            credentials.push(HeldCredential {
                id,
                kind: given.kind,
                expires_at,
                refresh_at,
                capped_by: given.capped_by,
                body,
            });
        }
        let lifetime = lifetime.ok_or(BadAnswer::Empty)?;
        let (full, flat) = (OnceLock::new(), OnceLock::new());
        let task = asker.task.id;
        // Who has what is renewed has that.
        let handed_over = renews.is_some_and(Self::is_handed_over).into();
        Ok(Self {
            request,
            decision,
            subject: answer.subject,
            credentials,
            lifetime,
            asker,
            cost,
            task,
            handed_over,
            full,
            flat,
        })
    }

    /// Several answers as one: the credentials of one request, each renewed by itself.
    #[must_use]
    pub fn joined(mut self, others: Vec<Self>) -> Self {
        for other in others {
            let (both, one) = (self.lifetime, other.lifetime);
            self.lifetime = Lifetime {
                asked: both.asked,
                refresh: both.refresh.min(one.refresh),
                end: both.end.min(one.end),
            };
            self.credentials.extend(other.credentials);
        }
        self
    }

    /// As another agent of this host held it.
    #[must_use]
    pub fn again(parts: Again, asker: Arc<Asker>) -> Self {
        Self {
            request: parts.request,
            decision: parts.decision,
            subject: parts.subject,
            credentials: parts.credentials,
            lifetime: parts.lifetime,
            cost: parts.cost,
            task: asker.task.id,
            asker,
            handed_over: parts.handed_over.into(),
            full: OnceLock::new(),
            flat: OnceLock::new(),
        }
    }

    /// Whether one of its credentials is a certificate.
    #[must_use]
    pub fn is_certificate(&self, id: CredentialId) -> bool {
        let mut all = self.credentials.iter();
        all.any(|one| one.id == id && matches!(one.body, Body::Certificate { .. }))
    }

    /// Whether its credentials are certificates, among others.
    #[must_use]
    pub fn has_certificate(&self) -> bool {
        self.credentials
            .iter()
            .any(|one| matches!(one.body, Body::Certificate { .. }))
    }

    /// The key that the next certificate of a login is for; `None` of what has none, or a fresh one with
    /// each certificate.
    #[must_use]
    pub fn kept_key(&self, id: CredentialId) -> Option<SigningKey> {
        self.login(id)?.key()
    }

    /// The login of a credential, which its renewal keeps.
    fn login(&self, id: CredentialId) -> Option<Arc<Login>> {
        let one = self.credentials.iter().find(|one| one.id == id)?;
        match &one.body {
            Body::Login(login) => Some(Arc::clone(login)),
            Body::Token { .. } | Body::Certificate { .. } => None,
        }
    }

    /// The ids of what exists at a target: kept by its renewal, and the broker wants to be told of its
    /// hand-over.
    pub fn at_targets(&self) -> impl Iterator<Item = CredentialId> {
        let at_target = |one: &&HeldCredential| matches!(one.body, Body::Login(_));
        self.credentials.iter().filter(at_target).map(|one| one.id)
    }

    /// It is about to be handed over. True the first time.
    pub fn hand_over(&self) -> bool {
        !self.handed_over.swap(true, Ordering::AcqRel)
    }

    /// Whether anyone has it.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// Whether it may still be served.
    #[must_use]
    pub fn is_good(&self, now: Boottime) -> bool {
        now < self.lifetime.end
    }

    /// Whether `id` is among its credentials.
    #[must_use]
    pub fn has(&self, id: CredentialId) -> bool {
        self.credentials
            .iter()
            .any(|credential| credential.id == id)
    }

    /// How many credentials go when this goes.
    #[must_use]
    pub fn copies(&self) -> u32 {
        u32::try_from(self.credentials.len()).unwrap_or(u32::MAX)
    }

    /// The body of `POST /v1/credentials`. Made once, unless the CAs of a certificate stand in it,
    /// which may change while it is held; every answer shares these bytes, and they are overwritten
    /// when the last of them is gone.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn full(&self) -> Result<Bytes, serde_json::Error> {
        self.once(&self.full, || {
            let mut body = wire::Credentials {
                task: self.task,
                task_rule: self.asker.task.rule.to_owned(),
                request: self.request,
                decision: self.decision,
                subject: self.subject.clone(),
                credentials: self
                    .credentials
                    .iter()
                    .map(HeldCredential::to_wire)
                    .collect(),
            };
            let bytes = write_secret(&body, self.size());
            body.credentials.iter_mut().for_each(wipe);
            bytes
        })
    }

    /// The body of `GET /v1/token`, `GET /v1/certificate` and `GET /v1/database`, when this is exactly one credential.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn flat(&self) -> Result<Option<Bytes>, serde_json::Error> {
        let [credential] = self.credentials.as_slice() else {
            return Ok(None);
        };
        let bytes = self.once(&self.flat, || {
            let mut body = wire::Token {
                task: self.task,
                task_rule: self.asker.task.rule.to_owned(),
                request: self.request,
                decision: self.decision,
                subject: self.subject.clone(),
                credential: credential.to_wire(),
            };
            let bytes = write_secret(&body, self.size());
            wipe(&mut body.credential);
            bytes
        });
        bytes.map(Some)
    }

    fn once(
        &self,
        cell: &OnceLock<Bytes>,
        make: impl FnOnce() -> Result<Bytes, serde_json::Error>,
    ) -> Result<Bytes, serde_json::Error> {
        if let Some(bytes) = cell.get() {
            return Ok(bytes.clone());
        }
        let made = make()?;
        if self.has_certificate() {
            return Ok(made);
        }
        Ok(cell.get_or_init(|| made).clone())
    }

    /// Room for the body, so that writing it never moves secrets to a larger buffer and
    /// leaves a copy behind. JSON may escape one byte as six.
    fn size(&self) -> usize {
        let one = |c: &HeldCredential| {
            let body = match &c.body {
                Body::Token { audience, token } => token.len() + audience.len(),
                // PEM has one byte in 65 to escape, with two.
                Body::Certificate {
                    serial,
                    chain,
                    trust,
                    key,
                } => {
                    let cas = trust
                        .current()
                        .iter()
                        .map(|ca| 2 * ca.der().len())
                        .sum::<usize>();
                    serial.len() + (chain.len() + cas + key.len()) / 5
                }
                Body::Login(login) => login.size(),
            };
            512 + 6 * (body + c.kind.len() + c.capped_by.len())
        };
        1024 + 6 * self.subject.len() + self.credentials.iter().map(one).sum::<usize>()
    }
}

impl HeldCredential {
    fn to_wire(&self) -> wire::Credential {
        let (audience, token, certificate, login) = match &self.body {
            Body::Token { audience, token } => (Some(audience), Some(token), None, None),
            Body::Certificate {
                serial,
                chain,
                trust,
                key,
            } => {
                let certificate = wire::Certificate {
                    serial: serial.clone(),
                    chain: chain.clone(),
                    private_key: key.expose_str().map(str::to_owned).unwrap_or_default(),
                    bundle: bundle_pem(trust),
                };
                (None, None, Some(certificate), None)
            }
            Body::Login(login) => (None, None, None, Some(login.to_wire())),
        };
        wire::Credential {
            kind: self.kind.clone(),
            id: self.id,
            expires_at: self.expires_at,
            refresh_at: self.refresh_at,
            capped_by: self.capped_by.clone(),
            audience: audience.filter(|audience| !audience.is_empty()).cloned(),
            token: token.and_then(|token| token.expose_str().ok().map(str::to_owned)),
            certificate,
            login,
        }
    }
}

fn wipe(credential: &mut wire::Credential) {
    if let Some(token) = credential.token.as_mut() {
        token.zeroize();
    }
    if let Some(certificate) = credential.certificate.as_mut() {
        certificate.private_key.zeroize();
    }
    if let Some(login) = credential.login.as_mut() {
        login.url.zeroize();
        login.password.zeroize();
        login.private_key.zeroize();
    }
}

/// A certificate, if it is for the key that was sent.
fn certificate(chain: &[Vec<u8>], beside: Option<&Beside>) -> Result<Body, BadAnswer> {
    let bad = |why: &str| BadAnswer::Certificate(why.to_owned());
    let Beside { key, trust } = beside.ok_or_else(|| bad("no key was sent for it"))?;
    let leaf = chain.first().ok_or(BadAnswer::Empty)?;
    let leaf = Leaf::parse(leaf).map_err(|error| BadAnswer::Certificate(error.to_string()))?;
    if leaf.spki != key.public_key().spki() {
        return Err(bad("it is for another key"));
    }
    Ok(Body::Certificate {
        serial: leaf.serial.to_string(),
        chain: chain.iter().map(|der| pem("CERTIFICATE", der)).collect(),
        trust: Arc::clone(trust),
        key: secret_pem(key.to_pkcs8()),
    })
}

/// The CAs trusted now, in PEM.
#[must_use]
pub fn bundle_pem(trust: &TrustStore) -> String {
    trust.current().iter().map(|ca| ca.pem()).collect()
}

/// JSON in a buffer that is overwritten when the last reader drops it.
fn write_secret<T: serde::Serialize>(body: &T, room: usize) -> Result<Bytes, serde_json::Error> {
    struct Wiped(Zeroizing<Vec<u8>>);
    impl AsRef<[u8]> for Wiped {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let mut buffer = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *buffer, body)?;
    Ok(Bytes::from_owner(Wiped(buffer)))
}
