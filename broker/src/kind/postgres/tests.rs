//! Everything against a real server; what is true in it is asked by `psql` as a superuser.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod kit; //      a server with the schema, a census that is not ours
mod life; //     from mint to proof, and every call again
mod sessions; // what a session can be doing when it is to end
mod hidden; //   those that the server does not show
mod hostile; //  what a tenant can do about it
mod owned; //    what it owns at its end
mod paused; //   a creator that stands still
mod dba; //      what administrators do meanwhile
mod standby; //  servers that follow
mod many; //     thousands at once
mod setup; //    init and check
mod probed; //   what a login shows of a password
