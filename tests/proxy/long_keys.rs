//! Keys that are longer than memcached's: what the servers take (`-o max_key_size`), the proxy sends on.

use larder::settings::proxy::Mode;

use crate::common::binary::Packet;
use crate::common::{self, TestServer};
use crate::fleet;

const MEBI: usize = 1 << 20;

struct Fleet {
    servers: Vec<TestServer>,
    proxy: TestServer,
}

fn start(key_max: usize, pool: &str) -> Fleet {
    let mut settings = common::settings();
    settings.store.key_max = key_max;
    settings.store.item_size_max = 4 * MEBI;
    let server = || TestServer::start_with(settings.clone());
    let servers: Vec<TestServer> = (0..3).map(|_| server()).collect();
    let proxy = fleet::configuration(&fleet::addresses(&servers), pool);
    settings.proxy = Some(Mode { proxy, file: None });
    let proxy = TestServer::start_with(settings);
    Fleet { servers, proxy }
}

/// Keys of one length are the same but for their last bytes.
fn key(length: usize, number: usize) -> String {
    let end = format!("{number:04}");
    "k".repeat(length - end.len()) + &end
}

#[test]
fn every_command_takes_a_long_key() {
    let fleet = start(MEBI, "");
    let mut client = fleet.proxy.connect();
    for length in [250, 251, 1899, 2050, 16_385, 70_000, 300_000, MEBI] {
        let [a, b, c] = [1, 2, 3].map(|n| key(length, n));
        for key in [&a, &b, &c] {
            client.ask(format!("set {key} 7 0 3\r\nabc\r\n"), "STORED\r\n");
        }
        let value = |key: &str| format!("VALUE {key} 7 3\r\nabc\r\n");
        client.ask(format!("get {b}\r\n"), value(&b) + "END\r\n");
        let all = value(&c) + &value(&a) + &value(&b) + "END\r\n";
        client.ask(format!("get {c} nowhere {a} {b}\r\n"), &all);
        client.ask(format!("gat 0 {c} nowhere {a} {b}\r\n"), &all);
        client.ask(
            format!("append {a} 0 0 1 noreply\r\nd\r\nget {a}\r\n"),
            format!("VALUE {a} 7 4\r\nabcd\r\nEND\r\n"),
        );
        client.ask(format!("touch {a} 0\r\n"), "TOUCHED\r\n");
        client.ask(format!("ms {b} 2 q\r\n41\r\nincr {b} 1\r\n"), "42\r\n");
        client.ask(format!("mg {b} k v\r\n"), format!("VA 2 k{b}\r\n42\r\n"));
        client.ask(
            format!("ma {b} k q\r\nmd {b} k\r\n"),
            format!("HD k{b}\r\n"),
        );
        client.ask(format!("delete {b}\r\n"), "NOT_FOUND\r\n");
        client.send(format!("me {a}\r\n"));
        assert!(
            client.line().starts_with(&format!("ME {a} exp=")),
            "{length}"
        );
    }
    // Bytes that text has not, both ways.
    let bytes: Vec<u8> = (0..60_000_u32).map(|n| (n * 7) as u8).collect();
    let encoded: String = base64(&bytes);
    client.ask(
        format!("ms {encoded} 2 b k\r\nhi\r\n"),
        format!("HD k{encoded} b\r\n"),
    );
    let mut binary = fleet.proxy.connect();
    let packet = |opcode| Packet {
        opcode,
        key: &bytes,
        ..Packet::default()
    };
    let got = binary.call(packet(0x0c));
    assert_eq!((got.status, got.value), (0, b"hi".to_vec()));
    assert!(got.key == bytes);
    assert_eq!(binary.call(packet(0x04)).status, 0);
    assert_eq!(binary.call(packet(0x00)).status, 1);
}

/// As a server says it, to the byte.
#[test]
fn a_longer_key_is_the_error_that_it_always_was() {
    for key_max in [250, 251, 5000] {
        let fleet = start(key_max, "");
        let (most, over) = (key(key_max, 1), key(key_max + 1, 1));
        let encoded = base64(&vec![b'x'; key_max / 4 * 3 + 3]);
        let mut clients = [fleet.servers[0].connect(), fleet.proxy.connect()];
        for request in [
            format!("set {most} 0 0 1\r\nx\r\n"),
            format!("set {over} 0 0 5\r\nhello\r\n"),
            format!("set {over} 0 0 5 noreply\r\nhello\r\n"),
            format!("ms {over} 5\r\nhello\r\n"),
            format!("get {over}\r\n"),
            format!("get a {over} {most}\r\n"),
            format!("gat 0 {over}\r\n"),
            format!("delete {over}\r\n"),
            format!("incr {over} 1\r\n"),
            format!("touch {over} 1\r\n"),
            format!("mg {over} v\r\n"),
            format!("mg {encoded} v b\r\n"),
            format!("md {over}\r\n"),
            format!("me {over}\r\n"),
        ] {
            let [server, proxy] = clients.each_mut().map(|client| {
                client.send(format!("{request}mn\r\n"));
                let lines = std::iter::from_fn(|| Some(client.line()).filter(|line| line != "MN"));
                lines.collect::<Vec<String>>()
            });
            assert_eq!(server, proxy, "{request}");
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    let text = larder::protocol::base64::encoded(bytes).flatten().collect();
    String::from_utf8(text).unwrap()
}
