//! Rows that lie in the reserve and not yet in the store: readers must see them, or a
//! credential that was revoked while the disk was full would still introspect as live.

use std::collections::HashMap;
use std::sync::Arc;

use ephor_proto::id::CredentialId;

use super::batch::Key;
use super::codec::Stored as _;
use super::encode::Encoded;
use super::row::{CredentialRow, Row};

/// A snapshot of what the reserve holds.
#[derive(Default, Clone)]
pub(super) struct Overlay {
    rows: HashMap<Key, Arc<Row>>,
    leaves: u64,
}

impl Overlay {
    /// With the rows of one more batch.
    pub(super) fn add(&mut self, batch: &Encoded) {
        for row in &batch.rows {
            self.rows.insert(row.key(), Arc::new(row.clone()));
        }
        self.leaves += batch.leaves.len() as u64;
    }

    /// The row of a key.
    pub(super) fn row(&self, key: &Key) -> Option<&Row> {
        self.rows.get(key).map(|row| &**row)
    }

    /// All rows, in no order.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values().map(|row| &**row)
    }

    /// The version of a key, when it lies here.
    pub(super) fn version(&self, key: &Key) -> Option<u64> {
        self.row(key)
            .and_then(Row::replaces)
            .map(|before| before + 1)
    }

    /// Whether a credential that the store has as usable still is: its newer row may wait here.
    pub(super) fn is_still_out(&self, id: &[u8]) -> bool {
        let waiting = CredentialId::from_slice(id)
            .ok()
            .and_then(|id| self.row(&Key::Credential(id)))
            .and_then(CredentialRow::of);
        waiting.is_none_or(|row| row.state.is_out())
    }

    /// Leaves that wait for their place in the tree.
    pub(super) fn leaves(&self) -> u64 {
        self.leaves
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.leaves == 0
    }
}
