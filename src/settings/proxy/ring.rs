#![forbid(unsafe_code)]
//! How keys are spread over the servers of a pool.

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
