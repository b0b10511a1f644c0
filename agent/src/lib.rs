//! The per-host daemon of Ephor. It attests, delivers, notices ends and wipes; it never
//! decides, approves or issues: the stages it lacks are the trust boundary.

pub mod request; //   parse what a caller sent
pub mod attest; //    prove who the caller is, through its pidfd
pub mod deliver; //   to the attested caller only, re-checked before the secret is written
pub mod complete; //  tasks: whose, and when they end, by kernel event
pub mod revoke; //    wipe what is held, at once
pub mod prove; //     hand on the broker's receipt

pub mod hold; //      credentials in memory
pub mod journal; //   what must be re-adopted or ended after a crash: handles, never secrets
pub mod uplink; //    its client of the broker
pub mod surface; //   the Unix socket

pub mod app; //       what all of them share
pub mod cli; //       `ephor-agent join | run | check-config`
pub mod clock; //     the only place that reads a clock
pub mod config; //    file, environment, flags
pub mod crash; //     crash points for the fault tests
pub mod handover; // memory and sockets to a successor, without a gap
pub mod harden; //    own user, few rights, few system calls
pub mod limits; //    every bound, by name
pub mod metrics; //   what is counted, and the listener that tells it
pub mod tasks; //     every spawned task belongs to a group
