#![forbid(unsafe_code)]
//! Finding the items again after a crash (`-o crash_restart`).
//!
//! With this option every item carries a check over what it holds, and page 0 of the memory, which
//! holds no items, tells what else has to be known: it is written when the server starts, at every
//! flush, and by the maintainer. After a crash the pages are walked; an item stays if its check is
//! right, and the table and the lists of free slots are made anew. An item that was being changed at
//! that moment fails its check, or is not linked yet, and is gone.
//!
//! That holds as long as the system runs on. When it was started anew, pages may have reached the
//! disk at different times, and an old item could stand again beside the one that replaced it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use xxhash_rust::xxh3::xxh3_64;

use super::raw::{Arena, Handle, Intact, Salvage, State, Table, TableState};
use super::restart::{Age, boot_id};
use super::{CHAINED, Inner, class_of};
use crate::hash::Hasher;
use crate::observe::ThreadCounters;
use crate::observe::counters::CLASSES;

/// CAS ids that may have been given since the last one was noted, and more.
const CAS_MARGIN: u64 = 1 << 24;
/// Pages that a thread takes at a time.
const STRIDE: u32 = 64;

/// What page 0 holds, by cell.
#[derive(Clone, Copy)]
enum Note {
    /// A checksum of the configuration and the system's start, which marks the notes as such.
    Mark,
    Cas,
    FlushMarks,
    FlushFloor,
    Epoch,
    Now,
    Items,
    /// Whether the hash is keyed, and four cells for its secrets.
    Keyed,
}

fn cell(arena: &Arena, note: Note) -> &AtomicU64 {
    &arena.notes()[note as usize]
}

/// What a recovery has come to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recovered {
    pub age: Age,
    /// Items that were linked and are not intact.
    pub lost: u64,
}

fn mark(identity: &[(&'static str, String)]) -> u64 {
    let mut text = boot_id();
    for (name, value) in identity {
        text.push_str(&format!("\n{name} {value}"));
    }
    // 0 is a file without notes.
    xxh3_64(text.as_bytes()).max(1)
}

impl Inner {
    /// Notes what a recovery will need, and that the items can be recovered from here on.
    pub(super) fn begin_notes(&self, identity: &[(&'static str, String)]) {
        let arena = &self.arena;
        let secrets = self.hasher.secrets();
        cell(arena, Note::Keyed).store(u64::from(secrets.is_some()), Relaxed);
        let cells = &arena.notes()[Note::Keyed as usize + 1..];
        for (cell, secret) in cells.iter().zip(secrets.unwrap_or_default()) {
            cell.store(secret, Relaxed);
        }
        self.note_state();
        cell(arena, Note::Mark).store(mark(identity), Relaxed);
    }

    /// Notes what has changed of it; a few stores.
    fn note_state(&self) {
        let arena = &self.arena;
        cell(arena, Note::Cas).store(self.cas.load(Relaxed), Relaxed);
        cell(arena, Note::FlushMarks).store(self.flush.marks.load(Relaxed), Relaxed);
        let floor = self.flush.floor.load(Relaxed);
        cell(arena, Note::FlushFloor).store(u64::from(floor), Relaxed);
        cell(arena, Note::Items).store(self.table.items() as u64, Relaxed);
    }

    pub(super) fn note_epoch(&self, epoch: i64) {
        if self.arena.checked() {
            cell(&self.arena, Note::Epoch).store(epoch as u64, Relaxed);
        }
    }

    /// For the maintainer, and whoever flushes.
    pub(super) fn note_now(&self, now: u32) {
        if self.arena.checked() {
            cell(&self.arena, Note::Now).store(u64::from(now), Relaxed);
            self.note_state();
        }
    }

    /// Whether the memory holds what [`recover`](Inner::recover) can use.
    pub(super) fn can_recover(&self, identity: &[(&'static str, String)]) -> bool {
        self.arena.checked() && cell(&self.arena, Note::Mark).load(Relaxed) == mark(identity)
    }

    /// Takes over what is intact. The table must be empty, and its memory zero.
    pub(super) fn recover(&mut self, counters: &ThreadCounters) -> Option<Recovered> {
        let Inner {
            arena,
            pages,
            table,
            classes,
            bin_classes,
            hasher,
            flush,
            ..
        } = self;
        let note = |note| cell(arena, note).load(Relaxed);
        if note(Note::Keyed) != 0 {
            let cells = &arena.notes()[Note::Keyed as usize + 1..];
            let secrets = std::array::from_fn(|at| cells[at].load(Relaxed));
            *hasher = Hasher::from_seed(secrets);
        }
        flush.marks.store(note(Note::FlushMarks), Relaxed);
        flush.floor.store(note(Note::FlushFloor) as u32, Relaxed);
        let (noted_cas, noted_items) = (note(Note::Cas), note(Note::Items));
        let age = Age {
            epoch: note(Note::Epoch) as i64,
            stopped: note(Note::Now) as u32,
        };
        // Large enough from the start, so that it need not grow on the way.
        let sized = TableState {
            pairs: table.pairs_for(noted_items as usize) as u64,
            ..table.state()
        };
        if !table.resume(&sized) {
            return None;
        }

        let bins = arena.bins();
        let salvage = Salvage::new(arena, pages);
        let arena = salvage.arena();
        let end = salvage.end();
        let found = over_pages(end, |pages| {
            let mut found = Found::default();
            for page in pages {
                let mut given_up = 0;
                found.lost += salvage.inspect(page, |intact| {
                    let item = intact.item();
                    found.cas = found.cas.max(item.cas());
                    if item.inline().is_none() {
                        found.chained.push(item.handle());
                    }
                    given_up += adopt(&salvage, table, hasher, &intact);
                });
                found.lost += given_up;
            }
            found
        });
        let mut chunks = HashSet::new();
        for &item in found.iter().flat_map(|found| &found.chained) {
            if arena.head(item).word().linked() {
                salvage.note_chunks(item, &mut chunks);
            }
        }
        let tallies = over_pages(end, |pages| {
            let mut tally = Tally::new(bins);
            for page in pages {
                salvage.rebuild(page, &chunks, |item| {
                    let class = usize::from(class_of(classes, bin_classes, item));
                    tally.items[class] += 1;
                    tally.bytes[class] += (item.total() + classes.extra()) as u64;
                    let word = item.word();
                    let census = match bin_classes[usize::from(word.bin())] {
                        CHAINED => &mut tally.chained[class],
                        _ => &mut tally.bins[usize::from(word.bin())],
                    };
                    census[0] += 1;
                    match word.state() {
                        State::Temp => census[3] += 1,
                        _ if word.counter() > 0 => census[2] += 1,
                        _ => {}
                    }
                });
            }
            tally
        });

        let mut free = Vec::new();
        for page in 1..end {
            match self.pages.entry(page).bin() {
                Some(bin) => {
                    let bin = self.bins.get(usize::from(bin))?;
                    if !bin.lock().pages.adopt_page(&self.pages, page) {
                        return None;
                    }
                }
                None => free.push(page),
            }
        }
        self.pool.resume(free, end);
        for (number, bin) in self.bins.iter().enumerate() {
            bin.census
                .resume(sum(&tallies, |tally| &tally.bins[number]));
        }
        for (number, census) in self.chained.iter().enumerate() {
            census.resume(sum(&tallies, |tally| &tally.chained[number]));
        }
        let last_cas = found.iter().map(|found| found.cas);
        let last_cas = last_cas.fold(noted_cas, u64::max);
        self.cas.store(last_cas.saturating_add(CAS_MARGIN), Relaxed);
        for tally in &tallies {
            counters.general.total_items.add(tally.items.iter().sum());
            for (number, class) in counters.classes.iter().enumerate() {
                class.items.add(tally.items[number]);
                class.bytes.add(tally.bytes[number]);
            }
        }
        Some(Recovered {
            age,
            lost: found.iter().map(|found| found.lost).sum(),
        })
    }
}

/// What one thread has found in its pages.
#[derive(Default)]
struct Found {
    /// Items with chunks.
    chained: Vec<Handle>,
    /// The highest id.
    cas: u64,
    /// Items that were linked and are given up.
    lost: u64,
}

/// What there is, by class and by bin.
struct Tally {
    items: [u64; CLASSES],
    bytes: [u64; CLASSES],
    /// As [`Census::keep`] gives it, by bin, and of chained items by class.
    ///
    /// [`Census::keep`]: super::bins::Census::keep
    bins: Vec<[u64; 4]>,
    chained: [[u64; 4]; CLASSES],
}

fn sum(tallies: &[Tally], pick: impl Fn(&Tally) -> &[u64; 4]) -> [u64; 4] {
    std::array::from_fn(|at| tallies.iter().map(|tally| pick(tally)[at]).sum())
}

impl Tally {
    fn new(bins: usize) -> Tally {
        Tally {
            items: [0; CLASSES],
            bytes: [0; CLASSES],
            bins: vec![[0; 4]; bins],
            chained: [[0; 4]; CLASSES],
        }
    }
}

/// Has every page up to `end` visited once, by as many threads as there are cores.
fn over_pages<T: Send>(
    end: u32,
    visit: impl Fn(&mut dyn Iterator<Item = u32>) -> T + Sync,
) -> Vec<T> {
    let next = AtomicU32::new(1);
    let work = || {
        let mut part = 0..0;
        visit(&mut std::iter::from_fn(|| {
            if part.is_empty() {
                let from = next.fetch_add(STRIDE, Relaxed).min(end);
                part = from..end.min(from + STRIDE);
            }
            part.next()
        }))
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let others = others.into_iter().map(|other| match other.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        others.chain([own]).collect()
    })
}

/// Links an item. Returns how many have been given up: the server may have ended between linking an
/// item and unlinking the one it replaced.
fn adopt(salvage: &Salvage<'_>, table: &Table, hasher: &Hasher, intact: &Intact<'_>) -> u64 {
    let (arena, item) = (salvage.arena(), intact.item());
    let hash = item.hash(|key| hasher.hash(key));
    let mut guard = table.lock(arena, hash);
    let Some(place) = guard.find(hash, &item.key()) else {
        let adopted = guard.adopt(hash, intact);
        drop(guard);
        if adopted {
            table.grow(arena, 1, |key| hasher.hash(key));
            return 0;
        }
        // Its pair is full, and all that could extend it is in use.
        salvage.drop(item.handle());
        return 1;
    };
    let (other, cas) = (place.handle(), guard.item(&place).cas());
    if !arena.has_cas() {
        // Which of them is the newer is not known.
        salvage.drop(item.handle());
        salvage.drop(other);
        guard.forget(place);
        return 2;
    }
    if item.cas() > cas {
        guard.adopt_instead(&place, intact);
        salvage.drop(other);
    } else {
        salvage.drop(item.handle());
    }
    1
}
