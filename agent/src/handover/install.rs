//! What was handed over, put into a successor that has looked at its tasks.

use std::collections::HashMap;
use std::sync::Arc;

use super::Told;
use crate::app::Agent;
use crate::hold::Held;
use crate::surface::api::caller::asker_again;

/// Puts in what belongs to tasks that go on; the rest is dropped, which wipes it. Those who asked
/// are attested again, so that renewals go on for who is still there.
pub fn install(agent: &Agent, all: Vec<Told>) {
    let (mut askers, mut put, told) = (HashMap::new(), 0_usize, all.len());
    for one in all {
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
            agent.renewer.keep(one.task, key, &held);
            put += 1;
        }
    }
    tracing::info!(told, put, "credentials of the agent before");
}
