//! Servers that are found by name: a name server of the test's own says which there are.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder::settings::proxy::parse;
use simple_dns::rdata::{RData, SRV};
use simple_dns::{CLASS, Name, Packet, ResourceRecord};

use crate::common::TestServer;
use crate::fleet;

/// Answers SRV questions with the servers it has now; with none it says nothing of them.
struct Names {
    address: SocketAddr,
    servers: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Names {
    fn of(servers: &[SocketAddr]) -> Names {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let servers = Arc::new(Mutex::new(servers.to_vec()));
        let known = servers.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                let Ok(asked) = Packet::parse(&bytes[..length]) else {
                    continue;
                };
                let mut packet = Packet::new_reply(asked.id());
                packet.questions.clone_from(&asked.questions);
                for server in known.lock().unwrap().iter() {
                    packet.answers.push(ResourceRecord::new(
                        asked.questions[0].qname.clone(),
                        CLASS::IN,
                        1,
                        RData::SRV(SRV {
                            priority: 1,
                            weight: 1,
                            port: server.port(),
                            target: Name::new("localhost").unwrap(),
                        }),
                    ));
                }
                let answer = packet.build_bytes_vec_compressed().unwrap();
                let _ = socket.send_to(&answer, from);
            }
        });
        Names { address, servers }
    }

    fn change(&self, servers: &[SocketAddr]) {
        *self.servers.lock().unwrap() = servers.to_vec();
    }
}

#[test]
fn a_pool_follows_its_srv_records() {
    let servers: Vec<TestServer> = (0..3).map(|_| TestServer::start()).collect();
    let places: Vec<SocketAddr> = servers.iter().map(TestServer::address).collect();
    let names = Names::of(&places[..2]);
    let text = format!(
        "[pools.all]\nsrv = \"_memcache._tcp.cache.test\"\nnameserver = \"{}\"\nresolve = \"20ms\"\ntimeout = \"20s\"\n",
        names.address
    );
    let proxy = fleet::proxy_with(parse(&text).unwrap());
    let mut client = proxy.connect();
    let mut round = 0;
    let mut set_all = || {
        round += 1;
        for n in 0..60 {
            client.ask(format!("set k{n} 0 0 3\r\n{round:03}\r\n"), "STORED\r\n");
            client.ask(
                format!("get k{n}\r\n"),
                format!("VALUE k{n} 0 3\r\n{round:03}\r\nEND\r\n"),
            );
        }
    };
    let sets = |nth: usize| -> u32 { servers[nth].connect().stat("cmd_set").parse().unwrap() };
    set_all();
    assert!(sets(0) > 0 && sets(1) > 0 && sets(2) == 0);
    assert_eq!(sets(0) + sets(1), 60);
    // One more: it gets its share, and nobody notices otherwise.
    names.change(&places);
    let since = Instant::now();
    while sets(2) == 0 {
        set_all();
        assert!(since.elapsed() < Duration::from_secs(20), "never joined");
    }
    // One less: it gets nothing any more.
    names.change(&places[1..]);
    let mut before = sets(0);
    loop {
        set_all();
        let now = sets(0);
        if now == before {
            break;
        }
        before = now;
        assert!(since.elapsed() < Duration::from_secs(20), "never left");
    }
    // A name server that knows of nobody takes no cache away.
    names.change(&[]);
    for _ in 0..10 {
        set_all();
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(sets(0), before);
}
