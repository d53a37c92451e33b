//! What is hashed to find a server's points.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::Member;
use crate::settings::proxy::{McproxyLabels, RingKind, SpyLabels};

/// The port that most labels leave out.
const USUAL_PORT: u16 = 11211;

/// A label without its number: `-0`, `-1` and so on follow.
pub(super) fn label(kind: RingKind, member: &Member) -> String {
    match kind {
        RingKind::Twemproxy | RingKind::TwemproxyModula => twemproxy(member),
        RingKind::McproxyRing { labels, .. } => match labels {
            McproxyLabels::Default | McproxyLabels::Ketama => with_port(&member.host, member.port),
            McproxyLabels::Twemproxy => libmemcached(member),
            McproxyLabels::Evcache => {
                format!("{}/{}", member.host, with_port(&member.host, member.port))
            }
        },
        RingKind::Spymemcached { labels, .. } => match labels {
            SpyLabels::Spy => java_address(member),
            SpyLabels::Libmemcached => libmemcached(member),
        },
        RingKind::Rj => with_port(&member.host, member.port),
        _ => libmemcached(member),
    }
}

fn with_port(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

fn libmemcached(member: &Member) -> String {
    let host = match member.host.as_str() {
        "" => "localhost",
        host => host,
    };
    if member.port == USUAL_PORT {
        host.to_owned()
    } else {
        with_port(host, member.port)
    }
}

/// An unnamed Unix socket keeps the colon that stands before no port.
fn twemproxy(member: &Member) -> String {
    match &member.name {
        Some(name) => name.clone(),
        None if member.host.starts_with('/') => format!("{}:", member.host),
        None => libmemcached(member),
    }
}

/// twemproxy numbers servers by name: the shorter first, then by bytes. That decides ties.
pub(super) fn sort_as_twemproxy(order: &mut [usize], members: &[Member]) {
    order.sort_by_cached_key(|&index| {
        let name = twemproxy(&members[index]).into_bytes();
        (name.len(), name)
    });
}

/// `InetSocketAddress.toString()` without a slash in front.
fn java_address(member: &Member) -> String {
    let port = member.port;
    let text = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let groups = address.segments().map(|group| format!("{group:x}"));
            format!("[{}]", groups.join(":"))
        }
    };
    match (member.host.parse::<IpAddr>(), member.address) {
        (Ok(address), _) => format!("{}:{port}", text(address)),
        (Err(_), Some(address)) => format!("{}/{}:{port}", member.host, text(address)),
        (Err(_), None) => format!("{}/<unresolved>:{port}", member.host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        let spy = RingKind::Spymemcached {
            labels: SpyLabels::Spy,
            weighted: false,
        };
        let mut named = Member::new("a", 1);
        named.name = Some("cache-1".to_owned());
        let mut resolved = Member::new("a.example.com", 11211);
        resolved.address = Some([10, 0, 0, 1].into());
        for (kind, member, expected) in [
            (RingKind::Libketama, Member::new("a", 11211), "a"),
            (RingKind::Libketama, Member::new("a", 11212), "a:11212"),
            (RingKind::Libketama, Member::new("", 11211), "localhost"),
            (RingKind::Libketama, Member::new("::1", 11212), "::1:11212"),
            (RingKind::Libketama, Member::new("/s", 0), "/s:0"),
            (RingKind::Twemproxy, Member::new("/s", 0), "/s:"),
            (RingKind::Twemproxy, named.clone(), "cache-1"),
            (RingKind::Libketama, named, "a:1"),
            (RingKind::Rj, Member::new("a", 11211), "a:11211"),
            (spy, Member::new("10.0.0.1", 11211), "10.0.0.1:11211"),
            (spy, Member::new("::1", 1), "[0:0:0:0:0:0:0:1]:1"),
            (spy, Member::new("a", 1), "a/<unresolved>:1"),
            (spy, resolved, "a.example.com/10.0.0.1:11211"),
        ] {
            assert_eq!(label(kind, &member), expected);
        }
    }

    #[test]
    fn shorter_names_come_first() {
        let members = ["b:1", "aa:1", "a:2", "a"].map(|name| {
            let mut member = Member::new("x", 1);
            member.name = Some(name.to_owned());
            member
        });
        let mut order = vec![0, 1, 2, 3];
        sort_as_twemproxy(&mut order, &members);
        assert_eq!(order, [3, 2, 0, 1]);
    }
}
