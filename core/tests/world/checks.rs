//! Targets of the small world: how each agent's behave, and what a check of
//! them finds. Must not know sockets.

use super::*;
use nowconnect_core::mux::Check;

impl World {
    /// How the targets of an agent behave.
    pub(super) fn target_of(&self, n: usize) -> Target {
        self.targets_of.get(&n).copied().unwrap_or(self.target)
    }

    pub(super) fn check_target(&mut self, n: usize, check: Check) {
        let Check { connector, number, .. } = check;
        let result = match self.target_of(n) {
            Target::Accept | Target::Echo => Ok(()),
            Target::Refuse => Err(RstCode::Refused),
            Target::Hang => return,
        };
        self.checks += 1;
        self.input(n, Input::Checked { connector, number, result });
    }
}
