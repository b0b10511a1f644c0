//! `ephor-broker init`: a new installation. Safe to run again after it was interrupted; it
//! never touches one that is complete.

use std::path::PathBuf;
use std::sync::Arc;

use ephor_crypto::Secret;
use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::id::{EventId, JoinTokenId};
use ephor_proto::spiffe::{HostPattern, TrustDomain};
use ephor_proto::stage::Stage;
use ephor_proto::time::UnixMillis;

use super::StartError;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::files;
use crate::fleet::invitation;
use crate::keys::Keys;
use crate::keys::master::Provider;
use crate::keys::rotate::stored_keys;
use crate::ledger::{Batch, Lane, Ledger, Options, Row};
use crate::limits;
use crate::policy::Snapshot;

/// Crockford base32, lower case.
const ID_ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ID_LEN: usize = 8;

/// What to make beside the installation itself.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// Hosts that the first join token is good for; `None`: make no token.
    pub token_for: Option<String>,
    /// Where to write the token (0600, must not exist); `None`: it is returned.
    pub token_file: Option<PathBuf>,
}

/// Makes directory, master key, store, keys, `ca.pem` and a first join token. Gives the token,
/// unless it went to a file.
///
/// # Errors
/// [`StartError`] says what is in the way.
pub fn init(config: &Config, options: &InitOptions) -> Result<Option<Secret>, StartError> {
    ephor_crypto::tls::install();
    let policy = Snapshot::load(&config.policy_dir)?;
    let pattern = options
        .token_for
        .as_deref()
        .map(str::parse::<HostPattern>)
        .transpose();
    let pattern = pattern.map_err(|error| StartError::Init(error.to_string()))?;
    let (state, ca_file) = (&config.state_dir, config.ca_file());
    let failed = |what: String| StartError::system(what);
    files::make_directory(state)
        .map_err(failed(format!("make the directory {}", state.display())))?;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let master_key = Provider::of(config, credentials.as_deref());
    if !config.database().exists() {
        master_key.create()?;
        create_store(config, policy.trust_domain())?;
    }
    let sealer = master_key.open()?;
    let clock = SystemClock::shared();
    let opening = Options {
        take_over: false,
        reserve_path: config.reserve(),
        clock: Arc::clone(&clock),
    };
    let ledger = Ledger::open(&config.database(), opening)?;
    let made = fill(
        &ledger,
        &sealer,
        policy.trust_domain(),
        pattern.as_ref(),
        clock.wall(),
    );
    let made = made.and_then(|(keys, token)| {
        files::replace(&ca_file, keys.roots_pem().as_bytes(), files::PUBLIC)
            .map_err(failed(format!("write {}", ca_file.display())))?;
        let databases = config.database_ca_file();
        files::replace(
            &databases,
            keys.database_roots_pem().as_bytes(),
            files::PUBLIC,
        )
        .map_err(failed(format!("write {}", databases.display())))?;
        Ok(token)
    });
    ledger.shutdown();
    match (made?, &options.token_file) {
        (Some(token), Some(path)) => {
            let line = Secret::new([token.expose(), b"\n"].concat());
            files::write_new(path, line.expose(), files::PRIVATE)
                .map_err(failed(format!("write {}", path.display())))?;
            Ok(None)
        }
        (token, _) => Ok(token),
    }
}

/// Keys and first token into an empty store.
fn fill(
    ledger: &Ledger,
    sealer: &ephor_crypto::seal::SealingKey,
    trust_domain: &TrustDomain,
    pattern: Option<&HostPattern>,
    now: UnixMillis,
) -> Result<(Keys, Option<Secret>), StartError> {
    let stored = ledger.installation().clone();
    if !stored_keys(ledger)?.is_empty() {
        let detail = "this directory holds a complete installation already; nothing was changed \
                      (ephor host invite makes further join tokens)";
        return Err(StartError::Init(detail.to_owned()));
    }
    let rows = Keys::generate(sealer, trust_domain, &stored.id, now)?;
    let keys = Keys::unseal(sealer, &rows, trust_domain, &stored.origin)?;
    let event = |verb| -> Result<AuditEvent, StartError> {
        let id = EventId::from_parts(now.as_millis(), random()?);
        Ok(AuditEvent::new(
            id,
            now,
            (Stage::Operate, verb),
            Outcome::Ok,
            (&stored.id, stored.epoch),
        ))
    };
    let mut begun = event("initialised")?;
    begun
        .facts
        .insert("trust_domain".to_owned(), trust_domain.to_string());
    begun.facts.insert(
        "ca_sha256".to_owned(),
        ephor_crypto::digest::hex(&keys.ca().sha256()),
    );
    let mut batch = Batch {
        name: "operate.initialised",
        lane: Lane::Normal,
        require: Vec::new(),
        rows: rows.into_iter().map(Row::Key).collect(),
        events: vec![begun.into()],
    };
    let mut token = None;
    if let Some(pattern) = pattern {
        let id = JoinTokenId::from_parts(now.as_millis(), random()?);
        let life = (now, limits::FIRST_JOIN_TOKEN_SECONDS);
        let (invited, mut more) =
            invitation(id, pattern, life, &keys.ca().sha256(), event("invited")?)
                .map_err(|error| StartError::Init(error.to_string()))?;
        batch.rows.append(&mut more.rows);
        batch.events.append(&mut more.events);
        token = Some(invited.token);
    }
    let ticket = ledger
        .submit(batch)
        .map_err(|full| StartError::Init(full.to_string()))?;
    ticket
        .wait()
        .map_err(|error| StartError::Init(error.to_string()))?;
    Ok((keys, token))
}

fn create_store(config: &Config, trust_domain: &TrustDomain) -> Result<(), StartError> {
    let random: [u8; ID_LEN] = random()?;
    let id: String = random
        .iter()
        .filter_map(|byte| {
            ID_ALPHABET
                .get(usize::from(byte & 31))
                .copied()
                .map(char::from)
        })
        .collect();
    // C2SP: unique to this log, and no schema or slash games: DOMAIN/ID.
    let origin = format!("{trust_domain}/{id}");
    Ok(Ledger::create(
        &config.database(),
        &id,
        &origin,
        trust_domain.as_str(),
    )?)
}

fn random<const N: usize>() -> Result<[u8; N], StartError> {
    ephor_crypto::random::bytes().map_err(|error| StartError::Init(error.to_string()))
}
