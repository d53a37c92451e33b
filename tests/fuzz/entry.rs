//! What is fuzzed: one function per parser, whole sessions, and two copies. The fuzz targets call these, and so
//! does `tests/fuzzing.rs`, with the corpus and with mutations of it.

// Two copies, and somebody in between.
#[path = "copies.rs"]
mod copies;

use std::sync::Arc;

use larder::command::{Context, Replies, Session, Shared};
use larder::net::Input;
use larder::observe::ThreadCounters;
use larder::protocol::request::{Op, Parsed, Style};
use larder::protocol::text::{self, NextKey};
use larder::protocol::{Dialect, base64, datagram, number, parse};
use larder::server::control::Control;
use larder::server::conversation::{Conversation, Limits, Ran, Served, Turn};
use larder::settings::{Protocol, Settings};

pub use copies::copies;

/// Takes the input apart as a connection would; checks what a parser promises.
fn requests(dialect: Dialect, input: &[u8]) {
    let mut at = 0;
    while at < input.len() {
        let rest = &input[at..];
        let taken = match parse(dialect, rest) {
            Parsed::Request { request, taken } => {
                assert!(
                    taken > 0 && taken <= rest.len(),
                    "{taken} of {}",
                    rest.len()
                );
                assert_eq!(
                    matches!(request.style, Style::Binary { .. }),
                    dialect == Dialect::Binary
                );
                match request.op {
                    Op::Get { .. } => taken + keys(&rest[taken..]),
                    Op::Store(store) => {
                        assert!(store.key.raw.len() <= 250 && store.length <= 1 << 31);
                        taken.saturating_add(store.length)
                    }
                    _ => taken,
                }
            }
            Parsed::Refused {
                taken, skip, close, ..
            } => {
                assert!(taken > 0 && taken <= rest.len() && skip <= 1 << 32);
                if close {
                    return;
                }
                taken + usize::try_from(skip).unwrap_or(usize::MAX).min(rest.len())
            }
            Parsed::Incomplete | Parsed::Close => return,
        };
        at = at.saturating_add(taken);
    }
}

/// The keys of a get; returns how many bytes they are.
fn keys(input: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match text::next_key(&input[at..]) {
            NextKey::Key { key, taken } => {
                assert!((1..=250).contains(&key.len()) && taken >= key.len());
                assert!(!key.contains(&b' ') && !key.contains(&b'\n'));
                at += taken;
            }
            NextKey::End { taken } => return at + taken,
            NextKey::Incomplete => return input.len(),
            NextKey::TooLong => {
                return at + text::skip_line(&input[at..]).unwrap_or(input.len() - at);
            }
        }
    }
}

/// Classic and meta commands.
pub fn text_requests(input: &[u8]) {
    requests(Dialect::Text, input);
}

pub fn binary_requests(input: &[u8]) {
    requests(Dialect::Binary, input);
}

/// The frame of UDP, and what a reply of that length would be cut into.
pub fn datagrams(input: &[u8]) {
    let Some((id, payload)) = datagram::parse(input) else {
        return;
    };
    assert_eq!(payload.len() + datagram::HEADER, input.len());
    let mut end = 0;
    for (header, range) in datagram::frames(id, payload.len()).expect("it was one datagram") {
        assert_eq!(header[..2], input[..2]);
        assert_eq!(range.start, end);
        end = range.end;
    }
    assert_eq!(end, payload.len());
}

/// Keys in base64: what decodes has an encoding that decodes to the same.
pub fn base64_keys(input: &[u8]) {
    let input = &input[..input.len().min(250)];
    let mut key = [0; base64::DECODED_MAX];
    let Some(length) = base64::decode(input, &mut key) else {
        return;
    };
    let text: Vec<u8> = base64::encoded(&key[..length]).flatten().collect();
    let mut again = Vec::new();
    base64::decode_into(&text, &mut again);
    assert_eq!(again, key[..length]);
}

pub fn numbers(input: &[u8]) {
    if let Some(n) = number::unsigned(input) {
        assert!(input.ends_with(n.to_string().as_bytes()));
    }
    if let Some(n) = number::signed32(input) {
        assert!((i32::MIN..=i32::MAX).contains(&n));
    }
    let _ = (number::strtol(input), number::strtoul(input));
}

/// A server without sockets: what one client after another says to it.
pub struct Server {
    shared: Shared,
    counters: Arc<ThreadCounters>,
    control: Control,
    _poll: mio::Poll,
}

/// What a client can make wait for itself; `Limits::replies` and the replies of one more request.
const REPLIES_MAX: usize = 64 << 10;

impl Server {
    pub fn new(change: impl FnOnce(&mut Settings)) -> Server {
        let mut settings = Settings::default();
        settings.store.max_bytes = 16 << 20;
        settings.security.shutdown_command = true;
        change(&mut settings);
        let poll = mio::Poll::new().expect("a poll");
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).expect("a waker");
        let shared = Shared::new(settings, None).expect("memory");
        Server {
            counters: shared.registry.register(),
            shared,
            control: Control::new(waker),
            _poll: poll,
        }
    }

    /// One session. The first byte says in which pieces the rest arrives; between two of them the
    /// connection keeps what is incomplete, as it would. Returns what the client was sent.
    pub fn session(&self, protocol: Protocol, input: &[u8]) -> Vec<u8> {
        let Some((&piece, input)) = input.split_first() else {
            return Vec::new();
        };
        let pieces = input.chunks(match piece {
            0 => usize::MAX,
            piece => usize::from(piece),
        });
        let now = self.shared.clock.now();
        let mut conversation = Conversation::new(protocol, Session::new(&self.shared), now);
        let (mut buffer, mut replies) = (Input::new(), Replies::default());
        let (mut kept, mut sent) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut turn = Turn {
                context: Context {
                    shared: &self.shared,
                    counters: &self.counters,
                    now,
                    connection: 9,
                },
                input: &mut buffer,
                replies: &mut replies,
                control: &self.control,
                limits: Limits {
                    requests_per_event: 20,
                    turn: usize::MAX,
                    replies: REPLIES_MAX,
                },
            };
            turn.input.load(&mut kept);
            let mut piece = piece;
            loop {
                let ran = conversation.run(&mut turn, &mut Served::default());
                // One more request, or key, may stand above the limit; so may a dump's step.
                assert!(turn.replies.waiting() <= REPLIES_MAX + (2 << 20));
                sent.extend_from_slice(&turn.replies.to_vec());
                turn.replies.clear();
                conversation.sent(now);
                match ran {
                    Ran::Close => return sent,
                    Ran::Enough => continue,
                    Ran::Starved if piece.is_empty() || conversation.subscription().is_some() => {
                        break;
                    }
                    Ran::Starved => {
                        let space = turn.input.space();
                        let n = space.len().min(piece.len());
                        assert!(n > 0, "a full buffer must be understood");
                        space[..n].copy_from_slice(&piece[..n]);
                        turn.input.filled(n);
                        piece = &piece[n..];
                    }
                }
            }
            turn.input.save(&mut kept);
        }
        sent
    }
}
