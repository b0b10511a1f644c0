//! A held database login: where it connects to, and what lets it in: a password, or a certificate with
//! its key.
//!
//! The secret is here and in the answers that are being written, nowhere else; what is derived
//! from it (the URL) is made for one answer and wiped with it.

use ephor_crypto::Secret;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::{DatabaseLeaf, pem, secret_pem};
use ephor_proto::grpc::v1;
use ephor_proto::http::agent as wire;
use ephor_proto::postgres::{Address, Parts, compose, composed_len, start_as};
use serde::{Deserialize, Serialize};

use super::entry::BadAnswer;

/// All that is needed to connect.
pub struct Login {
    /// All but the secret.
    pub public: Public,
    /// The password; of a login with a certificate its private key, PKCS#8 in DER.
    pub secret: Secret,
}

/// What is no secret of a login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Public {
    /// Name of the target in policy.
    pub target: String,
    /// Name, address, or directory of a Unix socket.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Database.
    pub database: String,
    /// The role that was made for the task.
    pub user: String,
    /// As libpq has it.
    pub sslmode: String,
    /// PEM; empty: the system's CAs.
    pub sslrootcert: String,
    /// The role that sessions start as.
    pub role: String,
    /// What lets it in instead of a password: the certificate in PEM; empty: a password does.
    #[serde(default)]
    pub certificate: String,
}

impl Login {
    /// Takes over what the broker gave; the password's bytes move, they are not copied. `key` is the one
    /// that was sent for a certificate.
    ///
    /// # Errors
    /// When it says not enough to connect, or its certificate is not for its user and `key`.
    pub fn new(given: v1::Login, key: Option<&SigningKey>) -> Result<Self, BadAnswer> {
        // First of all, so that it is wiped whatever is wrong with the rest.
        let password = Secret::from_string(given.password);
        let port = u16::try_from(given.port).map_err(|_| BadAnswer::Login("its port is none"))?;
        if given.user.is_empty() || Address::of(&given.host, port).is_err() {
            return Err(BadAnswer::Login("it names no user, or no server"));
        }
        let (secret, certificate) = match given.certificate_chain_der.as_slice() {
            [] if password.is_empty() => {
                return Err(BadAnswer::Login("it has no password"));
            }
            [] => (password, String::new()),
            chain => with_certificate(chain, &given.user, key)?,
        };
        let public = Public {
            target: given.target,
            host: given.host,
            port,
            database: given.database,
            user: given.user,
            sslmode: given.sslmode,
            sslrootcert: given.sslrootcert,
            role: given.group,
            certificate,
        };
        Ok(Self { public, secret })
    }

    /// Whether a certificate lets it in.
    #[must_use]
    pub fn has_certificate(&self) -> bool {
        !self.public.certificate.is_empty()
    }

    /// The key of its certificate. Its next certificate is for the same one, so that a program which
    /// reads both files at any moment finds two that fit.
    #[must_use]
    pub fn key(&self) -> Option<SigningKey> {
        let key = || SigningKey::from_pkcs8(&self.secret).ok();
        self.has_certificate().then(key).flatten()
    }

    /// As an answer has it. Whoever takes it wipes `url`, `password` and `private_key` after writing.
    #[must_use]
    pub fn to_wire(&self) -> wire::Login {
        let Public {
            target,
            host,
            port,
            database,
            user,
            sslmode,
            sslrootcert,
            role,
            certificate,
        } = self.public.clone();
        let (password, private_key) = match certificate.is_empty() {
            true => (self.secret.expose_str().unwrap_or_default(), None),
            false => ("", Some(secret_pem(&self.secret))),
        };
        let private_key = private_key.and_then(|pem| pem.expose_str().ok().map(str::to_owned));
        let options = start_as(&role);
        let mut url = String::new();
        // Looked at when it was taken over.
        if let Ok(address) = Address::of(&host, port) {
            let parts = Parts {
                user: &user,
                password,
                address: &address,
                database: &database,
                parameters: &[("sslmode", &sslmode), ("options", &options)],
            };
            url.reserve_exact(composed_len(&parts));
            compose(&mut url, &parts);
        }
        wire::Login {
            url,
            target,
            host,
            port,
            database,
            password: password.to_owned(),
            certificate: Some(certificate).filter(|pem| !pem.is_empty()),
            private_key,
            user,
            sslmode,
            sslrootcert: Some(sslrootcert).filter(|pem| !pem.is_empty()),
            role,
            options,
        }
    }

    /// At least as many bytes as its answer has before JSON escapes any of them.
    #[must_use]
    pub fn size(&self) -> usize {
        let Public {
            target,
            host,
            port: _,
            database,
            user,
            sslmode,
            sslrootcert,
            role,
            certificate,
        } = &self.public;
        let texts = [target, host, database, user, sslmode, role];
        let texts = texts.into_iter().map(String::len).sum::<usize>() + self.secret.len();
        // The role is in `options`, too, there with backslashes; the URL escapes a byte as three. PEM has one byte in 65 to escape, with two.
        4 * texts + 8 * role.len() + 512 + (sslrootcert.len() + certificate.len()) / 5
    }
}

/// The key and the certificate, if they belong together and to this user.
fn with_certificate(
    chain: &[Vec<u8>],
    user: &str,
    key: Option<&SigningKey>,
) -> Result<(Secret, String), BadAnswer> {
    let bad = |why: &str| BadAnswer::Certificate(why.to_owned());
    let key = key.ok_or_else(|| bad("no key was sent for it"))?;
    let leaf = chain.first().ok_or(BadAnswer::Empty)?;
    let leaf = DatabaseLeaf::parse(leaf).map_err(|why| BadAnswer::Certificate(why.to_string()))?;
    if leaf.spki != key.public_key().spki() {
        return Err(bad("it is for another key"));
    }
    if leaf.role != user {
        return Err(bad("it is for another user than its login"));
    }
    let secret = Secret::new(key.to_pkcs8().expose().to_vec());
    let pems = chain.iter().map(|der| pem("CERTIFICATE", der));
    Ok((secret, pems.collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ephor_crypto::x509::{Ca, DatabaseClient, Serial};

    fn given() -> v1::Login {
        v1::Login {
            target: "orders".into(),
            host: "db1".into(),
            port: 5433,
            database: "orders".into(),
            user: "eph_orders_x".into(),
            password: "se/cret".into(),
            sslmode: "verify-full".into(),
            sslrootcert: "PEM".into(),
            group: "orders_rw".into(),
            ..v1::Login::default()
        }
    }

    #[test]
    fn a_login_is_told_in_full() {
        let login = Login::new(given(), None).unwrap();
        let wire = login.to_wire();
        assert_eq!(
            wire.url,
            "postgresql://eph_orders_x:se%2Fcret@db1:5433/orders?sslmode=verify-full\
             &options=-c%20role%3Dorders_rw"
        );
        assert_eq!((wire.port, wire.password.as_str()), (5433, "se/cret"));
        assert_eq!(
            (wire.role.as_str(), wire.sslrootcert.as_deref()),
            ("orders_rw", Some("PEM"))
        );
        assert!(serde_json::to_string(&wire).unwrap().len() <= 6 * login.size());
    }

    fn by_certificate(key: &SigningKey, role: &str) -> v1::Login {
        let ca = Ca::create("CA", "td.test", 1_800_000_000, 1_800_086_400).unwrap();
        let client = DatabaseClient {
            role,
            serial: &Serial::new(&[1]).unwrap(),
            not_before: 1_800_000_000,
            not_after: 1_800_000_300,
        };
        let spki = key.public_key().spki();
        let der = ca.issue_database_client(&client, &spki).unwrap();
        v1::Login {
            password: String::new(),
            certificate_chain_der: vec![der],
            ..given()
        }
    }

    #[test]
    fn a_certificate_and_its_key_take_the_place_of_the_password() {
        let key = SigningKey::generate().unwrap();
        let login = Login::new(by_certificate(&key, "eph_orders_x"), Some(&key)).unwrap();
        let wire = login.to_wire();
        assert_eq!(
            wire.url,
            "postgresql://eph_orders_x@db1:5433/orders?sslmode=verify-full&options=-c%20role%3Dorders_rw"
        );
        assert_eq!(wire.password, "");
        assert!(
            wire.certificate
                .as_deref()
                .unwrap()
                .starts_with("-----BEGIN CERTIFICATE-----")
        );
        assert!(
            wire.private_key
                .as_deref()
                .unwrap()
                .starts_with("-----BEGIN PRIVATE KEY-----")
        );
        assert!(serde_json::to_string(&wire).unwrap().len() <= 6 * login.size());
        assert_eq!(login.key().unwrap().public_key(), key.public_key());
    }

    #[test]
    fn a_certificate_for_another_key_or_user_is_refused() {
        let (key, other) = (
            SigningKey::generate().unwrap(),
            SigningKey::generate().unwrap(),
        );
        let good = || by_certificate(&key, "eph_orders_x");
        for (given, key, why) in [
            (good(), None, "no key"),
            (good(), Some(&other), "another key"),
            (by_certificate(&key, "postgres"), Some(&key), "another user"),
        ] {
            let error = Login::new(given, key).err().unwrap().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_cannot_connect_is_refused_and_says_no_secret() {
        for (wrong, why) in [
            (
                v1::Login {
                    user: String::new(),
                    ..given()
                },
                "no user",
            ),
            (
                v1::Login {
                    host: "a b".into(),
                    ..given()
                },
                "no server",
            ),
            (
                v1::Login {
                    host: String::new(),
                    ..given()
                },
                "no server",
            ),
            (
                v1::Login {
                    port: 70_000,
                    ..given()
                },
                "port",
            ),
            (
                v1::Login {
                    password: String::new(),
                    ..given()
                },
                "no password",
            ),
        ] {
            let error = Login::new(wrong, None).err().unwrap().to_string();
            assert!(error.contains(why) && !error.contains("se/cret"), "{error}");
        }
    }
}
