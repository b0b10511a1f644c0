//! Services and clients of this crate as processes of their own, in tasks of a real broker and
//! agent, and thieves that hold a copy of what a task was given.
//!
//! Waits are for conditions, each with a deadline; nothing here waits for a duration.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods
)]

#[path = "client/support.rs"]
mod support;

#[path = "client/fake.rs"]
mod fake;

#[path = "client/lists.rs"]
mod lists;

#[path = "client/identity.rs"]
mod identity;

#[path = "client/agent.rs"]
mod agent;

#[path = "client/mtls.rs"]
mod mtls;
