#![forbid(unsafe_code)]
//! `repl status|promote|follow|verify|export`: what operators ask of replication; `repl position` and
//! `repl forwarded`: what proxies and followers do.

use std::fmt::Write;

use crate::cluster::replication::data::Data;
use crate::cluster::replication::replicas::{NotPromoted, Replicas};
use crate::protocol::request::Style;
use crate::store::journal::PARTITIONS;

use super::context::{Context, Session};
use super::replies::Replies;
use super::{reply, words};

/// Whether this is what a follower says before it sends what its clients have sent it.
pub fn is_forwarding(said: &[u8]) -> bool {
    said.trim_ascii() == b"forwarded"
}

pub fn repl(cx: &Context<'_>, said: &[u8], style: &Style<'_>, replies: &mut Replies) {
    let Some(replicas) = &cx.shared.replicas else {
        let off = b"SERVER_ERROR replication is off: start with --repl-listen or --follow";
        return reply::line(style, off, replies);
    };
    if let Some(position) = position(cx, replicas, said) {
        return match position {
            Ok(position) => replies.line(position.as_bytes()),
            Err(()) => reply::not_leading(style, replies),
        };
    }
    let said: Vec<&[u8]> = words(said).take(3).collect();
    match said[..] {
        // For a proxy that brings a key over: others may have the same token, and one of them fills it.
        [b"lease", key] if key.len() <= cx.shared.rules.key_max() => {
            if !replicas.leading() {
                return reply::not_leading(style, replies);
            }
            let hash = cx.store().hash(key);
            let token = cx.shared.leases.share(hash, cx.now);
            replies.format(format_args!("LEASE {token}\r\n"));
        }
        [] | [b"status"] => status(replicas, replies),
        [b"promote"] => promote(replicas, false, style, replies),
        [b"promote", b"--force"] => promote(replicas, true, style, replies),
        [b"follow", _] if replicas.elected() => reply::line(style, ELECTED, replies),
        [b"follow", leader] => match std::str::from_utf8(leader) {
            Ok(leader) if leader.contains(':') => {
                replicas.follow(Some(leader.to_owned()));
                reply::line(style, b"OK", replies);
            }
            _ => reply::line(style, b"CLIENT_ERROR follow whom? host:port", replies),
        },
        [b"export", b"stop"] => {
            replicas.export().begin(None);
            reply::line(style, b"OK", replies);
        }
        [b"export", target] => match std::str::from_utf8(target) {
            Ok(target) if target.contains(':') => {
                replicas.export().begin(Some(target.to_owned()));
                reply::line(style, b"OK", replies);
            }
            _ => reply::line(style, b"CLIENT_ERROR export where? host:port", replies),
        },
        [b"verify"] => {
            if replicas.mark() {
                reply::line(style, b"OK", replies);
            } else {
                reply::not_leading(style, replies);
            }
        }
        [b"verify", key] => verify(replicas, key, style, replies),
        _ => {
            let usage =
                b"CLIENT_ERROR usage: repl status|promote [--force]|follow HOST:PORT|verify [KEY]|export HOST:PORT|stop";
            reply::line(style, usage, replies);
        }
    }
}

/// The same in binary, as far as proxies and followers ask for it. Where nothing is copied the opcode is as
/// unknown as it is to memcached.
pub fn packet(
    cx: &Context<'_>,
    session: &mut Session,
    said: &[u8],
    style: &Style<'_>,
    replies: &mut Replies,
) {
    let Style::Binary { opcode, opaque, .. } = *style else {
        return;
    };
    let Some(replicas) = &cx.shared.replicas else {
        return reply::binary_error(opcode, opaque, reply::STATUS_UNKNOWN, replies);
    };
    let body = if is_forwarding(said) {
        session.forwarded = true;
        String::new()
    } else {
        match position(cx, replicas, said) {
            Some(Ok(position)) => position,
            Some(Err(())) => return reply::not_leading(style, replies),
            None => return reply::binary_error(opcode, opaque, reply::STATUS_INVALID, replies),
        }
    };
    reply::binary(
        opcode,
        opaque,
        reply::STATUS_OK,
        0,
        body.as_bytes(),
        replies,
    );
}

/// `position N`: how far the leader's log has come in a partition, all that was answered before counted in;
/// `positions`: how far this node has come in all, 0 where it is not whole. `None`: something else is asked.
/// An error: this node does not lead.
fn position(cx: &Context<'_>, replicas: &Replicas, said: &[u8]) -> Option<Result<String, ()>> {
    let mut words = words(said);
    match (words.next(), words.next(), words.next()) {
        (Some(b"position"), Some(partition), None) => {
            let partition = std::str::from_utf8(partition).ok()?.parse().ok()?;
            if partition >= PARTITIONS {
                return None;
            }
            let position = replicas.position(cx.store().journal()?, partition);
            let line = position.map(|(epoch, seq)| format!("POSITION {epoch} {seq}"));
            Some(line.ok_or(()))
        }
        (Some(b"positions"), None, _) => {
            let (epoch, seqs) = replicas.positions();
            let mut line = format!("POSITION {epoch}");
            for seq in seqs {
                // Appending cannot fail.
                let _ = write!(line, " {seq}");
            }
            Some(Ok(line))
        }
        _ => None,
    }
}

/// To what would decide otherwise.
const ELECTED: &[u8] =
    b"SERVER_ERROR etcd decides who leads; repl promote --force makes this node stand whatever it lacks";

fn status(replicas: &Replicas, replies: &mut Replies) {
    replicas.tell(|name, value| {
        replies.format(format_args!("STAT {name} {value}\r\n"));
    });
    replies.push(b"END\r\n");
}

fn promote(replicas: &Replicas, forced: bool, style: &Style<'_>, replies: &mut Replies) {
    match replicas.promote(forced) {
        Ok(epoch) => replies.format(format_args!("OK epoch {epoch}\r\n")),
        Err(NotPromoted::AlreadyLeading) => {
            reply::line(style, b"CLIENT_ERROR this node leads already", replies);
        }
        Err(NotPromoted::Elected) => reply::line(style, ELECTED, replies),
        Err(NotPromoted::Stands) => {
            let line = b"OK it stands for leader, and leads as soon as etcd knows of none";
            reply::line(style, line, replies);
        }
        Err(NotPromoted::NotWhole) => {
            let line = b"SERVER_ERROR this copy is not whole; repl promote --force leads with what is here";
            reply::line(style, line, replies);
        }
        Err(NotPromoted::OutOfSync) => {
            let line = b"SERVER_ERROR this copy was not in sync and may lack acknowledged mutations; repl promote --force leads all the same";
            reply::line(style, line, replies);
        }
    }
}

/// What a key's item is, as two numbers: nodes that say the same have the same.
fn verify(replicas: &Replicas, key: &[u8], style: &Style<'_>, replies: &mut Replies) {
    let state = replicas.state();
    match state.data.digests(key, false) {
        Some((item, value)) => {
            replies.format(format_args!("VERIFY {item:016x} {value:016x}\r\n"));
        }
        None => reply::line(style, b"NOT_FOUND", replies),
    }
}
