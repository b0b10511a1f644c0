//! `[target.NAME]`, and the logins that entitlements give there.
//!
//! No secret stands in a policy: it is kept for ever, shown and sent around. So a URL with a
//! password is refused, and no error repeats any of it.

use std::path::PathBuf;

use ephor_proto::postgres::{Address, BadUrl, Url, check_identifier};
use ephor_proto::ttl::Ttl;
use toml::Spanned;
use toml::de::DeValue;

use super::error::Place;
use super::fields::{owner, ttl};
use super::limits::{
    MAX_CONNECTION_LIMIT, MAX_CONNECTIONS, MAX_DATABASES, MAX_ROLES, MAX_ROTATE_SECONDS,
    MAX_SCRAM_ITERATIONS, MAX_SETTING_BYTES, MAX_SETTINGS, MAX_STANDBYS, MAX_TARGET_BYTES,
    MIN_ROTATE_SECONDS, MIN_SCRAM_ITERATIONS,
};
use super::model::{Give, LoginBy, PostgresTarget, Tls};
use super::reader::{Keys, Reader, Section, Text, guess, shown};
use super::tables::Given;

pub(super) const TARGET: Keys = Keys {
    known: &["postgres", "owner", "rotate"],
    later: &["ssh", "sudo", "secret", "exec"],
};
pub(super) const POSTGRES_TARGET: Keys = Keys {
    known: &[
        "url",
        "admin_database",
        "databases",
        "standbys",
        "ca_file",
        "tls",
        "scram_iterations",
        "connections",
    ],
    later: &[],
};
pub(super) const POSTGRES: Keys = Keys {
    known: &[
        "target",
        "role",
        "roles",
        "database",
        "connection_limit",
        "settings",
        "login",
        "reassign",
    ],
    later: &[],
};

pub(super) const SECRET: Keys = Keys {
    known: &["target", "role", "database"],
    later: &[],
};

const ADMIN_DATABASE: &str = "ephor";
const SCRAM_ITERATIONS: u32 = 4096;
const CONNECTIONS: u32 = 8;

/// `[target.…]` as written; missing parts were reported.
pub(super) struct TargetDraft {
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) owner: Option<String>,
    pub(super) postgres: Option<PostgresTarget>,
    pub(super) rotate: Option<Ttl>,
    /// Where something that is legal should be looked at, and why.
    pub(super) clear: Option<Place>,
}

/// Where a login names its target and its database.
pub(super) struct Refers {
    pub(super) target: Place,
    /// `None`: the target's own.
    pub(super) database: Option<Place>,
}

pub(super) fn target(reader: &mut Reader<'_>, name: &str, section: &Section<'_>) -> TargetDraft {
    section.check_keys(reader, &TARGET);
    if !is_name(name) {
        let what = format!(
            "target {} is not 1 to {MAX_TARGET_BYTES} of a-z, 0-9, '-', '_' and '.', beginning with a letter \
             or digit",
            shown(name)
        );
        reader.refuse(section.at, what, "Its password is in the file target-NAME.");
    }
    let hint = "Add postgres = { url = \"postgres://ephor@HOST/DATABASE\" }.";
    section.require(reader, "postgres", hint);
    let postgres = section.section(reader, "postgres", "postgres");
    let read = postgres.and_then(|section| server(reader, &section));
    let (postgres, clear) = match read {
        Some((postgres, clear)) => (Some(postgres), clear),
        None => (None, None),
    };
    TargetDraft {
        place: reader.place(section.at),
        name: name.to_owned(),
        owner: owner(reader, section),
        postgres,
        rotate: rotate(reader, section),
        clear,
    }
}

/// Often enough to be of use, and not so often that it is mostly under way.
fn rotate(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<Ttl> {
    let (at, every) = ttl(reader, section, "rotate")?;
    if (MIN_ROTATE_SECONDS..=MAX_ROTATE_SECONDS).contains(&every.as_seconds()) {
        return Some(every);
    }
    let what = format!("rotate {every} is not between 1h and 365d");
    let hint = "It is the password of the broker's own login; leave it out to rotate by hand.";
    reader.refuse(at, what, hint);
    None
}

fn is_name(name: &str) -> bool {
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let allowed = |b: u8| first(b) || b"-_.".contains(&b);
    name.bytes().next().is_some_and(first)
        && name.len() <= MAX_TARGET_BYTES
        && name.bytes().all(allowed)
}

fn server(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
) -> Option<(PostgresTarget, Option<Place>)> {
    section.check_keys(reader, &POSTGRES_TARGET);
    let url = url(reader, section);
    let standbys = standbys(reader, section);
    let admin_database = section
        .text(reader, "admin_database")
        .and_then(|text| identifier(reader, "admin_database", text));
    let listed = databases(reader, section);
    let ca_file = section
        .text(reader, "ca_file")
        .and_then(|text| ca_file(reader, text));
    let tls = tls(reader, section);
    let scram = section.number(
        reader,
        "scram_iterations",
        MIN_SCRAM_ITERATIONS..=MAX_SCRAM_ITERATIONS,
    );
    let connections = section.number(reader, "connections", 1..=MAX_CONNECTIONS);
    let (user, address, database) = url?;
    let databases = listed.unwrap_or_else(|| vec![database.clone()]);
    if !databases.is_empty() && !databases.contains(&database) {
        let at = section.key_at("databases").unwrap_or(section.at);
        let what = format!("databases lack {}, the one of the url", shown(&database));
        let hint = "List every database in which a login may leave something.";
        reader.refuse(at, what, hint);
    }
    let remote = [&address].into_iter().chain(&standbys).any(is_remote);
    let clear = (tls == Tls::Off && remote).then(|| {
        let at = section.key_at("tls").unwrap_or(section.at);
        reader.place(at)
    });
    let target = PostgresTarget {
        user,
        address,
        database,
        admin_database: admin_database.unwrap_or_else(|| ADMIN_DATABASE.to_owned()),
        databases,
        standbys,
        ca_file,
        tls,
        scram_iterations: scram.unwrap_or(SCRAM_ITERATIONS),
        connections: connections.unwrap_or(CONNECTIONS),
    };
    Some((target, clear))
}

fn is_remote(address: &Address) -> bool {
    match address {
        Address::Socket { .. } => false,
        Address::Tcp { host, .. } => {
            let ip = host.parse::<std::net::IpAddr>();
            host != "localhost" && !ip.is_ok_and(|ip| ip.is_loopback())
        }
    }
}

fn url(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<(String, Address, String)> {
    const HINT: &str =
        "Write url = \"postgres://ephor@HOST/DATABASE\", with the broker's own login.";
    section.require(reader, "url", HINT);
    // A wrong type would be shown as it is written, and it may hold a password.
    let value = section.find("url")?;
    let at = value.span().start;
    let Some(text) = value.get_ref().as_str() else {
        reader.refuse(at, "url is not a string", HINT);
        return None;
    };
    let url: Url = text
        .parse()
        .map_err(|problem: BadUrl| reader.refuse(at, format!("url {problem}"), mend(problem)))
        .ok()?;
    let Some(user) = url.user else {
        reader.refuse(at, "url names no user", HINT);
        return None;
    };
    let Some(database) = url.database else {
        reader.refuse(at, "url names no database", HINT);
        return None;
    };
    Some((user, url.address, database))
}

fn mend(problem: BadUrl) -> &'static str {
    match problem {
        BadUrl::Password => {
            "Take it out and change it: a policy is kept for ever. The password belongs into the file target-NAME \
             in target_secrets_dir."
        }
        BadUrl::SeveralHosts => "Name the one that is written to, and the others in standbys.",
        BadUrl::Parameter => "What else libpq has there is a key beside url: tls, ca_file.",
        BadUrl::SocketDir => "Write postgres://ephor@/DATABASE?host=/run/postgresql.",
        BadUrl::Scheme
        | BadUrl::TooLong
        | BadUrl::Escape
        | BadUrl::Host
        | BadUrl::Port
        | BadUrl::User(_)
        | BadUrl::Database(_)
        | BadUrl::Rest => "Write url = \"postgres://ephor@HOST:PORT/DATABASE\".",
    }
}

fn databases(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<Vec<String>> {
    let at = section.key_at("databases")?;
    let texts = section.texts(reader, "databases")?;
    if section
        .list(reader, "databases")
        .is_some_and(<[_]>::is_empty)
    {
        reader.refuse(
            at,
            "databases is empty",
            "Leave it out for the url's alone.",
        );
    }
    if texts.len() > MAX_DATABASES {
        let what = format!("{} databases, more than {MAX_DATABASES}", texts.len());
        reader.refuse(at, what, "Make a target for some of them.");
    }
    let mut names: Vec<String> = Vec::with_capacity(texts.len());
    for text in texts {
        if names.iter().any(|name| name == text.value) {
            let what = format!("databases name {} twice", shown(text.value));
            reader.refuse(text.at, what, "Keep one.");
        }
        names.extend(identifier(reader, "database", text));
    }
    Some(names)
}

fn standbys(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<Address> {
    let texts = section.texts(reader, "standbys").unwrap_or_default();
    if texts.len() > MAX_STANDBYS {
        let at = section.key_at("standbys").unwrap_or(section.at);
        let what = format!("{} standbys, more than {MAX_STANDBYS}", texts.len());
        reader.refuse(at, what, "");
    }
    const HINT: &str = "Write HOST:PORT; login and password are those of url.";
    let mut found = Vec::with_capacity(texts.len());
    for text in texts {
        match text.value.parse::<Address>() {
            Ok(address) if text.value.ends_with(&format!(":{}", address.port())) => {
                found.push(address);
            }
            Ok(_) => reader.refuse(
                text.at,
                format!("the standby {} has no port", shown(text.value)),
                HINT,
            ),
            // Somebody may have written a whole URL, with all that is in it.
            Err(problem) => reader.refuse(text.at, format!("a standby {problem}"), HINT),
        }
    }
    found
}

fn ca_file(reader: &mut Reader<'_>, text: Text<'_>) -> Option<PathBuf> {
    let steps = text.value.strip_prefix('/').map(|rest| rest.split('/'));
    let good = steps.is_some_and(|mut steps| steps.all(|step| !matches!(step, "" | "." | "..")));
    if !good || text.value.chars().any(char::is_control) {
        let what = format!("ca_file {} is not an absolute path", shown(text.value));
        reader.refuse(text.at, what, "Write one such as /etc/ephor/db-ca.pem.");
        return None;
    }
    Some(PathBuf::from(text.value))
}

fn tls(reader: &mut Reader<'_>, section: &Section<'_>) -> Tls {
    let Some(text) = section.text(reader, "tls") else {
        return Tls::VerifyFull;
    };
    match text.value {
        "verify-full" => {}
        "off" => {
            if let Some(at) = section.key_at("ca_file") {
                reader.refuse(
                    at,
                    "ca_file without TLS",
                    "Leave out one of tls = \"off\" and ca_file.",
                );
            }
            return Tls::Off;
        }
        other => {
            let hint = "Write \"verify-full\" or \"off\"; there is nothing between a verified name and none.";
            let guess = guess(other, ["verify-full", "off"]);
            reader.refuse(
                text.at,
                format!("tls {} is unknown{guess}", shown(other)),
                hint,
            );
        }
    }
    Tls::VerifyFull
}

/// `postgres = { … }` in `gives`. The database stays empty when it is the target's; `compile`
/// knows that.
pub(super) fn give_postgres(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<Given> {
    section.check_keys(reader, &POSTGRES);
    let target = section.required(
        reader,
        "target",
        "Add target = \"NAME\" of a [target.NAME].",
    );
    let roles = roles(reader, section);
    let database = section.text(reader, "database");
    let named = database.and_then(|text| identifier(reader, "database", text));
    let connection_limit = section.number(reader, "connection_limit", 1..=MAX_CONNECTION_LIMIT);
    let settings = section
        .section(reader, "settings", "settings")
        .map(|section| settings(reader, &section))
        .unwrap_or_default();
    let login = login(reader, section);
    let reassign = section.flag(reader, "reassign");
    let target = target?;
    Some(Given {
        refers: Some(Refers {
            target: reader.place(target.at),
            database: database.map(|text| reader.place(text.at)),
        }),
        give: Give::Postgres {
            target: target.value.to_owned(),
            roles,
            database: named.unwrap_or_default(),
            connection_limit,
            settings,
            login,
            reassign,
        },
    })
}

/// `secret = { … }` in `gives`: a role that was there before.
pub(super) fn give_secret(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<Given> {
    section.check_keys(reader, &SECRET);
    let hint = "Add target = \"NAME\" of a [target.NAME].";
    let target = section.required(reader, "target", hint);
    let hint = "Add role = \"NAME\" of a login that is there: its password is lent.";
    let role = section.required(reader, "role", hint);
    let database = section.text(reader, "database");
    let named = database.and_then(|text| identifier(reader, "database", text));
    let role = role.and_then(|text| match role_problem(text.value) {
        Some((problem, _)) => {
            let hint = "Name a login of your own, with the rights of one program.";
            let what = format!("role {} {problem}", shown(text.value));
            reader.refuse(text.at, what, hint);
            None
        }
        None => identifier(reader, "role", text),
    });
    let (target, role) = (target?, role?);
    Some(Given {
        refers: Some(Refers {
            target: reader.place(target.at),
            database: database.map(|text| reader.place(text.at)),
        }),
        give: Give::Secret {
            target: target.value.to_owned(),
            role,
            database: named.unwrap_or_default(),
        },
    })
}

fn roles(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<String> {
    let one = section.text(reader, "role");
    let more = section.texts(reader, "roles").unwrap_or_default();
    let written = section.find("role").or_else(|| section.find("roles"));
    if let (Some(_), Some(at)) = (section.find("role"), section.key_at("roles")) {
        let hint =
            "Leave one of them out: role = \"NAME\" names one, roles = [\"NAME\", …] several.";
        reader.refuse(at, "postgres has both role and roles", hint);
    }
    let texts: Vec<Text<'_>> = one.into_iter().chain(more).collect();
    let misspelt = guess_among(section, &["role", "roles"]);
    if texts.is_empty() && !misspelt {
        let at = written.map_or(section.at, |value: &Spanned<DeValue<'_>>| {
            value.span().start
        });
        let hint =
            "Add role = \"NAME\" of a group role without LOGIN; it decides what the login may do.";
        reader.refuse(at, "postgres has no role", hint);
    }
    if texts.len() > MAX_ROLES {
        let what = format!("{} roles, more than {MAX_ROLES}", texts.len());
        reader.refuse(section.at, what, "Make one group of them.");
    }
    let mut roles: Vec<String> = Vec::with_capacity(texts.len());
    for text in texts {
        if let Some((problem, hint)) = role_problem(text.value) {
            reader.refuse(
                text.at,
                format!("role {} {problem}", shown(text.value)),
                hint,
            );
        } else if roles.iter().any(|role| role == text.value) {
            let what = format!("the role {} twice", shown(text.value));
            reader.refuse(text.at, what, "Keep one.");
        } else {
            roles.extend(identifier(reader, "role", text));
        }
    }
    roles
}

/// Whether some key of a table is nearly one of these: that is reported already.
fn guess_among(section: &Section<'_>, names: &[&str]) -> bool {
    let mut keys = section.table.keys().map(|key| key.get_ref().as_ref());
    keys.any(|key: &str| !names.contains(&key) && !guess(key, names.iter().copied()).is_empty())
}

/// Roles that nobody may be given by policy, whatever the server says at use.
fn role_problem(role: &str) -> Option<(&'static str, &'static str)> {
    const GROUP: &str = "Name a group role of your own, made WITHOUT LOGIN.";
    match role {
        "none" | "public" | "current_user" | "current_role" | "session_user" => {
            Some(("is a word of SQL and no role", GROUP))
        }
        "pg_execute_server_program" | "pg_read_server_files" | "pg_write_server_files" => {
            Some(("is as good as the server's own user", GROUP))
        }
        "pg_signal_backend" | "pg_signal_autovacuum_worker" => {
            Some(("could end the sessions that revocation needs", GROUP))
        }
        "pg_create_subscription" => Some(("could make what outlives the login", GROUP)),
        "ephor_owner" | "ephor_signal" | "ephor_certificate" => Some(("is Ephor's own", GROUP)),
        ours if ours.starts_with("eph_") => Some(("has the prefix of Ephor's logins", GROUP)),
        _ => None,
    }
}

/// Settings that would undo how a session starts, hide it, or outlive it.
const NOT_SETTABLE: [&str; 9] = [
    "createrole_self_grant",
    "is_superuser",
    "local_preload_libraries",
    "password_encryption",
    "post_auth_delay",
    "role",
    "session_authorization",
    "session_preload_libraries",
    "session_replication_role",
];

fn settings(reader: &mut Reader<'_>, section: &Section<'_>) -> Vec<(String, String)> {
    const HINT: &str = "Write it as SHOW does, such as statement_timeout = \"30s\".";
    let mut found = Vec::new();
    for (key, value) in section.table.iter() {
        let (name, at) = (key.get_ref().as_ref(), key.span().start);
        if NOT_SETTABLE.contains(&name.to_ascii_lowercase().as_str()) {
            let what = format!("setting {} is not for policy", shown(name));
            let hint = "It would change who the session is, hide it or outlive it.";
            reader.refuse(at, what, hint);
            continue;
        }
        if !is_setting(name) {
            let what = format!("setting {} is no name of a setting", shown(name));
            reader.refuse(at, what, HINT);
            continue;
        }
        match setting_value(value) {
            Some(text) => found.push((name.to_owned(), text)),
            None => {
                let what = format!(
                    "setting {} is no text of at most {MAX_SETTING_BYTES} bytes, whole number or boolean",
                    shown(name)
                );
                reader.refuse(value.span().start, what, HINT);
            }
        }
    }
    if found.len() > MAX_SETTINGS {
        let what = format!("{} settings, more than {MAX_SETTINGS}", found.len());
        reader.refuse(section.at, what, "Set the rest for the group role.");
    }
    found.sort();
    found
}

/// Lower-case words, or two with a dot between them (an extension's).
fn is_setting(name: &str) -> bool {
    let word = |word: &str| {
        word.bytes()
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
            && word
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let words = name.split('.').count();
    name.len() <= 63 && words <= 2 && name.split('.').all(word)
}

fn setting_value(value: &Spanned<DeValue<'_>>) -> Option<String> {
    let text = match value.get_ref() {
        DeValue::String(text) => text.to_string(),
        DeValue::Boolean(true) => "on".to_owned(),
        DeValue::Boolean(false) => "off".to_owned(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .ok()?
            .to_string(),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
            return None;
        }
    };
    let good = text.len() <= MAX_SETTING_BYTES && !text.chars().any(char::is_control);
    good.then_some(text)
}

fn login(reader: &mut Reader<'_>, section: &Section<'_>) -> LoginBy {
    let Some(text) = section.text(reader, "login") else {
        return LoginBy::Password;
    };
    match text.value {
        "password" => LoginBy::Password,
        "certificate" => LoginBy::Certificate,
        other => {
            let guess = guess(other, ["password", "certificate"]);
            let what = format!("login {} is unknown{guess}", shown(other));
            let hint = "Write \"password\" or \"certificate\".";
            reader.refuse(text.at, what, hint);
            LoginBy::Password
        }
    }
}

fn identifier(reader: &mut Reader<'_>, what: &str, text: Text<'_>) -> Option<String> {
    if let Err(problem) = check_identifier(text.value) {
        let what = format!("{what} {} {problem}", shown(text.value));
        reader.refuse(text.at, what, "");
        return None;
    }
    Some(text.value.to_owned())
}
