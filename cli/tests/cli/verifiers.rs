//! Certificates and revocation lists, judged by verifiers that are not ours: the programs of
//! `examples/verify-certificate`, each as it stands there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::{Ca, CrlContent, Revoked, Serial, Svid, pem, secret_pem};
use nix::sys::signal::Signal;

use super::support::{Dev, assert_code, end_of, policy, send, text, wait_for};
use super::wire::{
    REFUSED_WITHIN, Running, command, example, python, refused_within, scratch, shared, shell,
    until_line,
};

const ID: &str = "spiffe://test.ephor/dev/me";

/// What is built once.
struct Built {
    go: PathBuf,
    go_spiffe: PathBuf,
    java: PathBuf,
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("verifiers");
        std::fs::create_dir_all(&dir).unwrap();
        let source = example("verify-certificate");
        let built = Built {
            go: dir.join("verify-go"),
            go_spiffe: dir.join("verify-go-spiffe"),
            java: dir.join("java"),
        };
        // A program that does not vet or has a warning is no example.
        build("go", &source, &["vet".as_ref(), "verify.go".as_ref()]);
        let go = ["build", "-mod=readonly", "-buildvcs=false", "-o"].map(Path::new);
        build(
            "go",
            &source,
            &[&go[..], &[&built.go, Path::new("verify.go")]].concat(),
        );
        build(
            "go",
            &source.join("spiffe"),
            &[&go[..], &[&built.go_spiffe, Path::new(".")]].concat(),
        );
        let javac = ["-Xlint:all", "-Werror", "--release", "11", "-d"].map(Path::new);
        build(
            "javac",
            &source,
            &[&javac[..], &[&built.java, Path::new("Verify.java")]].concat(),
        );
        built
    })
}

fn build(compiler: &str, dir: &Path, args: &[&Path]) {
    let mut command = Command::new(compiler);
    command.current_dir(dir).args(args);
    let output = command.output().unwrap_or_else(|why| {
        panic!("{compiler} cannot be run ({why}): run scripts/test, which installs it")
    });
    assert_code(&output, 0);
}

/// A chain with its key and roots, as in the files of `ephor cert --to`.
struct Files(PathBuf);

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn serial(&self) -> String {
        let shown = openssl(&["x509", "-noout", "-serial", "-in"], &self.path("tls.crt"));
        shown.trim().trim_start_matches("serial=").to_owned()
    }
}

/// Where a verifier finds what is not in the files.
struct World<'a> {
    ca: PathBuf,
    lists: String,
    /// The TLS server that Python's caller calls.
    server: &'a Files,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verifier {
    Openssl,
    Go,
    Java,
    Python,
}

impl Verifier {
    const ALL: [Self; 4] = [Self::Openssl, Self::Go, Self::Java, Self::Python];

    /// Its own words for a listed certificate.
    fn revoked(self) -> &'static str {
        match self {
            Self::Openssl | Self::Python => "certificate revoked",
            Self::Go => "revoked at ",
            Self::Java => "Certificate has been revoked, reason: CESSATION_OF_OPERATION",
        }
    }

    fn check(
        self,
        dev: &Dev,
        world: &World<'_>,
        files: &Files,
        id: &str,
    ) -> Result<String, String> {
        let source = example("verify-certificate");
        let mut run = match self {
            Self::Openssl => command(dev, source.join("verify.sh")),
            Self::Go => command(dev, &built().go),
            Self::Java => {
                let mut java = command(dev, "java");
                // Half the time of a start goes into compiling what runs once.
                java.args(["-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp"]);
                java.arg(&built().java).arg("Verify");
                java
            }
            Self::Python => {
                let mut python = command(dev, python());
                python.arg(source.join("handshake.py"));
                let [caller, server] = [files, world.server].map(|files| files.path("tls.pem"));
                python.args([&caller, &server, &world.ca]);
                python.args([&world.lists, id]);
                return verdict(self, &python.output().unwrap());
            }
        };
        run.args([&files.path("tls.crt"), &world.ca]).arg(id);
        verdict(self, &run.output().unwrap())
    }
}

/// A refusal is said as one; a program that broke is neither.
#[track_caller]
fn verdict(who: impl std::fmt::Debug, output: &Output) -> Result<String, String> {
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    match output.status.code() {
        Some(0) if said.starts_with("taken: ") => Ok(said),
        Some(1) if complained.lines().any(|line| line.starts_with("refused: ")) => Err(complained),
        code => panic!("{who:?} broke with {code:?}: {said}{complained}"),
    }
}

fn go_spiffe(dev: &Dev, files: &Files, id: &str) -> Result<String, String> {
    let mut run = command(dev, &built().go_spiffe);
    run.arg(files.path("tls.crt"));
    run.arg(&dev.variables["EPHOR_CA_FILE"]);
    run.arg(&dev.variables["EPHOR_BROKER_URL"]).arg(id);
    verdict("go-spiffe", &run.output().unwrap())
}

fn openssl(args: &[&str], file: &Path) -> String {
    let output = Command::new("openssl")
        .args(args)
        .arg(file)
        .output()
        .unwrap();
    assert_code(&output, 0);
    text(&output.stdout)
}

fn dev(ttl: &str) -> Dev {
    Dev::with_policy(
        &(policy(ttl)
            + "\n[entitlement.web-cert]\nowner = \"team:web\"\npurpose = \"Serve\"\nwho = [\"dev/me\"]\n\
               gives = [{ x509 = { dns = [\"web.test\", \"api.web.test\"] } }]\n"),
    )
}

#[test]
fn verifiers_take_a_live_certificate_and_refuse_it_after_kill_9() {
    let dev = dev("5m");
    let dir = scratch();
    let [own, web, server] = ["own", "web", "server"].map(|name| Files(dir.path().join(name)));
    let (_server, _) = shell(
        &dev,
        &format!("\"$EPHOR\" cert --to '{}'", server.0.display()),
    );
    let (mut holder, _) = shell(
        &dev,
        &format!(
            "\"$EPHOR\" cert --to '{}'; \"$EPHOR\" cert web-cert --to '{}'",
            own.0.display(),
            web.0.display()
        ),
    );
    assert_profile(&own, "URI:spiffe://test.ephor/dev/me\n");
    assert_profile(
        &web,
        "URI:spiffe://test.ephor/dev/me, DNS:web.test, DNS:api.web.test\n",
    );
    let world = World {
        ca: dev.variables["EPHOR_CA_FILE"].clone().into(),
        lists: dev.variables["EPHOR_LISTS_URL"].clone(),
        server: &server,
    };
    for verifier in Verifier::ALL {
        for files in [&own, &web] {
            let said = verifier.check(&dev, &world, files, ID);
            assert!(said.is_ok(), "{verifier:?}: {said:?}");
        }
        let said = verifier.check(&dev, &world, &own, "spiffe://test.ephor/dev/m");
        let said = said.unwrap_err();
        assert!(said.contains("it is for "), "{verifier:?}: {said}");
    }
    for files in [&own, &web] {
        let said = go_spiffe(&dev, files, ID);
        assert!(said.is_ok(), "{said:?}");
    }
    let said = go_spiffe(&dev, &own, "spiffe://test.ephor/dev/m").unwrap_err();
    assert!(said.contains("it is for "), "{said}");

    holder.kill();
    let end = Instant::now();
    for verifier in Verifier::ALL {
        for files in [&own, &web] {
            let left = REFUSED_WITHIN.saturating_sub(end.elapsed());
            let why = refused_within(left, &format!("{verifier:?}"), || {
                verifier.check(&dev, &world, files, ID)
            });
            assert!(why.contains(verifier.revoked()), "{verifier:?}: {why}");
        }
        let said = verifier.check(&dev, &world, &server, ID);
        assert!(said.is_ok(), "another's, {verifier:?}: {said:?}");
    }
    // As its documentation says, it asks no list; ours says so, too.
    let said = go_spiffe(&dev, &own, ID);
    assert!(said.is_ok(), "{said:?}");
}

/// X509-SVID §3 to §5, in the words of openssl.
#[track_caller]
fn assert_profile(files: &Files, names: &str) {
    let shown = openssl(&["x509", "-noout", "-text", "-in"], &files.path("tls.crt"));
    for line in [
        "        Subject: \n".to_owned(),
        format!("X509v3 Subject Alternative Name: critical\n                {names}"),
        "X509v3 Key Usage: critical\n                Digital Signature\n".to_owned(),
        "X509v3 Extended Key Usage: \n                TLS Web Client Authentication, TLS Web Server Authentication\n".to_owned(),
        "X509v3 Basic Constraints: critical\n                CA:FALSE\n".to_owned(),
        "X509v3 CRL Distribution Points: \n                Full Name:\n                  URI:http://127.0.0.1:".to_owned(),
        "X509v3 Authority Key Identifier: ".to_owned(),
        "NIST CURVE: P-256".to_owned(),
    ] {
        assert!(shown.contains(&line), "no {line:?} in {shown}");
    }
}

#[test]
fn a_reload_command_that_hangs_holds_up_nobody_and_ends_with_the_task() {
    let dev = dev("9s");
    let dir = scratch();
    let told = dir.path().join("told");
    let hang = format!(
        "echo $$ >'{0}.new' && mv '{0}.new' '{0}' && sleep 1000",
        told.display()
    );
    let wait = format!("until [ -e '{}' ]; do sleep 0.05; done", told.display());
    let mut run = command(&dev, env!("CARGO_BIN_EXE_ephor"));
    run.args([
        "run",
        "--wait-tree",
        "--env",
        "CERT=cred://web-cert?as=file",
    ]);
    run.args(["--reload-command", &hang, "--", "sh", "-euc", &wait]);
    let mut run = Running(run.spawn().unwrap());
    assert!(end_of(&mut run.0, "the task's end").success());
    let pid: i32 = std::fs::read_to_string(&told)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "{pid} runs on"
    );
}

#[test]
fn both_certificates_of_a_renewed_credential_are_revoked() {
    let dev = dev("9s");
    let dir = scratch();
    let [first, second] = ["first", "second"].map(|name| Files(dir.path().join(name)));
    // The copies are made whole under another name, so that seeing one is having it.
    let copy = |to: &Files| {
        let to = to.0.display();
        format!("cp -rL \"$CERT\" '{to}.new' && mv '{to}.new' '{to}'")
    };
    let place = dir.path().join("place");
    let script = format!(
        "printf %s \"$CERT\" >'{}'; {}; echo $$; read forever",
        place.display(),
        copy(&first)
    );
    // Files are also rewritten when the agent has no newer one yet.
    let reload = format!(
        "CERT=$(cat '{}'); [ -e '{}' ] || cmp -s \"$CERT/tls.crt\" '{}' || {{ {}; }}",
        place.display(),
        second.0.display(),
        first.path("tls.crt").display(),
        copy(&second)
    );
    let mut run = command(&dev, env!("CARGO_BIN_EXE_ephor"));
    run.args(["run", "--env", "CERT=cred://web-cert?as=file"]);
    run.args(["--reload-command", &reload]);
    run.args(["--", "sh", "-euc", &script])
        .stdin(std::process::Stdio::piped());
    let (mut run, pid) = until_line(&mut run);
    wait_for("a renewal", || second.0.is_dir().then_some(()));
    let serials = [first.serial(), second.serial()];
    assert_ne!(serials[0], serials[1]);

    send(pid.parse().unwrap(), Signal::SIGKILL);
    let list = dir.path().join("list.pem");
    let fetch = format!(
        "curl -sS --fail \"$(openssl x509 -in '{}' -noout -ext crlDistributionPoints | sed -n 's/^ *URI://p')\" \
         | openssl crl -inform DER -out '{}'",
        second.path("tls.crt").display(),
        list.display()
    );
    let ca = &dev.variables["EPHOR_CA_FILE"];
    // It is not about their expiry, which comes soon.
    let verify = |files: &Files| {
        assert_code(
            &command(&dev, "sh").args(["-euc", &fetch]).output().unwrap(),
            0,
        );
        let output = Command::new("openssl")
            .args([
                "verify",
                "-no_check_time",
                "-crl_check",
                "-CAfile",
                ca,
                "-CRLfile",
            ])
            .args([&list, &files.path("tls.crt")])
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    };
    for files in [&second, &first] {
        let why = refused_within(REFUSED_WITHIN, "openssl", || verify(files));
        assert!(why.contains("certificate revoked"), "{why}");
    }
    let ended = wait_for("the end of ephor run", || run.0.try_wait().unwrap());
    assert_eq!(ended.code(), Some(128 + 9));
}

#[test]
fn verifiers_refuse_what_is_not_the_list_of_the_certificate() {
    let dev = shared();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = i64::try_from(now.as_secs()).unwrap();
    let dir = scratch();
    let ours = foreign_ca(dir.path());
    let theirs = Ca::create("Test CA", "test.ephor", now - 60, now + 86_400).unwrap();
    let publisher = Publisher::start();
    let certified = |number: u8, name: &str| {
        let files = Files(dir.path().join(name));
        certify(&ours, &publisher.list(), number, now, &files);
        files
    };
    let (files, server) = (certified(1, "caller"), certified(2, "server"));
    std::fs::write(
        files.path("ca.crt"),
        pem("CERTIFICATE", ours.certificate().der()),
    )
    .unwrap();
    let world = World {
        ca: files.path("ca.crt"),
        lists: publisher.base.clone(),
        server: &server,
    };
    let list = |ca: &Ca, url: &str, next_update: i64, serials: &[u8]| {
        let revoked = |number: &u8| Revoked {
            serial: Serial::new(&[*number]).unwrap(),
            at: now,
        };
        let revoked: Vec<_> = serials.iter().map(revoked).collect();
        ca.sign_crl(&CrlContent {
            url: Some(url),
            number: 1,
            this_update: now - 7200,
            next_update,
            revoked: &revoked,
        })
        .unwrap()
    };
    let (url, later) = (publisher.list(), now + 3600);
    let cases = [
        ("a good one", list(&ours, &url, later, &[7]), true),
        (
            "a good one that lists it",
            list(&ours, &url, later, &[1]),
            false,
        ),
        ("one of another CA", list(&theirs, &url, later, &[]), false),
        (
            "one for others",
            list(&ours, &(url.clone() + "1"), later, &[]),
            false,
        ),
        ("an old one", list(&ours, &url, now - 3600, &[]), false),
    ];
    for (what, der, is_taken) in cases {
        publisher.publish(der);
        for verifier in Verifier::ALL {
            let said = verifier.check(&dev, &world, &files, ID);
            assert_eq!(said.is_ok(), is_taken, "{verifier:?} and {what}: {said:?}");
        }
    }
    // Nobody publishes: no list is no reason to take it. Python got its lists before.
    drop(publisher);
    for verifier in [Verifier::Openssl, Verifier::Go, Verifier::Java] {
        let said = verifier.check(&dev, &world, &files, ID);
        assert!(said.is_err(), "{verifier:?} without a list: {said:?}");
    }
}

/// A CA whose certificate another program made, as an upstream CA does: it calls the key otherwise.
fn foreign_ca(dir: &Path) -> Ca {
    let key = SigningKey::generate().unwrap();
    let (file, made) = (dir.join("ca.key"), dir.join("ca.made"));
    std::fs::write(&file, secret_pem(key.to_pkcs8()).expose()).unwrap();
    let done = Command::new("openssl")
        .args(["req", "-x509", "-subj", "/CN=Test CA", "-days", "1"])
        .args(["-addext", "subjectAltName=URI:spiffe://test.ephor"])
        .args(["-addext", "keyUsage=critical,keyCertSign,cRLSign", "-key"])
        .arg(&file)
        .arg("-out")
        .arg(&made)
        .output()
        .unwrap();
    assert_code(&done, 0);
    Ca::from_parts(&std::fs::read_to_string(made).unwrap(), key).unwrap()
}

/// Writes a certificate with this number, and its key.
fn certify(ca: &Ca, crl: &str, number: u8, now: i64, files: &Files) {
    let key = SigningKey::generate().unwrap();
    let svid = Svid {
        spiffe_id: ID,
        dns: &[],
        crl,
        serial: &Serial::new(&[number]).unwrap(),
        not_before: now - 30,
        not_after: now + 3600,
    };
    let leaf = ca.issue_svid(&svid, &key.public_key().spki()).unwrap();
    let leaf = pem("CERTIFICATE", &leaf);
    std::fs::create_dir(&files.0).unwrap();
    std::fs::write(files.path("tls.crt"), &leaf).unwrap();
    let whole = secret_pem(key.to_pkcs8()).expose_str().unwrap().to_owned() + &leaf;
    std::fs::write(files.path("tls.pem"), whole).unwrap();
}

/// Publishes one list, as a broker would, or somebody who took its place on the way.
struct Publisher {
    base: String,
    address: SocketAddr,
    /// Guards what is answered; `None`: stop.
    list: Arc<Mutex<Option<Vec<u8>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let base = format!("http://{address}");
        let list = Arc::new(Mutex::new(Some(Vec::new())));
        let (index, current) = (
            format!("{{\"lists\":[{{\"url\":\"{base}/crl/0\",\"version\":\"1\"}}]}}"),
            Arc::clone(&list),
        );
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(der) = current.lock().unwrap().clone() else {
                    return;
                };
                let _ = answer(stream.unwrap(), index.as_bytes(), &der);
            }
        });
        Self {
            base,
            address,
            list,
            thread: Some(thread),
        }
    }

    fn list(&self) -> String {
        format!("{}/crl/0", self.base)
    }

    fn publish(&self, der: Vec<u8>) {
        *self.list.lock().unwrap() = Some(der);
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        *self.list.lock().unwrap() = None;
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn answer(mut stream: TcpStream, index: &[u8], list: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let body = if head.starts_with(b"GET /crl/0 ") {
        list
    } else {
        index
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(body)
}
