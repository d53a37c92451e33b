//! Servers that take one dialect alone: how a proxy finds out whether they are alive.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::common::binary::Packet;
use crate::common::{self, Client, TestServer};
use crate::failing::{at, wait_for_state};
use crate::fleet;
use crate::misbehaviour::Mock;

const HEALTH: &str = "timeout = \"5s\"\n\
    health = { probe = \"20ms\", half_open = \"50ms\", flaps = 1000 }\n";

/// What a server with `-B binary` has been asked.
#[derive(Default)]
struct Asked {
    /// Connections that did not begin in binary.
    strange: AtomicUsize,
    probes: AtomicUsize,
    /// It hangs up on everybody.
    away: AtomicBool,
}

/// Has no key, and hangs up on text.
fn play(asked: &Asked, mut stream: TcpStream) {
    let mut header = [0; 24];
    while stream.read_exact(&mut header[..1]).is_ok() && !asked.away.load(Relaxed) {
        if header[0] != 0x80 {
            asked.strange.fetch_add(1, Relaxed);
            return;
        }
        if stream.read_exact(&mut header[1..]).is_err() {
            return;
        }
        let length = u32::from_be_bytes(header[8..12].try_into().unwrap());
        let mut body = vec![0; length as usize];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let mut answer = header;
        answer[0] = 0x81;
        answer[2..12].fill(0);
        match header[1] {
            0x0a => {
                asked.probes.fetch_add(1, Relaxed);
            }
            0x00 => answer[7] = 1,
            _ => {}
        }
        if stream.write_all(&answer).is_err() {
            return;
        }
    }
}

fn get(client: &mut Client<TcpStream>) -> u16 {
    let packet = Packet {
        opcode: 0x00,
        key: b"key",
        ..Packet::default()
    };
    client.call(packet).status
}

fn wait_for_probes(asked: &Asked, more: usize) {
    let (before, since) = (asked.probes.load(Relaxed), Instant::now());
    while asked.probes.load(Relaxed) < before + more {
        assert!(since.elapsed() < Duration::from_secs(20), "not probed");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Nobody has told the proxy: it is probed in binary and is up all the time, goes down when it answers nothing,
/// and comes back. Clients that ask it in text do not take it from the others.
#[test]
fn one_that_takes_binary_alone() {
    for credentials in [false, true] {
        let asked = Arc::<Asked>::default();
        let its = asked.clone();
        let mock = Mock::start(move |stream| play(&its, stream));
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("password");
        fs::write(&password, "secret\n").unwrap();
        let auth = match credentials {
            true => format!("auth = {{ user = \"me\", password_file = {password:?} }}\n"),
            false => String::new(),
        };
        let pool = format!("{HEALTH}{auth}");
        let proxy = fleet::proxy(std::slice::from_ref(&mock.address), &pool);
        let name = |what: &str| format!("all:{}:{what}", mock.address);
        let stat = |what: &str| proxy.connect().stat_of("servers", &name(what));
        wait_for_probes(&asked, 20);
        assert_eq!(
            (stat("state").as_str(), stat("state_changes").as_str()),
            ("up", "0")
        );
        assert_eq!(
            asked.strange.load(Relaxed),
            1,
            "it has been tried in text once"
        );
        let mut client = proxy.connect();
        assert_eq!(get(&mut client), 1);
        for _ in 0..10 {
            let mut text = proxy.connect();
            text.send("get key and more that fill a header\r\n");
            let said = text.line();
            assert!(said.starts_with("SERVER_ERROR "), "{said}");
        }
        assert_eq!(get(&mut client), 1);
        assert_eq!(stat("state_changes"), "0");
        // It goes, and comes back.
        asked.away.store(true, Relaxed);
        let address = mock.address.parse().unwrap();
        wait_for_state(&proxy, address, "down");
        asked.away.store(false, Relaxed);
        wait_for_state(&proxy, address, "up");
        assert_eq!(get(&mut client), 1);
    }
}

/// One with `-S`: it is probed as clients' requests enter it, and so are the deletes sent that waited for it.
#[test]
fn one_with_sasl_that_goes_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("users"), "me:secret\n").unwrap();
    fs::write(path("password"), "secret\n").unwrap();
    let settings = || {
        let mut settings = common::settings();
        settings.security.sasl = true;
        settings.security.sasl_password_file = Some(path("users"));
        settings
    };
    let first = TestServer::start_with(settings());
    let other = TestServer::start_with(settings());
    let place = first.address();
    let names = [place.to_string(), other.address().to_string()];
    let auth = format!(
        "auth = {{ user = \"me\", password_file = {:?} }}\nfailover = 1\n",
        path("password")
    );
    let proxy = fleet::proxy(&names, &format!("{HEALTH}{auth}"));
    let mut client = proxy.connect();
    let mut set = |key: &str| {
        let packet = Packet {
            opcode: 0x01,
            extras: &[0; 8],
            key: key.as_bytes(),
            value: b"x",
            ..Packet::default()
        };
        client.call(packet).status
    };
    let keys: Vec<String> = (0..40).map(|n| format!("key{n}")).collect();
    for key in &keys {
        assert_eq!(set(key), 0, "{key}");
    }
    drop(first);
    wait_for_state(&proxy, place, "down");
    for key in &keys {
        assert_eq!(set(key), 0, "{key}");
    }
    let _first = at(settings(), place);
    wait_for_state(&proxy, place, "up");
    // What was written elsewhere meanwhile has been deleted where it belongs, in binary.
    let name = format!("all:{place}:deletes_sent");
    assert_ne!(proxy.connect().stat_of("servers", &name), "0");
    for key in &keys {
        assert_eq!(set(key), 0, "{key}");
    }
}
