//! A refusal on its way out, before it has a correlation id.

use ephor_proto::id::{CorrelationId, DecisionId};
use ephor_proto::problem::{Code, Problem};

/// Why a stage refused. The detail is safe for the caller: no secret, nothing of
/// another tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Stable code.
    pub code: Code,
    /// What was tried, on what, and what to do.
    pub detail: String,
    /// The decision, where one was made.
    pub decision: Option<DecisionId>,
    /// Seconds after which trying again may help, where it is not the code's default.
    pub retry_after: Option<u32>,
}

impl Refusal {
    /// A refusal without a decision.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            decision: None,
            retry_after: None,
        }
    }

    /// With the decision that said no.
    #[must_use]
    pub fn with_decision(mut self, decision: DecisionId) -> Self {
        self.decision = Some(decision);
        self
    }

    /// With a wait of its own.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The problem that leaves the process.
    #[must_use]
    pub fn into_problem(self, correlation: CorrelationId) -> Problem {
        crate::metrics::REFUSALS.count(self.code);
        let mut problem = Problem::new(self.code, correlation, self.detail);
        problem.decision = self.decision;
        problem.retry_after = self.retry_after.or(problem.retry_after);
        problem
    }
}
