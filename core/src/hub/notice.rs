//! EPOCH between hubs: each says which attachments it has, and hears it of the
//! others. What is heard speaks for its sender only; who would end an attachment
//! of this hub has to be listed, as long as the registry can be asked.
//!
//! Keeps I3 (a peer that lies parts nobody's agents), O2 (epochs never fall,
//! and none out of reason is believed), O6 (of two instances the older ends,
//! with or without the registry) and B9 (one question at a time per agent,
//! whatever is said).
//!
//! Must not know: what is asked of the registry, and when again.

use super::control::{AttachmentState, Control};
use crate::config::Mode;
use crate::error::CloseCode;
use crate::id::{AgentId, Epoch, Fence, Instance, SessionKey};
use crate::mux::{Mux, NodeOut};
use crate::planted;
use crate::shard::ControlNote;
use crate::time::Instant;
use crate::wire::{EpochNotice, Frame};

/// Who took an attachment of this hub over, as another hub says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) instance: Instance,
    pub(super) fence: Fence,
}

impl Control {
    pub(super) fn notice(&self, agent_id: &AgentId, instance: Instance, fence: Fence, firm: bool) -> EpochNotice {
        EpochNotice {
            agent_id: agent_id.clone(),
            instance,
            replica_id: self.run.replica_id.clone(),
            epoch: fence.epoch,
            nonce: fence.nonce,
            firm,
        }
    }

    pub(super) fn broadcast_epoch(&self, now: Instant, notice: &EpochNotice, mux: &mut Mux, out: &mut NodeOut) {
        if self.config.mode == Mode::Off {
            return;
        }
        let mut links: Vec<SessionKey> = self.links.values().copied().collect();
        if planted::on(56) {
            planted::hash_order(&mut links);
        }
        for link in links {
            mux.send(now, link, Frame::Epoch(Box::new(notice.clone())), out);
        }
    }

    /// Another hub holds an attachment of this agent now.
    pub(super) fn on_epoch_notice(
        &mut self,
        now: Instant,
        notice: &EpochNotice,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if self.config.mode == Mode::Off {
            // A link that is kept for its streams: this hub serves alone.
            return;
        }
        let newer = notice.epoch > self.epochs.highest(&notice.agent_id);
        self.learn_epoch_of_peer(now, &notice.agent_id, notice.epoch, notice.firm);
        self.heard_elsewhere(&notice.agent_id, notice.instance);
        let before = self.attachments.get(&notice.agent_id).map(|a| a.instance);
        let unsure = self.registry_healthy && before.is_some_and(|before| before != notice.instance);
        if newer && !unsure {
            self.learn_holder(now, &notice.agent_id, notice.instance, before, out);
        }
        // The pair is what orders two claims: after a loss of data epochs may be equal.
        let told = Told { instance: notice.instance, fence: Fence { epoch: notice.epoch, nonce: notice.nonce } };
        let over =
            self.attachments.get_mut(&notice.agent_id).filter(|a| a.instance != told.instance && a.fence < told.fence);
        if let Some(a) = over {
            if unsure {
                let asked = a.told.is_some();
                if a.told.is_none_or(|t| t.fence < told.fence) {
                    a.told = Some(told);
                }
                if !asked {
                    self.ask_owners(now, &notice.agent_id, out);
                }
            } else {
                let key = a.session;
                self.lose(now, key, CloseCode::Superseded, mux, notes, out);
            }
        }
        self.forget_lookups(now, notice, out);
    }

    /// The registry says who holds the agent, asked when this was `told`. More
    /// that was told since is asked for now.
    pub(super) fn told_is_answered(
        &mut self,
        now: Instant,
        agent_id: &AgentId,
        told: Option<Fence>,
        out: &mut NodeOut,
    ) {
        let Some(a) = self.attachments.get_mut(agent_id) else { return };
        let Some(open) = a.told else { return };
        if told.is_some_and(|told| open.fence <= told) {
            a.told = None;
        } else if told.is_some() {
            self.ask_owners(now, agent_id, out);
        }
    }

    /// The registry is out, and what was told of attachments of this hub before
    /// that was known is not answered: it counts now, as what is told from now on.
    pub(super) fn believe_told(
        &mut self,
        now: Instant,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let told = |(id, a): (&AgentId, &AttachmentState)| {
            a.told.filter(|t| a.fence < t.fence).map(|t| (id.clone(), a.session, a.instance, t))
        };
        let over: Vec<_> = self.attachments.iter().filter_map(told).collect();
        for (agent_id, session, before, told) in over {
            self.learn_holder(now, &agent_id, told.instance, Some(before), out);
            self.lose(now, session, CloseCode::Superseded, mux, notes, out);
        }
    }

    /// Another hub says that it has an attachment under this epoch. One that no
    /// registry can have granted by now counts as the highest that it can
    /// (attack 50), and none tells this hub where the floor is.
    fn learn_epoch_of_peer(&mut self, now: Instant, agent_id: &AgentId, named: Epoch, firm: bool) {
        let honest = self.honest(now);
        let bounded = named.min(honest.max(self.epochs.highest(agent_id)));
        self.epochs.learn(agent_id, bounded, firm, honest);
    }
}
