#![forbid(unsafe_code)]
//! Who led when: by this two copies find out how far their logs are the same.

use std::fmt;

use crate::store::journal::PARTITIONS;

use super::message::{Reader, put_u64};

/// Epochs that are remembered.
pub const EPOCHS: usize = 64;

/// One reign. Two of the same number are told apart by the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Epoch {
    pub number: u64,
    pub id: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:016x}", self.number, self.id)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reign {
    pub epoch: Epoch,
    /// The first sequence of each partition that was given out in it.
    pub first: [u64; PARTITIONS],
}

/// Reigns, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History(Vec<Reign>);

impl History {
    /// The present one; the zeroth if there never was any.
    pub fn epoch(&self) -> Epoch {
        self.0.last().map_or(Epoch::default(), |reign| reign.epoch)
    }

    /// Begins a reign behind these positions.
    pub fn open(&mut self, epoch: Epoch, positions: &[u64; PARTITIONS]) {
        if self.0.len() == EPOCHS {
            self.0.remove(0);
        }
        self.0.push(Reign {
            epoch,
            first: positions.map(|seq| seq + 1),
        });
    }

    /// Whether a log that was at `seq` of a partition in `epoch` is a beginning of this one.
    pub fn contains(&self, epoch: Epoch, partition: usize, seq: u64) -> bool {
        let Some(at) = self.0.iter().position(|reign| reign.epoch == epoch) else {
            return false;
        };
        self.0
            .get(at + 1)
            .is_none_or(|next| seq < next.first[partition])
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.0.len() as u64);
        for reign in &self.0 {
            put_u64(out, reign.epoch.number);
            put_u64(out, reign.epoch.id);
            for first in reign.first {
                put_u64(out, first);
            }
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> Option<History> {
        let count = reader.u64()?;
        if count > EPOCHS as u64 {
            return None;
        }
        let mut history = History::default();
        for _ in 0..count {
            let epoch = reader.epoch()?;
            let mut first = [0; PARTITIONS];
            for first in &mut first {
                *first = reader.u64()?;
            }
            history.0.push(Reign { epoch, first });
        }
        Some(history)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(number: u64) -> Epoch {
        Epoch { number, id: 9 }
    }

    #[test]
    fn logs_are_the_same_up_to_the_next_reign() {
        let mut history = History::default();
        assert!(!history.contains(epoch(0), 0, 0), "nobody ever led");
        history.open(epoch(1), &[0; PARTITIONS]);
        history.open(epoch(4), &[10; PARTITIONS]);
        assert!(history.contains(epoch(1), 3, 10));
        assert!(!history.contains(epoch(1), 3, 11), "it went on alone");
        assert!(history.contains(epoch(4), 3, 1000));
        assert!(!history.contains(epoch(2), 3, 5), "unknown");
        let other = Epoch { number: 4, id: 8 };
        assert!(!history.contains(other, 3, 5), "two were promoted");
    }

    #[test]
    fn it_travels_and_forgets_the_oldest() {
        let mut history = History::default();
        for number in 1..=70 {
            history.open(epoch(number), &[number; PARTITIONS]);
        }
        assert!(!history.contains(epoch(6), 0, 0));
        assert!(history.contains(epoch(7), 0, 7));
        let mut bytes = Vec::new();
        history.encode(&mut bytes);
        let decoded = History::decode(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(decoded, history);
        assert_eq!(History::decode(&mut Reader::new(&bytes[..99])), None);
        assert_eq!(History::decode(&mut Reader::new(&[255; 900])), None);
    }
}
