//! Where a PostgreSQL server is, as people write it and as clients of it read it: connection URLs
//! (libpq's form), addresses and identifiers.
//!
//! Parsing is strict: what this project would not obey is refused, not dropped. A refusal never
//! repeats a part of the URL, because a URL that is wrong may be wrong around a password.

use std::fmt::{self, Write as _};

/// The port of a server that names none.
pub const DEFAULT_PORT: u16 = 5432;
/// Where Debian's servers have their sockets, when a URL names no host.
pub const DEFAULT_SOCKET_DIR: &str = "/var/run/postgresql";
/// Longest identifier, in bytes: a longer one is silently cut by the server (`NAMEDATALEN - 1`).
pub const MAX_IDENTIFIER_LEN: usize = 63;
/// Longest URL, in bytes.
pub const MAX_URL_LEN: usize = 1024;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A DNS name or IP address (IPv6 without brackets), and a TCP port.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// A directory with a socket `.s.PGSQL.PORT`.
    Socket {
        /// Absolute path of the directory.
        dir: String,
        /// The number in the socket's name.
        port: u16,
    },
}

impl Address {
    /// As `PGHOST` names it: a name, an address or a directory.
    pub fn host(&self) -> &str {
        match self {
            Self::Tcp { host, .. } => host,
            Self::Socket { dir, .. } => dir,
        }
    }

    /// As `PGPORT` names it.
    pub fn port(&self) -> u16 {
        match self {
            Self::Tcp { port, .. } | Self::Socket { port, .. } => *port,
        }
    }

    /// From what `PGHOST` and `PGPORT` would say.
    ///
    /// # Errors
    /// When it is neither a name, nor an address, nor an absolute path.
    pub fn of(host: &str, port: u16) -> Result<Self, BadUrl> {
        if host.starts_with('/') {
            let plain = !host.chars().any(|c| c.is_control() || c == ',');
            // The path of the socket itself must fit into an address of the kernel.
            if !plain || host.len() > 80 || host.contains("/../") {
                return Err(BadUrl::SocketDir);
            }
            let dir = host.to_owned();
            return Ok(Self::Socket { dir, port });
        }
        if host.contains(',') {
            return Err(BadUrl::SeveralHosts);
        }
        if !is_host(host) {
            return Err(BadUrl::Host);
        }
        let host = host.to_owned();
        Ok(Self::Tcp { host, port })
    }
}

impl fmt::Display for Address {
    /// `db1:5432`, `[::1]:5432` or `/run/postgresql:5432`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Socket { dir, port } => write!(f, "{dir}:{port}"),
        }
    }
}

impl std::str::FromStr for Address {
    type Err = BadUrl;

    /// Parses `HOST[:PORT]`, `[IPV6][:PORT]` or `/DIRECTORY[:PORT]`.
    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let (host, port) = split_port(text)?;
        Self::of(host, port)
    }
}

fn split_port(text: &str) -> Result<(&str, u16), BadUrl> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(BadUrl::Host)?;
        if !host.contains(':') {
            return Err(BadUrl::Host);
        }
        return match after {
            "" => Ok((host, DEFAULT_PORT)),
            after => Ok((host, port(after.strip_prefix(':').ok_or(BadUrl::Host)?)?)),
        };
    }
    match text.rsplit_once(':') {
        None => Ok((text, DEFAULT_PORT)),
        // An IPv6 address without brackets: where does the port begin?
        Some((host, _)) if host.contains(':') => Err(BadUrl::Host),
        Some((host, number)) => Ok((host, port(number)?)),
    }
}

fn port(text: &str) -> Result<u16, BadUrl> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.filter(|port| *port != 0).ok_or(BadUrl::Port)
}

fn is_host(host: &str) -> bool {
    if host.contains(':') {
        return host.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(allowed);
    host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
}

/// Why a text is no URL that can be used. Names the part, never its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Another scheme, or none.
    #[error("does not begin with postgres://")]
    Scheme,
    /// Longer than [`MAX_URL_LEN`].
    #[error("is longer than {MAX_URL_LEN} bytes")]
    TooLong,
    /// Something between the user's name and the host that is a password, or looks like one.
    #[error("has a password")]
    Password,
    /// `%` without two hexadecimal digits, or bytes that are no text.
    #[error("has a '%' that is no escape of text")]
    Escape,
    /// No name or address.
    #[error("has a host that is neither a name nor an address")]
    Host,
    /// A list of hosts.
    #[error("names several hosts")]
    SeveralHosts,
    /// No port number.
    #[error("has a port that is not 1 to 65535")]
    Port,
    /// A path that is no directory of sockets.
    #[error("has a socket directory that is no absolute path of at most 80 bytes")]
    SocketDir,
    /// A user that is no identifier.
    #[error("has a user that {0}")]
    User(BadIdentifier),
    /// A database that is no identifier.
    #[error("has a database that {0}")]
    Database(BadIdentifier),
    /// A parameter beside `host` and `port`.
    #[error("has parameters other than host and port")]
    Parameter,
    /// A fragment, or a path with several segments.
    #[error("has more after the database's name")]
    Rest,
}

/// A connection URL without a password: `postgres://[USER@][HOST][:PORT][/DATABASE][?host=&port=]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// The login, when it is named.
    pub user: Option<String>,
    /// The server; [`DEFAULT_SOCKET_DIR`] when none is named.
    pub address: Address,
    /// The database, when it is named.
    pub database: Option<String>,
}

impl std::str::FromStr for Url {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        if text.len() > MAX_URL_LEN {
            return Err(BadUrl::TooLong);
        }
        let rest = text
            .strip_prefix("postgres://")
            .or_else(|| text.strip_prefix("postgresql://"))
            .ok_or(BadUrl::Scheme)?;
        // Before anything else, and however badly the rest is written.
        if rest
            .rsplit_once('@')
            .is_some_and(|(user, _)| user.contains(':'))
        {
            return Err(BadUrl::Password);
        }
        if rest.contains('#') {
            return Err(BadUrl::Rest);
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        if database.contains('/') {
            return Err(BadUrl::Rest);
        }
        Ok(Self {
            user: user
                .map(|user| identifier(user, BadUrl::User))
                .transpose()?,
            address: address(place, query)?,
            database: match database {
                "" => None,
                name => Some(identifier(name, BadUrl::Database)?),
            },
        })
    }
}

impl fmt::Display for Url {
    /// As `psql` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        compose(
            &mut text,
            &Parts {
                user: self.user.as_deref().unwrap_or_default(),
                password: "",
                address: &self.address,
                database: self.database.as_deref().unwrap_or_default(),
                parameters: &[],
            },
        );
        f.write_str(&text)
    }
}

fn identifier(escaped: &str, wrong: fn(BadIdentifier) -> BadUrl) -> Result<String, BadUrl> {
    let text = unescape(escaped)?;
    check_identifier(&text).map_err(wrong)?;
    Ok(text)
}

fn address(place: &str, query: &str) -> Result<Address, BadUrl> {
    let (mut host, mut number) = if place.starts_with('[') || !place.contains('%') {
        let (host, port) = split_port(place)?;
        (host.to_owned(), port)
    } else {
        // libpq's other way to name a directory: %2Frun%2Fpostgresql
        let (host, number) = match place.rsplit_once(':') {
            Some((host, number)) => (host, port(number)?),
            None => (place, DEFAULT_PORT),
        };
        (unescape(host)?, number)
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(BadUrl::Parameter)?;
        match key {
            "host" => host = unescape(value)?,
            "port" => number = port(value)?,
            "password" | "passfile" | "sslpassword" => return Err(BadUrl::Password),
            _ => return Err(BadUrl::Parameter),
        }
    }
    if host.is_empty() {
        DEFAULT_SOCKET_DIR.clone_into(&mut host);
    }
    Address::of(&host, number)
}

/// Undoes percent-encoding (RFC 3986 §2.1).
///
/// # Errors
/// [`BadUrl::Escape`].
pub fn unescape(text: &str) -> Result<String, BadUrl> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = rest.next().and_then(|b| char::from(b).to_digit(16));
            digit
                .and_then(|d| u8::try_from(d).ok())
                .ok_or(BadUrl::Escape)
        };
        bytes.push(digit()? << 4 | digit()?);
    }
    String::from_utf8(bytes).map_err(|_| BadUrl::Escape)
}

/// What stands in a URL that is handed out.
#[derive(Clone, Copy)]
pub struct Parts<'a> {
    /// Login; left out when empty.
    pub user: &'a str,
    /// Its password; left out when empty.
    pub password: &'a str,
    /// The server.
    pub address: &'a Address,
    /// Database; left out when empty.
    pub database: &'a str,
    /// Further parameters, such as `sslmode`, in order; those with an empty value are left out.
    pub parameters: &'a [(&'a str, &'a str)],
}

/// Writes a URL behind what `out` holds, with everything escaped that could be read as something
/// else. Give `out` enough capacity first when there is a password: growing leaves a copy behind
/// that nobody wipes; see [`composed_len`].
pub fn compose(out: &mut String, parts: &Parts<'_>) {
    out.push_str("postgresql://");
    if !parts.user.is_empty() {
        escape(out, parts.user);
        if !parts.password.is_empty() {
            out.push(':');
            escape(out, parts.password);
        }
        out.push('@');
    }
    let mut socket = None;
    match parts.address {
        Address::Tcp { .. } => drop(write!(out, "{}", parts.address)),
        // Every driver knows the parameter, only libpq the escaped directory as a host.
        Address::Socket { dir, port } => socket = Some((dir, port.to_string())),
    }
    out.push('/');
    escape(out, parts.database);
    let mut first = true;
    let mut parameter = |key: &str, value: &str| {
        if !value.is_empty() {
            out.push(if first { '?' } else { '&' });
            first = false;
            out.push_str(key);
            out.push('=');
            escape(out, value);
        }
    };
    if let Some((dir, port)) = socket {
        parameter("host", dir);
        parameter("port", &port);
    }
    for (key, value) in parts.parameters {
        parameter(key, value);
    }
}

/// At least as many bytes as [`compose`] writes.
pub fn composed_len(parts: &Parts<'_>) -> usize {
    let parameters = parts.parameters.iter();
    let texts = parts.user.len()
        + parts.password.len()
        + parts.address.host().len()
        + parts.database.len()
        + parameters
            .map(|(key, value)| key.len() + value.len() + 2)
            .sum::<usize>();
    // Each byte becomes at most three; the rest is punctuation, two words and a port.
    3 * texts + 64
}

fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            other => drop(write!(out, "%{other:02X}")),
        }
    }
}

/// A login that we made as people read it, `eph_orders_7kq2`: what it is for, and the end of its random
/// part. Any other name stays whole.
pub fn short_login(name: &str) -> String {
    let mut parts = name.rsplitn(3, '_');
    let (random, installation, kind) = (parts.next(), parts.next(), parts.next());
    match (kind, installation, random) {
        (Some(kind), Some(installation), Some(random))
            if kind.starts_with("eph_") && installation.len() == 6 && random.len() == 26 =>
        {
            format!("{kind}_{}", random.get(22..).unwrap_or(random))
        }
        _ => name.to_owned(),
    }
}

/// What a client puts into `options` (`PGOPTIONS`), so that its sessions start as `role` and what they
/// make belongs to that: the server lets nobody set it as a login's default from inside a function.
pub fn start_as(role: &str) -> String {
    if role.is_empty() {
        return String::new();
    }
    let mut options = "-c role=".to_owned();
    for c in role.chars() {
        // Blanks and backslashes are escaped (libpq, "options").
        if c == '\\' || c.is_whitespace() {
            options.push('\\');
        }
        options.push(c);
    }
    options
}

/// Why a text is no identifier that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadIdentifier {
    /// Nothing.
    #[error("is empty")]
    Empty,
    /// The server would cut it and mean another.
    #[error("is longer than 63 bytes")]
    TooLong,
    /// NUL, a line break or the like.
    #[error("has control characters")]
    Control,
}

/// Whether a text can name a role or a database: 1 to 63 bytes, no control characters. Anything
/// else is allowed, since identifiers are always quoted.
///
/// # Errors
/// What is wrong with it.
pub fn check_identifier(name: &str) -> Result<(), BadIdentifier> {
    // What is invisible or turns the direction of text could be read as another name.
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    match name {
        "" => Err(BadIdentifier::Empty),
        long if long.len() > MAX_IDENTIFIER_LEN => Err(BadIdentifier::TooLong),
        odd if odd.chars().any(hidden) => Err(BadIdentifier::Control),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
