//! Who may come in: `-Y`, SASL, every dialect and listener, and files that change.

mod common;

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use common::binary::Packet;
use common::{Client, Program, TestServer, program, settings};
use larder::settings::{Endpoint, EndpointTls, Protocol, Settings};

const OK: u16 = 0x00;
const INVALID: u16 = 0x04;
const AUTH: u16 = 0x20;
const CONTINUE: u16 = 0x21;

/// Files of users.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        Files {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A server for the text protocol.
    fn text(&self) -> Settings {
        let mut settings = settings();
        settings.security.auth_file = Some(self.write("users", "foo:bar\nme:two words\n"));
        settings.listen.protocol = Protocol::Ascii;
        settings
    }

    /// A server for the binary protocol.
    fn sasl(&self) -> Settings {
        let mut settings = settings();
        let database = "joe@example:secret\nann:pass\n";
        settings.security.sasl_password_file = Some(self.write("database", database));
        settings.security.sasl = true;
        settings.listen.protocol = Protocol::Binary;
        settings
    }
}

fn packet<'a>(opcode: u8, key: &'a str, value: &'a [u8]) -> Packet<'a> {
    Packet {
        opcode,
        key: key.as_bytes(),
        value,
        opaque: 9,
        ..Packet::default()
    }
}

/// Status and text of what an attempt to come in is answered.
fn plain(client: &mut Client<TcpStream>, value: &[u8]) -> (u16, String) {
    let answer = client.call(packet(0x21, "PLAIN", value));
    (answer.status, String::from_utf8(answer.value).unwrap())
}

fn authenticated() -> (u16, String) {
    (OK, "Authenticated".to_owned())
}

fn refused() -> (u16, String) {
    (AUTH, "Auth failure.".to_owned())
}

#[test]
fn a_set_brings_the_credentials() {
    let files = Files::new();
    let server = TestServer::start_with(files.text());
    let mut client = server.connect();
    for request in [
        "get a\r\n",
        "version\r\n",
        "mn    \r\n",
        "mg a v\r\n",
        "stats\r\n",
        "set a\r\n",
        "shutdown\r\n",
        "set a 0 0 x\r\n",
        "watch mutations\r\n",
    ] {
        client.ask(request, "CLIENT_ERROR unauthenticated\r\n");
    }
    for (value, answer) in [
        ("foo baz", "CLIENT_ERROR authentication failure\r\n"),
        ("foo bar2", "CLIENT_ERROR authentication failure\r\n"),
        ("fo bar", "CLIENT_ERROR authentication failure\r\n"),
        (" ", "CLIENT_ERROR authentication failure\r\n"),
        ("foobar", "CLIENT_ERROR bad authentication token format\r\n"),
        ("", "CLIENT_ERROR bad authentication token format\r\n"),
    ] {
        let length = value.len();
        client.ask(format!("set x 0 0 {length}\r\n{value}\r\n"), answer);
        client.ask("get a\r\n", "CLIENT_ERROR unauthenticated\r\n");
    }
    // The value ends where it said it would, whatever stands there.
    client.ask(
        "set x 0 0 7\r\nfoo barxy",
        "CLIENT_ERROR bad command line termination\r\n",
    );
    client.ask(
        "set x 0 0 16385\r\n",
        "CLIENT_ERROR auth token too long\r\n",
    );
    client.ask(
        "set x 0 0 2147483648\r\n",
        "CLIENT_ERROR auth token too long\r\n",
    );
    // Nobody is told by silence.
    client.ask(
        "set x 0 0 7 noreply\r\nfoo baz\r\n",
        "CLIENT_ERROR authentication failure\r\n",
    );
    client.ask("set x 0 0 7\r\nfoo bar\r\n", "STORED\r\n");
    client.ask("get x\r\n", "END\r\n");
    client.ask("set x 0 0 7\r\nfoo bar\r\n", "STORED\r\n");
    client.ask("get x\r\n", "VALUE x 0 7\r\nfoo bar\r\nEND\r\n");
    assert_eq!(client.stat("auth_cmds"), "6");
    assert_eq!(client.stat("auth_errors"), "5");
    let mut other = server.connect();
    other.ask(
        "set any 1 2 12\r\nme two words\r\nget x\r\n",
        "STORED\r\nVALUE x 0 7\r\nfoo bar\r\nEND\r\n",
    );
}

#[test]
fn strangers_who_send_no_command_are_hung_up_on() {
    let files = Files::new();
    let server = TestServer::start_with(files.text());
    for said in [
        "\r\n".to_owned(),
        "abc\r\n".to_owned(),
        "\n".repeat(5000),
        "s".repeat(3000),
    ] {
        let mut client = server.connect();
        client.send(said);
        client.expect_end();
    }
    let mut client = server.connect();
    // A long line is one as long as its end is there.
    client.ask(
        format!("{}\r\n", "s".repeat(3000)),
        "CLIENT_ERROR unauthenticated\r\n",
    );
}

#[test]
fn binary_is_no_way_around() {
    let files = Files::new();
    let server = TestServer::start_with(files.text());
    let mut client = server.connect();
    client.send(packet(0x00, "a", b"").bytes());
    client.send("\r\n");
    assert_eq!(client.line(), "CLIENT_ERROR unauthenticated");
    // Even on a listener that would let it in.
    let mut settings = files.text();
    settings.listen.protocol = Protocol::Negotiate;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    assert_eq!(client.call(packet(0x00, "a", b"")).status, AUTH);
    client.expect_end();
    let mut client = server.connect();
    client.ask("get a\r\n", "CLIENT_ERROR unauthenticated\r\n");
}

#[test]
fn every_listener_asks() {
    let files = Files::new();
    let endpoint = |protocol| Endpoint {
        host: Some("127.0.0.1".to_owned()),
        port: Some(0),
        protocol,
        tls: EndpointTls::Default,
        tag: None,
        ack: None,
    };
    let mut settings = files.text();
    settings.listen.endpoints = vec![
        endpoint(None),
        endpoint(Some(Protocol::Ascii)),
        endpoint(Some(Protocol::Negotiate)),
    ];
    let server = TestServer::start_with(settings);
    for address in server.addresses() {
        let mut client = Client::to(*address);
        client.ask("get a\r\n", "CLIENT_ERROR unauthenticated\r\n");
        client.ask("set x 0 0 7\r\nfoo bar\r\nget a\r\n", "STORED\r\nEND\r\n");
    }
    let mut settings = files.text();
    let path = files.folder.path().join("socket");
    settings.listen.unix_socket = Some(path.clone());
    let _server = TestServer::start_with(settings);
    let mut client = Client::local(&path);
    client.ask("get a\r\n", "CLIENT_ERROR unauthenticated\r\n");
    client.ask("set x 0 0 7\r\nfoo bar\r\nget a\r\n", "STORED\r\nEND\r\n");
}

#[test]
fn plain_is_the_mechanism() {
    let files = Files::new();
    let server = TestServer::start_with(files.sasl());
    let mut client = server.connect();
    let list = client.call(packet(0x20, "", b""));
    assert_eq!((list.status, &list.value[..]), (OK, &b"PLAIN"[..]));
    assert_eq!(client.call(packet(0x0b, "", b"")).value, b"1.6.45");
    for wrong in [
        &b"\0joe\0wrong"[..],
        b"\0joe@other\0secret",
        b"\0ann\0secret",
        b"\0\0",
        b"joe\0secret",
        b"other\0joe\0secret",
        b"\0joe\0secre",
        b"\0joe\0secret\0",
    ] {
        assert_eq!(plain(&mut client, wrong), refused(), "{wrong:?}");
    }
    for right in [
        &b"\0joe\0secret"[..],
        b"\0joe@example\0secret",
        b"joe\0joe\0secret",
        b"\0ann\0pass",
    ] {
        let mut client = server.connect();
        assert_eq!(plain(&mut client, right), authenticated(), "{right:?}");
        assert_eq!(client.call(packet(0x04, "a", b"")).status, 1);
    }
    let other = client.call(packet(0x21, "CRAM-MD5", b"x"));
    assert_eq!(other.status, AUTH);
    let long = "M".repeat(33);
    assert_eq!(client.call(packet(0x21, &long, b"x")).status, INVALID);
    let list = client.call(packet(0x20, "", b""));
    assert_eq!(list.status, OK, "the connection is still there");
}

#[test]
fn strangers_get_nothing_in_binary() {
    let files = Files::new();
    let server = TestServer::start_with(files.sasl());
    let set = Packet {
        extras: &[0; 8],
        ..packet(0x01, "a", b"1")
    };
    let long = "k".repeat(300);
    for request in [
        packet(0x00, "a", b""),
        packet(0x09, "a", b""),
        set,
        packet(0x04, "a", b""),
        packet(0x07, "", b""),
        packet(0x08, "", b""),
        packet(0x0a, "", b""),
        packet(0x10, "", b""),
        packet(0x10, "settings", b""),
        // What is wrong with these is nothing for strangers.
        packet(0x00, "", b""),
        packet(0x00, &long, b""),
        packet(0x55, "a", b"1"),
    ] {
        let mut client = server.connect();
        client.send([request.bytes(), packet(0x0b, "", b"").bytes()].concat());
        let answer = client.answer();
        assert_eq!(
            (answer.status, &answer.value[..]),
            (AUTH, &b"Auth failure."[..]),
            "{request:?}"
        );
        assert_eq!((answer.opcode, answer.opaque), (request.opcode, 9));
        client.expect_end();
    }
    // A failure does not open the door, and closes one that was open.
    let mut client = server.connect();
    assert_eq!(plain(&mut client, b"\0joe\0secret"), authenticated());
    assert_eq!(client.call(set).status, OK);
    assert_eq!(plain(&mut client, b"\0joe\0wrong"), refused());
    assert_eq!(client.call(packet(0x00, "a", b"")).status, AUTH);
    client.expect_end();
    let mut client = server.connect();
    assert_eq!(plain(&mut client, b"\0joe\0secret"), authenticated());
    // All in one go: the second request is let in by the first.
    client.send(
        [
            packet(0x21, "PLAIN", b"\0ann\0pass").bytes(),
            packet(0x00, "a", b"").bytes(),
        ]
        .concat(),
    );
    assert_eq!(client.answer().status, OK);
    assert_eq!(client.answer().value, b"1");
}

#[test]
fn in_two_steps() {
    let files = Files::new();
    let server = TestServer::start_with(files.sasl());
    let mut client = server.connect();
    assert_eq!(
        client.call(packet(0x22, "PLAIN", b"\0joe\0secret")).status,
        AUTH,
        "nothing has begun"
    );
    let begun = client.call(packet(0x21, "PLAIN", b""));
    assert_eq!((begun.status, begun.value.len()), (CONTINUE, 0));
    assert_eq!(
        client.call(packet(0x22, "PLAIN", b"\0joe\0secret")).status,
        OK
    );
    assert_eq!(client.call(packet(0x00, "a", b"")).status, 1);
}

#[test]
fn credentials_beyond_measure_are_passed_over() {
    let files = Files::new();
    let server = TestServer::start_with(files.sasl());
    let mut client = server.connect();
    let value = vec![b'x'; 2 << 20];
    let answer = client.call(packet(0x21, "PLAIN", &value));
    assert_eq!(
        (answer.status, &answer.value[..]),
        (0x82, &b"Out of memory"[..])
    );
    assert_eq!(plain(&mut client, b"\0joe\0secret"), authenticated());
}

#[test]
fn text_is_no_way_around() {
    let files = Files::new();
    let server = TestServer::start_with(files.sasl());
    let mut client = server.connect();
    client.send("get a\r\n");
    client.expect_end();
}

#[test]
fn one_file_can_serve_both() {
    let files = Files::new();
    let mut settings = files.text();
    settings.security.sasl = true;
    settings.listen.protocol = Protocol::Negotiate;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    client.ask("get a\r\n", "CLIENT_ERROR unauthenticated\r\n");
    client.ask("set x 0 0 7\r\nfoo bar\r\nget a\r\n", "STORED\r\nEND\r\n");
    let mut client = server.connect();
    assert_eq!(plain(&mut client, b"\0foo\0baz"), refused());
    assert_eq!(plain(&mut client, b"\0foo\0bar"), authenticated());
    assert_eq!(client.call(packet(0x00, "a", b"")).status, 1);
}

#[test]
fn sighup_reads_the_files_again() {
    let files = Files::new();
    let users = files.write("users", "foo:bar\n");
    let database = files.write("database", "joe:secret\n");
    let server = {
        // Set for the program alone.
        let arguments = [
            "-p",
            "-1",
            "-l",
            "127.0.0.1",
            "-S",
            "-Y",
            users.to_str().unwrap(),
        ];
        Program::start_with(&arguments, |command| {
            command.env("MEMCACHED_SASL_PWDB", &database);
        })
    };
    let comes_in = |user: &str, password: &str| {
        let token = format!("{user} {password}");
        let mut client = server.connect();
        client.send(format!("set x 0 0 {}\r\n{token}\r\n", token.len()));
        let text = client.line() == "STORED";
        let mut client = server.connect();
        let value = format!("\0{user}\0{password}");
        (
            text,
            plain(&mut client, value.as_bytes()) == authenticated(),
        )
    };
    assert_eq!(comes_in("foo", "bar"), (true, true));
    assert_eq!(
        comes_in("joe", "secret"),
        (false, true),
        "SASL's users are no others"
    );
    let mut there = server.connect();
    there.ask("set x 0 0 7\r\nfoo bar\r\n", "STORED\r\n");

    files.write("users", "new:user\n");
    files.write("database", "ann:pass\n");
    let reload = || {
        let id = server.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-HUP", &id])
                .status()
                .unwrap()
                .success()
        );
    };
    reload();
    let since = Instant::now();
    while comes_in("new", "user") != (true, true) {
        assert!(since.elapsed() < Duration::from_secs(20), "not read again");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(comes_in("foo", "bar"), (false, false));
    assert_eq!(comes_in("joe", "secret"), (false, false));
    assert_eq!(comes_in("ann", "pass"), (false, true));
    there.ask("get a\r\n", "END\r\n");
    // A file that is wrong is not used.
    files.write("users", "nonsense\n");
    reload();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(comes_in("new", "user"), (true, true));
}

#[test]
fn options_that_would_open_another_door_are_refused() {
    let files = Files::new();
    let users = files.write("users", "foo:bar\n");
    let bad = files.write("bad", "foo\n");
    let (users, bad) = (users.to_str().unwrap(), bad.to_str().unwrap());
    for (arguments, code, message) in [
        (
            &["-Y", bad][..],
            1,
            "has a malformed entry. Should be 'user:password'",
        ),
        (
            &["-Y", "/nonexistent/users"],
            1,
            "Could not open authfile [/nonexistent/users] for reading, error ",
        ),
        (
            &["-Y", users, "-U", "11211"],
            64,
            "Cannot use UDP with ascii authentication enabled (-U 0 to disable)",
        ),
        (
            &["-Y", users, "-B", "binary"],
            64,
            "ERROR: You cannot allow the BINARY protocol while using ascii authentication tokens.",
        ),
        (
            &["-Y", users, "-l", "proto[binary]:127.0.0.1"],
            71,
            "Cannot use binary protocol when ascii authentication enabled",
        ),
        (
            &["-S", "-B", "ascii"],
            64,
            "ERROR: You cannot allow the ASCII protocol while using SASL.",
        ),
        (
            &["-S", "-U", "11211"],
            64,
            "ERROR: Cannot enable UDP while using binary SASL authentication.",
        ),
        (
            &["-S", "-l", "proto[ascii]:127.0.0.1"],
            71,
            "Cannot use ascii protocol when SASL authentication enabled",
        ),
    ] {
        let output = program(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(message), "{arguments:?}: {said}");
    }
}
