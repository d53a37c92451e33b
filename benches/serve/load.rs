//! Requests, the answers they must get, and the clients that send them.

use std::io::{Read, Write};
use std::net::TcpStream;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::servers::Server;

const CLIENTS: usize = 50;
const KEYS: u64 = 200_000;
const VALUE: [u8; 100] = [b'v'; 100];

/// One kind of request, as clients send it in batches.
pub struct Workload {
    pub name: &'static str,
    pub title: &'static str,
    pub tls: bool,
    /// Keys to a batch: what an operation is.
    keys: usize,
    /// Appends a batch to what is asked and to what must be answered.
    batch: fn(&[u64], &mut Vec<u8>, &mut Vec<u8>),
}

pub const WORKLOADS: &[Workload] = &[
    workload("get", "text get", 1, |keys, ask, hear| {
        gets(keys, ask, hear, "key")
    }),
    workload("get16", "text get, 16 pipelined", 16, |keys, ask, hear| {
        gets(keys, ask, hear, "key")
    }),
    workload("mget", "text get of 100 keys, per key", 100, multiget),
    workload("mg", "meta get, 64 pipelined", 64, meta_gets),
    workload("set", "text set", 1, |keys, ask, hear| {
        sets(keys, ask, hear, false)
    }),
    workload(
        "sets",
        "text set noreply, 64 and mn",
        64,
        |keys, ask, hear| sets(keys, ask, hear, true),
    ),
    workload("ms", "quiet meta set, 64 and mn", 64, meta_sets),
    workload("getkq", "binary getkq, 64 and noop", 64, binary_gets),
    workload("miss", "text get, misses", 1, |keys, ask, hear| {
        gets(keys, ask, hear, "nil")
    }),
    Workload {
        tls: true,
        ..workload("tls", "text get over TLS", 1, |keys, ask, hear| {
            gets(keys, ask, hear, "key")
        })
    },
    Workload {
        tls: true,
        ..workload(
            "tls16",
            "text get over TLS, 16 pipelined",
            16,
            |keys, ask, hear| gets(keys, ask, hear, "key"),
        )
    },
];

const fn workload(
    name: &'static str,
    title: &'static str,
    keys: usize,
    batch: fn(&[u64], &mut Vec<u8>, &mut Vec<u8>),
) -> Workload {
    Workload {
        name,
        title,
        tls: false,
        keys,
        batch,
    }
}

/// Writes without failing: there is always room in a vector.
macro_rules! put {
    ($to:expr, $($text:tt)*) => {
        write!($to, $($text)*).expect("room")
    };
}

fn put_value(to: &mut Vec<u8>) {
    to.extend_from_slice(&VALUE);
    to.extend_from_slice(b"\r\n");
}

fn gets(keys: &[u64], ask: &mut Vec<u8>, hear: &mut Vec<u8>, kind: &str) {
    for key in keys {
        put!(ask, "get {kind}:{key:020}\r\n");
        if kind == "key" {
            put!(hear, "VALUE {kind}:{key:020} 0 {}\r\n", VALUE.len());
            put_value(hear);
        }
        put!(hear, "END\r\n");
    }
}

fn multiget(keys: &[u64], ask: &mut Vec<u8>, hear: &mut Vec<u8>) {
    put!(ask, "get");
    for key in keys {
        put!(ask, " key:{key:020}");
        put!(hear, "VALUE key:{key:020} 0 {}\r\n", VALUE.len());
        put_value(hear);
    }
    put!(ask, "\r\n");
    put!(hear, "END\r\n");
}

fn meta_gets(keys: &[u64], ask: &mut Vec<u8>, hear: &mut Vec<u8>) {
    for key in keys {
        put!(ask, "mg key:{key:020} v f k\r\n");
        put!(hear, "VA {} f0 kkey:{key:020}\r\n", VALUE.len());
        put_value(hear);
    }
}

fn sets(keys: &[u64], ask: &mut Vec<u8>, hear: &mut Vec<u8>, quiet: bool) {
    let noreply = if quiet { " noreply" } else { "" };
    for key in keys {
        put!(ask, "set key:{key:020} 0 0 {}{noreply}\r\n", VALUE.len());
        put_value(ask);
        if !quiet {
            put!(hear, "STORED\r\n");
        }
    }
    if quiet {
        put!(ask, "mn\r\n");
        put!(hear, "MN\r\n");
    }
}

fn meta_sets(keys: &[u64], ask: &mut Vec<u8>, hear: &mut Vec<u8>) {
    for key in keys {
        put!(ask, "ms key:{key:020} {} q\r\n", VALUE.len());
        put_value(ask);
    }
    put!(ask, "mn\r\n");
    put!(hear, "MN\r\n");
}

fn binary_gets(keys: &[u64], ask: &mut Vec<u8>, hear: &mut Vec<u8>) {
    const GETKQ: u8 = 0x0d;
    const NOOP: u8 = 0x0a;
    let header = |to: &mut Vec<u8>, magic, opcode, key: u8, extras: u8, body: u32| {
        to.extend_from_slice(&[magic, opcode, 0, key, extras, 0, 0, 0]);
        to.extend_from_slice(&body.to_be_bytes());
        to.extend_from_slice(&[0; 12]);
    };
    for key in keys {
        header(ask, 0x80, GETKQ, 24, 0, 24);
        put!(ask, "key:{key:020}");
        // Its CAS is not known here: `same` does not look.
        header(hear, 0x81, GETKQ, 24, 4, 4 + 24 + VALUE.len() as u32);
        hear.extend_from_slice(&[0; 4]);
        put!(hear, "key:{key:020}");
        hear.extend_from_slice(&VALUE);
    }
    header(ask, 0x80, NOOP, 0, 0, 0);
    header(hear, 0x81, NOOP, 0, 0, 0);
}

/// Whether this is what had to be answered, the CAS of binary packets apart.
fn same(heard: &[u8], expected: &[u8]) -> bool {
    if expected.first() != Some(&0x81) {
        return heard == expected;
    }
    let (mut heard, mut expected) = (heard, expected);
    while let (Some(h), Some(e)) = (heard.get(..24), expected.get(..24)) {
        let body = u32::from_be_bytes([e[8], e[9], e[10], e[11]]) as usize;
        if h[..16] != e[..16] || heard.get(24..24 + body) != expected.get(24..24 + body) {
            return false;
        }
        (heard, expected) = (&heard[24 + body..], &expected[24 + body..]);
    }
    heard == expected
}

enum Stream {
    Plain(TcpStream),
    Secure(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn connect(server: &Server) -> Stream {
        let socket = TcpStream::connect(server.address).expect("the server accepts");
        socket.set_nodelay(true).expect("no delay");
        match &server.tls {
            None => Stream::Plain(socket),
            Some(config) => {
                let name = ServerName::try_from("localhost").expect("a name");
                let connection = ClientConnection::new(config.clone(), name).expect("a client");
                Stream::Secure(Box::new(StreamOwned::new(connection, socket)))
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        match self {
            Stream::Plain(socket) => socket.write_all(bytes),
            Stream::Secure(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
        .expect("sent");
    }

    fn receive(&mut self, bytes: &mut [u8]) {
        match self {
            Stream::Plain(socket) => socket.read_exact(bytes),
            Stream::Secure(stream) => stream.read_exact(bytes),
        }
        .expect("an answer");
    }
}

/// Stores everything that will be asked for.
pub fn fill(server: &Server) {
    let mut stream = Stream::connect(server);
    let keys: Vec<u64> = (0..KEYS).collect();
    let (mut ask, mut hear, mut heard) = (Vec::new(), Vec::new(), [0; 4]);
    // Under TLS, memcached 1.6.18 may wait for ever for what it has read already, if that is long.
    for keys in keys.chunks(50) {
        ask.clear();
        sets(keys, &mut ask, &mut hear, true);
        stream.send(&ask);
        stream.receive(&mut heard);
        assert_eq!(&heard, b"MN\r\n");
    }
}

/// Clients of one server, all of which ask before the first answer is read.
pub struct Clients {
    streams: Vec<Stream>,
    ask: Vec<u8>,
    hear: Vec<Vec<u8>>,
    heard: Vec<u8>,
}

impl Clients {
    pub fn connect(server: &Server) -> Clients {
        Clients {
            streams: (0..CLIENTS).map(|_| Stream::connect(server)).collect(),
            ask: Vec::new(),
            hear: vec![Vec::new(); CLIENTS],
            heard: Vec::new(),
        }
    }

    /// Returns how many operations that were.
    pub fn run(&mut self, workload: &Workload, batches: usize, seed: u64) -> usize {
        let mut keys = vec![0; workload.keys];
        let mut random = 0x9e37_79b9_7f4a_7c15 ^ seed << 32 ^ 1;
        for _ in 0..batches {
            for (stream, hear) in self.streams.iter_mut().zip(&mut self.hear) {
                for key in &mut keys {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    *key = random % KEYS;
                }
                self.ask.clear();
                hear.clear();
                (workload.batch)(&keys, &mut self.ask, hear);
                stream.send(&self.ask);
            }
            for (stream, hear) in self.streams.iter_mut().zip(&self.hear) {
                self.heard.resize(hear.len(), 0);
                stream.receive(&mut self.heard);
                assert!(
                    same(&self.heard, hear),
                    "a wrong answer to {}",
                    workload.title
                );
            }
        }
        batches * CLIENTS * workload.keys
    }
}
