#![forbid(unsafe_code)]
//! Requests under another key, or with another life; answers under the key that was asked for.
//!
//! Nearly all requests are sent as they came. These are for routes that change something, for servers
//! that stand in for another, and for copies.

use super::route::Ttl;
use crate::protocol::answer::{HEADER, Shape};
use crate::protocol::{Dialect, base64, binary, number, words::words};

const CRLF: &[u8] = b"\r\n";

/// A request that has outlived its input: as it would be sent.
#[derive(Debug, Clone)]
pub struct Owned {
    pub dialect: Dialect,
    /// Line or header, extras and key.
    pub head: Box<[u8]>,
    /// Value and terminator.
    pub body: Box<[u8]>,
}

/// What is to be changed.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// `None`: the key stays.
    pub key: Option<&'a [u8]>,
    pub ttl: Ttl,
    /// The time of day.
    pub now: u64,
}

/// The request, changed. `None`: it has no such form.
pub fn request(of: &Owned, change: &Change<'_>) -> Option<Vec<u8>> {
    let mut bytes = head(of, change, of.body.len())?;
    bytes.extend_from_slice(&of.body);
    Some(bytes)
}

/// What stands before the body of the request, changed; the body has `length` bytes.
pub fn head(of: &Owned, change: &Change<'_>, length: usize) -> Option<Vec<u8>> {
    match of.dialect {
        Dialect::Text => line(&of.head, change),
        Dialect::Binary => {
            let mut bytes = packet(&of.head, change)?;
            let body = bytes.len() - HEADER + length;
            bytes[8..12].copy_from_slice(&(body as u32).to_be_bytes());
            Some(bytes)
        }
    }
}

/// What another server is sent when one has done this: the same without its conditions, which have been
/// met. `None`: nothing.
pub fn copy(of: &Owned) -> Option<Vec<u8>> {
    let head = match of.dialect {
        Dialect::Binary => {
            let mut head = of.head.to_vec();
            head[1] = match head[1] {
                0x02 | 0x03 => 0x01,
                opcode => opcode,
            };
            head[16..HEADER].fill(0);
            head
        }
        Dialect::Text => {
            let line = of.head.trim_ascii_end();
            let mut parts: Vec<&[u8]> = words(line).collect();
            match *parts.first()? {
                b"cas" => {
                    parts[0] = b"set";
                    parts.truncate(5);
                }
                b"add" | b"replace" => parts[0] = b"set",
                b"ms" => parts.retain(|word| {
                    !matches!(word[0], b'C' | b'E' | b'I' | b'O') && !is_condition(word)
                }),
                b"md" | b"ma" => parts.retain(|word| !matches!(word[0], b'C' | b'E' | b'O')),
                _ => {}
            }
            let mut head = parts.join(&b' ');
            head.extend_from_slice(CRLF);
            head
        }
    };
    Some([&head[..], &of.body].concat())
}

/// `ME` and `MR`: the add and replace of meta.
fn is_condition(word: &[u8]) -> bool {
    matches!(word, [b'M', b'E' | b'e' | b'R' | b'r', ..])
}

/// Whether a request that changes what is there creates what is not: `N` of meta, and the initial values of
/// binary counters.
pub fn creates(of: &Owned) -> bool {
    if let Dialect::Binary = of.dialect {
        let counts = matches!(of.head.get(1), Some(0x05 | 0x06 | 0x15 | 0x16));
        let expiry = of.head.get(HEADER + 16..HEADER + 20);
        return counts && expiry.is_some_and(|expiry| expiry != [0xff; 4]);
    }
    let mut parts = words(of.head.trim_ascii_end());
    let stores = match parts.next() {
        Some(b"ma" | b"mg") => false,
        Some(b"ms") => true,
        _ => return false,
    };
    let (mut joins, mut creates) = (!stores, false);
    for flag in parts.skip(if stores { 2 } else { 1 }) {
        joins |= matches!(flag, [b'M', b'A' | b'a' | b'P' | b'p', ..]);
        creates |= flag[0] == b'N';
    }
    // To a store of another kind that says nothing.
    joins && creates
}

fn line(head: &[u8], change: &Change<'_>) -> Option<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = words(head.trim_ascii_end()).map(<[u8]>::to_vec).collect();
    let command = parts.first()?.clone();
    let key_at = if command.starts_with(b"gat") { 2 } else { 1 };
    if command.len() == 2 && command[0] == b'm' {
        return meta(parts, change);
    }
    if let Some(key) = change.key {
        // No text key has such bytes.
        if key.iter().any(|&byte| byte <= b' ') {
            return None;
        }
        key.clone_into(parts.get_mut(key_at)?);
    }
    let expiry_at = match &command[..] {
        b"set" | b"add" | b"replace" | b"append" | b"prepend" | b"cas" => Some(3),
        b"touch" => Some(2),
        b"gat" | b"gats" => Some(1),
        _ => None,
    };
    if let Some(at) = expiry_at
        && change.ttl != Ttl::AsIs
    {
        let given = number::strtol(parts.get(at)?)?;
        let given = i64::from(given as i32);
        parts[at] = change.ttl.apply(given, change.now).to_string().into_bytes();
    }
    let mut bytes = parts.join(&b' ');
    bytes.extend_from_slice(CRLF);
    Some(bytes)
}

fn meta(mut parts: Vec<Vec<u8>>, change: &Change<'_>) -> Option<Vec<u8>> {
    let flags_at = if parts[0] == b"ms" { 3 } else { 2 };
    if let Some(key) = change.key {
        let in_base64 = parts.iter().skip(flags_at).any(|flag| flag[0] == b'b');
        let text = key.iter().all(|&byte| byte > b' ' && byte != 0x7f);
        *parts.get_mut(1)? = match (in_base64, text) {
            (true, _) => encoded(key),
            (false, true) => key.to_vec(),
            (false, false) => return None,
        };
    }
    if change.ttl != Ttl::AsIs {
        let life = |flag: &mut Vec<u8>| {
            let given = number::signed32(&flag[1..]).map(i64::from)?;
            let ttl = change.ttl.apply(given, change.now);
            *flag = [&flag[..1], ttl.to_string().as_bytes()].concat();
            Some(())
        };
        let mut told = false;
        for flag in parts.iter_mut().skip(flags_at) {
            if matches!(flag[0], b'T' | b'N') {
                told |= flag[0] == b'T';
                life(flag)?;
            }
        }
        if parts[0] == b"ms" && !told {
            let ttl = change.ttl.apply(0, change.now);
            parts.push(format!("T{ttl}").into_bytes());
        }
    }
    let mut bytes = parts.join(&b' ');
    bytes.extend_from_slice(CRLF);
    Some(bytes)
}

fn encoded(key: &[u8]) -> Vec<u8> {
    base64::encoded(key).flatten().collect()
}

/// The opcode of a binary set.
pub const SET: u8 = 0x01;

/// A set of a key that has come in this dialect.
pub fn set(dialect: Dialect, key: &[u8], flags: u32, ttl: u32, value: &[u8]) -> Vec<u8> {
    match dialect {
        Dialect::Text => {
            let head = format!(" {flags} {ttl} {}\r\n", value.len());
            [b"set ", key, head.as_bytes(), value, CRLF].concat()
        }
        Dialect::Binary => {
            let mut bytes = vec![0; HEADER];
            (bytes[0], bytes[1], bytes[4]) = (binary::MAGIC, SET, 8);
            bytes[2..4].copy_from_slice(&(key.len() as u16).to_be_bytes());
            let body = 8 + key.len() + value.len();
            bytes[8..12].copy_from_slice(&(body as u32).to_be_bytes());
            bytes.extend_from_slice(&flags.to_be_bytes());
            bytes.extend_from_slice(&ttl.to_be_bytes());
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value);
            bytes
        }
    }
}

/// What a proxy asks of its own accord.
#[derive(Debug, Clone, Copy)]
pub enum Own<'a> {
    /// Whether it would be answered: as the requests of clients are, once it has been let in.
    Probe,
    Flush,
    Delete(&'a [u8]),
}

impl Own<'_> {
    /// How it is put, and the shape of its answer. Text has no opaque.
    pub fn put(self, dialect: Dialect, opaque: u32) -> (Vec<u8>, Shape) {
        const FLUSH: u8 = 0x08;
        const NOOP: u8 = 0x0a;
        let (opcode, key): (u8, &[u8]) = match (self, dialect) {
            (Own::Probe, Dialect::Text) => return (b"version\r\n".to_vec(), Shape::Line),
            (Own::Flush, Dialect::Text) => return (b"flush_all\r\n".to_vec(), Shape::Line),
            (Own::Delete(key), Dialect::Text) => return delete(key),
            // VERSION is answered to everybody.
            (Own::Probe, Dialect::Binary) => (NOOP, b""),
            (Own::Flush, Dialect::Binary) => (FLUSH, b""),
            (Own::Delete(key), Dialect::Binary) => (DELETE, key),
        };
        let mut bytes = vec![0; HEADER];
        (bytes[0], bytes[1]) = (binary::MAGIC, opcode);
        bytes[2..4].copy_from_slice(&(key.len() as u16).to_be_bytes());
        bytes[8..12].copy_from_slice(&(key.len() as u32).to_be_bytes());
        bytes[12..16].copy_from_slice(&opaque.to_be_bytes());
        bytes.extend_from_slice(key);
        (bytes, Shape::Binary(opcode))
    }
}

/// The opcode of a binary delete.
pub const DELETE: u8 = 0x04;

/// A delete of any key, as text servers take it, and the shape of its answer. Text has no keys with
/// blanks, and takes one for a word of its own.
pub fn delete(key: &[u8]) -> (Vec<u8>, Shape) {
    if key.iter().all(|&byte| byte > b' ') && key != b"noreply" {
        return ([b"delete ", key, CRLF].concat(), Shape::Line);
    }
    let line = [b"md ", &encoded(key)[..], b" b", CRLF].concat();
    (line, Shape::Meta)
}

fn packet(head: &[u8], change: &Change<'_>) -> Option<Vec<u8>> {
    let extras = usize::from(*head.get(4)?);
    let key_at = HEADER + extras;
    let key = change.key.unwrap_or(head.get(key_at..)?);
    let mut bytes = head.get(..key_at)?.to_vec();
    bytes[2..4].copy_from_slice(&(key.len() as u16).to_be_bytes());
    let expiry_at = match (bytes[1], extras) {
        (0x01..=0x03 | 0x11..=0x13, 8) => Some(HEADER + 4),
        (0x1c..=0x1e | 0x23 | 0x24, 4) => Some(HEADER),
        (0x05 | 0x06 | 0x15 | 0x16, 20) => Some(HEADER + 16),
        _ => None,
    };
    if let Some(at) = expiry_at {
        let field = bytes.get_mut(at..at + 4)?;
        let given = u32::from_be_bytes(field.try_into().ok()?);
        // An INCREMENT that is not to create has no expiry time.
        if change.ttl != Ttl::AsIs && !(extras == 20 && given == u32::MAX) {
            let ttl = change.ttl.apply(i64::from(given as i32), change.now);
            field.copy_from_slice(&(ttl as u32).to_be_bytes());
        }
    }
    bytes.extend_from_slice(key);
    Some(bytes)
}

/// An answer to a request whose key was changed, as if it had not been.
pub fn answer(dialect: Dialect, answer: &[u8], asked: &[u8], sent: &[u8]) -> Vec<u8> {
    match dialect {
        Dialect::Binary => packet_answer(answer, asked),
        Dialect::Text => text_answer(answer, asked, sent),
    }
}

fn text_answer(answer: &[u8], asked: &[u8], sent: &[u8]) -> Vec<u8> {
    let end = memchr::memchr(b'\n', answer).map_or(answer.len(), |end| end + 1);
    let (line, rest) = answer.split_at(end);
    let said = line.trim_ascii_end();
    let mut bytes = Vec::with_capacity(answer.len() + asked.len());
    if said.starts_with(b"VALUE ") || said.starts_with(b"ME ") {
        for (at, word) in words(said).enumerate() {
            if at > 0 {
                bytes.push(b' ');
            }
            bytes.extend_from_slice(if at == 1 { asked } else { word });
        }
    } else {
        let in_base64 = words(said).skip(1).any(|word| word == b"b");
        let shown = |key: &[u8]| match in_base64 {
            true => [b"k", &encoded(key)[..]].concat(),
            false => [b"k", key].concat(),
        };
        let (wrong, right) = (shown(sent), shown(asked));
        for (at, word) in words(said).enumerate() {
            if at > 0 {
                bytes.push(b' ');
            }
            bytes.extend_from_slice(if at > 0 && *word == *wrong {
                &right
            } else {
                word
            });
        }
    }
    bytes.extend_from_slice(CRLF);
    bytes.extend_from_slice(rest);
    bytes
}

fn packet_answer(answer: &[u8], asked: &[u8]) -> Vec<u8> {
    let Some(header) = answer.first_chunk::<HEADER>() else {
        return answer.to_vec();
    };
    let key = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let key_at = HEADER + usize::from(header[4]);
    if key == 0 || answer.len() < key_at + key {
        return answer.to_vec();
    }
    let mut bytes = answer[..key_at].to_vec();
    bytes.extend_from_slice(asked);
    bytes.extend_from_slice(&answer[key_at + key..]);
    bytes[2..4].copy_from_slice(&(asked.len() as u16).to_be_bytes());
    let body = (bytes.len() - HEADER) as u32;
    bytes[8..12].copy_from_slice(&body.to_be_bytes());
    bytes
}

/// A value that was answered: client flags, and the bytes.
pub fn value_of(dialect: Dialect, answer: &[u8]) -> Option<(u32, &[u8])> {
    if let Dialect::Binary = dialect {
        let extras = usize::from(*answer.get(4)?);
        let key = usize::from(u16::from_be_bytes([answer[2], answer[3]]));
        let flags = match answer.get(HEADER..HEADER + extras)? {
            [a, b, c, d, ..] => u32::from_be_bytes([*a, *b, *c, *d]),
            _ => 0,
        };
        return Some((flags, answer.get(HEADER + extras + key..)?));
    }
    let end = memchr::memchr(b'\n', answer)? + 1;
    let (line, rest) = answer.split_at(end);
    let mut parts = words(line.trim_ascii_end());
    let (flags, length) = match parts.next()? {
        b"VALUE" => {
            parts.next()?;
            (
                number::unsigned(parts.next()?)?,
                number::unsigned(parts.next()?)?,
            )
        }
        b"VA" => {
            let length = number::unsigned(parts.next()?)?;
            let flags = parts
                .find(|word| word[0] == b'f')
                .and_then(|word| number::unsigned(&word[1..]));
            (flags.unwrap_or(0), length)
        }
        _ => return None,
    };
    Some((flags as u32, rest.get(..length as usize)?))
}

/// How long a key lives that an answer of `mg KEY t` is about, in seconds; 0 is for ever.
pub fn life_in(answer: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(answer).ok()?;
    match text.trim_end().strip_prefix("HD t")? {
        "-1" => Some(0),
        // The second that it is in counts.
        seconds => Some(seconds.parse::<u32>().ok()?.max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_read() {
        for (answer, life) in [
            ("HD t-1\r\n", Some(0)),
            ("HD t300\r\n", Some(300)),
            ("HD t0\r\n", Some(1)),
            ("EN\r\n", None),
            ("HD\r\n", None),
            ("HD t\r\n", None),
            ("SERVER_ERROR x\r\n", None),
        ] {
            assert_eq!(life_in(answer.as_bytes()), life, "{answer}");
        }
    }

    #[test]
    fn what_creates_is_known() {
        let of = |dialect, head: &[u8]| {
            creates(&Owned {
                dialect,
                head: head.into(),
                body: Box::default(),
            })
        };
        for (head, creating) in [
            ("ma k N0 J5\r\n", true),
            ("ma  Nk D2 N30 q\r\n", true),
            ("mg k v N30\r\n", true),
            ("ms k 2 MA N9\r\n", true),
            ("ms k 2 N9 Mprepend\r\n", true),
            ("ms k 2 N9\r\n", false),
            ("ms k 2 ME N9\r\n", false),
            ("ms Nk 2 MA\r\n", false),
            ("ma Nk\r\n", false),
            ("mg k ON5 v\r\n", false),
            ("incr N 1\r\n", false),
            ("set N 0 0 1\r\n", false),
        ] {
            assert_eq!(of(Dialect::Text, head.as_bytes()), creating, "{head}");
        }
        for (opcode, expiry, creating) in [
            (0x05, 0, true),
            (0x06, 60, true),
            (0x05, u32::MAX, false),
            (0x01, 0, false),
        ] {
            let mut head = vec![0; HEADER];
            (head[0], head[1], head[4]) = (0x80, opcode, 20);
            head.extend_from_slice(&[0; 16]);
            head.extend_from_slice(&u32::to_be_bytes(expiry));
            head.push(b'k');
            assert_eq!(of(Dialect::Binary, &head), creating, "{opcode} {expiry}");
        }
    }

    fn changed(head: &str, body: &str, key: Option<&str>, ttl: Ttl) -> String {
        let owned = Owned {
            dialect: Dialect::Text,
            head: head.as_bytes().into(),
            body: body.as_bytes().into(),
        };
        let change = Change {
            key: key.map(str::as_bytes),
            ttl,
            now: 1_800_000_000,
        };
        String::from_utf8(request(&owned, &change).unwrap()).unwrap()
    }

    #[test]
    fn lines() {
        let cap = Ttl::AtMost(10);
        for (head, body, key, ttl, expected) in [
            ("get a\r\n", "", Some("b"), cap, "get b\r\n"),
            (
                "set a 5 0 1\r\n",
                "x\r\n",
                None,
                cap,
                "set a 5 10 1\r\nx\r\n",
            ),
            (
                "set a 5 3 1\n",
                "x\r\n",
                Some("p:a"),
                cap,
                "set p:a 5 3 1\r\nx\r\n",
            ),
            (
                "cas a 5 99 1 7\r\n",
                "x\r\n",
                None,
                cap,
                "cas a 5 10 1 7\r\nx\r\n",
            ),
            (
                "set a 5 1900000000 1\r\n",
                "x\r\n",
                None,
                cap,
                "set a 5 10 1\r\nx\r\n",
            ),
            (
                "set a 0 -1 1\r\n",
                "x\r\n",
                None,
                cap,
                "set a 0 -1 1\r\nx\r\n",
            ),
            ("touch a 0\r\n", "", None, cap, "touch a 10\r\n"),
            ("gat 50 a\r\n", "", Some("b"), cap, "gat 10 b\r\n"),
            ("incr a 5\r\n", "", Some("b"), cap, "incr b 5\r\n"),
            ("delete a\r\n", "", None, cap, "delete a\r\n"),
            ("mg a v k\r\n", "", Some("b"), cap, "mg b v k\r\n"),
            ("mg a v T99 N0\r\n", "", None, cap, "mg a v T10 N10\r\n"),
            ("ms a 1\r\n", "x\r\n", None, cap, "ms a 1 T10\r\nx\r\n"),
            (
                "ms a 1 T5 c\r\n",
                "x\r\n",
                None,
                cap,
                "ms a 1 T5 c\r\nx\r\n",
            ),
            (
                "ms YQ== 1 b\r\n",
                "x\r\n",
                Some("b"),
                Ttl::AsIs,
                "ms Yg== 1 b\r\nx\r\n",
            ),
            (
                "set a 5 0 1\r\n",
                "x\r\n",
                None,
                Ttl::Exactly(7),
                "set a 5 7 1\r\nx\r\n",
            ),
        ] {
            assert_eq!(changed(head, body, key, ttl), expected);
        }
    }

    #[test]
    fn packets() {
        let mut head = vec![0x80, 0x01, 0, 1, 8, 0, 0, 0, 0, 0, 0, 10];
        head.extend_from_slice(&[0; 12]);
        head.extend_from_slice(&[0, 0, 0, 7, 0, 0, 0, 99]);
        head.push(b'a');
        let owned = Owned {
            dialect: Dialect::Binary,
            head: head.into(),
            body: b"v"[..].into(),
        };
        let change = Change {
            key: Some(b"long"),
            ttl: Ttl::AtMost(10),
            now: 0,
        };
        let bytes = request(&owned, &change).unwrap();
        assert_eq!(&bytes[2..5], [0, 4, 8]);
        assert_eq!(&bytes[8..12], [0, 0, 0, 13]);
        assert_eq!(&bytes[24..], b"\0\0\0\x07\0\0\0\x0alongv");
    }

    #[test]
    fn answers() {
        let text = |said: &str| {
            let bytes = answer(Dialect::Text, said.as_bytes(), b"a", b"p:a");
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(
            text("VALUE p:a 1 2\r\nxy\r\nEND\r\n"),
            "VALUE a 1 2\r\nxy\r\nEND\r\n"
        );
        assert_eq!(text("HD kp:a O1\r\n"), "HD ka O1\r\n");
        assert_eq!(text("VA 2 kcDph b\r\nxy\r\n"), "VA 2 kYQ== b\r\nxy\r\n");
        assert_eq!(text("END\r\n"), "END\r\n");
        assert_eq!(text("STORED\r\n"), "STORED\r\n");
        assert_eq!(
            value_of(Dialect::Text, b"VALUE a 1 2\r\nxy\r\nEND\r\n"),
            Some((1, &b"xy"[..]))
        );
        assert_eq!(
            value_of(Dialect::Text, b"VA 2 t1 f9\r\nxy\r\n"),
            Some((9, &b"xy"[..]))
        );
        assert_eq!(value_of(Dialect::Text, b"HD\r\n"), None);
    }
}
