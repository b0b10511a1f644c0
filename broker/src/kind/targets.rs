//! The targets that policy names, each with its connections. Made when first asked for, and again
//! when policy says something else of it.
//!
//! A target that policy no longer names stays as it was known, for as long as this process runs: what
//! is left there must still be ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::effect::{AtTarget, Failed};
use super::name;
use crate::issue::defect;
use crate::request::Refusal;

/// A target and how to reach it.
pub struct Known {
    /// Who answers for it.
    pub owner: String,
    /// What calls it.
    pub at: AtTarget,
    /// What its users are told.
    pub endpoint: Endpoint,
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

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<String, Arc<Known>>) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl crate::app::Broker {
    /// A target by its name.
    ///
    /// # Errors
    /// When policy does not name it, or not so that it can be reached.
    pub(crate) fn target(&self, name: &str) -> Result<Arc<Known>, Failed> {
        self.targets.known(name).ok_or_else(|| {
            Failed::Refused(format!(
                "policy has no `[target.{name}]` any more; put it back, so that what is left there can be ended"
            ))
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
