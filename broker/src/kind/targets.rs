//! The targets that policy names, each with its connections. Made when first asked for, and again
//! when policy says something else of it.
//!
//! A target that policy no longer names stays as it was known, for as long as this process runs: what
//! is left there must still be ended.

mod rotate;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ephor_proto::postgres::Address;
use ephor_proto::time::Boottime;

use super::effect::{AtTarget, Failed, Seen, logins};
use super::name;
use super::postgres::Password;
use crate::app::Broker;
use crate::issue::defect;
use crate::policy::{PostgresTarget, Target, Tls};
use crate::request::Refusal;

/// A target and how to reach it.
pub struct Known {
    /// Who answers for it.
    pub owner: String,
    /// What calls it.
    pub at: AtTarget,
    /// What its users are told.
    pub endpoint: Endpoint,
    /// There was a file with the password of our own login.
    pub(crate) has_secret: bool,
    /// What policy said of it; none for one that a test put here.
    pub(crate) policy: Option<Arc<Target>>,
}

impl Known {
    /// Whether policy says the same now. Where it is written may have changed.
    fn is_as(&self, policy: &Target) -> bool {
        let same = |known: &Arc<Target>| {
            (&known.owner, &known.postgres, known.rotate)
                == (&policy.owner, &policy.postgres, policy.rotate)
        };
        self.policy.as_ref().is_none_or(same)
    }
}

/// How a login reaches its server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// Name, address, or directory of a Unix socket.
    pub host: String,
    /// Port.
    pub port: u16,
    /// As libpq has it.
    pub sslmode: String,
    /// PEM; may be empty.
    pub sslrootcert: String,
}

/// See the module.
#[derive(Default)]
pub struct Targets {
    /// Guards the map; held for one look-up.
    known: Mutex<HashMap<String, Arc<Known>>>,
    /// Guards the names of those that are being compared with the store; held for one look-up.
    looked_at: Mutex<HashSet<String>>,
    /// Guards the names of those whose own login gets another password; held for one look-up.
    rotated: Mutex<HashSet<String>>,
    /// Guards the names of those where something is looked for again; held for one look-up.
    looked_again: Mutex<HashSet<String>>,
    /// Guards the names of those to compare before their turn; held for one look-up.
    hurried: Mutex<HashSet<String>>,
    /// Guards where the history of each was when it was last heard; held for one look-up.
    heard: Mutex<HashMap<String, Heard>>,
}

/// Where the history of a target was.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    /// The furthest that it said.
    pub(crate) seen: Seen,
    /// When the answer came.
    pub(crate) at: Boottime,
    /// Asked after that, it said an earlier place.
    pub(crate) is_back: bool,
}

impl Heard {
    const fn new(seen: Seen, at: Boottime) -> Self {
        Self {
            seen,
            at,
            is_back: false,
        }
    }
}

impl Targets {
    /// As it is known.
    pub fn known(&self, name: &str) -> Option<Arc<Known>> {
        self.with(|known| known.get(name).cloned())
    }

    /// Knows it from here on.
    pub fn put(&self, name: &str, known: Known) -> Arc<Known> {
        let known = Arc::new(known);
        self.with(|all| all.insert(name.to_owned(), Arc::clone(&known)));
        known
    }

    /// False when one is under way.
    pub(crate) fn begin_look(&self, name: &str) -> bool {
        locked(&self.looked_at).insert(name.to_owned())
    }

    /// It came to its end.
    pub(crate) fn end_look(&self, name: &str) {
        locked(&self.looked_at).remove(name);
    }

    /// False when something is being looked for there again already.
    pub(crate) fn begin_again(&self, name: &str) -> bool {
        locked(&self.looked_again).insert(name.to_owned())
    }

    /// That came to its end.
    pub(crate) fn end_again(&self, name: &str) {
        locked(&self.looked_again).remove(name);
    }

    /// It is compared at the next tick.
    pub(crate) fn hurry_look(&self, name: &str) {
        locked(&self.hurried).insert(name.to_owned());
    }

    /// Those to compare before their turn, once.
    pub(crate) fn hurried(&self) -> Vec<String> {
        locked(&self.hurried).drain().collect()
    }

    /// Whether it is one of them.
    pub(crate) fn is_hurried(&self, name: &str) -> bool {
        locked(&self.hurried).contains(name)
    }

    /// It said where it is, when asked at `begun`; true when that is another history than it had when it
    /// was compared, or an earlier place than it had told before it was asked. Before it has been compared
    /// nothing is known of that.
    pub(crate) fn heard(
        &self,
        name: &str,
        seen: &Seen,
        (begun, now): (Boottime, Boottime),
    ) -> bool {
        let mut heard = locked(&self.heard);
        let Some(last) = heard.get_mut(name) else {
            return false;
        };
        if !seen.is_history_of(&last.seen) {
            return true;
        }
        if seen.follows(&last.seen) {
            last.seen.clone_from(seen);
            last.at = last.at.max(now);
            return false;
        }
        // Answers may come in another order than they were given.
        last.is_back |= begun > last.at;
        last.is_back
    }

    /// What it said last.
    pub(crate) fn last_heard(&self, name: &str) -> Option<Heard> {
        locked(&self.heard).get(name).cloned()
    }

    /// It was compared, and was there then. Calls may have heard something later meanwhile.
    pub(crate) fn set_heard(&self, name: &str, seen: Seen, now: Boottime) {
        let mut heard = locked(&self.heard);
        let says_more = |last: &Heard| last.is_back || last.seen.follows(&seen);
        if !heard.get(name).is_some_and(says_more) {
            heard.insert(name.to_owned(), Heard::new(seen, now));
        }
    }

    /// From here on it is known to be there, whatever was heard before.
    pub(crate) fn set_heard_anew(&self, name: &str, seen: Seen, now: Boottime) {
        locked(&self.heard).insert(name.to_owned(), Heard::new(seen, now));
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<String, Arc<Known>>) -> T) -> T {
        act(&mut locked(&self.known))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the passwords of the broker's own logins at targets are.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// Directory of the files `target-NAME`.
    pub dir: Option<PathBuf>,
    /// Directory of systemd's credentials, with `ephor-target-NAME`.
    pub credentials: Option<PathBuf>,
}

impl Secrets {
    /// Whether what is read is somebody else's to change: a service manager hands out copies.
    fn are_copies(&self) -> bool {
        self.dir.is_none()
    }

    /// That of one target: a server may ask for none.
    fn password(&self, target: &str) -> Password {
        let file = match (&self.dir, &self.credentials) {
            (Some(dir), _) => dir.join(format!("target-{target}")),
            (None, Some(dir)) => dir.join(format!("ephor-target-{target}")),
            (None, None) => return Password::None,
        };
        match file.exists() {
            true => Password::File(file),
            false => Password::Absent(file),
        }
    }

    /// Whether there is a file for one target.
    fn has(&self, target: &str) -> bool {
        matches!(self.password(target), Password::File(_))
    }
}

impl Endpoint {
    /// # Errors
    /// When the file of CAs cannot be read: a client could not check the server.
    fn of(policy: &PostgresTarget) -> Result<Self, Failed> {
        let is_tcp = matches!(policy.address, Address::Tcp { .. });
        let sslmode = match policy.tls {
            Tls::VerifyFull if is_tcp => "verify-full",
            Tls::VerifyFull | Tls::Off => "disable",
        };
        let sslrootcert = match &policy.ca_file {
            Some(file) if sslmode == "verify-full" => std::fs::read_to_string(file)
                .map_err(|e| Failed::Refused(format!("cannot read {}: {e}", file.display())))?,
            Some(_) | None => String::new(),
        };
        Ok(Self {
            host: policy.address.host().to_owned(),
            port: policy.address.port(),
            sslmode: sslmode.to_owned(),
            sslrootcert,
        })
    }
}

impl Broker {
    /// A target by its name, as the policy in force has it; else as it was known last.
    ///
    /// # Errors
    /// When policy does not name it, or not so that it can be reached.
    pub(crate) fn target(&self, name: &str) -> Result<Arc<Known>, Failed> {
        let known = self.targets.known(name);
        let policy = self.policy.load().target(name).cloned();
        match (known, policy) {
            (Some(known), None) => Ok(known),
            (Some(known), Some(policy)) if known.is_as(&policy) && !self.is_old(&known) => {
                Ok(known)
            }
            (_, Some(policy)) => Ok(self.targets.put(name, self.reach(&policy)?)),
            (None, None) => Err(Failed::Away(format!(
                "policy has no `[target.{name}]` any more; put it back, so that what is left there can be ended"
            ))),
        }
    }

    /// Whether a file says something else than when this was made: a password that there was none of,
    /// other CAs.
    fn is_old(&self, known: &Known) -> bool {
        let Some(policy) = &known.policy else {
            return false;
        };
        let has_come = || self.target_secrets.has(&policy.name);
        let endpoint = Endpoint::of(&policy.postgres);
        (!known.has_secret && has_come()) || endpoint.is_ok_and(|now| now != known.endpoint)
    }

    fn reach(&self, policy: &Arc<Target>) -> Result<Known, Failed> {
        let password = self.target_secrets.password(&policy.name);
        let has_secret = matches!(password, Password::File(_));
        let server = logins::Server::new(
            (&policy.name, &policy.postgres),
            &self.installation.id,
            password,
            &self.tasks,
        )?;
        Ok(Known {
            owner: policy.owner.clone(),
            at: AtTarget::Postgres(server),
            endpoint: Endpoint::of(&policy.postgres)?,
            has_secret,
            policy: Some(Arc::clone(policy)),
        })
    }

    /// What a new credential is called at its target.
    pub(crate) fn name_at_target(&self, entitlement: &str) -> Result<String, Refusal> {
        let random = ephor_crypto::random::bytes().map_err(defect)?;
        Ok(name::make(entitlement, &self.installation.id, random))
    }

    /// Who answers for a target.
    pub(crate) fn target_owner(&self, name: &str) -> Option<String> {
        self.target(name).ok().map(|known| known.owner.clone())
    }
}
