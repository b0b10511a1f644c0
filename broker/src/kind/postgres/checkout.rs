//! A login that was there before and stays: lent to one task, with a password made for it, and shut again
//! when that task ends. It logs in only while it is lent. In an order like that of [`super::revoke`]:
//!
//! 1. fence: NOLOGIN, no password, committed; nobody comes in, and this checkout never begins again;
//! 2. its sessions end, here and on standbys: one that went on could set the password that it likes;
//! 3. a password of nobody, and still NOLOGIN;
//! 4. a login with that password: the server takes it, and says that the role may not log in. Only that
//!    is a proof, of that password and of none other;
//! 5. from here on it may be lent again: LOGIN comes with the next password, after everybody is gone who
//!    had begun a login before 1.
//!
//! What is claimed is that the password is dead and its sessions are over. The role goes on, and with
//! it what it owns, and whatever was done with its rights.

mod back;

use ephor_crypto::random;
use ephor_crypto::scram::ScramVerifier;
use ephor_proto::id::CredentialId;
use ephor_proto::time::UnixMillis;
use tokio::time::sleep;

pub use back::{CheckedIn, LeftOver};

use super::census::count;
use super::connect::{Params, field};
use super::failed::Failed;
use super::look::time;
use super::mint::millis;
use super::name::Ident;
use super::{Found, Minted, Position, Target, Use};
use crate::{crash_point, limits};

/// A role to lend, as it is fixed at the intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkout {
    /// Whose it is; the key of the fence.
    pub credential: CredentialId,
    /// The role that is lent.
    pub role: Ident,
    /// Database that it is for, to see there what its server says.
    pub database: Ident,
    /// The password is refused from then on, by the server's clock.
    pub valid_until: UnixMillis,
    /// See [`super::Login::deadline`].
    pub deadline: UnixMillis,
}

impl Target {
    /// Lends a role, with the password whose verifier is given. The same call again says the same. A role that
    /// logs in or has sessions is brought to rest first, as if it had been lent.
    ///
    /// # Errors
    /// [`Failed`]. Unless it [may be done](Failed::may_be_done) all the same, it is not lent.
    pub async fn check_out(
        &self,
        epoch: u32,
        checkout: &Checkout,
        verifier: &ScramVerifier,
    ) -> Result<Minted, Failed> {
        self.ready_to_revoke().await?;
        let role = checkout.role.as_str();
        let (mut why, mut opened) = (String::new(), 0);
        for _ in 0..limits::PG_LENT_TRIES {
            let rest = match self.check_out_once(epoch, checkout, verifier).await? {
                Ok(minted) => return Ok(minted),
                Err(rest) => rest,
            };
            if rest == "open" {
                why = format!("the role {role} is let log in again and again");
                opened += 1;
                if opened > limits::PG_FENCE_TRIES {
                    break;
                }
                self.bring_to_rest(epoch, checkout).await?;
                continue;
            }
            why = format!(
                "a login may be under way that began before the role {role} was last taken back; the server ends \
                 it when its authentication_timeout is over at the latest: ask again then"
            );
            sleep(limits::PG_LENT_PAUSE).await;
        }
        let target = self.name().to_owned();
        Err(Failed::Busy { target, why })
    }

    /// One try, or why the role is not at rest.
    async fn check_out_once(
        &self,
        epoch: u32,
        checkout: &Checkout,
        verifier: &ScramVerifier,
    ) -> Result<Result<Minted, String>, Failed> {
        const SQL: &str = "SELECT m.role_oid, m.system_id, m.timeline, m.lsn, m.at_ms, m.rest
            FROM ephor.check_out($1, $2, $3::text::uuid, $4, $5, $6, $7) m";
        let ahead = self.inner.making.ahead().await?;
        let deadline = millis(checkout.deadline).saturating_add(ahead);
        let params: Params<'_> = &[
            &self.access().installation,
            &i64::from(epoch),
            &checkout.credential.to_string(),
            &checkout.role.as_str(),
            &millis(checkout.valid_until),
            &verifier.expose(),
            &deadline,
        ];
        let asked = "checking out a role";
        let making = &self.inner.making;
        let rows = self.under(making, epoch, asked, SQL, params).await?;
        let row = self.only(&rows)?;
        let rest: Option<String> = field(self.access(), row, 5)?;
        if let Some(rest) = rest {
            return Ok(Err(rest));
        }
        let at = Position::of(self.access(), row, 1)?;
        Ok(Ok(Minted {
            oid: field(self.access(), row, 0)?,
            system_id: at.system_id,
            timeline: at.timeline,
            lsn: at.lsn,
            at: at.at,
        }))
    }

    /// Before it is lent for the first time, and whenever somebody let it log in since. What is left of this
    /// after a crash is found as a checkout that nobody knows.
    async fn bring_to_rest(&self, epoch: u32, checkout: &Checkout) -> Result<(), Failed> {
        const SQL: &str = "SELECT ephor.take($1, $2, $3::text::uuid, $4)";
        let random = random::bytes().map_err(|why| Failed::Busy {
            target: self.name().to_owned(),
            why: why.to_string(),
        })?;
        let taken = CredentialId::from_parts(checkout.credential.unix_millis(), random);
        let params: Params<'_> = &[
            &self.access().installation,
            &i64::from(epoch),
            &taken.to_string(),
            &checkout.role.as_str(),
        ];
        let making = &self.inner.making;
        self.under(making, epoch, "taking a role", SQL, params)
            .await?;
        crash_point!("lent.taken");
        let one = (taken, &checkout.role);
        self.check_in(epoch, one, &checkout.database).await?;
        Ok(())
    }

    /// Moves the end of a password that is out.
    ///
    /// # Errors
    /// As [`Target::extend`].
    pub async fn extend_checkout(
        &self,
        epoch: u32,
        credential: CredentialId,
        valid_until: UnixMillis,
    ) -> Result<(), Failed> {
        const SQL: &str = "SELECT ephor.extend_checkout($1, $2, $3::text::uuid, $4)";
        let params: Params<'_> = &[
            &self.access().installation,
            &i64::from(epoch),
            &credential.to_string(),
            &millis(valid_until),
        ];
        let asked = "extending a checkout";
        let making = &self.inner.making;
        let rows = self.under(making, epoch, asked, SQL, params).await?;
        if field(self.access(), self.only(&rows)?, 0)? {
            return Ok(());
        }
        Err(Failed::Refused {
            target: self.name().to_owned(),
            why: "the role was dropped or renamed there".to_owned(),
        })
    }

    /// Every role that is out, or being checked in; of whatever installation.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn checkouts(&self) -> Result<Vec<Found>, Failed> {
        const SQL: &str =
            "SELECT c.installation, c.role, c.now, c.role_oid, c.credential::text, c.fenced,
            c.can_login, c.attributes, c.valid_until_ms, c.sessions FROM ephor.checkouts() c";
        const PRUNE: &str = "SELECT ephor.prune_checkouts($1)";
        let access = self.access();
        let pool = &self.inner.revoking;
        let rows = pool.call("its checkouts", SQL, &[]).await;
        let rows = rows.map_err(|said| said.failed(self.name()))?;
        let params: Params<'_> = &[&limits::PG_FENCE_KEEP_SECONDS];
        let pruned = pool.call("pruning checkouts", PRUNE, params).await;
        pruned.map_err(|said| said.failed(self.name()))?;
        let found = |row| {
            let credential: Option<String> = field(access, row, 4)?;
            let oid: Option<u32> = field(access, row, 3)?;
            let valid_until: Option<i64> = field(access, row, 8)?;
            Ok(Found {
                role: field(access, row, 1)?,
                now: field(access, row, 2)?,
                installation: field(access, row, 0)?,
                oid: oid.unwrap_or(0),
                credential: credential.and_then(|text| text.parse().ok()),
                fenced: field(access, row, 5)?,
                can_login: field(access, row, 6)?,
                attributes: field(access, row, 7)?,
                groups: Vec::new(),
                granted_to: Vec::new(),
                valid_until: valid_until.map(time),
                connection_limit: -1,
                sessions: count(field(access, row, 9)?),
                is_static: true,
            })
        };
        rows.iter().map(found).collect()
    }

    /// Who is connected now with a role that we have lent.
    ///
    /// # Errors
    /// [`Failed`].
    pub async fn checkout_uses(&self) -> Result<Vec<Use>, Failed> {
        const SQL: &str =
            "SELECT u.role, u.role_oid, u.pid, u.address, u.database, u.since_ms, u.last_ms
            FROM ephor.checkout_uses($1) u WHERE u.since_ms IS NOT NULL";
        let access = self.access();
        let asked = "who is connected with a static role";
        let rows = self
            .inner
            .revoking
            .call(asked, SQL, &[&access.installation])
            .await;
        let rows = rows.map_err(|said| said.failed(self.name()))?;
        let used = |row| {
            let since: i64 = field(access, row, 5)?;
            let last: Option<i64> = field(access, row, 6)?;
            Ok(Use {
                role: field(access, row, 0)?,
                oid: field(access, row, 1)?,
                pid: field(access, row, 2)?,
                from: field(access, row, 3)?,
                database: field(access, row, 4)?,
                first: time(since),
                last: time(last.unwrap_or(since)),
                is_static: true,
            })
        };
        rows.iter().map(used).collect()
    }
}
