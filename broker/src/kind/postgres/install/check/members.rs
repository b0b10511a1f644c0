//! Who would be asked for a certificate without being a login of ours.

use crate::kind::postgres::CERTIFICATE;
use crate::kind::postgres::connect::field;
use crate::kind::postgres::failed::Failed;
use crate::kind::postgres::name::quoted;

use super::{Finding, Grade, Look};

impl Look<'_> {
    /// A line of `pg_hba.conf` for a group is for whoever is in it, however indirectly and without
    /// any right of it: from 16 on that is also who made the role, unless a superuser did.
    pub(super) async fn members(&self) -> Result<Vec<Finding>, Failed> {
        const SQL: &str = "WITH RECURSIVE inside AS (
                SELECT m.member FROM pg_auth_members m JOIN pg_roles c ON c.oid = m.roleid AND c.rolname = $1::text
                UNION SELECT m.member FROM pg_auth_members m JOIN inside i ON m.roleid = i.member)
            SELECT r.rolname::text FROM inside i JOIN pg_roles r ON r.oid = i.member
            WHERE r.rolcanlogin AND NOT starts_with(r.rolname, 'eph_') ORDER BY 1 LIMIT 20";
        let mut found = Vec::new();
        for row in self.rows(SQL, &[&CERTIFICATE]).await? {
            let role = quoted(&field::<String>(self.access, &row, 0)?);
            found.push(Finding::not(
                Grade::Weak,
                format!(
                    "{role} is in {CERTIFICATE}: the line of pg_hba.conf for logins with a certificate asks it for one, \
                     and the CA's key opens it"
                ),
                format!(
                    "a line for {role} before that one in pg_hba.conf; and, as a superuser, take it out (which role it is in: \\drg, \\du)"
                ),
            ));
        }
        Ok(found)
    }
}
