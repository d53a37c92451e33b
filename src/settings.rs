#![forbid(unsafe_code)]
//! Every option as plain data, in groups: one group per module that reads it.
//!
//! `cli` fills these in from the command line; nothing else knows how an option was spelt. What
//! can change while the server runs is not kept here: its owner keeps an atomic and starts it
//! from the value found here.

pub mod proxy;

use std::fmt;
use std::path::PathBuf;

/// The version on the wire: what clients parse, and what Larder is compatible with.
pub const MEMCACHED_VERSION: &str = "1.6.45";

/// Larder's own version, shown by `-V` on its second line and by `stats` as `larder_version`.
pub const LARDER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The longest key, as memcached has it, and the longest that can be asked for instead.
pub const KEY_MAX: usize = 250;
pub const KEY_LONGEST: usize = 8 << 20;

#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub process: Process,
    pub listen: Listen,
    pub server: Server,
    pub store: Store,
    pub security: Security,
    pub tls: Tls,
    pub watch: Watch,
    pub replication: Replication,
    /// `larder proxy`: serve other servers' items instead of own ones.
    pub proxy: Option<proxy::Mode>,
    /// Options that are parsed, checked and shown by `stats settings`, and that change nothing.
    pub inert: Inert,
}

/// How the process lives: who it runs as, where it writes its pid, what it may use.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// `-d`
    pub daemonize: bool,
    /// `-u`
    pub user: Option<String>,
    /// `-P`
    pub pid_file: Option<PathBuf>,
    /// `-r`
    pub core_dumps: bool,
    /// `-k`
    pub lock_memory: bool,
    /// `-v`, counted
    pub verbosity: u8,
    /// `-o drop_privileges`
    pub drop_privileges: bool,
    /// `MEMCACHED_PORT_FILENAME`
    pub port_file: Option<PathBuf>,
}

/// Where to listen.
#[derive(Debug, Clone)]
pub struct Listen {
    /// `-p`: 0 is none, -1 is chosen by the kernel.
    pub tcp_port: i32,
    /// `-U`: 0 is none, -1 is chosen by the kernel.
    pub udp_port: i32,
    /// `-l`, as the user joined it with commas; `None` shows as `NULL` in `stats settings`.
    pub interfaces: Option<String>,
    /// `-l`, taken apart. Empty means every address.
    pub endpoints: Vec<Endpoint>,
    /// `-s`: instead of TCP and UDP.
    pub unix_socket: Option<PathBuf>,
    /// `-a`: the mode of the socket, 0o700 by default.
    pub unix_mask: u32,
    /// `-b`
    pub backlog: i32,
    /// `-B`
    pub protocol: Protocol,
    /// Look for sockets that the service manager has opened (`LISTEN_FDS`); set for the program.
    pub inherit: bool,
    /// `-o udp_public`: allow UDP on addresses that are not loopback (Larder's own).
    pub udp_public: bool,
}

impl Default for Listen {
    fn default() -> Listen {
        Listen {
            tcp_port: 11211,
            udp_port: 0,
            interfaces: None,
            endpoints: Vec::new(),
            unix_socket: None,
            unix_mask: 0o700,
            backlog: 1024,
            protocol: Protocol::Negotiate,
            inherit: false,
            udp_public: false,
        }
    }
}

/// One entry of `-l`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// `None` is every address (`*`).
    pub host: Option<String>,
    /// `None` means the port of `-p`.
    pub port: Option<u16>,
    /// `proto[...]`; `None` means the protocol of `-B`.
    pub protocol: Option<Protocol>,
    pub tls: EndpointTls,
    /// `tag[...]`, 1 to 8 bytes.
    pub tag: Option<String>,
    /// `ack[...]`: when mutations of its clients are answered, unless their keys say.
    pub ack: Option<Ack>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndpointTls {
    /// As `-Z` says.
    #[default]
    Default,
    /// `notls:`
    Plain,
    /// `btls:`: TLS, no client certificate asked.
    Basic,
    /// `mtls:`: TLS, client certificate required.
    Mutual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// The first byte of a connection decides.
    #[default]
    Negotiate,
    Ascii,
    Binary,
}

impl Protocol {
    /// As `stats settings` and the log call a listener's.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Negotiate => "auto-negotiate",
            Protocol::Ascii => "ascii",
            Protocol::Binary => "binary",
        }
    }
}

impl fmt::Display for Protocol {
    /// As the logs call a connection.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Negotiate => "auto-negotiating",
            Protocol::Ascii => "ascii",
            Protocol::Binary => "binary",
        })
    }
}

/// Threads and connections.
#[derive(Debug, Clone)]
pub struct Server {
    /// `-t`
    pub threads: usize,
    /// `-c`
    pub max_connections: usize,
    /// `-o maxconns_fast`: tell a client over the limit and close; else stop accepting.
    pub maxconns_fast: bool,
    /// `-R`
    pub requests_per_event: usize,
    /// `-o idle_timeout`, seconds; 0 is never.
    pub idle_timeout: u32,
    /// `-o read_buf_mem_limit`, bytes that unfinished commands and replies not taken may have; 0 is no
    /// limit. Each worker has its share; who goes beyond it is hung up on.
    pub read_buffer_limit: usize,
    /// Bytes of replies that may wait for one client before the server stops reading from it.
    pub reply_limit: usize,
}

impl Default for Server {
    fn default() -> Server {
        Server {
            threads: 4,
            max_connections: 1024,
            maxconns_fast: true,
            requests_per_event: 20,
            idle_timeout: 0,
            read_buffer_limit: 0,
            reply_limit: 1 << 20,
        }
    }
}

/// The store.
#[derive(Debug, Clone)]
pub struct Store {
    /// `-m`, bytes.
    pub max_bytes: u64,
    /// `-M` turns this off.
    pub evict: bool,
    /// `-C` turns this off.
    pub cas: bool,
    /// `-f`
    pub growth_factor: f64,
    /// `-n`
    pub chunk_size: usize,
    /// `-I`, bytes.
    pub item_size_max: usize,
    /// `-o slab_chunk_max`, bytes.
    pub slab_chunk_max: usize,
    /// `-o slab_sizes`, chunk sizes in bytes; empty means `growth_factor` decides.
    pub slab_sizes: Vec<usize>,
    /// `-L`
    pub large_pages: bool,
    /// `-e`
    pub memory_file: Option<PathBuf>,
    /// `-o verify`
    pub verify: Verify,
    /// `-o scrub_rate`, bytes per second.
    pub scrub_rate: u64,
    /// `-o total_memory`
    pub total_memory: Option<TotalMemory>,
    /// `-o long_ttl`
    pub long_ttl: bool,
    /// `-o max_key_size`, bytes; at least [`KEY_MAX`].
    pub key_max: usize,
    /// `-o crash_restart`
    pub crash_restart: bool,
    /// `-o hashpower`; 0 means the default start size.
    pub hash_power: u32,
    /// `-o no_hashexpand` turns this off.
    pub hash_expand: bool,
    /// `-o hash_algorithm`; `None` means keyed with a random seed.
    pub hash_algorithm: Option<HashAlgorithm>,
    /// `-o slab_reassign`
    pub slab_reassign: bool,
    /// `-o slab_automove`: 0, 1 or 2.
    pub slab_automove: u32,
    pub slab_automove_ratio: f64,
    pub slab_automove_window: u32,
    /// `-o lru_maintainer`; without it the LRU is flat.
    pub lru_maintainer: bool,
    /// `-o lru_crawler`
    pub lru_crawler: bool,
    /// `-o lru_crawler_sleep`, microseconds.
    pub lru_crawler_sleep: u32,
    /// `-o lru_crawler_tocrawl`; 0 is no limit.
    pub lru_crawler_tocrawl: u32,
    /// `-o temporary_ttl`
    pub temporary_ttl: Option<u32>,
    /// `-o track_sizes`
    pub track_sizes: bool,
    pub hot_lru_pct: u32,
    pub warm_lru_pct: u32,
    pub hot_max_factor: f64,
    pub warm_max_factor: f64,
    /// `-F` turns this off.
    pub flush_enabled: bool,
    /// `-X` turns this off.
    pub dump_enabled: bool,
    /// `-D`
    pub prefix_delimiter: u8,
    /// `stats detail on` from the start (`-D` given).
    pub detail: bool,
    /// Mutations are logged, for copies.
    pub journal: Option<Journal>,
    /// Bytes of the memory limit that count as taken from the start: what memcached's tests pretend
    /// with `T_MEMD_INITIAL_MALLOC`, in builds with the commands for tests.
    pub taken: u64,
}

/// Copies on other nodes.
#[derive(Debug, Clone)]
pub struct Replication {
    /// `--repl-listen`: where copies connect to, `host:port`.
    pub listen: Option<String>,
    /// `--follow`: whom to copy, `host:port`.
    pub follow: Option<String>,
    /// What is in the file of `--repl-secret-file`.
    pub secret: Option<Vec<u8>>,
    /// `--repl-tls-cert`, `--repl-tls-key`, `--repl-tls-ca`
    pub tls: Option<PeerTls>,
    /// `--repl-cluster`: nodes of another name are refused.
    pub cluster: String,
    /// `--repl-ack`
    pub ack: Ack,
    /// `--repl-ack-prefix`: other levels, for keys that begin so. The longest prefix counts.
    pub ack_prefixes: Vec<(Vec<u8>, Ack)>,
    /// `--repl-ack-timeout`, milliseconds.
    pub ack_timeout_ms: u64,
    /// `--repl-ack-policy=fail`: whoever waits too long is refused.
    pub ack_refuses: bool,
    /// `--repl-min-isr`: so many have to be in sync, the leader among them, for what is agreed upon by
    /// two-phase commit to be taken.
    pub min_isr: u8,
    /// `--repl-backpressure`
    pub backpressure: Backpressure,
    /// `--repl-recover`: how long a leader that starts empty waits for a copy that is not, milliseconds.
    pub recover_ms: u64,
    /// `--repl-scrub`: how often values are compared, seconds; 0 is never.
    pub scrub_seconds: u64,
    /// `--follower-writes=forward`: mutations that come to a follower go to its leader.
    pub forwards: bool,
    /// How the leader is entered for that.
    pub forwarding: Forwarding,
    /// `--etcd`: who leads is decided there.
    pub election: Option<Election>,
}

/// How a follower enters its leader as a client, where that is not as its own clients enter it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forwarding {
    /// `--forward-tls`: nothing is as on this node's listeners.
    pub tls: Option<bool>,
    /// `--forward-tls-ca`: who must have signed the leader's certificate; `ssl_ca_cert` if there is none.
    pub ca: Option<PathBuf>,
    /// `--forward-tls-name`: whom it must be of.
    pub name: Option<String>,
    /// `--forward-user-file`: holds `user:password`; the first of this node's own users if there is none.
    pub user_file: Option<PathBuf>,
}

/// A node among those that a leader is chosen from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Election {
    pub etcd: Etcd,
    /// `--node`: a name that no other node of the cluster has.
    pub node: String,
    /// `--group`: nodes that hold the same keys.
    pub group: String,
    /// `--advertise`: where clients connect to, `host:port`; the first listener if there is none.
    pub advertise: Option<String>,
    /// `--repl-advertise`: where followers connect to, if that is not where the node listens.
    pub repl_advertise: Option<String>,
    /// `--etcd-ttl`, milliseconds: how long after a leader's death another may lead.
    pub ttl_ms: u64,
}

/// How etcd is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Etcd {
    /// URLs without a path, at least one.
    pub endpoints: Vec<String>,
    /// Whose certificates are believed; `None` is the well-known authorities.
    pub ca: Option<PathBuf>,
    /// Shown to etcd: certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Holds `user:password`.
    pub user_file: Option<PathBuf>,
}

impl Default for Replication {
    fn default() -> Replication {
        Replication {
            listen: None,
            follow: None,
            secret: None,
            tls: None,
            cluster: "larder".to_owned(),
            ack: Ack::Async,
            ack_prefixes: Vec::new(),
            ack_timeout_ms: 500,
            ack_refuses: false,
            min_isr: 1,
            backpressure: Backpressure::Off,
            recover_ms: 10_000,
            scrub_seconds: 0,
            forwards: false,
            forwarding: Forwarding::default(),
            election: None,
        }
    }
}

/// TLS between nodes, each of which shows a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Whose signature the other side's certificate must bear.
    pub ca: PathBuf,
    /// `--repl-tls-name`: the name in the leader's certificate; that of `--follow` if there is none.
    pub name: Option<String>,
}

/// What happens to mutations when a copy in sync is about to fall off the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backpressure {
    /// Nothing: it falls off, and is compared later.
    #[default]
    Off,
    /// Whoever mutates waits.
    Delay,
    /// They are refused.
    Refuse,
}

/// When a mutation is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    /// When it is here.
    #[default]
    Async,
    /// When so many copies have it.
    Copies(u8),
    /// When all copies in sync have it, before anybody sees it.
    TwoPhase,
}

impl Settings {
    /// All levels that any mutation may have.
    pub fn levels(&self) -> impl Iterator<Item = Ack> {
        let prefixes = &self.replication.ack_prefixes;
        let listeners = self.listen.endpoints.iter().filter_map(|one| one.ack);
        std::iter::once(self.replication.ack)
            .chain(prefixes.iter().map(|(_, level)| *level))
            .chain(listeners)
    }
}

/// The log that copies are kept by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Journal {
    /// `--repl-ring`, bytes.
    pub ring_bytes: usize,
    /// It begins as a copy of somebody else's.
    pub follower: bool,
}

impl Default for Store {
    fn default() -> Store {
        Store {
            max_bytes: 64 << 20,
            evict: true,
            cas: true,
            growth_factor: 1.25,
            chunk_size: 48,
            item_size_max: 1 << 20,
            slab_chunk_max: 512 << 10,
            slab_sizes: Vec::new(),
            large_pages: false,
            memory_file: None,
            total_memory: None,
            long_ttl: false,
            key_max: KEY_MAX,
            crash_restart: false,
            verify: Verify::Scrub,
            scrub_rate: 32 << 20,
            hash_power: 0,
            hash_expand: true,
            hash_algorithm: None,
            slab_reassign: true,
            slab_automove: 1,
            slab_automove_ratio: 0.8,
            slab_automove_window: 10,
            lru_maintainer: true,
            lru_crawler: true,
            lru_crawler_sleep: 100,
            lru_crawler_tocrawl: 0,
            temporary_ttl: None,
            track_sizes: false,
            hot_lru_pct: 20,
            warm_lru_pct: 40,
            hot_max_factor: 0.2,
            warm_max_factor: 2.0,
            flush_enabled: true,
            dump_enabled: true,
            prefix_delimiter: b':',
            detail: false,
            journal: None,
            taken: 0,
        }
    }
}

/// What the whole process may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TotalMemory {
    Bytes(u64),
    /// What its control group may.
    Cgroup,
}

/// When values of 64 KiB or more are compared with their digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// They have none.
    Off,
    /// By the scrubber, and at every read.
    Read,
    /// By the scrubber.
    Scrub,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    Jenkins,
    Murmur3,
    Xxh3,
}

/// Who may do what.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// `-A`
    pub shutdown_command: bool,
    /// `-S`
    pub sasl: bool,
    /// `-Y`
    pub auth_file: Option<PathBuf>,
    /// `MEMCACHED_SASL_PWDB`
    pub sasl_password_file: Option<PathBuf>,
}

/// TLS on TCP listeners.
#[derive(Debug, Clone)]
pub struct Tls {
    /// `-Z`
    pub enabled: bool,
    pub chain_cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub ca_cert: Option<PathBuf>,
    /// 0 none, 1 request, 2 require, 3 once.
    pub verify_mode: u32,
    pub key_format: u32,
    pub ciphers: Option<String>,
    /// Bytes.
    pub write_buffer: usize,
    pub session_cache: bool,
    pub kernel_tls: bool,
    /// 0 to 3: TLS 1.0 to 1.3.
    pub min_version: u32,
}

impl Default for Tls {
    fn default() -> Tls {
        Tls {
            enabled: false,
            chain_cert: None,
            key: None,
            ca_cert: None,
            verify_mode: 0,
            key_format: 1,
            ciphers: None,
            write_buffer: 16 << 10,
            session_cache: false,
            kernel_tls: false,
            min_version: 2,
        }
    }
}

/// `watch` and its logs.
#[derive(Debug, Clone)]
pub struct Watch {
    /// `-W` turns this off.
    pub enabled: bool,
    /// Bytes.
    pub watcher_buffer: usize,
    /// Bytes.
    pub worker_buffer: usize,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch {
            enabled: true,
            watcher_buffer: 256 << 10,
            worker_buffer: 64 << 10,
        }
    }
}

/// Accepted for compatibility, shown, without effect.
#[derive(Debug, Clone, Default)]
pub struct Inert {
    pub tail_repair_time: u32,
    pub napi_ids: u32,
    pub sock_cookie_id: u32,
}
