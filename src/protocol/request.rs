#![forbid(unsafe_code)]
//! One request type for three dialects. Everything is borrowed from the input; nothing is copied.

/// What a parser made of the start of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A whole command line or header; it spans `taken` bytes. A value, if one belongs to it,
    /// follows and has [`Store::length`] bytes and the style's terminator. The keys of
    /// [`Op::Get`] follow likewise: they are pulled one by one with `text::next_key`.
    Request { request: Request<'a>, taken: usize },
    /// Nothing can be said before more bytes arrive.
    Incomplete,
    /// The request is wrong. Skip `taken + skip` bytes (the latter may not have arrived yet), then
    /// send `reply`, then close if `close` says so.
    Refused {
        reply: Refusal,
        taken: usize,
        skip: u64,
        close: bool,
    },
    /// Hang up without a word.
    Close,
}

/// What a refused request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `noreply` asked for silence, and the rule grants it.
    Silent,
    /// A line of text or meta, without its CRLF.
    Line(&'static str),
    /// A binary error packet.
    Binary {
        opcode: u8,
        opaque: u32,
        status: u16,
        text: &'static str,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    pub op: Op<'a>,
    pub style: Style<'a>,
}

/// How the reply has to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style<'a> {
    Text {
        noreply: bool,
    },
    Meta {
        /// The flags of the request line, to be echoed in their order.
        flags: &'a [u8],
        /// `q`
        quiet: bool,
    },
    Binary {
        opcode: u8,
        opaque: u32,
        quiet: bool,
    },
}

/// A key as it stands in the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<'a> {
    /// The bytes on the wire.
    pub raw: &'a [u8],
    /// Meta flag `b`: `raw` is base64, already found to be valid.
    pub base64: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op<'a> {
    /// `get gets gat gats`: any number of keys follow in the input.
    Get {
        /// Show the CAS (`gets`, `gats`).
        cas: bool,
        /// `gat`, `gats`: the new expiry time.
        touch: Option<i64>,
    },
    /// `mg`, and the binary gets and touches: one key.
    Fetch(Fetch<'a>),
    Store(Store<'a>),
    Delete(Delete<'a>),
    Arith(Arith<'a>),
    /// `touch`
    Touch {
        key: Key<'a>,
        exptime: i64,
    },
    /// `me`
    Describe {
        key: Key<'a>,
    },
    /// `lease-get`, of mcrouter: a read whose miss hands out the right to store.
    LeaseGet {
        key: Key<'a>,
    },
    /// `metaget`, of mcrouter.
    MetaGet {
        key: Key<'a>,
    },
    /// `mn`, binary NOOP: also flushes what waits.
    Noop,
    Version,
    Quit,
    FlushAll {
        /// `None`: it is no number. That is for the one who knows whether flushing is allowed to say.
        exptime: Option<i64>,
    },
    Verbosity {
        level: u32,
    },
    Shutdown(Shutdown),
    CacheMemlimit {
        megabytes: u64,
    },
    /// The words behind `stats`; binary STAT's key.
    Stats {
        words: &'a [u8],
    },
    /// The words behind `lru`, `lru_crawler`, `slabs`, `watch`, `debugtime`, ...
    Lru {
        words: &'a [u8],
    },
    LruCrawler {
        words: &'a [u8],
    },
    Slabs {
        words: &'a [u8],
    },
    Repl {
        words: &'a [u8],
    },
    Watch {
        words: &'a [u8],
    },
    Extstore {
        words: &'a [u8],
    },
    RefreshCerts,
    /// Commands of the test build.
    DebugTime {
        words: &'a [u8],
    },
    DebugItem {
        words: &'a [u8],
    },
    Misbehave,
    SaslListMechanisms,
    /// The credentials follow as a value of `length` bytes.
    SaslAuth {
        mechanism: &'a [u8],
        length: usize,
    },
    SaslStep {
        mechanism: &'a [u8],
        length: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    Now,
    Graceful,
    /// Neither: `CLIENT_ERROR invalid shutdown mode`.
    Invalid,
}

/// One key read, perhaps touched, perhaps created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch<'a> {
    pub key: Key<'a>,
    /// The value is wanted (`v`, binary GET).
    pub value: bool,
    /// `T`, GAT, TOUCH
    pub touch: Option<i64>,
    /// `N`: create an empty item on a miss, with this expiry.
    pub vivify: Option<i64>,
    /// `R`: win the right to recache if less than this is left.
    pub recache: Option<i64>,
    /// `C`: leave the value away if the CAS is this.
    pub known_cas: Option<u64>,
    /// `E`
    pub new_cas: Option<u64>,
    /// `u` clears it.
    pub bump: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Set,
    Add,
    Replace,
    Append,
    Prepend,
}

/// A value to be kept; it follows in the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store<'a> {
    pub key: Key<'a>,
    pub mode: Mode,
    /// Bytes of the value, without a terminator.
    pub length: usize,
    pub flags: u32,
    pub exptime: i64,
    /// Store only over an item with this CAS (`cas`, `C`, binary CAS).
    pub cas: Option<u64>,
    /// `E`
    pub new_cas: Option<u64>,
    /// `I`
    pub invalidate: bool,
    /// `N` with append and prepend.
    pub vivify: Option<i64>,
    /// `lease-set`: the token of the lease to store with.
    pub lease: Option<u64>,
}

impl<'a> Store<'a> {
    /// Without flags, for ever, on no condition.
    #[inline(always)]
    pub fn new(key: Key<'a>, mode: Mode, length: usize) -> Store<'a> {
        Store {
            key,
            mode,
            length,
            flags: 0,
            exptime: 0,
            cas: None,
            new_cas: None,
            invalidate: false,
            vivify: None,
            lease: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete<'a> {
    pub key: Key<'a>,
    pub cas: Option<u64>,
    pub new_cas: Option<u64>,
    /// `I`: mark stale and keep.
    pub stale: bool,
    /// `x`: keep the item, drop its value.
    pub drop_value: bool,
    /// `T`, where `stale` or `drop_value` keeps the item.
    pub touch: Option<i64>,
    /// `F`, with `drop_value`.
    pub flags: u32,
}

impl<'a> Delete<'a> {
    /// On no condition, and nothing is kept.
    #[inline(always)]
    pub fn new(key: Key<'a>) -> Delete<'a> {
        Delete {
            key,
            cas: None,
            new_cas: None,
            stale: false,
            drop_value: false,
            touch: None,
            flags: 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arith<'a> {
    pub key: Key<'a>,
    pub up: bool,
    pub delta: u64,
    pub cas: Option<u64>,
    pub new_cas: Option<u64>,
    /// `T`
    pub touch: Option<i64>,
    /// `N` and `J`, binary initial value and expiry: create on a miss.
    pub create: Option<Create>,
}

impl<'a> Arith<'a> {
    /// On no condition, and only what is there.
    #[inline(always)]
    pub fn new(key: Key<'a>, up: bool, delta: u64) -> Arith<'a> {
        Arith {
            key,
            up,
            delta,
            cas: None,
            new_cas: None,
            touch: None,
            create: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Create {
    pub initial: u64,
    pub exptime: i64,
}
