//! Another password for the broker's own login, made here and set by that login itself.
//!
//! The order is what makes it safe to be stopped anywhere: the new password is on the disk before the
//! server knows it, and takes the old one's place there only after a fresh connection with it. What
//! was begun is only ever finished, never taken back: a statement whose answer was lost may still be
//! done, and it sets the same password. The server is only ever sent a verifier.

use std::num::NonZeroU32;
use std::path::Path;

use ephor_crypto::Secret;
use ephor_crypto::scram::{ScramVerifier, password as new_password};
use ephor_proto::postgres::Address;
use ephor_proto::time::UnixMillis;

use super::access::Password;
use super::connect::{Conn, Purpose};
use super::name::literal;
use super::{Failed, Target, password};
use crate::{crash_point, limits};

/// Characters of a password that we made.
const MADE: usize = 43;

/// Why our own login has the password that it had, or nobody knows which of two.
#[derive(Debug, thiserror::Error)]
pub enum NotRotated {
    /// It has none.
    #[error(
        "the broker logs in at target {target} without a password file, so there is none to rotate"
    )]
    NoSecret {
        /// Name of the target.
        target: String,
    },
    /// The file is somebody else's to write.
    #[error(
        "the password of target {target} is not the broker's to write: {why}. Nothing was changed. Either let the \
         broker's user write in that directory (target_secrets_dir, such as /var/lib/ephor/targets), or do it by hand: \
         put a new password into the file, then run ephor target init with --password-file"
    )]
    NotOurs {
        /// Name of the target.
        target: String,
        /// Which file, and what is in the way.
        why: String,
    },
    /// Begun, and not ended: both passwords are kept, and it is finished later.
    #[error(
        "{0}. It is begun: both passwords are kept, either is tried, and it is finished as soon as the target allows"
    )]
    Begun(Failed),
    /// The same, because of the file.
    #[error(
        "the new password of target {target} is set at the server and stays in FILE.next, which is tried, too: {why}"
    )]
    NotSettled {
        /// Name of the target.
        target: String,
        /// Which file, and what is in the way.
        why: String,
    },
}

/// What the server says to the password that was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old {
    /// It refuses it.
    Refused,
    /// It lets the login in with it, as with any: it asks for none from here.
    NotAsked,
    /// It could not be asked again.
    Unknown,
}

impl Old {
    /// For events and people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::NotAsked => "not asked for: the server lets this login in without a password",
            Self::Unknown => "unknown: the server could not be asked again",
        }
    }
}

/// A rotation that came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The login.
    pub login: String,
    /// What became of the password before.
    pub old: Old,
}

impl Target {
    /// Whether a rotation was begun and has not ended.
    pub async fn has_begun_rotation(&self) -> bool {
        match self.password_file() {
            Ok(file) => tokio::fs::try_exists(password::next(file))
                .await
                .unwrap_or(false),
            Err(_) => false,
        }
    }

    /// Makes and stores the password that is to follow, unless there is one; the server does not
    /// learn of it yet. True when it was made now.
    ///
    /// # Errors
    /// [`NotRotated::NoSecret`], [`NotRotated::NotOurs`]: nothing was done.
    pub async fn begin_rotation(&self) -> Result<bool, NotRotated> {
        let file = self.password_file()?;
        if self.has_begun_rotation().await {
            return Ok(false);
        }
        // A link is the door to somebody's store of secrets: to replace it would change nothing there.
        let is_link = tokio::fs::symlink_metadata(file).await;
        if is_link.is_ok_and(|found| found.is_symlink()) {
            return Err(self.not_ours(format!("{} is a link", file.display())));
        }
        let made = new_password().map_err(|why| self.not_ours(why.to_string()))?;
        let written = password::write_next(file, &made).await;
        written.map_err(|why| self.not_ours(why))?;
        crash_point!("rotate.next_written");
        Ok(true)
    }

    /// Takes back [`Self::begin_rotation`], before [`Self::prove_rotation`] was ever called.
    ///
    /// # Errors
    /// [`NotRotated::NotOurs`].
    pub async fn forget_rotation(&self) -> Result<(), NotRotated> {
        let forgotten = password::forget_next(self.password_file()?).await;
        forgotten.map_err(|why| self.not_ours(why))
    }

    /// Sets the password that follows, and proves it by a fresh connection. Both files stay until
    /// [`Self::settle_rotation`], so that the outcome can be recorded in between.
    ///
    /// # Errors
    /// [`NotRotated`]; the same call again goes on where it stopped.
    pub async fn prove_rotation(&self, iterations: NonZeroU32) -> Result<Rotated, NotRotated> {
        let file = self.password_file()?;
        let new = self.stored(&password::next(file)).await?;
        let old = password::read(file).await.ok().flatten();
        let verifier = ScramVerifier::new(&new, iterations);
        let verifier = verifier.map_err(|why| self.not_ours(why.to_string()))?;
        self.set_own(&verifier).await.map_err(NotRotated::Begun)?;
        crash_point!("rotate.set");
        let host = self.let_in(&new).await.map_err(NotRotated::Begun)?;
        crash_point!("rotate.proven");
        Ok(Rotated {
            login: self.access().user.clone(),
            old: match old {
                Some(old) => self.said_to(&old, &host).await,
                None => Old::Unknown,
            },
        })
    }

    /// Lets the new password take the old one's place, which is gone then.
    ///
    /// # Errors
    /// [`NotRotated::NotSettled`].
    pub async fn settle_rotation(&self) -> Result<(), NotRotated> {
        let settled = password::settle(self.password_file()?).await;
        settled.map_err(|why| NotRotated::NotSettled {
            target: self.name().to_owned(),
            why,
        })?;
        crash_point!("rotate.settled");
        Ok(())
    }

    /// When the password file was written last; `None` when there is none.
    pub async fn password_since(&self) -> Option<UnixMillis> {
        let file = self.password_file().ok()?;
        let written = tokio::fs::metadata(file).await.ok()?.modified().ok()?;
        let since = written.duration_since(std::time::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis())
            .ok()
            .map(UnixMillis::from_millis)
    }

    /// The file, if there is a password and we read it from one.
    fn password_file(&self) -> Result<&Path, NotRotated> {
        match &self.access().password {
            Password::File(file) => Ok(file),
            Password::None | Password::Absent(_) | Password::Given(_) => {
                Err(NotRotated::NoSecret {
                    target: self.name().to_owned(),
                })
            }
        }
    }

    /// Whether there is a file that the password is read from.
    #[must_use]
    pub fn has_password_file(&self) -> bool {
        self.password_file().is_ok()
    }

    /// That the file is somebody else's to write, and why.
    #[must_use]
    pub fn not_ours(&self, why: String) -> NotRotated {
        NotRotated::NotOurs {
            target: self.name().to_owned(),
            why,
        }
    }

    /// A password that we made; anything else in that file would weaken the login.
    async fn stored(&self, next: &Path) -> Result<Secret, NotRotated> {
        let read = password::read(next).await;
        let found = read.map_err(|why| self.not_ours(why))?;
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
        match found {
            Some(found) if found.len() == MADE && found.expose().iter().all(plain) => Ok(found),
            Some(_) => {
                let why = format!("{} holds no password of ours; remove it", next.display());
                Err(self.not_ours(why))
            }
            None => Err(self.not_ours(format!("{} is gone", next.display()))),
        }
    }

    /// On whichever connection there is, or with whichever password lets us in.
    async fn set_own(&self, verifier: &ScramVerifier) -> Result<(), Failed> {
        let sql = format!(
            "ALTER ROLE SESSION_USER PASSWORD {}",
            literal(verifier.expose())
        );
        let pool = &self.inner.revoking;
        loop {
            let held = pool.take().await?;
            let asked = "setting its own password";
            let done = held.conn.run(self.access(), asked, &sql).await;
            let is_stale = done.is_err() && held.used_before && held.conn.is_closed();
            if !matches!(done, Err(Failed::Unknown { .. })) {
                pool.give_back(held);
            }
            if !is_stale {
                return done;
            }
        }
    }

    /// A fresh connection with this password and no other, to the host that takes writes.
    async fn let_in(&self, password: &Secret) -> Result<Address, Failed> {
        let mut failed = None;
        for host in &self.access().hosts {
            match self.knock(password, host).await {
                Ok(conn) if !conn.in_recovery => return Ok(host.clone()),
                Ok(_) => {
                    failed.get_or_insert(Failed::NotPrimary {
                        target: self.name().to_owned(),
                        why: format!("{host} is in recovery, or follows another server"),
                    });
                }
                Err(why) => {
                    failed.get_or_insert(why);
                }
            }
        }
        Err(failed.unwrap_or_else(|| Failed::Unreachable {
            target: self.name().to_owned(),
            why: "it has no host".to_owned(),
        }))
    }

    async fn said_to(&self, old: &Secret, host: &Address) -> Old {
        match self.knock(old, host).await {
            Ok(_) => Old::NotAsked,
            Err(Failed::Unauthorized { .. }) => Old::Refused,
            Err(_) => Old::Unknown,
        }
    }

    async fn knock(&self, password: &Secret, host: &Address) -> Result<Conn, Failed> {
        let access = self.access();
        let purpose = Purpose {
            database: access.admin_database.as_str(),
            lock_wait: limits::PG_MINT_LOCK,
        };
        Conn::open_with(access, host, purpose, Some(password), &self.inner.tasks).await
    }
}
