//! Join tokens: `ej1.ID.SECRET.CA`, one line of text that lets one host join once.
//!
//! The token carries the hash of our CA, so that the agent's first connection is
//! authenticated too. Only the SHA-256 of the whole text is stored: who reads the
//! database cannot join with it, and a token is found by its hash, never compared
//! byte by byte.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ephor_crypto::Secret;
use ephor_crypto::digest::sha256;
use ephor_crypto::random::{self, RandomError};
use ephor_proto::id::JoinTokenId;

use crate::limits;

const PREFIX: &str = "ej1";
const SECRET_LEN: usize = 32;

/// A join token on its way to the operator.
pub(crate) struct NewToken {
    /// The whole text. Secret.
    pub(crate) text: Secret,
    /// What is stored.
    pub(crate) hash: [u8; 32],
}

impl NewToken {
    /// A new random token.
    pub(crate) fn generate(id: JoinTokenId, ca_sha256: &[u8; 32]) -> Result<Self, RandomError> {
        let secret = random::secret(SECRET_LEN)?;
        // One allocation, large enough: growing would leave copies of the secret behind.
        let mut text = String::with_capacity(limits::JOIN_TOKEN_TEXT);
        text.push_str(PREFIX);
        text.push('.');
        text.push_str(&id.to_string());
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(secret.expose(), &mut text);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(ca_sha256, &mut text);
        let hash = sha256(text.as_bytes());
        Ok(Self {
            text: Secret::from_string(text),
            hash,
        })
    }
}

/// What an agent presented.
pub(crate) struct Presented {
    /// The id it claims; only good for the audit log.
    pub(crate) id: JoinTokenId,
    /// What is looked up.
    pub(crate) hash: [u8; 32],
}

impl Presented {
    /// Reads a presented token. `None` when it has not the form of one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > limits::JOIN_TOKEN_TEXT {
            return None;
        }
        let mut parts = text.split('.');
        let (prefix, id, secret, ca) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_32_bytes = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .is_ok_and(|bytes| bytes.len() == 32)
        };
        if prefix != PREFIX || parts.next().is_some() || !is_32_bytes(secret) || !is_32_bytes(ca) {
            return None;
        }
        Some(Self {
            id: id.parse().ok()?,
            hash: sha256(text.as_bytes()),
        })
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_two_differ() {
        let id = JoinTokenId::from_parts(5, [1; 10]);
        let token = NewToken::generate(id, &[7; 32]).unwrap();
        let text = token.text.expose_str().unwrap();
        assert_eq!(text.len(), 3 + 1 + 36 + 1 + 43 + 1 + 43);
        assert!(text.ends_with(&URL_SAFE_NO_PAD.encode([7; 32])));
        let presented = Presented::parse(text).unwrap();
        assert_eq!((presented.id, presented.hash), (id, token.hash));
        assert_ne!(NewToken::generate(id, &[7; 32]).unwrap().hash, token.hash);
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let id = JoinTokenId::from_parts(5, [1; 10]);
        let token = NewToken::generate(id, &[7; 32]).unwrap();
        let text = token.text.expose_str().unwrap();
        for bad in [
            String::new(),
            text.replace("ej1.", "ej2."),
            format!("{text}."),
            format!("{text}A"),
            format!(" {text}"),
            text.rsplit_once('.').unwrap().0.to_owned(),
            text.replacen(&id.to_string(), "x", 1),
            "ej1...".to_owned(),
            "x".repeat(1000),
        ] {
            assert!(Presented::parse(&bad).is_none(), "{bad}");
        }
    }
}
