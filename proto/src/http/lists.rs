//! What the broker publishes for verifiers to poll.

use serde::{Deserialize, Serialize};

/// `GET /crl`: every revocation list there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrlIndex {
    /// In no order that means anything.
    pub lists: Vec<CrlVersion>,
}

/// One revocation list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrlVersion {
    /// Its URL, as it stands in certificates.
    pub url: String,
    /// Another text after every change.
    pub version: String,
}
