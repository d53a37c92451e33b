#![forbid(unsafe_code)]
//! What has become of a node and its copies since somebody looked last, in sentences for whoever runs it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use log::Level::{Info, Warn};

use super::data::Data;
use super::replicas::State;
use super::session::Role;
use super::{HEARTBEAT, NO_PROGRESS};
use crate::store::journal::PARTITIONS;

/// How far a long synchronisation is, is told so often; milliseconds. So are things that go on.
const PROGRESS_EVERY: u64 = 5000;

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    role: Role,
    epoch: u64,
    follows: Option<String>,
    /// The leader that it has been connected to.
    leader: u64,
    recovers: bool,
    /// Partitions that are whole, of a copy.
    whole: u32,
    in_sync: bool,
    items: u64,
    differed: u64,
    lost: u64,
    copies: BTreeMap<u64, Copy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Copy {
    address: Option<SocketAddr>,
    connected: bool,
    ready: bool,
    in_sync: bool,
    fulls: u64,
    diffs: u64,
    walked: u64,
    repaired: u64,
}

impl Seen {
    fn of(state: &State) -> Seen {
        let (node, copy) = (&state.node, &state.node.copy);
        let copies = state.group.members().map(|member| {
            let guest = state.guest(member.node);
            let counts = guest.map(|guest| guest.counts).unwrap_or_default();
            let seen = Copy {
                address: guest.map(|guest| guest.address),
                connected: member.connected,
                ready: member.ready,
                in_sync: member.in_sync,
                fulls: counts.fulls,
                diffs: counts.diffs,
                walked: counts.items_walked,
                repaired: counts.items_repaired,
            };
            (member.node, seen)
        });
        Seen {
            role: node.role,
            epoch: node.epoch().number,
            follows: state.follows.clone(),
            leader: node.leader,
            recovers: state.recovering_until.is_some(),
            whole: copy.whole.count_ones(),
            in_sync: copy.in_sync,
            items: copy.counts.items,
            differed: copy.counts.digests_differed,
            lost: state.data.journal().lost_locally(),
            copies: copies.collect(),
        }
    }
}

/// Remembers what it has seen.
#[derive(Debug, Default)]
pub struct Diary {
    last: Option<Seen>,
    looked_at: u64,
    /// When progress was told last, and what goes on.
    told_at: u64,
    lost: u64,
    differed: u64,
}

type Told = Vec<(log::Level, String)>;

impl Diary {
    /// Writes into the log of the server what is new.
    pub fn look(&mut self, state: &State, now: u64) {
        if self.looked_at > 0 && now < self.looked_at + HEARTBEAT {
            return;
        }
        self.looked_at = now;
        for (level, line) in self.compare(Seen::of(state), now) {
            log::log!(level, "replication: {line}");
        }
    }

    fn compare(&mut self, seen: Seen, now: u64) -> Told {
        let mut told = Vec::new();
        let last = self.last.take();
        let same_role = last.as_ref().is_some_and(|last| {
            (last.role, last.epoch, &last.follows) == (seen.role, seen.epoch, &seen.follows)
        });
        let ever = now >= self.told_at + PROGRESS_EVERY;
        let mut progress = false;
        match seen.role {
            Role::Leader if !same_role => {
                let line = format!("leads in epoch {}, takes mutations", seen.epoch);
                told.push((Info, line));
            }
            Role::Recovering if !same_role && seen.recovers => told.push((
                Info,
                "starts empty: until --repl-recover is over no mutations are taken, for a follower that \
                 still has the items may give them back"
                    .to_owned(),
            )),
            Role::Follower => {
                let before = last.as_ref().filter(|last| last.role == Role::Follower);
                follows(before, &seen, ever, &mut progress, &mut told);
            }
            _ => {}
        }
        let none = BTreeMap::new();
        let before = last.as_ref().filter(|_| same_role);
        let before = before.map_or(&none, |last| &last.copies);
        for (&node, copy) in &seen.copies {
            copies(
                node,
                before.get(&node),
                *copy,
                ever,
                &mut progress,
                &mut told,
            );
        }
        progress |= self.goes_on(&seen, ever, &mut told);
        if progress {
            self.told_at = now;
        }
        self.last = Some(seen);
        told
    }

    /// What comes again and again is told with how often it has.
    fn goes_on(&mut self, seen: &Seen, ever: bool, told: &mut Told) -> bool {
        let mut any = false;
        let mut once = |known: &mut u64, count: u64, line: String| {
            // The first time at once.
            if count > *known && (ever || *known == 0) {
                *known = count;
                told.push((Warn, line));
                any = true;
            }
        };
        once(
            &mut self.lost,
            seen.lost,
            format!(
                "{} items of the leader's had no room here and are missing: give this node 5 % more \
                 memory (-m) than the leader has",
                seen.lost
            ),
        );
        once(
            &mut self.differed,
            seen.differed,
            format!(
                "items were not the leader's at {} digests so far; they are compared one by one and \
                 repaired",
                seen.differed
            ),
        );
        any
    }
}

/// A follower's view.
fn follows(last: Option<&Seen>, seen: &Seen, ever: bool, progress: &mut bool, told: &mut Told) {
    let (whole_before, in_sync_before) = last.map_or((0, false), |last| (last.whole, last.in_sync));
    if last.is_none_or(|last| last.follows != seen.follows) {
        told.push((
            Info,
            match &seen.follows {
                Some(leader) => format!("follows {leader}, takes no mutations"),
                None => "follows nobody for now, takes no mutations".to_owned(),
            },
        ));
    }
    if last.is_some_and(|last| (last.leader, last.epoch) != (seen.leader, seen.epoch)) {
        let line = format!(
            "the leader is {:016x}, in epoch {}",
            seen.leader, seen.epoch
        );
        told.push((Info, line));
    }
    let all = PARTITIONS as u32;
    if seen.whole == all && whole_before < all {
        told.push((Info, "has everything that the leader has".to_owned()));
    } else if seen.whole < all && whole_before == all {
        told.push((Warn, "does not have everything any more".to_owned()));
    } else if seen.whole < all && ever && last.is_some_and(|last| last.items != seen.items) {
        *progress = true;
        let line = format!(
            "is brought up to date: {} of {all} partitions are whole, {} items received",
            seen.whole, seen.items
        );
        told.push((Info, line));
    }
    match (in_sync_before, seen.in_sync) {
        (false, true) => told.push((Info, "the leader counts on this node: in sync".to_owned())),
        (true, false) => told.push((
            Warn,
            "the leader does not count on this node any more: not in sync".to_owned(),
        )),
        _ => {}
    }
}

/// A leader's view of one copy.
fn copies(
    node: u64,
    last: Option<&Copy>,
    seen: Copy,
    ever: bool,
    progress: &mut bool,
    told: &mut Told,
) {
    let who = match seen.address {
        Some(address) => format!("follower {node:016x} at {address}"),
        None => format!("follower {node:016x}"),
    };
    let before = last.copied().unwrap_or(Copy {
        connected: false,
        ready: false,
        in_sync: false,
        ..seen
    });
    if seen.connected && !before.connected {
        let how = match (seen.fulls, seen.diffs) {
            (0, 0) => "goes on from the log",
            (0, _) => "is compared, for the log does not reach back to where it was",
            _ => "gets everything",
        };
        told.push((Info, format!("{who} has come: {how}")));
    } else if seen.connected && !seen.ready && ever && before != seen {
        *progress = true;
        let line = format!(
            "{who} is brought up to date: {} items walked, {} repaired so far",
            seen.walked, seen.repaired
        );
        told.push((Info, line));
    }
    if seen.ready && !before.ready {
        told.push((Info, format!("{who} has everything")));
    }
    if before.connected && !seen.connected {
        told.push((Warn, format!("{who} has gone")));
    }
    match (before.in_sync, seen.in_sync) {
        (false, true) => told.push((Info, format!("{who} is in sync"))),
        (true, false) => {
            let line = format!(
                "{who} is no longer in sync: it has taken nothing for {} s, or has lost what it had; \
                 nobody waits for it until it has everything again",
                NO_PROGRESS.div_ceil(1000)
            );
            told.push((Warn, line));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader() -> Seen {
        Seen {
            role: Role::Leader,
            epoch: 1,
            follows: None,
            leader: 0,
            recovers: false,
            whole: 0,
            in_sync: false,
            items: 0,
            differed: 0,
            lost: 0,
            copies: BTreeMap::new(),
        }
    }

    fn follower() -> Seen {
        Seen {
            role: Role::Follower,
            follows: Some("leader:11311".to_owned()),
            ..leader()
        }
    }

    const COPY: Copy = Copy {
        address: None,
        connected: true,
        ready: false,
        in_sync: false,
        fulls: 64,
        diffs: 0,
        walked: 0,
        repaired: 0,
    };

    fn with(copy: Copy) -> Seen {
        Seen {
            copies: BTreeMap::from([(7, copy)]),
            ..leader()
        }
    }

    fn lines(told: Told) -> Vec<String> {
        told.into_iter().map(|(_, line)| line).collect()
    }

    #[test]
    fn a_leader_tells_of_a_copy_from_its_coming_to_its_going() {
        let mut diary = Diary::default();
        let first = lines(diary.compare(leader(), 1));
        assert_eq!(first, ["leads in epoch 1, takes mutations"]);
        assert!(diary.compare(leader(), 300).is_empty());
        let come = lines(diary.compare(with(COPY), 600));
        assert_eq!(
            come,
            ["follower 0000000000000007 has come: gets everything"]
        );
        let walked = with(Copy {
            walked: 1000,
            ..COPY
        });
        let line =
            "follower 0000000000000007 is brought up to date: 1000 items walked, 0 repaired so far";
        assert_eq!(lines(diary.compare(walked, 6000)), [line]);
        let soon = with(Copy {
            walked: 2000,
            ..COPY
        });
        assert!(diary.compare(soon, 7000).is_empty(), "not so often");
        let ready = Copy {
            address: Some(SocketAddr::from(([10, 0, 0, 2], 4000))),
            ready: true,
            in_sync: true,
            ..COPY
        };
        let done = lines(diary.compare(with(ready), 7300));
        assert_eq!(
            done,
            [
                "follower 0000000000000007 at 10.0.0.2:4000 has everything",
                "follower 0000000000000007 at 10.0.0.2:4000 is in sync"
            ]
        );
        let gone = Copy {
            connected: false,
            ready: false,
            in_sync: false,
            ..ready
        };
        let told = diary.compare(with(gone), 9000);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().all(|(level, _)| *level == Warn));
        assert!(told[1].1.contains("nobody waits for it"));
    }

    #[test]
    fn a_follower_tells_how_far_it_is_and_what_it_lacks() {
        let mut diary = Diary::default();
        let told = lines(diary.compare(follower(), 1));
        assert_eq!(told, ["follows leader:11311, takes no mutations"]);
        let half = Seen {
            leader: 5,
            whole: PARTITIONS as u32 / 2,
            items: 4000,
            ..follower()
        };
        let told = lines(diary.compare(half.clone(), 6000));
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[1].contains("partitions are whole, 4000 items"));
        let whole = Seen {
            whole: PARTITIONS as u32,
            in_sync: true,
            ..half
        };
        assert_eq!(lines(diary.compare(whole.clone(), 6500)).len(), 2);
        let lacks = |lost| Seen {
            lost,
            ..whole.clone()
        };
        assert!(lines(diary.compare(lacks(1), 12_000))[0].starts_with("1 items of the leader's"));
        assert!(diary.compare(lacks(9), 12_300).is_empty(), "not so often");
        assert!(lines(diary.compare(lacks(10), 18_000))[0].starts_with("10 items"));
        let out = Seen {
            in_sync: false,
            lost: 10,
            ..whole.clone()
        };
        let told = diary.compare(out, 19_000);
        assert_eq!((told.len(), told[0].0), (1, Warn), "{told:?}");
    }

    #[test]
    fn a_change_of_role_is_told() {
        let mut diary = Diary::default();
        diary.compare(follower(), 1);
        let leads = Seen {
            epoch: 2,
            ..leader()
        };
        let told = lines(diary.compare(leads, 300));
        assert_eq!(told, ["leads in epoch 2, takes mutations"]);
        let nobody = Seen {
            follows: None,
            epoch: 2,
            ..follower()
        };
        let told = lines(diary.compare(nobody, 600));
        assert_eq!(told, ["follows nobody for now, takes no mutations"]);
    }
}
