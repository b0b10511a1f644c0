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

/// What the reconciler takes for ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ours {
    /// Rows of the fence, whether their role is there or not, and roles by their name.
    FenceRows,
    /// Roles: by their name, or by their oid in a row of the fence.
    Roles,
    /// Roles by their name.
    Names,
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
    /// Backends that are in `pg_locks` only are ended, too.
    pub hidden: bool,
    /// A role is found by the oid in its fence row, not by its name.
    pub by_oid: bool,
    /// Evidence holds system id and timeline, and is compared with the target's.
    pub identity: bool,
    /// `census_again` after `authentication_timeout`.
    pub second_look: bool,
    /// The second look waits for those that only `pg_locks` showed at the first, and that could not
    /// be attributed: until each has a name or is gone.
    pub waits_for_hidden: bool,
    /// Every call carries the epoch, and the target refuses a lower one.
    pub epoch: bool,
    /// Raising the epoch ends the calls of a lower one that are under way.
    pub calls_ended: bool,
    /// What the reconciler looks through.
    pub ours: Ours,
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
        waits_for_hidden: true,
        epoch: true,
        calls_ended: true,
        ours: Ours::FenceRows,
        extend_fenced: true,
        for_ever: true,
    };
}
