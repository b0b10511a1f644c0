//! New keys, sealed from the moment they are stored.

use ephor_crypto::digest::{hex, sha256};
use ephor_crypto::ed25519::LogKey;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::seal::SealingKey;
use ephor_crypto::x509::Ca;
use ephor_proto::time::UnixMillis;

use super::state::{KeyKind, KeyState};
use super::{KeysError, Owner, record, validity};
use crate::ledger::KeyRow;
use crate::limits;

/// Characters of a CA's key identifier that stand in its name.
const NAMED_BY: usize = 8;

/// A new key of `kind`, as a row of this version and state.
pub(super) fn row(
    sealer: &SealingKey,
    kind: KeyKind,
    owner: Owner<'_>,
    (version, state): (u32, KeyState),
    now: UnixMillis,
) -> Result<KeyRow, KeysError> {
    let place = (version, state);
    match kind {
        KeyKind::Ca => {
            let key = SigningKey::generate()?;
            let name = format!("Ephor {} {}", owner.trust_domain, owner.installation);
            let ca = root((key, name), owner, (version, limits::CA_SECONDS), now)?;
            let public = ca.certificate().der().to_vec();
            seal(sealer, kind, place, (ca.key().to_pkcs8(), public), now)
        }
        KeyKind::Token => {
            let key = SigningKey::generate()?;
            let public = key.public_key().spki();
            seal(sealer, kind, place, (key.to_pkcs8(), public), now)
        }
        KeyKind::Database => {
            let key = SigningKey::generate()?;
            // A server tells only by their names which CAs it trusts. An older copy of this store makes the
            // same version once more, of another key.
            let id = hex(&sha256(&key.public_key().spki()));
            let id: String = id.chars().take(NAMED_BY).collect();
            let name = format!("Ephor databases {} {id}", owner.installation);
            let life = (version, limits::DATABASE_CA_SECONDS);
            let ca = root((key, name), owner, life, now)?;
            let public = ca.certificate().der().to_vec();
            seal(sealer, kind, place, (ca.key().to_pkcs8(), public), now)
        }
        KeyKind::Log => {
            let key = LogKey::generate()?;
            let public = key.public().to_vec();
            seal(sealer, kind, place, (key.to_pkcs8(), public), now)
        }
    }
}

/// A root of our own. Versions differ by name, because a chain is first looked for by name.
fn root(
    (key, mut name): (SigningKey, String),
    owner: Owner<'_>,
    (version, life_seconds): (u32, u64),
    now: UnixMillis,
) -> Result<Ca, KeysError> {
    let (not_before, not_after) = validity(now, life_seconds);
    if version > 1 {
        name.push_str(&format!(" {version}"));
    }
    let domain = owner.trust_domain.as_str();
    let name = common_name(name);
    Ok(Ca::create_with(
        key,
        &name,
        domain,
        (not_before, not_after),
    )?)
}

/// At most as long as a common name may be (RFC 5280 appendix A, ub-common-name).
pub(super) fn common_name(name: String) -> String {
    name.chars().take(64).collect()
}

/// The row of a key whose private half is sealed for it alone.
pub(super) fn seal(
    sealer: &SealingKey,
    kind: KeyKind,
    (version, state): (u32, KeyState),
    (private, public): (&ephor_crypto::Secret, Vec<u8>),
    now: UnixMillis,
) -> Result<KeyRow, KeysError> {
    let name = kind.as_str();
    Ok(KeyRow {
        name: name.to_owned(),
        version,
        sealed: sealer.seal(&record(name), version, private.expose())?,
        public,
        chain: Vec::new(),
        state,
        created_at: now,
        since: now,
        until: None,
    })
}
