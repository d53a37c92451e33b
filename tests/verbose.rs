//! `-v` and what follows it: what is said on standard error.

mod common;

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};

use common::binary::Packet;
use common::{Client, Program};

/// Runs a server with these options, does what `talk` says, and returns what it has said.
fn said(arguments: &[&str], talk: impl FnOnce(&Program)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let log = File::create(&path).unwrap();
    let all = [&["-p", "-1", "-l", "127.0.0.1"], arguments].concat();
    let mut server = Program::start_with(&all, |command| {
        command.stderr(Stdio::from(log));
    });
    talk(&server);
    let id = server.id().to_string();
    assert!(Command::new("kill").arg(&id).status().unwrap().success());
    assert_eq!(server.wait(), Some(0));
    let mut text = String::new();
    File::open(&path)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text
}

/// What a client asks and is answered, with its number as `N`.
fn lines(said: &str) -> Vec<String> {
    let line = said
        .lines()
        .find(|line| line.contains("new auto-negotiating client connection"));
    let number = line.expect("the connection")[1..]
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    said.lines()
        .filter_map(|line| {
            let rest = line.trim_start_matches(['<', '>']);
            let rest = rest.strip_prefix(&number)?;
            let sign = if line.starts_with(['<', '>']) {
                &line[..1]
            } else {
                ""
            };
            Some(format!("{sign}N{rest}"))
        })
        .collect()
}

#[test]
fn without_it_nothing_is_said() {
    let said = said(&[], |server| {
        server
            .connect()
            .ask("get a\r\nbogus\r\n", "END\r\nERROR\r\n");
    });
    assert_eq!(said, "");
}

#[test]
fn with_v_the_end_is_said() {
    let said = said(&["-v"], |server| {
        // From here on it heeds signals.
        server.connect().ask("version\r\n", "VERSION 1.6.45\r\n");
    });
    assert_eq!(said, "Exiting normally\n");
}

#[test]
fn with_vv_what_clients_ask_is_said() {
    let said = said(&["-vv"], |server| {
        let mut client = server.connect();
        client.ask("set a 0 0 3\r\nabc\r\n", "STORED\r\n");
        client.ask("get a b\r\n", "VALUE a 0 3\r\nabc\r\nEND\r\n");
        client.ask("get b\x1b[2J\r\n", "END\r\n");
        client.ask("bogus\r\n", "ERROR\r\n");
        client.send("quit\r\n");
        client.expect_end();
    });
    assert!(
        said.starts_with("slab class   1: chunk size        96 perslab   10922\n"),
        "{said}"
    );
    assert!(
        said.contains(" server listening (auto-negotiate)\n"),
        "{said}"
    );
    assert_eq!(
        lines(&said),
        [
            "<N new auto-negotiating client connection",
            "N: Client using the ascii protocol",
            "<N set a 0 0 3",
            ">N STORED",
            "<N get a b",
            ">N sending key a",
            ">N END",
            "<N get b\\x1b[2J",
            ">N END",
            "<N bogus",
            ">N ERROR",
            "<N quit",
            "<N connection closed.",
        ]
    );
}

#[test]
fn binary_requests_are_told_as_well() {
    let said = said(&["-vv"], |server| {
        let mut client = server.connect();
        let get = Packet {
            opcode: 0,
            key: b"a\nb",
            ..Packet::default()
        };
        assert_eq!(client.call(get).status, 1);
        let quit = Packet {
            opcode: 0x17,
            ..Packet::default()
        };
        client.send(quit.bytes());
        client.expect_end();
    });
    assert_eq!(
        lines(&said)[1..],
        [
            "N: Client using the binary protocol",
            "<N GET a\\x0ab",
            ">N Writing an error: Not found",
            "<N QUIT ",
            "<N connection closed.",
        ]
    );
}

#[test]
fn verbosity_can_be_changed_while_it_runs() {
    let said = said(&[], |server| {
        let mut client = server.connect();
        client.ask("get quiet\r\nverbosity 2\r\n", "END\r\nOK\r\n");
        client.ask("get loud\r\n", "END\r\n");
        client.ask("verbosity 0\r\n", "OK\r\n");
        client.ask("get quiet\r\n", "END\r\n");
        let mut other = Client::to(([127, 0, 0, 1], server.port()).into());
        other.ask("get quiet\r\n", "END\r\n");
    });
    assert!(said.contains(" get loud\n"), "{said}");
    assert!(!said.contains("quiet"), "{said}");
}
