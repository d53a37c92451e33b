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
