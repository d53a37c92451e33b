//! Clients that write all the time and remember what they were told.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What one client knows. It alone writes its keys, one number after another.
#[derive(Debug, Default)]
pub struct Memory {
    /// By key: the highest number that was acknowledged.
    pub acked: HashMap<String, u64>,
    /// The highest that was sent, acknowledged or not.
    pub sent: HashMap<String, u64>,
    /// When each number was acknowledged.
    pub when: Vec<(Instant, u64)>,
    pub acks: u64,
    pub refused: u64,
    /// Longest wait for an answer.
    pub waits: Vec<Duration>,
}

impl Memory {
    /// The part of the waits that is longer than the rest, as a share of them (0.99: p99).
    pub fn wait(&mut self, share: f64) -> Duration {
        self.waits.sort_unstable();
        let at = (self.waits.len() as f64 * share) as usize;
        self.waits
            .get(at.min(self.waits.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }
}

pub struct Writer {
    ended: Arc<AtomicBool>,
    pub acks: Arc<AtomicU64>,
    thread: JoinHandle<Memory>,
}

/// Refusals after which it goes on: what they are about has not been done, or not yet.
const PASSING: [&str; 3] = [
    "SERVER_ERROR 307",
    "SERVER_ERROR not enough copies in sync",
    "SERVER_ERROR repl aborted",
];

/// How it writes.
#[derive(Debug, Clone, Copy)]
pub struct How {
    pub name: &'static str,
    pub keys: u64,
    /// Requests on their way at a time.
    pub depth: u64,
    /// Bytes of a value, at least.
    pub bytes: usize,
    /// It waits so long between batches.
    pub pause: Duration,
}

impl Writer {
    /// Writes until it is told to end, or the server is gone.
    pub fn start(to: SocketAddr, how: How) -> Writer {
        let (ended, acks) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stop, count) = (ended.clone(), acks.clone());
        let thread = std::thread::spawn(move || write(to, how, &stop, &count));
        Writer {
            ended,
            acks,
            thread,
        }
    }

    /// Acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.acks.load(SeqCst)
    }

    pub fn end(self) -> Memory {
        self.ended.store(true, SeqCst);
        self.thread.join().expect("a writer")
    }
}

fn write(to: SocketAddr, how: How, ended: &AtomicBool, acks: &AtomicU64) -> Memory {
    let mut memory = Memory::default();
    let Ok(stream) = TcpStream::connect(to) else {
        return memory;
    };
    stream.set_nodelay(true).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut out = stream.try_clone().unwrap();
    let mut replies = BufReader::new(stream);
    let mut number = 0;
    let mut request = Vec::new();
    let mut line = String::new();
    while !ended.load(SeqCst) {
        request.clear();
        let first = number + 1;
        for _ in 0..how.depth {
            number += 1;
            let key = format!("{}{}", how.name, number % how.keys);
            // The number stands in front, and is read back.
            let value = format!("{number:<width$}", width = how.bytes.max(10));
            memory.sent.insert(key.clone(), number);
            write!(request, "set {key} 0 0 {}\r\n{value}\r\n", value.len()).unwrap();
        }
        let began = Instant::now();
        if out.write_all(&request).is_err() {
            break;
        }
        for number in first..=number {
            line.clear();
            match replies.read_line(&mut line) {
                Ok(1..) if line == "STORED\r\n" => {
                    let key = format!("{}{}", how.name, number % how.keys);
                    memory.acked.insert(key, number);
                    memory.when.push((Instant::now(), number));
                    memory.acks += 1;
                    acks.fetch_add(1, SeqCst);
                }
                Ok(1..) if PASSING.iter().any(|why| line.starts_with(why)) => memory.refused += 1,
                Ok(1..) if line.starts_with("SERVER_ERROR") => return memory,
                Ok(1..) => panic!("{line}"),
                _ => return memory,
            }
        }
        memory.waits.push(began.elapsed());
        if !how.pause.is_zero() {
            std::thread::sleep(how.pause);
        }
    }
    memory
}

/// Reads keys all the time and remembers the highest number that it has seen of each.
pub struct Watcher {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<HashMap<String, u64>>,
}

impl Watcher {
    pub fn start(of: SocketAddr, keys: Vec<String>) -> Watcher {
        let ended = Arc::new(AtomicBool::new(false));
        let stop = ended.clone();
        let thread = std::thread::spawn(move || watch(of, &keys, &stop));
        Watcher { ended, thread }
    }

    pub fn end(self) -> HashMap<String, u64> {
        self.ended.store(true, SeqCst);
        self.thread.join().expect("a watcher")
    }
}

fn watch(of: SocketAddr, keys: &[String], ended: &AtomicBool) -> HashMap<String, u64> {
    let mut seen = HashMap::new();
    let Ok(stream) = TcpStream::connect(of) else {
        return seen;
    };
    stream.set_nodelay(true).unwrap();
    let mut out = stream.try_clone().unwrap();
    let mut replies = BufReader::new(stream);
    let (mut head, mut value) = (String::new(), String::new());
    for keys in keys.chunks(50).cycle() {
        if ended.load(SeqCst) || write!(out, "get {}\r\n", keys.join(" ")).is_err() {
            return seen;
        }
        loop {
            head.clear();
            match replies.read_line(&mut head) {
                Ok(1..) if head == "END\r\n" => break,
                Ok(1..) if head.ends_with("\r\n") => {}
                _ => return seen,
            }
            value.clear();
            if replies.read_line(&mut value).is_err() {
                return seen;
            }
            let key = head.split(' ').nth(1).expect("a key");
            if let Ok(number) = value.trim().parse::<u64>() {
                let highest = seen.entry(key.to_owned()).or_insert(0);
                *highest = number.max(*highest);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    seen
}
