#![forbid(unsafe_code)]
//! One configuration made ready: servers, rings over them, and the rules they are dealt with by. A
//! reload makes another; workers take it up when they next look, and requests under way are not touched.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::groups;
use super::hotkey::writes::Writes;
use super::membership;
use super::proxy::Shown;
use super::ring::{Member, Ring};
use super::route::Tree;
use super::target::{Access, Target};
use crate::net::address::reason;
use crate::observe::Bell;
use crate::protocol;
use crate::settings::proxy::{
    self, Address, COMMANDS, Group, Groups, Limits, Moving, Reads, Route, RouteId, Scheme,
};

/// A pool that has come with a reload waits no longer to be looked up.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// What all workers of a proxy share.
#[derive(Debug)]
pub struct Cluster {
    plan: Mutex<Arc<Plan>>,
    /// Counts plans.
    generation: AtomicU64,
    /// What all times are counted from.
    epoch: Instant,
    /// This machine's name, for what differs between proxies.
    host: String,
    /// Writes to hot keys, as all workers see them.
    pub writes: Arc<Writes>,
    /// What hot keys are hashed with.
    pub seed: u64,
    /// The keys that are read most, worker by worker.
    hot: Mutex<Vec<Vec<Shown>>>,
    /// Bytes that servers have not taken yet.
    queued: AtomicUsize,
    /// What clients have asked for, by command; a key of a get counts as one.
    pub asked: [AtomicU64; COMMANDS],
    /// Threads that share the requests; at least 1.
    pub workers: u32,
    /// When servers were last looked up that are found by name.
    found: AtomicU64,
    /// Calls for a look at groups.
    pub bell: Arc<Bell>,
    /// What requests may say.
    pub requests: protocol::Rules,
}

/// One configuration.
#[derive(Debug)]
pub struct Plan {
    pub settings: proxy::Proxy,
    pub pools: Vec<Pool>,
    pub tree: Arc<Tree>,
    /// The route of all requests of a listener, by its tag.
    pub roots: Vec<(String, usize)>,
}

/// Servers with one ring over them.
#[derive(Debug)]
pub struct Pool {
    pub targets: Vec<Arc<Target>>,
    pub ring: Ring,
    pub rules: Rules,
    /// Of groups: by their places on the ring, the places of their nodes in `targets`, the leader's
    /// first. Empty for servers.
    pub seats: Vec<Vec<usize>>,
    /// What tells groups apart, by their places on the ring; the same in every plan.
    pub group_ids: Vec<u32>,
    pub reads: Reads,
    /// Groups have come or gone lately: where keys were before.
    pub before: Option<Before>,
    names: Vec<String>,
    members: Vec<Member>,
    scheme: Scheme,
}

/// The groups that a pool had before, which still hold keys that have moved.
#[derive(Debug)]
pub struct Before {
    /// The place of a pool of those groups in the plan.
    pub pool: usize,
    /// Looks for keys there that are not where they belong now.
    pub route: RouteId,
    /// How far the moving is.
    pub moving: Moving,
}

/// How the servers of a pool are dealt with.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Milliseconds an answer may take.
    pub timeout: u64,
    /// Milliseconds connecting may take.
    pub connect_timeout: u64,
    /// Requests under way on one connection.
    pub requests_max: usize,
    /// Bytes that may wait to be sent on one connection.
    pub bytes_max: usize,
    /// Connections that the clients of one worker share.
    pub connections: usize,
    /// Milliseconds a probe may take.
    pub probe_timeout: u64,
    /// Servers that may stand in for another, one after the other.
    pub failover: usize,
    /// Seconds: the longest life of what one that stands in is given.
    pub failover_ttl: u32,
    /// Servers that hold a key.
    pub replicas: usize,
    /// Whether keys are remembered that a server that is down has to delete.
    pub retry_deletes: bool,
    /// Whether a server that is down is taken off the ring.
    pub eject: bool,
}

impl Plan {
    /// Keeps the servers of `old` that are there again.
    fn new(
        settings: proxy::Proxy,
        old: Option<&Plan>,
        host: &str,
        now: u64,
    ) -> Result<Plan, String> {
        let deletes = settings.limits.deletes;
        let mut pools = settings
            .pools
            .iter()
            .map(|pool| Pool::new(pool, &[], old, deletes, now))
            .collect::<Result<Vec<_>, _>>()?;
        // Pools and routes that nobody has written, for keys that have moved.
        let mut routed = settings.clone();
        for number in 0..pools.len() {
            let Some(groups) = &settings.pools[number].groups else {
                continue;
            };
            if groups.before.is_empty() {
                continue;
            }
            let mut former = settings.pools[number].clone();
            former.groups = Some(Groups {
                list: groups.before.clone(),
                before: Vec::new(),
                ..groups.clone()
            });
            let known = std::slice::from_ref(&pools[number]);
            let hidden = Pool::new(&former, known, old, deletes, now)?;
            let route = routed.routes.len() + 2;
            routed.routes.extend([
                Route::Pool { pool: number },
                Route::Pool { pool: pools.len() },
                Route::Moving {
                    old: route - 1,
                    new: route - 2,
                    ttl: groups.warm_ttl,
                    stage: groups.moving,
                },
            ]);
            pools[number].before = Some(Before {
                pool: pools.len(),
                route,
                moving: groups.moving,
            });
            pools.push(hidden);
        }
        let tag = |listener: &proxy::Listener| listener.endpoint.tag.clone();
        let roots = settings
            .listeners
            .iter()
            .filter_map(|listener| Some((tag(listener)?, listener.root)))
            .collect();
        Ok(Plan {
            tree: Arc::new(Tree::build(&routed, host)),
            settings,
            pools,
            roots,
        })
    }

    /// The route of what comes by the listener with this tag.
    pub fn root_of(&self, tag: &str) -> usize {
        let root = self.roots.iter().find(|(of, _)| of == tag);
        root.map_or(self.tree.root(), |(_, root)| *root)
    }

    fn find(&self, pool: &str, place: &Address) -> Option<Arc<Target>> {
        let at = self.settings.pools.iter().position(|it| it.name == pool)?;
        self.pools[at].find(place).or_else(|| {
            let before = self.pools[at].before.as_ref()?;
            self.pools[before.pool].find(place)
        })
    }

    /// The route of a key of a pool that belonged to another group a while ago.
    pub fn way_of_moved(&self, pool: usize, key: &[u8]) -> Option<RouteId> {
        let its = self.pools.get(pool)?;
        let before = its.before.as_ref()?;
        let moved = self.pools[before.pool].group_of(key) != its.group_of(key);
        moved.then_some(before.route)
    }

    /// The place that a pool of another plan has in this one; nothing if it is not there.
    pub fn same_pool(&self, of: &Plan, pool: usize) -> Option<usize> {
        let named = |pool: &proxy::Pool| {
            let mut pools = self.settings.pools.iter();
            pools.position(|it| it.name == pool.name)
        };
        if let Some(known) = of.settings.pools.get(pool) {
            return named(known);
        }
        // One that nobody has written.
        let is_before = |it: &Pool| it.before.as_ref().is_some_and(|it| it.pool == pool);
        let its = of.pools.iter().position(is_before)?;
        let now = named(&of.settings.pools[its])?;
        self.pools[now].before.as_ref().map(|before| before.pool)
    }

    /// A node of a pool.
    pub fn target(&self, pool: usize, place: &Address) -> Option<Arc<Target>> {
        self.pools.get(pool)?.find(place)
    }
}

impl Pool {
    /// Targets of `known` are taken up before those of `old`.
    fn new(
        settings: &proxy::Pool,
        known: &[Pool],
        old: Option<&Plan>,
        deletes: usize,
        now: u64,
    ) -> Result<Pool, String> {
        let unknown = match &settings.groups {
            Some(groups) if groups.list.is_empty() => Some(Groups {
                list: vec![Group::unknown()],
                ..groups.clone()
            }),
            _ => None,
        };
        let grouped = unknown.as_ref().or(settings.groups.as_ref());
        let labels = match grouped {
            Some(groups) => groups.labels(),
            None => settings.servers.clone(),
        };
        let members: Vec<Member> = labels
            .iter()
            .map(|server| Member::of(server, None))
            .collect();
        let (places, seats) = match grouped {
            Some(groups) => seated(groups),
            None => {
                let places = settings.servers.iter().map(|server| &server.address);
                (places.collect(), Vec::new())
            }
        };
        let groups = grouped.map_or(&[][..], |groups| &groups.list);
        let id = |group: &Group| {
            let name = format!("{}\0{}", settings.name, group.name);
            super::tag(name.as_bytes())
        };
        let group_ids = groups.iter().map(id).collect();
        let targets = places
            .into_iter()
            .map(|place| {
                if let Some(target) = known.iter().find_map(|pool| pool.find(place)) {
                    return Ok(target);
                }
                let access = Access::load(settings, place)?;
                if let Some(known) = old.and_then(|old| old.find(&settings.name, place)) {
                    known.set(access, settings, deletes);
                    return Ok(known);
                }
                let target = Target::new(place.clone(), access, settings, deletes, now);
                Ok(Arc::new(target))
            })
            .collect::<Result<Vec<_>, String>>()
            .map_err(|error| format!("pool {}: {error}", settings.name))?;
        Ok(Pool {
            targets,
            ring: Ring::build(&settings.scheme, &members)
                .map_err(|error| format!("pool {}: {error}", settings.name))?,
            seats,
            group_ids,
            reads: grouped.map_or(Reads::Leader, |groups| groups.reads),
            before: None,
            names: labels.into_iter().filter_map(|label| label.name).collect(),
            members,
            scheme: settings.scheme.clone(),
            rules: Rules {
                timeout: settings.timeout_ms,
                connect_timeout: settings.connect_timeout_ms,
                requests_max: settings.requests_max,
                bytes_max: settings.queue_bytes,
                connections: settings.connections.max(1),
                probe_timeout: settings.health.probe_timeout_ms,
                // Nodes of another group do not have the key.
                failover: match grouped {
                    Some(_) => 0,
                    None => settings.failover.max(settings.replicas.saturating_sub(1)),
                },
                failover_ttl: settings.failover_ttl,
                replicas: if grouped.is_some() {
                    1
                } else {
                    settings.replicas
                },
                retry_deletes: settings.retry_deletes && grouped.is_none(),
                eject: settings.eject && grouped.is_none(),
            },
        })
    }
}

/// The nodes of all groups, the leaders first, and who is where.
fn seated(groups: &Groups) -> (Vec<&Address>, Vec<Vec<usize>>) {
    let mut places: Vec<&Address> = groups.list.iter().map(|group| &group.nodes[0]).collect();
    let mut seats = Vec::new();
    for (number, group) in groups.list.iter().enumerate() {
        let mut its = vec![number];
        for node in &group.nodes[1..] {
            its.push(places.len());
            places.push(node);
        }
        seats.push(its);
    }
    (places, seats)
}

impl Pool {
    fn find(&self, place: &Address) -> Option<Arc<Target>> {
        self.targets.iter().find(|it| it.place == *place).cloned()
    }

    /// The group of the target at this place, and whether it leads that.
    pub fn seat_of(&self, target: usize) -> Option<(&str, bool)> {
        let group = self
            .seats
            .iter()
            .position(|seats| seats.contains(&target))?;
        Some((&self.names[group], target == group))
    }

    /// The name of the group that a key belongs to.
    pub fn group_of(&self, key: &[u8]) -> &str {
        &self.names[self.ring.owner(key)]
    }

    /// The ring without the servers that are not in `live`; `None` if that is the whole ring, or none.
    pub fn ring_among(&self, live: &[usize]) -> Option<Ring> {
        if live.len() == self.members.len() {
            return None;
        }
        Ring::build_among(&self.scheme, &self.members, live).ok()
    }
}

/// Finds the groups of pools that find them at etcd. `awaited`: those that cannot be found now will be.
fn find_groups(settings: &mut proxy::Proxy, awaited: bool) -> Result<(), String> {
    for pool in &mut settings.pools {
        let Some(groups) = &mut pool.groups else {
            continue;
        };
        if !groups.list.is_empty() {
            continue;
        }
        match groups::find(&pool.name, groups) {
            Ok(()) => {}
            Err(why) if awaited => {
                log::error!("{why}; until then its requests are answered with SERVER_ERROR");
            }
            Err(why) => return Err(why),
        }
    }
    Ok(())
}

/// Finds the servers of pools that are found by name. Names that cannot be looked up leave a pool as it
/// is, if it has servers.
fn find_servers(settings: &mut proxy::Proxy) -> Result<(), String> {
    for pool in &mut settings.pools {
        let Some(name) = &pool.srv else {
            continue;
        };
        match membership::look_up(pool) {
            Ok(found) if !found.is_empty() => {
                pool.servers = found.into_iter().map(|found| found.server).collect();
            }
            outcome => {
                let why = match outcome {
                    Ok(_) => "no servers".to_owned(),
                    Err(error) => reason(&error),
                };
                let told = format!("pool {}: {name}: {why}", pool.name);
                if pool.servers.is_empty() {
                    return Err(told);
                }
                log::warn!("{told}");
            }
        }
    }
    Ok(())
}

impl Cluster {
    /// For so many workers, and requests by these rules.
    ///
    /// # Errors
    /// A pool that cannot be, as a line for the user.
    pub fn new(
        mut settings: proxy::Proxy,
        workers: usize,
        requests: protocol::Rules,
    ) -> Result<Cluster, String> {
        find_groups(&mut settings, true)?;
        find_servers(&mut settings)?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let plan = Plan::new(settings, None, host.trim(), 0)?;
        Ok(Cluster {
            plan: Mutex::new(Arc::new(plan)),
            generation: AtomicU64::new(1),
            epoch: Instant::now(),
            host: host.trim().to_owned(),
            writes: Arc::default(),
            seed: getrandom::u64().unwrap_or_default(),
            hot: Mutex::default(),
            queued: AtomicUsize::new(0),
            asked: Default::default(),
            workers: u32::try_from(workers).unwrap_or(u32::MAX).max(1),
            found: AtomicU64::new(0),
            bell: Arc::default(),
            requests,
        })
    }

    /// Bytes that wait for all servers together, as of each worker's last attempt to send.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// One connection that had so many bytes waiting has so many now.
    pub fn requeue(&self, had: usize, has: usize) {
        if has >= had {
            self.queued.fetch_add(has - had, Ordering::Relaxed);
        } else {
            self.queued.fetch_sub(had - has, Ordering::Relaxed);
        }
    }

    /// The keys that are read most on one worker.
    pub fn publish(&self, worker: usize, top: Vec<Shown>) {
        let mut hot = self.hot.lock().unwrap_or_else(PoisonError::into_inner);
        if hot.len() <= worker {
            hot.resize(worker + 1, Vec::new());
        }
        hot[worker] = top;
    }

    /// The keys that are read most, on all workers together, most read first.
    pub fn hot_keys(&self) -> Vec<Shown> {
        let hot = self.hot.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Shown> = Vec::new();
        for shown in hot.iter().flatten() {
            match all.iter_mut().find(|other| other.key == shown.key) {
                Some(other) => {
                    other.reads += shown.reads;
                    other.hot |= shown.hot;
                }
                None => all.push(shown.clone()),
            }
        }
        all.sort_by(|a, b| b.reads.cmp(&a.reads).then_with(|| a.key.cmp(&b.key)));
        all
    }

    /// Milliseconds of a clock that never goes back.
    #[inline]
    pub fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    /// Nanoseconds of the same clock.
    pub fn nanoseconds(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Takes up another configuration, whole or not at all.
    ///
    /// # Errors
    /// As [`new`](Cluster::new); the old one stays.
    pub fn reload(&self, mut settings: proxy::Proxy) -> Result<(), String> {
        let old = self.plan();
        for pool in &mut settings.pools {
            let known = old.settings.pools.iter().find(|it| it.name == pool.name);
            if let (Some(groups), Some(known)) = (
                &mut pool.groups,
                known.and_then(|known| known.groups.as_ref()),
            ) {
                groups.inherit(known);
            }
        }
        find_groups(&mut settings, false)?;
        find_servers(&mut settings)?;
        self.take_up(settings)
    }

    /// Takes up what has become of groups, unless another plan has come since `plan`: then false.
    ///
    /// # Errors
    /// As [`new`](Cluster::new).
    pub fn take_up_groups(&self, plan: &Arc<Plan>, settings: proxy::Proxy) -> Result<bool, String> {
        if !Arc::ptr_eq(plan, &self.plan()) {
            return Ok(false);
        }
        self.take_up(settings)?;
        Ok(true)
    }

    fn take_up(&self, settings: proxy::Proxy) -> Result<(), String> {
        // Names are looked up before the lock is taken: workers do not wait for that.
        let old = self.plan();
        let plan = Arc::new(Plan::new(settings, Some(&old), &self.host, self.now())?);
        *self.lock() = plan;
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Looks up the names that are due; returns how long to wait before the next call. This may take
    /// long: not for workers.
    pub fn resolve(&self) -> Duration {
        let plan = self.plan();
        let mut next = RESOLVE_MAX;
        self.find_again(&plan);
        for (pool, settings) in plan.pools.iter().zip(&plan.settings.pools) {
            if settings.resolve_ms == 0 {
                continue;
            }
            for target in &pool.targets {
                if let Err(error) = target.resolve_when_due(self.now(), settings.resolve_ms) {
                    log::info!("{}: {}", target.place, reason(&error));
                }
            }
            next = next.min(Duration::from_millis(settings.resolve_ms));
        }
        next
    }

    /// Looks up the servers of pools that are found by name, if that is due, and takes up what has
    /// changed.
    fn find_again(&self, plan: &Arc<Plan>) {
        let due = |pool: &proxy::Pool| {
            pool.srv.is_some()
                && pool.resolve_ms > 0
                && self
                    .now()
                    .saturating_sub(self.found.load(Ordering::Relaxed))
                    >= pool.resolve_ms
        };
        if !plan.settings.pools.iter().any(due) {
            return;
        }
        self.found.store(self.now(), Ordering::Relaxed);
        let mut settings = plan.settings.clone();
        // It has servers, so this cannot fail.
        let _ = find_servers(&mut settings);
        let changed = settings != plan.settings;
        if changed && let Err(error) = self.take_up(settings) {
            log::warn!("{error}");
        }
    }

    pub fn plan(&self) -> Arc<Plan> {
        self.lock().clone()
    }

    /// Tells plans apart, at little cost.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn limits(&self) -> Limits {
        self.lock().settings.limits.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Plan>> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
