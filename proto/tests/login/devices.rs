//! The safety devices of the protocol, each of which can be taken away. What is left is a
//! *naive variant*, and the checker must find how it fails.

/// What a broker creating and a broker revoking exclude each other by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exclusion {
    /// The row of the credential in the fence table, kept after the revocation.
    FenceRow,
    /// An advisory lock in the database that both use. A tenant can take it, too.
    AdvisoryLock,
    /// An advisory lock, but each in a database of its own: such locks are per database.
    AdvisoryLockElsewhere,
    /// Nothing: the role is dropped and that is all.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
pub struct Devices {
    /// The intent is durable before `mint`.
    pub intent: bool,
    pub exclusion: Exclusion,
    /// `mint` refuses after the intent's deadline by the target's clock; fence rows are pruned
    /// only then.
    pub deadline: bool,
    /// Whoever holds a row that `fence` waits for is ended.
    pub holders_ended: bool,
    /// Fence and NOLOGIN are committed before sessions are ended.
    pub nologin_first: bool,
    /// Backends that are in `pg_locks` only are ended and counted.
    pub hidden: bool,
    /// A role is found by the oid in its fence row, not by its name.
    pub by_oid: bool,
    /// Evidence holds system id and timeline, and is compared with the target's.
    pub identity: bool,
    /// `census_again` after `authentication_timeout`.
    pub second_look: bool,
    /// Every call carries the epoch, and the target refuses a lower one.
    pub epoch: bool,
    /// Raising the epoch ends the calls of a lower one that are under way.
    pub calls_ended: bool,
    /// `ours` looks at the fence rows, too, not only at the names of roles.
    pub ours_by_fence: bool,
    /// `extend` looks at the fence row and never gives LOGIN.
    pub extend_fenced: bool,
    /// A revocation is tried for ever.
    pub for_ever: bool,
}

impl Devices {
    pub const ALL: Self = Self {
        intent: true,
        exclusion: Exclusion::FenceRow,
        deadline: true,
        holders_ended: true,
        nologin_first: true,
        hidden: true,
        by_oid: true,
        identity: true,
        second_look: true,
        epoch: true,
        calls_ended: true,
        ours_by_fence: true,
        extend_fenced: true,
        for_ever: true,
    };
}
