//! What an agent saw of a caller, as policy compares it.

use ephor_proto::grpc::v1;

/// Evidence of one process. Comes from an agent and is only as true as that agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// User id as the host sees it.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Process id.
    pub pid: u32,
    /// Clock ticks since boot.
    pub start_time: u64,
    /// Path of the executable; empty when it could not be read.
    pub exe: String,
    /// SHA-256 of the executable; empty when it was not asked for. A value of any other
    /// length than 32 equals no policy's.
    pub exe_sha256: Vec<u8>,
    /// systemd unit; empty when there is none.
    pub unit: String,
    /// Its InvocationID.
    pub invocation_id: String,
    /// Container id; empty when there is none.
    pub container: String,
    /// `pidfd` or `start-time`.
    pub held_by: String,
    /// The executable's file was removed or replaced.
    pub exe_deleted: bool,
    /// The caller lives in another user namespace than the agent.
    pub foreign_user_namespace: bool,
    /// The caller lives in another mount namespace than the agent.
    pub foreign_mount_namespace: bool,
    /// Login name; empty when there is none.
    pub user: String,
}

impl From<&v1::Evidence> for Evidence {
    fn from(sent: &v1::Evidence) -> Self {
        Self {
            uid: sent.uid,
            gid: sent.gid,
            groups: sent.groups.clone(),
            pid: sent.pid,
            start_time: sent.start_time,
            exe: sent.exe.clone(),
            exe_sha256: sent.exe_sha256.clone(),
            unit: sent.unit.clone(),
            invocation_id: sent.invocation_id.clone(),
            container: sent.container.clone(),
            held_by: sent.held_by.clone(),
            exe_deleted: sent.exe_deleted,
            foreign_user_namespace: sent.foreign_user_namespace,
            foreign_mount_namespace: sent.foreign_mount_namespace,
            user: sent.user.clone(),
        }
    }
}
