//! An agent: its tunnels to hubs, and the shard that connects targets.
//!
//! Keeps `parallel` tunnels at distinct hubs, each under the epoch its hub was
//! granted; refuses epochs that do not rise (O2); serves every OPEN that names
//! exactly the tunnel's fence (O4). Same contract as [`Hub`](crate::hub::Hub).
//! Does not know how targets are reached or what a token says.

mod given_up;
mod handshake;
mod health;
mod reload;
#[cfg(test)]
mod tests;
mod tunnels;

use std::sync::Arc;

use crate::config::AgentConfig;
use crate::id::{ConnKey, Incarnation, Instance, StreamKey};
use crate::mux::{Input, Mux, NodeOut, SessionNews};
use crate::rng::Seed;
use crate::session::{TxBatch, TxState};
use crate::shard::{ControlNote, Role, Shard, ShardNote};
use crate::time::{Deadline, Instant};
use crate::wire::Frame;

pub use health::TargetView;
pub use reload::ReloadError;
pub use tunnels::{TunnelState, Tunnels};

/// An agent.
#[derive(Debug)]
pub struct Agent {
    tunnels: Tunnels,
    mux: Mux,
    shard: Shard,
    notes: Vec<ControlNote>,
    shard_notes: Vec<ShardNote>,
    news: Vec<SessionNews>,
    frames: Vec<Frame>,
}

impl Agent {
    /// An agent that starts now. Its first dials are in `out`.
    #[must_use]
    pub fn new(config: Arc<AgentConfig>, seed: Seed, now: Instant, out: &mut NodeOut) -> Self {
        let instance = Instance(seed.fork("instance").rng().next_u64());
        let role = Role::Agent { target_timeout: config.target_timeout };
        // An agent mints no cid; its incarnation is never seen.
        let shard = Shard::new(role, config.limits.clone(), Incarnation(0), 0, &seed);
        let mut agent = Self {
            mux: Mux::new(&config.limits),
            tunnels: Tunnels::new(config, instance, &seed, now),
            shard,
            notes: Vec::new(),
            shard_notes: Vec::new(),
            news: Vec::new(),
            frames: Vec::new(),
        };
        agent.tunnels.start(now, &agent.mux, out);
        agent
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut NodeOut) {
        match input {
            Input::Message { conn, message } => {
                if self.mux.carried_by(conn).is_some() {
                    self.on_session_message(now, conn, &message, out);
                } else {
                    self.tunnels.on_handshake_message(now, conn, &message, &mut self.mux, &mut self.notes, out);
                }
            }
            Input::Heard { conn } => self.mux.on_heard(now, conn),
            Input::Socket { stream, event } => {
                self.shard.on_socket(now, stream, event, self.mux.shard_out());
            }
            Input::Target { stream, result } => {
                self.shard.on_target(now, stream, result, self.mux.shard_out());
            }
            Input::Checked { connector, number, result } => {
                let (mux, notes) = (&mut self.mux, &mut self.notes);
                self.tunnels.on_checked(now, connector, number, result, mux, notes, out);
            }
            Input::Connected { target, conn, dialect, .. } => {
                self.tunnels.on_connected(now, target, conn, dialect, &mut self.mux, out);
            }
            Input::DialFailed { target } => self.tunnels.on_dial_failed(now, target, &self.mux, out),
            Input::Disconnected { conn, cause } => {
                self.tunnels.on_handshake_lost(now, conn, cause, &self.mux, out);
                self.mux.on_disconnected(now, conn, cause, &mut self.news, out);
            }
            Input::Token { token } => self.tunnels.send_token(now, &token, &mut self.mux, out),
            Input::Accepted { .. }
            | Input::Registry { .. }
            | Input::Signed { .. }
            | Input::Verified { .. }
            | Input::Undrain
            | Input::Judged { .. }
            | Input::Distrust { .. } => {}
            Input::Drain(times) => self.tunnels.drain(now, times, &mut self.mux, &mut self.notes, out),
            Input::Shutdown => {
                self.notes.push(ControlNote::Shutdown);
                self.settle(now, out);
                self.tunnels.shutdown(now, &mut self.mux, &mut self.notes, out);
            }
        }
        self.settle(now, out);
    }

    fn on_session_message(&mut self, now: Instant, conn: ConnKey, message: &bytes::Bytes, out: &mut NodeOut) {
        let Some(key) = self.mux.carried_by(conn) else { return };
        let mut frames = std::mem::take(&mut self.frames);
        let result = self.mux.on_message(now, conn, message, &mut frames, out);
        for frame in frames.drain(..) {
            if let Frame::Stream { cid, epoch, body } = frame {
                self.shard.on_frame(now, key, cid, epoch, body, self.mux.shard_out());
            } else {
                self.tunnels.on_frame(now, key, frame, &mut self.mux, &mut self.notes, out);
                // A stream frame behind it must find what it changed.
                self.tell_shard(now);
            }
        }
        if let Err(e) = result {
            self.tunnels.on_violation(now, key, &e, &mut self.mux, &mut self.notes, out);
        }
        self.frames = frames;
    }

    /// Gives control's notes to the shard. True if there were any.
    fn tell_shard(&mut self, now: Instant) -> bool {
        let any = !self.notes.is_empty();
        for note in self.notes.drain(..) {
            self.shard.on_note(now, note, self.mux.shard_out());
        }
        any
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut NodeOut) {
        self.mux.handle_timeout(now, &mut self.news, out);
        self.tunnels.handle_timeout(now, &mut self.mux, &mut self.notes, out);
        self.shard.handle_timeout(now, self.mux.shard_out());
        self.settle(now, out);
    }

    /// When `handle_timeout` is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        Deadline::earliest(
            self.shard.poll_timeout(),
            Deadline::earliest(self.mux.poll_timeout(), self.tunnels.poll_timeout()),
        )
    }

    /// Takes messages for a connection, at most about `budget_bytes`.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        conn: ConnKey,
        budget_bytes: usize,
        batch: &mut TxBatch,
        out: &mut NodeOut,
    ) -> TxState {
        let state = self.mux.poll_transmit(now, conn, budget_bytes, batch, &mut self.shard, out);
        self.settle(now, out);
        state
    }

    /// How many bytes may be read from a target now; 0 = wait for `Readable`.
    pub fn read_budget(&mut self, stream: StreamKey) -> usize {
        self.shard.read_budget(stream)
    }

    fn settle(&mut self, now: Instant, out: &mut NodeOut) {
        loop {
            self.mux.flush_shard(now, &mut self.shard, out, &mut self.shard_notes);
            for note in std::mem::take(&mut self.shard_notes) {
                self.tunnels.on_shard_note(now, &note, &mut self.mux, &mut self.notes, out);
            }
            for news in std::mem::take(&mut self.news) {
                self.tunnels.on_session_news(now, news, &mut self.mux, &mut self.notes, &self.shard, out);
            }
            self.tunnels.quit_idle(now, &self.shard, &mut self.mux, &mut self.notes, out);
            self.mux.refresh_usable(now, &mut self.notes);
            if !self.tell_shard(now) {
                break;
            }
        }
    }

    /// The tunnels, for `status` and health.
    #[must_use]
    pub const fn tunnels(&self) -> &Tunnels {
        &self.tunnels
    }

    /// The shard, for counters and state.
    #[must_use]
    pub const fn shard(&self) -> &Shard {
        &self.shard
    }

    /// The sessions, for gauges.
    #[must_use]
    pub const fn mux(&self) -> &Mux {
        &self.mux
    }

    /// Checks what must hold between any two calls.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check_invariants(&self) {
        self.mux.check_invariants();
        self.shard.check_invariants();
        self.mux.check_waiting(|cid, session| self.shard.is_bound(cid, session));
    }
}
