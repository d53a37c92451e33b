//! What takes minutes and gigabytes. Not run unless asked for:
//!
//! ```text
//! cargo test --release --test store -- --ignored --nocapture soak
//! SOAK_SECONDS=60 SOAK_MEGABYTES=256 SOAK_ITEMS=1000000 ...
//! ```

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use larder::observe::ThreadCounters;
use larder::settings;
use larder::store::{Cx, Hit, Mode, Put, Store};

use crate::{Random, open, read, with_memory};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

fn key(number: u64) -> [u8; 20] {
    let mut key = *b"key_0000000000000000";
    let mut rest = number;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

fn put<'k>(store: &Store, key: &'k [u8], expires: u32) -> Put<'k> {
    Put {
        key,
        hash: store.hash(key),
        mode: Mode::Set,
        flags: 0,
        expires,
        cas: None,
        new_cas: None,
        invalidate: false,
        vivify: None,
        binary_key: false,
    }
}

/// Bytes that follow from key, version and length, each of which the first sixteen tell.
fn value(of: u64, version: u32, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    bytes.extend_from_slice(&(of as u32).to_le_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(length as u64).to_le_bytes());
    let mut random = Random(of << 32 | u64::from(version));
    while bytes.len() < length {
        bytes.extend_from_slice(&random.word().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Whether a value is whole, and of this key.
fn is_right(of: u64, bytes: &[u8]) -> bool {
    if bytes.len() < 16 {
        // As much of the key as there is room for.
        let head = (of as u32).to_le_bytes();
        let n = bytes.len().min(4);
        return bytes[..n] == head[..n];
    }
    let version = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    bytes == value(of, version, bytes.len())
}

fn whole(hit: &Hit<'_>) -> Vec<u8> {
    match hit.inline() {
        Some(value) => value.to_vec(),
        None => read(&hit.pin().expect("a large value can be held")),
    }
}

/// 1 B to 1 MB, as many of each order of magnitude.
fn length(random: &mut Random) -> usize {
    let order = random.below(20);
    (1 << order) + random.below(1 << order)
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<u64>().unwrap() << 10
}

#[test]
#[ignore = "ten minutes"]
fn soak_values_stay_whole_while_pages_move() {
    let seconds = number("SOAK_SECONDS", 600);
    let megabytes = number("SOAK_MEGABYTES", 256);
    // Sizes average about 100 KB; four times as much as fits.
    let keys = (megabytes << 20) * 4 / 100_000;
    let store = &open(&with_memory(megabytes));
    let done = &AtomicBool::new(false);
    let (gets, hits, moves) = (&AtomicU64::new(0), &AtomicU64::new(0), &AtomicU64::new(0));
    let before = resident();
    let most = &AtomicU64::new(0);
    thread::scope(|scope| {
        for worker in 0..8 {
            scope.spawn(move || {
                let counters = ThreadCounters::default();
                let cx = Cx {
                    now: 100,
                    counters: &counters,
                };
                let mut random = Random(worker);
                let mut pins = Vec::new();
                while !done.load(Relaxed) {
                    let of = random.below(keys as usize) as u64;
                    let key = key(of);
                    let hash = store.hash(&key);
                    match random.below(10) {
                        0..5 => {
                            gets.fetch_add(1, Relaxed);
                            let keep = random.one_in(4);
                            let found = store.get(cx, &key, hash, |hit| {
                                if keep {
                                    return (Vec::new(), hit.pin());
                                }
                                (whole(hit), None)
                            });
                            match found {
                                Ok((bytes, None)) if !keep => {
                                    hits.fetch_add(1, Relaxed);
                                    assert!(is_right(of, &bytes), "value of {of}");
                                }
                                Ok((_, Some(pin))) => pins.push((of, pin)),
                                _ => {}
                            }
                        }
                        5 => {
                            let mode = if random.one_in(2) {
                                Mode::Append
                            } else {
                                Mode::Prepend
                            };
                            // On a key of its own, whose value is of one letter.
                            let own = super::soak::key(keys + worker);
                            let how = Put {
                                mode,
                                ..put(store, &own, 0)
                            };
                            let bytes = vec![b'x'; random.below(9000)];
                            store.put(cx, &how, &bytes);
                            if let Ok(all) = store.get(cx, &own, how.hash, whole) {
                                assert!(all.iter().all(|&byte| byte == b'x'), "of {worker}");
                            }
                            if random.one_in(40) {
                                store.put(cx, &put(store, &own, 0), b"xxxxx");
                            }
                        }
                        6 => {
                            store.delete(cx, &key, hash, &larder::store::Delete::default());
                        }
                        _ => {
                            let bytes = value(of, random.word() as u32, length(&mut random));
                            store.put(cx, &put(store, &key, 0), &bytes);
                        }
                    }
                    if pins.len() > 20 {
                        for (of, pin) in pins.drain(..) {
                            hits.fetch_add(1, Relaxed);
                            assert!(is_right(of, &read(&pin)), "held value of {of}");
                        }
                    }
                }
            });
        }
        scope.spawn(move || {
            let counters = ThreadCounters::default();
            let cx = Cx {
                now: 100,
                counters: &counters,
            };
            let mut random = Random(77);
            while !done.load(Relaxed) {
                let (from, to) = (1 + random.below(39) as u32, 1 + random.below(39) as u32);
                store.reassign(Some(from), to);
                store.maintain(cx);
                store.crawl_step(cx);
                most.fetch_max(resident(), Relaxed);
                thread::yield_now();
            }
            moves.store(store.state().slabs_moved * 16, Relaxed);
        });
        thread::sleep(Duration::from_secs(seconds));
        done.store(true, Relaxed);
    });
    let state = store.state();
    let grown = most.load(Relaxed).saturating_sub(before);
    println!(
        "{} gets, {} values checked, {} pages moved, {} items and {} chunks rescued, {} MB resident \
         of -m {megabytes}, table {} MB",
        gets.load(Relaxed),
        hits.load(Relaxed),
        moves.load(Relaxed),
        state.reassign_rescues,
        state.reassign_chunk_rescues,
        grown >> 20,
        state.hash_bytes >> 20,
    );
    assert!(state.reassign_rescues > 0 && state.reassign_chunk_rescues > 0);
    let allowed = (megabytes << 20) * 11 / 10 + state.hash_bytes + (16 << 20);
    assert!(grown <= allowed, "{grown} resident, {allowed} allowed");
}

/// How long operations took, to an eighth of a power of two of nanoseconds.
struct Times([u64; 320]);

impl Times {
    fn new() -> Times {
        Times([0; 320])
    }

    fn note(&mut self, since: Instant) {
        self.0[Times::place(since.elapsed())] += 1;
    }

    fn place(time: Duration) -> usize {
        let nanoseconds = (time.as_nanos() as u64).max(8);
        let power = nanoseconds.ilog2();
        let eighth = (nanoseconds >> (power - 3)) & 7;
        (power as usize * 8 + eighth as usize).min(319)
    }

    fn add(&mut self, other: &Times) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            *count += more;
        }
    }

    /// Nanoseconds that all but one in so many stay below.
    fn all_but(&self, one_in: u64) -> u64 {
        let all: u64 = self.0.iter().sum();
        let mut above = 0;
        for (place, &count) in self.0.iter().enumerate().rev() {
            above += count;
            if above * one_in > all {
                return (9 + place as u64 % 8) << (place / 8) >> 3;
            }
        }
        0
    }

    fn slower_than(&self, limit: Duration) -> u64 {
        self.0[Times::place(limit)..].iter().sum()
    }
}

/// How long this thread has had a core, and how long it has waited for one.
fn scheduled() -> [Duration; 2] {
    let stat =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("scheduler statistics");
    let mut words = stat.split(' ').map(|word| word.trim().parse());
    [(); 2].map(|()| Duration::from_nanos(words.next().expect("a time").expect("nanoseconds")))
}

/// How long operations took, and which of the slow ones were slow by themselves: not because other
/// threads had the cores.
struct Watched {
    times: Times,
    /// As it was a little while ago.
    scheduled: [Duration; 2],
    count: u64,
    slow: u64,
    /// The longest without waiting for a core, and how long that one had one.
    longest: [Duration; 2],
}

impl Watched {
    const SLOW: Duration = Duration::from_millis(10);
    /// Below this, nobody asks why.
    const ASKED: Duration = Duration::from_micros(500);

    fn new() -> Watched {
        Watched {
            times: Times::new(),
            scheduled: scheduled(),
            count: 0,
            slow: 0,
            longest: [Duration::ZERO; 2],
        }
    }

    fn note(&mut self, since: Instant) {
        let took = since.elapsed();
        self.times.0[Times::place(took)] += 1;
        self.count += 1;
        if took < Watched::ASKED {
            if self.count.is_multiple_of(256) {
                self.scheduled = scheduled();
            }
            return;
        }
        let now = scheduled();
        let [ran, waited] = [0, 1].map(|which| now[which] - self.scheduled[which]);
        let own = took.saturating_sub(waited);
        self.scheduled = now;
        self.longest = self.longest.max([own, ran]);
        self.slow += u64::from(own >= Watched::SLOW);
    }

    fn report(&self, what: &str) {
        println!(
            "  {what} below {} ns (99 %), {} ns (99.99 %); {} over 10 ms, {} of them but for waiting \
             for a core; the longest but for that {:?}, with a core for {:?}",
            self.times.all_but(100),
            self.times.all_but(10_000),
            self.times.slower_than(Watched::SLOW),
            self.slow,
            self.longest[0],
            self.longest[1],
        );
    }
}

/// Two threads set new keys, with a get after each; with and without the table growing: what is slow
/// without, too, is the machine's doing. Their values differ
/// in size, so that they do not wait for one another's slots.
#[test]
#[ignore = "two gigabytes"]
fn soak_the_table_grows_without_a_pause() {
    let items = number("SOAK_ITEMS", 16_000_000);
    for (expand, power) in [(true, 16), (false, 24)] {
        let store = &open(&settings::Store {
            hash_expand: expand,
            hash_power: power,
            ..with_memory(4096)
        });
        let done = &AtomicBool::new(false);
        let began = Instant::now();
        let watched = thread::scope(|scope| {
            scope.spawn(move || {
                let counters = ThreadCounters::default();
                let cx = Cx {
                    now: 100,
                    counters: &counters,
                };
                while !done.load(Relaxed) {
                    thread::sleep(store.maintain(cx));
                }
            });
            let workers = [0, 1].map(|worker| {
                scope.spawn(move || {
                    let counters = ThreadCounters::default();
                    let cx = Cx {
                        now: 100,
                        counters: &counters,
                    };
                    let mut random = Random(1 + worker);
                    let value = &[b'v'; 40][..10 + 30 * worker as usize];
                    let (mut sets, mut gets) = (Watched::new(), Watched::new());
                    for count in 0..items / 2 {
                        let key = key(2 * count + worker);
                        let put = put(store, &key, 0);
                        let since = Instant::now();
                        store.put(cx, &put, value);
                        sets.note(since);
                        let of = random.below(count as usize + 1) as u64;
                        let key = super::soak::key(2 * of + worker);
                        let since = Instant::now();
                        let found = store.get(cx, &key, store.hash(&key), |_| ());
                        gets.note(since);
                        assert!(found.is_ok());
                    }
                    (sets, gets)
                })
            });
            let watched = workers.map(|worker| worker.join().expect("a worker"));
            done.store(true, Relaxed);
            watched
        });
        println!(
            "growing: {expand}. {items} items, table {} MB, {:?}",
            store.state().hash_bytes >> 20,
            began.elapsed(),
        );
        for (sets, gets) in &watched {
            sets.report("sets");
            gets.report("gets");
        }
    }
}

/// Items with all sorts of TTLs, and a clock that runs faster than ours: how much of the memory of
/// expired items is there at any time, and what gets notice of the crawler.
#[test]
#[ignore = "a gigabyte"]
fn soak_expired_items_give_their_memory_back() {
    const MILLISECONDS: u64 = 100;
    let items = number("SOAK_ITEMS", 10_000_000);
    let store = &open(&with_memory(2048));
    let clock = &AtomicU32::new(100);
    let done = &AtomicBool::new(false);
    let counters = ThreadCounters::default();
    let mut expiries = vec![0u64; 1000];
    let mut random = Random(3);
    for of in 0..items {
        let expires = match random.below(10) {
            0..3 => 0,
            3..6 => 101 + random.below(60) as u32,
            _ => 101 + random.below(600) as u32,
        };
        expiries[expires as usize] += 1;
        let cx = Cx {
            now: 100,
            counters: &counters,
        };
        store.put(cx, &put(store, &key(of), expires), b"0123456789");
    }
    let mut worst = (0, 0);
    // In turns, so that what else the machine does is shared; with and without all that gives memory back.
    let mut gets = [Times::new(), Times::new()];
    for turn in 0..24 {
        let reaping = turn % 2 == 0;
        done.store(false, Relaxed);
        let times = thread::scope(|scope| {
            let spawn = |step: fn(&Store, Cx<'_>) -> Duration| {
                scope.spawn(move || {
                    let counters = ThreadCounters::default();
                    while !done.load(Relaxed) {
                        let cx = Cx {
                            now: clock.load(Relaxed),
                            counters: &counters,
                        };
                        let wait = step(store, cx);
                        // What waits for a part of a second waits for as much of our faster one.
                        let scale = MILLISECONDS as u32;
                        thread::sleep(if wait > Duration::from_millis(5) {
                            wait * scale / 1000
                        } else {
                            wait
                        });
                    }
                });
            };
            if reaping {
                spawn(Store::maintain);
                spawn(Store::crawl_step);
            }
            let reader = scope.spawn(|| {
                let counters = ThreadCounters::default();
                let (mut times, mut random) = (Times::new(), Random(4));
                while !done.load(Relaxed) {
                    let key = key(random.below(items as usize) as u64);
                    let cx = Cx {
                        now: 1,
                        counters: &counters,
                    };
                    let hash = store.hash(&key);
                    let since = Instant::now();
                    // Looks as it was at the beginning, so that nothing is reaped by the look.
                    let _ = store.get(cx, &key, hash, |_| ());
                    times.note(since);
                }
                times
            });
            for _ in 0..if reaping { 25 } else { 10 } {
                thread::sleep(Duration::from_millis(MILLISECONDS));
                let now = clock.fetch_add(1, Relaxed) + 1;
                let gone: u64 = expiries[1..=now as usize].iter().sum();
                let held = store.state().used_slots;
                let dead = (held + gone).saturating_sub(items);
                // What has expired within two intervals of the crawler may still be there.
                let first = (now as usize).saturating_sub(120).max(1);
                let recent: u64 = expiries[first..=now as usize].iter().sum();
                assert!(dead <= recent, "{dead} dead items at {now}");
                worst = worst.max((dead, now));
            }
            done.store(true, Relaxed);
            reader.join().expect("gets")
        });
        gets[usize::from(reaping)].add(&times);
    }
    println!(
        "of {items} items at most {} were there that had expired, at second {}",
        worst.0,
        worst.1 - 100,
    );
    for (gets, what) in gets.iter().zip(["without reaping", "while reaping"]) {
        println!(
            "{what}: gets below {} ns (99 %), {} ns (99.9 %)",
            gets.all_but(100),
            gets.all_but(1000),
        );
    }
}
