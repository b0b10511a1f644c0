//! What PostgreSQL stores of a password: a SCRAM-SHA-256 verifier (RFC 5802, RFC 7677).
//!
//! It is computed here, so that the password never reaches the server, its log or its statistics. A
//! verifier does not log in; guessing a password of 256 random bits from it is out of reach at any
//! number of iterations.

use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use crate::Secret;
use crate::digest::sha256;
use crate::provider::{hmac, pbkdf2};
use crate::random::{self, RandomError};

/// What PostgreSQL and every driver of it take.
pub const DEFAULT_ITERATIONS: u32 = 4096;

/// Random bytes of a password.
const PASSWORD_BYTES: usize = 32;
/// As PostgreSQL's own.
const SALT_BYTES: usize = 16;

/// A verifier in PostgreSQL's form, `SCRAM-SHA-256$ITERATIONS:SALT$STORED:SERVER`. Not the
/// password, but not for everybody's eyes: no Display.
pub struct ScramVerifier(Zeroizing<String>);

impl ScramVerifier {
    /// Of `password`, which must be printable ASCII (then SASLprep, RFC 4013, changes nothing),
    /// with a new random salt.
    ///
    /// # Errors
    /// When the system generator fails.
    pub fn new(password: &Secret, iterations: NonZeroU32) -> Result<Self, RandomError> {
        Ok(Self::with_salt(
            password,
            iterations,
            &random::bytes::<SALT_BYTES>()?,
        ))
    }

    fn with_salt(password: &Secret, iterations: NonZeroU32, salt: &[u8]) -> Self {
        let mut salted = Zeroizing::new([0; 32]);
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(
            algorithm,
            iterations,
            salt,
            password.expose(),
            salted.as_mut(),
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, salted.as_ref());
        let stored = sha256(hmac::sign(&key, b"Client Key").as_ref());
        let server = hmac::sign(&key, b"Server Key");
        Self(Zeroizing::new(format!(
            "SCRAM-SHA-256${iterations}:{}${}:{}",
            STANDARD.encode(salt),
            STANDARD.encode(stored),
            STANDARD.encode(server.as_ref())
        )))
    }

    /// As PostgreSQL takes it in `PASSWORD '...'`.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// A new password: 256 random bits in 43 characters of the URL-safe base64 alphabet.
///
/// # Errors
/// When the system generator fails.
pub fn password() -> Result<Secret, RandomError> {
    let bytes = random::secret(PASSWORD_BYTES)?;
    Ok(Secret::from_string(URL_SAFE_NO_PAD.encode(bytes.expose())))
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

    /// RFC 7677 §3: the password `pencil`, whose exchange there fixes stored and server key.
    #[test]
    fn known_answer() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let password = Secret::from_string("pencil".to_owned());
        let made = ScramVerifier::with_salt(&password, 4096.try_into().unwrap(), &salt);
        assert_eq!(
            made.expose(),
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
             wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
    }

    #[test]
    fn passwords_differ_and_need_no_escaping() {
        let (one, two) = (password().unwrap(), password().unwrap());
        assert!(!one.eq_ct(two.expose()));
        let text = one.expose_str().unwrap();
        assert_eq!(text.len(), 43);
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!(text.chars().all(plain));
    }
}
