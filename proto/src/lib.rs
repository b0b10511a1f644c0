//! Vocabulary and wire contracts of Ephor, shared by broker, agent and command line.
//!
//! This crate exists so that both sides of the trust boundary mean the same thing by every
//! word. It is pure: it never does I/O, never reads a clock, never draws randomness and
//! never spawns; what needs those takes them as arguments.

// Named limits of wire sizes and waits.
pub mod limits;
// Time-ordered identifiers, one type per entity.
pub mod id;
// Wall time and boot time as two types that do not mix.
pub mod time;
// SPIFFE IDs, trust domains and host names.
pub mod spiffe;
// TTL arithmetic: the minimum of all caps, and which one capped.
pub mod ttl;
// The nine stages.
pub mod stage;
// Credential kinds.
pub mod kind;
// Where a PostgreSQL server is: URLs, addresses, identifiers.
pub mod postgres;
// `cred://` references.
pub mod cred;
// Which task a caller belongs to.
pub mod task_rule;
// State machines of task, credential, grant, request and agent.
pub mod state;
// The audit event and its canonical leaf.
pub mod event;
// Transparency log formats: checkpoints, signed notes, tiles, receipts.
pub mod log;
// Refusals: RFC 9457 problems with stable codes.
pub mod problem;
// Bodies of the HTTP interfaces.
pub mod http;
// What is counted, and its only labels.
#[cfg(feature = "metrics")]
pub mod metrics;
// The gRPC contract `ephor.v1` and its version rule.
#[cfg(feature = "grpc")]
pub mod grpc;
