//! What operators do to the hub while it runs: another configuration, and CAs
//! that leave its links without anything to rest on. Judged here: a link that
//! nobody vouches for is over at once (I3).

use nowconnect_core::config::Mode;
use nowconnect_core::id::SessionKey;
use nowconnect_core::mux::Input;
use nowconnect_core::wire::Plane;

use super::{STREAMS_MAX, World, config};
use crate::tape::Tape;

impl World {
    /// A reload or a judgement, as the tape says.
    pub(super) fn operate(&mut self, tape: &mut Tape<'_>) {
        if tape.one_in(2) {
            self.distrust(tape);
        } else {
            self.reload(tape);
        }
    }

    /// Another configuration; no limit is above the first one's.
    fn reload(&mut self, tape: &mut Tape<'_>) {
        let mode = [Mode::Active, Mode::Off, Mode::Shadow][tape.below(3)];
        let mut config = config(mode, self.flags);
        config.limits.max_streams = 1 + tape.below(STREAMS_MAX as usize) as u32;
        if tape.one_in(3) {
            config.limits.send_queue_depth = 1 + u32::from(tape.byte());
            config.limits.inflight_bytes = 1 + tape.number();
        }
        let keep = |tape: &mut Tape<'_>| !tape.one_in(3);
        config.listeners.retain(|_| keep(tape));
        config.peers.retain(|_| keep(tape));
        let drain = tape.pause();
        // Refused while it leaves, and when too much was ever there: nothing changes.
        let _ = self.hub.reload(self.now, &config, drain, &mut self.out);
    }

    /// A session that is to lose its peer's proof: a link, or any other.
    fn distrust(&mut self, tape: &mut Tape<'_>) {
        let links: Vec<SessionKey> = self.hub.control().proofs().map(|(key, _)| key).collect();
        let all: Vec<SessionKey> = self.hub.mux().iter().map(|(key, _)| key).collect();
        let among = if tape.one_in(4) { &all } else { &links };
        let Some(session) = tape.pick(among) else { return };
        let before = self.hub.mux().len();
        let is_link = self.hub.mux().get(session).is_some_and(|e| e.plane == Plane::Mesh);
        self.input(Input::Distrust { session });
        // One between two native ends waits for a peer whom TLS vouches for.
        let over = self.hub.mux().get(session).is_none();
        let waits = self.hub.control().proofs().all(|(key, _)| key != session);
        assert!(if is_link { over || waits } else { !over }, "a link rests on nothing (I3)");
        assert_eq!(self.hub.mux().len() + usize::from(over), before, "other sessions are left alone");
    }
}
