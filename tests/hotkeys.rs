//! What hot keys do to the servers behind a proxy, and what is done about it: simulated requests
//! over simulated seconds, with the ring, the counters and the cache that a worker has.

use std::sync::Arc;

use larder::cluster::hotkey::cache::{Answer, Cache};
use larder::cluster::hotkey::writes::Writes;
use larder::cluster::hotkey::{Heat, HotKeys, two_choices};
use larder::cluster::ring::{Member, Ring};
use larder::settings::proxy;

const SERVERS: usize = 5;
const READS_PER_MS: u64 = 40;

struct Worker {
    ring: Ring,
    keys: HotKeys,
    cache: Cache,
    writes: Arc<Writes>,
    random: u64,
}

impl Worker {
    fn new(settings: &proxy::HotKeys) -> Worker {
        let members: Vec<Member> = (0..SERVERS)
            .map(|n| Member::new(format!("10.0.0.{n}"), 11211))
            .collect();
        let writes = Arc::new(Writes::default());
        Worker {
            ring: Ring::build(&proxy::Scheme::default(), &members).unwrap(),
            keys: HotKeys::new(settings, SERVERS, 7, 0),
            cache: Cache::new(settings, writes.clone()),
            writes,
            random: 88_172_645_463_325_252,
        }
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Reads for two seconds after one to get used to it; gives how many each server got.
    fn run(&mut self, mut draw: impl FnMut(u64) -> u64) -> Vec<u64> {
        let mut load = vec![0; SERVERS];
        for now in 0..3000 {
            if now == 1000 {
                load.fill(0);
            }
            for _ in 0..READS_PER_MS {
                let number = draw(self.random());
                let key = format!("user:profile:{number:08}").into_bytes();
                let Heat::Hot(hot) = self.keys.read(&key, now) else {
                    load[self.ring.owner(&key)] += 1;
                    continue;
                };
                if self.cache.get(hot.hash, 0, &key, now).is_some() {
                    continue;
                }
                self.keys.forwarded(hot);
                let stamp = self.writes.stamp(hot.hash);
                let candidates: Vec<usize> = self.ring.preference(&key).take(hot.spread).collect();
                let random = self.random();
                let chosen = two_choices(random, candidates.len(), |at| load[candidates[at]]);
                load[candidates[chosen]] += 1;
                let answer = Answer::Hit {
                    flags: 0,
                    cas: None,
                    known_fresh: false,
                    value: Arc::from(&b"value"[..]),
                };
                self.cache.put(hot.hash, (0, &key), answer, stamp, now);
            }
        }
        load
    }
}

/// How much the busiest server has over its fair share of what the servers get.
fn excess(load: &[u64]) -> f64 {
    let fair = load.iter().sum::<u64>() as f64 / load.len() as f64;
    *load.iter().max().unwrap() as f64 / fair
}

/// Fifty keys take nine of ten reads, and sit where chance would have most of them on one server.
fn fifty(ring: &Ring) -> impl FnMut(u64) -> u64 + use<> {
    let owner = |number: u64| ring.owner(format!("user:profile:{number:08}").as_bytes());
    let (mut on_first, mut elsewhere) = (Vec::new(), Vec::new());
    for number in 0..2000 {
        if owner(number) == 0 {
            on_first.push(number);
        } else {
            elsewhere.push(number);
        }
    }
    let hot: Vec<u64> = on_first[..25]
        .iter()
        .chain(&elsewhere[..25])
        .copied()
        .collect();
    move |random| {
        if random % 10 == 0 {
            10_000 + (random >> 8) % 1_000_000
        } else {
            hot[(random >> 8) as usize % hot.len()]
        }
    }
}

#[test]
fn fifty_keys_that_everybody_wants_make_no_server_hot() {
    let off = proxy::HotKeys {
        reads_per_second: u32::MAX,
        ..proxy::HotKeys::default()
    };
    let mut worker = Worker::new(&off);
    let draw = fifty(&worker.ring);
    let before = excess(&worker.run(draw));
    assert!(before > 2.0, "there is something to be done: {before}");

    let mut worker = Worker::new(&proxy::HotKeys {
        reads_per_second: 300,
        ..proxy::HotKeys::default()
    });
    let draw = fifty(&worker.ring);
    let load = worker.run(draw);
    assert!(excess(&load) < 1.5, "{load:?}");
    let reads = 2000 * READS_PER_MS;
    let sent: u64 = load.iter().sum();
    assert!(
        sent < reads / 5,
        "nine of ten are answered here: {sent} of {reads}"
    );
}

#[test]
fn fifty_keys_that_cannot_be_kept_are_read_from_several_servers() {
    let mut worker = Worker::new(&proxy::HotKeys {
        reads_per_second: 300,
        cache_ms: 0,
        ..proxy::HotKeys::default()
    });
    let draw = fifty(&worker.ring);
    let load = worker.run(draw);
    assert!(excess(&load) < 1.5, "{load:?}");
    assert_eq!(load.iter().sum::<u64>(), 2000 * READS_PER_MS);
}

#[test]
fn one_key_that_cannot_be_kept_is_read_from_several_servers() {
    let settings = proxy::HotKeys {
        cache_ms: 0,
        ..proxy::HotKeys::default()
    };
    let mut worker = Worker::new(&settings);
    // Six of ten reads are of one key: three servers' share.
    let load = worker.run(|random| {
        if random % 10 < 6 {
            1
        } else {
            10_000 + (random >> 8) % 1_000_000
        }
    });
    assert!(excess(&load) < 1.5, "{load:?}");
}
