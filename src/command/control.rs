#![forbid(unsafe_code)]
//! What is asked of the server rather than of a key.

use crate::protocol::request::{Op, Request, Style};
use crate::settings::MEMCACHED_VERSION;

use super::context::{Context, Session};
use super::replies::Replies;
use super::{Next, reply};

pub fn control(
    cx: &Context<'_>,
    _session: &mut Session,
    request: &Request<'_>,
    replies: &mut Replies,
) -> Next {
    let style = &request.style;
    match &request.op {
        Op::Noop => {
            answer(style, b"MN", replies);
            return Next::Flush;
        }
        Op::Version => version(style, replies),
        Op::Quit => {
            if let Style::Binary { quiet: false, .. } = style {
                answer(style, b"", replies);
            }
            return Next::Close;
        }
        Op::Verbosity { level } => {
            cx.shared.set_verbosity(*level);
            answer(style, b"OK", replies);
        }
        Op::FlushAll { exptime } => flush_all(cx, *exptime, style, replies),
        _ => reply::line(style, b"ERROR", replies),
    }
    Next::Done
}

/// A line for text and meta, an empty success for binary unless it is to be quiet.
fn answer(style: &Style<'_>, line: &[u8], replies: &mut Replies) {
    match *style {
        Style::Binary { quiet: true, .. } => {}
        Style::Binary { opcode, opaque, .. } => {
            reply::binary(opcode, opaque, reply::STATUS_OK, 0, b"", replies);
        }
        Style::Text { .. } | Style::Meta { .. } => reply::line(style, line, replies),
    }
}

fn version(style: &Style<'_>, replies: &mut Replies) {
    let version = MEMCACHED_VERSION.as_bytes();
    match *style {
        Style::Binary { opcode, opaque, .. } => {
            reply::binary(opcode, opaque, reply::STATUS_OK, 0, version, replies);
        }
        Style::Text { .. } | Style::Meta { .. } => {
            replies.push(b"VERSION ");
            replies.line(version);
        }
    }
}

fn flush_all(cx: &Context<'_>, exptime: i64, style: &Style<'_>, replies: &mut Replies) {
    let allowed = cx.shared.settings.store.flush_enabled;
    match *style {
        // A refused binary flush does not count, a refused text one does.
        Style::Binary { opcode, opaque, .. } if !allowed => {
            return reply::binary_error(opcode, opaque, reply::STATUS_AUTH, replies);
        }
        _ => cx.counters.general.flush_cmds.add(1),
    }
    if !allowed {
        return reply::line(style, b"CLIENT_ERROR flush_all not allowed", replies);
    }
    let at = if exptime > 0 {
        cx.expiry(exptime)
    } else {
        cx.now
    };
    cx.store().flush_all(cx.now, at);
    answer(style, b"OK", replies);
}
