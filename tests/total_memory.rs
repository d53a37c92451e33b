//! One limit for items, table, buffers and clients (`-o total_memory`).
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use common::{Program, program};

/// Bytes that a process holds.
fn resident(id: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{id}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn items_and_clients_share_one_limit() {
    const LIMIT: u64 = 64 << 20;
    let server = Program::start(&[
        "-p",
        "-1",
        "-l",
        "127.0.0.1",
        "-c",
        "512",
        "-o",
        "total_memory=64",
    ]);
    let mut client = server.connect();
    let value = "v".repeat(1000);
    let fill = |client: &mut common::Client<std::net::TcpStream>, from: usize| {
        for number in from..from + 80_000 {
            client.send(format!("set key_{number} 0 0 1000 noreply\r\n{value}\r\n"));
        }
        client.ask("mn\r\n", "MN\r\n");
    };
    fill(&mut client, 0);
    assert!(client.stat("evictions").parse::<u64>().unwrap() > 0);
    let items: u64 = client.stat("curr_items").parse().unwrap();
    assert!(items * 1000 > LIMIT / 2, "{items} items use most of it");
    let alone = resident(server.id());
    assert!(alone <= LIMIT, "{alone} bytes");

    // Clients that have sent half a value each take their share; items make room.
    let mut halves: Vec<_> = (0..200).map(|_| server.connect()).collect();
    for (number, half) in halves.iter_mut().enumerate() {
        half.send(format!(
            "set half_{number} 0 0 65000\r\n{}",
            "h".repeat(60_000)
        ));
        half.send(format!("get {}", "k".repeat(100)));
    }
    for _ in 0..100 {
        sleep(Duration::from_millis(50));
        if resident(server.id()) <= LIMIT {
            break;
        }
    }
    fill(&mut client, 80_000);
    let crowded = resident(server.id());
    assert!(crowded <= LIMIT, "{crowded} bytes");
    client.ask("get nothing\r\n", "END\r\n");
}

#[test]
fn a_limit_that_cannot_be_is_refused() {
    for (arguments, said) in [
        (
            &["-o", "total_memory=1"][..],
            "total_memory must be at least 24 megabytes\n",
        ),
        (
            &["-o", "total_memory=x"],
            "could not parse argument to total_memory\n",
        ),
        (
            &["-o", "total_memory=64", "-L"],
            "total_memory cannot be kept with -L or -e, whose memory stays taken.\n",
        ),
    ] {
        let output = program(arguments).output().unwrap();
        assert!(!output.status.success());
        assert_eq!(String::from_utf8(output.stderr).unwrap(), said);
    }
}
