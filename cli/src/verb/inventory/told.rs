//! The report as people read it: a line for each thing to look at, none longer than a terminal.

use std::collections::HashMap;

use super::maker::{self, Maker};
use super::report::{Finding, Login, Report};
use crate::show;
use crate::words::plural;

/// How many names stand in a line before `N more`.
const NAMES: usize = 2;

/// The whole text.
pub fn text(report: &Report, fit: Option<usize>) -> String {
    let mut text = headline(report, fit);
    for line in lines(report) {
        text.push_str(&cut(&line, fit));
        text.push('\n');
    }
    for not_seen in &report.not_seen {
        text.push_str(&format!("  not seen: {}\n", show::value(not_seen)));
    }
    let remove = if report.is_clean() {
        ""
    } else {
        "  SQL to remove them: --sql."
    };
    text.push_str(&format!(
        "Nothing was changed.{remove}  For a review: -o csv\n"
    ));
    text
}

/// `db1: 231 logins; 214 look like Vault's (v-...), 3 like people, 14 other`; what does not fit
/// goes on below
fn headline(report: &Report, fit: Option<usize>) -> String {
    let logins: Vec<&Login> = report
        .logins
        .iter()
        .filter(|login| is_login(login))
        .collect();
    let count =
        |is: &dyn Fn(&Maker) -> bool| logins.iter().filter(|login| is(&login.maker)).count();
    let vault = count(&|maker| matches!(maker, Maker::Vault { .. }));
    let person = count(&|maker| *maker == Maker::Person);
    let looks = [(vault, "Vault's (v-...)"), (person, "people")];
    let mut parts: Vec<String> = Vec::new();
    for (count, like) in looks.into_iter().filter(|(count, _)| *count > 0) {
        let verb = match (parts.is_empty(), count) {
            (false, _) => "like",
            (true, 1) => "looks like",
            (true, _) => "look like",
        };
        parts.push(format!("{count} {verb} {like}"));
    }
    for (installation, count) in installations(&logins) {
        parts.push(format!("{count} by Ephor {installation}"));
    }
    let others = [
        (count(&|maker| *maker == Maker::EphorsOwn), "Ephor's own"),
        (count(&|maker| *maker == Maker::Teleport), "by Teleport"),
        (count(&|maker| *maker == Maker::Server), "the server's own"),
        (count(&|maker| *maker == Maker::Other), "other"),
    ];
    let others = others.into_iter().filter(|(count, _)| *count > 0);
    parts.extend(others.map(|(count, what)| format!("{count} {what}")));
    if parts.is_empty() {
        parts.push("none".to_owned());
    }
    let mut line = format!(
        "{}: {};",
        show::value(&report.server.name),
        plural(logins.len(), "login")
    );
    let mut text = String::new();
    let last = parts.len() - 1;
    for (at, part) in parts.into_iter().enumerate() {
        let part = format!(" {part}{}", if at == last { "" } else { "," });
        if fit.is_some_and(|fit| line.chars().count() + part.chars().count() > fit) {
            text.push_str(&format!("{line}\n "));
            line.clear();
        }
        line.push_str(&part);
    }
    format!("{text}{line}\n")
}

fn is_login(login: &Login) -> bool {
    !login.has(Finding::RoleGone) && !login.has(Finding::NotALogin)
}

fn installations(logins: &[&Login]) -> Vec<(String, usize)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for installation in logins
        .iter()
        .filter_map(|login| login.installation.as_deref())
    {
        *counts.entry(installation).or_default() += 1;
    }
    let mut counts: Vec<_> = counts
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count))
        .collect();
    counts.sort();
    counts
}

fn lines(report: &Report) -> Vec<String> {
    let names = Names::of(report);
    let past: Vec<&Login> = report.with(Finding::PastValidUntil).collect();
    let oldest = past.iter().filter_map(|login| login.valid_until).min();
    let oldest = oldest.map(|at| format!("oldest {}", day(at)));
    let mut lines = vec![line(
        "past VALID UNTIL, still there",
        past.len(),
        &oldest.unwrap_or_default(),
    )];
    let sees_sessions = report.logins.iter().all(|login| login.sessions.is_some());
    if sees_sessions {
        lines.extend(connected(report, &names));
    }
    let left: Vec<&Login> = report.with(Finding::LeftByDev).collect();
    if !left.is_empty() {
        lines.push(line(
            "left by a run of ephor dev --pg",
            left.len(),
            &names.some(&left),
        ));
    }
    lines.push(never(report));
    lines.extend(powers(report, &names));
    let no_owner: Vec<&Login> = report.with(Finding::NoOwner).collect();
    if !no_owner.is_empty() {
        lines.push(line(
            "no owner in a comment",
            no_owner.len(),
            &names.some(&no_owner),
        ));
    }
    lines
}

/// Who is connected and should not be.
fn connected(report: &Report, names: &Names) -> Vec<String> {
    let mut past: Vec<&Login> = report.with(Finding::ConnectedPastValidUntil).collect();
    past.sort_by_key(|login| std::cmp::Reverse(login.connected_past_seconds));
    let longest = past
        .first()
        .map(|login| match login.connected_past_seconds {
            Some(seconds) => format!("{}, for {}", names.shown(login), long(seconds)),
            None => names.some(&past),
        });
    let mut lines = vec![line(
        "past VALID UNTIL, connected now",
        past.len(),
        &longest.unwrap_or_default(),
    )];
    let gone: Vec<&Login> = report.with(Finding::RoleGone).collect();
    if let Some(first) = gone.first() {
        let pids = first
            .sessions
            .iter()
            .flatten()
            .map(|session| session.pid.to_string());
        let pids: Vec<String> = pids.collect();
        let detail = format!("role {}, pid {}", first.oid, pids.join(" "));
        lines.push(line("role dropped, connected now", gone.len(), &detail));
    }
    let not: Vec<&Login> = report.with(Finding::NotALogin).collect();
    if !not.is_empty() {
        lines.push(line("NOLOGIN, connected now", not.len(), &names.some(&not)));
    }
    lines
}

fn never(report: &Report) -> String {
    let never: Vec<&Login> = report.with(Finding::NeverExpires).collect();
    let owned = never.iter().filter(|login| login.owner.is_some()).count();
    let detail = match (never.len(), owned) {
        (0, _) => String::new(),
        (_, 0) => "no owner known".to_owned(),
        (all, owned) if all == owned => "owner known of each".to_owned(),
        (all, owned) => format!("no owner known of {}", all.saturating_sub(owned)),
    };
    line("never expires", never.len(), &detail)
}

fn powers(report: &Report, names: &Names) -> Vec<String> {
    let with = |rights: &[&str]| -> Vec<&Login> {
        let has = |login: &&Login| {
            login
                .powers
                .iter()
                .any(|power| rights.contains(&power.right))
        };
        report.with(Finding::OverPrivileged).filter(has).collect()
    };
    let strongest = with(&["SUPERUSER", "CREATEROLE"]);
    let mut lines = vec![line(
        "superuser or CREATEROLE",
        strongest.len(),
        &names.some(&strongest),
    )];
    let rest: [(&str, &[&str]); 2] = [
        ("server's files or programs", &super::reach::SERVER_ACCESS),
        (
            "CREATEDB, REPLICATION, BYPASSRLS",
            &["CREATEDB", "REPLICATION", "BYPASSRLS"],
        ),
    ];
    for (label, rights) in rest {
        let found = with(rights);
        if !found.is_empty() {
            lines.push(line(label, found.len(), &names.some(&found)));
        }
    }
    lines
}

fn line(label: &str, count: usize, detail: &str) -> String {
    let line = format!("  {label:<32}{count:>5}   {}", show::value(detail));
    line.trim_end().to_owned()
}

/// Short forms of names, where they are unique.
struct Names<'a>(HashMap<&'a str, usize>);

impl<'a> Names<'a> {
    fn of(report: &'a Report) -> Self {
        let mut counts = HashMap::new();
        for name in report
            .logins
            .iter()
            .filter_map(|login| login.name.as_deref())
        {
            *counts.entry(maker::short(name)).or_default() += 1;
        }
        Self(counts)
    }

    fn shown<'b>(&self, login: &'b Login) -> &'b str {
        let name = login.name.as_deref().unwrap_or("(dropped)");
        let short = maker::short(name);
        if self.0.get(short) == Some(&1) {
            short
        } else {
            name
        }
    }

    /// `a, b, 2 more`
    fn some(&self, logins: &[&Login]) -> String {
        let mut told: Vec<String> = logins
            .iter()
            .take(NAMES)
            .map(|login| self.shown(login).to_owned())
            .collect();
        if logins.len() > NAMES {
            told.push(format!("{} more", logins.len() - NAMES));
        }
        told.join(", ")
    }
}

/// `2024-03-11`
fn day(at: ephor_proto::time::UnixMillis) -> String {
    at.to_string()
        .split('T')
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// `41 days`
fn long(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        172_800.. => (seconds / 86_400, "day"),
    };
    plural(usize::try_from(count).unwrap_or(usize::MAX), unit)
}

fn cut(line: &str, fit: Option<usize>) -> String {
    match fit {
        Some(fit) if line.chars().count() > fit => {
            let kept: String = line.chars().take(fit.saturating_sub(1)).collect();
            format!("{kept}…")
        }
        Some(_) | None => line.to_owned(),
    }
}
