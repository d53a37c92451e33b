#![forbid(unsafe_code)]
//! One configuration made ready: servers, rings over them, and the rules they are dealt with by. A
//! reload makes another; workers take it up when they next look, and requests under way are not touched.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ring::{Member, Ring};
use super::target::Target;
use crate::settings::proxy::{self, Address, Limits};

/// What all workers of a proxy share.
#[derive(Debug)]
pub struct Cluster {
    plan: Mutex<Arc<Plan>>,
    /// Counts plans.
    generation: AtomicU64,
}

/// One configuration.
#[derive(Debug)]
pub struct Plan {
    pub settings: proxy::Proxy,
    pub pools: Vec<Pool>,
}

/// Servers with one ring over them.
#[derive(Debug)]
pub struct Pool {
    pub targets: Vec<Arc<Target>>,
    pub ring: Ring,
    pub rules: Rules,
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
}

impl Plan {
    /// Keeps the servers of `old` that are there again.
    fn new(settings: proxy::Proxy, old: Option<&Plan>) -> Result<Plan, String> {
        let pools = settings
            .pools
            .iter()
            .map(|pool| Pool::new(pool, old))
            .collect::<Result<_, _>>()?;
        Ok(Plan { settings, pools })
    }

    fn find(&self, pool: &str, place: &Address) -> Option<Arc<Target>> {
        let at = self.settings.pools.iter().position(|it| it.name == pool)?;
        let targets = &self.pools[at].targets;
        targets.iter().find(|it| it.place == *place).cloned()
    }
}

impl Pool {
    fn new(settings: &proxy::Pool, old: Option<&Plan>) -> Result<Pool, String> {
        let members: Vec<Member> = settings
            .servers
            .iter()
            .map(|server| Member {
                weight: server.weight,
                name: server.name.clone(),
                ..match &server.address {
                    Address::Tcp { host, port } => Member::new(host.clone(), *port),
                    Address::Unix(path) => Member::new(path.display().to_string(), 0),
                }
            })
            .collect();
        let targets = settings
            .servers
            .iter()
            .map(|server| {
                old.and_then(|old| old.find(&settings.name, &server.address))
                    .unwrap_or_else(|| Arc::new(Target::new(server.address.clone())))
            })
            .collect();
        Ok(Pool {
            targets,
            ring: Ring::build(&settings.scheme, &members)
                .map_err(|error| format!("pool {}: {error}", settings.name))?,
            rules: Rules {
                timeout: settings.timeout_ms,
                connect_timeout: settings.connect_timeout_ms,
                requests_max: settings.requests_max,
                bytes_max: settings.queue_bytes,
                connections: settings.connections.max(1),
            },
        })
    }
}

impl Cluster {
    /// # Errors
    /// A pool that cannot be, as a line for the user.
    pub fn new(settings: proxy::Proxy) -> Result<Cluster, String> {
        Ok(Cluster {
            plan: Mutex::new(Arc::new(Plan::new(settings, None)?)),
            generation: AtomicU64::new(1),
        })
    }

    /// Takes up another configuration, whole or not at all.
    ///
    /// # Errors
    /// As [`new`](Cluster::new); the old one stays.
    pub fn reload(&self, settings: proxy::Proxy) -> Result<(), String> {
        // Names are looked up before the lock is taken: workers do not wait for that.
        let old = self.plan();
        let plan = Arc::new(Plan::new(settings, Some(&old))?);
        *self.lock() = plan;
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
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
