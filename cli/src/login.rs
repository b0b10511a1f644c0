//! A database login in the forms that programs read: a URL, libpq's variables, its password file and
//! service file, JSON.
//!
//! Which of them is told by the variable's name, so that a program gets what it looks for there.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use ephor_crypto::Secret;
use ephor_crypto::digest::{Sha256Hasher, hex};
use ephor_proto::http::agent as wire;
use ephor_proto::postgres::{DEFAULT_SOCKET_DIR, Parts, compose, composed_len, short_login};
use zeroize::{Zeroize, Zeroizing};

use crate::postgres::system_roots;

/// libpq's variables that say where and who; naming one of them gets all.
const VARIABLES: [&str; 10] = [
    "PGHOST",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGSSLMODE",
    "PGSSLROOTCERT",
    "PGSSLCERT",
    "PGSSLKEY",
    OPTIONS,
];
/// Appended to what is inherited.
pub const OPTIONS: &str = "PGOPTIONS";
/// Variables that would lead libpq elsewhere, whatever the others say.
pub const MISLEADING: [&str; 10] = [
    "PGPASSWORD",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGHOSTADDR",
    "PGPASSFILE",
    "PGTARGETSESSIONATTRS",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLPASSWORD",
    "PGSSLCERTMODE",
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

/// The files that a login needs beside its own; a path that is not there is empty.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// The CAs of its server.
    pub ca: PathBuf,
    /// Its certificate, and the key of that.
    pub pair: Option<(PathBuf, PathBuf)>,
}

impl Beside {
    /// Certificate and key as they stand in a text; empty: a password lets it in.
    fn pair(&self) -> (&str, &str) {
        let pair = self.pair.as_ref();
        pair.map_or(("", ""), |(certificate, key)| {
            (path_text(certificate), path_text(key))
        })
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
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

    /// Its certificate and the key of that in PEM, where these let it in.
    pub fn certificate(&self) -> Option<(&str, &str)> {
        let key = self.given.private_key.as_deref();
        self.given.certificate.as_deref().zip(key)
    }

    /// Tells one login from another, and its next certificate from this one.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256Hasher::new();
        let given = &self.given;
        for text in [&given.url, &given.user, &given.password] {
            hasher.update(text.as_bytes());
        }
        hasher.update(self.ca().unwrap_or_default().as_bytes());
        hasher.update(given.certificate.as_deref().unwrap_or_default().as_bytes());
        hex(&hasher.finish()[..8])
    }

    /// In a form, with the files that it needs beside. A server without CAs of its own is checked by the
    /// system's: libpq would look for a file in the home directory, and let nobody in without it.
    pub fn shaped(&self, form: Form, files: &Beside) -> Shaped {
        let mut files = files.clone();
        if files.ca.as_os_str().is_empty() && self.given.sslmode == "verify-full" {
            files.ca = system_roots().map(PathBuf::from).unwrap_or_default();
        }
        let files = &files;
        match form {
            Form::Url => Shaped {
                main: self.url(files),
                beside: Vec::new(),
            },
            Form::Json => Shaped {
                main: self.json(files),
                beside: Vec::new(),
            },
            Form::Variables => {
                let mut beside = self.variables(files);
                if self.certificate().is_none() {
                    beside.push(("PGPASSWORD", secret(&self.given.password)));
                }
                let main = Secret::new(Vec::new());
                Shaped { main, beside }
            }
            Form::PassFile => Shaped {
                main: self.passfile(),
                beside: self.variables(files),
            },
            Form::ServiceFile => Shaped {
                main: self.service(files),
                beside: vec![("PGSERVICE", secret(&self.entitlement))],
            },
        }
    }

    fn url(&self, files: &Beside) -> Secret {
        let given = &self.given;
        let (certificate, key) = files.pair();
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
                ("sslrootcert", path_text(&files.ca)),
                ("sslcert", certificate),
                ("sslkey", key),
                ("options", &given.options),
            ],
        };
        let mut url = String::with_capacity(composed_len(&parts));
        compose(&mut url, &parts);
        Secret::from_string(url)
    }

    fn json(&self, files: &Beside) -> Secret {
        let given = &self.given;
        let url = self.url(files);
        let (certificate, key) = files.pair();
        let path = |path: &str| Some(path.to_owned()).filter(|path| !path.is_empty());
        let body = serde_json::json!({
            "url": url.expose_str().unwrap_or_default(),
            "target": given.target,
            "host": given.host,
            "port": given.port,
            "database": given.database,
            "user": given.user,
            "password": path(&given.password),
            "sslmode": given.sslmode,
            "sslrootcert": path(path_text(&files.ca)),
            "sslcert": path(certificate),
            "sslkey": path(key),
            "role": given.role,
            "options": given.options,
        });
        Secret::from_string(body.to_string())
    }

    /// All but the password.
    fn variables(&self, files: &Beside) -> Vec<(&'static str, Secret)> {
        let given = &self.given;
        let (certificate, key) = files.pair();
        let all = [
            ("PGHOST", given.host.as_str()),
            ("PGPORT", &given.port.to_string()),
            ("PGDATABASE", &given.database),
            ("PGUSER", &given.user),
            ("PGSSLMODE", &given.sslmode),
            ("PGSSLROOTCERT", path_text(&files.ca)),
            ("PGSSLCERT", certificate),
            ("PGSSLKEY", key),
            (OPTIONS, &given.options),
        ];
        let said = all.into_iter().filter(|(_, value)| !value.is_empty());
        said.map(|(name, value)| (name, secret(value))).collect()
    }

    /// One line (PostgreSQL documentation, "The Password File"); for every database of the server, since
    /// the login may connect to others. Empty where no password lets it in.
    fn passfile(&self) -> Secret {
        let given = &self.given;
        if self.certificate().is_some() {
            return Secret::new(Vec::new());
        }
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
    fn service(&self, files: &Beside) -> Secret {
        let given = &self.given;
        let (certificate, key) = files.pair();
        let mut text = roomy(given);
        let _ = writeln!(text, "[{}]", self.entitlement);
        for (key, value) in [
            ("host", given.host.as_str()),
            ("port", &given.port.to_string()),
            ("dbname", &given.database),
            ("user", &given.user),
            ("password", &given.password),
            ("sslmode", &given.sslmode),
            ("sslrootcert", path_text(&files.ca)),
            ("sslcert", certificate),
            ("sslkey", key),
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
        self.given.private_key.zeroize();
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
        Login::new("orders-db", given())
    }

    /// The same with a certificate.
    pub fn by_certificate() -> Login {
        let given = wire::Login {
            password: String::new(),
            certificate: Some("CERT".into()),
            private_key: Some("KEY".into()),
            ..given()
        };
        Login::new("orders-db", given)
    }

    fn given() -> wire::Login {
        wire::Login {
            url: "unused".into(),
            target: "orders".into(),
            host: "db1".into(),
            port: 5433,
            database: "or ders".into(),
            user: "eph_orders_db_ab3c5d_0123456789abcdefghjkmn7kq2".into(),
            password: "p:a\\s/s".into(),
            certificate: None,
            private_key: None,
            sslmode: "verify-full".into(),
            sslrootcert: Some("PEM".into()),
            role: "orders_rw".into(),
            options: "-c role=orders_rw".into(),
        }
    }

    fn shaped(name: &str) -> (String, Vec<String>) {
        shaped_of(&login(), name)
    }

    fn shaped_of(login: &Login, name: &str) -> (String, Vec<String>) {
        let pair = || (PathBuf::from("/run/crt"), PathBuf::from("/run/key"));
        let files = Beside {
            ca: "/run/ca".into(),
            pair: login.certificate().map(|_| pair()),
        };
        let shaped = login.shaped(Form::of(name), &files);
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
            let shaped = login.shaped(form, &Beside::default());
            let main = shaped.main.expose_str().unwrap();
            assert!(main.contains(&wanted), "{main}");
        }
        for form in [Form::Variables, Form::PassFile] {
            let beside = login.shaped(form, &Beside::default()).beside;
            let found = beside.iter().find(|(name, _)| *name == "PGSSLROOTCERT");
            assert_eq!(found.unwrap().1.expose_str().unwrap(), system);
        }
        login.given.sslmode = "disable".into();
        let shaped = login.shaped(Form::Url, &Beside::default());
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

    #[test]
    fn a_certificate_stands_in_each_form_where_the_password_was() {
        let login = by_certificate();
        let shaped = |name| shaped_of(&login, name);
        let files = "sslrootcert=%2Frun%2Fca&sslcert=%2Frun%2Fcrt&sslkey=%2Frun%2Fkey";
        let url = format!(
            "postgresql://{USER}@db1:5433/or%20ders?sslmode=verify-full&{files}&options=-c%20role%3Dorders_rw"
        );
        assert_eq!(shaped("DATABASE_URL"), (url, Vec::new()));
        let (nothing, variables) = shaped("PGSSLCERT");
        assert_eq!(nothing, "");
        assert_eq!(
            variables.join(" "),
            format!(
                "PGHOST=db1 PGPORT=5433 PGDATABASE=or ders PGUSER={USER} PGSSLMODE=verify-full \
                 PGSSLROOTCERT=/run/ca PGSSLCERT=/run/crt PGSSLKEY=/run/key PGOPTIONS=-c role=orders_rw"
            )
        );
        assert_eq!(shaped("PGPASSFILE").0, "");
        let (service, _) = shaped("PGSERVICEFILE");
        assert!(
            service.contains("\nsslcert=/run/crt\nsslkey=/run/key\n"),
            "{service}"
        );
        assert!(!service.contains("password"), "{service}");
        let (json, _) = shaped("DB_JSON");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (json["sslcert"].as_str(), json["sslkey"].as_str()),
            (Some("/run/crt"), Some("/run/key"))
        );
        assert!(json["password"].is_null());
        assert_ne!(login.digest(), super::tests::login().digest());
    }
}
