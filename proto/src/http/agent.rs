//! The agent's native API on its Unix socket. Every call carries the header
//! [`LOCAL_HEADER`]`: 1`; bodies are JSON.

use serde::{Deserialize, Serialize};

use crate::id::{CredentialId, DecisionId, ReceiptId, RequestId, TaskId};
use crate::time::UnixMillis;

/// Header required on every call, so that a browser page or a forged URL cannot make one.
pub const LOCAL_HEADER: &str = "ephor-local";

/// `POST /v1/credentials`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialRequest {
    /// Entitlement asked for; `identity` is built in.
    pub entitlement: String,
    /// Why, this time. Free text, committed to in the audit log and kept erasable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the entitlement needs to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Parameters>,
    /// Wanted lifetime in seconds; capped, and the answer says by what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<i128>,
    /// Whose task it is: absent (the caller's own), `"parent"`, or an ancestor's pid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<Bind>,
    /// Idempotency key; made by the agent when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Needed only when several workloads of the policy match the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// Parameters of a [`CredentialRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// For `identity`: who the token is for; without it `identity` gives the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
}

/// Which process a helper verb stands in for (`bind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bind {
    /// The caller's parent process.
    Parent,
    /// An ancestor of the caller, by pid.
    Ancestor(u32),
}

impl std::fmt::Display for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Parent => f.write_str("parent"),
            Self::Ancestor(pid) => write!(f, "{pid}"),
        }
    }
}

impl std::str::FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "parent" => Ok(Self::Parent),
            pid => pid
                .parse()
                .ok()
                .filter(|pid| *pid > 0)
                .map(Self::Ancestor)
                .ok_or_else(|| format!("bind={pid:?} is neither \"parent\" nor a pid")),
        }
    }
}

impl Serialize for Bind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Parent => serializer.serialize_str("parent"),
            Self::Ancestor(pid) => serializer.serialize_u32(*pid),
        }
    }
}

impl<'de> Deserialize<'de> for Bind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Pid(u32),
        }
        match Form::deserialize(deserializer)? {
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
            Form::Pid(pid) => pid.to_string().parse().map_err(serde::de::Error::custom),
        }
    }
}

/// 200 answer of `POST /v1/credentials`. Holds secrets: no `Debug`.
#[derive(Serialize, Deserialize)]
pub struct Credentials {
    /// The task they are bound to.
    pub task: TaskId,
    /// Which rule found the task: `run`, `unit`, `ancestor` or `peer`.
    pub task_rule: String,
    /// The request, also its idempotency key.
    pub request: RequestId,
    /// The decision that allowed it.
    pub decision: DecisionId,
    /// Who the caller is to the broker.
    pub subject: String,
    /// What the entitlement gives.
    pub credentials: Vec<Credential>,
}

/// One credential as delivered. Holds a secret: no `Debug`.
#[derive(Serialize, Deserialize)]
pub struct Credential {
    /// `jwt`, `x509` or `postgres`
    pub kind: String,
    /// Its id; for a token its `jti`.
    pub id: CredentialId,
    /// True expiry.
    pub expires_at: UnixMillis,
    /// When to fetch again; from then on a newer one is there.
    pub refresh_at: UnixMillis,
    /// What bounded its life: `request`, `ttl.default`, `ttl.max`, …
    pub capped_by: String,
    /// For tokens: who it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// The token itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// For certificates: what they are used with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// For database logins: all that is needed to connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
}

/// A database login. It stays as it is for as long as its task lives: renewing moves its expiry, and
/// brings the next certificate where one lets it in. Holds a secret: no `Debug`.
#[derive(Serialize, Deserialize)]
pub struct Login {
    /// All of it as `DATABASE_URL`, password included; `sslrootcert`, `sslcert` and `sslkey` are not in
    /// it, because these are paths of files.
    pub url: String,
    /// The target in policy.
    pub target: String,
    /// Name, address, or directory of a Unix socket (`PGHOST`).
    pub host: String,
    /// `PGPORT`
    pub port: u16,
    /// `PGDATABASE`
    pub database: String,
    /// `PGUSER`: the role that was made for the task.
    pub user: String,
    /// `PGPASSWORD`; empty where a certificate lets it in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// What goes into the file `PGSSLCERT`, PEM; absent where a password lets it in. A renewal brings the
    /// next one, for the same key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// What goes into the file `PGSSLKEY`, PKCS#8 in PEM, beside `certificate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_key: Option<String>,
    /// `PGSSLMODE`: `verify-full`, or `disable`.
    pub sslmode: String,
    /// PEM of the CAs that the server's certificate is checked against; absent: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sslrootcert: Option<String>,
    /// The role that sessions start as.
    pub role: String,
    /// `PGOPTIONS`, which makes them do so; in `url`, too.
    pub options: String,
}

/// A certificate with its key. Holds a secret: no `Debug`.
#[derive(Serialize, Deserialize)]
pub struct Certificate {
    /// Serial number in hex; a renewed certificate has the next one.
    pub serial: String,
    /// The leaf, then intermediates, in PEM: what goes into a handshake.
    pub chain: String,
    /// The private key, PKCS#8 in PEM. It was made by the agent and is nowhere else.
    pub private_key: String,
    /// The CAs of the trust domain in PEM: what the other side is checked with.
    pub bundle: String,
}

/// `GET /v1/certificate[?entitlement=E][&bind=…][&ttl_seconds=N]`: one credential, flat. No
/// `Debug`.
pub type FlatCertificate = Token;

/// `GET /v1/database?entitlement=E[&bind=…][&ttl_seconds=N]`: one login, flat. No `Debug`.
pub type FlatLogin = Token;

/// `GET /v1/bundle`: what certificates of the trust domain are checked with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Without `spiffe://`.
    pub trust_domain: String,
    /// The CAs in PEM.
    pub x509: String,
}

/// `GET /v1/token?audience=A[&bind=…][&ttl_seconds=N]`: one credential, flat. No `Debug`.
#[derive(Serialize, Deserialize)]
pub struct Token {
    /// The task it is bound to.
    pub task: TaskId,
    /// Which rule found the task.
    pub task_rule: String,
    /// The request.
    pub request: RequestId,
    /// The decision that allowed it.
    pub decision: DecisionId,
    /// Who the caller is to the broker.
    pub subject: String,
    /// The credential.
    #[serde(flatten)]
    pub credential: Credential,
}

/// `POST /v1/tasks` with one process descriptor (pidfd) by `SCM_RIGHTS` beside the body.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskOpen {
    /// Shown in listings; never the command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Answer of `POST /v1/tasks`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskOpened {
    /// The new task.
    pub task: TaskId,
}

/// `GET /v1/task`: the caller's task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub task: TaskId,
    /// Which rule found it.
    pub rule: String,
    /// `open`, `completing` or `closed`.
    pub state: String,
    /// Why it ended, when it did: `exited`, `released`, `deadline`, `lost`, `revoked`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Live credentials held for it.
    pub credentials: Vec<Held>,
    /// Credentials of it that somebody revoked one by one while it is open, the last ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<CredentialId>,
    /// New epochs of the broker since the agent started: with each, all that was handed out before
    /// is refused, and has to be fetched again.
    #[serde(default)]
    pub epochs: u32,
}

/// A credential held for a task, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Held {
    /// Kind.
    pub kind: String,
    /// Id.
    pub id: CredentialId,
    /// Entitlement that gave it.
    pub entitlement: String,
    /// Expiry.
    pub expires_at: UnixMillis,
}

/// Answer of `POST /v1/tasks/{id}/complete` and `POST /v1/task/complete`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Completed {
    /// The task.
    pub task: TaskId,
    /// The receipt's id.
    pub receipt_id: ReceiptId,
    /// Credentials proven dead.
    pub dead: u32,
    /// Credentials revoked and listed, not yet expired for a verifier that never asks.
    pub listed: u32,
    /// Until when such a verifier would accept one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed_until: Option<UnixMillis>,
    /// Copies wiped from the agent's memory.
    pub wiped: u32,
    /// The broker has the end. Without a receipt it is still revoking, and tries until it can prove it.
    #[serde(default)]
    pub heard: bool,
    /// The signed receipt; absent while something is still being revoked, or the broker is away: then the end
    /// is spooled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<serde_json::Value>,
}

/// `GET /v1/whoami`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Whoami {
    /// SPIFFE IDs the policy gives the caller; more than one if several workloads match.
    pub subjects: Vec<String>,
    /// This host.
    pub host: String,
    /// Trust domain.
    pub trust_domain: String,
    /// What was attested.
    pub evidence: Evidence,
    /// Which rule finds the caller's task: `run`, `unit`, `ancestor` or `peer`.
    pub task_rule: String,
    /// The caller's open task, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
}

/// What the agent saw of a caller.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Evidence {
    /// User id as this host sees it.
    pub uid: u32,
    /// Login name, where there is one.
    pub user: String,
    /// Group id.
    pub gid: u32,
    /// Process id.
    pub pid: u32,
    /// Executable path.
    pub exe: String,
    /// Lower-case hex, only when the policy asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe_sha256: Option<String>,
    /// systemd unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// `pidfd` or `start-time`.
    pub held_by: String,
}

/// `GET /v1/ready`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// True only when the caller's credentials are there.
    pub ready: bool,
    /// What is missing, when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}
