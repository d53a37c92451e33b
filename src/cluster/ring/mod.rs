//! Key to server.
//!
//! A [`Ring`] follows one program's placement of keys exactly: its labels, points, rounding, ties
//! and key hash. It is immutable and built anew when servers come or go.
//!
//! The points of a ring, sorted, belong to the servers whose labels they come from; a key belongs to
//! the first point whose value is not below the key's hash, and past the last point to the first.
//! Its *preference list* goes on clockwise to the points of servers not yet met: where the owner is
//! down, they are who is asked next, and where there are copies, they have them. Placements without
//! points (`jump`, `ch3`, modula) have a list that hashing again gives, for the same uses.
#![forbid(unsafe_code)]

mod labels;
mod points;
mod stateless;

use std::fmt;
use std::net::IpAddr;

use crate::hash::hashkit;
use crate::settings::proxy::{
    Address, EmptyTag, KeyHash, KeyPart, POINTS_MAX, RingKind, SERVERS_MAX, Scheme, Server,
};

use points::Continuum;

/// Servers in a ring. A preference list marks those it has met in this many bits.
pub const MEMBERS_MAX: usize = SERVERS_MAX;

/// What a ring needs to know of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// A name, an address, or the path of a Unix socket, as configured.
    pub host: String,
    /// 0 for a Unix socket.
    pub port: u16,
    /// What twemproxy hashes instead of host and port.
    pub name: Option<String>,
    /// 0 counts as 1.
    pub weight: u32,
    /// What the name stands for; only spymemcached's labels have it.
    pub address: Option<IpAddr>,
}

impl Member {
    /// A server of weight 1.
    pub fn new(host: impl Into<String>, port: u16) -> Member {
        Member {
            host: host.into(),
            port,
            name: None,
            weight: 1,
            address: None,
        }
    }

    /// A server of the configuration; `address` is what its name stands for, where that is known.
    pub fn of(server: &Server, address: Option<IpAddr>) -> Member {
        let (host, port) = match &server.address {
            Address::Tcp { host, port } => (host.clone(), *port),
            Address::Unix(path) => (path.to_string_lossy().into_owned(), 0),
        };
        Member {
            host,
            port,
            name: server.name.clone(),
            weight: server.weight,
            address,
        }
    }

    fn weight(&self) -> u32 {
        self.weight.max(1)
    }
}

/// Why a ring cannot be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RingError {
    /// No server at all.
    Empty,
    /// More than [`MEMBERS_MAX`].
    TooManyMembers(usize),
    /// More than [`POINTS_MAX`].
    TooManyPoints(usize),
    /// An MD5 gives four points, so their number must be a multiple of 4.
    NotInFours(u32),
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingError::Empty => f.write_str("a ring needs at least one server"),
            RingError::TooManyMembers(count) => {
                write!(f, "{count} servers in one ring; at most {MEMBERS_MAX}")
            }
            RingError::TooManyPoints(count) => {
                write!(f, "{count} points in one ring; at most {POINTS_MAX}")
            }
            RingError::NotInFours(count) => write!(
                f,
                "{count} points per server; with MD5 it must be a multiple of 4, and not 0"
            ),
        }
    }
}

impl std::error::Error for RingError {}

/// Where each key belongs. See the module.
#[derive(Debug, Clone)]
pub struct Ring {
    placement: Placement,
    key_hash: KeyHash,
    seed: u64,
    part: KeyPart,
}

#[derive(Debug, Clone)]
enum Placement {
    Points(Continuum),
    /// The hash modulo the number of slots.
    Modula(Slots),
    Jump(Slots),
    Ch3(Slots),
}

/// Servers in the order in which a placement without points numbers them. Only modula repeats one,
/// once for each unit of its weight.
#[derive(Debug, Clone)]
struct Slots {
    servers: Box<[u16]>,
    distinct: usize,
}

impl Slots {
    fn new(servers: Vec<u16>) -> Slots {
        let mut met = Met::default();
        let distinct = servers.iter().filter(|&&server| met.add(server)).count();
        Slots {
            servers: servers.into_boxed_slice(),
            distinct,
        }
    }
}

impl Ring {
    /// The ring of all members. Servers are known by their index.
    ///
    /// # Errors
    /// No member, too many, or points that the scheme cannot have.
    pub fn build(scheme: &Scheme, members: &[Member]) -> Result<Ring, RingError> {
        let all: Vec<usize> = (0..members.len().min(MEMBERS_MAX + 1)).collect();
        Ring::build_among(scheme, members, &all)
    }

    /// The ring of some members, as clients build it that eject the others: shares are computed
    /// among those that are left. Servers keep their index in `members`.
    ///
    /// # Errors
    /// As [`Ring::build`]. Indexes that are out of range or occur twice are the caller's fault and
    /// panic or count twice.
    pub fn build_among(
        scheme: &Scheme,
        members: &[Member],
        live: &[usize],
    ) -> Result<Ring, RingError> {
        if live.is_empty() {
            return Err(RingError::Empty);
        }
        if members.len() > MEMBERS_MAX {
            return Err(RingError::TooManyMembers(members.len()));
        }
        let key_hash = scheme
            .key_hash
            .unwrap_or_else(|| default_key_hash(scheme.kind));
        let seed = match scheme.seed.as_str() {
            "" => 0,
            text => hashkit::xxh3(text.as_bytes(), 0),
        };
        let slots = || Slots::new(live.iter().map(|&index| index as u16).collect());
        let placement = match scheme.kind {
            RingKind::Modula => Placement::Modula(slots()),
            RingKind::TwemproxyModula => Placement::Modula(weighted_slots(members, live)?),
            RingKind::Jump => Placement::Jump(slots()),
            RingKind::Ch3 => Placement::Ch3(slots()),
            kind => Placement::Points(points::build(kind, key_hash, members, live)?),
        };
        Ok(Ring {
            placement,
            key_hash,
            seed,
            part: scheme.part.clone(),
        })
    }

    /// The server a key belongs to.
    #[inline]
    pub fn owner(&self, key: &[u8]) -> usize {
        let part = self.hashed_part(key);
        usize::from(match &self.placement {
            Placement::Points(continuum) if continuum.is_one() => continuum.owners[0],
            Placement::Points(continuum) => {
                continuum.owners[continuum.find(hashkit::hash(self.key_hash, self.seed, part))]
            }
            Placement::Modula(slots) => slots.servers[self.modula(slots, part)],
            Placement::Jump(slots) => {
                let hash = hashkit::xxh3(part, self.seed);
                slots.servers[stateless::jump(hash, slots.servers.len() as u32) as usize]
            }
            Placement::Ch3(slots) => {
                slots.servers[stateless::ch3(part, slots.servers.len() as u32) as usize]
            }
        })
    }

    /// The servers a key belongs to, the owner first, each once. Servers that have no part in the
    /// ring (a weight so small that it gives no point) are not among them.
    pub fn preference(&self, key: &[u8]) -> Preference<'_> {
        let part = self.hashed_part(key);
        let cursor = match &self.placement {
            Placement::Points(continuum) => {
                Cursor::Point(continuum.find(hashkit::hash(self.key_hash, self.seed, part)))
            }
            Placement::Modula(slots) => Cursor::Hash {
                first: self.modula(slots, part),
                hash: u64::from(hashkit::hash(self.key_hash, self.seed, part)),
            },
            Placement::Jump(slots) => {
                let hash = hashkit::xxh3(part, self.seed);
                Cursor::Hash {
                    first: stateless::jump(hash, slots.servers.len() as u32) as usize,
                    hash,
                }
            }
            Placement::Ch3(slots) => Cursor::Hash {
                first: stateless::ch3(part, slots.servers.len() as u32) as usize,
                hash: hashkit::murmur64(part, stateless::CH3_SEED),
            },
        };
        Preference {
            ring: self,
            met: Met::default(),
            left: self.len(),
            cursor,
        }
    }

    /// Servers that have a part in the ring.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        match &self.placement {
            Placement::Points(continuum) => continuum.distinct,
            Placement::Modula(slots) | Placement::Jump(slots) | Placement::Ch3(slots) => {
                slots.distinct
            }
        }
    }

    /// What of a key is hashed.
    #[inline]
    pub fn hashed_part<'key>(&self, key: &'key [u8]) -> &'key [u8] {
        match &self.part {
            KeyPart::Whole => key,
            part => part_of(part, key),
        }
    }

    /// The points in order, each with its server; none where the placement has none.
    pub fn points(&self) -> impl Iterator<Item = (u32, usize)> {
        let continuum = match &self.placement {
            Placement::Points(continuum) => Some(continuum),
            _ => None,
        };
        continuum.into_iter().flat_map(|continuum| {
            let owners = continuum.owners.iter().map(|&owner| usize::from(owner));
            continuum.values.iter().copied().zip(owners)
        })
    }

    fn modula(&self, slots: &Slots, part: &[u8]) -> usize {
        hashkit::hash(self.key_hash, self.seed, part) as usize % slots.servers.len()
    }
}

/// The key hash of a program that has not been told another.
fn default_key_hash(kind: RingKind) -> KeyHash {
    match kind {
        RingKind::Libketama | RingKind::Rj | RingKind::Spymemcached { .. } => KeyHash::Md5,
        RingKind::LibmemcachedKetama | RingKind::Modula => KeyHash::OneAtATime,
        RingKind::Twemproxy | RingKind::TwemproxyModula => KeyHash::Fnv1a64,
        RingKind::McproxyRing { .. } | RingKind::Jump | RingKind::Ch3 => KeyHash::Xxh3,
    }
}

fn weighted_slots(members: &[Member], live: &[usize]) -> Result<Slots, RingError> {
    let mut order = live.to_vec();
    labels::sort_as_twemproxy(&mut order, members);
    let total: u64 = order
        .iter()
        .map(|&index| u64::from(members[index].weight()))
        .sum();
    if total > POINTS_MAX as u64 {
        return Err(RingError::TooManyPoints(total as usize));
    }
    Ok(Slots::new(
        order
            .iter()
            .flat_map(|&index| std::iter::repeat_n(index as u16, members[index].weight() as usize))
            .collect(),
    ))
}

fn part_of<'key>(part: &KeyPart, key: &'key [u8]) -> &'key [u8] {
    match part {
        KeyPart::Whole => key,
        KeyPart::Tag { open, close, empty } => {
            let Some(start) = memchr::memchr(*open, key) else {
                return key;
            };
            let rest = &key[start + 1..];
            match memchr::memchr(*close, rest) {
                Some(0) if *empty == EmptyTag::Whole => key,
                Some(end) => &rest[..end],
                None => key,
            }
        }
        KeyPart::Before(marker) => match memchr::memmem::find(key, marker) {
            Some(end) => &key[..end],
            None => key,
        },
        KeyPart::After(start) => key.strip_prefix(start.as_slice()).unwrap_or(key),
    }
}

/// A set of servers.
#[derive(Debug, Clone, Default)]
struct Met([u64; MEMBERS_MAX / 64]);

impl Met {
    /// Whether the server was new.
    #[inline]
    fn add(&mut self, server: u16) -> bool {
        let (word, bit) = (usize::from(server) / 64, 1 << (server % 64));
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    fn has(&self, server: u16) -> bool {
        self.0[usize::from(server) / 64] & (1 << (server % 64)) != 0
    }
}

/// The servers of a key in the order in which they are asked. See [`Ring::preference`].
#[derive(Debug, Clone)]
pub struct Preference<'ring> {
    ring: &'ring Ring,
    met: Met,
    left: usize,
    cursor: Cursor,
}

#[derive(Debug, Clone, Copy)]
enum Cursor {
    /// The next point to look at.
    Point(usize),
    /// The slot of the owner, and what chooses among the others.
    Hash { first: usize, hash: u64 },
}

impl Iterator for Preference<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.left == 0 {
            return None;
        }
        let server = match (&self.ring.placement, &mut self.cursor) {
            (Placement::Points(continuum), Cursor::Point(at)) => loop {
                let server = continuum.owners[*at];
                *at = if *at + 1 == continuum.owners.len() {
                    0
                } else {
                    *at + 1
                };
                if self.met.add(server) {
                    break server;
                }
            },
            (
                Placement::Modula(slots) | Placement::Jump(slots) | Placement::Ch3(slots),
                Cursor::Hash { first, hash },
            ) => {
                let server = if self.left == slots.distinct {
                    slots.servers[*first]
                } else {
                    *hash = stateless::rehash(*hash);
                    let pick = stateless::jump(*hash, self.left as u32);
                    not_met(slots, &self.met, pick as usize)
                };
                self.met.add(server);
                server
            }
            _ => unreachable!("points have a point cursor, slots a hash"),
        };
        self.left -= 1;
        Some(usize::from(server))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Preference<'_> {}

/// The server that stands at `pick` among those not met yet.
fn not_met(slots: &Slots, met: &Met, pick: usize) -> u16 {
    let mut passed = Met::default();
    slots
        .servers
        .iter()
        .copied()
        .filter(|&server| !met.has(server) && passed.add(server))
        .nth(pick)
        .expect("picked among those that are left")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::proxy::McproxyLabels;

    fn members(count: usize) -> Vec<Member> {
        (1..=count)
            .map(|n| Member::new(format!("10.0.{}.{}", n / 256, n % 256), 11211))
            .collect()
    }

    fn kinds() -> Vec<RingKind> {
        vec![
            RingKind::Libketama,
            RingKind::LibmemcachedKetama,
            RingKind::Modula,
            RingKind::Twemproxy,
            RingKind::TwemproxyModula,
            RingKind::McproxyRing {
                labels: McproxyLabels::Default,
                points: 160,
            },
            RingKind::Rj,
            RingKind::Jump,
            RingKind::Ch3,
        ]
    }

    fn scheme(kind: RingKind) -> Scheme {
        Scheme {
            kind,
            ..Scheme::default()
        }
    }

    #[test]
    fn the_preference_list_has_each_server_once_and_the_owner_first() {
        for kind in kinds() {
            for count in [1, 2, 3, 7, 65, 300] {
                let ring = Ring::build(&scheme(kind), &members(count)).unwrap();
                for n in 0..50 {
                    let key = format!("key:{n}");
                    let mut list: Vec<usize> = ring.preference(key.as_bytes()).collect();
                    assert_eq!(list[0], ring.owner(key.as_bytes()), "{kind:?}");
                    assert_eq!(list.len(), count, "{kind:?}");
                    list.sort_unstable();
                    list.dedup();
                    assert_eq!(list.len(), count, "{kind:?}");
                }
            }
        }
    }

    #[test]
    fn successors_are_spread_over_all_others() {
        for kind in kinds() {
            let ring = Ring::build(&scheme(kind), &members(5)).unwrap();
            let mut second = [0; 5];
            for n in 0..4000 {
                let key = format!("key:{n}");
                let mut list = ring.preference(key.as_bytes());
                if list.next() == Some(0) {
                    second[list.next().unwrap()] += 1;
                }
            }
            assert_eq!(second[0], 0);
            assert!(
                second[1..].iter().all(|&count| count > 40),
                "{kind:?}: {second:?}"
            );
        }
    }

    #[test]
    fn tags_and_markers() {
        let tag = |empty| KeyPart::Tag {
            open: b'{',
            close: b'}',
            empty,
        };
        for (part, key, hashed) in [
            (tag(EmptyTag::Whole), "a{b}c", "b"),
            (tag(EmptyTag::Whole), "a{b}c{d}", "b"),
            (tag(EmptyTag::Whole), "a}{b}", "b"),
            (tag(EmptyTag::Whole), "a{b", "a{b"),
            (tag(EmptyTag::Whole), "a{}b", "a{}b"),
            (tag(EmptyTag::Nothing), "a{}b", ""),
            (KeyPart::Before(b"|#|".into()), "a|#|b", "a"),
            (KeyPart::Before(b"|#|".into()), "a|#b", "a|#b"),
            (KeyPart::Before(b"|#|".into()), "|#|b", ""),
            (KeyPart::After(b"ns:".into()), "ns:a", "a"),
            (KeyPart::After(b"ns:".into()), "a", "a"),
        ] {
            assert_eq!(part_of(&part, key.as_bytes()), hashed.as_bytes(), "{key}");
        }
    }

    #[test]
    fn rings_that_cannot_be() {
        let build = |kind, count| Ring::build(&scheme(kind), &members(count)).map(|_| ());
        assert_eq!(build(RingKind::Libketama, 0), Err(RingError::Empty));
        assert_eq!(build(RingKind::Jump, 0), Err(RingError::Empty));
        assert_eq!(build(RingKind::Jump, 1024), Ok(()));
        assert_eq!(
            build(RingKind::Jump, 1025),
            Err(RingError::TooManyMembers(1025))
        );
        let mcproxy = |points| RingKind::McproxyRing {
            labels: McproxyLabels::Ketama,
            points,
        };
        assert_eq!(build(mcproxy(6), 3), Err(RingError::NotInFours(6)));
        assert_eq!(build(mcproxy(0), 3), Err(RingError::NotInFours(0)));
        assert_eq!(
            build(mcproxy(1 << 20), 3),
            Err(RingError::TooManyPoints(3 << 20))
        );
    }

    #[test]
    fn among_those_that_live_servers_keep_their_index() {
        for kind in kinds() {
            let members = members(6);
            let ring = Ring::build_among(&scheme(kind), &members, &[1, 2, 5]).unwrap();
            let left: Vec<Member> = [1, 2, 5].map(|index: usize| members[index].clone()).into();
            let alone = Ring::build(&scheme(kind), &left).unwrap();
            for n in 0..100 {
                let key = format!("key:{n}");
                assert_eq!(
                    ring.owner(key.as_bytes()),
                    [1, 2, 5][alone.owner(key.as_bytes())],
                    "{kind:?}"
                );
            }
        }
    }
}
