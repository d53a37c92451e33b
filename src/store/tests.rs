#![forbid(unsafe_code)]
//! The engine through its public face.

use super::*;
use crate::observe::counters::Registry;

struct Fixture {
    store: Store,
    counters: Arc<ThreadCounters>,
    registry: Registry,
}

impl Fixture {
    fn new(settings: settings::Store) -> Fixture {
        let registry = Registry::default();
        Fixture {
            store: Store::new(&settings).unwrap(),
            counters: registry.register(),
            registry,
        }
    }

    fn small(megabytes: u64) -> Fixture {
        Fixture::new(settings::Store {
            max_bytes: megabytes << 20,
            ..settings::Store::default()
        })
    }

    fn cx(&self, now: u32) -> Cx<'_> {
        Cx {
            now,
            counters: &self.counters,
        }
    }

    fn put<'k>(&self, key: &'k [u8], mode: Mode) -> Put<'k> {
        Put::new(mode, key, self.store.hash(key))
    }

    fn set(&self, key: &[u8], value: &[u8]) -> Stored {
        self.store
            .put(self.cx(100), &self.put(key, Mode::Set), value)
    }

    fn value(&self, now: u32, key: &[u8]) -> Option<Vec<u8>> {
        self.store
            .get(self.cx(now), key, self.store.hash(key), read_all)
            .ok()
            .map(Reading::whole)
    }

    fn items(&self) -> u64 {
        self.registry.totals().over_classes(|class| class.items)
    }
}

enum Reading {
    Copied(Vec<u8>),
    Held(Pin),
}

impl Reading {
    fn whole(self) -> Vec<u8> {
        match self {
            Reading::Copied(value) => value,
            Reading::Held(pin) => {
                let mut value = Vec::new();
                while value.len() < pin.length() {
                    value.extend_from_slice(pin.slice(value.len()));
                }
                value
            }
        }
    }
}

fn read_all(hit: &Hit<'_>) -> Reading {
    match hit.inline() {
        Some(value) => Reading::Copied(value.to_vec()),
        None => Reading::Held(hit.pin().expect("a large value can be held")),
    }
}

fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at.wrapping_mul(31) ^ at >> 8 ^ seed.wrapping_mul(97)) as u8)
        .collect()
}

#[test]
fn what_is_set_can_be_read_at_every_size() {
    let fixture = Fixture::small(64);
    for length in [
        0, 1, 5, 100, 1000, 4095, 4096, 4097, 10_000, 16_300, 16_384, 50_000, 500_000, 1_048_000,
    ] {
        let value = pattern(length, length);
        assert!(
            matches!(fixture.set(b"key", &value), Stored::Stored { length: held, .. } if held == length)
        );
        assert_eq!(fixture.value(100, b"key"), Some(value), "{length}");
        assert_eq!(fixture.items(), 1);
    }
    assert_eq!(fixture.set(b"key", &pattern(0, 1 << 20)), Stored::TooLarge);
}

#[test]
fn a_held_value_outlives_its_item() {
    let fixture = Fixture::small(64);
    let value = pattern(7, 100_000);
    fixture.set(b"key", &value);
    let held = fixture
        .store
        .get(
            fixture.cx(100),
            b"key",
            fixture.store.hash(b"key"),
            read_all,
        )
        .unwrap();
    fixture.set(b"key", &pattern(8, 100_000));
    fixture.store.delete(
        fixture.cx(100),
        b"key",
        fixture.store.hash(b"key"),
        &Delete::default(),
    );
    for number in 0..2000 {
        fixture.set(
            format!("other{number}").as_bytes(),
            &pattern(number, 100_000),
        );
    }
    assert_eq!(held.whole(), value);
}

#[test]
fn a_full_store_gives_up_items_and_never_a_wrong_one() {
    let fixture = Fixture::small(4);
    for number in 0..200_000usize {
        let key = format!("key{number}");
        let value = pattern(number, number % 300);
        assert!(
            matches!(fixture.set(key.as_bytes(), &value), Stored::Stored { .. }),
            "{number}"
        );
    }
    let mut found = 0;
    for number in 0..200_000usize {
        if let Some(value) = fixture.value(100, format!("key{number}").as_bytes()) {
            assert_eq!(value, pattern(number, number % 300));
            found += 1;
        }
    }
    assert_eq!(found, fixture.items());
    assert!(found > 10_000, "{found}");
    let totals = fixture.registry.totals();
    assert_eq!(totals.over_classes(|class| class.evicted) + found, 200_000);
}

#[test]
fn while_evictions_are_watched_one_follows_each_new_item_of_a_full_class() {
    let fixture = Fixture::small(4);
    let evicted = || {
        let totals = fixture.registry.totals();
        totals.over_classes(|class| class.evicted)
    };
    let set_new = |number: usize| {
        let before = evicted();
        fixture.set(format!("key{number}").as_bytes(), &[b'x'; 1000]);
        evicted() - before
    };
    let mut numbers = 0..;
    while evicted() < 1000 {
        set_new(numbers.next().unwrap());
    }
    fixture.store.maintain(fixture.cx(100));
    assert_eq!(
        set_new(numbers.next().unwrap()),
        0,
        "a slot was freed ahead"
    );
    fixture
        .registry
        .taps()
        .want(crate::observe::events::EVICTIONS);
    for number in numbers.by_ref().take(100) {
        if number % 7 == 0 {
            fixture.store.maintain(fixture.cx(100));
        }
        assert_eq!(set_new(number), 1, "{number}");
    }
    // Where an item stands already nobody has to go.
    let last = numbers.start - 1;
    assert_eq!(set_new(last), 0);
}

#[test]
fn what_is_freed_ahead_is_not_taken_for_pages_to_spare() {
    // Five to a page, so that what is kept free is more than a bin otherwise keeps.
    let fixture = Fixture::small(48);
    let evicted = || {
        let totals = fixture.registry.totals();
        totals.over_classes(|class| class.evicted)
    };
    let value = vec![b'x'; 11_000];
    let mut numbers = 0..;
    let mut set_new = || {
        let before = evicted();
        fixture.set(format!("key{}", numbers.next().unwrap()).as_bytes(), &value);
        evicted() - before
    };
    while set_new() == 0 {}
    fixture
        .registry
        .taps()
        .want(crate::observe::events::EVICTIONS);
    for number in 0..40 {
        fixture.store.maintain(fixture.cx(100));
        let (used, limit) = fixture.store.inner.pool.usage();
        assert_eq!(used, limit, "{number}");
        assert_eq!(set_new(), 1, "{number}");
    }
}

#[test]
fn pages_of_long_values_are_emptied_with_what_their_items_leave_elsewhere() {
    let fixture = Fixture::small(8);
    // Two chunks each, so that their pages have parts of twice as many items.
    let mut number = 0;
    while fixture
        .registry
        .totals()
        .over_classes(|class| class.evicted)
        == 0
    {
        fixture.set(format!("key{number}").as_bytes(), &pattern(number, 32_000));
        number += 1;
    }
    let evicted = || {
        let totals = fixture.registry.totals();
        totals.over_classes(|class| class.evicted)
    };
    let before = evicted();
    let class = fixture.store.class_of(6, 0, 32_000);
    let started = fixture.store.reassign(Some(u32::from(class)), 0);
    assert_eq!(started, control::Reassigned::Started);
    fixture.store.maintain(fixture.cx(100));
    let state = fixture.store.state();
    assert_eq!(state.slabs_moved, 1);
    // 64 chunks are those of 32 items.
    let gone = evicted() - before;
    assert!((32..48).contains(&gone), "{gone}");
    for number in 0..number {
        if let Some(value) = fixture.value(100, format!("key{number}").as_bytes()) {
            assert!(value == pattern(number, 32_000));
        }
    }
}

#[test]
fn without_eviction_a_full_store_says_so() {
    let fixture = Fixture::new(settings::Store {
        max_bytes: 2 << 20,
        evict: false,
        ..settings::Store::default()
    });
    let mut refused = 0;
    for number in 0..40_000 {
        match fixture.set(format!("key{number}").as_bytes(), &[b'x'; 200]) {
            Stored::NoMemory => refused += 1,
            stored => assert!(matches!(stored, Stored::Stored { .. })),
        }
    }
    assert!(refused > 0);
    assert_eq!(fixture.items() + refused, 40_000);
}

#[test]
fn expiry_and_flush() {
    let fixture = Fixture::small(8);
    let mut put = fixture.put(b"short", Mode::Set);
    put.expires = 110;
    fixture.store.put(fixture.cx(100), &put, b"x");
    fixture.set(b"long", b"y");
    assert!(fixture.value(109, b"short").is_some());
    assert!(fixture.value(110, b"short").is_none());
    assert_eq!(fixture.registry.totals().general.get_expired, 1);

    fixture.store.flush_all(110, 110);
    assert!(fixture.value(110, b"long").is_none());
    assert_eq!(fixture.registry.totals().general.get_flushed, 1);
    fixture
        .store
        .put(fixture.cx(110), &fixture.put(b"new", Mode::Set), b"z");
    assert!(
        fixture.value(110, b"new").is_some(),
        "stored in the second of the flush, after it"
    );

    fixture.store.flush_all(110, 120);
    assert!(fixture.value(119, b"new").is_some());
    fixture.store.flush_all(121, 500);
    assert!(
        fixture.value(121, b"new").is_none(),
        "a later flush does not undo one that has come due"
    );
}

#[test]
fn a_flush_that_is_due_right_behind_others_takes_all() {
    let fixture = Fixture::small(8);
    let (store, now) = (&fixture.store, 100);
    for _ in 0..3 {
        store.put(fixture.cx(now), &fixture.put(b"key", Mode::Set), b"x");
        store.flush_all(now, now);
        assert!(fixture.value(now, b"key").is_none());
    }
    store.flush_all(now, now + 2);
    store.put(fixture.cx(now), &fixture.put(b"key", Mode::Set), b"x");
    assert!(fixture.value(now + 1, b"key").is_some());
    assert!(fixture.value(now + 2, b"key").is_none());
    store.put(fixture.cx(now + 2), &fixture.put(b"key", Mode::Set), b"x");
    assert!(fixture.value(now + 2, b"key").is_some());
}

#[test]
fn what_is_stored_behind_a_flush_outlives_a_batch_that_began_before_it() {
    let fixture = Fixture::small(8);
    let (key, store) = (b"key", &fixture.store);
    let hash = store.hash(key);
    let reader = store.reader(fixture.cx(100));
    store.flush_all(100, 100);
    fixture.set(key, b"value");
    let spot = store.prefetch(hash);
    assert!(reader.get(key, hash, &spot, |_| ()).is_ok());
    assert_eq!(fixture.value(100, key).as_deref(), Some(&b"value"[..]));
}

#[test]
fn add_replace_cas_append_prepend() {
    let fixture = Fixture::small(8);
    let run = |mode, cas, value: &[u8]| {
        let mut put = fixture.put(b"key", mode);
        put.cas = cas;
        fixture.store.put(fixture.cx(100), &put, value)
    };
    assert_eq!(run(Mode::Replace, None, b"0"), Stored::NotStored);
    assert_eq!(run(Mode::Append, None, b"0"), Stored::NotStored);
    assert_eq!(run(Mode::Set, Some(1), b"0"), Stored::NotFound);
    let Stored::Stored { cas, .. } = run(Mode::Add, None, b"one") else {
        panic!()
    };
    assert_eq!(run(Mode::Add, None, b"two"), Stored::NotStored);
    assert_eq!(run(Mode::Set, Some(cas + 100), b"two"), Stored::Exists);
    let Stored::Stored { cas: next, .. } = run(Mode::Set, Some(cas), b"two") else {
        panic!()
    };
    assert!(next > cas);
    run(Mode::Append, None, b"-tail");
    run(Mode::Prepend, None, b"head-");
    assert_eq!(fixture.value(100, b"key").unwrap(), b"head-two-tail");
    for _ in 0..100 {
        run(Mode::Append, None, &[b'a'; 300]);
        run(Mode::Prepend, None, &[b'p'; 300]);
    }
    let value = fixture.value(100, b"key").unwrap();
    assert_eq!(value.len(), 60_013);
    assert!(value.starts_with(b"pppp") && value.ends_with(b"aaaa"));
    assert_eq!(fixture.items(), 1);
}

#[test]
fn counting_pads_and_grows() {
    let fixture = Fixture::small(8);
    let arith = |up, delta| {
        let how = Arith {
            up,
            delta,
            cas: None,
            new_cas: None,
            touch: None,
            create: None,
        };
        fixture
            .store
            .arith(fixture.cx(100), b"n", fixture.store.hash(b"n"), &how)
    };
    assert_eq!(arith(true, 1), Counted::NotFound);
    fixture.set(b"n", b"10");
    assert!(matches!(arith(false, 1), Counted::Number { value: 9, .. }));
    assert_eq!(fixture.value(100, b"n").unwrap(), b"9 ");
    assert!(matches!(
        arith(false, 100),
        Counted::Number { value: 0, .. }
    ));
    assert!(matches!(
        arith(true, u64::MAX),
        Counted::Number {
            value: u64::MAX,
            ..
        }
    ));
    assert_eq!(fixture.value(100, b"n").unwrap(), b"18446744073709551615");
    assert!(matches!(arith(true, 2), Counted::Number { value: 1, .. }));
    fixture.set(b"n", b"abc");
    assert_eq!(arith(true, 1), Counted::NonNumeric);
    for length in [100, 4097, COUNT_MAX] {
        let mut long = vec![b'x'; length];
        long[..3].copy_from_slice(b"41 ");
        fixture.set(b"n", &long);
        assert!(matches!(arith(true, 1), Counted::Number { value: 42, .. }));
        let mut counted = vec![b' '; length];
        counted[..2].copy_from_slice(b"42");
        assert_eq!(fixture.value(100, b"n"), Some(counted));
    }
}

#[test]
fn an_upload_is_seen_when_it_is_whole() {
    let fixture = Fixture::small(64);
    let value = pattern(3, 700_000);
    let put = fixture.put(b"key", Mode::Set);
    let mut upload = fixture
        .store
        .begin(fixture.cx(100), &put, value.len())
        .unwrap();
    let mut sent = 0;
    while upload.missing() > 0 {
        let spare = upload.spare(fixture.cx(100)).expect("memory");
        let n = spare.len().min(1000);
        spare[..n].copy_from_slice(&value[sent..sent + n]);
        upload.advance(n);
        sent += n;
        if sent < value.len() {
            assert_eq!(fixture.value(100, b"key"), None);
        }
    }
    fixture.store.finish(fixture.cx(100), &put, upload);
    assert_eq!(fixture.value(100, b"key"), Some(value));

    // One that is given up gives everything back.
    let before = fixture.store.state().page_bytes;
    for _ in 0..500 {
        drop(
            fixture
                .store
                .begin(fixture.cx(100), &put, 1_000_000)
                .unwrap(),
        );
    }
    assert!(fixture.store.state().page_bytes <= before + (2 << 20));
}

#[test]
fn the_crawler_frees_what_is_expired() {
    let fixture = Fixture::small(8);
    for number in 0..1000 {
        let key = format!("key{number}");
        let mut put = fixture.put(key.as_bytes(), Mode::Set);
        put.expires = if number % 2 == 0 { 150 } else { 0 };
        fixture.store.put(fixture.cx(100), &put, b"value");
    }
    assert_eq!(
        fixture.store.crawl(200, u64::MAX),
        control::Crawled::Started
    );
    for _ in 0..100_000 {
        fixture.store.crawl_step(fixture.cx(200));
        if !fixture.store.state().crawler_running {
            break;
        }
    }
    assert_eq!(fixture.items(), 500);
    assert_eq!(
        fixture
            .registry
            .totals()
            .over_classes(|class| class.crawler_reclaimed),
        500
    );
}

#[test]
fn a_dump_shows_every_item_once() {
    let fixture = Fixture::small(64);
    for number in 0..3000usize {
        fixture.set(
            format!("key{number}").as_bytes(),
            &pattern(number, number * 7 % 20_000),
        );
    }
    let mut dump = fixture.store.dump(u64::MAX).unwrap();
    let mut keys = std::collections::BTreeSet::new();
    while fixture
        .store
        .dump_step(fixture.cx(100), &mut dump, 100, |hit| {
            assert!(keys.insert(hit.key().to_vec()));
            true
        })
    {}
    assert_eq!(keys.len() as u64, fixture.items());
}

#[test]
fn pages_move_to_where_they_are_needed() {
    let fixture = Fixture::small(8);
    for number in 0..60_000usize {
        fixture.set(format!("small{number}").as_bytes(), &pattern(number, 60));
    }
    for round in 0..200 {
        for number in 0..200usize {
            let key = format!("large{number}");
            fixture.set(key.as_bytes(), &pattern(number, 9000));
            fixture.value(100, key.as_bytes());
        }
        if round % 5 == 0 {
            fixture.store.maintain(fixture.cx(100));
        }
    }
    let held = (0..200usize)
        .filter(|number| {
            fixture
                .value(100, format!("large{number}").as_bytes())
                .is_some()
        })
        .count();
    assert!(held > 100, "{held} of 200 large items held");
    for number in 0..60_000usize {
        if let Some(value) = fixture.value(100, format!("small{number}").as_bytes()) {
            assert_eq!(value, pattern(number, 60));
        }
    }
}

#[test]
fn items_that_are_read_survive_when_their_page_moves() {
    let fixture = Fixture::small(64);
    let lengths = [10, 300, 3000, 5000, 9000, 15_000, 20_000, 70_000, 300_000];
    let key = |number: usize| format!("key{number}");
    for number in 0..lengths.len() * 8 {
        fixture.set(
            key(number).as_bytes(),
            &pattern(number, lengths[number % lengths.len()]),
        );
    }
    let bins = fixture.store.inner.bins.len() as u8;
    for round in 0..40 {
        for number in 0..lengths.len() * 8 {
            let value = fixture.value(100, key(number).as_bytes());
            assert_eq!(
                value,
                Some(pattern(number, lengths[number % lengths.len()])),
                "{number} in round {round}"
            );
        }
        for bin in 0..bins {
            if let Some(page) =
                fixture
                    .store
                    .inner
                    .empty_page(fixture.cx(100), bin, mover::Means::Eviction)
            {
                fixture.store.inner.pool.give(page);
            }
        }
    }
    assert!(fixture.store.state().reassign_rescues > 1000);
}

#[test]
fn what_is_created_dead_is_read_all_the_same() {
    let fixture = Fixture::small(64);
    let hash = fixture.store.hash(b"key");
    let create = Fetch {
        vivify: Some(50),
        leases: true,
        ..Fetch::default()
    };
    for _ in 0..2 {
        let won = fixture
            .store
            .fetch(fixture.cx(100), b"key", hash, &create, |hit| hit.won());
        assert_eq!(won.ok(), Some(true));
        assert_eq!(fixture.value(100, b"key"), None);
    }
}

#[test]
fn the_table_grows_under_its_items() {
    let fixture = Fixture::small(256);
    for number in 0..400_000usize {
        fixture.set(format!("key{number}").as_bytes(), b"value");
    }
    assert_eq!(fixture.items(), 400_000);
    for number in 0..400_000usize {
        assert!(
            fixture
                .value(100, format!("key{number}").as_bytes())
                .is_some(),
            "{number}"
        );
    }
    assert!(fixture.store.state().hash_power > 16);
}

#[test]
fn slots_are_as_fine_as_their_classes_say() {
    let fixture = Fixture::small(1024);
    let inner = &fixture.store.inner;
    for bin in 0..inner.classes.bin_count() as u8 {
        assert_eq!(inner.arena.slot_size(bin), inner.classes.bin_size(bin));
    }
}

/// A value that grows at both ends, among pages that move and readers that hold it.
#[test]
fn a_value_grows_where_it_stands() {
    let fixture = Fixture::new(settings::Store {
        max_bytes: 64 << 20,
        item_size_max: 8 << 20,
        ..settings::Store::default()
    });
    let mut value = pattern(1, 30_000);
    fixture.set(b"key", &value);
    let bins = fixture.store.inner.bins.len() as u8;
    let mut held: Vec<(Pin, Vec<u8>)> = Vec::new();
    for round in 0..400usize {
        let added = pattern(round, [1, 10, 200, 4000, 15_000, 20_000, 40_000][round % 7]);
        let front = round % 3 == 0;
        let mode = if front { Mode::Prepend } else { Mode::Append };
        let stored = fixture
            .store
            .put(fixture.cx(100), &fixture.put(b"key", mode), &added);
        if front {
            value.splice(0..0, added);
        } else {
            value.extend(added);
        }
        let length = value.len();
        assert!(
            matches!(stored, Stored::Stored { length: now, .. } if now == length),
            "{stored:?} in round {round}"
        );
        assert!(
            fixture.value(100, b"key").as_ref() == Some(&value),
            "round {round}"
        );
        match round % 10 {
            3 => {
                let hash = fixture.store.hash(b"key");
                let pin = fixture
                    .store
                    .get(fixture.cx(100), b"key", hash, |hit| hit.pin())
                    .unwrap();
                held.push((pin.expect("a large value"), value.clone()));
            }
            6 => {
                for (pin, value) in held.drain(..) {
                    assert!(Reading::Held(pin).whole() == value);
                }
            }
            8 => {
                let bin = (round % usize::from(bins)) as u8;
                for bin in [bin, bins - 1] {
                    if let Some(page) =
                        fixture
                            .store
                            .inner
                            .empty_page(fixture.cx(100), bin, mover::Means::Eviction)
                    {
                        fixture.store.inner.pool.give(page);
                    }
                }
            }
            _ => {}
        }
    }
    drop(held);
    fixture.store.delete(
        fixture.cx(100),
        b"key",
        fixture.store.hash(b"key"),
        &Delete::default(),
    );
    assert_no_slot_used(&fixture);
}

/// Many small additions do not leave a chain of small chunks, and do not take a new one each.
#[test]
fn small_additions_share_chunks() {
    let fixture = Fixture::small(64);
    fixture.set(b"key", &pattern(1, 20_000));
    for round in 0..6000usize {
        let mode = if round % 2 == 0 {
            Mode::Append
        } else {
            Mode::Prepend
        };
        fixture
            .store
            .put(fixture.cx(100), &fixture.put(b"key", mode), &[b'x'; 100]);
    }
    let used: usize = (0..fixture.store.inner.bins.len())
        .map(|bin| fixture.store.inner.bins[bin].lock().pages.used())
        .sum();
    // 620,000 bytes in chunks that are at least half full.
    assert!(used < 80, "{used} slots");
}

/// A value for the rest of which there is no memory gives back what it had.
#[test]
fn an_upload_without_memory_gives_back_what_it_had() {
    let fixture = Fixture::new(settings::Store {
        max_bytes: 4 << 20,
        item_size_max: 64 << 20,
        evict: false,
        ..settings::Store::default()
    });
    let put = fixture.put(b"key", Mode::Set);
    let mut upload = fixture
        .store
        .begin(fixture.cx(100), &put, 8 << 20)
        .expect("the beginning has room");
    let refused = loop {
        match upload.spare(fixture.cx(100)) {
            Ok(spare) => {
                let n = spare.len();
                upload.advance(n);
            }
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Refused::NoMemory);
    assert!(upload.missing() < 5 << 20, "{} missing", upload.missing());
    drop(upload);
    assert_no_slot_used(&fixture);
}

fn assert_no_slot_used(fixture: &Fixture) {
    for bin in &fixture.store.inner.bins {
        assert_eq!(bin.lock().pages.used(), 0);
    }
}

/// What stats items and slabs show of large values: each counts under its own class.
#[test]
fn classes_of_large_values_are_told_apart() {
    let fixture = Fixture::small(64);
    for number in 0..30usize {
        fixture.set(format!("a{number}").as_bytes(), &pattern(number, 20_000));
        fixture.set(format!("b{number}").as_bytes(), &pattern(number, 70_000));
    }
    for number in 0..10usize {
        fixture.value(100, format!("b{number}").as_bytes());
    }
    let class = |length| fixture.store.class_of(2, 0, length);
    let (small, large) = (class(20_000), class(70_000));
    assert_ne!(small, large);
    let totals = fixture.registry.totals();
    let held = |class: u8| totals.classes[usize::from(class)].bytes;
    let state = |class| fixture.store.class(class, held(class), 100).unwrap();
    assert_eq!(state(small).used_chunks, 30);
    assert_eq!((state(small).warm.items, state(small).cold.items), (0, 30));
    assert_eq!((state(large).warm.items, state(large).cold.items), (10, 20));
    assert_eq!((state(small).pages, state(large).pages), (1, 3));
    for number in 0..30usize {
        let key = format!("b{number}");
        let hash = fixture.store.hash(key.as_bytes());
        fixture
            .store
            .delete(fixture.cx(100), key.as_bytes(), hash, &Delete::default());
    }
    let totals = fixture.registry.totals();
    let held = totals.classes[usize::from(large)].bytes;
    let state = fixture.store.class(large, held, 100).unwrap();
    assert_eq!((state.pages, state.used_chunks), (0, 0));
    assert_eq!(state.warm, Default::default());
}
