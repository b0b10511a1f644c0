//! The words: parts of a URL and `PG*` variables. The URL goes first.

use std::path::PathBuf;
use std::time::Duration;

use ephor_crypto::Secret;
use ephor_proto::postgres::{Address, BadUrl, Url, check_identifier, unescape};

use crate::exit::Failure;

/// `sslmode`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    fn of(word: &str) -> Result<Self, Failure> {
        Ok(match word {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => {
                return Err(Failure::usage(
                    "sslmode is one of disable, prefer, require, verify-ca, verify-full.",
                ));
            }
        })
    }

    /// Who is not on this host must prove who it is.
    fn default_for(address: &Address) -> Self {
        if is_here(address) {
            Self::Prefer
        } else {
            Self::VerifyFull
        }
    }
}

/// Whether a server is on this host.
pub fn is_here(address: &Address) -> bool {
    match address {
        Address::Socket { .. } => true,
        Address::Tcp { host, .. } => {
            let ip = host.parse().map(|ip: std::net::IpAddr| ip.is_loopback());
            host == "localhost" || ip.unwrap_or(false)
        }
    }
}

/// Everything that was said.
pub struct Words {
    pub address: Address,
    pub user: String,
    pub database: String,
    pub password: Option<Secret>,
    pub passfile: Option<PathBuf>,
    pub mode: Mode,
    pub roots: Option<PathBuf>,
    pub within: Option<Duration>,
}

/// What a URL says beside where and as whom.
#[derive(Default)]
struct Extras {
    password: Option<Secret>,
    passfile: Option<String>,
    mode: Option<String>,
    roots: Option<String>,
    within: Option<String>,
}

impl Words {
    /// Reads a URL, and for what it leaves open the variables.
    ///
    /// # Errors
    /// Wrong usage.
    pub fn read(url: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let (rest, extras) = without_extras(url).map_err(bad)?;
        let parsed: Url = rest.parse().map_err(bad)?;
        let address = match names_host(&rest) {
            true => parsed.address,
            false => address_from(&variable)?.unwrap_or(parsed.address),
        };
        let user = parsed.user.or_else(|| variable("PGUSER")).or_else(own_name);
        let user =
            user.ok_or_else(|| Failure::usage("the URL names no user: postgres://USER@..."))?;
        let database = parsed.database.or_else(|| variable("PGDATABASE"));
        let database = database.unwrap_or_else(|| user.clone());
        for (what, name) in [("user", &user), ("database", &database)] {
            check_identifier(name).map_err(|why| Failure::usage(format!("the {what} {why}.")))?;
        }
        let mode = match extras.mode.or_else(|| variable("PGSSLMODE")) {
            Some(word) => Mode::of(&word)?,
            None => Mode::default_for(&address),
        };
        let roots = extras.roots.or_else(|| variable("PGSSLROOTCERT"));
        let within = extras.within.or_else(|| variable("PGCONNECT_TIMEOUT"));
        Ok(Self {
            address,
            user,
            database,
            password: extras
                .password
                .or_else(|| variable("PGPASSWORD").map(Secret::from_string)),
            passfile: extras
                .passfile
                .or_else(|| variable("PGPASSFILE"))
                .map(PathBuf::from),
            mode,
            // `system` is libpq's word for the roots of the system.
            roots: roots.filter(|roots| roots != "system").map(PathBuf::from),
            within: within.map(|seconds| timeout(&seconds)).transpose()?,
        })
    }
}

fn bad(why: BadUrl) -> Failure {
    let hint = match why {
        BadUrl::Password => {
            " that cannot be read: in it @ is %40, / is %2F, ? is %3F, # is %23, % is %25"
        }
        BadUrl::Parameter => {
            ", password, passfile, sslmode, sslrootcert, connect_timeout; those are understood"
        }
        _ => "",
    };
    Failure::usage(format!("the URL {why}{hint}."))
}

/// Takes out the password and the parameters that a URL in a policy may not have.
fn without_extras(url: &str) -> Result<(String, Extras), BadUrl> {
    let mut extras = Extras::default();
    let (scheme, rest) = url.split_once("://").ok_or(BadUrl::Scheme)?;
    // A password with one of these in it would be read as something else, and shown.
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    if !authority.contains('@') && authority.contains(':') && rest.contains('@') {
        return Err(BadUrl::Password);
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, format!("/{path}")),
        None => (rest, String::new()),
    };
    let authority = match authority.rsplit_once('@') {
        Some((userinfo, place)) => match userinfo.split_once(':') {
            Some((_, password)) if password.contains([':', '@']) => return Err(BadUrl::Password),
            Some((user, password)) => {
                extras.password = non_empty(unescape(password)?).map(Secret::from_string);
                format!("{user}@{place}")
            }
            None => authority.to_owned(),
        },
        None => authority.to_owned(),
    };
    let mut kept: Vec<&str> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(BadUrl::Parameter)?;
        let place = match key {
            "password" => {
                extras.password = non_empty(unescape(value)?).map(Secret::from_string);
                continue;
            }
            "passfile" => &mut extras.passfile,
            "sslmode" => &mut extras.mode,
            "sslrootcert" => &mut extras.roots,
            "connect_timeout" => &mut extras.within,
            _ => {
                kept.push(pair);
                continue;
            }
        };
        *place = non_empty(unescape(value)?);
    }
    let query = if kept.is_empty() {
        String::new()
    } else {
        format!("?{}", kept.join("&"))
    };
    Ok((format!("{scheme}://{authority}{path}{query}"), extras))
}

fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// Whether a URL says where the server is, be it by the port alone.
fn names_host(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or_default();
    let place = authority
        .rsplit_once('@')
        .map_or(authority, |(_, place)| place);
    let mut parameters = query.split('&');
    !place.is_empty()
        || parameters.any(|pair| pair.starts_with("host=") || pair.starts_with("port="))
}

/// `PGHOST` and `PGPORT`.
fn address_from(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Address>, Failure> {
    let (host, port) = (variable("PGHOST"), variable("PGPORT"));
    if host.is_none() && port.is_none() {
        return Ok(None);
    }
    let wrong = |what: &str| Failure::usage(format!("{what} is set and cannot be used."));
    let host = host.unwrap_or_else(|| ephor_proto::postgres::DEFAULT_SOCKET_DIR.to_owned());
    let port = match port {
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| wrong("PGPORT"))?,
        None => ephor_proto::postgres::DEFAULT_PORT,
    };
    Address::of(&host, port)
        .map(Some)
        .map_err(|_| wrong("PGHOST"))
}

fn own_name() -> Option<String> {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    user.ok().flatten().map(|user| user.name)
}

/// Seconds; libpq takes 1 for 2.
fn timeout(seconds: &str) -> Result<Duration, Failure> {
    let seconds: Option<u64> = seconds
        .parse()
        .ok()
        .filter(|seconds| (1..=600).contains(seconds));
    let seconds = seconds.ok_or_else(|| Failure::usage("connect_timeout is 1 to 600 seconds."))?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn words(url: &str, variables: &[(&str, &str)]) -> Result<Words, Failure> {
        Words::read(url, |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn password(words: &Words) -> Option<&str> {
        words
            .password
            .as_ref()
            .map(|secret| secret.expose_str().unwrap())
    }

    #[test]
    fn the_url_goes_before_the_variables() {
        let variables = [
            ("PGHOST", "other"),
            ("PGPORT", "6000"),
            ("PGUSER", "other"),
            ("PGDATABASE", "other"),
            ("PGPASSWORD", "other"),
            ("PGSSLMODE", "disable"),
        ];
        let said = words(
            "postgres://u:p%40@db1/d?sslmode=require&sslrootcert=/r&connect_timeout=3",
            &variables,
        )
        .unwrap();
        assert_eq!(
            (
                said.address.to_string().as_str(),
                said.user.as_str(),
                said.database.as_str()
            ),
            ("db1:5432", "u", "d")
        );
        assert_eq!((password(&said), said.mode), (Some("p@"), Mode::Require));
        assert_eq!(said.roots, Some(PathBuf::from("/r")));
        assert_eq!(said.within, Some(Duration::from_secs(3)));
        let said = words("postgres://", &variables).unwrap();
        assert_eq!(
            (
                said.address.to_string().as_str(),
                said.user.as_str(),
                said.database.as_str()
            ),
            ("other:6000", "other", "other")
        );
        assert_eq!((password(&said), said.mode), (Some("other"), Mode::Disable));
        // A port alone says where, too.
        let said = words("postgres://u@/d?port=7", &variables).unwrap();
        assert_eq!(said.address.to_string(), "/var/run/postgresql:7");
        assert_eq!(words("postgres://u@db1", &[]).unwrap().database, "u");
    }

    #[test]
    fn who_is_elsewhere_must_prove_who_it_is() {
        for (url, mode) in [
            ("postgres://u@db1/d", Mode::VerifyFull),
            ("postgres://u@10.0.0.1/d", Mode::VerifyFull),
            ("postgres://u@localhost.evil.example/d", Mode::VerifyFull),
            ("postgres://u@localhost/d", Mode::Prefer),
            ("postgres://u@127.0.0.1/d", Mode::Prefer),
            ("postgres://u@[::1]/d", Mode::Prefer),
            ("postgres:///d", Mode::Prefer),
            ("postgres://u@db1/d?sslmode=prefer", Mode::Prefer),
        ] {
            assert_eq!(words(url, &[("PGUSER", "u")]).unwrap().mode, mode, "{url}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_never_repeated() {
        for (url, said) in [
            (
                "postgres://u:hunter2@x@db1/d",
                "a password that cannot be read",
            ),
            (
                "postgres://u:hunter2/x@db1/d",
                "a password that cannot be read",
            ),
            (
                "postgres://u:hunter2?x@db1/d",
                "a password that cannot be read",
            ),
            ("postgres://u:hunter2%zz@db1/d", "a '%' that is no escape"),
            ("postgres://u:hunter2@a b/d", "a host that is neither"),
            (
                "postgres://u:hunter2@db1/d?sslmode=hunter2",
                "sslmode is one of",
            ),
            (
                "postgres://u:hunter2@db1/d?hunter2=1",
                "parameters other than",
            ),
            (
                "postgres://u:hunter2@db1/d?connect_timeout=0",
                "connect_timeout is 1 to 600",
            ),
            ("mysql://u:hunter2@db1/d", "does not begin with postgres://"),
            ("u:hunter2@db1/d", "does not begin with postgres://"),
        ] {
            let why = words(url, &[]).map(|_| ()).unwrap_err();
            assert_eq!(why.code, crate::exit::USAGE);
            assert!(why.message.contains(said), "{url}: {}", why.message);
            assert!(!why.message.contains("hunter2"), "{}", why.message);
        }
    }
}
