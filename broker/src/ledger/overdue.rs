//! That an end is late: what was known of it when that was last stored. Its column is JSON; the
//! broker's memory may know a later try.

use std::fmt;

use ephor_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Overdue {
    /// Target that it waits for; empty for what ends here.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// Who answers for the target.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// What went wrong at the last try; empty while the first one is under way.
    pub why: String,
    /// Tries so far, those of an earlier process included.
    #[serde(default)]
    pub attempts: u32,
    /// When it is tried again, unless its target works before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try: Option<UnixMillis>,
    /// Who answers for that it was never shown to be dead, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<String>,
}

impl Overdue {
    /// As it is stored.
    ///
    /// # Errors
    /// Never for what was made here; a defect otherwise.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// As it was stored. What cannot be read is late all the same.
    #[must_use]
    pub fn of_json(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|_| Self {
            why: text.to_owned(),
            ..Self::default()
        })
    }
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(accepted) = &self.accepted {
            write!(f, "{accepted}; before: ")?;
        }
        let why = match self.why.as_str() {
            "" => "no answer yet",
            why => why,
        };
        if !self.target.is_empty() && !why.contains(&self.target) {
            write!(f, "target {}: ", self.target)?;
        }
        write!(f, "{why}; tried {} times, tried on", self.attempts)?;
        if let Some(next_try) = self.next_try {
            write!(f, ", next at {next_try}")?;
        }
        match self.owner.as_str() {
            "" => Ok(()),
            owner => write!(f, "; {owner} answers for the target"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_stored_and_what_cannot_be_read_is_late_too() {
        let late = Overdue {
            target: "orders".to_owned(),
            owner: "team:dba".to_owned(),
            why: "no route".to_owned(),
            attempts: 7,
            next_try: Some(UnixMillis::from_millis(5)),
            accepted: None,
        };
        assert_eq!(Overdue::of_json(&late.to_json().unwrap()), late);
        assert_eq!(
            late.to_string(),
            "target orders: no route; tried 7 times, tried on, next at 1970-01-01T00:00:00.005Z; team:dba answers for the target"
        );
        let odd = Overdue::of_json("the store was full");
        assert_eq!(
            odd.to_string(),
            "the store was full; tried 0 times, tried on"
        );
    }
}
