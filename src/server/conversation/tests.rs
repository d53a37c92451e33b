#![forbid(unsafe_code)]
//! Where a request is split between two reads changes nothing about its answer, and a client that
//! goes half-way leaves nothing behind.

use std::sync::Arc;

use mio::{Poll, Token, Waker};

use super::*;
use crate::command::{Shared, WHOLE_MAX};
use crate::net::Input;
use crate::observe::ThreadCounters;
use crate::settings::Settings;

/// A server without sockets or threads.
struct Bench {
    shared: Shared,
    counters: Arc<ThreadCounters>,
    control: Control,
    _poll: Poll,
}

impl Bench {
    fn new() -> Bench {
        let mut settings = Settings::default();
        settings.store.max_bytes = 8 << 20;
        let shared = Shared::new(settings, None).unwrap();
        let poll = Poll::new().unwrap();
        Bench {
            counters: shared.registry.register(),
            shared,
            control: Control::new(Waker::new(poll.registry(), Token(0)).unwrap()),
            _poll: poll,
        }
    }

    fn client(&self) -> Client<'_> {
        Client {
            bench: self,
            deaf: false,
            turn: usize::MAX,
            turns: 0,
            conversation: Conversation::new(
                Protocol::Negotiate,
                Session::new(&self.shared),
                self.shared.clock.now(),
            ),
            input: Input::new(),
            kept: Vec::new(),
            replies: Replies::default(),
            heard: Vec::new(),
        }
    }
}

/// One client, as its connection would serve it.
struct Client<'b> {
    bench: &'b Bench,
    /// It takes no replies.
    deaf: bool,
    /// Requests and keys to a turn.
    turn: usize,
    turns: usize,
    conversation: Conversation,
    input: Input,
    kept: Vec<u8>,
    replies: Replies,
    /// All that has been answered.
    heard: Vec<u8>,
}

impl Client<'_> {
    /// The socket becomes readable, and holds these bytes.
    fn says(&mut self, mut bytes: &[u8]) {
        let now = self.bench.shared.clock.now();
        self.input.load(&mut self.kept);
        while !self.conversation.ended() {
            let mut turn = Turn {
                context: Context {
                    shared: &self.bench.shared,
                    counters: &self.bench.counters,
                    now,
                    connection: 7,
                },
                input: &mut self.input,
                replies: &mut self.replies,
                control: &self.bench.control,
                limits: Limits {
                    requests_per_event: 20,
                    turn: self.turn,
                    replies: 4096,
                },
            };
            self.turns += 1;
            let ran = self.conversation.run(&mut turn, &mut Served::default());
            if ran == Ran::Starved && !bytes.is_empty() {
                bytes = &bytes[self.reads(bytes, now)..];
                continue;
            }
            if self.deaf {
                break;
            }
            self.heard.extend_from_slice(&self.replies.to_vec());
            self.replies.clear();
            self.conversation.sent(now);
            if ran == Ran::Starved {
                break;
            }
        }
        self.input.save(&mut self.kept);
    }

    /// As many bytes as one read would take.
    fn reads(&mut self, bytes: &[u8], now: u32) -> usize {
        let context = Context {
            shared: &self.bench.shared,
            counters: &self.bench.counters,
            now,
            connection: 7,
        };
        if self.input.is_empty()
            && let Some(spare) = self.conversation.spare(&context)
        {
            let n = spare.len().min(bytes.len());
            spare[..n].copy_from_slice(&bytes[..n]);
            self.conversation.filled(n, now);
            return n;
        }
        let space = self.input.space();
        let n = space.len().min(bytes.len());
        space[..n].copy_from_slice(&bytes[..n]);
        self.input.filled(n);
        n
    }
}

/// What a client hears that says all of this, one piece after the other, and whether it was hung
/// up on.
fn heard<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (String, bool) {
    let bench = Bench::new();
    let mut client = bench.client();
    for piece in pieces {
        client.says(piece);
    }
    let heard = String::from_utf8_lossy(&client.heard).into_owned();
    (heard, client.conversation.ended())
}

/// Says the same at once, in two pieces split anywhere, and byte by byte.
fn split_anywhere(script: &[u8]) -> String {
    let whole = heard([script]);
    assert!(!whole.0.is_empty());
    // Long scripts are long for one value: inside of it a place is as good as another.
    let step = 1 + script.len() / 100;
    let edges =
        (0..script.len()).filter(|at| script.len() < 1000 || *at < 80 || script.len() - at < 80);
    for at in edges.chain((0..script.len()).step_by(step)) {
        let (front, back) = script.split_at(at);
        assert_eq!(heard([front, back]), whole, "split at {at}");
    }
    assert_eq!(heard(script.chunks(1)), whole, "byte by byte");
    whole.0
}

#[test]
fn text_may_be_split_anywhere() {
    let long = "k".repeat(251);
    let answers = split_anywhere(
        format!(
            "set a 5 0 3\r\nabc\r\nget a\r\nget b a  a \nset b 0 0 2 noreply\r\n\r\n\r\ngets b\r\n\
             gat 100 a b\r\nincr a 1\r\nset n 0 0 2\r\n41\r\nincr n 1\r\nappend n 0 0 1\r\n7\r\n\
             get {long} a\r\nget a {long} b\r\nset {long} 0 0 5\r\nget a\r\nset a 0 0 x\r\n\
             set a 0 0 3\r\nlong!\r\nnonsense\r\n\r\nget\r\ndelete b\r\ntouch a 5\r\n\
             get a b n c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h n\r\n\
             cas a 0 0 1 3\r\nx\r\nverbosity 1\r\nget n\r\nquit\r\nget a\r\n"
        )
        .as_bytes(),
    );
    assert!(answers.ends_with("VALUE n 0 3\r\n427\r\nEND\r\n"));
    assert_eq!(answers.matches("bad command line format").count(), 7);
}

#[test]
fn meta_may_be_split_anywhere() {
    let answers = split_anywhere(
        b"ms a 3 T90 F5\r\nabc\r\nmg a v f t k O123\r\nmg a\r\nmg b v q\r\nmn\r\nms b S1 c\r\n\
          ms b 2 I\r\nxyz\r\nma n N0 J7 v\r\nma n v\r\nmd a q\r\nmg a v k\r\nme n\r\nmg a v v\r\n\
          ms YQ== 1 b c\r\nz\r\nmg YQ== b v k\r\nmd n I T30\r\nmg n v t c\r\nget a\r\nmn\r\n",
    );
    assert!(
        answers.contains("VA 3 f5 t90 ka O123\r\nabc\r\n"),
        "{answers}"
    );
    assert!(answers.ends_with("VALUE a 0 1\r\nz\r\nEND\r\nMN\r\n"));
}

#[test]
fn binary_may_be_split_anywhere() {
    fn packet(opcode: u8, extras: &[u8], key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = extras.len() + key.len() + value.len();
        let mut packet = vec![
            0x80,
            opcode,
            0,
            key.len() as u8,
            extras.len() as u8,
            0,
            0,
            0,
        ];
        packet.extend_from_slice(&(body as u32).to_be_bytes());
        packet.extend_from_slice(&[opcode; 12]);
        packet[16..].fill(0);
        [&packet, extras, key, value].concat()
    }
    let counter = [&[0; 7][..], &[1], &[0; 7], &[5], &[0; 4]].concat();
    let answers = split_anywhere(
        &[
            packet(0x01, &[0, 0, 0, 9, 0, 0, 0, 0], b"a", b"value"),
            packet(0x0c, &[], b"a", b""),
            packet(0x0d, &[], b"missing", b""),
            packet(0x00, &[], b"missing", b""),
            packet(0x05, &counter, b"n", b""),
            packet(0x0e, &[], b"a", b"+more"),
            packet(0x1d, &[0, 0, 0, 60], b"a", b""),
            packet(0x55, &[], b"unknown", b""),
            packet(0x04, &[], b"a", b""),
            packet(0x10, &[], b"reset", b""),
            packet(0x0a, &[], b"", b""),
            packet(0x07, &[], b"", b""),
        ]
        .concat(),
    );
    assert!(answers.contains("avalue") && answers.contains("value+more"));
}

#[test]
fn long_values_may_be_split_anywhere() {
    let length = WHOLE_MAX + 20_000;
    let value = "0123456789".repeat(length / 10 + 1);
    let value = &value[..length];
    let answers = split_anywhere(
        format!(
            "get a\r\nset a 0 0 {length}\r\n{value}\r\nget a\r\nms a {length} c q\r\n{value}\r\n\
             set a 0 0 {length}\r\n{value}!!\r\nset b 0 0 2000000\r\n"
        )
        .as_bytes(),
    );
    assert!(answers.contains(&format!("VALUE a 0 {length}\r\n{value}\r\nEND\r\n")));
    let refused = "CLIENT_ERROR bad data chunk\r\nCLIENT_ERROR bad command line format\r\n";
    assert!(answers.ends_with(refused));
}

#[test]
fn a_value_cut_short_is_given_back() {
    let bench = Bench::new();
    let length = 600_000;
    let line = format!("set big 0 0 {length}\r\n");
    let value = "v".repeat(length);
    let used = |bench: &Bench| {
        bench
            .shared
            .registry
            .totals()
            .over_classes(|class| class.bytes)
    };
    // Far more than there is memory for, if it stayed taken.
    for round in 0..50 {
        let mut client = bench.client();
        client.says(line.as_bytes());
        client.says(&value.as_bytes()[..round * (length / 50)]);
        assert_eq!(client.heard, b"");
    }
    assert_eq!(used(&bench), 0);
    let mut client = bench.client();
    client.says(format!("{line}{value}\r\nget big\r\n").as_bytes());
    assert!(
        client
            .heard
            .starts_with(b"STORED\r\nVALUE big 0 600000\r\n")
    );
    assert_eq!(
        bench
            .shared
            .registry
            .totals()
            .over_classes(|class| class.evicted),
        0
    );
}

#[test]
fn what_a_client_did_not_take_is_given_back() {
    let bench = Bench::new();
    let set = format!("set big 0 0 600000\r\n{}\r\n", "v".repeat(600_000));
    for _ in 0..30 {
        // Each of these values is held for a client until that is gone, though it is replaced.
        let mut writer = bench.client();
        writer.says(set.as_bytes());
        assert_eq!(writer.heard, b"STORED\r\n");
        let mut reader = bench.client();
        reader.deaf = true;
        reader.says(b"get big\r\nget big\r\n");
        assert!(reader.replies.waiting() > 600_000);
        writer.says(b"delete big\r\n");
        assert_eq!(writer.heard, b"STORED\r\nDELETED\r\n");
    }
    let totals = bench.shared.registry.totals();
    assert_eq!(totals.over_classes(|class| class.outofmemory), 0);
    assert_eq!(totals.over_classes(|class| class.bytes), 0);
}

#[test]
fn the_silent_leave_no_trace_in_a_pipeline() {
    let bench = Bench::new();
    let long = "k".repeat(251);
    let silent = format!(
        "set a 0 0 1 noreply\r\n1\r\nadd a 0 0 1 noreply\r\n2\r\nreplace b 0 0 1 noreply\r\n3\r\n\
         append a 0 0 1 noreply\r\n4\r\nincr a 1 noreply\r\ndecr b 1 noreply\r\n\
         touch a 0 noreply\r\ndelete b noreply\r\ncas a 0 0 1 9 noreply\r\n5\r\n\
         set {long} 0 0 1 noreply\r\n6\r\nset c 0 0 2000000 noreply\r\n{}\r\n\
         verbosity 1 noreply\r\nincr a x noreply\r\nms a 2 q\r\n15\r\nmg b v q\r\n\
         ma a q\r\nnonsense noreply\r\n",
        "v".repeat(2_000_000)
    );
    let mut client = bench.client();
    client.says(format!("{silent}get a\r\n{silent}mn\r\n").as_bytes());
    assert_eq!(
        String::from_utf8_lossy(&client.heard),
        "VALUE a 0 2\r\n16\r\nEND\r\nMN\r\n"
    );
}

#[test]
fn a_get_is_answered_as_one_whole_or_not_at_all() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.says(b"set a 0 0 1\r\nx\r\nget a a a");
    assert_eq!(client.heard, b"STORED\r\n");
    client.says(format!(" {} a", "k".repeat(251)).as_bytes());
    client.says(b"\r\n");
    assert_eq!(
        client.heard,
        b"STORED\r\nCLIENT_ERROR bad command line format\r\n"
    );
}

#[test]
fn a_turn_ends_after_so_many_requests() {
    let bench = Bench::new();
    for (turn, turns) in [(1000, 1), (96, 4), (1, 7)] {
        let mut client = bench.client();
        client.turn = turn;
        client.says(&b"get a\r\nset a 0 -1 1\r\nx\r\n".repeat(100));
        assert_eq!(client.heard, b"END\r\nSTORED\r\n".repeat(100));
        // One more finds that there is no more.
        assert_eq!(client.turns, turns + 1, "of {turn}");
    }
    let mut client = bench.client();
    client.turn = 1;
    client.says(format!("get{}", " a".repeat(99)).as_bytes());
    client.says(b" a\r\n");
    assert_eq!(client.heard, b"END\r\n");
    assert_eq!(client.turns, 7);
}
