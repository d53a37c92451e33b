//! In front of the server stands mcrouter: every request that it sends, byte for byte, and answers
//! that its grammar accepts. A bare `ERROR`, or anything else that it cannot parse, would take the
//! server out of its service.

mod common;

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use common::{Client, TestServer};

/// The answers to a request that mcrouter's grammar has: `{key}` is a key, `{n}` a number, `{data}` as many
/// bytes as the last number says, `{rest}` anything up to the end of the line.
struct Grammar {
    answers: &'static [&'static str],
    /// Beside them, any error may be.
    errors: bool,
}

const fn or_error(answers: &'static [&'static str]) -> Grammar {
    Grammar {
        answers,
        errors: true,
    }
}

const HIT: &str = "VALUE {key} {n} {n}\r\n{data}\r\nEND\r\n";
const ERRORS: &[&str] = &["SERVER_ERROR {rest}\r\n", "CLIENT_ERROR {rest}\r\n"];

const GET: Grammar = or_error(&[HIT, "END\r\n"]);
const GETS: Grammar = or_error(&["VALUE {key} {n} {n} {n}\r\n{rest}\r\nEND\r\n", "END\r\n"]);
const STORAGE: Grammar = or_error(&[
    "STORED\r\n",
    "NOT_STORED\r\n",
    "EXISTS\r\n",
    "NOT_FOUND\r\n",
]);
const ARITH: Grammar = or_error(&["NOT_FOUND\r\n", "{n}\r\n"]);
const DELETE: Grammar = or_error(&["DELETED\r\n", "NOT_FOUND\r\n"]);
const TOUCH: Grammar = or_error(&["TOUCHED\r\n", "NOT_FOUND\r\n"]);
const LEASE_GET: Grammar = or_error(&[HIT, "LVALUE {key} {n} {n} {n}\r\n{data}\r\nEND\r\n"]);
const METAGET: Grammar = or_error(&[
    "META {key} age: {n}; exptime: {n}; from: unknown\r\nEND\r\n",
    "END\r\n",
]);
const FLUSH: Grammar = or_error(&["OK\r\n"]);
const VERSION: Grammar = Grammar {
    answers: &["VERSION {rest}\r\n"],
    errors: false,
};

/// Takes an answer off the front; returns what is left, and the numbers in it.
fn accept<'a>(grammar: &Grammar, input: &'a [u8]) -> Option<(&'a [u8], Vec<u64>)> {
    let errors = if grammar.errors { ERRORS } else { &[] };
    let mut ways = grammar.answers.iter().chain(errors);
    ways.find_map(|way| accept_one(way, input))
}

fn accept_one<'a>(mut way: &str, mut input: &'a [u8]) -> Option<(&'a [u8], Vec<u64>)> {
    let mut numbers = Vec::new();
    while let Some((text, rest)) = way.split_once('{') {
        input = input.strip_prefix(text.as_bytes())?;
        let (name, rest) = rest.split_once('}')?;
        way = rest;
        let ends = |byte: &u8| match name {
            "key" => *byte <= b' ' || *byte == 0x7f,
            "n" => !byte.is_ascii_digit(),
            _ => matches!(byte, b'\r' | b'\n'),
        };
        let length = match name {
            "data" => usize::try_from(*numbers.last()?).ok()?,
            _ => input.iter().position(ends)?,
        };
        let (part, after) = input.split_at_checked(length)?;
        match name {
            "n" => numbers.push(std::str::from_utf8(part).ok()?.parse().ok()?),
            "key" if part.is_empty() => return None,
            _ => {}
        }
        input = after;
    }
    Some((input.strip_prefix(way.as_bytes())?, numbers))
}

/// mcrouter's connection to a server.
struct Router {
    client: Client<TcpStream>,
    unread: Vec<u8>,
}

impl Router {
    fn of(server: &TestServer) -> Router {
        Router {
            client: server.connect(),
            unread: Vec::new(),
        }
    }

    /// Sends one request and reads its answer, which must be of the grammar, and all there is.
    #[track_caller]
    fn ask(&mut self, request: &str, grammar: &Grammar) -> (String, Vec<u64>) {
        self.client.send(request);
        loop {
            if let Some((rest, numbers)) = accept(grammar, &self.unread) {
                assert!(
                    rest.is_empty(),
                    "{request:?}: {:?} is too much",
                    String::from_utf8_lossy(rest)
                );
                let answer = String::from_utf8(std::mem::take(&mut self.unread)).unwrap();
                return (answer, numbers);
            }
            let said = String::from_utf8_lossy(&self.unread).into_owned();
            // It tells the two protocols apart by the first byte.
            assert!(
                !said.starts_with('^') && !said.starts_with("ERROR"),
                "{request:?}: {said:?}"
            );
            let mut part = [0; 4096];
            match self.client.stream.read(&mut part) {
                Ok(length) if length > 0 => self.unread.extend_from_slice(&part[..length]),
                end => panic!("{request:?}: {end:?} after {said:?}, which is not of the grammar"),
            }
        }
    }
}

#[test]
fn the_checker_refuses_what_mcrouter_would() {
    let accepts = |grammar: &Grammar, answer: &str| {
        accept(grammar, answer.as_bytes()).is_some_and(|(rest, _)| rest.is_empty())
    };
    assert!(accepts(&GET, "END\r\n") && accepts(&GET, "VALUE k 0 3\r\nabc\r\nEND\r\n"));
    assert!(accepts(&GET, "SERVER_ERROR 307 busy\r\n"));
    for wrong in [
        "ERROR\r\n",
        "VALUE k 0 3 7\r\nabc\r\nEND\r\n",
        "VALUE k 0 4\r\nabc\r\nEND\r\n",
        "END",
        "^END\r\n",
        "VALUE k 0 3\r\nabc\r\n",
    ] {
        assert!(!accepts(&GET, wrong), "{wrong:?}");
    }
    assert!(accepts(&LEASE_GET, "LVALUE k 9 0 0\r\n\r\nEND\r\n"));
    assert!(!accepts(&LEASE_GET, "END\r\n"), "a miss must bring a token");
    assert!(!accepts(&TOUCH, "ERROR\r\n") && !accepts(&DELETE, "DELETED\n"));
}

#[test]
fn every_request_has_an_answer_of_the_grammar() {
    let server = TestServer::start();
    let mut router = Router::of(&server);
    let long = "k".repeat(250);
    for key in ["key", "a:b:c", "|#|stop", &long] {
        for stored in [false, true] {
            if stored {
                assert_eq!(
                    router.ask(&format!("set {key} 5 0 1\r\n7\r\n"), &STORAGE).0,
                    "STORED\r\n"
                );
            }
            router.ask(&format!("get {key}\r\n"), &GET);
            router.ask(&format!("gets {key}\r\n"), &GETS);
            for exptime in ["0", "100", "-1"] {
                router.ask(&format!("gat {exptime} {key}\r\n"), &GET);
                router.ask(&format!("gats {exptime} {key}\r\n"), &GETS);
            }
            router.ask(&format!("metaget {key}\r\n"), &METAGET);
            router.ask(&format!("lease-get {key}\r\n"), &LEASE_GET);
            for command in ["add", "replace", "append", "prepend", "set"] {
                router.ask(
                    &format!("{command} {key} 18446744073709551615 -1 3\r\n123\r\n"),
                    &STORAGE,
                );
                router.ask(&format!("{command} {key} 0 100 2\r\n12\r\n"), &STORAGE);
            }
            router.ask(&format!("cas {key} 0 0 1 12345\r\nx\r\n"), &STORAGE);
            router.ask(&format!("lease-set {key} 12345 0 0 1\r\nx\r\n"), &STORAGE);
            router.ask(&format!("incr {key} 1\r\n"), &ARITH);
            router.ask(&format!("decr {key} 18446744073709551615\r\n"), &ARITH);
            for exptime in ["0", "100", "4294967295"] {
                router.ask(&format!("touch {key} {exptime}\r\n"), &TOUCH);
            }
            router.ask(&format!("delete {key}\r\n"), &DELETE);
            router.ask(&format!("delete {key} 10\r\n"), &DELETE);
        }
    }
    router.ask("version\r\n", &VERSION);
    router.ask("flush_all\r\n", &FLUSH);
    router.ask("flush_all 10\r\n", &FLUSH);
    // Too much of a value, or of a key, is told and passed over.
    let value = "v".repeat(2 << 20);
    let (answer, _) = router.ask(
        &format!("set big 0 0 {}\r\n{value}\r\n", value.len()),
        &STORAGE,
    );
    assert!(answer.starts_with("SERVER_ERROR"), "{answer}");
    let (answer, _) = router.ask(
        &format!("lease-set big 5 0 0 {}\r\n{value}\r\n", value.len()),
        &STORAGE,
    );
    assert!(answer.starts_with("SERVER_ERROR"), "{answer}");
    let key = "k".repeat(251);
    for (request, grammar) in [
        (format!("lease-get {key}\r\n"), &LEASE_GET),
        (format!("metaget {key}\r\n"), &METAGET),
        (format!("lease-set {key} 5 0 0 3\r\nabc\r\n"), &STORAGE),
        ("lease-set key x 0 0 3\r\nabc\r\n".to_owned(), &STORAGE),
        ("lease-get\r\n".to_owned(), &LEASE_GET),
        ("metaget \r\n".to_owned(), &METAGET),
    ] {
        assert!(
            router.ask(&request, grammar).0.starts_with("CLIENT_ERROR "),
            "{request}"
        );
    }
    router.ask("version\r\n", &VERSION);
}

#[test]
fn a_delete_with_a_time_deletes() {
    let server = TestServer::start();
    let mut router = Router::of(&server);
    router.ask("set a 0 0 1\r\nx\r\n", &STORAGE);
    assert_eq!(router.ask("delete a 10\r\n", &DELETE).0, "DELETED\r\n");
    assert_eq!(router.ask("get a\r\n", &GET).0, "END\r\n");
}

/// The token of a miss.
#[track_caller]
fn token(router: &mut Router, key: &str) -> u64 {
    let (answer, numbers) = router.ask(&format!("lease-get {key}\r\n"), &LEASE_GET);
    assert_eq!(
        answer,
        format!("LVALUE {key} {} 0 0\r\n\r\nEND\r\n", numbers[0])
    );
    numbers[0]
}

#[track_caller]
fn lease_set(router: &mut Router, key: &str, token: u64, value: &str) -> String {
    let request = format!("lease-set {key} {token} 3 0 {}\r\n{value}\r\n", value.len());
    router.ask(&request, &STORAGE).0
}

#[test]
fn one_client_at_a_time_may_fill_a_miss() {
    let server = TestServer::start();
    let (mut first, mut second) = (Router::of(&server), Router::of(&server));
    let lease = token(&mut first, "key");
    assert!(lease > 1);
    assert_eq!(token(&mut second, "key"), 1, "somebody else is at it");
    assert!(token(&mut second, "other") > 1);
    assert_eq!(lease_set(&mut second, "key", 1, "wrong"), "NOT_STORED\r\n");
    assert_eq!(
        lease_set(&mut second, "key", lease + 1000, "wrong"),
        "NOT_STORED\r\n"
    );
    assert_eq!(lease_set(&mut first, "key", lease, "right"), "STORED\r\n");
    assert_eq!(
        second.ask("lease-get key\r\n", &LEASE_GET).0,
        "VALUE key 3 5\r\nright\r\nEND\r\n"
    );
    assert_eq!(
        lease_set(&mut first, "key", lease, "again"),
        "NOT_STORED\r\n"
    );
}

#[test]
fn whoever_changes_the_key_takes_the_lease_back() {
    let server = TestServer::start();
    let (mut holder, mut other) = (Router::of(&server), Router::of(&server));
    for change in ["delete key\r\n", "delete key 10\r\n"] {
        let lease = token(&mut holder, "key");
        assert_eq!(other.ask(change, &DELETE).0, "NOT_FOUND\r\n");
        assert_eq!(
            lease_set(&mut holder, "key", lease, "stale"),
            "NOT_STORED\r\n"
        );
    }
    let lease = token(&mut holder, "key");
    other.ask("set key 0 0 3\r\nnew\r\n", &STORAGE);
    assert_eq!(
        lease_set(&mut holder, "key", lease, "stale"),
        "NOT_STORED\r\n"
    );
    assert_eq!(
        holder.ask("get key\r\n", &GET).0,
        "VALUE key 0 3\r\nnew\r\nEND\r\n"
    );
    other.ask("delete key\r\n", &DELETE);
    let lease = token(&mut holder, "key");
    other.ask("flush_all\r\n", &FLUSH);
    assert_eq!(
        lease_set(&mut holder, "key", lease, "stale"),
        "NOT_STORED\r\n"
    );
    // The next one gets a lease of its own.
    let lease = token(&mut other, "key");
    assert_eq!(lease_set(&mut other, "key", lease, "fresh"), "STORED\r\n");
}

#[test]
fn a_long_value_can_be_stored_with_a_lease() {
    let server = TestServer::start();
    let mut router = Router::of(&server);
    let lease = token(&mut router, "key");
    let value = "v".repeat(300_000);
    assert_eq!(lease_set(&mut router, "key", lease, &value), "STORED\r\n");
    let expected = format!("VALUE key 3 300000\r\n{value}\r\nEND\r\n");
    assert_eq!(router.ask("get key\r\n", &GET).0, expected);
}

#[test]
fn metaget_tells_age_and_expiry() {
    let server = TestServer::start();
    let mut router = Router::of(&server);
    assert_eq!(router.ask("metaget key\r\n", &METAGET).0, "END\r\n");
    router.ask("set key 0 0 1\r\nx\r\n", &STORAGE);
    let (_, numbers) = router.ask("metaget key\r\n", &METAGET);
    assert!(numbers[0] < 30);
    assert_eq!(numbers[1], 0, "for ever");
    router.ask("touch key 1000\r\n", &TOUCH);
    let (_, numbers) = router.ask("metaget key\r\n", &METAGET);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let left = Duration::from_secs(numbers[1])
        .saturating_sub(now)
        .as_secs();
    assert!((900..=1001).contains(&left), "{left}");
}
