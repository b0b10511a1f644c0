//! Going back in time: yesterday's store in the place of today's, while agents run.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use ephor_testkit::checker::{self, History};
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;
use ephor_testkit::workload::{Held, Workload};

/// Between two heartbeats.
const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(5);

fn ephor(kit: &Installation, arguments: &[&str]) -> Output {
    kit.ephor().args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

fn is_active(kit: &Installation, held: &Held) -> Option<bool> {
    let answer = kit.introspect(&held.token).ok()?;
    (answer.status == 200).then(|| answer.body["active"] == true)
}

/// The bit of a token in the list that verifiers fetch, read with nothing of ours.
fn is_listed(kit: &Installation, held: &Held) -> Option<bool> {
    const READ: &str = "import sys,json,zlib,base64\n\
        d=lambda s: base64.urlsafe_b64decode(s+'='*(-len(s)%4))\n\
        lst=json.loads(d(sys.argv[1].split('.')[1]))['status_list']['lst']\n\
        bits=zlib.decompress(d(lst)); i=int(sys.argv[2])\n\
        print(bits[i//8]>>(i%8)&1)";
    let (list, index) = place(held)?;
    let list = kit.public(&format!("/status/{list}")).ok()?;
    if list.status != 200 {
        return None;
    }
    let token = String::from_utf8(list.bytes).unwrap();
    let read = Command::new(checker::python())
        .args(["-c", READ, &token, &index])
        .output()
        .ok()?;
    match String::from_utf8(read.stdout).ok()?.trim() {
        "1" => Some(true),
        "0" => Some(false),
        other => panic!("{other}: {}", String::from_utf8_lossy(&read.stderr)),
    }
}

/// The status with which the list of a token is answered.
fn list_status(kit: &Installation, held: &Held) -> u16 {
    let (list, _) = place(held).unwrap();
    kit.public(&format!("/status/{list}")).unwrap().status
}

/// A process that asks for certificates when told to.
struct Certified {
    shell: Child,
    directories: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Certified {
    /// The certificate belongs to this shell, not to `ephor cert`.
    const SCRIPT: &str = r#"while read -r dir; do "$EPHOR" cert --to "$dir" >&2 && echo taken || echo refused; done"#;

    fn start(kit: &Installation) -> Self {
        let ephor = kit.ephor();
        let mut command = Command::new("sh");
        let set = ephor.get_envs();
        command.envs(set.filter_map(|(name, value)| Some((name, value?))));
        command
            .args(["-c", Self::SCRIPT])
            .env("EPHOR", ephor.get_program());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().unwrap();
        Self {
            directories: shell.stdin.take().unwrap(),
            answers: BufReader::new(shell.stdout.take().unwrap()),
            shell,
        }
    }

    /// Asks for one in this directory; false when it was refused.
    fn ask(&mut self, dir: &Path) -> bool {
        writeln!(self.directories, "{}", dir.display()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim() == "taken"
    }
}

impl Drop for Certified {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Whether a service that believes these roots takes this certificate: openssl and curl say so.
fn verify(kit: &Installation, cert: &Path, roots: &Path) -> Result<(), String> {
    let names = Command::new("openssl")
        .args(["x509", "-noout", "-ext", "subjectAltName", "-in"])
        .arg(cert.join("tls.crt"))
        .output()
        .unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    let id = names.split("URI:").nth(1).unwrap();
    let id = id.split([',', '\n']).next().unwrap();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/verify-certificate/verify.sh"
    );
    let output = Command::new(script)
        .args([cert.join("tls.crt"), roots.join("ca.crt")])
        .arg(id)
        .current_dir(kit.path(""))
        .output()
        .unwrap();
    match output.status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(said(&output)),
        other => panic!("{other:?}: {}", said(&output)),
    }
}

/// The list of a token, and its place there.
fn place(held: &Held) -> Option<(String, String)> {
    const READ: &str = "import sys,json,base64;s=sys.argv[1];c=json.loads(base64.urlsafe_b64decode(s+'='*(-len(s)%4)));r=c['status']['status_list'];print(r['uri'].rsplit('/',1)[1],r['idx'])";
    let claims = held.token.split('.').nth(1)?;
    let read = Command::new(checker::python())
        .args(["-c", READ, claims])
        .output()
        .ok()?;
    let (list, index) = std::str::from_utf8(&read.stdout)
        .ok()?
        .trim()
        .split_once(' ')?;
    Some((list.to_owned(), index.to_owned()))
}

/// How often the agent was turned away.
fn turned_away(kit: &Installation) -> usize {
    let log = std::fs::read_to_string(kit.path("agent.log")).unwrap();
    log.matches("this store went back in time").count()
}

fn copy_store(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
}

/// A broker that served, revoked, and whose disk now has the store of before the revocation.
struct Story {
    kit: Installation,
    /// Runs all the time.
    stays: Workload,
    /// What it held before.
    kept: Held,
    /// Of a task that ended after the copy was made.
    revoked: Held,
}

impl Story {
    fn tell() -> Self {
        let kit = super::running();
        let (mut stays, mut ends) = (
            Workload::start(&kit).unwrap(),
            Workload::start(&kit).unwrap(),
        );
        let kept = stays.ask("stays").unwrap().unwrap();
        let revoked = ends.ask("ends").unwrap().unwrap();
        kit.stop(Side::Broker).unwrap();
        copy_store(&kit.database(), &kit.path("yesterday.db"));
        kit.start_daemon(Side::Broker, &[]).unwrap();
        kit.wait_connected().unwrap();
        let mut history = History::default();
        history.end(&mut ends).unwrap();
        wait::until("the token of the ended task is refused", SETTLE, || {
            (is_active(&kit, &revoked) == Some(false)).then_some(())
        })
        .unwrap();
        assert_eq!(is_listed(&kit, &revoked), Some(true));
        // So that the agent has seen the log with the revocation in it.
        let size = || {
            kit.admin("/v1/status").unwrap()["log_size"]
                .as_u64()
                .unwrap()
        };
        let revoked_at = size();
        wait::until("the agent has seen the revocation", SETTLE, || {
            let note = std::fs::read_to_string(kit.path("agent/checkpoint")).ok()?;
            let seen: u64 = note.lines().nth(1)?.parse().ok()?;
            (seen >= revoked_at).then_some(())
        })
        .unwrap();
        Self {
            kit,
            stays,
            kept,
            revoked,
        }
    }

    /// Yesterday's file in the place of today's; nothing says that it is one.
    fn go_back(&self) {
        self.kit.stop(Side::Broker).unwrap();
        copy_store(&self.kit.path("yesterday.db"), &self.kit.database());
        self.kit.start_daemon(Side::Broker, &[]).unwrap();
    }
}

fn events(kit: &Installation, of: &str) -> usize {
    let sql = format!("SELECT count(*) FROM leaf WHERE json LIKE '%\"type\":\"{of}\"%'");
    let store = rusqlite::Connection::open(kit.database()).unwrap();
    store
        .query_row(&sql, [], |row| row.get::<_, i64>(0))
        .unwrap() as usize
}

/// What would happen without the agents' word: what was revoked is good again, for introspection and
/// on the list. It is why the other tests are there.
#[test]
fn naively_restored_a_revoked_token_is_good_again() {
    let story = Story::tell();
    let (kit, revoked) = (&story.kit, &story.revoked);
    kit.stop(Side::Agent).unwrap();
    story.go_back();
    assert_eq!(is_active(kit, revoked), Some(true), "un-revoked");
    assert_eq!(is_listed(kit, revoked), Some(false), "un-listed");
    // The first agent that speaks ends it.
    kit.start_daemon(Side::Agent, &[]).unwrap();
    wait::until("the broker refuses", HEARTBEAT, || {
        let answer = kit.introspect(&revoked.token).ok()?;
        (answer.status == 503 && answer.body["code"] == "log_rewound").then_some(())
    })
    .unwrap();
    assert_eq!(list_status(kit, revoked), 503, "no list is published");
}

#[test]
fn a_restored_store_is_refused_within_a_heartbeat_and_recovers_without_a_restart() {
    let mut story = Story::tell();
    let kit = &story.kit;
    story.go_back();
    let refused = wait::until("the broker says that it is behind", HEARTBEAT, || {
        let status = kit.admin("/v1/status").ok()?;
        (status["issuing"] == false).then(|| {
            status["stopped_because"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
    })
    .unwrap();
    assert!(
        refused.contains("went back in time") && refused.contains("ephor broker recover"),
        "{refused}"
    );
    // Nothing is issued, nothing is revoked, nothing is vouched for; a restart does not change that.
    assert!(story.stays.ask("more").unwrap().is_none());
    for held in [&story.kept, &story.revoked] {
        assert_eq!(kit.introspect(&held.token).unwrap().status, 503);
        assert_eq!(list_status(kit, held), 503);
    }
    assert_eq!(kit.public("/checkpoint").unwrap().status, 503);
    let (issued, ended) = (
        events(kit, "issue.recorded"),
        events(kit, "complete.exited") + events(kit, "complete.lost"),
    );
    kit.stop(Side::Broker).unwrap();
    kit.start_daemon(Side::Broker, &[]).unwrap();
    assert_eq!(kit.admin("/v1/status").unwrap()["issuing"], false);
    let status = ephor(kit, &["broker", "status"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(
        said(&status).contains("NO: this store went back in time"),
        "{}",
        said(&status)
    );
    // Nobody is heard, so the host goes silent, which ends nothing; and the agent comes again.
    wait::until("the host is silent", SETTLE, || {
        let hosts = kit.admin("/v1/hosts").ok()?;
        (hosts[0]["state"] == "silent").then_some(())
    })
    .unwrap();
    let before = turned_away(kit);
    wait::until("the agent is turned away again", SETTLE, || {
        (turned_away(kit) >= before + 2).then_some(())
    })
    .unwrap();
    assert_eq!(events(kit, "issue.recorded"), issued);
    assert_eq!(
        events(kit, "complete.exited") + events(kit, "complete.lost"),
        ended
    );
    assert!(events(kit, "revoke.listed") == 0 && events(kit, "operate.behind") == 1);

    // Who may come back has to be said.
    let unsaid = ephor(kit, &["broker", "recover", "--reason", "disk"]);
    assert_eq!(unsaid.status.code(), Some(64), "{}", said(&unsaid));
    assert!(said(&unsaid).contains("\n  kit  "), "{}", said(&unsaid));
    let key_before = kit.admin("/v1/status").unwrap()["log_key"].clone();
    let recovered = ephor(
        kit,
        &["broker", "recover", "--reason", "disk", "--admit", "all"],
    );
    assert!(recovered.status.success(), "{}", said(&recovered));
    let status = wait::until("the new epoch serves", SETTLE, || {
        let status = kit.admin("/v1/status").ok()?;
        (status["issuing"] == true).then_some(status)
    })
    .unwrap();
    assert_ne!(
        status["log_key"], key_before,
        "the log has a name of its own"
    );

    // The same process, in the same task, gets a new token; the old ones are no tokens any more.
    let fresh = wait::until("a new token", SETTLE, || {
        story
            .stays
            .ask("stays")
            .ok()
            .flatten()
            .filter(|held| held.jti != story.kept.jti)
    })
    .unwrap_or_else(|why| {
        panic!(
            "{why}\n{}\n{}",
            kit.tail(Side::Broker),
            kit.tail(Side::Agent)
        )
    });
    assert_eq!(is_active(kit, &fresh), Some(true));
    assert_eq!(is_listed(kit, &fresh), Some(false));
    for held in [&story.kept, &story.revoked] {
        let answer = kit.introspect(&held.token).unwrap();
        assert_ne!(answer.body["active"], true, "{answer:?}");
        assert_eq!(
            is_listed(kit, held),
            Some(true),
            "listed, whatever the store knew"
        );
    }
    assert_eq!(events(kit, "operate.recovered"), 1);
    assert_eq!(events(kit, "operate.readmitted"), 1);
    assert!(!kit.has_ended(Side::Broker) && !kit.has_ended(Side::Agent));
    // What was live by the old copy is proven to be ended, and the task that is gone with it.
    wait::until("what the copy knew is contained", SETTLE, || {
        let all = kit.admin("/v1/credentials").ok()?;
        let all = all.as_array()?.iter();
        let mut left = all.filter(|one| {
            one["state"] == "revoking"
                || (one["state"] == "live" && one["id"] != fresh.jti.as_str())
        });
        left.next().is_none().then_some(())
    })
    .unwrap_or_else(|why| panic!("{why}\n{}", kit.tail(Side::Broker)));
    // The agent remembers what it had seen, for whoever asks later.
    assert!(kit.path("agent/checkpoint.before").exists());
    let history = History {
        running: vec![fresh],
        ..History::default()
    };
    checker::judge(kit, &history)
        .unwrap_or_else(|why| panic!("{why:#}\n{}", kit.tail(Side::Broker)));
}

fn restore(kit: &Installation, from: &Path, force: bool) -> Output {
    let mut command = kit.ephor();
    command
        .args(["__broker", "--config"])
        .arg(kit.path("broker.toml"));
    command.args(["restore", "--from"]).arg(from);
    if force {
        command.arg("--force");
    }
    command.output().unwrap()
}

/// A change to a backup, and the words with which it is refused.
type Damage = (fn(&Path), &'static str);

const DAMAGES: [Damage; 5] = [
    (|dir| flip(&dir.join("ephor.db"), 20_000), "SHA-256 differs"),
    (
        |dir| {
            let file = std::fs::File::options()
                .write(true)
                .open(dir.join("ephor.db"))
                .unwrap();
            file.set_len(8192).unwrap();
        },
        "has 8192 bytes",
    ),
    (
        |dir| {
            let text = std::fs::read_to_string(dir.join("manifest.json")).unwrap();
            std::fs::write(
                dir.join("manifest.json"),
                text.replace("\"epoch\": ", "\"epoch\": 1"),
            )
            .unwrap();
        },
        "manifest was altered",
    ),
    (
        |dir| flip(&dir.join("manifest.seal"), 20),
        "manifest was altered",
    ),
    (
        |dir| std::fs::remove_file(dir.join("manifest.json")).unwrap(),
        "manifest.json",
    ),
];

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Certificates of before the new epoch are refused by who knows the new roots and by who still has
/// the old ones; the process that stays is given another.
#[test]
fn certificates_of_before_a_recovery_are_refused_and_the_same_process_gets_another() {
    let story = Story::tell();
    let kit = &story.kit;
    let dir = |name: &str| kit.path(name);
    let mut stays = Certified::start(kit);
    assert!(stays.ask(&dir("before")));
    assert_eq!(verify(kit, &dir("before"), &dir("before")), Ok(()));
    story.go_back();
    wait::until("the broker says that it is behind", HEARTBEAT, || {
        (kit.admin("/v1/status").ok()?["issuing"] == false).then_some(())
    })
    .unwrap();
    // It vouches for nothing, and gives nothing to a process that asks for the first time.
    assert!(verify(kit, &dir("before"), &dir("before")).is_err());
    assert!(!Certified::start(kit).ask(&dir("none")));
    let recovered = ephor(
        kit,
        &["broker", "recover", "--reason", "disk", "--admit", "all"],
    );
    assert!(recovered.status.success(), "{}", said(&recovered));
    let read = |name: &str| std::fs::read(dir(name).join("tls.crt")).unwrap();
    wait::until("another certificate", SETTLE, || {
        (stays.ask(&dir("after")) && read("after") != read("before")).then_some(())
    })
    .unwrap_or_else(|why| {
        panic!(
            "{why}\n{}\n{}",
            kit.tail(Side::Broker),
            kit.tail(Side::Agent)
        )
    });
    assert_eq!(verify(kit, &dir("after"), &dir("after")), Ok(()));
    for roots in ["before", "after"] {
        let refused = verify(kit, &dir("before"), &dir(roots));
        assert!(refused.is_err(), "believed by the roots of {roots}");
    }
    assert!(!kit.has_ended(Side::Broker) && !kit.has_ended(Side::Agent));
}

#[test]
fn a_backup_made_under_load_is_whole_and_no_damaged_one_replaces_a_store() {
    use std::os::unix::fs::PermissionsExt;
    let kit = super::running();
    let mut stays = Workload::start(&kit).unwrap();
    let before = stays.ask("stays").unwrap().unwrap();
    let backup = kit.path("backup");
    // Requests all the while: none is refused.
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut other = Workload::start(&kit).unwrap();
            (0..20)
                .filter(|n| other.ask(&format!("a{n}")).unwrap().is_some())
                .count()
        });
        let made = kit
            .ephor()
            .args(["broker", "backup", "--to"])
            .arg(&backup)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
        assert!(said(&made).contains("master key"), "{}", said(&made));
        assert_eq!(asking.join().unwrap(), 20);
    });
    assert_eq!(events(&kit, "operate.backup"), 1);
    for entry in std::fs::read_dir(&backup).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_ne!(entry.file_name(), "master.key");
    }
    let held = restore(&kit, &backup, true);
    assert!(
        held.status.code() == Some(78) && said(&held).contains("held by the running broker"),
        "{}",
        said(&held)
    );
    kit.stop(Side::Broker).unwrap();
    let store = std::fs::read(kit.database()).unwrap();
    let present = restore(&kit, &backup, false);
    assert!(
        said(&present).contains("--force moves it aside"),
        "{}",
        said(&present)
    );
    for (damage, words) in DAMAGES {
        let copy = kit.path("damaged");
        let _ = std::fs::remove_dir_all(&copy);
        std::fs::create_dir(&copy).unwrap();
        for entry in std::fs::read_dir(&backup).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        damage(&copy);
        let refused = restore(&kit, &copy, true);
        assert_eq!(refused.status.code(), Some(78), "{}", said(&refused));
        assert!(
            said(&refused).contains(words),
            "{words}: {}",
            said(&refused)
        );
        assert!(
            said(&refused).contains("Nothing was restored"),
            "{}",
            said(&refused)
        );
        assert_eq!(
            std::fs::read(kit.database()).unwrap(),
            store,
            "the store stands"
        );
    }
    // The whole one takes its place, is not believed, and recovers.
    let restored = restore(&kit, &backup, true);
    assert!(restored.status.success(), "{}", said(&restored));
    assert!(
        said(&restored).contains("ephor broker recover"),
        "{}",
        said(&restored)
    );
    kit.start_daemon(Side::Broker, &[]).unwrap();
    let status = kit.admin("/v1/status").unwrap();
    assert_eq!(status["issuing"], false);
    assert!(
        status["stopped_because"]
            .as_str()
            .unwrap()
            .contains("went back in time")
            || status["stopped_because"]
                .as_str()
                .unwrap()
                .contains("restored from a backup"),
        "{status}"
    );
    let recovered = ephor(
        &kit,
        &["broker", "recover", "--reason", "drill", "--admit", "kit"],
    );
    assert!(recovered.status.success(), "{}", said(&recovered));
    wait::until("a token of the new epoch", SETTLE, || {
        stays
            .ask("stays")
            .ok()
            .flatten()
            .filter(|held| held.jti != before.jti)
    })
    .unwrap();
    assert_ne!(kit.introspect(&before.token).unwrap().body["active"], true);
}
