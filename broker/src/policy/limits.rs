//! Named limits of what a policy may be, so that loading one is bounded work.

/// Most `*.toml` files in a policy directory.
pub const MAX_FILES: usize = 1024;
/// Largest policy file, in bytes.
pub const MAX_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// Largest policy, all its files together, in bytes.
pub const MAX_POLICY_BYTES: u64 = 32 * 1024 * 1024;
/// Most cases in a file of `ephor policy test`.
pub const MAX_CASES: usize = 10_000;
/// Longest `purpose`, in bytes.
pub const MAX_PURPOSE_BYTES: usize = 512;
/// Longest name in `owner = "team:NAME"`, in bytes.
pub const MAX_TEAM_BYTES: usize = 64;
/// Longest `deputy`, in bytes (an address by RFC 5321 §4.5.3.1.3).
pub const MAX_EMAIL_BYTES: usize = 254;
/// Longest login name, in bytes.
pub const MAX_USER_BYTES: usize = 255;
/// Longest path of an executable, in bytes (`PATH_MAX`).
pub const MAX_EXE_BYTES: usize = 4096;
/// Longest systemd unit name, in bytes.
pub const MAX_UNIT_BYTES: usize = 255;
/// Most items in `runs` of one workload.
pub const MAX_RUNS: usize = 64;
/// Most patterns in `hosts` of one item of `runs`.
pub const MAX_HOSTS: usize = 256;
/// Most audiences listed by one `identity`.
pub const MAX_AUDIENCES: usize = 256;
/// Most credentials that one entitlement gives.
pub const MAX_GIVES: usize = 16;
/// Most DNS names of one certificate.
pub const MAX_DNS_NAMES: usize = 64;
/// Most extra claims of one token, at its top level.
pub const MAX_CLAIMS: usize = 32;
/// Longest name of a claim, in bytes.
pub const MAX_CLAIM_NAME_BYTES: usize = 128;
/// Largest set of extra claims, as JSON, in bytes.
pub const MAX_CLAIMS_BYTES: usize = 4096;
/// Deepest nesting inside one claim.
pub const MAX_CLAIM_DEPTH: usize = 4;
/// So many wrong names get a nearest right one; the search is work for each of them.
pub const MAX_SUGGESTIONS: usize = 100;
/// Names longer than this are not searched for a nearest one, in bytes.
pub const MAX_SUGGEST_BYTES: usize = 96;
/// Most characters of a wrong value that an error repeats.
pub const MAX_SHOWN_CHARS: usize = 60;
/// Longest name of a target, in bytes: it is part of a file's name.
pub const MAX_TARGET_BYTES: usize = 64;
/// Most databases of one target.
pub const MAX_DATABASES: usize = 256;
/// Most standbys of one target.
pub const MAX_STANDBYS: usize = 32;
/// Most connections to one target.
pub const MAX_CONNECTIONS: u64 = 256;
/// Fewest rounds of a SCRAM verifier: a password of 256 random bits needs none, RFC 7677 asks for 4096.
pub const MIN_SCRAM_ITERATIONS: u64 = 1;
/// Most rounds of a SCRAM verifier: the server spends them at every connect.
pub const MAX_SCRAM_ITERATIONS: u64 = 1_000_000;
/// Most group roles of one login.
pub const MAX_ROLES: usize = 16;
/// Most sessions that a `connection_limit` allows.
pub const MAX_CONNECTION_LIMIT: u64 = 10_000;
/// Most settings of one login.
pub const MAX_SETTINGS: usize = 32;
/// Longest value of a setting, in bytes.
pub const MAX_SETTING_BYTES: usize = 1024;

/// Shortest time that the password of the broker's own login is used, in seconds.
pub(super) const MIN_ROTATE_SECONDS: u64 = 3600;
/// Longest such time, in seconds.
pub(super) const MAX_ROTATE_SECONDS: u64 = 365 * 24 * 3600;
