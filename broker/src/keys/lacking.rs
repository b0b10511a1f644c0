//! What a store of an older version lacks. Made at the first start, on record: while a broker does not
//! start, nothing is revoked.

use ephor_crypto::seal::SealingKey;
use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::id::EventId;
use ephor_proto::stage::Stage;
use ephor_proto::time::UnixMillis;

use super::rotate::{key_id, stored_keys};
use super::state::{KeyKind, KeyState};
use super::{KeysError, Owner, fresh};
use crate::app::StartError;
use crate::ledger::{Batch, KeyRow, Lane, Ledger, Row};

/// The CA for databases, as a row to write, if there never was one. A store without any key is none of
/// before: its `init` was interrupted.
///
/// # Errors
/// When there is no randomness, or the trust domain cannot stand in a certificate.
pub fn lacking(
    sealer: &SealingKey,
    rows: &[KeyRow],
    owner: Owner<'_>,
    now: UnixMillis,
) -> Result<Option<KeyRow>, KeysError> {
    let kind = KeyKind::Database;
    if rows.is_empty() || rows.iter().any(|row| row.name == kind.as_str()) {
        return Ok(None);
    }
    fresh::row(sealer, kind, owner, (1, KeyState::Active), now).map(Some)
}

/// All stored keys, once what is lacking was stored, too.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn complete(
    ledger: &Ledger,
    sealer: &SealingKey,
    owner: Owner<'_>,
    now: UnixMillis,
) -> Result<Vec<KeyRow>, StartError> {
    let mut rows = stored_keys(ledger)?;
    let Some(row) = lacking(sealer, &rows, owner, now)? else {
        return Ok(rows);
    };
    let failed = |error: &dyn std::fmt::Display| {
        StartError::Init(format!(
            "this store is of an older version and has no CA for databases; a new one could not be stored: {error}"
        ))
    };
    let stored = ledger.installation();
    let random = ephor_crypto::random::bytes().map_err(|error| failed(&error))?;
    let mut event = AuditEvent::new(
        EventId::from_parts(now.as_millis(), random),
        now,
        (Stage::Operate, "key_activated"),
        Outcome::Ok,
        (&stored.id, stored.epoch),
    );
    let facts = [
        ("key", row.name.clone()),
        ("version", row.version.to_string()),
        ("key_id", key_id(&row, &stored.origin)?),
    ];
    event
        .facts
        .extend(facts.map(|(name, value)| (name.to_owned(), value)));
    let batch = Batch {
        name: "operate.keys",
        lane: Lane::Normal,
        require: Vec::new(),
        rows: vec![Row::Key(row.clone())],
        events: vec![event.into()],
    };
    let ticket = ledger.submit(batch).map_err(|full| failed(&full))?;
    ticket.await.map_err(|error| failed(&error))?;
    tracing::warn!(
        "this store is of an older version: a CA for databases was made (ephor target ca)"
    );
    rows.push(row);
    Ok(rows)
}
