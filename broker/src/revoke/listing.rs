//! Where verifiers look for each kind of credential: one match per question.

use ephor_crypto::x509::{Revoked, Serial};
use ephor_proto::kind::Kind;
use ephor_proto::time::UnixMillis;

use super::{Crls, NotEnded, Slot, Wanted};
use crate::app::Broker;
use crate::keys::state::{KeyKind, KeyState};
use crate::kind::effect::Content;
use crate::kind::x509;
use crate::ledger::{CredentialRow, KeyRow, Listing, ReadError};

/// A place that was taken for a credential before its intent was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A bit of a status list.
    Status(Slot),
    /// Room in a revocation list of this number.
    Crl(u32),
}

/// Why a verifier refuses a credential.
#[derive(Debug, Clone)]
pub enum Shown {
    /// One that asks is told no.
    Listed {
        /// URL of the list.
        list: String,
        /// Changes that were in it.
        version: u64,
    },
    /// One that has the set of CAs as it is now knows no root for it; there is no list any more.
    Distrusted(Distrusted),
}

/// That a CA is not trusted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distrusted {
    /// Its version.
    pub ca: u32,
    /// When that was stored.
    pub since: UnixMillis,
}

impl Broker {
    /// Frees a place whose credential was not recorded.
    pub(crate) fn release(&self, place: Place) {
        match place {
            Place::Status(slot) => self.lists.release(slot),
            Place::Crl(number) => self.crls.release(number, None),
        }
    }

    /// Lists a credential where its verifiers look. Call only after the commit that revoked it.
    pub(crate) fn list(&self, row: &CredentialRow) {
        match row.kind {
            Kind::X509 => {
                self.crls
                    .revoke(row.status_list, row.id, revoked(row, self.clock.wall()))
            }
            Kind::Jwt | Kind::Ssh => self.lists.revoke(slot(row)),
            Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec => {
                self.end_at_target(row, false)
            }
        }
    }

    /// Forgets a listing that nobody needs any more.
    pub(crate) fn unlist(&self, row: &CredentialRow) {
        match row.kind {
            Kind::X509 => self.crls.release(row.status_list, Some(row.id)),
            Kind::Jwt | Kind::Ssh => self.lists.release(slot(row)),
            // In no list.
            Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec => {}
        }
    }

    /// Puts a stored credential back in its place.
    pub(crate) fn restore_listing(&self, listing: &Listing) {
        let (list, index) = (listing.list, listing.index);
        // A row that cannot be read may not tell its kind; the number of its list does.
        let kind = listing
            .kind
            .or_else(|| (!self.lists.has_place(list)).then_some(Kind::X509));
        match (kind, listing.id) {
            (Some(Kind::X509), Some(id)) => {
                let at = listing.revoked_at.unwrap_or_else(|| self.clock.wall());
                let revoked = listing
                    .revoked
                    .then(|| revoked_at(&x509::serials(id, index, &listing.content), at));
                self.crls.restore(list, id, revoked);
            }
            // Of a row that cannot be read at all: its task's end lists it from the log.
            (Some(Kind::X509), None) => {}
            (None | Some(Kind::Jwt | Kind::Ssh), _) => {
                self.lists.restore(Slot { list, index }, listing.revoked);
            }
            (Some(Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec), _) => {}
        }
    }

    /// The URL that verifiers of this credential fetch; empty when there is nothing to fetch.
    pub(crate) fn list_uri(&self, row: &CredentialRow) -> String {
        match row.kind {
            Kind::X509 => self.crls.uri(row.status_list),
            Kind::Jwt | Kind::Ssh => self.lists.uri(row.status_list),
            Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec => String::new(),
        }
    }

    /// Queues a revoking credential with an effect outside at its target. `is_found`: at a start, so
    /// that it waits until the log is confirmed.
    pub(crate) fn end_at_target(&self, row: &CredentialRow, is_found: bool) {
        match Content::of(row) {
            Some(content) => {
                let now = self.clock.boottime();
                self.queues
                    .add(&content.target, Wanted::of(row, is_found), now);
            }
            None => {
                tracing::error!(credential = %row.id, "its content cannot be read; what it is called at its target is in the log");
            }
        }
    }

    /// What refuses this credential where its verifiers look, if something does.
    ///
    /// # Errors
    /// When its list cannot be made, or the store cannot be read.
    pub(crate) async fn shown(
        &self,
        row: &CredentialRow,
        now: UnixMillis,
    ) -> Result<Option<Shown>, NotEnded> {
        if let Some(distrusted) = self.distrusted(row)? {
            return Ok(Some(Shown::Distrusted(distrusted)));
        }
        let (is_shown, version) = match row.kind {
            Kind::X509 => {
                let built = self.crls.current(row.status_list, &self.keys).await?;
                let serials = x509::serials(row.id, row.status_index, &row.content);
                (
                    !serials.is_empty() && built.lists_all(&serials),
                    built.number(),
                )
            }
            Kind::Jwt | Kind::Ssh => {
                let built = self.lists.current(row.status_list, now).await?;
                (built.is_revoked(row.status_index), built.version)
            }
            // In no list, and proven at the target.
            Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec => (false, 0),
        };
        Ok(is_shown.then(|| Shown::Listed {
            list: self.list_uri(row),
            version,
        }))
    }

    /// Where verifiers are told no, in words.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn place(&self, row: &CredentialRow) -> Result<String, ReadError> {
        Ok(match self.distrusted(row)? {
            Some(distrusted) => distrusted.in_words(row),
            None => place_in_words(row, &self.list_uri(row)),
        })
    }

    /// Whether the CA of a certificate is distrusted: nobody makes its list any more.
    fn distrusted(&self, row: &CredentialRow) -> Result<Option<Distrusted>, ReadError> {
        let ca = match row.kind {
            Kind::X509 => Crls::ca_of(row.status_list),
            Kind::Jwt | Kind::Ssh | Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec => {
                return Ok(None);
            }
        };
        if self.keys.load().ca_of(ca).is_some() {
            return Ok(None);
        }
        let stored = self.ledger.reader().keys(KeyKind::Ca.as_str())?;
        let is_it = |key: &&KeyRow| key.version == ca && key.state == KeyState::Destroyed;
        let of = |key: &KeyRow| Distrusted {
            ca,
            since: key.since,
        };
        Ok(stored.iter().find(is_it).map(of))
    }
}

impl Distrusted {
    /// In the place of a list. It reaches no further than those who fetch the set of CAs.
    pub(crate) fn in_words(self, row: &CredentialRow) -> String {
        let Self { ca, since } = self;
        let until = row.expires_at;
        format!(
            "CA version {ca} distrusted here since {since}; a verifier that still has that root: until {until}"
        )
    }
}

/// Where a stored token stands in the status lists.
fn slot(row: &CredentialRow) -> Slot {
    Slot {
        list: row.status_list,
        index: row.status_index,
    }
}

fn revoked(row: &CredentialRow, now: UnixMillis) -> Vec<Revoked> {
    let serials = x509::serials(row.id, row.status_index, &row.content);
    revoked_at(&serials, row.revoked_at.unwrap_or(now))
}

fn revoked_at(serials: &[Serial], at: UnixMillis) -> Vec<Revoked> {
    let at = i64::try_from(at.as_unix_seconds()).unwrap_or(i64::MAX);
    let one = |serial: &Serial| Revoked {
        serial: serial.clone(),
        at,
    };
    serials.iter().map(one).collect()
}

/// In a listing: which certificate, or which bit.
pub(crate) fn place_in_words(row: &CredentialRow, list: &str) -> String {
    match row.kind {
        Kind::X509 => match x509::serial_of(row) {
            Some(serial) => format!("{list} serial {serial}"),
            None => list.to_owned(),
        },
        Kind::Jwt | Kind::Ssh | Kind::Postgres | Kind::Sudo | Kind::Secret | Kind::Exec => {
            format!("{list}#{}", row.status_index)
        }
    }
}
