//! The agent through its public API: its socket on one side, a broker made of memory on the other.

#[path = "agent/broker.rs"]
mod broker;
#[path = "agent/world.rs"]
mod world;

#[path = "agent/away.rs"]
mod away;
#[path = "agent/ends.rs"]
mod ends;
#[path = "agent/fetch.rs"]
mod fetch;
#[path = "agent/refusals.rs"]
mod refusals;
