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
    /// What whoever lends it says, in the same words; and what is weak all the same.
    async fn static_roles(&self, roles: &[Ident]) -> Result<Vec<Finding>, Failed> {
        const SQL: &str = "SELECT w.why, w.mend,
            current_setting('server_version_num')::int < 160000 OR EXISTS (
                SELECT FROM pg_auth_members m WHERE m.admin_option AND m.member = 'ephor_owner'::regrole
                AND m.roleid = (SELECT r.oid FROM pg_roles r WHERE r.rolname = $1::text)),
            EXISTS (SELECT FROM pg_auth_members m WHERE m.member = (SELECT r.oid FROM pg_roles r WHERE r.rolname = $1::text)),
            (SELECT CASE WHEN c.fenced THEN 'just being checked in' ELSE 'checked out' END || ': credential '
                    || c.credential || ' of installation ' || c.installation
             FROM ephor.checkouts() c WHERE c.role = $1::text LIMIT 1)
            FROM ephor.why_not_lent($1::text) w";
        let mut found = Vec::new();
        for role in roles {
            let name = role.quoted();
            for row in self.rows(SQL, &[&role.as_str()]).await? {
                let text = |place| field::<Option<String>>(self.access, &row, place);
                let is = |place| field::<bool>(self.access, &row, place);
                let now = text(4)?.map_or(String::new(), |now| format!("; it is {now}"));
                found.push(if let Some(why) = text(0)? {
                    let mend = text(1)?.unwrap_or_default();
                    Finding::not(Grade::Wrong, format!("{why}{now}"), mend)
                } else if !is(2)? {
                    Finding::not(
                        Grade::Wrong,
                        format!("ephor_owner has no ADMIN on {name}"),
                        "ephor target init, with its --static-role",
                    )
                } else if is(3)? {
                    Finding::not(
                        Grade::Weak,
                        format!("{name} may be lent{now}; it is in groups, so a session of it that is just starting is ended a little later"),
                        format!("grant {name} its rights directly instead"),
                    )
                } else {
                    Finding::ok(format!("{name} may be lent{now}"))
                });
            }
        }
        Ok(found)
    }
}
