//! Every command at random, from many clients, with copies that are compared at every digest.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::common::Client;
use crate::dice::Dice;
use crate::nodes::{Node, all_told, caught_up, eventually, in_sync, items, number};

const KEYS: u64 = 2000;

/// One request whose reply is one line, or none.
fn request(dice: &mut Dice) -> String {
    let key = format!("key{}", dice.roll(KEYS));
    let length = match dice.roll(40) {
        0 => 5000 + dice.roll(60_000),
        1..6 => dice.roll(4000),
        _ => dice.roll(200),
    } as usize;
    let digit = (b'0' + dice.roll(10) as u8) as char;
    let value: String = std::iter::repeat_n(digit, length).collect();
    let ttl = [0, 0, 0, 1, 2, 3][dice.roll(6) as usize];
    let store = |command: &str, rest: &str| {
        format!(
            "{command} {key} {} {ttl} {length}{rest}\r\n{value}\r\n",
            length % 3
        )
    };
    let short = &value[..value.len().min(18)];
    match dice.roll(24) {
        0..6 => store("set", ""),
        6 => store("add", ""),
        7 => store("replace", ""),
        8 => store("append", ""),
        9 => store("prepend", ""),
        10 => format!("set {key} 0 {ttl} {}\r\n{short}\r\n", short.len()),
        11 => format!("incr {key} {}\r\n", dice.roll(1000)),
        12 => format!("decr {key} {}\r\n", dice.roll(1000)),
        13 => format!("delete {key}\r\n"),
        14 => format!("touch {key} {ttl}\r\n"),
        15 => format!("md {key} I T{ttl}\r\n"),
        16 => format!("md {key} x\r\n"),
        17 => format!("mg {key} N30 t\r\n"),
        18 => format!("mg {key} R5 T{ttl}\r\n"),
        19 => format!("ma {key} N{ttl} J7 D3\r\n"),
        20 => format!("ms {key} {length} I C5 T{ttl}\r\n{value}\r\n"),
        21 => format!("cas {key} 0 0 {length} {}\r\n{value}\r\n", dice.roll(9)),
        // Often to a value that is long.
        22 if dice.roll(2) == 0 => format!("append {key} 0 0 3\r\n+++\r\n"),
        22 if dice.roll(150) == 0 => format!("flush_all {}\r\n", dice.roll(2)),
        _ => format!("ms {key} {length} MA T{ttl}\r\n{value}\r\n"),
    }
}

fn disturb(to: SocketAddr, seed: u64, until: Instant, pause: Duration) -> u64 {
    let mut dice = Dice::new(seed);
    let mut client = Client::to(to);
    let mut done = 0;
    while Instant::now() < until {
        let requests: String = (0..20).map(|_| request(&mut dice)).collect();
        client.send(requests);
        client.send("mn\r\n");
        // Replies of all kinds, up to that one.
        while client.line() != "MN" {}
        done += 20;
        std::thread::sleep(pause);
    }
    done
}

/// Runs for some time; returns the mutations and the digests that were compared.
fn mixed(seed: u64, time: Duration, pause: Duration) -> (u64, u64) {
    // So little memory that the leader evicts all the time.
    let leader = Node::leader(&["-m", "4"]);
    let follower = Node::follower(leader.copies, &["-m", "64"]);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    in_sync(&mut reader);
    let address = client.stream.peer_addr().unwrap();
    let until = Instant::now() + time;
    let threads = [1, 2]
        .map(|half| std::thread::spawn(move || disturb(address, 2 * seed + half, until, pause)));
    let done = threads
        .map(|thread| thread.join().expect("a client"))
        .iter()
        .sum();
    caught_up(&mut client, &mut reader);
    // What expires while the two are read is gone on one side only.
    let keys = || (0..KEYS).map(|key| format!("key{key}"));
    eventually("both show the same", || {
        caught_up(&mut client, &mut reader);
        items(&mut client, keys()) == items(&mut reader, keys())
    });
    let before = number(&mut reader, "digests_equal");
    client.ask("repl verify\r\n", "OK\r\n");
    eventually("digests are compared", || {
        number(&mut reader, "digests_equal") >= before + 64
    });
    let all = all_told(&mut reader);
    for name in [
        "digests_differed",
        "values_differed",
        "lost_locally",
        "no_room",
    ] {
        assert_eq!(all[name], "0", "{name} with seed {seed}");
    }
    assert!(
        client.stat("evictions") != "0",
        "seed {seed}: nothing was evicted"
    );
    (done, all["digests_equal"].parse().unwrap())
}

#[test]
fn copies_stay_equal_whatever_is_done() {
    mixed(1, Duration::from_millis(1500), Duration::ZERO);
}

#[test]
#[ignore = "takes ten minutes"]
fn copies_stay_equal_for_ten_minutes_with_ten_seeds() {
    let threads: Vec<_> = (1..=10)
        .map(|seed| {
            let pause = Duration::from_millis(20);
            let run = move || mixed(seed, Duration::from_secs(600), pause);
            (seed, std::thread::spawn(run))
        })
        .collect();
    for (seed, thread) in threads {
        let (done, digests) = thread.join().expect("equal");
        println!("seed {seed}: {done} requests, {digests} digests equal");
    }
}
