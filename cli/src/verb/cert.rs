//! `ephor cert`: one certificate for the process that called us, with its key.
//!
//! As with `ephor token`, it joins the task of its caller (`--bind`); the key is never on a
//! command line.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;

use ephor_proto::cred::{CredRef, IDENTITY};
use ephor_proto::http::agent::{Certificate, Token};
use zeroize::Zeroizing;

use super::token::ttl_seconds;
use crate::args::{self, CertOutput};
use crate::client::Peer;
use crate::exit::{Failure, Outcome};
use crate::pems::Pems;
use crate::show::{to_stderr, to_stdout};
use crate::words::time_of_day;

/// Fetches it and prints it, or writes its files.
pub async fn cert(args: args::Cert) -> Outcome {
    let target = target(&args)?;
    if let Some(dir) = &args.to {
        make_private(dir)?;
    }
    let agent = Peer::agent();
    let mut answer: Token = agent.read(&target).await?;
    let Some(dir) = &args.to else {
        to_stdout(&printed(&args, &mut answer)?).map_err(although_issued)?;
        return Ok(ExitCode::SUCCESS);
    };
    let until = time_of_day(answer.credential.expires_at);
    write(dir, &Pems::of(taken(&mut answer)?)).map_err(although_issued)?;
    to_stderr(&format!(
        "ephor: tls.crt, tls.key, ca.crt and tls.pem are in {}, good until {until}.\n       \
         Nobody renews them there: `ephor run --env NAME=cred://…?as=file` does.\n",
        dir.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn although_issued(failure: Failure) -> Failure {
    failure.although_issued("What was issued is revoked when its task ends.".to_owned())
}

fn target(args: &args::Cert) -> Result<String, Failure> {
    let name = args.entitlement.as_deref().unwrap_or(IDENTITY);
    let reference = name.strip_prefix("cred://").unwrap_or(name);
    let wanted: CredRef = format!("cred://{reference}")
        .parse()
        .map_err(Failure::usage)?;
    if wanted.item().is_some() || reference.contains('?') {
        return Err(Failure::usage(format!(
            "{name}: name the entitlement alone, such as cred://{}.",
            wanted.entitlement()
        )));
    }
    let ttl = args.ttl.as_deref().map(ttl_seconds).transpose()?;
    let ttl = ttl.map_or_else(String::new, |ttl| format!("&ttl_seconds={ttl}"));
    let (entitlement, bind) = (wanted.entitlement(), args.bind);
    Ok(format!(
        "/v1/certificate?entitlement={entitlement}&bind={bind}{ttl}"
    ))
}

fn taken(answer: &mut Token) -> Result<Certificate, Failure> {
    let certificate = answer.credential.certificate.take();
    certificate.ok_or_else(|| Failure::usage("this gives no certificate; try ephor token."))
}

fn printed(args: &args::Cert, answer: &mut Token) -> Result<Zeroizing<String>, Failure> {
    match args.output {
        CertOutput::Json => {
            let text = serde_json::to_string_pretty(answer)
                .map_err(|why| Failure::local("cannot be printed", why))?;
            Ok(Zeroizing::new(text + "\n"))
        }
        CertOutput::Pem => {
            let whole = Pems::of(taken(answer)?).in_one();
            let text = whole.expose_str();
            let text = text.map_err(|why| Failure::local("cannot be printed", why))?;
            Ok(Zeroizing::new(text.to_owned()))
        }
    }
}

/// A directory that nobody else can look into.
fn make_private(dir: &Path) -> Result<(), Failure> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => Ok(()),
        Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(why) => Err(Failure::local(
            format!("cannot make {}", dir.display()),
            why,
        )),
    }
}

/// Each file whole or not at all, readable by its owner alone.
fn write(dir: &Path, pems: &Pems) -> Result<(), Failure> {
    use std::io::Write;
    for (name, bytes) in pems.files() {
        let (path, new) = (dir.join(name), dir.join(format!(".{name}.new")));
        let failed = |why| Failure::local(format!("cannot write {}", path.display()), why);
        let _ = std::fs::remove_file(&new);
        let mut options = std::fs::OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let written = options
            .open(&new)
            .and_then(|mut file| file.write_all(bytes.expose()))
            .and_then(|()| std::fs::rename(&new, &path));
        written.map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Parser;

    fn parsed(line: &[&str]) -> args::Cert {
        let argv = ["ephor", "cert"].into_iter().chain(line.iter().copied());
        match crate::args::Cli::try_parse_from(argv).unwrap().verb {
            crate::args::Verb::Cert(cert) => cert,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn without_a_name_it_is_ones_own() {
        for (line, expected) in [
            (&[][..], "/v1/certificate?entitlement=identity&bind=parent"),
            (
                &["web-cert"],
                "/v1/certificate?entitlement=web-cert&bind=parent",
            ),
            (
                &["cred://web-cert", "--bind", "7", "--ttl", "90s"],
                "/v1/certificate?entitlement=web-cert&bind=7&ttl_seconds=90",
            ),
        ] {
            assert_eq!(target(&parsed(line)).unwrap(), expected);
        }
        for line in [["identity/billing"], ["cred://x?as=file"], ["Bad"]] {
            assert_eq!(target(&parsed(&line)).unwrap_err().code, crate::exit::USAGE);
        }
    }
}
