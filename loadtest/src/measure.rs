//! Closed loop for throughput, open loop for latency.
//!
//! Open loop: calls are due on a fixed schedule, and a call's latency counts from the moment it
//! was due, so that a server that stalls cannot hide the calls it kept waiting.

use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::client::{Call, Connection};
use crate::clock::Moment;
use crate::host;
use crate::raw::Raw;

/// Latencies in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// Calls measured.
    pub count: u64,
    /// Half are below.
    pub p50_us: u64,
    /// 99 of 100 are below.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
    /// Load average and runnable tasks when it ended.
    pub run_queue: String,
}

/// Collects latencies up to one minute.
pub struct Collector(Histogram<u64>);

impl Collector {
    /// An empty one.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, 60_000_000, 3)?))
    }

    /// One more.
    pub fn add(&mut self, latency: Duration) {
        self.0.saturating_record(
            u64::try_from(latency.as_micros())
                .unwrap_or(u64::MAX)
                .max(1),
        );
    }

    /// What it comes to.
    pub fn latency(&self) -> Latency {
        Latency {
            count: self.0.len(),
            p50_us: self.0.value_at_quantile(0.5),
            p99_us: self.0.value_at_quantile(0.99),
            max_us: self.0.max(),
            run_queue: host::run_queue(),
        }
    }
}

/// Calls a second, each of `connections` waiting for its answer before the next call; through an
/// HTTP library, as applications do.
pub async fn closed_loop(
    socket: &Path,
    connections: usize,
    length: Duration,
    call: &Call,
) -> anyhow::Result<f64> {
    let local = LocalSet::new();
    let mut workers = Vec::new();
    for _ in 0..connections {
        workers.push(Connection::unix(socket).await?);
    }
    let start = Moment::now();
    let end = start.after(length);
    let running: Vec<_> = workers
        .into_iter()
        .map(|mut connection| {
            let call = call.clone();
            local.spawn_local(async move {
                let mut done = 0_u64;
                while Moment::now() < end {
                    connection.call(&call).await?;
                    done += 1;
                }
                anyhow::Ok(done)
            })
        })
        .collect();
    let mut done = 0;
    local
        .run_until(async {
            for worker in running {
                done += worker.await??;
            }
            anyhow::Ok(())
        })
        .await?;
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

/// Latencies at `rate` calls a second over `connections`; by a client that can hold that rate: one
/// thread, which sleeps while nothing is due and no answer is there.
pub fn open_loop(
    socket: &Path,
    connections: usize,
    rate: f64,
    length: Duration,
    call: &Call,
) -> anyhow::Result<Latency> {
    let total = (rate * length.as_secs_f64()) as u64;
    let gap = Duration::from_secs_f64(1.0 / rate);
    let request = call.to_bytes();
    let mut idle = (0..connections)
        .map(|_| Raw::connect(socket))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut busy: Vec<(Raw, Moment)> = Vec::with_capacity(connections);
    let mut collector = Collector::new()?;
    let start = Moment::now().after(Duration::from_millis(10));
    let mut number = 0;
    while number < total || !busy.is_empty() {
        let mut wait = None;
        while number < total && !idle.is_empty() {
            let (due, now) = (start.after(gap.mul_f64(number as f64)), Moment::now());
            if due > now {
                wait = Some(due.since(now));
                break;
            }
            if let Some(mut connection) = idle.pop() {
                connection.send(&request)?;
                busy.push((connection, due));
                number += 1;
            }
        }
        // From the back, so that what moves into a place was looked at already.
        for at in wait_for(&busy, wait)?.into_iter().rev() {
            if let Some((connection, _)) = busy.get_mut(at)
                && connection.receive()?
            {
                let (connection, due) = busy.swap_remove(at);
                collector.add(due.elapsed());
                idle.push(connection);
            }
        }
    }
    Ok(collector.latency())
}

/// Which of the connections have something to read, once one has or `wait` is over.
pub fn wait_for(busy: &[(Raw, Moment)], wait: Option<Duration>) -> anyhow::Result<Vec<usize>> {
    let mut asked: Vec<_> = busy
        .iter()
        .map(|(connection, _)| PollFd::new(connection, PollFlags::IN))
        .collect();
    let wait = wait.map(Timespec::try_from).transpose()?;
    match poll(&mut asked, wait.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready = |(at, fd): (usize, &PollFd<'_>)| (!fd.revents().is_empty()).then_some(at);
    Ok(asked.iter().enumerate().filter_map(ready).collect())
}

/// The middle value.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
