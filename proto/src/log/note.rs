//! Signed notes and verifier keys (c2sp.org/signed-note), Ed25519 only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::VerifyFn;
use crate::limits::{MAX_NOTE_BYTES, MAX_NOTE_SIGNATURES};

/// The algorithm byte of a plain Ed25519 key.
const ED25519: u8 = 0x01;

/// Why a note or a verifier key is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadNote {
    /// Not a text, an empty line and signature lines; or too large.
    #[error("not a signed note: text, an empty line, then lines that begin with an em dash")]
    Form,
    /// A signature line is malformed.
    #[error("signature line {0} of the note is malformed")]
    SignatureLine(usize),
    /// No line by this key.
    #[error("the note has no signature by {0}")]
    NotSigned(String),
    /// A line by this key that does not verify.
    #[error("the note's signature by {0} does not verify")]
    Forged(String),
    /// The text of a verifier key is malformed.
    #[error("not a verifier key: NAME+KEYID+BASE64 as c2sp.org/signed-note says")]
    Key,
    /// The key id does not belong to name and key.
    #[error("the verifier key's id does not belong to its name and key")]
    KeyId,
}

/// Whether a text may name a key: not empty, no blanks, no '+', no control characters.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name
            .chars()
            .any(|c| c == '+' || c.is_whitespace() || c.is_control())
}

/// A log's public key and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VerifierKey {
    name: String,
    public_key: [u8; 32],
}

impl VerifierKey {
    /// From its parts.
    ///
    /// # Errors
    /// When the name is empty or has blanks, '+' or control characters.
    pub fn new(name: &str, public_key: [u8; 32]) -> Result<Self, BadNote> {
        if !is_name(name) {
            return Err(BadNote::Key);
        }
        Ok(Self {
            name: name.to_owned(),
            public_key,
        })
    }

    /// The key's name: the log's origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Ed25519 public key.
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.public_key
    }

    /// The first 4 bytes of `SHA-256(name || "\n" || 0x01 || key)`.
    pub fn key_id(&self) -> [u8; 4] {
        let hash = Sha256::new()
            .chain_update(&self.name)
            .chain_update([b'\n', ED25519])
            .chain_update(self.public_key)
            .finalize();
        let [a, b, c, d, ..] = <[u8; 32]>::from(hash);
        [a, b, c, d]
    }
}

impl std::fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut key = vec![ED25519];
        key.extend_from_slice(&self.public_key);
        let id = u32::from_be_bytes(self.key_id());
        write!(f, "{}+{id:08x}+{}", self.name, STANDARD.encode(key))
    }
}

impl std::str::FromStr for VerifierKey {
    type Err = BadNote;

    fn from_str(text: &str) -> Result<Self, BadNote> {
        let mut parts = text.trim_end_matches('\n').splitn(3, '+');
        let mut part = || parts.next().ok_or(BadNote::Key);
        let (name, id, key) = (part()?, part()?, part()?);
        let key = STANDARD.decode(key).map_err(|_| BadNote::Key)?;
        let public_key = match key.split_first() {
            Some((&ED25519, rest)) => <[u8; 32]>::try_from(rest).map_err(|_| BadNote::Key)?,
            Some(_) | None => return Err(BadNote::Key),
        };
        let parsed = Self::new(name, public_key)?;
        if format!("{:08x}", u32::from_be_bytes(parsed.key_id())) != id {
            return Err(BadNote::KeyId);
        }
        Ok(parsed)
    }
}

/// One signature line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The key's name.
    pub name: String,
    /// The key's id.
    pub key_id: [u8; 4],
    /// The signature: 64 bytes for Ed25519.
    pub bytes: Vec<u8>,
}

/// A text and its signatures; parsed is not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    /// What is signed, with its last newline.
    pub text: String,
    /// The signatures, in order.
    pub signatures: Vec<Signature>,
}

impl SignedNote {
    /// A note with one signature, made over exactly the bytes of `text`.
    pub fn new(text: impl Into<String>, key: &VerifierKey, signature: [u8; 64]) -> Self {
        let line = Signature {
            name: key.name.clone(),
            key_id: key.key_id(),
            bytes: signature.to_vec(),
        };
        Self {
            text: text.into(),
            signatures: vec![line],
        }
    }

    /// Adds a signature by another key over the same bytes.
    pub fn add(&mut self, key: &VerifierKey, signature: [u8; 64]) {
        self.signatures.push(Signature {
            name: key.name.clone(),
            key_id: key.key_id(),
            bytes: signature.to_vec(),
        });
    }

    /// The text, once this key's signature over it is checked. Lines by other keys are ignored.
    ///
    /// # Errors
    /// When there is no line by this key, or one that does not verify.
    pub fn verify(&self, key: &VerifierKey, verify: VerifyFn) -> Result<&str, BadNote> {
        let (name, id) = (key.name(), key.key_id());
        let mut own = self
            .signatures
            .iter()
            .filter(|s| s.name == name && s.key_id == id);
        let line = own
            .next()
            .ok_or_else(|| BadNote::NotSigned(name.to_owned()))?;
        // A second line by the same key is no note of ours (signed-note, "Verification").
        if own.next().is_some() || !verify(&key.public_key, self.text.as_bytes(), &line.bytes) {
            return Err(BadNote::Forged(name.to_owned()));
        }
        Ok(&self.text)
    }
}

impl std::fmt::Display for SignedNote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.text)?;
        for line in &self.signatures {
            let mut blob = line.key_id.to_vec();
            blob.extend_from_slice(&line.bytes);
            writeln!(f, "\u{2014} {} {}", line.name, STANDARD.encode(blob))?;
        }
        Ok(())
    }
}

impl std::str::FromStr for SignedNote {
    type Err = BadNote;

    fn from_str(note: &str) -> Result<Self, BadNote> {
        let control = |c: char| c != '\n' && c.is_ascii_control();
        if note.len() > MAX_NOTE_BYTES || note.contains(control) {
            return Err(BadNote::Form);
        }
        // The last empty line: the text itself may have empty lines.
        let (text, lines) = note.rsplit_once("\n\n").ok_or(BadNote::Form)?;
        let lines = lines.strip_suffix('\n').ok_or(BadNote::Form)?;
        if lines.split('\n').count() > MAX_NOTE_SIGNATURES {
            return Err(BadNote::Form);
        }
        let signatures = lines
            .split('\n')
            .enumerate()
            .map(|(n, line)| signature_line(line).ok_or(BadNote::SignatureLine(n + 1)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            text: format!("{text}\n"),
            signatures,
        })
    }
}

fn signature_line(line: &str) -> Option<Signature> {
    let (name, blob) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    let blob = STANDARD.decode(blob).ok()?;
    let (key_id, bytes) = blob.split_first_chunk::<4>()?;
    if !is_name(name) || bytes.is_empty() {
        return None;
    }
    Some(Signature {
        name: name.to_owned(),
        key_id: *key_id,
        bytes: bytes.to_vec(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::log::sample;
    use proptest::prelude::*;

    /// The key and note of Go's `golang.org/x/mod/sumdb/note` documentation.
    const GO_KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";

    #[test]
    fn a_key_of_another_program_is_read_and_written_back() {
        let key: VerifierKey = GO_KEY.parse().unwrap();
        assert_eq!(key.name(), "PeterNeumann");
        assert_eq!(key.key_id(), [0xc7, 0x4f, 0x20, 0xa3]);
        assert_eq!(key.to_string(), GO_KEY);
        assert_eq!(format!("{GO_KEY}\n").parse(), Ok(key));
    }

    #[test]
    fn a_note_of_another_program_is_read_and_written_back() {
        let note = "If you think cryptography is the answer to your problem,\n\
                    then you don't know what your problem is.\n\n\
                    \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
        let parsed: SignedNote = note.parse().unwrap();
        assert_eq!(parsed.to_string(), note);
        let key: VerifierKey = GO_KEY.parse().unwrap();
        let line = parsed.signatures.first().unwrap();
        assert_eq!((line.key_id, line.bytes.len()), (key.key_id(), 64));
    }

    #[test]
    fn bad_keys_are_refused() {
        for (text, error) in [
            ("", BadNote::Key),
            ("name", BadNote::Key),
            (
                "+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
                BadNote::Key,
            ),
            (
                "a b+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
                BadNote::Key,
            ),
            (
                "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
                BadNote::KeyId,
            ),
            (
                "PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
                BadNote::KeyId,
            ),
            (
                "Other+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
                BadNote::KeyId,
            ),
            (
                "PeterNeumann+c74f20a3+Ahpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
                BadNote::Key,
            ),
            ("PeterNeumann+c74f20a3+AR==", BadNote::Key),
        ] {
            assert_eq!(text.parse::<VerifierKey>(), Err(error), "{text}");
        }
    }

    #[test]
    fn only_the_right_key_over_the_right_text_verifies() {
        let key = sample::key("log.example");
        let note = sample::sign("a\n\nb\n", &key);
        let parsed: SignedNote = note.to_string().parse().unwrap();
        assert_eq!(parsed, note);
        assert_eq!(parsed.verify(&key, sample::verify), Ok("a\n\nb\n"));
        let other = sample::key("other.example");
        let refused = Err(BadNote::NotSigned("other.example".into()));
        assert_eq!(parsed.verify(&other, sample::verify), refused);
        let mut changed = parsed.clone();
        changed.text = "a\n\nc\n".into();
        let forged = Err(BadNote::Forged("log.example".into()));
        assert_eq!(changed.verify(&key, sample::verify), forged);
        let mut twice = parsed;
        twice.signatures.extend(note.signatures);
        assert_eq!(twice.verify(&key, sample::verify), forged);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(\\PC|\n|\u{2014} ){0,80}") {
            let _ = text.parse::<SignedNote>();
            let _ = text.parse::<VerifierKey>();
        }
    }
}
