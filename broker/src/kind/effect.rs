//! What the stages know of a credential with an effect outside, whichever its kind: what is stored
//! of it, and the one match that calls its target.
//!
//! Nothing here knows of rows, events or queues, and nothing here ever holds a secret that was not
//! just made: what is stored says how the thing is called, never how to use it.

use std::time::Duration;

use ephor_crypto::Secret;
use ephor_crypto::scram::ScramVerifier;
use ephor_proto::id::CredentialId;
use ephor_proto::state::credential::Proof;
use ephor_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use self::certificate::ClientCertificate;
use crate::kind::postgres::{Found, Uses};
use crate::ledger::CredentialRow;
use crate::policy::{Give, LoginBy};

pub mod certificate;
pub mod logins;
#[cfg(test)]
pub(crate) mod scripted;

/// What is fixed at the intent, and what was learned since; the `content` of its row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Name of its target in policy.
    pub target: String,
    /// What it is called there: of a login its role.
    pub name: String,
    /// Group roles that it is a member of; sessions start as the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Database that it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub database: String,
    /// Sessions at once; none is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_limit: Option<u32>,
    /// Settings that its sessions start with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<(String, String)>,
    /// What it owns at its end goes to its group instead of being dropped.
    #[serde(default)]
    pub reassign: bool,
    /// The newest certificate that lets it in; none: a password does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<ClientCertificate>,
    /// It was there before and stays: what is made and ended is its password.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_static: bool,
    /// After this, by the target's clock, it must not be made any more.
    pub deadline: UnixMillis,
    /// What its target said when it was made; none before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minted: Option<Minted>,
    /// Its agent said that it was handed over.
    #[serde(default)]
    pub confirmed: bool,
    /// What its target said when it was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Gone>,
    /// A person answers for that it was never shown to be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Accepted>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde wants it so
fn is_false(flag: &bool) -> bool {
    !flag
}

/// See [`Content::used_as`], of a role that is lent.
#[must_use]
pub fn lent_name(role: &str, target: &str) -> String {
    format!("{role} at {target}")
}

/// That a person accepted an end without proof; why is in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Who, by the kernel's word.
    pub by: String,
    /// When, by our clock.
    pub at: UnixMillis,
}

impl Content {
    /// Of a stored credential; `None` for signed kinds, and once it was forgotten.
    #[must_use]
    pub fn of(row: &CredentialRow) -> Option<Self> {
        if row.kind.is_signed() {
            return None;
        }
        Self::parse(&row.content).ok()
    }

    /// As it is stored.
    ///
    /// # Errors
    /// When it is not that.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Of a login that policy gives, with the certificate that lets it in where policy wants one; `None`
    /// for what is no login, and where the one is missing or too much.
    #[must_use]
    pub fn planned(
        give: &Give,
        name: String,
        deadline: UnixMillis,
        certificate: Option<ClientCertificate>,
    ) -> Option<Self> {
        match give {
            Give::Postgres {
                target,
                roles,
                database,
                connection_limit,
                settings,
                login,
                reassign,
            } if certificate.is_some() == (*login == LoginBy::Certificate) => Some(Self {
                target: target.clone(),
                name,
                groups: roles.clone(),
                database: database.clone(),
                connection_limit: *connection_limit,
                settings: settings.clone(),
                reassign: *reassign,
                certificate,
                is_static: false,
                deadline,
                minted: None,
                confirmed: false,
                gone: None,
                accepted: None,
            }),
            Give::Postgres { .. }
            | Give::Secret { .. }
            | Give::Jwt { .. }
            | Give::X509 { .. }
            | Give::Introspect { .. } => None,
        }
    }

    /// Of a role that is lent.
    #[must_use]
    pub fn lent(target: String, role: String, database: String, deadline: UnixMillis) -> Self {
        Self {
            database,
            is_static: true,
            ..Self::named(target, role, deadline)
        }
    }

    /// Of something of which only its name is known any more.
    #[must_use]
    pub fn named(target: String, name: String, deadline: UnixMillis) -> Self {
        Self {
            target,
            name,
            groups: Vec::new(),
            database: String::new(),
            connection_limit: None,
            settings: Vec::new(),
            reassign: false,
            certificate: None,
            is_static: false,
            deadline,
            minted: None,
            confirmed: false,
            gone: None,
            accepted: None,
        }
    }

    /// What its sessions are counted under: a name of ours is its own, others' may be at two targets.
    #[must_use]
    pub fn used_as(&self) -> String {
        match self.is_static {
            true => lent_name(&self.name, &self.target),
            false => self.name.clone(),
        }
    }

    /// As it is stored.
    ///
    /// # Errors
    /// Never for what was made here; a defect otherwise.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

/// What a target said of something that it made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minted {
    /// The target's own number of it; a role's oid.
    pub number: u32,
    /// Which server, and how far it was then.
    pub seen: Seen,
    /// When, by the target's clock.
    pub at: UnixMillis,
}

/// Which server said something, and where its history was then: a server that goes back takes its
/// proofs with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Of the cluster.
    pub system_id: String,
    /// Goes up with each failover and each restore to a point in time.
    pub timeline: u32,
    /// Of its log.
    pub lsn: String,
}

impl Seen {
    /// Whether it is surely another server: one that may not tell its system id may be the same.
    #[must_use]
    pub fn is_elsewhere(&self, other: &Self) -> bool {
        let (one, other) = (&self.system_id, &other.system_id);
        !one.is_empty() && !other.is_empty() && one != other
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            system_id,
            timeline,
            lsn,
        } = self;
        write!(f, "system id {system_id}, timeline {timeline}, lsn {lsn}")
    }
}

impl Seen {
    /// Whether a server that was `before` can be here now without having lost anything of it.
    #[must_use]
    pub fn follows(&self, before: &Self) -> bool {
        let is_back = matches!((self.position(), before.position()), (Some(now), Some(before)) if now < before);
        self.is_history_of(before) && !is_back
    }

    /// Whether both are of one server, with no failover and no restore between them.
    #[must_use]
    pub fn is_history_of(&self, other: &Self) -> bool {
        (&self.system_id, self.timeline) == (&other.system_id, other.timeline)
    }

    /// Where in its log, as a number; `None` for what is written otherwise.
    #[must_use]
    pub fn position(&self) -> Option<u64> {
        let (high, low) = self.lsn.split_once('/')?;
        let part = |text| u64::from_str_radix(text, 16).ok();
        Some((part(high)? << 32) | part(low)?)
    }
}

/// A later look at something that was gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// There is nothing of that name or number.
    pub is_absent: bool,
    /// Sessions that were found, and told to end.
    pub sessions: u32,
    /// Some of [`Gone::starting`] still have no name, or a server that follows could not be asked: it
    /// must be looked at once more.
    pub is_incomplete: bool,
}

/// What a target said of something that is no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// `dropped` when this call ended it, `absent` when it was not there.
    pub proof: Proof,
    /// The target's own number of it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Sessions that were ended.
    pub sessions_ended: u32,
    /// Which server, and how far it was then.
    pub seen: Seen,
    /// Servers that follow and do not have it either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standbys: Vec<String>,
    /// What goes on, and is no part of what was ended; empty is nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remains: String,
    /// What could not be looked at; empty is nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub partial: String,
    /// Processes of sessions that were just starting there and told nobody yet whose they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub starting: Vec<i32>,
    /// The same on servers that follow, by their address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub starting_there: Vec<(String, Vec<i32>)>,
    /// When, by the target's clock.
    pub at: UnixMillis,
}

/// Something to end at its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Which credential.
    pub credential: CredentialId,
    /// See [`Content::name`].
    pub name: String,
    /// Group that gets what it owns; none: that is dropped.
    pub reassign: Option<String>,
    /// Of what was only lent, the database that it was for; none: it goes altogether.
    pub lent: Option<String>,
}

impl Ending {
    /// Of a credential whose content is known.
    #[must_use]
    pub fn of(credential: CredentialId, content: Content) -> Self {
        let group = content.groups.into_iter().next();
        Self {
            credential,
            name: content.name,
            lent: Some(content.database).filter(|_| content.is_static),
            reassign: group.filter(|_| content.reassign),
        }
    }
}

/// Why a target did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// It said no, or could not be asked; nothing was done.
    #[error("{0}")]
    Refused(String),
    /// It says no, and will until somebody mends something there or in policy; nothing was done.
    #[error("{0}")]
    UntilMended(String),
    /// It is lent to one task at a time, and another one has it; nothing was done.
    #[error("{0}")]
    Taken(String),
    /// Nobody answers there, or lets us in; nothing was done, and nothing else would be.
    #[error("{0}")]
    Away(String),
    /// It, or this broker's whole epoch, was revoked there before.
    #[error("it was revoked at the target before")]
    Fenced,
    /// The intent's deadline had passed by the target's clock.
    #[error("the target was reached too late")]
    TooLate,
    /// It could not be reached, or the answer was lost; it may have done it.
    #[error("{0}")]
    Unknown(String),
    /// It did not answer in time; it may have done it.
    #[error("no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
}

impl Failed {
    /// Whether whatever else is asked of this target would end the same way.
    #[must_use]
    pub const fn is_away(&self) -> bool {
        matches!(self, Self::Away(_))
    }

    /// The word of it, for metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Refused(_) | Self::UntilMended(_) | Self::Taken(_) => "refused",
            Self::Away(_) => "away",
            Self::Fenced => "fenced",
            Self::TooLate => "too_late",
            Self::Unknown(_) => "unknown",
            Self::NoAnswer(_) => "no_answer",
        }
    }
}

/// A target, by kind: a closed set, with one match for each thing to do.
#[derive(Clone)]
pub enum AtTarget {
    /// A PostgreSQL server.
    Postgres(logins::Server),
    /// Behaves as a test says.
    #[cfg(test)]
    Scripted(std::sync::Arc<scripted::Script>),
}

/// What a target is given instead of the password.
pub enum Verifier {
    /// For SCRAM.
    Scram(ScramVerifier),
    /// The scripted target keeps passwords.
    #[cfg(test)]
    Plain(String),
}

impl AtTarget {
    /// What it will be given instead of this password. Takes a millisecond or more of work.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn verifier(&self, password: &Secret) -> Result<Verifier, Failed> {
        match self {
            Self::Postgres(server) => server.verifier(password).map(Verifier::Scram),
            #[cfg(test)]
            Self::Scripted(_) => Ok(Verifier::Plain(password.expose_str().unwrap().to_owned())),
        }
    }

    /// Makes what an intent says, once. The same intent again makes no second one. Without a verifier
    /// only a certificate lets it in.
    ///
    /// # Errors
    /// When it was not made, or nobody can tell.
    pub async fn mint(
        &self,
        epoch: u32,
        intent: (CredentialId, &Content, UnixMillis),
        verifier: Option<&Verifier>,
    ) -> Result<Minted, Failed> {
        match self {
            Self::Postgres(server) => server.mint(epoch, intent, verifier).await,
            #[cfg(test)]
            Self::Scripted(script) => script.mint(epoch, intent, verifier).await,
        }
    }

    /// Lets it live until then, if it lives.
    ///
    /// # Errors
    /// When it was not extended, or nobody can tell.
    pub async fn extend(
        &self,
        epoch: u32,
        (id, content): (CredentialId, &Content),
        until: UnixMillis,
    ) -> Result<(), Failed> {
        match self {
            Self::Postgres(server) => server.extend(epoch, (id, content), until).await,
            #[cfg(test)]
            Self::Scripted(script) => script.extend(epoch, (id, &content.name), until).await,
        }
    }

    /// From here on no call of an earlier epoch of this installation does anything there.
    ///
    /// # Errors
    /// When it could not be told, or a later epoch has begun.
    pub async fn begin_epoch(&self, epoch: u32) -> Result<(), Failed> {
        match self {
            Self::Postgres(server) => Ok(server.target().begin_epoch(epoch).await?),
            #[cfg(test)]
            Self::Scripted(script) => script.begin_epoch(epoch),
        }
    }

    /// What has a login of our own there, whose password can be rotated.
    #[must_use]
    pub fn own_login(&self) -> Option<&logins::Server> {
        match self {
            Self::Postgres(server) => Some(server),
            #[cfg(test)]
            Self::Scripted(_) => None,
        }
    }

    /// Which server it is, and how far its history is.
    ///
    /// # Errors
    /// When it could not be asked.
    pub async fn seen(&self) -> Result<Seen, Failed> {
        match self {
            Self::Postgres(server) => server.seen().await,
            #[cfg(test)]
            Self::Scripted(script) => script.position(),
        }
    }

    /// Everything there that is called as we call things, whichever installation made it.
    ///
    /// # Errors
    /// When it could not be asked.
    pub async fn ours(&self) -> Result<Vec<Found>, Failed> {
        match self {
            Self::Postgres(server) => server.ours().await,
            #[cfg(test)]
            Self::Scripted(script) => script.ours(),
        }
    }

    /// Who uses what we made there, now.
    ///
    /// # Errors
    /// When it could not be asked.
    pub async fn uses(&self) -> Result<Uses, Failed> {
        match self {
            Self::Postgres(server) => server.uses().await,
            #[cfg(test)]
            Self::Scripted(script) => Ok(script.uses()),
        }
    }

    /// Looks again for something that was gone; what is found is ended.
    ///
    /// # Errors
    /// When it could not be asked.
    pub async fn look_again(
        &self,
        (id, content): (CredentialId, &Content),
        gone: &Gone,
    ) -> Result<Again, Failed> {
        match self {
            Self::Postgres(server) => server.look_again((id, content), gone).await,
            #[cfg(test)]
            Self::Scripted(script) => script.look_again(&content.name),
        }
    }

    /// Ends them, behind a fence, and looks that they are gone: one answer for each, in order.
    pub async fn revoke(&self, epoch: u32, endings: &[Ending]) -> Vec<Result<Gone, Failed>> {
        match self {
            Self::Postgres(server) => server.revoke(epoch, endings).await,
            #[cfg(test)]
            Self::Scripted(script) => script.revoke(epoch, endings).await,
        }
    }
}

impl Gone {
    /// This answer, unless all it says is that a server does not have what another one made.
    ///
    /// # Errors
    /// Then: it may live where it was made.
    pub fn of_its_server(self, content: &Content) -> Result<Self, Failed> {
        let made_at = content.minted.as_ref().map(|minted| &minted.seen);
        let Some(made_at) = made_at.filter(|made_at| made_at.is_elsewhere(&self.seen)) else {
            return Ok(self);
        };
        if self.proof == Proof::Dropped {
            return Ok(self);
        }
        let (target, there, here) = (&content.target, &made_at.system_id, &self.seen.system_id);
        Err(Failed::Refused(format!(
            "it was made at another server (system id {there}) than target {target} is now (system id {here}), \
             and may live there: point [target.{target}] at that one again, and give this one another name; if \
             that one is no more, only give this one another name, and `ephor credential accept` it"
        )))
    }

    /// In words, for listings.
    #[must_use]
    pub fn text(&self, content: &Content) -> String {
        let (name, sessions, at) = (&content.name, self.sessions_ended, self.at);
        let place = self.place(&content.target);
        let what = match content.is_static {
            true => "the password of ",
            false => "",
        };
        format!(
            "{what}{name} is {} at {place}, {sessions} sessions ended, seen {at}",
            self.proof.as_str()
        )
    }

    /// Where it was looked for, and what could not be looked at.
    #[must_use]
    pub fn place(&self, target: &str) -> String {
        let mut place = format!("{target} ({})", self.seen);
        for standby in &self.standbys {
            place.push_str(&format!(", standby {standby}"));
        }
        if !self.remains.is_empty() {
            place.push_str(&format!("; {}", self.remains));
        }
        if !self.partial.is_empty() {
            place.push_str(&format!("; partial: {}", self.partial));
        }
        place
    }
}
