//! Policy: one directory of TOML, compiled to an immutable, indexed snapshot.
//!
//! Loading is strict: what this version does not enforce is an error, never ignored, so that
//! nobody believes in a rule that is not there. Nothing here issues, reads a clock or
//! talks to anyone; `decide` asks a snapshot and nothing else. The reference for people is
//! `docs/policy.md`.

mod cases;
mod check;
mod claims;
mod compile;
mod dev;
mod diff;
mod error;
mod evidence;
mod explain;
pub(crate) mod fields;
mod index;
pub mod limits;
mod model;
mod reader;
mod runs;
mod snapshot;
mod source;
pub(crate) mod suggest;
mod tables;
mod target;

#[cfg(test)]
pub(crate) mod tests;

pub use cases::{BadCases, CaseResult, Cases, Expected};
pub use check::{Summary, check};
pub use dev::{dev_path, dev_policy};
pub use error::{LoadError, LoadErrors, Place, Warning};
pub use evidence::Evidence;
pub use explain::ExplainError;
pub use model::{
    Entitlement, Give, Identity, LoginBy, PostgresTarget, Run, Target, Tls, TtlPolicy, Workload,
};
pub use snapshot::{Matched, Snapshot};
pub use source::read_files;
