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
///
/// A command may be longer than that. Then the buffer grows, up to a bound, and does not stay with the
/// worker: it goes with the connection as a whole, and comes back with it.
#[derive(Debug)]
pub struct Input {
    bytes: Vec<u8>,
    /// Invariant: `head <= tail <= bytes.len()`.
    head: usize,
    tail: usize,
    /// Bytes it may grow to.
    most: usize,
    /// The worker's own, while a connection's longer one is in use.
    aside: Option<Vec<u8>>,
}

impl Input {
    pub fn new() -> Input {
        Input::for_commands(0)
    }

    /// For commands of up to `longest` bytes, and at least of [`SIZE`].
    pub fn for_commands(longest: usize) -> Input {
        Input {
            bytes: Vec::new(),
            head: 0,
            tail: 0,
            most: longest.max(SIZE),
            aside: None,
        }
    }

    /// Starts over with what a connection had left behind, and frees that.
    #[inline]
    pub fn load(&mut self, kept: &mut Vec<u8>) {
        self.head = 0;
        self.tail = kept.len();
        if self.tail > SIZE {
            self.adopt(std::mem::take(kept));
        } else if self.tail > 0 {
            self.memory()[..kept.len()].copy_from_slice(kept);
            *kept = Vec::new();
        }
    }

    /// Moves what has not been taken to where the connection keeps it.
    #[inline]
    pub fn save(&mut self, kept: &mut Vec<u8>) {
        debug_assert!(kept.is_empty());
        if self.aside.is_some() {
            self.part(kept);
        } else if self.head < self.tail {
            *kept = self.bytes[self.head..self.tail].to_vec();
        }
        self.head = 0;
        self.tail = 0;
    }

    /// Works on a connection's own buffer.
    #[cold]
    fn adopt(&mut self, bytes: Vec<u8>) {
        self.aside = Some(std::mem::replace(&mut self.bytes, bytes));
    }

    /// Gives a connection the buffer that has grown for it, or what little is left in that.
    #[cold]
    fn part(&mut self, kept: &mut Vec<u8>) {
        let own = self.aside.take().unwrap_or_default();
        let mut bytes = std::mem::replace(&mut self.bytes, own);
        if self.tail - self.head > SIZE {
            bytes.truncate(self.tail);
            if self.head > 0 {
                bytes.drain(..self.head);
            }
            *kept = bytes;
        } else {
            *kept = bytes[self.head..self.tail].to_vec();
        }
    }

    /// Where the next bytes are read to; empty if as much as may be waits to be taken.
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
        if self.tail >= SIZE {
            self.grow();
        }
        let tail = self.tail;
        &mut self.memory()[tail..]
    }

    /// Makes room behind a full buffer, a little at a time, in memory that doubles.
    #[cold]
    fn grow(&mut self) {
        if self.tail < self.bytes.len() || self.tail >= self.most {
            return;
        }
        if self.aside.is_none() {
            let mut bytes = Vec::with_capacity((2 * SIZE).min(self.most));
            bytes.extend_from_slice(&self.bytes[..self.tail]);
            self.adopt(bytes);
        }
        let length = (self.tail + SIZE).min(self.most);
        if self.bytes.capacity() < length {
            let capacity = (2 * self.bytes.capacity()).clamp(length, self.most);
            self.bytes.reserve_exact(capacity - self.tail);
        }
        self.bytes.resize(length, 0);
    }

    #[inline]
    fn memory(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; SIZE];
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
    fn a_long_command_takes_its_buffer_along() {
        let mut input = Input::for_commands(3 * SIZE + 5);
        let mut kept = Vec::new();
        let read = |input: &mut Input, byte: u8, n: usize| {
            let space = input.space();
            let n = n.min(space.len());
            space[..n].fill(byte);
            input.filled(n);
            n
        };
        assert_eq!(read(&mut input, 1, SIZE), SIZE);
        assert_eq!(read(&mut input, 2, 10), 10);
        input.save(&mut kept);
        assert_eq!((kept.len(), kept.capacity()), (SIZE + 10, 2 * SIZE));
        // Another connection in between finds a buffer of the usual size.
        input.load(&mut Vec::new());
        assert_eq!(input.space().len(), SIZE);
        input.save(&mut Vec::new());
        let mut total = kept.len();
        loop {
            input.load(&mut kept);
            assert_eq!((kept.capacity(), input.unread().len()), (0, total));
            let n = read(&mut input, 3, SIZE / 2);
            if n == 0 {
                break;
            }
            total += n;
            input.save(&mut kept);
            assert!(kept.capacity() <= 3 * SIZE + 5);
        }
        assert_eq!(total, 3 * SIZE + 5, "and no more");
        let all = input.unread();
        assert!(all[..SIZE].iter().all(|&byte| byte == 1));
        assert!(all[SIZE + 10..].iter().all(|&byte| byte == 3));
        input.take(total - 3);
        input.save(&mut kept);
        assert_eq!((&kept[..], kept.capacity()), (&[3; 3][..], 3));
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
