//! Who made a login, as far as its name tells. Names are hints: the report says "look like", and
//! what is removed never depends on one.

use ephor_proto::time::UnixMillis;
use serde::Serialize;

/// The group that Teleport puts every login into that it makes.
pub const TELEPORT_GROUP: &str = "teleport-auto-user";
/// Longest name of a role, in bytes: the server cuts what is longer.
const NAME_MAX: usize = 63;
/// Random characters in a name of Vault's.
const VAULT_RANDOM: usize = 20;
/// Digits of the Unix time at its end, from 2001 to 2286.
const VAULT_TIME: usize = 10;
/// How much of the random part is kept when a name is shortened for people.
const SHOWN_RANDOM: usize = 4;
/// What `ephor dev --pg` names its broker's logins, and how many hexadecimal digits follow.
const DEV_PREFIX: &str = "ephor_broker_";
const DEV_RANDOM: usize = 8;

/// Who made a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Maker {
    /// Vault or OpenBao; when, if the name still says so.
    Vault {
        /// The time in its name.
        made_at: Option<UnixMillis>,
    },
    /// Teleport's automatic user provisioning.
    Teleport,
    /// A broker of ours.
    Ephor {
        /// Which one.
        installation: String,
    },
    /// `ephor target init` or `ephor dev --pg`, for Ephor itself: what a broker logs in as, and the roles
    /// that its functions and its logins need.
    EphorsOwn,
    /// Named like a person.
    Person,
    /// The server itself, or the service that runs it.
    Server,
    /// Nothing known.
    Other,
}

impl Maker {
    /// One word, for programs.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Vault { .. } => "vault",
            Self::Teleport => "teleport",
            Self::Ephor { .. } => "ephor",
            Self::EphorsOwn => "ephors_own",
            Self::Person => "person",
            Self::Server => "server",
            Self::Other => "other",
        }
    }

    /// When it was made, where the name says so.
    pub const fn made_at(&self) -> Option<UnixMillis> {
        match self {
            Self::Vault { made_at } => *made_at,
            Self::Teleport
            | Self::Ephor { .. }
            | Self::EphorsOwn
            | Self::Person
            | Self::Server
            | Self::Other => None,
        }
    }

    /// Which broker of ours, if one.
    pub fn installation(&self) -> Option<&str> {
        match self {
            Self::Ephor { installation } => Some(installation),
            Self::Vault { .. }
            | Self::Teleport
            | Self::EphorsOwn
            | Self::Person
            | Self::Server
            | Self::Other => None,
        }
    }
}

impl Serialize for Maker {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// Owns Ephor's tables and functions.
pub const OWNER: &str = "ephor_owner";

/// Roles of Ephor that nobody logs in as: they own its functions, or stand in `pg_hba.conf`.
pub fn is_ephors_role(name: &str) -> bool {
    [OWNER, "ephor_signal", "ephor_certificate"].contains(&name)
}

/// Whether a name has the form of what one run of `ephor dev --pg` logs in as.
pub fn is_of_dev(name: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let random = name.strip_prefix(DEV_PREFIX);
    random.is_some_and(|random| random.len() == DEV_RANDOM && random.bytes().all(hex))
}

/// Reads a login's name. `groups` are those it is a direct member of.
pub fn maker(name: &str, is_bootstrap: bool, groups: &[&str]) -> Maker {
    if is_bootstrap || is_service_role(name) {
        return Maker::Server;
    }
    if groups.contains(&TELEPORT_GROUP) {
        return Maker::Teleport;
    }
    if let Some(ours) = ephor_broker::kind::name::parse(name) {
        let installation = ours.installation.to_owned();
        return Maker::Ephor { installation };
    }
    if let Some(made_at) = vault(name) {
        return Maker::Vault { made_at };
    }
    if is_person(name) {
        return Maker::Person;
    }
    Maker::Other
}

/// `v-<display name>-<role>-<20 random>-<Unix time>`: what Vault and OpenBao make unless told
/// otherwise. Display name and role are cut at 8 characters and may contain hyphens, or end in one.
/// A longer template is cut by the server at 63 bytes, wherever that falls. Inside: the time.
fn vault(name: &str) -> Option<Option<UnixMillis>> {
    let rest = name.strip_prefix("v-")?;
    if let Some((_, made_at)) = vault_whole(rest) {
        return Some(Some(made_at));
    }
    let (middle, last) = rest.rsplit_once('-')?;
    let plausible = if name.len() == NAME_MAX {
        // Cut in the random part, or in the time behind it.
        is_random(last) || (last.is_empty() && middle.contains('-'))
    } else {
        // A template of somebody's own, or a shortened name: three parts, the last one random.
        middle.contains('-') && last.len() >= SHOWN_RANDOM && is_random(last) && has_digit(last)
    };
    plausible.then_some(None)
}

/// The part before the random one, and the time.
fn vault_whole(rest: &str) -> Option<(&str, UnixMillis)> {
    let (rest, time) = rest.rsplit_once('-')?;
    let (before, random) = rest.rsplit_once('-')?;
    let whole = time.len() == VAULT_TIME
        && time.bytes().all(|b| b.is_ascii_digit())
        && random.len() == VAULT_RANDOM
        && is_random(random)
        && before.contains('-');
    let seconds = whole.then(|| time.parse().ok()).flatten()?;
    Some((before, UnixMillis::from_unix_seconds(seconds)))
}

fn is_random(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= VAULT_RANDOM
        && part.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn has_digit(part: &str) -> bool {
    part.bytes().any(|b| b.is_ascii_digit())
}

/// Roles that a service keeps for itself: RDS, Cloud SQL, Azure, Supabase.
fn is_service_role(name: &str) -> bool {
    let prefixes = [
        "pg_",
        "rdsadmin",
        "rds_",
        "cloudsql",
        "azure_pg_",
        "azure_superuser",
    ];
    let exact = [
        "azuresu",
        "rdsrepladmin",
        "rdstopmgr",
        "rdsproxyadmin",
        "supabase_admin",
    ];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || exact.contains(&name)
}

/// A mail address, as single sign-on makes them, or `first.last`.
fn is_person(name: &str) -> bool {
    if let Some((local, domain)) = name.split_once('@') {
        // Cloud SQL and Entra: service accounts have addresses, too.
        let is_service = domain.ends_with(".iam") || domain.ends_with("gserviceaccount.com");
        return !local.is_empty() && domain.contains('.') && !is_service;
    }
    let is_name = |part: &str| part.len() >= 2 && part.chars().all(char::is_alphabetic);
    let mut parts = name.split('.');
    matches!((parts.next(), parts.next(), parts.next()), (Some(a), Some(b), None) if is_name(a) && is_name(b))
}

/// A name as people read it: of Vault's without the time and most of the random part, of ours
/// without the installation. Not unique; the caller sees to that.
pub fn short(name: &str) -> &str {
    let cut = if let Some((before, _)) = name.strip_prefix("v-").and_then(vault_whole) {
        "v-".len() + before.len() + 1 + SHOWN_RANDOM
    } else {
        name.len()
    };
    name.get(..cut).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Maker {
        maker(name, false, &[])
    }

    fn made(seconds: u64) -> Maker {
        let made_at = Some(UnixMillis::from_unix_seconds(seconds));
        Maker::Vault { made_at }
    }

    #[test]
    fn names_of_vault_whole_cut_and_shortened() {
        for name in [
            "v-token-readonly-x81zPq0aB3cD4eF5gH6i-1710115200",
            // Both parts cut at 8 characters, one right behind a hyphen; hyphens inside.
            "v-kubernet-orders-r-9Gt2Pq0aB3cD4eF5gH6i-1710115200",
            "v-oidc-bob-app-----9Gt2Pq0aB3cD4eF5gH6i-1710115200",
            // A display name that is a mail address: still Vault's.
            "v-bo@examp-orders-9Gt2Pq0aB3cD4eF5gH6i-1710115200",
            "v-é-ü-9Gt2Pq0aB3cD4eF5gH6i-1710115200",
        ] {
            assert_eq!(of(name), made(1_710_115_200), "{name}");
        }
        let long = "v-kubernetes-production-orders-service-account-readwrite-9Gt2Pq0aB3cD4eF5gH6i-1710115200";
        for cut in ["v-root-admin-x81z", "v-kube-orders-9Gt2", &long[..NAME_MAX]] {
            assert_eq!(of(cut), Maker::Vault { made_at: None }, "{cut}");
        }
    }

    #[test]
    fn other_names_are_not_vaults() {
        for name in [
            "v-",
            "v-1",
            "v-orders",
            "v-orders-writer",
            "v-2",
            "vault",
            "V-token-a-x81z",
            "app",
            "vv-token-readonly-x81zPq0aB3cD4eF5gH6i-1710115200",
            "version-2-api-1234",
            "",
        ] {
            assert_eq!(of(name), Maker::Other, "{name}");
        }
    }

    #[test]
    fn ours_with_the_installation() {
        let ours = "eph_orders_db_k3v9aa_0123456789abcdefghjkmnpqrs";
        let installation = "k3v9aa".to_owned();
        assert_eq!(of(ours), Maker::Ephor { installation });
        for other in [
            "eph_orders",
            "eph_orders_k3v9a_0123456789abcdefghjkmnpqrs",
            "eph_orders_k3v9aa_0123456789abcdefghjkmnpqr",
            "eph_ORDERS_K3V9AA_0123456789ABCDEFGHJKMNPQRS",
        ] {
            assert_eq!(of(other), Maker::Other, "{other}");
        }
    }

    #[test]
    fn people_teleport_and_the_server() {
        assert_eq!(of("bo@example.com"), Maker::Person);
        assert_eq!(of("ivy.jones"), Maker::Person);
        assert_eq!(of("orders@project.iam"), Maker::Other);
        assert_eq!(of("app.v2"), Maker::Other);
        assert_eq!(of("a.b.c"), Maker::Other);
        assert_eq!(
            maker("bo@example.com", false, &["x", TELEPORT_GROUP]),
            Maker::Teleport
        );
        assert_eq!(maker("admin", true, &[]), Maker::Server);
        assert_eq!(of("rdsadmin"), Maker::Server);
    }

    #[test]
    fn shortened_for_people() {
        assert_eq!(
            short("v-kubernet-orders-9Gt2Pq0aB3cD4eF5gH6i-1710115200"),
            "v-kubernet-orders-9Gt2"
        );
        assert_eq!(short("v-root-admin-x81z"), "v-root-admin-x81z");
        assert_eq!(short("é"), "é");
    }
}
