#![forbid(unsafe_code)]
//! Leases: who may fill a key that was missed. `lease-get` hands out one token per key for
//! [`HOLD`] seconds, `lease-set` stores with it, and whoever changes the key meanwhile takes it back.
//!
//! The table is of a fixed size and made when the first lease is asked for. A lease that finds no
//! room takes the place of the oldest one, whose holder then stores nothing: a miss more, never a
//! stale value.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::observe::Taps;
use crate::protocol::request::Style;
use crate::store;

use super::context::Context;
use super::get::{count_hit, count_miss};
use super::replies::Replies;

/// Seconds for which a key has one holder.
pub const HOLD: u32 = 10;

/// What those get who come while another holds the lease: no token, and the advice to wait.
const WAIT: u64 = 1;

/// Parts of the table, each with a lock of its own.
const SHARDS: usize = 16;
/// Leases of one part, and how many of them one key can be among.
const SHARD: usize = 4096;
const WAYS: usize = 4;

#[derive(Debug, Clone, Copy, Default)]
struct Lease {
    /// The key's.
    hash: u64,
    /// 0 is none.
    token: u64,
    /// On the server's clock.
    ends: u32,
}

/// All leases that are held.
pub struct Leases {
    taps: Arc<Taps>,
    next: AtomicU64,
    shards: [Mutex<Vec<Lease>>; SHARDS],
}

impl Leases {
    /// Tokens count up from `first`, which should not be one of an earlier run.
    pub fn new(taps: Arc<Taps>, first: u64) -> Leases {
        Leases {
            taps,
            next: AtomicU64::new(first.max(WAIT + 1)),
            shards: Default::default(),
        }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Vec<Lease>> {
        self.shards[hash as usize % SHARDS]
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    /// The places that a key's lease can be at; none before the first lease.
    fn ways(shard: &mut [Lease], hash: u64) -> &mut [Lease] {
        if shard.is_empty() {
            return &mut [];
        }
        let set = (hash as usize / SHARDS) % (SHARD / WAYS) * WAYS;
        &mut shard[set..set + WAYS]
    }

    /// A token for one who has missed a key, or [`WAIT`].
    fn grant(&self, hash: u64, now: u32) -> u64 {
        self.hand_out(hash, now, false)
    }

    /// A token for one who has missed a key, the same as another holds. The first of them stores.
    pub fn share(&self, hash: u64, now: u32) -> u64 {
        self.hand_out(hash, now, true)
    }

    fn hand_out(&self, hash: u64, now: u32, shared: bool) -> u64 {
        let mut shard = self.shard(hash);
        if shard.is_empty() {
            shard.resize(SHARD, Lease::default());
            self.taps.want_leases();
        }
        let ways = Leases::ways(&mut shard, hash);
        let held = |lease: &Lease| lease.token != 0 && lease.ends > now;
        if let Some(lease) = ways.iter().find(|it| it.hash == hash && held(it)) {
            return if shared { lease.token } else { WAIT };
        }
        let token = self.next.fetch_add(1, Relaxed);
        // Its own old place, else one that is free, else the one that ends first.
        let place = ways
            .iter_mut()
            .min_by_key(|lease| (lease.hash != hash, held(lease), lease.ends));
        if let Some(place) = place {
            *place = Lease {
                hash,
                token,
                ends: now + HOLD,
            };
        }
        token
    }

    /// Runs `store` if the token is that of the key's lease, which ends with it. Nobody can take the
    /// lease back in between: whoever changes the key waits until its value is stored, and then
    /// changes that.
    pub fn redeem<R>(
        &self,
        hash: u64,
        token: u64,
        now: u32,
        store: impl FnOnce() -> R,
    ) -> Option<R> {
        let mut shard = self.shard(hash);
        let lease = Leases::ways(&mut shard, hash)
            .iter_mut()
            .find(|lease| lease.hash == hash && lease.token == token && token > WAIT)?;
        let lasts = lease.ends > now;
        *lease = Lease::default();
        lasts.then(store)
    }

    /// The key is about to change: its lease is void.
    #[cold]
    pub fn revoke(&self, hash: u64) {
        let mut shard = self.shard(hash);
        for lease in Leases::ways(&mut shard, hash) {
            if lease.hash == hash {
                *lease = Lease::default();
            }
        }
    }

    /// All keys are about to go.
    pub fn revoke_all(&self) {
        for shard in &self.shards {
            shard
                .lock()
                .unwrap_or_else(|broken| broken.into_inner())
                .fill(Lease::default());
        }
    }
}

/// `lease-get`
pub fn get(cx: &Context<'_>, key: &[u8], hash: u64, replies: &mut Replies) {
    let read = super::get::Read {
        cas: false,
        touch: None,
    };
    let before = replies.waiting();
    super::get::one(cx, key, hash, read, replies);
    if replies.waiting() == before {
        let token = cx.shared.leases.grant(hash, cx.now);
        replies.push(b"LVALUE ");
        replies.push(key);
        replies.format(format_args!(" {token} 0 0\r\n\r\n"));
    }
    super::get::end(replies);
}

/// `metaget`: when an item was accessed last and when it expires, for proxies that copy it.
pub fn describe(cx: &Context<'_>, key: &[u8], hash: u64, style: &Style<'_>, replies: &mut Replies) {
    let quiet = store::Fetch {
        quiet: true,
        ..store::Fetch::default()
    };
    let clock = &cx.shared.clock;
    let found = cx.store().fetch(cx.caller(), key, hash, &quiet, |hit| {
        let expires = match hit.expires() {
            0 => 0,
            at => clock.to_unix(at).max(0),
        };
        let age = cx.now.saturating_sub(hit.accessed());
        replies.push(b"META ");
        replies.push(key);
        replies.format(format_args!(
            " age: {age}; exptime: {expires}; from: unknown\r\n"
        ));
        count_hit(cx.counters, hit, false)
    });
    if found.is_err() {
        count_miss(cx.counters, false);
    }
    super::reply::line(style, b"END", replies);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leases() -> Leases {
        Leases::new(Arc::default(), 1000)
    }

    #[test]
    fn one_holder_at_a_time() {
        let leases = leases();
        let first = leases.grant(7, 100);
        assert!(first > WAIT);
        assert_eq!(leases.grant(7, 100 + HOLD - 1), WAIT);
        assert!(leases.grant(8, 100) > first, "another key");
        let second = leases.grant(7, 100 + HOLD);
        assert!(second > first);
        assert_eq!(leases.redeem(7, first, 111, || ()), None, "too late");
        assert_eq!(leases.redeem(7, second, 111, || 5), Some(5));
        assert_eq!(leases.redeem(7, second, 111, || 5), None, "once");
        assert_eq!(leases.redeem(7, WAIT, 111, || ()), None);
        assert_eq!(leases.redeem(7, 0, 111, || ()), None);
    }

    #[test]
    fn those_who_share_a_lease_have_one_token() {
        let leases = leases();
        let token = leases.share(7, 100);
        assert_eq!((leases.share(7, 101), leases.grant(7, 101)), (token, WAIT));
        assert_eq!(leases.redeem(7, token, 102, || ()), Some(()));
        assert_eq!(leases.redeem(7, token, 102, || ()), None, "the other one");
        let next = leases.share(7, 102);
        assert!(next > token);
        leases.revoke(7);
        assert_eq!(leases.redeem(7, next, 102, || ()), None);
    }

    #[test]
    fn a_lease_can_be_taken_back_and_runs_out() {
        let leases = leases();
        let token = leases.grant(7, 100);
        leases.revoke(8);
        leases.revoke(7);
        assert_eq!(leases.redeem(7, token, 100, || ()), None);
        let token = leases.grant(7, 100);
        assert_eq!(leases.redeem(7, token, 100 + HOLD, || ()), None);
        let token = leases.grant(7, 200);
        leases.revoke_all();
        assert_eq!(leases.redeem(7, token, 200, || ()), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let leases = leases();
        let step = (SHARDS * (SHARD / WAYS)) as u64;
        let tokens: Vec<u64> = (1..=5).map(|n| leases.grant(n * step, 100)).collect();
        assert_eq!(leases.redeem(step, tokens[0], 100, || ()), None, "gave way");
        for (n, token) in (2..=5).zip(&tokens[1..]) {
            assert_eq!(leases.redeem(n * step, *token, 100, || ()), Some(()));
        }
    }
}
