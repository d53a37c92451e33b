//! What one client can make the server hold. The memory of the whole process is looked at, so these
//! tests have a file, and by a lock the process, to themselves.

mod common;

use std::io::{Read, Write};
use std::sync::Mutex;
use std::thread;

use common::TestServer;

static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_request_for_many_keys_streams() {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let server = TestServer::start();
    let mut client = server.connect();
    let value = "v".repeat(1000);
    client.ask(format!("set hit 0 0 1000\r\n{value}\r\n"), "STORED\r\n");
    let before = resident();
    let mut reader = client.stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        client.send("get");
        for start in 0..100 {
            let keys: String = (0..1000)
                .map(|n| format!(" key_{}", start * 1000 + n))
                .collect();
            client.send(keys);
            client.send(" hit");
        }
        client.send("\r\n");
        client
    });
    let one = format!("VALUE hit 0 1000\r\n{value}\r\n");
    let mut answer = vec![0; 100 * one.len() + 5];
    reader.read_exact(&mut answer).unwrap();
    let grown = resident().saturating_sub(before);
    assert!(answer == [one.repeat(100).as_bytes(), b"END\r\n"].concat());
    assert!(grown < 4 << 20, "{grown} bytes for one request");
    let mut client = writer.join().unwrap();
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
}

#[test]
fn a_client_that_never_reads_is_not_read_from() {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let server = TestServer::start();
    let mut other = server.connect();
    let length = 900_000;
    other.ask(
        format!("set big 0 0 {length}\r\n{}\r\n", "v".repeat(length)),
        "STORED\r\n",
    );
    other.ask(
        format!("set mid 0 0 4000\r\n{}\r\n", "v".repeat(4000)),
        "STORED\r\n",
    );
    for request in ["get big\r\n", "get mid\r\n"] {
        let before = resident();
        let mut client = server.connect();
        client.stream.set_nonblocking(true).unwrap();
        let requests = request.repeat(1000);
        let mut sent = 0;
        // Much more than all buffers hold; the server has to push back long before the end.
        while sent < 64 << 20 {
            match client.stream.write(requests.as_bytes()) {
                Ok(n) => sent += n,
                Err(_) => {
                    // Others are served meanwhile.
                    other.ask("version\r\n", "VERSION 1.6.45\r\n");
                    match client.stream.write(requests.as_bytes()) {
                        Ok(n) => sent += n,
                        Err(_) => break,
                    }
                }
            }
        }
        assert!(sent < 64 << 20, "all was read");
        let grown = resident().saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} bytes held for {request:?}");
    }
}

#[test]
fn idle_connections_hold_no_buffers() {
    let _alone = ALONE.lock().unwrap_or_else(|broken| broken.into_inner());
    let server = TestServer::start();
    let talk = |n: usize| {
        let mut clients: Vec<_> = (0..n).map(|_| server.connect()).collect();
        for client in &mut clients {
            let value = "x".repeat(3000);
            client.ask(format!("set a 0 0 3000\r\n{value}\r\n"), "STORED\r\n");
            client.ask("get a\r\n", format!("VALUE a 0 3000\r\n{value}\r\nEND\r\n"));
        }
        clients
    };
    drop(talk(10));
    let before = resident();
    let clients = talk(400);
    let each = resident().saturating_sub(before) / clients.len();
    assert!(each < 2048, "{each} bytes for each client");
}

/// Bytes of memory this process, in which the server runs, has in use.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes << 10
}
