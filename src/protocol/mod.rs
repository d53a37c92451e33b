#![forbid(unsafe_code)]
//! Bytes to requests and responses to bytes. Knows no socket, no item and no option.

// Where the answers of servers end.
pub mod answer;

// Keys that are not text.
pub mod base64;

// Binary requests.
pub mod binary;

// The frame of UDP.
pub mod datagram;

// Meta commands.
pub mod meta;

// Decimals in and out.
pub mod number;

// One request type for three dialects.
pub mod request;

// Classic commands.
pub mod text;

// What a line is made of.
pub mod words;

use request::Parsed;

/// What a connection speaks; its first byte says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Classic and meta commands.
    Text,
    Binary,
}

impl Dialect {
    pub fn of(first_byte: u8) -> Dialect {
        if first_byte == binary::MAGIC {
            Dialect::Binary
        } else {
            Dialect::Text
        }
    }
}

/// What requests may say that memcached would not understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Times have 64 bits; they are cut off, or refused, at 32 otherwise.
    pub long_times: bool,
    /// The longest key, at least [`text::KEY_MAX`]; see [`key_max`](Rules::key_max).
    pub key_bytes: u32,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            long_times: false,
            key_bytes: text::KEY_MAX as u32,
        }
    }
}

impl Rules {
    /// The longest key.
    #[inline]
    pub fn key_max(self) -> usize {
        self.key_bytes as usize
    }

    /// Keys may be longer than memcached's.
    pub fn long_keys(self) -> bool {
        self.key_max() > text::KEY_MAX
    }
}

/// What the start of `input` asks for.
#[inline]
pub fn parse(dialect: Dialect, input: &[u8]) -> Parsed<'_> {
    parse_by(Rules::default(), dialect, input)
}

/// As [`parse`], by other rules than memcached's.
#[inline(always)]
pub fn parse_by(rules: Rules, dialect: Dialect, input: &[u8]) -> Parsed<'_> {
    match dialect {
        Dialect::Text => text::parse_by(rules, input),
        Dialect::Binary => binary::parse_by(rules, input),
    }
}
