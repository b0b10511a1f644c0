//! Status lists and certificate revocation lists against the store, each credential that has not
//! expired: listed when it is refused, not listed when it is live.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rusqlite::Connection;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::installation::Installation;

/// Largest list once unpacked.
const LIST_MAX: u64 = 1 << 20;
/// What expires while the lists are read is not compared, milliseconds.
pub(super) const MARGIN: i64 = 5_000;
/// Kept of the differences.
const SAID: usize = 5;

/// What differs.
///
/// # Errors
/// When a list cannot be had or read.
pub(super) fn differences(kit: &Installation, store: &Connection) -> anyhow::Result<Vec<String>> {
    let mut rows = store.prepare(
        "SELECT lower(hex(id)), kind, state, status_list, status_index FROM credential \
         WHERE expires_at > ?1 AND state IN ('live', 'contained')",
    )?;
    // Read as one, before the lists: what is refused then is listed when they are fetched.
    let rows = rows.query_map([now_millis() + MARGIN], |row| {
        Ok(Row {
            id: row.get(0)?,
            kind: row.get(1)?,
            is_refused: row.get::<_, String>(2)? == "contained",
            list: row.get(3)?,
            index: row.get(4)?,
        })
    })?;
    let rows: Vec<Row> = rows.collect::<Result<_, _>>()?;
    let crls = revocation_lists(kit)?;
    let mut lists = BTreeMap::new();
    let mut found = Vec::new();
    for row in rows {
        let is_listed = match row.kind.as_str() {
            "jwt" => {
                if let std::collections::btree_map::Entry::Vacant(place) = lists.entry(row.list) {
                    place.insert(status_list(kit, row.list)?);
                }
                lists
                    .get(&row.list)
                    .and_then(|bits| bits.get(row.index as usize / 8))
                    .is_some_and(|byte| byte >> (row.index % 8) & 1 == 1)
            }
            // A serial begins with the credential's id.
            _ => {
                let id = bytes(&row.id)?;
                crls.iter()
                    .any(|crl| crl.windows(id.len()).any(|part| part == id))
            }
        };
        if is_listed != row.is_refused {
            let (state, listed) = match row.is_refused {
                true => ("refused", "not listed"),
                false => ("live", "listed"),
            };
            found.push(format!(
                "{} {} is {state} in the store and {listed}",
                row.kind, row.id
            ));
        }
    }
    found.truncate(SAID);
    Ok(found)
}

struct Row {
    id: String,
    kind: String,
    is_refused: bool,
    list: u32,
    index: u32,
}

/// The bits of a status list token (IETF Token Status List §4.1).
fn status_list(kit: &Installation, number: u32) -> anyhow::Result<Vec<u8>> {
    let answer = kit.public(&format!("/status/{number}"))?;
    ensure!(answer.status == 200, "/status/{number}: {}", answer.status);
    let token = String::from_utf8(answer.bytes)?;
    let claims = token.split('.').nth(1).context("a JWT")?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    let packed = claims.pointer("/status_list/lst").and_then(Value::as_str);
    let packed = URL_SAFE_NO_PAD.decode(packed.context("lst")?)?;
    let mut bits = Vec::new();
    let unpacked = flate2::read::ZlibDecoder::new(packed.as_slice());
    unpacked.take(LIST_MAX).read_to_end(&mut bits)?;
    Ok(bits)
}

/// All revocation lists, in DER.
fn revocation_lists(kit: &Installation) -> anyhow::Result<Vec<Vec<u8>>> {
    let index = kit.public("/crl")?;
    let lists = index.body.get("lists").and_then(Value::as_array);
    let mut all = Vec::new();
    for list in lists.context("/crl names lists")? {
        let url = list.get("url").and_then(Value::as_str).context("a URL")?;
        let path = url
            .find("/crl/")
            .and_then(|at| url.get(at..))
            .context("a path")?;
        let answer = kit.public(path)?;
        ensure!(answer.status == 200, "{path}: {}", answer.status);
        all.push(answer.bytes);
    }
    Ok(all)
}

fn bytes(hex: &str) -> anyhow::Result<Vec<u8>> {
    let pairs = (0..hex.len()).step_by(2);
    pairs
        .map(|at| Ok(u8::from_str_radix(hex.get(at..at + 2).context("hex")?, 16)?))
        .collect()
}

/// Unix milliseconds.
pub(super) fn now_millis() -> i64 {
    let at = clock_gettime(ClockId::Realtime);
    at.tv_sec * 1000 + at.tv_nsec / 1_000_000
}
