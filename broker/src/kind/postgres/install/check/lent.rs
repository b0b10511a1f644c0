//! What is missing for roles that are lent.

use crate::kind::postgres::access::Access;
use crate::kind::postgres::connect::field;
use crate::kind::postgres::failed::Failed;
use crate::kind::postgres::name::Ident;
use crate::tasks::Tasks;

use super::{Finding, Grade, Look, not_reached, open};

/// Looks whether each of these roles may be lent, with the broker's own login.
pub async fn check_static_roles(access: &Access, roles: &[Ident], tasks: &Tasks) -> Vec<Finding> {
    let admin = access.admin_database.as_str();
    let mut missed = Vec::new();
    for host in access.hosts.iter().take_while(|_| !roles.is_empty()) {
        match open(access, host, admin, tasks).await {
            Ok(conn) if conn.in_recovery => {}
            Ok(conn) => {
                let look = Look {
                    access,
                    conn: &conn,
                };
                let found = look.static_roles(roles).await;
                return found.unwrap_or_else(|why| {
                    let mend = "ephor target init, with --static-role";
                    vec![Finding::not(Grade::Wrong, why.to_string(), mend)]
                });
            }
            Err(why) => missed.push(not_reached(access, host, admin, &why)),
        }
    }
    missed
}

impl Look<'_> {
    async fn static_roles(&self, roles: &[Ident]) -> Result<Vec<Finding>, Failed> {
        const SQL: &str = "SELECT EXISTS (SELECT FROM ephor.static_role s WHERE s.role = $1::text),
            EXISTS (SELECT FROM pg_roles r WHERE r.rolname = $1::text AND r.rolcanlogin),
            EXISTS (SELECT FROM pg_roles r WHERE r.rolname = $1::text
                AND (r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls)),
            current_setting('server_version_num')::int < 160000 OR EXISTS (
                SELECT FROM pg_auth_members m WHERE m.admin_option AND m.member = 'ephor_owner'::regrole
                AND m.roleid = (SELECT r.oid FROM pg_roles r WHERE r.rolname = $1::text)),
            EXISTS (SELECT FROM pg_auth_members m WHERE m.member = (SELECT r.oid FROM pg_roles r WHERE r.rolname = $1::text))";
        let mut found = Vec::new();
        for role in roles {
            let name = role.quoted();
            for row in self.rows(SQL, &[&role.as_str()]).await? {
                let get = |place| field::<bool>(self.access, &row, place);
                if !get(1)? {
                    found.push(Finding::not(
                        Grade::Wrong,
                        format!("no login {name}, or one that is shut"),
                        format!("ALTER ROLE {name} LOGIN"),
                    ));
                } else if get(2)? {
                    found.push(Finding::not(
                        Grade::Wrong,
                        format!("{name} has rights that must not be lent"),
                        format!("ALTER ROLE {name} NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS"),
                    ));
                } else if !get(0)? || !get(3)? {
                    found.push(Finding::not(
                        Grade::Wrong,
                        format!("{name} is not allowed to be lent here"),
                        "ephor target init, with its --static-role",
                    ));
                } else if get(4)? {
                    found.push(Finding::not(
                        Grade::Weak,
                        format!("{name} may be lent; it is in groups, so a session of it that is just starting is ended a little later"),
                        format!("grant {name} its rights directly instead"),
                    ));
                } else {
                    found.push(Finding::ok(format!("{name} may be lent")));
                }
            }
        }
        Ok(found)
    }
}
