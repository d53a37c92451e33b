//! Values that are compared with their digests (`-o verify`, meta flag `H`).
#![forbid(unsafe_code)]

mod common;

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use common::{Client, Program, TestServer, settings};
use larder::settings::Verify;

fn value(length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| b'a' + ((at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) % 26) as u8)
        .collect()
}

fn root(value: &[u8]) -> String {
    blake3::hash(value).to_hex().to_string()
}

fn set(client: &mut Client<TcpStream>, key: &str, value: &[u8]) {
    client.send(format!("set {key} 0 0 {}\r\n", value.len()));
    client.send(value);
    client.ask("\r\n", "STORED\r\n");
}

#[test]
fn the_root_of_a_value_is_its_blake3_hash() {
    let server = TestServer::start();
    let mut client = server.connect();
    for length in [
        0, 1, 4096, 5000, 20_000, 65_535, 65_536, 65_537, 131_072, 400_000, 1_000_000,
    ] {
        let value = value(length);
        set(&mut client, "key", &value);
        let root = root(&value);
        client.ask("mg key H\r\n", format!("HD H{root}\r\n"));
        client.ask("mg key s H t\r\n", format!("HD s{length} H{root} t-1\r\n"));
        // Who has the same value is not sent it.
        client.ask(format!("mg key v H{root}\r\n"), format!("HD H{root}\r\n"));
        let upper = root.to_uppercase();
        client.ask(format!("mg key v H{upper}\r\n"), format!("HD H{root}\r\n"));
        let other = "0".repeat(64);
        client.send(format!("mg key v H{other}\r\n"));
        client.expect(format!("VA {length} H{root}\r\n"));
        client.expect(&value);
        client.expect("\r\n");
    }
    client.ask("mg none v H\r\n", "EN\r\n");
    client.ask(
        "mg key H12\r\n",
        "CLIENT_ERROR bad token in command line format\r\n",
    );
    client.ask("md key H\r\n", "CLIENT_ERROR invalid flag\r\n");
    client.ask("ms key 1 H\r\nx\r\n", "CLIENT_ERROR invalid flag\r\n");
}

#[test]
fn the_root_follows_what_is_added() {
    let server = TestServer::start();
    let mut client = server.connect();
    for begin in [60_000, 65_536, 70_000, 200_000, 4 * 65_536] {
        let mut whole = value(begin);
        set(&mut client, "key", &whole);
        for (command, length) in [
            ("append", 1),
            ("prepend", 10),
            ("append", 30_000),
            ("prepend", 70_000),
            ("append", 140_000),
        ] {
            let more = value(length);
            client.send(format!("{command} key 0 0 {length}\r\n"));
            client.send(&more);
            client.ask("\r\n", "STORED\r\n");
            match command {
                "append" => whole.extend_from_slice(&more),
                _ => whole.splice(0..0, more).for_each(drop),
            }
            client.ask("mg key H\r\n", format!("HD H{}\r\n", root(&whole)));
        }
        client.send("get key\r\n");
        client.expect(format!("VALUE key 0 {}\r\n", whole.len()));
        client.expect(&whole);
        client.expect("\r\nEND\r\n");
    }
}

#[test]
fn without_verification_long_values_have_no_root() {
    let mut settings = settings();
    settings.store.verify = Verify::Off;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    let long = value(65_537);
    set(&mut client, "long", &long);
    client.ask("mg long H s\r\n", "HD s65537\r\n");
    set(&mut client, "short", b"x");
    client.ask("mg short H\r\n", format!("HD H{}\r\n", root(b"x")));
}

/// A server whose memory is a file, where bits can be made to flip.
struct Flippable {
    folder: tempfile::TempDir,
    server: Program,
}

impl Flippable {
    fn start(more: &[&str]) -> Flippable {
        let folder = tempfile::tempdir().unwrap();
        let server = Flippable::server(folder.path(), more);
        Flippable { folder, server }
    }

    fn server(folder: &Path, more: &[&str]) -> Program {
        let file = folder.join("memory");
        let file = file.to_str().unwrap();
        let arguments = ["-m", "8", "-p", "-1", "-l", "127.0.0.1", "-e", file];
        Program::start(&[&arguments, more].concat())
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("memory")
    }

    /// Changes one bit of what follows these bytes in memory.
    fn flip_behind(&self, bytes: &[u8]) {
        let memory = std::fs::read(self.file()).unwrap();
        let found = memory.windows(bytes.len()).position(|part| part == bytes);
        let at = found.expect("it is in memory") + bytes.len();
        let file = File::options().write(true).open(self.file()).unwrap();
        file.write_all_at(&[memory[at] ^ 4], at as u64).unwrap();
    }
}

/// Longer than a segment, with a mark near its end by which it is found.
fn marked(mark: &str) -> Vec<u8> {
    let mut value = value(300_000);
    let at = value.len() - 100;
    value[at..at + mark.len()].copy_from_slice(mark.as_bytes());
    value
}

#[test]
fn a_flipped_bit_is_noticed_by_the_reader() {
    let memory = Flippable::start(&["-o", "verify=read,scrub_rate=0"]);
    let mut client = memory.server.connect();
    set(&mut client, "good", &marked("<the good one>"));
    set(&mut client, "bad", &marked("<the bad one>"));
    client.ask("mg bad s\r\n", "HD s300000\r\n");
    memory.flip_behind(b"<the bad one>");
    for request in ["get bad\r\n", "gat 0 bad\r\n"] {
        client.ask(request, "END\r\n");
    }
    client.ask("mg bad v\r\n", "EN\r\n");
    assert_eq!(client.stat_of("larder", "values_damaged"), "1");
    assert_eq!(client.stat("curr_items"), "1");
    client.send("get good\r\n");
    client.expect("VALUE good 0 300000\r\n");
    client.expect(marked("<the good one>"));
    client.expect("\r\nEND\r\n");
    set(&mut client, "bad", &marked("<another one>"));
    memory.flip_behind(b"<another one>");
    client.ask("mg bad v\r\n", "EN\r\n");
    assert_eq!(client.stat_of("larder", "values_damaged"), "2");
}

#[test]
fn a_flipped_bit_is_noticed_by_the_scrubber() {
    let memory = Flippable::start(&["-o", "scrub_rate=1000"]);
    let mut client = memory.server.connect();
    set(&mut client, "bad", &marked("<the bad one>"));
    memory.flip_behind(b"<the bad one>");
    set(&mut client, "good", &marked("<the good one>"));
    for _ in 0..300 {
        if client.stat_of("larder", "values_damaged") == "1" {
            break;
        }
        sleep(Duration::from_millis(100));
    }
    assert_eq!(client.stat_of("larder", "values_damaged"), "1");
    client.ask("mg bad\r\n", "EN\r\n");
    client.ask("mg good s\r\n", "HD s300000\r\n");
    assert_eq!(client.stat("curr_items"), "1");
}

#[test]
fn digests_outlive_a_restart_and_a_crash() {
    let more = &["-o", "crash_restart,verify=read"];
    let mut memory = Flippable::start(more);
    let mut client = memory.server.connect();
    let (first, second) = (marked("<first>"), marked("<second>"));
    set(&mut client, "first", &first);
    set(&mut client, "second", &second);
    for signal in ["USR1", "KILL"] {
        memory.server.signal(signal);
        memory.server.wait();
        memory.server = Flippable::server(memory.folder.path(), more);
        let mut client = memory.server.connect();
        client.ask("mg first H\r\n", format!("HD H{}\r\n", root(&first)));
        client.ask("mg second H\r\n", format!("HD H{}\r\n", root(&second)));
    }
    memory.flip_behind(b"<first>");
    let mut client = memory.server.connect();
    client.ask("mg first v\r\n", "EN\r\n");
    set(&mut client, "first", &second);
    client.ask("mg first H\r\n", format!("HD H{}\r\n", root(&second)));
}
