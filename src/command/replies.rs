#![forbid(unsafe_code)]
//! What waits to be sent to one client, in order: bytes, and values too long to copy, which stay
//! where they are until they have been written.
//!
//! The bytes live in one buffer that is initialised once and then written over, so that a short
//! reply costs a bounds check and a copy. A worker has one such buffer for all its clients; what a
//! client does not take at once moves into [`Replies`] of its own ([`Replies::take_rest`]).

use std::io::IoSlice;

use crate::net::{Progress, Stream};
use crate::store::{Hit, Pin};

/// Slices handed to one vectored write.
const SLICES: usize = 128;

/// A buffer that has grown beyond this gives the memory back once it is empty.
const KEEP: usize = 256 << 10;

/// The buffer never has less than this, once it has anything.
const LEAST: usize = 1 << 10;

#[derive(Default)]
pub struct Replies {
    /// Initialised throughout; `start..end` waits to be sent.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Values that go between the bytes, in order; those before `first` have been sent.
    pins: Vec<Attached>,
    first: usize,
    /// Bytes of pinned values that have not been sent.
    pinned: usize,
}

struct Attached {
    /// It goes before the byte at this place of the buffer.
    at: usize,
    pin: Pin,
    sent: usize,
}

/// A place to come back to.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    end: usize,
    pins: usize,
}

/// What became of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing waits any more.
    All,
    /// The client does not take more now.
    Blocked,
    /// The connection is gone.
    Closed,
}

impl Replies {
    /// With room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Replies {
        Replies {
            buffer: vec![0; capacity],
            ..Replies::default()
        }
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end && self.pinned == 0
    }

    /// Bytes of memory it takes, pinned values apart.
    pub fn size(&self) -> usize {
        self.buffer.capacity()
    }

    /// Bytes that wait, with those of pinned values.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.end - self.start + self.pinned
    }

    /// Appends bytes.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).put(bytes);
    }

    /// Appends a line and its CRLF.
    pub fn line(&mut self, line: &[u8]) {
        let mut room = self.room(line.len() + 2);
        room.put(line);
        room.put(b"\r\n");
    }

    /// Appends formatted text.
    pub fn format(&mut self, text: std::fmt::Arguments<'_>) {
        use std::io::Write;
        // Appending cannot fail.
        let _ = self.write_fmt(text);
    }

    /// A cursor over at least `n` free bytes.
    #[inline]
    pub fn room(&mut self, n: usize) -> Room<'_> {
        if self.buffer.len() - self.end < n {
            self.grow(n);
        }
        let free = &mut self.buffer[self.end..];
        Room {
            left: free.len(),
            free,
            end: &mut self.end,
        }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, n: usize) {
        let needed = (self.end + n).max(LEAST);
        self.buffer.resize(needed.max(self.buffer.len() * 2), 0);
    }

    /// Appends a value that stays where it is.
    pub fn attach(&mut self, pin: Pin) {
        self.pinned += pin.length();
        self.pins.push(Attached {
            at: self.end,
            pin,
            sent: 0,
        });
    }

    /// Appends the value of an item that is too long to be copied.
    #[inline(always)]
    pub fn attach_value(&mut self, hit: &Hit<'_>) {
        // Every value can be either copied or pinned.
        if let Some(pin) = hit.pin() {
            self.attach(pin);
        }
    }

    pub fn mark(&self) -> Mark {
        Mark {
            end: self.end,
            pins: self.pins.len(),
        }
    }

    /// Drops what has been appended since, as far as it has not been sent.
    pub fn rewind(&mut self, mark: Mark) {
        self.end = self.end.min(mark.end.max(self.start));
        let keep = mark.pins.max(self.first);
        for dropped in self.pins.drain(keep.min(self.pins.len())..) {
            self.pinned -= dropped.pin.length() - dropped.sent;
        }
    }

    /// The bytes that wait; what tests look at. Pinned values are not among them.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Everything that waits, copied together.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.waiting());
        let mut at = self.start;
        for attached in &self.pins[self.first..] {
            all.extend_from_slice(&self.buffer[at..attached.at]);
            at = attached.at;
            let mut offset = attached.sent;
            while offset < attached.pin.length() {
                let run = attached.pin.slice(offset);
                all.extend_from_slice(run);
                offset += run.len();
            }
        }
        all.extend_from_slice(&self.buffer[at..self.end]);
        all
    }

    /// Sends until nothing waits, the client takes no more, or it is gone; returns the bytes sent.
    pub fn flush(&mut self, stream: &mut Stream) -> (Flushed, usize) {
        let mut sent = 0;
        while !self.is_empty() {
            let progress = if self.first == self.pins.len() {
                stream.write(&self.buffer[self.start..self.end])
            } else {
                self.write_vectored(stream)
            };
            match progress {
                Progress::Moved(n) => {
                    self.advance(n);
                    sent += n;
                }
                Progress::Blocked => return (Flushed::Blocked, sent),
                Progress::Closed => return (Flushed::Closed, sent),
            }
        }
        self.clear();
        (Flushed::All, sent)
    }

    #[cold]
    #[inline(never)]
    fn write_vectored(&self, stream: &mut Stream) -> Progress {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let n = self.slices(&mut slices);
        stream.write_vectored(&slices[..n])
    }

    /// Fills `slices` with what comes next, none of them empty; returns how many.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        let mut at = self.start;
        for attached in &self.pins[self.first..] {
            if at < attached.at && filled < slices.len() {
                slices[filled] = IoSlice::new(&self.buffer[at..attached.at]);
                filled += 1;
                at = attached.at;
            }
            let mut offset = attached.sent;
            while offset < attached.pin.length() {
                if filled == slices.len() {
                    return filled;
                }
                let run = attached.pin.slice(offset);
                slices[filled] = IoSlice::new(run);
                filled += 1;
                offset += run.len();
            }
        }
        if at < self.end && filled < slices.len() {
            slices[filled] = IoSlice::new(&self.buffer[at..self.end]);
            filled += 1;
        }
        filled
    }

    /// The first `n` bytes of what waits have been sent.
    pub fn advance(&mut self, mut n: usize) {
        while n > 0 {
            let Some(attached) = self.pins.get_mut(self.first) else {
                self.start = (self.start + n).min(self.end);
                break;
            };
            let before = (attached.at - self.start).min(n);
            self.start += before;
            n -= before;
            let taken = (attached.pin.length() - attached.sent).min(n);
            attached.sent += taken;
            self.pinned -= taken;
            n -= taken;
            if self.start == attached.at && attached.sent == attached.pin.length() {
                self.first += 1;
            }
        }
        if self.first > 0 {
            // Sent values must not stay pinned until the last byte is gone.
            self.pins.drain(..self.first);
            self.first = 0;
        }
    }

    /// Moves the first of what waits into `into`, until that is full or nothing waits; returns how
    /// much that was.
    pub fn take_into(&mut self, into: &mut [u8]) -> usize {
        let mut taken = 0;
        while taken < into.len() && !self.is_empty() {
            let mut slices = [IoSlice::new(&[])];
            if self.slices(&mut slices) == 0 {
                break;
            }
            let n = slices[0].len().min(into.len() - taken);
            into[taken..taken + n].copy_from_slice(&slices[0][..n]);
            self.advance(n);
            taken += n;
        }
        taken
    }

    /// Drops everything; keeps the buffer unless it has grown large.
    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
        self.first = 0;
        self.pinned = 0;
        self.pins.clear();
        if self.buffer.len() > KEEP {
            self.buffer.truncate(KEEP);
            self.buffer.shrink_to_fit();
        }
    }

    /// Moves what waits into replies of its own, no larger than needed, and leaves this one empty.
    pub fn take_rest(&mut self) -> Replies {
        let buffer = self.buffer[self.start..self.end].to_vec();
        let mut pins: Vec<Attached> = self.pins.drain(self.first..).collect();
        for attached in &mut pins {
            attached.at -= self.start;
        }
        let rest = Replies {
            start: 0,
            end: buffer.len(),
            buffer,
            pins,
            first: 0,
            pinned: self.pinned,
        };
        self.clear();
        rest
    }
}

impl std::io::Write for Replies {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Free bytes at the end of [`Replies`]; what has been put there counts when this is dropped.
pub struct Room<'a> {
    free: &'a mut [u8],
    /// Bytes that were free at first.
    left: usize,
    end: &'a mut usize,
}

impl Drop for Room<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        *self.end += self.left - self.free.len();
    }
}

impl Room<'_> {
    /// Appends bytes, for which room must have been asked.
    #[inline(always)]
    pub fn put(&mut self, bytes: &[u8]) {
        self.take(bytes.len()).copy_from_slice(bytes);
    }

    /// The next `n` bytes.
    #[inline(always)]
    fn take(&mut self, n: usize) -> &mut [u8] {
        let (taken, rest) = std::mem::take(&mut self.free).split_at_mut(n);
        self.free = rest;
        taken
    }

    /// As [`put`](Room::put), for a slice of a key's usual length: cheaper than a call.
    #[inline(always)]
    pub fn put_key(&mut self, key: &[u8]) {
        if !(16..=32).contains(&key.len()) {
            return self.put(key);
        }
        let back = key.len() - 16;
        let into = self.take(key.len());
        into[..16].copy_from_slice(&key[..16]);
        into[back..].copy_from_slice(&key[back..]);
    }

    /// Appends the first `length` bytes of eight, for all of which room must have been asked: cheaper
    /// than a copy of a length that is not known before.
    #[inline(always)]
    pub fn put_short(&mut self, bytes: [u8; 8], length: usize) {
        self.free[..8].copy_from_slice(&bytes);
        self.take(length);
    }

    /// Appends a number in decimal: at most 20 bytes.
    #[inline]
    pub fn number(&mut self, n: u64) {
        match n {
            0..10 => self.put(&[b'0' + n as u8]),
            10..100 => self.put(&[b'0' + (n / 10) as u8, b'0' + (n % 10) as u8]),
            _ => self.put(itoa::Buffer::new().format(n).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal() {
        for n in [
            0,
            7,
            9,
            10,
            42,
            99,
            100,
            1000,
            u64::from(u32::MAX),
            u64::MAX,
        ] {
            let mut replies = Replies::default();
            replies.room(20).number(n);
            assert_eq!(replies.bytes(), n.to_string().as_bytes());
        }
    }

    #[test]
    fn what_was_appended_after_a_mark_can_be_dropped() {
        let mut replies = Replies::default();
        replies.push(b"one");
        let mark = replies.mark();
        replies.line(b"two");
        replies.rewind(mark);
        replies.push(b"!");
        assert_eq!(replies.bytes(), b"one!");
        replies.advance(4);
        replies.rewind(mark);
        assert!(replies.is_empty(), "what is sent stays sent");
    }

    #[test]
    fn the_rest_moves_out() {
        let mut replies = Replies::with_capacity(4);
        replies.push(b"sent");
        replies.format(format_args!("left {}", 1));
        replies.advance(4);
        let mut rest = replies.take_rest();
        assert!(replies.is_empty());
        assert_eq!(rest.waiting(), 6);
        assert_eq!(rest.to_vec(), b"left 1");
        rest.push(b" more");
        assert_eq!(rest.bytes(), b"left 1 more");
    }

    #[test]
    fn what_waits_can_be_taken_in_parts() {
        let mut replies = Replies::default();
        replies.push(b"abcdef");
        let mut part = [0; 4];
        assert_eq!(replies.take_into(&mut part), 4);
        assert_eq!(&part, b"abcd");
        assert_eq!(replies.take_into(&mut part), 2);
        assert_eq!(&part[..2], b"ef");
        assert_eq!(replies.take_into(&mut part), 0);
    }

    #[test]
    fn a_large_buffer_is_given_back() {
        let mut replies = Replies::default();
        replies.push(&vec![1; 2 * KEEP]);
        replies.advance(2 * KEEP);
        replies.clear();
        assert!(replies.buffer.len() <= KEEP);
    }
}
