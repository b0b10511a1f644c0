//! Bodies of the HTTP interfaces: the agent's native API ([`agent`]) and
//! the broker's admin socket ([`admin`]). Errors of both are RFC 9457 problem JSON,
//! see [`crate::problem`].

pub mod admin;
pub mod agent;
pub mod lists;
