//! A PostgreSQL server as the stages see it: their words on one side, those of
//! [`postgres`] on the other.

use std::num::NonZeroU32;
use std::path::PathBuf;

use ephor_crypto::Secret;
use ephor_crypto::scram::ScramVerifier;
use ephor_proto::id::CredentialId;
use ephor_proto::state::credential::Proof;
use ephor_proto::time::UnixMillis;

use super::{Again, Content, Ending, Failed, Gone, Minted, Seen, Verifier};
use crate::kind::name::installation_part;
use crate::kind::postgres::{
    self, Access, BadName, Ident, Login, Password, RoleName, Seen as OnStandby,
};
use crate::policy::{PostgresTarget, Tls};
use crate::tasks::Tasks;

mod lent;

/// One server.
#[derive(Clone)]
pub struct Server {
    target: postgres::Target,
    scram_iterations: NonZeroU32,
}

impl Server {
    /// As policy says; nothing is connected yet. `installation` is our whole id.
    ///
    /// # Errors
    /// When a name cannot be one at a server.
    pub fn new(
        (name, policy): (&str, &PostgresTarget),
        installation: &str,
        password: Password,
        tasks: &Tasks,
    ) -> Result<Self, Failed> {
        let databases = policy.databases.iter().map(|name| ident(name));
        let access = Access {
            name: name.to_owned(),
            installation: installation_part(installation),
            hosts: vec![policy.address.clone()],
            user: policy.user.clone(),
            password,
            admin_database: ident(&policy.admin_database)?,
            databases: databases.collect::<Result<_, _>>()?,
            standbys: policy.standbys.clone(),
            tls: tls(policy),
            connections: usize::try_from(policy.connections).unwrap_or(1),
        };
        let scram_iterations = NonZeroU32::new(policy.scram_iterations);
        Ok(Self {
            target: postgres::Target::new(access, tasks),
            scram_iterations: scram_iterations.unwrap_or(NonZeroU32::MIN),
        })
    }

    /// Rounds of the verifiers that it keeps.
    #[must_use]
    pub fn scram_iterations(&self) -> NonZeroU32 {
        self.scram_iterations
    }

    /// The server itself, for looks at it.
    #[must_use]
    pub fn target(&self) -> &postgres::Target {
        &self.target
    }

    pub(super) fn verifier(&self, password: &Secret) -> Result<ScramVerifier, Failed> {
        let made = ScramVerifier::new(password, self.scram_iterations);
        made.map_err(|error| Failed::Refused(error.to_string()))
    }

    pub(super) async fn mint(
        &self,
        epoch: u32,
        (id, content, until): (CredentialId, &Content, UnixMillis),
        verifier: Option<&Verifier>,
    ) -> Result<Minted, Failed> {
        if content.is_static {
            return self.check_out(epoch, (id, content, until), verifier).await;
        }
        let groups = content.groups.iter().map(|name| ident(name));
        let login = Login {
            credential: id,
            role: role(&content.name)?,
            groups: groups.collect::<Result<_, _>>()?,
            database: ident(&content.database)?,
            valid_until: until,
            connection_limit: content.connection_limit,
            settings: content.settings.clone(),
            deadline: content.deadline,
        };
        let verifier = match verifier {
            Some(Verifier::Scram(verifier)) => Some(verifier),
            #[cfg(test)]
            Some(Verifier::Plain(_)) => None,
            None => None,
        };
        Ok(made(self.target.mint(epoch, &login, verifier).await?))
    }

    pub(super) async fn extend(
        &self,
        epoch: u32,
        (id, content): (CredentialId, &Content),
        until: UnixMillis,
    ) -> Result<(), Failed> {
        if content.is_static {
            return Ok(self.target.extend_checkout(epoch, id, until).await?);
        }
        let role = role(&content.name)?;
        Ok(self.target.extend(epoch, id, &role, until).await?)
    }

    pub(super) async fn seen(&self) -> Result<Seen, Failed> {
        let position = self.target.position().await?;
        Ok(Seen {
            system_id: position.system_id,
            timeline: position.timeline,
            lsn: position.lsn,
        })
    }

    pub(super) async fn look_again(
        &self,
        (id, content): (CredentialId, &Content),
        gone: &Gone,
    ) -> Result<Again, Failed> {
        if content.is_static {
            return self.left_over((id, content), gone).await;
        }
        let role = role(&content.name)?;
        let census = self
            .target
            .census_again(gone.number, &role, (&gone.starting, &gone.starting_there))
            .await?;
        Ok(Again {
            is_absent: census.role_absent,
            sessions: census.sessions,
            is_incomplete: !census.starting.is_empty()
                || !census.starting_there.is_empty()
                || !census.not_asked.is_empty(),
        })
    }

    pub(super) async fn revoke(&self, epoch: u32, endings: &[Ending]) -> Vec<Result<Gone, Failed>> {
        let (lent, made): (Vec<&Ending>, Vec<&Ending>) =
            endings.iter().partition(|ending| ending.lent.is_some());
        let checked_in = self.check_in_all(epoch, &lent);
        let (lent, made) = tokio::join!(checked_in, self.revoke_made(epoch, &made));
        let (mut lent, mut made) = (lent.into_iter(), made.into_iter());
        let each = endings.iter().map(|ending| match ending.lent {
            Some(_) => lent.next(),
            None => made.next(),
        });
        let none = || Err(Failed::Unknown("no answer for one of them".to_owned()));
        each.map(|answer| answer.unwrap_or_else(none)).collect()
    }

    async fn revoke_made(&self, epoch: u32, endings: &[&Ending]) -> Vec<Result<Gone, Failed>> {
        if endings.is_empty() {
            return Vec::new();
        }
        let mut planned = Vec::with_capacity(endings.len());
        for ending in endings {
            match planned_ending(ending) {
                Ok(ending) => planned.push(ending),
                // A name that we did not make: a defect, and none of the others goes on before it is
                // looked at.
                Err(failed) => return endings.iter().map(|_| Err(failed.clone())).collect(),
            }
        }
        let answers = self.target.revoke_many(epoch, &planned).await;
        let answers = answers.into_iter();
        answers
            .map(|answer| answer.map(gone).map_err(Failed::from))
            .collect()
    }
}

fn planned_ending(ending: &Ending) -> Result<postgres::Ending, Failed> {
    Ok(postgres::Ending {
        credential: ending.credential,
        role: role(&ending.name)?,
        reassign: ending.reassign.as_deref().map(ident).transpose()?,
    })
}

fn gone(evidence: postgres::Evidence) -> Gone {
    let mut standbys = Vec::new();
    let mut starting_there = Vec::new();
    let mut partial: Vec<String> = evidence.partial.into_iter().collect();
    for (standby, said) in &evidence.standbys {
        match said {
            OnStandby::Absent { lsn, starting, .. } => {
                standbys.push(format!("{standby} at {lsn}"));
                if !starting.is_empty() {
                    starting_there.push((standby.clone(), starting.clone()));
                }
            }
            OnStandby::Behind { why } | OnStandby::Unreachable { why } => {
                partial.push(format!("standby {standby}: {why}"));
            }
        }
    }
    Gone {
        proof: match evidence.dropped {
            true => Proof::Dropped,
            false => Proof::Absent,
        },
        number: evidence.role_oid,
        sessions_ended: evidence.sessions_ended,
        seen: Seen {
            system_id: evidence.system_id,
            timeline: evidence.timeline,
            lsn: evidence.lsn,
        },
        standbys,
        remains: String::new(),
        partial: partial.join("; "),
        starting: evidence.starting,
        starting_there,
        at: evidence.at,
    }
}

fn tls(policy: &PostgresTarget) -> postgres::Tls {
    match (policy.tls, &policy.ca_file) {
        (Tls::VerifyFull, Some(ca_file)) => postgres::Tls::VerifyFull {
            ca_file: ca_file.clone(),
        },
        (Tls::VerifyFull, None) => postgres::Tls::VerifyFull {
            ca_file: PathBuf::from(SYSTEM_CAS),
        },
        (Tls::Off, _) => postgres::Tls::Off,
    }
}

/// Where Debian and its like keep the CAs that the system trusts.
pub(crate) const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";

fn made(minted: postgres::Minted) -> Minted {
    Minted {
        number: minted.oid,
        seen: Seen {
            system_id: minted.system_id,
            timeline: minted.timeline,
            lsn: minted.lsn,
        },
        at: minted.at,
    }
}

fn ident(name: &str) -> Result<Ident, Failed> {
    Ident::parse(name).map_err(bad_name)
}

fn role(name: &str) -> Result<RoleName, Failed> {
    RoleName::parse(name).map_err(bad_name)
}

fn bad_name(error: BadName) -> Failed {
    Failed::Refused(error.to_string())
}

impl From<postgres::Failed> for Failed {
    fn from(failed: postgres::Failed) -> Self {
        use postgres::Failed as F;
        let text = failed.to_string();
        match failed {
            F::Fenced { .. } => Self::Fenced,
            F::TooLate { .. } => Self::TooLate,
            F::Unknown { .. } => Self::Unknown(text),
            F::Unreachable { .. } | F::Unauthorized { .. } | F::NotPrimary { .. } => {
                Self::Away(text)
            }
            F::NotAllowed { .. } | F::Missing { .. } => Self::UntilMended(text),
            F::Taken { .. } => Self::Taken(text),
            F::Refused { .. } | F::Busy { .. } => Self::Refused(text),
        }
    }
}
