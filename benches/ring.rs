//! From key to server: the owner of a key, and its first three servers.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use larder::cluster::ring::{Member, Ring};
use larder::settings::proxy::{KeyHash, McproxyLabels, RingKind, Scheme};

fn rings(criterion: &mut Criterion) {
    let keys: Vec<Vec<u8>> = (0..1024)
        .map(|n| format!("user:profile:{n:08}").into_bytes())
        .collect();
    let mcproxy = RingKind::McproxyRing {
        labels: McproxyLabels::Default,
        points: 160,
    };
    for (name, kind, key_hash) in [
        ("libketama", RingKind::Libketama, None),
        ("twemproxy", RingKind::Twemproxy, None),
        ("libketama, xxh3", RingKind::Libketama, Some(KeyHash::Xxh3)),
        ("mcproxy", mcproxy, None),
        ("jump", RingKind::Jump, None),
        ("ch3", RingKind::Ch3, None),
    ] {
        for servers in [5, 50] {
            let members: Vec<Member> = (0..servers)
                .map(|n| Member::new(format!("10.0.0.{n}"), 11211))
                .collect();
            let scheme = Scheme {
                kind,
                key_hash,
                ..Scheme::default()
            };
            let ring = Ring::build(&scheme, &members).unwrap();
            let mut group = criterion.benchmark_group(format!("{name} of {servers}"));
            group.throughput(criterion::Throughput::Elements(keys.len() as u64));
            group.bench_function("owner", |bencher| {
                bencher.iter(|| {
                    keys.iter()
                        .map(|key| ring.owner(black_box(key)))
                        .sum::<usize>()
                });
            });
            group.bench_function("first three", |bencher| {
                bencher.iter(|| {
                    keys.iter()
                        .map(|key| ring.preference(black_box(key)).take(3).sum::<usize>())
                        .sum::<usize>()
                });
            });
        }
    }
}

criterion_group!(benches, rings);
criterion_main!(benches);
