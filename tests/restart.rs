//! Items that outlive the process (`-e`).
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use common::{Client, Program, program};

/// A memory file in a folder of its own.
struct Memory {
    folder: tempfile::TempDir,
}

impl Memory {
    fn new() -> Memory {
        let folder = tempfile::tempdir().unwrap();
        Memory { folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("memory")
    }

    fn record(&self) -> PathBuf {
        self.folder.path().join("memory.meta")
    }

    fn start(&self, more: &[&str]) -> Program {
        let file = self.file();
        let arguments = ["-p", "-1", "-l", "127.0.0.1", "-A", "-e"];
        let file = file.to_str().unwrap();
        Program::start(&[&arguments, &[file][..], more].concat())
    }
}

fn stop(mut server: Program) {
    server.signal("USR1");
    assert_eq!(server.wait(), Some(0));
}

type Tcp = Client<std::net::TcpStream>;

fn value(number: usize) -> String {
    let length = match number % 100 {
        0 => 100_000,
        1 => 20_000,
        2 => 5_000,
        _ => number % 300,
    };
    let letter = char::from(b'a' + (number % 26) as u8);
    format!("{number}:{}", letter.to_string().repeat(length))
}

fn set_all(client: &mut Tcp, count: usize) {
    for number in 0..count {
        let value = value(number);
        client.send(format!(
            "set key_{number} {number} 0 {} noreply\r\n{value}\r\n",
            value.len()
        ));
    }
    client.ask("mn\r\n", "MN\r\n");
}

fn expect_all(client: &mut Tcp, count: usize) {
    for number in 0..count {
        let value = value(number);
        client.ask(
            format!("get key_{number}\r\n"),
            format!(
                "VALUE key_{number} {number} {}\r\n{value}\r\nEND\r\n",
                value.len()
            ),
        );
    }
}

#[test]
fn a_planned_restart_keeps_every_item_and_goes_on_counting() {
    const COUNT: usize = 5000;
    let memory = Memory::new();
    let server = memory.start(&[]);
    let mut client = server.connect();
    set_all(&mut client, COUNT);
    client.ask("set gone 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("delete gone\r\n", "DELETED\r\n");
    client.ask("set later 0 100 1\r\nx\r\n", "STORED\r\n");
    client.ask("ms last 1 c\r\nx\r\n", format!("HD c{}\r\n", COUNT + 4));
    let (items, bytes) = (client.stat("curr_items"), client.stat("bytes"));
    let pages = client.stat_of("larder", "page_bytes");
    stop(server);
    assert!(memory.record().exists());

    let server = memory.start(&[]);
    assert!(!memory.record().exists(), "it is good for one restart");
    let mut client = server.connect();
    assert_eq!(client.stat_of("larder", "restart"), "warm");
    assert_eq!(client.stat_of("larder", "restart_items"), items);
    assert_eq!(client.stat("curr_items"), items);
    assert_eq!(client.stat("bytes"), bytes);
    assert_eq!(client.stat_of("larder", "page_bytes"), pages);
    expect_all(&mut client, COUNT);
    client.ask("get gone\r\n", "END\r\n");
    client.send("mg later t\r\n");
    let left: u32 = client.line().strip_prefix("HD t").unwrap().parse().unwrap();
    assert!((80..=100).contains(&left), "{left} seconds left");
    client.ask("mg last c v\r\n", format!("VA 1 c{}\r\nx\r\n", COUNT + 4));
    client.ask("ms next 1 c\r\nx\r\n", format!("HD c{}\r\n", COUNT + 5));
    // What was there can be changed, deleted and grown over.
    set_all(&mut client, COUNT + 3000);
    expect_all(&mut client, COUNT + 3000);
    client.ask("delete key_0\r\n", "DELETED\r\n");
    client.ask("get key_0\r\n", "END\r\n");
}

#[test]
fn a_full_cache_goes_on_evicting_after_a_restart() {
    let memory = Memory::new();
    let server = memory.start(&["-m", "4"]);
    let mut client = server.connect();
    let value = "v".repeat(500);
    let fill = |client: &mut Tcp, from: usize| {
        for number in from..from + 15_000 {
            client.send(format!("set k{number} 0 0 500 noreply\r\n{value}\r\n"));
        }
        client.ask("mn\r\n", "MN\r\n");
    };
    fill(&mut client, 0);
    let items: u64 = client.stat("curr_items").parse().unwrap();
    assert!(client.stat("evictions").parse::<u64>().unwrap() > 0);
    client.ask("shutdown graceful\r\n", "");
    client.expect_end();
    let mut server = server;
    assert_eq!(server.wait(), Some(0));

    let server = memory.start(&["-m", "4"]);
    let mut client = server.connect();
    // Slots that are freed ahead of need may have cost a few items between the count and the stop.
    let kept: u64 = client.stat_of("larder", "restart_items").parse().unwrap();
    assert!(
        kept <= items && (items - kept) * 64 <= items,
        "{kept} of {items}"
    );
    assert_eq!(client.stat("curr_items"), kept.to_string());
    fill(&mut client, 15_000);
    let after: u64 = client.stat("curr_items").parse().unwrap();
    assert!(
        after.abs_diff(items) * 50 < items,
        "{items} items, {after} after"
    );
    client.ask(
        "get k29999\r\n",
        format!("VALUE k29999 0 500\r\n{value}\r\nEND\r\n"),
    );
}

#[test]
fn what_was_flushed_or_expires_meanwhile_is_gone() {
    let memory = Memory::new();
    let server = memory.start(&[]);
    let mut client = server.connect();
    client.ask("set old 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("flush_all\r\n", "OK\r\n");
    client.ask("set new 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("set soon 0 1 1\r\nx\r\n", "STORED\r\n");
    stop(server);
    sleep(Duration::from_millis(1100));
    let server = memory.start(&[]);
    let mut client = server.connect();
    assert_eq!(client.stat_of("larder", "restart"), "warm");
    assert!(
        client.stat("uptime").parse::<u32>().unwrap() >= 3,
        "it goes on"
    );
    client.ask("get old new soon\r\n", "VALUE new 0 1\r\nx\r\nEND\r\n");
}

#[test]
fn another_configuration_starts_cold_and_says_why() {
    for (more, why) in [
        (
            &["-m", "32"][..],
            "max_bytes is 33554432 now and was 67108864",
        ),
        (
            &["-I", "2m"],
            "item_size_max is 2097152 now and was 1048576",
        ),
        (&["-C"], "cas is false now and was true"),
        (
            &["-o", "hash_algorithm=murmur3"],
            "hash_algorithm is Some(Murmur3) now and was None",
        ),
    ] {
        let memory = Memory::new();
        let server = memory.start(&[]);
        server.connect().ask("set a 0 0 1\r\nx\r\n", "STORED\r\n");
        stop(server);
        let server = memory.start(more);
        let mut client = server.connect();
        assert_eq!(client.stat_of("larder", "restart"), format!("cold ({why})"));
        client.ask("get a\r\n", "END\r\n");
        client.ask("set a 0 0 1\r\ny\r\n", "STORED\r\n");
        assert_eq!(client.stat("curr_items"), "1");
    }
}

#[test]
fn a_crash_and_a_plain_stop_leave_nothing() {
    for signal in ["KILL", "TERM"] {
        let memory = Memory::new();
        let mut server = memory.start(&[]);
        server.connect().ask("set a 0 0 1\r\nx\r\n", "STORED\r\n");
        server.signal(signal);
        server.wait();
        let server = memory.start(&[]);
        let mut client = server.connect();
        assert!(client.stat_of("larder", "restart").starts_with("cold ("));
        client.ask("get a\r\n", "END\r\n");
        assert_eq!(client.stat("curr_items"), "0");
    }
}

const CRASH: &[&str] = &["-o", "crash_restart"];
const SMALL_CRASH: &[&str] = &["-m", "8", "-o", "crash_restart"];

/// Stops a server as nothing else does.
fn kill(mut server: Program) {
    server.signal("KILL");
    server.wait();
}

#[test]
fn after_a_crash_what_is_intact_is_there() {
    const COUNT: usize = 3000;
    let memory = Memory::new();
    let server = memory.start(CRASH);
    let mut client = server.connect();
    set_all(&mut client, COUNT);
    client.ask("set gone 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("flush_all\r\n", "OK\r\n");
    client.ask("set deleted 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("delete deleted\r\n", "DELETED\r\n");
    set_all(&mut client, COUNT);
    // Changes of what stands already, each of its own way.
    client.ask("set grown 0 0 2\r\nab\r\n", "STORED\r\n");
    client.ask("append grown 0 0 2\r\ncd\r\n", "STORED\r\n");
    client.ask("set count 0 0 2\r\n10\r\n", "STORED\r\n");
    client.ask("decr count 1\r\n", "9\r\n");
    client.ask("incr count 100\r\n", "109\r\n");
    client.ask("set touched 0 0 1\r\nt\r\n", "STORED\r\n");
    client.ask("touch touched 1000\r\n", "TOUCHED\r\n");
    client.ask("set stale 0 0 1\r\ns\r\n", "STORED\r\n");
    client.ask("md stale I T500\r\n", "HD\r\n");
    client.ask("set bare 0 0 1\r\nb\r\n", "STORED\r\n");
    client.ask("md bare x\r\n", "HD\r\n");
    client.ask("get gone\r\n", "END\r\n");
    let items = client.stat("curr_items");
    kill(server);

    let server = memory.start(CRASH);
    let mut client = server.connect();
    assert_eq!(client.stat_of("larder", "restart"), "recovered");
    assert_eq!(client.stat_of("larder", "restart_lost"), "0");
    assert_eq!(client.stat_of("larder", "restart_items"), items);
    assert_eq!(client.stat("curr_items"), items);
    expect_all(&mut client, COUNT);
    client.ask("get gone deleted\r\n", "END\r\n");
    client.ask("mg grown v\r\n", "VA 4\r\nabcd\r\n");
    client.ask("mg count v\r\n", "VA 3\r\n109\r\n");
    client.ask("mg bare v\r\n", "VA 0\r\n\r\n");
    client.ask("mg stale v\r\n", "VA 1 X W\r\ns\r\n");
    client.send("mg touched t\r\n");
    let left: u32 = client.line().strip_prefix("HD t").unwrap().parse().unwrap();
    assert!((900..=1000).contains(&left), "{left} seconds left");
    // And once more, from there.
    set_all(&mut client, COUNT + 500);
    kill(server);
    let server = memory.start(CRASH);
    expect_all(&mut server.connect(), COUNT + 500);
}

#[test]
fn a_crash_under_load_serves_nothing_torn() {
    const KEYS: usize = 400;
    let memory = Memory::new();
    let server = memory.start(&["-m", "32", "-o", "crash_restart"]);
    let address = server.connect().stream.peer_addr().unwrap();
    let key_of = |key: usize, letter: usize| {
        let length = if key.is_multiple_of(20) { 30_000 } else { 20 } * (letter + 1);
        let value = char::from(b'a' + letter as u8).to_string().repeat(length);
        format!("set k{key} 0 0 {length} noreply\r\n{value}\r\n")
    };
    let mut client = server.connect();
    for key in 0..KEYS {
        client.send(key_of(key, 0));
    }
    client.ask("mn\r\n", "MN\r\n");
    // Every value is one letter throughout, of a length that goes with it; some are large.
    let writers: Vec<_> = (0..4)
        .map(|writer: usize| {
            std::thread::spawn(move || {
                let mut client = Client::to(address);
                for round in 0.. {
                    let (key, letter) = ((round * 7 + writer) % KEYS, (round + writer) % 26);
                    let request = key_of(key, letter);
                    if std::io::Write::write_all(&mut client.stream, request.as_bytes()).is_err() {
                        break;
                    }
                }
            })
        })
        .collect();
    sleep(Duration::from_millis(400));
    kill(server);
    for writer in writers {
        writer.join().unwrap();
    }

    let server = memory.start(&["-m", "32", "-o", "crash_restart"]);
    let mut client = server.connect();
    assert_eq!(client.stat_of("larder", "restart"), "recovered");
    let kept: usize = client.stat("curr_items").parse().unwrap();
    assert!(kept * 100 >= KEYS * 99, "{kept} of {KEYS} items");
    let mut seen = 0;
    for key in 0..KEYS {
        client.send(format!("mg k{key} v\r\n"));
        let line = client.line();
        let Some(length) = line.strip_prefix("VA ") else {
            assert_eq!(line, "EN");
            continue;
        };
        let length: usize = length.parse().unwrap();
        let letter = length / if key.is_multiple_of(20) { 30_000 } else { 20 } - 1;
        let value = char::from(b'a' + letter as u8).to_string().repeat(length);
        client.expect(format!("{value}\r\n"));
        seen += 1;
    }
    assert_eq!(seen, kept);
}

#[test]
fn what_was_damaged_is_not_served_after_a_crash() {
    const COUNT: usize = 400;
    let memory = Memory::new();
    let server = memory.start(SMALL_CRASH);
    let mut client = server.connect();
    set_all(&mut client, COUNT);
    kill(server);
    // One byte in every value whose number ends with 7, wherever it lies.
    let mut bytes = fs::read(memory.file()).unwrap();
    let damaged: Vec<usize> = (7..COUNT).step_by(10).collect();
    for &number in &damaged {
        let value = value(number);
        let at = bytes
            .windows(value.len())
            .position(|bytes| bytes == value.as_bytes())
            .expect("it is in the file");
        bytes[at + value.len() - 1] ^= 4;
    }
    fs::write(memory.file(), &bytes).unwrap();

    let server = memory.start(SMALL_CRASH);
    let mut client = server.connect();
    let lost = damaged.len();
    assert_eq!(client.stat_of("larder", "restart_lost"), lost.to_string());
    assert_eq!(client.stat("curr_items"), (COUNT - lost).to_string());
    for number in 0..COUNT {
        let length = value(number).len();
        if damaged.contains(&number) {
            client.ask(format!("get key_{number}\r\n"), "END\r\n");
        } else {
            client.ask(
                format!("mg key_{number} s\r\n"),
                format!("HD s{length}\r\n"),
            );
        }
    }
}

#[test]
fn a_memory_file_of_noise_is_no_danger() {
    let memory = Memory::new();
    let server = memory.start(SMALL_CRASH);
    set_all(&mut server.connect(), 400);
    kill(server);
    // All but the notes is turned into something else, every few bytes.
    let mut bytes = fs::read(memory.file()).unwrap();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut at = 64 << 10;
    while at < bytes.len() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if bytes[at] != 0 || at.is_multiple_of(1024) {
            bytes[at] ^= random as u8;
        }
        at += 1 + (random >> 32) as usize % 90;
    }
    fs::write(memory.file(), &bytes).unwrap();
    let server = memory.start(SMALL_CRASH);
    let mut client = server.connect();
    assert_eq!(client.stat_of("larder", "restart"), "recovered");
    set_all(&mut client, 100);
    expect_all(&mut client, 100);
}

#[test]
fn with_crash_restart_a_plain_stop_keeps_items_too() {
    let memory = Memory::new();
    let mut server = memory.start(CRASH);
    server.connect().ask("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    server.signal("TERM");
    server.wait();
    let server = memory.start(CRASH);
    let mut client = server.connect();
    assert_eq!(client.stat_of("larder", "restart"), "warm");
    client.ask("get a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
}

#[test]
fn a_damaged_table_is_noticed() {
    let memory = Memory::new();
    let server = memory.start(&[]);
    server.connect().ask("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    stop(server);
    // The buckets in use are sparse words somewhere behind the pages: change the last of them.
    let mut bytes = fs::read(memory.file()).unwrap();
    let last = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    bytes[last] ^= 1;
    fs::write(memory.file(), &bytes).unwrap();
    let server = memory.start(&[]);
    let mut client = server.connect();
    assert_eq!(
        client.stat_of("larder", "restart"),
        "cold (the memory file is not as it was left)"
    );
    client.ask("get a\r\n", "END\r\n");
}

#[test]
fn a_record_that_is_none_ends_the_program() {
    let memory = Memory::new();
    fs::write(memory.record(), "").unwrap();
    let file = memory.file();
    let output = program(&["-p", "-1", "-l", "127.0.0.1", "-e", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("remove it to start with an empty cache"),
        "{said}"
    );
    assert!(memory.record().exists());
}

#[test]
fn a_port_in_use_does_not_cost_the_items() {
    let memory = Memory::new();
    let server = memory.start(&[]);
    server.connect().ask("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    stop(server);
    let other = Program::start(&["-p", "-1", "-l", "127.0.0.1"]);
    let port = other.port().to_string();
    let file = memory.file();
    let file = file.to_str().unwrap();
    let refused = program(&["-p", &port, "-l", "127.0.0.1", "-e", file])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(71));
    let server = memory.start(&[]);
    server
        .connect()
        .ask("get a\r\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
}

#[test]
fn a_memory_file_has_one_process() {
    let memory = Memory::new();
    let server = memory.start(&[]);
    let file = memory.file();
    let second = program(&["-p", "-1", "-l", "127.0.0.1", "-e", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("another process"), "{said}");
    let mut client = server.connect();
    client.ask("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask(
        "cache_memlimit 128\r\n",
        "MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust\r\n",
    );
}
