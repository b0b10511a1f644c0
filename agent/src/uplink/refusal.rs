//! From a gRPC status back to the broker's problem.

use ephor_proto::grpc::PROBLEM_METADATA;
use ephor_proto::problem::{Code, Problem};

use super::NewCorrelation;

/// Why a call to the broker gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The broker refused; asking again the same way changes nothing unless the code says so.
    #[error("{0}")]
    Refused(Problem),
    /// The connection failed or the deadline passed: whether the broker acted is not known.
    #[error("{0}")]
    Broken(Problem),
}

impl CallError {
    /// What to tell the caller.
    #[must_use]
    pub fn into_problem(self) -> Problem {
        match self {
            Self::Refused(problem) | Self::Broken(problem) => problem,
        }
    }

    /// The refusal's code, when it is one.
    #[must_use]
    pub fn refused(&self) -> Option<Code> {
        match self {
            Self::Refused(problem) => Some(problem.code),
            Self::Broken(_) => None,
        }
    }
}

/// A status with a problem in its metadata is a refusal; any other came from the connection.
pub(super) fn from_status(status: &tonic::Status, correlation: &NewCorrelation) -> CallError {
    let carried = status
        .metadata()
        .get_bin(PROBLEM_METADATA)
        .and_then(|value| value.to_bytes().ok());
    if let Some(problem) = carried.and_then(|bytes| serde_json::from_slice::<Problem>(&bytes).ok())
    {
        return CallError::Refused(problem);
    }
    tracing::debug!(code = ?status.code(), message = status.message(), "call to the broker failed");
    let detail = "the connection to the broker failed. Nothing was handed out; try again";
    CallError::Broken(Problem::new(Code::Unreachable, correlation(), detail))
}

/// The refusal of one request among others.
pub(super) fn from_json(problem: &[u8], correlation: &NewCorrelation) -> CallError {
    serde_json::from_slice(problem).map_or_else(|_| unreadable(correlation), CallError::Refused)
}

/// An answer that says neither yes nor no.
pub(super) fn unreadable(correlation: &NewCorrelation) -> CallError {
    let detail = "the broker's answer could not be read. Nothing was handed out; try again";
    CallError::Broken(Problem::new(Code::Unreachable, correlation(), detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ephor_proto::id::CorrelationId;
    use std::sync::Arc;
    use tonic::metadata::{MetadataMap, MetadataValue};

    fn correlation() -> NewCorrelation {
        Arc::new(|| CorrelationId::from_parts(1, [1; 10]))
    }

    #[test]
    fn a_problem_in_the_metadata_is_the_brokers_own_word() {
        let problem = Problem::new(
            Code::UnknownEntitlement,
            CorrelationId::from_parts(2, [2; 10]),
            "no `x` for you",
        );
        let mut metadata = MetadataMap::new();
        let value = MetadataValue::from_bytes(&serde_json::to_vec(&problem).unwrap());
        metadata.insert_bin(PROBLEM_METADATA, value);
        let status =
            tonic::Status::with_metadata(tonic::Code::PermissionDenied, "denied", metadata);
        let CallError::Refused(got) = from_status(&status, &correlation()) else {
            panic!("not a refusal")
        };
        assert_eq!(got, problem);
    }

    #[test]
    fn a_bare_status_is_a_broken_connection() {
        let status = tonic::Status::unavailable("h2: secret-looking text");
        let CallError::Broken(got) = from_status(&status, &correlation()) else {
            panic!("a refusal")
        };
        assert_eq!(got.code, Code::Unreachable);
        assert!(got.retry_after.is_some() && !got.detail.contains("secret-looking"));
    }
}
