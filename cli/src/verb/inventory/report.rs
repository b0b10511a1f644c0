//! What was found: each login with what is known and what is wrong about it. Pure.

use std::collections::{HashMap, HashSet};

use ephor_proto::time::UnixMillis;
use serde::Serialize;

use super::maker::{self, Maker};
use super::owner::owner;
use super::reach::{Graph, Power};
use super::seen::{Role, Seen, Server, Session, ValidUntil};

/// The role that `initdb` makes, and that cannot be dropped (`BOOTSTRAP_SUPERUSERID`).
const BOOTSTRAP: u32 = 10;
/// Later than this after now is never: 20 years.
const NEVER_MILLIS: u64 = 20 * 365 * 24 * 3600 * 1000;

/// What is wrong about a login, or about a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// It should be gone.
    PastValidUntil,
    /// And it is connected since.
    ConnectedPastValidUntil,
    /// No end is set.
    NeverExpires,
    /// An attribute, its own or through a group, or the server's files and programs.
    OverPrivileged,
    /// No comment names who answers for it.
    NoOwner,
    /// A session of a role that is gone.
    RoleGone,
    /// A session of a role that may not log in any more.
    NotALogin,
    /// What a run of `ephor dev --pg` logged in as: shut, or nobody is connected as it any more.
    LeftByDev,
}

impl Finding {
    /// Whether it is something left over, which should not be there: then the check does not hold.
    pub const fn is_left_over(self) -> bool {
        match self {
            Self::PastValidUntil
            | Self::ConnectedPastValidUntil
            | Self::RoleGone
            | Self::NotALogin
            | Self::LeftByDev => true,
            Self::NeverExpires | Self::OverPrivileged | Self::NoOwner => false,
        }
    }

    /// As JSON and CSV have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::PastValidUntil => "past_valid_until",
            Self::ConnectedPastValidUntil => "connected_past_valid_until",
            Self::NeverExpires => "never_expires",
            Self::OverPrivileged => "over_privileged",
            Self::NoOwner => "no_owner",
            Self::RoleGone => "role_gone",
            Self::NotALogin => "not_a_login",
            Self::LeftByDev => "left_by_dev",
        }
    }
}

/// A login, or a role that is none (any more) and has sessions.
#[derive(Debug, Serialize)]
pub struct Login {
    /// Its name; none when the role is gone.
    pub name: Option<String>,
    pub oid: u32,
    pub maker: Maker,
    /// Which broker of ours made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub installation: Option<String>,
    /// When, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_at: Option<UnixMillis>,
    /// Whether a broker of ours lends it to tasks; absent when that could not be seen.
    pub lent: Option<bool>,
    /// Whether it may log in; one that is past its end may have been shut already.
    pub can_login: bool,
    /// Absent: never.
    pub valid_until: Option<UnixMillis>,
    pub owner: Option<String>,
    pub comment: Option<String>,
    pub findings: Vec<Finding>,
    /// None when it was not allowed to see them.
    pub sessions: Option<Vec<SessionTold>>,
    /// How long it is connected past its end; absent when it was not allowed to see that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connected_past_seconds: Option<u64>,
    pub powers: Vec<Power>,
    /// Groups that it is a direct member of.
    pub groups: Vec<String>,
    /// Roles that are direct members of it.
    pub members: Vec<String>,
    /// What it holds, by database; none when it was not allowed to see it.
    pub holds: Option<Vec<Holds>>,
}

/// A session, as it is told.
#[derive(Debug, Clone, Serialize)]
pub struct SessionTold {
    pub pid: i32,
    pub database: Option<String>,
    pub since: Option<UnixMillis>,
    pub from: Option<String>,
}

/// What a role holds in a database.
#[derive(Debug, Clone, Serialize)]
pub struct Holds {
    /// None: in the cluster as a whole.
    pub database: Option<String>,
    pub owns: u64,
    pub named_in: u64,
    /// Whether anybody can connect there, to take it away.
    #[serde(skip)]
    pub reachable: bool,
}

impl Login {
    pub fn has(&self, finding: Finding) -> bool {
        self.findings.contains(&finding)
    }

    /// Objects that it owns, anywhere.
    pub fn owned(&self) -> u64 {
        self.holds.iter().flatten().map(|holds| holds.owns).sum()
    }

    pub fn session_count(&self) -> usize {
        self.sessions.as_ref().map_or(0, Vec::len)
    }
}

/// What was found on a server.
#[derive(Debug)]
pub struct Report {
    pub server: Server,
    /// Logins by name, then sessions of roles that are gone or no logins.
    pub logins: Vec<Login>,
    /// Sentences about what could not be seen.
    pub not_seen: Vec<String>,
    /// Groups that could take over what a login owns: no login, no power, not the server's own.
    pub harmless_groups: HashSet<String>,
    /// Every role, for what is asked by name.
    pub roles: HashMap<String, Vec<Power>>,
}

impl Report {
    pub fn with(&self, finding: Finding) -> impl Iterator<Item = &Login> {
        self.logins.iter().filter(move |login| login.has(finding))
    }

    /// Whether nothing is left over.
    pub fn is_clean(&self) -> bool {
        let findings = self.logins.iter().flat_map(|login| &login.findings);
        !findings.copied().any(Finding::is_left_over)
    }
}

/// Judges what was seen.
pub fn report(seen: &Seen) -> Report {
    let members = seen.members.as_deref().unwrap_or_default();
    let graph = Graph::new(&seen.roles, members);
    let parts = Parts::of(seen);
    let mut logins: Vec<Login> = seen
        .roles
        .iter()
        .filter(|role| role.can_login || parts.is_worth_telling(role, seen.server.at))
        .map(|role| login(seen, role, &graph, &parts))
        .collect();
    logins.sort_by_key(|login| login.has(Finding::NotALogin));
    logins.extend(gone(seen, &parts));
    let powers: HashMap<String, Vec<Power>> = seen
        .roles
        .iter()
        .map(|role| (role.name.clone(), graph.powers(role)))
        .collect();
    let is_harmless = |role: &&Role| {
        !role.can_login
            && !role.name.starts_with("pg_")
            && powers.get(&role.name).is_some_and(Vec::is_empty)
            && !maker::is_ephors_role(&role.name)
            && maker::maker(&role.name, role.oid == BOOTSTRAP, &[]) != Maker::Server
    };
    Report {
        server: seen.server.clone(),
        logins,
        not_seen: not_seen(seen),
        harmless_groups: seen
            .roles
            .iter()
            .filter(is_harmless)
            .map(|role| role.name.clone())
            .collect(),
        roles: powers,
    }
}

/// Rows by role.
struct Parts<'a> {
    sessions: HashMap<u32, Vec<&'a Session>>,
    holds: HashMap<u32, Vec<Holds>>,
    members: HashMap<u32, Vec<String>>,
    /// What brokers of ours log in as.
    brokers: HashSet<u32>,
    /// What they lend; `None` when that could not be seen.
    lent: Option<HashSet<u32>>,
}

impl<'a> Parts<'a> {
    fn of(seen: &'a Seen) -> Self {
        let mut sessions: HashMap<u32, Vec<&Session>> = HashMap::new();
        for session in seen.sessions.iter().flatten() {
            sessions.entry(session.role).or_default().push(session);
        }
        let mut holds: HashMap<u32, Vec<Holds>> = HashMap::new();
        for holding in seen.holdings.iter().flatten() {
            let database = holding.database.as_ref();
            holds.entry(holding.role).or_default().push(Holds {
                database: database.map(|database| database.name.clone()),
                owns: holding.owns,
                named_in: holding.named_in,
                reachable: database.is_none_or(|database| database.allows_connections),
            });
        }
        for held in holds.values_mut() {
            held.sort_by(|a, b| a.database.cmp(&b.database));
        }
        let names: HashMap<u32, &str> = seen
            .roles
            .iter()
            .map(|role| (role.oid, role.name.as_str()))
            .collect();
        let mut members: HashMap<u32, Vec<String>> = HashMap::new();
        for member in seen.members.iter().flatten() {
            let name = names.get(&member.member).copied();
            let of_group = members.entry(member.group).or_default();
            of_group.extend(name.map(str::to_owned));
        }
        Self {
            sessions,
            holds,
            members,
            brokers: seen.brokers.iter().flatten().copied().collect(),
            lent: seen
                .lent
                .as_ref()
                .map(|lent| lent.iter().copied().collect()),
        }
    }

    /// Whether a role is one of Ephor itself. A name alone hides nobody who is connected.
    fn is_ephors_own(&self, role: &Role) -> bool {
        self.brokers.contains(&role.oid)
            || (!role.can_login && maker::is_ephors_role(&role.name))
            || (maker::is_of_dev(&role.name) && !self.sessions.contains_key(&role.oid))
    }

    /// Of a role that is no login: whether it was one, shut and left behind, or is connected.
    fn is_worth_telling(&self, role: &Role, now: UnixMillis) -> bool {
        let is_past = matches!(role.valid_until, ValidUntil::At(until) if until < now);
        let is_group = self
            .members
            .get(&role.oid)
            .is_some_and(|members| !members.is_empty());
        let is_shut = !role.can_login && maker::is_of_dev(&role.name);
        self.sessions.contains_key(&role.oid) || (is_past && !is_group) || is_shut
    }

    fn sessions_of(&self, role: u32) -> impl Iterator<Item = &'a Session> {
        self.sessions.get(&role).into_iter().flatten().copied()
    }
}

fn login(seen: &Seen, role: &Role, graph: &Graph<'_>, parts: &Parts<'_>) -> Login {
    let groups: Vec<&str> = graph
        .direct(role.oid)
        .map(|group| group.name.as_str())
        .collect();
    let maker = match parts.is_ephors_own(role) {
        true => Maker::EphorsOwn,
        false => maker::maker(&role.name, role.oid == BOOTSTRAP, &groups),
    };
    let comment = role.comment.clone().filter(|comment| !comment.is_empty());
    let mut login = Login {
        name: Some(role.name.clone()),
        oid: role.oid,
        installation: maker.installation().map(str::to_owned),
        made_at: maker.made_at(),
        lent: parts.lent.as_ref().map(|lent| lent.contains(&role.oid)),
        can_login: role.can_login,
        valid_until: match role.valid_until {
            ValidUntil::Never => None,
            ValidUntil::At(at) => Some(at),
        },
        owner: comment.as_deref().and_then(owner).map(str::to_owned),
        comment,
        findings: Vec::new(),
        sessions: seen
            .sessions
            .is_some()
            .then(|| parts.sessions_of(role.oid).map(told).collect()),
        connected_past_seconds: None,
        powers: graph.powers(role),
        groups: groups.into_iter().map(str::to_owned).collect(),
        members: parts.members.get(&role.oid).cloned().unwrap_or_default(),
        holds: seen
            .holdings
            .is_some()
            .then(|| parts.holds.get(&role.oid).cloned().unwrap_or_default()),
        maker,
    };
    judge(&mut login, seen.server.at);
    login
}

/// Fills in the findings.
fn judge(login: &mut Login, now: UnixMillis) {
    if login.maker == Maker::Server {
        return;
    }
    if login.maker == Maker::EphorsOwn {
        return judge_ephors_own(login);
    }
    // The end of one that is lent is its broker's, which shuts it between tasks.
    let is_lent = login.lent == Some(true);
    let is_past = !is_lent && login.valid_until.is_some_and(|until| until < now);
    if !login.can_login && !is_past {
        if !is_lent || login.session_count() > 0 {
            login.findings.push(Finding::NotALogin);
        }
        return;
    }
    match login.valid_until {
        _ if is_lent => {}
        Some(until) if until < now => {
            login.findings.push(Finding::PastValidUntil);
            if login.session_count() > 0 {
                login.findings.push(Finding::ConnectedPastValidUntil);
                login.connected_past_seconds = connected_past(login, until, now);
            }
        }
        Some(until) if until.millis_since(now) < NEVER_MILLIS => {}
        Some(_) | None => login.findings.push(Finding::NeverExpires),
    }
    if !login.powers.is_empty() {
        login.findings.push(Finding::OverPrivileged);
    }
    // What a program makes and takes away has that program for an owner.
    if login.owner.is_none() && matches!(login.maker, Maker::Person | Maker::Other) {
        login.findings.push(Finding::NoOwner);
    }
}

/// It goes with its installation, not by a date. The broker of a `dev` that runs is connected; no other
/// installation can be told from one whose broker is stopped.
fn judge_ephors_own(login: &mut Login) {
    let is_of_dev = login.name.as_deref().is_some_and(maker::is_of_dev);
    let is_unused = login.sessions.as_ref().is_some_and(Vec::is_empty);
    if is_of_dev && (is_unused || !login.can_login) {
        login.findings.push(Finding::LeftByDev);
    }
    if !login.can_login && login.session_count() > 0 {
        login.findings.push(Finding::NotALogin);
    }
    if !login.powers.is_empty() {
        login.findings.push(Finding::OverPrivileged);
    }
}

/// How long the longest of its sessions has gone on since the end; when they began is not shown to
/// everybody.
fn connected_past(login: &Login, until: UnixMillis, now: UnixMillis) -> Option<u64> {
    let past = |session: &SessionTold| {
        let since = session.since?;
        Some(now.millis_since(since.max(until)) / 1000)
    };
    login.sessions.iter().flatten().filter_map(past).max()
}

/// Sessions whose role was dropped under them.
fn gone(seen: &Seen, parts: &Parts<'_>) -> Vec<Login> {
    let known: HashSet<u32> = seen.roles.iter().map(|role| role.oid).collect();
    let mut gone: Vec<u32> = parts
        .sessions
        .keys()
        .copied()
        .filter(|role| !known.contains(role))
        .collect();
    gone.sort_unstable();
    let login = |oid| Login {
        name: None,
        oid,
        maker: Maker::Other,
        installation: None,
        made_at: None,
        lent: Some(false),
        can_login: false,
        valid_until: None,
        owner: None,
        comment: None,
        findings: vec![Finding::RoleGone],
        sessions: Some(parts.sessions_of(oid).map(told).collect()),
        connected_past_seconds: None,
        powers: Vec::new(),
        groups: Vec::new(),
        members: Vec::new(),
        holds: None,
    };
    gone.into_iter().map(login).collect()
}

fn told(session: &Session) -> SessionTold {
    SessionTold {
        pid: session.pid,
        database: session.database.clone(),
        since: session.since,
        from: session.from.clone(),
    }
}

fn not_seen(seen: &Seen) -> Vec<String> {
    let login = &seen.server.login;
    let mut not_seen = Vec::new();
    let mut refused = |part: bool, what: &str, then: &str| {
        if part {
            not_seen.push(format!("{what}: refused to {login}, or too slow; {then}"));
        }
    };
    refused(
        seen.members.is_none(),
        "memberships",
        "rights through groups are not told",
    );
    refused(
        seen.sessions.is_none(),
        "sessions",
        "who is connected is not told",
    );
    refused(
        seen.holdings.is_none(),
        "what roles own",
        "--sql cannot be made",
    );
    refused(
        seen.prepared.is_none(),
        "prepared transactions",
        "--sql cannot be made",
    );
    refused(
        seen.brokers.is_none(),
        "who may call Ephor's functions",
        "what brokers log in as is not told from others' logins",
    );
    refused(
        seen.hidden.is_none(),
        "locks",
        "a backend that is still signing in is not told",
    );
    if seen.lent.is_none() {
        not_seen.push(format!(
            "which roles Ephor lends to tasks: refused to {login}, too slow, or its tables are not Ephor's own; \
             --sql leaves alone what could be one"
        ));
    }
    if seen.sessions.is_some() && !seen.sees_sessions {
        not_seen.push(format!(
            "age and origin of sessions: {login} is not in pg_read_all_stats"
        ));
    }
    for pid in seen.hidden.iter().flatten() {
        not_seen.push(format!(
            "pid {pid} holds locks and is no listed session: signing in, or hidden"
        ));
    }
    match (seen.server.standby, seen.server.standbys) {
        (true, _) => not_seen.push("sessions on the primary: this is a standby".to_owned()),
        (false, Some(0) | None) => {}
        (false, Some(1)) => not_seen.push("sessions on its standby: scan that one, too".to_owned()),
        (false, Some(count)) => {
            not_seen.push(format!(
                "sessions on its {count} standbys: scan each of them, too"
            ));
        }
    }
    not_seen
}
