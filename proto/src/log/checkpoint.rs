//! The checkpoint's text (c2sp.org/tlog-checkpoint): origin, size, root.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Hash;

/// The head of a log: which one, how large, and the root that fixes every leaf.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    origin: String,
    size: u64,
    root: [u8; 32],
}

/// A text that is no checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadCheckpoint {
    /// The origin is empty or cannot stand in a note.
    #[error("the checkpoint's origin is empty or has blanks, '+' or control characters")]
    Origin,
    /// Not the three lines.
    #[error("a checkpoint is three lines: origin, size, root hash")]
    Lines,
    /// The size is no plain decimal.
    #[error("the checkpoint's size is no decimal number")]
    Size,
    /// The root is no base64 of 32 bytes.
    #[error("the checkpoint's root is no base64 of 32 bytes")]
    Root,
    /// Extension lines, which this log never writes.
    #[error("the checkpoint has extension lines, which this log does not write")]
    Extension,
}

impl Checkpoint {
    /// From its parts.
    ///
    /// # Errors
    /// When the origin cannot name a key in a signed note.
    pub fn new(origin: &str, size: u64, root: [u8; 32]) -> Result<Self, BadCheckpoint> {
        if !super::note::is_name(origin) {
            return Err(BadCheckpoint::Origin);
        }
        Ok(Self {
            origin: origin.to_owned(),
            size,
            root,
        })
    }

    /// The log's name.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The number of leaves.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The root of the tree.
    pub const fn root(&self) -> [u8; 32] {
        self.root
    }

    pub(super) const fn root_hash(&self) -> Hash {
        Hash(self.root)
    }
}

impl std::fmt::Display for Checkpoint {
    /// The text that is signed, with its last newline.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{}\n{}\n{}",
            self.origin,
            self.size,
            STANDARD.encode(self.root)
        )
    }
}

impl std::str::FromStr for Checkpoint {
    type Err = BadCheckpoint;

    fn from_str(text: &str) -> Result<Self, BadCheckpoint> {
        let body = text.strip_suffix('\n').ok_or(BadCheckpoint::Lines)?;
        let mut lines = body.split('\n');
        let mut line = || lines.next().ok_or(BadCheckpoint::Lines);
        let (origin, size, root) = (line()?, line()?, line()?);
        if lines.next().is_some() {
            return Err(BadCheckpoint::Extension);
        }
        let number: u64 = size.parse().map_err(|_| BadCheckpoint::Size)?;
        if number.to_string() != size {
            return Err(BadCheckpoint::Size);
        }
        let root = STANDARD.decode(root).map_err(|_| BadCheckpoint::Root)?;
        Self::new(
            origin,
            number,
            root.try_into().map_err(|_| BadCheckpoint::Root)?,
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The example of c2sp.org/tlog-checkpoint, without its signature.
    const EXAMPLE: &str =
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

    #[test]
    fn the_standards_example_round_trips() {
        let checkpoint: Checkpoint = EXAMPLE.parse().unwrap();
        assert_eq!(checkpoint.origin(), "example.com/behind-the-sofa");
        assert_eq!(checkpoint.size(), 20_852_163);
        assert_eq!(checkpoint.to_string(), EXAMPLE);
        let root = Hash(checkpoint.root());
        let theirs =
            tlog_tiles::checkpoint::Checkpoint::new(checkpoint.origin(), 20_852_163, root, "");
        assert_eq!(theirs.unwrap().to_bytes(), EXAMPLE.as_bytes());
    }

    #[test]
    fn other_texts_are_refused() {
        let root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
        for (text, error) in [
            (String::new(), BadCheckpoint::Lines),
            ("o\n1\n".to_owned(), BadCheckpoint::Lines),
            (format!("o\n1\n{root}"), BadCheckpoint::Lines),
            (format!("\n1\n{root}\n"), BadCheckpoint::Origin),
            (format!("o o\n1\n{root}\n"), BadCheckpoint::Origin),
            (format!("o\n01\n{root}\n"), BadCheckpoint::Size),
            (format!("o\n+1\n{root}\n"), BadCheckpoint::Size),
            (format!("o\n-1\n{root}\n"), BadCheckpoint::Size),
            (
                format!("o\n18446744073709551616\n{root}\n"),
                BadCheckpoint::Size,
            ),
            ("o\n1\nAAAA\n".to_owned(), BadCheckpoint::Root),
            (format!("o\n1\n{root}\r\n"), BadCheckpoint::Root),
            (format!("o\n1\n{root}\nextra\n"), BadCheckpoint::Extension),
        ] {
            assert_eq!(text.parse::<Checkpoint>(), Err(error), "{text:?}");
        }
    }
}
