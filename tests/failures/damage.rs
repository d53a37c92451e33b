//! Items that are not what they should be, and clocks that are wrong: found, and made good.

use std::fs::{File, OpenOptions, read_to_string};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::Client;
use crate::faults::{Faults, Tamper};
use crate::nodes::{Node, all_told, caught_up, eventually, in_sync, number, told};

/// Bytes by which long values are compared.
const SEGMENT: usize = 64 << 10;

/// Text that is nowhere else in a process.
fn noise(length: usize, mut seed: u64) -> String {
    let letters = (0..length).map(|_| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        char::from(b'a' + (seed >> 20) as u8 % 26)
    });
    letters.collect()
}

/// Changes one bit in the memory of a process, wherever this text stands.
fn rot(node: &Node, text: &str) -> usize {
    const PAGE: u64 = 4096;
    let open = |name: &str, writes: bool| {
        let path = format!("/proc/{}/{name}", node.program.id());
        let file = OpenOptions::new().read(true).write(writes).open(path);
        file.expect("what a process shows")
    };
    let (memory, pages) = (open("mem", true), open("pagemap", false));
    let maps = read_to_string(format!("/proc/{}/maps", node.program.id())).expect("its map");
    let finder = memchr::memmem::Finder::new(text);
    let mut bytes = vec![0; PAGE as usize + text.len()];
    // Of a page that has been touched, the top bit is set.
    let mut touched = vec![0; 8 << 15];
    let mut changed = 0;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let (from, to) = range.expect("a range");
        let page = |hex| u64::from_str_radix(hex, 16).expect("an address") / PAGE;
        let (mut at, to) = (page(from), page(to));
        while at < to {
            let some = touched.len().min(8 * (to - at) as usize);
            let told = pages.read_at(&mut touched[..some], at * 8).expect("told");
            for (page, word) in touched[..told].chunks_exact(8).enumerate() {
                let start = (at + page as u64) * PAGE;
                if word[7] & 0x80 == 0 {
                    continue;
                }
                let read = memory.read_at(&mut bytes, start).unwrap_or(0);
                for at in finder.find_iter(&bytes[..read]) {
                    let bit = bytes[at] ^ 1;
                    let place = start + at as u64;
                    memory.write_all_at(&[bit], place).expect("written");
                    changed += 1;
                }
            }
            at += told as u64 / 8;
        }
    }
    changed
}

fn read(client: &mut Client<TcpStream>, key: &str) -> Option<String> {
    client.send(format!("mg {key} v\r\n"));
    client.line().starts_with("VA").then(|| client.line())
}

/// One byte of a value rots in the memory of a follower. How long until it is as it was.
fn rots(length: usize, options: &[&str]) -> Duration {
    let leader = Node::leader(&["--repl-scrub=1"]);
    let follower = Node::follower(leader.copies, options);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    let value = noise(length, length as u64 | 1);
    client.ask(format!("set key 0 0 {length}\r\n{value}\r\n"), "STORED\r\n");
    caught_up(&mut client, &mut reader);
    in_sync(&mut reader);
    // Beyond the first segment, where there are several.
    let at = length * 2 / 3;
    let sent = |client: &mut Client<TcpStream>| {
        let all = all_told(client);
        let number = |name: &str| all[name].parse::<usize>().expect("a number");
        (number("values_patched"), number("sent_bytes"))
    };
    let (_, before) = sent(&mut client);
    assert!(rot(&follower, &value[at..at + 30]) > 0, "it is found");
    let took = eventually("it is found and made good", || {
        let found = number(&mut reader, "values_differed");
        let dropped = reader.stat_of("larder", "values_damaged");
        let found = found + dropped.parse::<u64>().unwrap();
        found > 0 && read(&mut reader, "key").as_deref() == Some(&value[..])
    });
    assert_eq!(
        read(&mut client, "key"),
        Some(value),
        "the leader's is right"
    );
    if number(&mut reader, "values_differed") > 0 && length >= 2 * SEGMENT {
        // Only the segment that it was in.
        let (patched, after) = sent(&mut client);
        assert_eq!(patched, 1);
        assert!(after - before < length / 2, "{} bytes", after - before);
    }
    took
}

#[test]
fn a_short_value_that_rots_is_made_good() {
    println!("100 bytes: {:?}", rots(100, &[]));
}

#[test]
fn a_large_value_that_rots_is_made_good_whoever_looks() {
    // By its own digests, and by the leader's root.
    println!(
        "300 KB, by itself: {:?}",
        rots(300_000, &["-o", "scrub_rate=256"])
    );
    println!(
        "300 KB, by the leader: {:?}",
        rots(300_000, &["-o", "scrub_rate=0"])
    );
}

/// The connection breaks whenever a part has been compared, and what has rotted is found all the same.
#[test]
fn comparing_goes_on_where_the_connection_has_broken() {
    const LENGTH: usize = 50_000;
    const PART: u64 = 100;
    let leader = Node::leader(&["--repl-scrub=1"]);
    let faults = Faults::before(leader.copies);
    let follower = Node::follower(faults.address(), &[]);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    let value = noise(LENGTH, 11);
    for key in 0..5 * PART {
        client.send(format!("set key{key} 0 0 {LENGTH} noreply\r\n{value}\r\n"));
    }
    let rotten = noise(LENGTH, 12);
    client.ask(
        format!("set rots 0 0 {LENGTH}\r\n{rotten}\r\n"),
        "STORED\r\n",
    );
    caught_up(&mut client, &mut reader);
    in_sync(&mut reader);
    assert!(rot(&follower, &rotten[100..130]) > 0, "it is found");
    // The round under way may have passed it before.
    let rounds = number(&mut client, "scrubs") + 2;
    let (mut last, mut cut_at) = ((0, 0), (0, 0));
    eventually("another whole round", || {
        let all = all_told(&mut client);
        let number = |name: &str| all[name].parse::<u64>().expect("a number");
        let told = (number("scrubs"), number("scrub_items"));
        assert!(told >= last, "{last:?}, and then {told:?}");
        last = told;
        if told >= (cut_at.0, cut_at.1 + PART) {
            faults.cut();
            cut_at = told;
        }
        told.0 >= rounds
    });
    assert_eq!(read(&mut reader, "rots"), Some(rotten));
}

/// A gigabyte of values of this length, and a byte rots here and there. How long until each is as it was.
fn rots_among_a_gigabyte(length: usize) -> Vec<Duration> {
    let leader = Node::leader(&["--repl-scrub=1", "-m", "2048"]);
    let follower = Node::follower(leader.copies, &["-o", "scrub_rate=0", "-m", "2150"]);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    let value = noise(length, 7);
    // With what it takes to keep them.
    let count = (1 << 30) / (length + 64);
    let mut lines = String::new();
    for key in 0..count {
        lines.push_str(&format!("set key{key} 0 0 {length} noreply\r\n{value}\r\n"));
        if lines.len() > 1 << 20 || key + 1 == count {
            client.send(&lines);
            lines.clear();
        }
    }
    client.ask("mn\r\n", "MN\r\n");
    caught_up(&mut client, &mut reader);
    in_sync(&mut reader);
    assert_eq!(client.stat("curr_items"), count.to_string());
    let (began, before) = (Instant::now(), [&leader, &follower].map(Node::cpu));
    let took = (1..=6).map(|round| {
        let value = noise(length, round);
        let key = count * round as usize / 7;
        client.ask(
            format!("set key{key} 0 0 {length}\r\n{value}\r\n"),
            "STORED\r\n",
        );
        caught_up(&mut client, &mut reader);
        let before = number(&mut reader, "values_differed");
        assert!(rot(&follower, &value[20..60]) > 0, "it is found");
        let took = eventually("it is found", || {
            number(&mut reader, "values_differed") > before
        });
        let key = format!("key{key}");
        took + eventually("it is made good", || {
            read(&mut reader, &key).as_ref() == Some(&value)
        })
    });
    let took = took.collect();
    let passed = began.elapsed().as_secs_f64();
    let share = |now: Duration, before: Duration| (now - before).as_secs_f64() / passed;
    println!(
        "{count} values of {length} bytes: made good after {took:?}, for {:.3} of a processor here and {:.3} there",
        share(leader.cpu(), before[0]),
        share(follower.cpu(), before[1])
    );
    took
}

/// However long the values are, a round takes no longer than it should.
#[test]
#[ignore = "shows figures"]
fn how_soon_a_byte_among_a_gigabyte_is_found() {
    for length in [1000, 100_000, 100] {
        let took = rots_among_a_gigabyte(length);
        assert!(took.iter().all(|took| took.as_secs() < 60), "{took:?}");
    }
}

/// A record is lost, and nothing but the items shows it.
fn one_is_lost(ask: bool) -> Duration {
    let leader = Node::leader(&[]);
    let faults = Faults::before(leader.copies);
    let follower = Node::follower(faults.address(), &[]);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    client.ask("set key 0 0 3\r\nold\r\n", "STORED\r\n");
    caught_up(&mut client, &mut reader);
    in_sync(&mut reader);
    faults.tamper(Tamper::Forge);
    client.ask("set key 0 0 3\r\nnew\r\n", "STORED\r\n");
    eventually("that has been done", || faults.tampered());
    caught_up(&mut client, &mut reader);
    let since = Instant::now();
    if ask {
        assert_eq!(read(&mut reader, "key").as_deref(), Some("old"));
        client.ask("repl verify\r\n", "OK\r\n");
    }
    eventually("it is found and made good", || {
        read(&mut reader, "key").as_deref() == Some("new")
    });
    assert_eq!(told(&mut reader, "digests_differed"), "1");
    let all = all_told(&mut client);
    assert_eq!(
        (&all["digest_repairs"][..], &all["diff_syncs"][..]),
        ("1", "0")
    );
    since.elapsed()
}

#[test]
fn a_record_that_is_lost_is_found_by_the_next_digest() {
    one_is_lost(true);
}

#[test]
#[ignore = "shows figures"]
fn how_soon_a_lost_record_is_found() {
    println!("one record lost: made good after {:?}", one_is_lost(false));
}

/// Makes a program believe that it is another time.
const SHIFT: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += atoi(getenv("CLOCK_SHIFT"));
    return failed;
}
"#;

/// A follower whose clock is so many seconds ahead.
fn wrong_clock(seconds: i64) {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("shift.so");
    let mut compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-O", "-x", "c", "-", "-o"])
        .arg(&library)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a C compiler");
    let mut source = compiler.stdin.take().unwrap();
    source.write_all(SHIFT.as_bytes()).unwrap();
    drop(source);
    assert!(compiler.wait().unwrap().success());
    let said = folder.path().join("said");
    let leader = Node::leader(&[]);
    let mut client = leader.connect();
    // Some come with the first synchronisation, some later.
    client.ask("set before 0 4 1\r\nx\r\n", "STORED\r\n");
    let began = Instant::now();
    let follow = format!("--follow={}", leader.copies);
    let follower = Node::start_with(&[&follow, "-v"], |command| {
        command
            .env("LD_PRELOAD", &library)
            .env("CLOCK_SHIFT", seconds.to_string())
            .stderr(File::create(&said).unwrap());
    });
    let mut reader = follower.connect();
    caught_up(&mut client, &mut reader);
    client.ask("set behind 0 4 1\r\nx\r\n", "STORED\r\n");
    caught_up(&mut client, &mut reader);
    eventually("there is an alarm", || {
        number(&mut reader, "clock_alarms") > 0
    });
    let skew = -seconds * 1000;
    let told: i64 = told(&mut reader, "clock_skew_ms").parse().unwrap();
    assert!((told - skew).abs() < 1000, "{told}");
    eventually("the leader knows as well", || {
        let all = all_told(&mut client);
        let told: i64 = all["clock_skew_ms"].parse().unwrap();
        (told + skew).abs() < 1000
    });
    eventually("it is said", || {
        let said = read_to_string(&said).unwrap();
        said.contains("ms ahead of this one: expiry times follow the leader's")
    });
    // Not gone a second before its time, wherever it is read.
    while began.elapsed() < Duration::from_millis(2500) {
        let there = ["before", "behind"].map(|key| read(&mut reader, key));
        if began.elapsed() < Duration::from_millis(2500) {
            assert!(there.iter().all(Option::is_some), "{seconds}: {there:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    eventually("it is gone", || {
        let keys = ["before", "behind"];
        keys.iter().all(|key| read(&mut reader, key).is_none())
    });
    let lasted = began.elapsed();
    assert!(lasted >= Duration::from_millis(2900), "{lasted:?}");
}

#[test]
fn a_follower_whose_clock_is_ahead_keeps_the_leaders_time() {
    wrong_clock(5);
}

#[test]
fn a_follower_whose_clock_is_behind_keeps_the_leaders_time() {
    wrong_clock(-5);
}
