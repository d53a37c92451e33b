#![forbid(unsafe_code)]
//! What a node does that does not lead: follows who does, or stands.

use super::super::directory::{Member, Request, View};
use super::super::{POLL, RANK};
use super::{Effect, Elector, Local, Standing};

impl Elector {
    pub(super) fn follow(
        &mut self,
        view: &View,
        lease: u64,
        now: u64,
        local: &Local,
    ) -> Option<Request> {
        if let Some(leader) = &view.leader {
            self.leaderless_since = None;
            if leader.id == self.me.id {
                // A campaign of before has come through after all, too late.
                self.effects.push_back(Effect::Abstain(true));
                self.standing = Standing::Doubtful;
                return None;
            }
            if matches!(self.standing, Standing::Candidate { .. }) {
                self.follow_again();
            }
            self.turn_to(leader);
            return None;
        }
        let leaderless_since = *self.leaderless_since.get_or_insert(now);
        match self.may_stand(view, now, leaderless_since, local) {
            Ok(()) => {}
            Err(why) => {
                if self.told != Some(why) && !local.hears && now >= leaderless_since + POLL {
                    self.told = Some(why);
                    let names: Vec<&str> = view
                        .in_sync
                        .iter()
                        .flat_map(|in_sync| &in_sync.members)
                        .map(|member| member.name.as_str())
                        .collect();
                    log::warn!(
                        "group {}: nobody leads, and this node does not stand: {why} (in sync: {})",
                        self.me.group,
                        names.join(" ")
                    );
                }
                if matches!(self.standing, Standing::Candidate { .. }) {
                    self.follow_again();
                }
                return None;
            }
        }
        let since = view.in_sync.as_ref().map_or(0, |known| known.modified);
        match &mut self.standing {
            Standing::Following => {
                self.counts.elections += 1;
                self.effects.push_back(Effect::Abstain(true));
                self.standing = Standing::Candidate {
                    said_at: None,
                    turn_at: None,
                };
                Some(Request::Stand {
                    lease,
                    epoch: local.epoch,
                    applied: local.applied,
                    since,
                })
            }
            Standing::Candidate { said_at, turn_at } => match (*said_at, *turn_at) {
                (None, _) => Some(Request::Stand {
                    lease,
                    epoch: local.epoch,
                    applied: local.applied,
                    since,
                }),
                (Some(said), None) => {
                    if now < said + RANK {
                        return None;
                    }
                    if self.read_at < said + RANK {
                        return Some(self.read());
                    }
                    let rank = rank(view, since, self.me.id);
                    *turn_at = Some(now + RANK * rank);
                    self.next_turn(view, lease, now, local, since)
                }
                (Some(_), Some(_)) => self.next_turn(view, lease, now, local, since),
            },
            Standing::Doubtful | Standing::Leading(_) => None,
        }
    }

    fn next_turn(
        &self,
        view: &View,
        lease: u64,
        now: u64,
        local: &Local,
        since: u64,
    ) -> Option<Request> {
        let Standing::Candidate {
            turn_at: Some(turn),
            ..
        } = self.standing
        else {
            return None;
        };
        if now < turn {
            return None;
        }
        let us = Member {
            id: self.me.id,
            name: self.me.name.clone(),
        };
        let mut members = vec![us];
        if self.keep_members
            && let Some(known) = view.in_sync.as_ref().filter(|known| known.has(self.me.id))
        {
            let others = known.members.iter().filter(|member| {
                // Those that are there: the last leader, for one, is not.
                view.nodes.iter().any(|node| node.id == member.id) && member.id != self.me.id
            });
            members.extend(others.cloned());
        }
        Some(Request::Campaign {
            lease,
            since,
            floor: local.seen + 1,
            members,
        })
    }

    /// Why not, in words for an operator.
    fn may_stand(
        &self,
        view: &View,
        now: u64,
        leaderless_since: u64,
        local: &Local,
    ) -> Result<(), &'static str> {
        if self.doubled {
            return Err("another process has its name");
        }
        if local.hears {
            return Err("a leader speaks to it");
        }
        if now < local.promised_until {
            return Err("it has vouched for a leader a moment ago");
        }
        let Some(known) = &view.in_sync else {
            return Ok(());
        };
        if local.forced {
            return Ok(());
        }
        if known.has(self.me.id) {
            // Who has written it was the last that could lead, whether or not it learnt of that.
            return if local.whole || known.by == self.me.id {
                Ok(())
            } else {
                Err("its items are not whole")
            };
        }
        if !known
            .members
            .iter()
            .all(|member| view.is_superseded(member))
        {
            return Err(
                "it was not in sync; bring one of those that were back, or tell it to `repl promote --force`",
            );
        }
        if now < leaderless_since + self.recover {
            return Err("all that were in sync have restarted: waiting for --repl-recover");
        }
        Ok(())
    }
}

/// How many candidates stand before this one: who has more, and of as many who has the first name.
fn rank(view: &View, since: u64, id: u64) -> u64 {
    let Some(us) = view.candidates.iter().find(|other| other.id == id) else {
        return 0;
    };
    let eligible = |id: u64| {
        let Some(known) = &view.in_sync else {
            return true;
        };
        // Where nobody in sync is left, all others may.
        known.has(id) || !known.has(us.id)
    };
    let before = view.candidates.iter().filter(|other| {
        let theirs = (other.epoch, other.applied);
        let ours = (us.epoch, us.applied);
        other.since == since
            && eligible(other.id)
            && (theirs > ours || theirs == ours && other.name < us.name)
    });
    before.count() as u64
}
