#![forbid(unsafe_code)]
//! Meta replies: a two-letter code and the flags the client asked to see, in its own order.

use crate::protocol::base64;
use crate::protocol::text::KEY_MAX;
use crate::protocol::words::words;
use crate::store::Hit;

use super::replies::{Replies, Room};

/// The longest a reply line can be with a key of up to [`KEY_MAX`] bytes: each of at most 20 flags brings
/// a letter and 20 digits at most, `O` 32 bytes, `k` a key in base64.
const LINE: usize = 1024;

/// The longest a reply line can be.
#[inline]
fn line_with(key: &[u8]) -> usize {
    if key.len() <= KEY_MAX {
        LINE
    } else {
        LINE + key.len().div_ceil(3) * 4
    }
}

/// The expiry times that flags bring, on the server's clock. Flags are heeded in their order, so that
/// `t` shows what holds at its place among them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// `T`
    pub touch: Option<u32>,
    /// `N`, for an item that is created.
    pub vivify: Option<u32>,
}

impl Times {
    /// What an item that is created ends up with; nothing if that is not asked for.
    pub fn of_created(&self, flags: &[u8]) -> Option<u32> {
        let first = self.vivify?;
        let times = words(flags).filter_map(|token| match token[0] {
            b'T' => self.touch,
            b'N' => self.vivify,
            _ => None,
        });
        Some(times.last().unwrap_or(first))
    }
}

fn put_key(room: &mut Room<'_>, key: &[u8], encoded: bool) {
    room.put(b" k");
    if encoded {
        put_encoded(room, key);
    } else {
        room.put_key(key);
    }
}

#[cold]
#[inline(never)]
fn put_encoded(room: &mut Room<'_>, key: &[u8]) {
    for four in base64::encoded(key) {
        room.put(&four);
    }
    room.put(b" b");
}

fn put_opaque(room: &mut Room<'_>, token: &[u8]) {
    room.put(b" ");
    room.put(token);
}

fn put_number(room: &mut Room<'_>, letter: u8, number: u64) {
    room.put(&[b' ', letter]);
    room.number(number);
}

/// Seconds left: -1 for ever.
fn put_ttl(room: &mut Room<'_>, expires: u32, now: u32) {
    if expires == 0 {
        room.put(b" t-1");
    } else {
        put_number(room, b't', u64::from(expires.wrapping_sub(now)));
    }
}

fn hex(digest: &[u8; 32]) -> [u8; 64] {
    let mut text = [0; 64];
    for (two, byte) in text.chunks_exact_mut(2).zip(digest) {
        for (digit, half) in two.iter_mut().zip([byte >> 4, byte & 15]) {
            *digit = b"0123456789abcdef"[usize::from(half)];
        }
    }
    text
}

/// A code with nothing but key and opaque behind it.
pub fn echo(code: &[u8; 2], flags: &[u8], key: &[u8], encoded: bool, replies: &mut Replies) {
    let mut room = replies.room(line_with(key));
    room.put(code);
    for token in words(flags) {
        match token[0] {
            b'O' => put_opaque(&mut room, token),
            b'k' => put_key(&mut room, key, encoded),
            _ => {}
        }
    }
    room.put(b"\r\n");
}

/// `ms`
pub fn stored(
    code: &[u8; 2],
    flags: &[u8],
    key: &[u8],
    encoded: bool,
    cas: u64,
    length: usize,
    replies: &mut Replies,
) {
    let mut room = replies.room(line_with(key));
    room.put(code);
    for token in words(flags) {
        match token[0] {
            b'O' => put_opaque(&mut room, token),
            b'k' => put_key(&mut room, key, encoded),
            b'c' => put_number(&mut room, b'c', cas),
            b's' => put_number(&mut room, b's', length as u64),
            _ => {}
        }
    }
    room.put(b"\r\n");
}

/// `ma` that came to a number; `shown` is it, if it was asked for.
#[allow(clippy::too_many_arguments)]
pub fn counted(
    shown: Option<u64>,
    flags: &[u8],
    key: &[u8],
    encoded: bool,
    cas: u64,
    mut expires: u32,
    times: Times,
    created: bool,
    now: u32,
    replies: &mut Replies,
) {
    let mut digits = itoa::Buffer::new();
    let shown = shown.map(|number| digits.format(number).as_bytes());
    let mut room = replies.room(line_with(key));
    match shown {
        Some(digits) => {
            room.put(b"VA ");
            room.number(digits.len() as u64);
        }
        None => room.put(b"HD"),
    }
    for token in words(flags) {
        match token[0] {
            b'O' => put_opaque(&mut room, token),
            b'k' => put_key(&mut room, key, encoded),
            b'c' => put_number(&mut room, b'c', cas),
            b't' => put_ttl(&mut room, expires, now),
            b'T' => expires = times.touch.unwrap_or(expires),
            b'N' if created => expires = times.vivify.unwrap_or(expires),
            _ => {}
        }
    }
    if let Some(digits) = shown {
        room.put(b"\r\n");
        room.put(digits);
    }
    room.put(b"\r\n");
}

/// `mg` that found something, or made it. `value`: show the value too.
pub fn fetched(
    hit: &Hit<'_>,
    key: &[u8],
    flags: &[u8],
    value: bool,
    times: Times,
    now: u32,
    replies: &mut Replies,
) {
    let length = hit.length();
    let root = if flags.contains(&b'H') {
        words(flags)
            .find(|token| token[0] == b'H')
            .and_then(|token| Some((&token[1..], hex(&hit.root()?))))
    } else {
        None
    };
    // Who has the same value need not be shown it.
    let value = value && root.is_none_or(|(known, root)| !known.eq_ignore_ascii_case(&root));
    let inline = if value { hit.inline() } else { None };
    let mut room = replies.room(line_with(key) + inline.map_or(0, <[u8]>::len));
    if value {
        room.put(b"VA ");
        room.number(length as u64);
    } else {
        room.put(b"HD");
    }
    let mut expires = if hit.created() { 0 } else { hit.expires() };
    for token in words(flags) {
        match token[0] {
            b'T' => expires = times.touch.unwrap_or(expires),
            b'N' if hit.created() => expires = times.vivify.unwrap_or(expires),
            b's' => put_number(&mut room, b's', length as u64),
            b't' => put_ttl(&mut room, expires, now),
            b'c' => put_number(&mut room, b'c', hit.cas()),
            b'f' => put_number(&mut room, b'f', u64::from(hit.flags())),
            b'l' => put_number(
                &mut room,
                b'l',
                u64::from(now.saturating_sub(hit.accessed())),
            ),
            b'h' => put_number(&mut room, b'h', u64::from(hit.fetched())),
            b'O' => put_opaque(&mut room, token),
            b'k' => put_key(&mut room, key, hit.binary_key()),
            b'H' => {
                if let Some((_, root)) = root {
                    room.put(b" H");
                    room.put(&root);
                }
            }
            _ => {}
        }
    }
    if hit.token_sent() {
        room.put(b" Z");
    }
    if hit.stale() {
        room.put(b" X");
    }
    if hit.won() {
        room.put(b" W");
    }
    room.put(b"\r\n");
    if !value {
        return;
    }
    match inline {
        Some(bytes) => {
            room.put(bytes);
            room.put(b"\r\n");
        }
        None => {
            drop(room);
            replies.attach_value(hit);
            replies.push(b"\r\n");
        }
    }
}

/// `me` that found something.
pub fn described(hit: &Hit<'_>, key: &[u8], now: u32, replies: &mut Replies) {
    replies.push(b"ME ");
    if hit.binary_key() {
        for four in base64::encoded(key) {
            replies.push(&four);
        }
    } else {
        replies.push(key);
    }
    let expires = match hit.expires() {
        0 => -1,
        at => i64::from(at) - i64::from(now),
    };
    replies.format(format_args!(
        " exp={expires} la={} cas={} fetch={} cls={} size={}\r\n",
        now.saturating_sub(hit.accessed()),
        hit.cas(),
        if hit.fetched() { "yes" } else { "no" },
        hit.class(),
        hit.size(),
    ));
}
