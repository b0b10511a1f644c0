//! Tokens, fetched as they are used.

use std::sync::{Arc, Mutex, PoisonError};

use ephor_proto::time::UnixMillis;
use zeroize::Zeroizing;

use crate::agent::Agent;
use crate::clock;
use crate::error::Error;

/// A token. Wiped when dropped; neither printed nor compared.
pub struct Token {
    value: Zeroizing<String>,
    expires_at: UnixMillis,
    refresh_at: UnixMillis,
}

impl Token {
    /// The token, as it goes into `Authorization: Bearer`.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// When it expires.
    #[must_use]
    pub fn expires_at(&self) -> UnixMillis {
        self.expires_at
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token(until {})", self.expires_at)
    }
}

/// Tokens for one audience. Ask for one for each use and do not keep it: the agent answers from
/// memory, renews in time, and stops when the task ends.
#[derive(Clone, Debug)]
pub struct TokenSource(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    agent: Agent,
    audience: String,
    /// What the agent gave last. Held for a clone.
    last: Mutex<Option<Arc<Token>>>,
}

impl TokenSource {
    pub(crate) fn new(agent: Agent, audience: &str) -> Self {
        Self(Arc::new(Inner {
            agent,
            audience: audience.to_owned(),
            last: Mutex::default(),
        }))
    }

    /// A token that is good now. While the agent cannot be reached, as when it is replaced by a
    /// newer one, the last token is given again, but never once it should have been renewed.
    ///
    /// # Errors
    /// When the agent refuses, or cannot be reached and no token is at hand.
    pub async fn token(&self) -> Result<Arc<Token>, Error> {
        match self.0.agent.token(&self.0.audience).await {
            Ok(given) => {
                let value = given.credential.token.ok_or_else(|| Error::Answer {
                    what: "the agent",
                    why: "there is no token in it".to_owned(),
                })?;
                let token = Arc::new(Token {
                    value: Zeroizing::new(value),
                    expires_at: given.credential.expires_at,
                    refresh_at: given.credential.refresh_at,
                });
                *self.last() = Some(Arc::clone(&token));
                Ok(token)
            }
            Err(away @ (Error::Agent { .. } | Error::Late { .. })) => {
                let mut last = self.last();
                *last = last.take().filter(|last| clock::wall() < last.refresh_at);
                last.clone().ok_or(away)
            }
            Err(refused) => {
                *self.last() = None;
                Err(refused)
            }
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Arc<Token>>> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
