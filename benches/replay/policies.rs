#![forbid(unsafe_code)]
//! Who goes first: the policies that ours is compared with, over one memory without size classes.

use std::collections::BinaryHeap;

/// One look at a cache.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Which request of the trace this is.
    pub at: u32,
    /// Which request asks for the key next; `u32::MAX` for none.
    pub next: u32,
    /// Seconds.
    pub now: u32,
    pub key: u32,
}

/// A cache as far as it decides what stays.
pub trait Policy {
    /// Whether the key is there.
    fn get(&mut self, access: Access) -> bool;
    /// Stores a key that takes so many bytes, and expires at a second (0: never).
    fn set(&mut self, access: Access, bytes: u32, expires: u32);
    fn delete(&mut self, key: u32);
}

const NONE: u32 = u32::MAX;

/// Doubly linked queues over the numbers of keys; each key is in one of them or in none.
struct Queues {
    next: Vec<u32>,
    previous: Vec<u32>,
    /// 0 is none.
    of: Vec<u8>,
    ends: Vec<(u32, u32)>,
    pub bytes: Vec<u64>,
    pub size: Vec<u32>,
    expires: Vec<u32>,
}

impl Queues {
    fn new(keys: usize, queues: usize) -> Queues {
        Queues {
            next: vec![NONE; keys],
            previous: vec![NONE; keys],
            of: vec![0; keys],
            ends: vec![(NONE, NONE); queues + 1],
            bytes: vec![0; queues + 1],
            size: vec![0; keys],
            expires: vec![0; keys],
        }
    }

    fn queue(&self, key: u32) -> usize {
        usize::from(self.of[key as usize])
    }

    fn total(&self) -> u64 {
        self.bytes.iter().sum()
    }

    fn push(&mut self, queue: usize, key: u32) {
        let at = key as usize;
        let head = self.ends[queue].0;
        self.next[at] = head;
        self.previous[at] = NONE;
        if head == NONE {
            self.ends[queue].1 = key;
        } else {
            self.previous[head as usize] = key;
        }
        self.ends[queue].0 = key;
        self.of[at] = queue as u8;
        self.bytes[queue] += u64::from(self.size[at]);
    }

    fn remove(&mut self, key: u32) {
        let at = key as usize;
        let queue = self.queue(key);
        if queue == 0 {
            return;
        }
        let (next, previous) = (self.next[at], self.previous[at]);
        if previous == NONE {
            self.ends[queue].0 = next;
        } else {
            self.next[previous as usize] = next;
        }
        if next == NONE {
            self.ends[queue].1 = previous;
        } else {
            self.previous[next as usize] = previous;
        }
        self.bytes[queue] -= u64::from(self.size[at]);
        self.of[at] = 0;
    }

    /// The key that has been in a queue for longest.
    fn tail(&self, queue: usize) -> Option<u32> {
        Some(self.ends[queue].1).filter(|&key| key != NONE)
    }

    /// Whether a key is there and has not expired; one that has goes.
    fn alive(&mut self, key: u32, now: u32) -> bool {
        let expires = self.expires[key as usize];
        if expires != 0 && expires <= now {
            self.remove(key);
        }
        self.queue(key) != 0
    }

    fn describe(&mut self, key: u32, bytes: u32, expires: u32) {
        self.size[key as usize] = bytes;
        self.expires[key as usize] = expires;
    }
}

/// The least recently used goes.
pub struct Lru {
    queues: Queues,
    capacity: u64,
}

impl Lru {
    pub fn new(keys: usize, capacity: u64) -> Lru {
        Lru {
            queues: Queues::new(keys, 1),
            capacity,
        }
    }
}

impl Policy for Lru {
    fn get(&mut self, access: Access) -> bool {
        let there = self.queues.alive(access.key, access.now);
        if there {
            self.queues.remove(access.key);
            self.queues.push(1, access.key);
        }
        there
    }

    fn set(&mut self, access: Access, bytes: u32, expires: u32) {
        self.queues.remove(access.key);
        self.queues.describe(access.key, bytes, expires);
        self.queues.push(1, access.key);
        while self.queues.total() > self.capacity
            && let Some(oldest) = self.queues.tail(1)
        {
            self.queues.remove(oldest);
        }
    }

    fn delete(&mut self, key: u32) {
        self.queues.remove(key);
    }
}

/// memcached's HOT, WARM and COLD, with its default shares and age limits.
pub struct Segmented {
    queues: Queues,
    capacity: u64,
    /// Hits since the key was stored or last moved: fetched once, active from the second on.
    hits: Vec<u8>,
    accessed: Vec<u32>,
}

const HOT: usize = 1;
const WARM: usize = 2;
const COLD: usize = 3;

impl Segmented {
    pub fn new(keys: usize, capacity: u64) -> Segmented {
        Segmented {
            queues: Queues::new(keys, 3),
            capacity,
            hits: vec![0; keys],
            accessed: vec![0; keys],
        }
    }

    fn age(&self, queue: usize, now: u32) -> u64 {
        let tail = self.queues.tail(queue);
        tail.map_or(0, |key| u64::from(now - self.accessed[key as usize]))
    }

    /// Active ones go to WARM; others to COLD while the queue is over its share or too old.
    fn juggle(&mut self, queue: usize, share: u64, age: u64, now: u32) {
        while let Some(key) = self.queues.tail(queue) {
            let active = self.hits[key as usize] >= 2;
            let over = self.queues.bytes[queue] * 100 > self.capacity * share
                || self.age(queue, now) > age;
            if !(over || active && queue == HOT) {
                return;
            }
            self.queues.remove(key);
            if active {
                self.hits[key as usize] = 1;
                self.queues.push(WARM, key);
            } else {
                self.queues.push(COLD, key);
            }
        }
    }
}

impl Policy for Segmented {
    fn get(&mut self, access: Access) -> bool {
        let there = self.queues.alive(access.key, access.now);
        if there {
            let hits = &mut self.hits[access.key as usize];
            if *hits < 2 {
                *hits += 1;
                if *hits == 2 {
                    self.accessed[access.key as usize] = access.at;
                }
            }
            if *hits == 2 && self.queues.queue(access.key) == COLD {
                *hits = 1;
                self.queues.remove(access.key);
                self.queues.push(WARM, access.key);
            }
        }
        there
    }

    fn set(&mut self, access: Access, bytes: u32, expires: u32) {
        self.queues.remove(access.key);
        self.queues.describe(access.key, bytes, expires);
        self.hits[access.key as usize] = 0;
        self.accessed[access.key as usize] = access.at;
        self.queues.push(HOT, access.key);
        let cold = self.age(COLD, access.at);
        let limit = |share: u64| {
            if cold == 0 {
                u64::MAX
            } else {
                cold * share / 100
            }
        };
        self.juggle(HOT, 20, limit(20), access.at);
        self.juggle(WARM, 40, limit(200), access.at);
        while self.queues.total() > self.capacity {
            let oldest = [COLD, HOT, WARM].map(|queue| self.queues.tail(queue));
            let Some(oldest) = oldest.into_iter().flatten().next() else {
                return;
            };
            self.queues.remove(oldest);
        }
    }

    fn delete(&mut self, key: u32) {
        self.queues.remove(key);
    }
}

/// S3-FIFO: a small queue in front of a main one, and the names of those that left the small one.
pub struct S3Fifo {
    queues: Queues,
    ghosts: Queues,
    capacity: u64,
    hits: Vec<u8>,
}

const SMALL: usize = 1;
const MAIN: usize = 2;

impl S3Fifo {
    pub fn new(keys: usize, capacity: u64) -> S3Fifo {
        S3Fifo {
            queues: Queues::new(keys, 2),
            ghosts: Queues::new(keys, 1),
            capacity,
            hits: vec![0; keys],
        }
    }

    fn evict(&mut self) {
        if self.queues.bytes[SMALL] * 10 > self.capacity || self.queues.tail(MAIN).is_none() {
            let Some(key) = self.queues.tail(SMALL) else {
                return;
            };
            self.queues.remove(key);
            if self.hits[key as usize] > 0 {
                self.hits[key as usize] = 0;
                self.queues.push(MAIN, key);
                return;
            }
            self.ghosts.remove(key);
            self.ghosts.size[key as usize] = self.queues.size[key as usize];
            self.ghosts.push(1, key);
            while self.ghosts.bytes[1] * 10 > self.capacity * 9
                && let Some(oldest) = self.ghosts.tail(1)
            {
                self.ghosts.remove(oldest);
            }
        } else if let Some(key) = self.queues.tail(MAIN) {
            self.queues.remove(key);
            if self.hits[key as usize] > 0 {
                self.hits[key as usize] -= 1;
                self.queues.push(MAIN, key);
            }
        }
    }
}

impl Policy for S3Fifo {
    fn get(&mut self, access: Access) -> bool {
        let there = self.queues.alive(access.key, access.now);
        if there {
            let hits = &mut self.hits[access.key as usize];
            *hits = (*hits + 1).min(3);
        }
        there
    }

    fn set(&mut self, access: Access, bytes: u32, expires: u32) {
        let key = access.key;
        self.queues.remove(key);
        self.queues.describe(key, bytes, expires);
        self.hits[key as usize] = 0;
        let known = self.ghosts.queue(key) != 0;
        self.ghosts.remove(key);
        self.queues.push(if known { MAIN } else { SMALL }, key);
        while self.queues.total() > self.capacity {
            self.evict();
        }
    }

    fn delete(&mut self, key: u32) {
        self.queues.remove(key);
    }
}

/// Belady's bound: what is asked for last goes. No cache can know that.
pub struct Belady {
    /// Next use and key; entries whose next use is no longer the key's are stale.
    order: BinaryHeap<(u32, u32)>,
    next: Vec<u32>,
    held: Queues,
    capacity: u64,
}

impl Belady {
    pub fn new(keys: usize, capacity: u64) -> Belady {
        Belady {
            order: BinaryHeap::new(),
            next: vec![NONE; keys],
            held: Queues::new(keys, 1),
            capacity,
        }
    }
}

impl Policy for Belady {
    fn get(&mut self, access: Access) -> bool {
        let there = self.held.alive(access.key, access.now);
        if there {
            self.next[access.key as usize] = access.next;
            self.order.push((access.next, access.key));
        }
        there
    }

    fn set(&mut self, access: Access, bytes: u32, expires: u32) {
        self.held.remove(access.key);
        self.held.describe(access.key, bytes, expires);
        self.held.push(1, access.key);
        self.next[access.key as usize] = access.next;
        self.order.push((access.next, access.key));
        while self.held.total() > self.capacity
            && let Some((next, key)) = self.order.pop()
        {
            if self.held.queue(key) != 0 && self.next[key as usize] == next {
                self.held.remove(key);
            }
        }
    }

    fn delete(&mut self, key: u32) {
        self.held.remove(key);
    }
}
