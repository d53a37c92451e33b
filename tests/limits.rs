//! Clients that send too much, too little or nonsense: each is answered as memcached does, the
//! others notice nothing, and memory stays bounded.

mod common;

use std::io::{Read, Write};

use common::{TestServer, settings};

const BAD_LINE: &str = "CLIENT_ERROR bad command line format\r\n";

#[test]
fn a_line_without_an_end_is_hung_up_on() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.send("x".repeat(2049));
    client.expect_end();
    // One byte less may still become a command.
    let mut client = server.connect();
    client.send("x".repeat(2040));
    client.ask("\r\nversion\r\n", "ERROR\r\nVERSION 1.6.45\r\n");
}

#[test]
fn blanks_without_an_end_are_hung_up_on() {
    let server = TestServer::start();
    for start in ["get", "get a", "gets"] {
        let mut client = server.connect();
        client.send(start);
        // It may be gone before all of it is sent.
        let _ = client.stream.write_all(&vec![b' '; 200_000]);
        client.expect_end();
    }
}

#[test]
fn nulls_are_bytes_like_others() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.ask("\0\0\0\0\r\n", "ERROR\r\n");
    client.ask("set a\0b 0 0 2\r\n\0\0\r\n", "STORED\r\n");
    client.ask("get a\0b\r\n", "VALUE a\0b 0 2\r\n\0\0\r\nEND\r\n");
    client.ask("get a\r\n", "END\r\n");
}

#[test]
fn impossible_lengths_are_refused() {
    let server = TestServer::start();
    let mut client = server.connect();
    for length in [
        "-1",
        "-2147483648",
        "2147483646",
        "4294967296",
        "18446744073709551617",
        "1x",
    ] {
        client.ask(format!("set a 0 0 {length}\r\n"), BAD_LINE);
    }
    client.ask("get a\r\n", "END\r\n");
}

#[test]
fn a_value_too_large_is_passed_over() {
    let server = TestServer::start();
    let mut client = server.connect();
    let length = 3 << 20;
    client.ask("set a 0 0 3\r\nold\r\n", "STORED\r\n");
    client.send(format!("set a 0 0 {length}\r\n"));
    client.send(&b"get a\r\n".repeat(length / 7 + 1)[..length]);
    client.ask(
        "\r\nget a\r\n",
        "SERVER_ERROR object too large for cache\r\nEND\r\n",
    );
    // Silence covers this error as well.
    client.send(format!("set a 0 0 {length} noreply\r\n"));
    client.send(vec![b'x'; length + 2]);
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
}

#[test]
fn a_value_of_the_wrong_length_is_refused() {
    let server = TestServer::start();
    for length in [10, 20_000, 300_000] {
        let mut client = server.connect();
        client.ask("set a 0 0 3\r\nold\r\n", "STORED\r\n");
        let value = "v".repeat(length);
        // One short: the CR and LF are taken for its last byte and half a terminator.
        client.send(format!("set a 0 0 {}\r\n{value}\r\nX", length + 1));
        client.expect("CLIENT_ERROR bad data chunk\r\n");
        client.ask("\r\n", BAD_LINE);
        client.ask(
            format!("set a 0 0 {}\r\n{value}\r\n", length - 1),
            "CLIENT_ERROR bad data chunk\r\n",
        );
        client.expect(BAD_LINE);
        client.ask("get a\r\n", "VALUE a 0 3\r\nold\r\nEND\r\n");
    }
}

#[test]
fn what_was_asked_before_the_end_of_input_is_answered() {
    let server = TestServer::start();
    let mut client = server.connect();
    let length = 500_000;
    client.ask(
        format!("set big 0 0 {length}\r\n{}\r\n", "v".repeat(length)),
        "STORED\r\n",
    );
    client.send("get big\r\n".repeat(20));
    client.finish();
    let mut answer = Vec::new();
    client.stream.read_to_end(&mut answer).unwrap();
    assert_eq!(
        answer.len(),
        20 * (length + "VALUE big 0 500000\r\n\r\nEND\r\n".len())
    );
}

#[test]
fn others_than_the_limit_allows_are_told_and_turned_away() {
    let mut settings = settings();
    settings.server.max_connections = 2;
    let server = TestServer::start_with(settings);
    let mut first = server.connect();
    let mut second = server.connect();
    first.ask("version\r\n", "VERSION 1.6.45\r\n");
    second.ask("version\r\n", "VERSION 1.6.45\r\n");
    let mut third = server.connect();
    third.expect("ERROR Too many open connections\r\n");
    third.expect_end();
    first.send("quit\r\n");
    first.expect_end();
    // Room is made after the peer has seen the end: it may take a moment.
    let served = (0..1000).any(|_| {
        let mut next = server.connect();
        next.send("version\r\n");
        next.line() == "VERSION 1.6.45"
    });
    assert!(served);
}

#[test]
fn without_the_fast_refusal_they_wait() {
    let mut settings = settings();
    settings.server.max_connections = 1;
    settings.server.maxconns_fast = false;
    let server = TestServer::start_with(settings);
    let mut first = server.connect();
    first.ask("version\r\n", "VERSION 1.6.45\r\n");
    let mut second = server.connect();
    second.send("version\r\n");
    first.ask("version\r\n", "VERSION 1.6.45\r\n");
    drop(first);
    second.expect("VERSION 1.6.45\r\n");
}

#[test]
fn a_long_pipeline_lets_others_take_their_turn() {
    let mut settings = settings();
    settings.server.threads = 1;
    settings.server.requests_per_event = 1;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    client.ask(
        "set a 0 0 1\r\nx\r\n".repeat(10_000),
        "STORED\r\n".repeat(10_000),
    );
    let mut other = server.connect();
    other.ask("version\r\n", "VERSION 1.6.45\r\n");
}
