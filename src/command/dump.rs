#![forbid(unsafe_code)]
//! `lru_crawler metadump` and `mgdump`: every item's line, as fast as the client reads.

use crate::observe::events::Escaped;
use crate::protocol::base64;
use crate::store::{self, Hit};

use super::context::Context;
use super::replies::Replies;

/// Items looked at in one step.
const STEP: usize = 256;

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
        let more = cx
            .store()
            .dump_step(cx.caller(), &mut self.walk, STEP, |hit| {
                match format {
                    Format::Meta => metadump(cx, hit, replies),
                    Format::Mg => mgdump(hit, replies),
                }
                true
            });
        if !more {
            replies.push(format.end());
        }
        more
    }
}

fn metadump(cx: &Context<'_>, hit: &Hit<'_>, replies: &mut Replies) {
    let clock = &cx.shared.clock;
    let expires = match hit.expires() {
        0 => -1,
        at => clock.to_unix(at),
    };
    replies.format(format_args!(
        "key={} exp={expires} la={} cas={} fetch={} cls={} size={} flags={} \n",
        Escaped(hit.key()),
        clock.to_unix(hit.accessed()),
        hit.cas(),
        if hit.fetched() { "yes" } else { "no" },
        hit.class(),
        hit.size(),
        hit.flags(),
    ));
}

fn mgdump(hit: &Hit<'_>, replies: &mut Replies) {
    replies.push(b"mg ");
    if hit.binary_key() {
        let mut text = [0; base64::ENCODED_MAX];
        let length = base64::encode(hit.key(), &mut text);
        replies.push(&text[..length]);
        replies.push(b" b\r\n");
    } else {
        replies.line(hit.key());
    }
}
