//! The files of a policy directory: which ones count, their bytes, their places.
//!
//! Only regular `*.toml` files in the directory itself are policy; names that begin with a
//! dot are editors' and tools' own. A link is followed only inside the directory (as
//! Kubernetes mounts a ConfigMap), so that nobody who may add a name can add content
//! from elsewhere.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ephor_crypto::digest::{Sha256Hasher, hex};
use ephor_proto::http::admin::PolicyFile;

use super::error::{LoadError, LoadErrors, Place};
use super::limits::{MAX_FILE_BYTES, MAX_FILES, MAX_POLICY_BYTES};

/// One policy file.
pub(super) struct Source {
    pub(super) name: Arc<str>,
    pub(super) text: String,
    line_starts: Vec<usize>,
}

impl Source {
    pub(super) fn new(name: &str, text: String) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0)
            .chain(ends.map(|(at, _)| at + 1))
            .collect();
        Self {
            name: name.into(),
            text,
            line_starts,
        }
    }

    /// The place of a byte of the text.
    pub(super) fn place(&self, offset: usize) -> Place {
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = self
            .line_starts
            .get(line.saturating_sub(1))
            .copied()
            .unwrap_or(0);
        let before = self.text.get(start..offset).unwrap_or_default();
        Place {
            file: Arc::clone(&self.name),
            line,
            column: before.chars().count() + 1,
        }
    }
}

/// SHA-256, in hexadecimal, over the names and bytes of all files in order; lengths are
/// hashed too, so that no two policies share a preimage.
pub(super) fn version(sources: &[Source]) -> String {
    let mut hasher = Sha256Hasher::new();
    hasher.update(b"ephor policy 1\n");
    for source in sources {
        for part in [source.name.as_bytes(), source.text.as_bytes()] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
    }
    hex(&hasher.finish())
}

/// Files that came from elsewhere than a directory, under the same rules: sorted by name, and
/// nothing that a directory could not have given.
pub(super) fn from_files(files: Vec<PolicyFile>) -> Result<Vec<Source>, LoadErrors> {
    let mut errors = Vec::new();
    let mut refuse = |name: &str, what: String, hint: &str| {
        errors.push(LoadError {
            place: Place::whole(&name.escape_debug().to_string()),
            what,
            hint: hint.into(),
        });
    };
    let total: u64 = files.iter().map(|file| file.text.len() as u64).sum();
    let mut seen = HashSet::new();
    for file in &files {
        let plain = file.name.ends_with(".toml") && !file.name.starts_with('.');
        if !plain || file.name.contains(|c: char| c.is_control() || c == '/') {
            refuse(
                &file.name,
                "not the name of a policy file".into(),
                "Name it like orders.toml.",
            );
        }
        if !seen.insert(file.name.as_str()) {
            refuse(&file.name, "the same file twice".into(), "Send it once.");
        }
        if file.text.len() as u64 > MAX_FILE_BYTES {
            let what = format!("the file is larger than {MAX_FILE_BYTES} bytes");
            refuse(&file.name, what, "");
        }
    }
    if files.is_empty() {
        refuse(
            "*.toml",
            "no policy file was sent".into(),
            "Send at least one.",
        );
    }
    if files.len() > MAX_FILES {
        let what = format!("{} policy files, more than {MAX_FILES}", files.len());
        refuse("*.toml", what, "Put several teams into one file.");
    }
    if total > MAX_POLICY_BYTES {
        let what = format!("the policy is larger than {MAX_POLICY_BYTES} bytes");
        refuse("*.toml", what, "");
    }
    drop(seen);
    if !errors.is_empty() {
        return Err(LoadErrors::new(errors));
    }
    let mut sources: Vec<_> = files
        .into_iter()
        .map(|file| Source::new(&file.name, file.text))
        .collect();
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sources)
}

/// The policy files of a directory as they are, for whoever sends or keeps them.
///
/// # Errors
/// What of the directory cannot be read; whether it is a policy is not looked at.
pub fn read_files(dir: &Path) -> Result<Vec<PolicyFile>, LoadErrors> {
    let sources = read_dir(dir)?;
    let file = |source: Source| PolicyFile {
        name: source.name.to_string(),
        text: source.text,
    };
    Ok(sources.into_iter().map(file).collect())
}

/// Reads the policy files of `dir`, sorted by name.
pub(super) fn read_dir(dir: &Path) -> Result<Vec<Source>, LoadErrors> {
    let whole = dir.display().to_string();
    let refuse = |what: String, hint: &str| {
        LoadErrors::new(vec![LoadError {
            place: Place::whole(&whole),
            what,
            hint: hint.into(),
        }])
    };
    let root = dir.canonicalize().map_err(|e| {
        refuse(
            format!("the policy directory cannot be read ({e})"),
            CHECK_PATH,
        )
    })?;
    let names = toml_names(&root).map_err(|e| {
        refuse(
            format!("the policy directory cannot be listed ({e})"),
            CHECK_PATH,
        )
    })?;
    if names.is_empty() {
        return Err(refuse(
            "no *.toml file in the policy directory".into(),
            CHECK_PATH,
        ));
    }
    if names.len() > MAX_FILES {
        let what = format!("{} policy files, more than {MAX_FILES}", names.len());
        return Err(refuse(what, "Put several teams into one file."));
    }
    read_all(&root, names)
}

const CHECK_PATH: &str = "Check the path and the permissions.";

fn toml_names(root: &Path) -> std::io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let name = entry?.file_name();
        let bytes = name.as_encoded_bytes();
        if bytes.ends_with(b".toml") && !bytes.starts_with(b".") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read_all(root: &Path, names: Vec<std::ffi::OsString>) -> Result<Vec<Source>, LoadErrors> {
    let (mut sources, mut errors, mut total) = (Vec::new(), Vec::new(), 0);
    for name in names {
        let shown = name.to_string_lossy().escape_debug().to_string();
        let mut refuse = |place: Place, what: String, hint: &str| {
            errors.push(LoadError {
                place,
                what,
                hint: hint.into(),
            });
        };
        let Some(name) = name
            .to_str()
            .filter(|name| !name.chars().any(char::is_control))
        else {
            refuse(
                Place::whole(&shown),
                "a file name that is not plain UTF-8".into(),
                "Rename it.",
            );
            continue;
        };
        let bytes = match read_file(root, name) {
            Ok(bytes) => bytes,
            Err(problem) => {
                refuse(Place::whole(name), problem, "");
                continue;
            }
        };
        total += bytes.len() as u64;
        if total > MAX_POLICY_BYTES {
            let what = format!("the policy is larger than {MAX_POLICY_BYTES} bytes");
            refuse(
                Place::whole(name),
                what,
                "Nothing after this file was read.",
            );
            break;
        }
        match decode(name, bytes) {
            Ok(source) => sources.push(source),
            Err(place) => refuse(
                place,
                "a byte that is not UTF-8".into(),
                "Save the file as UTF-8.",
            ),
        }
    }
    if errors.is_empty() {
        Ok(sources)
    } else {
        Err(LoadErrors::new(errors))
    }
}

fn read_file(root: &Path, name: &str) -> Result<Vec<u8>, String> {
    let failed = |e: std::io::Error| format!("the file cannot be read ({e})");
    let path: PathBuf = root.join(name).canonicalize().map_err(failed)?;
    if !path.starts_with(root) {
        return Err("a link that leaves the policy directory".into());
    }
    // Before the file is opened: opening a FIFO would wait for its writer.
    let meta = std::fs::metadata(&path).map_err(failed)?;
    if !meta.is_file() {
        return Err("not a regular file".into());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(&path).map_err(failed)?;
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("the file is larger than {MAX_FILE_BYTES} bytes"));
    }
    Ok(bytes)
}

fn decode(name: &str, bytes: Vec<u8>) -> Result<Source, Place> {
    String::from_utf8(bytes)
        .map(|text| Source::new(name, text))
        .map_err(|error| {
            let good = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes().get(..good).unwrap_or_default());
            Source::new(name, text.into_owned()).place(good)
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn errors(dir: &Path) -> String {
        read_dir(dir).err().unwrap().to_string()
    }

    #[test]
    fn places_count_lines_and_characters() {
        let source = Source::new("a.toml", "é = 1\n\nlast".into());
        let at = |offset| source.place(offset).to_string();
        assert_eq!(at(0), "a.toml:1:1");
        assert_eq!(at(3), "a.toml:1:3");
        assert_eq!(at(7), "a.toml:2:1");
        assert_eq!(at(8), "a.toml:3:1");
        assert_eq!(at(12), "a.toml:3:5");
    }

    #[test]
    fn the_version_depends_on_names_bytes_and_borders() {
        let of = |files: &[(&str, &str)]| {
            version(
                &files
                    .iter()
                    .map(|(n, t)| Source::new(n, (*t).into()))
                    .collect::<Vec<_>>(),
            )
        };
        let all = [
            of(&[("a.toml", "x"), ("b.toml", "y")]),
            of(&[("a.toml", "x"), ("c.toml", "y")]),
            of(&[("a.toml", "xb.tomly")]),
            of(&[("a.toml", "x")]),
        ];
        for (i, a) in all.iter().enumerate() {
            assert_eq!(a.len(), 64);
            assert!(all.iter().skip(i + 1).all(|b| a != b));
        }
        assert_eq!(all[0], of(&[("a.toml", "x"), ("b.toml", "y")]));
    }

    #[test]
    fn only_plain_toml_files_count_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.toml", "a.toml", ".hidden.toml", "notes.txt"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        std::fs::create_dir(dir.path().join("..data")).unwrap();
        std::fs::write(dir.path().join("..data/c.toml"), "c").unwrap();
        std::os::unix::fs::symlink("..data/c.toml", dir.path().join("c.toml")).unwrap();
        let sources = read_dir(dir.path()).unwrap();
        let names: Vec<_> = sources.iter().map(|s| s.name.to_string()).collect();
        assert_eq!(names, ["a.toml", "b.toml", "c.toml"]);
        assert_eq!(sources[2].text, "c");
    }

    #[test]
    fn what_cannot_be_policy_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            errors(dir.path()).starts_with("invalid: no *.toml file in the policy directory. ")
        );
        assert!(errors(&dir.path().join("absent")).contains("cannot be read (No such file"));
        std::fs::create_dir(dir.path().join("dir.toml")).unwrap();
        std::fs::write(dir.path().join("latin.toml"), b"a = 1\nb = \"\xe9\"\n").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("out.toml")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("loose.toml")).unwrap();
        let big = std::fs::File::create(dir.path().join("big.toml")).unwrap();
        big.set_len(MAX_FILE_BYTES + 1).unwrap();
        let text = errors(dir.path());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "invalid: the file is larger than 8388608 bytes. big.toml."
        );
        assert_eq!(lines[1], "invalid: not a regular file. dir.toml.");
        assert_eq!(
            lines[2],
            "invalid: a byte that is not UTF-8. latin.toml:2:6. Save the file as UTF-8."
        );
        assert!(lines[3].contains("No such file") && lines[3].ends_with("loose.toml."));
        assert_eq!(
            lines[4],
            "invalid: a link that leaves the policy directory. out.toml."
        );
    }

    #[test]
    fn too_many_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..=MAX_FILES {
            std::fs::write(dir.path().join(format!("{n}.toml")), "").unwrap();
        }
        assert!(errors(dir.path()).starts_with("invalid: 1025 policy files, more than 1024. "));
    }
}
