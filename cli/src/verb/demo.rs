//! `ephor demo`: the main job on this host, with real parts: a program gets a token and a
//! certificate, uses them, is killed without a goodbye, and a thief's copies are refused.
//!
//! Every figure is measured and every line is checked before it is printed; a step that does
//! not hold ends the tour with exit code 1. Nothing is left behind.

mod app;
mod handshake;
mod login;
mod scene;
mod server;
mod service;
mod stages;
mod status_list;
mod tell;
mod tour;
mod web;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

pub use app::app_main;

use super::dev::{Database, Installation, interrupted, login_name};
use crate::args;
use crate::client::Peer;
use crate::exit::{Failure, Outcome};
use crate::postgres::Target;
use crate::show::to_stdout;
use crate::signals::Signals;
use crate::words::shell_quoted;
use server::{Absent, Server};
use tour::Seen;

/// Runs the tour.
pub async fn demo(args: args::Demo) -> Outcome {
    let signals = Signals::take()?;
    ephor_crypto::tls::install();
    if let Some(dir) = &args.keep {
        // Now, not after the tour: nobody should watch it twice because of a typing error.
        crate::verify::check_target(dir).map_err(|failure| failure.about("--keep"))?;
    }
    let scene = scene::Scene::make()?;
    let server = match args.no_postgres {
        true => None,
        false => Some(Server::start()),
    };
    let with = match &server {
        Some(Ok(server)) => format!(
            "broker, agent, an mTLS service and {},\nall in {}",
            server.version(),
            scene.dir().display()
        ),
        Some(Err(_)) | None => format!(
            "broker, agent and a service that checks tokens\nand speaks mTLS, all in {}",
            scene.dir().display()
        ),
    };
    to_stdout(&format!(
        "Real parts, nothing mocked: {with}, gone at the end.\nA thief copies every secret.\n\n"
    ))?;
    let database = match &server {
        Some(Ok(server)) => {
            // The server ends with the demo, and all that is made there.
            let (target, login) = (Target::of(&server.url())?, login_name(scene.layout())?);
            Some(tokio::select! {
                prepared = Database::prepare(target, login, scene.layout(), || Ok(())) => prepared?,
                caught = signals.next_ending() => return Err(interrupted(caught)),
            })
        }
        Some(Err(_)) | None => None,
    };
    let (layout, cast) = scene.into_parts(database.as_ref())?;
    let installation = tokio::select! {
        started = Installation::start(layout, signals.mask_before()) => started?,
        caught = signals.next_ending() => return Err(interrupted(caught)),
    };
    let outcome = tokio::select! {
        outcome = whole(&installation, &cast, &signals, args.keep.as_deref()) => outcome,
        caught = signals.next_ending() => Err(interrupted(caught)),
        died = installation.died() => Err(died),
    };
    if let (Ok(()), Some(Err(absent))) = (&outcome, &server) {
        to_stdout(&no_login(absent))?;
    }
    installation.stop().await;
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn whole(
    installation: &Installation,
    cast: &scene::Cast,
    signals: &Signals,
    keep: Option<&Path>,
) -> Result<(), Failure> {
    let service = service::Service::open(installation).await?;
    let seen = tokio::select! {
        seen = tour::tour(installation, cast, &service, signals.mask_before()) => seen?,
        never = service.serve() => match never {},
    };
    if let Some(dir) = keep {
        let admin = Peer::broker_at(installation.layout().admin_socket());
        crate::verify::export(&admin, dir).await?;
    }
    to_stdout(&closing_lines(&seen, keep))
}

/// How to see a login, too.
fn no_login(absent: &Absent) -> String {
    match absent {
        Absent::NotInstalled => {
            "With a database login:  apt install postgresql, then this again\n".to_owned()
        }
        Absent::Failed(why) => {
            format!("Without a database login, since PostgreSQL did not start here: {why}\n")
        }
    }
}

/// What to try next, in the form that works as this was started.
fn closing_lines(seen: &Seen, keep: Option<&Path>) -> String {
    let (outer, inner) = how_to_call();
    let check = match keep {
        Some(dir) => {
            let dir = shell_quoted(&dir.display().to_string());
            let key = shell_quoted(&seen.log_key);
            format!("python3 {dir}/verify.py {dir} {} --key {key}", seen.task)
        }
        None => format!("{outer} demo --keep DIR"),
    };
    format!(
        "\nCheck it without us:   {check}\nNow your own command:  {outer} dev -- {inner} token --audience billing\n"
    )
}

/// How to call this program in a shell, and by a command that it starts.
fn how_to_call() -> (String, String) {
    let exe = std::env::current_exe().unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_default();
    how_to_call_from(&exe, &here, &std::env::var_os("PATH").unwrap_or_default())
}

fn how_to_call_from(exe: &Path, here: &Path, path: &OsStr) -> (String, String) {
    let profile = exe
        .parent()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str());
    let target = exe.ancestors().nth(2).filter(|dir| dir.ends_with("target"));
    let absolute = shell_quoted(&exe.display().to_string());
    let (Some(profile), Some(root)) = (profile, target.and_then(Path::parent)) else {
        let call = if on_path(exe, path) {
            "ephor".to_owned()
        } else {
            absolute
        };
        return (call.clone(), call);
    };
    let shown = shell_quoted(&exe.strip_prefix(here).unwrap_or(exe).display().to_string());
    match profile {
        "release" if here.starts_with(root) => ("cargo run --release --".to_owned(), shown),
        "debug" if here.starts_with(root) => ("cargo run --".to_owned(), shown),
        _ => (absolute.clone(), absolute),
    }
}

/// Whether a shell finds this very file as `ephor`.
fn on_path(exe: &Path, path: &OsStr) -> bool {
    let found = std::env::split_paths(path)
        .map(|dir| dir.join("ephor"))
        .find(|file| file.is_file());
    found
        .and_then(|file| file.canonicalize().ok())
        .is_some_and(|file| file == exe)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_be_run_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let installed = dir.path().join("ephor");
        std::fs::write(&installed, "").unwrap();
        let call = |exe: &str| {
            how_to_call_from(
                Path::new(exe),
                Path::new("/src/ephor"),
                dir.path().as_os_str(),
            )
        };
        let release = (
            "cargo run --release --".to_owned(),
            "target/release/ephor".to_owned(),
        );
        assert_eq!(call("/src/ephor/target/release/ephor"), release);
        assert_eq!(call("/src/ephor/target/debug/ephor").0, "cargo run --");
        for elsewhere in ["/else/target/debug/ephor", "/opt/not on path/ephor"] {
            let quoted = shell_quoted(elsewhere);
            assert_eq!(call(elsewhere), (quoted.clone(), quoted));
        }
        assert_eq!(
            call(installed.to_str().unwrap()),
            ("ephor".to_owned(), "ephor".to_owned())
        );
    }
}
