#![forbid(unsafe_code)]
//! Groups of nodes that hold the same keys: what stands on a ring in place of servers.

use super::reader::{Found, Table, Value};
use super::{Address, Moving, Server};
use crate::settings::Etcd;

/// Nodes of one group.
pub const NODES_MAX: usize = 8;

/// The groups of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// In the order of their names, which decides ties. Empty while etcd has not been read.
    pub list: Vec<Group>,
    /// Those there were before groups have come or gone, for as long as keys are looked for there;
    /// empty otherwise.
    pub before: Vec<Group>,
    /// How far they have come, while there are some.
    pub moving: Moving,
    pub reads: Reads,
    /// They are found there.
    pub etcd: Option<Topology>,
    /// How long a proxy may take longer than another to hear that a group has come or gone.
    pub settle_ms: u64,
    /// How long keys are looked for where they were, after a group has come or gone; 0 is never.
    pub warm_ms: u64,
    /// Seconds: the life of what is brought over then; nothing is what it has left.
    pub warm_ttl: Option<u32>,
}

/// A leader and its followers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What the ring knows it by, whoever leads.
    pub name: String,
    pub weight: u32,
    /// The one that leads, as far as is known, comes first.
    pub nodes: Vec<Address>,
}

/// Groups and their nodes as they have registered themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    pub etcd: Etcd,
    /// The nodes' `--repl-cluster`.
    pub cluster: String,
}

/// Which node of a group is asked by those who only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reads {
    /// The leader.
    #[default]
    Leader,
    /// Any that has what this client has written before.
    OwnWrites,
    /// Any that is behind by so many milliseconds at most.
    Bounded(u64),
    /// Any.
    Any,
}

impl Group {
    /// What stands on the ring while no group is known: nobody can be reached there.
    pub fn unknown() -> Group {
        Group {
            name: String::new(),
            weight: 1,
            nodes: vec![Address::Unix("a group (none is known yet)".into())],
        }
    }

    /// What stands for it on the ring.
    pub fn label(&self) -> Server {
        let mut server = Server::new(Address::tcp(self.name.clone(), 11211));
        server.weight = self.weight;
        server.name = Some(self.name.clone());
        server
    }

    /// Puts a node first. False: that is how it is, or it is none of them.
    pub fn lead(&mut self, node: &Address) -> bool {
        match self.nodes.iter().position(|known| known == node) {
            None | Some(0) => false,
            Some(at) => {
                let leader = self.nodes.remove(at);
                self.nodes.insert(0, leader);
                true
            }
        }
    }
}

impl Groups {
    pub fn labels(&self) -> Vec<Server> {
        self.list.iter().map(Group::label).collect()
    }

    /// Whether keys would move if these were the groups.
    fn would_move(&self, list: &[Group]) -> bool {
        let is = |group: &Group| (group.name.clone(), group.weight);
        !self.list.is_empty() && !self.list.iter().map(is).eq(list.iter().map(is))
    }

    /// Whether these have to wait for the end of a move that is under way. One that nothing has been brought
    /// over by is given up for them.
    pub fn holds_up(&self, list: &[Group]) -> bool {
        !self.before.is_empty()
            && self.moving != Moving::Settling
            && !list.is_empty()
            && self.would_move(list)
    }

    /// Takes groups out of a list that are not here, and puts those in that are not there.
    pub fn keep_to_known(&self, list: &mut Vec<Group>) {
        let held = self.list.iter().map(|known| {
            let found = list.iter().find(|group| group.name == known.name);
            Group {
                nodes: found.unwrap_or(known).nodes.clone(),
                ..known.clone()
            }
        });
        *list = held.collect();
    }

    /// Other groups are there from now on. True if keys move.
    pub fn replace(&mut self, list: Vec<Group>) -> bool {
        let moves = self.would_move(&list);
        let old = std::mem::replace(&mut self.list, list);
        if moves && self.warm_ms > 0 && self.before.is_empty() {
            self.before = old;
            self.moving = Moving::Settling;
        }
        // Those of before have leaders that change, too.
        for group in &mut self.before {
            if let Some(now) = self.list.iter().find(|now| now.name == group.name) {
                group.nodes.clone_from(&now.nodes);
            }
        }
        moves
    }

    /// Takes over what is known of groups that were there before, when a file is read again.
    pub fn inherit(&mut self, old: &Groups) {
        if self.etcd.is_some() && self.etcd == old.etcd {
            self.list.clone_from(&old.list);
            self.before.clone_from(&old.before);
            self.moving = old.moving;
            return;
        }
        for group in &mut self.list {
            let known = old.list.iter().find(|known| known.name == group.name);
            if let Some(leader) = known.and_then(|known| known.nodes.first()) {
                group.lead(leader);
            }
        }
    }
}

fn name(value: &Value<'_>, name: &str) -> Found<String> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(sound) {
        return Err(value.wrong("a name is made of letters, digits and . _ - : only"));
    }
    Ok(name.to_owned())
}

/// The fields of a pool that make groups of it; nothing if it has none.
pub(super) fn groups(table: &Table<'_>) -> Found<Option<Groups>> {
    let mut groups = Groups {
        list: Vec::new(),
        before: Vec::new(),
        moving: Moving::default(),
        reads: Reads::default(),
        etcd: None,
        settle_ms: 8000,
        warm_ms: 600_000,
        warm_ttl: None,
    };
    match (table.get("groups"), table.get("etcd")) {
        (None, None) => {
            return match ["reads", "settle", "warm", "warm_ttl"]
                .into_iter()
                .find(|name| table.has(name))
            {
                Some(name) => Err(table.wrong(format!("`{name}` is for pools of `groups`"))),
                None => Ok(None),
            };
        }
        (Some(_), Some(etcd)) => {
            return Err(etcd.wrong("a pool has `groups` or finds them in `etcd`, not both"));
        }
        (Some(value), None) => {
            for (title, value) in value.table()?.entries() {
                groups.list.push(group(title, &value)?);
            }
            if groups.list.is_empty() {
                return Err(value.wrong("a pool needs a group"));
            }
            groups.list.sort_by(|a, b| a.name.cmp(&b.name));
        }
        (None, Some(value)) => groups.etcd = Some(topology(&value)?),
    }
    table.set("reads", &mut groups.reads, reads)?;
    table.set("settle", &mut groups.settle_ms, |value| {
        value.duration_ms(0..=60_000)
    })?;
    table.set("warm", &mut groups.warm_ms, |value| {
        value.duration_ms(0..=7 * 86_400_000)
    })?;
    table.set("warm_ttl", &mut groups.warm_ttl, |value| {
        value.ttl().map(Some)
    })?;
    for other in ["replicas", "failover", "eject"] {
        if table.has(other) {
            return Err(table.wrong(format!("`{other}` does not go with groups")));
        }
    }
    Ok(Some(groups))
}

fn group(title: &str, value: &Value<'_>) -> Found<Group> {
    let name = name(value, title)?;
    let mut weight = 1;
    let entries = if value.is_array() {
        value.list()?
    } else {
        let table = value.table()?;
        table.set("weight", &mut weight, |value| {
            Ok(value.number(1..=1 << 20)? as u32)
        })?;
        let entries = table.needed("nodes")?.list()?;
        table.done()?;
        entries
    };
    if entries.is_empty() || entries.len() > NODES_MAX {
        return Err(value.wrong(format!("a group has 1 to {NODES_MAX} nodes")));
    }
    let mut nodes = Vec::new();
    for entry in &entries {
        let server = Server::parse(entry.text()?).map_err(|text| entry.wrong(text))?;
        if server.weight != 1 || server.name.is_some() {
            return Err(entry.wrong("weights and names are those of groups, not of nodes"));
        }
        if nodes.contains(&server.address) {
            return Err(entry.wrong("this node is there twice"));
        }
        nodes.push(server.address);
    }
    Ok(Group {
        name,
        weight,
        nodes,
    })
}

fn reads(value: &Value<'_>) -> Found<Reads> {
    let named = [
        ("leader", Reads::Leader),
        ("own-writes", Reads::OwnWrites),
        ("any", Reads::Any),
    ];
    let text = value.text()?;
    if let Some((_, reads)) = named.into_iter().find(|(name, _)| *name == text) {
        return Ok(reads);
    }
    let bound = value.duration_ms(500..=3_600_000).map_err(|_| {
        value.wrong("it is leader, own-writes, any, or how far behind a node may be: 500ms or more")
    })?;
    Ok(Reads::Bounded(bound))
}

fn topology(value: &Value<'_>) -> Found<Topology> {
    let table = value.table()?;
    let mut etcd = Etcd::default();
    let endpoints = table.needed("endpoints")?;
    for value in endpoints.one_or_more()? {
        let text = value.text()?.trim_end_matches('/');
        let url = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        match url.split_once("://") {
            Some(("http" | "https", rest)) if !rest.is_empty() && !rest.contains('/') => {
                etcd.endpoints.push(url);
            }
            _ => return Err(value.wrong("a URL is expected, as \"http://10.0.0.1:2379\"")),
        }
    }
    if etcd.endpoints.is_empty() {
        return Err(endpoints.wrong("at least one URL is expected"));
    }
    let path = |name| -> Found<Option<std::path::PathBuf>> {
        match table.get(name) {
            Some(value) => Ok(Some(value.text()?.into())),
            None => Ok(None),
        }
    };
    etcd.ca = path("ca")?;
    etcd.identity = match (path("certificate")?, path("key")?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(table.wrong("`certificate` and `key` come together")),
    };
    etcd.user_file = path("user_file")?;
    let cluster = match table.get("cluster") {
        Some(value) => name(&value, value.text()?)?,
        None => "larder".to_owned(),
    };
    table.done()?;
    Ok(Topology { etcd, cluster })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn read(text: &str) -> Groups {
        parse(text).unwrap().pools.remove(0).groups.unwrap()
    }

    fn wrong(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn groups_are_read() {
        let groups = read(
            "[pools.main]\nreads = \"2s\"\n[pools.main.groups]\n\
             b = [\"10.0.0.3\"]\na = { nodes = [\"10.0.0.1:1\", \"10.0.0.2:1\"], weight = 2 }",
        );
        assert_eq!(groups.reads, Reads::Bounded(2000));
        let names: Vec<&str> = groups.list.iter().map(|group| &*group.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(groups.list[0].weight, 2);
        assert_eq!(groups.list[0].nodes[1], Address::tcp("10.0.0.2", 1));
    }

    #[test]
    fn groups_are_found() {
        let groups =
            read("[pools.main]\nreads = \"any\"\netcd = { endpoints = [\"10.0.0.1:2379\"] }");
        let topology = groups.etcd.unwrap();
        assert_eq!(topology.etcd.endpoints, ["http://10.0.0.1:2379"]);
        assert_eq!(topology.cluster, "larder");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let told = wrong("[pools.a]\nservers = [\"x\"]\nreads = \"any\"");
        assert!(told.contains("`reads` is for pools of `groups`"), "{told}");
        let told = wrong("[pools.a]\nreads = \"1ms\"\n[pools.a.groups]\nx = [\"a\"]");
        assert!(told.contains("500ms or more"), "{told}");
        let told = wrong("[pools.a]\nreplicas = 2\n[pools.a.groups]\nx = [\"a\"]");
        assert!(told.contains("does not go with groups"), "{told}");
        let told = wrong("[pools.a.groups]\nx = [\"a\", \"a\"]");
        assert!(told.contains("there twice"), "{told}");
        let told = wrong("[pools.a.groups]\nx = [\"a:1:2\"]");
        assert!(told.contains("not of nodes"), "{told}");
    }

    #[test]
    fn other_groups_wait_for_a_move_that_has_begun() {
        let list = |names: &[&str]| -> Vec<Group> {
            let group = |name: &&str| Group {
                name: (*name).to_owned(),
                weight: 1,
                nodes: vec![Address::tcp(*name, 1)],
            };
            names.iter().map(group).collect()
        };
        let mut groups = read("[pools.main]\netcd = { endpoints = [\"x\"] }");
        assert!(!groups.replace(list(&["a"])) && groups.before.is_empty());
        assert!(!groups.holds_up(&list(&["a", "b"])), "nothing is under way");
        assert!(groups.replace(list(&["a", "b"])));
        assert!(!groups.holds_up(&list(&["a", "b", "c"])), "it settles anew");
        for moving in [Moving::Bringing, Moving::Ending] {
            groups.moving = moving;
            assert!(groups.holds_up(&list(&["a", "b", "c"])));
            assert!(groups.holds_up(&list(&["b"])));
            assert!(!groups.holds_up(&list(&["a", "b"])) && !groups.holds_up(&[]));
        }
        let mut found = list(&["b", "c"]);
        found[0].nodes.insert(0, Address::tcp("b2", 1));
        groups.keep_to_known(&mut found);
        assert!(!groups.replace(found), "the same groups, with their nodes");
        assert_eq!(groups.list[0].nodes, [Address::tcp("a", 1)]);
        assert_eq!(groups.list[1].nodes[0], Address::tcp("b2", 1));
    }

    #[test]
    fn the_leader_comes_first_and_stays_so() {
        let text = "[pools.main.groups]\na = [\"x\", \"y\", \"z\"]";
        let mut groups = read(text);
        let y = Address::tcp("y", 11211);
        assert!(groups.list[0].lead(&y) && !groups.list[0].lead(&y));
        assert!(!groups.list[0].lead(&Address::tcp("other", 1)));
        let mut again = read(text);
        again.inherit(&groups);
        assert_eq!(again.list[0].nodes[0], y);
    }
}
