#![forbid(unsafe_code)]
//! The proxy: its pools, its routes, and what it does when servers fail.
//!
//! Times are milliseconds where a name says so and seconds where they are memcached's (TTLs); sizes
//! are bytes. [`parse`] reads the file, [`Proxy::of_servers`] makes the same of `--servers`.

mod file;
mod group;
mod reader;
mod ring;
mod route;
mod routes;
mod server;

pub use file::parse;
pub use group::{Group, Groups, Reads, Topology};
pub use reader::ConfigError;
pub use ring::{
    EmptyTag, JavaHash, KeyHash, KeyPart, McproxyLabels, POINTS_MAX, RingKind, SERVERS_MAX, Scheme,
    SpyLabels,
};
pub use route::{
    COMMANDS, Command, Commands, Failure, Failures, Moving, Order, ROUTES_MAX, Rate, Route,
    RouteId, Rule, Wait,
};
pub use server::{Address, Server};

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Endpoint;

/// Serving as a proxy.
#[derive(Debug, Clone, PartialEq)]
pub struct Mode {
    pub proxy: Proxy,
    /// Where it was read, and is read again on SIGHUP.
    pub file: Option<PathBuf>,
}

/// What a proxy is to do. Immutable; a reload makes another.
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// Beside those of `-p` and `-l`, whose requests go to `root`.
    pub listeners: Vec<Listener>,
    pub pools: Vec<Pool>,
    /// Children are named by their place here. Every route lies behind those it names.
    pub routes: Vec<Route>,
    pub root: RouteId,
    pub limits: Limits,
    pub hot_keys: HotKeys,
    /// Whether `flush_all` goes to every server of every pool, or is refused.
    pub flush_all: bool,
}

/// A listening socket with a route of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    pub endpoint: Endpoint,
    pub root: RouteId,
}

/// Servers that share keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub name: String,
    /// In the order of the file, which decides ties. Empty where `srv` finds them.
    pub servers: Vec<Server>,
    /// What is on the ring instead of servers.
    pub groups: Option<Groups>,
    /// A DNS name whose SRV records are the servers.
    pub srv: Option<String>,
    /// Who is asked for them; nobody here is the system's name servers.
    pub nameservers: Vec<SocketAddr>,
    pub scheme: Scheme,
    /// From a request to its answer.
    pub timeout_ms: u64,
    pub connect_timeout_ms: u64,
    /// Per worker and server.
    pub connections: usize,
    /// Requests in flight and queued, per connection.
    pub requests_max: usize,
    /// Bytes of requests that wait to be sent, per connection.
    pub queue_bytes: usize,
    /// Between look-ups of names; 0 is once, at start.
    pub resolve_ms: u64,
    /// Take servers that are down off the ring, so that all keys of it move.
    pub eject: bool,
    /// How many of the next servers of a key may be asked for one that is down.
    pub failover: usize,
    /// Seconds: the longest life of what is written to a server that stands in for another.
    pub failover_ttl: u32,
    /// Servers that hold a key, the owner counted.
    pub replicas: usize,
    /// Remember deletes for servers that are down.
    pub retry_deletes: bool,
    /// What becomes of a server for which there were more than can be remembered.
    pub forgotten_deletes: Forgotten,
    pub health: Health,
    pub tls: Option<PoolTls>,
    pub auth: Option<PoolAuth>,
}

impl Pool {
    /// A pool without servers and with the defaults of everything else.
    pub fn new(name: impl Into<String>) -> Pool {
        Pool {
            name: name.into(),
            servers: Vec::new(),
            groups: None,
            srv: None,
            nameservers: Vec::new(),
            scheme: Scheme::default(),
            timeout_ms: 1000,
            connect_timeout_ms: 1000,
            connections: 1,
            requests_max: 16_384,
            queue_bytes: 16 << 20,
            resolve_ms: 30_000,
            eject: false,
            failover: 0,
            failover_ttl: 10,
            replicas: 1,
            retry_deletes: true,
            forgotten_deletes: Forgotten::Flush,
            health: Health::default(),
            tls: None,
            auth: None,
        }
    }
}

/// What becomes of a server some of whose deletes have been forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgotten {
    /// It is emptied before it is asked for a key again.
    Flush,
    /// It is asked, and may answer what has been deleted or written elsewhere since.
    Serve,
}

/// When a server is taken for down, and how it comes back.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// Failures in a row that are enough.
    pub failures: u32,
    /// Or this share of the requests of a second ...
    pub failure_share: f32,
    /// ... if there were as many as this.
    pub failure_sample: u32,
    /// Between probes.
    pub probe_ms: u64,
    /// An unanswered probe fails after this.
    pub probe_timeout_ms: u64,
    /// Each wait is longer or shorter by up to this share.
    pub jitter: f32,
    /// Good probes in a row that let a server come back.
    pub good_probes: u32,
    /// The share of keys a server gets at first ...
    pub half_open_share: f32,
    /// ... and for how long.
    pub half_open_ms: u64,
    /// Going down this often ...
    pub flaps: u32,
    /// ... within this time doubles the wait before it is probed ...
    pub flap_window_ms: u64,
    /// ... up to this.
    pub backoff_max_ms: u64,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            failures: 3,
            failure_share: 0.5,
            failure_sample: 20,
            probe_ms: 1000,
            probe_timeout_ms: 1000,
            jitter: 0.1,
            good_probes: 2,
            half_open_share: 0.1,
            half_open_ms: 5000,
            flaps: 3,
            flap_window_ms: 60_000,
            backoff_max_ms: 60_000,
        }
    }
}

/// TLS towards the servers of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolTls {
    /// Whose signature servers must show; `None` is the system's.
    pub ca: Option<PathBuf>,
    /// Shown to servers that ask, with `key`.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The name in the server's certificate, where it is not the host.
    pub server_name: Option<String>,
    /// `false` takes any certificate.
    pub verify: bool,
}

/// How the proxy authenticates itself to servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolAuth {
    pub user: String,
    /// Its first line is the password.
    pub password_file: PathBuf,
}

/// Bounds of the whole process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Requests of one client that wait for answers; beyond, nothing more is read from it.
    pub client_requests: usize,
    /// Bytes of answers that wait for one client to read them.
    pub client_bytes: usize,
    /// Bytes queued for all servers together.
    pub queue_bytes: usize,
    /// The longest value that is forwarded.
    pub value_bytes: u64,
    /// Keys of deletes remembered per server that is down.
    pub deletes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            client_requests: 16_384,
            client_bytes: 1 << 20,
            queue_bytes: 256 << 20,
            value_bytes: 1 << 30,
            deletes: 65_536,
        }
    }
}

/// Keys that are asked for far more often than others.
#[derive(Debug, Clone, PartialEq)]
pub struct HotKeys {
    pub enabled: bool,
    /// A key is hot with this many reads a second, each worker seeing its part of them, ...
    pub reads_per_second: u32,
    /// ... that are also more than this share of all reads; 0 is a sixteenth of a server's
    /// share.
    pub share: f32,
    /// How long an answer is given again; 0 is never.
    pub cache_ms: u64,
    /// The largest value that is kept.
    pub cache_value_bytes: usize,
    /// Values kept per worker.
    pub cache_entries: usize,
    /// Servers among which reads of a key are spread that is hot beyond that; 1 is none.
    pub spread: usize,
    /// Seconds: the longest life of a copy on a server that is not the key's own.
    pub spread_ttl: u32,
}

impl Default for HotKeys {
    fn default() -> HotKeys {
        HotKeys {
            enabled: true,
            reads_per_second: 1000,
            share: 0.0,
            cache_ms: 100,
            cache_value_bytes: 64 << 10,
            cache_entries: 1024,
            spread: 8,
            spread_ttl: 2,
        }
    }
}

impl Proxy {
    /// One pool, and every request goes to it.
    pub fn of_pool(pool: Pool) -> Proxy {
        Proxy {
            listeners: Vec::new(),
            pools: vec![pool],
            routes: vec![Route::Pool { pool: 0 }],
            root: 0,
            limits: Limits::default(),
            hot_keys: HotKeys::default(),
            flush_all: true,
        }
    }

    /// What `--servers a:11211,b:11211:2` asks for: one pool named `servers`.
    ///
    /// # Errors
    /// An entry that is no server, or none at all. The field is `--servers`.
    pub fn of_servers(list: &str, scheme: Scheme) -> Result<Proxy, ConfigError> {
        let refused = |message| ConfigError {
            line: None,
            field: "--servers".to_owned(),
            message,
        };
        let mut pool = Pool::new("servers");
        pool.scheme = scheme;
        for entry in list.split(',').map(str::trim) {
            pool.servers.push(Server::parse(entry).map_err(refused)?);
        }
        server::distinct(&pool.servers).map_err(|(_, message)| refused(message))?;
        pool.scheme.fit(&pool.servers);
        if let Some((_, message)) = pool.scheme.refusal(&pool.servers) {
            return Err(refused(message));
        }
        Ok(Proxy::of_pool(pool))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_from_the_command_line() {
        let proxy = Proxy::of_servers("a:11211, b:11212:2,/run/c.sock", Scheme::default()).unwrap();
        let servers = &proxy.pools[0].servers;
        assert_eq!(servers.len(), 3);
        assert_eq!(servers[0].address, Address::tcp("a", 11211));
        assert_eq!(servers[1].weight, 2);
        assert_eq!(servers[2].address, Address::Unix("/run/c.sock".into()));

        let refused = |list| Proxy::of_servers(list, Scheme::default()).unwrap_err();
        assert_eq!(
            refused("a,,b").to_string(),
            "--servers: a server is missing between two commas"
        );
        assert_eq!(refused("a,a:11211").field, "--servers");
    }
}
