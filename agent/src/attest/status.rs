//! The few fields that are read from `/proc/PID/stat` and `status` (proc(5)). Ids are as this
//! host maps them, whatever the process calls itself in a namespace of its own.

/// From `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// Field 4.
    pub(super) parent: u32,
    /// Field 22, clock ticks since boot.
    pub(super) start_time: u64,
}

impl Stat {
    pub(super) fn parse(text: &str) -> Option<Self> {
        // Field 2 is the command in brackets, and may itself hold brackets and spaces.
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let start_time = fields.nth(17)?.parse().ok()?;
        Some(Self { parent, start_time })
    }
}

/// From `/proc/PID/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    /// Thread group; differs from the pid for a thread.
    pub(super) group_leader: u32,
    pub(super) uid: Ids,
    pub(super) gid: Ids,
    /// Supplementary groups, sorted.
    pub(super) groups: Vec<u32>,
}

/// Real and effective id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) real: u32,
    pub(super) effective: u32,
}

impl Status {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut groups = Vec::new();
        for group in field(text, "Groups")?.split_ascii_whitespace() {
            groups.push(group.parse().ok()?);
        }
        groups.sort_unstable();
        Some(Self {
            group_leader: field(text, "Tgid")?.trim().parse().ok()?,
            uid: Ids::parse(field(text, "Uid")?)?,
            gid: Ids::parse(field(text, "Gid")?)?,
            groups,
        })
    }
}

impl Ids {
    fn parse(text: &str) -> Option<Self> {
        let mut ids = text.split_ascii_whitespace().map(str::parse);
        Some(Self {
            real: ids.next()?.ok()?,
            effective: ids.next()?.ok()?,
        })
    }
}

/// The value of a line `NAME:<tab>VALUE`. The first line, `Name:`, holds text of the process's
/// choice, but the kernel escapes a line feed in it.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_brackets_moves_no_field() {
        let rest = "S 41 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20 21";
        for command in ["sh", "a) S 1 (", "x y"] {
            let stat = Stat::parse(&format!("42 ({command}) {rest}\n")).unwrap();
            assert_eq!(
                stat,
                Stat {
                    parent: 41,
                    start_time: 987_654
                }
            );
        }
        assert_eq!(Stat::parse("42 (sh) S 41"), None);
    }

    #[test]
    fn real_and_effective_ids_are_told_apart() {
        let text =
            "Name:\tUid:\\n0\nTgid:\t7\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\nGroups:\t27 4 \n";
        let status = Status::parse(text).unwrap();
        assert_eq!(
            (status.uid.real, status.uid.effective, status.group_leader),
            (1000, 0, 7)
        );
        assert_eq!(status.groups, [4, 27]);
        assert_eq!(Status::parse(&text.replace("Groups", "Group")), None);
    }
}
