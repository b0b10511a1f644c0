//! Stage 4: the people's part of a decision. In this version every rule approves by itself;
//! an entitlement that asks for people is refused when the policy is loaded, never here
//! by silence.

use ephor_proto::event::How;

use crate::decide::Decided;

/// Proof that what was decided was also approved. Made by [`Approved::by_rule`] only.
///
/// ```compile_fail
/// fn pry(a: ephor_broker::approve::Approved) {
///     let ephor_broker::approve::Approved { decided: _, .. } = a;
/// }
/// ```
#[derive(Debug)]
pub struct Approved {
    decided: Decided,
    how: How,
}

impl Approved {
    /// The rule that allowed it asks for nobody.
    pub fn by_rule(decided: Decided) -> Self {
        Self {
            decided,
            how: How::Automatic,
        }
    }

    /// What was decided.
    pub fn decided(&self) -> &Decided {
        &self.decided
    }

    /// How it was approved.
    pub fn how(&self) -> How {
        self.how
    }
}
