//! The ledger through its own interface, over real files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod commit;
mod crash;
mod fixture;
mod log;
mod open;
mod property;
mod reads;
mod reserve;
