//! What finding items costs, by how many there are: one key at a time, and in batches that ask for
//! memory ahead of its use. Times are per key.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use larder::observe::ThreadCounters;
use larder::settings;
use larder::store::{Cx, Mode, Put, Store};

const BATCH: usize = 32;
const VALUE: [u8; 100] = [b'v'; 100];

fn key(number: usize) -> [u8; 20] {
    let mut key = *b"key_0000000000000000";
    let digits = format!("{number:016}");
    key[4..].copy_from_slice(digits.as_bytes());
    key
}

fn put<'a>(store: &Store, key: &'a [u8]) -> Put<'a> {
    Put::new(Mode::Set, key, store.hash(key))
}

fn filled(cx: Cx<'_>, items: usize) -> Store {
    let settings = settings::Store {
        max_bytes: 1 << 30,
        ..settings::Store::default()
    };
    let store = Store::new(&settings).expect("a store");
    for number in 0..items {
        store.put(cx, &put(&store, &key(number)), &VALUE);
    }
    store
}

fn find(store: &Store, cx: Cx<'_>, key: &[u8], hash: u64, out: &mut [u8; 128]) {
    let _ = store.get(cx, key, hash, |hit| {
        if let Some(value) = hit.inline() {
            out[..value.len()].copy_from_slice(value);
        }
    });
}

fn look_ups(criterion: &mut Criterion) {
    let counters = ThreadCounters::default();
    let cx = Cx {
        now: 100,
        counters: &counters,
    };
    let mut group = criterion.benchmark_group("find");
    group.throughput(Throughput::Elements(BATCH as u64));
    for items in [20_000, 1_000_000] {
        let store = filled(cx, items);
        let mut out = [0; 128];
        let mut at = 0;
        // Keys in an order that no prefetcher knows, made outside of what is measured.
        let keys: Vec<[u8; 20]> = (0..1 << 16)
            .map(|_| {
                at = (at + 611_953) % items;
                key(at)
            })
            .collect();
        let mut batches = keys.chunks_exact(BATCH).cycle();
        group.bench_function(BenchmarkId::new("one by one", items), |bencher| {
            bencher.iter(|| {
                for key in batches.next().unwrap_or_default() {
                    find(&store, cx, key, store.hash(key), &mut out);
                }
            });
        });
        let mut batches = keys.chunks_exact(BATCH).cycle();
        group.bench_function(BenchmarkId::new("in batches", items), |bencher| {
            bencher.iter(|| {
                let keys = batches.next().unwrap_or_default();
                let mut hashes = [0; BATCH];
                for (hash, key) in hashes.iter_mut().zip(keys) {
                    *hash = store.hash(key);
                    let _ = store.prefetch(*hash);
                }
                for hash in hashes {
                    store.prefetch_items(&mut store.prefetch(hash), hash);
                }
                for (hash, key) in hashes.iter().zip(keys) {
                    find(&store, cx, key, *hash, &mut out);
                }
            });
        });
        black_box(out);
    }
    group.finish();
}

fn growth(criterion: &mut Criterion) {
    const ITEMS: usize = 200_000;
    let counters = ThreadCounters::default();
    let cx = Cx {
        now: 100,
        counters: &counters,
    };
    let mut group = criterion.benchmark_group("grow");
    group.throughput(Throughput::Elements(ITEMS as u64));
    group.sample_size(10);
    group.bench_function(BenchmarkId::new("from empty to", ITEMS), |bencher| {
        bencher.iter(|| filled(cx, ITEMS));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    targets = look_ups, growth
}
criterion_main!(benches);
