#![forbid(unsafe_code)]
//! What a leader asks for: to go on, and who is in sync.

use super::super::directory::{Member, Request, View};
use super::{Effect, Elector, Local, Standing};

impl Elector {
    pub(super) fn lead(&mut self, view: &View, lease: u64, local: &Local) -> Option<Request> {
        let Standing::Leading(reign) = &mut self.standing else {
            return None;
        };
        if let Some(known) = &view.in_sync
            && known.by == self.me.id
            && known.modified > reign.in_sync.modified
        {
            // A change that had no answer has come through.
            reign.in_sync = known.clone();
        }
        let last = view
            .in_sync
            .as_ref()
            .is_some_and(|known| known.modified == reign.in_sync.modified);
        match &view.leader {
            Some(leader) if leader.id == self.me.id => {
                reign.created = leader.created;
                if !reign.held && leader.lease == lease {
                    reign.held = true;
                    self.hold();
                }
            }
            Some(leader) => {
                log::warn!("group {}: {} leads instead", self.me.group, leader.name);
                self.step_down(Some(leader));
                return None;
            }
            None if !last => {
                log::warn!("group {}: another has led meanwhile", self.me.group);
                self.step_down(None);
                return None;
            }
            None => {
                reign.held = false;
                return Some(Request::Reclaim {
                    lease,
                    since: reign.in_sync.modified,
                    epoch: reign.epoch,
                });
            }
        }
        let Standing::Leading(reign) = &self.standing else {
            return None;
        };
        if !reign.held {
            // It hangs on a lease of before, which is running out.
            return None;
        }
        let known = |id: u64| view.nodes.iter().find(|node| node.id == id);
        let wished = |id: u64| local.wishes.iter().find(|(node, _)| *node == id);
        let mut members = reign.in_sync.members.clone();
        members.retain(|member| {
            let counted = local.in_sync.contains(&member.id);
            member.id == self.me.id || wished(member.id).map_or(counted, |(_, in_sync)| *in_sync)
        });
        let kept = members.len();
        let arriving = local
            .wishes
            .iter()
            .filter(|(_, in_sync)| *in_sync)
            .map(|(id, _)| *id)
            .chain(local.in_sync.iter().copied())
            .filter(|id| wished(*id).is_none_or(|(_, in_sync)| *in_sync));
        for id in arriving {
            // Whoever the service does not know cannot stand either.
            if !members.iter().any(|member| member.id == id)
                && let Some(node) = known(id)
            {
                members.push(Member {
                    id,
                    name: node.name.clone(),
                });
            }
        }
        if members.len() == reign.in_sync.members.len() && kept == members.len() && !reign.doubt {
            // Copies that the service does not count need not be waited for.
            for (id, in_sync) in &local.wishes {
                if !in_sync && !reign.in_sync.has(*id) {
                    self.effects.push_back(Effect::Count(*id, false));
                }
            }
            return None;
        }
        for member in &members[kept..] {
            self.effects.push_back(Effect::Count(member.id, true));
        }
        Some(Request::Agree {
            leading: reign.created,
            since: reign.in_sync.modified,
            epoch: reign.epoch,
            members,
        })
    }
}
