#![forbid(unsafe_code)]
//! What a cache is asked for, in order: a trace, read from a file of one of the common formats.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};

/// What a client does with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Reads it, and stores it after a miss.
    Get,
    /// Stores it.
    Set,
    Delete,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Seconds from the beginning of the trace.
    pub time: u32,
    /// Keys are numbered from 0 in the order in which they first appear.
    pub key: u32,
    pub key_length: u8,
    pub op: Op,
    /// Bytes of the value.
    pub size: u32,
    /// Seconds that the value lives; 0 is for good.
    pub ttl: u32,
}

/// Requests in order.
#[derive(Debug, Default)]
pub struct Trace {
    pub requests: Vec<Request>,
    /// Different keys.
    pub keys: usize,
}

/// How a file is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// libCacheSim's oracleGeneral: 24-byte records of time, object, size, next access.
    Oracle,
    /// A key on each line, and behind a blank or a comma, if it is known, the size of its value.
    Lines,
    /// ARC's .lis: first block, number of blocks, and two numbers that are ignored.
    Lis,
    /// Twitter's clusters: time,key,key size,value size,client,operation,ttl
    Twitter,
}

/// Bytes of a key whose length no trace tells.
pub const KEY_LENGTH: u8 = 20;
/// The longest value that is replayed as it is; longer ones are cut.
pub const SIZE_MAX: u32 = 1_000_000;

impl Trace {
    /// Reads a trace of which at most `most` requests are wanted. `size` is that of values whose size
    /// the format does not tell.
    ///
    /// # Errors
    /// The input cannot be read, or a record is not what the format says: the line is named.
    pub fn read(input: impl Read, format: Format, size: u32, most: usize) -> io::Result<Trace> {
        let input = BufReader::with_capacity(1 << 20, input);
        match format {
            Format::Oracle => oracle(input, most),
            _ => lines(input, format, size, most),
        }
    }

    /// For each request, which later one is the next for the same key; `u32::MAX` for none.
    pub fn next_uses(&self) -> Vec<u32> {
        let mut seen = vec![u32::MAX; self.keys];
        let mut next = vec![u32::MAX; self.requests.len()];
        for (at, request) in self.requests.iter().enumerate().rev() {
            let last = &mut seen[request.key as usize];
            next[at] = *last;
            *last = at as u32;
        }
        next
    }
}

/// Gives keys their numbers.
#[derive(Default)]
struct Names<K> {
    numbers: HashMap<K, u32>,
}

impl<K: std::hash::Hash + Eq> Names<K> {
    fn number(&mut self, key: K) -> u32 {
        let next = self.numbers.len() as u32;
        *self.numbers.entry(key).or_insert(next)
    }
}

fn oracle(mut input: impl Read, most: usize) -> io::Result<Trace> {
    let mut names = Names::default();
    let mut requests = Vec::new();
    let mut record = [0; 24];
    let mut first = None;
    while requests.len() < most {
        match input.read_exact(&mut record) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
        let word = |at: usize| {
            u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
        };
        let time = word(0);
        let object = u64::from(word(8)) << 32 | u64::from(word(4));
        requests.push(Request {
            time: time.saturating_sub(*first.get_or_insert(time)),
            key: names.number(object),
            key_length: KEY_LENGTH,
            op: Op::Get,
            size: word(12).min(SIZE_MAX),
            ttl: 0,
        });
    }
    Ok(Trace {
        requests,
        keys: names.numbers.len(),
    })
}

fn lines(input: impl BufRead, format: Format, size: u32, most: usize) -> io::Result<Trace> {
    let mut names = Names::<Box<[u8]>>::default();
    let mut requests = Vec::new();
    let mut first = None;
    for (number, line) in input.split(b'\n').enumerate() {
        if requests.len() >= most {
            break;
        }
        let line = line?;
        let line = line.trim_ascii();
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let bad = || {
            let text = String::from_utf8_lossy(line);
            io::Error::other(format!("line {}: {text:?} is no {format:?}", number + 1))
        };
        let plain = Request {
            time: 0,
            key: 0,
            key_length: KEY_LENGTH,
            op: Op::Get,
            size,
            ttl: 0,
        };
        match format {
            Format::Lis => {
                let mut fields = line.split(u8::is_ascii_whitespace).map(number_of);
                let (Some(Some(start)), Some(Some(count))) = (fields.next(), fields.next()) else {
                    return Err(bad());
                };
                for block in start..start.saturating_add(count).min(start + (1 << 20)) {
                    requests.push(Request {
                        key: names.number(block.to_le_bytes().into()),
                        ..plain
                    });
                }
            }
            Format::Twitter => {
                let fields: Vec<&[u8]> = line.split(|&byte| byte == b',').collect();
                // A key may contain commas: the other fields are counted from the ends.
                let [time, .., key_size, value_size, _, op, ttl] = fields[..] else {
                    return Err(bad());
                };
                let key = fields[1..fields.len() - 5].join(&b',');
                let numbers = (number_of(time), number_of(key_size), number_of(value_size));
                let (Some(time), Some(key_size), Some(value_size)) = numbers else {
                    return Err(bad());
                };
                let time = time as u32;
                requests.push(Request {
                    time: time.saturating_sub(*first.get_or_insert(time)),
                    key: names.number(key.into()),
                    key_length: key_size.clamp(u64::from(KEY_LENGTH), 250) as u8,
                    op: match op {
                        b"get" | b"gets" => Op::Get,
                        b"delete" => Op::Delete,
                        _ => Op::Set,
                    },
                    size: value_size.min(u64::from(SIZE_MAX)) as u32,
                    ttl: number_of(ttl).ok_or_else(bad)?.min(u64::from(u32::MAX)) as u32,
                });
            }
            _ => {
                let mut fields = line.split(|&byte| byte == b',' || byte.is_ascii_whitespace());
                let key = fields.next().unwrap_or_default();
                let told = fields.next().and_then(number_of);
                requests.push(Request {
                    key: names.number(key.into()),
                    size: told.map_or(size, |told| told.min(u64::from(SIZE_MAX)) as u32),
                    ..plain
                });
            }
        }
    }
    requests.truncate(most);
    Ok(Trace {
        requests,
        keys: names.numbers.len(),
    })
}

fn number_of(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}
