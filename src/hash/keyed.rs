//! A keyed hash for short keys, of the family of wyhash and rapidhash: two words of the key, each
//! hidden behind a secret, are multiplied to 128 bits, and the product is folded or mixed again.
//!
//! Every factor is a word of the key xor a secret word, or xor what earlier words and secrets gave.
//! To make a product 0, or to swap two factors, one has to know the secrets; they are drawn at
//! start and shown to nobody but the owner of a memory file. The last product is not folded before it is mixed a second
//! time, so nothing is lost on the way and each bit of the key reaches both ends of the result.
#![forbid(unsafe_code)]

/// Four random words, drawn once per process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Secrets(pub(super) [u64; 4]);

impl Secrets {
    /// In line for the usual lengths only.
    #[inline(always)]
    pub(super) fn hash(&self, key: &[u8]) -> u64 {
        if let (17..=32, Some(front), Some(back)) = (key.len(), key.first_chunk(), key.last_chunk())
        {
            return self.finish(self.absorb(self.0[0], front), halves(back), key.len());
        }
        self.hash_any(key)
    }

    #[inline(never)]
    fn hash_any(&self, key: &[u8]) -> u64 {
        if key.len() > 16 {
            return self.hash_long(key);
        }
        let words = if let (Some(front), Some(back)) = (key.first_chunk(), key.last_chunk()) {
            (u64::from_le_bytes(*front), u64::from_le_bytes(*back))
        } else if let (Some(front), Some(back)) = (key.first_chunk(), key.last_chunk()) {
            (
                u64::from(u32::from_le_bytes(*front)),
                u64::from(u32::from_le_bytes(*back)),
            )
        } else {
            match *key {
                [] => (0, 0),
                [a] => (u64::from(a), 0),
                [a, b] => (u64::from(a), u64::from(b)),
                [a, b, c, ..] => (u64::from(a) | u64::from(c) << 32, u64::from(b)),
            }
        };
        self.finish(self.0[0], words, key.len())
    }

    /// Apart, and reached by a jump, so that short keys need no register saved.
    #[cold]
    #[inline(never)]
    fn hash_long(&self, key: &[u8]) -> u64 {
        let mut state = self.0[0];
        let mut rest = key;
        while let Some((block, tail)) = rest.split_first_chunk() {
            state = self.absorb(state, block);
            rest = tail;
        }
        let last = key.last_chunk().map_or((0, 0), halves);
        self.finish(state, last, key.len())
    }

    #[inline(always)]
    fn absorb(&self, state: u64, block: &[u8; 16]) -> u64 {
        let (low, high) = halves(block);
        fold(low ^ self.0[1], high ^ state)
    }

    #[inline(always)]
    fn finish(&self, state: u64, (low, high): (u64, u64), length: usize) -> u64 {
        let (low, high) = multiply(low ^ self.0[1], high ^ state);
        fold(low ^ self.0[2] ^ length as u64, high ^ self.0[3])
    }
}

#[inline(always)]
fn halves(block: &[u8; 16]) -> (u64, u64) {
    let both = u128::from_le_bytes(*block);
    (both as u64, (both >> 64) as u64)
}

#[inline(always)]
fn multiply(a: u64, b: u64) -> (u64, u64) {
    let product = u128::from(a) * u128::from(b);
    (product as u64, (product >> 64) as u64)
}

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let (low, high) = multiply(a, b);
    low ^ high
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repeatable stream of random words.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        }
    }

    fn secrets(random: &mut Random) -> Secrets {
        Secrets([random.next(), random.next(), random.next(), random.next()])
    }

    #[test]
    fn every_bit_of_the_key_moves_every_bit_of_the_hash() {
        let mut random = Random(7);
        for length in [1, 2, 3, 4, 7, 8, 12, 16, 17, 20, 32, 33, 64, 250] {
            const ROUNDS: u32 = 400;
            let tested: Vec<usize> = match length * 8 {
                bits if bits <= 160 => (0..bits).collect(),
                bits => (0..bits).step_by(13).collect(),
            };
            for bit in tested {
                let mut flips = [0_u32; 64];
                for _ in 0..ROUNDS {
                    let secrets = secrets(&mut random);
                    let mut key: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
                    let before = secrets.hash(&key);
                    key[bit / 8] ^= 1 << (bit % 8);
                    let changed = before ^ secrets.hash(&key);
                    for (at, count) in flips.iter_mut().enumerate() {
                        *count += (changed >> at) as u32 & 1;
                    }
                }
                // 200 expected, standard deviation 10.
                for (at, &count) in flips.iter().enumerate() {
                    assert!(
                        (140..=260).contains(&count),
                        "length {length}, key bit {bit}, hash bit {at}: {count} of {ROUNDS}"
                    );
                }
            }
        }
    }

    #[test]
    fn length_matters_where_the_words_read_are_the_same() {
        let secrets = secrets(&mut Random(1));
        for byte in [0, b'a', 0xff] {
            let mut seen = std::collections::HashSet::new();
            for length in 0..=300 {
                assert!(
                    seen.insert(secrets.hash(&vec![byte; length])),
                    "{length} times {byte}"
                );
            }
        }
    }

    #[test]
    fn no_two_short_keys_meet() {
        let secrets = secrets(&mut Random(2));
        let mut seen = std::collections::HashSet::new();
        for a in 0..=255_u8 {
            assert!(seen.insert(secrets.hash(&[a])));
            for b in 0..=255_u8 {
                assert!(seen.insert(secrets.hash(&[a, b])));
                assert!(seen.insert(secrets.hash(&[a, 0, b])));
                assert!(a == 0 || seen.insert(secrets.hash(&[0, a, b])));
            }
        }
    }

    #[test]
    fn keys_that_collide_under_one_secret_do_not_under_another() {
        let mut random = Random(3);
        let (ours, theirs) = (secrets(&mut random), secrets(&mut random));
        let mut first_bucket = Vec::new();
        for n in 0..200_000 {
            let key = format!("key_{n:016}").into_bytes();
            if ours.hash(&key) & 0xfff == 0 {
                first_bucket.push(theirs.hash(&key) & 0xfff);
            }
        }
        let keys = first_bucket.len();
        first_bucket.sort_unstable();
        first_bucket.dedup();
        assert!(keys > 20, "{keys} keys met");
        assert!(first_bucket.len() > keys * 9 / 10);
    }
}
