//! A connection between two nodes that can be made to fail: cut, silent one way, late, slow, tampered
//! with.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Bytes that are on their way at most: what a socket would hold.
const ON_THE_WAY: usize = 1 << 20;
/// How often a thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the follower, which dials, to the leader.
    Up,
    /// From the leader to the follower.
    Down,
}

/// What is done to the next frame with records that comes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tamper {
    Drop,
    Double,
    /// One bit of it changes.
    Flip,
    /// Its first record, if that is a value, becomes one that says nothing, and nobody can tell.
    Forge,
}

#[derive(Default)]
struct Knobs {
    silent: [AtomicBool; 2],
    delay_ms: AtomicU64,
    /// 0: no limit.
    bytes_per_second: AtomicU64,
    down: AtomicBool,
    /// Connections of before are over.
    generation: AtomicUsize,
    accepted: AtomicUsize,
    passed: [AtomicU64; 2],
    tamper: Mutex<Option<Tamper>>,
    ended: AtomicBool,
}

/// One that stands in front of a leader.
pub struct Faults {
    address: SocketAddr,
    knobs: Arc<Knobs>,
}

impl Faults {
    pub fn before(target: SocketAddr) -> Faults {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let knobs = Arc::new(Knobs::default());
        let shared = knobs.clone();
        std::thread::spawn(move || accept(&listener, target, &shared));
        Faults { address, knobs }
    }

    /// Where the follower dials.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections; new ones may come.
    pub fn cut(&self) {
        self.knobs.generation.fetch_add(1, SeqCst);
    }

    /// While it is down, nobody gets through.
    pub fn down(&self, down: bool) {
        self.knobs.down.store(down, SeqCst);
        if down {
            self.cut();
        }
    }

    /// What goes this way is held, and neither side is told.
    pub fn silence(&self, way: Way, silent: bool) {
        self.knobs.silent[way as usize].store(silent, SeqCst);
    }

    /// What passes takes so much longer.
    pub fn delay(&self, delay: Duration) {
        let delay = delay.as_millis() as u64;
        self.knobs.delay_ms.store(delay, SeqCst);
    }

    /// No more than this passes each way; 0: as much as wants to.
    pub fn throttle(&self, bytes_per_second: u64) {
        self.knobs.bytes_per_second.store(bytes_per_second, SeqCst);
    }

    pub fn tamper(&self, tamper: Tamper) {
        *self.knobs.tamper.lock().unwrap() = Some(tamper);
    }

    /// That has been done.
    pub fn tampered(&self) -> bool {
        self.knobs.tamper.lock().unwrap().is_none()
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.knobs.accepted.load(SeqCst)
    }

    /// Bytes so far.
    pub fn passed(&self, way: Way) -> u64 {
        self.knobs.passed[way as usize].load(SeqCst)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.knobs.ended.store(true, SeqCst);
        self.cut();
    }
}

fn accept(listener: &TcpListener, target: SocketAddr, knobs: &Arc<Knobs>) {
    while !knobs.ended.load(SeqCst) {
        let Ok((near, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        if knobs.down.load(SeqCst) {
            continue;
        }
        let Ok(far) = TcpStream::connect(target) else {
            continue;
        };
        knobs.accepted.fetch_add(1, SeqCst);
        let generation = knobs.generation.load(SeqCst);
        for stream in [&near, &far] {
            stream.set_nonblocking(false).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(LOOK)).unwrap();
            stream.set_write_timeout(Some(LOOK)).unwrap();
        }
        for (way, from, to) in [(Way::Up, &near, &far), (Way::Down, &far, &near)] {
            let line = Arc::new(Line {
                way,
                generation,
                knobs: knobs.clone(),
                queue: Mutex::default(),
                changed: Condvar::new(),
            });
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let writer = line.clone();
            std::thread::spawn(move || line.take_in(from));
            std::thread::spawn(move || writer.give_out(to));
        }
    }
}

/// What is on its way: when it came, and what it is. Nothing: that was the end.
type Pieces = VecDeque<(Instant, Option<Vec<u8>>)>;

/// One way of one connection.
struct Line {
    way: Way,
    generation: usize,
    knobs: Arc<Knobs>,
    queue: Mutex<Pieces>,
    changed: Condvar,
}

impl Line {
    fn over(&self) -> bool {
        self.knobs.generation.load(SeqCst) != self.generation
    }

    fn take_in(&self, mut from: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        let mut frames = Frames::default();
        while !self.over() {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    let mut bytes = buffer[..n].to_vec();
                    if self.way == Way::Down {
                        bytes = frames.pass(&self.knobs, bytes);
                    }
                    self.put(Some(bytes));
                }
                Err(error) if is_timeout(&error) => {}
                Err(_) => break,
            }
        }
        self.put(None);
        let _ = from.shutdown(Shutdown::Both);
    }

    fn put(&self, bytes: Option<Vec<u8>>) {
        let waiting = |queue: &Pieces| -> usize {
            let pieces = queue.iter().filter_map(|(_, bytes)| bytes.as_ref());
            pieces.map(Vec::len).sum()
        };
        let mut queue = self.queue.lock().unwrap();
        while bytes.is_some() && waiting(&queue) > ON_THE_WAY && !self.over() {
            queue = self.changed.wait_timeout(queue, LOOK).unwrap().0;
        }
        queue.push_back((Instant::now(), bytes));
        self.changed.notify_all();
    }

    fn give_out(&self, mut to: TcpStream) {
        while !self.over() {
            let due = {
                let mut queue = self.queue.lock().unwrap();
                if queue.is_empty() {
                    queue = self.changed.wait_timeout(queue, LOOK).unwrap().0;
                }
                queue.front().map(|(came, _)| *came)
            };
            let Some(came) = due else { continue };
            let delay = Duration::from_millis(self.knobs.delay_ms.load(SeqCst));
            let early = (came + delay).saturating_duration_since(Instant::now());
            if self.knobs.silent[self.way as usize].load(SeqCst) || !early.is_zero() {
                std::thread::sleep(early.clamp(Duration::from_millis(1), LOOK));
                continue;
            }
            let piece = self.queue.lock().unwrap().pop_front();
            self.changed.notify_all();
            let Some((_, Some(bytes))) = piece else { break };
            if !self.send(&mut to, &bytes) {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    /// False: it has ended.
    fn send(&self, to: &mut TcpStream, bytes: &[u8]) -> bool {
        let mut sent = 0;
        while sent < bytes.len() {
            if self.over() {
                return false;
            }
            let limit = self.knobs.bytes_per_second.load(SeqCst);
            let most = match limit {
                0 => bytes.len() - sent,
                _ => (limit as usize / 100).clamp(1, bytes.len() - sent),
            };
            match to.write(&bytes[sent..sent + most]) {
                Ok(n) => {
                    sent += n;
                    self.knobs.passed[self.way as usize].fetch_add(n as u64, SeqCst);
                    if limit > 0 {
                        std::thread::sleep(Duration::from_secs_f64(n as f64 / limit as f64));
                    }
                }
                Err(error) if is_timeout(&error) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// Finds the frames in what comes down, to tamper with them.
#[derive(Default)]
struct Frames {
    part: Vec<u8>,
}

impl Frames {
    /// What a frame begins with.
    const MAGIC: &[u8] = b"LR";
    /// Bytes of a frame before its payload, and the type of those with records of the log.
    const HEADER: usize = 24;
    const BATCH: u8 = 5;
    /// Where the first record has its kind, and two of them.
    const KIND: usize = Frames::HEADER + 4;
    const PUT: u8 = 1;
    const SUPERSEDED: u8 = 12;

    fn pass(&mut self, knobs: &Knobs, bytes: Vec<u8>) -> Vec<u8> {
        if self.part.is_empty() && !bytes.starts_with(Frames::MAGIC) {
            // It is not two nodes that speak.
            return bytes;
        }
        self.part.extend_from_slice(&bytes);
        let mut out = Vec::new();
        while self.part.len() >= Frames::HEADER {
            let length = u32::from_le_bytes(self.part[4..8].try_into().unwrap()) as usize;
            let whole = Frames::HEADER + length;
            if self.part.len() < whole {
                break;
            }
            let mut frame: Vec<u8> = self.part.drain(..whole).collect();
            let tamper = match frame[3] {
                Frames::BATCH => knobs.tamper.lock().unwrap().take_if(|tamper| {
                    *tamper != Tamper::Forge || frame[Frames::KIND] == Frames::PUT
                }),
                _ => None,
            };
            match tamper {
                Some(Tamper::Drop) => continue,
                Some(Tamper::Double) => out.extend_from_slice(&frame),
                Some(Tamper::Flip) => frame[whole - 1] ^= 1,
                Some(Tamper::Forge) => {
                    frame[Frames::KIND] = Frames::SUPERSEDED;
                    let sum = crc32c::crc32c(&frame[..8]);
                    let sum = crc32c::crc32c_append(sum, &frame[12..]);
                    frame[8..12].copy_from_slice(&sum.to_le_bytes());
                }
                None => {}
            }
            out.extend_from_slice(&frame);
        }
        out
    }
}
