//! From what was seen to what is said and written, without a server; `cli/tests/cli/inventory.rs`
//! has the real ones.

use ephor_proto::time::UnixMillis;

use super::report::{Finding, Login, Report, report};
use super::seen::{
    Attributes, Database, Holding, Member, Prepared, Role, Seen, Server, Session, ValidUntil,
};
use super::{plan, script, told};

const NOW: &str = "2026-11-21T12:00:00Z";

fn at(text: &str) -> UnixMillis {
    text.parse().unwrap()
}

fn until(text: &str) -> ValidUntil {
    ValidUntil::At(at(text))
}

fn login(oid: u32, name: &str, valid_until: ValidUntil) -> Role {
    Role {
        oid,
        name: name.to_owned(),
        can_login: true,
        valid_until,
        ..Role::default()
    }
}

fn group(oid: u32, name: &str) -> Role {
    Role {
        can_login: false,
        ..login(oid, name, ValidUntil::Never)
    }
}

fn member(member: u32, group: u32) -> Member {
    Member {
        group,
        member,
        inherit: true,
        set: true,
        admin: false,
    }
}

fn session(pid: i32, role: u32, since: Option<&str>) -> Session {
    Session {
        pid,
        role,
        database: Some("orders".to_owned()),
        since: since.map(at),
        from: None,
    }
}

fn holding(role: u32, database: Option<&str>, owns: u64) -> Holding {
    Holding {
        role,
        database: database.map(|name| Database {
            name: name.to_owned(),
            allows_connections: name != "closed",
        }),
        owns,
        named_in: 1,
    }
}

/// Everything visible, nothing there.
fn seen(roles: Vec<Role>) -> Seen {
    Seen {
        server: Server {
            address: "db1:5432".to_owned(),
            name: "db1".to_owned(),
            version: 150_014,
            database: "orders".to_owned(),
            login: "ro".to_owned(),
            standby: false,
            standbys: Some(0),
            at: at(NOW),
        },
        roles,
        members: Some(Vec::new()),
        sessions: Some(Vec::new()),
        holdings: Some(Vec::new()),
        prepared: Some(Vec::new()),
        lent: Some(Vec::new()),
        brokers: Some(Vec::new()),
        hidden: Some(Vec::new()),
        sees_sessions: true,
    }
}

fn found(report: &Report, name: &str) -> Vec<Finding> {
    let is = |login: &&Login| login.name.as_deref() == Some(name);
    report.logins.iter().find(is).unwrap().findings.clone()
}

#[test]
fn each_is_judged_by_its_end() {
    let owned = Role {
        comment: Some("owner: team:x".to_owned()),
        ..login(1, "owned", ValidUntil::Never)
    };
    let roles = vec![
        owned,
        login(2, "past", until("2026-11-21T11:59:59Z")),
        login(3, "soon", until("2026-11-21T12:00:01Z")),
        login(4, "far", until("2099-01-01T00:00:00Z")),
        login(10, "postgres", ValidUntil::Never),
        login(5, "rdsadmin", ValidUntil::Never),
        login(
            6,
            "v-a-b-x81zPq0aB3cD4eF5gH6i-1710115200",
            ValidUntil::Never,
        ),
        group(7, "nobody_connected"),
        Role {
            can_login: false,
            ..login(8, "shut", until("2026-01-01T00:00:00Z"))
        },
        Role {
            can_login: false,
            ..login(9, "group_that_was_a_login", until("2026-01-01T00:00:00Z"))
        },
    ];
    let mut seen = seen(roles);
    seen.members = Some(vec![member(3, 9)]);
    let report = report(&seen);
    assert_eq!(found(&report, "owned"), [Finding::NeverExpires]);
    assert_eq!(
        found(&report, "past"),
        [Finding::PastValidUntil, Finding::NoOwner]
    );
    assert_eq!(found(&report, "soon"), [Finding::NoOwner]);
    assert_eq!(
        found(&report, "far"),
        [Finding::NeverExpires, Finding::NoOwner]
    );
    assert!(found(&report, "postgres").is_empty() && found(&report, "rdsadmin").is_empty());
    assert_eq!(
        found(&report, "v-a-b-x81zPq0aB3cD4eF5gH6i-1710115200"),
        [Finding::NeverExpires],
        "its owner is who runs Vault"
    );
    assert_eq!(
        found(&report, "shut"),
        [Finding::PastValidUntil, Finding::NoOwner],
        "a clean-up that stopped half-way is found again"
    );
    assert_eq!(report.logins.len(), 8, "a group is no login");
    assert!(!report.is_clean());
}

/// Shut by a clean-up that failed, it is found all the same; of who is connected a name proves nothing.
#[test]
fn what_dev_left_is_known_by_its_name_only_while_nobody_is_connected() {
    let shut = Role {
        can_login: false,
        ..login(1, "ephor_broker_00c0ffee", ValidUntil::Never)
    };
    let roles = vec![
        shut,
        login(2, "ephor_broker_0badcafe", ValidUntil::Never),
        login(3, "ephor_broker_0badcaf", ValidUntil::Never),
        login(4, "ephor_broker_0BADCAFE", ValidUntil::Never),
        login(5, "ephor_broker_11111111", ValidUntil::Never),
        login(6, "logins", until(PAST)),
    ];
    let mut seen = seen(roles);
    seen.sessions = Some(vec![session(11, 2, None), session(12, 5, None)]);
    seen.brokers = Some(vec![5, 6]);
    let report = report(&seen);
    let others = [Finding::NeverExpires, Finding::NoOwner];
    assert_eq!(
        found(&report, "ephor_broker_00c0ffee"),
        [Finding::LeftByDev]
    );
    for other in [
        "ephor_broker_0badcafe",
        "ephor_broker_0badcaf",
        "ephor_broker_0BADCAFE",
    ] {
        assert_eq!(found(&report, other), others, "{other}");
    }
    assert!(found(&report, "ephor_broker_11111111").is_empty());
    assert!(found(&report, "logins").is_empty(), "no date ends it");
    seen.sessions = None;
    let report = super::report::report(&seen);
    assert!(
        found(&report, "ephor_broker_11111111").is_empty(),
        "not known is not nobody"
    );
}

#[test]
fn sessions_past_the_end_of_dropped_roles_and_of_no_logins() {
    let roles = vec![
        login(1, "past", until("2026-10-11T12:00:00Z")),
        login(2, "hidden", until("2026-10-11T12:00:00Z")),
        login(3, "good", until("2026-12-11T12:00:00Z")),
        group(4, "shut"),
    ];
    let mut seen = seen(roles);
    seen.sessions = Some(vec![
        session(11, 1, Some("2026-11-21T11:00:00Z")),
        session(12, 1, Some("2026-10-01T12:00:00Z")),
        session(13, 2, None),
        session(14, 3, Some("2026-10-01T12:00:00Z")),
        session(15, 4, None),
        session(16, 99, None),
    ]);
    let report = report(&seen);
    let past = Finding::ConnectedPastValidUntil;
    assert!(found(&report, "past").contains(&past) && found(&report, "hidden").contains(&past));
    assert!(!found(&report, "good").contains(&past));
    assert_eq!(found(&report, "shut"), [Finding::NotALogin]);
    let seconds = |name| {
        let is = |login: &&Login| login.name.as_deref() == Some(name);
        report
            .logins
            .iter()
            .find(is)
            .unwrap()
            .connected_past_seconds
    };
    // From its end on, not from the beginning of the session.
    assert_eq!(seconds("past"), Some(41 * 86_400));
    assert_eq!(seconds("hidden"), None, "not known is not a number");
    let gone = report.logins.last().unwrap();
    assert_eq!((gone.name.as_deref(), gone.oid), (None, 99));
    let text = told::text(&report, Some(80));
    assert!(
        text.contains("connected now     2   past, for 41 days\n"),
        "{text}"
    );
    assert!(
        text.contains("  role dropped, connected now         1   role 99, pid 16\n"),
        "{text}"
    );
    assert!(
        text.contains("  NOLOGIN, connected now              1   shut\n"),
        "{text}"
    );
}

#[test]
fn told_in_80_columns() {
    let vault = |n: u32| format!("v-kube-orders-{n:04}Pq0aB3cD4eF5gH6i-1710115200");
    let mut roles: Vec<Role> = (0..209)
        .map(|n| login(100 + n, &vault(n), until("2024-03-11T00:00:00Z")))
        .collect();
    let root = login(2, "dba_tmp", ValidUntil::Never);
    let attributes = Attributes {
        superuser: true,
        ..Attributes::default()
    };
    roles.push(Role { attributes, ..root });
    roles.push(login(3, "bo@example.com", ValidUntil::Never));
    roles.push(login(
        4,
        "eph_orders_k3v9aa_0123456789abcdefghjkmnpqrs",
        until("2027-01-01T00:00:00Z"),
    ));
    let mut seen = seen(roles);
    seen.sessions = Some(vec![session(1, 100, None)]);
    seen.sees_sessions = false;
    seen.server.standbys = Some(2);
    seen.hidden = Some(vec![77]);
    assert_eq!(
        told::text(&report(&seen), Some(80)),
        "\
db1: 212 logins; 209 look like Vault's (v-...), 1 like people,
  1 by Ephor k3v9aa, 1 other
  past VALID UNTIL, still there     209   oldest 2024-03-11
  past VALID UNTIL, connected now     1   v-kube-orders-0000
  never expires                       2   no owner known
  superuser or CREATEROLE             1   dba_tmp
  no owner in a comment               2   dba_tmp, bo@example.com
  not seen: age and origin of sessions: ro is not in pg_read_all_stats
  not seen: pid 77 holds locks and is no listed session: signing in, or hidden
  not seen: sessions on its 2 standbys: scan each of them, too
Nothing was changed.  SQL to remove them: --sql.  For a review: -o csv
"
    );
}

#[test]
fn what_could_not_be_seen_is_not_told_as_nothing() {
    let mut seen = seen(vec![login(1, "app", until("2027-01-01T00:00:00Z"))]);
    seen.sessions = None;
    seen.members = None;
    seen.holdings = None;
    let report = report(&seen);
    let text = told::text(&report, None);
    assert!(!text.contains("connected now"), "{text}");
    assert!(text.contains("not seen: sessions: refused to ro"), "{text}");
    assert!(
        text.contains("not seen: memberships: refused to ro"),
        "{text}"
    );
    let app = serde_json::to_value(&report.logins[0]).unwrap();
    assert!(app["sessions"].is_null() && app["holds"].is_null());
}

#[test]
fn a_name_cannot_forge_a_line_or_command_a_terminal() {
    let evil = "x\n  past VALID UNTIL, still there       0\u{1b}[2J";
    let text = told::text(
        &report(&seen(vec![login(1, evil, ValidUntil::Never)])),
        Some(80),
    );
    assert_eq!(text.lines().count(), 7, "{text}");
    assert!(!text.contains('\u{1b}'));
}

const PAST: &str = "2026-01-01T00:00:00Z";

/// Why each login past its end stays, and who takes over of the others.
fn planned(seen: &Seen, reassign_to: Option<&str>) -> (Vec<String>, Vec<String>) {
    let report = report(seen);
    let plan = plan::plan(&report, seen.prepared.as_deref().unwrap(), reassign_to).unwrap();
    let left = plan
        .left
        .iter()
        .map(|(login, why)| format!("{}: {why}", login.name.as_deref().unwrap()));
    let places = plan.databases.values().chain([&plan.cluster]);
    let heirs = places
        .flat_map(|place| &place.owners)
        .flat_map(|(heir, owners)| owners.iter().map(move |owner| format!("{owner} > {heir}")));
    (left.collect(), heirs.collect())
}

#[test]
fn what_others_use_and_what_nobody_takes_over_stays() {
    let names = [
        "ro",
        "has_members",
        "owns",
        "owns_in_closed",
        "in_two",
        "in_strong",
        "in_one",
    ];
    let mut roles: Vec<Role> = (1..)
        .zip(names)
        .map(|(oid, name)| login(oid, name, until(PAST)))
        .collect();
    roles.extend([
        group(20, "a"),
        group(21, "b"),
        group(22, "strong"),
        group(23, "pg_monitor"),
    ]);
    roles[9].attributes.createdb = true;
    roles.push(login(30, "app", until("2027-01-01T00:00:00Z")));
    let mut seen = seen(roles);
    seen.members = Some(vec![
        member(30, 2),
        member(5, 20),
        member(5, 21),
        member(6, 22),
        member(7, 20),
        member(7, 22),
        member(7, 23),
    ]);
    let owned = (3..8).map(|oid| holding(oid, Some(if oid == 4 { "closed" } else { "orders" }), 2));
    seen.holdings = Some(owned.chain([holding(7, None, 1)]).collect());
    let (left, heirs) = planned(&seen, None);
    let nobody = "it owns 2 objects (orders) and nobody is named to take over: --reassign-to ROLE";
    assert_eq!(
        left,
        [
            "ro: it made this scan".to_owned(),
            "has_members: others have its rights by membership: app".to_owned(),
            format!("owns: {nobody}"),
            format!("owns_in_closed: {}", nobody.replace("orders", "closed")),
            format!("in_two: {nobody}"),
            format!("in_strong: {nobody}"),
        ]
    );
    assert_eq!(
        heirs,
        ["in_one > a", "in_one > a"],
        "in the database and in the cluster"
    );
    let (left, heirs) = planned(&seen, Some("b"));
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left[2].starts_with("owns_in_closed: it holds something in closed, which takes no "));
    assert_eq!(
        heirs,
        [
            "owns > b",
            "in_two > b",
            "in_strong > b",
            "in_one > b",
            "in_one > b"
        ]
    );
}

#[test]
fn nobody_strong_past_its_end_or_unknown_takes_over() {
    let mut seen = seen(vec![
        login(1, "past", until(PAST)),
        group(2, "strong"),
        group(3, "under"),
    ]);
    seen.roles[1].attributes.superuser = true;
    seen.members = Some(vec![member(3, 2)]);
    let report = report(&seen);
    for (heir, said) in [
        ("past", "is itself past VALID UNTIL"),
        ("strong", "has SUPERUSER"),
        ("under", "has SUPERUSER through strong"),
        ("nobody", "is no role of db1"),
    ] {
        let why = plan::plan(&report, &[], Some(heir)).unwrap_err();
        assert_eq!(why.code, crate::exit::USAGE);
        assert!(why.message.contains(said), "{heir}: {}", why.message);
    }
}

#[test]
fn a_script_has_one_order_and_no_name_breaks_out_of_it() {
    let evil = "x\"; DROP TABLE t; --\n\\! id\n$do$ '";
    let mut seen = seen(vec![
        login(1, evil, until(PAST)),
        login(2, "plain", until(PAST)),
        group(20, "a"),
    ]);
    seen.members = Some(vec![member(1, 20)]);
    seen.holdings = Some(vec![
        holding(1, Some("orders"), 1),
        holding(2, Some("orders"), 0),
    ]);
    let gid = "g'\n\\! id";
    let prepared = |gid: &str, owner: &str| Prepared {
        gid: gid.to_owned(),
        owner: owner.to_owned(),
        database: "billing".to_owned(),
    };
    seen.prepared = Some(vec![prepared(gid, evil), prepared("other", "app")]);
    let report = report(&seen);
    let plan = plan::plan(&report, seen.prepared.as_deref().unwrap(), None).unwrap();
    let script = script::script(&report, &plan);
    assert!(!script.contains("other"), "{script}");
    let order = [
        "NOLOGIN",
        "pg_terminate_backend",
        "\\connect billing",
        "ROLLBACK PREPARED U&'g''\\+00000a\\\\! id'",
        "\\connect orders",
        "SECURITY INVOKER",
        "REASSIGN OWNED",
        "TO \"a\"",
        "DROP OWNED",
        "DROP OWNED",
        "DROP ROLE",
    ];
    let mut rest = script.as_str();
    for step in order {
        let (_, after) = rest
            .split_once(step)
            .unwrap_or_else(|| panic!("no {step} in\n{rest}"));
        rest = after;
    }
    for line in script.lines() {
        assert!(!line.contains("\\!") || line.contains("\\\\! id"), "{line}");
        assert!(
            !line.contains("DROP TABLE")
                || line.contains("x\"\"; DROP TABLE")
                || line.contains("'x\"; DROP TABLE"),
            "{line}"
        );
    }
}
