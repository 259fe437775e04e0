//! Real time and CPU time of this process, for figures only: no run sees them.

use rustix::time::{ClockId, clock_gettime};

fn seconds(id: ClockId) -> f64 {
    let t = clock_gettime(id);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

/// A moment to count from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    real: f64,
    cpu: f64,
}

impl Start {
    pub(crate) fn now() -> Self {
        Self { real: seconds(ClockId::Monotonic), cpu: seconds(ClockId::ProcessCPUTime) }
    }

    /// Seconds since then.
    pub(crate) fn real(&self) -> f64 {
        (seconds(ClockId::Monotonic) - self.real).max(1e-9)
    }

    /// CPU seconds since then, of all threads.
    pub(crate) fn cpu(&self) -> f64 {
        (seconds(ClockId::ProcessCPUTime) - self.cpu).max(1e-9)
    }
}
