//! `ephor host ls|invite|ban`

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use ephor_proto::http::admin::{Host, Invite, Invited, Reason, Status};
use ephor_proto::time::UnixMillis;
use ephor_proto::ttl::Ttl;
use zeroize::Zeroizing;

use crate::args;
use crate::client::{Peer, segment};
use crate::clock;
use crate::exit::{Failure, Outcome, STILL_REVOKING};
use crate::show::{self, Column, brief, moment};
use crate::words::{plural, shell_quoted};

/// Does what was asked.
pub async fn host(verb: args::Host) -> Outcome {
    let broker = Peer::broker();
    match verb {
        args::Host::Ls { listing } => {
            let hosts: Vec<Host> = broker.read("/v1/hosts").await?;
            let none = "No hosts.  To let one join: ephor host invite NAME";
            show::listing(listing.output, &hosts, &short(), &whole(), none)?;
            Ok(ExitCode::SUCCESS)
        }
        args::Host::Invite {
            host,
            ttl,
            token_file,
        } => invite(&broker, host, &ttl, token_file.as_deref()).await,
        args::Host::Ban { host, reason } => ban(&broker, &host, reason).await,
    }
}

async fn invite(broker: &Peer, host: String, ttl: &str, token_file: Option<&Path>) -> Outcome {
    let ttl: Ttl = ttl
        .parse()
        .map_err(|why| Failure::usage(format!("--ttl: {why}")))?;
    // A place for the token first: one that is made and cannot be kept would be lost.
    let place = token_file.map(TokenFile::beside).transpose()?;
    let ask = Invite {
        host,
        ttl_seconds: Some(ttl.as_seconds()),
    };
    let Invited { token, expires_at } = broker.post("/v1/hosts/invite", &ask).await?;
    let token = Zeroizing::new(token);
    match place {
        Some(place) => place.keep(&token)?,
        None => {
            let line = Zeroizing::new(format!("{}\n", token.as_str()));
            show::to_stdout(&line)?;
        }
    }
    let status: Status = broker.read("/v1/status").await?;
    show::to_stderr(&invited(&ask.host, expires_at, token_file, &status.issuer));
    Ok(ExitCode::SUCCESS)
}

fn invited(host: &str, expires_at: UnixMillis, token_file: Option<&Path>, broker: &str) -> String {
    let until = moment(expires_at, clock::wall());
    // Without a file the command asks for the token: it must not stand on a command line.
    let (file, ask) = token_file.map_or_else(
        || ("-".to_owned(), ", then the token and Ctrl-D"),
        |file| (shell_quoted(&file.display().to_string()), ""),
    );
    let (kind, name) = if host.contains('*') {
        ("names like", "\"$(uname -n)\"")
    } else {
        ("the name", host)
    };
    let broker = shell_quoted(broker);
    format!(
        "ephor: good once, for {kind} {host}, until {until}.\n       \
         On that host{ask}:  ephor-agent join --broker {broker} --token-file {file} --host {name}\n"
    )
}

/// A file that only its owner can read, and that appears whole.
struct TokenFile<'a> {
    path: &'a Path,
    file: tempfile::NamedTempFile,
}

impl<'a> TokenFile<'a> {
    fn beside(path: &'a Path) -> Result<Self, Failure> {
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            Some(_) | None => Path::new("."),
        };
        if path.is_dir() {
            return Err(Failure::usage(format!(
                "--token-file: {} is a directory",
                path.display()
            )));
        }
        let mode = std::fs::Permissions::from_mode(0o600);
        let file = tempfile::Builder::new()
            .prefix(".join-token.")
            .permissions(mode)
            .tempfile_in(parent);
        let file =
            file.map_err(|why| Failure::usage(format!("--token-file: {}: {why}", path.display())))?;
        Ok(Self { path, file })
    }

    fn keep(mut self, token: &str) -> Result<(), Failure> {
        let path = self.path;
        let lost = |why: std::io::Error| {
            Failure::local(
                format!("{}: the token was made and is lost", path.display()),
                why,
            )
        };
        let file = self.file.as_file_mut();
        writeln!(file, "{token}")
            .and_then(|()| file.sync_all())
            .map_err(lost)?;
        self.file.persist(path).map_err(|why| lost(why.error))?;
        Ok(())
    }
}

async fn ban(broker: &Peer, name: &str, reason: String) -> Outcome {
    let host: Host = broker
        .post(
            &format!("/v1/hosts/{}/ban", segment(name)),
            &Reason { reason },
        )
        .await?;
    let (text, code) = banned(&host);
    show::to_stdout(&text)?;
    Ok(code)
}

fn banned(host: &Host) -> (String, ExitCode) {
    let name = &host.name;
    if host.open_tasks == 0 {
        return (
            format!(
                "{name} is {}: its streams are closed, none of its tasks is open.\n",
                host.state
            ),
            ExitCode::SUCCESS,
        );
    }
    let open = plural(
        usize::try_from(host.open_tasks).unwrap_or(usize::MAX),
        "task",
    );
    let text = format!(
        "{name} is {}: its streams are closed; {open} still being ended.\nTo follow:  ephor task ls\n",
        host.state
    );
    (text, ExitCode::from(STILL_REVOKING))
}

fn short() -> [Column<Host>; 6] {
    let now = clock::wall();
    [
        Column::elastic("HOST", |host: &Host| host.name.clone()),
        Column::new("STATE", |host: &Host| host.state.clone()),
        Column::new("HEARD", move |host: &Host| {
            host.last_heard
                .map_or_else(|| "never".to_owned(), |at| brief(at, now))
        }),
        Column::new("TASKS", |host: &Host| host.open_tasks.to_string()),
        Column::new("JOINED", move |host: &Host| brief(host.joined_at, now)),
        Column::new("CERTIFICATE UNTIL", move |host: &Host| {
            moment(host.certificate_expires_at, now)
        }),
    ]
}

fn whole() -> [Column<Host>; 6] {
    [
        Column::new("host", |host: &Host| host.name.clone()),
        Column::new("state", |host: &Host| host.state.clone()),
        Column::new("last_heard", |host: &Host| {
            host.last_heard.map(|at| at.to_string()).unwrap_or_default()
        }),
        Column::new("open_tasks", |host: &Host| host.open_tasks.to_string()),
        Column::new("joined_at", |host: &Host| host.joined_at.to_string()),
        Column::new("certificate_expires_at", |host: &Host| {
            host.certificate_expires_at.to_string()
        }),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_is_the_owners_alone_and_appears_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "older, and readable by others").unwrap();
        let place = TokenFile::beside(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "older, and readable by others"
        );
        place.keep("ej1.x").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "ej1.x\n");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_place_that_cannot_be_used_is_refused_before_a_token_is_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(TokenFile::beside(&dir.path().join("missing/token")).is_err());
        assert!(TokenFile::beside(dir.path()).is_err());
    }

    #[test]
    fn what_is_said_to_be_run_can_be() {
        let at = UnixMillis::from_unix_seconds(1_700_000_000);
        let said = invited(
            "web-3",
            at,
            Some(Path::new("/tmp/a b")),
            "https://broker:8443",
        );
        let command =
            "ephor-agent join --broker https://broker:8443 --token-file '/tmp/a b' --host web-3\n";
        assert!(said.ends_with(command), "{said}");
        assert!(
            said.contains("for the name web-3, until 2023-11-14 22:13:20Z"),
            "{said}"
        );
        let any = invited("web-*", at, None, "https://b");
        assert!(
            any.ends_with(
                "On that host, then the token and Ctrl-D:  \
                 ephor-agent join --broker https://b --token-file - --host \"$(uname -n)\"\n"
            ),
            "{any}"
        );
    }

    #[test]
    fn a_ban_is_not_over_while_tasks_are_open() {
        let at = UnixMillis::from_unix_seconds(1_700_000_000);
        let mut host = Host {
            name: "web-3".to_owned(),
            state: "banned".to_owned(),
            joined_at: at,
            last_heard: None,
            open_tasks: 0,
            certificate_expires_at: at,
        };
        assert_eq!(banned(&host).1, ExitCode::SUCCESS);
        host.open_tasks = 2;
        let (text, code) = banned(&host);
        assert!(text.contains("2 tasks still being ended"), "{text}");
        assert_eq!(code, ExitCode::from(STILL_REVOKING));
    }
}
