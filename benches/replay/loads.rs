#![forbid(unsafe_code)]
//! Traces made from a seed: the shapes of load that caches are judged by.

use super::trace::{KEY_LENGTH, Op, Request, SIZE_MAX, Trace};

/// A shape of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Load {
    /// Zipf with exponent 0.8, values of one size.
    Zipf08,
    /// Zipf with exponent 0.99.
    Zipf099,
    /// Zipf with exponent 1.1.
    Zipf11,
    /// Zipf 0.99, and a fifth of the requests in scans over keys that are never asked for again.
    Scan,
    /// Zipf 0.99, and three in ten requests for keys that come only once.
    Onehit,
    /// Zipf 0.99 whose keys change: a tenth of them every twentieth of the trace.
    Shift,
    /// Zipf 0.99, values of 10 B to 500 KB.
    Mixed,
    /// Zipf 0.99, values as large as those of Twitter's clusters.
    Twitter,
    /// Small values fill the memory; from two fifths of the trace on, all that is asked for is large.
    Calcify,
    /// Small values by day, large ones by night, ten times.
    Diurnal,
    /// As `twitter`, and half of the values live for seconds to minutes.
    Ttl,
}

impl Load {
    pub const ALL: [Load; 11] = [
        Load::Zipf08,
        Load::Zipf099,
        Load::Zipf11,
        Load::Scan,
        Load::Onehit,
        Load::Shift,
        Load::Mixed,
        Load::Twitter,
        Load::Calcify,
        Load::Diurnal,
        Load::Ttl,
    ];

    /// Values of many sizes: these need more memory to be of interest.
    pub fn sized(self) -> bool {
        self as usize >= Load::Mixed as usize
    }
}

/// A repeatable stream of random numbers (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// 0 up to 1.
    pub fn fraction(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let (a, b) = (1.0 - self.fraction(), self.fraction());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Ranks by popularity, 0 the most popular.
struct Zipf {
    /// Sums of the weights of all ranks up to this one.
    sums: Vec<f64>,
}

impl Zipf {
    fn new(ranks: usize, exponent: f64) -> Zipf {
        let mut sum = 0.0;
        let weight = |rank: usize| (rank as f64 + 1.0).powf(-exponent);
        let sums = (0..ranks).map(|rank| {
            sum += weight(rank);
            sum
        });
        Zipf {
            sums: sums.collect(),
        }
    }

    fn rank(&self, random: &mut Random) -> u64 {
        let whole = self.sums.last().copied().unwrap_or(0.0);
        let at = random.fraction() * whole;
        self.sums.partition_point(|&sum| sum < at) as u64
    }
}

/// Mean value sizes of a spread of Twitter's clusters, bytes.
const CLUSTERS: [f64; 16] = [
    12.0, 25.0, 45.0, 70.0, 110.0, 150.0, 210.0, 240.0, 330.0, 420.0, 620.0, 900.0, 1400.0, 2500.0,
    5200.0, 11000.0,
];
/// Seconds that a made trace lasts.
pub const SECONDS: u32 = 60;
/// Bytes of values of one size.
pub const SIZE: u32 = 100;

/// A value's size that stays that of its key.
fn lognormal(key: u64, median: f64, sigma: f64) -> u32 {
    let mut random = Random(key ^ 0x5eed);
    let size = median * (sigma * random.normal()).exp();
    size.clamp(10.0, 500_000.0) as u32
}

fn twitter_size(key: u64) -> u32 {
    let cluster = CLUSTERS[(mix(key ^ 0xc1) % CLUSTERS.len() as u64) as usize];
    lognormal(key, cluster, 0.6)
}

/// Makes a trace of so many requests over about so many keys.
pub fn make(load: Load, seed: u64, requests: usize, keys: usize) -> Trace {
    let mut random = Random(seed);
    let zipf = Zipf::new(
        keys,
        match load {
            Load::Zipf08 => 0.8,
            Load::Zipf11 => 1.1,
            _ => 0.99,
        },
    );
    let mut numbers = std::collections::HashMap::new();
    let mut made = Vec::with_capacity(requests);
    // Keys that come once count down from here.
    let mut once = u64::MAX;
    let mut scan = 0usize;
    for at in 0..requests {
        let part = at as f64 / requests as f64;
        let mut fresh = || {
            once -= 1;
            once
        };
        let (name, size, ttl) = match load {
            Load::Zipf08 | Load::Zipf099 | Load::Zipf11 => (zipf.rank(&mut random), SIZE, 0),
            Load::Scan => {
                if scan == 0 && random.fraction() < 0.25 / 20_000.0 {
                    scan = 20_000;
                }
                if scan > 0 {
                    scan -= 1;
                    (fresh(), SIZE, 0)
                } else {
                    (zipf.rank(&mut random), SIZE, 0)
                }
            }
            Load::Onehit => {
                if random.fraction() < 0.3 {
                    (fresh(), SIZE, 0)
                } else {
                    (zipf.rank(&mut random), SIZE, 0)
                }
            }
            Load::Shift => {
                // Which tenth of the ranks has been given new keys, and how often.
                let rank = zipf.rank(&mut random);
                let age = (part * 20.0) as u64;
                let renewed = (age + 10 - mix(rank) % 10) / 10;
                (rank | renewed << 40, SIZE, 0)
            }
            Load::Mixed => {
                let key = zipf.rank(&mut random);
                (key, lognormal(key, 250.0, 1.7), 0)
            }
            Load::Twitter => {
                let key = zipf.rank(&mut random);
                (key, twitter_size(key), 0)
            }
            Load::Calcify => {
                let key = zipf.rank(&mut random);
                if part < 0.4 {
                    (key, lognormal(key, 120.0, 0.5), 0)
                } else {
                    (key | 1 << 40, lognormal(key, 1800.0, 0.5), 0)
                }
            }
            Load::Diurnal => {
                let key = zipf.rank(&mut random);
                let day = ((part * 20.0) as u64).is_multiple_of(2);
                // At night the day's keys are not quite forgotten, and the other way round.
                if day == (random.fraction() < 0.9) {
                    (key, lognormal(key, 120.0, 0.5), 0)
                } else {
                    (key | 1 << 40, lognormal(key, 1500.0, 0.5), 0)
                }
            }
            Load::Ttl => {
                let key = zipf.rank(&mut random);
                let ttl = match mix(key ^ 0x77) % 8 {
                    0 => 2,
                    1 => 5,
                    2 => 15,
                    3 => 30,
                    _ => 0,
                };
                (key, twitter_size(key), ttl)
            }
        };
        let next = numbers.len() as u32;
        made.push(Request {
            time: (part * f64::from(SECONDS)) as u32,
            key: *numbers.entry(name).or_insert(next),
            key_length: KEY_LENGTH,
            op: Op::Get,
            size: size.min(SIZE_MAX),
            ttl,
        });
    }
    Trace {
        requests: made,
        keys: numbers.len(),
    }
}
