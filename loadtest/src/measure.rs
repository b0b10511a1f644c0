//! Closed loop for throughput, open loop for latency.
//!
//! Open loop: calls are due on a fixed schedule, and a call's latency counts from the moment it
//! was due, so that a server that stalls cannot hide the calls it kept waiting.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::LocalSet;

use crate::client::{Call, Connection};
use crate::clock::Moment;
use crate::host;

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

/// Makes the n-th call.
pub type Calls = Rc<dyn Fn(u64) -> Call>;

/// Calls a second, each of `connections` waiting for its answer before the next call.
pub async fn closed_loop(
    socket: &Path,
    connections: usize,
    length: Duration,
    calls: Calls,
) -> anyhow::Result<f64> {
    let next = Rc::new(Cell::new(0_u64));
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
            let (next, calls) = (Rc::clone(&next), Rc::clone(&calls));
            local.spawn_local(async move {
                let mut done = 0_u64;
                while Moment::now() < end {
                    let number = next.replace(next.get() + 1);
                    connection.call(&calls(number)).await?;
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

/// Latencies at `rate` calls a second over `connections`.
pub async fn open_loop(
    socket: &Path,
    connections: usize,
    rate: f64,
    length: Duration,
    calls: Calls,
) -> anyhow::Result<Latency> {
    let total = (rate * length.as_secs_f64()) as u64;
    let gap = Duration::from_secs_f64(1.0 / rate);
    let next = Rc::new(Cell::new(0_u64));
    let local = LocalSet::new();
    let mut workers = Vec::new();
    for _ in 0..connections {
        workers.push(Connection::unix(socket).await?);
    }
    let start = Moment::now().after(Duration::from_millis(10));
    let running: Vec<_> = workers
        .into_iter()
        .map(|mut connection| {
            let (next, calls) = (Rc::clone(&next), Rc::clone(&calls));
            local.spawn_local(async move {
                let mut latencies = Vec::new();
                loop {
                    let number = next.replace(next.get() + 1);
                    if number >= total {
                        return anyhow::Ok(latencies);
                    }
                    let due = start.after(gap.mul_f64(number as f64));
                    wait_until(due).await;
                    connection.call(&calls(number)).await?;
                    latencies.push(due.elapsed());
                }
            })
        })
        .collect();
    let mut collector = Collector::new()?;
    local
        .run_until(async {
            for worker in running {
                worker
                    .await??
                    .into_iter()
                    .for_each(|latency| collector.add(latency));
            }
            anyhow::Ok(())
        })
        .await?;
    Ok(collector.latency())
}

/// Timers tick in milliseconds: sleep most of a long wait, yield through the rest.
async fn wait_until(due: Moment) {
    let coarse = due.remaining().saturating_sub(Duration::from_millis(2));
    if !coarse.is_zero() {
        tokio::time::sleep(coarse).await;
    }
    while !due.remaining().is_zero() {
        tokio::task::yield_now().await;
    }
}

/// The middle value.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
