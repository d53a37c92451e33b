//! Expiry times beyond what memcached takes (`-o long_ttl`).
#![forbid(unsafe_code)]

mod common;

use std::time::{SystemTime, UNIX_EPOCH};

use common::{TestServer, settings};

const YEAR: i64 = 365 * 24 * 3600;

fn long() -> TestServer {
    let mut settings = settings();
    settings.store.long_ttl = true;
    TestServer::start_with(settings)
}

fn unix_now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    elapsed.as_secs() as i64
}

/// The seconds that `mg key t` shows.
fn left(client: &mut common::Client<std::net::TcpStream>, key: &str) -> i64 {
    client.send(format!("mg {key} t\r\n"));
    let line = client.line();
    let seconds = line
        .strip_prefix("HD t")
        .unwrap_or_else(|| panic!("{line}"));
    seconds.parse().unwrap()
}

#[test]
fn a_year_is_a_year() {
    let server = long();
    let mut client = server.connect();
    client.ask(format!("set a 0 {YEAR} 1\r\nx\r\n"), "STORED\r\n");
    assert!((YEAR - 60..=YEAR).contains(&left(&mut client, "a")));
    client.ask(format!("touch a {}\r\n", 10 * YEAR), "TOUCHED\r\n");
    assert!((10 * YEAR - 60..=10 * YEAR).contains(&left(&mut client, "a")));
    client.ask(
        format!("gat {} a\r\n", 2 * YEAR),
        "VALUE a 0 1\r\nx\r\nEND\r\n",
    );
    assert!((2 * YEAR - 60..=2 * YEAR).contains(&left(&mut client, "a")));
    client.ask(format!("ms b 1 T{YEAR}\r\nx\r\n"), "HD\r\n");
    assert!((YEAR - 60..=YEAR).contains(&left(&mut client, "b")));
    // As ever: 0 never ends, what is negative or a date of the past has.
    client.ask("set c 0 0 1\r\nx\r\n", "STORED\r\n");
    assert_eq!(left(&mut client, "c"), -1);
    for past in [-1, 1_000_000_000, unix_now() - 100] {
        client.ask(format!("set c 0 {past} 1\r\nx\r\n"), "STORED\r\n");
        client.ask("get c\r\n", "END\r\n");
    }
}

#[test]
fn dates_may_lie_beyond_2038() {
    let server = long();
    let mut client = server.connect();
    let date = unix_now() + 60 * YEAR;
    assert!(date > i64::from(i32::MAX));
    client.ask(format!("set a 0 {date} 1\r\nx\r\n"), "STORED\r\n");
    assert!((60 * YEAR - 60..=60 * YEAR).contains(&left(&mut client, "a")));
    client.ask(format!("touch a {}\r\n", date + YEAR), "TOUCHED\r\n");
    client.ask(format!("ms b 1 T{date}\r\nx\r\n"), "HD\r\n");
    assert!((60 * YEAR - 60..=60 * YEAR).contains(&left(&mut client, "b")));
    // A time that no clock will ever show.
    client.ask(format!("set c 0 {} 1\r\nx\r\n", i64::MAX), "STORED\r\n");
    client.ask("get c\r\n", "VALUE c 0 1\r\nx\r\nEND\r\n");
}

#[test]
fn without_the_option_all_is_as_with_memcached() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.ask(format!("set a 0 {YEAR} 1\r\nx\r\n"), "STORED\r\n");
    client.ask("get a\r\n", "END\r\n");
    client.ask(
        "touch a 4000000000\r\n",
        "CLIENT_ERROR invalid exptime argument\r\n",
    );
    client.ask(
        "ms a 1 T4000000000\r\nx\r\n",
        "CLIENT_ERROR bad token in command line format\r\n",
    );
}
