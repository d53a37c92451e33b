//! Key hashes: one 64-bit number per key, computed once per request.
//!
//! The table takes its bucket from the low bits and its tag from bits 56 to 63, so both ends must
//! be good. Unless `hash_algorithm` names one of memcached's functions, the hash is keyed with
//! secrets drawn at start: nobody outside can then choose keys that meet in one bucket. The named
//! functions offer no such protection; they are there for those who ask for them.
//!
//! [`hashkit`] has the functions by which clients and other proxies choose a server.
#![forbid(unsafe_code)]

pub mod hashkit;
mod jenkins;
mod keyed;
mod murmur3;

use crate::settings::HashAlgorithm;

/// The hash function of a store. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Hasher(Kind);

#[derive(Debug, Clone, Copy)]
enum Kind {
    Keyed(keyed::Secrets),
    Named(HashAlgorithm),
}

impl Hasher {
    /// A hash keyed with secrets from the system's random source.
    ///
    /// # Errors
    /// The system has no random source to offer.
    pub fn keyed() -> Result<Hasher, getrandom::Error> {
        let mut seed = [0; 4];
        for secret in &mut seed {
            *secret = getrandom::u64()?;
        }
        Ok(Hasher::from_seed(seed))
    }

    /// The keyed hash with known secrets: what one process needs to find what another one stored,
    /// and tests to be repeatable.
    pub fn from_seed(seed: [u64; 4]) -> Hasher {
        Hasher(Kind::Keyed(keyed::Secrets(seed)))
    }

    /// What a keyed hash was made from; see [`from_seed`](Hasher::from_seed).
    pub fn secrets(&self) -> Option<[u64; 4]> {
        match &self.0 {
            Kind::Keyed(secrets) => Some(secrets.0),
            Kind::Named(_) => None,
        }
    }

    /// One of memcached's functions, with the seed memcached gives it.
    pub fn named(algorithm: HashAlgorithm) -> Hasher {
        Hasher(Kind::Named(algorithm))
    }

    /// The hash of a key.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        match &self.0 {
            Kind::Keyed(secrets) => secrets.hash(key),
            Kind::Named(algorithm) => named(*algorithm, key),
        }
    }
}

#[cold]
fn named(algorithm: HashAlgorithm, key: &[u8]) -> u64 {
    spread(match algorithm {
        HashAlgorithm::Jenkins => jenkins::hash(key, 0),
        HashAlgorithm::Murmur3 => murmur3::hash(key, 0),
        HashAlgorithm::Xxh3 => xxhash_rust::xxh3::xxh3_64(key) as u32,
    })
}

/// memcached's functions end at 32 bits; this makes 64 of them, good at both ends.
fn spread(hash: u32) -> u64 {
    let product = u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: [u64; 4] = [
        0x3c6e_f372_fe94_f82b,
        0xa54f_f53a_5f1d_36f1,
        0x510e_527f_ade6_82d1,
        0x9b05_688c_2b3e_6c1f,
    ];

    fn hashers() -> [(&'static str, Hasher); 4] {
        [
            ("keyed", Hasher::from_seed(SEED)),
            ("jenkins", Hasher::named(HashAlgorithm::Jenkins)),
            ("murmur3", Hasher::named(HashAlgorithm::Murmur3)),
            ("xxh3", Hasher::named(HashAlgorithm::Xxh3)),
        ]
    }

    /// Families of keys as programs make them.
    fn key_families() -> Vec<(&'static str, Vec<Vec<u8>>)> {
        const COUNT: u64 = 1 << 16;
        let family = |make: &dyn Fn(u64) -> Vec<u8>| (0..COUNT).map(make).collect::<Vec<_>>();
        vec![
            ("key_N", family(&|n| format!("key_{n}").into_bytes())),
            (
                "padded to 20",
                family(&|n| format!("key_{n:016}").into_bytes()),
            ),
            ("numbers", family(&|n| n.to_string().into_bytes())),
            ("4 bytes", family(&|n| (n as u32).to_le_bytes().to_vec())),
            (
                "8 bytes, high",
                family(&|n| (n << 48).to_le_bytes().to_vec()),
            ),
            (
                "number in front",
                family(&|n| format!("{n:08}:user:profile:v2").into_bytes()),
            ),
            (
                "number amid 100",
                family(&|n| format!("{0}{n:020}{0}", "x".repeat(40)).into_bytes()),
            ),
            (
                "250 bytes",
                family(&|n| format!("{}{n:05}", "k".repeat(245)).into_bytes()),
            ),
        ]
    }

    /// How far counts are from even, as chi-squared per degree of freedom: about 1 when random.
    fn unevenness(counts: &[u32]) -> f64 {
        let expected = counts.iter().sum::<u32>() as f64 / counts.len() as f64;
        let sum: f64 = counts
            .iter()
            .map(|&count| (f64::from(count) - expected).powi(2) / expected)
            .sum();
        sum / (counts.len() - 1) as f64
    }

    #[test]
    fn keys_spread_evenly_over_buckets_tags_and_both() {
        for (name, hasher) in hashers() {
            for (family, keys) in key_families() {
                let mut buckets = vec![0; 1 << 13];
                let mut tags = vec![0; 256];
                let mut both = vec![0; 1 << 13];
                for key in &keys {
                    let hash = hasher.hash(key);
                    buckets[(hash & 0x1fff) as usize] += 1;
                    tags[(hash >> 56) as usize] += 1;
                    both[(hash & 0x1f | (hash >> 56) << 5) as usize] += 1;
                }
                for (what, counts, limit) in [
                    ("buckets", &buckets, 1.10),
                    ("tags", &tags, 1.50),
                    ("tags within buckets", &both, 1.10),
                ] {
                    let found = unevenness(counts);
                    assert!(found < limit, "{name}, {family}, {what}: {found}");
                }
            }
        }
    }

    #[test]
    fn a_named_hash_ignores_the_seed_and_a_keyed_one_is_all_seed() {
        let other = Hasher::from_seed([1, 2, 3, 4]);
        assert_ne!(other.hash(b"key"), Hasher::from_seed(SEED).hash(b"key"));
        let first = Hasher::keyed().expect("random numbers");
        let second = Hasher::keyed().expect("random numbers");
        assert_ne!(first.hash(b"key"), second.hash(b"key"));
        assert_eq!(first.hash(b"key"), first.hash(b"key"));
    }

    #[test]
    fn xxh3_gives_the_published_values() {
        for (key, expected) in XXH3_VALUES {
            let found = xxhash_rust::xxh3::xxh3_64(key) as u32;
            assert_eq!(found, *expected, "{}", key.escape_ascii());
        }
    }

    const XXH3_VALUES: &[(&[u8], u32)] = &[
        (b"", 0x38d3_94c2),
        (b"a", 0x1e96_4e1f),
        (b"ab", 0x24d5_735c),
        (b"abc", 0x892f_3950),
        (b"key_12345", 0xa180_d8e1),
        (b"foo:bar:baz:", 0xa07d_23a1),
        (b"Four score and seven years ago", 0x328b_f47e),
        (b"key_0000000000000001", 0x0b0c_ac1a),
        (b"The quick brown fox jumps over the lazy dog", 0x418f_b365),
        (&[b'x'; 250], 0xe826_136d),
    ];
}
