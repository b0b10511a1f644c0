//! `/proc/PID/mountinfo` (proc_pid_mountinfo(5)): which file system a mount is, without
//! touching it.

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount<'a> {
    pub(super) id: u64,
    /// Which part of the file system is mounted; `/` for the whole.
    pub(super) root: &'a str,
    /// Where; with the kernel's octal escapes.
    pub(super) point: &'a str,
    pub(super) kind: &'a str,
    /// Options of the file system.
    pub(super) options: &'a str,
}

/// Every line that can be read.
pub(super) fn mounts(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(parse)
}

fn parse(line: &str) -> Option<Mount<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let id = fields.next()?.parse().ok()?;
    let (root, point) = (fields.nth(2)?, fields.next()?);
    let mut fields = after.split(' ');
    let kind = fields.next()?;
    Some(Mount {
        id,
        root,
        point,
        kind,
        options: fields.nth(1)?,
    })
}

/// Why an executable on this kind of file system is not read: a user, or a far machine, decides
/// what a read returns and when.
pub(super) fn untrusted(kind: &str) -> bool {
    const KINDS: [&str; 12] = [
        "fuse", "fuseblk", "9p", "nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "coda", "orangefs",
        "autofs",
    ];
    KINDS.contains(&kind) || kind.starts_with("fuse.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard\n\
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n\
90 27 0:50 / /home/a/m\\040nt rw,nosuid,nodev shared:3 master:1 - fuse.sshfs h:/x rw,user_id=1000\n\
torn line\n";

    #[test]
    fn optional_fields_move_nothing() {
        let found: Vec<_> = mounts(TEXT)
            .map(|m| (m.id, m.root, m.point, m.kind, m.options))
            .collect();
        assert_eq!(
            found,
            [
                (27, "/", "/", "ext4", "rw,discard"),
                (
                    41,
                    "/",
                    "/sys/fs/cgroup/unified",
                    "cgroup2",
                    "rw,nsdelegate"
                ),
                (90, "/", "/home/a/m\\040nt", "fuse.sshfs", "rw,user_id=1000"),
            ]
        );
    }

    #[test]
    fn file_systems_of_users_and_far_machines_are_not_trusted() {
        let trusted = |kind: &str| !untrusted(kind);
        assert!(
            ["ext4", "xfs", "overlay", "tmpfs", "squashfs", "virtiofs"]
                .into_iter()
                .all(trusted)
        );
        assert!(
            ["fuse", "fuseblk", "fuse.sshfs", "nfs4", "9p"]
                .into_iter()
                .all(untrusted)
        );
    }
}
