//! A hub's configuration changes while it runs (X1): its mode, and sometimes
//! the room of its listeners, below what is used. Streams that are open are
//! left alone by it; what must hold of those that open afterwards is asked
//! here (M1 to M3). Must not know what a mode means inside the hub.

use nowconnect_core::config::Mode;
use nowconnect_core::id::ListenerIx;
use nowconnect_core::stream::{End, Part, Stream};
use nowconnect_core::wire::Plane;

use crate::marks::Mark;
use crate::node::{Machine, mode};
use crate::plan::ModePlan;
use crate::world::{Phase, World};

impl World {
    /// Puts a hub into another mode, or (`None`) back into the plan's.
    /// A hub that cannot be told is restarted.
    pub(crate) fn flip(&mut self, ix: u16, to: Option<ModePlan>) {
        // A plan that was made small may have fewer hubs than its faults name.
        let Some(planned) = self.plan.hubs.get(usize::from(ix)).map(|h| h.mode) else { return };
        self.nodes[usize::from(ix)].mode = to;
        let wanted = mode(to.unwrap_or(planned));
        // The same file may lower a limit below its use.
        let narrow = to.is_some()
            && self.phase == Phase::Safety
            && self.tape.lane("flip", (self.now << 8) | u64::from(ix)).chance(1, 3);
        let now = self.now;
        let Ok(n) = u8::try_from(ix) else { return };
        let mut config = self.hub_file(ix, n);
        let node = &mut self.nodes[usize::from(ix)];
        let at = node.clock(now);
        let Some(Machine::Hub(hub)) = &mut node.machine else { return };
        let crossing =
            hub.mux().iter().any(|(key, e)| e.plane == Plane::Mesh && hub.shards().iter().any(|s| s.has_streams(key)));
        for (listener, place) in config.listeners.iter_mut().zip(0..) {
            let clients = hub.clients(ListenerIx(place));
            if narrow && clients > 1 {
                listener.max_connections = listener.max_connections.min(clients / 2);
            }
        }
        let before = hub.mode();
        if hub.reload(at, &config, crate::reload::DRAIN, &mut node.out).is_err() {
            // It drains: whoever runs it starts it anew.
            self.stop(ix);
            return self.boot(ix);
        }
        self.inputs += 1;
        if crossing && before != wanted {
            self.marks.hit(Mark::ModeFlip);
        }
        self.line(None, || format!("node {ix} goes from {} to {}", before.name(), wanted.name()));
        self.ghost_flipped(ix);
        self.settle(ix);
    }

    /// M1 to M3: a client gets its candidate by the mode of that moment. A
    /// shard that was not told yet may choose by the one before.
    pub(crate) fn judge_path(&mut self, ix: u16, stream: &Path) {
        let Some(hub) = self.nodes[usize::from(ix)].hub() else { return };
        let (now, told) = (hub.mode(), hub.notes_under_way() == 0);
        if !stream.local && now == Mode::Active && told {
            return self.judge_outage(ix);
        }
        if stream.local || now == Mode::Active || !told {
            return;
        }
        let id = if now == Mode::Shadow { "M2" } else { "M3" };
        let text = format!("{} opens a stream over the mesh in mode {}", self.nodes[usize::from(ix)].name, now.name());
        self.fail(id, text);
    }

    /// M1: when all is quiet a hub that is off has no link.
    pub(crate) fn check_silence(&mut self) {
        for ix in 0..self.plan.hubs.len() {
            let Some(hub) = self.nodes[ix].hub().filter(|h| h.mode() == Mode::Off) else { continue };
            let idle = |key| hub.shards().iter().all(|s| !s.has_streams(key));
            if hub.mux().iter().any(|(key, e)| e.plane == Plane::Mesh && idle(key)) {
                let text = format!("hub-{ix} keeps a link in mode off, and no stream is on it");
                return self.fail("M1", text);
            }
        }
    }
}

/// Which way an origin chose for a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    local: bool,
}

impl Path {
    /// Over a tunnel of the origin's own.
    pub(crate) const fn is_local(self) -> bool {
        self.local
    }

    /// `None` while there is no choice, or it is not this hub's.
    pub(crate) fn of(stream: &Stream) -> Option<Self> {
        let chosen = matches!(stream.ends[1], End::Session(_));
        match &stream.part {
            Part::Origin(o) if chosen => o.carrier.as_ref().map(|c| Self { local: c.local }),
            Part::Origin(_) | Part::Owner | Part::Agent => None,
        }
    }
}
