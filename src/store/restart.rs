#![forbid(unsafe_code)]
//! Leaving memory behind and finding it again (`-e`).
//!
//! Items, page table and hash table lie in a file that is mapped shared, so that they are there for the
//! next process as they stand: nothing is copied when one ends, and nothing is built anew when the
//! next begins. What else has to be known is written down when the server stops in good order, in a
//! record beside the file. The record is used once: it goes as soon as it is read, so that after a
//! crash nobody takes for whole what is not.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::bins::Kept;
use super::classes::Classes;
use super::raw::{Handle, MemoryFile, Source, TableState};
use super::record::Record;
use super::{Inner, Store};
use crate::hash::Hasher;
use crate::observe::ThreadCounters;
use crate::observe::counters::{CLASSES, ClassTotals};
use crate::settings;

/// How a server with a memory file began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Without items, and why.
    Cold(String),
    /// With those of a server that had stopped in good order.
    Warm,
    /// With what was found intact after a crash.
    Recovered,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::Cold(why) => write!(f, "cold ({why})"),
            Start::Warm => f.write_str("warm"),
            Start::Recovered => f.write_str("recovered"),
        }
    }
}

/// How it began, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Began {
    pub how: Start,
    /// Items that were taken over.
    pub items: u64,
    /// Items that were linked when the server crashed and are not intact.
    pub lost: u64,
    /// Milliseconds until they were there.
    pub milliseconds: u64,
}

/// The clock that the items found are stamped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    /// Unix time at which it read 0.
    pub epoch: i64,
    /// What it read last.
    pub stopped: u32,
}

/// The file of a store.
pub(super) struct Files {
    /// Keeps other processes away.
    _memory: MemoryFile,
    record: PathBuf,
    /// What a file must have been made with to be of use to a server.
    identity: Vec<(&'static str, String)>,
    pub began: Began,
}

/// Opens the memory file of these settings, and reads what was left beside it.
fn open(path: &Path) -> Result<(MemoryFile, PathBuf, Option<Record>), String> {
    let shown = path.display();
    let memory = MemoryFile::open(path).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => format!("{shown} is the memory file of another process that runs"),
        _ => format!("cannot open the memory file {shown}: {error}"),
    })?;
    let mut record = path.as_os_str().to_owned();
    record.push(".meta");
    let record = PathBuf::from(record);
    let read = match fs::read(&record) {
        Ok(bytes) => {
            let read = Record::decode(&bytes).ok_or_else(|| {
                format!(
                    "{} is damaged, or no record of a memory file: remove it to start with an empty cache",
                    record.display()
                )
            })?;
            // From here on the items change, and the record with its sums is no longer true.
            fs::remove_file(&record)
                .map_err(|error| format!("cannot remove {}: {error}", record.display()))?;
            Some(read)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(format!("cannot read {}: {error}", record.display())),
    };
    Ok((memory, record, read))
}

/// The settings that decide how memory is laid out, and what may be in it.
fn identity(settings: &settings::Store) -> Vec<(&'static str, String)> {
    let classes = Classes::new(settings);
    let chunks = (1..=classes.largest()).map(|class| classes.chunk_size(class).to_string());
    vec![
        ("layout", LAYOUT.to_string()),
        ("max_bytes", settings.max_bytes.to_string()),
        ("item_size_max", settings.item_size_max.to_string()),
        ("cas", settings.cas.to_string()),
        ("chunk_sizes", chunks.collect::<Vec<_>>().join("-")),
        ("hash_algorithm", format!("{:?}", settings.hash_algorithm)),
        ("hashpower", settings.hash_power.to_string()),
        ("crash_restart", settings.crash_restart.to_string()),
    ]
}

/// Changes with every change of what lies where.
const LAYOUT: u32 = 2;

impl Inner {
    /// A store in a memory file: with the items left there, or an empty one.
    pub(super) fn in_file(
        settings: &settings::Store,
        path: &Path,
        counters: &ThreadCounters,
    ) -> Result<(Inner, Option<Age>), String> {
        let since = Instant::now();
        let (memory, record, read) = open(path)?;
        let identity = identity(settings);
        let found = match &read {
            None => Err("nothing was left by a server that stopped in good order".to_owned()),
            Some(read) => check(read, &identity),
        };
        let mut source = Source::File(memory);
        let mut started = None;
        let mut how = match found {
            Err(why) => Start::Cold(why),
            Ok(read) => {
                let mut inner = Inner::build(settings, &mut source)?;
                match inner.resume(read, counters) {
                    Some(age) => {
                        started = Some((inner, Some(age)));
                        Start::Warm
                    }
                    None => Start::Cold("the memory file is not as it was left".to_owned()),
                }
            }
        };
        let mut lost = 0;
        if settings.crash_restart && started.is_none() {
            // Whoever has tried it with the record has left traces.
            source.reuse();
            let mut inner = Inner::build(settings, &mut source)?;
            if inner.can_recover(&identity) {
                let table = inner.arena.region().bytes() + inner.pages.bytes();
                source.clear_from(table).map_err(unclear)?;
                if let Some(found) = inner.recover(counters) {
                    lost = found.lost;
                    started = Some((inner, Some(found.age)));
                    how = Start::Recovered;
                }
            }
        }
        let (mut inner, age) = match started {
            Some(started) => started,
            None => {
                source.clear_from(0).map_err(unclear)?;
                source.reuse();
                (Inner::build(settings, &mut source)?, None)
            }
        };
        let Source::File(memory) = source else {
            return Err("a memory file has become none".to_owned());
        };
        let room = inner.arena.region().bytes() + inner.pages.bytes();
        memory.ensure_room(room).map_err(|error| {
            format!("no room for {} MiB in the memory file: {error}", room >> 20)
        })?;
        let began = Began {
            how,
            items: inner.table.items() as u64,
            lost,
            milliseconds: since.elapsed().as_millis() as u64,
        };
        match &began.how {
            Start::Cold(why) => log::info!("[restart] starting with an empty cache: {why}"),
            Start::Warm => log::info!(
                "[restart] {} items taken over in {} ms",
                began.items,
                began.milliseconds
            ),
            Start::Recovered => log::info!(
                "[restart] {} items recovered after a crash in {} ms, {lost} were not intact",
                began.items,
                began.milliseconds
            ),
        }
        if settings.crash_restart {
            inner.begin_notes(&identity);
        }
        inner.files = Some(Files {
            _memory: memory,
            record,
            identity,
            began,
        });
        Ok((inner, age))
    }

    /// Goes on where the server that wrote a record has stopped. Nothing if the file is not as it was
    /// then: this store is of no use any more in that case, but nothing has been counted.
    fn resume(&mut self, read: &Record, counters: &ThreadCounters) -> Option<Age> {
        let mut numbers = read.numbers.iter().copied();
        let [pairs, items, extensions, free] = *read.words::<u64>("table")? else {
            return None;
        };
        let state = TableState {
            pairs,
            items,
            extensions: u32::try_from(extensions).ok()?,
            free: numbers.by_ref().take(usize::try_from(free).ok()?).collect(),
        };
        let fresh = read.number::<u32>("pages")?;
        if !self.table.resume(&state) || fresh == 0 || fresh as usize > self.pages.len() {
            return None;
        }
        if read.number("table_sum") != Some(self.table.digest())
            || read.number("page_sum") != Some(self.pages.digest())
        {
            return None;
        }
        let mut free = Vec::new();
        for page in 1..fresh {
            match self.pages.entry(page).bin() {
                None => free.push(page),
                Some(bin) => {
                    let bin = self.bins.get(usize::from(bin))?;
                    if !bin.lock().pages.adopt_page(&self.pages, page) {
                        return None;
                    }
                }
            }
        }
        self.pool.resume(free, fresh);
        for (number, bin) in self.bins.iter_mut().enumerate() {
            let [hot_share, pressed, hot, census @ ..] =
                &read.words::<u64>(&format!("bin_{number}"))?[..]
            else {
                return None;
            };
            let (&hot_share, &pressed, &hot) = (hot_share, pressed, hot);
            let census = census.try_into().ok()?;
            let hot: Vec<u32> = numbers.by_ref().take(usize::try_from(hot).ok()?).collect();
            let known = |&raw: &u32| {
                Handle::from_raw(raw).is_some_and(|handle| self.arena.page_of(handle) < fresh)
            };
            if !hot.iter().all(known) {
                return None;
            }
            bin.resume(&Kept {
                hot_share: hot_share as u32,
                pressed: pressed != 0,
                census,
                hot,
            });
        }
        for (number, census) in self.chained.iter().enumerate() {
            let kept = read.words::<u64>(&format!("chained_{number}"))?;
            census.resume(kept.try_into().ok()?);
        }
        if self.hasher.secrets().is_some() {
            let secrets = read.words::<u64>("hash_secrets")?;
            self.hasher = Hasher::from_seed(secrets.try_into().ok()?);
        }
        let [marks, floor] = *read.words::<u64>("flush")? else {
            return None;
        };
        self.flush.marks.store(marks, Relaxed);
        self.flush.floor.store(floor as u32, Relaxed);
        self.cas.store(read.number("last_cas")?, Relaxed);
        let age = Age {
            epoch: read.number("epoch")?,
            stopped: read.number("stopped")?,
        };
        let classes = (1..CLASSES)
            .map(|class| read.words::<u64>(&format!("class_{class}")))
            .collect::<Option<Vec<_>>>()?;
        for (class, held) in classes.iter().enumerate() {
            let class = &counters.classes[class + 1];
            class.items.add(*held.first()?);
            class.bytes.add(*held.get(1)?);
        }
        counters.general.total_items.add(items);
        Some(age)
    }
}

/// Whether a record is of use to a server like this one; it says why not.
fn check<'r>(read: &'r Record, identity: &[(&'static str, String)]) -> Result<&'r Record, String> {
    for (name, value) in identity {
        if read.get(name) != Some(value) {
            let then = read.get(name).unwrap_or("nothing");
            return Err(format!("{name} is {value} now and was {then}"));
        }
    }
    if read.get("boot") != Some(&boot_id()) {
        return Err("the system was started anew since".to_owned());
    }
    Ok(read)
}

impl Store {
    /// How a store in a memory file began.
    pub fn began(&self) -> Option<&Began> {
        self.inner.files.as_ref().map(|files| &files.began)
    }

    /// Tells a store in a memory file when its clock read 0, in Unix time.
    pub fn note_epoch(&self, epoch: i64) {
        self.inner.note_epoch(epoch);
    }

    /// Leaves the items to the next server, if there is a memory file. To be called when nobody uses the
    /// store any more, with the time as it is and the items by class, with their bytes.
    ///
    /// # Errors
    /// The record could not be written: the next server will start with an empty cache.
    pub fn leave(&self, age: Age, classes: &[ClassTotals]) -> Result<(), String> {
        let inner = &self.inner;
        let Some(files) = &inner.files else {
            return Ok(());
        };
        let mut record = Record::default();
        for (name, value) in &files.identity {
            record.put(*name, value);
        }
        record.put("boot", boot_id());
        record.put("epoch", age.epoch);
        record.put("stopped", age.stopped);
        record.put("last_cas", inner.cas.load(Relaxed));
        let (marks, floor) = (&inner.flush.marks, &inner.flush.floor);
        record.put(
            "flush",
            words(&[marks.load(Relaxed), u64::from(floor.load(Relaxed))]),
        );
        if let Some(secrets) = inner.hasher.secrets() {
            record.put("hash_secrets", words(&secrets));
        }
        for (number, class) in classes.iter().enumerate().skip(1) {
            record.put(
                format!("class_{number}"),
                words(&[class.items, class.bytes]),
            );
        }
        let table = inner.table.state();
        let extensions = u64::from(table.extensions);
        let free = table.free.len() as u64;
        record.put(
            "table",
            words(&[table.pairs, table.items, extensions, free]),
        );
        record.numbers = table.free;
        for (number, bin) in inner.bins.iter().enumerate() {
            let kept = bin.keep();
            let hot = kept.hot.len() as u64;
            let mut shown = vec![u64::from(kept.hot_share), u64::from(kept.pressed), hot];
            shown.extend(kept.census);
            record.put(format!("bin_{number}"), words(&shown));
            record.numbers.extend(kept.hot);
        }
        for (number, census) in inner.chained.iter().enumerate() {
            record.put(format!("chained_{number}"), words(&census.keep()));
        }
        record.put("pages", inner.pool.fresh());
        record.put("page_sum", inner.pages.digest());
        record.put("table_sum", inner.table.digest());
        record
            .write(&files.record)
            .map_err(|error| format!("cannot write {}: {error}", files.record.display()))
    }
}

fn unclear(error: io::Error) -> String {
    format!("cannot clear the memory file: {error}")
}

fn words(numbers: &[u64]) -> String {
    let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
    words.join(" ")
}

pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}
