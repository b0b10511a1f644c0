//! The broker's admin socket: HTTP + JSON for root or the broker's own uid.
//!
//! | call | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `POST /v1/backup` [`Backup`] | [`BackupState`] |
//! | `GET /v1/backup` | [`BackupState`] |
//! | `POST /v1/recover` [`Recover`] | [`Recovered`] |
//! | `GET /v1/tasks[?state=open]` | `[`[`Task`]`]` |
//! | `GET /v1/tasks/{any id form}` | [`Task`] |
//! | `POST /v1/tasks/{id}/end` [`Reason`] | [`Ended`] |
//! | `GET /v1/tasks/{id}/receipt` | receipt JSON |
//! | `GET /v1/credentials[?state=live][&task=ID][&overdue=true]` | `[`[`Credential`]`]` |
//! | `GET /v1/credentials/{id}` | [`Credential`] |
//! | `POST /v1/credentials/{id}/revoke` [`Reason`] | [`Ended`] |
//! | `GET /v1/hosts` | `[`[`Host`]`]` |
//! | `POST /v1/hosts/invite` [`Invite`] | [`Invited`] |
//! | `POST /v1/hosts/{name}/ban` [`Reason`] | [`Host`] |
//! | `GET /v1/keys` | `[`[`Key`]`]` |
//! | `POST /v1/keys/{ca, token or log}/rotate` [`Rotate`] | `[`[`Key`]`]` |
//! | `POST /v1/keys/{ca, token or log}/distrust` [`Reason`] | `[`[`Key`]`]` |
//! | `POST /v1/keys/ca/request` [`Reason`] | [`CaRequest`] |
//! | `POST /v1/keys/ca/chain` [`Chain`] | `[`[`Key`]`]` |
//! | `POST /v1/targets/{name}/rotate-secret` [`Reason`] | [`SecretRotated`] |
//! | `POST /v1/policy/explain` [`Explain`] | [`Explained`] |
//! | `POST /v1/policy/apply` [`ApplyPolicy`] | [`PolicyApplied`] |
//! | `GET /v1/policy/versions` | `[`[`PolicyVersion`]`]`, newest first |
//! | `GET /v1/policy/versions/{version, its beginning, or "current"}` | [`PolicyShown`] |
//! | `GET /v1/audit[?after=INDEX][&limit=N][&about=ID]` | `[`[`Record`]`]` |
//! | `GET /v1/audit/{any id, jti, host or short form}` | `[`[`Record`]`]` |
//! | `GET /v1/receipts[?after=ID][&limit=N]` | `[TaskId]` of tasks that have one |
//! | `GET /checkpoint`, `GET /tile/…` | as on the public listener |

use serde::{Deserialize, Serialize};

use crate::id::{CredentialId, DecisionId, RequestId, TaskId};
use crate::time::UnixMillis;

/// Why an operator does something. Kept with the audit event.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Free text.
    #[serde(default)]
    pub reason: String,
}

/// `GET /v1/status`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Version of the broker.
    pub version: String,
    /// Trust domain.
    pub trust_domain: String,
    /// Installation id.
    pub installation: String,
    /// Epoch of the store.
    pub epoch: u64,
    /// Policy in force (hex, whole).
    pub policy_version: String,
    /// Why the broker's policy directory is not what is in force, when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_trouble: Option<String>,
    /// Verifier key of the audit log (C2SP vkey).
    pub log_key: String,
    /// Leaves in the log.
    pub log_size: u64,
    /// Issuer URL.
    pub issuer: String,
    /// Base URL of the plain listener.
    pub lists_url: String,
    /// Whether new credentials are issued now, and if not why.
    pub issuing: bool,
    /// Reason when `issuing` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_because: Option<String>,
    /// Rows that were quarantined because they could not be read.
    pub quarantined: u64,
    /// Crypto provider of this build.
    pub crypto: String,
    /// What retention has pruned so far, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<Pruned>,
}

/// What retention does not keep any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Detail (rows, texts) of what was over before this is gone.
    pub before: UnixMillis,
    /// When it last went.
    pub at: UnixMillis,
    /// The first so many events have no text any more, only their hash.
    pub entries: u64,
}

/// `POST /v1/backup`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Where it will be kept, for the record. The broker writes below its own directory only.
    pub to: String,
    /// Also put the master key there.
    #[serde(default)]
    pub with_master_key: bool,
}

/// How a backup goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupStage {
    /// It is being written.
    Running,
    /// It is whole and on disk.
    Done,
    /// There is none.
    Failed,
}

/// `GET /v1/backup`: the backup that runs or ran last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackupState {
    /// How it goes.
    pub state: BackupStage,
    /// The directory that the broker made, for the caller to move.
    pub at: String,
    /// Events in its log.
    pub log_size: u64,
    /// Bytes of the copy.
    pub bytes: u64,
    /// SHA-256 of the copy, in hex.
    pub sha256: String,
    /// Where the master key is, without which it opens nothing; none when it is in the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master_key: Option<String>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl BackupState {
    /// One that has begun.
    #[must_use]
    pub fn running(at: &str) -> Self {
        Self {
            state: BackupStage::Running,
            at: at.to_owned(),
            log_size: 0,
            bytes: 0,
            sha256: String::new(),
            master_key: None,
            error: None,
        }
    }
}

/// `POST /v1/recover`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recover {
    /// Free text.
    pub reason: String,
    /// Hosts that may come back; absent is all of them. Bans since the copy are not known.
    #[serde(default)]
    pub admit: Option<Vec<String>>,
    /// Also when nothing says that the store is old.
    #[serde(default)]
    pub force: bool,
}

/// A new epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recovered {
    /// Its number.
    pub epoch: u64,
    /// Origin line of the log from here on.
    pub origin: String,
    /// Credentials that were live by the store, and are being revoked.
    pub credentials: u64,
    /// Until when hosts may come back with the certificate that they have.
    pub readmission_until: UnixMillis,
}

/// A task as listed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// Id.
    pub id: TaskId,
    /// Short form, unique in this store.
    pub short: String,
    /// Host it runs on.
    pub host: String,
    /// Who it is.
    pub subject: String,
    /// How it was found: `run`, `unit`, `ancestor`, `peer`.
    pub rule: String,
    /// Process id on that host.
    pub pid: u32,
    /// `open`, `completing` or `closed`.
    pub state: String,
    /// `exited`, `released`, `deadline`, `lost`, `revoked`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// When it opened.
    pub opened_at: UnixMillis,
    /// When its end was learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<UnixMillis>,
    /// Its credentials.
    pub credentials: Vec<Credential>,
}

/// A credential as listed; never its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Credential {
    /// Id; a token's `jti`.
    pub id: CredentialId,
    /// Short form, unique in this store.
    pub short: String,
    /// Kind.
    pub kind: String,
    /// `intended`, `live`, `replacing`, `revoking`, `contained` or `dead`.
    pub state: String,
    /// Task it is bound to.
    pub task: TaskId,
    /// Holder.
    pub subject: String,
    /// Host that holds it.
    pub host: String,
    /// Entitlement that gave it.
    pub entitlement: String,
    /// Who answers for it.
    pub owner: String,
    /// What it is for.
    pub purpose: String,
    /// For tokens: the audience.
    pub scope: String,
    /// Request, decision and rule behind it.
    pub request: RequestId,
    /// The decision.
    pub decision: DecisionId,
    /// FILE:LINE that allowed it.
    pub rule: String,
    /// When it was issued.
    pub issued_at: UnixMillis,
    /// When it expires by itself.
    pub expires_at: UnixMillis,
    /// What capped its life.
    pub capped_by: String,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<UnixMillis>,
    /// The policy version that no longer allowed it, when that is why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub narrowed_by: Option<String>,
    /// Revocation is late: why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overdue: Option<String>,
    /// The same, apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<Late>,
}

/// All that is known of a revocation that is late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// Target that must end it; empty for what ends at the broker.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// Who answers for the target.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target_owner: String,
    /// What went wrong at the last try; empty while the first is under way.
    pub reason: String,
    /// Tries so far.
    pub attempts: u32,
    /// When it is tried again, unless its target works before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<UnixMillis>,
    /// Who answers for that it was never shown to be dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<String>,
}

/// Answer of an operator's end or revoke.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ended {
    /// The task concerned.
    pub task: TaskId,
    /// Proven dead.
    pub dead: u32,
    /// Revoked and listed.
    pub listed: u32,
    /// Until when a verifier that never asks would accept one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed_until: Option<UnixMillis>,
    /// Receipt of the task, when all of it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<serde_json::Value>,
}

/// A host (its agent).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// Name.
    pub name: String,
    /// `joined`, `active`, `silent` or `banned`.
    pub state: String,
    /// When it joined.
    pub joined_at: UnixMillis,
    /// Last heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heard: Option<UnixMillis>,
    /// Open tasks there.
    pub open_tasks: u64,
    /// When its certificate expires.
    pub certificate_expires_at: UnixMillis,
}

/// `POST /v1/hosts/invite`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// Host name or pattern the token is good for.
    pub host: String,
    /// Life of the token in seconds; absent: 15 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// Answer of an invite. Holds a secret: no `Debug`.
#[derive(Serialize, Deserialize)]
pub struct Invited {
    /// The one-time join token.
    pub token: String,
    /// When it expires.
    pub expires_at: UnixMillis,
}

/// One version of one of the broker's own keys; never its private half.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Key {
    /// `ca`, `token` or `log`.
    pub kind: String,
    /// Counted from 1.
    pub version: u32,
    /// `requested`, `prepared`, `active`, `retired` or `destroyed`.
    pub state: String,
    /// Of a token key its `kid`, of a CA the certificate's SHA-256 in hex, of a log key its
    /// verifier key.
    pub id: String,
    /// When it came into its state.
    pub since: UnixMillis,
    /// When its state ends by itself, where that is known: a prepared key is then used, an active
    /// one followed, a retired one no longer trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixMillis>,
    /// Of a CA the end of its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<UnixMillis>,
}

/// `POST /v1/keys/{kind}/rotate`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// Use the published one now, if its lead is over.
    #[serde(default)]
    pub now: bool,
    /// Use it although its lead is not over, or none was published.
    #[serde(default)]
    pub force: bool,
    /// Free text.
    #[serde(default)]
    pub reason: String,
}

/// The broker's own login at a target has another password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRotated {
    /// Name of the target.
    pub target: String,
    /// The login there.
    pub login: String,
    /// What the server says to the password before; `refused`, or in words why nobody knows.
    pub old: String,
}

/// A request for the certificate of the broker's next CA.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CaRequest {
    /// PKCS#10, PEM.
    pub csr_pem: String,
}

/// `GET /v1/keys/database/certificates`: what a database server needs in its `ssl_ca_file`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatabaseCas {
    /// Every trusted CA for databases, PEM, oldest first.
    pub pem: String,
    /// The one of them that issues now.
    pub issuing: String,
}

/// `POST /v1/keys/ca/chain`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// Certificates in PEM: the CA's own first, its root last.
    pub chain_pem: String,
    /// Free text.
    #[serde(default)]
    pub reason: String,
}

/// `POST /v1/policy/explain`: one of the three is given.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    /// What can this subject get?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What could a compromised host of this name get?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Who can get this entitlement?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entitlement: Option<String>,
}

/// Answer of an explain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explained {
    /// Policy it was explained from.
    pub policy_version: String,
    /// One line a way to a credential.
    pub ways: Vec<Way>,
}

/// One way from a process to a credential.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Way {
    /// Subject.
    pub subject: String,
    /// Entitlement.
    pub entitlement: String,
    /// What it gives, in words.
    pub gives: String,
    /// Owner of the entitlement.
    pub owner: String,
    /// Purpose.
    pub purpose: String,
    /// Longest life, in seconds, and what caps it.
    pub ttl_seconds: u64,
    /// What caps it.
    pub capped_by: String,
    /// FILE:LINE.
    pub rule: String,
    /// How the process is recognised, in words; one entry per `runs` item.
    pub runs: Vec<String>,
}

/// One file of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// Its name in the directory, such as `orders.toml`.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// `POST /v1/policy/apply`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyPolicy {
    /// The whole policy.
    pub files: Vec<PolicyFile>,
    /// Say what would happen, and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// One difference between two policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChange {
    /// `added`, `removed`, `narrowed`, `widened` or `changed`.
    pub effect: String,
    /// What it is about: `ttl`, `workload orders/web`, `entitlement billing-api`.
    pub what: String,
    /// The subject whose rights it changes, where it is one subject's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// In words.
    pub detail: String,
}

/// Answer of an apply.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyApplied {
    /// The policy that was sent (hex, whole); in force now unless this was a dry run.
    pub version: String,
    /// The one that was in force before.
    pub previous: String,
    /// False when it was in force already.
    pub changed: bool,
    /// Nothing was done.
    pub dry_run: bool,
    /// What is different.
    pub changes: Vec<PolicyChange>,
    /// Credentials revoked because it no longer allows them; in a dry run: that would be.
    pub credentials: u64,
    /// Tasks ended because their subject may no longer run there.
    pub tasks: u64,
    /// False while some of them are still being revoked; it goes on.
    pub finished: bool,
    /// Things to look at in the policy.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What the broker's own directory holds, when it is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// One version of the policy in the chain.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Place in the chain, counted from 1.
    pub number: u64,
    /// Hash over its files (hex, whole).
    pub version: String,
    /// The version before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// When it was applied.
    pub applied_at: UnixMillis,
    /// Who applied it: `uid N` of the admin socket, `sighup`, or `start`.
    pub applied_by: String,
    /// Whether it is the one in force.
    pub in_force: bool,
}

/// One version with its text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyShown {
    /// Which one.
    #[serde(flatten)]
    pub version: PolicyVersion,
    /// What is wrong with the broker's own directory, when it is not what is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Its files.
    pub files: Vec<PolicyFile>,
}

/// One audit event with its place in the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Leaf index.
    pub index: u64,
    /// The event as in the leaf.
    pub event: serde_json::Value,
    /// Personal values that the leaf only commits to, while they are kept.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub personal: serde_json::Map<String, serde_json::Value>,
}
