//! Rotation in a running broker: read the store, plan, write, swap.
//!
//! The store decides, memory follows: whatever became of a commit, what is in force afterwards is
//! what a restart would find.

use std::sync::Arc;

use ephor_crypto::jwt::TokenKind;

use super::{Keys, KeysError};
use crate::app::Broker;
use crate::ledger::{KeyRow, Ledger, ReadError};

/// Every version of every key, sealed.
///
/// # Errors
/// As every read.
pub fn stored_keys(ledger: &Ledger) -> Result<Vec<KeyRow>, ReadError> {
    let reader = ledger.reader();
    let mut rows = Vec::new();
    for name in Keys::NAMES {
        rows.append(&mut reader.keys(name)?);
    }
    Ok(rows)
}

/// Why stored keys did not come into force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// They cannot be read.
    #[error("the stored keys cannot be read: {0}")]
    Read(#[from] ReadError),
    /// They cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

impl Broker {
    /// Brings the stored keys into force: signers, verifiers, trusted CAs and our own server
    /// certificate. Everything that starts after this uses them.
    ///
    /// # Errors
    /// When they cannot be read or opened; those in force then stay.
    pub fn reload_keys(&self) -> Result<(), ReloadError> {
        let rows = stored_keys(&self.ledger)?;
        let (domain, origin) = (&self.installation.trust_domain, &self.installation.origin);
        let keys = Arc::new(Keys::unseal(&self.sealer, &rows, domain, origin)?);
        // Trust first: a certificate of a new CA may come the moment it can be issued.
        self.trust.replace(keys.trusted());
        self.lists
            .sign_with(Arc::clone(keys.token_signer(TokenKind::StatusList)));
        self.keys.store(keys);
        self.keys_changed.send_modify(|turn| *turn += 1);
        Ok(())
    }
}
