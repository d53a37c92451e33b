//! SRV records: names of services to hosts and ports.
//!
//! Host names are left to the system's resolver ([`super::address::resolve`]), which knows what the
//! administrator has set up. It has no call for SRV, so the name servers it is configured with are
//! asked here: over UDP, and over TCP where an answer is too long for that. Blocking; for threads
//! that serve nobody.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, Question, RCODE, TYPE};

const PORT: u16 = 53;
/// What passes through every network in one datagram.
const UDP_BYTES: u16 = 1232;

/// One SRV record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// Without the dot at its end.
    pub host: String,
    pub port: u16,
    pub priority: u16,
    pub weight: u16,
    /// Where the host is, if the answer says so by the way.
    pub addresses: Vec<IpAddr>,
}

/// Whom to ask, and how.
#[derive(Debug, Clone)]
pub struct Resolver {
    nameservers: Vec<SocketAddr>,
    search: Vec<String>,
    /// Names with so many dots are tried as they are before they are tried below `search`.
    dots: usize,
    timeout: Duration,
    attempts: u32,
}

/// What one server said to one name.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Services(Vec<Service>),
    /// There is no such name, or nothing of that kind.
    Nothing,
    /// Ask again over TCP.
    Truncated,
}

impl Resolver {
    /// As `/etc/resolv.conf` has it.
    ///
    /// # Errors
    /// The file cannot be read or makes no sense.
    pub fn system() -> io::Result<Resolver> {
        Resolver::of(&std::fs::read("/etc/resolv.conf")?)
    }

    fn of(text: &[u8]) -> io::Result<Resolver> {
        let config = resolv_conf::Config::parse(text)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let nameservers = config.get_nameservers_or_local();
        let search = config.get_last_search_or_domain();
        Ok(Resolver {
            nameservers: nameservers
                .into_iter()
                .map(|address| SocketAddr::new(address.into(), PORT))
                .collect(),
            search: search.cloned().collect(),
            dots: config.ndots as usize,
            timeout: Duration::from_secs(config.timeout.clamp(1, 30).into()),
            attempts: config.attempts.clamp(1, 5),
        })
    }

    /// Asks these servers, for names that are complete.
    pub fn asking(nameservers: Vec<SocketAddr>, timeout: Duration) -> Resolver {
        Resolver {
            nameservers,
            search: Vec::new(),
            dots: 1,
            timeout,
            attempts: 2,
        }
    }

    /// The hosts of a service: those of the best priority, in the order of their names.
    ///
    /// # Errors
    /// No server answers, or there is no such service ([`io::ErrorKind::NotFound`]).
    pub fn services(&self, name: &str) -> io::Result<Vec<Service>> {
        for name in self.candidates(name) {
            if let Some(services) = self.ask(&name)? {
                return Ok(best(services));
            }
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{name}: no such service (no SRV record)"),
        ))
    }

    /// The names to try, in order.
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(whole) = name.strip_suffix('.') {
            return vec![whole.to_owned()];
        }
        let mut names: Vec<String> = self
            .search
            .iter()
            .map(|domain| format!("{name}.{}", domain.trim_end_matches('.')))
            .collect();
        if name.matches('.').count() >= self.dots {
            names.insert(0, name.to_owned());
        } else {
            names.push(name.to_owned());
        }
        names
    }

    /// One name; nothing where it does not exist.
    fn ask(&self, name: &str) -> io::Result<Option<Vec<Service>>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no name server is configured");
        for _ in 0..self.attempts {
            for server in &self.nameservers {
                match self.ask_server(name, *server) {
                    Ok(Said::Services(services)) => return Ok(Some(services)),
                    Ok(Said::Nothing) => return Ok(None),
                    Ok(Said::Truncated) => {
                        last = io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("{server}: an answer over TCP that is cut off"),
                        );
                    }
                    Err(error) => {
                        last = io::Error::new(error.kind(), format!("{server}: {error}"));
                    }
                }
            }
        }
        Err(last)
    }

    fn ask_server(&self, name: &str, server: SocketAddr) -> io::Result<Said> {
        let id = getrandom::u32().map_err(io::Error::other)? as u16;
        let query = query(id, name)?;
        match self.over_udp(&query, id, name, server)? {
            Said::Truncated => self.over_tcp(&query, id, name, server),
            said => Ok(said),
        }
    }

    fn over_udp(&self, query: &[u8], id: u16, name: &str, server: SocketAddr) -> io::Result<Said> {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        socket.connect(server)?;
        socket.send(query)?;
        let until = Instant::now() + self.timeout;
        let mut answer = [0; 65_535];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            socket.set_read_timeout(Some(left))?;
            let length = socket.recv(&mut answer)?;
            // Anybody can send a datagram; what does not answer the question is none.
            if let Ok(said) = read(&answer[..length], id, name) {
                return Ok(said);
            }
        }
    }

    fn over_tcp(&self, query: &[u8], id: u16, name: &str, server: SocketAddr) -> io::Result<Said> {
        let mut stream = TcpStream::connect_timeout(&server, self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        let mut framed = (query.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(query);
        stream.write_all(&framed)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        read(&answer, id, name)
    }
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

fn query(id: u16, name: &str) -> io::Result<Vec<u8>> {
    let name = Name::new(name)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: no DNS name")))?;
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let kind = QTYPE::TYPE(TYPE::SRV);
    packet
        .questions
        .push(Question::new(name, kind, CLASS::IN.into(), false));
    *packet.opt_mut() = Some(OPT {
        opt_codes: Vec::new(),
        udp_packet_size: UDP_BYTES,
        version: 0,
    });
    packet.build_bytes_vec().map_err(invalid)
}

/// What an answer says.
///
/// # Errors
/// It is none to this question, or the server could not tell.
fn read(bytes: &[u8], id: u16, name: &str) -> io::Result<Said> {
    let packet = Packet::parse(bytes).map_err(invalid)?;
    let asked = packet
        .questions
        .first()
        .is_some_and(|question| question.qname.to_string().eq_ignore_ascii_case(name));
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) || !asked {
        return Err(invalid("an answer to another question"));
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Ok(Said::Truncated);
    }
    match packet.rcode() {
        RCODE::NoError => {}
        RCODE::NameError => return Ok(Said::Nothing),
        code => return Err(io::Error::other(format!("the name server says {code:?}"))),
    }
    let services: Vec<Service> = packet
        .answers
        .iter()
        .filter_map(|record| match &record.rdata {
            RData::SRV(service) => Some(Service {
                host: service.target.to_string().trim_end_matches('.').to_owned(),
                port: service.port,
                priority: service.priority,
                weight: service.weight,
                addresses: addresses(&packet, &service.target),
            }),
            _ => None,
        })
        // The root as a host says that there is no such service.
        .filter(|service| !service.host.is_empty() && service.port != 0)
        .collect();
    Ok(if services.is_empty() {
        Said::Nothing
    } else {
        Said::Services(services)
    })
}

/// What the answer adds about a host.
fn addresses(packet: &Packet<'_>, host: &Name<'_>) -> Vec<IpAddr> {
    let records = packet.additional_records.iter();
    records
        .filter(|record| record.name == *host)
        .filter_map(|record| match &record.rdata {
            RData::A(found) => Some(Ipv4Addr::from(found.address).into()),
            RData::AAAA(found) => Some(Ipv6Addr::from(found.address).into()),
            _ => None,
        })
        .collect()
}

fn best(mut services: Vec<Service>) -> Vec<Service> {
    let first = services.iter().map(|service| service.priority).min();
    services.retain(|service| Some(service.priority) == first);
    services.sort();
    services.dedup_by(|a, b| (&a.host, a.port) == (&b.host, b.port));
    services
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use simple_dns::ResourceRecord;
    use simple_dns::rdata::{A, SRV};

    use super::*;

    const SERVICE: &str = "_memcache._tcp.cache.test";

    fn pod(number: u16) -> Name<'static> {
        let name = format!("pod-{number}.cache.test");
        Name::new(&name).unwrap().into_owned()
    }

    /// An answer with so many servers.
    fn answer(query: &[u8], servers: u16, priorities: u16) -> Vec<u8> {
        let asked = Packet::parse(query).unwrap();
        let mut packet = Packet::new_reply(asked.id());
        packet.questions = asked.questions.clone();
        for n in 0..servers {
            packet.answers.push(ResourceRecord::new(
                asked.questions[0].qname.clone(),
                CLASS::IN,
                5,
                RData::SRV(SRV {
                    priority: n % priorities,
                    weight: 10,
                    port: 11211,
                    target: pod(n),
                }),
            ));
            packet.additional_records.push(ResourceRecord::new(
                pod(n),
                CLASS::IN,
                5,
                RData::A(A {
                    address: 0x0a00_0000 + u32::from(n),
                }),
            ));
        }
        packet.build_bytes_vec_compressed().unwrap()
    }

    /// A name server that answers one question over UDP, and one over TCP if need be.
    fn nameserver(
        over_udp: impl FnOnce(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
        over_tcp: impl FnOnce(&[u8]) -> Vec<u8> + Send + 'static,
    ) -> SocketAddr {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).unwrap();
        thread::spawn(move || {
            let mut bytes = [0; 2048];
            let (length, from) = udp.recv_from(&mut bytes).unwrap();
            for answer in over_udp(&bytes[..length]) {
                udp.send_to(&answer, from).unwrap();
            }
        });
        thread::spawn(move || {
            let (mut stream, _) = tcp.accept().unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut query).unwrap();
            let answer = over_tcp(&query);
            stream
                .write_all(&(answer.len() as u16).to_be_bytes())
                .unwrap();
            stream.write_all(&answer).unwrap();
        });
        address
    }

    fn resolver(server: SocketAddr) -> Resolver {
        Resolver::asking(vec![server], Duration::from_secs(5))
    }

    #[test]
    fn services_are_found_and_strangers_ignored() {
        let server = nameserver(
            |query| {
                let mut forged = answer(query, 1, 1);
                forged[0] ^= 1;
                let other = super::query(u16::from_be_bytes([query[0], query[1]]), "other.test");
                vec![
                    b"noise".to_vec(),
                    forged,
                    answer(&other.unwrap(), 2, 1),
                    answer(query, 6, 2),
                ]
            },
            |_| unreachable!(),
        );
        let services = resolver(server).services(SERVICE).unwrap();
        let hosts: Vec<&str> = services
            .iter()
            .map(|service| service.host.as_str())
            .collect();
        // The even ones have priority 0.
        assert_eq!(
            hosts,
            ["pod-0.cache.test", "pod-2.cache.test", "pod-4.cache.test"]
        );
        assert_eq!((services[1].port, services[1].weight), (11211, 10));
        assert_eq!(
            services[1].addresses,
            ["10.0.0.2".parse::<IpAddr>().unwrap()]
        );
    }

    #[test]
    fn long_answers_come_over_tcp() {
        let server = nameserver(
            |query| {
                let mut cut = answer(query, 0, 1);
                cut[2] |= 2;
                vec![cut]
            },
            |query| answer(query, 300, 1),
        );
        assert_eq!(resolver(server).services(SERVICE).unwrap().len(), 300);
    }

    #[test]
    fn what_is_not_there() {
        let server = nameserver(
            |query| {
                let mut none = answer(query, 0, 1);
                none[3] = 3;
                vec![none]
            },
            |_| unreachable!(),
        );
        let error = resolver(server).services(SERVICE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let resolver = Resolver::asking(
            vec![silent.local_addr().unwrap()],
            Duration::from_millis(20),
        );
        assert!(resolver.services(SERVICE).is_err());
        assert!(resolver.services("a..b").is_err());
    }

    #[test]
    fn names_are_searched_as_the_system_does() {
        let resolver = Resolver::of(
            b"nameserver 10.0.0.10\nnameserver fd00::1\nsearch ns.svc.cluster.local svc.cluster.local\noptions ndots:5 timeout:3",
        )
        .unwrap();
        assert_eq!(
            resolver.nameservers,
            [
                "10.0.0.10:53".parse().unwrap(),
                "[fd00::1]:53".parse().unwrap()
            ]
        );
        assert_eq!(resolver.timeout, Duration::from_secs(3));
        assert_eq!(
            resolver.candidates("_m._tcp.cache"),
            [
                "_m._tcp.cache.ns.svc.cluster.local",
                "_m._tcp.cache.svc.cluster.local",
                "_m._tcp.cache"
            ]
        );
        assert_eq!(resolver.candidates("a.b.c.d.e.f")[0], "a.b.c.d.e.f");
        assert_eq!(resolver.candidates("a.b."), ["a.b"]);
    }
}
