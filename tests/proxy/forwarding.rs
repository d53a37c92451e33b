//! Requests go to the servers that own their keys, and answers come back in order.

use std::fmt::Write as _;

use crate::fleet::Fleet;

#[test]
fn classic_commands() {
    let fleet = Fleet::start(3);
    let mut client = fleet.connect();
    for n in 0..50 {
        client.ask(format!("set k{n} {n} 0 3\r\nabc\r\n"), "STORED\r\n");
        client.ask(
            format!("get k{n}\r\n"),
            format!("VALUE k{n} {n} 3\r\nabc\r\nEND\r\n"),
        );
    }
    let held: Vec<String> = fleet
        .servers
        .iter()
        .map(|server| server.connect().stat("curr_items"))
        .collect();
    let held: Vec<usize> = held.iter().map(|items| items.parse().unwrap()).collect();
    assert_eq!(held.iter().sum::<usize>(), 50);
    assert!(held.iter().all(|&items| items > 5), "{held:?}");
    client.ask("add k1 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
    client.ask("append k1 0 0 1\r\n5\r\n", "STORED\r\n");
    client.ask("set n 0 0 2\r\n41\r\n", "STORED\r\n");
    client.ask("incr n 1\r\n", "42\r\n");
    client.ask("decr nope 1\r\n", "NOT_FOUND\r\n");
    client.ask("touch n 100\r\n", "TOUCHED\r\n");
    client.ask("gat 100 n\r\n", "VALUE n 0 2\r\n42\r\nEND\r\n");
    client.ask(
        "gat 0 n nope k2\r\n",
        "VALUE n 0 2\r\n42\r\nVALUE k2 2 3\r\nabc\r\nEND\r\n",
    );
    client.ask("delete n\r\n", "DELETED\r\n");
    client.ask("get n\r\n", "END\r\n");
    client.send("gets k3\r\n");
    let head = client.line();
    let cas = head.rsplit(' ').next().unwrap().to_owned();
    client.expect("abc\r\nEND\r\n");
    client.ask(format!("cas k3 0 0 1 {cas}\r\nz\r\n"), "STORED\r\n");
    client.ask(format!("cas k3 0 0 1 {cas}\r\nz\r\n"), "EXISTS\r\n");
}

#[test]
fn the_keys_of_a_get_are_answered_in_their_order() {
    let fleet = Fleet::start(5);
    let mut client = fleet.connect();
    let mut get = "get".to_owned();
    let mut expected = String::new();
    for n in 0..1000 {
        if n % 3 > 0 {
            client.ask(format!("set key{n} 0 0 5\r\n{n:05}\r\n"), "STORED\r\n");
            write!(expected, "VALUE key{n} 0 5\r\n{n:05}\r\n").unwrap();
        }
        write!(get, " key{n}").unwrap();
    }
    write!(get, " key1 key1\r\n").unwrap();
    for _ in 0..2 {
        expected.push_str("VALUE key1 0 5\r\n00001\r\n");
    }
    expected.push_str("END\r\n");
    client.ask(&get, &expected);
    client.ask(get.repeat(5), expected.repeat(5));
    // Longer than a line is waited for.
    let many: String = (0..20_000).map(|n| format!(" key{}", n % 1000)).collect();
    let hits: String = (0..20_000)
        .map(|n| n % 1000)
        .filter(|n| n % 3 > 0)
        .map(|n| format!("VALUE key{n} 0 5\r\n{n:05}\r\n"))
        .collect();
    client.ask(format!("get{many}\r\n"), format!("{hits}END\r\n"));
    let long = "x".repeat(251);
    client.ask(
        format!("get key1 {long} key2\r\nget key1\r\n"),
        "CLIENT_ERROR bad command line format\r\nVALUE key1 0 5\r\n00001\r\nEND\r\n",
    );
}

#[test]
fn meta_commands_with_all_their_flags() {
    let fleet = Fleet::start(3);
    let mut client = fleet.connect();
    client.ask("ms a 2 T90 F7 c\r\nxy\r\n".replace(" c", ""), "HD\r\n");
    client.ask(
        "mg a v f t k s Oabc\r\n",
        "VA 2 f7 t90 ka s2 Oabc\r\nxy\r\n",
    );
    client.ask("mg nope v Oq1\r\n", "EN Oq1\r\n");
    client.ask("ms n 1 S2\r\n1\r\n".replace(" S2", ""), "HD\r\n");
    client.ask("ma n v D5\r\n", "VA 1\r\n6\r\n");
    client.ask("md n O9 k\r\n", "HD O9 kn\r\n");
    client.ask("ms YQ== 1 b\r\nz\r\n", "HD\r\n");
    client.ask("get a\r\n", "VALUE a 0 1\r\nz\r\nEND\r\n");
    client.ask("mg YQ== b k v\r\n", "VA 1 kYQ== b\r\nz\r\n");
    client.ask("mn\r\n", "MN\r\n");
    client.ask("ms a 1\r\nz\r\n", "HD\r\n");
    client.send("me a\r\n");
    let said = client.line();
    assert!(said.starts_with("ME a exp=-1"), "{said}");
}

#[test]
fn quiet_requests_are_kept_in_step() {
    let fleet = Fleet::start(3);
    let mut client = fleet.connect();
    let mut input = String::new();
    let mut expected = String::new();
    for n in 0..200 {
        write!(input, "set k{n} 0 0 1 noreply\r\nx\r\n").unwrap();
        write!(input, "mg k{n} q v k\r\nmg miss{n} q v\r\n").unwrap();
        write!(expected, "VA 1 kk{n}\r\nx\r\n").unwrap();
        write!(input, "ms m{n} 1 q\r\nx\r\nmd m{n} q\r\nmd m{n} q k\r\n").unwrap();
        write!(expected, "NF km{n}\r\n").unwrap();
        write!(input, "delete k{n} noreply\r\ndelete k{n} noreply\r\n").unwrap();
        write!(input, "ma k{n} q\r\nincr k{n} 1 noreply\r\n").unwrap();
        expected.push_str("NF\r\n");
        // A wrong terminator is seen before the value is sent on.
        write!(input, "set k{n} 0 0 1 noreply\r\nxyz\r\nget k{n}\r\n").unwrap();
        expected.push_str("ERROR\r\nEND\r\n");
    }
    input.push_str("mn\r\n");
    expected.push_str("MN\r\n");
    // What follows a wrong terminator is taken for a command by memcached, too.
    let expected = expected.replace("ERROR\r\n", "CLIENT_ERROR bad command line format\r\n");
    client.ask(&input, &expected);
}

/// A binary request.
fn packet(opcode: u8, opaque: u32, extras: &[u8], key: &str, value: &[u8]) -> Vec<u8> {
    let body = extras.len() + key.len() + value.len();
    let mut packet = vec![0x80, opcode];
    packet.extend_from_slice(&(key.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[extras.len() as u8, 0, 0, 0]);
    packet.extend_from_slice(&(body as u32).to_be_bytes());
    packet.extend_from_slice(&opaque.to_be_bytes());
    packet.extend_from_slice(&[0; 8]);
    for part in [extras, key.as_bytes(), value] {
        packet.extend_from_slice(part);
    }
    packet
}

#[test]
fn binary_requests_quiet_and_loud() {
    let fleet = Fleet::start(5);
    // One server alone says what is expected; CAS ids are not compared.
    let alone = fleet.servers.len();
    let reference = crate::common::TestServer::start();
    let mut input = Vec::new();
    for n in 0..100u32 {
        let key = format!("key{n}");
        let quiet = u8::from(n % 2 == 0) * 0x10;
        input.extend(packet(
            0x01 + quiet,
            n,
            &[0, 0, 0, 9, 0, 0, 0, 0],
            &key,
            b"value",
        ));
        input.extend(packet(0x02 + quiet, n, &[0; 8], &key, b"other"));
        input.extend(packet(0x09, n, &[], &key, b""));
        input.extend(packet(0x0d, n, &[], &format!("miss{n}"), b""));
        input.extend(packet(0x0d, n, &[], &key, b""));
        input.extend(packet(0x19, n, &[], &key, b"+"));
        input.extend(packet(0x00, n, &[], &key, b""));
        input.extend(packet(0x1e, n, &[0, 0, 0, 50], &key, b""));
        input.extend(packet(0x1c, n, &[0, 0, 0, 50], &key, b""));
        let delta = [
            &[0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 0, 7],
            &[0; 4][..],
        ]
        .concat();
        input.extend(packet(0x15, n, &delta, &format!("n{n}"), b""));
        input.extend(packet(0x05, n, &delta, &format!("n{n}"), b""));
        input.extend(packet(0x14, n, &[], &key, b""));
        input.extend(packet(0x04, n, &[], &key, b""));
        input.extend(packet(0x0a, n, &[], "", b""));
    }
    input.extend(packet(0x77, 5, &[], "", b""));
    input.extend(packet(0x07, 6, &[], "", b""));
    let mut answers = Vec::new();
    for server in [&reference, &fleet.proxy] {
        let mut client = server.connect();
        client.send(&input);
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut client.stream, &mut answer).unwrap();
        // Blank out the CAS of each packet.
        let mut at = 0;
        while at < answer.len() {
            let body = u32::from_be_bytes(answer[at + 8..at + 12].try_into().unwrap());
            answer[at + 16..at + 24].fill(0);
            at += 24 + body as usize;
        }
        answers.push(answer);
    }
    assert!(answers[0].len() > 10_000);
    assert!(answers[0] == answers[1], "the answers differ");
    assert_eq!(alone, 5);
}

#[test]
fn two_thousand_requests_in_one_go() {
    let fleet = Fleet::start(3);
    let mut client = fleet.connect();
    let mut input = String::new();
    let mut expected = String::new();
    for n in 0..2000 {
        write!(input, "set k{n} 0 0 10\r\n{n:010}\r\nget k{n}\r\n").unwrap();
        write!(expected, "STORED\r\nVALUE k{n} 0 10\r\n{n:010}\r\nEND\r\n").unwrap();
    }
    client.ask(&input, &expected);
    let mut gets = String::new();
    let mut values = String::new();
    for n in 0..50_000 {
        write!(gets, "get k{}\r\n", n % 2000).unwrap();
        write!(values, "VALUE k{0} 0 10\r\n{0:010}\r\nEND\r\n", n % 2000).unwrap();
    }
    let mut stream = client.stream.try_clone().unwrap();
    let sender =
        std::thread::spawn(move || std::io::Write::write_all(&mut stream, gets.as_bytes()));
    client.expect(&values);
    sender.join().unwrap().unwrap();
}

#[test]
fn long_values_both_ways() {
    let fleet = Fleet::start(3);
    let mut client = fleet.connect();
    let mut input = Vec::new();
    let mut expected = Vec::new();
    let mut gets = "get".to_owned();
    let mut values = Vec::new();
    for n in 0..20usize {
        let length = n * 50_000;
        let value: Vec<u8> = (0..length).map(|i| (i * 7 + n) as u8).collect();
        input.extend_from_slice(format!("set big{n} 0 0 {length}\r\n").as_bytes());
        input.extend_from_slice(&value);
        input.extend_from_slice(format!("\r\nget big{n}\r\nmg big{n} v\r\n").as_bytes());
        let one = [
            format!("VALUE big{n} 0 {length}\r\n").as_bytes(),
            &value,
            b"\r\n",
        ]
        .concat();
        expected.extend_from_slice(b"STORED\r\n");
        expected.extend_from_slice(&one);
        expected.extend_from_slice(format!("END\r\nVA {length}\r\n").as_bytes());
        expected.extend_from_slice(&value);
        expected.extend_from_slice(b"\r\n");
        write!(gets, " big{n}").unwrap();
        values.extend_from_slice(&one);
    }
    let mut stream = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || std::io::Write::write_all(&mut stream, &input));
    client.expect(&expected);
    sender.join().unwrap().unwrap();
    gets.push_str("\r\n");
    values.extend_from_slice(b"END\r\n");
    client.ask(&gets, &values);
    client.send(gets.repeat(3));
    client.expect(values.repeat(3));
    // Too large for the server, which says so when it has seen the length.
    client.send("set huge 0 0 3000000\r\n");
    client.send(vec![b'x'; 3_000_000]);
    client.ask(
        "\r\nget k\r\n",
        "SERVER_ERROR object too large for cache\r\nEND\r\n",
    );
}

#[test]
fn what_is_answered_by_the_proxy_itself() {
    let fleet = Fleet::start(2);
    let mut client = fleet.connect();
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
    client.ask("verbosity 1\r\n", "OK\r\n");
    client.ask("bogus\r\n", "ERROR\r\n");
    client.send("lru_crawler crawl all\r\n");
    assert!(
        client
            .line()
            .starts_with("CLIENT_ERROR the proxy has no store")
    );
    client.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    client.send("stats servers\r\nstats proxy\r\nget k\r\n");
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line| line != "VALUE k 0 1") {
        lines.push(client.line());
    }
    client.expect("x\r\nEND\r\n");
    assert_eq!(lines.iter().filter(|line| *line == "END").count(), 2);
    for line in ["STAT cmd_get 0", "STAT cmd_set 1", "STAT cmd_touch 0"] {
        assert!(lines.iter().any(|told| told == line), "{line}: {lines:?}");
    }
    client.send("get k l m\r\nmg k\r\nmd l\r\ngat 0 k\r\nmn\r\n");
    while client.line() != "MN" {}
    client.send("stats proxy\r\n");
    let mut told = Vec::new();
    while told.last().is_none_or(|line| line != "END") {
        told.push(client.line());
    }
    // The get behind the first stats, then three keys and a meta get.
    for line in ["STAT cmd_get 5", "STAT cmd_gat 1", "STAT cmd_delete 1"] {
        assert!(told.iter().any(|told| told == line), "{line}: {told:?}");
    }
    client.send("get k\r\nget k\r\nquit\r\nget k\r\n");
    client.expect("VALUE k 0 1\r\nx\r\nEND\r\n".repeat(2));
    client.expect_end();
}

/// A server that refuses a value drops the old one; so does the proxy, where it is the one to refuse.
#[test]
fn a_value_that_is_refused_takes_the_old_one_with_it() {
    let fleet = Fleet::start(2);
    for (key, request) in [
        ("a", "set a 0 0 2147483000\r\n"),
        ("b", "ms b 2147483000\r\n"),
        ("c", "add c 0 0 2147483000\r\n"),
    ] {
        let mut client = fleet.connect();
        client.ask(format!("set {key} 0 0 1\r\nx\r\n"), "STORED\r\n");
        // Its client leaves before the value has come.
        client.send(request);
        client.finish();
        client.expect_end();
        let kept = match key {
            "c" => "VALUE c 0 1\r\nx\r\nEND\r\n",
            _ => "END\r\n",
        };
        fleet.connect().ask(format!("get {key}\r\n"), kept);
    }
}
