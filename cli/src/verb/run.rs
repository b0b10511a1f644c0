//! `ephor run`: a command as a task. What it asks for is fetched before it starts, kept
//! fresh while it runs, and revoked when it ends, with the receipt.
//!
//! Never between the command and its terminal: standard input, output and the terminal's
//! own signals are the command's.

mod fetch;
mod files;
mod cleaner;
mod deliver;
mod announce;
mod keep;
mod reload;
mod tree;
mod ending;

use std::ffi::OsString;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use ephor_proto::cred::As;
use ephor_proto::http::agent::{TaskOpen, TaskOpened};
use ephor_proto::id::TaskId;
use nix::errno::Errno;
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::args;
use crate::client::Peer;
use crate::clock;
use crate::cred::Wants;
use crate::exit::{Failure, Outcome};
use crate::login::{Form, MISLEADING};
use crate::process::{Child, Command, Environment, end_with};
use crate::show::to_stderr;
use crate::signals::Signals;

pub use cleaner::cleaner_main;
use ending::{Ended, Report};
use fetch::Fetched;
use files::TaskDir;
use keep::{Keeper, Kept};
use reload::Reload;

/// Opens a task, runs the command in it, and ends it.
pub async fn run(args: args::Run) -> Outcome {
    if let Some(parent) = args.parent {
        end_with(parent).map_err(|why| Failure::local("the command was not started", why))?;
    }
    let mut report = Report::default();
    let outcome = in_task(&args, &mut report).await;
    if let Some(path) = &args.report {
        report.write(path, &outcome)?;
    }
    outcome.map(ExitCode::from)
}

async fn in_task(args: &args::Run, report: &mut Report) -> Result<u8, Failure> {
    let wants = Wants::collect(&args.env, args.env_file.as_deref(), args.no_file)?;
    let reload = Reload::parse(args)?;
    let signals = Signals::take()?;
    let agent = Peer::agent();
    let task = unless_ended(&signals, open(&agent)).await?;
    report.task = Some(task);
    let prepared = unless_ended(
        &signals,
        prepare(&agent, task, &wants, args, &mut report.issued),
    )
    .await;
    let (mut prepared, child) = match prepared.and_then(|prepared| start(prepared, &signals, args))
    {
        Ok(started) => started,
        Err(failure) => return Err(ending::give_up(&agent, task, failure, report).await),
    };
    let cleaner = prepared.files.as_ref().map(|files| files.cleaner.pid());
    let dir = prepared.files.as_ref().map(|files| &files.dir);
    let kept = std::mem::take(&mut prepared.kept);
    let mut keeper = Keeper::new(&agent, task, dir, kept).telling(&child, &reload);
    let supervised = tree::supervise(
        &child,
        cleaner,
        &signals,
        &mut keeper,
        &reload,
        args.wait_tree,
    );
    let exit = supervised.await;
    reload.end();
    let exit = exit?;
    let ended = keeper.into_ended();
    let stopwatch = clock::Stopwatch::start();
    if let Some(files) = prepared.files {
        files.remove().await;
    }
    let ended = Ended {
        exit,
        before: ended,
        issued: prepared.issued,
        stopwatch,
    };
    Ok(ending::complete(&agent, task, &ended, report).await)
}

/// What the command is started with.
struct Prepared {
    environment: Environment,
    files: Option<Files>,
    /// Open until the command has its copies.
    memory: Vec<OwnedFd>,
    kept: Vec<Kept>,
    issued: usize,
    /// libpq's variables go beside each URL.
    pg_env: bool,
    /// The command is ours, and so are the names of what it gets.
    is_ours: bool,
    /// Until when a login is kept, for people.
    until: String,
}

/// Files of the task, and the process that removes them if we cannot.
struct Files {
    dir: TaskDir,
    cleaner: cleaner::Cleaner,
}

impl Files {
    fn make(task: TaskId) -> Result<Self, Failure> {
        let place = files::place(task)?;
        let cleaner = cleaner::Cleaner::start(&place)?;
        Ok(Self {
            dir: TaskDir::create(place)?,
            cleaner,
        })
    }

    async fn remove(self) {
        drop(self.dir);
        self.cleaner.finish().await;
    }
}

/// The work, or an error as soon as somebody asks us to end.
async fn unless_ended<T>(
    signals: &Signals,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        done = work => done,
        caught = signals.next_ending() => {
            let caught = caught.map_err(|why| Failure::local("cannot read signals", why))?;
            let code = 128_u8.saturating_add(u8::try_from(caught.signal as i32).unwrap_or(0));
            Err(Failure::new(code, format!("interrupted: {}: the command was not started.", caught.signal)))
        }
    }
}

async fn open(agent: &Peer) -> Result<TaskId, Failure> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())
        .map_err(|why| Failure::local("cannot open a descriptor of this process", why))?;
    let opened: TaskOpened = agent
        .post_with_fd("/v1/tasks", &TaskOpen::default(), own)
        .await?;
    Ok(opened.task)
}

async fn prepare(
    agent: &Peer,
    task: TaskId,
    wants: &Wants,
    args: &args::Run,
    issued: &mut usize,
) -> Result<Prepared, Failure> {
    let mut environment = Environment::inherited();
    let socket = std::path::absolute(agent.path()).unwrap_or_else(|_| agent.path().to_owned());
    environment.set("EPHOR_SOCKET", socket.as_os_str().as_bytes());
    environment.set("EPHOR_TASK", task.to_string().as_bytes());
    let mut forms = wants.list.iter().map(|wanted| Form::of(&wanted.name));
    if args.pg_env || forms.any(Form::is_libpqs) {
        // What was inherited must not lead elsewhere.
        MISLEADING.iter().for_each(|name| environment.remove(name));
    }
    let mut fetched = Vec::new();
    for wanted in &wants.list {
        let one = fetch::fetch(agent, wanted, args.reason.as_deref()).await;
        fetched.push(one.map_err(|failure| failure.about(&wanted.name))?);
        *issued = fetched.len();
    }
    let mut prepared = Prepared {
        environment,
        files: None,
        memory: Vec::new(),
        kept: Vec::new(),
        issued: fetched.len(),
        pg_env: args.pg_env,
        is_ours: args.called.is_some(),
        until: args
            .called
            .map_or_else(|| end_of(&args.command), str::to_owned),
    };
    let mut list = wants.list.iter();
    let needs_files = list.any(|wanted| wanted.delivery() == As::File)
        || fetched.iter().any(Fetched::needs_files);
    if needs_files {
        prepared.files = Some(Files::make(task)?);
    }
    let mut lines = announce::header(agent, task, wants).await;
    let columns = announce::Columns::of(&wants.list);
    let mut renewed = Vec::new();
    for (wanted, one) in wants.list.iter().zip(fetched) {
        // A login is extended, not replaced.
        renewed.extend(one.login.is_none().then_some(wanted));
        let how = deliver::deliver(&mut prepared, wanted, one, args.reason.as_deref())?;
        let line = match prepared.is_ours {
            true => format!("ephor: {}  {how}\n", wanted.what()),
            false => columns.line(wanted, &how),
        };
        lines.push_str(&line);
    }
    lines.push_str(&announce::stale_warning(renewed.into_iter()));
    to_stderr(&lines);
    Ok(prepared)
}

/// `npm ends` of `/usr/bin/npm start`.
fn end_of(command: &[OsString]) -> String {
    let name = command
        .first()
        .and_then(|first| Path::new(first).file_name());
    let name = name.map_or_else(|| "it".into(), |name| name.to_string_lossy());
    format!("{} ends", name.escape_debug())
}

fn start(
    mut prepared: Prepared,
    signals: &Signals,
    args: &args::Run,
) -> Result<(Prepared, Child), Failure> {
    // Orphans of the command come to us, so that --wait-tree can wait for them.
    rustix::process::set_child_subreaper(Some(getpid()))
        .map_err(|why| Failure::local("cannot become the reaper of the command's children", why))?;
    let child = spawn(&args.command, &prepared.environment, signals)?;
    prepared.memory.clear();
    prepared.environment = Environment::empty();
    Ok((prepared, child))
}

fn spawn(
    argv: &[OsString],
    environment: &Environment,
    signals: &Signals,
) -> Result<Child, Failure> {
    let Some(program) = argv.first() else {
        return Err(Failure::usage("no command to run"));
    };
    let command = Command {
        program,
        argv,
        environment,
        mask: signals.mask_before(),
        stdio: None,
        own_group: false,
    };
    command.spawn().map_err(|why| {
        // As shells have it: found but not to be executed, or not found.
        let code = if why == Errno::ENOENT { 127 } else { 126 };
        Failure::new(
            code,
            format!(
                "invalid: cannot run {}: {}",
                Path::new(program).display(),
                why.desc()
            ),
        )
    })
}
