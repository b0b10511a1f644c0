//! A database login in the forms that programs read: a URL, libpq's variables, its password file and
//! service file, JSON.
//!
//! Which of them is told by the variable's name, so that a program gets what it looks for there.

use std::fmt::Write as _;
use std::path::Path;

use ephor_crypto::Secret;
use ephor_crypto::digest::{Sha256Hasher, hex};
use ephor_proto::http::agent as wire;
use ephor_proto::postgres::{DEFAULT_SOCKET_DIR, Parts, compose, composed_len, short_login};
use zeroize::{Zeroize, Zeroizing};

use crate::postgres::system_roots;

/// libpq's variables that say where and who; naming one of them gets all.
const VARIABLES: [&str; 8] = [
    "PGHOST",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGSSLMODE",
    "PGSSLROOTCERT",
    OPTIONS,
];
/// Appended to what is inherited.
pub const OPTIONS: &str = "PGOPTIONS";
/// Variables that would lead libpq elsewhere, whatever the others say.
pub const MISLEADING: [&str; 6] = [
    "PGPASSWORD",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGHOSTADDR",
    "PGPASSFILE",
    "PGTARGETSESSIONATTRS",
];

/// In which form a login is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One connection URL.
    Url,
    /// All of libpq's variables.
    Variables,
    /// A file in the form of `~/.pgpass`, and the variables without the password.
    PassFile,
    /// A file in the form of `pg_service.conf`, and `PGSERVICE`.
    ServiceFile,
    /// One object.
    Json,
}

impl Form {
    /// By the name of the variable.
    pub fn of(name: &str) -> Self {
        match name {
            "PGPASSFILE" => Self::PassFile,
            "PGSERVICEFILE" => Self::ServiceFile,
            name if VARIABLES.contains(&name) => Self::Variables,
            name if name.ends_with("_JSON") => Self::Json,
            _ => Self::Url,
        }
    }

    /// Whether libpq's own variables are part of it.
    pub fn is_libpqs(self) -> bool {
        match self {
            Self::Variables | Self::PassFile | Self::ServiceFile => true,
            Self::Url | Self::Json => false,
        }
    }

    /// Whether it is a file whatever the reference says.
    pub fn is_always_a_file(self) -> bool {
        match self {
            Self::PassFile | Self::ServiceFile => true,
            Self::Url | Self::Variables | Self::Json => false,
        }
    }
}

/// A login, wiped on drop.
pub struct Login {
    entitlement: String,
    given: wire::Login,
}

/// What is handed over of it.
pub struct Shaped {
    /// The value, or the content of the file.
    pub main: Secret,
    /// Variables to set beside it.
    pub beside: Vec<(&'static str, Secret)>,
}

impl Login {
    /// Of an entitlement.
    pub fn new(entitlement: &str, given: wire::Login) -> Self {
        let entitlement = entitlement.to_owned();
        Self { entitlement, given }
    }

    /// The role as people read it.
    pub fn short(&self) -> String {
        short_login(&self.given.user)
    }

    /// The CAs of its server in PEM, when they need a file of their own.
    pub fn ca(&self) -> Option<&str> {
        self.given.sslrootcert.as_deref()
    }

    /// Tells one login from another.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256Hasher::new();
        let given = &self.given;
        for text in [&given.url, &given.user, &given.password] {
            hasher.update(text.as_bytes());
        }
        hasher.update(self.ca().unwrap_or_default().as_bytes());
        hex(&hasher.finish()[..8])
    }

    /// In a form; `ca` is the file of its CAs. A server without CAs of its own is checked by the system's:
    /// libpq would look for a file in the home directory, and let nobody in without it.
    pub fn shaped(&self, form: Form, ca: Option<&Path>) -> Shaped {
        let system = || match self.given.sslmode.as_str() {
            "verify-full" => system_roots(),
            _ => None,
        };
        let ca = ca
            .and_then(Path::to_str)
            .or_else(system)
            .unwrap_or_default();
        match form {
            Form::Url => Shaped {
                main: self.url(ca),
                beside: Vec::new(),
            },
            Form::Json => Shaped {
                main: self.json(ca),
                beside: Vec::new(),
            },
            Form::Variables => {
                let mut beside = self.variables(ca);
                beside.push(("PGPASSWORD", secret(&self.given.password)));
                let main = Secret::new(Vec::new());
                Shaped { main, beside }
            }
            Form::PassFile => Shaped {
                main: self.passfile(),
                beside: self.variables(ca),
            },
            Form::ServiceFile => Shaped {
                main: self.service(ca),
                beside: vec![("PGSERVICE", secret(&self.entitlement))],
            },
        }
    }

    fn url(&self, ca: &str) -> Secret {
        let given = &self.given;
        let Ok(address) = ephor_proto::postgres::Address::of(&given.host, given.port) else {
            return secret(&given.url);
        };
        let parts = Parts {
            user: &given.user,
            password: &given.password,
            address: &address,
            database: &given.database,
            parameters: &[
                ("sslmode", &given.sslmode),
                ("sslrootcert", ca),
                ("options", &given.options),
            ],
        };
        let mut url = String::with_capacity(composed_len(&parts));
        compose(&mut url, &parts);
        Secret::from_string(url)
    }

    fn json(&self, ca: &str) -> Secret {
        let given = &self.given;
        let url = self.url(ca);
        let body = serde_json::json!({
            "url": url.expose_str().unwrap_or_default(),
            "target": given.target,
            "host": given.host,
            "port": given.port,
            "database": given.database,
            "user": given.user,
            "password": given.password,
            "sslmode": given.sslmode,
            "sslrootcert": Some(ca).filter(|path| !path.is_empty()),
            "role": given.role,
            "options": given.options,
        });
        Secret::from_string(body.to_string())
    }

    /// All but the password.
    fn variables(&self, ca: &str) -> Vec<(&'static str, Secret)> {
        let given = &self.given;
        let all = [
            ("PGHOST", given.host.as_str()),
            ("PGPORT", &given.port.to_string()),
            ("PGDATABASE", &given.database),
            ("PGUSER", &given.user),
            ("PGSSLMODE", &given.sslmode),
            ("PGSSLROOTCERT", ca),
            (OPTIONS, &given.options),
        ];
        let said = all.into_iter().filter(|(_, value)| !value.is_empty());
        said.map(|(name, value)| (name, secret(value))).collect()
    }

    /// One line (PostgreSQL documentation, "The Password File"); for every database of the server, since
    /// the login may connect to others.
    fn passfile(&self) -> Secret {
        let given = &self.given;
        // libpq looks the default directory up as `localhost`.
        let host = match given.host.as_str() {
            DEFAULT_SOCKET_DIR | "/run/postgresql" | "/tmp" => "*",
            host => host,
        };
        let mut line = roomy(given);
        for (number, field) in [
            host,
            &given.port.to_string(),
            "*",
            &given.user,
            &given.password,
        ]
        .into_iter()
        .enumerate()
        {
            if number > 0 {
                line.push(':');
            }
            for c in field.chars() {
                if matches!(c, ':' | '\\') {
                    line.push('\\');
                }
                line.push(c);
            }
        }
        line.push('\n');
        Secret::from_string(std::mem::take(&mut *line))
    }

    /// One section (PostgreSQL documentation, "The Connection Service File").
    fn service(&self, ca: &str) -> Secret {
        let given = &self.given;
        let mut text = roomy(given);
        let _ = writeln!(text, "[{}]", self.entitlement);
        for (key, value) in [
            ("host", given.host.as_str()),
            ("port", &given.port.to_string()),
            ("dbname", &given.database),
            ("user", &given.user),
            ("password", &given.password),
            ("sslmode", &given.sslmode),
            ("sslrootcert", ca),
            ("options", &given.options),
        ] {
            if !value.is_empty() {
                let _ = writeln!(text, "{key}={value}");
            }
        }
        Secret::from_string(std::mem::take(&mut *text))
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        self.given.url.zeroize();
        self.given.password.zeroize();
    }
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

/// Room for any text about a login, so that it never moves while it grows.
fn roomy(given: &wire::Login) -> Zeroizing<String> {
    let texts = [&given.host, &given.database, &given.user, &given.password];
    let texts = texts.into_iter().map(String::len).sum::<usize>();
    Zeroizing::new(String::with_capacity(8192 + 2 * texts))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
pub mod tests {
    use super::*;

    /// A login with everything in it that could be read as something else.
    pub fn login() -> Login {
        let given = wire::Login {
            url: "unused".into(),
            target: "orders".into(),
            host: "db1".into(),
            port: 5433,
            database: "or ders".into(),
            user: "eph_orders_db_ab3c5d_0123456789abcdefghjkmn7kq2".into(),
            password: "p:a\\s/s".into(),
            sslmode: "verify-full".into(),
            sslrootcert: Some("PEM".into()),
            role: "orders_rw".into(),
            options: "-c role=orders_rw".into(),
        };
        Login::new("orders-db", given)
    }

    fn shaped(name: &str) -> (String, Vec<String>) {
        let shaped = login().shaped(Form::of(name), Some(Path::new("/run/ca")));
        let text = |secret: &Secret| secret.expose_str().unwrap().to_owned();
        let beside = shaped.beside.iter();
        let beside = beside.map(|(name, value)| format!("{name}={}", text(value)));
        (text(&shaped.main), beside.collect())
    }

    const USER: &str = "eph_orders_db_ab3c5d_0123456789abcdefghjkmn7kq2";

    #[test]
    fn the_name_says_the_form() {
        for (name, form) in [
            ("DATABASE_URL", Form::Url),
            ("PGUSER", Form::Variables),
            ("PGPASSWORD", Form::Variables),
            ("PGPASSFILE", Form::PassFile),
            ("PGSERVICEFILE", Form::ServiceFile),
            ("DB_JSON", Form::Json),
            ("PGX", Form::Url),
        ] {
            assert_eq!(Form::of(name), form, "{name}");
        }
        assert_eq!(login().short(), "eph_orders_db_7kq2");
    }

    #[test]
    fn a_server_without_cas_of_its_own_is_checked_by_the_systems() {
        let mut login = login();
        login.given.sslrootcert = None;
        let system = system_roots().unwrap();
        for (form, wanted) in [
            (
                Form::Url,
                format!("&sslrootcert={}", system.replace('/', "%2F")),
            ),
            (Form::Json, format!("\"sslrootcert\":\"{system}\"")),
            (Form::ServiceFile, format!("\nsslrootcert={system}\n")),
        ] {
            let shaped = login.shaped(form, None);
            let main = shaped.main.expose_str().unwrap();
            assert!(main.contains(&wanted), "{main}");
        }
        for form in [Form::Variables, Form::PassFile] {
            let beside = login.shaped(form, None).beside;
            let found = beside.iter().find(|(name, _)| *name == "PGSSLROOTCERT");
            assert_eq!(found.unwrap().1.expose_str().unwrap(), system);
        }
        login.given.sslmode = "disable".into();
        let shaped = login.shaped(Form::Url, None);
        assert!(!shaped.main.expose_str().unwrap().contains("sslrootcert"));
    }

    #[test]
    fn each_form_is_escaped_as_its_readers_want_it() {
        let url = format!(
            "postgresql://{USER}:p%3Aa%5Cs%2Fs@db1:5433/or%20ders?sslmode=verify-full&sslrootcert=%2Frun%2Fca\
             &options=-c%20role%3Dorders_rw"
        );
        assert_eq!(shaped("DATABASE_URL"), (url.clone(), Vec::new()));
        let (nothing, variables) = shaped("PGUSER");
        assert_eq!(nothing, "");
        assert_eq!(
            variables.join(" "),
            format!(
                "PGHOST=db1 PGPORT=5433 PGDATABASE=or ders PGUSER={USER} PGSSLMODE=verify-full \
                 PGSSLROOTCERT=/run/ca PGOPTIONS=-c role=orders_rw PGPASSWORD=p:a\\s/s"
            )
        );
        let (line, beside) = shaped("PGPASSFILE");
        assert_eq!(line, format!("db1:5433:*:{USER}:p\\:a\\\\s/s\n"));
        assert!(beside.iter().all(|one| !one.contains("p:a")), "{beside:?}");
        let (service, beside) = shaped("PGSERVICEFILE");
        assert_eq!(
            service,
            format!(
                "[orders-db]\nhost=db1\nport=5433\ndbname=or ders\nuser={USER}\npassword=p:a\\s/s\n\
                 sslmode=verify-full\nsslrootcert=/run/ca\noptions=-c role=orders_rw\n"
            )
        );
        assert_eq!(beside, ["PGSERVICE=orders-db"]);
        let (json, _) = shaped("DB_JSON");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (json["url"].as_str(), json["password"].as_str()),
            (Some(&*url), Some("p:a\\s/s"))
        );
    }
}
