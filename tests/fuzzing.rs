//! The fuzz targets' entry points, with their corpus and mutations of it: always the same ones, so
//! that a failure is a failure tomorrow. `tests/fuzz` runs them without an end.

#[path = "fuzz/entry.rs"]
mod entry;

use std::fs;
use std::path::Path;

use larder::settings::Protocol;

/// A generator that needs nothing but its state: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// The seeds of a target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target} has no seeds");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What parsers stumble over.
const ODD: &[&[u8]] = &[
    b" ",
    b"\r\n",
    b"\n",
    b"\0",
    b"\xff",
    b"-1",
    b"0",
    b"4294967296",
    b"18446744073709551616",
    b"noreply",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"k",
    b"get ",
    b"\r",
    b"2147483648",
    b"set a 0 0 5\r\n",
];

/// Another input like this one.
fn mutate(random: &mut Random, seeds: &[Vec<u8>], input: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        match random.below(7) {
            0 if !input.is_empty() => {
                let at = random.below(input.len());
                input[at] ^= 1 << random.below(8);
            }
            1 => {
                let odd = ODD[random.below(ODD.len())];
                input.splice(at..at, odd.iter().copied());
            }
            2 => {
                let end = (at + random.below(20)).min(input.len());
                input.drain(at..end);
            }
            3 => input.truncate(at),
            4 => {
                let end = (at + random.below(40)).min(input.len());
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            5 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                input.splice(at..at, other[from..].iter().copied());
            }
            _ => {
                let byte = random.next() as u8;
                input.insert(at, byte);
            }
        }
    }
    input.truncate(100_000);
}

/// Each seed, and so many inputs made of them.
fn replay(target: &str, mutations: usize, run: impl Fn(&[u8])) {
    let seeds = corpus(target);
    for seed in &seeds {
        run(seed);
        // Wherever it is cut.
        for end in 0..seed.len().min(300) {
            run(&seed[..end]);
        }
    }
    let mut random = Random(target.len() as u64);
    for _ in 0..mutations {
        let mut input = seeds[random.below(seeds.len())].clone();
        mutate(&mut random, &seeds, &mut input);
        run(&input);
    }
}

#[test]
fn text_requests() {
    replay("text_requests", 60_000, entry::text_requests);
}

#[test]
fn binary_requests() {
    replay("binary_requests", 60_000, entry::binary_requests);
}

#[test]
fn datagrams() {
    replay("datagrams", 30_000, entry::datagrams);
}

#[test]
fn base64_keys() {
    replay("base64_keys", 30_000, entry::base64_keys);
}

#[test]
fn numbers() {
    replay("numbers", 30_000, entry::numbers);
}

#[test]
fn copies() {
    replay("copies", 600, entry::copies);
}

#[test]
fn sessions() {
    let server = entry::Server::new(|_| {});
    replay("session", 6_000, |input| {
        server.session(Protocol::Negotiate, input);
    });
}

#[test]
fn sessions_of_strangers() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    fs::write(&users, "foo:bar\n").unwrap();
    let server = entry::Server::new(|settings| {
        settings.security.auth_file = Some(users.clone());
        settings.security.sasl = true;
    });
    replay("session", 3_000, |input| {
        let sent = server.session(Protocol::Negotiate, input);
        // Nobody knows the password, so nobody reads or stores anything.
        for word in [&b"VALUE "[..], b"STORED\r\n", b"HD", b"VA "] {
            let found = sent.windows(word.len()).any(|part| part == word);
            assert!(
                !found || input.windows(7).any(|part| part == b"foo bar"),
                "{input:?}"
            );
        }
    });
}
