#![forbid(unsafe_code)]
//! Groups of nodes behind a proxy, as they change: who leads, who is how far behind, who is there.
//!
//! Nodes are asked themselves, several times a second: `stats replication` says which leads and in what
//! epoch, and by how much its followers are behind. (Leader, epoch) pairs are followed and never go
//! back to a lower epoch. Where etcd is named, groups and nodes are read there; a group that is new
//! there comes onto the ring.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::election::directory::{Directory, Failed};
use super::election::etcd::Etcd;
use super::election::wire::{self, Entry, Keys};
use super::plan::{Cluster, Plan};
use crate::net::address;
use crate::settings::proxy::{Address, Group, Groups, Server, Topology};

/// Between two looks at all nodes.
pub const LOOK: Duration = Duration::from_millis(200);
/// Whoever does not answer is asked again after so long.
const AWAY: Duration = Duration::from_secs(1);
/// How long a node may take.
const PATIENCE: Duration = Duration::from_millis(300);
/// etcd is read so often.
const READ: Duration = Duration::from_millis(500);
const ETCD_PATIENCE: Duration = Duration::from_secs(1);
/// Lines of a node's answer that are read.
const LINES_MAX: usize = 1000;

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    pub id: String,
    pub epoch: u64,
    /// It takes mutations.
    pub leads: bool,
    /// A leader's: its followers that follow, by id, and by how many milliseconds they are behind.
    pub behind: Vec<(String, u64)>,
}

impl Report {
    /// From the lines of `stats replication`.
    fn of(lines: &[String]) -> Report {
        let mut report = Report::default();
        let (mut role, mut allowed) = ("", true);
        let mut streaming = Vec::new();
        for line in lines {
            let mut words = line.splitn(3, ' ').skip(1);
            let (Some(name), Some(value)) = (words.next(), words.next()) else {
                continue;
            };
            match name {
                "role" => role = value,
                "node" => value.clone_into(&mut report.id),
                "epoch" => report.epoch = value.parse().unwrap_or(0),
                "writes_allowed_ms" => allowed = value != "0",
                _ => {
                    let Some((id, what)) = name
                        .strip_prefix("follower:")
                        .and_then(|rest| rest.split_once(':'))
                    else {
                        continue;
                    };
                    match what {
                        "state" if value == "streaming" => streaming.push(id.to_owned()),
                        "lag_ms" => {
                            if let Ok(lag) = value.parse() {
                                report.behind.push((id.to_owned(), lag));
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        report.behind.retain(|(id, _)| streaming.contains(id));
        report.leads = role == "leader" && allowed;
        report
    }
}

/// A connection that only this is asked on.
#[derive(Default)]
struct Line {
    stream: Option<BufReader<TcpStream>>,
    away_until: Option<Instant>,
}

impl Line {
    fn ask(&mut self, node: &Address) -> Option<Report> {
        if self.away_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        match self.try_to_ask(node) {
            Ok(report) => {
                self.away_until = None;
                Some(report)
            }
            Err(error) => {
                log::debug!("{node}: {}", address::reason(&error));
                self.stream = None;
                self.away_until = Some(Instant::now() + AWAY);
                None
            }
        }
    }

    fn try_to_ask(&mut self, node: &Address) -> io::Result<Report> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(BufReader::new(connect(node)?)),
        };
        stream.get_mut().write_all(b"stats replication\r\n")?;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 || lines.len() > LINES_MAX {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "END" => return Ok(Report::of(&lines)),
                line if line.starts_with("STAT ") => lines.push(line.to_owned()),
                line => return Err(io::Error::other(line.to_owned())),
            }
        }
    }
}

fn connect(node: &Address) -> io::Result<TcpStream> {
    let Address::Tcp { host, port } = node else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let addresses = address::resolve(Some(host), *port)?;
    let first = addresses.first().ok_or(io::ErrorKind::NotFound)?;
    let stream = TcpStream::connect_timeout(first, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Looks at the nodes of all groups.
#[derive(Default)]
pub struct Scout {
    lines: HashMap<Address, Line>,
    /// The highest epoch of each group, by pool and name.
    epochs: HashMap<(String, String), u64>,
    /// By pool.
    topologies: HashMap<String, Reader>,
    /// Until when keys are looked for where they were before, by pool.
    warming: HashMap<String, u64>,
}

/// Reads etcd.
struct Reader {
    topology: Topology,
    etcd: Option<Etcd>,
    keys: Keys,
    read_at: Option<Instant>,
    unreachable: bool,
}

impl Scout {
    /// One look. Blocks while nodes take their time; returns how long to wait before the next.
    pub fn look(&mut self, cluster: &Cluster) -> Duration {
        let plan = cluster.plan();
        let mut settings = plan.settings.clone();
        let mut any = false;
        for (number, pool) in settings.pools.iter_mut().enumerate() {
            let name = pool.name.clone();
            if let Some(groups) = &mut pool.groups {
                any = true;
                self.read(&name, groups);
                self.ask(cluster, &plan, number, &name, groups);
                let list = groups.list.clone();
                groups.replace(list);
                self.warm(&name, groups, cluster.now());
            }
        }
        if !any {
            return AWAY;
        }
        if settings != plan.settings
            && let Err(error) = cluster.take_up_groups(&plan, settings)
        {
            log::warn!("{error}");
        }
        LOOK
    }

    /// Asks the nodes of one pool.
    fn ask(
        &mut self,
        cluster: &Cluster,
        plan: &Plan,
        pool: usize,
        name: &str,
        groups: &mut Groups,
    ) {
        for group in &mut groups.list {
            let mut reports = Vec::new();
            let mut asked_at = Vec::new();
            let mut lines: Vec<Line> = group
                .nodes
                .iter()
                .map(|node| self.lines.remove(node).unwrap_or_default())
                .collect();
            std::thread::scope(|scope| {
                let asking: Vec<_> = lines
                    .iter_mut()
                    .zip(&group.nodes)
                    .map(|(line, node)| {
                        asked_at.push(cluster.now());
                        scope.spawn(move || line.ask(node))
                    })
                    .collect();
                reports.extend(asking.into_iter().map(|one| one.join().ok().flatten()));
            });
            self.lines.extend(group.nodes.iter().cloned().zip(lines));
            let known = self
                .epochs
                .entry((name.to_owned(), group.name.clone()))
                .or_default();
            let Some(at) = leader(&reports, *known) else {
                continue;
            };
            let Some(report) = reports[at].clone() else {
                continue;
            };
            *known = report.epoch;
            for (node, other) in group.nodes.iter().zip(&reports) {
                let behind = other.as_ref().and_then(|other| {
                    report
                        .behind
                        .iter()
                        .find(|(id, _)| *id == other.id)
                        .map(|(_, behind)| *behind)
                });
                if let (Some(target), Some(behind)) = (plan.target(pool, node), behind) {
                    target.set_fresh(asked_at[at].saturating_sub(behind));
                }
            }
            let node = group.nodes[at].clone();
            if group.lead(&node) {
                log::info!(
                    "group {}: {node} leads, in epoch {}",
                    group.name,
                    report.epoch
                );
            }
        }
    }

    /// Ends the time in which keys are looked for where they were.
    fn warm(&mut self, pool: &str, groups: &mut Groups, now: u64) {
        if groups.before.is_empty() {
            self.warming.remove(pool);
            return;
        }
        let ends = now + groups.warm_ms;
        let until = *self.warming.entry(pool.to_owned()).or_insert(ends);
        if now >= until {
            log::info!("pool {pool}: keys are not looked for any more where they were");
            groups.before.clear();
            self.warming.remove(pool);
        }
    }

    /// Reads etcd for one pool, if that is due.
    fn read(&mut self, pool: &str, groups: &mut Groups) {
        let Some(topology) = &groups.etcd else {
            return;
        };
        let reader = self
            .topologies
            .entry(pool.to_owned())
            .or_insert_with(|| Reader::new(topology));
        if reader.topology != *topology {
            *reader = Reader::new(topology);
        }
        let Some(entries) = reader.read() else {
            return;
        };
        for (group, epoch) in gather(&reader.keys, &entries, groups) {
            let known = self.epochs.entry((pool.to_owned(), group)).or_default();
            *known = epoch.max(*known);
        }
    }
}

/// Who leads: of those that say so, the one of the highest epoch, unless a higher one is known.
fn leader(reports: &[Option<Report>], known: u64) -> Option<usize> {
    let leaders = reports.iter().enumerate().filter_map(|(at, report)| {
        let report = report.as_ref()?;
        (report.leads && report.epoch >= known).then_some((report.epoch, at))
    });
    leaders.max().map(|(_, at)| at)
}

/// Puts what etcd holds into the list of groups. A group stays, be all its nodes away: its keys must
/// not move because it has failed. Returns the epochs of leaders.
fn gather(keys: &Keys, entries: &[Entry], groups: &mut Groups) -> Vec<(String, u64)> {
    let list = &groups.list;
    let mut epochs = Vec::new();
    let mut found: Vec<Group> = Vec::new();
    let group = |found: &mut Vec<Group>, name: &str| -> usize {
        if let Some(at) = found.iter().position(|group| group.name == name) {
            return at;
        }
        found.push(Group {
            name: name.to_owned(),
            weight: 1,
            nodes: Vec::new(),
        });
        found.len() - 1
    };
    for entry in entries {
        if let Some(node) = keys.node(entry)
            && let Ok(server) = Server::parse(&node.clients)
            && !node.group.is_empty()
        {
            let at = group(&mut found, &node.group);
            found[at].nodes.push(server.address);
        } else if let Some((name, "isr")) = keys.in_group(&entry.key) {
            group(&mut found, name);
        }
    }
    for entry in entries {
        if let Some((name, "leader")) = keys.in_group(&entry.key)
            && let Some(leader) = wire::leader(entry)
            && let Ok(server) = Server::parse(&leader.clients)
            && let Some(group) = found.iter_mut().find(|group| group.name == name)
        {
            group.lead(&server.address);
            epochs.push((name.to_owned(), leader.epoch));
        }
    }
    for group in &mut found {
        let led = epochs.iter().any(|(name, _)| *name == group.name);
        let Some(known) = list.iter().find(|known| known.name == group.name) else {
            continue;
        };
        group.weight = known.weight;
        if group.nodes.is_empty() {
            group.nodes.clone_from(&known.nodes);
        } else if !led && let Some(leader) = known.nodes.first() {
            // It may still lead, vouched for by its followers.
            if !group.nodes.contains(leader) {
                group.nodes.push(leader.clone());
            }
            group.lead(leader);
        }
    }
    found.retain(|group| !group.nodes.is_empty());
    found.sort_by(|a, b| a.name.cmp(&b.name));
    if found.is_empty() {
        return epochs;
    }
    for group in &found {
        if !list.iter().any(|known| known.name == group.name) {
            log::info!("group {} is there", group.name);
        }
    }
    groups.replace(found);
    epochs
}

impl Reader {
    fn new(topology: &Topology) -> Reader {
        let etcd = match Etcd::new(&topology.etcd, ETCD_PATIENCE) {
            Ok(etcd) => Some(etcd),
            Err(why) => {
                log::error!("{why}");
                None
            }
        };
        Reader {
            keys: Keys::new(&topology.cluster),
            topology: topology.clone(),
            etcd,
            read_at: None,
            unreachable: false,
        }
    }

    /// Nothing if it is too early, or etcd does not answer: then all stays as it is.
    fn read(&mut self) -> Option<Vec<Entry>> {
        if self.read_at.is_some_and(|at| at.elapsed() < READ) {
            return None;
        }
        let (first, end) = self.keys.all();
        let body = serde_json::json!({"key": first, "range_end": end});
        let answer = self.etcd.as_mut()?.call("/v3/kv/range", &body);
        self.read_at = Some(Instant::now());
        match answer {
            Ok(answer) => {
                if std::mem::take(&mut self.unreachable) {
                    log::info!("etcd answers again");
                }
                Some(Entry::all(&answer))
            }
            Err(Failed::Unreachable(why) | Failed::Refused { message: why, .. }) => {
                if !std::mem::replace(&mut self.unreachable, true) {
                    log::warn!("etcd does not answer: {why}; groups stay as they are known");
                }
                None
            }
        }
    }
}

/// Reads the groups of pools that find them at etcd, before anything is served.
///
/// # Errors
/// etcd does not answer, or knows of none, as a line for the user.
pub fn find(pool: &str, groups: &mut Groups) -> Result<(), String> {
    let Some(topology) = groups.etcd.clone() else {
        return Ok(());
    };
    let mut reader = Reader::new(&topology);
    let told = |why: &str| format!("pool {pool}: {why}");
    let Some(etcd) = &mut reader.etcd else {
        return Err(told("etcd cannot be asked"));
    };
    let (first, end) = reader.keys.all();
    let body = serde_json::json!({"key": first, "range_end": end});
    match etcd.call("/v3/kv/range", &body) {
        Ok(answer) => {
            gather(&reader.keys, &Entry::all(&answer), groups);
            if groups.list.is_empty() {
                let cluster = &topology.cluster;
                return Err(told(&format!(
                    "etcd knows of no node of the cluster {cluster}: start one with --etcd first"
                )));
            }
            Ok(())
        }
        Err(Failed::Unreachable(why) | Failed::Refused { message: why, .. }) => {
            Err(told(&format!("etcd does not answer: {why}")))
        }
    }
}
