//! Who and what is refused at the socket, before anyone is asked for anything.

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::world::{LOCAL, World, reply, say};

#[tokio::test(flavor = "multi_thread")]
async fn forms_that_are_refused() {
    let world = World::start();
    let token = "GET /v1/token?audience=a HTTP/1.1\r\n";
    let mut cases: Vec<(String, u16, &str)> = vec![
        (format!("{token}Host: x\r\n\r\n"), 403, "header_required"),
        (
            format!("{token}Host: x\r\nEphor-Local: 2\r\n\r\n"),
            403,
            "header_required",
        ),
        (
            format!("GET /v1/nothing HTTP/1.1\r\n{LOCAL}\r\n"),
            404,
            "not_found",
        ),
        (format!("GET / HTTP/1.1\r\n{LOCAL}\r\n"), 404, "not_found"),
        (
            format!("POST /v1/token?audience=a HTTP/1.1\r\n{LOCAL}Content-Length: 0\r\n\r\n"),
            405,
            "method_not_allowed",
        ),
        (
            format!("GET /v1/credentials HTTP/1.1\r\n{LOCAL}\r\n"),
            405,
            "method_not_allowed",
        ),
        (
            format!("OPTIONS /v1/token HTTP/1.1\r\n{LOCAL}\r\n"),
            405,
            "method_not_allowed",
        ),
        (
            format!("GET http://evil/v1/token?audience=a HTTP/1.1\r\n{LOCAL}\r\n"),
            400,
            "invalid_request",
        ),
        (
            format!("GET /v1/token?audience=a&x=1 HTTP/1.1\r\n{LOCAL}\r\n"),
            400,
            "invalid_request",
        ),
        (
            format!("GET /v1/token?audience=a&ttl_seconds=0 HTTP/1.1\r\n{LOCAL}\r\n"),
            400,
            "ttl_zero",
        ),
        (
            format!("GET /v1/token?audience=a&ttl_seconds=-1 HTTP/1.1\r\n{LOCAL}\r\n"),
            400,
            "invalid_request",
        ),
        (
            format!("{token}{LOCAL}Content-Length: 3\r\n\r\nabc"),
            400,
            "invalid_request",
        ),
        (
            format!(
                "POST /v1/credentials HTTP/1.1\r\n{LOCAL}Content-Encoding: gzip\r\nContent-Length: 0\r\n\r\n"
            ),
            415,
            "unsupported_media_type",
        ),
        (
            format!("POST /v1/credentials HTTP/1.1\r\n{LOCAL}Content-Length: 7\r\n\r\n{{\"a\":1}}"),
            400,
            "invalid_request",
        ),
        (
            format!(
                "POST /v1/credentials HTTP/1.1\r\n{LOCAL}Content-Length: 70000\r\n\r\n{}",
                " ".repeat(70_000)
            ),
            413,
            "too_large",
        ),
        (
            format!("POST /v1/tasks/nope/complete HTTP/1.1\r\n{LOCAL}Content-Length: 0\r\n\r\n"),
            400,
            "invalid_request",
        ),
        (
            format!(
                "POST /v1/tasks/0193e4a6-7c11-7fff-bfff-ffffffffffff/complete HTTP/1.1\r\n{LOCAL}Content-Length: 0\r\n\r\n"
            ),
            404,
            "not_found",
        ),
    ];
    for name in [
        "Origin",
        "Sec-Fetch-Site",
        "X-Forwarded-For",
        "Forwarded",
        "Via",
        "X-Real-IP",
        "Referer",
        "Cookie",
    ] {
        cases.push((format!("{token}{LOCAL}{name}: x\r\n\r\n"), 403, "proxied"));
    }
    for (request, status, code) in cases {
        let got = say(&world.socket, &request).await;
        let shown = &request[..request.len().min(120)];
        assert_eq!(
            (got.status, got.code().as_str()),
            (status, code),
            "{shown}\n{}",
            got.body
        );
        let json = got.json();
        assert_eq!(json["type"], format!("urn:ephor:problem:{code}"), "{shown}");
        assert!(
            json["correlation_id"].is_string() && got.head.contains("application/problem+json"),
            "{shown}"
        );
        assert!(
            got.head
                .to_ascii_lowercase()
                .contains("cache-control: no-store"),
            "{shown}"
        );
        assert!(
            !got.head.to_ascii_lowercase().contains("access-control"),
            "{shown}"
        );
        assert!(
            got.closed || matches!(status, 404),
            "{shown} left the connection open"
        );
    }
    assert_eq!(world.issues(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_malformed_request_nothing_more_is_read() {
    let world = World::start();
    let good = format!("GET /v1/ready HTTP/1.1\r\n{LOCAL}\r\n");
    for bad in [
        "GET /v1/ready HTTP/9.9\r\n\r\n".to_owned(),
        "rubbish\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        format!("GET /v1/ready HTTP/1.1\r\n{LOCAL}Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        format!(
            "POST /v1/credentials HTTP/1.1\r\n{LOCAL}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        format!(
            "GET /v1/ready HTTP/1.1\r\n{LOCAL}{}\r\n",
            "X-Many: y\r\n".repeat(100)
        ),
        format!(
            "GET /v1/ready HTTP/1.1\r\n{LOCAL}X-Long: {}\r\n\r\n",
            "y".repeat(20_000)
        ),
    ] {
        let mut stream = UnixStream::connect(&world.socket).await.unwrap();
        let shown = bad[..bad.len().min(60)].to_owned();
        let _ = stream.write_all(format!("{bad}{good}").as_bytes()).await;
        let first = reply(&mut stream).await;
        assert!(
            first.status == 0 || (400..=499).contains(&first.status),
            "{shown}: {}",
            first.head
        );
        let second = reply(&mut stream).await;
        assert_eq!(second.status, 0, "{shown}: answered again: {}", second.head);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_handed_to_another_process_gets_nothing() {
    let world = World::start();
    let stream = std::os::unix::net::UnixStream::connect(&world.socket).unwrap();
    // Another process speaks on our connection.
    let script =
        r#"printf 'GET /v1/token?audience=a HTTP/1.1\r\nHost: x\r\nEphor-Local: 1\r\n\r\n'"#;
    let status = std::process::Command::new("sh")
        .args(["-c", script])
        .stdout(std::os::fd::OwnedFd::from(stream.try_clone().unwrap()))
        .status()
        .unwrap();
    assert!(status.success());
    stream.set_nonblocking(true).unwrap();
    let got = reply(&mut UnixStream::from_std(stream).unwrap()).await;
    assert_eq!(got.status, 0, "{}", got.head);
    assert_eq!(world.issues(), 0);
}
