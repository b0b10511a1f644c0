//! Whether a role that is lent to one task at a time is free, and what somebody is told who has to wait for it.

use ephor_proto::limits::OVERDUE_AFTER_MILLIS;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::SpiffeId;

use super::store_unavailable;
use crate::app::Broker;
use crate::ledger::CredentialRow;
use crate::limits;
use crate::request::Refusal;

impl Broker {
    /// Refuses what another task has: nothing is recorded then, and the target would refuse it, too.
    pub(super) fn is_free(
        &self,
        target: &str,
        role: &str,
        asker: &SpiffeId,
    ) -> Result<(), Refusal> {
        let held = self.ledger.reader().checked_out(target, role);
        let Some(held) = held.map_err(store_unavailable)? else {
            return Ok(());
        };
        let (why, millis) = match held.state.is_out() {
            true => {
                let left = held.expires_at.millis_since(self.clock.wall());
                (lent_to(&held, asker), left)
            }
            false => self.taken_back(&held),
        };
        let seconds = ask_again_in(millis);
        let detail = format!(
            "the role {role} at target {target} is {why}. Nothing was issued; ask again in {seconds} s"
        );
        Err(Refusal::new(Code::InUse, detail).with_retry_after(seconds))
    }

    /// Since when it is being taken back, where to look when that is late, and in how long it may be done.
    fn taken_back(&self, held: &CredentialRow) -> (String, u64) {
        let since = held.revoked_at.unwrap_or(held.issued_at);
        let back =
            format!("being taken back since {since}, after another task or a try that failed");
        let Some(late) = self.overdue_now(held) else {
            let why = format!(
                "{back}: as a rule within {} s; later than that it is overdue, and `ephor credential ls --overdue` says why",
                OVERDUE_AFTER_MILLIS / 1000
            );
            return (why, 0);
        };
        let next = late.next_try.map(|at| format!(" (next try at {at})"));
        let why = format!(
            "{back}, and that is overdue{}: `ephor credential ls --overdue` says why, and who answers for the target",
            next.unwrap_or_default()
        );
        let left = late.next_try.map(|at| at.millis_since(self.clock.wall()));
        (why, left.unwrap_or(0))
    }
}

/// Who has a role, and until when. Of another subject's task only what an operator finds it by.
fn lent_to(held: &CredentialRow, asker: &SpiffeId) -> String {
    let whom = match held.subject == *asker {
        true => format!("task {} of yours on {}", held.task.short(), held.host),
        false => format!(
            "a task of another workload (an operator sees which: ephor credential show {})",
            held.id.short()
        ),
    };
    format!(
        "lent to {whom} until that ends, or {} unless it is renewed",
        held.expires_at
    )
}

/// Seconds until asking again may help, for what is over in so many milliseconds at the latest.
fn ask_again_in(millis: u64) -> u32 {
    let seconds = u32::try_from(millis.div_ceil(1000)).unwrap_or(u32::MAX);
    seconds.clamp(limits::LENT_AGAIN_LEAST, limits::LENT_AGAIN_MOST)
}
