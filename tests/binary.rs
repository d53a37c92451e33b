//! The binary protocol over a socket: every opcode, what is wrong, and staying in step.

mod common;

use std::net::TcpStream;

use common::binary::{Answer, Packet};
use common::{Client, TestServer, settings};
use larder::settings::Protocol;

const OK: u16 = 0x00;
const NOT_FOUND: u16 = 0x01;
const EXISTS: u16 = 0x02;
const TOO_LARGE: u16 = 0x03;
const INVALID: u16 = 0x04;
const NOT_STORED: u16 = 0x05;
const NON_NUMERIC: u16 = 0x06;
const AUTH: u16 = 0x20;
const UNKNOWN: u16 = 0x81;

type Binary = Client<TcpStream>;

fn key(opcode: u8, key: &str) -> Packet<'_> {
    Packet {
        opcode,
        key: key.as_bytes(),
        opaque: 0x1234_5678,
        ..Packet::default()
    }
}

fn store<'a>(opcode: u8, name: &'a str, value: &'a str) -> Packet<'a> {
    Packet {
        value: value.as_bytes(),
        extras: if matches!(opcode, 0x01..=0x03 | 0x11..=0x13) {
            &[0, 0, 0x12, 0x34, 0, 0, 0, 0]
        } else {
            &[]
        },
        ..key(opcode, name)
    }
}

fn bare(opcode: u8) -> Packet<'static> {
    key(opcode, "")
}

/// Extras of the counting opcodes.
fn count(delta: u64, initial: u64, expiry: u32) -> Vec<u8> {
    let mut extras = delta.to_be_bytes().to_vec();
    extras.extend_from_slice(&initial.to_be_bytes());
    extras.extend_from_slice(&expiry.to_be_bytes());
    extras
}

/// Status and text.
fn said(answer: &Answer) -> (u16, &str) {
    (answer.status, std::str::from_utf8(&answer.value).unwrap())
}

/// Sends quiet requests and what follows them, up to and with a NOOP: the answers before its own.
#[track_caller]
fn quietly(client: &mut Binary, packets: &[Packet<'_>]) -> Vec<Answer> {
    let mut bytes: Vec<u8> = packets.iter().flat_map(Packet::bytes).collect();
    bytes.extend(bare(0x0a).bytes());
    client.send(bytes);
    let mut answers = Vec::new();
    loop {
        let answer = client.answer();
        if answer.opcode == 0x0a {
            return answers;
        }
        answers.push(answer);
    }
}

/// The server is in step with the client.
#[track_caller]
fn in_step(client: &mut Binary) {
    let answer = client.call(Packet {
        opaque: 77,
        ..bare(0x0b)
    });
    assert_eq!(said(&answer), (OK, "1.6.45"));
}

#[test]
fn values_are_kept_and_found() {
    let server = TestServer::start();
    let mut client = server.connect();
    let missing = client.call(key(0x00, "a"));
    assert_eq!(said(&missing), (NOT_FOUND, "Not found"));
    let missing = client.call(key(0x0c, "a"));
    assert_eq!(
        (missing.status, &missing.key[..], &missing.value[..]),
        (NOT_FOUND, &b"a"[..], &b""[..])
    );
    assert_eq!(
        said(&client.call(store(0x03, "a", "x"))),
        (NOT_FOUND, "Not found")
    );
    let set = client.call(store(0x01, "a", "one"));
    assert_eq!((set.status, set.value.len()), (OK, 0));
    assert!(set.cas > 0);
    assert_eq!(
        said(&client.call(store(0x02, "a", "x"))),
        (EXISTS, "Data exists for key.")
    );
    let found = client.call(key(0x00, "a"));
    assert_eq!((found.status, found.cas), (OK, set.cas));
    assert_eq!(found.extras, [0, 0, 0x12, 0x34]);
    assert_eq!((&found.key[..], &found.value[..]), (&b""[..], &b"one"[..]));
    let found = client.call(key(0x0c, "a"));
    assert_eq!((&found.key[..], &found.value[..]), (&b"a"[..], &b"one"[..]));
    let appended = client.call(store(0x0e, "a", "+")).cas;
    assert!(appended > set.cas);
    assert!(client.call(store(0x0f, "a", "-")).cas > appended);
    assert_eq!(client.call(key(0x00, "a")).value, b"-one+");
    assert_eq!(
        said(&client.call(store(0x0e, "b", "+"))),
        (NOT_STORED, "Not stored.")
    );
    assert_eq!(
        said(&client.call(store(0x0f, "b", "+"))),
        (NOT_STORED, "Not stored.")
    );
    let gone = client.call(key(0x04, "a"));
    assert_eq!((gone.status, gone.cas), (OK, 0));
    assert_eq!(said(&client.call(key(0x04, "a"))), (NOT_FOUND, "Not found"));
    // Nothing at all is a value, too.
    assert_eq!(client.call(store(0x01, "empty", "")).status, OK);
    let found = client.call(key(0x00, "empty"));
    assert_eq!((found.status, found.value.len()), (OK, 0));
}

#[test]
fn a_cas_must_fit() {
    let server = TestServer::start();
    let mut client = server.connect();
    let with = |packet: Packet<'static>, cas| Packet { cas, ..packet };
    for opcode in [0x01, 0x02, 0x03] {
        assert_eq!(
            client.call(with(store(opcode, "none", "x"), 9)).status,
            NOT_FOUND
        );
    }
    let cas = client.call(store(0x01, "a", "1")).cas;
    for opcode in [0x01, 0x02, 0x03, 0x0e, 0x0f] {
        let answer = client.call(with(store(opcode, "a", "x"), cas + 100));
        assert_eq!(
            said(&answer),
            (EXISTS, "Data exists for key."),
            "{opcode:#x}"
        );
    }
    // With a CAS even ADD stores over what is there.
    let cas = client.call(with(store(0x02, "a", "2"), cas)).cas;
    assert_eq!(client.call(key(0x00, "a")).value, b"2");
    let extras = count(1, 0, 0);
    let wrong = Packet {
        extras: &extras,
        cas: cas + 9,
        ..key(0x05, "a")
    };
    assert_eq!(client.call(wrong).status, EXISTS);
    let right = Packet {
        extras: &extras,
        cas,
        ..key(0x05, "a")
    };
    let cas = client.call(right).cas;
    assert_eq!(client.call(with(key(0x04, "a"), cas + 1)).status, EXISTS);
    assert_eq!(client.call(with(key(0x04, "a"), cas)).status, OK);
}

#[test]
fn numbers_go_up_and_down() {
    let server = TestServer::start();
    let mut client = server.connect();
    let no_create = count(1, 5, u32::MAX);
    let create = count(3, 7, 0);
    let call = |client: &mut Binary, opcode, name, extras: &[u8]| {
        client.call(Packet {
            extras,
            ..key(opcode, name)
        })
    };
    let number = |answer: &Answer| {
        assert_eq!(answer.status, OK);
        u64::from_be_bytes(answer.value[..].try_into().unwrap())
    };
    assert_eq!(
        said(&call(&mut client, 0x05, "n", &no_create)),
        (NOT_FOUND, "Not found")
    );
    let made = call(&mut client, 0x05, "n", &create);
    assert_eq!(number(&made), 7, "the initial value, not counted on");
    assert!(made.cas > 0);
    assert_eq!(number(&call(&mut client, 0x05, "n", &create)), 10);
    assert_eq!(number(&call(&mut client, 0x06, "n", &no_create)), 9);
    assert_eq!(client.call(key(0x00, "n")).value, b"9 ", "in its place");
    assert_eq!(number(&call(&mut client, 0x06, "n", &count(100, 0, 0))), 0);
    assert_eq!(
        number(&call(&mut client, 0x05, "n", &count(u64::MAX, 0, 0))),
        u64::MAX
    );
    assert_eq!(
        number(&call(&mut client, 0x05, "n", &count(2, 0, 0))),
        1,
        "around"
    );
    client.call(store(0x01, "w", "word"));
    let answer = call(&mut client, 0x05, "w", &create);
    assert_eq!(
        said(&answer),
        (
            NON_NUMERIC,
            "Non-numeric server-side value for incr or decr"
        )
    );
}

#[test]
fn touches_move_the_expiry() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.call(store(0x01, "a", "value"));
    let touch = |opcode, name, seconds: &'static [u8; 4]| Packet {
        extras: seconds,
        ..key(opcode, name)
    };
    const LATER: &[u8; 4] = &[0, 0, 0, 100];
    let answer = client.call(touch(0x1c, "a", LATER));
    assert_eq!(
        (answer.status, &answer.extras[..], answer.value.len()),
        (OK, &[0, 0, 0x12, 0x34][..], 0)
    );
    let answer = client.call(touch(0x1d, "a", LATER));
    assert_eq!((&answer.value[..], answer.key.len()), (&b"value"[..], 0));
    let answer = client.call(touch(0x23, "a", LATER));
    assert_eq!(
        (&answer.value[..], &answer.key[..]),
        (&b"value"[..], &b"a"[..])
    );
    let mut text = server.connect();
    text.ask("mg a t\r\n", "HD t100\r\n");
    assert_eq!(
        said(&client.call(touch(0x1c, "b", LATER))),
        (NOT_FOUND, "Not found")
    );
    assert_eq!(
        said(&client.call(touch(0x1d, "b", LATER))),
        (NOT_FOUND, "Not found")
    );
    let answer = client.call(touch(0x23, "b", LATER));
    assert_eq!(
        (answer.status, &answer.key[..], answer.value.len()),
        (NOT_FOUND, &b"b"[..], 0)
    );
    // 0xffffffff is far in the future here, not in the past.
    assert_eq!(client.call(touch(0x1d, "a", &[0xff; 4])).status, OK);
    assert_eq!(client.call(key(0x00, "a")).status, OK);
    assert_eq!(text.stat("cmd_touch"), "7");
    assert_eq!(text.stat("touch_hits"), "4");
}

#[test]
fn the_quiet_ones_tell_what_went_wrong_only() {
    let server = TestServer::start();
    let mut client = server.connect();
    let extras = count(1, 5, 0);
    let counting = |opcode, name| Packet {
        extras: &extras,
        ..key(opcode, name)
    };
    let later = |opcode, name| Packet {
        extras: &[0, 0, 1, 0],
        ..key(opcode, name)
    };
    let answers = quietly(
        &mut client,
        &[
            key(0x09, "a"),
            key(0x0d, "a"),
            later(0x1e, "a"),
            later(0x24, "a"),
            store(0x11, "a", "1"),
            store(0x12, "b", "w"),
            store(0x13, "a", "2"),
            store(0x19, "a", "3"),
            store(0x1a, "a", "1"),
            counting(0x15, "a"),
            counting(0x16, "a"),
            counting(0x15, "new"),
            Packet {
                extras: &[0, 0, 1, 0],
                ..bare(0x18)
            },
        ],
    );
    assert_eq!(answers, []);
    let answers = quietly(
        &mut client,
        &[
            key(0x09, "a"),
            key(0x0d, "a"),
            later(0x1e, "a"),
            later(0x24, "a"),
            store(0x12, "a", "x"),
            store(0x13, "none", "x"),
            store(0x19, "none", "x"),
            store(0x1a, "none", "x"),
            counting(0x15, "b"),
            Packet {
                extras: &count(1, 1, u32::MAX),
                ..key(0x16, "none")
            },
            key(0x14, "a"),
            key(0x14, "a"),
            Packet {
                cas: 1,
                ..store(0x11, "b", "x")
            },
        ],
    );
    let told: Vec<(u8, u16)> = answers
        .iter()
        .map(|answer| (answer.opcode, answer.status))
        .collect();
    assert_eq!(
        told,
        [
            (0x09, OK),
            (0x0d, OK),
            (0x1e, OK),
            (0x24, OK),
            (0x12, EXISTS),
            (0x13, NOT_FOUND),
            (0x19, NOT_STORED),
            (0x1a, NOT_STORED),
            (0x15, NON_NUMERIC),
            (0x16, NOT_FOUND),
            (0x14, NOT_FOUND),
            (0x11, EXISTS),
        ]
    );
    assert!(answers.iter().all(|answer| answer.opaque == 0x1234_5678));
    assert_eq!(answers[0].value, b"123");
    assert_eq!(
        (&answers[3].key[..], &answers[3].value[..]),
        (&b"a"[..], &b"123"[..])
    );
    client.send(bare(0x17).bytes());
    client.expect_end();
}

#[test]
fn quit_says_so_and_hangs_up() {
    let server = TestServer::start();
    let mut client = server.connect();
    assert_eq!(client.call(bare(0x07)).status, OK);
    client.expect_end();
}

#[test]
fn flushing() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.call(store(0x01, "a", "1"));
    assert_eq!(client.call(bare(0x08)).status, OK);
    assert_eq!(client.call(key(0x00, "a")).status, NOT_FOUND);
    assert_eq!(quietly(&mut client, &[bare(0x18)]), []);
    let mut settings = settings();
    settings.store.flush_enabled = false;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    assert_eq!(said(&client.call(bare(0x08))), (AUTH, "Auth failure."));
    let told = quietly(&mut client, &[bare(0x18)]);
    assert_eq!(told.len(), 1, "quiet or not");
    in_step(&mut client);
}

/// The names and values of one STAT.
fn statistics(client: &mut Binary, what: &str) -> Vec<(String, String)> {
    client.send(key(0x10, what).bytes());
    let mut found = Vec::new();
    loop {
        let answer = client.answer();
        assert_eq!(
            (answer.opcode, answer.status, answer.opaque),
            (0x10, OK, 0x1234_5678)
        );
        if answer.key.is_empty() {
            assert!(answer.value.is_empty());
            return found;
        }
        let text = |bytes| String::from_utf8(bytes).unwrap();
        found.push((text(answer.key), text(answer.value)));
    }
}

/// The same in text.
fn statistics_in_text(client: &mut Binary, what: &str) -> Vec<String> {
    client.send(format!("stats {what}\r\n"));
    let mut names = Vec::new();
    loop {
        let line = client.line();
        if line == "END" {
            return names;
        }
        names.push(line.split(' ').nth(1).unwrap().to_owned());
    }
}

#[test]
fn statistics_are_one_packet_each() {
    let mut settings = settings();
    settings.store.track_sizes = true;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    let mut text = server.connect();
    client.call(store(0x01, "pre:a", "1"));
    for what in ["", "settings", "items", "slabs", "sizes"] {
        let names: Vec<String> = statistics(&mut client, what)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(!names.is_empty(), "{what}");
        assert_eq!(names, statistics_in_text(&mut text, what), "{what}");
    }
    let sets = |client: &mut Binary| {
        let found = statistics(client, "");
        found
            .into_iter()
            .find(|(name, _)| name == "cmd_set")
            .unwrap()
            .1
    };
    assert_eq!(sets(&mut client), "1");
    assert_eq!(statistics(&mut client, "reset"), []);
    assert_eq!(sets(&mut client), "0");
    assert_eq!(statistics(&mut client, "detail on"), []);
    client.call(store(0x01, "pre:a", "1"));
    client.call(key(0x00, "pre:a"));
    let dump = "PREFIX pre get 1 hit 1 set 1 del 0\r\nEND\r\n";
    assert_eq!(
        statistics(&mut client, "detail dump"),
        [("detailed".to_owned(), dump.to_owned())]
    );
    assert_eq!(statistics(&mut client, "detail off"), []);
    for what in ["detail", "detail x", "nonsense", "d"] {
        assert_eq!(
            said(&client.call(key(0x10, what))),
            (NOT_FOUND, "Not found"),
            "{what}"
        );
    }
    in_step(&mut client);
}

#[test]
fn dumps_can_be_forbidden_here_too() {
    let mut settings = settings();
    settings.store.dump_enabled = false;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    for what in ["detail on", "detail dump"] {
        assert_eq!(client.call(key(0x10, what)).status, NOT_FOUND);
    }
}

#[test]
fn what_is_wrong_in_shape_ends_the_connection() {
    let server = TestServer::start();
    let long = "k".repeat(251);
    let eight = [0; 8];
    for packet in [
        bare(0x00),
        Packet {
            extras: b"1234",
            ..key(0x00, "k")
        },
        Packet {
            value: b"v",
            ..key(0x00, "k")
        },
        key(0x00, &long),
        Packet {
            extras: b"1234",
            value: b"v",
            ..key(0x01, "k")
        },
        Packet {
            extras: &eight,
            value: b"v",
            ..bare(0x01)
        },
        bare(0x04),
        Packet {
            extras: &eight,
            ..key(0x05, "k")
        },
        key(0x08, "k"),
        key(0x0a, "k"),
        Packet {
            value: b"v",
            ..bare(0x0b)
        },
        Packet {
            extras: b"1",
            value: b"v",
            ..key(0x0e, "k")
        },
        Packet {
            extras: b"1",
            ..bare(0x10)
        },
        key(0x1c, "k"),
        bare(0x1d),
        key(0x20, "k"),
        bare(0x21),
        key(0xee, &long),
    ] {
        let mut client = server.connect();
        let next = bare(0x0b).bytes();
        client.send([packet.bytes(), next].concat());
        let answer = client.answer();
        assert_eq!(said(&answer), (INVALID, "Invalid arguments"), "{packet:?}");
        assert_eq!(
            (answer.opcode, answer.opaque, answer.cas),
            (packet.opcode, packet.opaque, 0)
        );
        client.expect_end();
    }
}

#[test]
fn impossible_lengths_end_the_connection() {
    let server = TestServer::start();
    for (body, status, text) in [
        (2u32, UNKNOWN, "Unknown command"),
        (10, UNKNOWN, "Unknown command"),
        ((1 << 30) + 1, INVALID, "Invalid arguments"),
        (1 << 31, INVALID, "Invalid arguments"),
        (u32::MAX, INVALID, "Invalid arguments"),
    ] {
        let mut bytes = store(0x01, "key", "version\r\n").bytes();
        bytes[8..12].copy_from_slice(&body.to_be_bytes());
        let mut client = server.connect();
        client.send(bytes);
        assert_eq!(said(&client.answer()), (status, text), "{body}");
        client.expect_end();
    }
}

#[test]
fn the_unknown_is_passed_over_and_the_next_request_answered() {
    let server = TestServer::start();
    let mut client = server.connect();
    for opcode in [0x1b, 0x1f, 0x25, 0x30, 0x3d, 0x45, 0xff] {
        let packet = Packet {
            extras: b"1234",
            value: b"value",
            ..key(opcode, "key")
        };
        assert_eq!(said(&client.call(packet)), (UNKNOWN, "Unknown command"));
        in_step(&mut client);
    }
    for opcode in [0x20, 0x21, 0x22] {
        let packet = Packet {
            value: if opcode == 0x20 { b"" } else { b"\0user\0pass" },
            ..key(opcode, if opcode == 0x20 { "" } else { "PLAIN" })
        };
        assert_eq!(
            said(&client.call(packet)),
            (UNKNOWN, "Unknown command"),
            "{opcode:#x}: no -S"
        );
        in_step(&mut client);
    }
    let credentials = vec![b'x'; 100_000];
    let packet = Packet {
        value: &credentials,
        ..key(0x21, "PLAIN")
    };
    assert_eq!(said(&client.call(packet)), (UNKNOWN, "Unknown command"));
    in_step(&mut client);
}

#[test]
fn a_value_too_large_is_passed_over() {
    let server = TestServer::start();
    let mut client = server.connect();
    let value = "v".repeat(2 << 20);
    for (opcode, left) in [(0x02, true), (0x03, true), (0x0e, true), (0x01, false)] {
        client.call(store(0x01, "a", "old"));
        let answer = client.call(store(opcode, "a", &value));
        assert_eq!(said(&answer), (TOO_LARGE, "Too large."), "{opcode:#x}");
        let status = client.call(key(0x00, "a")).status;
        assert_eq!(
            status == OK,
            left,
            "{opcode:#x}: a stale value must not be read as the new one"
        );
    }
    in_step(&mut client);
}

#[test]
fn long_values_come_and_go_whole() {
    let server = TestServer::start();
    let mut client = server.connect();
    for length in [4_096, 16_384, 16_385, 300_000, 1_000_000] {
        let value: String = (0..length)
            .map(|n| char::from(b'a' + (n % 23) as u8))
            .collect();
        assert_eq!(client.call(store(0x01, "big", &value)).status, OK);
        let found = client.call(key(0x0c, "big"));
        assert!(
            found.value == value.as_bytes() && found.key == b"big",
            "{length}"
        );
    }
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.call(store(0x01, "key", "old"));
    let bytes = [
        store(0x01, "key", "value").bytes(),
        key(0x0c, "key").bytes(),
    ]
    .concat();
    for cut in 1..bytes.len() {
        client.send(&bytes[..cut]);
        std::thread::yield_now();
        client.send(&bytes[cut..]);
        assert_eq!(client.answer().status, OK, "{cut}");
        assert_eq!(client.answer().value, b"value", "{cut}");
    }
}

#[test]
fn keys_may_hold_any_byte() {
    let server = TestServer::start();
    let mut client = server.connect();
    let odd = Packet {
        opcode: 0x01,
        extras: &[0; 8],
        key: b"a b\r\n\0\xff",
        value: b"odd",
        ..Packet::default()
    };
    assert_eq!(client.call(odd).status, OK);
    let get = Packet {
        opcode: 0x0c,
        extras: b"",
        value: b"",
        ..odd
    };
    let found = client.call(get);
    assert_eq!((&found.key[..], &found.value[..]), (odd.key, odd.value));
}

#[test]
fn the_first_byte_decides_unless_the_listener_has() {
    let server = TestServer::start();
    let mut text = server.connect();
    text.ask("set a 0 0 5\r\nvalue\r\n", "STORED\r\n");
    let mut client = server.connect();
    assert_eq!(client.call(key(0x00, "a")).value, b"value");
    // Binary it stays.
    client.send("get a\r\n                    ");
    client.expect_end();
    text.ask("\x01get a\r\n", "ERROR\r\n");

    let mut settings = settings();
    settings.listen.protocol = Protocol::Binary;
    let server = TestServer::start_with(settings.clone());
    let mut client = server.connect();
    in_step(&mut client);
    let mut client = server.connect();
    client.send("version\r\n");
    client.expect_end();

    settings.listen.protocol = Protocol::Ascii;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    client.send(bare(0x0b).bytes());
    client.send("\r\nversion\r\n");
    assert_eq!(client.line(), "ERROR");
    assert_eq!(client.line(), "VERSION 1.6.45");
}

#[test]
fn without_cas_every_id_reads_nothing() {
    let mut settings = settings();
    settings.store.cas = false;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    // Nothing can be compared with what is sent: SET and REPLACE store, ADD adds.
    for (opcode, status) in [(0x01, OK), (0x03, OK), (0x02, EXISTS)] {
        let packet = Packet {
            cas: 7,
            ..store(opcode, "compared", "1")
        };
        assert_eq!(client.call(packet).status, status, "{opcode:#x}");
    }
    assert_eq!(client.call(store(0x01, "a", "1")).cas, 0);
    assert_eq!(client.call(key(0x00, "a")).cas, 0);
    let extras = count(1, 0, 0);
    assert_eq!(
        client
            .call(Packet {
                extras: &extras,
                ..key(0x05, "a")
            })
            .cas,
        0
    );
}
