//! The closed list of refusal codes; a code never changes its meaning once released.

/// The first word of a refusal (TRANSCRIPTS, rules of speech).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FirstWord {
    /// Policy or proof says no; asking again changes nothing.
    Denied,
    /// Waiting for people, or for another task to end.
    Pending,
    /// Someone cannot be reached or is not ready; trying again may help.
    Unreachable,
    /// Something is still being revoked.
    Overdue,
    /// The input is wrong.
    Invalid,
}

impl FirstWord {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Pending => "pending",
            Self::Unreachable => "unreachable",
            Self::Overdue => "overdue",
            Self::Invalid => "invalid",
        }
    }

    /// The exit code of the command line for it (`sysexits.h` where there is one).
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Denied => 77,
            Self::Pending => 75,
            Self::Unreachable => 69,
            Self::Overdue => 80,
            Self::Invalid => 64,
        }
    }
}

impl std::fmt::Display for FirstWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no code of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no refusal code of this version")]
pub struct UnknownCode(String);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $status:literal, $first:ident, $title:literal;)*) => {
        /// A stable refusal code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {$(
            $(#[$doc])*
            $name,
        )*}

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The word on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),* }
            }

            /// The HTTP status.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status),* }
            }

            /// The title, the same for every problem of this code.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title),* }
            }

            /// The first word of the refusal.
            pub const fn first_word(self) -> FirstWord {
                match self { $(Self::$name => FirstWord::$first),* }
            }
        }
    };
}

codes! {
    /// Policy says no.
    Denied = "denied", 403, Denied, "Policy does not allow this";
    /// No entitlement of this name for this subject; also when it exists for others.
    UnknownEntitlement = "unknown_entitlement", 403, Denied, "No such entitlement for this subject";
    /// No rule of policy matches the caller.
    UnknownWorkload = "unknown_workload", 403, Denied, "No workload matches the caller";
    /// Several workloads match the caller, and the request names none of them.
    AmbiguousSubject = "ambiguous_subject", 403, Denied, "Several workloads match the caller";
    /// A rule needs evidence that was not sent, such as the hash of the executable.
    EvidenceNeeded = "evidence_needed", 403, Denied, "More evidence is needed";
    /// The entitlement gives a certificate, and no public key was sent for it.
    KeyNeeded = "key_needed", 403, Denied, "A public key is needed";
    /// The identity does not give this audience.
    AudienceNotAllowed = "audience_not_allowed", 403, Denied, "The audience is not allowed";
    /// Waiting for approvals.
    Pending = "pending", 202, Pending, "Waiting for approval";
    /// The agent cannot reach the broker.
    Unreachable = "unreachable", 503, Unreachable, "The broker cannot be reached";
    /// Something is still being revoked past its bound.
    Overdue = "overdue", 503, Overdue, "A revocation is overdue";
    /// The request is malformed.
    InvalidRequest = "invalid_request", 400, Invalid, "The request is malformed";
    /// `Ephor-Local: 1` is missing.
    HeaderRequired = "header_required", 403, Invalid, "The header Ephor-Local: 1 is required";
    /// The request came through a browser or proxy.
    Proxied = "proxied", 403, Denied, "Requests through a browser or proxy are refused";
    /// The Host header is another one.
    WrongHost = "wrong_host", 421, Invalid, "The Host header is not this listener's";
    /// The caller cannot be attested.
    AttestationFailed = "attestation_failed", 403, Denied, "The caller could not be attested";
    /// The caller ended or changed before the hand-over.
    CallerGone = "caller_gone", 403, Denied, "The caller ended or changed";
    /// `bind` names a process that may not be bound to.
    BindRefused = "bind_refused", 403, Denied, "The named process may not be bound to";
    /// The task has ended.
    TaskEnded = "task_ended", 409, Denied, "The task has ended";
    /// The credential is revoked or expired.
    CredentialEnded = "credential_ended", 409, Denied, "The credential is revoked or expired";
    /// The agent's heartbeats stopped: nothing new there.
    AgentSilent = "agent_silent", 503, Unreachable, "The agent is silent";
    /// The host is banned.
    AgentBanned = "agent_banned", 403, Denied, "The host is banned";
    /// Another instance of this agent has taken over.
    StaleInstance = "stale_instance", 409, Denied, "Another instance of this agent is active";
    /// The join token is used, expired, or for another host.
    JoinRefused = "join_refused", 403, Denied, "The join token was refused";
    /// A TTL of 0.
    TtlZero = "ttl_zero", 400, Invalid, "The TTL must be at least one second";
    /// A ceiling leaves no time.
    NoTimeLeft = "no_time_left", 403, Denied, "A ceiling leaves no time";
    /// A body, header or field is too large.
    TooLarge = "too_large", 413, Invalid, "Too large";
    /// A body in an encoding that is not taken.
    UnsupportedMediaType = "unsupported_media_type", 415, Invalid, "The body's encoding is not supported";
    /// Too many requests of this caller.
    RateLimited = "rate_limited", 429, Unreachable, "Too many requests";
    /// A queue or table is full.
    Busy = "busy", 503, Unreachable, "At a limit; try again";
    /// The store's disk is full.
    StoreFull = "store_full", 507, Unreachable, "The store is full";
    /// The store cannot commit; nothing was issued.
    StoreUnavailable = "store_unavailable", 503, Unreachable, "The store cannot commit";
    /// A target did not make or extend what was allowed; nothing was handed out.
    TargetFailed = "target_failed", 503, Unreachable, "The target did not do it";
    /// A target refuses what policy allows, and will until somebody mends something there or in policy; nothing was
    /// handed out.
    TargetRefused = "target_refused", 403, Denied, "The target refuses it until it is mended";
    /// It is lent to one task at a time, and another one has it.
    InUse = "in_use", 503, Pending, "Another task has it";
    /// There is no such thing, or not for this caller.
    NotFound = "not_found", 404, Invalid, "Not found";
    /// It was there, and retention does not keep it any more.
    Pruned = "pruned", 410, Invalid, "Pruned by retention";
    /// A policy that cannot be applied; the one in force stays.
    PolicyInvalid = "policy_invalid", 422, Invalid, "The policy is wrong";
    /// No such method on this path.
    MethodNotAllowed = "method_not_allowed", 405, Invalid, "Method not allowed";
    /// It does not fit the present state, such as a request id used for another request.
    Conflict = "conflict", 409, Invalid, "Conflicts with the present state";
    /// The two ends are more than one minor version apart.
    VersionSkew = "version_skew", 426, Invalid, "Versions are too far apart";
    /// Wall time stepped: issuing has stopped.
    ClockStep = "clock_step", 503, Unreachable, "The clock stepped; issuing has stopped";
    /// The log went back in time: issuing has stopped.
    LogRewound = "log_rewound", 503, Unreachable, "The audit log went back in time; issuing has stopped";
    /// The broker began a new epoch: the agent's certificate is good for a new one, and nothing else.
    EpochEnded = "epoch_ended", 409, Denied, "The broker began a new epoch";
    /// Starting, stopping or without policy.
    NotReady = "not_ready", 503, Unreachable, "Not ready";
    /// This version does not do that.
    NotSupported = "not_supported", 501, Invalid, "Not supported by this version";
    /// No proof of identity.
    Unauthenticated = "unauthenticated", 401, Denied, "Who is asking is not proven";
    /// Proven, but not allowed to do this.
    Forbidden = "forbidden", 403, Denied, "Not allowed for this caller";
    /// A defect in this program.
    Internal = "internal", 500, Unreachable, "A defect in Ephor";
}

impl Code {
    /// Seconds to wait before trying again, for codes where that helps.
    pub const fn default_retry_after(self) -> Option<u32> {
        match (self.first_word(), self) {
            (_, Self::Internal | Self::LogRewound | Self::StoreFull) => None,
            (FirstWord::Unreachable | FirstWord::Overdue, _) => Some(1),
            (FirstWord::Pending, _) => Some(5),
            (FirstWord::Denied | FirstWord::Invalid, _) => None,
        }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let found = Self::ALL.iter().find(|code| code.as_str() == text);
        found
            .copied()
            .ok_or_else(|| UnknownCode(text.chars().take(64).collect()))
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn words_are_distinct_snake_case_and_round_trip() {
        let words: HashSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(
                code.as_str()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_')
            );
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
        assert!("Denied".parse::<Code>().is_err());
    }

    #[test]
    fn status_and_first_word_agree() {
        for code in Code::ALL {
            match code.first_word() {
                // 202 is no refusal: the answer comes later by itself.
                FirstWord::Pending => assert!(matches!(code.status(), 202 | 503), "{code}"),
                FirstWord::Denied => assert!(matches!(code.status(), 401 | 403 | 409), "{code}"),
                FirstWord::Unreachable | FirstWord::Overdue => {
                    assert!(code.status() >= 500 || code.status() == 429, "{code}");
                }
                FirstWord::Invalid => assert!(code.status() != 202, "{code}"),
            }
        }
    }
}
