//! A target that does what a test says: hangs, refuses, loses answers. It keeps what it was told, as
//! a server would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use ephor_proto::id::CredentialId;
use ephor_proto::state::credential::Proof;
use ephor_proto::time::UnixMillis;

use super::{Content, Ending, Failed, Gone, Minted, Verifier};

/// How the next calls go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mood {
    /// As asked.
    #[default]
    Well,
    /// Nothing is done.
    Refuses,
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

    async fn answer<T>(&self, done: impl FnOnce(&mut Inner) -> T) -> Result<T, Failed> {
        match self.with(|inner| inner.mood) {
            Mood::Well => Ok(self.with(done)),
            Mood::Refuses => Err(Failed::Refused("the script says no".to_owned())),
            Mood::LosesAnswers => {
                self.with(done);
                Err(Failed::Unknown("the answer was lost".to_owned()))
            }
            Mood::Hangs => {
                tokio::time::sleep(Duration::from_secs(3_600)).await;
                Err(Failed::Unknown("hung".to_owned()))
            }
        }
    }

    pub(super) async fn mint(
        &self,
        epoch: u32,
        (id, content, until): (CredentialId, &Content, UnixMillis),
        verifier: &Verifier,
    ) -> Result<Minted, Failed> {
        self.with(|inner| inner.calls.push(format!("mint {}", content.name)));
        let Verifier::Plain(password) = verifier else {
            panic!("it keeps passwords")
        };
        self.answer(|inner| {
            if inner.fenced.contains(&id) || epoch < inner.epoch {
                return Err(Failed::Fenced);
            }
            inner
                .alive
                .insert(content.name.clone(), (password.clone(), until));
            Ok(Minted {
                number: 7,
                seen: "system id 1, timeline 1, lsn 0/1".to_owned(),
                at: UnixMillis::from_millis(1),
            })
        })
        .await?
    }

    pub(super) async fn extend(
        &self,
        _epoch: u32,
        (id, name): (CredentialId, &str),
        until: UnixMillis,
    ) -> Result<(), Failed> {
        self.with(|inner| inner.calls.push(format!("extend {name}")));
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
            let gone = self.answer(|inner| {
                inner.epoch = inner.epoch.max(epoch);
                inner.fenced.insert(ending.credential);
                let was_there = inner.alive.remove(&ending.name).is_some();
                Gone {
                    proof: if was_there {
                        Proof::Dropped
                    } else {
                        Proof::Absent
                    },
                    number: None,
                    sessions_ended: 0,
                    seen: "system id 1, timeline 1, lsn 0/2".to_owned(),
                    partial: String::new(),
                    at: UnixMillis::from_millis(2),
                    looked_again: false,
                }
            });
            done.push(gone.await);
        }
        done
    }
}
