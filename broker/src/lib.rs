//! The central service of Ephor. Folders are the nine stages in order of work, then
//! the plumbing they stand on.

pub mod request; //   parse what an agent sent, before any expensive work
pub mod attest; //    may this agent speak for that subject?
pub mod decide; //    pure: policy version, subject, entitlement, task, time
pub mod approve; //   automatic by rule (people come later)
pub mod issue; //     one transaction: intent and its audit event; then a permit
pub mod deliver; //   the only place that opens a sealed credential
pub mod complete; //  a task ended: which credentials, for which cause
pub mod revoke; //    refuse and list, wherever it is enforced
pub mod prove; //     check that it is so, write the receipt

pub mod kind; //      one module per credential kind
pub mod ledger; //    store, event sequence, Merkle tree, checkpoints
pub mod fleet; //     agents: join, heartbeat, silence, ban
pub mod policy; //    one directory of TOML, compiled to a snapshot
pub mod inforce; //   which of them is in force, and how another takes its place
pub mod keys; //      CA, token key, log key, CA for databases, sealed at rest
pub mod retain; //    what is over and old is forgotten
pub mod recover; //   going back in time: noticed, refused, a new epoch; backups
pub mod surface; //   grpc, oauth, lists, admin: parse, call a stage, encode

pub mod app; //       what all of them share
pub mod cli; //       `ephor-broker init | run | check-config`
pub mod clock; //     the only place that reads a clock
pub mod config; //    file, environment, flags
pub mod crash; //     crash points for the fault tests
pub mod files; //     private files, whole and durable
pub mod harden; //    own user, own files, few system calls
pub mod limits; //    every bound, by name
pub mod metrics; //   what is counted, and the listener that tells it
pub mod tasks; //     every spawned task belongs to a group
