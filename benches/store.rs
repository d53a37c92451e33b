//! What one operation on the store costs, with 20-byte keys and 100-byte values that fit the cache.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

use larder::observe::ThreadCounters;
use larder::settings;
use larder::store::journal::Role;
use larder::store::{Arith, Cx, Delete, Fetch, Mode, Put, Store};

const KEYS: usize = 20_000;
const VALUE: [u8; 100] = [b'v'; 100];

const LOG: settings::Journal = settings::Journal {
    ring_bytes: 64 << 20,
    follower: false,
};

fn open(megabytes: u64) -> Store {
    open_with(megabytes, None)
}

fn open_with(megabytes: u64, journal: Option<settings::Journal>) -> Store {
    let settings = settings::Store {
        max_bytes: megabytes << 20,
        journal,
        ..settings::Store::default()
    };
    Store::new(&settings).expect("a store")
}

fn key(number: usize) -> [u8; 20] {
    let mut key = *b"key_0000000000000000";
    let digits = format!("{number:016}");
    key[4..].copy_from_slice(digits.as_bytes());
    key
}

fn set<'a>(store: &Store, key: &'a [u8]) -> Put<'a> {
    Put::new(Mode::Set, key, store.hash(key))
}

fn operations(criterion: &mut Criterion) {
    let counters = ThreadCounters::default();
    let cx = Cx {
        now: 100,
        counters: &counters,
    };
    let store = open(64);
    let keys: Vec<[u8; 20]> = (0..KEYS).map(key).collect();
    let absent: Vec<[u8; 20]> = (KEYS..2 * KEYS).map(key).collect();
    for key in &keys {
        store.put(cx, &set(&store, key), &VALUE);
    }
    // A prime step visits every key, in no order that a prefetcher knows.
    let mut at = 0;
    let mut next = move || {
        at = (at + 7919) % KEYS;
        at
    };

    criterion.bench_function("hash of a 20-byte key", |bencher| {
        bencher.iter(|| store.hash(black_box(&keys[0])));
    });
    criterion.bench_function("get, hit", |bencher| {
        let mut out = [0; 128];
        bencher.iter(|| {
            let key = &keys[next()];
            store.get(cx, key, store.hash(key), |hit| {
                if let Some(value) = hit.inline() {
                    out[..value.len()].copy_from_slice(value);
                }
                hit.flags()
            })
        });
        black_box(out);
    });
    criterion.bench_function("get, miss", |bencher| {
        bencher.iter(|| {
            let key = &absent[next()];
            store.get(cx, key, store.hash(key), |hit| hit.flags())
        });
    });
    criterion.bench_function("fetch that touches", |bencher| {
        let how = Fetch {
            touch: Some(1000),
            ..Fetch::default()
        };
        bencher.iter(|| {
            let key = &keys[next()];
            store.fetch(cx, key, store.hash(key), &how, |hit| hit.expires())
        });
    });
    criterion.bench_function("set, in place", |bencher| {
        bencher.iter(|| store.put(cx, &set(&store, &keys[next()]), &VALUE));
    });
    // The digest of all items, and with somebody who reads it the log.
    for (name, read) in [
        ("set, in place, with digests", false),
        ("set, in place, with digests and a log", true),
    ] {
        let kept = open_with(64, Some(LOG));
        let log = kept.journal().expect("a log").clone();
        log.set_role(Role::Leader);
        if read {
            log.open_rings();
        }
        for key in &keys {
            kept.put(cx, &set(&kept, key), &VALUE);
        }
        let mut at = 0;
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                at = (at + 7919) % KEYS;
                kept.put(cx, &set(&kept, &keys[at]), &VALUE)
            });
        });
    }
    criterion.bench_function("set, of another size", |bencher| {
        let mut turn = 0;
        bencher.iter(|| {
            turn += 1;
            store.put(
                cx,
                &set(&store, &keys[next()]),
                &[b'v'; 300][..100 + turn % 150],
            )
        });
    });
    criterion.bench_function("incr", |bencher| {
        let key = key(9_999_999);
        store.put(cx, &set(&store, &key), b"1000000000");
        let how = Arith {
            up: true,
            delta: 1,
            cas: None,
            new_cas: None,
            touch: None,
            create: None,
        };
        bencher.iter(|| store.arith(cx, &key, store.hash(&key), &how));
    });
    criterion.bench_function("set new, delete", |bencher| {
        bencher.iter(|| {
            let key = &absent[next()];
            let put = set(&store, key);
            store.put(cx, &put, &VALUE);
            store.delete(cx, key, put.hash, &Delete::default())
        });
    });
    criterion.bench_function("set new, evict", |bencher| {
        let full = open(16);
        let mut number = 0;
        let mut set_next = || {
            let key = key(number);
            number += 1;
            full.put(cx, &set(&full, &key), &VALUE)
        };
        for _ in 0..200_000 {
            set_next();
        }
        bencher.iter(set_next);
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    targets = operations
}
criterion_main!(benches);
