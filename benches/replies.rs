//! What building replies costs, from keys to bytes that are ready to send. Times are per key.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use arrayvec::ArrayVec;
use larder::command::{BATCH, Context, Read, Replies, Shared, get};
use larder::observe::ThreadCounters;
use larder::settings::{Settings, Store};
use larder::store::{Mode, Put};

const KEYS: usize = 20_000;

fn replies(criterion: &mut Criterion) {
    let settings = Settings {
        store: Store {
            max_bytes: 256 << 20,
            ..Store::default()
        },
        ..Settings::default()
    };
    let shared = Shared::new(settings, None).expect("memory for the store");
    let counters = ThreadCounters::default();
    let cx = Context {
        shared: &shared,
        counters: &counters,
        now: 100,
        connection: 0,
    };
    let keys: Vec<Vec<u8>> = (0..KEYS)
        .map(|number| format!("key_{number:016}").into_bytes())
        .collect();
    let mut out = Replies::with_capacity(256 << 10);

    let mut group = criterion.benchmark_group("get");
    for value in [10, 100, 1000, 8000] {
        for key in &keys[..if value > 4096 { 2000 } else { KEYS }] {
            let put = Put::new(Mode::Set, key, shared.store.hash(key));
            shared.store.put(cx.caller(), &put, &vec![b'v'; value]);
        }
        for (name, count, read) in [
            (
                "one key",
                1,
                Read {
                    cas: false,
                    touch: None,
                },
            ),
            (
                "100 keys",
                100,
                Read {
                    cas: false,
                    touch: None,
                },
            ),
            (
                "100 keys with CAS",
                100,
                Read {
                    cas: true,
                    touch: None,
                },
            ),
        ] {
            let asked: Vec<Vec<&[u8]>> = (0..1000)
                .map(|turn| {
                    (0..count)
                        .map(|at| &keys[(turn * 7919 + at * 13) % 2000][..])
                        .collect()
                })
                .collect();
            let mut asked = asked.iter().cycle();
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new(name, value), |bencher| {
                bencher.iter(|| {
                    if let Some(keys) = asked.next() {
                        for keys in keys.chunks(BATCH) {
                            let mut batch: ArrayVec<get::LookUp<'_>, BATCH> = keys
                                .iter()
                                .map(|key| get::LookUp::new(cx.store(), key))
                                .collect();
                            for lookup in &mut batch {
                                lookup.prefetch(cx.store());
                            }
                            get::many(&cx, &batch, read, usize::MAX, &mut out);
                        }
                        get::end(&mut out);
                    }
                    black_box(out.waiting());
                    out.clear();
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    targets = replies
}
criterion_main!(benches);
