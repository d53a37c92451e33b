#![forbid(unsafe_code)]
//! What a leader knows of its copies together: who is in sync, what has been acknowledged by how many,
//! and which prepared mutations may be committed.

use std::collections::{BTreeMap, HashMap};

use super::{AGREE_TIMEOUT, FLAP_PROBATION, FLAP_WINDOW, FLAPS, NO_PROGRESS, VOTE_TIMEOUT};
use crate::store::journal::PARTITIONS;

#[derive(Debug, Clone)]
pub struct Member {
    pub node: u64,
    /// By partition: everything up to here is there.
    pub acked: [u64; PARTITIONS],
    /// Connected, whole, following the log.
    pub ready: bool,
    pub in_sync: bool,
    connected_at: u64,
    progress_at: u64,
    /// When it came, lately.
    flaps: Vec<u64>,
    pub connected: bool,
    /// The last time it promised to stand by, on this clock.
    pub vouched_at: Option<u64>,
    pub bytes_in_flight: u64,
    /// What there was at this time it has.
    pub caught_up_at: u64,
    /// What there was at a later time, which it has yet to say that it has: under load it never has
    /// all there is.
    mark: Option<(u64, [u64; PARTITIONS])>,
    /// Whether it should be counted as in sync, if that is not as it is, and an outside agreement
    /// decides.
    wish: Option<bool>,
}

impl Member {
    /// Records that it does not have of a log that is so long.
    pub fn behind(&self, positions: &[u64; PARTITIONS]) -> u64 {
        let pairs = positions.iter().zip(&self.acked);
        pairs
            .map(|(ours, theirs)| ours.saturating_sub(*theirs))
            .sum()
    }

    /// Notes how up to date it is. Returns whether it has all there is.
    fn catch_up(&mut self, positions: &[u64; PARTITIONS], now: u64) -> bool {
        if self.behind(positions) == 0 {
            self.caught_up_at = now;
            self.mark = None;
            return true;
        }
        match &self.mark {
            Some((_, there)) if self.behind(there) > 0 => {}
            mark => {
                if let Some((at, _)) = mark {
                    self.caught_up_at = *at;
                }
                self.mark = Some((now, *positions));
            }
        }
        false
    }
}

/// How far mutations have to have got before they count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// They are here.
    #[default]
    Async,
    /// So many copies have them.
    Copies(u8),
    /// All copies in sync have them before anybody sees them.
    TwoPhase,
}

#[derive(Debug, Clone)]
struct Committed([u64; PARTITIONS]);

impl Default for Committed {
    fn default() -> Committed {
        Committed([0; PARTITIONS])
    }
}

#[derive(Debug, Default)]
pub struct Group {
    members: BTreeMap<u64, Member>,
    pub changes: u64,
    /// By partition: everything up to here may have been acknowledged as committed. Nobody counts as
    /// in sync who does not have it.
    committed: Committed,
    /// A copy may be counted in and out by this node alone.
    frozen: bool,
    /// So many have to be in sync, this node among them, for anything to be committed.
    least: usize,
}

impl Group {
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Whether a copy has come, and has not been gone for long.
    pub fn knows(&self, node: u64) -> bool {
        self.members.contains_key(&node)
    }

    /// Of a node that begins to lead with its logs so far.
    pub fn new(positions: &[u64; PARTITIONS]) -> Group {
        Group {
            committed: Committed(*positions),
            ..Group::default()
        }
    }

    /// While it is frozen nobody comes in sync or falls out: an outside agreement decides.
    pub fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    /// So many have to be in sync, this node among them, for anything to be committed.
    pub fn require(&mut self, least: usize) {
        self.least = least;
    }

    /// Whether they are.
    pub fn enough(&self) -> bool {
        self.in_sync().count() + 1 >= self.least
    }

    /// A copy has connected.
    pub fn join(&mut self, node: u64, now: u64) {
        let member = self.members.entry(node).or_insert_with(|| Member {
            node,
            acked: [0; PARTITIONS],
            ready: false,
            in_sync: false,
            connected_at: now,
            progress_at: now,
            flaps: Vec::new(),
            connected: true,
            vouched_at: None,
            bytes_in_flight: 0,
            caught_up_at: now,
            mark: None,
            wish: None,
        });
        member.flaps.retain(|at| now < at + FLAP_WINDOW);
        member.flaps.push(now);
        member.connected_at = now;
        member.progress_at = now;
        member.connected = true;
        member.ready = false;
        member.acked = [0; PARTITIONS];
        member.mark = None;
        member.vouched_at = None;
    }

    /// How a copy does.
    pub fn progress(
        &mut self,
        node: u64,
        acked: &[u64; PARTITIONS],
        ready: bool,
        progress_at: u64,
        now: u64,
        positions: &[u64; PARTITIONS],
    ) {
        let frozen = self.frozen;
        let committed = &self.committed;
        let Some(member) = self.members.get_mut(&node) else {
            return;
        };
        member.acked = *acked;
        member.ready = ready;
        member.progress_at = progress_at;
        let caught_up = member.catch_up(positions, now);
        let steady = member.flaps.len() < FLAPS || now >= member.connected_at + FLAP_PROBATION;
        let has_all = committed
            .0
            .iter()
            .zip(acked)
            .all(|(committed, acked)| acked >= committed);
        let wish = match (member.in_sync, ready) {
            // It is about to give up what it had.
            (true, false) => Some(false),
            // It has taken everything after all.
            (true, true) if caught_up => None,
            (true, true) => member.wish,
            (false, _) => (ready && steady && has_all).then_some(true),
        };
        if frozen {
            member.wish = wish;
        } else if let Some(in_sync) = wish {
            member.in_sync = in_sync;
            self.changes += 1;
        }
    }

    /// What an outside agreement should decide: nodes, and whether they are in sync.
    pub fn wishes(&self) -> Vec<(u64, bool)> {
        let wished = |member: &Member| Some((member.node, member.wish?));
        self.members.values().filter_map(wished).collect()
    }

    /// Copies that have not connected yet and count as in sync all the same: they did so under the
    /// leader before.
    pub fn inherit(&mut self, nodes: &[u64], now: u64) {
        for &node in nodes {
            self.join(node, now);
            if let Some(member) = self.members.get_mut(&node) {
                member.in_sync = true;
                member.connected = false;
                member.flaps.clear();
            }
        }
    }

    /// Until when no copy in sync stands, as all of them have promised; no end if there is none.
    pub fn vouched_until(&self, vouch: u64) -> u64 {
        self.in_sync()
            .map(|member| member.vouched_at.map_or(0, |at| at + vouch))
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Whether a copy has more than was known.
    pub fn progressed(&self, node: u64, acked: &[u64; PARTITIONS]) -> bool {
        self.members
            .get(&node)
            .is_none_or(|member| member.acked != *acked)
    }

    pub fn vouched(&mut self, node: u64, at: Option<u64>) {
        if let Some(member) = self.members.get_mut(&node) {
            member.vouched_at = at;
        }
    }

    pub fn note(&mut self, node: u64, in_flight: u64) {
        if let Some(member) = self.members.get_mut(&node) {
            member.bytes_in_flight = in_flight;
        }
    }

    /// A copy has gone. It counts as in sync for a while, unless somebody waits for it.
    pub fn leave(&mut self, node: u64, now: u64) {
        if let Some(member) = self.members.get_mut(&node) {
            member.connected = false;
            member.ready = false;
            member.progress_at = member.progress_at.min(now);
            member.wish = member.wish.filter(|in_sync| !in_sync);
        }
    }

    /// Copies that make no progress fall out.
    pub fn tick(&mut self, now: u64) {
        for member in self.members.values_mut() {
            let stuck = now > member.progress_at + NO_PROGRESS;
            if member.in_sync && stuck && self.frozen {
                member.wish = Some(false);
            } else if member.in_sync && stuck {
                member.in_sync = false;
                self.changes += 1;
            }
        }
        let lasts = 10 * FLAP_WINDOW;
        self.members.retain(|_, member| {
            member.connected || member.in_sync || now < member.progress_at + lasts
        });
    }

    /// Counts a copy in or out, as an outside agreement or a vote that did not come decides.
    pub fn set_in_sync(&mut self, node: u64, in_sync: bool) {
        if let Some(member) = self.members.get_mut(&node) {
            member.wish = None;
            if member.in_sync != in_sync {
                member.in_sync = in_sync;
                self.changes += 1;
            }
        }
    }

    /// A copy in sync did not vote in time: an outside agreement should count it out.
    fn distrust(&mut self, node: u64) {
        if let Some(member) = self.members.get_mut(&node) {
            member.wish = Some(false);
        }
    }

    pub fn in_sync(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.in_sync)
    }

    /// Whether a mutation has got as far as a level asks.
    pub fn reached(&self, level: Level, partition: usize, seq: u64) -> bool {
        match level {
            Level::Async => true,
            Level::Copies(copies) => {
                self.members
                    .values()
                    .filter(|member| member.connected && member.acked[partition] >= seq)
                    .count()
                    >= usize::from(copies)
            }
            Level::TwoPhase => self.in_sync().all(|member| member.acked[partition] >= seq),
        }
    }

    /// On what all in sync have: they may have become too few meanwhile.
    fn verdict(&self) -> Verdict {
        if self.enough() {
            Verdict::Commit
        } else {
            Verdict::Abort
        }
    }

    /// Those in sync who do not have a record.
    pub fn missing(&self, partition: usize, seq: u64) -> Vec<u64> {
        self.in_sync()
            .filter(|member| member.acked[partition] < seq)
            .map(|member| member.node)
            .collect()
    }
}

/// One prepared mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pending {
    seq: u64,
    place: u64,
    since: u64,
    ticket: u64,
}

/// What has become of a prepared mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Commit,
    /// A copy that counts could not keep it, or did not answer, or too few are left: it may still come
    /// to be if this node fails now.
    Abort,
}

/// Prepared mutations that wait for votes, at most one for a key.
#[derive(Debug, Default)]
pub struct Votes {
    pending: BTreeMap<u64, Pending>,
    keys: HashMap<u64, u64>,
    refused: Vec<(usize, u64)>,
}

impl Votes {
    /// Whether a key, by its [`place`](crate::store::journal::place), has one.
    pub fn busy(&self, place: u64) -> bool {
        self.keys.contains_key(&place)
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a ticket still waits for its verdict.
    pub fn waits(&self, ticket: u64) -> bool {
        self.pending.contains_key(&ticket)
    }

    /// A mutation was prepared as this record. `ticket` comes back with the verdict.
    pub fn begin(&mut self, ticket: u64, place: u64, seq: u64, now: u64) {
        self.keys.insert(place, ticket);
        let pending = Pending {
            seq,
            place,
            since: now,
            ticket,
        };
        self.pending.insert(ticket, pending);
    }

    /// A copy cannot keep one.
    pub fn refuse(&mut self, partition: usize, seq: u64) {
        self.refused.push((partition, seq));
    }

    /// The verdicts that are due: ticket, partition, sequence of the prepare. A copy that does not vote
    /// in time is counted out, if `alone` says that this node may do that by itself. Otherwise it is
    /// left to an outside agreement, and what waits is aborted when that takes too long.
    pub fn decide(
        &mut self,
        group: &mut Group,
        alone: bool,
        now: u64,
    ) -> Vec<(u64, usize, u64, Verdict)> {
        let mut due = Vec::new();
        let refused = std::mem::take(&mut self.refused);
        for pending in self.pending.values() {
            let partition = crate::store::journal::partition(pending.place);
            let verdict = if refused.contains(&(partition, pending.seq)) {
                Verdict::Abort
            } else if group.reached(Level::TwoPhase, partition, pending.seq) {
                group.verdict()
            } else if now >= pending.since + VOTE_TIMEOUT && alone {
                for node in group.missing(partition, pending.seq) {
                    group.set_in_sync(node, false);
                }
                group.verdict()
            } else if now >= pending.since + VOTE_TIMEOUT + AGREE_TIMEOUT {
                Verdict::Abort
            } else if now >= pending.since + VOTE_TIMEOUT {
                for node in group.missing(partition, pending.seq) {
                    group.distrust(node);
                }
                continue;
            } else {
                continue;
            };
            if verdict == Verdict::Commit {
                let committed = &mut group.committed.0[partition];
                *committed = (*committed).max(pending.seq);
            }
            due.push((pending.ticket, partition, pending.seq, verdict));
        }
        for (ticket, ..) in &due {
            if let Some(pending) = self.pending.remove(ticket) {
                self.keys.remove(&pending.place);
            }
        }
        due
    }

    /// Gives all up: this node does not lead any more. Returns their tickets.
    pub fn clear(&mut self) -> Vec<u64> {
        self.keys.clear();
        self.refused.clear();
        std::mem::take(&mut self.pending).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: [u64; PARTITIONS] = [10; PARTITIONS];

    fn with(nodes: &[u64]) -> Group {
        let mut group = Group::default();
        for &node in nodes {
            group.join(node, 0);
            group.progress(node, &HERE, true, 0, 0, &HERE);
        }
        group
    }

    /// Whoever follows a leader that never rests is behind by as much as it is, not since it began.
    #[test]
    fn how_old_a_copy_is() {
        let mut group = with(&[1]);
        let late = 7;
        for now in 1..1000_u64 {
            let positions = [10 + now; PARTITIONS];
            let acked = [10 + now.saturating_sub(late); PARTITIONS];
            group.progress(1, &acked, true, now, now, &positions);
            let member = group.members().next().unwrap();
            let old = now - member.caught_up_at;
            assert!(
                old >= late.min(now) && old <= 2 * late + 1,
                "{old} at {now}"
            );
        }
        // It is silent.
        let acked = [10 + 1000 - late; PARTITIONS];
        for now in 1000..2000 {
            group.progress(1, &acked, true, 1000, now, &[10 + now; PARTITIONS]);
        }
        let member = group.members().next().unwrap();
        assert!(member.caught_up_at <= 1000 - late);
    }

    #[test]
    fn too_few_in_sync_commit_nothing() {
        let mut group = with(&[1]);
        let mut votes = Votes::default();
        group.require(3);
        assert!(!group.enough());
        group.require(2);
        assert!(group.enough());
        votes.begin(1, 0, 10, 0);
        let expected = [(1, 0, 10, Verdict::Commit)];
        assert_eq!(votes.decide(&mut group, true, 1), expected);
        // One has fallen out: all that are left have it, which is not enough.
        votes.begin(2, 0, 11, 0);
        let expected = [(2, 0, 11, Verdict::Abort)];
        assert_eq!(votes.decide(&mut group, true, VOTE_TIMEOUT), expected);
        assert!(!group.enough());
    }

    #[test]
    fn levels_count_those_who_have_it() {
        let mut group = with(&[1, 2]);
        let mut behind = HERE;
        behind[3] = 9;
        group.progress(2, &behind, true, 0, 0, &HERE);
        assert!(group.reached(Level::Async, 3, 99));
        assert!(group.reached(Level::Copies(1), 3, 10));
        assert!(!group.reached(Level::Copies(2), 3, 10));
        assert!(group.reached(Level::Copies(2), 4, 10));
        assert!(!group.reached(Level::TwoPhase, 3, 10));
        assert_eq!(group.missing(3, 10), [2]);
        assert!(with(&[]).reached(Level::TwoPhase, 0, 1), "alone");
    }

    #[test]
    fn who_makes_no_progress_falls_out_and_comes_back() {
        let mut group = with(&[1]);
        group.tick(NO_PROGRESS);
        assert_eq!(group.in_sync().count(), 1);
        group.tick(NO_PROGRESS + 1);
        assert_eq!(group.in_sync().count(), 0);
        group.progress(1, &HERE, true, 3000, 3000, &HERE);
        assert_eq!(group.in_sync().count(), 1);
        assert_eq!(group.changes, 3);
    }

    #[test]
    fn who_flaps_must_stay_before_it_counts() {
        let mut group = Group::default();
        let mut changes = 0;
        for second in 0..60 {
            let now = second * 1000;
            group.join(7, now);
            group.progress(7, &HERE, true, now, now, &HERE);
            group.progress(7, &HERE, true, now + 700, now + 700, &HERE);
            group.leave(7, now + 800);
            group.tick(now + 999);
            changes = group.changes;
        }
        assert!(changes <= 3, "{changes}");
        group.join(7, 60_000);
        group.progress(7, &HERE, true, 60_000, 60_000, &HERE);
        group.tick(60_001);
        let now = 60_000 + FLAP_PROBATION;
        group.progress(7, &HERE, true, now, now, &HERE);
        assert_eq!(group.in_sync().count(), 1);
    }

    #[test]
    fn verdicts() {
        let mut group = with(&[1, 2]);
        let mut votes = Votes::default();
        let place = 5 << (64 - PARTITIONS.ilog2());
        votes.begin(77, place, 11, 0);
        assert!(votes.busy(place) && !votes.busy(place + 1));
        assert_eq!(votes.decide(&mut group, true, 1), []);
        let more = [11; PARTITIONS];
        group.progress(1, &more, true, 1, 1, &more);
        assert_eq!(votes.decide(&mut group, true, 2), []);
        group.progress(2, &more, true, 2, 2, &more);
        let expected = [(77, 5, 11, Verdict::Commit)];
        assert_eq!(votes.decide(&mut group, true, 3), expected);
        assert!(votes.is_empty());

        votes.begin(78, place, 12, 10);
        votes.refuse(5, 12);
        let expected = [(78, 5, 12, Verdict::Abort)];
        assert_eq!(votes.decide(&mut group, true, 11), expected);

        votes.begin(79, place, 13, 100);
        let late = 100 + VOTE_TIMEOUT;
        assert_eq!(votes.decide(&mut group, true, late - 1), []);
        let expected = [(79, 5, 13, Verdict::Abort)];
        assert_eq!(votes.decide(&mut group, false, late), []);
        assert_eq!(group.wishes(), [(1, false), (2, false)]);
        let late = late + AGREE_TIMEOUT;
        assert_eq!(votes.decide(&mut group, false, late), expected);
        votes.begin(80, place, 14, 100);
        let expected = [(80, 5, 14, Verdict::Commit)];
        assert_eq!(votes.decide(&mut group, true, late), expected);
        assert_eq!(group.in_sync().count(), 0, "they have not voted");
    }
}
