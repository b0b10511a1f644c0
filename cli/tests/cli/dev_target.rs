//! `ephor dev --policy` with a server of its own: over TCP, at any port, by a password.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ephor_testkit::postgres::{Cluster, Options};
use nix::sys::signal::Signal;

use super::database::clean;
use super::support::{Dev, assert_code, end_of, ephor, policy, send, text};

/// Lets its own login in by TCP only, with `method`.
fn prepared(method: &str, password: &Path) -> Cluster {
    let server = Cluster::with(&Options {
        hba: vec![
            "local all postgres trust".into(),
            format!("host all ephor 127.0.0.1/32 {method}"),
            "host all all 127.0.0.1/32 scram-sha-256".into(),
        ],
        ..Options::default()
    })
    .unwrap();
    let made = "CREATE DATABASE shop; CREATE ROLE orders_rw";
    server.psql("postgres", made).unwrap();
    std::fs::write(password, "of-ephors-own\n").unwrap();
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(password, private).unwrap();
    let mut init = ephor();
    init.args(["target", "init", &server.socket_url("postgres", "shop")])
        .args(["--group", "orders_rw", "--password-file"])
        .arg(password);
    assert_code(&clean(&mut init).output().unwrap(), 0);
    server
}

fn with_target(port: u16) -> String {
    policy("5m")
        + &format!(
            "\n[target.orders]\nowner = \"team:dba\"\n\
             postgres = {{ url = \"postgres://ephor@127.0.0.1:{port}/shop\", tls = \"off\" }}\n\
             [entitlement.orders-db]\nowner = \"team:dba\"\npurpose = \"Orders\"\nwho = [\"dev/me\"]\n\
             gives = [{{ postgres = {{ target = \"orders\", role = \"orders_rw\" }} }}]\n"
        )
}

fn psql(command: &mut Command) -> Output {
    let asked = "select current_user";
    let command = command.args(["db", "orders-db", "--", "psql", "-Atc", asked]);
    clean(command).output().unwrap()
}

#[test]
fn a_server_of_the_policy_is_reached_at_its_port_once_its_password_is_there() {
    let top = tempfile::tempdir().unwrap();
    let password = top.path().join("password");
    let server = prepared("scram-sha-256", &password);
    assert_ne!(server.port(), 5432);
    let dev = Dev::with_policy(&with_target(server.port()));
    let refused = psql(&mut dev.ephor());
    assert_code(&refused, 69);
    let place = dev.dir.join("targets/target-orders");
    let said = text(&refused.stderr);
    let mend = format!("put it into the file {}, mode 0600", place.display());
    assert!(
        said.contains("it asks for a password, and there is none") && said.contains(&mend),
        "{said}"
    );
    let check = || {
        let mut check = dev.ephor();
        let check = clean(check.args(["target", "check", "orders"])).output();
        check.unwrap()
    };
    let refused = check();
    assert_code(&refused, 1);
    let said = text(&refused.stdout);
    let mend = format!(
        "-> put the password of \"ephor\" into the file {}, mode 0600\n",
        place.display()
    );
    assert!(said.contains(&mend) && !said.contains("ALTER"), "{said}");
    let mut typo = dev.ephor();
    typo.args(["target", "rotate-secret", "order"]);
    let typo = typo.output().unwrap();
    assert_ne!(typo.status.code(), Some(0));
    let said = text(&typo.stderr);
    assert!(
        said.contains("the policy has no [target.order]; it has orders"),
        "{said}"
    );
    // As it says, and without a restart.
    std::fs::copy(&password, &place).unwrap();
    assert_code(&check(), 0);
    let output = psql(&mut dev.ephor());
    assert_code(&output, 0);
    assert_eq!(text(&output.stdout), "orders_rw\n");
}

/// With the broker goes who could end it.
#[test]
fn what_was_made_at_a_server_is_ended_before_the_broker_stops() {
    let top = tempfile::tempdir().unwrap();
    let password = top.path().join("password");
    let mut server = prepared("scram-sha-256", &password);
    for is_away in [false, true] {
        let mut dev = Dev::with_policy(&with_target(server.port()));
        std::fs::copy(&password, dev.dir.join("targets/target-orders")).unwrap();
        let mut run = dev.ephor();
        run.args(["run", "--env", "U=cred://orders-db", "--", "sleep", "600"]);
        let run = run.stdout(Stdio::null()).stderr(Stdio::null());
        let mut run = run.spawn().unwrap();
        let made = "SELECT count(*) = 1 FROM pg_roles WHERE rolname LIKE 'eph\\_orders%'";
        server.wait_true("postgres", made).unwrap();
        if is_away {
            server.crash().unwrap();
        }
        send(dev.process.id(), Signal::SIGTERM);
        end_of(&mut dev.process, "the end of dev");
        let said = std::fs::read_to_string(dev.dir.with_file_name("stderr")).unwrap();
        if is_away {
            let next = format!("ephor dev --dir {}", dev.dir.display());
            assert!(
                said.contains("overdue: 1 credential not ended yet: login k-"),
                "{said}"
            );
            assert!(said.contains(&next), "{said}");
        } else {
            assert!(said.contains("revoked with the broker: login k-"), "{said}");
            let gone = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'eph\\_orders%'";
            assert_eq!(server.psql("postgres", gone).unwrap(), "0");
        }
        run.kill().unwrap();
        run.wait().unwrap();
    }
}

/// The kernel refuses it in the broker's place: who reads the message learns which setting it is.
#[test]
fn a_port_that_the_broker_gave_up_is_told_with_its_setting() {
    let top = tempfile::tempdir().unwrap();
    let server = prepared("trust", &top.path().join("password"));
    let dev = Dev::with_policy(&policy("5m"));
    let later = top.path().join("later");
    std::fs::create_dir(&later).unwrap();
    let port = server.port();
    std::fs::write(later.join("test.toml"), with_target(port)).unwrap();
    let applied = dev.ephor().args(["policy", "apply"]).arg(&later).output();
    assert_code(&applied.unwrap(), 0);
    let protections = std::fs::read(dev.dir.join("broker/protections.json")).unwrap();
    let protections: serde_json::Value = serde_json::from_slice(&protections).unwrap();
    let all = protections["protections"].as_array().unwrap();
    let landlock = all.iter().find(|one| one["name"] == "landlock").unwrap();
    let output = psql(&mut dev.ephor());
    if landlock["state"] != "in_force" {
        // Without rules for ports (before Linux 6.7) every one is left to it.
        assert_code(&output, 0);
        return;
    }
    assert_code(&output, 69);
    let said = text(&output.stderr);
    let mend = format!(
        "the broker may connect to the ports in target_ports only: add {port} to it in broker.toml"
    );
    assert!(said.contains(&mend), "{said}");
}
