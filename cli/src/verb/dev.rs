//! `ephor dev`: broker and agent on this host, as processes of their own, with everything in
//! one directory. For a laptop, a test or a tour; any number at once, as an ordinary user.

mod daemon;
mod ending;
mod installation;
mod layout;
mod pg;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;
use std::time::Duration;

pub use installation::Installation;
pub use layout::{Layout, PolicyFrom};
pub use pg::{Database, keeper_main, login_name};

use ephor_proto::http::admin::Status;

use crate::args;
use crate::client::Peer;
use crate::exit::{Failure, Outcome};
use crate::postgres::Target;
use crate::process::{Child, Command, Environment, SELF};
use crate::show::{to_stderr, to_stdout};
use crate::signals::{Caught, Signals};
use crate::words::shell_quoted;

/// How the names of temporary directories begin.
const PREFIX: &str = "ephor-dev.";
/// Longest wait for a server that is being prepared when somebody wants us to end.
const PREPARE_MAX: Duration = Duration::from_secs(20);

/// Starts both, then waits for the end: of the command, or by a signal.
pub async fn dev(args: args::Dev) -> Outcome {
    let signals = Signals::take()?;
    if let Some(url) = &args.pg {
        // A URL that is wrong leaves nothing behind, not even a directory.
        let server = Target::of(url)?;
        server.verified()?;
        let layout = Layout::make(args.dir.as_deref(), PREFIX)?;
        pg::take_back_stale(&server).await?;
        let login = pg::login_name(&layout)?;
        let keeper = pg::Keeper::start(url, &login, &layout)?;
        // Whatever happens from here on, it takes back what was made at the server.
        let outcome =
            with_database(layout, (server, login), &keeper, &signals, &args.command).await;
        keeper.finish().await;
        layout::remove_stale();
        return outcome;
    }
    let layout = Layout::make(args.dir.as_deref(), PREFIX)?;
    let policy = match args.policy {
        Some(dir) => PolicyFrom::Directory(dir),
        None => PolicyFrom::File("dev.toml", built_in_policy()),
    };
    serve_in(layout.with_policy(policy)?, &signals, &args.command, None).await
}

async fn with_database(
    layout: Layout,
    (server, login): (Target, String),
    keeper: &pg::Keeper,
    signals: &Signals,
    command: &[OsString],
) -> Outcome {
    let told = || keeper.may_be_there(&layout);
    let preparing = Database::prepare(server, login, &layout, told);
    let database = prepared(preparing, signals).await?;
    database.announce();
    let layout = layout.with_policy(PolicyFrom::File("dev.toml", policy_with(&database)))?;
    serve_in(layout, signals, command, Some(pg::ENTITLEMENT)).await
}

async fn prepared(
    preparing: impl Future<Output = Result<Database, Failure>>,
    signals: &Signals,
) -> Result<Database, Failure> {
    let mut preparing = std::pin::pin!(preparing);
    let caught = tokio::select! {
        prepared = &mut preparing => return prepared,
        caught = signals.next_ending() => caught,
    };
    // What the server was told comes to its end first; else it would be done after the clean-up.
    let _ = tokio::time::timeout(PREPARE_MAX, preparing).await;
    Err(interrupted(caught))
}

/// `login` is the entitlement whose login the command gets.
async fn serve_in(
    layout: Layout,
    signals: &Signals,
    command: &[OsString],
    login: Option<&str>,
) -> Outcome {
    let starting = Installation::start(layout, signals.mask_before());
    let installation = tokio::select! {
        started = starting => started?,
        caught = signals.next_ending() => return Err(interrupted(caught)),
    };
    say_which_policy(&installation).await;
    let outcome = if command.is_empty() {
        serve(&installation, signals).await
    } else {
        one_command(&installation, signals, command, login).await
    };
    // What a database of our own user's holds is taken back by its keeper.
    if login.is_none() {
        ending::end_outside(installation.layout()).await;
    }
    installation.stop().await;
    outcome
}

fn policy_with(database: &Database) -> String {
    let uid = rustix::process::geteuid().as_raw();
    let path = ephor_broker::policy::dev_path(uid, &user_name(uid));
    built_in_policy() + &database.policy(&path)
}

/// The policy of one user on a laptop.
pub fn built_in_policy() -> String {
    let uid = rustix::process::geteuid().as_raw();
    ephor_broker::policy::dev_policy(uid, &user_name(uid))
}

/// Login name of a uid, or the empty text where it has none.
pub fn user_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
    user.ok()
        .flatten()
        .map(|user| user.name)
        .unwrap_or_default()
}

/// What a signal before the end of the start says.
pub fn interrupted(caught: std::io::Result<Caught>) -> Failure {
    match caught {
        Ok(caught) => {
            let code = 128_u8.saturating_add(u8::try_from(caught.signal as i32).unwrap_or(0));
            Failure::new(code, format!("interrupted: {}: stopped.", caught.signal))
        }
        Err(why) => Failure::local("cannot read signals", why),
    }
}

/// Of a directory that served before: another policy may have been applied then, and stays.
async fn say_which_policy(installation: &Installation) {
    let broker = Peer::broker_at(installation.layout().admin_socket());
    if let Ok(status) = broker.read::<Status>("/v1/status").await
        && let Some(trouble) = status.policy_trouble
    {
        let apply = "To take the directory's:  ephor policy apply DIR";
        to_stderr(&format!("ephor: policy: {trouble}\n       {apply}\n"));
    }
}

async fn serve(installation: &Installation, signals: &Signals) -> Outcome {
    let env = installation.layout().env_file();
    to_stderr(&format!(
        "ephor: for a shell:  . {}\n",
        shell_quoted(&env.display().to_string())
    ));
    to_stdout("ready\n")?;
    tokio::select! {
        caught = signals.next_ending() => caught
            .map(|_| ExitCode::SUCCESS)
            .map_err(|why| Failure::local("cannot read signals", why)),
        died = installation.died() => Err(died),
    }
}

async fn one_command(
    installation: &Installation,
    signals: &Signals,
    command: &[OsString],
    login: Option<&str>,
) -> Outcome {
    let mut environment = Environment::inherited();
    for (name, value) in installation.variables() {
        environment.set(name, value.as_bytes());
    }
    // A process of its own: it is the reaper of its command's children, we are not.
    let mut argv: Vec<OsString> = vec!["ephor".into(), "run".into()];
    argv.extend(["--parent".into(), std::process::id().to_string().into()]);
    if let Some(entitlement) = login {
        // Those are for whoever prepared the server, not for what works there.
        environment.remove("PGPASSWORD");
        environment.remove("PGPASSFILE");
        let url = format!("DATABASE_URL=cred://{entitlement}");
        argv.extend(["--pg-env".into(), "--env".into(), url.into()]);
    }
    argv.push("--".into());
    argv.extend_from_slice(command);
    let run = Command {
        program: OsStr::new(SELF),
        argv: &argv,
        environment: &environment,
        mask: signals.mask_before(),
        stdio: None,
        own_group: false,
    };
    let run = run
        .spawn()
        .map_err(|why| Failure::local("cannot start `ephor run`", why.desc()))?;
    tokio::select! {
        code = until_end(&run, signals) => code.map(ExitCode::from),
        died = installation.died() => {
            run.signal(nix::sys::signal::Signal::SIGTERM);
            let _ = run.wait().await;
            Err(died)
        }
    }
}

async fn until_end(run: &Child, signals: &Signals) -> Result<u8, Failure> {
    let failed = |why| Failure::local("cannot wait for `ephor run`", why);
    loop {
        tokio::select! {
            exit = run.wait() => return exit.map(|exit| exit.shell_code()).map_err(failed),
            caught = signals.next() => {
                let caught = caught.map_err(failed)?;
                if !caught.to_group && caught.signal != nix::sys::signal::Signal::SIGCHLD {
                    run.signal(caught.signal);
                }
            }
        }
    }
}
