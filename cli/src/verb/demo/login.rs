//! The thief's copy of the database login, and the session that he keeps open with it.

use std::pin::Pin;
use std::time::Duration;

use ephor_proto::http::agent::Login;

use super::app::count;
use super::tell::{held, not_held};
use crate::exit::Failure;
use crate::postgres::Target;

/// Between two tries; each costs the server some ten milliseconds.
const TRY_EVERY: Duration = Duration::from_millis(5);
/// What the server says to a login that is not there.
const REFUSED: &str = "password authentication failed";

/// A copy in the wrong hands.
pub struct Stolen {
    copy: Target,
    session: Pin<Box<dyn Future<Output = Result<(), Failure>>>>,
}

impl Stolen {
    /// Tries the copy, and keeps a session open with it.
    ///
    /// # Errors
    /// When it does not work.
    pub async fn of(login: &Login) -> Result<Self, Failure> {
        let copy = Target::handed_over(login)?;
        held(
            count(&copy).await? == 3,
            "the thief's copy of the login reads other rows",
        )?;
        let own = Target::handed_over(login)?;
        let asleep = async move {
            let sleep = async |client: &mut tokio_postgres::Client| {
                client.batch_execute("SELECT pg_sleep(3600)").await
            };
            own.with("", sleep).await
        };
        let mut session: Pin<Box<dyn Future<Output = _>>> = Box::pin(asleep);
        tokio::select! {
            ended = &mut session => {
                let why = ended.err().map_or_else(|| "it ended".to_owned(), |why| why.message);
                return Err(not_held(&format!("the thief's session: {why}")));
            }
            open = is_open(&copy) => open?,
        }
        Ok(Self { copy, session })
    }

    /// Until the server refuses the copy and has ended the session.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn refused(&mut self) -> Result<(), Failure> {
        let ended = (&mut self.session).await;
        held(ended.is_err(), "the thief's session ended by itself")?;
        loop {
            match count(&self.copy).await {
                Err(why) if why.message.contains(REFUSED) => return Ok(()),
                // Let in a last time, or not any more for another reason, such as no right to log in.
                Ok(_) | Err(_) => tokio::time::sleep(TRY_EVERY).await,
            }
        }
    }
}

/// Until the server shows the session.
async fn is_open(copy: &Target) -> Result<(), Failure> {
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE usename = session_user AND state = 'active' \
                 AND query LIKE 'SELECT pg_sleep%' AND pid <> pg_backend_pid()";
    loop {
        let row = copy
            .with("", async |client| client.query_one(asked, &[]).await)
            .await?;
        let sessions: i64 = row
            .try_get(0)
            .map_err(|why| Failure::local("the thief's session", why))?;
        if sessions > 0 {
            return Ok(());
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}
