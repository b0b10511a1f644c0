//! Times as people read them: in UTC and saying so, like the audit log they belong to.

use ephor_proto::time::UnixMillis;

/// `14:07:09Z` today, else `2026-11-21 14:07:09Z`.
pub fn moment(at: UnixMillis, now: UnixMillis) -> String {
    let (day, time) = parts(at);
    if day == parts(now).0 {
        format!("{time}Z")
    } else {
        format!("{day} {time}Z")
    }
}

/// For a column: `14:07:09Z` today, else `2026-11-21`.
pub fn brief(at: UnixMillis, now: UnixMillis) -> String {
    let (day, time) = parts(at);
    if day == parts(now).0 {
        format!("{time}Z")
    } else {
        day
    }
}

/// Day and time of day, to the second.
fn parts(at: UnixMillis) -> (String, String) {
    let text = at.to_string();
    let (day, time) = text.split_once('T').unwrap_or((&text, ""));
    (day.to_owned(), time.get(..8).unwrap_or(time).to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn today_is_a_time_and_another_day_says_which() {
        let now: UnixMillis = "2026-11-21T14:07:09.999Z".parse().unwrap();
        let today: UnixMillis = "2026-11-21T00:00:00Z".parse().unwrap();
        let before: UnixMillis = "2026-11-20T23:59:59.999Z".parse().unwrap();
        assert_eq!(
            (moment(now, now).as_str(), brief(now, now).as_str()),
            ("14:07:09Z", "14:07:09Z")
        );
        assert_eq!(
            (moment(today, now).as_str(), brief(today, now).as_str()),
            ("00:00:00Z", "00:00:00Z")
        );
        assert_eq!(
            (moment(before, now).as_str(), brief(before, now).as_str()),
            ("2026-11-20 23:59:59Z", "2026-11-20")
        );
    }
}
