#![forbid(unsafe_code)]
//! Events out of the threads' rings to those who watch: filtered, bounded, lossy.
//!
//! One background thread calls [`Watchers::pump`]; each watcher has a buffer of its own, which its
//! connection empties as fast as its client reads. Lines that find no room are counted, and the
//! client is told how many it missed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::observe::{Registry, Taps};

/// More do not get in.
pub const WATCHERS_MAX: usize = 20;

type Wake = Box<dyn Fn() + Send + Sync>;

struct Watcher {
    streams: u32,
    /// Lines up to this number were told before it came.
    after: u64,
    buffer: Mutex<Buffer>,
    wake: OnceLock<Wake>,
}

#[derive(Default)]
struct Buffer {
    lines: Vec<u8>,
    /// Lines lost since the last that found room.
    skipped: u64,
}

/// All who watch.
pub struct Watchers {
    taps: Arc<Taps>,
    list: Mutex<Vec<Arc<Watcher>>>,
    count: AtomicUsize,
    /// Bytes that may wait for one watcher.
    capacity: usize,
    sent: AtomicU64,
    skipped: AtomicU64,
}

/// A place among the watchers, given up when dropped.
pub struct Subscription {
    watchers: Arc<Watchers>,
    watcher: Arc<Watcher>,
}

impl Watchers {
    pub fn new(taps: Arc<Taps>, capacity: usize) -> Watchers {
        Watchers {
            taps,
            list: Mutex::default(),
            count: AtomicUsize::new(0),
            capacity,
            sent: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
        }
    }

    /// One more, for these streams; `None` if there are too many.
    pub fn subscribe(self: &Arc<Watchers>, streams: u32) -> Option<Subscription> {
        let mut list = self.list();
        if list.len() >= WATCHERS_MAX {
            return None;
        }
        let watcher = Arc::new(Watcher {
            streams,
            after: self.taps.mark(),
            buffer: Mutex::default(),
            wake: OnceLock::new(),
        });
        list.push(watcher.clone());
        self.changed(&list);
        Some(Subscription {
            watchers: self.clone(),
            watcher,
        })
    }

    /// How many watch.
    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Lines put into watchers' buffers.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Lines that found no room there.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Relaxed)
    }

    /// Hands out what the threads have told since the last call. Only one thread may call this;
    /// with nobody watching there is no need to.
    pub fn pump(&self, registry: &Registry) {
        let told = registry.told();
        if told.is_empty() {
            return;
        }
        let list = self.list().clone();
        for watcher in &list {
            let mut any = false;
            let mut buffer = watcher.buffer();
            for line in &told {
                if line.stream & watcher.streams == 0 || line.number <= watcher.after {
                    continue;
                }
                let fits = if buffer.skipped > 0 {
                    let notice = format!("skipped={}\n", buffer.skipped);
                    let fits = buffer.lines.len() + notice.len() + line.line.len() <= self.capacity;
                    if fits {
                        buffer.lines.extend_from_slice(notice.as_bytes());
                        buffer.skipped = 0;
                    }
                    fits
                } else {
                    buffer.lines.len() + line.line.len() <= self.capacity
                };
                if fits {
                    buffer.lines.extend_from_slice(&line.line);
                    self.sent.fetch_add(1, Relaxed);
                    any = true;
                } else {
                    buffer.skipped += 1;
                    self.skipped.fetch_add(1, Relaxed);
                }
            }
            drop(buffer);
            if any && let Some(wake) = watcher.wake.get() {
                wake();
            }
        }
    }

    fn changed(&self, list: &[Arc<Watcher>]) {
        self.count.store(list.len(), Relaxed);
        let streams = list.iter().fold(0, |all, watcher| all | watcher.streams);
        self.taps.want(streams);
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Watcher>>> {
        self.list
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

impl Watcher {
    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

impl Subscription {
    /// Calls `wake` whenever there is something to [`take`](Subscription::take); may be called
    /// from another thread. Only the first call counts.
    pub fn on_lines(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.watcher.wake.set(Box::new(wake));
    }

    /// The lines that wait. Call it when the last ones have been sent: what is not taken bounds
    /// what a slow client can make the server hold.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.watcher.buffer().lines)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut list = self.watchers.list();
        list.retain(|watcher| !Arc::ptr_eq(watcher, &self.watcher));
        self.watchers.changed(&list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::events::{DELETIONS, EVICTIONS};

    fn lines(subscription: &Subscription) -> Vec<String> {
        let text = String::from_utf8(subscription.take()).unwrap();
        text.lines()
            .map(|line| line.split(" key=").next().unwrap().to_owned())
            .map(|line| match line.split_once("type=") {
                Some((_, kind)) => kind.to_owned(),
                None => line,
            })
            .collect()
    }

    #[test]
    fn watchers_get_what_they_asked_for_from_when_they_came() {
        let registry = Registry::default();
        let thread = registry.register();
        let watchers = Arc::new(Watchers::new(registry.taps().clone(), 4096));
        let first = watchers.subscribe(DELETIONS).unwrap();
        assert!(thread.log.wants(DELETIONS) && !thread.log.wants(EVICTIONS));
        thread.log.deleted(b"a", "delete", 1, 1);
        let second = watchers.subscribe(DELETIONS | EVICTIONS).unwrap();
        thread.log.deleted(b"b", "delete", 1, 1);
        thread.log.eviction(b"c", false, -1, 0, 1, 1);
        let woken = Arc::new(AtomicUsize::new(0));
        let bell = woken.clone();
        second.on_lines(move || {
            bell.fetch_add(1, Relaxed);
        });
        watchers.pump(&registry);
        assert_eq!(lines(&first), ["deleted", "deleted"]);
        assert_eq!(lines(&second), ["deleted", "eviction"]);
        assert_eq!(woken.load(Relaxed), 1);
        assert_eq!(watchers.sent(), 4);
        drop(first);
        drop(second);
        assert_eq!(watchers.count(), 0);
        assert!(!thread.log.wants(u32::MAX));
    }

    #[test]
    fn a_slow_watcher_hears_how_much_it_missed() {
        let registry = Registry::default();
        let thread = registry.register();
        let watchers = Arc::new(Watchers::new(registry.taps().clone(), 200));
        let slow = watchers.subscribe(DELETIONS).unwrap();
        for _ in 0..5 {
            thread.log.deleted(b"a", "delete", 1, 1);
        }
        watchers.pump(&registry);
        let seen = lines(&slow).len();
        assert!(seen > 0 && seen < 5);
        thread.log.deleted(b"a", "delete", 1, 1);
        watchers.pump(&registry);
        assert_eq!(
            lines(&slow),
            [format!("skipped={}", 5 - seen), "deleted".into()]
        );
        assert_eq!(watchers.skipped(), 5 - seen as u64);
    }

    #[test]
    fn there_is_a_limit() {
        let registry = Registry::default();
        let watchers = Arc::new(Watchers::new(registry.taps().clone(), 200));
        let mut all: Vec<_> = (0..WATCHERS_MAX)
            .map(|_| watchers.subscribe(DELETIONS).unwrap())
            .collect();
        assert!(watchers.subscribe(DELETIONS).is_none());
        all.pop();
        assert!(watchers.subscribe(DELETIONS).is_some());
    }
}
