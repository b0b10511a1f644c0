//! Bad input at every listener: a clear refusal with a code and an id to ask about, and daemons
//! that go on.

use std::io::{Read, Write};

use super::support::{assert_code, text};
use super::wire::{Door, assert_alive, command, once, own_token, pids_of, shared};

#[test]
fn malformed_bodies_are_refused_with_a_code_on_every_door() {
    let dev = shared();
    let pids = pids_of(&dev);
    let post = |path: &str, kind: &str, body: &str| {
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let deep = "[".repeat(50_000);
    for body in [
        "",
        "{",
        "null",
        "[]",
        "\"x\"",
        "{\"a\":1}",
        "{\"entitlement\":7}",
        "{\"host\":[]}",
        "\u{0}",
        &deep,
    ] {
        for (door, path) in [
            (Door::Agent, "/v1/credentials"),
            (Door::Admin, "/v1/hosts/invite"),
        ] {
            let got = once(&dev, door, post(path, "application/json", body));
            got.assert_problem(
                400,
                "invalid_request",
                &format!("{door:?} {:?}", &body[..body.len().min(40)]),
            );
        }
    }
    // A little over the bound, so that all of it was read: what is left unread when a connection
    // closes may take the answer with it.
    let large = " ".repeat(66_000);
    let form = "token=".to_owned() + &"x".repeat(33_000);
    for (door, path, body) in [
        (Door::Agent, "/v1/credentials", &large),
        (Door::Admin, "/v1/hosts/invite", &large),
        (Door::Https, "/introspect", &form),
        (Door::Https, "/revoke", &form),
    ] {
        let kind = if door == Door::Https {
            "application/x-www-form-urlencoded"
        } else {
            "application/json"
        };
        once(&dev, door, post(path, kind, body)).assert_refusal(413, "too_large", path);
    }
    for (door, request) in [
        (Door::Https, "PUT /introspect"),
        (Door::Https, "GET /introspect"),
        (Door::Https, "DELETE /jwks"),
        (Door::Http, "POST /checkpoint"),
        (Door::Admin, "DELETE /v1/hosts"),
    ] {
        let got = once(
            &dev,
            door,
            format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
        );
        got.assert_problem(405, "method_not_allowed", request);
    }
    for (door, path, status) in [
        (Door::Http, "/status/99999999999999999999", 404),
        (Door::Http, "/status/-1", 404),
        (Door::Http, "/tile/0/x999/999", 404),
        (Door::Http, "/tile/../../etc/passwd", 404),
        (Door::Http, "/tile/entries/%2e%2e/%2e%2e/x", 404),
        (Door::Admin, "/v1/tasks/%ff", 400),
        (Door::Admin, "/v1/tasks/nope", 400),
        (Door::Admin, "/v1/tasks?limit=-1", 400),
        (Door::Admin, "/v1/credentials?state=undead", 400),
        (Door::Admin, "/v1/audit?limit=18446744073709551616", 400),
    ] {
        let got = once(
            &dev,
            door,
            format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"),
        );
        assert!(
            got.status == status || matches!(got.status, 400 | 404),
            "{path}: {got:?}"
        );
        assert!(
            !got.code().is_empty() && got.body.contains("correlation_id"),
            "{path}: {got:?}"
        );
    }
    assert_alive(&dev, pids, "malformed bodies");
}

#[test]
fn malformed_tokens_are_inactive_and_prove_no_caller() {
    let dev = shared();
    let pids = pids_of(&dev);
    let asker = own_token(&dev, &dev.variables["EPHOR_BROKER_URL"]);
    let good = own_token(&dev, "billing");
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let none = "eyJhbGciOiJub25lIn0";
    let long = "a".repeat(20_000);
    let ask = |path: &str, bearer: &str, token: &str| {
        let form = format!("token={token}");
        let length = form.len();
        once(
            &dev,
            Door::Https,
            format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n{form}"
            ),
        )
    };
    let bad = [
        String::new(),
        ".".into(),
        "..".into(),
        "a.b.c".into(),
        "....".into(),
        format!("{none}.{claims}."),
        format!("{none}.{claims}.{signature}"),
        format!("{head}.{claims}."),
        format!("{head}.{claims}"),
        format!("{head}.{claims}.{signature}.{signature}"),
        format!("{head}.{claims}.{}", "A".repeat(86)),
        format!("{head}.e30.{signature}"),
        format!("{head}.!!.{signature}"),
        long,
    ];
    for token in &bad {
        let shown = &token[..token.len().min(60)];
        let got = ask("/introspect", &asker, token);
        assert_eq!(
            (got.status, got.body.as_str()),
            (200, "{\"active\":false}"),
            "{shown}"
        );
        if token.len() < 10_000 {
            ask("/introspect", token, &good).assert_problem(401, "unauthenticated", shown);
            ask("/revoke", token, &good).assert_problem(401, "unauthenticated", shown);
        }
        assert_eq!(ask("/revoke", &asker, token).status, 200, "{shown}");
    }
    let missing = "POST /introspect HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na=b";
    once(&dev, Door::Https, missing).assert_refusal(400, "invalid_request", "no token");
    // The good one was hurt by none of this, and a token for another audience asks about nobody.
    assert!(
        ask("/introspect", &asker, &good)
            .body
            .contains("\"active\":true")
    );
    ask("/introspect", &good, &asker).assert_problem(
        401,
        "unauthenticated",
        "a token for billing is no caller",
    );
    assert_alive(&dev, pids, "malformed tokens");
}

#[test]
fn lifetimes_and_names_out_of_bounds_are_refused_by_name() {
    let dev = shared();
    let get = |ttl: &str| {
        once(
            &dev,
            Door::Agent,
            format!(
                "GET /v1/token?audience=billing&ttl_seconds={ttl} HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\n\r\n"
            ),
        )
    };
    let post = |body: &str| {
        let length = body.len();
        once(
            &dev,
            Door::Agent,
            format!(
                "POST /v1/credentials HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\nContent-Length: {length}\r\n\r\n{body}"
            ),
        )
    };
    for ttl in ["-1", "-9223372036854775808", "1.5", "x", ""] {
        get(ttl).assert_problem(400, "invalid_request", ttl);
    }
    get("0").assert_problem(400, "ttl_zero", "0");
    for ttl in ["-1", "1.5", "\"9\"", "-9223372036854775808"] {
        post(&format!(
            "{{\"entitlement\":\"billing-api\",\"ttl_seconds\":{ttl}}}"
        ))
        .assert_problem(400, "invalid_request", ttl);
    }
    post("{\"entitlement\":\"billing-api\",\"ttl_seconds\":0}")
        .assert_problem(400, "ttl_zero", "0");
    for huge in ["9223372036854775808", "18446744073709551615"] {
        let got = post(&format!(
            "{{\"entitlement\":\"billing-api\",\"ttl_seconds\":{huge}}}"
        ));
        assert_eq!(got.status, 200, "capped, not refused: {got:?}");
        assert!(got.body.contains("\"capped_by\":\"ttl.max\""), "{huge}");
        let got = get(huge);
        assert!(
            got.status == 200 && got.body.contains("\"capped_by\":\"ttl.max\""),
            "{huge}: {got:?}"
        );
    }
    let unknown = post("{\"entitlement\":\"nobody-has-this\"}");
    unknown.assert_problem(403, "unknown_entitlement", "unknown");
    assert!(unknown.body.contains("\"decision\":\""), "{unknown:?}");
    for body in [
        "{\"entitlement\":\"../../etc\"}",
        "{\"entitlement\":\"\"}",
        "{\"entitlement\":\"A B\"}",
    ] {
        post(body).assert_problem(400, "invalid_request", body);
    }
    let bound = once(
        &dev,
        Door::Agent,
        "GET /v1/token?audience=a&bind=1 HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\n\r\n",
    );
    assert!(
        (400..=499).contains(&bound.status) && !bound.code().is_empty(),
        "pid 1 is no ancestor of the same uid: {bound:?}"
    );
}

#[test]
fn rubbish_where_tls_is_spoken_ends_only_its_connection() {
    let dev = shared();
    let pids = pids_of(&dev);
    for rubbish in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 1000],
        &[0x16, 3, 1, 0xff, 0xff, 1],
        b"\x80\x2e\x01\x03\x01",
    ] {
        let mut stream = super::wire::tcp(&dev.variables["EPHOR_BROKER_URL"]);
        let _ = stream.write_all(rubbish);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(!said.starts_with(b"HTTP"), "{said:?}");
    }
    assert_alive(&dev, pids, "rubbish before TLS");
}

#[test]
fn grpc_without_an_agents_certificate_or_sense_is_refused() {
    let dev = shared();
    let pids = pids_of(&dev);
    let url = &dev.variables["EPHOR_BROKER_URL"];
    for (method, body) in [
        ("Uplink/Hello", "\0\0\0\0\0"),
        ("Uplink/Issue", "\0\0\0\0\u{2}\n\0"),
        ("Uplink/Heartbeat", "\0\u{7f}\u{7f}\u{7f}\u{7f}rubbish"),
        ("Enrolment/Join", "\0\0\0\0\u{3}\n\u{7f}x"),
        ("Uplink/Nothing", ""),
    ] {
        let dir = super::wire::scratch();
        let file = dir.path().join("body");
        std::fs::write(&file, body).unwrap();
        let mut curl = command(&dev, "curl");
        curl.args(["--silent", "--show-error", "--http2", "--include"]);
        curl.args([
            "--max-time",
            "20",
            "--cacert",
            &dev.variables["EPHOR_CA_FILE"],
        ]);
        curl.args(["-H", "Content-Type: application/grpc", "-H", "TE: trailers"]);
        curl.arg("--data-binary")
            .arg(format!("@{}", file.display()))
            .arg(format!("{url}/ephor.v1.{method}"));
        let output = curl.output().unwrap();
        assert_code(&output, 0);
        let said = text(&output.stdout).to_ascii_lowercase();
        let status = said
            .lines()
            .find_map(|line| line.strip_prefix("grpc-status: "));
        let refused = status.is_some_and(|status| status.trim() != "0");
        assert!(
            refused || said.starts_with("http/2 404"),
            "{method}: {said}"
        );
    }
    assert_alive(&dev, pids, "malformed gRPC");
}
