//! Whether the server takes what policy wants sessions to start with.

use crate::kind::postgres::access::Access;
use crate::kind::postgres::failed::Failed;
use crate::kind::postgres::name::{literal, quoted};
use crate::tasks::Tasks;

use super::{Finding, Grade, open};

/// What the logins of an entitlement start with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Whose, and where that is written.
    pub of: String,
    /// Its name, as policy allows names.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// What is a superuser's to set is looked at by rights alone: logins are made with those of the owner of our
/// functions, which the broker's login does not have.
fn trying(user: &str, name: &str, value: &str) -> String {
    // An extension's has two words.
    let words: Vec<String> = name.split('.').map(quoted).collect();
    let (parameter, name) = (words.join("."), literal(name));
    let tried = format!(
        "BEGIN
            IF NOT EXISTS (SELECT FROM pg_catalog.pg_settings s
                           WHERE pg_catalog.lower(s.name) = pg_catalog.lower({name}) AND s.context LIKE 'superuser%') THEN
                ALTER ROLE {} SET {parameter} = {};
            ELSIF pg_catalog.current_setting('server_version_num')::int < 150000 THEN
                RAISE 'only a superuser may set %', {name} USING ERRCODE = 'insufficient_privilege';
            ELSIF NOT pg_catalog.has_parameter_privilege('ephor_owner', {name}, 'SET') THEN
                RAISE 'permission denied to set parameter \"%\"; a superuser can allow it: GRANT SET ON PARAMETER % TO ephor_owner',
                    {name}, {name} USING ERRCODE = 'insufficient_privilege';
            END IF;
        END",
        quoted(user),
        literal(value)
    );
    format!("BEGIN; DO {}; ROLLBACK", literal(&tried))
}

/// Tries each for the broker's own login, as it is done for a new one, and takes it back. Servers that cannot
/// be asked were told of before.
pub async fn check_settings(access: &Access, settings: &[Setting], tasks: &Tasks) -> Vec<Finding> {
    if settings.is_empty() {
        return Vec::new();
    }
    let admin = access.admin_database.as_str();
    for host in &access.hosts {
        let Ok(conn) = open(access, host, admin, tasks).await else {
            continue;
        };
        if conn.in_recovery {
            continue;
        }
        let mut found = Vec::with_capacity(settings.len());
        for Setting { of, name, value } in settings {
            let sql = trying(&access.user, name, value);
            let tried = conn.run(access, "trying a setting", &sql).await;
            if tried.is_err() {
                // Else the next one is in a transaction that failed.
                let _ = conn.run(access, "trying a setting", "ROLLBACK").await;
            }
            found.push(match tried {
                Ok(()) => Finding::ok(format!("{of}: {name} may be set")),
                Err(Failed::Refused { why, .. } | Failed::Missing { what: why, .. }) => {
                    let mend = format!("correct {name} in `settings` there, or leave it out");
                    Finding::not(Grade::Wrong, format!("{of}: {why}"), mend)
                }
                Err(why) => {
                    Finding::not(Grade::Unknown, why.to_string(), "ephor target check again")
                }
            });
        }
        return found;
    }
    Vec::new()
}
