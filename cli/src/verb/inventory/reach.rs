//! Which rights a role reaches through its groups, by what the server lets a member do.
//!
//! As a role that it may SET ROLE to (or grant to itself), it has that role's attributes; of a
//! group that it only inherits from, it has the privileges, not the attributes. SET ROLE does not
//! go through inherited groups; ADMIN OPTION does (PostgreSQL 16, `roles_is_member_of`). Up to
//! 15, every membership allows SET ROLE.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::Serialize;

use super::seen::{Attributes, Member, Role};

/// Predefined roles whose members read, write or run what the server's own account can.
pub const SERVER_ACCESS: [&str; 3] = [
    "pg_execute_server_program",
    "pg_read_server_files",
    "pg_write_server_files",
];

/// One right beyond what was granted on objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Power {
    /// `SUPERUSER`, or a predefined role.
    pub right: &'static str,
    /// The groups it goes through, nearest first; none when it is the role's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub through: Vec<String>,
}

impl Power {
    /// `SUPERUSER through dba`
    pub fn told(&self) -> String {
        match self.through.last() {
            None => self.right.to_owned(),
            Some(_) => format!("{} through {}", self.right, self.through.join(" > ")),
        }
    }
}

/// How a role stands to a group that it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum As {
    /// It can become it.
    Itself,
    /// It only has its privileges.
    Heir,
}

/// All memberships, by member.
pub struct Graph<'a> {
    roles: HashMap<u32, &'a Role>,
    groups: HashMap<u32, Vec<Member>>,
}

impl<'a> Graph<'a> {
    pub fn new(roles: &'a [Role], members: &[Member]) -> Self {
        let mut groups: HashMap<u32, Vec<Member>> = HashMap::new();
        for member in members {
            groups.entry(member.member).or_default().push(*member);
        }
        let roles = roles.iter().map(|role| (role.oid, role)).collect();
        Self { roles, groups }
    }

    /// The groups that a role is a direct member of.
    pub fn direct(&self, role: u32) -> impl Iterator<Item = &'a Role> {
        let groups = self.groups.get(&role).map(Vec::as_slice);
        groups
            .unwrap_or_default()
            .iter()
            .filter_map(|member| self.roles.get(&member.group).copied())
    }

    /// The rights of a role, each by its shortest way.
    pub fn powers(&self, role: &Role) -> Vec<Power> {
        let mut powers: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        let mut seen = std::collections::HashSet::from([(role.oid, As::Itself)]);
        let mut next = VecDeque::from([(role.oid, As::Itself, Vec::new())]);
        while let Some((oid, standing, way)) = next.pop_front() {
            let Some(here) = self.roles.get(&oid) else {
                continue;
            };
            for right in rights(here, standing) {
                powers.entry(right).or_insert_with(|| way.clone());
            }
            for member in self.groups.get(&oid).into_iter().flatten() {
                for standing in onward(standing, *member) {
                    if seen.insert((member.group, standing)) {
                        let name = self
                            .roles
                            .get(&member.group)
                            .map(|group| group.name.clone());
                        let way = way.iter().cloned().chain(name).collect();
                        next.push_back((member.group, standing, way));
                    }
                }
            }
        }
        let power = |(right, mut through): (&'static str, Vec<String>)| {
            // The predefined role at the end of the way is the right itself.
            through.pop_if(|last| last == right);
            Power { right, through }
        };
        powers.into_iter().map(power).collect()
    }
}

fn rights(role: &Role, standing: As) -> impl Iterator<Item = &'static str> {
    let attributes = match standing {
        As::Itself => role.attributes,
        As::Heir => Attributes::default(),
    };
    let predefined = SERVER_ACCESS.into_iter().find(|name| *name == role.name);
    attributes.words().chain(predefined)
}

fn onward(standing: As, member: Member) -> impl Iterator<Item = As> {
    let set = match standing {
        As::Itself => member.set || member.admin,
        As::Heir => member.admin,
    };
    [(set, As::Itself), (member.inherit, As::Heir)]
        .into_iter()
        .filter_map(|(goes, standing)| goes.then_some(standing))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn role(oid: u32, name: &str) -> Role {
        Role {
            oid,
            name: name.to_owned(),
            ..Role::default()
        }
    }

    fn superuser(oid: u32, name: &str) -> Role {
        let attributes = Attributes {
            superuser: true,
            ..Attributes::default()
        };
        Role {
            attributes,
            ..role(oid, name)
        }
    }

    /// `(member, group, options)`, options of `i`nherit, `s`et, `a`dmin.
    fn members(edges: &[(u32, u32, &str)]) -> Vec<Member> {
        edges
            .iter()
            .map(|(member, group, options)| Member {
                member: *member,
                group: *group,
                inherit: options.contains('i'),
                set: options.contains('s'),
                admin: options.contains('a'),
            })
            .collect()
    }

    fn told(roles: &[Role], edges: &[(u32, u32, &str)]) -> Vec<String> {
        let members = members(edges);
        let graph = Graph::new(roles, &members);
        graph.powers(&roles[0]).iter().map(Power::told).collect()
    }

    #[test]
    fn attributes_are_not_inherited_but_can_be_become() {
        let roles = [role(1, "app"), role(2, "ops"), superuser(3, "dba")];
        assert_eq!(
            told(&roles, &[(1, 2, "is"), (2, 3, "is")]),
            ["SUPERUSER through ops > dba"]
        );
        assert!(told(&roles, &[(1, 2, "is"), (2, 3, "i")]).is_empty());
        // Inherited first: SET ROLE does not go through it, ADMIN OPTION does.
        assert!(told(&roles, &[(1, 2, "i"), (2, 3, "s")]).is_empty());
        assert_eq!(
            told(&roles, &[(1, 2, "i"), (2, 3, "a")]),
            ["SUPERUSER through ops > dba"]
        );
        assert!(told(&roles, &[(1, 2, ""), (2, 3, "isa")]).is_empty());
        // Against the arrow: a group has nothing of its members.
        assert!(told(&roles, &[(3, 1, "isa")]).is_empty());
    }

    #[test]
    fn predefined_roles_count_when_inherited_and_rings_end() {
        let roles = [
            role(1, "app"),
            role(2, "ops"),
            role(3, "pg_execute_server_program"),
        ];
        let edges = [(1, 2, "s"), (2, 3, "i"), (2, 1, "is")];
        assert_eq!(
            told(&roles, &edges),
            ["pg_execute_server_program through ops"]
        );
        assert_eq!(told(&roles, &[(1, 3, "i")]), ["pg_execute_server_program"]);
        assert!(
            told(&roles, &[(1, 9, "is")]).is_empty(),
            "a group that is not seen"
        );
    }

    #[test]
    fn the_shortest_way_is_told() {
        let roles = [role(1, "app"), role(2, "ops"), superuser(3, "dba")];
        let edges = [(1, 2, "is"), (2, 3, "is"), (1, 3, "is")];
        assert_eq!(told(&roles, &edges), ["SUPERUSER through dba"]);
    }
}
