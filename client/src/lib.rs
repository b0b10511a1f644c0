//! What an application on a host uses of Ephor: its own identity, without a file and without a
//! restart, and TLS that knows who is on the other side and whether that still holds.
//!
//! ```no_run
//! # async fn service() -> Result<(), ephor_client::Error> {
//! use ephor_client::{Agent, Identity, Listener, Peers};
//!
//! let identity = Identity::start(&Agent::from_env()).await?;
//! let callers = Peers::id("spiffe://prod.example/orders/web")?;
//! let listener = Listener::bind(("127.0.0.1", 8443), &identity, callers, &[]).await?;
//! loop {
//!     let incoming = listener.accept().await?;
//!     // In a task of its own, so that a slow peer holds up nobody.
//!     let connection = incoming.handshake().await?;
//!     println!("{} is here", connection.peer().id);
//! }
//! # }
//! ```
//!
//! What this crate holds to: keys and tokens stay in memory; an expired certificate is never
//! shown; a peer whose certificate is on no list that we know, or on an expired one, is refused;
//! a connection ends within one look at the lists after its peer's certificate was listed.

// Named limits of sizes and waits.
pub mod limits;
// What can go wrong.
mod error;
// The only module that reads a clock.
mod clock;
// Every background task belongs to what it works for.
mod tasks;
// Waits that grow.
mod backoff;
// One HTTP/1.1 connection.
mod wire;
// The agent's local socket.
mod agent;
// Tokens, per use.
mod token;
// A task that ends with its guard.
mod task;
// Who may be on the other side.
mod peers;
// The own certificate, kept renewed.
mod identity;
// Which certificates no longer hold.
mod revocations;
// The connections that stand, by the credential of their peer.
mod live;
// A TLS connection that can be ended from outside.
mod connection;
// Taking connections.
mod listener;
// Making them.
mod connector;

pub use agent::{Agent, may_serve};
pub use connection::{Connection, PeerIdentity};
pub use connector::Connector;
pub use error::Error;
pub use identity::{Builder, Identity, Status};
pub use listener::{Incoming, Listener};
pub use live::Closed;
pub use peers::Peers;
pub use task::TaskGuard;
pub use token::{Token, TokenSource};

/// Bodies of the agent's interface, as this crate's methods give them.
pub use ephor_proto::http::agent::{Completed, Task, Whoami};
