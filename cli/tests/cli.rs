//! The command line as people use it: the real binary, real daemons, real signals.
//!
//! Waits are for conditions, each with a deadline; nothing here waits for a duration.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods
)]

#[path = "cli/support.rs"]
mod support;

#[path = "cli/usage.rs"]
mod usage;

#[path = "cli/run.rs"]
mod run;

#[path = "cli/refusal.rs"]
mod refusal;

#[path = "cli/signal.rs"]
mod signal;

#[path = "cli/token.rs"]
mod token;

#[path = "cli/dev.rs"]
mod dev;

#[path = "cli/dev_pg.rs"]
mod dev_pg;

#[path = "cli/dev_target.rs"]
mod dev_target;

#[path = "cli/dev_away.rs"]
mod dev_away;

#[path = "cli/demo.rs"]
mod demo;

#[path = "cli/govern.rs"]
mod govern;

#[path = "cli/policy.rs"]
mod policy;

#[path = "cli/wire.rs"]
mod wire;

#[path = "cli/examples.rs"]
mod examples;

#[path = "cli/verifiers.rs"]
mod verifiers;

#[path = "cli/secrets.rs"]
mod secrets;

#[path = "cli/attacks.rs"]
mod attacks;

#[path = "cli/certificates.rs"]
mod certificates;

#[path = "cli/keys.rs"]
mod keys;
#[path = "cli/malformed.rs"]
mod malformed;

#[path = "cli/ledger.rs"]
mod ledger;

#[path = "cli/cases.rs"]
mod cases;

#[path = "cli/overdue.rs"]
mod overdue;

#[path = "cli/supervise.rs"]
mod supervise;

#[path = "cli/target.rs"]
mod target;
#[path = "cli/inventory.rs"]
mod inventory;

#[path = "cli/inventory_own.rs"]
mod inventory_own;

#[path = "cli/database.rs"]
mod database;

#[path = "cli/pools.rs"]
mod pools;
