//! Making a login, and moving its end.

use ephor_crypto::scram::ScramVerifier;
use ephor_proto::id::CredentialId;
use ephor_proto::postgres::start_as;
use ephor_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use super::connect::{Params, field};
use super::failed::MAKING;
use super::name::{Ident, RoleName};
use super::{Failed, Position, Target};

/// Role that every login without a password is in, so that `pg_hba.conf` can ask exactly these for a
/// certificate. It has no rights.
pub const CERTIFICATE: &str = "ephor_certificate";

/// A login as it is fixed at the intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// Whose it is; the key of the fence.
    pub credential: CredentialId,
    /// Its name.
    pub role: RoleName,
    /// Roles whose rights it has; sessions start as the first.
    pub groups: Vec<Ident>,
    /// The database it is for.
    pub database: Ident,
    /// Passwords are refused from then on, by the server's clock.
    pub valid_until: UnixMillis,
    /// Most sessions at once.
    pub connection_limit: Option<u32>,
    /// Settings that its sessions start with.
    pub settings: Vec<(String, String)>,
    /// The intent is void from then on. By our clock; the server judges it by its own, put right by how
    /// far that was ahead of ours when the connection was opened.
    pub deadline: UnixMillis,
}

impl Login {
    /// What a client puts into `options` (`PGOPTIONS`), so that its sessions start as the group and
    /// what they make belongs to it. The server lets nobody set this as a role's default from inside a
    /// function; a role that is no longer in the group is refused at connect.
    #[must_use]
    pub fn startup_options(&self) -> String {
        let group = self.groups.first();
        group.map_or_else(String::new, |group| start_as(group.as_str()))
    }
}

/// What the server said when a login had been made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minted {
    /// Of the role; it is never used again.
    pub oid: u32,
    /// Of the cluster.
    pub system_id: String,
    /// See [`Position`].
    pub timeline: u32,
    /// See [`Position`].
    pub lsn: String,
    /// By the server's clock.
    pub at: UnixMillis,
}

impl Target {
    /// Makes `login`, with a password whose verifier is given or with none (then only a certificate
    /// lets it in). The same call again says the same.
    ///
    /// # Errors
    /// [`Failed`]. Unless it [may be done](Failed::may_be_done) all the same, there is no login.
    pub async fn mint(
        &self,
        epoch: u32,
        login: &Login,
        verifier: Option<&ScramVerifier>,
    ) -> Result<Minted, Failed> {
        const SQL: &str = "SELECT m.role_oid, m.system_id, m.timeline, m.lsn, m.at_ms
            FROM ephor.mint($1, $2::text::uuid, $3, $4, $5, $6, $7, $8, $9) m";
        // Nothing is made that could not be ended: a server out of connections still has these.
        self.ready_to_revoke().await?;
        // A server whose clock is ahead would refuse everything.
        let ahead = self.inner.making.ahead().await?;
        let deadline = millis(login.deadline).saturating_add(ahead);
        let credential = login.credential.to_string();
        let groups: Vec<&str> = login.groups.iter().map(Ident::as_str).collect();
        let settings = login.settings.iter();
        let settings: Vec<&str> = settings
            .flat_map(|(k, v)| [k.as_str(), v.as_str()])
            .collect();
        let connections = login
            .connection_limit
            .map(|limit| i32::try_from(limit).unwrap_or(i32::MAX));
        let params: Params<'_> = &[
            &i64::from(epoch),
            &credential,
            &login.role.as_str(),
            &groups,
            &millis(login.valid_until),
            &connections,
            &verifier.map(ScramVerifier::expose),
            &settings,
            &deadline,
        ];
        let rows = self
            .under(&self.inner.making, epoch, MAKING, SQL, params)
            .await?;
        let row = self.only(&rows)?;
        let at = Position::of(self.access(), row, 1)?;
        Ok(Minted {
            oid: field(self.access(), row, 0)?,
            system_id: at.system_id,
            timeline: at.timeline,
            lsn: at.lsn,
            at: at.at,
        })
    }

    /// Moves the end of a login that lives.
    ///
    /// # Errors
    /// [`Failed::Fenced`] when it was revoked, [`Failed::Refused`] when somebody else has dropped or
    /// renamed it.
    pub async fn extend(
        &self,
        epoch: u32,
        credential: CredentialId,
        role: &RoleName,
        valid_until: UnixMillis,
    ) -> Result<(), Failed> {
        const SQL: &str = "SELECT ephor.extend($1, $2::text::uuid, $3, $4)";
        let params: Params<'_> = &[
            &i64::from(epoch),
            &credential.to_string(),
            &role.as_str(),
            &millis(valid_until),
        ];
        let rows = self
            .under(&self.inner.making, epoch, "extending a login", SQL, params)
            .await?;
        if field(self.access(), self.only(&rows)?, 0)? {
            return Ok(());
        }
        Err(Failed::Refused {
            target: self.name().to_owned(),
            why: format!("the role {role} was dropped or renamed there"),
        })
    }
}

pub(super) fn millis(time: UnixMillis) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
