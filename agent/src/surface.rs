//! The Unix socket: accepting, and the native API.

pub mod api;
pub mod listener;
pub mod pause;
pub mod peer;
pub mod quota;
