#![forbid(unsafe_code)]
//! `-vv`: what clients ask and what becomes of it, a line each, as memcached writes them. What does
//! not print is escaped, so that no client can write a line of its own.

use std::fmt;

use crate::protocol::Dialect;
use crate::protocol::binary::HEADER;

/// Bytes of a line that are shown.
const SHOWN: usize = 2048;

/// Bytes as a line of a log may show them.
struct Printable<'a>(&'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for &byte in &self.0[..self.0.len().min(SHOWN)] {
            match byte {
                b' '..=b'~' => f.write_char(char::from(byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

/// A connection's first byte has decided what it speaks.
#[cold]
pub fn negotiated(connection: i32, dialect: Dialect) {
    let name = match dialect {
        Dialect::Text => "ascii",
        Dialect::Binary => "binary",
    };
    log::debug!("{connection}: Client using the {name} protocol");
}

/// A request, which begins `input`.
#[cold]
pub fn request(connection: i32, dialect: Dialect, input: &[u8]) {
    match dialect {
        Dialect::Text => {
            let line = input.split(|&byte| byte == b'\n').next().unwrap_or(b"");
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            log::debug!("<{connection} {}", Printable(line));
        }
        Dialect::Binary => {
            let Some(&[_, opcode, k0, k1, extras, ..]) = input.first_chunk::<HEADER>() else {
                return;
            };
            let start = HEADER + usize::from(extras);
            let end = start + usize::from(u16::from_be_bytes([k0, k1]));
            let key = Printable(input.get(start..end).unwrap_or(b""));
            log::debug!("<{connection} {} {key}", name(opcode));
        }
    }
}

/// What it has been answered.
#[cold]
pub fn reply(connection: i32, dialect: Dialect, mut replies: &[u8]) {
    match dialect {
        Dialect::Text => {
            while let Some(end) = replies.iter().position(|&byte| byte == b'\n') {
                let line = &replies[..end];
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                replies = &replies[end + 1..];
                let mut words = line.split(|&byte| byte == b' ');
                let (key, length) = match words.next() {
                    Some(b"VALUE") => (words.next(), words.nth(1)),
                    Some(b"VA") => (None, words.next()),
                    _ => {
                        log::debug!(">{connection} {}", Printable(line));
                        continue;
                    }
                };
                match key {
                    Some(key) => log::debug!(">{connection} sending key {}", Printable(key)),
                    None => log::debug!(">{connection} {}", Printable(line)),
                }
                let length = length
                    .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok())
                    .and_then(|length| length.checked_add(2));
                // A value that is not here is sent from where it lies; what follows it is not told.
                match length.and_then(|length| replies.get(length..)) {
                    Some(rest) => replies = rest,
                    None => return,
                }
            }
        }
        Dialect::Binary => {
            if let Some(header) = replies.first_chunk::<HEADER>()
                && header[6..8] != [0, 0]
            {
                let text = Printable(&replies[HEADER..]);
                log::debug!(">{connection} Writing an error: {text}");
            }
        }
    }
}

fn name(opcode: u8) -> &'static str {
    match opcode {
        0x00 | 0x09 | 0x0c | 0x0d => "GET",
        0x01 | 0x11 => "SET",
        0x02 | 0x12 => "ADD",
        0x03 | 0x13 => "REPLACE",
        0x04 | 0x14 => "DELETE",
        0x05 | 0x15 => "INCREMENT",
        0x06 | 0x16 => "DECREMENT",
        0x07 | 0x17 => "QUIT",
        0x08 | 0x18 => "FLUSH",
        0x0a => "NOOP",
        0x0b => "VERSION",
        0x0e | 0x19 => "APPEND",
        0x0f | 0x1a => "PREPEND",
        0x10 => "STATS",
        0x1c..=0x1e | 0x23 | 0x24 => "TOUCH",
        0x20..=0x22 => "SASL",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_client_writes_a_line_of_its_own() {
        let shown = Printable(b"get a\x1b[2J\n\xff'").to_string();
        assert_eq!(shown, "get a\\x1b[2J\\x0a\\xff'");
        assert_eq!(Printable(&[b'x'; 5000]).to_string().len(), SHOWN);
    }
}
