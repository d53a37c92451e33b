#![forbid(unsafe_code)]
//! Mutations of a follower's clients on their way to the leader.
//!
//! Workers do not wait: a client's consecutive mutations become a job of bytes for one of a few threads,
//! which sends it to the leader as it is and brings back what that answers. Behind each job goes a
//! request that changes nothing and whose answer is known; what comes before that answer is the job's,
//! whatever it says and however quiet its requests are. A client is always served by the same thread, and
//! nothing more of it is run before the answer is there: its requests happen in their order.
//!
//! A connection to a leader begins by telling it that what comes has been forwarded. A node that does
//! not lead answers such mutations so, and sends them nowhere. A leader that asks for credentials is shown
//! some, and only then: to another they would be a value to store.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::control::Control;
use crate::cluster::replication::replicas::Replicas;
use crate::cluster::target::{Access, Way};
use crate::command::{self, Shared};
use crate::net::address::reason;
use crate::net::{Outward, Ways};
use crate::protocol::request::{Refusal, Style};
use crate::protocol::{Dialect, answer, binary};

/// The longest that the leader may take to let in a connection, to take a piece of a job or to give a
/// piece of an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a thread without work looks whether the server stops.
const LOOK: Duration = Duration::from_millis(200);
/// Threads at most.
const LANES: usize = 4;
/// Bytes of jobs that wait for one of them at most.
const QUEUE_MAX: usize = 64 << 20;
/// Bytes of jobs that are sent before their answers are read, unless it is one job.
const AHEAD: usize = 32 << 10;
/// Bytes that a leader says at most to who enters.
const ENTRY_MAX: usize = 4 << 10;
/// An answer that is longer is none.
const ANSWER_MAX: usize = 256 << 20;

/// What a job in binary is followed by, and what the answer to that begins with.
const BARRIER: [u8; 24] = *b"\x80\x0a\0\0\0\0\0\0\0\0\0\0fwd:\0\0\0\0\0\0\0\0";
const BARRIER_ANSWER: &[u8] = b"\x81\x0a";
const BARRIER_OPAQUE: &[u8] = b"fwd:";

/// What a leader is told first, and the binary status with which one answers that asks for credentials.
const FORWARDED: &[u8] = b"forwarded";
const WHO_ARE_YOU: u16 = 0x20;

/// What goes to the leader for one client.
#[derive(Debug)]
pub struct Outgoing {
    pub bytes: Vec<u8>,
    pub dialect: Dialect,
    /// What each of its requests is answered with if it cannot be sent.
    pub refusals: Vec<Refusal>,
}

impl Outgoing {
    pub fn new(dialect: Dialect) -> Outgoing {
        Outgoing {
            bytes: Vec::new(),
            dialect,
            refusals: Vec::new(),
        }
    }

    /// Another request.
    pub fn add(&mut self, bytes: &[u8], refusal: Refusal) {
        self.bytes.extend_from_slice(bytes);
        self.refusals.push(refusal);
    }

    /// What its value, which has come last, is answered with if it does not end where it should.
    pub fn ill_terminated(&self) -> Option<Refusal> {
        let style = match (self.dialect, self.refusals.first()) {
            (Dialect::Binary, _) => return None,
            (_, Some(Refusal::Silent)) => Style::Text { noreply: true },
            _ => Style::Text { noreply: false },
        };
        let end = self.bytes.len().saturating_sub(2);
        command::ill_ended(&style, &self.bytes[end..])
    }
}

/// What has become of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Answered {
    /// The leader's answer.
    All(Vec<u8>),
    /// What came of that before the leader was gone.
    Cut(Vec<u8>),
    /// Nothing was sent.
    Unsent,
}

/// Where the answer will be.
#[derive(Debug, Default)]
pub struct Slot(Mutex<Option<Answered>>);

impl Slot {
    /// The answer, once, if it is there.
    pub fn take(&self) -> Option<Answered> {
        lock(&self.0).take()
    }

    pub fn fill(&self, answered: Answered) {
        *lock(&self.0) = Some(answered);
    }
}

struct Job {
    bytes: Vec<u8>,
    dialect: Dialect,
    slot: Arc<Slot>,
    then: Box<dyn FnOnce() + Send>,
}

impl Job {
    fn end(self, answered: Answered) {
        self.slot.fill(answered);
        (self.then)();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Lane {
    queue: Mutex<VecDeque<Job>>,
    bell: Condvar,
}

/// The way to the leader.
pub struct Forward {
    lanes: Vec<Arc<Lane>>,
}

impl Forward {
    /// Starts its threads.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(
        shared: &Arc<Shared>,
        replicas: &Arc<Replicas>,
        control: &Arc<Control>,
    ) -> io::Result<(Arc<Forward>, Vec<JoinHandle<()>>)> {
        let workers = shared.settings.server.threads;
        let lanes: Vec<_> = (0..workers.clamp(1, LANES))
            .map(|_| Arc::<Lane>::default())
            .collect();
        let mut threads = Vec::new();
        for lane in &lanes {
            let mut carrier = Carrier {
                lane: lane.clone(),
                shared: shared.clone(),
                replicas: replicas.clone(),
                leaders: [None, None],
            };
            let control = control.clone();
            threads.push(
                Builder::new()
                    .name("forward".to_owned())
                    .spawn(move || carrier.run(&control))?,
            );
        }
        Ok((Arc::new(Forward { lanes }), threads))
    }

    /// Sends a worker's job to the leader, and calls `then` when the slot holds the answer. False: too
    /// much waits already.
    pub fn send(
        &self,
        worker: usize,
        outgoing: &mut Outgoing,
        slot: &Arc<Slot>,
        then: Box<dyn FnOnce() + Send>,
    ) -> bool {
        let lane = &self.lanes[worker % self.lanes.len()];
        let mut queue = lock(&lane.queue);
        let waiting: usize = queue.iter().map(|job| job.bytes.len()).sum();
        if waiting + outgoing.bytes.len() > QUEUE_MAX && !queue.is_empty() {
            return false;
        }
        queue.push_back(Job {
            bytes: std::mem::take(&mut outgoing.bytes),
            dialect: outgoing.dialect,
            slot: slot.clone(),
            then,
        });
        drop(queue);
        lane.bell.notify_one();
        true
    }
}

/// One thread.
struct Carrier {
    lane: Arc<Lane>,
    shared: Arc<Shared>,
    replicas: Arc<Replicas>,
    /// For text and for binary: a connection says by its first byte which it is for.
    leaders: [Option<Leader>; 2],
}

/// One connection.
struct Leader {
    address: SocketAddr,
    stream: Box<dyn Way>,
    /// What lies below it.
    socket: TcpStream,
    /// What has been read and belongs to nobody yet.
    input: Vec<u8>,
}

impl Carrier {
    fn run(&mut self, control: &Control) {
        while control.stopping().is_none() {
            let mut jobs = self.wait();
            while !jobs.is_empty() {
                // As many of one dialect as may be on their way at a time.
                let dialect = jobs[0].dialect;
                let mut bytes = 0;
                let count = jobs
                    .iter()
                    .take_while(|job| {
                        bytes += job.bytes.len();
                        job.dialect == dialect && bytes <= AHEAD
                    })
                    .count();
                let rest = jobs.split_off(count.max(1));
                self.carry(dialect, jobs);
                jobs = rest;
            }
        }
        for job in self.wait() {
            job.end(Answered::Unsent);
        }
    }

    fn wait(&self) -> Vec<Job> {
        let mut queue = lock(&self.lane.queue);
        if queue.is_empty() {
            queue = match self.lane.bell.wait_timeout(queue, LOOK) {
                Ok((queue, _)) => queue,
                Err(broken) => broken.into_inner().0,
            };
        }
        queue.drain(..).collect()
    }

    fn carry(&mut self, dialect: Dialect, jobs: Vec<Job>) {
        let place = usize::from(dialect == Dialect::Binary);
        let leader = match self.leader(place) {
            Ok(leader) => leader,
            Err(error) => {
                log::info!("replication: cannot forward to the leader: {error}");
                jobs.into_iter().for_each(|job| job.end(Answered::Unsent));
                return;
            }
        };
        let barrier: &[u8] = match dialect {
            Dialect::Text => b"mn\r\n",
            Dialect::Binary => &BARRIER,
        };
        let mut all = Vec::new();
        for job in &jobs {
            all.extend_from_slice(&job.bytes);
            all.extend_from_slice(barrier);
        }
        let mut failed = leader.stream.write_all(&all).err();
        drop(all);
        for job in jobs {
            let mut answer = Vec::new();
            if failed.is_none() {
                failed = leader.answer(dialect, &mut answer).err();
            }
            job.end(match failed {
                None => Answered::All(answer),
                Some(_) => Answered::Cut(answer),
            });
        }
        if let Some(error) = failed {
            log::info!("replication: the leader has not answered what was forwarded: {error}");
            self.leaders[place] = None;
        }
    }

    /// A connection to whoever leads now.
    fn leader(&mut self, place: usize) -> io::Result<&mut Leader> {
        let Some(address) = self.replicas.leader_clients() else {
            self.leaders[place] = None;
            return Err(io::Error::new(
                ErrorKind::NotConnected,
                "it is not known where",
            ));
        };
        let usable = self.leaders[place]
            .take()
            .filter(|leader| leader.address == address && leader.is_quiet());
        let leader = match usable {
            Some(leader) => leader,
            None => {
                let dialect = [Dialect::Text, Dialect::Binary][place];
                let access = access(&self.shared, dialect, address).map_err(io::Error::other)?;
                Leader::connect(address, dialect, &access)?
            }
        };
        Ok(self.leaders[place].insert(leader))
    }
}

/// How the leader is entered. Files are read for each connection.
fn access(shared: &Shared, dialect: Dialect, address: SocketAddr) -> Result<Access, String> {
    let (settings, replication) = (&shared.settings.tls, &shared.settings.replication);
    let forwarding = &replication.forwarding;
    let asks = forwarding.ca.is_some() || forwarding.name.is_some();
    let tls = if forwarding.tls.unwrap_or(settings.enabled || asks) {
        let dialed = replication.follow.as_deref();
        let dialed = dialed.and_then(|follow| follow.rsplit_once(':'));
        let name = match (&forwarding.name, dialed) {
            (Some(name), _) => name.clone(),
            (None, Some((host, _))) => host.trim_matches(['[', ']']).to_owned(),
            (None, None) => address.ip().to_string(),
        };
        let authorities = forwarding.ca.as_deref().or(settings.ca_cert.as_deref());
        Some(Outward::load(&Ways {
            authorities,
            identity: settings.chain_cert.as_deref().zip(settings.key.as_deref()),
            name: &name,
            verify: true,
        })?)
    } else {
        None
    };
    let credentials = match &forwarding.user_file {
        None => shared.credentials.first(dialect),
        Some(path) => {
            let told = |why: &str| format!("{}: {why}", path.display());
            let text = std::fs::read_to_string(path).map_err(|error| told(&reason(&error)))?;
            let line = text.lines().next().and_then(|line| line.split_once(':'));
            let (user, password) = line.ok_or_else(|| told("user:password is expected"))?;
            Some((user.to_owned(), password.to_owned()))
        }
    };
    Ok(Access { tls, credentials })
}

impl Leader {
    /// Connects, and shows credentials if that is asked for.
    fn connect(address: SocketAddr, dialect: Dialect, access: &Access) -> io::Result<Leader> {
        let mut leader = Leader::dial(address, access)?;
        if leader.is_entered(dialect)? {
            return Ok(leader);
        }
        let Some((greeting, _)) = access.greeting(dialect) else {
            return Err(refused(format!(
                "{address} asks for credentials: name some with --forward-user-file"
            )));
        };
        // It has hung up.
        let mut leader = Leader::dial(address, access)?;
        leader.stream.write_all(&greeting)?;
        let said = leader.piece(dialect)?;
        let good = match dialect {
            Dialect::Text => said == b"STORED\r\n",
            Dialect::Binary => answer::status(&said) == 0,
        };
        if good && leader.is_entered(dialect)? {
            return Ok(leader);
        }
        Err(refused(format!(
            "{address} does not take the credentials of --forward-user-file, or of this node's first user"
        )))
    }

    fn dial(address: SocketAddr, access: &Access) -> io::Result<Leader> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Leader {
            address,
            stream: access.over(socket.try_clone()?)?,
            socket,
            input: Vec::new(),
        })
    }

    /// Says that what comes has been forwarded. False: who says so has to be known first.
    fn is_entered(&mut self, dialect: Dialect) -> io::Result<bool> {
        let mut said = match dialect {
            Dialect::Text => b"repl ".to_vec(),
            Dialect::Binary => {
                let mut header = vec![0; binary::HEADER];
                (header[0], header[1]) = (binary::MAGIC, binary::REPL);
                (header[3], header[11]) = (FORWARDED.len() as u8, FORWARDED.len() as u8);
                header
            }
        };
        said.extend_from_slice(FORWARDED);
        if dialect == Dialect::Text {
            said.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&said)?;
        let said = self.piece(dialect)?;
        match dialect {
            Dialect::Text if said == b"OK\r\n" => Ok(true),
            Dialect::Text if said.starts_with(b"CLIENT_ERROR unauth") => Ok(false),
            Dialect::Binary if answer::status(&said) == 0 => Ok(true),
            Dialect::Binary if answer::status(&said) == WHO_ARE_YOU => Ok(false),
            _ => Err(refused(format!(
                "{} takes nothing that was forwarded: it is an older larder",
                self.address
            ))),
        }
    }

    /// The next piece of what it says.
    fn piece(&mut self, dialect: Dialect) -> io::Result<Vec<u8>> {
        loop {
            if let Some((length, _)) = piece(dialect, &self.input) {
                return Ok(self.input.drain(..length).collect());
            }
            if self.input.len() > ENTRY_MAX {
                return Err(refused(format!("{} is no larder", self.address)));
            }
            self.read()?;
        }
    }

    /// Reads what has come.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.input.extend_from_slice(&buffer[..n]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether it is still there, and has said nothing that nobody has asked for.
    fn is_quiet(&self) -> bool {
        if self.socket.set_nonblocking(true).is_err() {
            return false;
        }
        let peeked = self.socket.peek(&mut [0]);
        let quiet = matches!(&peeked, Err(error) if error.kind() == ErrorKind::WouldBlock);
        quiet && self.input.is_empty() && self.socket.set_nonblocking(false).is_ok()
    }

    /// Reads up to the answer of the barrier. What comes before is in `answer`, also if it fails.
    fn answer(&mut self, dialect: Dialect, answer: &mut Vec<u8>) -> io::Result<()> {
        let mut at = 0;
        let outcome = loop {
            match piece(dialect, &self.input[at..]) {
                Some((length, true)) => break Ok(length),
                Some((length, false)) => {
                    at += length;
                    continue;
                }
                None if self.input.len() > ANSWER_MAX => {
                    let why = "an answer without an end";
                    break Err(io::Error::new(ErrorKind::InvalidData, why));
                }
                None => {}
            }
            if let Err(error) = self.read() {
                break Err(error);
            }
        };
        answer.extend(self.input.drain(..at));
        self.input.drain(..outcome?);
        Ok(())
    }
}

fn refused(why: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

/// The length of the piece of an answer that stands at the start: a line with the value it announces, or
/// a packet; and whether it is the barrier's. Nothing if it is not there as a whole.
fn piece(dialect: Dialect, input: &[u8]) -> Option<(usize, bool)> {
    if dialect == Dialect::Binary {
        let header = input.get(..24)?;
        let body = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        let length = 24usize.checked_add(body as usize)?;
        let own = header.starts_with(BARRIER_ANSWER) && header[12..16] == *BARRIER_OPAQUE;
        return (input.len() >= length).then_some((length, own));
    }
    let line = &input[..memchr::memchr(b'\n', input)? + 1];
    let mut words = line.trim_ascii_end().split(|byte| *byte == b' ');
    let value = match words.next() {
        Some(b"VALUE") => words.nth(2),
        Some(b"VA") => words.next(),
        _ => return Some((line.len(), line == b"MN\r\n")),
    };
    let value = std::str::from_utf8(value?).ok()?.parse::<usize>().ok()?;
    let length = line.len().checked_add(value)?.checked_add(2)?;
    (input.len() >= length).then_some((length, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(dialect: Dialect, mut input: &[u8]) -> Vec<(usize, bool)> {
        let mut found = Vec::new();
        while let Some((length, own)) = piece(dialect, input) {
            found.push((length, own));
            input = &input[length..];
        }
        found
    }

    #[test]
    fn text_ends_with_its_barrier_and_not_within_a_value() {
        let text = b"STORED\r\nVALUE k 0 4 9\r\nMN\r\n\r\nVA 4 t0\r\nMN\r\n\r\nHD\r\nMN\r\n";
        let lengths = [8, 15 + 6, 9 + 6, 4, 4];
        let mut expected: Vec<_> = lengths.map(|length| (length, false)).to_vec();
        expected[4].1 = true;
        assert_eq!(pieces(Dialect::Text, text), expected);
        for end in 0..text.len() {
            let whole = pieces(Dialect::Text, &text[..end]);
            assert!(whole.iter().all(|(_, own)| !own), "{end}");
        }
        assert_eq!(piece(Dialect::Text, b"VALUE k 0 x\r\n"), None);
        assert_eq!(piece(Dialect::Text, b"VA 99999999999999999999\r\n"), None);
    }

    #[test]
    fn binary_ends_with_its_barrier_and_no_other() {
        let packet = |opcode: u8, opaque: &[u8; 4], body: &[u8]| {
            let mut packet = vec![0x81, opcode, 0, 0, 0, 0, 0, 0];
            packet.extend_from_slice(&(body.len() as u32).to_be_bytes());
            packet.extend_from_slice(opaque);
            packet.extend_from_slice(&[0; 8]);
            packet.extend_from_slice(body);
            packet
        };
        let all = [
            packet(0x01, b"fwd:", b"error"),
            packet(0x0a, b"\0\0\0\0", b""),
            packet(0x0a, b"fwd:", b""),
        ]
        .concat();
        let expected = [(29, false), (24, false), (24, true)];
        assert_eq!(pieces(Dialect::Binary, &all), expected);
        assert_eq!(piece(Dialect::Binary, &all[..28]), None);
    }
}
