#![forbid(unsafe_code)]
//! `repl status|promote|follow|verify|export`: what operators ask of replication.

use crate::cluster::replication::data::Data;
use crate::cluster::replication::replicas::{NotPromoted, Replicas};
use crate::protocol::request::Style;

use super::context::Context;
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
    let said: Vec<&[u8]> = words(said).take(3).collect();
    match said[..] {
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
