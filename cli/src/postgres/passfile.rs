//! `~/.pgpass`: one password a line, for those whom the four fields before it fit.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ephor_crypto::Secret;
use ephor_proto::postgres::{Address, DEFAULT_SOCKET_DIR};
use zeroize::Zeroizing;

use crate::exit::Failure;

/// Longest file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Whose password is looked for.
pub struct Key {
    fields: [String; 4],
}

impl Key {
    /// A server's default socket goes by `localhost`, as libpq has it.
    pub fn of(address: &Address, database: &str, user: &str) -> Self {
        let host = match address {
            Address::Socket { dir, .. } if dir == DEFAULT_SOCKET_DIR || dir == "/tmp" => {
                "localhost"
            }
            Address::Socket { .. } | Address::Tcp { .. } => address.host(),
        };
        let port = address.port().to_string();
        Self {
            fields: [host.to_owned(), port, database.to_owned(), user.to_owned()],
        }
    }
}

/// The first password whose fields fit. A file that is named must be there; one that others can
/// read is refused.
///
/// # Errors
/// Wrong usage, naming the file.
pub fn find(named: Option<&Path>, key: &Key) -> Result<Option<Secret>, Failure> {
    let wrong = |path: &Path, why: &dyn std::fmt::Display| {
        Failure::usage(format!("password file {}: {why}.", path.display()))
    };
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pgpass"));
    let Some(path) = named.map(Path::to_owned).or_else(home) else {
        return Ok(None);
    };
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(_) if named.is_none() => return Ok(None),
        Err(why) => return Err(wrong(&path, &why)),
    };
    let about = file.metadata().map_err(|why| wrong(&path, &why))?;
    if !about.is_file() || about.mode() & 0o077 != 0 {
        return Err(wrong(&path, &"others can read it: chmod 600"));
    }
    let mut text = Zeroizing::new(String::new());
    let read = file.take(FILE_MAX).read_to_string(&mut text);
    read.map_err(|why| wrong(&path, &why))?;
    Ok(text.lines().find_map(|line| password(line, key)))
}

/// The password of a line that fits.
fn password(line: &str, key: &Key) -> Option<Secret> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    for wanted in &key.fields {
        let (field, after) = field(rest)?;
        let any = rest.starts_with("*:");
        if !any && *field != *wanted {
            return None;
        }
        rest = after;
    }
    let mut password = Zeroizing::new(String::with_capacity(rest.len()));
    unescaped(rest, &mut password);
    let some = !password.is_empty();
    some.then(|| Secret::from_string(std::mem::take(&mut *password)))
}

/// Up to the next colon that no backslash stands before, and what follows it.
fn field(line: &str) -> Option<(Zeroizing<String>, &str)> {
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ':' => {
                let mut out = Zeroizing::new(String::new());
                unescaped(line.get(..at)?, &mut out);
                return Some((out, line.get(at + 1..)?));
            }
            _ => {}
        }
    }
    None
}

fn unescaped(text: &str, out: &mut String) {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key() -> Key {
        Key::of(&"db1".parse().unwrap(), "orders", "a:b")
    }

    fn found(line: &str) -> Option<String> {
        password(line, &key()).map(|secret| secret.expose_str().unwrap().to_owned())
    }

    #[test]
    fn lines_as_libpq_reads_them() {
        for (line, password) in [
            ("db1:5432:orders:a\\:b:p\\:q\\\\", Some("p:q\\")),
            ("*:*:*:*:p", Some("p")),
            ("db1:*:orders:*:p q", Some("p q")),
            ("db1:5432:orders:a\\:b:", None),
            ("db2:5432:orders:a\\:b:p", None),
            ("db1:5432:orders:a:b:p", None),
            ("db1:5432:\\*:a\\:b:p", None),
            ("# *:*:*:*:p", None),
            ("*:*:*:*", None),
            ("", None),
        ] {
            assert_eq!(found(line).as_deref(), password, "{line}");
        }
        let socket = Key::of(&"/var/run/postgresql".parse().unwrap(), "d", "u");
        assert!(password("localhost:5432:d:u:p", &socket).is_some());
    }

    #[test]
    fn a_file_that_others_read_is_refused_and_a_named_one_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        assert!(find(Some(&path), &key()).is_err());
        std::fs::write(&path, "x:1:y:z:other\n*:*:*:*:right\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode));
        mode(0o640).unwrap();
        let why = find(Some(&path), &key()).unwrap_err().to_string();
        assert!(why.contains("chmod 600") && !why.contains("right"), "{why}");
        mode(0o600).unwrap();
        let secret = find(Some(&path), &key()).unwrap().unwrap();
        assert_eq!(secret.expose(), b"right");
    }
}
