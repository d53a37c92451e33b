#![forbid(unsafe_code)]
//! Readers of the log that sleep until something is appended.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{MutexGuard, PoisonError};

use super::Journal;

/// Wakes a reader of the log.
pub type Bell = Box<dyn Fn() + Send + Sync>;

/// Readers that can sleep at a time.
const READERS: usize = usize::BITS as usize;

/// The place of one reader among those that can be woken; it is free again with the value.
pub struct Reader<'j> {
    journal: &'j Journal,
    number: usize,
}

impl Journal {
    /// A place among those that are woken by what is appended. Nothing if there are too many.
    pub fn reader(&self, bell: Bell) -> Option<Reader<'_>> {
        let mut bells = self.bells();
        let number =
            (0..READERS).find(|&number| bells.iter().all(|(taken, _)| *taken != number))?;
        bells.push((number, bell));
        Some(Reader {
            journal: self,
            number,
        })
    }

    fn bells(&self) -> MutexGuard<'_, Vec<(usize, Bell)>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes everybody who sleeps, for whatever reason.
    #[cold]
    pub fn wake(&self) {
        let asleep = self.asleep.swap(0, Relaxed);
        for (number, bell) in self.bells().iter() {
            if asleep & 1 << number != 0 {
                bell();
            }
        }
    }
}

impl Reader<'_> {
    /// From here on the bell is rung by the next record. Whoever calls this looks at the log once
    /// more before sleeping.
    pub fn sleep(&self) {
        self.journal.asleep.fetch_or(1 << self.number, Relaxed);
        // Whoever appends after this sees the mark; what was appended before is seen from here on.
        for partition in &self.journal.partitions {
            drop(partition.log());
        }
    }

    /// Records appended so far.
    pub fn records(&self) -> u64 {
        self.journal.records()
    }

    /// The bell is not wanted any more.
    pub fn rise(&self) {
        self.journal.asleep.fetch_and(!(1 << self.number), Relaxed);
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.rise();
        self.journal
            .bells()
            .retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::store::journal::{Change, Kind, Record, Role, place};

    #[test]
    fn sleepers_are_woken_once() {
        let journal = Journal::new(1 << 20, Role::Leader);
        let rung = Arc::new(AtomicU64::new(0));
        let bell = rung.clone();
        let reader = journal
            .reader(Box::new(move || {
                bell.fetch_add(1, Relaxed);
            }))
            .unwrap();
        let at = place(b"key");
        let append = || journal.append(at, &Record::new(Kind::Put, b"key"), Change(0));
        append();
        assert_eq!(rung.load(Relaxed), 0, "it was awake");
        reader.sleep();
        append();
        append();
        assert_eq!(rung.load(Relaxed), 1);
    }
}
