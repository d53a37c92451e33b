//! Items in memory: what every command means, for one key at a time.
//!
//! (skeleton: signatures that the layers above build on)

pub mod classes;

use crate::observe::ThreadCounters;
use crate::settings;

/// Limits, tuning, pages, the crawler, dumps, numbers.
pub mod control;

/// What an operation needs to know of the thread that calls it.
#[derive(Debug, Clone, Copy)]
pub struct Cx<'a> {
    /// Seconds on the server's clock.
    pub now: u32,
    pub counters: &'a ThreadCounters,
}

/// Values up to this many bytes are shown as one slice under the lock; longer ones are pinned.
pub const COPY_MAX: usize = 4096;

/// All items. Shared by reference (`Arc<Store>`) between threads.
pub struct Store {}

/// Why there is nothing to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    NotFound,
    Expired,
    Flushed,
    /// `Fetch::vivify` found no memory.
    NoMemory,
}

/// The queue an item was in when it was hit, as `stats items` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    Hot,
    Warm,
    Cold,
    Temp,
}

/// An item found, seen under its lock: what it held before this request touched it.
pub struct Hit<'g> {
    marker: std::marker::PhantomData<&'g u8>,
}

impl<'g> Hit<'g> {
    pub fn key(&self) -> &'g [u8] {
        unimplemented!()
    }
    /// Client flags.
    pub fn flags(&self) -> u32 {
        unimplemented!()
    }
    /// Bytes of the value.
    pub fn length(&self) -> usize {
        unimplemented!()
    }
    /// 0 with `-C`.
    pub fn cas(&self) -> u64 {
        unimplemented!()
    }
    /// When it expires, on the server's clock; 0 is never. As it was before a touch.
    pub fn expires(&self) -> u32 {
        unimplemented!()
    }
    /// When it expires after this request.
    pub fn expires_now(&self) -> u32 {
        unimplemented!()
    }
    /// When it was last accessed before this request.
    pub fn accessed(&self) -> u32 {
        unimplemented!()
    }
    /// It had been fetched before this request.
    pub fn fetched(&self) -> bool {
        unimplemented!()
    }
    /// Slab class, 1 to 63.
    pub fn class(&self) -> u8 {
        unimplemented!()
    }
    pub fn queue(&self) -> Queue {
        unimplemented!()
    }
    /// Its size as memcached would count it.
    pub fn size(&self) -> usize {
        unimplemented!()
    }
    /// The key came as base64 (meta flag `b`).
    pub fn binary_key(&self) -> bool {
        unimplemented!()
    }
    /// This request may recache (`W`).
    pub fn won(&self) -> bool {
        unimplemented!()
    }
    /// It is stale (`X`).
    pub fn stale(&self) -> bool {
        unimplemented!()
    }
    /// Another request may recache already (`Z`).
    pub fn token_sent(&self) -> bool {
        unimplemented!()
    }
    /// The value, if it has at most [`COPY_MAX`] bytes.
    pub fn inline(&self) -> Option<&'g [u8]> {
        unimplemented!()
    }
    /// Holds the value in place until the pin is dropped; meant for values over [`COPY_MAX`].
    pub fn pin(&self) -> Pin {
        unimplemented!()
    }
}

/// A value held in place after its lock is gone, however long sending it takes.
pub struct Pin {}

impl Pin {
    pub fn length(&self) -> usize {
        unimplemented!()
    }
    /// The longest contiguous run of value bytes that begins at `offset`; empty at the end.
    pub fn slice(&self, _offset: usize) -> &[u8] {
        unimplemented!()
    }
}

/// How to fetch; expiry times are on the server's clock (`Clock::expiry`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Fetch {
    pub touch: Option<u32>,
    pub vivify: Option<u32>,
    /// Seconds left below which the reader may win.
    pub recache: Option<u32>,
    pub new_cas: Option<u64>,
    /// Do not count as an access (`u`, `me`).
    pub quiet: bool,
    /// Stale items and tokens matter (meta); classic reads leave them alone.
    pub leases: bool,
    /// Mark a vivified item's key as base64.
    pub binary_key: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Set,
    Add,
    Replace,
    Append,
    Prepend,
}

/// What to store, all but the value.
#[derive(Debug, Clone, Copy)]
pub struct Put<'a> {
    pub key: &'a [u8],
    pub hash: u64,
    pub mode: Mode,
    pub flags: u32,
    /// On the server's clock.
    pub expires: u32,
    pub cas: Option<u64>,
    pub new_cas: Option<u64>,
    pub invalidate: bool,
    pub vivify: Option<u32>,
    pub binary_key: bool,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// With its new CAS (0 with `-C`), slab class and length of the value now held.
    Stored {
        cas: u64,
        class: u8,
        length: usize,
    },
    NotStored,
    Exists,
    NotFound,
    TooLarge,
    NoMemory,
}

/// Memory for a value that is still arriving; nobody sees it before [`Store::finish`], and
/// dropping it gives the memory back.
pub struct Upload {}

impl Upload {
    /// Where the next bytes go; empty when the value is whole.
    pub fn spare(&mut self) -> &mut [u8] {
        unimplemented!()
    }
    /// `n` bytes of `spare` have been filled.
    pub fn advance(&mut self, _n: usize) {
        unimplemented!()
    }
    /// Bytes still missing.
    pub fn missing(&self) -> usize {
        unimplemented!()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    TooLarge,
    NoMemory,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Delete {
    pub cas: Option<u64>,
    pub new_cas: Option<u64>,
    pub stale: bool,
    pub drop_value: bool,
    pub touch: Option<u32>,
    pub flags: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// Gone (or made stale), and what it was: slab class and memcached size.
    Deleted {
        class: u8,
        size: usize,
    },
    NotFound,
    Exists,
}

#[derive(Debug, Clone, Copy)]
pub struct Arith {
    pub up: bool,
    pub delta: u64,
    pub cas: Option<u64>,
    pub new_cas: Option<u64>,
    pub touch: Option<u32>,
    /// Create with this value and expiry on a miss.
    pub create: Option<(u64, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    Number {
        value: u64,
        cas: u64,
        expires: u32,
        class: u8,
        created: bool,
    },
    NotFound,
    NonNumeric,
    Exists,
    NotStored,
    NoMemory,
}

impl Store {
    pub fn new(_settings: &settings::Store) -> Result<Store, String> {
        unimplemented!()
    }

    /// The hash of a key; every operation wants it, so that a batch can prefetch.
    pub fn hash(&self, _key: &[u8]) -> u64 {
        unimplemented!()
    }
    /// First pass of a batch: asks for the bucket's cache line.
    pub fn prefetch(&self, _hash: u64) {
        unimplemented!()
    }
    /// Second pass: asks for the lines of the items whose tag matches.
    pub fn prefetch_items(&self, _hash: u64) {
        unimplemented!()
    }

    /// Classic read. `read` runs under the lock: it copies and returns.
    pub fn get<R>(
        &self,
        _cx: Cx<'_>,
        _key: &[u8],
        _hash: u64,
        _read: impl FnOnce(&Hit<'_>) -> R,
    ) -> Result<R, Miss> {
        unimplemented!()
    }
    /// Read with conditions.
    pub fn fetch<R>(
        &self,
        _cx: Cx<'_>,
        _key: &[u8],
        _hash: u64,
        _how: &Fetch,
        _read: impl FnOnce(&Hit<'_>) -> R,
    ) -> Result<R, Miss> {
        unimplemented!()
    }
    /// Stores a value that is at hand. On `TooLarge` and `NoMemory` nothing has changed: the caller
    /// decides whether the old item goes.
    pub fn put(&self, _cx: Cx<'_>, _put: &Put<'_>, _value: &[u8]) -> Stored {
        unimplemented!()
    }
    /// Memory for a value of `length` bytes that will arrive piece by piece.
    pub fn begin(&self, _cx: Cx<'_>, _put: &Put<'_>, _length: usize) -> Result<Upload, Refused> {
        unimplemented!()
    }
    /// Links an upload whose bytes have all arrived.
    pub fn finish(&self, _cx: Cx<'_>, _put: &Put<'_>, _upload: Upload) -> Stored {
        unimplemented!()
    }
    pub fn delete(&self, _cx: Cx<'_>, _key: &[u8], _hash: u64, _how: &Delete) -> Deleted {
        unimplemented!()
    }
    pub fn arith(&self, _cx: Cx<'_>, _key: &[u8], _hash: u64, _how: &Arith) -> Counted {
        unimplemented!()
    }

    /// The longest value that fits beside a key of this length.
    pub fn value_max(&self, _key_length: usize, _flags: u32) -> usize {
        unimplemented!()
    }

    /// Everything last accessed before `at` (server's clock) is dead once `at` has come.
    pub fn flush_all(&self, _now: u32, _at: u32) {
        unimplemented!()
    }
}
