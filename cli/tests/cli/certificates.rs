//! Database logins that a client certificate lets in: on a real server that speaks TLS, with `psql` and
//! `openssl` as the other side, from policy to what is refused afterwards.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ephor_testkit::installation::Installation;
use ephor_testkit::postgres::{Cluster, Options, Tls};

use super::database::clean;
use super::support::{assert_code, ephor, text, wait_for};

/// What a DBA adds, beside the line for the broker's own login.
const HBA: [&str; 3] = [
    "hostssl all ephor 127.0.0.1/32 trust",
    "hostssl all +ephor_certificate 127.0.0.1/32 cert",
    "hostnossl all all 127.0.0.1/32 reject",
];
const NONE_LEFT: &str = "select count(*) from pg_roles where rolname ~ '^eph_'";

/// A server, and an installation whose policy gives logins there.
struct World {
    own: Installation,
    server: Cluster,
    dir: tempfile::TempDir,
}

impl World {
    /// `ttl` of the logins.
    fn start(ttl: &str) -> Self {
        let tls = Tls::make().unwrap();
        let server = Cluster::with(&Options {
            hba: HBA.map(str::to_owned).to_vec(),
            ..tls.options()
        })
        .unwrap();
        let seed =
            "create database orders; create role orders_rw nologin; create role other_ro nologin";
        server.psql("postgres", seed).unwrap();
        let admin = server.socket_url("postgres", "orders");
        let mut init = ephor();
        init.args([
            "target",
            "init",
            &admin,
            "--group",
            "orders_rw",
            "--group",
            "other_ro",
        ]);
        assert_code(&clean(&mut init).output().unwrap(), 0);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("db-ca.pem"), &tls.ca).unwrap();
        let own = Installation::create(Path::new(env!("CARGO_BIN_EXE_ephor"))).unwrap();
        let (port, ca) = (server.port(), own.path("db-ca.pem"));
        std::fs::write(&ca, &tls.ca).unwrap();
        std::fs::write(own.path("policy/logins.toml"), logins(ttl, port, &ca)).unwrap();
        let settings = std::fs::read_to_string(own.path("broker.toml")).unwrap();
        let settings = format!("{settings}target_ports = [{port}]\n");
        std::fs::write(own.path("broker.toml"), settings).unwrap();
        own.start().unwrap();
        let world = Self { own, server, dir };
        world.trust(&world.printed(&["target", "ca"]));
        world
    }

    /// What the server is to trust from now on.
    fn trust(&self, pem: &str) {
        self.server.put_file("clients.pem", pem.as_bytes()).unwrap();
        let set = "alter system set ssl_ca_file = 'clients.pem'";
        self.server.psql("postgres", set).unwrap();
        self.server.reload().unwrap();
    }

    fn ephor(&self) -> Command {
        let mut command = self.own.ephor();
        clean(&mut command);
        command
    }

    fn printed(&self, args: &[&str]) -> String {
        let output = self.ephor().args(args).output().unwrap();
        assert_code(&output, 0);
        text(&output.stdout)
    }

    /// Runs a script as a task with these credentials; `$OUT` is a directory that stays.
    fn task(&self, env: &[&str], script: &str) -> Output {
        let mut run = self.ephor();
        run.env("OUT", self.dir.path());
        run.env("CONN", self.place());
        run.arg("run");
        for one in env {
            run.args(["--env", one]);
        }
        run.args(["--", "sh", "-ec", script]).output().unwrap()
    }

    /// Where it is, for `psql`.
    fn place(&self) -> String {
        format!(
            "host=localhost port={} dbname=orders sslmode=verify-full sslrootcert={}",
            self.server.port(),
            self.file("db-ca.pem").display()
        )
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What `psql` says to somebody with these files.
    fn psql(&self, user: &str, certificate: &Path, key: &Path) -> Output {
        let mut psql = Command::new("psql");
        clean(&mut psql).args(["-X", "-w", "-Atc", "select session_user"]);
        psql.arg(format!(
            "{} user={user} sslcert={} sslkey={}",
            self.place(),
            certificate.display(),
            key.display()
        ));
        psql.output().unwrap()
    }

    fn none_left(&self) {
        assert_eq!(self.server.psql("postgres", NONE_LEFT).unwrap(), "0");
    }
}

fn logins(ttl: &str, port: u16, ca: &Path) -> String {
    let login = |name: &str, role: &str| {
        format!(
            "\n[entitlement.{name}]\nowner = \"team:dba\"\npurpose = \"Look\"\nwho = [\"kit/app\"]\n\
             gives = [{{ postgres = {{ target = \"orders\", role = \"{role}\", login = \"certificate\" }} }}]\n\
             ttl = \"{ttl}\"\n"
        )
    };
    login("orders-db", "orders_rw")
        + &login("other-db", "other_ro")
        + &format!(
            "\n[target.orders]\nowner = \"team:dba\"\npostgres = {{ url = \"postgres://ephor@localhost:{port}/orders\", \
             ca_file = \"{}\" }}\n",
            ca.display()
        )
}

fn refused(output: &Output, why: &str) {
    let said = text(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(2),
        "{}{said}",
        text(&output.stdout)
    );
    assert!(said.contains(why), "{said}");
}

fn openssl(args: &[&str]) -> Output {
    Command::new("openssl").args(args).output().unwrap()
}

#[test]
fn it_logs_in_as_its_role_and_is_refused_when_its_task_is_over() {
    let world = World::start("5m");
    let who = "select session_user, current_user";
    let mut db = world.ephor();
    let output = db
        .args(["db", "orders-db", "--", "psql", "-XAtc", who])
        .output()
        .unwrap();
    assert_code(&output, 0);
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    let row: Vec<&str> = out.trim().split('|').collect();
    assert!(row[0].starts_with("eph_orders_db_"), "{out}");
    assert_eq!(row[1..], ["orders_rw"]);
    assert!(
        said.contains(", by certificate, kept until psql ends\n"),
        "{said}"
    );
    assert!(said.contains("ephor: 1 of 1 dead and proven in "), "{said}");
    world.none_left();

    // Whoever kept copies of the files, both of them still good by their own dates.
    let kept = world.task(
        &["DATABASE_URL=cred://orders-db"],
        "psql -XAtc 'select session_user' \"$DATABASE_URL\" > $OUT/user
         d=$(dirname \"$(echo \"$DATABASE_URL\" | sed 's/.*sslcert=\\([^&]*\\).*/\\1/; s/%2F/\\//g')\")
         test -d \"$d\"; echo \"$d\" > $OUT/where
         cp $d/DATABASE_URL.crt $OUT/crt; cp $d/DATABASE_URL.key $OUT/key
         stat -c %a $d/DATABASE_URL.crt $d/DATABASE_URL.key",
    );
    assert_code(&kept, 0);
    assert_eq!(text(&kept.stdout), "600\n600\n");
    let read = |name: &str| std::fs::read_to_string(world.file(name)).unwrap();
    let user = read("user").trim().to_owned();
    assert!(
        !Path::new(read("where").trim()).exists(),
        "its files are gone"
    );
    let (crt, key) = (world.file("crt"), world.file("key"));
    let good = openssl(&[
        "x509",
        "-noout",
        "-checkend",
        "60",
        "-in",
        crt.to_str().unwrap(),
    ]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stdout));
    refused(&world.psql(&user, &crt, &key), "");
    // Whatever the lines of the DBA: the certificate is good, and there is nobody of its name.
    let everybody = "hostssl all all 127.0.0.1/32 cert".to_owned();
    world.server.put_hba(&[everybody]).unwrap();
    world.server.reload().unwrap();
    refused(
        &world.psql(&user, &crt, &key),
        &format!("role \"{user}\" does not exist"),
    );
    world.none_left();
    let shown = world.printed(&["audit", "show", &user]);
    assert!(shown.contains("dropped at orders (system id "), "{shown}");
    let name = openssl(&[
        "x509",
        "-noout",
        "-subject",
        "-ext",
        "extendedKeyUsage",
        "-in",
        crt.to_str().unwrap(),
    ]);
    let name = text(&name.stdout);
    assert!(name.contains(&format!("CN = {user}\n")), "{name}");
    assert!(
        name.contains("TLS Web Client Authentication\n") && !name.contains("Server"),
        "{name}"
    );
}

#[test]
fn nobody_elses_certificate_is_a_login_and_a_login_is_nobody_elses() {
    let world = World::start("5m");
    let keep = "d=$(dirname $(echo \"$TLS\"))
        for n in ONE TWO; do cp $d/$n.crt $d/$n.key $OUT; done
        cp $TLS/tls.crt $TLS/tls.key $TLS/ca.crt $OUT
        echo $ONE | sed 's/.*\\/\\/\\([^@]*\\)@.*/\\1/' > $OUT/one; echo $TWO | sed 's/.*\\/\\/\\([^@]*\\)@.*/\\1/' > $OUT/two
        touch $OUT/ready; while [ ! -e $OUT/done ]; do sleep 0.05; done";
    let env = [
        "ONE=cred://orders-db",
        "TWO=cred://other-db",
        "TLS=cred://identity?as=file",
    ];
    std::thread::scope(|scope| {
        let task = scope.spawn(|| world.task(&env, keep));
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("the task's files", || {
                (task.is_finished() || world.file("ready").exists()).then_some(())
            });
            crossed(&world);
        }));
        std::fs::write(world.file("done"), "").unwrap();
        let output = task.join().unwrap();
        if let Err(why) = told {
            std::panic::resume_unwind(why);
        }
        assert_code(&output, 0);
    });
    world.none_left();
}

/// While both logins and the workload's certificate live.
fn crossed(world: &World) {
    let user = |name: &str| {
        let text = std::fs::read_to_string(world.file(name)).unwrap();
        text.trim().to_owned()
    };
    let (one, two) = (user("one"), user("two"));
    let pair = |name: &str| {
        (
            world.file(&format!("{name}.crt")),
            world.file(&format!("{name}.key")),
        )
    };
    let (crt, key) = pair("ONE");
    let own = world.psql(&one, &crt, &key);
    assert_eq!(text(&own.stdout).trim(), one, "{}", text(&own.stderr));
    let failed = "certificate authentication failed for user";
    refused(&world.psql(&two, &crt, &key), failed);
    let somebody_else = ["postgres", "ephor_owner", "ephor_certificate", "orders_rw"];
    for somebody in somebody_else {
        refused(&world.psql(somebody, &crt, &key), "");
    }
    // Where a line asks everybody for a certificate, it is still one of its own name only.
    let everybody = "hostssl all all 127.0.0.1/32 cert".to_owned();
    world.server.put_hba(&[everybody]).unwrap();
    world.server.reload().unwrap();
    for somebody in somebody_else {
        refused(&world.psql(somebody, &crt, &key), failed);
    }
    world.server.put_hba(&HBA.map(str::to_owned)).unwrap();
    world.server.reload().unwrap();
    let (_, other_key) = pair("TWO");
    refused(&world.psql(&one, &crt, &other_key), "mismatch");
    refused(
        &world.psql(&one, Path::new("/nonexistent"), &key),
        "requires a valid client certificate",
    );

    // A workload's certificate is of a CA that the server does not trust.
    let (svid, svid_key) = (world.file("tls.crt"), world.file("tls.key"));
    refused(&world.psql(&one, &svid, &svid_key), "unknown ca");
    // Even where somebody added that CA by mistake, it names no login.
    let workloads = std::fs::read_to_string(world.file("ca.crt")).unwrap();
    let databases = world.printed(&["target", "ca"]);
    world.trust(&(databases.clone() + &workloads));
    refused(&world.psql(&one, &svid, &svid_key), failed);
    // And for a service that trusts workloads a login is nobody.
    let trusted = world.file("database-ca.pem");
    std::fs::write(&trusted, databases).unwrap();
    let verified = |ca: &Path, leaf: &Path| {
        let said = openssl(&[
            "verify",
            "-CAfile",
            ca.to_str().unwrap(),
            leaf.to_str().unwrap(),
        ]);
        said.status.success()
    };
    let workloads = world.file("ca.crt");
    assert!(verified(&trusted, &crt) && verified(&workloads, &svid));
    assert!(!verified(&workloads, &crt) && !verified(&trusted, &svid));
}

/// The certificate is what ends a login that is not renewed: the server asks nobody else.
#[test]
fn a_renewal_brings_the_next_certificate_into_the_same_file() {
    let world = World::start("12s");
    let output = world.task(
        &["PGSSLCERT=cred://orders-db"],
        "cp $PGSSLCERT $OUT/first; cp $PGSSLKEY $OUT/key
         psql -XAtc 'select session_user'
         while cmp -s $OUT/first $PGSSLCERT; do sleep 0.1; done
         while openssl x509 -noout -checkend 0 -in $OUT/first > /dev/null; do sleep 0.1; done
         psql -XAtc 'select session_user'
         cmp $OUT/key $PGSSLKEY
         ! PGSSLCERT=$OUT/first psql -XAtc 'select 1' 2> $OUT/said",
    );
    assert_code(&output, 0);
    let out = text(&output.stdout);
    let users: Vec<&str> = out.lines().collect();
    assert_eq!(users.len(), 2, "{out}");
    assert!(
        users[0].starts_with("eph_orders_db_") && users[0] == users[1],
        "{out}"
    );
    let said = std::fs::read_to_string(world.file("said")).unwrap();
    assert!(said.contains("certificate expired"), "{said}");
    world.none_left();
}

#[test]
fn every_form_has_the_files() {
    let world = World::start("5m");
    let output = world.task(
        &[
            "PGSERVICEFILE=cred://orders-db",
            "DB_JSON=cred://orders-db",
            "DATABASE_URL=cred://orders-db",
        ],
        "psql -XAtc 'select session_user' service=orders-db
         psql -XAtc 'select session_user' \"$DATABASE_URL\"
         grep -c password $PGSERVICEFILE || true
         echo \"$DB_JSON\"",
    );
    assert_code(&output, 0);
    let out = text(&output.stdout);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], lines[1]);
    assert_eq!(lines[2], "0", "no password in the service file");
    let json: serde_json::Value = serde_json::from_str(lines[3]).unwrap();
    assert_eq!(json["user"], lines[0]);
    assert!(json["password"].is_null());
    assert!(json["sslkey"].as_str().unwrap().ends_with("/DB_JSON.key"));

    // For what asks the agent itself.
    let asked = world.task(
        &[],
        "curl -sS --unix-socket \"$EPHOR_SOCKET\" -H 'Ephor-Local: 1' \
         'http://localhost/v1/database?entitlement=orders-db&bind=parent'",
    );
    let flat: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    let login = &flat["login"];
    assert!(
        login["certificate"]
            .as_str()
            .unwrap()
            .contains("BEGIN CERTIFICATE"),
        "{flat}"
    );
    assert!(
        login["private_key"]
            .as_str()
            .unwrap()
            .contains("BEGIN PRIVATE KEY")
    );
    assert!(login.get("password").is_none());
    world.none_left();
}

#[test]
fn check_says_what_a_server_needs_for_them_and_with_which_line() {
    let world = World::start("5m");
    let check = |code: i32| {
        let output = world
            .ephor()
            .args(["target", "check", "orders"])
            .output()
            .unwrap();
        assert_code(&output, code);
        text(&output.stdout)
    };
    let said = check(0);
    assert!(
        said.contains("trusts the CA of logins with a certificate")
            && said.contains("asks logins with a certificate for it, in \"orders\""),
        "{said}"
    );
    let line = "hostssl   \"orders\"   +ephor_certificate   all   cert";

    // The line is missing; then it stands behind another.
    let [own, by_certificate, no_tls] = HBA.map(str::to_owned);
    let other = "hostssl all all 127.0.0.1/32 scram-sha-256".to_owned();
    for (hba, found) in [
        (
            vec![own.clone(), "hostssl all all 127.0.0.1/32 reject".into()],
            "has no line for logins with a certificate",
        ),
        (
            vec![own.clone(), other, by_certificate.clone()],
            "asks logins with a certificate for a password",
        ),
        (
            vec!["hostssl all all 127.0.0.1/32 trust".into()],
            "asks logins with a certificate for nothing",
        ),
    ] {
        world.server.put_hba(&hba).unwrap();
        world.server.reload().unwrap();
        let said = check(1);
        assert!(said.contains(found) && said.contains(line), "{said}");
    }
    // The line that it gives is the one that mends it.
    world
        .server
        .put_hba(&[own, line.replace("all", "127.0.0.1/32"), no_tls])
        .unwrap();
    world.server.reload().unwrap();
    check(0);

    // It trusts another CA; then none.
    let another = Tls::make().unwrap();
    world.trust(&String::from_utf8(another.ca).unwrap());
    let said = check(1);
    assert!(
        said.contains("does not trust the CA") && said.contains("-> ephor target ca > FILE"),
        "{said}"
    );
    let unset = "alter system reset ssl_ca_file";
    world.server.psql("postgres", unset).unwrap();
    world.server.reload().unwrap();
    let said = check(1);
    assert!(said.contains("ssl_ca_file is not set"), "{said}");

    // The next CA is told in good time.
    world.trust(&world.printed(&["target", "ca"]));
    world.printed(&["broker", "rotate", "database"]);
    let said = check(0);
    assert!(said.contains("not yet the one that follows it"), "{said}");
    world.trust(&world.printed(&["target", "ca"]));
    assert!(!check(0).contains("not yet"));
}
