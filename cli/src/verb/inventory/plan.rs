//! What a clean-up would remove, and what it leaves to people. Pure, and wary: only what is past
//! its end goes, nothing that others use, and nothing that is owned without somebody who takes it.

use std::collections::{BTreeMap, BTreeSet};

use super::maker::Maker;
use super::quote;
use super::report::{Finding, Login, Report};
use super::seen::Prepared;
use crate::exit::Failure;

/// A clean-up.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    /// Logins to remove.
    pub remove: Vec<Removal<'a>>,
    /// Where they hold something, by name of the database.
    pub databases: BTreeMap<&'a str, Place<'a>>,
    /// What they hold in the cluster as a whole.
    pub cluster: Place<'a>,
    /// Roles that are gone or may not log in, whose sessions are to end.
    pub end: Vec<&'a Login>,
    /// Logins past their end that stay, and why.
    pub left: Vec<(&'a Login, String)>,
}

/// A login to remove.
#[derive(Debug)]
pub struct Removal<'a> {
    pub name: &'a str,
    pub login: &'a Login,
}

/// What is to be done in one place, in this order.
#[derive(Debug, Default)]
pub struct Place<'a> {
    /// Prepared transactions to roll back.
    pub prepared: Vec<&'a str>,
    /// Owners, by who takes over.
    pub owners: BTreeMap<&'a str, Vec<&'a str>>,
    /// Those that are only named there, in privileges and policies.
    pub named: Vec<&'a str>,
}

/// Plans it.
///
/// # Errors
/// When `reassign_to` is not a role that may take anything over.
pub fn plan<'a>(
    report: &'a Report,
    prepared: &'a [Prepared],
    reassign_to: Option<&'a str>,
) -> Result<Plan<'a>, Failure> {
    if let Some(role) = reassign_to {
        may_take_over(report, role)?;
    }
    let mut plan = Plan::default();
    for login in report.with(Finding::PastValidUntil) {
        let Some(name) = login.name.as_deref() else {
            continue;
        };
        let heir = reassign_to.or_else(|| only_group(report, login));
        match stays(report, login, prepared, heir) {
            Some(why) => plan.left.push((login, why)),
            None => {
                plan.hold(name, login, prepared, heir);
                plan.remove.push(Removal { name, login });
            }
        }
    }
    let orphans = [Finding::RoleGone, Finding::NotALogin];
    plan.end = orphans
        .into_iter()
        .flat_map(|finding| report.with(finding))
        .collect();
    Ok(plan)
}

impl<'a> Plan<'a> {
    /// Enters what a login holds where it holds it.
    fn hold(
        &mut self,
        name: &'a str,
        login: &'a Login,
        prepared: &'a [Prepared],
        heir: Option<&'a str>,
    ) {
        for holds in login.holds.iter().flatten() {
            let place = match holds.database.as_deref() {
                Some(database) => self.databases.entry(database).or_default(),
                None => &mut self.cluster,
            };
            match heir {
                Some(heir) if holds.owns > 0 => place.owners.entry(heir).or_default().push(name),
                Some(_) | None => place.named.push(name),
            }
        }
        for transaction in prepared
            .iter()
            .filter(|transaction| transaction.owner == name)
        {
            let place = self.databases.entry(&transaction.database).or_default();
            place.prepared.push(&transaction.gid);
        }
    }

    /// Everybody who takes something over.
    pub fn heirs(&self) -> BTreeSet<&'a str> {
        let places = self.databases.values().chain([&self.cluster]);
        places
            .flat_map(|place| place.owners.keys().copied())
            .collect()
    }
}

/// What they made runs with the heir's rights from then on: functions, views, index expressions.
fn may_take_over(report: &Report, role: &str) -> Result<(), Failure> {
    let shown = crate::show::value(role);
    let Some(powers) = report.roles.get(role) else {
        return Err(Failure::usage(format!(
            "--reassign-to {shown} is no role of {}.",
            report.server.name
        )));
    };
    if let Some(power) = powers.first() {
        return Err(Failure::usage(format!(
            "--reassign-to {shown} has {}: what a left-over wrote (functions, views, index \
             expressions) would run with that.\nName a role without it.",
            power.told()
        )));
    }
    let past = |login: &Login| login.name.as_deref() == Some(role);
    if report.with(Finding::PastValidUntil).any(past) {
        return Err(Failure::usage(format!(
            "--reassign-to {shown} is itself past VALID UNTIL."
        )));
    }
    Ok(())
}

/// The group that a login worked for, when that is not in doubt: what it made is as good as made
/// by that group.
fn only_group<'a>(report: &'a Report, login: &'a Login) -> Option<&'a str> {
    let mut harmless = login
        .groups
        .iter()
        .filter(|group| report.harmless_groups.contains(*group));
    match (harmless.next(), harmless.next()) {
        (Some(group), None) => Some(group),
        (Some(_) | None, _) => None,
    }
}

/// Why a login is not removed.
fn stays(
    report: &Report,
    login: &Login,
    prepared: &[Prepared],
    heir: Option<&str>,
) -> Option<String> {
    if login.name.as_deref() == Some(report.server.login.as_str()) {
        return Some("it made this scan".to_owned());
    }
    if login.lent.is_none() && matches!(login.maker, Maker::Person | Maker::Other) {
        return Some("whether Ephor lends it to tasks could not be seen".to_owned());
    }
    if let Some(member) = login.members.first() {
        let more = match login.members.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        return Some(format!(
            "others have its rights by membership: {member}{more}"
        ));
    }
    if login.owned() > 0 && heir.is_none() {
        let objects = crate::words::plural(
            usize::try_from(login.owned()).unwrap_or(usize::MAX),
            "object",
        );
        return Some(format!(
            "it owns {objects} ({}) and nobody is named to take over: --reassign-to ROLE",
            owned_in(login)
        ));
    }
    let holds = login.holds.iter().flatten();
    let closed = holds.clone().find(|holds| !holds.reachable);
    if let Some(database) = closed.and_then(|holds| holds.database.as_deref()) {
        return Some(format!(
            "it holds something in {database}, which takes no connections"
        ));
    }
    let mine = prepared
        .iter()
        .filter(|transaction| Some(&transaction.owner) == login.name.as_ref());
    let databases = holds
        .filter_map(|holds| holds.database.as_deref())
        .chain(mine.map(|transaction| transaction.database.as_str()));
    let odd = databases
        .into_iter()
        .find(|database| quote::connect(database).is_none());
    odd.map(|database| format!("psql cannot be sent to the database {database}"))
}

fn owned_in(login: &Login) -> String {
    let owned = login.holds.iter().flatten().filter(|holds| holds.owns > 0);
    let names = owned.map(|holds| holds.database.as_deref().unwrap_or("the cluster"));
    names.collect::<Vec<_>>().join(", ")
}
