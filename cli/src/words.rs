//! Small wording that several verbs share.

use std::time::Duration;

use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::Ttl;

/// `14:07:09Z`: the time of day, in UTC and saying so.
pub fn time_of_day(at: UnixMillis) -> String {
    let text = at.floor_second().to_string();
    format!("{}Z", text.get(11..19).unwrap_or(&text))
}

/// `41 ms`, or `1.2 s` from a second on; below a millisecond with one decimal.
pub fn took(time: Duration) -> String {
    let millis = time.as_millis();
    match millis {
        0 => format!("{:.1} ms", time.as_secs_f64() * 1000.0),
        1..=999 => format!("{millis} ms"),
        1000.. => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// As [`took`], for what was measured in microseconds: `0.3 ms`, `14.2 ms`.
pub fn took_finely(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.1} ms", time.as_secs_f64() * 1000.0)
    } else {
        took(time)
    }
}

/// Time from `from` to `to`, rounded to whole seconds: `5m`, `3m20s`.
pub fn span(from: UnixMillis, to: UnixMillis) -> String {
    Ttl::from_seconds(to.millis_since(from).saturating_add(500) / 1000).to_string()
}

/// `1 name`, `2 names`.
pub fn plural(count: usize, one: &str) -> String {
    if count == 1 {
        format!("1 {one}")
    } else {
        format!("{count} {one}s")
    }
}

/// Quoted for a POSIX shell, where it needs to be.
pub fn shell_quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Percent-encoded for a query (RFC 3986 §3.4): only unreserved characters stay.
pub fn query_escaped(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_and_spans() {
        let at: UnixMillis = "2026-11-21T14:07:09.999Z".parse().unwrap();
        assert_eq!(time_of_day(at), "14:07:09Z");
        assert_eq!(span(at, at.saturating_add_millis(299_700)), "5m");
        assert_eq!(span(at, at.saturating_add_millis(200_000)), "3m20s");
        assert_eq!(span(at, UnixMillis::from_millis(0)), "0s");
        assert_eq!(took(Duration::from_micros(430)), "0.4 ms");
        assert_eq!(took(Duration::from_millis(41)), "41 ms");
        assert_eq!(took(Duration::from_millis(1240)), "1.2 s");
        assert_eq!(
            (plural(1, "name").as_str(), plural(0, "name").as_str()),
            ("1 name", "0 names")
        );
    }

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for text in [
            "/tmp/plain-1.x",
            "",
            "a b",
            "it's",
            "$HOME`id`\"\\",
            "new\nline",
            "a;b",
            "~root",
            "*",
        ] {
            let out = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", shell_quoted(text))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), text);
        }
    }
}
