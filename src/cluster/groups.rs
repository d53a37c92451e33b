#![forbid(unsafe_code)]
//! Groups of nodes behind a proxy, as they change: who leads, who is how far behind, who is there.
//!
//! Nodes are asked themselves, several times a second: `stats replication` says which leads and in what
//! epoch, and by how much its followers are behind. (Leader, epoch) pairs are followed and never go
//! back to a lower epoch. A node that refuses a mutation because it does not lead, or a connection that
//! ends, rings a [`Bell`], and all are asked at once. Where etcd is named, groups and nodes are read
//! there, whenever it says that something has changed; a group that is new there comes onto the ring.
//! While etcd does not answer, everything stays as it was last known.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::election::directory::{Directory, Failed};
use super::election::etcd::{self, Etcd};
use super::election::wire::{self, Entry, Keys};
use super::plan::{Cluster, Plan};
use super::target::{Access, Way};
use crate::net::address;
use crate::observe::Bell;
use crate::protocol::Dialect;
use crate::settings::proxy::{Address, Group, Groups, Moving, Pool, Server, Topology};

/// Between two looks at all nodes, if nobody calls for one.
pub const LOOK: Duration = Duration::from_millis(200);
/// Whoever does not answer is asked again after so long.
const AWAY: Duration = Duration::from_secs(1);
/// How long a node may take.
const PATIENCE: Duration = Duration::from_millis(300);
/// etcd is read so often though it says nothing, and again so soon when it did not answer.
const READ: Duration = Duration::from_secs(5);
const READ_AGAIN: Duration = Duration::from_millis(500);
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
    stream: Option<BufReader<Box<dyn Way>>>,
    away_until: Option<Instant>,
}

impl Line {
    fn ask(&mut self, node: &Address, pool: &Pool) -> Option<Report> {
        if self.away_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        match self.try_to_ask(node, pool) {
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

    fn try_to_ask(&mut self, node: &Address, pool: &Pool) -> io::Result<Report> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(connect(node, pool)?),
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

/// Connects as the pool's clients are connected: with its certificates, and its user.
fn connect(node: &Address, pool: &Pool) -> io::Result<BufReader<Box<dyn Way>>> {
    let access = Access::load(pool, node).map_err(io::Error::other)?;
    let way: Box<dyn Way> = match node {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            access.over(stream)?
        }
        Address::Tcp { host, port } => {
            let addresses = address::resolve(Some(host), *port)?;
            let first = addresses.first().ok_or(io::ErrorKind::NotFound)?;
            let stream = TcpStream::connect_timeout(first, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            access.over(stream)?
        }
    };
    let mut stream = BufReader::new(way);
    if let Some((request, _)) = access.greeting(Dialect::Text) {
        stream.get_mut().write_all(&request)?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line.trim_end() != "STORED" {
            return Err(io::Error::other(format!(
                "the user is refused: {}",
                line.trim_end()
            )));
        }
    }
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
    /// When keys move, by pool.
    warming: HashMap<String, Warming>,
    /// Pools whose keys are to stop moving as soon as may be: other groups are there already.
    cut: HashSet<String>,
}

/// When the keys of a pool move, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Warming {
    /// All proxies know of it.
    settled: u64,
    /// Keys are brought over until then.
    brought: u64,
}

impl Warming {
    fn new(now: u64, groups: &Groups) -> Warming {
        let settled = now + groups.settle_ms;
        Warming {
            settled,
            brought: settled + groups.warm_ms,
        }
    }

    /// It ends as soon as may be: no proxy is more than a stage ahead of another. True if that is news.
    fn cut(&mut self, now: u64, settle: u64) -> bool {
        let earliest = now.max(self.settled + settle);
        let news = earliest < self.brought;
        self.brought = self.brought.min(earliest);
        news
    }

    /// How far it is; nothing when it is over.
    fn stage(&self, now: u64, settle: u64) -> Option<Moving> {
        if now < self.settled {
            Some(Moving::Settling)
        } else if now < self.brought {
            Some(Moving::Bringing)
        } else if now < self.brought + settle {
            Some(Moving::Ending)
        } else {
            None
        }
    }
}

/// Reads etcd.
struct Reader {
    topology: Topology,
    etcd: Option<Etcd>,
    keys: Keys,
    read_at: Option<Instant>,
    unreachable: bool,
    /// Something may have changed there.
    changed: Arc<AtomicBool>,
    /// Changes are told of for as long as this is there.
    told: Option<Arc<etcd::Bell>>,
}

impl Scout {
    /// One look. Blocks while nodes take their time; returns how long to wait before the next.
    pub fn look(&mut self, cluster: &Cluster) -> Duration {
        cluster.bell.answer();
        let plan = cluster.plan();
        let mut settings = plan.settings.clone();
        let mut any = false;
        for (number, pool) in settings.pools.iter_mut().enumerate() {
            let name = pool.name.clone();
            if let Some(groups) = &mut pool.groups {
                any = true;
                self.read(cluster, &plan.settings.pools[number], groups);
                self.ask(cluster, &plan, number, &name, groups);
                let list = groups.list.clone();
                groups.replace(list);
                self.warm(&name, groups, cluster.now());
            }
        }
        if !any {
            return AWAY;
        }
        if settings != plan.settings {
            match cluster.take_up_groups(&plan, settings) {
                Ok(true) => {}
                // What etcd has said is not in the plan that has come instead.
                Ok(false) => self.read_again(),
                Err(error) => log::warn!("{error}"),
            }
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
        let settings = &plan.settings.pools[pool];
        for group in &mut groups.list {
            let mut reports = Vec::new();
            let mut asked_at = Vec::new();
            let targets: Vec<_> = group
                .nodes
                .iter()
                .map(|node| {
                    let target = plan.target(pool, node);
                    target.map(|target| (target.forgotten(), target))
                })
                .collect();
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
                        scope.spawn(move || line.ask(node, settings))
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
            for (target, other) in targets.iter().zip(&reports) {
                let (Some((forgotten, target)), Some(other)) = (target, other) else {
                    continue;
                };
                let found = report.behind.iter().find(|(id, _)| *id == other.id);
                match found {
                    Some((_, 0)) => target.set_fresh(asked_at[at], *forgotten),
                    // A millisecond that has begun counts as a whole one.
                    Some((_, behind)) => {
                        target.set_fresh(asked_at[at].saturating_sub(behind + 1), *forgotten);
                    }
                    // It does not follow, or is another process than the one that did.
                    None => target.forget_fresh(),
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

    /// Goes on with the moving of keys, as time passes.
    fn warm(&mut self, pool: &str, groups: &mut Groups, now: u64) {
        if groups.before.is_empty() {
            self.warming.remove(pool);
            self.cut.remove(pool);
            return;
        }
        let warming = self.warming.entry(pool.to_owned());
        let warming = warming.or_insert_with(|| Warming::new(now, groups));
        if self.cut.remove(pool) && warming.cut(now, groups.settle_ms) {
            log::info!(
                "pool {pool}: other groups are there: keys that have not come yet are missed"
            );
        }
        let Some(stage) = warming.stage(now, groups.settle_ms) else {
            groups.before.clear();
            self.warming.remove(pool);
            return;
        };
        if stage != groups.moving {
            groups.moving = stage;
            match stage {
                Moving::Settling => {}
                Moving::Bringing => log::info!("pool {pool}: keys go where they belong now"),
                Moving::Ending => {
                    log::info!("pool {pool}: keys are not looked for any more where they were");
                }
            }
        }
    }

    /// Reads etcd for one pool, if that is due.
    fn read(&mut self, cluster: &Cluster, pool: &Pool, groups: &mut Groups) {
        let Some(topology) = &groups.etcd else {
            return;
        };
        let reader = self
            .topologies
            .entry(pool.name.clone())
            .or_insert_with(|| Reader::new(topology));
        if reader.topology != *topology {
            *reader = Reader::new(topology);
        }
        reader.watch(&cluster.bell);
        let Some(entries) = reader.read() else {
            return;
        };
        let (mut found, epochs) = gather(&reader.keys, &entries, &groups.list);
        if groups.holds_up(&found) {
            // Nobody looks for a key in three places: what is under way ends first.
            groups.keep_to_known(&mut found);
            reader.changed.store(true, Ordering::Release);
            self.cut.insert(pool.name.clone());
        }
        if !groups.list.is_empty() {
            // Keys go to a new group when it takes them.
            let lines = &mut self.lines;
            let all = found.len();
            found.retain(|group| {
                groups.list.iter().any(|known| known.name == group.name)
                    || group.nodes.iter().any(|node| {
                        let line = lines.entry(node.clone()).or_default();
                        line.ask(node, pool).is_some_and(|report| report.leads)
                    })
            });
            if found.len() < all {
                reader.changed.store(true, Ordering::Release);
            }
        }
        if take_over(found, groups) && groups.moving == Moving::Settling {
            // Nothing has been brought over yet: all proxies have to hear of this, too.
            self.warming.remove(&pool.name);
        }
        for (group, epoch) in epochs {
            let known = self.epochs.entry((pool.name.clone(), group)).or_default();
            *known = epoch.max(*known);
        }
    }

    /// With the next look, etcd is read whether or not it says that anything has changed.
    fn read_again(&self) {
        for reader in self.topologies.values() {
            reader.changed.store(true, Ordering::Release);
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

/// The groups that etcd holds, and the epochs of their leaders. One that is in `list` stays, be all its
/// nodes away: its keys must not move because it has failed.
fn gather(keys: &Keys, entries: &[Entry], list: &[Group]) -> (Vec<Group>, Vec<(String, u64)>) {
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
    (found, epochs)
}

/// From now on these are the groups, if there are any. True if keys move.
fn take_over(found: Vec<Group>, groups: &mut Groups) -> bool {
    if found.is_empty() {
        return false;
    }
    for group in &found {
        if !groups.list.iter().any(|known| known.name == group.name) {
            log::info!("group {} is there", group.name);
        }
    }
    groups.replace(found)
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
            changed: Arc::default(),
            told: None,
        }
    }

    /// Has changes told of, if they are not.
    fn watch(&mut self, bell: &Arc<Bell>) {
        let (None, Some(etcd)) = (&self.told, &self.etcd) else {
            return;
        };
        let (changed, bell) = (self.changed.clone(), bell.clone());
        let told: Arc<etcd::Bell> = Arc::new(move || {
            changed.store(true, Ordering::Release);
            bell.ring();
        });
        match etcd
            .clone()
            .start_watch(self.keys.all(), Arc::downgrade(&told))
        {
            Ok(()) => self.told = Some(told),
            Err(error) => log::warn!("etcd is not watched: {error}"),
        }
    }

    /// Nothing if nothing is said to have changed, or etcd does not answer: then all stays as it is.
    fn read(&mut self) -> Option<Vec<Entry>> {
        let every = if self.unreachable { READ_AGAIN } else { READ };
        let due = self.read_at.is_none_or(|at| at.elapsed() >= every);
        // What changes from now on may not be in the answer.
        if !self.changed.swap(false, Ordering::AcqRel) && !due {
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
            let (found, _) = gather(&reader.keys, &Entry::all(&answer), &groups.list);
            take_over(found, groups);
            if groups.list.is_empty() {
                let cluster = &topology.cluster;
                return Err(told(&format!(
                    "etcd knows of no node of the cluster {cluster} yet: start one with --etcd"
                )));
            }
            Ok(())
        }
        Err(Failed::Unreachable(why) | Failed::Refused { message: why, .. }) => {
            Err(told(&format!("etcd does not answer: {why}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_groups_wait_for_is_cut_short_but_lets_all_proxies_follow() {
        const SETTLE: u64 = 8000;
        let whole = Warming {
            settled: 10_000,
            brought: 610_000,
        };
        let stages = |warming: &Warming| -> Vec<(u64, Option<Moving>)> {
            let mut last = None;
            let stages = (0..700_000).step_by(1000);
            let stages = stages.map(|now| (now, warming.stage(now, SETTLE)));
            stages
                .filter(|(_, stage)| last.replace(*stage) != Some(*stage))
                .collect()
        };
        let from = |bringing: u64, ending: u64| {
            vec![
                (0, Some(Moving::Settling)),
                (bringing, Some(Moving::Bringing)),
                (ending, Some(Moving::Ending)),
                (ending + SETTLE, None),
            ]
        };
        assert_eq!(stages(&whole), from(10_000, 610_000));
        // Others may still be settling.
        let mut early = whole;
        assert!(early.cut(12_000, SETTLE));
        assert_eq!(stages(&early), from(10_000, 18_000));
        let mut late = whole;
        assert!(late.cut(50_000, SETTLE) && !late.cut(51_000, SETTLE));
        assert_eq!(stages(&late), from(10_000, 50_000));
        let mut over = whole;
        assert!(!over.cut(611_000, SETTLE));
    }
}
