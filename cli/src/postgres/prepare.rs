//! What an administrator's login puts into a server for a broker, and why that failed: nobody answers
//! there, or somebody who does not let us in, or who refuses what is to be made.

use std::time::Duration;

use ephor_broker::kind::postgres::{Admin, Install, InstallError, Installed, Options};
use ephor_broker::tasks::Tasks;

use super::Target;
use crate::exit::Failure;

/// For connections to end.
const ENDS: Duration = Duration::from_secs(1);

impl Target {
    /// Installs as this login. `before` is called once it was let in and before anything is made; what it
    /// refuses is not begun.
    ///
    /// # Errors
    /// Unreachable or denied, with what to do; or what `before` said.
    pub async fn prepare(
        &self,
        options: &Options,
        before: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Installed, Failure> {
        let (tls, _) = self.verified()?;
        let admin = Admin {
            address: self.address.clone(),
            user: self.user.clone(),
            password: self.password(),
            database: self.database.clone(),
            tls,
        };
        let tasks = Tasks::new();
        let prepared = self.prepare_in(&admin, options, &tasks, before).await;
        tasks.shutdown(ENDS).await;
        prepared
    }

    async fn prepare_in(
        &self,
        admin: &Admin,
        options: &Options,
        tasks: &Tasks,
        before: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Installed, Failure> {
        let begun = Install::begin(admin, options, tasks).await;
        let nothing = |failure: Failure| failure.although_issued("Nothing was made.".to_owned());
        let begun = begun.map_err(|why| nothing(self.not_prepared(&why)))?;
        before()?;
        begun.run().await.map_err(|why| self.not_prepared(&why))
    }

    fn not_prepared(&self, why: &InstallError) -> Failure {
        match why {
            InstallError::Options(_) => Failure::usage(why),
            InstallError::Unreachable(_) => Failure::unreachable(format!(
                "{why}\nSee that the server runs and listens there. Host and port are the URL's; PGHOST and PGPORT count where it names neither."
            )),
            InstallError::Unauthorized(_) => Failure::denied(format!(
                "{why}\nSee that the user, its password (in the URL, PGPASSWORD or ~/.pgpass) and the database are right, and that pg_hba.conf there lets it in from here."
            )),
            InstallError::Statement {
                is_denied: false, ..
            } => Failure::denied(why),
            InstallError::Statement { .. } => Failure::denied(format!(
                "{why}\nIt takes a user who may make roles and databases; {} is the one that was used.",
                self.user
            )),
        }
    }
}
