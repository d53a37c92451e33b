//! Many threads at once, on values that can tell whether they are whole, whose they are, and of
//! which version.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;

use larder::observe::ThreadCounters;
use larder::settings;
use larder::store::{
    Arith, Counted, Cx, Delete, Deleted, Fetch, Hit, Mode, Pin, Put, Store, Stored,
};

use crate::{Random, open, read, with_memory};

const NOW: u32 = 100;
const THREADS: usize = 4;

/// A plain `set` of this key.
fn set<'a>(store: &Store, key: &'a [u8]) -> Put<'a> {
    Put::new(Mode::Set, key, store.hash(key))
}

fn key(number: usize) -> Vec<u8> {
    format!("key_{number:016}").into_bytes()
}

/// A value that tells everything about itself: key, version, length, and bytes that follow from
/// these.
fn value(number: usize, version: u32, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 24);
    // No number by its first byte: arithmetic must leave it alone.
    bytes.extend_from_slice(&tag(number));
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    let mut random = Random((number as u64) << 32 | u64::from(version));
    while bytes.len() < length {
        bytes.extend_from_slice(&random.word().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn tag(number: usize) -> [u8; 4] {
    (number as u32 | 1 << 31).to_be_bytes()
}

/// The version of a value, if it is whole and of this key.
fn version(number: usize, bytes: &[u8]) -> u32 {
    let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let version = field(4);
    assert_eq!(bytes[..4], tag(number), "the value of another key");
    assert!(
        bytes == value(number, version, field(8) as usize),
        "version {version} of {number} is torn"
    );
    version
}

fn whole(hit: &Hit<'_>) -> Vec<u8> {
    match hit.inline() {
        Some(value) => value.to_vec(),
        None => read(&hit.pin().expect("a large value can be held")),
    }
}

fn length(random: &mut Random) -> usize {
    12 + random.length().min(40_000)
}

/// Stores a value at once or piece by piece.
fn store_value(
    store: &Store,
    cx: Cx<'_>,
    put: &Put<'_>,
    value: &[u8],
    random: &mut Random,
) -> Stored {
    if random.one_in(3) {
        let Ok(mut upload) = store.begin(cx, put, value.len()) else {
            return Stored::NoMemory;
        };
        let mut rest = value;
        while !rest.is_empty() {
            let Ok(spare) = upload.spare(cx) else {
                return Stored::NoMemory;
            };
            let n = spare.len().min(rest.len());
            spare[..n].copy_from_slice(&rest[..n]);
            upload.advance(n);
            rest = &rest[n..];
        }
        store.finish(cx, put, upload)
    } else {
        store.put(cx, put, value)
    }
}

/// Runs `work` on several threads with counters of their own, and `background` beside them until
/// they are done.
fn run(
    store: &Store,
    work: impl Fn(usize, Cx<'_>, &mut Random) + Sync,
    background: impl Fn(Cx<'_>, &mut Random) + Sync,
) -> Vec<ThreadCounters> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let upkeep = scope.spawn(|| {
            let counters = ThreadCounters::default();
            let cx = Cx {
                now: NOW,
                counters: &counters,
            };
            let mut random = Random(99);
            while !done.load(SeqCst) {
                store.maintain(cx);
                store.crawl_step(cx);
                background(cx, &mut random);
                thread::yield_now();
            }
            counters
        });
        let workers: Vec<_> = (0..THREADS)
            .map(|number| {
                let work = &work;
                scope.spawn(move || {
                    let counters = ThreadCounters::default();
                    let cx = Cx {
                        now: NOW,
                        counters: &counters,
                    };
                    work(number, cx, &mut Random(number as u64));
                    counters
                })
            })
            .collect();
        let results: Vec<_> = workers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, SeqCst);
        let mut counters: Vec<_> = results
            .into_iter()
            .map(|result| result.expect("a worker"))
            .collect();
        counters.push(upkeep.join().expect("upkeep"));
        counters
    })
}

/// After everything is flushed nothing is counted, and no slot is lost.
fn assert_empty_after_flush(store: &Store, counters: &[ThreadCounters]) {
    let last = ThreadCounters::default();
    let cx = Cx {
        now: NOW + 10,
        counters: &last,
    };
    store.flush_all(cx.now, cx.now);
    crate::crawl_all(store, cx);
    let sum = |class: usize, pick: fn(&larder::observe::ClassCounters) -> u64| {
        let all = counters.iter().chain([&last]);
        all.fold(0_u64, |sum, one| {
            sum.wrapping_add(pick(&one.classes[class]))
        }) as i64
    };
    for class in 1..64 {
        assert_eq!(
            sum(class, |class| class.items.get()),
            0,
            "items of class {class}"
        );
        assert_eq!(
            sum(class, |class| class.bytes.get()),
            0,
            "bytes of class {class}"
        );
    }
    crate::assert_no_slot_used(store);
}

/// Each key has one writer; everybody reads. What is read is never older than what was complete
/// before, and never newer than what has begun.
fn one_writer_per_key(settings: &settings::Store, keys: usize, rounds: usize, may_forget: bool) {
    /// Versions that are deletions.
    const GONE: u32 = 5;
    let store = &open(settings);
    let begun: &Vec<AtomicU32> = &(0..keys).map(|_| AtomicU32::new(0)).collect();
    let complete: &Vec<AtomicU32> = &(0..keys).map(|_| AtomicU32::new(0)).collect();
    let write = |worker: usize, cx: Cx<'_>, random: &mut Random| {
        let number = random.below(keys) / THREADS * THREADS + worker;
        if number >= keys {
            return;
        }
        let key = key(number);
        let next = begun[number].load(SeqCst) + 1;
        begun[number].store(next, SeqCst);
        if next.is_multiple_of(GONE) {
            store.delete(cx, &key, store.hash(&key), &Delete::default());
        } else {
            let length = length(random);
            let put = Put {
                flags: next % 3,
                ..set(store, &key)
            };
            let stored = store_value(store, cx, &put, &value(number, next, length), random);
            if stored == Stored::NoMemory {
                assert!(may_forget);
                // The caller of a store that had no memory takes the old value out.
                store.delete(cx, &key, put.hash, &Delete::default());
            } else {
                assert!(matches!(stored, Stored::Stored { .. }), "{stored:?}");
            }
        }
        complete[number].store(next, SeqCst);
    };
    let look = |cx: Cx<'_>, random: &mut Random, pins: &mut Vec<(usize, u32, Pin)>| {
        let number = random.below(keys);
        let key = key(number);
        let hash = store.hash(&key);
        // A spot may be old by the time it is used: others write, and the table grows.
        let mut spot = store.prefetch(hash);
        if random.one_in(2) {
            store.prefetch_items(&mut spot, hash);
        }
        if random.one_in(8) {
            std::thread::yield_now();
        }
        let least = complete[number].load(SeqCst);
        let hold = random.one_in(8);
        let found = store.reader(cx).get(&key, hash, &spot, |hit| {
            assert_eq!(hit.key(), key);
            let version = version(number, &whole(hit));
            assert_eq!(hit.flags(), version % 3);
            (version, if hold { hit.pin() } else { None })
        });
        let most = begun[number].load(SeqCst);
        match found {
            Ok((version, pin)) => {
                assert!(
                    (least..=most).contains(&version),
                    "{least} <= {version} <= {most} of {number}"
                );
                if let Some(pin) = pin {
                    pins.push((number, version, pin));
                }
            }
            Err(miss) => {
                let excused =
                    may_forget || (least..=most).any(|version| version.is_multiple_of(GONE));
                assert!(excused, "{miss:?} of {number} between {least} and {most}");
            }
        }
        if pins.len() > 6 {
            let (number, seen, pin) = pins.swap_remove(random.below(7));
            assert_eq!(version(number, &read(&pin)), seen, "a held value changed");
        }
    };
    let counters = run(
        store,
        |worker, cx, random| {
            let mut pins = Vec::new();
            for _ in 0..rounds {
                if random.one_in(3) {
                    write(worker, cx, random);
                } else {
                    look(cx, random, &mut pins);
                }
            }
        },
        |cx, random| {
            if may_forget && random.one_in(20) {
                let _ = store.reassign(
                    Some(1 + random.below(24) as u32),
                    1 + random.below(24) as u32,
                );
            }
            if random.one_in(50)
                && let Ok(mut dump) = store.dump(u64::MAX)
            {
                while store.dump_step(cx, &mut dump, 50, |hit| {
                    let number = std::str::from_utf8(&hit.key()[4..])
                        .expect("digits")
                        .parse();
                    version(number.expect("a number"), &whole(hit));
                    true
                }) {}
            }
        },
    );
    assert_empty_after_flush(store, &counters);
}

#[test]
fn readers_see_whole_values_in_order() {
    one_writer_per_key(&with_memory(256), 300, 15_000, false);
}

#[test]
fn a_few_hot_keys_are_as_right_as_many() {
    one_writer_per_key(&with_memory(256), 8, 10_000, false);
}

#[test]
fn readers_see_whole_values_in_order_while_memory_runs_out() {
    one_writer_per_key(&with_memory(2), 1500, 20_000, true);
    let flat = settings::Store {
        lru_maintainer: false,
        ..with_memory(2)
    };
    one_writer_per_key(&flat, 1500, 10_000, true);
}

#[test]
fn no_increment_is_lost() {
    const KEYS: usize = 6;
    const ROUNDS: u64 = 4000;
    let store = &open(&with_memory(64));
    let counters = run(
        store,
        |worker, cx, random| {
            for _ in 0..ROUNDS {
                let number = random.below(KEYS);
                let key = key(number);
                let hash = store.hash(&key);
                if number % 2 == 0 {
                    let how = Arith {
                        up: true,
                        delta: worker as u64 + 1,
                        cas: None,
                        new_cas: None,
                        touch: None,
                        create: Some((worker as u64 + 1, 0)),
                    };
                    let counted = store.arith(cx, &key, hash, &how);
                    assert!(matches!(counted, Counted::Number { .. }), "{counted:?}");
                } else {
                    increment_by_cas(store, cx, &key, worker as u64 + 1);
                }
            }
        },
        |_, _| {},
    );
    // What each worker added, told by the same numbers again.
    let mut expected = [0; KEYS];
    for worker in 0..THREADS {
        let mut random = Random(worker as u64);
        for _ in 0..ROUNDS {
            expected[random.below(KEYS)] += worker as u64 + 1;
        }
    }
    let cx = Cx {
        now: NOW,
        counters: &counters[0],
    };
    for (number, expected) in expected.iter().enumerate() {
        let key = key(number);
        let found = store
            .get(cx, &key, store.hash(&key), whole)
            .expect("a number");
        assert_eq!(String::from_utf8_lossy(&found), expected.to_string());
    }
}

/// Reads, adds, and stores if nobody was faster; over again until it works.
fn increment_by_cas(store: &Store, cx: Cx<'_>, key: &[u8], delta: u64) {
    loop {
        let hash = store.hash(key);
        let found = store.get(cx, key, hash, |hit| (whole(hit), hit.cas()));
        let (sum, put) = match found {
            Ok((text, cas)) => {
                let text = String::from_utf8(text).expect("digits");
                let sum = text.parse::<u64>().expect("a number") + delta;
                (
                    sum,
                    Put {
                        cas: Some(cas),
                        ..set(store, key)
                    },
                )
            }
            Err(_) => (
                delta,
                Put {
                    mode: Mode::Add,
                    ..set(store, key)
                },
            ),
        };
        match store.put(cx, &put, sum.to_string().as_bytes()) {
            Stored::Stored { .. } => return,
            Stored::Exists | Stored::NotStored => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nothing_appended_is_lost_or_out_of_order() {
    const KEYS: usize = 3;
    const ROUNDS: u32 = 1200;
    let store = &open(&with_memory(64));
    let counters = run(
        store,
        |worker, cx, random| {
            for round in 0..ROUNDS {
                for number in 0..KEYS {
                    let key = key(number);
                    let mode = if number == 0 {
                        Mode::Prepend
                    } else {
                        Mode::Append
                    };
                    let put = Put {
                        mode,
                        vivify: Some(0),
                        ..set(store, &key)
                    };
                    let record = [worker as u32, round].map(u32::to_le_bytes).concat();
                    let stored = store_value(store, cx, &put, &record, random);
                    assert!(matches!(stored, Stored::Stored { .. }), "{stored:?}");
                }
            }
        },
        |_, _| {},
    );
    let cx = Cx {
        now: NOW,
        counters: &counters[0],
    };
    for number in 0..KEYS {
        let key = key(number);
        let found = store
            .get(cx, &key, store.hash(&key), whole)
            .expect("a list");
        assert_eq!(found.len(), THREADS * ROUNDS as usize * 8);
        let mut records: Vec<_> = found
            .chunks_exact(8)
            .map(|record| {
                [0, 4].map(|at| {
                    u32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"))
                })
            })
            .collect();
        if number == 0 {
            records.reverse();
        }
        let mut next: HashMap<u32, u32> = HashMap::new();
        for [worker, round] in records {
            let expected = next.entry(worker).or_default();
            assert_eq!(round, *expected, "of worker {worker}");
            *expected += 1;
        }
    }
    assert_empty_after_flush(store, &counters);
}

/// Everybody does everything to the same keys, with next to no memory, while limits and rules change.
#[test]
fn whatever_happens_values_are_whole_and_nothing_leaks() {
    const KEYS: usize = 800;
    const ROUNDS: usize = 12_000;
    let settings = settings::Store {
        temporary_ttl: Some(5),
        ..with_memory(3)
    };
    let store = &open(&settings);
    let counters = run(
        store,
        |worker, cx, random| {
            let mut pins: Vec<(usize, Pin)> = Vec::new();
            let mut uploads = Vec::new();
            for round in 0..ROUNDS {
                let number = random.below(KEYS);
                let key = key(number);
                let hash = store.hash(&key);
                let expires = random
                    .maybe(3, |random| NOW + 1 + random.below(20) as u32)
                    .unwrap_or(0);
                match random.below(12) {
                    0..5 => {
                        let found = store.get(cx, &key, hash, |hit| {
                            version(number, &whole(hit));
                            hit.pin()
                        });
                        pins.extend(found.ok().flatten().map(|pin| (number, pin)));
                    }
                    5..8 => {
                        let mode = random.pick(&[Mode::Set, Mode::Set, Mode::Add, Mode::Replace]);
                        let put = Put {
                            mode,
                            expires,
                            ..set(store, &key)
                        };
                        let length = length(random);
                        let value = value(number, round as u32, length);
                        store_value(store, cx, &put, &value, random);
                    }
                    8 => {
                        let how = Fetch {
                            touch: Some(expires),
                            leases: true,
                            ..Fetch::default()
                        };
                        let _ =
                            store.fetch(cx, &key, hash, &how, |hit| version(number, &whole(hit)));
                    }
                    9 => {
                        let how = Delete {
                            stale: random.one_in(2),
                            ..Delete::default()
                        };
                        let deleted = store.delete(cx, &key, hash, &how);
                        assert!(!matches!(deleted, Deleted::Exists));
                    }
                    10 => {
                        let how = Arith {
                            up: true,
                            delta: 1,
                            cas: None,
                            new_cas: None,
                            touch: None,
                            create: None,
                        };
                        let counted = store.arith(cx, &key, hash, &how);
                        assert!(
                            matches!(counted, Counted::NonNumeric | Counted::NotFound),
                            "{counted:?}"
                        );
                    }
                    _ => {
                        // An upload that is never finished.
                        uploads.extend(store.begin(cx, &set(store, &key), length(random)));
                        if uploads.len() > 2 {
                            uploads.remove(0);
                        }
                    }
                }
                while pins.len() > 3 {
                    let (number, pin) = pins.swap_remove(random.below(4));
                    version(number, &read(&pin));
                }
                if worker == 0 && random.one_in(2000) {
                    store.flush_all(NOW, NOW);
                }
            }
        },
        |_, random| {
            match random.below(200) {
                0..5 => {
                    let _ = store.reassign(Some(random.below(30) as u32), random.below(30) as u32);
                }
                5 => store.set_segmented(random.one_in(2)),
                6 => {
                    store.set_max_bytes((1 + random.below(4) as u64) << 20);
                }
                7 => store.set_temporary_ttl(random.maybe(2, |_| 5)),
                _ => {}
            };
        },
    );
    assert_empty_after_flush(store, &counters);
}

#[test]
fn the_table_grows_under_everybody_s_feet_and_loses_nothing() {
    const KEYS: usize = 30_000;
    let settings = settings::Store {
        hash_power: 12,
        ..with_memory(256)
    };
    let store = &open(&settings);
    let name = |worker: usize, number: usize| format!("{worker}_{number}").into_bytes();
    let counters = run(
        store,
        |worker, cx, random| {
            for number in 0..KEYS {
                let key = name(worker, number);
                let stored = store.put(cx, &set(store, &key), &key);
                assert!(matches!(stored, Stored::Stored { .. }), "{stored:?}");
                let earlier = name(worker, random.below(number + 1));
                let found = store.get(cx, &earlier, store.hash(&earlier), whole);
                assert_eq!(found.as_ref(), Ok(&earlier));
                let absent = name(worker + THREADS, number);
                assert!(store.get(cx, &absent, store.hash(&absent), |_| ()).is_err());
            }
        },
        |_, _| {},
    );
    let cx = Cx {
        now: NOW,
        counters: &counters[0],
    };
    for worker in 0..THREADS {
        for number in 0..KEYS {
            let key = name(worker, number);
            assert_eq!(store.get(cx, &key, store.hash(&key), whole), Ok(key));
        }
    }
    assert!(store.state().hash_power > 12);
    assert_empty_after_flush(store, &counters);
}
