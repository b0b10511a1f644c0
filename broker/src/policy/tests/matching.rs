//! Which process is which workload.

use super::*;
use proptest::prelude::*;

const DIGEST: &str = "00000000000000000000000000000000000000000000000000000000000000ff";

fn process() -> Evidence {
    Evidence {
        uid: 1000,
        user: "app".into(),
        exe: "/opt/app".into(),
        unit: "app.service".into(),
        exe_sha256: digest(),
        ..Evidence::default()
    }
}

fn digest() -> Vec<u8> {
    let mut digest = vec![0; 31];
    digest.push(0xff);
    digest
}

fn policy(runs: &str) -> Snapshot {
    with(&format!(
        "[workload.a]\nowner = \"team:a\"\nruns = [{runs}]\n"
    ))
    .unwrap()
}

fn matches(runs: &str, host: &str, evidence: &Evidence) -> bool {
    !policy(runs)
        .match_workloads(host, evidence)
        .subjects
        .is_empty()
}

#[test]
fn all_that_a_rule_names_must_hold() {
    let good = format!(
        "{{ user = \"app\", exe = \"/opt/app\", systemd = \"app.service\", sha256 = \"{DIGEST}\", hosts = [\"web-*\", \"db-1\"] }}"
    );
    assert!(matches(&good, "web-3", &process()) && matches(&good, "db-1", &process()));
    for host in ["db-2", "xweb-3", "", "web/3"] {
        assert!(!matches(&good, host, &process()), "{host}");
    }
    type Change = fn(&mut Evidence);
    let others: [(&str, Change); 10] = [
        ("user", |e| e.user = "other".into()),
        ("no user", |e| e.user = String::new()),
        ("exe", |e| e.exe = "/opt/app2".into()),
        ("no exe", |e| e.exe = String::new()),
        ("unit", |e| e.unit = "user@1000.service".into()),
        ("no unit", |e| e.unit = String::new()),
        ("hash", |e| e.exe_sha256 = vec![1; 32]),
        ("short hash", |e| e.exe_sha256 = vec![0xff]),
        ("deleted", |e| e.exe_deleted = true),
        ("mounts", |e| e.foreign_mount_namespace = true),
    ];
    for (what, change) in others {
        let mut evidence = process();
        change(&mut evidence);
        assert!(!matches(&good, "web-3", &evidence), "{what}");
    }
}

#[test]
fn any_item_of_runs_is_enough() {
    let runs = "{ user = \"other\" }, { uid = 1000 }";
    assert!(matches(runs, "h", &process()));
    let neither = Evidence {
        uid: 5,
        ..process()
    };
    assert!(!matches(runs, "h", &neither));
}

#[test]
fn names_mean_nothing_in_foreign_namespaces() {
    let in_user_ns = Evidence {
        foreign_user_namespace: true,
        ..process()
    };
    assert!(!matches("{ user = \"app\" }", "h", &in_user_ns));
    // The uid is the host's own, as the kernel maps it.
    assert!(matches("{ uid = 1000 }", "h", &in_user_ns));
    let in_mount_ns = Evidence {
        foreign_mount_namespace: true,
        ..process()
    };
    assert!(!matches(
        "{ uid = 1000, exe = \"/opt/app\" }",
        "h",
        &in_mount_ns
    ));
    assert!(matches("{ uid = 1000 }", "h", &in_mount_ns));
}

#[test]
fn a_missing_hash_is_asked_for_only_where_all_else_fits() {
    let runs = format!("{{ uid = 1000, exe = \"/opt/app\", sha256 = \"{DIGEST}\" }}");
    let policy = policy(&runs);
    let without = Evidence {
        exe_sha256: Vec::new(),
        ..process()
    };
    let asked = policy.match_workloads("h", &without);
    assert!(asked.subjects.is_empty() && asked.wants_sha256);
    for other in [
        Evidence {
            uid: 1,
            ..without.clone()
        },
        Evidence {
            exe_deleted: true,
            ..without.clone()
        },
        Evidence {
            foreign_mount_namespace: true,
            ..without.clone()
        },
    ] {
        assert_eq!(policy.match_workloads("h", &other), Matched::default());
    }
    let sent = policy.match_workloads("h", &process());
    assert!(sent.subjects.len() == 1 && !sent.wants_sha256);
}

#[test]
fn a_process_can_be_several_workloads_each_named_once() {
    let text = "[workload.b]\nowner = \"team:a\"\nruns = [{ uid = 1000 }, { user = \"app\" }]\n\
                [workload.a]\nowner = \"team:a\"\nruns = [{ exe = \"/opt/app\" }]\n";
    let found = with(text).unwrap().match_workloads("h", &process());
    let paths: Vec<&str> = found.subjects.iter().map(|id| id.path()).collect();
    assert_eq!(paths, ["a", "b"]);
}

#[test]
fn empty_evidence_is_nobody_but_uid_0() {
    let text = "[workload.a]\nowner = \"team:a\"\nruns = [{ uid = 0 }]\n\
                [workload.b]\nowner = \"team:a\"\nruns = [{ user = \"root\" }, { exe = \"/a\" }, { systemd = \"a.service\" }]\n";
    let found = with(text)
        .unwrap()
        .match_workloads("h", &Evidence::default());
    assert_eq!(found.subjects.len(), 1);
}

#[test]
fn evidence_from_the_wire_keeps_every_field() {
    let sent = ephor_proto::grpc::v1::Evidence {
        uid: 1,
        gid: 2,
        groups: vec![3],
        pid: 4,
        start_time: 5,
        exe: "6".into(),
        exe_sha256: vec![7],
        unit: "8".into(),
        invocation_id: "9".into(),
        container: "10".into(),
        held_by: "11".into(),
        exe_deleted: true,
        foreign_user_namespace: true,
        foreign_mount_namespace: true,
        user: "15".into(),
    };
    let text = format!("{:?}", Evidence::from(&sent));
    for value in [
        "uid: 1",
        "gid: 2",
        "[3]",
        "pid: 4",
        "start_time: 5",
        "\"6\"",
        "[7]",
        "\"8\"",
        "\"9\"",
        "\"10\"",
        "\"11\"",
        "\"15\"",
    ] {
        assert!(text.contains(value), "{value} {text}");
    }
    assert_eq!(text.matches("true").count(), 3);
}

/// The plain definition: look at every rule.
fn scan(policy: &Snapshot, host: &str, evidence: &Evidence) -> Vec<String> {
    let host = host.parse().unwrap();
    let is = |w: &&Workload| {
        w.runs
            .iter()
            .any(|run| index::fit(run, &host, evidence) == index::Fit::Yes)
    };
    policy
        .workloads()
        .iter()
        .filter(is)
        .map(|w| w.subject.to_string())
        .collect()
}

fn some_run() -> impl Strategy<Value = String> {
    let pick = |values: &'static [&'static str]| proptest::sample::select(values);
    (
        pick(&[
            "",
            "user = \"u1\", ",
            "user = \"u2\", ",
            "uid = 1, ",
            "uid = 2, ",
        ]),
        pick(&["", "exe = \"/e1\", ", "exe = \"/e2\", "]),
        pick(&[
            "",
            "systemd = \"s1.service\", ",
            "systemd = \"s2.service\", ",
        ]),
        pick(&[
            "",
            "hosts = [\"h1\"], ",
            "hosts = [\"h1\", \"h2\"], ",
            "hosts = [\"h*\"], ",
        ]),
    )
        .prop_filter_map("matches all", |(user, exe, unit, hosts)| {
            let who = format!("{user}{exe}{unit}");
            (!who.is_empty())
                .then(|| format!("{{ {} }}", format!("{who}{hosts}").trim_end_matches(", ")))
        })
}

proptest! {
    #[test]
    fn the_index_finds_what_a_scan_finds(
        runs in proptest::collection::vec(proptest::collection::vec(some_run(), 1..4), 1..12),
        uid in 1u32..3, user in "u[123]", exe in "/e[123]", unit in "s[123].service", host in "h[12]|x",
    ) {
        let mut text = String::new();
        for (n, runs) in runs.iter().enumerate() {
            text.push_str(&format!("[workload.w{n:02}]\nowner = \"team:a\"\nruns = [{}]\n", runs.join(", ")));
        }
        let policy = with(&text).unwrap();
        let evidence = Evidence { uid, user, exe, unit, ..Evidence::default() };
        let found: Vec<String> =
            policy.match_workloads(&host, &evidence).subjects.iter().map(ToString::to_string).collect();
        prop_assert_eq!(found, scan(&policy, &host, &evidence));
    }
}
