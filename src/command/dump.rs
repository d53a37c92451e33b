#![forbid(unsafe_code)]
//! `lru_crawler metadump` and `mgdump`: every item's line, as fast as the client reads.

use crate::observe::events::Escaped;
use crate::protocol::base64;
use crate::protocol::text::KEY_MAX;
use crate::store::{self, Hit};

use super::context::Context;
use super::replies::Replies;

/// Items looked at in one step, and bytes of lines at which it ends before.
const STEP: usize = 256;
const STEP_BYTES: usize = 64 << 10;

/// Which lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Meta,
    Mg,
}

impl Format {
    /// What follows the last line.
    pub(super) fn end(self) -> &'static [u8] {
        match self {
            Format::Meta => b"END\r\n",
            Format::Mg => b"EN\r\n",
        }
    }
}

/// A dump under way. The connection runs nothing else until it is over.
#[derive(Debug)]
pub struct Dump {
    walk: store::control::Dump,
    format: Format,
}

impl Dump {
    pub(super) fn new(walk: store::control::Dump, format: Format) -> Dump {
        Dump { walk, format }
    }

    /// Appends some more lines (a few dozen kilobytes at most); false when the last has been
    /// appended. Call it when what waits has been sent.
    pub fn step(&mut self, cx: &Context<'_>, replies: &mut Replies) -> bool {
        let format = self.format;
        let mut late = None;
        let more = cx
            .store()
            .dump_step(cx.caller(), &mut self.walk, STEP, |hit| {
                let (key, line) = (hit.key(), Line::new(cx, hit));
                if key.len() > KEY_MAX {
                    // Under its lock it is not even escaped.
                    late = Some((key.into_owned(), line));
                    return false;
                }
                line.write(format, &key, replies);
                replies.waiting() < STEP_BYTES
            });
        if let Some((key, line)) = late {
            line.write(format, &key, replies);
        }
        if !more {
            replies.push(format.end());
        }
        more
    }
}

/// What a line says of an item beside its key.
struct Line {
    binary_key: bool,
    /// Unix seconds; -1 is never.
    expires: i64,
    accessed: i64,
    cas: u64,
    fetched: bool,
    class: u8,
    size: usize,
    flags: u32,
}

impl Line {
    fn new(cx: &Context<'_>, hit: &Hit<'_>) -> Line {
        let clock = &cx.shared.clock;
        Line {
            binary_key: hit.binary_key(),
            expires: match hit.expires() {
                0 => -1,
                at => clock.to_unix(at),
            },
            accessed: clock.to_unix(hit.accessed()),
            cas: hit.cas(),
            fetched: hit.fetched(),
            class: hit.class(),
            size: hit.size(),
            flags: hit.flags(),
        }
    }

    fn write(&self, format: Format, key: &[u8], replies: &mut Replies) {
        match format {
            Format::Meta => replies.format(format_args!(
                "key={} exp={} la={} cas={} fetch={} cls={} size={} flags={} \n",
                Escaped(key),
                self.expires,
                self.accessed,
                self.cas,
                if self.fetched { "yes" } else { "no" },
                self.class,
                self.size,
                self.flags,
            )),
            Format::Mg if self.binary_key => {
                replies.push(b"mg ");
                for four in base64::encoded(key) {
                    replies.push(&four);
                }
                replies.push(b" b\r\n");
            }
            Format::Mg => {
                replies.push(b"mg ");
                replies.line(key);
            }
        }
    }
}
