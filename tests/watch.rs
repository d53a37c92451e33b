//! `watch`: every stream with its lines, who may not, and who is too slow.

mod common;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::binary::Packet;
use common::{Client, TestServer, settings};

struct Watcher {
    client: Client<TcpStream>,
}

impl Watcher {
    #[track_caller]
    fn of(server: &TestServer, streams: &str) -> Watcher {
        let mut client = server.connect();
        client.ask(format!("watch {streams}\r\n"), "OK\r\n");
        Watcher { client }
    }

    /// The next line, without time, number and what differs between two runs.
    #[track_caller]
    fn line(&mut self) -> String {
        let line = self.client.line();
        let mut words = line.split(' ');
        let time = words.next().unwrap().strip_prefix("ts=").expect("a time");
        let (seconds, micros) = time.split_once('.').expect("a fraction");
        assert!(seconds.parse::<u64>().unwrap() > 1_600_000_000);
        assert!(micros.parse::<u32>().unwrap() < 1_000_000);
        words
            .next()
            .unwrap()
            .strip_prefix("gid=")
            .expect("a number")
            .parse::<u64>()
            .unwrap();
        let words: Vec<&str> = words
            .map(|word| match word.split_once('=') {
                Some((name @ ("cfd" | "rport" | "fd" | "elapsed"), number)) => {
                    number.parse::<u32>().unwrap();
                    name
                }
                _ => word,
            })
            .collect();
        words.join(" ")
    }

    #[track_caller]
    fn expect(&mut self, lines: &[&str]) {
        for expected in lines {
            assert_eq!(self.line(), *expected);
        }
    }
}

#[test]
fn fetchers_hear_of_every_look_up() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.ask("set a 0 0 3\r\nabc\r\n", "STORED\r\n");
    let mut watcher = Watcher::of(&server, "fetchers");
    client.send("get a b\r\ngat 0 a\r\ntouch b 1\r\nmg a v\r\nmg new N30\r\nincr b 1\r\ndelete a\r\nset q%ÿ 0 0 1\r\nx\r\nmn\r\n");
    client.expect("VALUE a 0 3\r\nabc\r\nEND\r\nVALUE a 0 3\r\nabc\r\nEND\r\nNOT_FOUND\r\nVA 3\r\nabc\r\nHD W\r\nNOT_FOUND\r\nDELETED\r\nSTORED\r\nMN\r\n");
    watcher.expect(&[
        "type=item_get key=a status=found clsid=1 cfd size=3",
        "type=item_get key=b status=not_found clsid=0 cfd size=0",
        "type=item_get key=a status=found clsid=1 cfd size=3",
        "type=item_get key=b status=not_found clsid=0 cfd size=0",
        "type=item_get key=a status=found clsid=1 cfd size=3",
        "type=item_get key=new status=not_found clsid=0 cfd size=0",
        "type=item_get key=b status=not_found clsid=0 cfd size=0",
        "type=item_get key=a status=found clsid=1 cfd size=3",
        "type=item_get key=q%25%C3%BF status=not_found clsid=0 cfd size=0",
    ]);
}

#[test]
fn without_a_word_it_is_fetchers() {
    let server = TestServer::start();
    let mut watcher = server.connect();
    watcher.ask("watch\r\n", "OK\r\n");
    server.connect().ask("get a\r\n", "END\r\n");
    assert!(
        watcher
            .line()
            .contains(" type=item_get key=a status=not_found ")
    );
}

#[test]
fn mutations_tell_what_became_of_a_value() {
    let server = TestServer::start();
    let mut client = server.connect();
    let mut watcher = Watcher::of(&server, "mutations");
    let big = "v".repeat(2 << 20);
    client.send("set a 0 60 3\r\nabc\r\nadd a 0 0 1\r\nx\r\nreplace b 0 0 1\r\nx\r\nappend a 0 0 1\r\nd\r\ncas a 0 0 1 1\r\nx\r\ncas b 0 0 1 1\r\nx\r\n");
    client.send("ms m 1 T50\r\nx\r\nma n N0 J15\r\nmd m x\r\n");
    client.send(format!("set a 0 0 {}\r\n{big}\r\nmn\r\n", big.len()));
    client.expect("STORED\r\nNOT_STORED\r\nNOT_STORED\r\nSTORED\r\nEXISTS\r\nNOT_FOUND\r\nHD\r\nHD\r\nHD\r\nSERVER_ERROR object too large for cache\r\nMN\r\n");
    watcher.expect(&[
        "type=item_store key=a status=stored cmd=set ttl=60 clsid=1 cfd size=3",
        "type=item_store key=a status=not_stored cmd=add ttl=0 clsid=1 cfd size=1",
        "type=item_store key=b status=not_stored cmd=replace ttl=0 clsid=1 cfd size=1",
        "type=item_store key=a status=stored cmd=append ttl=60 clsid=1 cfd size=4",
        "type=item_store key=a status=exists cmd=cas ttl=0 clsid=1 cfd size=1",
        "type=item_store key=b status=not_found cmd=cas ttl=0 clsid=1 cfd size=1",
        "type=item_store key=m status=stored cmd=set ttl=50 clsid=1 cfd size=1",
        "type=item_store key=n status=stored cmd=add ttl=0 clsid=1 cfd size=2",
        "type=item_store key=m status=stored cmd=set ttl=0 clsid=1 cfd size=0",
        "type=item_store key=a status=too_large cmd=set ttl=0 clsid=0 cfd size=0",
    ]);
}

#[test]
fn binary_clients_are_watched_as_well() {
    let server = TestServer::start();
    let mut client = server.connect();
    let mut watcher = Watcher::of(&server, "mutations fetchers");
    let set = Packet {
        opcode: 1,
        extras: &[0; 8],
        key: b"k",
        value: b"value",
        ..Packet::default()
    };
    let too_large = vec![b'v'; 2 << 20];
    client.call(set);
    client.call(Packet {
        opcode: 0,
        extras: b"",
        value: b"",
        ..set
    });
    assert_eq!(
        client
            .call(Packet {
                value: &too_large,
                ..set
            })
            .status,
        3
    );
    watcher.expect(&[
        "type=item_get key=k status=not_found clsid=0 cfd size=0",
        "type=item_store key=k status=stored cmd=set ttl=0 clsid=1 cfd size=5",
        "type=item_get key=k status=found clsid=1 cfd size=5",
        "type=item_store key=k status=too_large cmd=set ttl=0 clsid=0 cfd size=0",
    ]);
}

#[test]
fn deletions_say_which_command_it_was() {
    let server = TestServer::start();
    let mut client = server.connect();
    let mut watcher = Watcher::of(&server, "deletions");
    client.send("set a 0 0 3\r\nabc\r\ndelete a\r\ndelete a\r\nset a 0 0 2\r\nab\r\nmd a q\r\nset a 0 0 1\r\na\r\nmd a I\r\nmd a\r\nmn\r\n");
    client.expect("STORED\r\nDELETED\r\nNOT_FOUND\r\nSTORED\r\nSTORED\r\nHD\r\nHD\r\nMN\r\n");
    watcher.expect(&[
        "type=deleted key=a cmd=delete clsid=1 size=3",
        "type=deleted key=a cmd=md clsid=1 size=2",
        "type=deleted key=a cmd=md clsid=1 size=1",
    ]);
}

#[test]
fn connections_come_and_go() {
    let mut settings = settings();
    settings.security.shutdown_command = true;
    let server = TestServer::start_with(settings);
    let mut watcher = Watcher::of(&server, "connevents");
    let mut client = server.connect();
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
    client.send("quit\r\n");
    client.expect_end();
    watcher.expect(&[
        "type=conn_new rip=127.0.0.1 rport transport=tcp cfd",
        "type=conn_close rip=127.0.0.1 rport transport=tcp reason=normal cfd",
    ]);
    let mut client = server.connect();
    client.send("x".repeat(3000));
    client.expect_end();
    watcher.expect(&[
        "type=conn_new rip=127.0.0.1 rport transport=tcp cfd",
        "type=conn_close rip=127.0.0.1 rport transport=tcp reason=error cfd",
    ]);
}

#[test]
fn sysevents_tell_what_the_crawler_found() {
    let mut settings = settings();
    // It reaps what is expired by itself.
    settings.store.lru_maintainer = false;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    for (key, expiry) in [("a", -1), ("b", -1), ("c", 100), ("d", 7200), ("e", 0)] {
        client.ask(format!("set {key} 0 {expiry} 1\r\nv\r\n"), "STORED\r\n");
    }
    let mut watcher = Watcher::of(&server, "sysevents");
    client.ask("lru_crawler crawl all\r\n", "OK\r\n");
    watcher.expect(&[
        "type=lru_crawler crawler=1 lru=cold low_mark=1 next_reclaims=1 since_run=0 next_run=60 elapsed \
         examined=5 reclaimed=2",
    ]);
}

#[test]
fn sysevents_tell_of_pages_that_move() {
    let server = TestServer::start();
    let mut watcher = Watcher::of(&server, "sysevents");
    let mut client = server.connect();
    let value = "v".repeat(1000);
    for number in 0..400 {
        client.ask(
            format!("set key{number} 0 0 1000\r\n{value}\r\n"),
            "STORED\r\n",
        );
    }
    for number in 0..400 {
        client.ask(format!("delete key{number}\r\n"), "DELETED\r\n");
    }
    watcher.expect(&["type=slab_move src=12 dst=0 state=ok"]);
}

#[test]
fn evictions_tell_who_had_to_go() {
    let mut settings = settings();
    settings.store.max_bytes = 8 << 20;
    settings.store.item_size_max = 1 << 20;
    let server = TestServer::start_with(settings);
    let mut watcher = Watcher::of(&server, "evictions");
    let value = "v".repeat(100_000);
    let mut client = server.connect();
    for number in 0..200 {
        let request = format!("set key{number} 0 0 {}\r\n{value}\r\n", value.len());
        client.ask(request, "STORED\r\n");
    }
    let line = watcher.line();
    assert!(line.starts_with("type=eviction key=key"), "{line}");
    assert!(
        line.contains(" fetch=no ttl=-1 la=") && line.ends_with(" size=100000"),
        "{line}"
    );
}

#[test]
fn several_streams_come_in_their_order() {
    let server = TestServer::start();
    let mut watcher = Watcher::of(&server, "fetchers mutations deletions");
    let mut client = server.connect();
    client.ask("set a 0 0 1\r\nx\r\ndelete a\r\n", "STORED\r\nDELETED\r\n");
    let kinds: Vec<String> = (0..4)
        .map(|_| watcher.line().split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        kinds,
        [
            "type=item_get",
            "type=item_store",
            "type=item_get",
            "type=deleted"
        ]
    );
}

#[test]
fn words_may_be_cut_short_and_must_be_known() {
    let server = TestServer::start();
    for known in [
        "f",
        "mut",
        "evictions",
        "sys",
        "rawcmds",
        "proxyreqs",
        "proxyuser",
        "deletions connevents",
    ] {
        drop(Watcher::of(&server, known));
    }
    let mut client = server.connect();
    client.ask("watch bogus\r\n", "ERROR\r\n");
    client.ask("watch fetchers bogus\r\n", "ERROR\r\n");
    client.ask(
        "version\r\nwatch fetchers\r\n",
        "VERSION 1.6.45\r\nERROR cannot pipeline other commands before watch\r\n",
    );
    client.ask("get a\r\n", "END\r\n");
}

#[test]
fn it_can_be_forbidden() {
    let mut settings = settings();
    settings.watch.enabled = false;
    let server = TestServer::start_with(settings);
    let mut client = server.connect();
    client.ask(
        "watch fetchers\r\n",
        "CLIENT_ERROR watch commands not allowed\r\n",
    );
}

#[test]
fn there_is_room_for_twenty() {
    let server = TestServer::start();
    let mut watchers: Vec<Watcher> = (0..20).map(|_| Watcher::of(&server, "fetchers")).collect();
    let mut client = server.connect();
    client.ask(
        "watch fetchers\r\n",
        "WATCHER_TOO_MANY log watcher limit reached\r\n",
    );
    assert_eq!(client.stat("log_watchers"), "20");
    client.ask("get a\r\n", "END\r\n");
    for watcher in &mut watchers {
        watcher.expect(&["type=item_get key=a status=not_found clsid=0 cfd size=0"]);
    }
    drop(watchers);
    let since = Instant::now();
    while client.stat("log_watchers") != "0" {
        assert!(since.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_watcher_that_does_not_read_holds_up_nobody_and_hears_what_it_missed() {
    let mut settings = settings();
    settings.watch.watcher_buffer = 64 << 10;
    settings.watch.worker_buffer = 64 << 10;
    let server = TestServer::start_with(settings);
    let mut watcher = Watcher::of(&server, "fetchers");
    let mut client = server.connect();
    let key = "k".repeat(200);
    let since = Instant::now();
    // Until the socket, and then the watcher's own buffer, have filled up.
    while client.stat("log_watcher_skipped") == "0" {
        assert!(
            since.elapsed() < Duration::from_secs(25),
            "nothing is ever skipped"
        );
        for _ in 0..50 {
            client.ask(format!("get {key}\r\n").repeat(100), "END\r\n".repeat(100));
        }
    }
    assert_ne!(client.stat("log_watcher_sent"), "0");
    let skipped = loop {
        let line = watcher.client.line();
        // It comes with the first line that finds room again.
        if let Some(number) = line.strip_prefix("skipped=") {
            break number.parse::<u64>().unwrap();
        }
        assert!(line.contains(" type=item_get "), "{line}");
        client.ask("get a\r\n", "END\r\n");
    };
    assert!(skipped > 0);
}

#[test]
fn what_a_watcher_says_is_not_heard() {
    let server = TestServer::start();
    let mut watcher = Watcher::of(&server, "fetchers");
    watcher.client.send("set a 0 0 1\r\nx\r\n");
    let mut client = server.connect();
    client.ask("get a\r\n", "END\r\n");
    watcher.expect(&["type=item_get key=a status=not_found clsid=0 cfd size=0"]);
}
