//! Which credentials a command is to get: `NAME=cred://…` from `--env` and from a committed
//! file of such lines. The file holds names, so a value that is no reference is refused:
//! it may well be a secret.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use ephor_proto::cred::{As, CredRef};

use crate::exit::Failure;
use crate::login::Form;

/// Looked for in the working directory when no file is named.
pub const DEFAULT_FILE: &str = "ephor.env";
/// Largest file of references, in bytes.
const FILE_MAX: u64 = 64 * 1024;
/// Most references of one command.
const WANTED_MAX: usize = 256;
/// Longest variable name.
const NAME_MAX: usize = 128;
/// Set for every command by `ephor run` itself.
const RESERVED: [&str; 2] = ["EPHOR_SOCKET", "EPHOR_TASK"];

/// One variable and what it refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The variable.
    pub name: String,
    /// The reference.
    pub cred: CredRef,
}

impl Wanted {
    /// How it is handed over: as the reference says, or as its readers insist on.
    pub fn delivery(&self) -> As {
        if Form::of(&self.name).is_always_a_file() {
            As::File
        } else {
            self.cred.delivery()
        }
    }

    /// The entitlement, with the item if there is one: `identity/billing`.
    pub fn what(&self) -> String {
        match self.cred.item() {
            Some(item) => format!("{}/{item}", self.cred.entitlement()),
            None => self.cred.entitlement().to_owned(),
        }
    }
}

/// All references of a command, and where they came from.
#[derive(Debug, Default)]
pub struct Wants {
    /// In order; a name occurs once.
    pub list: Vec<Wanted>,
    /// The file they came from, if one was read.
    pub file: Option<PathBuf>,
}

impl Wants {
    /// From `--env` and the file; `--env` wins over the file. `no_file`: not even the default one.
    ///
    /// # Errors
    /// Exit 64, naming file and line or the option.
    pub fn collect(
        options: &[String],
        file: Option<&Path>,
        no_file: bool,
    ) -> Result<Self, Failure> {
        let (path, text) = match file {
            Some(path) => (Some(path.to_owned()), Some(read(path)?)),
            None if no_file => (None, None),
            None => default_file()?,
        };
        let mut list = match (&path, &text) {
            (Some(path), Some(text)) => parse(&path.display().to_string(), text)?,
            (Some(_), None) | (None, Some(_)) | (None, None) => Vec::new(),
        };
        for option in options {
            let wanted = line(option)
                .map_err(|why| Failure::usage(format!("--env {}: {why}", name_only(option))))?;
            list.retain(|known| known.name != wanted.name);
            list.push(wanted);
        }
        if list.len() > WANTED_MAX {
            return Err(Failure::usage(format!(
                "{} references; a command gets at most {WANTED_MAX}.",
                list.len()
            )));
        }
        Ok(Self { list, file: path })
    }
}

fn default_file() -> Result<(Option<PathBuf>, Option<String>), Failure> {
    let path = PathBuf::from(DEFAULT_FILE);
    match std::fs::symlink_metadata(&path) {
        Err(why) if why.kind() == ErrorKind::NotFound => Ok((None, None)),
        Ok(_) | Err(_) => {
            let text = read(&path)?;
            Ok((Some(path), Some(text)))
        }
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::usage(format!("{}: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(|why| failed(&why))?;
    let mut text = String::new();
    file.take(FILE_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|why| failed(&why))?;
    if text.len() as u64 > FILE_MAX {
        return Err(failed(&format!("larger than {FILE_MAX} bytes")));
    }
    Ok(text)
}

/// The lines of a file named `file`: references, blank lines and comments.
fn parse(file: &str, text: &str) -> Result<Vec<Wanted>, Failure> {
    let mut list: Vec<Wanted> = Vec::new();
    for (number, text) in (1..).zip(text.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let failed = |why: &str| Failure::usage(format!("{file}:{number}: {why}"));
        let wanted = line(text).map_err(|why| failed(&why))?;
        if list.iter().any(|known| known.name == wanted.name) {
            return Err(failed(&format!(
                "{} is set twice; remove one line",
                wanted.name
            )));
        }
        list.push(wanted);
    }
    Ok(list)
}

fn line(text: &str) -> Result<Wanted, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| "must be NAME=cred://ENTITLEMENT".to_owned())?;
    check_name(name)?;
    if !value.starts_with("cred://") {
        // Not shown: it may be a secret.
        return Err(format!(
            "{name} must be a reference such as {name}=cred://orders-db, never a value"
        ));
    }
    let cred: CredRef = value.parse().map_err(|why| format!("{name}: {why}"))?;
    Ok(Wanted {
        name: name.to_owned(),
        cred,
    })
}

fn check_name(name: &str) -> Result<(), String> {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    let good = name.chars().next().is_some_and(letter)
        && name.len() <= NAME_MAX
        && name.chars().all(|c| letter(c) || c.is_ascii_digit());
    if !good {
        let shown: String = name.escape_debug().take(40).collect();
        return Err(format!(
            "`{shown}` is no variable name (letters, digits and _, not beginning with a digit)"
        ));
    }
    if RESERVED.contains(&name) {
        return Err(format!("{name} is set by ephor itself"));
    }
    Ok(())
}

/// What may be repeated of an option that is wrong: never the value.
fn name_only(option: &str) -> String {
    let name = option.split('=').next().unwrap_or_default();
    name.escape_debug().take(40).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_references() {
        let text = "# names, no secrets\n\nA=cred://orders-db\r\n  B_2=cred://identity/billing?as=file  \n";
        let list = parse("ephor.env", text).unwrap();
        let seen: Vec<_> = list.iter().map(|w| (w.name.as_str(), w.what())).collect();
        assert_eq!(
            seen,
            [
                ("A", "orders-db".to_owned()),
                ("B_2", "identity/billing".to_owned())
            ]
        );
    }

    #[test]
    fn errors_name_the_line_and_never_a_value() {
        for (text, hint) in [
            ("A=cred://x\nnonsense hunter2", "f:2: must be NAME="),
            ("A=hunter2", "f:1: A must be a reference"),
            ("A='cred://x'", "f:1: A must be a reference"),
            ("1A=cred://x", "f:1: `1A` is no variable name"),
            ("export A=cred://x", "f:1: `export A` is no variable name"),
            ("A=cred://x\nA=cred://y", "f:2: A is set twice"),
            ("A=cred://X", "f:1: A: entitlement `X`"),
            ("A=cred://x?as=pipe", "f:1: A: `?as=pipe` is unknown"),
            ("EPHOR_TASK=cred://x", "f:1: EPHOR_TASK is set by ephor"),
            ("=cred://x", "f:1: `` is no variable name"),
        ] {
            let failure = parse("f", text).unwrap_err();
            assert_eq!(failure.code, crate::exit::USAGE);
            assert!(
                failure.message.contains(hint),
                "{text:?}: {}",
                failure.message
            );
            assert!(!failure.message.contains("hunter2"), "{}", failure.message);
        }
    }

    #[test]
    fn options_win_and_say_which_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.env");
        std::fs::write(&file, "A=cred://one\nB=cred://two\n").unwrap();
        let wants = Wants::collect(&["A=cred://three".into()], Some(&file), false).unwrap();
        let seen: Vec<_> = wants
            .list
            .iter()
            .map(|w| format!("{}={}", w.name, w.cred))
            .collect();
        assert_eq!(seen, ["B=cred://two", "A=cred://three"]);
        assert_eq!(wants.file, Some(file.clone()));

        let failure = Wants::collect(&["A=s3cret".into()], Some(&file), false).unwrap_err();
        assert!(
            failure.message.contains("--env A: A must be") && !failure.message.contains("s3cret")
        );
        let failure = Wants::collect(&[], Some(&dir.path().join("absent")), false).unwrap_err();
        assert!(
            failure.message.contains("absent: No such file"),
            "{}",
            failure.message
        );
        std::fs::write(&file, "#".repeat(70_000)).unwrap();
        assert!(Wants::collect(&[], Some(&file), false).is_err());
    }
}
