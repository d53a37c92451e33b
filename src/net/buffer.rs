#![forbid(unsafe_code)]
//! Input bytes of one worker.
//!
//! All connections of a worker are read through this one buffer, one after the other. What a
//! connection leaves behind, the start of a command whose end has not arrived, is moved into a
//! vector of its own, so that a connection between two commands owns no buffer at all.

/// Bytes a worker reads at a time.
pub const SIZE: usize = 64 << 10;

/// A buffer of [`SIZE`] bytes, of which `head..tail` wait to be taken. It has no memory before the
/// first use.
#[derive(Debug)]
pub struct Input {
    bytes: Box<[u8]>,
    /// Invariant: `head <= tail <= bytes.len()`.
    head: usize,
    tail: usize,
}

impl Input {
    pub fn new() -> Input {
        Input {
            bytes: Box::default(),
            head: 0,
            tail: 0,
        }
    }

    /// Starts over with what a connection had left behind, and frees that.
    pub fn load(&mut self, kept: &mut Vec<u8>) {
        debug_assert!(kept.len() <= SIZE);
        self.head = 0;
        self.tail = kept.len();
        if self.tail > 0 {
            self.memory()[..kept.len()].copy_from_slice(kept);
            *kept = Vec::new();
        }
    }

    /// Moves what has not been taken to where the connection keeps it.
    pub fn save(&mut self, kept: &mut Vec<u8>) {
        debug_assert!(kept.is_empty());
        if self.head < self.tail {
            *kept = self.bytes[self.head..self.tail].to_vec();
        }
        self.head = 0;
        self.tail = 0;
    }

    /// Where the next bytes are read to; empty if a whole buffer waits to be taken.
    #[inline]
    pub fn space(&mut self) -> &mut [u8] {
        if self.head == self.tail {
            self.head = 0;
            self.tail = 0;
        } else if self.head > 0 && self.tail > SIZE / 2 {
            self.bytes.copy_within(self.head..self.tail, 0);
            self.tail -= self.head;
            self.head = 0;
        }
        let tail = self.tail;
        &mut self.memory()[tail..]
    }

    #[inline]
    fn memory(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; SIZE].into_boxed_slice();
        }
        &mut self.bytes
    }

    /// `n` bytes of [`space`](Input::space) have been filled.
    #[inline]
    pub fn filled(&mut self, n: usize) {
        self.tail = (self.tail + n).min(self.bytes.len());
    }

    /// What waits to be taken.
    #[inline]
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.head..self.tail]
    }

    /// The first `n` bytes have been dealt with.
    #[inline]
    pub fn take(&mut self, n: usize) {
        debug_assert!(n <= self.tail - self.head);
        self.head = (self.head + n).min(self.tail);
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.head = 0;
        self.tail = 0;
    }

    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }
}

impl Default for Input {
    fn default() -> Input {
        Input::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_comes_back_first() {
        let mut input = Input::new();
        let mut kept = Vec::new();
        input.load(&mut kept);
        input.space()[..5].copy_from_slice(b"get a");
        input.filled(5);
        input.take(4);
        input.save(&mut kept);
        assert_eq!(kept, b"a");
        assert!(input.is_empty());
        input.load(&mut kept);
        assert_eq!(kept.capacity(), 0);
        input.space()[..2].copy_from_slice(b"\r\n");
        input.filled(2);
        assert_eq!(input.unread(), b"a\r\n");
    }

    #[test]
    fn space_is_made_by_moving_what_waits() {
        let mut input = Input::new();
        assert_eq!(input.space().len(), SIZE);
        input.filled(SIZE);
        assert!(input.space().is_empty());
        input.take(SIZE - 3);
        assert_eq!(input.space().len(), SIZE - 3);
        assert_eq!(input.unread().len(), 3);
        input.take(3);
        assert_eq!(input.space().len(), SIZE);
    }
}
