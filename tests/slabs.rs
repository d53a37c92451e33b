//! Pages, classes and evictions, as an administrator sees them: what memcached's own tests show with
//! its exact figures, shown without them.
#![forbid(unsafe_code)]

mod common;

use std::collections::HashMap;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use common::{Client, TestServer, settings};

type Plain = Client<TcpStream>;

fn store(client: &mut Plain, key: &str, length: usize) {
    let value = value(key, length);
    client.ask(
        format!("set {key} 0 0 {length}\r\n{value}\r\n"),
        "STORED\r\n",
    );
}

fn value(key: &str, length: usize) -> String {
    key.chars().cycle().take(length).collect()
}

/// Whether a key is there; if so, its value is right.
fn holds(client: &mut Plain, key: &str, length: usize) -> bool {
    client.send(format!("get {key}\r\n"));
    let line = client.line();
    if line == "END" {
        return false;
    }
    assert_eq!(line, format!("VALUE {key} 0 {length}"));
    client.expect(format!("{}\r\nEND\r\n", value(key, length)));
    true
}

fn stats(client: &mut Plain, of: &str) -> HashMap<String, u64> {
    client.send(format!("stats {of}\r\n"));
    let mut found = HashMap::new();
    loop {
        let line = client.line();
        if line == "END" {
            return found;
        }
        let mut words = line.split(' ').skip(1);
        if let (Some(name), Some(Ok(value))) = (words.next(), words.next().map(str::parse)) {
            found.insert(name.to_owned(), value);
        }
    }
}

/// Looks again and again until it is so.
#[track_caller]
fn wait_until(mut so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(since.elapsed() < Duration::from_secs(20), "it never was");
        thread::sleep(Duration::from_millis(20));
    }
}

fn server(megabytes: u64, change: impl FnOnce(&mut larder::settings::Store)) -> TestServer {
    let mut settings = settings();
    settings.store.max_bytes = megabytes << 20;
    change(&mut settings.store);
    TestServer::start_with(settings)
}

#[test]
fn reassign_moves_pages_from_class_to_class() {
    let server = server(8, |store| store.slab_automove = 0);
    let mut client = server.connect();
    // Classes 12 (1184) and 18 (4544).
    for number in 0..1000 {
        store(&mut client, &format!("small{number}"), 1000);
    }
    for number in 0..2000 {
        store(&mut client, &format!("large{number}"), 4300);
    }
    let before = stats(&mut client, "slabs");
    assert!(before["18:total_pages"] > 2, "{before:?}");
    client.ask("slabs reassign 18 12\r\n", "OK\r\n");
    wait_until(|| stats(&mut client, "")["slabs_moved"] > 0);
    let after = stats(&mut client, "slabs");
    assert_eq!(after["18:total_pages"] + 1, before["18:total_pages"]);
    assert_eq!(after["12:total_pages"], before["12:total_pages"] + 1);
    // What is there is whole.
    let held = (0..2000)
        .filter(|number| holds(&mut client, &format!("large{number}"), 4300))
        .count();
    assert!(held > 1000, "{held}");
    // A second move is possible, one to a class that does not exist is not.
    client.ask("slabs reassign 18 12\r\n", "OK\r\n");
    client.ask(
        "slabs reassign 18 60\r\n",
        "BADCLASS invalid src or dst class id\r\n",
    );
}

#[test]
fn chunks_of_large_values_are_rescued() {
    let server = server(32, |store| store.slab_automove = 0);
    let mut client = server.connect();
    let (count, length) = (600, 40_000);
    for number in 0..count {
        store(&mut client, &format!("key{number}"), length);
    }
    assert_eq!(stats(&mut client, "")["evictions"], 0);
    for number in (0..count).step_by(2) {
        client.ask(format!("delete key{number}\r\n"), "DELETED\r\n");
    }
    let (class, held) = stats(&mut client, "items")
        .iter()
        .find_map(|(name, &number)| {
            let class = name.strip_prefix("items:")?.strip_suffix(":number")?;
            Some((class.to_owned(), number))
        })
        .expect("a class with items");
    assert_eq!(held, count / 2);
    for _ in 0..3 {
        wait_until(|| {
            client.send(format!("slabs reassign {class} 0\r\n"));
            client.line() == "OK"
        });
    }
    wait_until(|| stats(&mut client, "")["slab_global_page_pool"] >= 3);
    let after = stats(&mut client, "");
    assert!(after["slab_reassign_chunk_rescues"] > 0);
    assert_eq!(after["evictions"], 0);
    for number in (1..count).step_by(2) {
        assert!(holds(&mut client, &format!("key{number}"), length));
    }
}

#[test]
fn the_limit_moves_up_and_down() {
    let server = server(3, |_| ());
    let mut client = server.connect();
    for number in 0..60 {
        store(&mut client, &format!("key{number}"), 66_560);
    }
    let evicted = stats(&mut client, "")["evictions"];
    assert!(evicted > 0);
    client.ask("cache_memlimit 16\r\n", "OK\r\n");
    for number in 60..150 {
        store(&mut client, &format!("key{number}"), 66_560);
    }
    assert_eq!(stats(&mut client, "")["evictions"], evicted);
    let full = stats(&mut client, "slabs")["total_malloced"];
    client.ask("cache_memlimit 8\r\n", "OK\r\n");
    assert!(full > 8 << 20);
    // Less memory is held, and what still is there is whole. While pages are on their way out,
    // `total_malloced` counts whole megabytes and is there early.
    let mut held = 0;
    wait_until(|| {
        held = (0..150)
            .filter(|number| holds(&mut client, &format!("key{number}"), 66_560))
            .count();
        held <= 126
    });
    assert!(held >= 60, "{held}");
    assert!(stats(&mut client, "slabs")["total_malloced"] <= 8 << 20);
}

#[test]
fn each_value_takes_the_place_of_one() {
    let server = server(3, |_| ());
    let mut client = server.connect();
    for number in 0..60 {
        store(&mut client, &format!("key{number}"), 66_560);
    }
    client.ask("stats reset\r\n", "RESET\r\n");
    assert_eq!(stats(&mut client, "items")["items:31:evicted"], 0);
    for number in 60..100 {
        store(&mut client, &format!("key{number}"), 66_560);
    }
    assert_eq!(stats(&mut client, "items")["items:31:evicted"], 40);
}

#[test]
fn the_oldest_go_first() {
    let server = server(16, |store| store.lru_maintainer = false);
    let mut client = server.connect();
    let count = 400;
    for number in 0..count {
        store(&mut client, &format!("key{number}"), 100_000);
    }
    let evicted = stats(&mut client, "")["evictions"] as usize;
    assert!(evicted > 200);
    let there: Vec<bool> = (0..count)
        .map(|number| holds(&mut client, &format!("key{number}"), 100_000))
        .collect();
    assert_eq!(there.iter().filter(|there| !**there).count(), evicted);
    // But for a few, whose last bytes stood in a bin of their own.
    let early = there[..evicted - 10].iter().filter(|there| **there).count();
    assert!(early <= 10, "{early} old ones are still there");
    assert!(there[count - 20..].iter().all(|there| *there));
}

#[test]
fn deleted_values_give_their_pages_to_others() {
    let server = server(16, |_| ());
    let mut client = server.connect();
    for number in 0..1200 {
        store(&mut client, &format!("a{number}"), 11_000);
    }
    for number in 0..1200 {
        if number % 4 != 0 {
            client.send(format!("delete a{number}\r\n"));
            client.line();
        }
    }
    wait_until(|| stats(&mut client, "")["slab_global_page_pool"] >= 9);
    let evicted = stats(&mut client, "")["evictions"];
    for number in 0..1000 {
        store(&mut client, &format!("b{number}"), 6000);
    }
    let after = stats(&mut client, "");
    if after["evictions"] != evicted {
        let items = stats(&mut client, "items");
        let mut items: Vec<_> = items
            .iter()
            .filter(|(name, _)| name.contains("evicted") || name.contains("number"))
            .collect();
        items.sort();
        panic!("{after:?} {items:?} {:?}", stats(&mut client, "slabs"));
    }
    client.ask("flush_all\r\n", "OK\r\n");
    wait_until(|| stats(&mut client, "")["slab_global_page_pool"] >= 12);
    wait_until(|| stats(&mut client, "")["curr_items"] == 0);
}

#[test]
fn queues_are_told_apart() {
    let server = server(4, |store| store.temporary_ttl = Some(61));
    let mut client = server.connect();
    let soon = value("soon", 100);
    client.ask(format!("set soon 0 30 100\r\n{soon}\r\n"), "STORED\r\n");
    let class = 4;
    let of = |client: &mut Plain, name: &str| {
        let stats = stats(client, "items");
        let found = stats.get(&format!("items:{class}:{name}"));
        found
            .copied()
            .unwrap_or_else(|| panic!("{name}: {stats:?}"))
    };
    assert_eq!(of(&mut client, "number_temp"), 1);
    for number in 0..100 {
        store(&mut client, &format!("key{number:05}"), 100);
    }
    // No pressure: nobody has to prove itself.
    assert_eq!(of(&mut client, "number_hot"), 0);
    assert_eq!(of(&mut client, "number_cold"), 100);
    for number in 0..10 {
        assert!(holds(&mut client, &format!("key{number:05}"), 100));
    }
    assert_eq!(of(&mut client, "number_warm"), 10);
    assert_eq!(of(&mut client, "hits_to_cold"), 10);
    assert_eq!(of(&mut client, "moves_to_warm"), 10);
    for number in 100..60_000 {
        client.send(format!(
            "set key{number:05} 0 0 100 noreply\r\n{}\r\n",
            value("v", 100)
        ));
    }
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
    let all = stats(&mut client, "items");
    let queue = |name: &str| all[&format!("items:{class}:{name}")];
    assert!(queue("number_hot") > 1000, "{all:?}");
    assert_eq!(queue("number_temp"), 1);
    assert!(queue("evicted") > 1000);
    assert_eq!(
        queue("number_hot") + queue("number_warm") + queue("number_cold") + 1,
        queue("number")
    );
    // The temporary one outlives them, and those that were read.
    assert!(holds(&mut client, "soon", 100));
    assert!(holds(&mut client, "key00003", 100));
    // In flat mode the queues are not shown.
    client.ask("lru mode flat\r\n", "OK\r\n");
    assert!(!stats(&mut client, "items").contains_key("items:4:number_hot"));
}

#[test]
fn expired_memory_comes_back_by_itself() {
    let server = server(64, |_| ());
    let mut client = server.connect();
    let value = value("v", 500);
    let all: String = (0..1000)
        .map(|number| format!("set key{number} 0 3 500 noreply\r\n{value}\r\n"))
        .collect();
    client.send(all);
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
    assert_eq!(client.stat("curr_items"), "1000");
    wait_until(|| client.stat("curr_items") == "0");
    let all = stats(&mut client, "");
    assert_eq!(all["reclaimed"], 1000, "{all:?}");
    assert_eq!(all["expired_unfetched"], 1000);
}
