#![forbid(unsafe_code)]
//! How keys are spread over the servers of a pool.

use super::Server;

/// Servers in a pool.
pub const SERVERS_MAX: usize = 1024;
/// Points in a ring, those of all its servers together.
pub const POINTS_MAX: usize = 1 << 20;

/// How keys are spread over the servers of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scheme {
    pub kind: RingKind,
    /// `None` is the one that belongs to the ring.
    pub key_hash: Option<KeyHash>,
    /// What of a key is hashed.
    pub part: KeyPart,
    /// Seeds xxh3 with the hash of this text; empty is seed 0.
    pub seed: String,
}

impl Scheme {
    /// spymemcached has weights or has none, whatever they are: here, when one is not 1.
    pub(super) fn fit(&mut self, servers: &[Server]) {
        if let RingKind::Spymemcached { weighted, .. } = &mut self.kind {
            *weighted = servers.iter().any(|server| server.weight > 1);
        }
    }

    /// Whether the ring depends on what the servers' names resolve to.
    pub fn needs_addresses(&self) -> bool {
        let labels = SpyLabels::Spy;
        matches!(self.kind, RingKind::Spymemcached { labels: found, .. } if found == labels)
    }

    /// Why these servers cannot make this ring: the place of one in the list, and what to say.
    pub(super) fn refusal(&self, servers: &[Server]) -> Option<(usize, String)> {
        let last = servers.len().saturating_sub(1);
        if servers.len() > SERVERS_MAX {
            return Some((last, format!("there are more than {SERVERS_MAX} servers")));
        }
        if !self.kind.takes_weights()
            && let Some(at) = servers.iter().position(|server| server.weight > 1)
        {
            return Some((at, "this ring has no weights".to_owned()));
        }
        let points = match self.kind {
            RingKind::McproxyRing { points, .. } => u64::from(points) * servers.len() as u64,
            RingKind::TwemproxyModula => {
                servers.iter().map(|server| u64::from(server.weight)).sum()
            }
            _ => 0,
        };
        (points > POINTS_MAX as u64).then(|| {
            (
                last,
                format!("{points} points in one ring; at most {POINTS_MAX}"),
            )
        })
    }
}

/// Which program's placement of keys is followed, to the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RingKind {
    /// libmemcached with `KETAMA_WEIGHTED`, what most clients call ketama.
    #[default]
    Libketama,
    /// libmemcached with `KETAMA`: 100 points by the key's hash, or the weighted ring with the
    /// default key hash where a weight is above 1.
    LibmemcachedKetama,
    /// libmemcached without consistent hashing.
    Modula,
    Twemproxy,
    TwemproxyModula,
    /// The ring of memcached's own proxy: so many points per server (its `obuckets`).
    McproxyRing {
        labels: McproxyLabels,
        points: u32,
    },
    /// `weighted`: with a map of weights, whatever they are.
    Spymemcached {
        labels: SpyLabels,
        weighted: bool,
    },
    /// The original ketama library.
    Rj,
    /// memcached's own proxy, as it comes.
    Jump,
    /// mcrouter, as it comes.
    Ch3,
}

impl RingKind {
    /// The names in the configuration, each with the ring in its usual form.
    pub const NAMES: [(&str, RingKind); 14] = [
        ("libketama", RingKind::Libketama),
        ("libmemcached", RingKind::LibmemcachedKetama),
        ("modula", RingKind::Modula),
        ("twemproxy", RingKind::Twemproxy),
        ("twemproxy-modula", RingKind::TwemproxyModula),
        ("mcproxy-ketama", mcproxy(McproxyLabels::Ketama)),
        ("mcproxy-default", mcproxy(McproxyLabels::Default)),
        ("mcproxy-twemproxy", mcproxy(McproxyLabels::Twemproxy)),
        ("mcproxy-evcache", mcproxy(McproxyLabels::Evcache)),
        ("spymemcached", spymemcached(SpyLabels::Spy)),
        ("spymemcached-lib", spymemcached(SpyLabels::Libmemcached)),
        ("rj", RingKind::Rj),
        ("jump", RingKind::Jump),
        ("ch3", RingKind::Ch3),
    ];

    /// Whether another key hash can be chosen.
    pub fn takes_hash(self) -> bool {
        !matches!(self, RingKind::Jump | RingKind::Ch3)
    }

    /// Whether weights count.
    pub fn takes_weights(self) -> bool {
        !matches!(
            self,
            RingKind::Jump | RingKind::Ch3 | RingKind::Modula | RingKind::McproxyRing { .. }
        )
    }
}

const fn mcproxy(labels: McproxyLabels) -> RingKind {
    RingKind::McproxyRing {
        labels,
        points: 160,
    }
}

const fn spymemcached(labels: SpyLabels) -> RingKind {
    RingKind::Spymemcached {
        labels,
        weighted: false,
    }
}

/// What memcached's proxy calls `omode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum McproxyLabels {
    /// `host:port`, one xxh3 point per label.
    Default,
    /// `host:port`
    #[default]
    Ketama,
    /// `host:port`, or `host` where the port is 11211.
    Twemproxy,
    /// `host/host:port`
    Evcache,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpyLabels {
    /// As Java prints a socket address: `host/address:port`, or `address:port`.
    #[default]
    Spy,
    /// `host:port`, or `host` where the port is 11211.
    Libmemcached,
}

/// The hash of a key on the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyHash {
    OneAtATime,
    Md5,
    Crc,
    Crc16,
    Crc32a,
    Fnv1_64,
    Fnv1a64,
    Fnv1_32,
    Fnv1a32,
    Hsieh,
    Murmur,
    Murmur3,
    Jenkins,
    Xxh3,
    Java(JavaHash),
}

/// spymemcached's own: the hashes of Java strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JavaHash {
    Native,
    Fnv1_32,
    Fnv1_64,
    Fnv1a32,
    Fnv1a64,
}

impl KeyHash {
    pub const ALL: [KeyHash; 19] = [
        KeyHash::OneAtATime,
        KeyHash::Md5,
        KeyHash::Crc,
        KeyHash::Crc16,
        KeyHash::Crc32a,
        KeyHash::Fnv1_64,
        KeyHash::Fnv1a64,
        KeyHash::Fnv1_32,
        KeyHash::Fnv1a32,
        KeyHash::Hsieh,
        KeyHash::Murmur,
        KeyHash::Murmur3,
        KeyHash::Jenkins,
        KeyHash::Xxh3,
        KeyHash::Java(JavaHash::Native),
        KeyHash::Java(JavaHash::Fnv1_32),
        KeyHash::Java(JavaHash::Fnv1_64),
        KeyHash::Java(JavaHash::Fnv1a32),
        KeyHash::Java(JavaHash::Fnv1a64),
    ];

    /// The name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            KeyHash::OneAtATime => "one_at_a_time",
            KeyHash::Md5 => "md5",
            KeyHash::Crc => "crc32",
            KeyHash::Crc16 => "crc16",
            KeyHash::Crc32a => "crc32a",
            KeyHash::Fnv1_64 => "fnv1_64",
            KeyHash::Fnv1a64 => "fnv1a_64",
            KeyHash::Fnv1_32 => "fnv1_32",
            KeyHash::Fnv1a32 => "fnv1a_32",
            KeyHash::Hsieh => "hsieh",
            KeyHash::Murmur => "murmur",
            KeyHash::Murmur3 => "murmur3",
            KeyHash::Jenkins => "jenkins",
            KeyHash::Xxh3 => "xxh3",
            KeyHash::Java(JavaHash::Native) => "java_native",
            KeyHash::Java(JavaHash::Fnv1_32) => "java_fnv1_32",
            KeyHash::Java(JavaHash::Fnv1_64) => "java_fnv1_64",
            KeyHash::Java(JavaHash::Fnv1a32) => "java_fnv1a_32",
            KeyHash::Java(JavaHash::Fnv1a64) => "java_fnv1a_64",
        }
    }

    /// The hash a configuration names; `crc` and `ketama` are other words for `crc32` and `md5`.
    pub fn named(name: &str) -> Option<KeyHash> {
        match name {
            "crc" => Some(KeyHash::Crc),
            "ketama" => Some(KeyHash::Md5),
            "default" => Some(KeyHash::OneAtATime),
            name => KeyHash::ALL.into_iter().find(|hash| hash.name() == name),
        }
    }
}

/// What of a key is hashed, so that related keys meet on one server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum KeyPart {
    #[default]
    Whole,
    /// Between the first `open` and the next `close`, where a key has both.
    Tag {
        open: u8,
        close: u8,
        /// Nothing between them: twemproxy then hashes the whole key, memcached's proxy nothing.
        empty: EmptyTag,
    },
    /// What precedes the marker, where a key has it.
    Before(Vec<u8>),
    /// What follows this beginning, where a key has it: libmemcached leaves the namespace out.
    After(Vec<u8>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EmptyTag {
    #[default]
    Whole,
    Nothing,
}
