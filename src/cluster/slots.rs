#![forbid(unsafe_code)]
//! What one client is owed, in the order of its requests.
//!
//! Each request, and each key of a get of several, reserves a slot. Answers come in any order: one
//! whose turn it is goes straight to what is to be sent, another waits in its slot. What is silent (a
//! miss among many keys, a quiet command that went well) leaves nothing behind.

use std::collections::VecDeque;

/// A buffer that has grown beyond this is given back once it is empty.
const KEEP: usize = 256 << 10;

/// One slot.
#[derive(Debug)]
enum Slot {
    /// Nothing has come.
    Waiting,
    /// It is whole, in `held`.
    Held { at: u32, length: u32 },
    /// There is nothing to say.
    Silent,
    /// The end of a get of several keys.
    End,
    /// A key of a get could not be asked for: this, in `held`, is said in place of the end.
    Failed { at: u32, length: u32 },
    /// A long answer whose turn has not come, as far as it has.
    #[expect(
        clippy::box_collection,
        reason = "the others have to fit into 16 bytes"
    )]
    Gathering(Box<Vec<u8>>),
    /// A long answer whose turn it is: what comes of it is passed on.
    Flowing,
}

/// The slots of one client, and what is ready to be sent to it.
#[derive(Debug, Default)]
pub struct Slots {
    /// The number of the first slot in the queue; numbers wrap.
    first: u32,
    queue: VecDeque<Slot>,
    /// Answers before their turn.
    held: Vec<u8>,
    /// Slots that point into it, and the bytes they point to.
    holders: usize,
    holding: usize,
    /// Bytes in slots that gather.
    gathered: usize,
    /// What is in order; `sent` of it is gone.
    out: Vec<u8>,
    sent: usize,
    /// What the get whose keys are being told has failed with.
    failed: Option<Box<[u8]>>,
}

impl Slots {
    /// Requests, and keys, that have not been answered to the client.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes that are kept for the client, in order or before their turn.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.out.len() - self.sent + self.held.len() + self.gathered
    }

    /// Whether it is this slot's turn.
    #[inline]
    pub fn is_next(&self, slot: u32) -> bool {
        slot == self.first
    }

    /// A slot for an answer to come.
    #[inline]
    pub fn reserve(&mut self) -> u32 {
        let slot = self.end();
        self.queue.push_back(Slot::Waiting);
        slot
    }

    /// An answer that is there already.
    pub fn say(&mut self, bytes: &[u8]) {
        if self.queue.is_empty() {
            self.out.extend_from_slice(bytes);
        } else {
            let (at, length) = self.hold(bytes);
            self.queue.push_back(Slot::Held { at, length });
        }
    }

    /// Behind the slots of the keys of a get of several: `END`, or why it failed.
    pub fn end_of_get(&mut self) {
        self.queue.push_back(Slot::End);
        if self.queue.len() == 1 {
            self.settle();
        }
    }

    /// The answer that belongs to a slot.
    #[inline]
    pub fn fill(&mut self, slot: u32, bytes: &[u8]) {
        if slot == self.first && matches!(self.queue.front(), Some(Slot::Waiting)) {
            self.out.extend_from_slice(bytes);
            self.queue.pop_front();
            self.first = self.first.wrapping_add(1);
            if !matches!(self.queue.front(), None | Some(Slot::Waiting)) {
                self.settle();
            }
        } else {
            self.fill_later(slot, bytes);
        }
    }

    fn fill_later(&mut self, slot: u32, bytes: &[u8]) {
        let place = slot.wrapping_sub(self.first) as usize;
        if matches!(self.queue.get(place), Some(Slot::Waiting)) {
            let (at, length) = self.hold(bytes);
            self.queue[place] = Slot::Held { at, length };
        }
    }

    /// As [`fill`](Slots::fill), with the answer in two pieces.
    pub fn fill_two(&mut self, slot: u32, head: &[u8], rest: &[u8]) {
        if slot == self.first && matches!(self.queue.front(), Some(Slot::Waiting)) {
            self.out.extend_from_slice(head);
            self.fill(slot, rest);
        } else {
            self.fill_later(slot, &[head, rest].concat());
        }
    }

    /// The slot has nothing to say.
    #[inline]
    pub fn silence(&mut self, slot: u32) {
        self.put(slot, Slot::Silent);
    }

    /// The key of a get of several that the slot stands for could not be asked for.
    pub fn fail_key(&mut self, slot: u32, line: &[u8]) {
        self.cut(slot);
        let place = slot.wrapping_sub(self.first) as usize;
        if matches!(self.queue.get(place), Some(Slot::Waiting)) {
            let (at, length) = self.hold(line);
            self.put(slot, Slot::Failed { at, length });
        }
    }

    fn put(&mut self, slot: u32, with: Slot) {
        let place = slot.wrapping_sub(self.first) as usize;
        if let Some(old @ Slot::Waiting) = self.queue.get_mut(place) {
            *old = with;
            if place == 0 {
                self.settle();
            }
        }
    }

    /// A piece of a long answer.
    pub fn part(&mut self, slot: u32, bytes: &[u8]) {
        let place = slot.wrapping_sub(self.first) as usize;
        let Some(found) = self.queue.get_mut(place) else {
            return;
        };
        if let Slot::Waiting = found {
            *found = if place == 0 {
                Slot::Flowing
            } else {
                Slot::Gathering(Box::default())
            };
        }
        match found {
            Slot::Flowing => self.out.extend_from_slice(bytes),
            Slot::Gathering(all) => {
                all.extend_from_slice(bytes);
                self.gathered += bytes.len();
            }
            _ => {}
        }
    }

    /// The long answer is complete.
    pub fn done(&mut self, slot: u32) {
        let place = slot.wrapping_sub(self.first) as usize;
        match self.queue.get_mut(place) {
            Some(found @ Slot::Flowing) => {
                *found = Slot::Silent;
                self.settle();
            }
            Some(found @ Slot::Gathering(_)) => {
                if let Slot::Gathering(all) = std::mem::replace(found, Slot::Waiting) {
                    self.gathered -= all.len();
                    self.fill_later(slot, &all);
                }
            }
            _ => {}
        }
    }

    /// Whether the client has been sent the start of this slot's answer already.
    pub fn is_flowing(&self, slot: u32) -> bool {
        let place = slot.wrapping_sub(self.first) as usize;
        matches!(self.queue.get(place), Some(Slot::Flowing))
    }

    /// Whether nothing of this slot's answer has come yet.
    pub fn is_untold(&self, slot: u32) -> bool {
        let place = slot.wrapping_sub(self.first) as usize;
        matches!(self.queue.get(place), Some(Slot::Waiting))
    }

    /// Forgets what has come of a long answer; it can be filled again, unless it is flowing.
    pub fn cut(&mut self, slot: u32) {
        let place = slot.wrapping_sub(self.first) as usize;
        if let Some(found @ Slot::Gathering(_)) = self.queue.get_mut(place)
            && let Slot::Gathering(all) = std::mem::replace(found, Slot::Waiting)
        {
            self.gathered -= all.len();
        }
    }

    /// Keeps an answer for its turn.
    fn hold(&mut self, bytes: &[u8]) -> (u32, u32) {
        if self.held.len() > KEEP && self.holding * 2 < self.held.len() {
            self.compact();
        }
        let at = self.held.len() as u32;
        self.held.extend_from_slice(bytes);
        self.holders += 1;
        self.holding += bytes.len();
        (at, bytes.len() as u32)
    }

    /// Drops what nobody points to any more.
    #[cold]
    fn compact(&mut self) {
        let old = std::mem::take(&mut self.held);
        self.held.reserve(self.holding);
        for slot in &mut self.queue {
            if let Slot::Held { at, length } | Slot::Failed { at, length } = slot {
                let start = *at as usize;
                *at = self.held.len() as u32;
                self.held
                    .extend_from_slice(&old[start..start + *length as usize]);
            }
        }
    }

    /// Moves on what has its turn.
    fn settle(&mut self) {
        while let Some(front) = self.queue.front_mut() {
            match front {
                Slot::Waiting | Slot::Flowing => return,
                Slot::Gathering(all) => {
                    self.gathered -= all.len();
                    self.out.extend_from_slice(all);
                    *front = Slot::Flowing;
                    return;
                }
                Slot::Held { at, length } => {
                    let (at, length) = (*at as usize, *length as usize);
                    self.out.extend_from_slice(&self.held[at..at + length]);
                    self.release(length);
                }
                Slot::Failed { at, length } => {
                    let (at, length) = (*at as usize, *length as usize);
                    self.failed
                        .get_or_insert_with(|| self.held[at..at + length].into());
                    self.release(length);
                }
                Slot::Silent => {}
                Slot::End => match self.failed.take() {
                    Some(line) => self.out.extend_from_slice(&line),
                    None => self.out.extend_from_slice(b"END\r\n"),
                },
            }
            self.queue.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }

    fn release(&mut self, length: usize) {
        self.holders -= 1;
        self.holding -= length;
        if self.holders == 0 {
            self.held.clear();
            if self.held.capacity() > KEEP {
                self.held = Vec::new();
            }
        }
    }

    /// The slot whose turn it is, or the next to be reserved.
    #[inline]
    pub fn next(&self) -> u32 {
        self.first
    }

    /// The slot to be reserved next.
    #[inline]
    pub fn end(&self) -> u32 {
        self.first.wrapping_add(self.queue.len() as u32)
    }

    /// What is in order and has not been sent.
    #[inline]
    pub fn ready(&self) -> &[u8] {
        &self.out[self.sent..]
    }

    /// So many bytes of that have been sent.
    pub fn advance(&mut self, n: usize) {
        self.sent += n;
        if self.sent >= self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > KEEP {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Buffers to write to, if it has none: one for what is in order, and where more than one answer is
    /// to come, one for those before their turn.
    pub fn lend(&mut self, spare: &mut Vec<Vec<u8>>) {
        if self.out.capacity() == 0
            && let Some(buffer) = spare.pop()
        {
            self.out = buffer;
        }
        if self.queue.len() > 1
            && self.held.capacity() == 0
            && let Some(buffer) = spare.pop()
        {
            self.held = buffer;
        }
    }

    /// Gives back what memory is not in use.
    pub fn relax(&mut self, spare: &mut Vec<Vec<u8>>, most: usize) {
        let mut give = |buffer: &mut Vec<u8>| {
            if buffer.capacity() > 0 {
                let buffer = std::mem::take(buffer);
                if buffer.capacity() <= KEEP && spare.len() < most {
                    spare.push(buffer);
                }
            }
        };
        if self.out.is_empty() {
            give(&mut self.out);
        }
        if self.queue.is_empty() {
            // Nobody points into it.
            self.held.clear();
            give(&mut self.held);
            if self.queue.capacity() > 64 {
                self.queue = VecDeque::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(slots: &mut Slots) -> String {
        let text = String::from_utf8(slots.ready().to_vec()).unwrap();
        slots.advance(text.len());
        text
    }

    #[test]
    fn answers_leave_in_the_order_of_requests() {
        let mut slots = Slots::default();
        slots.say(b"0");
        let numbers: Vec<u32> = (0..5).map(|_| slots.reserve()).collect();
        slots.say(b"5");
        slots.fill(numbers[2], b"2");
        slots.silence(numbers[3]);
        slots.fill(numbers[4], b"4");
        assert_eq!(sent(&mut slots), "0");
        slots.fill(numbers[0], b"a");
        assert_eq!(sent(&mut slots), "a");
        slots.fill_two(numbers[1], b"b", b"B");
        assert_eq!(sent(&mut slots), "bB245");
        assert!(slots.is_empty());
        assert_eq!(slots.bytes(), 0);
        let late = slots.reserve();
        slots.fill(numbers[1], b"twice");
        slots.fill(late, b"6");
        assert_eq!(sent(&mut slots), "6", "a slot is filled once");
    }

    #[test]
    fn a_get_of_several_ends_once() {
        let mut slots = Slots::default();
        let (a, b) = (slots.reserve(), slots.reserve());
        slots.end_of_get();
        slots.silence(b);
        slots.fill(a, b"A ");
        assert_eq!(sent(&mut slots), "A END\r\n");
        let (a, b, c) = (slots.reserve(), slots.reserve(), slots.reserve());
        slots.end_of_get();
        let next = slots.reserve();
        slots.fail_key(b, b"SERVER_ERROR down\r\n");
        slots.fail_key(c, b"SERVER_ERROR other\r\n");
        slots.fill(next, b"next");
        assert_eq!(sent(&mut slots), "");
        slots.fill(a, b"A ");
        assert_eq!(sent(&mut slots), "A SERVER_ERROR down\r\nnext");
        slots.end_of_get();
        assert_eq!(sent(&mut slots), "END\r\n");
    }

    #[test]
    fn long_answers_flow_when_it_is_their_turn() {
        let mut slots = Slots::default();
        let (a, b) = (slots.reserve(), slots.reserve());
        slots.part(b, b"b1 ");
        slots.part(a, b"a1 ");
        assert_eq!(sent(&mut slots), "a1 ");
        assert!(slots.is_flowing(a) && !slots.is_flowing(b));
        slots.part(b, b"b2 ");
        assert_eq!(slots.bytes(), 6);
        slots.part(a, b"a2 ");
        slots.done(a);
        assert_eq!(sent(&mut slots), "a2 b1 b2 ");
        slots.part(b, b"b3 ");
        assert_eq!(sent(&mut slots), "b3 ");
        slots.done(b);
        let (c, d) = (slots.reserve(), slots.reserve());
        slots.part(d, b"half");
        slots.cut(d);
        slots.fill(d, b"error");
        slots.part(c, b"c");
        slots.done(c);
        assert_eq!(sent(&mut slots), "cerror");
        assert_eq!(slots.bytes(), 0);
    }

    #[test]
    fn what_is_held_stays_bounded_while_it_is_never_empty() {
        let mut slots = Slots::default();
        let piece = vec![b'x'; 10_000];
        let (mut waits, mut held) = (slots.reserve(), slots.reserve());
        slots.fill(held, &piece);
        for _ in 0..1000 {
            let (next, after) = (slots.reserve(), slots.reserve());
            slots.fill(after, &piece);
            slots.fill(waits, b"-");
            (waits, held) = (next, after);
            let ready = slots.ready().len();
            assert_eq!(ready, 10_001);
            slots.advance(ready);
        }
        assert!(slots.held.len() < 2 * KEEP, "{}", slots.held.len());
        slots.fill(waits, b"-");
        assert_eq!(slots.ready().len(), 10_001);
        let _ = held;
    }
}
