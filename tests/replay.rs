//! The trace replayer of `benches/replay`: formats, policies, and a replay to a server.
#![forbid(unsafe_code)]

mod common;

#[path = "../benches/replay/loads.rs"]
#[allow(dead_code)]
mod loads;
#[path = "../benches/replay/policies.rs"]
#[allow(dead_code)]
mod policies;
#[path = "../benches/replay/run.rs"]
#[allow(dead_code)]
mod run;
#[path = "../benches/replay/trace.rs"]
#[allow(dead_code)]
mod trace;

use larder::settings;
use loads::Load;
use policies::{Belady, Lru, Policy, S3Fifo, Segmented};
use run::Outcome;
use trace::{Format, Op, Trace};

fn read(text: &[u8], format: Format) -> Trace {
    Trace::read(text, format, 100, usize::MAX).expect("a trace")
}

#[test]
fn formats_are_read() {
    let lines = read(b"# a comment\na\nb 7\n\na\n", Format::Lines);
    assert_eq!(lines.keys, 2);
    let keys: Vec<_> = lines.requests.iter().map(|request| request.key).collect();
    assert_eq!(keys, [0, 1, 0]);
    let sizes: Vec<_> = lines.requests.iter().map(|request| request.size).collect();
    assert_eq!(sizes, [100, 7, 100]);

    let lis = read(b"5 3 0 0\n6 1 0 1\n", Format::Lis);
    let keys: Vec<_> = lis.requests.iter().map(|request| request.key).collect();
    assert_eq!(keys, [0, 1, 2, 1]);

    let twitter = read(
        b"10,a,b,3,50,1,get,0\n12,c,30,60,1,set,90\n12,c,30,0,1,delete,0\n",
        Format::Twitter,
    );
    let [get, set, delete] = twitter.requests[..] else {
        panic!("{:?}", twitter.requests)
    };
    assert_eq!(
        (get.time, get.op, get.size, get.key_length),
        (0, Op::Get, 50, 20)
    );
    assert_eq!(
        (set.time, set.op, set.ttl, set.key_length),
        (2, Op::Set, 90, 30)
    );
    assert_eq!((delete.op, delete.key), (Op::Delete, set.key));

    let mut record = Vec::new();
    record.extend_from_slice(&40u32.to_le_bytes());
    record.extend_from_slice(&0x1_0000_0001u64.to_le_bytes());
    record.extend_from_slice(&512u32.to_le_bytes());
    record.extend_from_slice(&(-1i64).to_le_bytes());
    let mut other = record.clone();
    other[4..12].copy_from_slice(&1u64.to_le_bytes());
    let oracle = read(&[record, other].concat(), Format::Oracle);
    assert_eq!(oracle.keys, 2);
    assert_eq!((oracle.requests[0].time, oracle.requests[0].size), (0, 512));
}

#[test]
fn a_bad_line_is_named() {
    let error = Trace::read(&b"1 2\nx\n"[..], Format::Lis, 1, 10).expect_err("x is no number");
    assert!(error.to_string().starts_with("line 2: \"x\""), "{error}");
    assert!(Trace::read(&b"1,key,3\n"[..], Format::Twitter, 1, 10).is_err());
}

fn simulate(trace: &Trace, policy: &mut dyn Policy) -> Outcome {
    run::policy(trace, &trace.next_uses(), policy, |_| 1)
}

#[test]
fn policies_do_as_they_are_called() {
    // A loop over one key more than fits: LRU misses all, the bound all but a few.
    let keys = 100;
    let text: String = (0..2000).map(|at| format!("{}\n", at % keys)).collect();
    let trace = read(text.as_bytes(), Format::Lines);
    let room = keys as u64 - 1;
    assert_eq!(simulate(&trace, &mut Lru::new(keys, room)).misses, 2000);
    let least = simulate(&trace, &mut Belady::new(keys, room)).misses;
    assert!((100..130).contains(&least), "{least}");

    let trace = loads::make(Load::Zipf099, 7, 40_000, 5_000);
    let all = trace.keys;
    for room in [50, 500, all as u64] {
        let least = simulate(&trace, &mut Belady::new(all, room)).misses;
        let policies: [Box<dyn Policy>; 3] = [
            Box::new(Lru::new(all, room)),
            Box::new(Segmented::new(all, room)),
            Box::new(S3Fifo::new(all, room)),
        ];
        for mut policy in policies {
            let misses = simulate(&trace, policy.as_mut()).misses;
            assert!(misses >= least);
            if room == all as u64 {
                assert_eq!(misses, all as u64);
            }
        }
    }
}

#[test]
fn loads_repeat() {
    for load in Load::ALL {
        let (a, b) = (
            loads::make(load, 3, 5_000, 1_000),
            loads::make(load, 3, 5_000, 1_000),
        );
        assert_eq!(a.requests, b.requests);
        assert_ne!(a.requests, loads::make(load, 4, 5_000, 1_000).requests);
        assert!(
            a.requests
                .iter()
                .all(|request| (request.key as usize) < a.keys)
        );
    }
}

#[test]
fn a_server_and_the_store_see_the_same_trace() {
    let server = common::TestServer::start();
    let trace = loads::make(Load::Mixed, 5, 20_000, 2_000);
    let live = run::server(&trace, &server.address().to_string(), false).expect("a replay");
    let here = run::store(&trace, &settings::Store::default()).expect("a store");
    // All fits in 64 MB: each key misses once.
    assert_eq!((live.gets, live.misses), (20_000, trace.keys as u64));
    assert_eq!((here.gets, here.misses), (20_000, trace.keys as u64));
}
