//! Clients that send too much, too little or nonsense: each is answered as memcached does, the
//! others notice nothing, and memory stays bounded.

mod common;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::{Program, TestServer, settings};

/// Waits for what happens soon, though not at once.
fn until(mut happened: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if happened() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it did not happen");
}

const BAD_LINE: &str = "CLIENT_ERROR bad command line format\r\n";

#[test]
fn a_line_without_an_end_is_hung_up_on() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.send("x".repeat(2049));
    client.expect_end();
    // One byte less may still become a command.
    let mut client = server.connect();
    client.send("x".repeat(2040));
    client.ask("\r\nversion\r\n", "ERROR\r\nVERSION 1.6.45\r\n");
}

#[test]
fn blanks_without_an_end_are_hung_up_on() {
    let server = TestServer::start();
    for start in ["get", "get a", "gets"] {
        let mut client = server.connect();
        client.send(start);
        // It may be gone before all of it is sent.
        let _ = client.stream.write_all(&vec![b' '; 200_000]);
        client.expect_end();
    }
}

#[test]
fn nulls_are_bytes_like_others() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.ask("\0\0\0\0\r\n", "ERROR\r\n");
    client.ask("set a\0b 0 0 2\r\n\0\0\r\n", "STORED\r\n");
    client.ask("get a\0b\r\n", "VALUE a\0b 0 2\r\n\0\0\r\nEND\r\n");
    client.ask("get a\r\n", "END\r\n");
}

#[test]
fn impossible_lengths_are_refused() {
    let server = TestServer::start();
    let mut client = server.connect();
    for length in [
        "-1",
        "-2147483648",
        "2147483646",
        "4294967296",
        "18446744073709551617",
        "1x",
    ] {
        client.ask(format!("set a 0 0 {length}\r\n"), BAD_LINE);
    }
    client.ask("get a\r\n", "END\r\n");
}

#[test]
fn a_value_too_large_is_passed_over() {
    let server = TestServer::start();
    let mut client = server.connect();
    let length = 3 << 20;
    client.ask("set a 0 0 3\r\nold\r\n", "STORED\r\n");
    client.send(format!("set a 0 0 {length}\r\n"));
    client.send(&b"get a\r\n".repeat(length / 7 + 1)[..length]);
    client.ask(
        "\r\nget a\r\n",
        "SERVER_ERROR object too large for cache\r\nEND\r\n",
    );
    // Silence covers this error as well.
    client.send(format!("set a 0 0 {length} noreply\r\n"));
    client.send(vec![b'x'; length + 2]);
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
}

#[test]
fn a_value_of_the_wrong_length_is_refused() {
    let server = TestServer::start();
    for length in [10, 20_000, 300_000] {
        let mut client = server.connect();
        client.ask("set a 0 0 3\r\nold\r\n", "STORED\r\n");
        let value = "v".repeat(length);
        // One short: the CR and LF are taken for its last byte and half a terminator.
        client.send(format!("set a 0 0 {}\r\n{value}\r\nX", length + 1));
        client.expect("CLIENT_ERROR bad data chunk\r\n");
        client.ask("\r\n", BAD_LINE);
        client.ask(
            format!("set a 0 0 {}\r\n{value}\r\n", length - 1),
            "CLIENT_ERROR bad data chunk\r\n",
        );
        client.expect(BAD_LINE);
        client.ask("get a\r\n", "VALUE a 0 3\r\nold\r\nEND\r\n");
    }
}

#[test]
fn what_was_asked_before_the_end_of_input_is_answered() {
    let server = TestServer::start();
    let mut client = server.connect();
    let length = 500_000;
    client.ask(
        format!("set big 0 0 {length}\r\n{}\r\n", "v".repeat(length)),
        "STORED\r\n",
    );
    client.send("get big\r\n".repeat(20));
    client.finish();
    let mut answer = Vec::new();
    client.stream.read_to_end(&mut answer).unwrap();
    assert_eq!(
        answer.len(),
        20 * (length + "VALUE big 0 500000\r\n\r\nEND\r\n".len())
    );
}

#[test]
fn others_than_the_limit_allows_are_told_and_turned_away() {
    let mut settings = settings();
    settings.server.max_connections = 2;
    let server = TestServer::start_with(settings);
    let mut first = server.connect();
    let mut second = server.connect();
    first.ask("version\r\n", "VERSION 1.6.45\r\n");
    second.ask("version\r\n", "VERSION 1.6.45\r\n");
    let mut third = server.connect();
    third.expect("ERROR Too many open connections\r\n");
    third.expect_end();
    first.send("quit\r\n");
    first.expect_end();
    // Room is made after the peer has seen the end: it may take a moment.
    let served = (0..1000).any(|_| {
        let mut next = server.connect();
        next.send("version\r\n");
        next.line() == "VERSION 1.6.45"
    });
    assert!(served);
}

#[test]
fn without_the_fast_refusal_they_wait() {
    let mut settings = settings();
    settings.server.max_connections = 1;
    settings.server.maxconns_fast = false;
    let server = TestServer::start_with(settings);
    let mut first = server.connect();
    first.ask("version\r\n", "VERSION 1.6.45\r\n");
    let mut second = server.connect();
    second.send("version\r\n");
    first.ask("version\r\n", "VERSION 1.6.45\r\n");
    drop(first);
    second.expect("VERSION 1.6.45\r\n");
}

#[test]
fn keys_have_at_most_250_bytes() {
    let server = TestServer::start();
    let mut client = server.connect();
    let (most, over) = ("k".repeat(250), "k".repeat(251));
    client.ask(format!("set {most} 0 0 1\r\n1\r\n"), "STORED\r\n");
    for (request, answer) in [
        ("get KEY\r\n", format!("VALUE {most} 0 1\r\n1\r\nEND\r\n")),
        ("gat 0 KEY\r\n", format!("VALUE {most} 0 1\r\n1\r\nEND\r\n")),
        ("incr KEY 1\r\n", "2\r\n".to_owned()),
        ("touch KEY 0\r\n", "TOUCHED\r\n".to_owned()),
        ("mg KEY v\r\n", "VA 1\r\n2\r\n".to_owned()),
        ("ms KEY 1\r\n3\r\n", "HD\r\n".to_owned()),
        ("append KEY 0 0 1\r\n4\r\n", "STORED\r\n".to_owned()),
        ("md KEY\r\n", "HD\r\n".to_owned()),
        ("delete KEY\r\n", "NOT_FOUND\r\n".to_owned()),
    ] {
        client.ask(request.replace("KEY", &most), answer);
        client.ask(request.replace("KEY", &over), BAD_LINE);
    }
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
}

#[test]
fn slow_clients_hold_nobody_up() {
    let mut settings = settings();
    settings.server.threads = 1;
    let server = TestServer::start_with(settings);
    let mut quick = server.connect();
    let requests = [
        "get never\r\n",
        "set slow 0 0 8\r\n12345678\r\n",
        "mg never v\r\n",
        "gets slow never and so on\r\n",
    ];
    let mut slow: Vec<_> = requests.map(|request| (server.connect(), request)).into();
    for at in 0..40 {
        for (client, request) in &mut slow {
            if let Some(byte) = request.as_bytes().get(at) {
                client.send([*byte]);
                quick.ask("version\r\n", "VERSION 1.6.45\r\n");
            }
        }
    }
    let answers = ["END\r\n", "STORED\r\n", "EN\r\n", ""];
    for ((client, _), answer) in slow.iter_mut().zip(answers) {
        client.expect(answer);
    }
}

#[test]
fn the_idle_are_hung_up_on() {
    let mut settings = settings();
    settings.server.idle_timeout = 1;
    let server = TestServer::start_with(settings);
    let mut idle = server.connect();
    idle.ask("version\r\n", "VERSION 1.6.45\r\n");
    let mut stuck = server.connect();
    stuck.send("set a 0 0 100000\r\nhalf");
    let mut silent = server.connect();
    let mut busy = server.connect();
    until(|| busy.stat("idle_kicks") == "3");
    for client in [&mut idle, &mut stuck, &mut silent] {
        client.expect_end();
    }
    busy.ask("get a\r\n", "END\r\n");
}

#[test]
fn hundreds_are_served_and_forgotten() {
    let program = Program::start(&["-l", "127.0.0.1", "-p", "-1", "-t", "2", "-c", "1000"]);
    let mut first = program.connect();
    let mut clients: Vec<_> = (0..700).map(|_| program.connect()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(format!("set k{n} 0 0 3\r\nabc\r\nget k{n}"));
    }
    until(|| first.stat("read_buf_count") == "700");
    for (n, client) in clients.iter_mut().enumerate() {
        client.ask(
            "\r\n",
            format!("STORED\r\nVALUE k{n} 0 3\r\nabc\r\nEND\r\n"),
        );
    }
    // A worker counts it when it has sent the answer.
    until(|| first.stat("read_buf_bytes") == "0");
    let open: usize = first.stat("curr_connections").parse().unwrap();
    assert!(open > 700);
    drop(clients);
    until(|| first.stat("curr_connections").parse::<usize>().unwrap() <= open - 700);
}

#[test]
fn what_all_hold_together_is_limited() {
    let mut settings = settings();
    settings.server.threads = 1;
    settings.server.read_buffer_limit = 1 << 20;
    let server = TestServer::start_with(settings);
    let mut other = server.connect();
    let half = format!("set a 0 0 16000\r\n{}", "v".repeat(15_900));
    let mut clients: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(&half);
        // Both are served by the same worker, one after the other.
        other.ask("version\r\n", "VERSION 1.6.45\r\n");
    }
    let bytes: usize = other.stat("read_buf_bytes").parse().unwrap();
    assert!((900_000..=1 << 20).contains(&bytes), "{bytes}");
    let refused: usize = other.stat("read_buf_oom").parse().unwrap();
    assert!((30..=40).contains(&refused), "{refused}");
    for client in &mut clients[100 - refused..] {
        client.expect_end();
    }
    let kept = &mut clients[..100 - refused];
    for client in kept.iter_mut() {
        client.ask(format!("{}\r\n", "v".repeat(100)), "STORED\r\n");
    }
    assert_eq!(other.stat("read_buf_bytes"), "0");
}

#[test]
fn a_busy_client_lets_others_take_their_turn() {
    let mut settings = settings();
    settings.server.threads = 1;
    let server = TestServer::start_with(settings);
    let mut other = server.connect();
    let done = AtomicBool::new(false);
    let mut busy = server.connect();
    let mut answers = busy.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let requests = "get a\r\n".repeat(10_000);
            while !done.load(Relaxed) {
                busy.send(&requests);
            }
            busy.finish();
        });
        scope.spawn(move || std::io::copy(&mut answers, &mut std::io::sink()).unwrap());
        for _ in 0..50 {
            other.ask("version\r\n", "VERSION 1.6.45\r\n");
        }
        done.store(true, Relaxed);
    });
    assert_ne!(other.stat("conn_yields"), "0");
}
