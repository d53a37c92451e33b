//! Placement of keys, compared with what other programs chose: the recordings in
//! `tests/data/ketama` were made with the programs themselves.
//!
//! Each file has a column per ring and a line per key; `rings.csv` says what the rings are made of,
//! and how many points they have with which fingerprint.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use larder::cluster::ring::{Member, Ring};
use larder::hash::hashkit;
use larder::settings::proxy::{
    EmptyTag, JavaHash, KeyHash, KeyPart, McproxyLabels, RingKind, Scheme, SpyLabels,
};

fn read(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ketama");
    fs::read_to_string(folder.join(file)).unwrap()
}

/// Lines of a file by the names of its first.
fn table(file: &str, separator: char) -> Vec<HashMap<String, String>> {
    let text = read(file);
    let mut lines = text.lines().map(|line| cells(line, separator));
    let names = lines.next().unwrap();
    lines
        .map(|cells| {
            assert_eq!(cells.len(), names.len(), "{cells:?}");
            names.iter().cloned().zip(cells).collect()
        })
        .collect()
}

fn cells(line: &str, separator: char) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut quoted = false;
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            letter if letter == separator && !quoted => cells.push(String::new()),
            letter => cells.last_mut().unwrap().push(letter),
        }
    }
    cells
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut key = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
            let digits = std::str::from_utf8(&digits).unwrap();
            key.push(u8::from_str_radix(digits, 16).unwrap());
        } else {
            key.push(byte);
        }
    }
    key
}

fn keys() -> Vec<Vec<u8>> {
    let keys: Vec<Vec<u8>> = table("keys.csv", ',')
        .iter()
        .map(|row| unescaped(&row["key_pct"]))
        .collect();
    assert_eq!(keys.len(), 2000);
    keys
}

/// `host|port`, `host:port`, `host/address:port`, a socket's path, or a name.
fn member(text: &str, weight: &str, named: bool) -> Member {
    let mut member = if named {
        let mut member = Member::new("127.0.0.1", 11211);
        member.name = Some(text.to_owned());
        member
    } else if let Some((host, port)) = text.rsplit_once('|').or_else(|| text.rsplit_once(':')) {
        match host.split_once('/') {
            Some((name, address)) if !name.is_empty() => {
                let mut member = Member::new(name, port.parse().unwrap());
                member.address = Some(address.parse().unwrap());
                member
            }
            _ => Member::new(host, port.parse().unwrap_or(0)),
        }
    } else {
        Member::new(text, 11211)
    };
    member.weight = weight.parse().unwrap();
    member
}

/// What to build for a line of `rings.csv`; nothing for what is deliberately not offered.
fn scheme(row: &HashMap<String, String>) -> Option<Scheme> {
    let options: HashMap<&str, &str> = row["options"]
        .split(' ')
        .filter_map(|option| option.split_once('='))
        .collect();
    let option = |name: &str| options.get(name).copied();
    let mut scheme = Scheme::default();
    let key_hash = match row["key_hash"].as_str() {
        "KETAMA_HASH" => KeyHash::Md5,
        "CRC_HASH" => KeyHash::Crc,
        "FNV1_32_HASH" => KeyHash::Java(JavaHash::Fnv1_32),
        "xxh3_64" => KeyHash::Xxh3,
        name => KeyHash::named(name).unwrap_or_else(|| panic!("hash {name}")),
    };
    scheme.key_hash = Some(key_hash);
    scheme.kind = match row["file"].as_str() {
        "libmemcached.csv" if option("D") == Some("4") => return None,
        "libmemcached.csv" if option("KW").is_some() => RingKind::Libketama,
        "libmemcached.csv" if option("K").is_some() => RingKind::LibmemcachedKetama,
        "libmemcached.csv" => RingKind::Modula,
        "twemproxy.csv" => {
            if let Some(tag) = option("hash_tag") {
                let [open, close] = tag.as_bytes().try_into().unwrap();
                scheme.part = KeyPart::Tag {
                    open,
                    close,
                    empty: EmptyTag::Whole,
                };
            }
            RingKind::Twemproxy
        }
        "memcached_proxy.csv" => {
            if let Some(marker) = row["options"].split_once("filter=stop ") {
                scheme.part = KeyPart::Before(marker.1.into());
            }
            scheme.seed = option("seed").unwrap_or("").to_owned();
            match option("dist").unwrap() {
                "jump" => RingKind::Jump,
                _ => RingKind::McproxyRing {
                    labels: match option("omode").unwrap() {
                        "default" => McproxyLabels::Default,
                        "ketama" => McproxyLabels::Ketama,
                        "twemproxy" => McproxyLabels::Twemproxy,
                        "evcache" => McproxyLabels::Evcache,
                        mode => panic!("omode {mode}"),
                    },
                    points: option("obuckets").unwrap().parse().unwrap(),
                },
            }
        }
        "spymemcached.csv" => RingKind::Spymemcached {
            labels: match option("format").unwrap() {
                "SPY" => SpyLabels::Spy,
                _ => SpyLabels::Libmemcached,
            },
            weighted: option("weights") == Some("yes"),
        },
        "rj_ketama.csv" => RingKind::Rj,
        file => panic!("file {file}"),
    };
    Some(scheme)
}

fn members(row: &HashMap<String, String>) -> Vec<Member> {
    let named = row["ring"].starts_with("tw_names");
    // Servers added before the behaviour lose their weights.
    let ignored = row["ring"] == "k_lostweight";
    row["servers_or_labels"]
        .split(' ')
        .zip(row["weights"].split(' '))
        .map(|(text, weight)| member(text, if ignored { "1" } else { weight }, named))
        .collect()
}

/// FNV-1a over the points: value and server as 32 bits each.
fn fingerprint(ring: &Ring) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for (value, server) in ring.points() {
        for byte in value
            .to_le_bytes()
            .into_iter()
            .chain((server as u32).to_le_bytes())
        {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[test]
fn every_recorded_ring_agrees() {
    let keys = keys();
    let rings = table("rings.csv", ',');
    let mut files: HashMap<String, Vec<HashMap<String, String>>> = HashMap::new();
    let mut checked = 0;
    let mut skipped = Vec::new();
    for row in &rings {
        let name = &row["ring"];
        let Some(scheme) = scheme(row) else {
            skipped.push(name.as_str());
            continue;
        };
        let ring = Ring::build(&scheme, &members(row)).unwrap();
        if row["n_points"].parse::<usize>().unwrap_or(0) > 0 {
            let points = ring.points().count().to_string();
            assert_eq!(points, row["n_points"], "points of {name}");
        }
        if !row["continuum_fnv1a64"].is_empty() && row["n_points"] != "0" {
            assert_eq!(fingerprint(&ring), row["continuum_fnv1a64"], "{name}");
        }
        let lines = files
            .entry(row["file"].clone())
            .or_insert_with(|| table(&row["file"], ','));
        assert_eq!(lines.len(), keys.len());
        for (key, line) in keys.iter().zip(lines) {
            // -1: the key is not a string for that client.
            if let Ok(expected) = line[name].parse::<usize>() {
                assert_eq!(
                    ring.owner(key),
                    expected,
                    "{name}, key {}",
                    key.escape_ascii()
                );
                checked += 1;
            }
        }
    }
    // libmemcached's imitation of spymemcached resembles nothing but itself.
    assert_eq!(skipped, ["spy_md5"]);
    assert_eq!(rings.len(), 127);
    assert!(checked > 126 * 1900, "{checked}");
}

#[test]
fn ties_go_to_whom_each_program_gives_them() {
    let rows = table("ties.csv", ',');
    for row in &rows {
        let members: Vec<Member> = row["servers_port_11211"]
            .split(' ')
            .map(|host| Member::new(host, 11211))
            .collect();
        for (column, kind) in [
            ("libmemcached_kw", RingKind::Libketama),
            ("twemproxy_md5", RingKind::Twemproxy),
            (
                "memcached_proxy_twem",
                RingKind::McproxyRing {
                    labels: McproxyLabels::Twemproxy,
                    points: 160,
                },
            ),
            (
                "spymemcached_lib",
                RingKind::Spymemcached {
                    labels: SpyLabels::Libmemcached,
                    weighted: false,
                },
            ),
        ] {
            let scheme = Scheme {
                kind,
                key_hash: Some(KeyHash::Md5),
                ..Scheme::default()
            };
            let ring = Ring::build(&scheme, &members).unwrap();
            let key = row["key"].as_bytes();
            assert_eq!(
                ring.owner(key).to_string(),
                row[column],
                "{column} {}",
                row["ring"]
            );
        }
    }
    assert_eq!(rows.len(), 96);
}

#[test]
fn mcrouter_agrees() {
    let keys = keys();
    let rows = table("mcrouter_ch3.csv", ',');
    let scheme = Scheme {
        kind: RingKind::Ch3,
        ..Scheme::default()
    };
    for count in [1, 2, 3, 5, 8, 10, 16, 25, 50, 100, 1000] {
        let members: Vec<Member> = (0..count).map(|n| Member::new("h", n)).collect();
        let ring = Ring::build(&scheme, &members).unwrap();
        for (key, row) in keys.iter().zip(&rows) {
            let expected = &row[&format!("n{count}")];
            assert_eq!(ring.owner(key).to_string(), *expected, "of {count}");
        }
    }
}

#[test]
fn every_key_hash_agrees() {
    let keys = keys();
    for (key, row) in keys.iter().zip(table("key_hashes.csv", ',')) {
        for (column, hash) in [
            ("one_at_a_time", KeyHash::OneAtATime),
            ("md5", KeyHash::Md5),
            ("crc", KeyHash::Crc),
            ("fnv1_64", KeyHash::Fnv1_64),
            ("fnv1a_64", KeyHash::Fnv1a64),
            ("fnv1_32", KeyHash::Fnv1_32),
            ("fnv1a_32", KeyHash::Fnv1a32),
            ("murmur", KeyHash::Murmur),
            ("jenkins", KeyHash::Jenkins),
            ("murmur3", KeyHash::Murmur3),
            ("tw_crc16", KeyHash::Crc16),
            ("tw_crc32a", KeyHash::Crc32a),
            ("tw_hsieh", KeyHash::Hsieh),
        ] {
            assert_eq!(
                hashkit::hash(hash, 0, key).to_string(),
                row[column],
                "{column}, key {}",
                key.escape_ascii()
            );
        }
        assert_eq!(hashkit::xxh3(key, 0).to_string(), row["xxh3_64"]);
    }
}

#[test]
fn the_sample_that_explains_itself_agrees() {
    let rows = table("longform_sample.csv", ';');
    let mut rings: HashMap<String, Ring> = HashMap::new();
    for row in &rows {
        let ring = rings.entry(row["ring"].clone()).or_insert_with(|| {
            let members: Vec<Member> = row["servers"]
                .split(' ')
                .zip(row["weights"].split(' '))
                .map(|(text, weight)| member(text, weight, row["ring"].starts_with("tw_names")))
                .collect();
            let kind = match row["ring"].split('_').next().unwrap() {
                "kw" => RingKind::Libketama,
                "k" => RingKind::LibmemcachedKetama,
                "tw" => RingKind::Twemproxy,
                other => panic!("{other}"),
            };
            let scheme = Scheme {
                kind,
                key_hash: KeyHash::named(&row["hash"]),
                ..Scheme::default()
            };
            Ring::build(&scheme, &members).unwrap()
        });
        let owner = ring.owner(&unescaped(&row["key_pct"]));
        assert_eq!(owner.to_string(), row["index"], "{}", row["ring"]);
    }
    assert_eq!(rows.len(), 400);
}

fn servers(weights: &[u32]) -> Vec<Member> {
    let numbered = weights.iter().enumerate();
    numbered
        .map(|(n, &weight)| {
            let mut member = Member::new(format!("10.0.0.{n}"), 11211);
            member.weight = weight;
            member
        })
        .collect()
}

/// The share of all hashes that each server has.
fn shares(ring: &Ring, servers: usize) -> Vec<f64> {
    let points: Vec<(u32, usize)> = ring.points().collect();
    let mut shares = vec![0.0; servers];
    let mut before = points.last().unwrap().0;
    for (value, server) in points {
        shares[server] += f64::from(value.wrapping_sub(before)) / 2_f64.powi(32);
        before = value;
    }
    shares
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Who leaves takes away their own keys alone, which go where the preference list said; who
    /// comes takes keys for themselves alone.
    #[test]
    fn keys_of_others_stay(count in 2..24_usize, who in any::<prop::sample::Index>()) {
        let members = servers(&vec![1; count]);
        let who = who.index(count);
        let live: Vec<usize> = (0..count).filter(|&at| at != who).collect();
        // Where shares are rounded some points come and go with everybody; here they do not.
        let kind = RingKind::McproxyRing { labels: McproxyLabels::Ketama, points: 160 };
        let scheme = Scheme { kind, ..Scheme::default() };
        let all = Ring::build(&scheme, &members).unwrap();
        let rest = Ring::build_among(&scheme, &members, &live).unwrap();
        for n in 0..300 {
            let key = format!("key:{n}").into_bytes();
            let (with, without) = (all.owner(&key), rest.owner(&key));
            if with == who {
                prop_assert_eq!(without, all.preference(&key).nth(1).unwrap());
            } else {
                prop_assert_eq!(with, without);
            }
        }
    }

    /// Jump and ch3 move what the last server had, and nothing else.
    #[test]
    fn the_last_of_a_row_leaves_alone(count in 2..200_usize) {
        for kind in [RingKind::Jump, RingKind::Ch3] {
            let scheme = Scheme { kind, ..Scheme::default() };
            let more = Ring::build(&scheme, &servers(&vec![1; count])).unwrap();
            let fewer = Ring::build(&scheme, &servers(&vec![1; count - 1])).unwrap();
            for n in 0..300 {
                let key = format!("key:{n}").into_bytes();
                let owner = more.owner(&key);
                prop_assert!(owner == count - 1 || owner == fewer.owner(&key), "{:?}", kind);
            }
        }
    }

    /// A server's share of the hashes is its weight's, as far as its points make it smooth.
    #[test]
    fn weights_are_respected(weights in prop::collection::vec(1..20_u32, 1..12)) {
        for kind in [RingKind::Libketama, RingKind::Twemproxy, RingKind::Rj] {
            let scheme = Scheme { kind, ..Scheme::default() };
            let ring = Ring::build(&scheme, &servers(&weights)).unwrap();
            let total: u32 = weights.iter().sum();
            for (server, share) in shares(&ring, weights.len()).into_iter().enumerate() {
                let wanted = f64::from(weights[server]) / f64::from(total);
                let points = ring.points().filter(|point| point.1 == server).count() as f64;
                // An arc is as long as chance has it: five times the deviation of their sum, and
                // what rounding down to four points takes.
                let slack = wanted * (5.0 / points.sqrt() + 4.0 / points);
                prop_assert!((share - wanted).abs() <= slack.max(0.01), "{} of {:?}", share, weights);
            }
        }
    }
}
