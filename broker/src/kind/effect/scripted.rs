//! A target that does what a test says: hangs, refuses, loses answers. It keeps what it was told, as
//! a server would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ephor_proto::id::CredentialId;
use ephor_proto::state::credential::Proof;
use ephor_proto::time::UnixMillis;
use tokio::sync::Notify;

use super::{Again, Content, Ending, Failed, Found, Gone, Minted, Seen, Uses, Verifier};
use crate::kind::name;

/// How the next calls go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mood {
    /// As asked.
    #[default]
    Well,
    /// Nothing is done.
    Refuses,
    /// Nobody is there.
    Away,
    /// It is done, and the answer is lost.
    LosesAnswers,
    /// Never answers.
    Hangs,
}

#[derive(Default)]
pub struct Script {
    /// Guards the server's state; held for one call.
    inner: Mutex<Inner>,
}

#[derive(Default)]
pub struct Inner {
    pub(crate) mood: Mood,
    /// What can be used now: name, password, until when.
    pub(crate) alive: BTreeMap<String, (String, UnixMillis)>,
    pub(crate) fenced: BTreeSet<CredentialId>,
    pub(crate) epoch: u32,
    /// Of the server that it is; 1 unless a test says otherwise.
    pub(crate) system_id: Option<u32>,
    /// How far its log is.
    pub(crate) lsn: u64,
    /// What the next extension of this one waits for before it is done.
    pub(crate) gate: Option<(String, Arc<Notify>)>,
    /// What everything there is a member of, and what it may beyond that.
    pub(crate) groups: Vec<String>,
    pub(crate) attributes: Vec<String>,
    /// Who is a member of everything there.
    pub(crate) granted_to: Vec<String>,
    /// Names whose calls are refused, whatever the mood.
    pub(crate) refused: BTreeSet<String>,
    /// What the next comparison is told instead of what is there: how it was before.
    pub(crate) earlier: Option<BTreeMap<String, (String, UnixMillis)>>,
    /// Sessions that the next later look finds.
    pub(crate) hidden: u32,
    pub(crate) uses: Vec<crate::kind::postgres::Use>,
    /// Calls that were left without an answer.
    pub(crate) hanging: u32,
    /// Calls that came: `mint NAME`, `revoke N`.
    pub(crate) calls: Vec<String>,
}

impl Script {
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap())
    }

    pub(crate) fn is(&self, mood: Mood) {
        self.with(|inner| inner.mood = mood);
    }

    fn refuses(&self, name: &str) -> Result<(), Failed> {
        let is_refused = self.with(|inner| inner.refused.contains(name));
        if is_refused {
            self.with(|inner| inner.calls.push(format!("refused {name}")));
        }
        match is_refused {
            true => Err(Failed::Refused(format!("{name} is in its own way"))),
            false => Ok(()),
        }
    }

    async fn answer<T>(&self, done: impl FnOnce(&mut Inner) -> T) -> Result<T, Failed> {
        match self.with(|inner| inner.mood) {
            Mood::Well => Ok(self.with(done)),
            Mood::Refuses => Err(Failed::Refused("the script says no".to_owned())),
            Mood::Away => Err(Failed::Away("the script cannot be reached".to_owned())),
            Mood::LosesAnswers => {
                self.with(done);
                Err(Failed::Unknown("the answer was lost".to_owned()))
            }
            Mood::Hangs => {
                self.with(|inner| inner.hanging += 1);
                tokio::time::sleep(Duration::from_secs(3_600)).await;
                Err(Failed::Unknown("hung".to_owned()))
            }
        }
    }

    pub(super) async fn mint(
        &self,
        epoch: u32,
        (id, content, until): (CredentialId, &Content, UnixMillis),
        verifier: Option<&Verifier>,
    ) -> Result<Minted, Failed> {
        self.with(|inner| inner.calls.push(format!("mint {}", content.name)));
        let password = match verifier {
            Some(Verifier::Plain(password)) => password.clone(),
            Some(Verifier::Scram(_)) => panic!("it keeps passwords"),
            None => String::new(),
        };
        self.answer(|inner| {
            if inner.fenced.contains(&id) || epoch < inner.epoch {
                return Err(Failed::Fenced);
            }
            inner.alive.insert(content.name.clone(), (password, until));
            Ok(Minted {
                number: 7,
                seen: inner.seen(),
                at: UnixMillis::from_millis(1),
            })
        })
        .await?
    }

    pub(super) fn begin_epoch(&self, epoch: u32) -> Result<(), Failed> {
        self.with(|inner| {
            if epoch < inner.epoch {
                return Err(Failed::Fenced);
            }
            inner.epoch = epoch;
            Ok(())
        })
    }

    pub(super) fn position(&self) -> Result<Seen, Failed> {
        self.with(|inner| Ok(inner.seen()))
    }

    pub(super) fn ours(&self) -> Result<Vec<Found>, Failed> {
        self.with(|inner| {
            let found = |(role, (_, until)): (&String, &(String, UnixMillis))| Found {
                installation: name::parse(role).map(|name| name.installation.to_owned()),
                role: role.clone(),
                now: Some(role.clone()),
                oid: 7,
                credential: None,
                fenced: false,
                can_login: true,
                attributes: inner.attributes.clone(),
                groups: inner.groups.clone(),
                granted_to: inner.granted_to.clone(),
                valid_until: Some(*until),
                connection_limit: -1,
                sessions: 0,
                is_static: false,
            };
            let alive = inner.earlier.take().unwrap_or_else(|| inner.alive.clone());
            Ok(alive.iter().map(found).collect())
        })
    }

    pub(super) fn uses(&self) -> Uses {
        self.with(|inner| Uses::Seen(inner.uses.clone()))
    }

    pub(super) fn look_again(&self, name: &str) -> Result<Again, Failed> {
        self.with(|inner| {
            Ok(Again {
                is_absent: !inner.alive.contains_key(name),
                sessions: std::mem::take(&mut inner.hidden),
                is_incomplete: false,
            })
        })
    }

    pub(super) async fn extend(
        &self,
        _epoch: u32,
        (id, name): (CredentialId, &str),
        until: UnixMillis,
    ) -> Result<(), Failed> {
        self.with(|inner| inner.calls.push(format!("extend {name}")));
        let gate = self.with(|inner| inner.gate.take_if(|(held, _)| held == name));
        if let Some((_, gate)) = gate {
            gate.notified().await;
        }
        self.refuses(name)?;
        self.answer(|inner| {
            let alive = inner.alive.get_mut(name);
            let alive = alive.filter(|_| !inner.fenced.contains(&id));
            alive.ok_or(Failed::Fenced)?.1 = until;
            Ok(())
        })
        .await?
    }

    pub(super) async fn revoke(&self, epoch: u32, endings: &[Ending]) -> Vec<Result<Gone, Failed>> {
        self.with(|inner| inner.calls.push(format!("revoke {}", endings.len())));
        let mut done = Vec::new();
        if self.with(|inner| epoch < inner.epoch) {
            return endings.iter().map(|_| Err(Failed::Fenced)).collect();
        }
        for ending in endings {
            if let Err(refused) = self.refuses(&ending.name) {
                done.push(Err(refused));
                continue;
            }
            let gone = self.answer(|inner| {
                inner.epoch = inner.epoch.max(epoch);
                inner.fenced.insert(ending.credential);
                let was_there = inner.alive.remove(&ending.name).is_some();
                inner.lsn += 1;
                Gone {
                    proof: if was_there {
                        Proof::Dropped
                    } else {
                        Proof::Absent
                    },
                    number: None,
                    sessions_ended: 0,
                    seen: inner.seen(),
                    standbys: Vec::new(),
                    remains: String::new(),
                    partial: String::new(),
                    starting: Vec::new(),
                    starting_there: Vec::new(),
                    at: UnixMillis::from_millis(2),
                }
            });
            done.push(gone.await);
        }
        done
    }
}

impl Inner {
    fn seen(&self) -> Seen {
        Seen {
            system_id: self.system_id.unwrap_or(1).to_string(),
            timeline: 1,
            lsn: format!("0/{:X}", self.lsn + 1),
        }
    }
}
