//! What the stages took, as the agent says with its answer (W3C Server Timing).

use std::time::Duration;

/// Times of the stages that happen before the answer; one that was not said is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stages {
    /// On this host and at the broker.
    pub attest: Option<Duration>,
    /// At the broker.
    pub decide: Option<Duration>,
    /// At the broker.
    pub issue: Option<Duration>,
}

impl Stages {
    /// From the header `attest;dur=0.31, decide;dur=0.08, issue;dur=4.2`, in milliseconds.
    pub fn parse(header: &str) -> Self {
        let mut stages = Self::default();
        for metric in header.split(',') {
            let mut parts = metric.split(';').map(str::trim);
            let place = match parts.next() {
                Some("attest") => &mut stages.attest,
                Some("decide") => &mut stages.decide,
                Some("issue") => &mut stages.issue,
                Some(_) | None => continue,
            };
            *place = parts
                .find_map(|part| part.strip_prefix("dur="))
                .and_then(|millis| millis.parse::<f64>().ok())
                .and_then(|millis| Duration::try_from_secs_f64(millis / 1000.0).ok());
        }
        stages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_known() {
        let micros = |n| Some(Duration::from_micros(n));
        assert_eq!(
            Stages::parse("attest;dur=0.310, decide;dur=0.08,issue;desc=\"x\";dur=4.2"),
            Stages {
                attest: micros(310),
                decide: micros(80),
                issue: micros(4200)
            }
        );
        for nothing in ["", "attest", "attest;dur=-1", "issue;dur=x", "cache;dur=1"] {
            assert_eq!(Stages::parse(nothing), Stages::default(), "{nothing}");
        }
    }
}
