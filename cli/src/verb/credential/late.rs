//! What is late, with all that is known of it: by whom it is to be mended is the question here.

use ephor_proto::http::admin::{Credential, Late};
use ephor_proto::time::UnixMillis;

use crate::show::{self, Column, Fields, credential_line, moment};

/// One block of lines for each.
pub(super) fn told(credentials: &[Credential], now: UnixMillis) -> String {
    let blocks = credentials.iter().map(|credential| {
        let (kind, short) = (&credential.kind, &credential.short);
        let what = credential_line(kind, short, &credential.scope);
        let fields = Fields::new(&what, &super::state(credential), show::to_terminal());
        lines(fields, credential, now).text()
    });
    blocks.collect::<Vec<_>>().join("\n")
}

/// What is known of why it is late, below whatever was said before.
pub(super) fn lines(fields: Fields, credential: &Credential, now: UnixMillis) -> Fields {
    let Some(late) = &credential.late else {
        // A broker from before there was more to say.
        return fields.line("overdue", credential.overdue.clone());
    };
    fields
        .line("target", target(late))
        .line("overdue", reason(late).to_owned())
        .line("tried", tried(credential, late, now))
        .line("next try", next_try(late, now))
        .line("accepted", late.accepted.clone())
}

fn target(late: &Late) -> String {
    match late.target_owner.as_str() {
        "" => late.target.clone(),
        owner => format!("{}, {owner} answers for it", late.target),
    }
}

fn reason(late: &Late) -> &str {
    match late.reason.as_str() {
        "" => "no answer yet",
        reason => reason,
    }
}

fn tried(credential: &Credential, late: &Late, now: UnixMillis) -> String {
    let times = match late.attempts {
        1 => "once".to_owned(),
        more => format!("{more} times"),
    };
    match credential.revoked_at {
        Some(at) => format!("{times} since {}", moment(at, now)),
        None => times,
    }
}

fn next_try(late: &Late, now: UnixMillis) -> Option<String> {
    let at = late.next_try?;
    Some(match at > now {
        true => format!(
            "{}, in {} s, and on until it is done",
            moment(at, now),
            at.millis_since(now).div_ceil(1000)
        ),
        false => "now, and on until it is done".to_owned(),
    })
}

/// The columns of a file.
pub(super) fn columns() -> [Column<Credential>; 6] {
    let of = |cell: fn(&Late) -> String| {
        move |credential: &Credential| credential.late.as_ref().map(cell).unwrap_or_default()
    };
    [
        Column::new("target", of(|late| late.target.clone())),
        Column::new("target_owner", of(|late| late.target_owner.clone())),
        Column::new("overdue_reason", of(|late| late.reason.clone())),
        Column::new("attempts", of(|late| late.attempts.to_string())),
        Column::new(
            "next_try",
            of(|late| late.next_try.map(|at| at.to_string()).unwrap_or_default()),
        ),
        Column::new(
            "accepted",
            of(|late| late.accepted.clone().unwrap_or_default()),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_known_is_said_and_that_it_goes_on() {
        let now = UnixMillis::from_unix_seconds(1_700_000_100);
        let late = Credential {
            kind: "postgres".to_owned(),
            scope: "eph_orders_db".to_owned(),
            revoked_at: Some(UnixMillis::from_unix_seconds(1_700_000_000)),
            overdue: Some("words".to_owned()),
            late: Some(Late {
                target: "orders".to_owned(),
                target_owner: "team:dba".to_owned(),
                reason: "no route to db1".to_owned(),
                attempts: 14,
                next_try: Some(UnixMillis::from_unix_seconds(1_700_000_148)),
                accepted: None,
            }),
            ..super::super::sample("revoking")
        };
        let text = told(&[late.clone(), late], now);
        let first = text.split("\n\n").next().unwrap_or_default();
        assert_eq!(
            first.lines().skip(1).collect::<Vec<_>>(),
            [
                "  target       orders, team:dba answers for it",
                "  overdue      no route to db1",
                "  tried        14 times since 22:13:20Z",
                "  next try     22:15:48Z, in 48 s, and on until it is done",
            ]
        );
        assert!(first.contains("revoking, overdue"), "{text}");
        assert_eq!(text.matches("next try").count(), 2);
    }
}
