//! Metrics: the words, and what counts them.
//!
//! Counting is one relaxed addition and never a lock, so that a hot path may count. A label is one of
//! [`Label`] and its value a word of the program: the types take nothing that a caller wrote, so no
//! subject, host or secret can become a time series, and their number is bounded by the code.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::problem::Code;
use crate::stage::Stage;

/// `Content-Type` of a page (OpenMetrics 1.0 §5.3).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels that a metric may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// One of the nine stages, or `operate`.
    Stage,
    /// `ok` or `refused`.
    Outcome,
    /// A refusal's stable code.
    Code,
    /// A credential kind.
    Kind,
    /// A state of a state machine, or of the link to the broker.
    State,
    /// A queue with a named limit.
    Queue,
    /// Why something has not come about yet: a word of a closed set.
    Reason,
    /// The version of the program.
    Version,
}

impl Label {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stage => "stage",
            Self::Outcome => "outcome",
            Self::Code => "code",
            Self::Kind => "kind",
            Self::State => "state",
            Self::Queue => "queue",
            Self::Reason => "reason",
            Self::Version => "version",
        }
    }
}

/// A label with its value: a word of the program, never of its input.
pub type Labelled = (Label, &'static str);

/// Counts values by size, without a lock. `N` upper bounds, inclusive.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    /// Raw units in one unit of the page.
    per_unit: u64,
    counts: [AtomicU64; N],
    over: AtomicU64,
    sum: AtomicU64,
}

/// Bounds of [`Latency`], in microseconds.
static MICROSECONDS: [u64; 16] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000,
    1_000_000, 5_000_000,
];
/// Bounds of [`Sizes`].
static ENTRIES: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// How long something took: observed in microseconds, shown in seconds.
pub type Latency = Histogram<16>;
/// How many went together.
pub type Sizes = Histogram<10>;

impl Latency {
    /// Nothing seen yet.
    #[must_use]
    pub const fn latency() -> Self {
        Self::new(&MICROSECONDS, 1_000_000)
    }
}

impl Sizes {
    /// Nothing seen yet.
    #[must_use]
    pub const fn sizes() -> Self {
        Self::new(&ENTRIES, 1)
    }
}

impl<const N: usize> Histogram<N> {
    const fn new(bounds: &'static [u64; N], per_unit: u64) -> Self {
        Self {
            bounds,
            per_unit,
            counts: [const { AtomicU64::new(0) }; N],
            over: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts one value, in raw units.
    pub fn observe(&self, value: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        let counter = self.counts.get(place).unwrap_or(&self.over);
        counter.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    #[allow(clippy::cast_precision_loss)]
    fn shown(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let unit = self.per_unit as f64;
        let counts = self.counts.iter().chain([&self.over]);
        let bounds = self.bounds.iter().map(|bound| *bound as f64 / unit);
        let buckets: Vec<(f64, u64)> = bounds
            .chain([f64::INFINITY])
            .zip(counts.map(|count| count.load(Ordering::Relaxed)))
            .collect();
        let sum = self.sum.load(Ordering::Relaxed) as f64 / unit;
        (sum, buckets.iter().map(|(_, count)| count).sum(), buckets)
    }
}

/// How often each stage was passed and refused, and how long passing it took.
#[derive(Debug)]
pub struct Stages {
    ok: [AtomicU64; Stage::ALL.len()],
    refused: [AtomicU64; Stage::ALL.len()],
    latency: [Latency; Stage::ALL.len()],
}

impl Stages {
    /// Nothing seen yet.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self {
            ok: [const { AtomicU64::new(0) }; Stage::ALL.len()],
            refused: [const { AtomicU64::new(0) }; Stage::ALL.len()],
            latency: [const { Latency::latency() }; Stage::ALL.len()],
        }
    }

    /// A stage was passed, in so many microseconds.
    pub fn passed(&self, stage: Stage, micros: u64) {
        add(&self.ok, stage as usize, 1);
        if let Some(latency) = self.latency.get(stage as usize) {
            latency.observe(micros);
        }
    }

    /// A stage was passed so many times, by what is not worth a look at the clock.
    pub fn counted(&self, stage: Stage, times: u64) {
        add(&self.ok, stage as usize, times);
    }

    /// A stage refused.
    pub fn refused(&self, stage: Stage) {
        add(&self.refused, stage as usize, 1);
    }

    /// Writes both metrics.
    ///
    /// # Errors
    /// As every write.
    pub fn tell(&self, page: &mut Page<'_>, stages: &[Stage]) -> fmt::Result {
        let mut counts = Vec::new();
        for stage in stages {
            for (outcome, of) in [("ok", &self.ok), ("refused", &self.refused)] {
                let labels = [(Label::Stage, stage.as_str()), (Label::Outcome, outcome)];
                counts.push((labels, read(of, *stage as usize)));
            }
        }
        page.counters("stage", "Times a stage was passed or refused", counts)?;
        let latencies = stages.iter().filter_map(|stage| {
            let latency = self.latency.get(*stage as usize)?;
            Some(([(Label::Stage, stage.as_str())], latency))
        });
        page.histograms("stage_seconds", "Time that passing a stage took", latencies)
    }
}

/// How often each code was refused with.
#[derive(Debug)]
pub struct Refusals([AtomicU64; Code::ALL.len()]);

impl Refusals {
    /// None yet.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Code::ALL.len()])
    }

    /// One more.
    pub fn count(&self, code: Code) {
        add(&self.0, code as usize, 1);
    }

    /// Writes the codes that were used.
    ///
    /// # Errors
    /// As every write.
    pub fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        let used = Code::ALL.iter().filter_map(|code| {
            let count = read(&self.0, *code as usize);
            (count > 0).then_some(([(Label::Code, code.as_str())], count))
        });
        page.counters(
            "refusals",
            "Refusals by code; a limit that was hit has one, too",
            used,
        )
    }
}

fn add(counters: &[AtomicU64], place: usize, times: u64) {
    if let Some(counter) = counters.get(place) {
        counter.fetch_add(times, Ordering::Relaxed);
    }
}

fn read(counters: &[AtomicU64], place: usize) -> u64 {
    counters
        .get(place)
        .map_or(0, |counter| counter.load(Ordering::Relaxed))
}

/// One page of metrics, being written. Every name gets the prefix `ephor_`.
pub struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// Numbers that only rise; the page adds `_total` to the name.
    ///
    /// # Errors
    /// As every write.
    pub fn counters<const L: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([Labelled; L], u64)>,
    ) -> fmt::Result {
        self.series(name, help, MetricType::Counter, values, |one, value| {
            one.encode_counter::<NoLabelSet, u64, f64>(&value, None)
        })
    }

    /// Numbers as they are now.
    ///
    /// # Errors
    /// As every write.
    pub fn gauges<const L: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([Labelled; L], u64)>,
    ) -> fmt::Result {
        self.series(name, help, MetricType::Gauge, values, |one, value| {
            one.encode_gauge(&value)
        })
    }

    /// Distributions since the start.
    ///
    /// # Errors
    /// As every write.
    pub fn histograms<'h, const L: usize, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([Labelled; L], &'h Histogram<N>)>,
    ) -> fmt::Result {
        self.series(
            name,
            help,
            MetricType::Histogram,
            values,
            |one, histogram| {
                let (sum, count, buckets) = histogram.shown();
                one.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            },
        )
    }

    /// One metric: with its labels each, or the one without any.
    fn series<const L: usize, V>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        values: impl IntoIterator<Item = ([Labelled; L], V)>,
        encode: impl Fn(&mut MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            if L == 0 {
                encode(&mut metric, value)?;
            } else {
                encode(&mut metric.encode_family(&words(labels))?, value)?;
            }
        }
        Ok(())
    }
}

fn words<const L: usize>(labels: [Labelled; L]) -> [(&'static str, &'static str); L] {
    labels.map(|(label, value)| (label.as_str(), value))
}

/// A page of what `tell` writes, in OpenMetrics text.
///
/// # Errors
/// As every write.
pub fn page(
    tell: impl Fn(&mut Page<'_>) -> fmt::Result + Send + Sync + 'static,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("ephor");
    registry.register_collector(Box::new(Told(tell)));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

struct Told<F>(F);

impl<F> fmt::Debug for Told<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

impl<F> Collector for Told<F>
where
    F: Fn(&mut Page<'_>) -> fmt::Result + Send + Sync + 'static,
{
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(&mut Page(encoder))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    static STAGES: Stages = Stages::new();
    static REFUSALS: Refusals = Refusals::new();

    #[test]
    fn a_page_says_what_was_counted() {
        STAGES.passed(Stage::Issue, 700);
        STAGES.passed(Stage::Issue, 9_000_000);
        STAGES.refused(Stage::Decide);
        REFUSALS.count(Code::Denied);
        let text = page(|page| {
            STAGES.tell(page, &Stage::ALL)?;
            REFUSALS.tell(page)?;
            page.gauges("tasks_open", "Open tasks", [([], 3)])
        })
        .unwrap();
        for line in [
            r#"ephor_stage_total{stage="issue",outcome="ok"} 2"#,
            r#"ephor_stage_total{stage="decide",outcome="refused"} 1"#,
            r#"ephor_stage_seconds_bucket{le="0.0005",stage="issue"} 0"#,
            r#"ephor_stage_seconds_bucket{le="0.001",stage="issue"} 1"#,
            r#"ephor_stage_seconds_bucket{le="+Inf",stage="issue"} 2"#,
            r#"ephor_stage_seconds_sum{stage="issue"} 9.0007"#,
            r#"ephor_refusals_total{code="denied"} 1"#,
            "ephor_tasks_open 3",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert_eq!(text.matches("# TYPE ephor_stage counter").count(), 1);
    }

    #[test]
    fn a_value_falls_at_or_below_its_bound() {
        let sizes = Sizes::sizes();
        for value in [0, 1, 2, 3, 512, 513] {
            sizes.observe(value);
        }
        let (sum, count, buckets) = sizes.shown();
        assert_eq!((sum, count), (1031.0, 6));
        let at = |place: usize| buckets.get(place).unwrap().1;
        assert_eq!((at(0), at(1), at(2), at(9), at(10)), (2, 1, 1, 1, 1));
    }
}
