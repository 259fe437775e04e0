//! What happens around the agent while it runs: another configuration, and the
//! results of its checks of targets, right ones and stray ones.

use nowconnect_core::config::HealthConfig;
use nowconnect_core::error::RstCode;
use nowconnect_core::mux::Input;

use super::{STREAMS_MAX, World, config};
use crate::tape::Tape;

impl World {
    /// A reload or the result of a check, as the tape says.
    pub(super) fn operate(&mut self, tape: &mut Tape<'_>) {
        if tape.one_in(2) {
            self.checked(tape);
        } else {
            self.reload(tape);
        }
    }

    /// Another configuration, with checks or without; no limit is above the
    /// first one's.
    fn reload(&mut self, tape: &mut Tape<'_>) {
        let mut config = config(self.flags);
        config.parallel = 1 + tape.below(3) as u16;
        config.limits.max_streams = 1 + tape.below(STREAMS_MAX as usize) as u32;
        if tape.one_in(3) {
            config.limits.send_queue_depth = 1 + u32::from(tape.byte());
            config.limits.inflight_bytes = 1 + tape.number();
        }
        let keep = |tape: &mut Tape<'_>| !tape.one_in(3);
        config.connectors.retain(|_| keep(tape));
        for c in &mut config.connectors {
            c.health = tape.one_in(2).then(HealthConfig::default);
            c.priority = u16::from(tape.byte());
        }
        let first = config.hubs.first().cloned();
        config.hubs.retain(|_| keep(tape));
        if config.hubs.is_empty() {
            config.hubs.extend(first);
        }
        let drain = tape.pause();
        // Refused while it leaves: nothing changes.
        let _ = self.agent.reload(self.now, &config, drain, &mut self.out);
    }

    /// A check that was asked for is answered, now or late; or one nobody asked for.
    fn checked(&mut self, tape: &mut Tape<'_>) {
        let Some(check) = tape.pick(&self.checks) else { return };
        if !tape.one_in(4) {
            self.checks.retain(|c| *c != check);
        }
        let number = if tape.one_in(8) { tape.number() } else { check.number };
        let result = if tape.one_in(2) { Err(RstCode::Refused) } else { Ok(()) };
        self.input(Input::Checked { connector: check.connector, number, result });
    }
}
