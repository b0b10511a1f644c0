//! What the outside sees. Each module parses, calls a stage and encodes; nothing else.

pub mod admin;
pub mod grpc;
pub mod lists;
pub mod listener;
pub mod oauth;
pub mod problem;
pub mod tls;
