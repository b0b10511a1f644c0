//! A held database login: where it connects to, and its password.
//!
//! The password is here and in the answers that are being written, nowhere else; what is derived
//! from it (the URL) is made for one answer and wiped with it.

use ephor_crypto::Secret;
use ephor_proto::grpc::v1;
use ephor_proto::http::agent as wire;
use ephor_proto::postgres::{Address, Parts, compose, composed_len, start_as};
use serde::{Deserialize, Serialize};

use super::entry::BadAnswer;

/// All that is needed to connect.
pub struct Login {
    /// All but the password.
    pub public: Public,
    /// The password.
    pub password: Secret,
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
}

impl Login {
    /// Takes over what the broker gave; the password's bytes move, they are not copied.
    ///
    /// # Errors
    /// When it says not enough to connect.
    pub fn new(given: v1::Login) -> Result<Self, BadAnswer> {
        // First of all, so that it is wiped whatever is wrong with the rest.
        let password = Secret::from_string(given.password);
        let port = u16::try_from(given.port).map_err(|_| BadAnswer::Login("its port is none"))?;
        if given.user.is_empty() || Address::of(&given.host, port).is_err() {
            return Err(BadAnswer::Login("it names no user, or no server"));
        }
        if password.is_empty() {
            return Err(BadAnswer::Login("it has no password"));
        }
        let public = Public {
            target: given.target,
            host: given.host,
            port,
            database: given.database,
            user: given.user,
            sslmode: given.sslmode,
            sslrootcert: given.sslrootcert,
            role: given.group,
        };
        Ok(Self { public, password })
    }

    /// As an answer has it. Whoever takes it wipes `url` and `password` after writing.
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
        } = self.public.clone();
        let password = self.password.expose_str().unwrap_or_default();
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
        } = &self.public;
        let texts = [target, host, database, user, sslmode, role];
        let texts = texts.into_iter().map(String::len).sum::<usize>() + self.password.len();
        // The role is in `options`, too, there with backslashes; the URL escapes a byte as three. PEM has one byte in 65 to escape, with two.
        4 * texts + 8 * role.len() + 512 + sslrootcert.len() / 5
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
        let login = Login::new(given()).unwrap();
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
            let error = Login::new(wrong).err().unwrap().to_string();
            assert!(error.contains(why) && !error.contains("se/cret"), "{error}");
        }
    }
}
