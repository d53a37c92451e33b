//! Keys that are longer than memcached's (`-o max_key_size`).
#![forbid(unsafe_code)]

mod common;

use std::collections::HashMap;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::binary::Packet;
use common::{Client, Program, TestServer, settings};
use larder::settings::{Journal, Settings};

const PATIENCE: Duration = Duration::from_secs(20);
const BAD_FORMAT: &str = "CLIENT_ERROR bad command line format\r\n";
const MEBI: usize = 1 << 20;
/// On both sides of what one byte counts, what a slot and a chunk hold, and what is read at once.
const LENGTHS: [usize; 8] = [251, 255, 256, 4100, 16_340, 16_385, 70_000, 300_000];

fn long(key_max: usize) -> Settings {
    let mut settings = settings();
    settings.store.key_max = key_max;
    settings.store.item_size_max = 4 * MEBI;
    settings.store.max_bytes = 128 << 20;
    settings
}

/// Keys of one length are the same but for their last bytes.
fn key(length: usize, number: usize) -> String {
    let end = format!("{number:04}");
    "k".repeat(length - end.len()) + &end
}

#[test]
fn every_command_takes_a_long_key() {
    let server = TestServer::start_with(long(MEBI));
    let mut client = server.connect();
    for length in LENGTHS.into_iter().chain([MEBI]) {
        let (k, other) = (key(length, 1), key(length, 2));
        client.ask(format!("set {k} 7 0 3\r\nabc\r\n"), "STORED\r\n");
        client.ask(
            format!("get {k}\r\n"),
            format!("VALUE {k} 7 3\r\nabc\r\nEND\r\n"),
        );
        client.ask(format!("get {other}\r\n"), "END\r\n");
        client.ask(format!("add {k} 0 0 1\r\nx\r\n"), "NOT_STORED\r\n");
        client.ask(format!("add {other} 0 0 1\r\nx\r\n"), "STORED\r\n");
        client.ask(format!("replace {other} 0 0 1\r\ny\r\n"), "STORED\r\n");
        client.ask(format!("append {k} 0 0 2\r\nde\r\n"), "STORED\r\n");
        client.ask(format!("prepend {k} 0 0 2\r\n-+\r\n"), "STORED\r\n");
        client.ask(
            format!("get a {k} {other} {k}\r\n"),
            format!(
                "VALUE {k} 7 7\r\n-+abcde\r\nVALUE {other} 0 1\r\ny\r\nVALUE {k} 7 7\r\n-+abcde\r\nEND\r\n"
            ),
        );
        client.ask(
            format!("ms {k} 2 F5 E77 k\r\n41\r\n"),
            format!("HD k{k}\r\n"),
        );
        client.ask(
            format!("gats 100 {other} {k}\r\ngets {k}\r\n").replace(&format!("{other} "), ""),
            format!("VALUE {k} 5 2 77\r\n41\r\nEND\r\n").repeat(2),
        );
        client.ask(format!("incr {k} 1\r\n"), "42\r\n");
        client.ask(format!("decr {k} 40\r\n"), "2\r\n");
        client.ask(
            format!("ma {k} v D100 k\r\n"),
            format!("VA 3 k{k}\r\n102\r\n"),
        );
        client.ask(format!("touch {k} 0\r\n"), "TOUCHED\r\n");
        client.ask(
            format!("mg {k} v k f t s O1\r\n"),
            format!("VA 3 k{k} f5 t-1 s3 O1\r\n102\r\n"),
        );
        client.send(format!("me {k}\r\n"));
        let line = client.line();
        assert!(line.starts_with(&format!("ME {k} exp=-1 ")), "{length}");
        client.ask(format!("cas {k} 0 0 1 1\r\nx\r\n"), "EXISTS\r\n");
        client.ask(format!("ms {k} 1 E5\r\nq\r\n"), "HD\r\n");
        client.ask(format!("cas {k} 0 0 1 5 noreply\r\nz\r\nmn\r\n"), "MN\r\n");
        client.ask(format!("mg {k} v\r\n"), "VA 1\r\nz\r\n");
        client.ask(format!("md {k} x k\r\n"), format!("HD k{k}\r\n"));
        client.ask(format!("md {k} I T30\r\n"), "HD\r\n");
        client.ask(format!("mg {k} v\r\n"), "VA 0 X W\r\n\r\n");
        client.ask(format!("delete {k}\r\n"), "DELETED\r\n");
        client.ask(format!("delete {k}\r\n"), "NOT_FOUND\r\n");
        client.ask(format!("mg {k} N60 v\r\n"), "VA 0 W\r\n\r\n");
        client.ask(format!("mg {other} v\r\n"), "VA 1\r\ny\r\n");
    }
    assert_eq!(client.stat("curr_items"), "18");
    client.ask("flush_all\r\n", "OK\r\n");
    client.ask(format!("get {}\r\n", key(MEBI, 2)), "END\r\n");
}

#[test]
fn a_long_key_goes_with_a_long_value() {
    let server = TestServer::start_with(long(MEBI));
    let mut client = server.connect();
    for length in LENGTHS {
        for size in [0, 4097, 16_400, 65_536, MEBI] {
            let k = key(length, size % 1000);
            let value: String = (0..size)
                .map(|at| char::from(b'a' + (at % 23) as u8))
                .collect();
            client.ask(format!("set {k} 3 0 {size}\r\n{value}\r\n"), "STORED\r\n");
            client.ask(format!("append {k} 0 0 4\r\ntail\r\n"), "STORED\r\n");
            let all = value + "tail";
            client.ask(
                format!("get {k}\r\n"),
                format!("VALUE {k} 3 {}\r\n{all}\r\nEND\r\n", size + 4),
            );
            let root = blake3::hash(all.as_bytes()).to_hex();
            client.ask(format!("mg {k} H\r\n"), format!("HD H{root}\r\n"));
        }
    }
}

#[test]
fn a_longer_key_is_the_error_that_it_always_was() {
    for key_max in [250, 251, 1000, 100_000] {
        let server = TestServer::start_with(long(key_max));
        let mut client = server.connect();
        let (most, over) = (key(key_max, 1), key(key_max + 1, 1));
        client.ask(format!("set {most} 0 0 1\r\nx\r\n"), "STORED\r\n");
        for request in [
            format!("set {over} 0 0 5\r\nhello\r\n"),
            format!("ms {over} 5\r\nhello\r\n"),
            format!("get {over}\r\n"),
            format!("get a {over}\r\n"),
            format!("gat 0 {over}\r\n"),
            format!("delete {over}\r\n"),
            format!("incr {over} 1\r\n"),
            format!("touch {over} 1\r\n"),
            format!("mg {over} v\r\n"),
            format!("md {over}\r\n"),
            format!("me {over}\r\n"),
        ] {
            client.ask(request, BAD_FORMAT);
        }
        client.ask(
            format!("ma {over}\r\n"),
            "CLIENT_ERROR invalid or duplicate flag\r\n",
        );
        client.ask(format!("mg {most} v\r\n"), "VA 1\r\nx\r\n");
        // Beyond all keys a line without an end is given up.
        let mut client = server.connect();
        client.send(format!("set {}", key(key_max + 2048, 1)));
        client.expect_end();
    }
}

#[test]
fn requests_may_be_cut_anywhere() {
    let server = TestServer::start_with(long(200_000));
    let k = key(300, 1);
    let requests = format!(
        "set {k} 1 0 5\r\nhello\r\nget {k} a {k}\r\ngat 0 {k}\r\nmg {k} k v\r\ndelete {k}\r\n"
    );
    let found = format!("VALUE {k} 1 5\r\nhello\r\n");
    let replies =
        format!("STORED\r\n{found}{found}END\r\n{found}END\r\nVA 5 k{k}\r\nhello\r\nDELETED\r\n");
    let mut client = server.connect();
    for at in (1..requests.len()).step_by(7) {
        client.send(&requests[..at]);
        std::thread::yield_now();
        client.ask(&requests[at..], &replies);
    }
    // Longer than what is read at once; in pieces of many sizes, and by the byte where it ends.
    let k = key(200_000, 1);
    let found = format!("VALUE {k} 1 5\r\nhello\r\n");
    for step in [1999, 65_536, 70_001] {
        for (request, reply) in [
            (
                format!("set {k} 1 0 5\r\nhello\r\n"),
                "STORED\r\n".to_owned(),
            ),
            (
                format!("get {k} {k} a {k}\r\n"),
                format!("{found}{found}{found}END\r\n"),
            ),
            (format!("gats 0 b {k} {k}\r\nmn\r\n"), String::new()),
            (format!("mg {k} v\r\n"), "VA 5\r\nhello\r\n".to_owned()),
        ] {
            let (start, end) = request.split_at(request.len() - 20);
            for piece in start.as_bytes().chunks(step) {
                client.send(piece);
                std::thread::yield_now();
            }
            for byte in end.as_bytes().chunks(1) {
                client.send(byte);
            }
            if request.starts_with("gats") {
                for _ in 0..2 {
                    assert!(client.line().starts_with(&format!("VALUE {k} 1 5 ")));
                    client.expect("hello\r\n");
                }
                client.expect("END\r\nMN\r\n");
            } else {
                client.expect(reply);
            }
        }
    }
}

fn base64(key: &[u8]) -> String {
    let text: Vec<u8> = larder::protocol::base64::encoded(key).flatten().collect();
    String::from_utf8(text).unwrap()
}

#[test]
fn a_long_key_may_be_base64() {
    let server = TestServer::start_with(long(MEBI));
    let mut client = server.connect();
    for length in [187, 188, 250, 251, 255, 20_000, 700_000] {
        let raw: Vec<u8> = (0..length).map(|at| (at * 7 % 256) as u8).collect();
        let text = base64(&raw);
        client.ask(
            format!("ms {text} 2 b k\r\nhi\r\n"),
            format!("HD k{text} b\r\n"),
        );
        client.ask(
            format!("mg {text} v b k\r\n"),
            format!("VA 2 k{text} b\r\nhi\r\n"),
        );
        client.send(format!("me {text} b\r\n"));
        assert!(client.line().starts_with(&format!("ME {text} exp=")));
        client.ask(format!("md {text} b\r\n"), "HD\r\n");
        client.ask(format!("mg {text} b k\r\n"), format!("EN k{text} b\r\n"));
    }
    client.ask(format!("mg {}# b\r\n", "QUFB".repeat(100)), "EN\r\n");
    let broken = "QUFB".repeat(100) + "Q";
    client.ask(
        format!("mg {broken} b\r\n"),
        "CLIENT_ERROR error decoding key\r\n",
    );
}

#[test]
fn binary_keys_go_up_to_what_their_header_counts() {
    let server = TestServer::start_with(long(MEBI));
    let mut client = server.connect();
    for length in [251, 256, 20_000, 65_535] {
        let raw: Vec<u8> = (0..length).map(|at| (at * 11 % 256) as u8).collect();
        let value = vec![b'v'; 20_000];
        for value in [&b"small"[..], &value] {
            let set = Packet {
                opcode: 0x01,
                extras: &[0, 0, 0, 9, 0, 0, 0, 0],
                key: &raw,
                value,
                opaque: 3,
                cas: 0,
            };
            assert_eq!(client.call(set).status, 0);
            for opcode in [0x00, 0x0c] {
                let get = Packet {
                    opcode,
                    key: &raw,
                    ..Packet::default()
                };
                let answer = client.call(get);
                assert_eq!((answer.status, &answer.extras[..]), (0, &[0, 0, 0, 9][..]));
                assert_eq!(answer.value, value);
                let shown = if opcode == 0x0c { &raw[..] } else { b"" };
                assert!(answer.key == shown);
            }
        }
        // By the byte, at its end.
        let delete = Packet {
            opcode: 0x04,
            key: &raw,
            ..Packet::default()
        }
        .bytes();
        let (start, end) = delete.split_at(delete.len() - 9);
        client.send(start);
        for byte in end.chunks(1) {
            client.send(byte);
        }
        assert_eq!(client.answer().status, 0);
    }
    // No key stands in these places.
    for opcode in [0x10, 0x21] {
        let mut client = server.connect();
        let raw = vec![b'k'; 251];
        client.send(
            Packet {
                opcode,
                key: &raw,
                ..Packet::default()
            }
            .bytes(),
        );
        assert_eq!(client.answer().status, 0x04);
        client.expect_end();
    }
    let server = TestServer::start_with(long(1000));
    let mut client = server.connect();
    client.send(
        Packet {
            opcode: 0x00,
            key: &[b'k'; 1001],
            ..Packet::default()
        }
        .bytes(),
    );
    assert_eq!(client.answer().status, 0x04);
    client.expect_end();
}

#[test]
fn dumps_show_long_keys_whole() {
    let server = TestServer::start_with(long(MEBI));
    let mut client = server.connect();
    let mut keys: Vec<String> = (0..20).map(|number| key(60_000, number)).collect();
    keys.extend((0..300).map(|number| key(20, number)));
    keys.push(key(MEBI, 0));
    for key in &keys {
        client.send(format!("set {key} 0 0 1 noreply\r\nx\r\n"));
    }
    client.ask("mn\r\n", "MN\r\n");
    for (command, before, end) in [
        ("lru_crawler metadump all", "key=", "END"),
        ("lru_crawler mgdump all", "mg ", "EN"),
    ] {
        client.send(format!("{command}\r\n"));
        let mut all = Vec::new();
        while !all.ends_with(format!("\n{end}\r\n").as_bytes()) {
            let mut part = [0; 65_536];
            let n = std::io::Read::read(&mut client.stream, &mut part).unwrap();
            assert!(n > 0, "the dump ends");
            all.extend_from_slice(&part[..n]);
        }
        let all = String::from_utf8(all).unwrap();
        let mut shown: Vec<&str> = all
            .lines()
            .filter_map(|line| line.strip_prefix(before)?.split(' ').next())
            .collect();
        shown.sort_unstable();
        let mut expected: Vec<&str> = keys.iter().map(String::as_str).collect();
        expected.sort_unstable();
        assert!(shown == expected, "{command}: {} keys", shown.len());
    }
    let alone = TestServer::start_with(long(MEBI));
    let mut client = alone.connect();
    let k = key(300, 0);
    client.ask(format!("set {k} 0 0 1\r\nx\r\n"), "STORED\r\n");
    client.ask(
        "stats cachedump 7 0\r\n",
        format!("ITEM {k} [1 b; 0 s]\r\nEND\r\n"),
    );
}

#[test]
fn watchers_are_shown_where_a_long_key_begins() {
    let server = TestServer::start_with(long(MEBI));
    let mut watcher = server.connect();
    watcher.ask("watch mutations fetchers\r\n", "OK\r\n");
    let mut client = server.connect();
    let k = key(100_000, 1);
    client.ask(format!("set {k} 0 0 1\r\nx\r\n"), "STORED\r\n");
    let shown = format!(" key={}+99750 status=", "k".repeat(250));
    loop {
        let line = watcher.line();
        if line.contains("type=item_store") {
            assert!(line.contains(&shown), "{line}");
            break;
        }
    }
}

#[test]
fn a_stranger_may_not_send_a_long_line() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    std::fs::write(&users, "foo:bar\n").unwrap();
    let mut settings = long(MEBI);
    settings.security.auth_file = Some(users);
    settings.listen.protocol = larder::settings::Protocol::Ascii;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    client.send(format!("set {}", key(4000, 1)));
    client.expect_end();
    let mut client = server.connect();
    client.ask("set auth 0 0 7\r\nfoo bar\r\n", "STORED\r\n");
    let k = key(500_000, 1);
    client.ask(format!("set {k} 0 0 1\r\nx\r\n"), "STORED\r\n");
}

#[test]
fn unfinished_lines_count_against_the_limit_and_give_it_back() {
    let mut settings = long(MEBI);
    settings.server.threads = 1;
    settings.server.read_buffer_limit = 3 * MEBI;
    let server = TestServer::start_with(settings);
    let mut other = server.connect();
    let begun = format!("set {}", key(900_000, 1));
    let held =
        |other: &mut Client<TcpStream>| -> usize { other.stat("read_buf_bytes").parse().unwrap() };
    let mut clients = Vec::new();
    let since = Instant::now();
    while other.stat("read_buf_oom") == "0" {
        assert!(since.elapsed() < PATIENCE, "{} held", held(&mut other));
        let mut client = server.connect();
        // It may be hung up on, which is what is waited for.
        let _ = std::io::Write::write_all(&mut client.stream, begun.as_bytes());
        clients.push(client);
    }
    assert!(clients.len() >= 3, "{} clients", clients.len());
    drop(clients);
    let since = Instant::now();
    while held(&mut other) > 100_000 {
        assert!(since.elapsed() < PATIENCE, "{} held", held(&mut other));
        std::thread::sleep(Duration::from_millis(5));
    }
    let k = key(MEBI, 1);
    other.ask(format!("set {k} 0 0 1\r\nx\r\n"), "STORED\r\n");
}

/// Marsaglia's xorshift.
fn dice(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 8) as usize
}

/// What a client expects of its own keys, of lengths from 1 to `longest`.
fn random_operations(
    server: &TestServer,
    mut seed: u64,
    rounds: usize,
    longest: usize,
    full: bool,
) {
    let mut client = server.connect();
    let mut items: HashMap<String, String> = HashMap::new();
    for round in 0..rounds {
        let number = dice(&mut seed) % 60;
        let length = match number % 6 {
            0 => 6 + number * 4,
            1 => 245 + number / 6,
            2 => 16_320 + number,
            3 => longest / (number + 1),
            _ => 300 + number * 50,
        };
        let k = format!(
            "{seed_part}{}",
            key(length.max(5), number),
            seed_part = longest % 7
        );
        let k = k[..k.len().min(longest)].to_owned();
        let size = match dice(&mut seed) % 8 {
            0 => dice(&mut seed) % if full { 150_000 } else { 100_000 },
            1 => 4000 + dice(&mut seed) % 200,
            _ => dice(&mut seed) % 300,
        };
        let letter = char::from(b'a' + (dice(&mut seed) % 26) as u8);
        let value = letter.to_string().repeat(size);
        match dice(&mut seed) % 8 {
            0 | 1 => {
                client.ask(format!("set {k} 0 0 {size}\r\n{value}\r\n"), "STORED\r\n");
                items.insert(k, value);
            }
            2 => {
                client.send(format!("append {k} 0 0 {size}\r\n{value}\r\n"));
                match (client.line().as_str(), items.get_mut(&k)) {
                    ("STORED", Some(item)) => item.push_str(&value),
                    // Evicted, or there was no room for the longer value, and the shorter one stays.
                    ("NOT_STORED", Some(item)) if full => {
                        client.send(format!("mg {k} v s\r\n"));
                        match client.line().as_str() {
                            "EN" => _ = items.remove(&k),
                            said => {
                                assert_eq!(said, format!("VA {0} s{0}", item.len()), "{round}");
                                client.expect(item.clone() + "\r\n");
                            }
                        }
                    }
                    (said, item) => {
                        assert_eq!((said, item), ("NOT_STORED", None), "append {length}");
                    }
                }
            }
            3 => {
                client.send(format!("delete {k}\r\n"));
                let had = items.remove(&k).is_some();
                match client.line().as_str() {
                    "DELETED" => assert!(had),
                    said => assert_eq!((said, had && !full), ("NOT_FOUND", false)),
                }
            }
            4 => {
                client.ask(format!("ms {k} 2\r\n17\r\n"), "HD\r\n");
                client.send(format!("incr {k} 84\r\n"));
                match client.line().as_str() {
                    "101" => _ = items.insert(k, "101".to_owned()),
                    said => {
                        assert_eq!((said, full), ("NOT_FOUND", true));
                        items.remove(&k);
                    }
                }
            }
            _ => {
                client.send(format!("mg {k} v s\r\n"));
                let said = client.line();
                match items.get(&k).cloned() {
                    Some(item) if said != "EN" || !full => {
                        assert_eq!(said, format!("VA {0} s{0}", item.len()), "{round}");
                        client.expect(item + "\r\n");
                    }
                    _ => {
                        assert_eq!(said, "EN", "{round}");
                        items.remove(&k);
                    }
                }
            }
        }
        if full && round % 40 == 0 {
            let (from, to) = (dice(&mut seed) % 40, dice(&mut seed) % 40);
            client.send(format!("slabs reassign {from} {to}\r\n"));
            client.line();
        }
    }
}

#[test]
fn random_operations_come_to_what_a_map_comes_to() {
    let server = TestServer::start_with(long(MEBI));
    random_operations(&server, 0x1234_5678, 1500, MEBI, false);
}

#[test]
fn random_operations_never_err_while_pages_move_and_items_go() {
    let mut settings = long(200_000);
    settings.store.max_bytes = 8 << 20;
    let server = TestServer::start_with(settings);
    // It is full before they begin.
    let mut client = server.connect();
    let filler = "x".repeat(100_000);
    for number in 0.. {
        let line = format!("set filler{number} 0 0 100000\r\n{filler}\r\n");
        client.ask(line, "STORED\r\n");
        if client.stat("evictions") != "0" {
            break;
        }
    }
    std::thread::scope(|scope| {
        for client in 1..=3 {
            let server = &server;
            // Keys of different clients begin differently.
            scope.spawn(move || {
                random_operations(server, 0x9e37 * client as u64, 1000, 200_000 - client, true);
            });
        }
    });
}

#[test]
fn long_keys_outlive_the_process() {
    for (options, signal, how) in [
        ("max_key_size=1m", "USR1", "warm"),
        ("max_key_size=1m,crash_restart", "KILL", "recovered"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("memory");
        let start = || {
            Program::start(&[
                "-p",
                "-1",
                "-l",
                "127.0.0.1",
                "-A",
                "-I",
                "4m",
                "-o",
                options,
                "-e",
                file.to_str().unwrap(),
            ])
        };
        let mut server = start();
        let mut client = server.connect();
        for length in LENGTHS.into_iter().chain([MEBI]) {
            let k = key(length, 3);
            client.ask(format!("set {k} 4 0 2\r\n10\r\n"), "STORED\r\n");
            client.ask(format!("set big{} 4 0 2\r\n10\r\n", &k[3..]), "STORED\r\n");
            client.ask(format!("incr {k} 5\r\n"), "15\r\n");
            client.ask(
                format!("append big{} 0 0 1\r\n!\r\n", &k[3..]),
                "STORED\r\n",
            );
        }
        let items = client.stat("curr_items");
        server.signal(signal);
        server.wait();
        let server = start();
        let mut client = server.connect();
        assert_eq!(client.stat_of("larder", "restart"), how);
        assert_eq!(client.stat("curr_items"), items);
        for length in LENGTHS.into_iter().chain([MEBI]) {
            let k = key(length, 3);
            client.ask(format!("mg {k} v f\r\n"), "VA 2 f4\r\n15\r\n");
            client.ask(format!("mg big{} v\r\n", &k[3..]), "VA 3\r\n10!\r\n");
            client.ask(format!("delete {k}\r\n"), "DELETED\r\n");
        }
    }
}

#[test]
fn copies_have_long_keys_too() {
    let keeping = || {
        let mut settings = long(3 << 20);
        settings.store.journal = Some(Journal {
            ring_bytes: 256 << 20,
            follower: true,
        });
        settings.replication.listen = Some("127.0.0.1:0".to_owned());
        settings.replication.recover_ms = 0;
        settings
    };
    let leader = TestServer::start_with(keeping());
    let mut following = keeping();
    following.replication.follow = Some(leader.copies_address().to_string());
    let mut client = leader.connect();
    // The longest do not fit into one frame.
    let lengths = [251, 256, 16_385, 65_535, 65_536, 70_000, 2_500_000];
    for length in lengths {
        let (k, large) = (key(length, 1), key(length, 2));
        client.ask(format!("set {k} 1 0 2\r\n10\r\n"), "STORED\r\n");
        let value = "v".repeat(100_000);
        client.ask(
            format!("set {large} 1 0 100000\r\n{value}\r\n"),
            "STORED\r\n",
        );
    }
    // Some were there before it came, some change while it is there.
    let copy = TestServer::start_with(following);
    let mut reader = copy.connect();
    let mut wait_for = |request: String, expected: &str| {
        let since = Instant::now();
        loop {
            reader.send(&request);
            let said = reader.line();
            if said == expected {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "{said}, not {expected}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    for length in lengths {
        let (k, large) = (key(length, 1), key(length, 2));
        wait_for(format!("mg {k} s f\r\n"), "HD s2 f1");
        wait_for(format!("mg {large} s\r\n"), "HD s100000");
        client.ask(format!("append {k} 0 0 1\r\n0\r\n"), "STORED\r\n");
        client.ask(format!("delete {large}\r\n"), "DELETED\r\n");
        wait_for(format!("mg {k} s\r\n"), "HD s3");
        wait_for(format!("mg {large} s\r\n"), "EN");
    }
}
