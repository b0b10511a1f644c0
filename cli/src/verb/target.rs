//! `ephor target init | check`: what a PostgreSQL server needs before logins can be made at it.
//!
//! `init` is the only thing that ever uses an administrator's login; the broker has one that may call
//! Ephor's functions and nothing else. `--sql` prints what `init` would run, and connects to nothing.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ephor_broker::config::{Config, DEFAULT_FILE, Settings};
use ephor_broker::kind::effect::logins::Server;
use ephor_broker::kind::postgres::{
    Access, ByCertificate, Finding, Grade, Ident, Options, Password, SCHEMA_VERSION, Setting,
    check, check_certificates, check_settings, check_static_roles, install_sql,
};
use ephor_broker::policy::{Give, LoginBy, Snapshot};
use ephor_broker::tasks::Tasks;
use ephor_crypto::Secret;
use ephor_crypto::scram::{DEFAULT_ITERATIONS, ScramVerifier};
use ephor_proto::http::admin::{DatabaseCas, Reason, SecretRotated};
use zeroize::Zeroizing;

use crate::args::{self, DoctorOutput};
use crate::client::{Peer, segment};
use crate::exit::{CHECK_FAILED, CONFIG, Failure, Outcome, USAGE};
use crate::postgres::Target;
use crate::show;
use crate::words::plural;

/// For connections to end.
const ENDS: Duration = Duration::from_secs(1);
/// What became of a server that `init` did not get through.
const AS_BEFORE: &str = "A database that was not reached, or whose statement failed, is as it was before; init may be run again.";
/// Longest password file, in bytes.
const PASSWORD_FILE: usize = 1024;

/// Does what was asked.
pub async fn target(verb: args::Target) -> Outcome {
    match verb {
        args::Target::Init(args) => init(args).await,
        args::Target::Check(args) => look(args).await,
        args::Target::RotateSecret { target, reason } => rotate(&target, reason).await,
        args::Target::Ca => {
            show::to_stdout(&database_cas().await?.pem)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The broker does it, and proves it; only it ever knows the password.
async fn rotate(name: &str, reason: String) -> Outcome {
    let path = format!("/v1/targets/{}/rotate-secret", segment(name));
    let rotated: SecretRotated = Peer::broker().post(&path, &Reason { reason }).await?;
    let SecretRotated { target, login, old } = rotated;
    show::to_stdout(&format!(
        "The broker's login {} at {} has another password, tried by a new connection.\nThe one before is {}.\n",
        show::value(&login),
        show::value(&target),
        show::value(&old),
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The CAs of logins with a certificate, as the broker has them.
async fn database_cas() -> Result<DatabaseCas, Failure> {
    Peer::broker().read("/v1/keys/database/certificates").await
}

async fn init(args: args::TargetInit) -> Outcome {
    let server = Target::of(&args.url)?;
    let options = options(&args, &server.database)?;
    if args.sql {
        let script = install_sql(&options).map_err(Failure::usage)?;
        show::to_stdout(&script)?;
        return Ok(ExitCode::SUCCESS);
    }
    let installed = server.prepare(&options, || Ok(())).await;
    let installed = installed.map_err(|failure| match failure.code {
        USAGE => failure,
        _ => failure.although_issued(AS_BEFORE.to_owned()),
    })?;
    let may: String = [
        ("Logins may be made of ", "", &args.groups),
        ("", " may be lent", &args.static_roles),
    ]
    .iter()
    .filter(|(_, _, roles)| !roles.is_empty())
    .map(|(before, after, roles)| format!("{before}{}{after}. ", show::value(&roles.join(", "))))
    .collect();
    let (own, rest) = installed
        .databases
        .split_first()
        .unwrap_or((&args.login, &[]));
    show::to_stdout(&format!(
        "{}, PostgreSQL {}: schema {SCHEMA_VERSION} in database {}, logins may own things in {}.\n\
         {may}The broker logs in as {}{}.\n\
         Next: [target.NAME] in the policy, the password in the broker's target_secrets_dir as\n\
         target-NAME, and  ephor target check NAME\n",
        installed.host,
        show::value(&installed.server),
        show::value(own),
        show::value(&rest.join(", ")),
        show::value(&args.login),
        match args.password_file {
            Some(_) => ", with the password in that file",
            None => "; its password is as it was",
        },
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn options(args: &args::TargetInit, database: &str) -> Result<Options, Failure> {
    let databases = match args.databases.as_slice() {
        [] => vec![ident(database)?],
        named => idents(named)?,
    };
    let verifier = args.password_file.as_deref().map(|file| {
        let made = ScramVerifier::new(&secret(file)?, iterations());
        made.map_err(|why| Failure::local("cannot make a verifier", why))
    });
    Ok(Options {
        login: ident(&args.login)?,
        verifier: verifier.transpose()?,
        groups: idents(&args.groups)?,
        make_groups: args.make_groups,
        static_roles: idents(&args.static_roles)?,
        admin_database: ident(&args.admin_database)?,
        databases,
    })
}

fn iterations() -> std::num::NonZeroU32 {
    std::num::NonZeroU32::new(DEFAULT_ITERATIONS).unwrap_or(std::num::NonZeroU32::MIN)
}

fn ident(text: &str) -> Result<Ident, Failure> {
    Ident::parse(text).map_err(|why| Failure::usage(format!("{why}.")))
}

fn idents(texts: &[String]) -> Result<Vec<Ident>, Failure> {
    texts.iter().map(|text| ident(text)).collect()
}

/// The first line of a file, or of a pipe, that only its owner can read.
fn secret(file: &Path) -> Result<Secret, Failure> {
    let wrong = |why: &dyn std::fmt::Display| {
        Failure::usage(format!("password file {}: {why}.", file.display()))
    };
    let opened = std::fs::File::open(file).map_err(|why| wrong(&why))?;
    let about = opened.metadata().map_err(|why| wrong(&why))?;
    if about.mode() & 0o077 != 0 {
        return Err(wrong(&"others can read it: chmod 600"));
    }
    // Of a pipe nobody knows the size before.
    let mut bytes = Zeroizing::new(Vec::with_capacity(PASSWORD_FILE + 1));
    let read = opened
        .take(PASSWORD_FILE as u64 + 1)
        .read_to_end(&mut bytes);
    read.map_err(|why| wrong(&why))?;
    if bytes.len() > PASSWORD_FILE {
        return Err(wrong(&"too long for a password"));
    }
    let line = bytes.split(|byte| *byte == b'\n').next();
    let line = line.unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // What is not printable ASCII a server may read as another password (RFC 4013).
    match line.iter().all(u8::is_ascii_graphic) && !line.is_empty() {
        true => Ok(Secret::new(line.to_vec())),
        false => Err(wrong(
            &"its first line must be a password of printable ASCII, without blanks",
        )),
    }
}

async fn look(args: args::TargetCheck) -> Outcome {
    // No name of a target has one of these.
    let (access, asked) = match args.target.contains([':', '/', '@']) {
        true => by_url(&args)?,
        false => by_name(&args).await?,
    };
    let tasks = Tasks::new();
    let mut findings = check(&access, &asked.groups, &tasks).await;
    if let Some(blind) = asked.blind.filter(|_| is_wrong(&findings)) {
        findings.insert(0, blind);
    }
    if !asked.databases.is_empty() {
        let wanted = by_certificate(asked.databases).await;
        told_once(&mut findings, check_certificates(&access, &wanted).await);
    }
    let lent = check_static_roles(&access, &asked.lent, &tasks).await;
    told_once(&mut findings, lent);
    findings.extend(check_settings(&access, &asked.settings, &tasks).await);
    tasks.shutdown(ENDS).await;
    let holds = !is_wrong(&findings);
    let text = match args.output {
        DoctorOutput::Text => told(&findings),
        DoctorOutput::Json => {
            let all =
                serde_json::json!({ "target": access.name, "holds": holds, "findings": findings });
            serde_json::to_string_pretty(&all)
                .map_err(|why| Failure::local("cannot be printed", why))?
                + "\n"
        }
    };
    show::to_stdout(&text)?;
    Ok(match holds {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(CHECK_FAILED),
    })
}

fn is_wrong(findings: &[Finding]) -> bool {
    findings.iter().any(|one| one.grade == Grade::Wrong)
}

/// Each look connects for itself, and what keeps one out keeps the next out, too.
fn told_once(findings: &mut Vec<Finding>, more: Vec<Finding>) {
    let is_new = |one: &Finding| !findings.contains(one);
    let more: Vec<Finding> = more.into_iter().filter(is_new).collect();
    findings.extend(more);
}

/// What servers need for logins with a certificate, as far as the broker can be asked.
async fn by_certificate(databases: Vec<Ident>) -> ByCertificate {
    let (issuing, all) = match database_cas().await {
        Ok(cas) => (Some(cas.issuing), cas.pem),
        Err(_) => (None, String::new()),
    };
    ByCertificate {
        databases,
        issuing,
        all,
    }
}

/// What is asked of a server beside what every target needs.
struct Asked {
    /// Groups that logins are made of.
    groups: Vec<Ident>,
    /// Databases that logins get into by certificate.
    databases: Vec<Ident>,
    /// Roles that are lent.
    lent: Vec<Ident>,
    /// What logins start with.
    settings: Vec<Setting>,
    /// Why it is not known where the broker has its password.
    blind: Option<Finding>,
}

/// A server that policy need not name yet.
fn by_url(args: &args::TargetCheck) -> Result<(Access, Asked), Failure> {
    let server = Target::of(&args.target)?;
    let (tls, _) = server.verified()?;
    let password = match &args.password_file {
        Some(file) => Password::File(file.clone()),
        None => server
            .password()
            .map_or(Password::None, |secret| Password::Given(Arc::new(secret))),
    };
    let databases = match args.databases.as_slice() {
        [] => vec![ident(&server.database)?],
        named => idents(named)?,
    };
    let access = Access {
        name: server.name(),
        installation: String::new(),
        hosts: vec![server.address.clone()],
        user: server.user.clone(),
        password,
        admin_database: ident(&args.admin_database)?,
        databases,
        standbys: Vec::new(),
        tls,
        connections: 1,
    };
    let databases = match args.certificates {
        true => vec![ident(&server.database)?],
        false => Vec::new(),
    };
    let asked = Asked {
        groups: idents(&args.groups)?,
        databases,
        lent: idents(&args.static_roles)?,
        settings: Vec::new(),
        blind: None,
    };
    Ok((access, asked))
}

/// A target of the policy in force, or of one in a directory.
async fn by_name(args: &args::TargetCheck) -> Result<(Access, Asked), Failure> {
    let (snapshot, _) = super::policy::snapshot(args.policy.as_deref()).await?;
    let name = args.target.as_str();
    let Some(target) = snapshot.target(name) else {
        return Err(Failure::config(format!("{}.", snapshot.no_target(name))));
    };
    let (password, blind) = match &args.password_file {
        Some(file) => (Password::File(file.clone()), None),
        None => of_broker(args)?,
    };
    let tasks = Tasks::new();
    let server = Server::new((name, &target.postgres), "", password, &tasks);
    let server = server.map_err(|why| Failure::config(format!("[target.{name}]: {why}.")))?;
    let (groups, lent) = roles(&snapshot, name)?;
    let asked = Asked {
        groups,
        databases: by_certificate_in(&snapshot, name)?,
        lent,
        settings: settings(&snapshot, name),
        blind,
    };
    Ok((server.target().access().clone(), asked))
}

/// Where the broker reads the password from, if it has one; or why that is not known.
fn of_broker(args: &args::TargetCheck) -> Result<(Password, Option<Finding>), Failure> {
    let (given, default) = (args.broker_config.as_deref(), Path::new(DEFAULT_FILE));
    let dir = match Config::load(Some(given.unwrap_or(default)), Settings::default()) {
        Ok(config) => config.target_secrets_dir.ok_or_else(|| {
            let file = given.unwrap_or(default).display();
            format!("the settings file {file} names no target_secrets_dir")
        }),
        Err(why) if given.is_some() => return Err(Failure::new(CONFIG, format!("{why}."))),
        Err(why) => {
            let why = why.to_string();
            Err(why.strip_prefix("invalid: ").unwrap_or(&why).to_owned())
        }
    };
    Ok(match dir {
        Ok(dir) => {
            let file = dir.join(format!("target-{}", args.target));
            // What may not be looked at is there for all we know.
            match file.try_exists() {
                Ok(false) => (Password::Absent(file), None),
                Ok(true) | Err(_) => (Password::File(file), None),
            }
        }
        Err(why) => {
            let blind = Finding {
                grade: Grade::Unknown,
                what: format!("where the broker has its password: {why}"),
                mend: Some("--broker-config FILE, or --password-file FILE".to_owned()),
            };
            (Password::None, Some(blind))
        }
    })
}

/// Every setting that logins at a target start with.
fn settings(snapshot: &Snapshot, name: &str) -> Vec<Setting> {
    let mut all = Vec::new();
    for entitlement in snapshot.entitlements() {
        for give in &entitlement.gives {
            match give {
                Give::Postgres {
                    target, settings, ..
                } if target == name => {
                    let place = entitlement.place.rule();
                    let of = format!("entitlement {} ({place})", entitlement.name);
                    all.extend(settings.iter().map(|(name, value)| Setting {
                        of: of.clone(),
                        name: name.clone(),
                        value: value.clone(),
                    }));
                }
                Give::Postgres { .. }
                | Give::Secret { .. }
                | Give::Jwt { .. }
                | Give::X509 { .. }
                | Give::Introspect { .. } => {}
            }
        }
    }
    all
}

/// Every group role that an entitlement gives at a target, and every role that one lends.
fn roles(snapshot: &Snapshot, name: &str) -> Result<(Vec<Ident>, Vec<Ident>), Failure> {
    let (mut all, mut lent) = (BTreeSet::new(), BTreeSet::new());
    for entitlement in snapshot.entitlements() {
        for give in &entitlement.gives {
            match give {
                Give::Postgres { target, roles, .. } if target == name => all.extend(roles.clone()),
                Give::Secret { target, role, .. } if target == name => {
                    lent.insert(role.clone());
                }
                Give::Postgres { .. }
                | Give::Secret { .. }
                | Give::Jwt { .. }
                | Give::X509 { .. }
                | Give::Introspect { .. } => {}
            }
        }
    }
    let named = |all: &BTreeSet<String>| -> Result<Vec<Ident>, Failure> {
        all.iter().map(|role| ident(role)).collect()
    };
    Ok((named(&all)?, named(&lent)?))
}

/// Databases of a target that some entitlement gives logins with a certificate for.
fn by_certificate_in(snapshot: &Snapshot, name: &str) -> Result<Vec<Ident>, Failure> {
    let mut all = BTreeSet::new();
    for give in snapshot.entitlements().iter().flat_map(|one| &one.gives) {
        match give {
            Give::Postgres {
                target,
                database,
                login: LoginBy::Certificate,
                ..
            } if target == name => {
                all.insert(database.clone());
            }
            Give::Postgres { .. }
            | Give::Secret { .. }
            | Give::Jwt { .. }
            | Give::X509 { .. }
            | Give::Introspect { .. } => {}
        }
    }
    all.iter().map(|database| ident(database)).collect()
}

fn told(findings: &[Finding]) -> String {
    let word = |grade| match grade {
        Grade::Ok => "ok",
        Grade::Weak => "weak",
        Grade::Wrong => "WRONG",
        Grade::Unknown => "unknown",
    };
    let mut text = String::new();
    for Finding { grade, what, mend } in findings {
        text.push_str(&format!("{:<8}{}\n", word(*grade), show::value(what)));
        if let Some(mend) = mend {
            text.push_str(&format!("{:8}-> {}\n", "", show::value(mend)));
        }
    }
    let count = |grade| findings.iter().filter(|one| one.grade == grade).count();
    text.push_str(&format!(
        "{} in order, {} weak, {} wrong, {} unknown.\n",
        plural(count(Grade::Ok), "thing"),
        count(Grade::Weak),
        count(Grade::Wrong),
        count(Grade::Unknown)
    ));
    text
}
