//! The same for roles that are lent: [`crate::kind::postgres::Checkout`].

use ephor_proto::id::CredentialId;
use ephor_proto::state::credential::Proof;
use ephor_proto::time::UnixMillis;
use futures_util::future::join_all;

use super::{Server, ident, made};
use crate::kind::effect::{
    Again, Content, Ending, Failed, Found, Gone, Minted, Seen, Uses, Verifier,
};
use crate::kind::postgres::{CheckedIn, Checkout};

impl Server {
    pub(super) async fn check_out(
        &self,
        epoch: u32,
        (credential, content, valid_until): (CredentialId, &Content, UnixMillis),
        verifier: Option<&Verifier>,
    ) -> Result<Minted, Failed> {
        let checkout = Checkout {
            credential,
            role: ident(&content.name)?,
            database: ident(&content.database)?,
            valid_until,
            deadline: content.deadline,
        };
        let verifier = match verifier {
            Some(Verifier::Scram(verifier)) => Some(verifier),
            #[cfg(test)]
            Some(Verifier::Plain(_)) => None,
            None => None,
        };
        let none = || Failed::Refused("a role is lent with a password".to_owned());
        let verifier = verifier.ok_or_else(none)?;
        let out = self.target.check_out(epoch, &checkout, verifier).await?;
        Ok(made(out))
    }

    /// One by one they would wait for each other's sessions.
    pub(super) async fn check_in_all(
        &self,
        epoch: u32,
        endings: &[&Ending],
    ) -> Vec<Result<Gone, Failed>> {
        let each = endings.iter();
        join_all(each.map(|ending| self.check_in(epoch, ending))).await
    }

    async fn check_in(&self, epoch: u32, ending: &Ending) -> Result<Gone, Failed> {
        let role = ident(&ending.name)?;
        // Found at the server, and in no store: any database shows which password it asks for.
        let access = self.target.access();
        let any = access.databases.first().unwrap_or(&access.admin_database);
        let database = match ending.lent.as_deref() {
            None | Some("") => any.clone(),
            Some(database) => ident(database)?,
        };
        let one = (ending.credential, &role);
        Ok(gone(self.target.check_in(epoch, one, &database).await?))
    }

    pub(super) async fn left_over(
        &self,
        (id, content): (CredentialId, &Content),
        gone: &Gone,
    ) -> Result<Again, Failed> {
        let known = (gone.starting.as_slice(), gone.starting_there.as_slice());
        let database = ident(&content.database)?;
        let left = self.target.left_over(id, &database, known).await?;
        Ok(Again {
            is_absent: !left.is_out,
            sessions: left.sessions,
            is_incomplete: !left.starting.is_empty() || !left.all_asked,
        })
    }

    pub(in crate::kind::effect) async fn ours(&self) -> Result<Vec<Found>, Failed> {
        let mut found = self.target.ours().await?;
        found.extend(self.target.checkouts().await?);
        Ok(found)
    }

    pub(in crate::kind::effect) async fn uses(&self) -> Result<Uses, Failed> {
        let uses = self.target.uses().await?;
        let Uses::Seen(mut seen) = uses else {
            return Ok(uses);
        };
        let lent = self.target.checkout_uses().await?;
        seen.extend(lent);
        Ok(Uses::Seen(seen))
    }
}

fn gone(ended: CheckedIn) -> Gone {
    let remains = match &ended.called {
        Some(called) if ended.remains.is_empty() => format!("the role {called} goes on"),
        Some(called) => format!("the role {called} goes on; {}", ended.remains),
        None => String::new(),
    };
    Gone {
        proof: match ended.called {
            Some(_) => Proof::Refused,
            None => Proof::Absent,
        },
        number: ended.role_oid,
        sessions_ended: ended.sessions_ended,
        seen: Seen {
            system_id: ended.position.system_id,
            timeline: ended.position.timeline,
            lsn: ended.position.lsn,
        },
        standbys: ended.standbys,
        remains,
        partial: ended.partial.join("; "),
        starting: ended.starting,
        starting_there: ended.starting_there,
        at: ended.position.at,
    }
}
