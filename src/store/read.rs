#![forbid(unsafe_code)]
//! Reading an item, and what reading does to it.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::raw::{
    Chain, ChainEdit, Handle, Item, PairGuard, Pinned, Place, STANDINGS, Slot, Spot, State, Word,
    flag,
};
use super::{CHAINED, Cx, Fetch, Inner, Miss, Mode, Moment, Put, Queue, Store, Stored, journal};
use crate::observe::ThreadCounters;

/// The hit counter saturates here.
const COUNTER_MAX: u32 = 3;

/// Where it does in one mode or the other.
pub(super) fn counter_max(segmented: bool) -> u32 {
    if segmented { COUNTER_MAX } else { 1 }
}

/// An item found, seen under its lock: what it held before this request touched it.
#[derive(Clone, Copy)]
pub struct Hit<'g> {
    inner: &'g Arc<Inner>,
    item: Item<'g>,
    length: usize,
    expires: u32,
    accessed: u32,
    won: bool,
    created: bool,
}

impl<'g> Hit<'g> {
    /// An item that is only looked at.
    #[inline]
    pub(super) fn shown(inner: &'g Arc<Inner>, item: Item<'g>) -> Hit<'g> {
        let head = item.head();
        let (expires, accessed) = (head.expires.load(Relaxed), head.accessed.load(Relaxed));
        Hit {
            inner,
            item,
            length: item.length(),
            expires,
            accessed,
            won: false,
            created: false,
        }
    }

    pub(super) fn item(&self) -> &Item<'g> {
        &self.item
    }

    /// The key; a long one may have to be copied together.
    pub fn key(&self) -> Cow<'g, [u8]> {
        self.item.key()
    }

    /// Client flags.
    #[inline]
    pub fn flags(&self) -> u32 {
        self.item.client_flags()
    }

    /// Bytes of the value.
    #[inline]
    pub fn length(&self) -> usize {
        self.length
    }

    /// 0 with `-C`.
    #[inline]
    pub fn cas(&self) -> u64 {
        self.item.cas()
    }

    /// When it expires, on the server's clock; 0 is never. As it was before a touch.
    pub fn expires(&self) -> u32 {
        self.expires
    }

    /// When it expires after this request.
    pub fn expires_now(&self) -> u32 {
        self.item.head().expires.load(Relaxed)
    }

    /// When it was last accessed before this request.
    pub fn accessed(&self) -> u32 {
        self.accessed
    }

    /// It had been fetched before this request.
    pub fn fetched(&self) -> bool {
        self.item.word().has(flag::FETCHED)
    }

    /// Slab class, 1 to 63.
    #[inline]
    pub fn class(&self) -> u8 {
        self.inner.class_of(&self.item)
    }

    #[inline]
    pub fn queue(&self) -> Queue {
        queue_of(self.item.word())
    }

    /// Its size as memcached would count it.
    pub fn size(&self) -> usize {
        self.item.total() + self.inner.classes.extra()
    }

    /// The key came as base64 (meta flag `b`).
    pub fn binary_key(&self) -> bool {
        self.item.word().has(flag::BINARY_KEY)
    }

    /// The BLAKE3 hash of the value. Nothing if it is longer than a segment and without digests.
    pub fn root(&self) -> Option<super::merkle::Digest> {
        super::verify::root_of(&self.item)
    }

    /// This request may recache (`W`).
    pub fn won(&self) -> bool {
        self.won
    }

    /// It is stale (`X`).
    pub fn stale(&self) -> bool {
        self.item.word().has(flag::STALE)
    }

    /// Another request may recache already (`Z`).
    pub fn token_sent(&self) -> bool {
        self.item.word().has(flag::TOKEN_SENT)
    }

    /// This request created it (`Fetch::vivify`).
    pub fn created(&self) -> bool {
        self.created
    }

    /// The value, if it has at most [`COPY_MAX`](super::COPY_MAX) bytes, and its key no more than 250.
    #[inline]
    pub fn inline(&self) -> Option<&'g [u8]> {
        self.item.small(self.length)
    }

    /// As [`inline`](Hit::inline), if the client flags are 0.
    #[inline]
    pub fn plain(&self) -> Option<&'g [u8]> {
        self.item.plain(self.length)
    }

    /// Holds the value in place until the pin is dropped. Only those can be held that are not
    /// [inline](Hit::inline), which are there to be copied.
    #[inline(always)]
    pub fn pin(&self) -> Option<Pin> {
        Some(hold(self.inner, self.item.pin()?))
    }
}

/// The queue that memcached would have shown for an item.
#[inline]
pub(super) fn queue_of(word: Word) -> Queue {
    QUEUES[word.standing()]
}

/// By [standing](Word::standing).
static QUEUES: [Queue; STANDINGS] = queues();

const fn queues() -> [Queue; STANDINGS] {
    let mut queues = [Queue::Cold; STANDINGS];
    let mut standing = 0;
    while standing < STANDINGS {
        queues[standing] = match State::of_standing(standing) {
            (State::Hot, _) => Queue::Hot,
            (State::Temp, _) => Queue::Temp,
            (_, 1..) => Queue::Warm,
            (_, 0) => Queue::Cold,
        };
        standing += 1;
    }
    queues
}

/// A value held in place after its lock is gone, however long sending it takes.
pub struct Pin {
    inner: Arc<Inner>,
    /// Taken when dropped.
    pinned: Option<Pinned>,
    /// The part of the value that was looked at last.
    cursor: Cell<(u32, usize)>,
}

impl Pin {
    /// Bytes of the value.
    pub fn length(&self) -> usize {
        self.pinned.as_ref().map_or(0, Pinned::length)
    }

    /// The chunks of the value; nothing if it stands in one slot.
    pub(super) fn chain(&self) -> Option<Chain> {
        self.pinned.as_ref()?.chain(&self.inner.arena)
    }

    /// Changes the chain of the value; see [`PairGuard::edit_chain`].
    pub(super) fn edit<'t>(
        &mut self,
        guard: &mut PairGuard<'t>,
        place: &Place<'t>,
        edit: ChainEdit<'_>,
        chunks: Vec<Slot<'t>>,
        length: usize,
    ) -> Result<Option<Slot<'t>>, Vec<Slot<'t>>> {
        match self.pinned.as_mut() {
            Some(pinned) => guard.edit_chain(place, pinned, edit, chunks, length),
            None => Err(chunks),
        }
    }

    /// Its item has digests, or once had room for some.
    pub(super) fn verified(&self) -> bool {
        self.pinned
            .as_ref()
            .is_some_and(|pinned| pinned.verified(&self.inner.arena))
    }

    /// The digests of the value, as they lie there.
    pub(super) fn digests(&self) -> Option<Vec<u8>> {
        self.pinned.as_ref()?.digests(&self.inner.arena)
    }

    /// The longest contiguous run of value bytes that begins at `offset`; empty at the end.
    pub fn slice(&self, offset: usize) -> &[u8] {
        match &self.pinned {
            Some(pinned) => pinned.slice(&self.inner.arena, offset, &self.cursor),
            None => &[],
        }
    }
}

/// Makes a raw pin one that gives itself back.
pub(super) fn hold(inner: &Arc<Inner>, pinned: Pinned) -> Pin {
    Pin {
        inner: inner.clone(),
        pinned: Some(pinned),
        cursor: Cell::new((0, 0)),
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(slot) = self
            .pinned
            .take()
            .and_then(|pinned| pinned.release(&self.inner.arena))
        {
            self.inner.give(slot);
        }
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pin")
            .field("length", &self.length())
            .finish()
    }
}

impl Inner {
    /// Counts an access: time, hit counter, fetched mark.
    #[inline]
    pub(super) fn bump(&self, cx: Cx<'_>, item: &Item<'_>) {
        let most = self.counter_max.load(Relaxed);
        self.bump_at(cx, item, self.stamp(cx.now), most);
    }

    /// As [`bump`](Inner::bump), by a stamp and a highest counter that may have been overtaken: another
    /// thread's flush leaves what was stored behind it with a later stamp, which must stay.
    #[inline]
    fn bump_at(&self, cx: Cx<'_>, item: &Item<'_>, stamp: u32, most: u32) {
        let head = item.head();
        if head.accessed.load(Relaxed) < stamp {
            head.accessed.store(stamp, Relaxed);
        }
        let word = head.word();
        let hit = word.hit(most);
        if hit != word && head.change(word, hit) && word.cold() {
            self.warmed(cx.counters, item.handle(), word.bin());
        }
    }

    /// A hit has found an item that the hand would have taken. Not in line: few hits do.
    #[inline(never)]
    fn warmed(&self, counters: &ThreadCounters, handle: Handle, number: u8) {
        let bin = &self.bins[usize::from(number)];
        bin.cold_hits.fetch_add(1, Relaxed);
        let (census, class) = match self.bin_classes[usize::from(number)] {
            CHAINED => {
                let class = self.class_of_slot(handle);
                (&self.chained[usize::from(class)], class)
            }
            class => (&bin.census, class),
        };
        census.change((State::Main, 0), (State::Main, 1));
        counters.classes[usize::from(class)].moves_to_warm.add(1);
    }
}

/// Reads one key after another, as of one moment: what is the same for all of them is looked up once.
#[derive(Clone, Copy)]
pub struct Reader<'s> {
    inner: &'s Arc<Inner>,
    cx: Cx<'s>,
    moment: Moment,
    counter_max: u32,
}

impl<'s> Reader<'s> {
    /// Classic read of a key whose spot is known. `read` runs under the lock: it copies and returns.
    #[inline(always)]
    pub fn get<R>(
        &self,
        key: &[u8],
        hash: u64,
        spot: &Spot<'s>,
        read: impl FnOnce(&Hit<'_>) -> R,
    ) -> Result<R, Miss> {
        let Reader { inner, cx, .. } = *self;
        let mut guard = inner.table.lock_at(spot, &inner.arena, hash);
        if inner.verify.reads() {
            guard = inner.checked(cx, key, hash, spot, guard);
        }
        let Some((place, item)) = guard.find_at(spot, hash, key) else {
            return Err(Miss::NotFound);
        };
        let hit = Hit::shown(inner, item);
        if self.moment.kills(hit.expires, hit.accessed) {
            return Err(inner.bury(cx, guard, place, hash, false));
        }
        let result = read(&hit);
        inner.bump_at(cx, &item, self.moment.stamp, self.counter_max);
        Ok(result)
    }
}

impl Store {
    /// Classic read. `read` runs under the lock: it copies and returns.
    #[inline]
    pub fn get<'s, R>(
        &'s self,
        cx: Cx<'s>,
        key: &[u8],
        hash: u64,
        read: impl FnOnce(&Hit<'_>) -> R,
    ) -> Result<R, Miss> {
        let spot = self.inner.table.spot(hash);
        self.reader(cx).get(key, hash, &spot, read)
    }

    /// For classic reads of a batch.
    #[inline]
    pub fn reader<'s>(&'s self, cx: Cx<'s>) -> Reader<'s> {
        let inner = &self.inner;
        Reader {
            inner,
            cx,
            moment: inner.flush.moment(cx.now),
            counter_max: inner.counter_max.load(Relaxed),
        }
    }

    /// Read with conditions: touches, leases, creation on a miss.
    pub fn fetch<R>(
        &self,
        cx: Cx<'_>,
        key: &[u8],
        hash: u64,
        how: &Fetch,
        read: impl FnOnce(&Hit<'_>) -> R,
    ) -> Result<R, Miss> {
        let inner = &self.inner;
        let mut created = false;
        loop {
            // What has just been created is read even if it was dead from the start.
            let (guard, found) = if created {
                let guard = inner.table.lock(&inner.arena, hash);
                let found = guard.find(hash, key).ok_or(Miss::NotFound);
                (guard, found)
            } else {
                inner.find_checked(cx, key, hash)
            };
            let place = match (found, how.vivify) {
                (Ok(place), _) => place,
                (Err(_), Some(expires)) => {
                    drop(guard);
                    let put = Put {
                        expires,
                        new_cas: how.new_cas,
                        binary_key: how.binary_key,
                        ..Put::new(Mode::Add, key, hash)
                    };
                    match self.put(cx, &put, &[]) {
                        Stored::Stored { .. } => created = true,
                        Stored::NoMemory | Stored::TooLarge => return Err(Miss::NoMemory),
                        _ => {}
                    }
                    continue;
                }
                (Err(miss), None) => return Err(miss),
            };
            let item = guard.item(&place);
            let head = item.head();
            let before = head.expires.load(Relaxed);
            // One that is created has got its expiry.
            if let Some(expires) = how.touch.filter(|_| !created) {
                inner.set_expiry(item.handle(), expires);
            }
            let word = item.word();
            let mut won = created;
            if how.leases && !created {
                let lasts = if how.recache_first {
                    before
                } else {
                    head.expires.load(Relaxed)
                };
                let lapses = how.recache.is_some_and(|at| lasts != 0 && lasts < at);
                won = !word.has(flag::TOKEN_SENT) && (lapses || word.has(flag::STALE));
            }
            let hit = Hit {
                expires: before,
                won,
                created,
                ..Hit::shown(inner, item)
            };
            let result = read(&hit);
            let logged = inner.before(&guard.item(&place));
            if won && (how.leases || created) {
                head.update(|word| word.with_flags(word.flags() | flag::TOKEN_SENT));
            }
            if !how.quiet {
                inner.bump(cx, &item);
            }
            if inner.journal.is_some() {
                let moved = |expires| journal::moves(before, expires, cx.now);
                if won || how.touch.is_some_and(moved) {
                    inner.log_meta(&item, logged);
                }
            }
            return Ok(result);
        }
    }
}
