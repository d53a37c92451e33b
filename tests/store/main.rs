//! The store as a whole, through its public face.
#![forbid(unsafe_code)]

/// Random operations against a plain map.
mod model;

/// What takes minutes and gigabytes.
mod soak;

/// Many threads at once.
mod threads;

use larder::settings;
use larder::store::{Cx, Pin, Store};

/// A repeatable stream of random numbers.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// `make` once in `n`.
    pub fn maybe<T>(&mut self, n: usize, make: impl FnOnce(&mut Random) -> T) -> Option<T> {
        self.one_in(n).then(|| make(self))
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A length of a value: mostly small, some about every border that the store knows, few large.
    pub fn length(&mut self) -> usize {
        match self.below(100) {
            0..35 => self.below(40),
            35..65 => self.below(300),
            65..80 => self.below(2000),
            80..85 => 4096 - 20 + self.below(40),
            85..91 => self.below(16 << 10),
            91..94 => (16 << 10) - 80 + self.below(100),
            94..97 => (32 << 10) - 80 + self.below(100),
            _ => self.below(120 << 10),
        }
    }

    /// Bytes that do not begin like a number.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.word().to_le_bytes());
        }
        bytes.truncate(length);
        if let Some(first) = bytes.first_mut() {
            *first |= 0x80;
        }
        bytes
    }
}

fn with_memory(megabytes: u64) -> settings::Store {
    settings::Store {
        max_bytes: megabytes << 20,
        ..settings::Store::default()
    }
}

fn open(settings: &settings::Store) -> Store {
    Store::new(settings).expect("a store")
}

/// All bytes of a value that is held.
fn read(pin: &Pin) -> Vec<u8> {
    let mut value = Vec::with_capacity(pin.length());
    loop {
        let piece = pin.slice(value.len());
        if piece.is_empty() {
            return value;
        }
        value.extend_from_slice(piece);
    }
}

/// Lets the crawler go everywhere once.
fn crawl_all(store: &Store, cx: Cx<'_>) {
    // One that is under way has seen some pages too early.
    for _ in 0..2 {
        let _ = store.crawl(cx.now, u64::MAX);
        while store.state().crawler_running {
            store.crawl_step(cx);
        }
    }
}

/// Every slot of every class is free.
fn assert_no_slot_used(store: &Store) {
    assert_eq!(store.state().used_slots, 0);
}
