//! Putting a credential where the command will look for it: its environment, a file that is
//! kept fresh, or a descriptor.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use ephor_proto::cred::As;
use rustix::fs::{MemfdFlags, SealFlags};
use zeroize::Zeroizing;

use super::Prepared;
use super::fetch::Fetched;
use super::keep::Kept;
use crate::clock;
use crate::cred::Wanted;
use crate::exit::Failure;
use crate::login::{Beside, Form, Login, OPTIONS};
use crate::words::{span, time_of_day};

/// Puts one credential where the command will look for it; says so in words.
pub(super) fn deliver(
    prepared: &mut Prepared,
    wanted: &Wanted,
    one: Fetched,
    reason: Option<&str>,
) -> Result<String, Failure> {
    let now = clock::wall();
    prepared
        .kept
        .push(Kept::new(wanted.clone(), reason.map(str::to_owned), &one));
    if let Some(login) = &one.login {
        return deliver_login(prepared, wanted, &one, login);
    }
    let life = one
        .life
        .map_or_else(|| span(now, one.expires_at), |life| life.to_string());
    match wanted.delivery() {
        As::Env => {
            prepared.environment.set(&wanted.name, one.whole.expose());
            Ok(format!(
                "{life} {}, until {}",
                one.word(),
                time_of_day(one.expires_at)
            ))
        }
        As::Fd => {
            let fd = in_memory(&wanted.name, one.whole.expose()).map_err(|why| {
                Failure::local(format!("{}: cannot make a descriptor", wanted.name), why)
            })?;
            let path = format!("/dev/fd/{}", fd.as_raw_fd());
            prepared.environment.set(&wanted.name, path.as_bytes());
            prepared.memory.push(fd);
            Ok(format!(
                "{life} {} in {path}, until {}",
                one.word(),
                time_of_day(one.expires_at)
            ))
        }
        As::File => {
            let Some(files) = &prepared.files else {
                return Err(Failure::local(&wanted.name, "no directory for its file"));
            };
            let path = files.dir.put(&wanted.name, &one)?;
            let every = span(now, one.refresh_at);
            prepared
                .environment
                .set(&wanted.name, path.as_os_str().as_bytes());
            let (word, what) = (
                one.word(),
                if one.pems.is_some() { "files" } else { "file" },
            );
            Ok(format!("{life} {word}, {what} rewritten every {every}"))
        }
    }
}

/// A login stays as it is while the command lives: nothing of it is ever written anew but the certificate
/// that lets it in, where it has one.
fn deliver_login(
    prepared: &mut Prepared,
    wanted: &Wanted,
    one: &Fetched,
    login: &Login,
) -> Result<String, Failure> {
    let form = Form::of(&wanted.name);
    let files = match &prepared.files {
        Some(files) => files.dir.put_beside(&wanted.name, login)?,
        None => Beside::default(),
    };
    let shaped = login.shaped(form, &files);
    let mut beside = shaped.beside;
    if prepared.pg_env && form == Form::Url {
        beside = login.shaped(Form::Variables, &files).beside;
    }
    for (name, value) in &beside {
        let inherited = prepared.environment.get(name).filter(|_| *name == OPTIONS);
        let value = match inherited {
            // The last one wins.
            Some(inherited) => [inherited, b" ", value.expose()].concat(),
            None => value.expose().to_vec(),
        };
        prepared.environment.set(name, &Zeroizing::new(value));
    }
    let place = match wanted.delivery() {
        As::Env if form == Form::Variables => String::new(),
        As::Env => {
            prepared.environment.set(&wanted.name, shaped.main.expose());
            String::new()
        }
        As::Fd => {
            let fd = in_memory(&wanted.name, shaped.main.expose()).map_err(|why| {
                Failure::local(format!("{}: cannot make a descriptor", wanted.name), why)
            })?;
            let path = format!("/dev/fd/{}", fd.as_raw_fd());
            prepared.environment.set(&wanted.name, path.as_bytes());
            prepared.memory.push(fd);
            // Where it is means nothing to whoever did not ask for it there.
            if prepared.is_ours {
                String::new()
            } else {
                format!(" in {path},")
            }
        }
        As::File => {
            let Some(files) = &prepared.files else {
                return Err(Failure::local(&wanted.name, "no directory for its file"));
            };
            let path = files.dir.put(&wanted.name, one)?;
            prepared
                .environment
                .set(&wanted.name, path.as_os_str().as_bytes());
            " in a file,".to_owned()
        }
    };
    let (short, until) = (login.short(), &prepared.until);
    let by = match login.certificate() {
        Some(_) => " by certificate,",
        None => "",
    };
    Ok(format!(
        "{} {short},{by}{place} kept until {until}",
        one.word()
    ))
}

/// A sealed memory file with these bytes, which a child inherits under the same number.
fn in_memory(name: &str, bytes: &[u8]) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::ALLOW_SEALING)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0))?;
    rustix::fs::fcntl_add_seals(
        &fd,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(fd)
}
