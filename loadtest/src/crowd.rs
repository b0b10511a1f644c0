//! As many live credentials as there are to be, held by processes of several hosts.

use std::path::Path;

use anyhow::Context;

use crate::args::{Made, Work};
use crate::fixture::{Fixture, Host};
use crate::host;
use crate::workers::Workers;

const AT_ONCE: usize = 40;
/// Held by the agent of one host; it can hold 65 536.
const A_HOST: usize = 40_000;

/// See the module.
pub struct Crowd {
    /// Where they are held; dropping these kills the agents.
    pub hosts: Vec<Host>,
    /// Who holds them; dropping these kills the processes, so that their tasks end.
    pub workers: Vec<Workers>,
}

impl Crowd {
    /// Joins the hosts that it takes, and fills them until at least `live` are live there.
    pub async fn gather(
        fixture: &Fixture,
        ephor: &Path,
        made: Made,
        live: usize,
    ) -> anyhow::Result<Self> {
        let mut hosts = Vec::new();
        for number in 0..live.div_ceil(A_HOST) {
            let name = format!("load-{number}");
            hosts.push(fixture.another_host(ephor, &name).await?);
        }
        let work = Work::much(made);
        let (mut workers, mut there) = (Vec::new(), 0);
        while there < live {
            let host = hosts.get(there / A_HOST).context("a host")?;
            let mut some = Workers::start(&host.socket, AT_ONCE, &work).await?;
            some.work().await?;
            there += AT_ONCE * work.calls;
            workers.push(some);
            host::say(&format!("{there} live"));
        }
        Ok(Self { hosts, workers })
    }
}
