#![forbid(unsafe_code)]
//! The items of a simulated node: a plain map, with the real journal beside it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::data::{Data, Extended, Item, Long, Opened};
use crate::store::journal::{
    self, Change, INLINE_MAX, Journal, Kind, Record, item_digest, partition, place,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub value: Vec<u8>,
    pub cas: u64,
    pub flags: u32,
    pub marks: u8,
    pub flushed: bool,
}

/// The items of one simulated node.
pub(super) struct Model {
    pub journal: Journal,
    pub items: RefCell<BTreeMap<Vec<u8>, Entry>>,
    cas: Cell<u64>,
}

pub(super) struct LongValue(pub Vec<u8>);

impl Long for LongValue {
    fn length(&self) -> usize {
        self.0.len()
    }

    fn slice(&self, offset: usize) -> &[u8] {
        // In uneven pieces.
        &self.0[offset..self.0.len().min(offset + 1500)]
    }
}

impl Model {
    pub fn new(role: journal::Role) -> Model {
        Model {
            journal: Journal::new(0, role),
            items: RefCell::default(),
            cas: Cell::new(1),
        }
    }

    pub fn digest(key: &[u8], entry: &Entry) -> u64 {
        item_digest(
            place(key),
            entry.cas,
            entry.flags,
            entry.marks,
            entry.value.len(),
        )
    }

    pub fn store(&self, key: &[u8], entry: Entry) {
        let at = place(key);
        let after = Model::digest(key, &entry);
        let long = entry.value.len() > INLINE_MAX;
        let record = Record {
            kind: if long { Kind::PutLater } else { Kind::Put },
            marks: entry.marks,
            client_flags: entry.flags,
            expires: 0,
            seq: 0,
            cas: entry.cas,
            argument: entry.value.len() as u64,
            key,
            value: if long { &[] } else { &entry.value },
        };
        let mut items = self.items.borrow_mut();
        let before = items.get(key);
        let before = before.map_or(0, |before| Model::digest(key, before));
        let change = Change(before ^ after);
        if self.journal.is_follower() {
            self.journal.change(at, change);
        } else {
            self.journal.append(at, &record, change);
        }
        match items.get_mut(key) {
            Some(there) => *there = entry,
            None => drop(items.insert(key.to_vec(), entry)),
        }
    }

    pub fn remove(&self, key: &[u8]) {
        let Some(entry) = self.items.borrow_mut().remove(key) else {
            return;
        };
        let change = Change(Model::digest(key, &entry));
        if self.journal.is_follower() {
            self.journal.change(place(key), change);
        } else {
            let record = Record {
                cas: entry.cas,
                ..Record::new(Kind::Delete, key)
            };
            self.journal.append(place(key), &record, change);
        }
    }

    /// Takes an item out to make room; a leader's.
    pub fn evict(&self, key: &[u8]) {
        if let Some(entry) = self.items.borrow_mut().remove(key) {
            let change = Change(Model::digest(key, &entry));
            self.journal.give_up(place(key), entry.cas, key, change);
        }
    }

    pub fn read(&self, key: &[u8]) -> Option<Vec<u8>> {
        let items = self.items.borrow();
        let entry = items.get(key).filter(|entry| !entry.flushed)?;
        Some(entry.value.clone())
    }

    /// The eight bytes that a value begins with.
    pub fn first_number(&self, key: &[u8]) -> Option<u64> {
        let items = self.items.borrow();
        let entry = items.get(key).filter(|entry| !entry.flushed)?;
        entry.value.first_chunk().copied().map(u64::from_le_bytes)
    }

    pub fn take_cas(&self) -> u64 {
        self.cas.set(self.cas.get() + 1);
        self.cas.get()
    }

    pub fn write(&self, key: &[u8], value: Vec<u8>) {
        let entry = Entry {
            flags: value.len() as u32 % 2,
            value,
            cas: self.take_cas(),
            marks: 0,
            flushed: false,
        };
        self.store(key, entry);
    }

    /// Extends a long value; nothing if there is none.
    pub fn extend_long(&self, key: &[u8], kind: Kind, bytes: &[u8]) -> Option<()> {
        let entry = self.items.borrow().get(key).cloned();
        let entry = entry.filter(|entry| entry.value.len() > INLINE_MAX && !entry.flushed)?;
        let record = Record {
            cas: self.take_cas(),
            argument: entry.cas,
            expires: entry.value.len() as u32,
            value: bytes,
            ..Record::new(kind, key)
        };
        let before = Model::digest(key, &entry);
        let entry = extended(entry, &record);
        let change = Change(before ^ Model::digest(key, &entry));
        self.items.borrow_mut().insert(key.to_vec(), entry);
        self.journal.append(place(key), &record, change);
        Some(())
    }

    /// Whether two have the same living items.
    pub fn same_living(&self, other: &Model) -> bool {
        let (ours, theirs) = (self.items.borrow(), other.items.borrow());
        let living = |(_, entry): &(&Vec<u8>, &Entry)| !entry.flushed;
        ours.iter().filter(living).eq(theirs.iter().filter(living))
    }

    /// What a leader's crawler does.
    fn bury(&self) {
        let items = self.items.borrow();
        let dead = items.iter().filter(|(_, entry)| entry.flushed);
        let dead: Vec<Vec<u8>> = dead.map(|(key, _)| key.clone()).collect();
        drop(items);
        for key in dead {
            if self.journal.is_follower() {
                self.remove(&key);
            } else {
                self.evict(&key);
            }
        }
    }

    fn hide_all(&self) {
        for entry in self.items.borrow_mut().values_mut() {
            entry.flushed = true;
        }
    }
}

/// An item whose value goes on as a record says.
fn extended(mut entry: Entry, record: &Record<'_>) -> Entry {
    match record.kind {
        Kind::Prepend => drop(entry.value.splice(..0, record.value.iter().copied())),
        _ => entry.value.extend_from_slice(record.value),
    }
    entry.cas = record.cas;
    entry
}

impl Data for Model {
    type Long = LongValue;
    type Upload = (Vec<u8>, usize);

    fn journal(&self) -> &Journal {
        &self.journal
    }

    fn items(&self) -> u64 {
        self.items.borrow().len() as u64
    }

    fn last_cas(&self) -> u64 {
        self.cas.get()
    }

    fn raise_cas(&self, past: u64) {
        self.cas.set(self.cas.get().max(past));
    }

    fn put(&self, record: &Record<'_>, _: i64, dead: bool) -> bool {
        let entry = Entry {
            value: record.value.to_vec(),
            cas: record.cas,
            flags: record.client_flags,
            marks: record.marks,
            flushed: dead,
        };
        self.store(record.key, entry);
        true
    }

    fn begin(&self, _: &Record<'_>, _: i64, length: usize) -> Option<(Vec<u8>, usize)> {
        Some((Vec::new(), length))
    }

    fn lose(&self, key: &[u8]) {
        self.remove(key);
    }

    fn fill(&self, upload: &mut (Vec<u8>, usize), bytes: &[u8]) -> bool {
        upload.0.extend_from_slice(bytes);
        upload.0.len() <= upload.1
    }

    fn finish(
        &self,
        record: &Record<'_>,
        skew: i64,
        dead: bool,
        (value, length): (Vec<u8>, usize),
    ) -> bool {
        assert_eq!(value.len(), length);
        let whole = Record {
            value: &value,
            ..*record
        };
        self.put(&whole, skew, dead)
    }

    fn meta(&self, record: &Record<'_>, _: i64) {
        let entry = self.items.borrow().get(record.key).cloned();
        if let Some(entry) = entry {
            let entry = Entry {
                marks: record.marks,
                cas: record.cas,
                ..entry
            };
            self.store(record.key, entry);
        }
    }

    fn delete(&self, key: &[u8]) {
        self.remove(key);
    }

    fn give_up(&self, key: &[u8], cas: u64) {
        let cas_here = self.items.borrow().get(key).map(|entry| entry.cas);
        if cas_here.is_some_and(|here| here <= cas) {
            self.remove(key);
        }
    }

    fn extend(&self, record: &Record<'_>) -> Extended {
        let was = |entry: &Entry| (entry.cas, entry.value.len() as u64);
        let same = (record.argument, u64::from(record.expires));
        let entry = self.items.borrow().get(record.key).cloned();
        match entry {
            Some(entry) if was(&entry) == same => {
                self.store(record.key, extended(entry, record));
                Extended::Done
            }
            _ => Extended::Other,
        }
    }

    fn spot(&self, key: &[u8]) -> u64 {
        place(key) >> 60
    }

    fn delete_exactly(&self, spot: u64, digest: u64) {
        let items = self.items.borrow();
        let mut here = items.iter().filter(|(key, _)| self.spot(key) == spot);
        let found = here.find(|(key, entry)| Model::digest(key, entry) == digest);
        let found = found.map(|(key, _)| key.clone());
        drop(items);
        if let Some(key) = found {
            self.remove(&key);
        }
    }

    fn flush(&self) {
        self.hide_all();
    }

    fn purge(&self) {
        self.bury();
    }

    fn flush_all(&self, _: Option<u32>) {
        let record = Record {
            cas: self.journal.next_flush(),
            ..Record::new(Kind::Flush, b"")
        };
        self.journal.flush(&record, || {
            self.hide_all();
            true
        });
        self.bury();
    }

    fn log_again(&self, key: &[u8]) {
        let entry = self.items.borrow().get(key).cloned();
        match entry {
            Some(entry) => self.store(key, entry),
            None => {
                let record = Record::new(Kind::Delete, key);
                self.journal.append(place(key), &record, Change::default());
            }
        }
    }

    fn lead(&self) {
        self.journal.set_role(journal::Role::Leader);
        self.bury();
    }

    fn follow(&self) {
        self.journal.set_role(journal::Role::Follower);
    }

    fn walk(
        &self,
        from: usize,
        limit: usize,
        values: bool,
        each: &mut dyn FnMut(&Item<'_>),
    ) -> Option<usize> {
        // Fewer than asked for, so that others get between the steps.
        let limit = limit.min(7);
        let items = self.items.borrow();
        // By place, so that keys that come and go move nobody else.
        let mut order: Vec<_> = items.keys().map(|key| (place(key), key)).collect();
        order.sort_unstable();
        let from = (from as u64) << 1;
        let rest = order.into_iter().filter(|(at, _)| *at >= from);
        for (shown, (at, key)) in rest.enumerate() {
            if shown >= limit && at >> 1 != 0 {
                return Some((at >> 1) as usize);
            }
            let entry = &items[key];
            let long = entry.value.len() > INLINE_MAX;
            each(&Item {
                record: Record {
                    kind: if long { Kind::PutLater } else { Kind::Put },
                    marks: entry.marks,
                    client_flags: entry.flags,
                    expires: 0,
                    seq: self.journal.seq(partition(at)),
                    cas: entry.cas,
                    argument: entry.value.len() as u64,
                    key,
                    value: if long { &[] } else { &entry.value },
                },
                place: at,
                digest: Model::digest(key, entry),
                value_digest: (if values { place(&entry.value) } else { 0 }, false),
            });
        }
        None
    }

    fn open(&self, key: &[u8]) -> Option<Opened<LongValue>> {
        let items = self.items.borrow();
        let entry = items.get(key)?;
        let long = entry.value.len() > INLINE_MAX;
        let mut bytes = Vec::new();
        Record {
            kind: if long { Kind::PutLater } else { Kind::Put },
            marks: entry.marks,
            client_flags: entry.flags,
            expires: 0,
            seq: self.journal.seq(partition(place(key))),
            cas: entry.cas,
            argument: entry.value.len() as u64,
            key,
            value: if long { &[] } else { &entry.value },
        }
        .encode(&mut bytes);
        Some(Opened {
            bytes,
            long: long.then(|| LongValue(entry.value.clone())),
        })
    }

    fn digests(&self, key: &[u8], _: bool) -> Option<(u64, u64)> {
        let items = self.items.borrow();
        let entry = items.get(key)?;
        Some((Model::digest(key, entry), place(&entry.value)))
    }
}
