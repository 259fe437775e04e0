//! Where `sometimes!` marks are hit that no other file meets by the way: what
//! counters, records and the registry tell. Judges nothing.

use nowconnect_core::error::RstCode;
use nowconnect_core::id::AgentId;
use nowconnect_core::observed::{Cause, StreamRecord};
use nowconnect_core::wire::Codec;

use crate::actor::Fate;
use crate::marks::Mark;
use crate::world::World;

/// Marks by the words the registry's model uses.
const REGISTRY: &[(&str, Mark)] = &[
    ("claim retried and answered from memory (idempotent)", Mark::ClaimUnknownThenHit),
    ("claim executed but its reply was lost", Mark::ClaimReplyLost),
    ("epoch raised by seen", Mark::EpochRaisedBySeen),
    ("epoch raised by floor", Mark::EpochRaisedByFloor),
    ("late execution after the client's time-out", Mark::LateExecution),
    ("release found a newer owner and did nothing", Mark::ReleaseFoundNewer),
    ("sweeper raced with a claim", Mark::SweepRacedClaim),
    ("failover lost a claim", Mark::ClaimLostInFailover),
    ("answered by another registry", Mark::OtherRegistry),
];

impl World {
    /// A hub holds an attachment.
    pub(crate) fn note_attached(&mut self, hub: u16, agent: &AgentId, firm: bool, takeover: bool) {
        // One that is provisional becomes firm by a claim of its own.
        let provisional = self.ghost_attached(hub, agent, firm);
        if !firm {
            self.marks.hit(Mark::Provisional);
        } else if provisional {
            self.marks.hit(Mark::ProvisionalReclaimed);
        }
        if takeover {
            self.marks.hit(Mark::Superseded);
        }
        self.judge_turns(hub, agent, takeover);
        let before = self.check.attached.insert(agent.clone(), hub);
        if before.is_some_and(|b| b != hub) {
            let node = self.nodes.iter().position(|n| n.name == agent.as_str() && !n.is_clone);
            let open = self.actors.iter().any(|a| {
                !a.is_client && a.fate == Fate::Alive && Some(usize::from(self.socks[a.sock as usize].node)) == node
            });
            if open {
                self.marks.hit(Mark::AgentMoved);
            }
        }
    }

    /// A stream of a client is over.
    pub(crate) fn note_record(&mut self, ix: u16, r: &StreamRecord) {
        match r.cause {
            Cause::Finished if r.owner.is_some() && !r.local => self.marks.hit(Mark::CrossHub),
            Cause::Reset(RstCode::Cancelled) => self.marks.hit(Mark::OpenCancelled),
            Cause::Reset(RstCode::Lost) if !r.local && self.owner_crashed(r) => self.marks.hit(Mark::OwnerCrashed),
            Cause::Finished | Cause::Reset(_) => {}
        }
        if r.cause == Cause::Finished && self.marks.count(Mark::SlowReaderFastNeighbour) == 0 {
            let unread = self.socks.iter().any(|s| s.node == ix && s.buffered_bytes > 0 && !s.gone && !s.closed);
            self.marks.add(Mark::SlowReaderFastNeighbour, u64::from(unread));
        }
    }

    /// Whether the hub that owned a stream died while it was open.
    fn owner_crashed(&self, r: &StreamRecord) -> bool {
        let came = self.now.saturating_sub(r.total.as_nanos() as u64);
        let owner = r.owner.as_ref().and_then(|o| self.nodes.iter().position(|n| n.name == o.as_str()));
        let died = owner.and_then(|ix| self.check.crashed.get(&(ix as u16)));
        died.is_some_and(|at| (came..=self.now).contains(at))
    }

    /// The registry's clock is about to step: whether the end of a lease lies
    /// between what it shows and what it will show.
    pub(crate) fn note_step(&mut self, by_ms: i64) {
        let from = self.registry.wall_millis(nowconnect_core::time::Instant::from_nanos(self.now));
        let to = from.saturating_add_signed(by_ms);
        let leases = (0..self.plan.hubs.len()).map(|n| crate::node::name(&format!("hub-{n}")));
        let ends = leases.filter_map(|hub| self.registry.primary().lease(&hub).map(|(_, until)| until));
        let crossed = ends.filter(|until| (from < *until) != (to < *until)).count();
        self.marks.add(Mark::ClockCrossedDeadline, crossed as u64);
    }

    /// Marks that counters of the machines tell at the end of a run.
    pub(crate) fn collect_marks(&mut self) {
        for ix in 0..self.nodes.len() {
            let Some(m) = &self.nodes[ix].machine else { continue };
            for shard in m.shards() {
                let c = shard.counters();
                self.marks.add(Mark::EpochMismatch, c.epoch_mismatch + c.wrong_epoch);
                self.marks.add(Mark::DuplicateDropped, c.duplicates);
                self.marks.add(Mark::BudgetPressure, c.paused_budget);
                self.marks.add(Mark::WrongSession, c.wrong_session);
                // Each stream carried on that is gone was remembered once.
                let over = c.carried.saturating_sub(shard.streams() as u64);
                let most = u64::from(self.plan.tombstones);
                self.marks.add(Mark::TombstoneEvicted, u64::from(most > 0 && over > most));
            }
            for (_, e) in m.mux().iter() {
                let c = e.session.counters();
                self.marks.add(Mark::QueueFull, c.blocked_queue_depth + c.blocked_inflight_bytes);
                self.marks.add(Mark::ResumedWithReplay, c.messages_replayed);
                self.marks.add(Mark::ResumeRefused, c.resume_refused);
            }
        }
        for (what, mark) in REGISTRY {
            self.marks.add(*mark, self.registry.marks().get(what).copied().unwrap_or(0));
        }
        let v1 = self.conns.iter().filter(|c| c.dialect.codec == Codec::JsonV1).count() as u64;
        self.marks.add(Mark::V1, v1);
        self.marks.add(Mark::BothEncodings, u64::from(v1 > 0 && v1 < self.conns.len() as u64));
    }
}
