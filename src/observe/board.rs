#![forbid(unsafe_code)]
//! One row per live connection, for `stats conns`: the server writes, `admin` reads.
//!
//! Adding and removing a row takes a lock; what changes while a connection lives are two atomics of
//! its own, written by the worker that serves it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a connection is at, in memcached's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// Waiting for connections.
    Listening,
    /// Between two commands, with something to do.
    NewCommand,
    /// Waiting for the client.
    Waiting,
    /// Reading a command.
    Read,
    /// Running one.
    Parse,
    /// Waiting until the client reads.
    Write,
    /// Reading a value.
    ReadValue,
    /// Reading a value that was refused.
    Swallow,
    Closing,
    /// Sending several replies.
    WriteMany,
    Closed,
    Watch,
}

const NAMES: [(Activity, &str); 12] = [
    (Activity::Listening, "conn_listening"),
    (Activity::NewCommand, "conn_new_cmd"),
    (Activity::Waiting, "conn_waiting"),
    (Activity::Read, "conn_read"),
    (Activity::Parse, "conn_parse_cmd"),
    (Activity::Write, "conn_write"),
    (Activity::ReadValue, "conn_nread"),
    (Activity::Swallow, "conn_swallow"),
    (Activity::Closing, "conn_closing"),
    (Activity::WriteMany, "conn_mwrite"),
    (Activity::Closed, "conn_closed"),
    (Activity::Watch, "conn_watch"),
];

/// A connection, or a listening socket.
#[derive(Debug)]
pub struct Row {
    /// `tcp:127.0.0.1:1234`, `tcp6:[::1]:1234`, `unix:/path`, `udp:…`
    pub address: Box<str>,
    /// Where the client came in; `None` for a listening socket.
    pub listener: Option<Arc<str>>,
    activity: AtomicU8,
    /// When its last command began, on the server's clock.
    last: AtomicU32,
}

impl Row {
    pub fn set(&self, activity: Activity) {
        self.activity.store(activity as u8, Relaxed);
    }

    /// A command came at `now`.
    #[inline]
    pub fn command_at(&self, now: u32) {
        self.last.store(now, Relaxed);
    }

    pub fn last(&self) -> u32 {
        self.last.load(Relaxed)
    }

    /// The name of what it is at.
    pub fn state(&self) -> &'static str {
        NAMES[usize::from(self.activity.load(Relaxed))].1
    }
}

#[derive(Debug, Default)]
pub struct Board {
    rows: Mutex<BTreeMap<i32, Arc<Row>>>,
}

impl Board {
    /// A connection with the descriptor `number` is there since `now`; keep the row to update it.
    pub fn enter(
        &self,
        number: i32,
        address: &str,
        listener: Option<Arc<str>>,
        activity: Activity,
        now: u32,
    ) -> Arc<Row> {
        let row = Arc::new(Row {
            address: address.into(),
            listener,
            activity: AtomicU8::new(activity as u8),
            last: AtomicU32::new(now),
        });
        self.rows().insert(number, row.clone());
        row
    }

    /// It is gone. Call before its descriptor is closed, lest the number be taken already.
    pub fn leave(&self, number: i32) {
        self.rows().remove(&number);
    }

    /// Sockets that wait for connections.
    pub fn listeners(&self) -> usize {
        self.rows()
            .values()
            .filter(|row| row.listener.is_none())
            .count()
    }

    /// All rows, by descriptor.
    pub fn each(&self, mut show: impl FnMut(i32, &Row)) {
        for (number, row) in self.rows().iter() {
            show(*number, row);
        }
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<i32, Arc<Row>>> {
        self.rows
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_activity_has_its_own_name() {
        for (place, (activity, _)) in NAMES.iter().enumerate() {
            assert_eq!(*activity as usize, place);
        }
    }

    #[test]
    fn rows_come_and_go() {
        let board = Board::default();
        let row = board.enter(9, "unix:/tmp/x", None, Activity::Read, 62);
        board.enter(7, "tcp:1.2.3.4:5", None, Activity::Listening, 62);
        row.set(Activity::Watch);
        row.command_at(70);
        let mut seen = Vec::new();
        board.each(|number, row| seen.push((number, row.state(), row.last())));
        assert_eq!(seen, [(7, "conn_listening", 62), (9, "conn_watch", 70)]);
        assert_eq!(board.listeners(), 2);
        board.leave(7);
        seen.clear();
        board.each(|number, row| seen.push((number, row.state(), row.last())));
        assert_eq!(seen.len(), 1);
    }
}
