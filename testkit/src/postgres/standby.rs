//! A second server that follows the first one.

use rustix::process::Signal;

use super::{Cluster, PATIENCE, succeed};
use crate::wait;

impl Cluster {
    /// A hot standby of this one, made by `pg_basebackup`, that has caught up. With `settings` of
    /// its own, such as `recovery_min_apply_delay = '1h'`.
    ///
    /// # Errors
    /// When it cannot be copied, started or followed.
    pub fn standby(&self, settings: &[String]) -> anyhow::Result<Self> {
        let standby = Self::prepare()?;
        let mut copy = standby.command("pg_basebackup");
        copy.arg("-h").arg(self.socket_dir());
        copy.args(["-p", &self.port.to_string(), "-U", "postgres", "-R", "-N"]);
        copy.args(["-c", "fast", "-X", "stream", "-D"])
            .arg(standby.data());
        succeed(&mut copy)?;
        standby.configure(settings)?;
        let standby = standby.started()?;
        self.wait_followed(&standby)?;
        Ok(standby)
    }

    /// Waits until `standby` has replayed all that is committed here now.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn wait_followed(&self, standby: &Self) -> anyhow::Result<()> {
        let here = self.psql("postgres", "select pg_current_wal_flush_lsn()")?;
        let question = format!("select pg_last_wal_replay_lsn() >= '{here}'");
        wait::until("the standby has caught up", PATIENCE, || {
            (standby.psql("postgres", &question).ok()? == "t").then_some(())
        })
    }

    /// Makes a standby the primary.
    ///
    /// # Errors
    /// When it refuses.
    pub fn promote(&self) -> anyhow::Result<()> {
        let done = self.psql("postgres", "select pg_promote(true, 60)")?;
        anyhow::ensure!(done == "t", "pg_promote said {done}; {}", self.log());
        Ok(())
    }

    /// SIGSTOP or SIGCONT to one backend of this server.
    ///
    /// # Errors
    /// When there is none with this pid among its processes.
    pub fn signal_backend(&self, pid: i32, signal: Signal) -> anyhow::Result<()> {
        use anyhow::Context;
        let parent = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let parent = parent
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').nth(1));
        let parent: i32 = parent.context("stat")?.parse()?;
        anyhow::ensure!(
            Some(parent) == self.postmaster(),
            "{pid} is no backend of this server"
        );
        let pid = rustix::process::Pid::from_raw(pid).context("pid")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }
}
