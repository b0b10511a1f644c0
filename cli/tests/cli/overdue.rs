//! A server that is away, as the operator sees it: what `ephor credential ls --overdue` says, in each form.

use std::process::Stdio;

use nix::sys::signal::Signal;

use super::database::{Serving, server};
use super::support::{end_of, send, text, wait_for};

#[test]
fn what_is_overdue_says_reason_owner_tries_and_next_try_until_it_is_dead() {
    let mut server = server();
    let dev = Serving::start(&server);
    let mut run = dev.ephor();
    run.args(["run", "--env", "U=cred://dev-db", "--", "sleep", "600"]);
    let mut run = run.stderr(Stdio::null()).spawn().unwrap();
    let there = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'eph\\_dev%'";
    wait_for("a login", || {
        (server.psql("postgres", there).unwrap().trim() == "1").then_some(())
    });
    server.crash().unwrap();
    send(run.id(), Signal::SIGKILL);
    end_of(&mut run, "the run that was killed");
    let ls = |form: &[&str]| {
        let mut ls = dev.ephor();
        ls.args(["credential", "ls", "--overdue"]).args(form);
        text(&ls.output().unwrap().stdout)
    };
    let said = wait_for("it is overdue", || {
        let said = ls(&[]);
        (said != "None is overdue.\n").then_some(said)
    });
    for word in [
        "login ",
        "revoking, overdue",
        "  target       dev, team:dev answers for it",
        "cannot be reached",
        "  tried        ",
        "  next try     ",
        "and on until it is done",
    ] {
        assert!(said.contains(word), "{word} in\n{said}");
    }
    // It may still be let in: the plain list does not hide it.
    let mut plain = dev.ephor();
    let plain = plain.args(["credential", "ls"]).output().unwrap();
    assert!(text(&plain.stdout).contains("revoking, overdue"));
    let json: serde_json::Value = serde_json::from_str(&ls(&["-o", "json"])).unwrap();
    let late = &json[0]["late"];
    assert_eq!(
        (&late["target"], &late["target_owner"]),
        (&"dev".into(), &"team:dev".into())
    );
    assert!(late["attempts"].as_u64().unwrap() >= 1, "{late}");
    assert!(
        late["next_try"].is_string() || late["next_try"].is_u64(),
        "{late}"
    );
    let csv = ls(&["-o", "csv"]);
    let head = csv.lines().next().unwrap();
    let columns = "target,target_owner,overdue_reason,attempts,next_try,accepted";
    assert!(head.contains(columns), "{head}");
    server.boot().unwrap();
    wait_for("it is dead", || {
        (ls(&[]) == "None is overdue.\n").then_some(())
    });
    assert_eq!(server.psql("postgres", there).unwrap().trim(), "0");
}
