//! Random operations on a store and on a plain map that knows what each of them means. With room for
//! everything the two must agree on every answer. With little room the store may have lost an item;
//! it must then say so, and may never show a wrong one.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;

use larder::observe::ThreadCounters;
use larder::settings;
use larder::store::{
    Arith, COPY_MAX, COUNT_MAX, Counted, Cx, Delete, Deleted, Fetch, Hit, Miss, Mode, Pin, Put,
    Store, Stored, Upload,
};

use crate::{Random, assert_no_slot_used, crawl_all, open, read, with_memory};

/// A value, which failures show in short.
#[derive(Clone, PartialEq, Eq)]
struct Value(Vec<u8>);

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes: {}",
            self.0.len(),
            self.0[..self.0.len().min(20)].escape_ascii()
        )
    }
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    value: Value,
    flags: u32,
    expires: u32,
    cas: u64,
    accessed: u32,
    fetched: bool,
    stale: bool,
    token_sent: bool,
    binary_key: bool,
}

impl Item {
    fn new(value: Vec<u8>, flags: u32, expires: u32, now: u32) -> Item {
        Item {
            value: Value(value),
            flags,
            expires,
            cas: 0,
            accessed: now,
            fetched: false,
            stale: false,
            token_sent: false,
            binary_key: false,
        }
    }
}

/// How a store is tried.
struct Trial {
    settings: settings::Store,
    keys: usize,
    /// Half of them are longer than memcached's, and differ at their very end only.
    long_keys: bool,
    operations: usize,
    /// Everything fits: nothing may be lost.
    roomy: bool,
}

/// About the borders of what a header, a slot and a chunk hold, and far beyond.
const LONG_KEYS: [usize; 8] = [251, 255, 256, 300, 4100, 16_340, 16_384, 70_000];

/// A store and what it should hold.
struct Pair {
    trial: Trial,
    store: Store,
    counters: ThreadCounters,
    random: Random,
    now: u32,
    items: HashMap<Vec<u8>, Item>,
    /// A flush that is still to come.
    flush_at: Option<u32>,
    largest_cas: u64,
    pins: Vec<(Pin, Value)>,
    uploads: Vec<(Upload, PutPlan)>,
    lost: u64,
    puts: u64,
    refused: u64,
}

/// A put, and its value.
#[derive(Debug, Clone)]
struct PutPlan {
    key: Vec<u8>,
    mode: Mode,
    flags: u32,
    expires: u32,
    cas: Option<u64>,
    new_cas: Option<u64>,
    invalidate: bool,
    vivify: Option<u32>,
    binary_key: bool,
    value: Value,
}

impl PutPlan {
    fn put<'a>(&'a self, store: &Store) -> Put<'a> {
        Put {
            key: &self.key,
            hash: store.hash(&self.key),
            mode: self.mode,
            flags: self.flags,
            expires: self.expires,
            cas: self.cas,
            new_cas: self.new_cas,
            invalidate: self.invalidate,
            vivify: self.vivify,
            binary_key: self.binary_key,
        }
    }
}

/// What a put should come to, apart from CAS and class.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Planned {
    Stored(Item),
    NotStored,
    Exists,
    NotFound,
}

impl Planned {
    fn agrees(&self, stored: Stored) -> bool {
        match (self, stored) {
            (Planned::Stored(item), Stored::Stored { length, .. }) => item.value.len() == length,
            (Planned::NotStored, Stored::NotStored)
            | (Planned::Exists, Stored::Exists)
            | (Planned::NotFound, Stored::NotFound) => true,
            _ => false,
        }
    }
}

impl Pair {
    fn new(trial: Trial, seed: u64) -> Pair {
        Pair {
            store: open(&trial.settings),
            trial,
            counters: ThreadCounters::default(),
            random: Random(seed),
            now: 62,
            items: HashMap::new(),
            flush_at: None,
            largest_cas: 1,
            pins: Vec::new(),
            uploads: Vec::new(),
            lost: 0,
            puts: 0,
            refused: 0,
        }
    }

    fn run(mut self) {
        for step in 0..self.trial.operations {
            self.step();
            if step % 5000 == 4999 {
                self.compare_all();
            }
        }
        self.uploads.clear();
        self.pins.clear();
        self.compare_all();
        self.account();
        self.flush_and_crawl();
    }

    fn key(&mut self) -> Vec<u8> {
        // The lower the number, the more often it comes.
        let (a, b) = (
            self.random.below(self.trial.keys),
            self.random.below(self.trial.keys),
        );
        let number = a.min(b);
        let length = match number % 16 {
            0 => 250,
            1 => 6,
            2..10 if self.trial.long_keys => LONG_KEYS[number % 8],
            _ => 20,
        };
        let digits = format!("{number:06}");
        [&vec![b'0'; length - digits.len()], digits.as_bytes()].concat()
    }

    fn expires(&mut self) -> u32 {
        match self.random.below(10) {
            0..6 => 0,
            6..9 => self.now + 1 + self.random.below(30) as u32,
            _ => 1,
        }
    }

    fn has_cas(&self) -> bool {
        self.trial.settings.cas
    }

    /// The right CAS of a key, or one that is too old or too new.
    fn some_cas(&mut self, key: &[u8]) -> u64 {
        let right = self.items.get(key).map_or(7, |item| item.cas);
        match self.random.below(4) {
            0 => right.saturating_sub(1).max(1),
            1 => right + 1,
            _ => right.max(1),
        }
    }

    /// The item of a key, unless its time is over.
    fn living(&self, key: &[u8]) -> Option<&Item> {
        let item = self.items.get(key)?;
        let dead = item.expires != 0 && item.expires <= self.now;
        (!dead).then_some(item)
    }

    /// Forgets an item that the store no longer has.
    fn lose(&mut self, key: &[u8], what: &str) {
        let item = self.items.get(key);
        assert!(
            !self.trial.roomy,
            "{what}: {} is gone at {}: {item:?}",
            key.escape_ascii(),
            self.now
        );
        self.items.remove(key);
        self.lost += 1;
    }

    fn learn_cas(&mut self, given: Option<u64>, cas: u64) -> u64 {
        if !self.has_cas() {
            assert_eq!(cas, 0);
            return 0;
        }
        match given {
            Some(given) => assert_eq!(cas, given),
            None => {
                assert!(cas > self.largest_cas, "{cas} after {}", self.largest_cas);
                self.largest_cas = cas;
            }
        }
        cas
    }

    /// An explicit CAS, out of the way of those that the store makes up.
    fn new_cas(&mut self) -> Option<u64> {
        self.random
            .maybe(8, |random| (1 << 40) + random.word() % 1000)
    }

    fn step(&mut self) {
        match self.random.below(1000) {
            0..330 => self.get(),
            330..400 => self.fetch(),
            400..680 => self.put(),
            680..720 => self.begin(),
            720..760 => self.finish(),
            760..820 => self.delete(),
            820..900 => self.arith(),
            900..960 => self.upkeep(),
            960..990 => self.release_pin(),
            990..999 => self.pass_time(),
            _ if self.random.one_in(25) => self.flush(),
            _ => self.get(),
        }
    }

    fn get(&mut self) {
        let key = self.key();
        let hash = self.store.hash(&key);
        let wanted = self.random.one_in(4);
        let cx = Cx {
            now: self.now,
            counters: &self.counters,
        };
        let expected = self.living(&key).cloned();
        let result = self.store.get(cx, &key, hash, |hit| {
            let expected = expected
                .as_ref()
                .unwrap_or_else(|| panic!("{} came back", key.escape_ascii()));
            check(hit, &key, expected);
            if wanted { hit.pin() } else { None }
        });
        match result {
            Ok(pin) => {
                let item = self.items.get_mut(&key).expect("it was just compared");
                item.accessed = self.now;
                item.fetched = true;
                if let Some(pin) = pin {
                    assert!(item.value.len() > COPY_MAX || key.len() > 250);
                    assert_eq!(pin.length(), item.value.len());
                    self.pins.push((pin, item.value.clone()));
                    if self.pins.len() > 12 {
                        self.release_pin();
                    }
                }
            }
            Err(miss) => self.missed(&key, miss),
        }
    }

    fn missed(&mut self, key: &[u8], miss: Miss) {
        if self.living(key).is_some() {
            assert_eq!(miss, Miss::NotFound);
            self.lose(key, "get");
        } else {
            self.items.remove(key);
        }
    }

    fn release_pin(&mut self) {
        if self.pins.is_empty() {
            return;
        }
        let at = self.random.below(self.pins.len());
        let (pin, expected) = self.pins.swap_remove(at);
        assert!(
            read(&pin) == *expected,
            "a held value changed: {expected:?}"
        );
    }

    fn fetch(&mut self) {
        let key = self.key();
        let hash = self.store.hash(&key);
        let expires = self.expires();
        let how = Fetch {
            touch: self.random.maybe(2, |_| expires),
            vivify: self
                .random
                .maybe(4, |random| self.now + 1 + random.below(30) as u32),
            recache: self
                .random
                .maybe(3, |random| self.now + random.below(30) as u32),
            recache_first: self.random.one_in(2),
            new_cas: self.new_cas(),
            quiet: self.random.one_in(3),
            leases: self.random.one_in(2),
            binary_key: self.random.one_in(2),
        };
        let cx = Cx {
            now: self.now,
            counters: &self.counters,
        };
        let before = self.living(&key).cloned();
        let trial_is_roomy = self.trial.roomy;
        let result = self.store.fetch(cx, &key, hash, &how, |hit| {
            let lost = before.is_none() || hit.created();
            let expected = match &before {
                Some(item) if !lost => item.clone(),
                _ => {
                    assert!(how.vivify.is_some(), "{} came back", key.escape_ascii());
                    assert!(hit.created());
                    assert!(before.is_none() || !trial_is_roomy);
                    let mut item = Item::new(Vec::new(), 0, how.vivify.unwrap_or(0), self.now);
                    item.binary_key = how.binary_key;
                    item.cas = hit.cas();
                    item
                }
            };
            check(hit, &key, &expected);
            // What is created has its expiry from the start.
            let touch = how.touch.filter(|_| !lost);
            assert_eq!(hit.expires_now(), touch.unwrap_or(expected.expires));
            let lasts = if how.recache_first {
                expected.expires
            } else {
                hit.expires_now()
            };
            let lapses = how.recache.is_some_and(|at| lasts != 0 && lasts < at);
            let wins = how.leases && !expected.token_sent && (lapses || expected.stale);
            assert_eq!(hit.won(), lost || wins, "{how:?} of {expected:?}");
            (expected, lost, hit.won())
        });
        match result {
            Ok((mut item, created, won)) => {
                if created {
                    if before.is_some() {
                        self.lose(&key, "fetch");
                    }
                    item.cas = self.learn_cas(how.new_cas, item.cas);
                } else {
                    item.expires = how.touch.unwrap_or(item.expires);
                }
                item.token_sent |= won;
                if !how.quiet {
                    item.fetched = true;
                    item.accessed = self.now;
                }
                self.items.insert(key, item);
            }
            Err(Miss::NoMemory) => {
                assert!(!self.trial.roomy);
                self.items.remove(&key);
                self.refused += 1;
            }
            Err(miss) => {
                assert!(how.vivify.is_none());
                self.missed(&key, miss);
            }
        }
    }

    fn plan(&mut self) -> PutPlan {
        let key = self.key();
        let mode = self.random.pick(&[
            Mode::Set,
            Mode::Set,
            Mode::Set,
            Mode::Set,
            Mode::Add,
            Mode::Replace,
            Mode::Append,
            Mode::Prepend,
        ]);
        let same_length = self.living(&key).map(|item| item.value.len());
        let length = match same_length {
            Some(length) if self.random.one_in(3) => length,
            _ if matches!(mode, Mode::Append | Mode::Prepend) => self.random.below(200),
            _ => self.random.length(),
        };
        let value = if self.random.one_in(8) && matches!(mode, Mode::Set | Mode::Add) {
            (self.random.word() >> self.random.below(64))
                .to_string()
                .into_bytes()
        } else {
            self.random.bytes(length)
        };
        // Without CAS an append with one is nothing that a client can ask for.
        let takes_cas = self.has_cas() || !matches!(mode, Mode::Append | Mode::Prepend);
        let cas = self.some_cas(&key);
        let expires = self.expires();
        PutPlan {
            cas: self
                .random
                .maybe(5, |_| cas)
                .filter(|_| takes_cas && mode != Mode::Add),
            flags: self.random.pick(&[0, 0, 1, 0xffff_ffff]),
            new_cas: self.new_cas(),
            invalidate: self.random.one_in(2),
            vivify: self.random.maybe(3, |_| expires),
            binary_key: self.random.one_in(6),
            key,
            mode,
            expires,
            value: Value(value),
        }
    }

    /// What a put should come to, given what there is.
    fn planned(&self, plan: &PutPlan, old: Option<&Item>) -> Planned {
        let mut new = Item::new(plan.value.to_vec(), plan.flags, plan.expires, self.now);
        new.binary_key = plan.binary_key;
        let extends = matches!(plan.mode, Mode::Append | Mode::Prepend);
        let Some(old) = old else {
            return match plan.mode {
                Mode::Set | Mode::Replace if plan.cas.is_some() => Planned::NotFound,
                Mode::Set | Mode::Add => Planned::Stored(new),
                Mode::Append | Mode::Prepend if plan.vivify.is_some() => {
                    new.expires = plan.vivify.unwrap_or(0);
                    Planned::Stored(new)
                }
                _ => Planned::NotStored,
            };
        };
        if plan.mode == Mode::Add {
            return Planned::NotStored;
        }
        if let Some(cas) = plan.cas
            && !(self.has_cas() && cas == old.cas)
        {
            if extends || !(plan.invalidate && cas < old.cas) {
                return Planned::Exists;
            }
            new.stale = true;
            new.token_sent = old.token_sent;
            new.expires = old.expires;
        }
        if extends {
            new.flags = old.flags;
            new.expires = old.expires;
            new.binary_key = false;
            new.value = Value(if plan.mode == Mode::Append {
                [&old.value[..], &plan.value].concat()
            } else {
                [&plan.value[..], &old.value].concat()
            });
        }
        Planned::Stored(new)
    }

    fn put(&mut self) {
        let plan = self.plan();
        let cx = Cx {
            now: self.now,
            counters: &self.counters,
        };
        let stored = self.store.put(cx, &plan.put(&self.store), &plan.value);
        self.settle(&plan, stored);
    }

    /// Compares what a put came to with what it should have, and keeps the result.
    fn settle(&mut self, plan: &PutPlan, stored: Stored) {
        self.puts += 1;
        let old = self.living(&plan.key).cloned();
        // An append that finds no memory is not stored, as in memcached.
        let extends = matches!(plan.mode, Mode::Append | Mode::Prepend) && old.is_some();
        if stored == Stored::NoMemory || stored == Stored::NotStored && extends {
            assert!(!self.trial.roomy, "no memory for {plan:?}");
            self.refused += 1;
            return;
        }
        let mut planned = self.planned(plan, old.as_ref());
        if !planned.agrees(stored) && old.is_some() {
            planned = self.planned(plan, None);
            assert!(
                planned.agrees(stored),
                "{stored:?} of {plan:?} over {old:?}"
            );
            self.lose(&plan.key, "put");
        }
        assert!(
            planned.agrees(stored),
            "{stored:?} of {plan:?} over {old:?}"
        );
        match (planned, stored) {
            (Planned::Stored(mut item), Stored::Stored { cas, class, .. }) => {
                item.cas = self.learn_cas(plan.new_cas, cas);
                assert_eq!(class, class_of(size(&plan.key, &item, self.has_cas())));
                self.items.insert(plan.key.clone(), item);
            }
            _ => {
                if plan.mode == Mode::Add
                    && let Some(item) = self.items.get_mut(&plan.key)
                {
                    item.accessed = self.now;
                }
                if old.is_none() {
                    self.items.remove(&plan.key);
                }
            }
        }
    }

    fn begin(&mut self) {
        let plan = self.plan();
        let cx = Cx {
            now: self.now,
            counters: &self.counters,
        };
        match self
            .store
            .begin(cx, &plan.put(&self.store), plan.value.len())
        {
            Ok(upload) => self.uploads.push((upload, plan)),
            Err(refused) => {
                assert!(!self.trial.roomy, "{refused:?}");
                self.refused += 1;
            }
        }
        if self.uploads.len() > 6 {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if self.uploads.is_empty() {
            return;
        }
        let at = self.random.below(self.uploads.len());
        let (mut upload, plan) = self.uploads.swap_remove(at);
        let abandoned = self
            .random
            .maybe(6, |random| random.below(plan.value.len() + 1));
        let cx = Cx {
            now: self.now,
            counters: &self.counters,
        };
        let mut rest = &plan.value[..];
        while !rest.is_empty() {
            assert_eq!(upload.missing(), rest.len());
            if abandoned.is_some_and(|at| rest.len() <= at) {
                return;
            }
            let Ok(spare) = upload.spare(cx) else {
                assert!(!self.trial.roomy, "no memory for {plan:?}");
                self.refused += 1;
                return;
            };
            let most = spare.len().min(rest.len());
            assert!(most > 0);
            let n = if self.random.one_in(3) {
                most
            } else {
                1 + self.random.below(most)
            };
            spare[..n].copy_from_slice(&rest[..n]);
            upload.advance(n);
            rest = &rest[n..];
        }
        assert_eq!(upload.missing(), 0);
        assert!(
            upload.spare(cx).expect("no memory wanted").is_empty(),
            "room behind the end"
        );
        // What began with one time is stored with that time.
        let stored = self.store.finish(cx, &plan.put(&self.store), upload);
        self.settle(&plan, stored);
    }

    fn delete(&mut self) {
        let key = self.key();
        let cas = self.some_cas(&key);
        let expires = self.expires();
        let how = Delete {
            cas: self.random.maybe(4, |_| cas),
            new_cas: self.new_cas(),
            stale: self.random.one_in(3),
            drop_value: self.random.one_in(4),
            touch: self.random.maybe(2, |_| expires),
            flags: self.random.pick(&[0, 5]),
        };
        let cx = Cx {
            now: self.now,
            counters: &self.counters,
        };
        let deleted = self.store.delete(cx, &key, self.store.hash(&key), &how);
        let Some(old) = self.living(&key).cloned() else {
            assert!(
                matches!(deleted, Deleted::NotFound | Deleted::NoMemory),
                "{deleted:?}"
            );
            self.items.remove(&key);
            return;
        };
        match deleted {
            Deleted::NotFound => self.lose(&key, "delete"),
            Deleted::NoMemory => {
                assert!(!self.trial.roomy && how.drop_value);
                self.refused += 1;
            }
            Deleted::Exists => assert!(how.cas.is_some_and(|cas| cas != old.cas)),
            Deleted::Deleted { length, class } => {
                assert!(
                    how.cas.is_none_or(|cas| cas == old.cas),
                    "{how:?} of {old:?}"
                );
                assert_eq!(length, old.value.len());
                assert_eq!(class, class_of(size(&key, &old, self.has_cas())));
                let mut kept = None;
                if how.drop_value {
                    let mut item =
                        Item::new(Vec::new(), how.flags, how.touch.unwrap_or(0), self.now);
                    item.cas = how.new_cas.filter(|_| self.has_cas()).unwrap_or(old.cas);
                    kept = Some(item);
                }
                if how.stale {
                    let mut item = kept.unwrap_or(old);
                    item.stale = true;
                    item.token_sent = false;
                    item.expires = how.touch.unwrap_or(item.expires);
                    // The store does not tell; the next read does.
                    item.cas = how.new_cas.filter(|_| self.has_cas()).unwrap_or(0);
                    kept = Some(item);
                }
                match kept {
                    Some(item) => {
                        self.items.insert(key.clone(), item);
                        if how.stale && how.new_cas.is_none() {
                            self.read_cas(&key);
                        }
                    }
                    None => {
                        self.items.remove(&key);
                    }
                }
            }
        }
    }

    /// Learns a CAS that an operation gave without telling.
    fn read_cas(&mut self, key: &[u8]) {
        let cx = Cx {
            now: self.now,
            counters: &self.counters,
        };
        let quiet = Fetch {
            quiet: true,
            ..Fetch::default()
        };
        match self
            .store
            .fetch(cx, key, self.store.hash(key), &quiet, |hit| hit.cas())
        {
            Ok(cas) => {
                let cas = self.learn_cas(None, cas);
                self.items.get_mut(key).expect("it is being changed").cas = cas;
            }
            Err(miss) => self.missed(key, miss),
        }
    }

    fn arith(&mut self) {
        let key = self.key();
        let cas = self.some_cas(&key);
        let expires = self.expires();
        let how = Arith {
            up: self.random.one_in(2),
            delta: self.random.word() >> self.random.below(64),
            cas: self.random.maybe(5, |_| cas),
            new_cas: self.new_cas(),
            touch: self.random.maybe(3, |_| expires),
            create: self
                .random
                .maybe(2, |random| (random.word() >> random.below(64), expires)),
        };
        let cx = Cx {
            now: self.now,
            counters: &self.counters,
        };
        let counted = self.store.arith(cx, &key, self.store.hash(&key), &how);
        let old = self.living(&key).cloned();
        if counted == Counted::NoMemory {
            assert!(!self.trial.roomy);
            self.refused += 1;
            return;
        }
        match old {
            Some(item)
                if !matches!(
                    counted,
                    Counted::NotFound | Counted::Number { created: true, .. }
                ) =>
            {
                self.count_on(key, item, &how, counted);
            }
            old => {
                if old.is_some() {
                    self.lose(&key, "arith");
                }
                match (how.create, counted) {
                    (None, Counted::NotFound) => {
                        self.items.remove(&key);
                    }
                    (
                        Some((first, expires)),
                        Counted::Number {
                            value,
                            cas,
                            created: true,
                            ..
                        },
                    ) => {
                        assert_eq!(value, first);
                        let mut item =
                            Item::new(first.to_string().into_bytes(), 0, expires, self.now);
                        item.cas = self.learn_cas(how.new_cas, cas);
                        self.items.insert(key, item);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn count_on(&mut self, key: Vec<u8>, mut item: Item, how: &Arith, counted: Counted) {
        let small = (1..=COUNT_MAX).contains(&item.value.len());
        if !item.value.is_empty() && how.cas.is_some_and(|cas| cas != item.cas) {
            assert_eq!(counted, Counted::Exists);
            return;
        }
        let text = String::from_utf8_lossy(&item.value);
        // Behind a blank anything may stand.
        let digits = text.split(' ').next().unwrap_or_default();
        let number = digits.parse::<u64>().ok().filter(|_| small);
        let Counted::Number {
            value,
            cas,
            expires,
            ..
        } = counted
        else {
            assert_eq!(counted, Counted::NonNumeric, "{how:?} of {text}");
            assert_eq!(number, None);
            return;
        };
        let number = number.unwrap_or_else(|| panic!("{counted:?}: {text} is no number"));
        let wanted = if how.up {
            number.wrapping_add(how.delta)
        } else {
            number.saturating_sub(how.delta)
        };
        assert_eq!(value, wanted);
        let digits = wanted.to_string();
        if digits.len() > item.value.len() {
            // A longer number is a new item.
            item.fetched = false;
            item.stale = false;
            item.token_sent = false;
            item.binary_key = false;
        }
        item.value = Value(format!("{digits:<0$}", item.value.len()).into_bytes());
        assert_eq!(expires, item.expires, "before the touch");
        item.expires = how.touch.unwrap_or(item.expires);
        item.accessed = self.now;
        item.cas = self.learn_cas(how.new_cas, cas);
        self.items.insert(key, item);
    }

    fn upkeep(&mut self) {
        let cx = Cx {
            now: self.now,
            counters: &self.counters,
        };
        if self.random.one_in(2) {
            self.store.maintain(cx);
        } else {
            self.store.crawl_step(cx);
        }
        // A page that moves may cost items.
        if !self.trial.roomy && self.trial.settings.evict && self.random.one_in(20) {
            let (from, to) = (self.random.below(30) as u32, self.random.below(30) as u32);
            let _ = self.store.reassign(Some(from), to);
        }
        if self.random.one_in(20) {
            let _ = self.store.crawl(self.now, u64::MAX);
        }
    }

    fn pass_time(&mut self) {
        self.now += 1 + self.random.below(3) as u32;
        if let Some(at) = self.flush_at
            && at <= self.now
        {
            self.items.retain(|_, item| item.accessed >= at);
            self.flush_at = None;
        }
    }

    fn flush(&mut self) {
        if self.random.one_in(2) {
            self.store.flush_all(self.now, self.now);
            self.items.clear();
            self.flush_at = None;
        } else {
            let at = self.now + 1 + self.random.below(10) as u32;
            self.store.flush_all(self.now, at);
            self.flush_at = Some(at);
        }
    }

    /// Walks through all that the store holds.
    fn compare_all(&mut self) {
        let now = self.now;
        self.items
            .retain(|_, item| item.expires == 0 || item.expires > now);
        let cx = Cx {
            now: self.now,
            counters: &self.counters,
        };
        let mut seen: HashMap<Vec<u8>, ()> = HashMap::new();
        let mut tries = 0;
        let mut dump = loop {
            match self.store.dump(u64::MAX) {
                Ok(dump) => break dump,
                // The crawler is on its way.
                Err(busy) => {
                    self.store.crawl_step(cx);
                    tries += 1;
                    assert!(tries < 100_000, "{busy:?}");
                }
            }
        };
        let items = &self.items;
        while self.store.dump_step(cx, &mut dump, 100, |hit| {
            let item = items
                .get(&*hit.key())
                .unwrap_or_else(|| panic!("{} came back", hit.key().escape_ascii()));
            check(hit, &hit.key(), item);
            assert!(seen.insert(hit.key().to_vec(), ()).is_none(), "shown twice");
            true
        }) {}
        let gone: Vec<Vec<u8>> = self
            .items
            .keys()
            .filter(|key| !seen.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            self.lose(&key, "dump");
        }
    }

    /// Losses are evictions, and the counts of items and bytes are right.
    fn account(&mut self) {
        let sum = |pick: fn(&larder::observe::ClassCounters) -> u64| {
            self.counters
                .classes
                .iter()
                .fold(0_u64, |sum, class| sum.wrapping_add(pick(class)))
        };
        let evicted = sum(|class| class.evicted.get());
        assert!(
            self.lost <= evicted,
            "{} lost, {evicted} evicted",
            self.lost
        );
        if self.trial.roomy {
            assert_eq!(evicted, 0);
        } else if self.trial.settings.evict {
            assert!(evicted > 300, "{evicted} evicted: the trial is too easy");
            assert!(
                self.refused * 50 <= self.puts,
                "{} of {} refused",
                self.refused,
                self.puts
            );
        } else {
            assert_eq!(evicted, 0);
            assert!(
                self.refused > 50,
                "{} refused: the trial is too easy",
                self.refused
            );
        }
        assert!(sum(|class| class.items.get()) >= self.items.len() as u64);
    }

    /// What was flushed is gone, and so is the count of it, once the crawler has been everywhere.
    fn flush_and_crawl(&mut self) {
        self.store.flush_all(self.now, self.now);
        self.now += 1;
        let cx = Cx {
            now: self.now,
            counters: &self.counters,
        };
        crawl_all(&self.store, cx);
        for (class, counters) in self.counters.classes.iter().enumerate() {
            assert_eq!(counters.items.get() as i64, 0, "items of class {class}");
            assert_eq!(counters.bytes.get() as i64, 0, "bytes of class {class}");
        }
        assert_no_slot_used(&self.store);
    }
}

/// The size that memcached would give an item; with a key that it would not take, 24 more.
fn size(key: &[u8], item: &Item, has_cas: bool) -> usize {
    let cas = if has_cas { 8 } else { 0 };
    let flags = if item.flags != 0 { 4 } else { 0 };
    let long = if key.len() > 250 { 24 } else { 0 };
    48 + cas + key.len() + 1 + flags + item.value.len() + 2 + long
}

/// memcached's classes with the default settings.
fn class_of(size: usize) -> u8 {
    const CHUNKS: [usize; 38] = [
        96, 120, 152, 192, 240, 304, 384, 480, 600, 752, 944, 1184, 1480, 1856, 2320, 2904, 3632,
        4544, 5680, 7104, 8880, 11104, 13880, 17352, 21696, 27120, 33904, 42384, 52984, 66232,
        82792, 103496, 129376, 161720, 202152, 252696, 315872, 394840,
    ];
    CHUNKS.partition_point(|&chunk| chunk < size) as u8 + 1
}

fn check(hit: &Hit<'_>, key: &[u8], expected: &Item) {
    let name = || format!("{} {expected:?}", key.escape_ascii());
    assert_eq!(hit.key(), key);
    assert_eq!(hit.length(), expected.value.len(), "{}", name());
    match hit.inline() {
        Some(value) => assert!(*value == *expected.value, "{}", name()),
        None => {
            assert!(hit.length() > COPY_MAX || key.len() > 250);
            let pin = hit.pin().expect("a large value can be held");
            assert!(read(&pin) == *expected.value, "{}", name());
        }
    }
    assert_eq!(hit.flags(), expected.flags, "{}", name());
    assert_eq!(hit.expires(), expected.expires, "{}", name());
    assert_eq!(hit.cas(), expected.cas, "{}", name());
    assert_eq!(hit.stale(), expected.stale, "{}", name());
    assert_eq!(hit.token_sent(), expected.token_sent, "{}", name());
    assert_eq!(hit.fetched(), expected.fetched, "{}", name());
    assert_eq!(hit.binary_key(), expected.binary_key, "{}", name());
    let size = size(key, expected, expected.cas != 0);
    assert_eq!(hit.class(), class_of(size), "{}", name());
}

fn roomy(settings: settings::Store) -> Trial {
    Trial {
        settings,
        long_keys: false,
        keys: 2000,
        operations: 40_000,
        roomy: true,
    }
}

fn cramped(settings: settings::Store) -> Trial {
    Trial {
        settings,
        long_keys: false,
        keys: 6000,
        operations: 80_000,
        roomy: false,
    }
}

#[test]
fn with_room_for_all_it_is_a_map() {
    for seed in 0..3 {
        Pair::new(roomy(with_memory(1024)), seed).run();
    }
}

#[test]
fn without_cas_it_is_a_map_too() {
    let settings = settings::Store {
        cas: false,
        ..with_memory(1024)
    };
    Pair::new(roomy(settings), 10).run();
}

#[test]
fn with_a_flat_lru_and_short_lived_items_it_is_a_map_too() {
    let settings = settings::Store {
        lru_maintainer: false,
        temporary_ttl: Some(10),
        ..with_memory(1024)
    };
    Pair::new(roomy(settings), 20).run();
}

#[test]
fn with_long_keys_it_is_a_map_too() {
    let plain = with_memory(1024);
    let checked = settings::Store {
        cas: false,
        crash_restart: true,
        verify: settings::Verify::Read,
        ..with_memory(1024)
    };
    for (seed, settings) in [(60, plain), (61, checked)] {
        let trial = Trial {
            long_keys: true,
            operations: 8000,
            ..roomy(settings)
        };
        Pair::new(trial, seed).run();
    }
}

#[test]
fn with_long_keys_and_little_room_it_never_errs() {
    for (seed, megabytes) in [(70, 10), (71, 14)] {
        let trial = Trial {
            long_keys: true,
            operations: 20_000,
            ..cramped(with_memory(megabytes))
        };
        Pair::new(trial, seed).run();
    }
}

#[test]
fn with_little_room_it_forgets_and_never_errs() {
    for (seed, megabytes) in [(30, 2), (31, 4), (32, 8)] {
        Pair::new(cramped(with_memory(megabytes)), seed).run();
    }
}

#[test]
fn with_little_room_every_other_way_of_forgetting_errs_as_little() {
    let flat = settings::Store {
        lru_maintainer: false,
        ..with_memory(8)
    };
    let temporary = settings::Store {
        temporary_ttl: Some(20),
        ..with_memory(8)
    };
    let bare = settings::Store {
        cas: false,
        slab_automove: 2,
        ..with_memory(8)
    };
    for (seed, settings) in [(40, flat), (41, temporary), (42, bare)] {
        Pair::new(cramped(settings), seed).run();
    }
}

#[test]
fn where_it_may_not_forget_it_refuses() {
    let settings = settings::Store {
        evict: false,
        ..with_memory(2)
    };
    Pair::new(cramped(settings), 50).run();
}
