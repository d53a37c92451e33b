//! Who belongs to a pool, as it changes.
//!
//! A [`Membership`] is a numbered list of servers with the addresses their names stand for. What a
//! look-up finds goes in; what is different comes out, so that connections and health of those who
//! stay are kept. A look-up that finds nobody changes nothing: a name server in trouble must not
//! take a cache away.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::cluster::ring::Member;
use crate::net::address;
use crate::net::dns::{Resolver, Service};
use crate::settings::proxy::{Address, Pool, SERVERS_MAX, Server};

/// A server, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub server: Server,
    /// In the resolver's order. None for a Unix socket, and where the name is not known now.
    pub addresses: Vec<SocketAddr>,
}

impl Found {
    /// What a ring needs to know of it. spymemcached's labels have the first address of a name.
    pub fn member(&self) -> Member {
        let first = self.addresses.first();
        Member::of(&self.server, first.map(|address| address.ip()))
    }
}

/// The servers of a pool at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    version: u64,
    members: Vec<Found>,
}

/// What has changed from one version to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    pub version: u64,
    /// Places in the new list of those who were not in the old.
    pub joined: Vec<usize>,
    /// Places in the old list of those who are not in the new.
    pub left: Vec<usize>,
    /// Places in both lists, old and new, of those who are in both.
    pub stayed: Vec<(usize, usize)>,
    /// Places in the new list of those who stayed with other addresses.
    pub moved: Vec<usize>,
    /// Whether keys can have moved: somebody came or left, or has another weight, name or place.
    pub ring: bool,
}

impl Membership {
    /// The first version.
    pub fn new(members: Vec<Found>) -> Membership {
        Membership {
            version: 1,
            members,
        }
    }

    /// Counts changes, from 1.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn members(&self) -> &[Found] {
        &self.members
    }

    /// Takes over what a look-up has found. Nothing if that is what is known already, or nobody.
    pub fn update(&mut self, mut found: Vec<Found>) -> Option<Change> {
        if found.is_empty() {
            return None;
        }
        let mut change = Change::default();
        let mut taken = vec![false; self.members.len()];
        for (new, member) in found.iter_mut().enumerate() {
            let old = self.members.iter().enumerate().position(|(at, known)| {
                !taken[at] && known.server.address == member.server.address
            });
            let Some(old) = old else {
                change.joined.push(new);
                continue;
            };
            taken[old] = true;
            change.stayed.push((old, new));
            let known = &self.members[old];
            if member.addresses.is_empty() {
                // Its name is not known at the moment; it was.
                member.addresses.clone_from(&known.addresses);
            }
            if !same_set(&member.addresses, &known.addresses) {
                change.moved.push(new);
            } else {
                // Resolvers turn the order of what they know.
                member.addresses.clone_from(&known.addresses);
            }
            change.ring |= old != new || known.server != member.server;
        }
        change.left = (0..taken.len()).filter(|&at| !taken[at]).collect();
        change.ring |= !change.joined.is_empty() || !change.left.is_empty();
        if !change.ring && change.moved.is_empty() {
            return None;
        }
        self.version += 1;
        change.version = self.version;
        self.members = found;
        Some(change)
    }
}

fn same_set(one: &[SocketAddr], other: &[SocketAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|address| other.contains(address))
}

/// Which address to connect to: the one in use while it is among them, else the first that has not
/// just failed.
pub fn address(
    addresses: &[SocketAddr],
    in_use: Option<SocketAddr>,
    failed: Option<SocketAddr>,
) -> Option<SocketAddr> {
    if let Some(in_use) = in_use
        && addresses.contains(&in_use)
        && failed != Some(in_use)
    {
        return Some(in_use);
    }
    let after = failed.and_then(|failed| addresses.iter().position(|address| *address == failed));
    match after {
        Some(at) => addresses.get((at + 1) % addresses.len()).copied(),
        None => addresses.first().copied(),
    }
}

/// How long a name server that a pool names itself may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks up the servers of a pool. Blocks; for a thread that serves nobody.
///
/// # Errors
/// The SRV records cannot be had. Names of hosts that cannot be found are no error: those servers
/// come without addresses.
pub fn look_up(pool: &Pool) -> io::Result<Vec<Found>> {
    let Some(name) = &pool.srv else {
        let servers = pool.servers.iter().cloned();
        return Ok(servers.map(resolved).collect());
    };
    let resolver = if pool.nameservers.is_empty() {
        Resolver::system()?
    } else {
        Resolver::asking(pool.nameservers.clone(), PATIENCE)
    };
    Ok(of_services(&resolver.services(name)?)
        .into_iter()
        .map(|found| match found.addresses[..] {
            [] => resolved(found.server),
            _ => found,
        })
        .collect())
}

/// The servers a pool is configured with, before any look-up.
pub fn unresolved(pool: &Pool) -> Vec<Found> {
    let servers = pool.servers.iter().cloned();
    servers
        .map(|server| Found {
            server,
            addresses: Vec::new(),
        })
        .collect()
}

fn resolved(server: Server) -> Found {
    let addresses = match &server.address {
        Address::Unix(_) => Vec::new(),
        Address::Tcp { host, port } => {
            address::resolve(Some(host), *port).unwrap_or_else(|error| {
                log::warn!("{host}: {}", address::reason(&error));
                Vec::new()
            })
        }
    };
    Found { server, addresses }
}

/// Servers from SRV records. Weights that are all the same are none.
fn of_services(services: &[Service]) -> Vec<Found> {
    let alike = services
        .windows(2)
        .all(|pair| pair[0].weight == pair[1].weight);
    services
        .iter()
        .take(SERVERS_MAX)
        .map(|service| {
            let mut server = Server::new(Address::tcp(service.host.clone(), service.port));
            if !alike {
                server.weight = u32::from(service.weight).max(1);
            }
            let addresses = service.addresses.iter();
            Found {
                server,
                addresses: addresses
                    .map(|&address| SocketAddr::new(address, service.port))
                    .collect(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(host: &str, addresses: &[&str]) -> Found {
        Found {
            server: Server::new(Address::tcp(host, 11211)),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn changes_are_told() {
        let one = || found("a", &["10.0.0.1:1"]);
        let two = || found("b", &["10.0.0.2:1", "10.0.0.3:1"]);
        let mut members = Membership::new(vec![one(), two()]);
        assert_eq!(members.update(vec![one(), two()]), None);
        let turned = found("b", &["10.0.0.3:1", "10.0.0.2:1"]);
        assert_eq!(members.update(vec![one(), turned]), None);
        assert_eq!(members.update(Vec::new()), None, "nobody is no answer");
        assert_eq!(members.version(), 1);

        let change = members
            .update(vec![found("c", &[]), found("b", &["10.0.0.9:1"])])
            .unwrap();
        assert_eq!(
            change,
            Change {
                version: 2,
                joined: vec![0],
                left: vec![0],
                stayed: vec![(1, 1)],
                moved: vec![1],
                ring: true,
            }
        );
        // A name that is not found for once keeps its addresses.
        assert_eq!(members.update(vec![found("c", &[]), found("b", &[])]), None);

        let mut heavy = found("b", &["10.0.0.9:1"]);
        heavy.server.weight = 2;
        let change = members.update(vec![found("c", &[]), heavy]).unwrap();
        assert!(change.ring && change.moved.is_empty() && change.joined.is_empty());
    }

    #[test]
    fn an_address_is_kept_while_it_is_one() {
        let list: Vec<SocketAddr> = ["10.0.0.1:1", "10.0.0.2:1"]
            .map(|text| text.parse().unwrap())
            .into();
        let (first, second) = (list[0], list[1]);
        let gone = "10.0.0.7:1".parse().unwrap();
        assert_eq!(address(&list, None, None), Some(first));
        assert_eq!(address(&list, Some(second), None), Some(second));
        assert_eq!(address(&list, Some(second), Some(second)), Some(first));
        assert_eq!(address(&list, Some(first), Some(first)), Some(second));
        assert_eq!(address(&list, Some(gone), None), Some(first));
        assert_eq!(address(&[], Some(gone), None), None);
    }

    #[test]
    fn weights_of_services_that_are_alike_are_none() {
        let service = |host: &str, weight| Service {
            host: host.to_owned(),
            port: 11211,
            priority: 0,
            weight,
            addresses: Vec::new(),
        };
        let weights = |services: &[Service]| -> Vec<u32> {
            of_services(services)
                .iter()
                .map(|found| found.server.weight)
                .collect()
        };
        assert_eq!(weights(&[service("a", 33), service("b", 33)]), [1, 1]);
        assert_eq!(weights(&[service("a", 0), service("b", 5)]), [1, 5]);
    }

    #[test]
    fn static_pools_are_resolved() {
        let mut pool = Pool::new("a");
        for text in ["127.0.0.1:1", "[::1]:2", "/run/x", "a..b"] {
            pool.servers.push(Server::parse(text).unwrap());
        }
        let addresses: Vec<usize> = look_up(&pool)
            .unwrap()
            .iter()
            .map(|found| found.addresses.len())
            .collect();
        assert_eq!(addresses, [1, 1, 0, 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Applying a change to the old list gives the new one.
        #[test]
        fn a_change_leads_from_one_list_to_the_other(
            before in prop::collection::btree_set(0..12_u16, 1..10),
            after in prop::collection::btree_set(0..12_u16, 1..10),
        ) {
            let list = |ports: &std::collections::BTreeSet<u16>| -> Vec<Found> {
                ports.iter().map(|port| found(&format!("h{port}"), &[])).collect()
            };
            let (old, new) = (list(&before), list(&after));
            let mut members = Membership::new(old.clone());
            match members.update(new.clone()) {
                None => prop_assert_eq!(old, new),
                Some(change) => {
                    prop_assert_eq!(members.members(), &new[..]);
                    prop_assert_eq!(change.left.len() + change.stayed.len(), old.len());
                    prop_assert_eq!(change.joined.len() + change.stayed.len(), new.len());
                    for (from, to) in change.stayed {
                        prop_assert_eq!(&old[from], &new[to]);
                    }
                    for at in change.joined {
                        prop_assert!(!old.contains(&new[at]));
                    }
                    for at in change.left {
                        prop_assert!(!new.contains(&old[at]));
                    }
                }
            }
        }
    }
}
