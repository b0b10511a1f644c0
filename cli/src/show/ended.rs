//! The line that says how an end came out.

use ephor_proto::time::UnixMillis;

use super::moment;

/// How an end came out; figures as measured, never guessed.
#[derive(Debug, Clone, Default)]
pub struct Ended<'a> {
    /// Proven dead.
    pub dead: u32,
    /// Revoked and listed, not yet expired for a verifier that never asks.
    pub listed: u32,
    /// Kinds of the listed ones, in people's words; empty when not known.
    pub listed_kinds: Vec<&'a str>,
    /// Until when such a verifier would accept one of them.
    pub listed_until: Option<UnixMillis>,
    /// Short id of the receipt.
    pub receipt: Option<String>,
}

/// `1 dead, 2 listed (token, cert, until 14:07:09Z).  Receipt r-w3n1.`
pub fn ended(end: &Ended<'_>, now: UnixMillis) -> String {
    let mut parts = Vec::new();
    if end.dead > 0 {
        parts.push(format!("{} dead", end.dead));
    }
    if end.listed > 0 {
        parts.push(format!("{} listed{}", end.listed, listed(end, now)));
    }
    let told = if parts.is_empty() {
        "No credential was out".to_owned()
    } else {
        parts.join(", ")
    };
    match &end.receipt {
        Some(receipt) => format!("{told}.  Receipt {receipt}."),
        None => format!("{told}."),
    }
}

fn listed(end: &Ended<'_>, now: UnixMillis) -> String {
    let mut kinds: Vec<&str> = Vec::new();
    for kind in &end.listed_kinds {
        if !kinds.contains(kind) {
            kinds.push(kind);
        }
    }
    let until = end
        .listed_until
        .map(|until| format!("until {}", moment(until, now)));
    let words: Vec<String> = kinds.into_iter().map(str::to_owned).chain(until).collect();
    if words.is_empty() {
        String::new()
    } else {
        format!(" ({})", words.join(", "))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_said() {
        let until: UnixMillis = "2026-11-21T14:07:09Z".parse().unwrap();
        let mut end = Ended {
            listed: 1,
            listed_kinds: vec!["token"],
            listed_until: Some(until),
            ..Ended::default()
        };
        end.receipt = Some("r-w3n1".to_owned());
        assert_eq!(
            ended(&end, until),
            "1 listed (token, until 14:07:09Z).  Receipt r-w3n1."
        );
        end.dead = 1;
        end.listed = 2;
        end.listed_kinds = vec!["token", "token"];
        assert_eq!(
            ended(&end, until),
            "1 dead, 2 listed (token, until 14:07:09Z).  Receipt r-w3n1."
        );
        assert_eq!(
            ended(
                &Ended {
                    listed: 1,
                    ..Ended::default()
                },
                until
            ),
            "1 listed."
        );
        assert_eq!(ended(&Ended::default(), until), "No credential was out.");
    }
}
