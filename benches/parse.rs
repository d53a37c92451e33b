//! What understanding a request costs, in each dialect, with keys of 24 bytes. Times are per request,
//! those of `multiget` per key.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use larder::protocol::request::{Op, Parsed, Refusal};
use larder::protocol::text::{self, NextKey};
use larder::protocol::{Dialect, parse};

/// Requests of each kind in the input.
const REQUESTS: usize = 64;

/// Walks through all of the input as a connection would, values passed over; returns the requests.
fn walk(dialect: Dialect, mut input: &[u8]) -> usize {
    let mut requests = 0;
    while !input.is_empty() {
        let taken = match black_box(parse(dialect, input)) {
            Parsed::Request { request, taken } => match request.op {
                Op::Get { .. } => taken + keys(&input[taken..]),
                Op::Store(store) if dialect == Dialect::Binary => taken + store.length,
                Op::Store(store) => taken + store.length + 2,
                _ => taken,
            },
            Parsed::Refused {
                reply: Refusal::Line(_),
                taken,
                ..
            } => taken,
            other => panic!("{other:?}"),
        };
        input = &input[taken..];
        requests += 1;
    }
    requests
}

/// Bytes of the keys of a get, with its line end.
fn keys(input: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match black_box(text::next_key(&input[at..])) {
            NextKey::Key { taken, .. } => at += taken,
            NextKey::End { taken } => return at + taken,
            other => panic!("{other:?}"),
        }
    }
}

fn packet(opcode: u8, extras: &[u8], key: &str, value: &[u8]) -> Vec<u8> {
    let body = (extras.len() + key.len() + value.len()) as u32;
    let mut packet = vec![
        0x80,
        opcode,
        0,
        key.len() as u8,
        extras.len() as u8,
        0,
        0,
        0,
    ];
    packet.extend_from_slice(&body.to_be_bytes());
    packet.extend_from_slice(&[0; 12]);
    for part in [extras, key.as_bytes(), value] {
        packet.extend_from_slice(part);
    }
    packet
}

fn requests(criterion: &mut Criterion) {
    let value = "v".repeat(100);
    type Make<'v> = Box<dyn Fn(&str) -> Vec<u8> + 'v>;
    let line = |make: &'static dyn Fn(&str, &str) -> String| -> Make<'_> {
        let value = &value;
        Box::new(move |key| make(key, value).into_bytes())
    };
    let kinds: [(&str, Dialect, Make<'_>); 10] = [
        (
            "get",
            Dialect::Text,
            line(&|key, _| format!("get {key}\r\n")),
        ),
        (
            "set",
            Dialect::Text,
            line(&|key, value| format!("set {key} 0 0 100\r\n{value}\r\n")),
        ),
        (
            "set with flags, noreply",
            Dialect::Text,
            line(&|key, value| format!("set {key} 4294967295 86400 100 noreply\r\n{value}\r\n")),
        ),
        (
            "incr",
            Dialect::Text,
            line(&|key, _| format!("incr {key} 1\r\n")),
        ),
        (
            "nonsense",
            Dialect::Text,
            line(&|key, _| format!("gte {key}\r\n")),
        ),
        (
            "mg",
            Dialect::Text,
            line(&|key, _| format!("mg {key} v f k\r\n")),
        ),
        (
            "mg with ten flags",
            Dialect::Text,
            line(&|key, _| format!("mg {key} v f k t c s T3600 N30 R60 O12345678\r\n")),
        ),
        (
            "ms",
            Dialect::Text,
            line(&|key, value| format!("ms {key} 100 T86400 F7 q\r\n{value}\r\n")),
        ),
        (
            "getkq",
            Dialect::Binary,
            Box::new(|key| packet(0x0d, b"", key, b"")),
        ),
        (
            "binary set",
            Dialect::Binary,
            Box::new(|key| packet(0x01, &[0; 8], key, value.as_bytes())),
        ),
    ];
    let mut group = criterion.benchmark_group("parse");
    for (name, dialect, make) in kinds {
        let input: Vec<u8> = (0..REQUESTS)
            .flat_map(|n| make(&format!("key:{n:020}")))
            .collect();
        assert_eq!(walk(dialect, &input), REQUESTS);
        group.throughput(Throughput::Elements(REQUESTS as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| walk(dialect, black_box(&input)));
        });
    }
    let keys: String = (0..100).map(|n| format!(" key:{n:020}")).collect();
    let input = format!("get{keys}\r\n").into_bytes();
    group.throughput(Throughput::Elements(100));
    group.bench_function("multiget", |bencher| {
        bencher.iter(|| walk(Dialect::Text, black_box(&input)));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = requests
}
criterion_main!(benches);
