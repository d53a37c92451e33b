#![forbid(unsafe_code)]
use std::collections::BTreeMap;

use super::*;
use crate::observe::{Registry, ThreadCounters};
use crate::settings;
use crate::store::journal::record::victims;
use crate::store::journal::{Cursor, Kind, PARTITIONS, Record, partition};
use crate::store::{Arith, Delete, Fetch, Mode, Put};

struct Node {
    store: Store,
    counters: Arc<ThreadCounters>,
    read: [Cursor; PARTITIONS],
    flushed: BTreeMap<usize, usize>,
    /// By partition, up to where it may have something that comes later in the log.
    ahead: BTreeMap<usize, u64>,
    flushes: Vec<u64>,
}

impl Node {
    fn new(follower: bool, megabytes: u64) -> Node {
        let store = Store::new(&settings::Store {
            max_bytes: megabytes << 20,
            journal: Some(settings::Journal {
                ring_bytes: 256 << 20,
                follower,
            }),
            ..settings::Store::default()
        })
        .unwrap();
        store.journal().unwrap().open_rings();
        Node {
            store,
            counters: Registry::new(64 << 10).register(),
            read: [Cursor::before(1); PARTITIONS],
            flushed: BTreeMap::new(),
            ahead: BTreeMap::new(),
            flushes: Vec::new(),
        }
    }

    fn cx(&self, now: u32) -> Cx<'_> {
        Cx {
            now,
            counters: &self.counters,
        }
    }

    /// Applies everything the leader has logged since the last time.
    fn catch_up(&mut self, leader: &Node, now: u32) {
        for number in 0..PARTITIONS {
            let mut bytes = Vec::new();
            let log = leader.store.journal().unwrap();
            log.settle();
            while log
                .read(
                    number,
                    &mut self.read[number],
                    u64::MAX,
                    1 << 20,
                    &mut bytes,
                )
                .unwrap()
                .records
                > 0
            {}
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (record, behind) = Record::parse(rest).unwrap();
                self.apply(leader, number, &record, now);
                rest = behind;
            }
        }
    }

    fn apply(&mut self, leader: &Node, number: usize, record: &Record<'_>, now: u32) {
        let journal = self.store.journal().unwrap().clone();
        let expires = journal.from_wire(record.expires, 0);
        let dead = self.flushed.get(&number).copied().unwrap_or(0) < self.flushes.len();
        match record.kind {
            Kind::Put => assert!(self.store.apply_put(self.cx(now), record, expires, dead)),
            Kind::Append | Kind::Prepend
                if self.store.apply_extend(self.cx(now), record) == Extended::Done => {}
            // In their order they are applied; behind something newer they are not.
            Kind::PutLater | Kind::Append | Kind::Prepend => {
                let whole = leader.store.look(record.key, |seen| {
                    let mut value = Vec::new();
                    seen.hit.pieces(|piece| value.extend_from_slice(piece));
                    let mut bytes = Vec::new();
                    Record {
                        value: &value,
                        ..seen.record(&leader.store, Kind::Put)
                    }
                    .encode(&mut bytes);
                    bytes
                });
                let there = whole
                    .as_ref()
                    .map(|bytes| Record::parse(bytes).unwrap().0.cas);
                if there != Some(record.cas) {
                    let end = leader.store.journal().unwrap().seq(number);
                    self.ahead.insert(number, end);
                }
                if let Some(bytes) = whole {
                    let (record, _) = Record::parse(&bytes).unwrap();
                    let expires = journal.from_wire(record.expires, 0);
                    let cx = self.cx(now);
                    let length = record.value.len();
                    let mut upload = self
                        .store
                        .apply_begin(cx, &record, expires, length)
                        .unwrap();
                    let mut rest = record.value;
                    while !rest.is_empty() {
                        let n = {
                            let spare = upload.spare(cx).unwrap();
                            let n = spare.len().min(rest.len());
                            spare[..n].copy_from_slice(&rest[..n]);
                            n
                        };
                        upload.advance(n);
                        rest = &rest[n..];
                    }
                    assert!(self.store.apply_finish(cx, &record, expires, dead, upload));
                }
            }
            Kind::Meta => self.store.apply_meta(record, expires),
            Kind::Delete => self.store.apply_delete(self.cx(now), record.key),
            Kind::Gone => {
                for (cas, key) in victims(record.value).flatten() {
                    self.store.apply_gone(self.cx(now), key, cas);
                }
            }
            // It will be logged again when it comes due.
            Kind::Flush if record.expires != 0 => {}
            Kind::Flush => {
                let known = self.flushes.iter().position(|flush| *flush == record.cas);
                let at = known.unwrap_or_else(|| {
                    self.flushes.push(record.cas);
                    self.store.apply_flush(now);
                    self.flushes.len() - 1
                });
                self.flushed.insert(number, at + 1);
            }
            Kind::Digest if self.ahead.get(&number) >= Some(&record.seq) => {}
            Kind::Digest => {
                assert_eq!(
                    journal.freeze(number),
                    record.argument,
                    "digest of {number}"
                );
            }
            other => panic!("{other:?}"),
        }
        journal.replay(number, std::slice::from_ref(record));
    }

    fn living(&self, now: u32) -> BTreeMap<String, String> {
        let mut items = BTreeMap::new();
        let mut from = Some(0);
        while let Some(pair) = from {
            from = self.store.walk_pairs(pair, 100, |seen| {
                if self.store.seen_dead(now, &seen.hit) {
                    return;
                }
                let hit = &seen.hit;
                let mut value = Vec::new();
                hit.pieces(|piece| value.extend_from_slice(piece));
                let rest = format!(
                    "{} bytes {:x} cas {} flags {} expires {} marks {}",
                    value.len(),
                    journal::place(&value),
                    hit.cas(),
                    hit.flags(),
                    hit.expires(),
                    hit.record_marks()
                );
                items.insert(String::from_utf8_lossy(&seen.key).into_owned(), rest);
            });
        }
        items
    }

    fn expect_equal(&self, leader: &Node, now: u32) {
        let (ours, theirs) = (self.living(now), leader.living(now));
        for (key, item) in &theirs {
            assert_eq!(ours.get(key), Some(item), "{key}");
        }
        for (key, item) in &ours {
            assert_eq!(Some(item), theirs.get(key), "{key}");
        }
    }

    /// The leaves as the items make them.
    fn check_rows(&self) {
        let mut rows = vec![[0u64; journal::LEAVES]; PARTITIONS];
        let mut from = Some(0);
        while let Some(pair) = from {
            from = self.store.walk_pairs(pair, 100, |seen| {
                rows[partition(seen.place)][journal::leaf(seen.place)] ^= seen.digest;
            });
        }
        for (number, row) in rows.iter().enumerate() {
            assert!(
                *self.store.journal().unwrap().row(number).row == *row,
                "row {number}"
            );
        }
    }
}

/// Marsaglia's xorshift.
fn dice(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn mutate(node: &Node, seed: &mut u64, now: u32) {
    let cx = node.cx(now);
    let store = &node.store;
    let key = format!("key{}", dice(seed) % 300);
    let key = key.as_bytes();
    let hash = store.hash(key);
    let length = match dice(seed) % 20 {
        0 => 5000 + dice(seed) as usize % 60_000,
        1..4 => dice(seed) as usize % 4097,
        _ => dice(seed) as usize % 100,
    };
    let value = vec![b'0' + (dice(seed) % 10) as u8; length];
    let expires = match dice(seed) % 3 {
        0 => now + 1 + dice(seed) as u32 % 4,
        _ => 0,
    };
    let put = |mode| Put {
        key,
        hash,
        mode,
        flags: length as u32 % 3,
        expires,
        cas: None,
        new_cas: None,
        invalidate: false,
        vivify: None,
        binary_key: false,
    };
    match dice(seed) % 16 {
        0..6 => {
            store.put(cx, &put(Mode::Set), &value);
        }
        6 => {
            store.put(cx, &put(Mode::Add), &value);
        }
        7 => {
            store.put(cx, &put(Mode::Append), &value[..length.min(200)]);
        }
        8 => {
            store.put(cx, &put(Mode::Prepend), &value[..length.min(200)]);
        }
        9 => {
            let how = Arith {
                up: length % 2 == 0,
                delta: length as u64,
                cas: None,
                new_cas: None,
                touch: None,
                create: (length % 3 == 0).then_some((7, expires)),
            };
            store.arith(cx, key, hash, &how);
        }
        10 => {
            store.delete(cx, key, hash, &Delete::default());
        }
        11 => {
            let how = Delete {
                stale: true,
                touch: Some(expires),
                ..Delete::default()
            };
            store.delete(cx, key, hash, &how);
        }
        12 => {
            let how = Delete {
                drop_value: true,
                ..Delete::default()
            };
            store.delete(cx, key, hash, &how);
        }
        13 => {
            let how = Fetch {
                touch: Some(expires),
                leases: true,
                ..Fetch::default()
            };
            let _ = store.fetch(cx, key, hash, &how, |_| ());
        }
        14 => {
            let how = Fetch {
                vivify: Some(expires),
                leases: true,
                recache: Some(now + 2),
                ..Fetch::default()
            };
            let _ = store.fetch(cx, key, hash, &how, |_| ());
        }
        _ if dice(seed) % 100 < 2 => store.flush_all(now, now + dice(seed) as u32 % 3),
        _ => {
            let _ = store.get(cx, key, hash, |_| ());
        }
    }
}

#[test]
fn a_copy_that_applies_the_log_is_equal() {
    for round in 1..=4u64 {
        let mut seed = round * 0x9e37_79b9;
        let leader = Node::new(false, 64);
        let mut follower = Node::new(true, 64);
        let mut now = 100;
        for step in 0..6000 {
            if step % 500 == 0 {
                now += 1;
            }
            mutate(&leader, &mut seed, now);
            if step % 700 == 0 {
                leader.store.crawl_step(leader.cx(now));
                for number in 0..PARTITIONS {
                    leader.store.journal().unwrap().mark(number);
                }
                follower.catch_up(&leader, now);
                leader.check_rows();
                follower.check_rows();
                follower.expect_equal(&leader, now);
            }
        }
        assert_eq!(follower.store.journal().unwrap().lost_locally(), 0);
    }
}

#[test]
fn what_is_evicted_goes_on_both_sides() {
    let leader = Node::new(false, 2);
    let mut follower = Node::new(true, 4);
    for number in 0..20_000u32 {
        let key = format!("key{number}");
        let key = key.as_bytes();
        let put = Put {
            key,
            hash: leader.store.hash(key),
            mode: Mode::Set,
            flags: 0,
            expires: 0,
            cas: None,
            new_cas: None,
            invalidate: false,
            vivify: None,
            binary_key: false,
        };
        leader.store.put(leader.cx(100), &put, &[b'x'; 200]);
        if number % 1000 == 0 {
            follower.catch_up(&leader, 100);
        }
    }
    follower.catch_up(&leader, 100);
    assert!(leader.store.items() < 15_000);
    leader.check_rows();
    follower.expect_equal(&leader, 100);
}

#[test]
fn a_follower_hides_what_is_dead_and_says_what_it_gave_up() {
    let mut follower = Node::new(true, 2);
    let leader = Node::new(false, 64);
    let key = b"key";
    let hash = leader.store.hash(key);
    let put = Put {
        key,
        hash,
        mode: Mode::Set,
        flags: 0,
        expires: 105,
        cas: None,
        new_cas: None,
        invalidate: false,
        vivify: None,
        binary_key: false,
    };
    leader.store.put(leader.cx(100), &put, b"value");
    follower.catch_up(&leader, 100);
    let hash = follower.store.hash(key);
    let get = |node: &Node, now| node.store.get(node.cx(now), key, hash, |_| ());
    assert!(get(&follower, 104).is_ok());
    assert_eq!(get(&follower, 105), Err(crate::store::Miss::Expired));
    assert_eq!(follower.store.items(), 1, "hidden, not gone");
    follower.check_rows();
    for number in 0..20_000u32 {
        let key = format!("key{number}");
        let record = Record {
            cas: u64::from(number) + 10,
            value: &[b'x'; 300],
            ..Record::new(Kind::Put, key.as_bytes())
        };
        follower
            .store
            .apply_put(follower.cx(100), &record, 0, false);
    }
    assert!(follower.store.items() < 19_000);
    assert!(follower.store.journal().unwrap().lost_locally() > 1000);
    follower.check_rows();
}

#[test]
fn a_flush_that_comes_due_meets_another() {
    let leader = Node::new(false, 8);
    leader.store.flush_all(10, 11);
    // Nobody has looked since it came due.
    leader.store.flush_all(12, 12);
    assert_eq!(leader.store.journal().unwrap().positions(), [3; PARTITIONS]);
}
