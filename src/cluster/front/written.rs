#![forbid(unsafe_code)]
//! What one client has written to groups, so that it reads nothing older from followers.
//!
//! Behind a write its leader is asked how far its log has come in the key's partition. A follower that has
//! come as far in the same log has that write. Where that is not known, or of another leader's log, the time
//! decides: a follower has what was answered before the moment up to which its leader says that it has all.

use crate::store::journal::PARTITIONS;

/// Groups whose positions are known of one client. What it has written to more of them is known by time.
const GROUPS_MAX: usize = 8;

/// A place in the log of one leader's reign: the reign, and the sequence in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub reign: u64,
    pub seq: u64,
}

/// How far the log of a node has come, in all partitions of the reign that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    pub reign: u64,
    pub seqs: Vec<u64>,
}

impl Positions {
    /// From the words of an answer to `repl position` or `repl positions`.
    pub fn parse(answer: &[u8]) -> Option<Positions> {
        let text = std::str::from_utf8(answer).ok()?;
        let mut words = text.split_ascii_whitespace();
        if words.next() != Some("POSITION") {
            return None;
        }
        // Who leads, and for the how-manieth time, is told apart and no more.
        let reign = xxhash_rust::xxh3::xxh3_64(words.next()?.as_bytes());
        let seqs = words.map(|word| word.parse().ok());
        let seqs: Vec<u64> = seqs.collect::<Option<_>>()?;
        (1..=PARTITIONS)
            .contains(&seqs.len())
            .then_some(Positions { reign, seqs })
    }
}

/// What was written to one group.
#[derive(Debug)]
struct Group {
    id: u32,
    reign: u64,
    /// When the last of it was there.
    at: u64,
    /// By partition; 0 where nothing was.
    seqs: Box<[u64; PARTITIONS]>,
}

/// What has to be there for one client to read a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Least {
    /// Written before this time: all of it. 0 is nothing.
    pub time: u64,
    /// The log up to here, if the node has the same; else what was written before the time beside it.
    pub position: Option<(Position, u64)>,
}

impl Least {
    /// For whoever has written nothing.
    pub const NOTHING: Least = Least {
        time: 0,
        position: None,
    };
    /// Nobody but the leader has it.
    pub const LEADER: Least = Least {
        time: u64::MAX,
        position: None,
    };
}

/// One client's. Times are on the cluster's clock.
#[derive(Debug, Default)]
pub struct Written {
    /// When it has last written something whose position is not told, or, once that is known, when all of it
    /// was there.
    at: u64,
    settled: bool,
    /// Positions that have been asked for.
    asked: u32,
    groups: Vec<Group>,
}

impl Written {
    /// Something is being written whose position will not be told.
    pub fn untold(&mut self, now: u64) {
        self.at = now;
        self.settled = false;
    }

    /// The position of what is being written is asked for.
    pub fn asked(&mut self) {
        self.asked += 1;
    }

    /// It has been told, or it never will be. What it was asked for has been answered before.
    pub fn told(&mut self, group: u32, partition: usize, position: Option<Position>, now: u64) {
        self.asked = self.asked.saturating_sub(1);
        // A millisecond counts as a whole one.
        let at = now + 1;
        let Some(Position { reign, seq }) = position.filter(|_| partition < PARTITIONS) else {
            return self.by_time(at);
        };
        let known = self.groups.iter().position(|known| known.id == group);
        let place = match known {
            Some(place) => place,
            None => {
                if self.groups.len() == GROUPS_MAX {
                    let oldest = self.groups.swap_remove(0);
                    self.by_time(oldest.at);
                }
                self.groups.push(Group {
                    id: group,
                    reign,
                    at,
                    seqs: Box::new([0; PARTITIONS]),
                });
                self.groups.len() - 1
            }
        };
        let known = &mut self.groups[place];
        let before = std::mem::replace(&mut known.at, at);
        if known.reign != reign {
            // Another leader, another log: of what was written to the one before, the time is known.
            known.reign = reign;
            known.seqs.fill(0);
            self.by_time(before);
        }
        let known = &mut self.groups[place].seqs[partition];
        *known = seq.max(*known);
    }

    /// Of what was written until then, no position is known.
    fn by_time(&mut self, at: u64) {
        if self.settled || self.at == 0 {
            self.at = at.max(self.at);
            self.settled = true;
        }
    }

    /// Whether it matters which partition a key that is read belongs to.
    #[inline]
    pub fn by_position(&self) -> bool {
        !self.groups.is_empty()
    }

    /// What has to be there for a key of this group and partition to be read. `answered`: the client has been
    /// told of all it has asked for; what has not been answered `timeout` milliseconds after it was asked for
    /// never will be.
    pub fn least(
        &mut self,
        group: u32,
        partition: usize,
        answered: bool,
        timeout: u64,
        now: u64,
    ) -> Least {
        if self.asked > 0 {
            // The answers are there in a moment. The leader has it in any case.
            return Least::LEADER;
        }
        let mut time = self.at;
        if self.at > 0 && !self.settled {
            time = self.at + timeout;
            if answered {
                time = time.min(now + 1);
                (self.at, self.settled) = (time, true);
            }
        }
        let known = self.groups.iter().find(|known| known.id == group);
        let position = known.and_then(|known| {
            let (reign, seq) = (known.reign, *known.seqs.get(partition)?);
            (seq > 0).then_some((Position { reign, seq }, known.at))
        });
        Least { time, position }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(reign: u64, seq: u64) -> Option<Position> {
        Some(Position { reign, seq })
    }

    #[test]
    fn answers_are_read() {
        let one = Positions::parse(b"POSITION 3:00000000000000ff 17").unwrap();
        assert_eq!(one.seqs, [17]);
        let all = Positions::parse(b"POSITION 3:00000000000000ff 1 2 3\r\n").unwrap();
        assert_eq!((all.reign, &all.seqs[..]), (one.reign, &[1, 2, 3][..]));
        let other = Positions::parse(b"POSITION 4:00000000000000ff 17").unwrap();
        assert_ne!(other.reign, one.reign);
        let long = format!("POSITION 3:f{}", " 1".repeat(PARTITIONS + 1));
        for wrong in [
            "",
            "POSITION",
            "POSITION 3:f",
            "POSITION 3:f x",
            "POSITION 3:f -1",
            "ERROR",
            "SERVER_ERROR not leader",
            &long,
        ] {
            assert_eq!(Positions::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn whoever_has_written_nothing_reads_anything() {
        let mut written = Written::default();
        assert_eq!(written.least(1, 0, true, 1000, 5), Least::NOTHING);
    }

    #[test]
    fn a_position_is_asked_of_its_own_partition_and_group() {
        let mut written = Written::default();
        written.asked();
        assert_eq!(written.least(1, 2, true, 1000, 5), Least::LEADER);
        written.told(1, 2, position(7, 30), 5);
        let least = written.least(1, 2, true, 1000, 5);
        assert_eq!(least.time, 0);
        assert_eq!(least.position, Some((Position { reign: 7, seq: 30 }, 6)));
        assert_eq!(written.least(1, 3, true, 1000, 5), Least::NOTHING);
        assert_eq!(written.least(2, 2, true, 1000, 5), Least::NOTHING);
        // What comes late is not older.
        written.told(1, 2, position(7, 20), 8);
        let least = written.least(1, 2, true, 1000, 9);
        assert_eq!(least.position, Some((Position { reign: 7, seq: 30 }, 9)));
    }

    #[test]
    fn another_leader_s_log_tells_nothing_of_the_one_before() {
        let mut written = Written::default();
        written.told(1, 2, position(7, 30), 5);
        written.told(1, 3, position(8, 31), 50);
        let least = written.least(1, 2, true, 1000, 60);
        assert_eq!((least.time, least.position), (6, None));
    }

    #[test]
    fn what_is_not_told_goes_by_time() {
        let mut written = Written::default();
        written.asked();
        written.told(1, 2, None, 5);
        assert_eq!(written.least(1, 2, true, 1000, 9).time, 6);
        written.untold(20);
        assert_eq!(written.least(1, 2, false, 1000, 30).time, 1020);
        assert_eq!(written.least(1, 2, true, 1000, 40).time, 41);
        assert_eq!(written.least(1, 2, true, 1000, 50).time, 41);
    }

    #[test]
    fn it_stays_small() {
        let mut written = Written::default();
        for group in 0..100 {
            written.told(group, 0, position(7, 1), 10 + u64::from(group));
        }
        assert_eq!(written.groups.len(), GROUPS_MAX);
        let least = written.least(0, 0, true, 1000, 500);
        assert_eq!(least.position, None);
        assert!(least.time >= 11);
        let least = written.least(99, 0, true, 1000, 500);
        assert!(least.position.is_some() && least.time < 110);
    }
}
