//! Attack 51 of docs/threat-model.md: what callers write becomes no time series.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};

use ephor_testkit::http::{self, Call};
use ephor_testkit::installation::{Installation, Side};
use ephor_testkit::workload::Workload;

/// `ephor_proto::metrics::Label`, and what a histogram has by its format.
const LABELS: [&str; 8] = [
    "stage", "outcome", "code", "kind", "state", "queue", "version", "le",
];

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn page(address: SocketAddr) -> String {
    let call = Call {
        method: "GET",
        target: "/metrics",
        headers: &[],
        body: b"",
    };
    let answer = http::plain(address, &call).unwrap();
    assert_eq!(answer.status, 200, "{address}");
    String::from_utf8(answer.bytes).unwrap()
}

/// Names with their labels, without values.
fn series(page: &str) -> BTreeSet<String> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect()
}

fn labels(series: &BTreeSet<String>) -> BTreeSet<String> {
    let inside = series.iter().filter_map(|one| one.split_once('{'));
    inside
        .flat_map(|(_, labels)| labels.trim_end_matches('}').split(','))
        .map(|label| label.split_once('=').unwrap().0.to_owned())
        .collect()
}

/// Good and bad requests in which everything that a caller may choose is `mark`.
fn used(kit: &Installation, mark: &str) -> Vec<String> {
    let mut asks = Workload::start(kit).unwrap();
    let held = asks.ask(&format!("audience-{mark}")).unwrap().unwrap();
    let header = ("Ephor-Local", "1");
    for target in [
        format!("/v1/token?audience=other-{mark}&bind={mark}"),
        format!("/v1/certificate?entitlement={mark}"),
        format!("/{mark}"),
    ] {
        let call = Call {
            method: "GET",
            target: &target,
            headers: &[header, ("X-Mark", mark)],
            body: b"",
        };
        let answer = http::unix(&kit.socket(), &call).unwrap();
        assert!((400..500).contains(&answer.status), "{target}: {answer:?}");
    }
    kit.introspect(&held.token).unwrap();
    kit.introspect(&format!("{}{mark}", held.token)).unwrap();
    let signature = held.token.rsplit_once('.').unwrap().1.to_owned();
    vec![signature, held.jti, mark.to_owned()]
}

#[test]
fn attack_51_metrics_name_no_caller_and_hold_no_secret() {
    let kit = Installation::create(&super::binary()).unwrap();
    let (broker, agent) = (free(), free());
    let listen = broker.to_string();
    kit.start_daemon(Side::Broker, &[("EPHOR_BROKER_METRICS_LISTEN", &listen)])
        .unwrap();
    kit.join(&kit.path("token")).unwrap();
    let listen = agent.to_string();
    kit.start_daemon(Side::Agent, &[("EPHOR_AGENT_METRICS_LISTEN", &listen)])
        .unwrap();
    kit.wait_connected().unwrap();
    let mut secrets = used(&kit, "markedfirst");
    let first = [page(broker), page(agent)].map(|page| series(&page));
    for number in 0..20 {
        secrets.extend(used(&kit, &format!("marked{number}")));
    }
    for (address, before) in [broker, agent].into_iter().zip(first) {
        let page = page(address);
        let after = series(&page);
        assert!(after.len() > 20, "{page}");
        for label in labels(&after) {
            assert!(LABELS.contains(&label.as_str()), "{label}");
        }
        assert_eq!(after, before, "what was asked for made new time series");
        // Subject and host of this installation, too.
        let names = ["kit/app", "kit.test", "spiffe:", "\"kit\"", "marked"];
        for secret in names.into_iter().chain(secrets.iter().map(String::as_str)) {
            assert!(!page.contains(secret), "{secret} in {page}");
        }
    }
}
