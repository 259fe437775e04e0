//! A hub: control, sessions and shards composed into one machine. The simulator,
//! fuzzers and the one-core driver run this object. [`Hub::new`] has one shard
//! and carries notes at once; [`Hub::split`] has several and leaves notes to the
//! caller, as threads would.
//!
//! Contract (checked by tests):
//! - C1 `now` never decreases. C2 After any call everything due is in `out`;
//!   there is no hidden queue except session queues (reported by `out.wake` and
//!   [`Hub::poll_transmit`]) and chunked work (reported by `poll_timeout`).
//! - C3 One input does O(1) work plus what it carries; ends of many streams come
//!   in chunks of 256 a call.
//! - C4 A peer's misbehaviour never returns an error here: it becomes a close, a
//!   reset and a counter. C5 Stale keys and tokens are ignored.

mod attach;
mod control;
mod credential;
mod drain;
mod epochs;
mod flap;
mod handshake;
mod leases;
mod mesh;
mod mode;
mod notice;
mod proof;
mod readiness;
mod recovery;
mod registry;
mod reload;
mod routes;
mod scope;
mod shadow;
mod split;
mod trust;
mod twin;
mod upkeep;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{HubConfig, Mode};
use crate::error::RstCode;
use crate::id::{ConnKey, Incarnation, ListenerIx, Name, SockKey, StreamKey};
use crate::mux::{Input, Mux, NodeOut, SessionNews};
use crate::observed::ShardCounters;
use crate::registry::HubRun;
use crate::rng::Seed;
use crate::session::{TxBatch, TxState};
use crate::shard::{ControlNote, Role, Shard, ShardNote, shard_of_lane};
use crate::stream::Stream;
use crate::time::{Deadline, Instant};
use crate::wire::Frame;

pub use control::Control;
pub use drain::DrainView;
pub use leases::PeerLease;
pub use readiness::{MESH_GRACE, Unready};
pub use reload::ReloadError;
pub use view::{LinkTotals, LinkView, TunnelView};

/// A hub.
#[derive(Debug)]
pub struct Hub {
    control: Control,
    mux: Mux,
    /// Exactly one, unless it is split.
    shards: Vec<Shard>,
    /// Notes wait for the caller.
    split: Option<split::Split>,
    /// What was above a limit when that was lowered.
    over: reload::Over,
    notes: Vec<ControlNote>,
    shard_notes: Vec<ShardNote>,
    news: Vec<SessionNews>,
    frames: Vec<Frame>,
}

impl Hub {
    /// A hub that starts now. Its dials and first registry operations are in `out`.
    #[must_use]
    pub fn new(config: Arc<HubConfig>, seed: Seed, now: Instant, out: &mut NodeOut) -> Self {
        let mut hub = Self::idle(config, &seed, now);
        hub.start(now, out);
        hub
    }

    /// A hub with one shard that did not dial anybody yet.
    fn idle(config: Arc<HubConfig>, seed: &Seed, now: Instant) -> Self {
        let incarnation = Incarnation(seed.fork("incarnation").rng().next_u64());
        let shard = Shard::new(
            Role::Hub { listeners: config.listeners.clone(), open: config.open, selection: config.selection.clone() },
            config.limits.clone(),
            incarnation,
            0,
            seed,
        );
        Self {
            mux: Mux::new(&config.limits),
            control: Control::new(config, incarnation, seed, now),
            shards: vec![shard],
            split: None,
            over: reload::Over::default(),
            notes: Vec::new(),
            shard_notes: Vec::new(),
            news: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// Dials, and tells the shards what they decide by: the first client may come
    /// before anything else does.
    fn start(&mut self, now: Instant, out: &mut NodeOut) {
        self.control.start(now, out);
        self.control.publish_routes(&self.mux, &mut self.notes);
        for note in self.notes.drain(..) {
            for shard in &mut self.shards {
                shard.on_note(now, note.clone(), self.mux.shard_out());
            }
        }
    }

    /// A client was accepted. Its stream's key names it from now on.
    ///
    /// # Errors
    /// When a limit refuses it; the caller resets the connection.
    pub fn open(
        &mut self,
        now: Instant,
        listener: ListenerIx,
        sock: SockKey,
        out: &mut NodeOut,
    ) -> Result<StreamKey, RstCode> {
        let ix = self.shard_of_client(sock);
        let Some(shard) = self.shards.get_mut(ix) else { return Err(RstCode::Protocol) };
        let result = shard.open(now, listener, sock, self.mux.shard_out());
        self.settle_shard(now, ix, out);
        result.map(|key| key.in_shard(ix as u8))
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut NodeOut) {
        match input {
            Input::Message { conn, message } => {
                if self.mux.carried_by(conn).is_some() {
                    self.on_session_message(now, conn, &message, out);
                } else {
                    self.control.on_handshake_message(now, conn, &message, &mut self.mux, &mut self.notes, out);
                }
            }
            Input::Heard { conn } => self.mux.on_heard(now, conn),
            Input::Socket { stream, event } => {
                let (ix, key) = stream.parts();
                let ix = usize::from(ix);
                if let Some(shard) = self.shards.get_mut(ix) {
                    shard.on_socket(now, key, event, self.mux.shard_out());
                }
                return self.settle_shard(now, ix, out);
            }
            Input::Target { .. } | Input::Checked { .. } => {}
            Input::Connected { target, conn, dialect, peer } => {
                self.control.on_connected(now, target, conn, dialect, peer, &mut self.mux, out);
            }
            Input::DialFailed { target } => self.control.on_dial_failed(now, target, out),
            Input::Accepted { conn, dialect, principal } => {
                self.control.on_accepted(now, conn, dialect, principal, &mut self.mux, out);
            }
            Input::Disconnected { conn, cause } => {
                self.control.on_handshake_lost(now, conn, cause, out);
                self.mux.on_disconnected(now, conn, cause, &mut self.news, out);
            }
            Input::Registry { token, result } => {
                self.control.on_registry(now, token, result, &mut self.mux, &mut self.notes, out);
            }
            Input::Signed { conn, result } => {
                self.control.on_signed(now, conn, result, &mut self.mux, &mut self.notes, out);
            }
            Input::Verified { conn, result } => {
                let held = self.control.on_verified(now, conn, result, &mut self.mux, &mut self.notes, out);
                for message in held {
                    // A note of the session comes before its first frame.
                    self.tell_shards(now, out);
                    self.on_session_message(now, conn, &message, out);
                }
            }
            Input::Judged { session, grant } => {
                self.control.on_judged(now, session, grant, &mut self.mux, &mut self.notes, out);
            }
            Input::Distrust { session } => {
                self.control.distrust(now, session, &mut self.mux, &mut self.notes, out);
            }
            Input::Token { .. } => {}
            Input::Drain(times) => self.control.drain(now, times, &mut self.mux, &mut self.notes, out),
            Input::Undrain => self.control.undrain(now, &mut self.mux, out),
            Input::Shutdown => {
                self.notes.push(ControlNote::Shutdown);
                self.settle(now, out);
                self.control.shutdown(now, &mut self.mux, &mut self.notes, out);
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
                let ix = shard_of_lane(cid.lane(), self.shards.len());
                if let Some(split) = &mut self.split {
                    split.post_frame(ix, key, cid, epoch, body, out);
                } else if let Some(shard) = self.shards.get_mut(ix) {
                    shard.on_frame(now, key, cid, epoch, body, self.mux.shard_out());
                }
            } else {
                self.control.on_frame(now, key, frame, &mut self.mux, &mut self.notes, out);
                // A stream frame behind it must find what it changed.
                self.tell_shards(now, out);
            }
        }
        if let Err(e) = result {
            self.control.on_violation(now, key, &e, &mut self.mux, &mut self.notes, out);
        }
        self.frames = frames;
    }

    /// Gives control's notes to the shard, or to the caller. True if the shard
    /// took any.
    fn tell_shards(&mut self, now: Instant, out: &mut NodeOut) -> bool {
        self.control.publish_routes(&self.mux, &mut self.notes);
        if let Some(split) = &mut self.split {
            split.post(self.shards.len(), &mut self.notes, out);
            return false;
        }
        let any = !self.notes.is_empty();
        for note in self.notes.drain(..) {
            if let Some(shard) = self.shards.first_mut() {
                shard.on_note(now, note, self.mux.shard_out());
            }
        }
        any
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut NodeOut) {
        self.mux.handle_timeout(now, &mut self.news, out);
        self.control.handle_timeout(now, &mut self.mux, &mut self.notes, out);
        self.shards_timeout(now, out);
        self.settle(now, out);
    }

    /// When `handle_timeout` is due next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        Deadline::earliest(
            self.shards.iter().fold(None, |due, s| Deadline::earliest(due, s.poll_timeout())),
            Deadline::earliest(self.mux.poll_timeout(), self.control.poll_timeout()),
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
        let state = match (&mut self.split, self.shards.as_mut_slice()) {
            (None, [shard]) => self.mux.poll_transmit(now, conn, budget_bytes, batch, shard, out),
            (split, shards) => {
                let mut notes = Vec::new();
                let state = self.mux.poll_transmit_split(now, conn, budget_bytes, batch, shards, out, &mut notes);
                if let Some(split) = split {
                    split.post_to_control(notes, out);
                }
                state
            }
        };
        self.settle(now, out);
        state
    }

    /// How many bytes may be read from a client now; 0 = wait for `Readable`.
    pub fn read_budget(&mut self, stream: StreamKey) -> usize {
        let (ix, key) = stream.parts();
        self.shards.get_mut(usize::from(ix)).map_or(0, |s| s.read_budget(key))
    }

    /// A stream, for tests and `status`.
    #[must_use]
    pub fn stream(&self, key: StreamKey) -> Option<&Stream> {
        let (ix, key) = key.parts();
        self.shards.get(usize::from(ix))?.stream(key)
    }

    /// Lets notes, news and frames run between the parts until all is quiet.
    fn settle(&mut self, now: Instant, out: &mut NodeOut) {
        loop {
            if self.split.is_some() {
                self.mux.balance(now, &mut self.shards);
            } else if let Some(shard) = self.shards.first_mut() {
                self.mux.flush_shard(now, shard, out, &mut self.shard_notes);
            }
            for note in std::mem::take(&mut self.shard_notes) {
                self.control.on_shard_note(now, note, &mut self.mux, &mut self.notes, out);
            }
            for news in std::mem::take(&mut self.news) {
                let (SessionNews::Suspended { key, .. } | SessionNews::Over { key, .. }) = news;
                let streams_wait = self.shards.iter().any(|s| s.has_streams(key));
                self.control.on_session_news(now, news, &mut self.mux, &mut self.notes, streams_wait, out);
            }
            let shards = &self.shards;
            let carries = |key| shards.iter().any(|s| s.has_streams(key));
            self.control.quit_idle(now, carries, &mut self.mux, &mut self.notes, out);
            self.mux.refresh_usable(now, &mut self.notes);
            if !self.tell_shards(now, out) {
                break;
            }
        }
        self.over.sink(&self.shards);
    }

    /// This hub's run.
    #[must_use]
    pub const fn run(&self) -> &HubRun {
        self.control.run()
    }

    /// The shards, for state; one, unless the hub is split.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Totals of all shards since the start.
    #[must_use]
    pub fn counters(&self) -> ShardCounters {
        let mut sum = ShardCounters::default();
        self.shards.iter().for_each(|s| sum.add(s.counters()));
        sum
    }

    /// Live streams of all shards.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.shards.iter().map(Shard::streams).sum()
    }

    /// Streams of all shards that wait for an interrupted session.
    #[must_use]
    pub fn suspended(&self) -> usize {
        self.shards.iter().map(Shard::suspended).sum()
    }

    /// Clients of a listener now, in all shards.
    #[must_use]
    pub fn clients(&self, listener: ListenerIx) -> u32 {
        self.shards.iter().map(|s| s.clients(listener)).sum()
    }

    /// Streams reset because a peer ignored its limit or offsets, by replica id.
    #[must_use]
    pub fn violations_by_peer(&self) -> BTreeMap<&Name, u64> {
        let mut sum = BTreeMap::new();
        for (peer, n) in self.shards.iter().flat_map(Shard::violations_by_peer) {
            *sum.entry(peer).or_default() += n;
        }
        sum
    }

    /// The sessions, for gauges.
    #[must_use]
    pub const fn mux(&self) -> &Mux {
        &self.mux
    }

    /// The control, for readiness and `status`.
    #[must_use]
    pub const fn control(&self) -> &Control {
        &self.control
    }

    /// The mode it runs in.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.control.config().mode
    }

    /// Whether a client of this connector could be carried now.
    #[must_use]
    pub fn could_open(&self, connector: &Name) -> bool {
        !self.control.is_closed() && self.control.has_candidate(connector, &self.mux)
    }

    /// Checks what must hold between any two calls.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check_invariants(&self) {
        self.mux.check_invariants();
        for shard in &self.shards {
            shard.check_invariants();
        }
        self.mux.check_waiting(|cid, session| self.shards.iter().any(|s| s.is_bound(cid, session)));
        self.control.check_invariants(&self.mux);
        self.check_shards();
    }
}
