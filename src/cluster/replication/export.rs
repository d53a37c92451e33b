#![forbid(unsafe_code)]
//! Items and their mutations as requests that a plain memcached understands: `ms` with the CAS id, and
//! `md`; to fill one before it takes over.
//!
//! The items are walked while the log is followed. An item that the walk shows may be newer than a
//! record that is still to come, which then stands until the newer one comes as well: in the end all
//! is as it should be.

use std::io::{self, Write};

use super::data::{Data, Long};
use crate::protocol::base64;
use crate::store::journal::record::{BINARY_KEY, victims};
use crate::store::journal::{Cursor, Kind, Lost, PARTITIONS, Record};

/// Items that one step looks at, about.
const STEP: usize = 128;
/// Bytes of the log that one step reads of a partition, about.
const BATCH: usize = 16 << 10;
/// Longer times to live are told as the Unix time of their end.
const RELATIVE_MAX: u32 = 30 * 24 * 3600;

/// How far it is.
pub struct Export {
    cursors: Box<[Cursor; PARTITIONS]>,
    /// Where the walk goes on; nothing once it is over.
    walk: Option<usize>,
    pub items: u64,
    pub records: u64,
}

/// Why it cannot go on.
#[derive(Debug)]
pub enum Failed {
    /// The log has been overwritten in front of it.
    Behind,
    Io(io::Error),
}

impl From<Lost> for Failed {
    fn from(_: Lost) -> Failed {
        Failed::Behind
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Io(error)
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failed::Behind => write!(f, "the log does not reach back that far: raise --repl-ring"),
            Failed::Io(error) => error.fmt(f),
        }
    }
}

impl Export {
    /// Of everything that is here, and of what is logged from here on.
    pub fn new<D: Data>(data: &D) -> Export {
        data.journal().open_rings();
        let positions = data.journal().positions();
        Export {
            cursors: Box::new(positions.map(|seq| Cursor::before(seq + 1))),
            walk: Some(0),
            items: 0,
            records: 0,
        }
    }

    /// The items have been walked.
    pub fn walked(&self) -> bool {
        self.walk.is_none()
    }

    /// Writes some requests. `now`: Unix seconds. False: there is nothing more at the moment.
    ///
    /// # Errors
    /// It is over.
    pub fn step<D: Data>(
        &mut self,
        data: &D,
        now: u32,
        out: &mut dyn Write,
    ) -> Result<bool, Failed> {
        let mut more = false;
        if let Some(from) = self.walk {
            let mut found = Vec::new();
            self.walk = data.walk(from, STEP, false, &mut |item| {
                found.push((item.record.kind, item.record.key.to_vec(), {
                    let mut bytes = Vec::new();
                    item.record.encode(&mut bytes);
                    bytes
                }));
            });
            for (kind, key, bytes) in found {
                self.items += 1;
                match Record::parse(&bytes) {
                    Ok((record, _)) if kind == Kind::Put => put(&record, record.value, now, out)?,
                    _ => again(data, &key, now, out)?,
                }
            }
            more = true;
        }
        let mut bytes = Vec::new();
        data.journal().settle();
        for number in 0..PARTITIONS {
            bytes.clear();
            let cursor = &mut self.cursors[number];
            data.journal()
                .read(number, cursor, u64::MAX, BATCH, &mut bytes)?;
            let mut rest = &bytes[..];
            while let Ok((record, behind)) = Record::parse(rest) {
                rest = behind;
                more = true;
                self.records += 1;
                match record.kind {
                    Kind::Put => put(&record, record.value, now, out)?,
                    Kind::Delete => delete(&record, out)?,
                    Kind::Gone => {
                        for (_, key) in victims(record.value).flatten() {
                            again(data, key, now, out)?;
                        }
                    }
                    // What is in every partition is said once.
                    Kind::Flush if number == 0 => match record.expires.saturating_sub(now) {
                        0 => out.write_all(b"flush_all noreply\r\n")?,
                        wait => write!(out, "flush_all {wait} noreply\r\n")?,
                    },
                    Kind::PutLater | Kind::Meta | Kind::Commit | Kind::Append | Kind::Prepend => {
                        again(data, record.key, now, out)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(more)
    }
}

/// A key, and whether that is its base64.
fn write_key(record: &Record<'_>, out: &mut dyn Write) -> io::Result<&'static str> {
    if record.marks & BINARY_KEY == 0 {
        out.write_all(record.key)?;
        return Ok("");
    }
    for four in base64::encoded(record.key) {
        out.write_all(&four)?;
    }
    Ok(" b")
}

fn head(record: &Record<'_>, length: usize, now: u32, out: &mut dyn Write) -> io::Result<()> {
    let ttl = match record.expires {
        0 => 0,
        at if at - now.min(at) > RELATIVE_MAX => at,
        at => at - now.min(at),
    };
    out.write_all(b"ms ")?;
    let encoded = write_key(record, out)?;
    let (cas, flags) = (record.cas, record.client_flags);
    write!(out, " {length} E{cas} T{ttl} F{flags} q{encoded}\r\n")
}

/// Whether an item is to be had no more.
fn is_dead(record: &Record<'_>, now: u32) -> bool {
    record.expires != 0 && record.expires <= now
}

fn put(record: &Record<'_>, value: &[u8], now: u32, out: &mut dyn Write) -> io::Result<()> {
    if is_dead(record, now) {
        return delete(record, out);
    }
    head(record, value.len(), now, out)?;
    out.write_all(value)?;
    out.write_all(b"\r\n")
}

fn delete(record: &Record<'_>, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"md ")?;
    let encoded = write_key(record, out)?;
    write!(out, " q{encoded}\r\n")
}

/// A key as it is now.
fn again<D: Data>(data: &D, key: &[u8], now: u32, out: &mut dyn Write) -> io::Result<()> {
    let opened = data.open(key);
    let record = opened
        .as_ref()
        .and_then(|opened| Record::parse(&opened.bytes).ok());
    let (Some(opened), Some((record, _))) = (&opened, record) else {
        return delete(&Record::new(Kind::Delete, key), out);
    };
    let Some(long) = &opened.long else {
        return put(&record, record.value, now, out);
    };
    if is_dead(&record, now) {
        return delete(&record, out);
    }
    head(&record, long.length(), now, out)?;
    let mut offset = 0;
    while offset < long.length() {
        let slice = long.slice(offset);
        out.write_all(slice)?;
        offset += slice.len();
    }
    out.write_all(b"\r\n")
}

#[cfg(test)]
mod tests {
    use super::super::model::Model;
    use super::*;
    use crate::store::journal::Role;

    fn said(export: &mut Export, data: &Model) -> String {
        let mut out = Vec::new();
        while export.step(data, 1000, &mut out).expect("it goes on") {}
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn items_come_first_and_then_what_becomes_of_them() {
        let data = Model::new(Role::Leader);
        data.write(b"one", b"1".to_vec());
        data.write(b"long", vec![b'x'; 10_000]);
        let mut export = Export::new(&data);
        let text = said(&mut export, &data);
        assert!(export.walked());
        assert!(text.contains("ms one 1 E2 T0 F1 q\r\n1\r\n"), "{text}");
        let long = format!("ms long 10000 E3 T0 F0 q\r\n{}\r\n", "x".repeat(10_000));
        assert!(text.contains(&long));
        assert_eq!(export.items, 2);
        data.write(b"two", b"22".to_vec());
        data.remove(b"one");
        let text = said(&mut export, &data);
        assert!(text.contains("ms two 2 E4 T0 F0 q\r\n22\r\n"), "{text}");
        assert!(text.contains("md one q\r\n"), "{text}");
        assert_eq!(said(&mut export, &data), "");
        data.flush_all(None);
        let text = said(&mut export, &data);
        assert_eq!(text.matches("flush_all noreply\r\n").count(), 1, "{text}");
    }

    #[test]
    fn times_and_keys_are_as_memcached_has_them() {
        let record = Record {
            expires: 1060,
            cas: 7,
            client_flags: 5,
            marks: BINARY_KEY,
            ..Record::new(Kind::Put, b"a b")
        };
        let mut out = Vec::new();
        put(&record, b"v", 1000, &mut out).expect("written");
        assert_eq!(out, b"ms YSBi 1 E7 T60 F5 q b\r\nv\r\n");
        out.clear();
        put(&record, b"v", 1060, &mut out).expect("written");
        assert_eq!(out, b"md YSBi q b\r\n", "it is dead by now");
        let record = Record {
            expires: 1000 + RELATIVE_MAX + 1,
            ..Record::new(Kind::Put, b"k")
        };
        out.clear();
        put(&record, b"v", 1000, &mut out).expect("written");
        assert_eq!(out, b"ms k 1 E0 T2593001 F0 q\r\nv\r\n");
    }
}
