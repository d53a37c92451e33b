#![forbid(unsafe_code)]
//! Per-thread counters: each has one writer, so adding is a plain load and store; readers sum over
//! threads and may see a value that is a moment old.
//!
//! Counters only grow. `stats reset` remembers what they read and subtracts it ([`Totals`]), so
//! that no thread ever has to write another's memory. The two that go down (`items`, `bytes`) wrap:
//! only their sum over all threads has a meaning.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::events::{Log, Taps, Told};

/// Slab classes are numbered 1 to 63; 0 is the global page pool.
pub const CLASSES: usize = 64;

/// One number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $live:ident, $totals:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $live { $($(#[$field_doc])* pub $field: Counter,)* }

        /// The same numbers, summed over threads.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct $totals { $($(#[$field_doc])* pub $field: u64,)* }

        impl $totals {
            fn add(&mut self, live: &$live) {
                $(self.$field = self.$field.wrapping_add(live.$field.get());)*
            }

            fn subtract(&mut self, base: &$totals) {
                $(self.$field = self.$field.wrapping_sub(base.$field);)*
            }
        }
    };
}

counters! {
    /// What one thread has counted that belongs to no slab class.
    GeneralCounters, GeneralTotals {
        /// Keys asked for, not requests.
        get_cmds,
        get_misses,
        get_expired,
        get_flushed,
        touch_cmds,
        touch_misses,
        delete_misses,
        incr_misses,
        decr_misses,
        cas_misses,
        meta_cmds,
        flush_cmds,
        bytes_read,
        bytes_written,
        conn_yields,
        auth_cmds,
        auth_errors,
        idle_kicks,
        store_too_large,
        store_no_memory,
        response_obj_oom,
        read_buf_oom,
        /// Connections that keep the start of a command, and its bytes; both wrap.
        read_buf_count,
        read_buf_bytes,
        /// Connections that have not taken all their replies, and the bytes of these; both wrap.
        response_obj_count,
        response_obj_bytes,
        /// Items ever linked.
        total_items,
        rejected_connections,
        total_connections,
        ssl_handshake_errors,
        ssl_proto_errors,
        ssl_new_sessions,
    }
}

counters! {
    /// What one thread has counted for one slab class.
    ClassCounters, ClassTotals {
        set_cmds,
        delete_hits,
        incr_hits,
        decr_hits,
        cas_hits,
        cas_badval,
        touch_hits,
        hits_to_hot,
        hits_to_warm,
        hits_to_cold,
        hits_to_temp,
        /// Items linked minus items unlinked; wraps.
        items,
        /// Their sizes as memcached counts them (48-byte header, key, NUL, flags, value, CRLF); wraps.
        bytes,
        evicted,
        evicted_nonzero,
        evicted_unfetched,
        outofmemory,
        reclaimed,
        expired_unfetched,
        crawler_reclaimed,
        crawler_items_checked,
        moves_to_cold,
        moves_to_warm,
        moves_within_lru,
        direct_reclaims,
    }
}

impl ClassTotals {
    /// Reads that found something: hits are counted by queue only.
    pub fn get_hits(&self) -> u64 {
        [
            self.hits_to_hot,
            self.hits_to_warm,
            self.hits_to_cold,
            self.hits_to_temp,
        ]
        .into_iter()
        .fold(0, u64::wrapping_add)
    }
}

/// All that one thread writes down: its counters, and what it tells watchers.
#[derive(Debug)]
pub struct ThreadCounters {
    pub general: GeneralCounters,
    pub classes: Box<[ClassCounters; CLASSES]>,
    pub log: Log,
}

impl ThreadCounters {
    /// `log_capacity`: bytes of lines for watchers that may wait.
    pub fn new(taps: Arc<Taps>, log_capacity: usize) -> ThreadCounters {
        ThreadCounters {
            general: GeneralCounters::default(),
            classes: Box::new(std::array::from_fn(|_| ClassCounters::default())),
            log: Log::new(taps, log_capacity),
        }
    }
}

impl Default for ThreadCounters {
    fn default() -> ThreadCounters {
        ThreadCounters::new(Arc::default(), LOG_CAPACITY)
    }
}

/// Bytes of lines for watchers that may wait in one thread, unless an option says otherwise.
pub const LOG_CAPACITY: usize = 64 << 10;

/// Sums over threads, less what `stats reset` has set aside.
#[derive(Debug, Clone)]
pub struct Totals {
    pub general: GeneralTotals,
    pub classes: Vec<ClassTotals>,
    pub log_written: u64,
    pub log_dropped: u64,
}

impl Totals {
    fn zero() -> Totals {
        Totals {
            general: GeneralTotals::default(),
            classes: vec![ClassTotals::default(); CLASSES],
            log_written: 0,
            log_dropped: 0,
        }
    }

    /// One number over all classes.
    pub fn over_classes(&self, pick: impl Fn(&ClassTotals) -> u64) -> u64 {
        self.classes.iter().map(pick).fold(0, u64::wrapping_add)
    }
}

/// Every thread's counters, and the reading that `stats reset` subtracts.
#[derive(Debug)]
pub struct Registry {
    threads: Mutex<Vec<Arc<ThreadCounters>>>,
    base: Mutex<Option<Totals>>,
    taps: Arc<Taps>,
    log_capacity: usize,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry::new(LOG_CAPACITY)
    }
}

impl Registry {
    /// `log_capacity`: bytes of lines for watchers that may wait in each thread.
    pub fn new(log_capacity: usize) -> Registry {
        Registry {
            threads: Mutex::default(),
            base: Mutex::default(),
            taps: Arc::default(),
            log_capacity,
        }
    }

    /// What is wanted of all threads.
    pub fn taps(&self) -> &Arc<Taps> {
        &self.taps
    }

    /// Counters for one more thread.
    pub fn register(&self) -> Arc<ThreadCounters> {
        let counters = Arc::new(ThreadCounters::new(self.taps.clone(), self.log_capacity));
        self.threads().push(counters.clone());
        counters
    }

    /// What all threads have told since the last call, in its order.
    pub fn told(&self) -> Vec<Told> {
        let mut told = Vec::new();
        for thread in self.threads().iter() {
            thread.log.take(&mut told);
        }
        told.sort_unstable_by_key(|line| line.number);
        told
    }

    /// Sums since the last [`reset`](Registry::reset).
    pub fn totals(&self) -> Totals {
        let mut totals = self.raw_totals();
        if let Some(base) = &*self
            .base
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
        {
            totals.general.subtract(&base.general);
            totals.log_written = totals.log_written.wrapping_sub(base.log_written);
            totals.log_dropped = totals.log_dropped.wrapping_sub(base.log_dropped);
            for (class, base) in totals.classes.iter_mut().zip(&base.classes) {
                class.subtract(base);
            }
        }
        totals
    }

    /// `stats reset`: counters read zero from here on; what is held now (items, buffers) stays.
    pub fn reset(&self) {
        let mut base = self.raw_totals();
        let general = &mut base.general;
        for held in [
            &mut general.read_buf_count,
            &mut general.read_buf_bytes,
            &mut general.response_obj_count,
            &mut general.response_obj_bytes,
        ] {
            *held = 0;
        }
        for class in &mut base.classes {
            class.items = 0;
            class.bytes = 0;
        }
        *self
            .base
            .lock()
            .unwrap_or_else(|broken| broken.into_inner()) = Some(base);
    }

    fn raw_totals(&self) -> Totals {
        let mut totals = Totals::zero();
        for thread in self.threads().iter() {
            totals.general.add(&thread.general);
            totals.log_written = totals.log_written.wrapping_add(thread.log.written.get());
            totals.log_dropped = totals.log_dropped.wrapping_add(thread.log.dropped.get());
            for (sum, live) in totals.classes.iter_mut().zip(thread.classes.iter()) {
                sum.add(live);
            }
        }
        totals
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<Arc<ThreadCounters>>> {
        self.threads
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_keeps_what_is_held() {
        let registry = Registry::default();
        let a = registry.register();
        let b = registry.register();
        a.general.get_cmds.add(5);
        a.classes[3].items.add(2);
        b.classes[3].items.sub(1);
        a.general.read_buf_bytes.add(9);
        assert_eq!(registry.totals().general.get_cmds, 5);
        assert_eq!(registry.totals().classes[3].items, 1);
        registry.reset();
        b.general.get_cmds.add(2);
        assert_eq!(registry.totals().general.get_cmds, 2);
        assert_eq!(registry.totals().classes[3].items, 1);
        assert_eq!(registry.totals().general.read_buf_bytes, 9);
    }
}
