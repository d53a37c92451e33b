//! Values of many chunks, over a socket: in and out, growing, given up half-way.
#![forbid(unsafe_code)]

mod common;

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use common::{Program, TestServer, settings};

/// Bytes that tell their place.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at ^ at >> 8 ^ at >> 16 ^ seed) as u8)
        .collect()
}

/// Of what it has taken: pages of its own program come and go.
fn resident(id: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes << 10
}

#[test]
fn a_large_value_takes_its_size_and_no_more() {
    let length = 48 << 20;
    let program = Program::start(&["-p", "-1", "-m", "128", "-I", "64m", "-l", "127.0.0.1"]);
    let mut client = program.connect();
    let value = pattern(1, length);
    let before = resident(program.id());
    client.send(format!("set big 7 0 {length}\r\n"));
    client.send(&value);
    client.ask("\r\n", "STORED\r\n");
    let mut found = vec![0; length];
    for _ in 0..2 {
        client.ask("get big\r\n", format!("VALUE big 7 {length}\r\n"));
        client.stream.read_exact(&mut found).unwrap();
        assert!(found == value, "not what was stored");
        client.expect("\r\nEND\r\n");
    }
    let grown = resident(program.id()) - before;
    assert!(grown < length + length / 10, "{grown} bytes for {length}");
}

#[test]
fn a_value_grows_at_both_ends() {
    let server = TestServer::start();
    let mut client = server.connect();
    let mut value = pattern(2, 100_000);
    client.send("set big 0 0 100000\r\n");
    client.send(&value);
    client.ask("\r\n", "STORED\r\n");
    for round in 0..60 {
        let more = pattern(round, [5, 3000, 20_000][round % 3]);
        let (command, at) = if round % 2 == 0 {
            ("append", value.len())
        } else {
            ("prepend", 0)
        };
        client.send(format!("{command} big 0 0 {}\r\n", more.len()));
        client.send(&more);
        client.ask("\r\n", "STORED\r\n");
        value.splice(at..at, more);
    }
    client.send("get big\r\n");
    client.expect(format!("VALUE big 0 {}\r\n", value.len()));
    client.expect(&value);
    client.expect("\r\nEND\r\n");
    client.ask(
        "incr big 1\r\n",
        "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
    );
    // Beyond the limit nothing is joined, and the value stays.
    let length = value.len();
    client.send("append big 0 0 900000\r\n");
    client.send(vec![b'x'; 900_000]);
    client.ask("\r\n", "NOT_STORED\r\n");
    client.send("get big\r\n");
    client.expect(format!("VALUE big 0 {length}\r\n"));
    client.expect(&value);
    client.expect("\r\nEND\r\n");
}

#[test]
fn clients_that_die_half_way_give_everything_back() {
    let mut settings = settings();
    settings.store.max_bytes = 64 << 20;
    settings.store.item_size_max = 4 << 20;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    let half = vec![b'h'; 1 << 20];
    let alone = client.stat("curr_connections");
    let uploads: Vec<_> = (0..20)
        .map(|number| {
            let mut upload = server.connect();
            upload.send(format!("set half{number} 0 0 {}\r\n", 4 << 20));
            upload.send(&half);
            upload
        })
        .collect();
    // Nobody sees them, and they have taken no more than has arrived: 20 MB.
    for number in 0..20 {
        client.ask(format!("get half{number}\r\n"), "END\r\n");
    }
    drop(uploads);
    let since = Instant::now();
    while client.stat("curr_connections") != alone {
        assert!(since.elapsed() < Duration::from_secs(20), "still connected");
        thread::sleep(Duration::from_millis(5));
    }
    // All of the memory is there again.
    for number in 0..14 {
        client.send(format!("set whole{number} 0 0 {}\r\n", 4 << 20));
        for _ in 0..4 {
            client.send(&half);
        }
        // The length is that of the item as a whole.
        client.send("\r\n");
        let answer = client.line();
        assert!(
            answer.starts_with("SERVER_ERROR object too large"),
            "{answer}"
        );
        let length = (4 << 20) - 200;
        client.send(format!("set whole{number} 0 0 {length}\r\n"));
        client.send(vec![b'w'; length]);
        client.ask("\r\n", "STORED\r\n");
    }
    assert_eq!(client.stat("curr_items"), "14");
    assert_eq!(client.stat("evictions"), "0");
}

#[test]
fn announcing_a_value_evicts_nothing() {
    let mut settings = settings();
    settings.store.max_bytes = 8 << 20;
    settings.store.item_size_max = 4 << 20;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    for number in 0..100 {
        client.ask(
            format!("set key{number} 0 0 60000\r\n{}\r\n", "v".repeat(60_000)),
            "STORED\r\n",
        );
    }
    assert_eq!(client.stat("evictions"), "0");
    let mut announcers: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for announcer in &mut announcers {
        announcer.send("set large 0 0 4000000\r\nbegun");
    }
    for announcer in &mut announcers {
        // They have been heard.
        announcer.stream.flush().unwrap();
    }
    thread::sleep(Duration::from_millis(50));
    assert_eq!(client.stat("evictions"), "0");
    assert_eq!(client.stat("curr_items"), "100");
}

#[test]
fn a_value_for_whose_rest_there_is_no_memory_is_skipped() {
    let mut settings = settings();
    settings.store.max_bytes = 4 << 20;
    settings.store.item_size_max = 16 << 20;
    settings.store.evict = false;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    let length = 12 << 20;
    let late = "SERVER_ERROR Out of memory during read\r\n";
    client.ask("set large 0 0 3\r\nold\r\n", "STORED\r\n");
    client.send(format!("set large 0 0 {length}\r\n"));
    client.send(vec![b'x'; length]);
    client.ask("\r\n", late);
    // The old value must not be taken for the new one.
    client.ask("get large\r\n", "END\r\n");
    client.send(format!("ms large {length} q\r\n"));
    client.send(vec![b'x'; length]);
    client.ask("\r\n", late);
    // What it had taken is free again.
    let half = 2 << 20;
    client.send(format!("set small 0 0 {half}\r\n"));
    client.send(vec![b'x'; half]);
    client.ask("\r\n", "STORED\r\n");
}
