//! What a read costs that is counted: keys drawn evenly from a million, with a few that everybody
//! wants, and answers from the cache.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use larder::cluster::hotkey::cache::{Answer, Cache};
use larder::cluster::hotkey::writes::Writes;
use larder::cluster::hotkey::{Heat, HotKeys};
use larder::settings::proxy;

fn keys(hot: usize) -> Vec<Vec<u8>> {
    let mut state = 88_172_645_463_325_252_u64;
    let draw = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let n = if state.is_multiple_of(10) || hot == 0 {
            1000 + state / 10 % 1_000_000
        } else {
            state / 10 % hot as u64
        };
        format!("user:profile:{n:08}").into_bytes()
    };
    (0..1 << 16).map(draw).collect()
}

fn hot_keys(criterion: &mut Criterion) {
    let settings = proxy::HotKeys::default();
    let mut group = criterion.benchmark_group("hot keys");
    for (name, hot) in [("all alike", 0), ("50 keys take 90 %", 50)] {
        let keys = keys(hot);
        group.throughput(Throughput::Elements(keys.len() as u64));
        let mut counters = HotKeys::new(&settings, 5, 7, 0);
        let mut now = 0;
        group.bench_function(format!("count, {name}"), |bencher| {
            bencher.iter(|| {
                now += 100;
                let hot = keys
                    .iter()
                    .filter(|key| counters.read(key, now) != Heat::Cold);
                black_box(hot.count())
            });
        });
    }
    let mut cache = Cache::new(&settings, Arc::new(Writes::default()));
    let value: Arc<[u8]> = Arc::from(&[b'v'; 100][..]);
    for hash in 0..50 {
        let answer = Answer::Hit {
            flags: 0,
            cas: None,
            known_fresh: false,
            value: value.clone(),
        };
        cache.put(hash, (0, b"user:profile:00000001"), answer, 0, 0);
    }
    group.throughput(Throughput::Elements(50));
    group.bench_function("answer from the cache", |bencher| {
        bencher.iter(|| {
            let found = (0..50).filter(|&hash| {
                let answer = cache.get(black_box(hash), 0, b"user:profile:00000001", 50);
                matches!(answer, Some(Answer::Hit { .. }))
            });
            black_box(found.count())
        });
    });
    group.finish();
}

criterion_group!(benches, hot_keys);
criterion_main!(benches);
