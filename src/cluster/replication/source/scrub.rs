#![forbid(unsafe_code)]
//! Values that are compared, slowly: what has rotted under the same CAS.
//!
//! How far that is outlives the connection. What counts is not what has been sent, but what the copy has
//! taken, and has been given anew where it asked for that.

use super::super::data::Data;
use super::super::{SCRUB_BYTES_PER_SECOND, WINDOW};
use super::{LOOK, Source};
use crate::store::journal::{Kind, Record, partition};

/// Bytes of values that one step compares, about: of large ones a few, for the copy hears and says
/// nothing while it reads them.
const COMPARED: u64 = 1 << 20;

/// How far a walk that compares values may be late before it gives up the time, in milliseconds. It is
/// looked at only now and then.
const LATE: u64 = 500;

/// How far the values of a copy have been compared, over all its connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Rounds that are complete.
    pub rounds: u64,
    /// When the last one began, complete or not.
    pub began: u64,
    /// Items of one that is not, as they should be in the copy or made so.
    pub items: u64,
    /// Where that goes on.
    next: Option<usize>,
}

impl Scrubbed {
    /// Of a copy that has not been here before.
    pub fn new(now: u64) -> Scrubbed {
        Scrubbed {
            began: now,
            ..Scrubbed::default()
        }
    }
}

/// A place of the walk, and how many items come before it.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Nothing: it is the end.
    next: Option<usize>,
    items: u64,
}

/// A place that the copy will have come to when it has taken so much of the stream.
#[derive(Debug, Clone, Copy)]
struct Mark {
    place: Place,
    sent: u64,
    /// It has taken all there is to compare; what it has asked for then is on its way.
    compared: bool,
}

/// A walk that compares values, slowly.
pub(super) struct Scrub {
    at: Place,
    mark: Option<Mark>,
    /// When it may go on, in microseconds.
    due: u64,
    /// Items that the next step looks at, about.
    step: usize,
}

impl Scrub {
    fn new(from: usize, items: u64, now: u64) -> Scrub {
        Scrub {
            at: Place {
                next: Some(from),
                items,
            },
            mark: None,
            due: now * 1000,
            step: 1,
        }
    }

    /// So many items have been looked at, and so many bytes.
    fn looked(&mut self, items: usize, bytes: u64, now: u64) {
        self.at.items += items as u64;
        let took = bytes * 1_000_000 / SCRUB_BYTES_PER_SECOND;
        self.due = self.due.max(now.saturating_sub(LATE) * 1000) + took;
        if let Some(each) = bytes.checked_div(items as u64) {
            // Of small ones many, so that those of a partition are told in one frame.
            self.step = (COMPARED / each.max(1)).clamp(1, LOOK / 4) as usize;
        }
    }
}

impl<D: Data> Source<D> {
    /// Starts comparing values, if that is not being done.
    pub fn scrub(&mut self, now: u64) {
        if self.scrub.is_none() {
            self.scrubbed.began = now;
            self.scrubbed.next = Some(0);
            self.scrub = Some(Scrub::new(0, 0, now));
        }
    }

    /// Goes on where an earlier connection of this copy has ended.
    pub fn go_on_scrubbing(&mut self, scrubbed: Scrubbed, now: u64) {
        self.scrubbed = scrubbed;
        let from = scrubbed.next;
        self.scrub = from.map(|from| Scrub::new(from, scrubbed.items, now));
    }

    /// How far that is.
    pub fn scrubbed(&self) -> Scrubbed {
        self.scrubbed
    }

    /// Goes on with comparing values. False: not now. Everything else has been sent before.
    pub(super) fn send_checks(&mut self, data: &D, now: u64) -> bool {
        if !self.quiet() {
            return false;
        }
        self.count_compared();
        if self.in_flight() > WINDOW / 4 {
            return false;
        }
        let Some(scrub) = &mut self.scrub else {
            return false;
        };
        let Some(from) = scrub.at.next else {
            return false;
        };
        if now * 1000 < scrub.due {
            return false;
        }
        let mut found: Vec<(usize, u64, Vec<u8>)> = Vec::new();
        let mut looked = 0;
        let next = data.walk(from, scrub.step, true, &mut |item| {
            looked += item.record.argument + 64;
            let record = Record {
                kind: Kind::Check,
                client_flags: u32::from(item.value_digest.1),
                argument: item.value_digest.0,
                value: &item.digest.to_le_bytes(),
                ..item.record
            };
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            found.push((partition(item.place), item.record.seq, bytes));
        });
        scrub.at.next = next;
        scrub.looked(found.len(), looked, now);
        self.queue(found);
        true
    }

    /// Counts what the copy is done with. Here everything that is known has been sent, and what a copy has
    /// said of a value comes before it says that it has taken it.
    fn count_compared(&mut self) {
        let Some(scrub) = &mut self.scrub else {
            return;
        };
        while let Some(mark) = &mut scrub.mark {
            if self.taken < mark.sent {
                return;
            }
            if mark.compared {
                self.scrubbed.items = mark.place.items;
                self.scrubbed.next = mark.place.next;
                scrub.mark = None;
            } else {
                mark.compared = true;
                mark.sent = self.sent;
            }
        }
        if scrub.at.next != self.scrubbed.next {
            scrub.mark = Some(Mark {
                place: scrub.at,
                sent: self.sent,
                compared: false,
            });
        } else if scrub.at.next.is_none() {
            self.scrubbed.rounds += 1;
            self.scrubbed.items = 0;
            self.scrub = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small values and large ones, looked at now and then.
    #[test]
    fn values_are_compared_as_fast_as_they_may_be() {
        for each in [164, 1064, 1 << 20, 64 << 20] {
            let (mut scrub, mut looked) = (Scrub::new(0, 0, 1000), 0);
            let (mut most, mut now) = (0, 1000);
            while now < 41_000 {
                let mut burst = 0;
                while now * 1000 >= scrub.due {
                    assert!(scrub.step == 1 || scrub.step as u64 * each <= 2 * COMPARED);
                    burst += scrub.step as u64 * each;
                    scrub.looked(scrub.step, scrub.step as u64 * each, now);
                }
                looked += burst;
                most = most.max(burst);
                // Between two looks at it.
                now += 50;
            }
            let should = 40 * SCRUB_BYTES_PER_SECOND;
            assert!(
                looked.abs_diff(should) <= should / 20 + each,
                "{each}: {looked}"
            );
            let (step, tick) = (each.max(2 * COMPARED), SCRUB_BYTES_PER_SECOND / 20);
            assert!(most <= step + 2 * tick, "{each}: {most}");
            // What was missed for long is not made up for.
            let mut late = 0;
            now += 60_000;
            while now * 1000 >= scrub.due {
                late += scrub.step as u64 * each;
                scrub.looked(scrub.step, scrub.step as u64 * each, now);
            }
            assert!(late <= SCRUB_BYTES_PER_SECOND + 2 * each, "{each}: {late}");
        }
    }
}
