#![forbid(unsafe_code)]
//! A trace against a cache: a policy, our store in this process, or a server.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use larder::observe::ThreadCounters;
use larder::settings;
use larder::store::{Cx, Delete, Mode, Put, Store};

use super::policies::{Access, Policy};
use super::trace::{Op, Request, SIZE_MAX, Trace};

/// What came of a replay.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    pub gets: u64,
    pub misses: u64,
    /// Of the second half of the trace, when the cache is warm.
    pub late_gets: u64,
    pub late_misses: u64,
    pub late_bytes: u64,
    pub late_missed_bytes: u64,
    pub took: Duration,
}

impl Outcome {
    fn count(&mut self, request: &Request, late: bool, hit: bool) {
        self.gets += 1;
        self.misses += u64::from(!hit);
        if late {
            self.late_gets += 1;
            self.late_misses += u64::from(!hit);
            self.late_bytes += u64::from(request.size);
            self.late_missed_bytes += u64::from(request.size) * u64::from(!hit);
        }
    }

    /// Misses for each get, of the second half.
    pub fn miss_ratio(&self) -> f64 {
        self.late_misses as f64 / (self.late_gets as f64).max(1.0)
    }

    /// Bytes missed for each byte asked for, of the second half.
    pub fn byte_miss_ratio(&self) -> f64 {
        self.late_missed_bytes as f64 / (self.late_bytes as f64).max(1.0)
    }
}

/// Bytes that memcached takes for an item, but for the rounding to its chunk.
pub fn item_bytes(request: &Request) -> usize {
    const HEADER: usize = 48 + 8;
    HEADER + usize::from(request.key_length) + 1 + request.size as usize + 2
}

/// The size of the chunk that memcached puts an item in, with its default settings.
pub fn chunk_bytes(request: &Request) -> u32 {
    const LARGEST: usize = 512 << 10;
    let bytes = item_bytes(request);
    if bytes > LARGEST {
        return bytes as u32;
    }
    let mut chunk = 96;
    while chunk < bytes {
        chunk = ((chunk as f64 * 1.25) as usize).next_multiple_of(8);
    }
    chunk.min(LARGEST) as u32
}

/// Replays a trace to a policy; `charge` says how many bytes an item takes.
pub fn policy(
    trace: &Trace,
    next_uses: &[u32],
    policy: &mut dyn Policy,
    charge: impl Fn(&Request) -> u32,
) -> Outcome {
    let began = Instant::now();
    let mut outcome = Outcome::default();
    for (at, request) in trace.requests.iter().enumerate() {
        // Behind 0, so that no expiry is at 0.
        let now = request.time + 1;
        let access = Access {
            at: at as u32,
            next: next_uses[at],
            now,
            key: request.key,
        };
        let expires = match request.ttl {
            0 => 0,
            ttl => now.saturating_add(ttl),
        };
        match request.op {
            Op::Get => {
                let hit = policy.get(access);
                outcome.count(request, at * 2 >= trace.requests.len(), hit);
                if !hit {
                    policy.set(access, charge(request), expires);
                }
            }
            Op::Set => policy.set(access, charge(request), expires),
            Op::Delete => policy.delete(request.key),
        }
    }
    outcome.took = began.elapsed();
    outcome
}

/// Requests between two turns of the maintainer: what a busy server does in a hundredth of a second.
const UPKEEP_EVERY: usize = 1_000;

/// Replays a trace to our store, in this process, without a socket between.
///
/// # Errors
/// The system refuses the address space.
pub fn store(trace: &Trace, settings: &settings::Store) -> Result<Outcome, String> {
    let store = Store::new(settings)?;
    let counters = ThreadCounters::default();
    let value = vec![b'v'; SIZE_MAX as usize];
    let began = Instant::now();
    let mut outcome = Outcome::default();
    for (at, request) in trace.requests.iter().enumerate() {
        let cx = Cx {
            now: request.time + larder::clock::START,
            counters: &counters,
        };
        if at % UPKEEP_EVERY == 0 {
            store.maintain(cx);
            store.crawl_step(cx);
        }
        let key = key(request);
        let key = &key[..usize::from(request.key_length)];
        let hash = store.hash(key);
        let set = || {
            let put = Put {
                expires: match request.ttl {
                    0 => 0,
                    ttl => cx.now.saturating_add(ttl),
                },
                ..Put::new(Mode::Set, key, hash)
            };
            store.put(cx, &put, &value[..request.size as usize]);
        };
        match request.op {
            Op::Get => {
                let hit = store.get(cx, key, hash, |_| ()).is_ok();
                outcome.count(request, at * 2 >= trace.requests.len(), hit);
                if !hit {
                    set();
                }
            }
            Op::Set => set(),
            Op::Delete => {
                store.delete(cx, key, hash, &Delete::default());
            }
        }
    }
    outcome.took = began.elapsed();
    Ok(outcome)
}

/// The name of a key: its number in as many digits as the key is long.
fn key(request: &Request) -> [u8; 250] {
    let mut name = [b'0'; 250];
    let mut rest = request.key;
    let mut at = usize::from(request.key_length);
    while rest > 0 && at > 0 {
        at -= 1;
        name[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    name
}

/// Gets that are under way at once.
const WINDOW: usize = 16;

/// Replays a trace to a server: gets in order, [`WINDOW`] of different keys at a time, and a set
/// after each miss. With `paced`, no request is sent before its time.
///
/// # Errors
/// The server cannot be reached, or answers what no memcached would.
pub fn server(trace: &Trace, address: &str, paced: bool) -> io::Result<Outcome> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut replies = BufReader::with_capacity(1 << 20, stream.try_clone()?);
    let value = vec![b'v'; SIZE_MAX as usize];
    let began = Instant::now();
    let mut outcome = Outcome::default();
    let mut out = Vec::new();
    let mut at = 0;
    let mut stores = Vec::new();
    while at < trace.requests.len() {
        let batch = batch(&trace.requests[at..]);
        if paced {
            let due = Duration::from_secs(u64::from(batch[0].time));
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
        out.clear();
        for request in batch {
            let key = key(request);
            let key = &key[..usize::from(request.key_length)];
            match request.op {
                Op::Get => out.extend_from_slice(b"get "),
                Op::Delete => out.extend_from_slice(b"delete "),
                Op::Set => {
                    push_set(&mut out, request, &value);
                    continue;
                }
            }
            out.extend_from_slice(key);
            out.extend_from_slice(b"\r\n");
        }
        stream.write_all(&out)?;
        stores.clear();
        for (offset, request) in batch.iter().enumerate() {
            let line = line(&mut replies)?;
            if request.op != Op::Get {
                continue;
            }
            let hit = line.starts_with(b"VALUE ");
            if hit {
                let length = line.rsplit(|&byte| byte == b' ').next();
                let length = length
                    .and_then(|text| std::str::from_utf8(text).ok()?.parse::<usize>().ok())
                    .ok_or_else(|| unexpected(&line))?;
                // The value with its line end, and END.
                discard(&mut replies, length + 2 + 5)?;
            } else if line != b"END" {
                return Err(unexpected(&line));
            }
            outcome.count(request, (at + offset) * 2 >= trace.requests.len(), hit);
            if !hit {
                stores.push(*request);
            }
        }
        out.clear();
        for request in &stores {
            push_set(&mut out, request, &value);
        }
        stream.write_all(&out)?;
        for _ in &stores {
            let line = line(&mut replies)?;
            if line != b"STORED" && !line.starts_with(b"SERVER_ERROR out of memory") {
                return Err(unexpected(&line));
            }
        }
        at += batch.len();
    }
    outcome.took = began.elapsed();
    Ok(outcome)
}

/// The first requests, up to the window, no key twice: a second get must see the set after a miss.
fn batch(requests: &[Request]) -> &[Request] {
    let mut end = 0;
    while end < requests.len().min(WINDOW)
        && !requests[..end]
            .iter()
            .any(|other| other.key == requests[end].key)
    {
        end += 1;
    }
    &requests[..end]
}

fn push_set(out: &mut Vec<u8>, request: &Request, value: &[u8]) {
    let key = key(request);
    out.extend_from_slice(b"set ");
    out.extend_from_slice(&key[..usize::from(request.key_length)]);
    // 30 days and more would be dates.
    let ttl = request.ttl.min(60 * 60 * 24 * 30);
    // Writing to memory cannot fail.
    let _ = write!(out, " 0 {ttl} {}\r\n", request.size);
    out.extend_from_slice(&value[..request.size as usize]);
    out.extend_from_slice(b"\r\n");
}

fn line(replies: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(64);
    replies.read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.pop();
    Ok(line)
}

fn discard(replies: &mut impl BufRead, mut bytes: usize) -> io::Result<()> {
    while bytes > 0 {
        let there = replies.fill_buf()?.len().min(bytes);
        if there == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        replies.consume(there);
        bytes -= there;
    }
    Ok(())
}

fn unexpected(line: &[u8]) -> io::Error {
    io::Error::other(format!(
        "the server answered {:?}",
        String::from_utf8_lossy(line)
    ))
}
