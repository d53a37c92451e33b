//! Keys that everybody asks for.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use larder::settings::proxy::{Mode, parse};

use crate::common::binary::Packet;
use crate::common::{self, TestServer};
use crate::fleet;

#[test]
fn hot_keys_are_answered_by_the_proxy() {
    let server = TestServer::start();
    let name = fleet::addresses(std::slice::from_ref(&server));
    let text = format!(
        "hot_keys = {{ reads_per_second = 50, cache = \"30s\" }}\n[pools.all]\nservers = {name:?}\ntimeout = \"20s\"\n"
    );
    let mut settings = common::settings();
    settings.server.threads = 1;
    settings.proxy = Some(Mode {
        proxy: parse(&text).unwrap(),
        file: None,
    });
    let proxy = TestServer::start_with(settings);
    let mut client = proxy.connect();
    client.ask("set hot 5 0 3\r\none\r\n", "STORED\r\n");
    for _ in 0..20 {
        client.ask(
            "get hot\r\n".repeat(100),
            "VALUE hot 5 3\r\none\r\nEND\r\n".repeat(100),
        );
        client.ask(
            "get hot cold hot\r\n",
            "VALUE hot 5 3\r\none\r\nVALUE hot 5 3\r\none\r\nEND\r\n",
        );
    }
    let asked: u32 = server.connect().stat("cmd_get").parse().unwrap();
    assert!(asked < 1000, "{asked} of 2000 reads reached the server");
    // A key that becomes hot amid the keys of a get.
    let many = "get".to_owned() + &" warm x".repeat(500) + "\r\n";
    client.ask("set warm 0 0 1\r\nw\r\n", "STORED\r\n");
    client.ask(many, "VALUE warm 0 1\r\nw\r\n".repeat(500) + "END\r\n");
    // More of one than may be under way, if each were asked for by itself.
    let many = "get".to_owned() + &" more".repeat(20_000) + "\r\n";
    client.ask("set more 0 0 1\r\nm\r\n", "STORED\r\n");
    client.ask(many, "VALUE more 0 1\r\nm\r\n".repeat(20_000) + "END\r\n");
    // What is written is read, at once and by everybody.
    let mut other = proxy.connect();
    for n in 100..200 {
        client.ask(format!("set hot 5 0 3\r\n{n}\r\n"), "STORED\r\n");
        other.ask(
            "get hot\r\n".repeat(5),
            format!("VALUE hot 5 3\r\n{n}\r\nEND\r\n").repeat(5),
        );
    }
    client.ask("delete hot\r\n", "DELETED\r\n");
    other.ask(
        "get hot\r\nget hot x\r\ngets hot\r\n",
        "END\r\nEND\r\nEND\r\n",
    );
    // The list is that of the last full second.
    let since = Instant::now();
    loop {
        other.ask("get hot\r\n".repeat(60), "END\r\n".repeat(60));
        other.send("stats hotkeys\r\n");
        let mut line = other.line();
        let shown = line.starts_with("STAT hot ");
        while line != "END" {
            line = other.line();
        }
        if shown {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(20));
    }
}

/// A value that the proxy does not keep is read from several servers, and never as it was before a write.
#[test]
fn hot_keys_are_read_from_several_servers() {
    let servers: Vec<TestServer> = (0..5).map(|_| TestServer::start()).collect();
    let names = fleet::addresses(&servers);
    let text = format!(
        "hot_keys = {{ reads_per_second = 50, cache = \"0s\" }}\n[pools.all]\nservers = {names:?}\ntimeout = \"20s\"\n"
    );
    let proxy = fleet::proxy_with(parse(&text).unwrap());
    let mut clients: Vec<_> = (0..4).map(|_| proxy.connect()).collect();
    // Something else under its name, from before, where it is not looked for.
    for server in &servers {
        server
            .connect()
            .ask("set hot 0 0 3\r\nold\r\n", "STORED\r\n");
    }
    clients[0].ask("set hot 5 0 3\r\none\r\n", "STORED\r\n");
    let hits = |server: &TestServer| -> u32 { server.connect().stat("get_hits").parse().unwrap() };
    let since = Instant::now();
    // Two connections to one worker see copies of their own.
    while servers.iter().filter(|server| hits(server) > 100).count() < 4 {
        for client in &mut clients {
            client.ask(
                "get hot\r\n".repeat(100),
                "VALUE hot 5 3\r\none\r\nEND\r\n".repeat(100),
            );
            client.ask("get hot x\r\n", "VALUE hot 5 3\r\none\r\nEND\r\n");
        }
        assert!(since.elapsed() < Duration::from_secs(20), "never spread");
    }
    for n in 100..130 {
        clients[n % 4].ask(format!("set hot 6 0 3\r\n{n}\r\n"), "STORED\r\n");
        for client in &mut clients {
            client.ask(
                "get hot\r\n".repeat(20),
                format!("VALUE hot 6 3\r\n{n}\r\nEND\r\n").repeat(20),
            );
        }
    }
    clients[1].ask("flush_all\r\n", "OK\r\n");
    for client in &mut clients {
        client.ask("get hot\r\n", "END\r\n");
    }
}

/// A proxy with one thread, which keeps what is hot for long.
fn keeper(pool: &str) -> TestServer {
    let text = format!(
        "hot_keys = {{ reads_per_second = 50, cache = \"30s\" }}\n[pools.all]\ntimeout = \"20s\"\n{pool}\n"
    );
    let mut settings = common::settings();
    settings.server.threads = 1;
    settings.proxy = Some(Mode {
        proxy: parse(&text).unwrap(),
        file: None,
    });
    TestServer::start_with(settings)
}

fn read(opcode: u8) -> Packet<'static> {
    Packet {
        opcode,
        key: b"hot",
        opaque: 7,
        ..Packet::default()
    }
}

/// What a server answers.
fn said(server: &TestServer, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(request).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    said
}

/// What is kept is told in every dialect as the server would tell it.
#[test]
fn meta_and_binary_reads_are_answered_by_the_proxy() {
    let server = TestServer::start();
    let proxy = keeper(&format!("servers = [\"{}\"]", server.address()));
    let mut direct = server.connect();
    let texts = [
        "mg hot v",
        "get hot",
        "mg hot s k f v Oabc",
        "mg hot c v",
        "mg hot",
        "gets hot",
        "mg hot q f",
        "get hot hot",
        // Not all is kept.
        "mg hot t v",
        "mg aG90 b v",
    ];
    let texts = (texts.join("\r\n") + "\r\n").into_bytes();
    let packets: Vec<Packet> = [0x00, 0x09, 0x0c, 0x0d].map(read).into();
    let packets: Vec<u8> = packets.iter().flat_map(Packet::bytes).collect();
    let mut clients = [proxy.connect(), proxy.connect()];
    for value in [Some("one"), None, Some("two")] {
        match value {
            Some(value) => clients[0].ask(format!("set hot 5 0 3\r\n{value}\r\n"), "STORED\r\n"),
            None => clients[0].ask("delete hot\r\n", "DELETED\r\n"),
        }
        let before: u32 = direct.stat("cmd_get").parse().unwrap();
        let told = [&texts, &packets].map(|request| said(&server, request));
        for _ in 0..200 {
            for ((client, request), told) in clients.iter_mut().zip([&texts, &packets]).zip(&told) {
                client.ask(request, told);
            }
        }
        let asked: u32 = direct.stat("cmd_get").parse().unwrap();
        // Of 3,000; two of fifteen ask for more than is kept.
        assert!(asked - before < 200 * 2 + 400, "{}", asked - before);
    }
}

/// One reader, and one only, is told that a stale value is to be renewed.
#[test]
fn a_stale_value_is_told_of() {
    let server = TestServer::start();
    let proxy = keeper(&format!("servers = [\"{}\"]", server.address()));
    let (mut client, mut other) = (proxy.connect(), proxy.connect());
    client.ask("set hot 0 0 1\r\nx\r\n", "STORED\r\n");
    for _ in 0..5 {
        client.ask("mg hot v\r\n".repeat(50), "VA 1\r\nx\r\n".repeat(50));
        client.ask("md hot I T30\r\n", "HD\r\n");
        // Readers that cannot be told do not keep it from those who can.
        let plain = "VALUE hot 0 1\r\nx\r\nEND\r\n";
        other.ask("get hot\r\n".repeat(50), plain.repeat(50));
        client.ask(
            "mg hot v\r\n".repeat(50),
            "VA 1 X W\r\nx\r\n".to_owned() + &"VA 1 Z X\r\nx\r\n".repeat(49),
        );
        client.ask("ms hot 1\r\nx\r\n", "HD\r\n");
    }
}

/// Copies are told with what their owner calls the value, so that it can be compared with.
#[test]
fn meta_and_binary_reads_are_spread() {
    let servers: Vec<TestServer> = (0..5).map(|_| TestServer::start()).collect();
    let names = fleet::addresses(&servers);
    // One that has counted higher than the others.
    for (n, server) in servers.iter().enumerate() {
        let sets = "set x 0 0 1\r\nx\r\n".repeat(n * 10);
        server.connect().ask(sets, "STORED\r\n".repeat(n * 10));
    }
    let text = format!(
        "hot_keys = {{ reads_per_second = 50, cache = \"0s\" }}\n[pools.all]\nservers = {names:?}\ntimeout = \"20s\"\n"
    );
    let proxy = fleet::proxy_with(parse(&text).unwrap());
    let hits = |server: &TestServer| -> u32 { server.connect().stat("get_hits").parse().unwrap() };
    for dialect in ["meta", "binary"] {
        let mut clients: Vec<_> = (0..4).map(|_| proxy.connect()).collect();
        let mut text = proxy.connect();
        text.ask("set hot 5 0 3\r\none\r\n", "STORED\r\n");
        text.send("gets hot\r\n");
        let cas = text.line().rsplit(' ').next().unwrap().to_owned();
        text.expect("one\r\nEND\r\n");
        let before: Vec<u32> = servers.iter().map(hits).collect();
        let since = Instant::now();
        loop {
            for client in &mut clients {
                if dialect == "meta" {
                    client.ask(
                        "mg hot c v f k\r\n".repeat(100),
                        format!("VA 3 c{cas} f5 khot\r\none\r\n").repeat(100),
                    );
                    continue;
                }
                client.send(read(0x0c).bytes().repeat(100));
                for _ in 0..100 {
                    let answer = client.answer();
                    assert_eq!((answer.opcode, answer.opaque, answer.status), (0x0c, 7, 0));
                    assert_eq!(
                        (&answer.key[..], &answer.value[..]),
                        (&b"hot"[..], &b"one"[..])
                    );
                    assert_eq!(
                        (answer.cas.to_string(), answer.extras),
                        (cas.clone(), vec![0, 0, 0, 5])
                    );
                }
            }
            let now = servers.iter().map(hits).zip(&before);
            if now.filter(|(now, before)| now - **before > 100).count() >= 4 {
                break;
            }
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "never spread: {dialect}"
            );
        }
        // What it has been told of can be compared with.
        text.ask(format!("cas hot 5 0 3 {cas}\r\ntwo\r\n"), "STORED\r\n");
        for client in &mut clients {
            match dialect {
                "meta" => client.ask("mg hot v\r\n".repeat(20), "VA 3\r\ntwo\r\n".repeat(20)),
                _ => {
                    for _ in 0..20 {
                        assert_eq!(client.call(read(0x00)).value, b"two");
                    }
                }
            }
        }
        text.ask("delete hot\r\n", "DELETED\r\n");
    }
}

/// Where two listeners lead to two pools, the same key is two, be it as hot as may be.
#[test]
fn the_same_key_of_two_pools() {
    let servers = [TestServer::start(), TestServer::start()];
    for (server, value) in servers.iter().zip(["one", "two"]) {
        let set = format!("set hot 0 0 3\r\n{value}\r\n");
        server.connect().ask(set, "STORED\r\n");
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let text = format!(
        "route = \"a\"\nhot_keys = {{ reads_per_second = 20, cache = \"30s\" }}\n\
         [[listen]]\naddress = \"127.0.0.1:{port}\"\ntag = \"own\"\nroute = \"b\"\n\
         [pools.a]\nservers = [\"{}\"]\ntimeout = \"20s\"\n\
         [pools.b]\nservers = [\"{}\"]\ntimeout = \"20s\"\n",
        servers[0].address(),
        servers[1].address()
    );
    let mut settings = common::settings();
    settings.server.threads = 1;
    settings.proxy = Some(Mode {
        proxy: parse(&text).unwrap(),
        file: None,
    });
    let proxy = TestServer::start_with(settings);
    let [usual, own] = proxy.addresses() else {
        panic!("{:?}", proxy.addresses());
    };
    let mut clients = [common::Client::to(*usual), common::Client::to(*own)];
    for _ in 0..20 {
        for (client, value) in clients.iter_mut().zip(["one", "two"]) {
            client.ask(
                "get hot\r\n".repeat(50),
                format!("VALUE hot 0 3\r\n{value}\r\nEND\r\n").repeat(50),
            );
        }
    }
}
