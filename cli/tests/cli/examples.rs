//! What `examples/` shows, run as it stands, and the three ways to a token, checked by a
//! JWT library and a verifier that are not ours.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::support::{Dev, assert_code, is_token, send, text, wait_for};
use super::wire::{
    Checker, REFUSED_WITHIN, command, example, python, refused_within, say, scratch, shared, shell,
    tcp, until_line,
};

/// How long a verifier may go on with its copy of the status list.
const LIST_TTL: Duration = Duration::from_secs(5);

/// Calls the example service with a token that somebody kept.
fn call(port: &str, token: &str) -> Result<String, String> {
    let mut stream = tcp(&format!("http://127.0.0.1:{port}"));
    let request = format!(
        "GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    let answer = say(&mut stream, request);
    match answer.status {
        200 => Ok(answer.body),
        401 => Err(answer.body),
        status => panic!("the service answered {status}: {answer:?}"),
    }
}

#[test]
fn the_token_service_takes_its_client_and_refuses_a_killed_ones_token() {
    let dev = shared();
    for (way, within, why) in [
        ("introspect", REFUSED_WITHIN, "active=false"),
        // A list fetched just before the end is good for its ttl.
        ("status", REFUSED_WITHIN + LIST_TTL, "listed"),
    ] {
        let service = example("token-service/service.py");
        let (_service, port) =
            until_line(command(&dev, python()).arg(service).args(["billing", way]));
        let client = command(&dev, python())
            .arg(example("token-service/client.py"))
            .args([&port, "billing"])
            .output()
            .unwrap();
        assert_code(&client, 0);
        assert_eq!(
            text(&client.stdout),
            "200 hello spiffe://test.ephor/dev/me\n",
            "{way}"
        );
        let elsewhere = command(&dev, python())
            .arg(example("token-service/client.py"))
            .args([&port, "search"])
            .output()
            .unwrap();
        assert_code(&elsewhere, 1);

        let dir = scratch();
        let kept = dir.path().join("token");
        let (mut holder, _) = shell(
            &dev,
            &format!("\"$EPHOR\" token --audience billing >'{}'", kept.display()),
        );
        let token = std::fs::read_to_string(&kept)
            .unwrap()
            .trim_end()
            .to_owned();
        call(&port, &token).unwrap();
        holder.kill();
        refused_within(within, way, || call(&port, &token));
        let said = call(&port, &token).unwrap_err();
        assert!(said.contains(why), "{way}: {said}");
        let forged = format!(
            "{}x{}",
            &token[..token.len() - 9],
            &token[token.len() - 8..]
        );
        assert!(
            call(&port, &forged).is_err() && call(&port, "").is_err(),
            "{way}"
        );
    }
}

#[test]
fn attack_49_a_token_by_run_dies_with_its_command() {
    let dev = shared();
    let mut checker = Checker::start(&dev);
    let dir = scratch();
    let kept = dir.path().join("token");
    let script = format!(
        "\"$EPHOR\" token --audience billing >'{}'; echo $$; read forever",
        kept.display()
    );
    let mut run = command(&dev, env!("CARGO_BIN_EXE_ephor"));
    run.args(["run", "--", "sh", "-euc", &script])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let (mut run, pid) = until_line(&mut run);
    let token = std::fs::read_to_string(&kept)
        .unwrap()
        .trim_end()
        .to_owned();
    checker.assert_good("billing", &token);
    send(pid.parse().unwrap(), Signal::SIGKILL);
    checker.assert_refused("billing", &token);
    let ended = wait_for("the end of ephor run", || run.0.try_wait().unwrap());
    assert_eq!(ended.code(), Some(128 + 9));
}

#[test]
fn a_token_by_curl_dies_with_the_shell_that_called_it() {
    let dir = scratch();
    let kept = dir.path().join("answer");
    let curl = format!(
        "curl --silent --show-error --fail --unix-socket \"$EPHOR_SOCKET\" -H 'Ephor-Local: 1' \
         'http://localhost/v1/token?audience=billing&bind=parent' >'{}'",
        kept.display()
    );
    dies_with_its_shell(&shared(), &curl, || {
        let answer: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
        assert_eq!(answer["task_rule"], "ancestor");
        answer["token"].as_str().unwrap().to_owned()
    });
}

#[test]
fn a_token_by_the_helper_dies_with_the_shell_that_called_it() {
    let dir = scratch();
    let kept = dir.path().join("token");
    let helper = format!("\"$EPHOR\" token --audience billing >'{}'", kept.display());
    dies_with_its_shell(&shared(), &helper, || {
        std::fs::read_to_string(&kept)
            .unwrap()
            .trim_end()
            .to_owned()
    });
}

fn dies_with_its_shell(dev: &Dev, script: &str, token: impl FnOnce() -> String) {
    let mut checker = Checker::start(dev);
    let (mut caller, _) = shell(dev, script);
    let token = token();
    assert!(is_token(&token));
    checker.assert_good("billing", &token);
    caller.kill();
    checker.assert_refused("billing", &token);
}

#[test]
fn the_curl_session_shows_its_receipt_and_its_token_is_over() {
    let dev = shared();
    let mut checker = Checker::start(&dev);
    let dir = scratch();
    let kept = dir.path().join("answer");
    let session = command(&dev, "sh")
        .arg(example("curl-session.sh"))
        .env("TOKEN_FILE", &kept)
        .output()
        .unwrap();
    assert_code(&session, 0);
    let answers = text(&session.stdout);
    let answers: Vec<serde_json::Value> = answers
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [who, task, end] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!(who["subjects"][0], "spiffe://test.ephor/dev/me");
    assert_eq!(
        (&task["rule"], &task["state"]),
        (&"ancestor".into(), &"open".into()),
        "{task}"
    );
    assert_eq!(task["credentials"][0]["entitlement"], "identity");
    assert_eq!(
        (&end["task"], &end["listed"], &end["wiped"]),
        (&task["task"], &1.into(), &1.into()),
        "{end}"
    );
    assert!(end["receipt"]["checkpoint"].is_string(), "{end}");
    let token: serde_json::Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    checker.assert_refused("billing", token["token"].as_str().unwrap());
}

#[test]
fn the_export_is_taken_by_the_verifier_and_a_changed_byte_is_not() {
    let dev = shared();
    let output = dev.run(&[
        "--",
        env!("CARGO_BIN_EXE_ephor"),
        "token",
        "--audience",
        "billing",
    ]);
    assert_code(&output, 0);
    let dir = scratch();
    let export = dir.path().join("export");
    assert_code(
        &dev.ephor()
            .args(["audit", "export", "--to"])
            .arg(&export)
            .output()
            .unwrap(),
        0,
    );
    let key = text(&dev.ephor().args(["audit", "key"]).output().unwrap().stdout)
        .trim()
        .to_owned();
    let verify = |script: std::path::PathBuf| {
        command(&dev, python())
            .arg(script)
            .arg(&export)
            .args(["--key", &key])
            .output()
            .unwrap()
    };
    // The one in the repository, and the one that every export brings.
    for script in [example("verify.py"), export.join("verify.py")] {
        let taken = verify(script);
        assert_code(&taken, 0);
        assert!(
            text(&taken.stdout).contains("receipt"),
            "{}",
            text(&taken.stdout)
        );
    }
    for key in [
        "",
        "x",
        "a+b+c",
        "a+00000000",
        "a+zzzzzzzz+AAAA",
        "a+00000000+?",
    ] {
        let refused = command(&dev, python())
            .arg(example("verify.py"))
            .arg(&export)
            .args(["--key", key])
            .output()
            .unwrap();
        assert_code(&refused, 2);
        let said = text(&refused.stderr);
        assert!(
            said.contains("argument --key: not NAME+ID+KEY"),
            "{key}: {said}"
        );
    }
    let entries = files(&export.join("log/tile/entries"));
    let mut bytes = std::fs::read(&entries[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&entries[0], bytes).unwrap();
    assert_code(&verify(example("verify.py")), 1);
}

/// Every file below a directory.
pub fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
