//! What `stats` shows, over a socket.

mod common;

use common::{Client, TestServer};
use std::net::TcpStream;

/// The answer to a `stats` command, as lines.
fn lines(client: &mut Client<TcpStream>, command: &str) -> Vec<String> {
    client.send(format!("{command}\r\n"));
    let mut lines = Vec::new();
    loop {
        let line = client.line();
        if line == "END" {
            return lines;
        }
        lines.push(line);
    }
}

#[test]
fn cachedump_shows_what_was_read_and_what_was_not() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.ask("set never 0 0 2\r\nab\r\n", "STORED\r\n");
    client.ask("set often 0 0 3\r\nabc\r\n", "STORED\r\n");
    for _ in 0..5 {
        client.ask("get often\r\n", "VALUE often 0 3\r\nabc\r\nEND\r\n");
    }
    // A key that may be anything is not shown.
    client.ask("ms AAE= 1 b\r\nx\r\n", "HD\r\n");
    let mut shown = lines(&mut client, "stats cachedump 1 0");
    shown.sort();
    assert_eq!(shown, ["ITEM never [2 b; 0 s]", "ITEM often [3 b; 0 s]"]);
    assert_eq!(lines(&mut client, "stats cachedump 1 1").len(), 1);
    assert!(lines(&mut client, "stats cachedump 2 0").is_empty());
    client.ask("stats cachedump 1\r\n", "CLIENT_ERROR bad command line\r\n");
}

#[test]
fn reset_leaves_what_is_there() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.ask("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("get a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
    assert_eq!(client.stat("get_hits"), "1");
    client.ask("stats reset\r\n", "RESET\r\n");
    assert_eq!(client.stat("get_hits"), "0");
    assert_eq!(client.stat("cmd_set"), "0");
    assert_eq!(client.stat("curr_items"), "1");
    client.ask("stats nonsense\r\n", "ERROR\r\n");
}
