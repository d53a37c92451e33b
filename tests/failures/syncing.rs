//! Copies that come back far behind, or for the first time, and are disturbed meanwhile.

use std::net::TcpStream;
use std::time::Duration;

use crate::common::Client;
use crate::faults::{Faults, Way};
use crate::nodes::{Node, all_told, caught_up, eventually, in_sync, items, number, told};
use crate::writers::{How, Writer};

fn fill(client: &mut Client<TcpStream>, keys: impl Iterator<Item = u64>, fill: &str) {
    let mut lines = String::new();
    for key in keys {
        lines.push_str(&format!("set key{key} 0 0 100 noreply\r\n{fill:<100}\r\n"));
        if lines.len() > 100_000 {
            client.send(&lines);
            lines.clear();
        }
    }
    client.send(&lines);
    client.ask("mn\r\n", "MN\r\n");
}

#[track_caller]
fn expect_equal(client: &mut Client<TcpStream>, reader: &mut Client<TcpStream>, sample: u64) {
    caught_up(client, reader);
    assert_eq!(reader.stat("curr_items"), client.stat("curr_items"));
    let keys = || (0..sample).map(|key| format!("key{key}"));
    assert_eq!(items(reader, keys()), items(client, keys()));
}

/// Writes so many items over and over, until a log of 8 MiB has forgotten what was before.
fn write_over(client: &mut Client<TcpStream>, items: u64) {
    for round in 0..(20 << 20) / (items * 150) + 1 {
        fill(client, 0..items, &format!("new {round}"));
    }
}

/// A follower that was away until the log no longer reached back: only what differs is sent.
fn differs_a_little(count: u64) -> (Duration, u64, u64) {
    let leader = Node::leader(&["--repl-ring=8", "-m", "1024"]);
    let faults = Faults::before(leader.copies);
    let follower = Node::follower(faults.address(), &["-m", "1100"]);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    fill(&mut client, 0..count, "old");
    caught_up(&mut client, &mut reader);
    faults.down(true);
    eventually("it is gone", || told(&mut client, "state") == "gone");
    let changed = count / 100;
    write_over(&mut client, changed);
    let (down, up) = (faults.passed(Way::Down), faults.passed(Way::Up));
    let dialled = faults.accepted();
    faults.down(false);
    let waited = eventually("it dials", || faults.accepted() > dialled);
    let took = caught_up(&mut client, &mut reader);
    println!("after {waited:?} it dialled");
    expect_equal(&mut client, &mut reader, changed + 100);
    let all = all_told(&mut client);
    assert_eq!((&all["full_syncs"][..], &all["diff_syncs"][..]), ("0", "1"));
    // Where little has changed the log was enough.
    let repaired: u64 = all["items_repaired"].parse().unwrap();
    assert!((changed / 2..=changed).contains(&repaired), "{repaired}");
    let down = faults.passed(Way::Down) - down;
    let up = faults.passed(Way::Up) - up;
    (took, down, up)
}

/// Mutations would wait for the kernel where each partition's log is written to for the first time.
#[test]
fn the_log_has_its_memory_before_the_first_record() {
    let leader = Node::leader(&["--repl-ring=64"]);
    let before = leader.resident();
    let follower = Node::follower(leader.copies, &["--repl-ring=64"]);
    in_sync(&mut follower.connect());
    for (node, had) in [(&leader, before), (&follower, 0)] {
        let grown = node.resident() - had;
        assert!(grown >= 64 << 20, "{grown} bytes");
    }
}

#[test]
fn only_what_differs_is_sent() {
    differs_a_little(20_000);
}

/// As before, with large values that were changed here and there.
#[test]
fn of_large_values_only_segments_that_differ_are_sent() {
    const COUNT: usize = 10;
    const LENGTH: usize = 900_000;
    let leader = Node::leader(&["--repl-ring=8"]);
    let faults = Faults::before(leader.copies);
    let follower = Node::follower(faults.address(), &[]);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    let set = |client: &mut Client<TcpStream>, number: usize, value: &[u8]| {
        client.send(format!("set large{number} 5 0 {LENGTH}\r\n"));
        client.send(value);
        client.ask("\r\n", "STORED\r\n");
    };
    let mut values: Vec<Vec<u8>> = (0..COUNT)
        .map(|number| vec![b'a' + number as u8; LENGTH])
        .collect();
    for (number, value) in values.iter().enumerate() {
        set(&mut client, number, value);
    }
    caught_up(&mut client, &mut reader);
    faults.down(true);
    eventually("it is gone", || told(&mut client, "state") == "gone");
    for (number, value) in values.iter_mut().enumerate() {
        // Of the last one everything.
        match number {
            9 => value.fill(b'-'),
            _ => value[number * 99_000] = b'-',
        }
        set(&mut client, number, value);
    }
    write_over(&mut client, 2000);
    let before = faults.passed(Way::Down);
    faults.down(false);
    caught_up(&mut client, &mut reader);
    let down = faults.passed(Way::Down) - before;
    let (whole, segments) = (LENGTH as u64, 9 * (64 << 10));
    let rest = 500 << 10;
    assert!(
        (whole + segments..whole + segments + rest).contains(&down),
        "{down} bytes"
    );
    let all = all_told(&mut client);
    assert_eq!(
        (&all["diff_syncs"][..], &all["values_patched"][..]),
        ("1", "9")
    );
    for (number, value) in values.iter().enumerate() {
        let heads = [&mut reader, &mut client].map(|client| {
            client.send(format!("gets large{number}\r\n"));
            let head = client.line();
            client.expect(value);
            client.expect("\r\nEND\r\n");
            head
        });
        assert_eq!(heads[0], heads[1], "with the same CAS");
    }
}

#[test]
#[ignore = "shows figures"]
fn one_in_a_hundred_of_a_million_differs() {
    let (took, down, up) = differs_a_little(1_000_000);
    // Of a changed item: 40 bytes, its key and its value.
    let changes: usize = (0..10_000)
        .map(|key| 40 + format!("key{key}").len() + 100)
        .sum();
    assert!(down + up <= 2 * changes as u64 + (32 << 10));
    println!("1 % of 1000000 items differ: {took:?}, {down} bytes down, {up} up");
}

/// A new follower of a leader that is written to.
fn comes_anew(count: u64, writes: How) -> Duration {
    let leader = Node::leader(&["-m", "1024"]);
    let mut client = leader.connect();
    fill(&mut client, 0..count, "value");
    let address = client.stream.peer_addr().unwrap();
    let writer = Writer::start(address, writes);
    let follower = Node::follower(leader.copies, &["-m", "1100"]);
    let mut reader = follower.connect();
    let took = eventually("it is whole", || {
        told(&mut reader, "whole_partitions") == "64"
    });
    let memory = writer.end();
    println!(
        "full synchronisation of {count} items: {took:?}, with {} mutations meanwhile",
        memory.acks
    );
    expect_equal(&mut client, &mut reader, 1000);
    client.ask("repl verify\r\n", "OK\r\n");
    eventually("digests are compared", || {
        number(&mut reader, "digests_equal") >= 64
    });
    assert_eq!(told(&mut reader, "digests_differed"), "0");
    took
}

const BUSY: How = How {
    name: "key",
    keys: 1000,
    depth: 50,
    bytes: 100,
    pause: Duration::from_millis(1),
};

#[test]
fn a_new_follower_becomes_whole_while_all_is_written() {
    comes_anew(20_000, BUSY);
}

#[test]
#[ignore = "shows figures"]
fn a_million_items_and_fifty_thousand_writes_a_second() {
    comes_anew(1_000_000, BUSY);
}

/// The connection of a new follower is cut again and again while it synchronises.
fn is_disturbed(count: u64) {
    let leader = Node::leader(&["-m", "1024", "--repl-ring=8"]);
    let mut client = leader.connect();
    fill(&mut client, 0..count, "value");
    let faults = Faults::before(leader.copies);
    let follower = Node::follower(faults.address(), &["-m", "1100"]);
    let mut reader = follower.connect();
    let whole = count * 150;
    for share in [10, 50, 90] {
        eventually("it is so far", || {
            faults.passed(Way::Down) > whole * share / 100
                || told(&mut reader, "whole_partitions") == "64"
        });
        faults.cut();
        // The log goes on beyond what it held, so that nothing can go on from there.
        fill(&mut client, 0..count / 20, &format!("at {share}"));
    }
    in_sync(&mut reader);
    expect_equal(&mut client, &mut reader, count / 20);
    let passed = faults.passed(Way::Down);
    println!("{count} items, cut at 10, 50 and 90 %: {passed} bytes in all, {whole} of items");
    assert!(passed < 3 * whole, "what was there was not sent again");
}

#[test]
fn a_synchronisation_that_is_cut_goes_on_where_it_was() {
    is_disturbed(30_000);
}

#[test]
#[ignore = "shows figures"]
fn a_synchronisation_of_a_million_that_is_cut() {
    is_disturbed(1_000_000);
}

/// Two followers are promoted: whoever did so later wins, and the other comes to have the same.
#[test]
fn of_two_leaders_the_later_one_wins() {
    let leader = Node::leader(&[]);
    let followers = [0, 1].map(|_| Node::follower(leader.copies, &[]));
    let [mut first, mut second] = followers.each_ref().map(Node::connect);
    let mut client = leader.connect();
    fill(&mut client, 0..2000, "old");
    for reader in [&mut first, &mut second] {
        caught_up(&mut client, reader);
        in_sync(reader);
    }
    leader.program.signal("KILL");
    first.ask("repl promote\r\n", "OK epoch 2\r\n");
    fill(&mut first, 0..50, "of the first");
    first.ask("delete key60\r\n", "DELETED\r\n");
    second.ask("repl promote\r\n", "OK epoch 2\r\n");
    second.ask(format!("repl follow {}\r\n", followers[0].copies), "OK\r\n");
    // Of the same number, and with items: it gives nothing up for a leader that is no later.
    let refused = number(&mut second, "records");
    second.ask("repl promote --force\r\n", "OK epoch 3\r\n");
    assert!(number(&mut second, "records") >= refused);
    fill(&mut second, 30..80, "of the second");
    first.ask(format!("repl follow {}\r\n", followers[1].copies), "OK\r\n");
    expect_equal(&mut second, &mut first, 2000);
    let all = all_told(&mut second);
    assert_eq!((&all["full_syncs"][..], &all["diff_syncs"][..]), ("0", "1"));
    first.ask("set k 0 0 1\r\nx\r\n", "SERVER_ERROR not leader\r\n");
}
