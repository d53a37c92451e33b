//! The Unix socket: `-s`, `-a`.

mod common;

use std::fs;
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;

use common::{Client, TestServer, settings};

#[test]
fn a_unix_socket_serves_as_tcp_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("larder");
    let mut settings = settings();
    settings.listen.unix_socket = Some(path.clone());
    settings.listen.unix_mask = 0o600;
    let server = TestServer::start_with(settings);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let mut client = Client::local(&path);
    client.ask(
        "set a 0 0 1\r\nx\r\nget a\r\n",
        "STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n",
    );
    let value = "v".repeat(900_000);
    client.ask(format!("set big 0 0 900000\r\n{value}\r\n"), "STORED\r\n");
    client.send("get big\r\n".repeat(10));
    client.stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    client.stream.read_to_end(&mut answer).unwrap();
    let one = format!("VALUE big 0 900000\r\n{value}\r\nEND\r\n");
    assert!(answer == one.repeat(10).as_bytes());
    drop(server);
}

#[test]
fn a_socket_left_behind_is_replaced_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("larder");
    let mut settings = settings();
    settings.listen.unix_socket = Some(path.clone());
    drop(TestServer::start_with(settings.clone()));
    assert!(path.exists(), "as memcached, it leaves its socket behind");
    let server = TestServer::start_with(settings.clone());
    assert_eq!(server.addresses(), [], "nothing but the Unix socket");
    Client::local(&path).ask("version\r\n", "VERSION 1.6.45\r\n");
    drop(server);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    let Err(failure) = larder::server::Server::bind(settings) else {
        panic!("a file is no socket");
    };
    assert_eq!(failure.code, 71);
    assert!(
        failure.message.contains("Address already in use"),
        "{failure}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn binary_and_large_values_come_in_as_well() {
    use common::binary::Packet;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("larder");
    let mut settings = settings();
    settings.listen.unix_socket = Some(path.clone());
    let _server = TestServer::start_with(settings);
    let value = vec![b'v'; 500_000];
    let mut client = Client::local(&path);
    let set = Packet {
        opcode: 1,
        extras: &[0; 8],
        key: b"k",
        value: &value,
        ..Packet::default()
    };
    assert_eq!(client.call(set).status, 0);
    let get = Packet {
        opcode: 0,
        key: b"k",
        ..Packet::default()
    };
    assert!(client.call(get).value == value);
}
