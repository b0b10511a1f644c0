//! What was handed over, put into a successor that has looked at its tasks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Memory;
use crate::app::Agent;
use crate::hold::Held;
use crate::surface::api::caller::asker_again;

/// Puts in what belongs to tasks that go on; the rest is dropped, which wipes it. Those who asked
/// are attested again, so that renewals go on for who is still there.
pub fn install(agent: &Agent, memory: Memory) {
    agent.epochs.store(memory.epochs, Ordering::Relaxed);
    for (task, credentials) in memory.revoked {
        for credential in credentials {
            agent.note_revoked(task, credential);
        }
    }
    let (mut askers, mut put, told) = (HashMap::new(), 0_usize, memory.held.len());
    for one in memory.held {
        let Some(task) = agent.table.open_task(one.task) else {
            continue;
        };
        let who = (one.task, one.asker, one.fingerprint.clone());
        let asker = askers.entry(who).or_insert_with(|| {
            Arc::new(asker_again(task, one.asker, one.fingerprint, &agent.hashes))
        });
        let held = Arc::new(Held::again(one.held, Arc::clone(asker)));
        let key = Arc::new(one.key);
        if agent.hold.put(one.task, &key, &held) {
            // Whether the agent before was heard is not known; the broker takes it twice.
            if held.is_handed_over() {
                agent.confirmations.add(held.at_targets());
            }
            agent.renewer.keep(one.task, key, &held);
            put += 1;
        }
    }
    tracing::info!(told, put, "credentials of the agent before");
}
