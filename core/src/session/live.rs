//! Liveness of a session's connection: when the peer was last heard, PING and
//! PONG, and the round-trip time. Any message counts as life, and so does any
//! part of one; own writes never do (L9). It must not know what the messages were.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::Liveness;
use crate::planted;
use crate::time::{Deadline, Instant};
use crate::wire::{Frame, NUMBER_MAX};

/// PINGs remembered at once: enough for a round trip of 16 ping intervals.
const OUTSTANDING_MAX: usize = 16;
/// Samples kept between two readings.
const SAMPLES_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Live {
    config: Liveness,
    heard: Instant,
    next_ping: Instant,
    ping_due: bool,
    token: u64,
    outstanding: VecDeque<(u64, Instant)>,
    /// The latest PING to answer; a flood of them gets one PONG (B8).
    pong: Option<u64>,
    /// Who looks at the session has seen that the peer is suspect.
    suspect_seen: bool,
    dead_reported: bool,
    smoothed: Option<Duration>,
    samples: VecDeque<Duration>,
}

impl Live {
    pub(super) fn new(config: Liveness, draw: u64, now: Instant) -> Self {
        Self {
            config,
            heard: now,
            next_ping: now.after(config.ping),
            ping_due: false,
            token: draw & NUMBER_MAX,
            outstanding: VecDeque::with_capacity(OUTSTANDING_MAX),
            pong: None,
            suspect_seen: false,
            dead_reported: false,
            smoothed: None,
            samples: VecDeque::with_capacity(SAMPLES_MAX),
        }
    }

    /// A connection begins or ends: nothing asked on the old one is answered
    /// on the new one.
    pub(super) fn on_connection(&mut self, now: Instant) {
        self.heard = now;
        self.next_ping = now.after(self.config.ping);
        self.ping_due = false;
        self.outstanding.clear();
        self.pong = None;
        self.suspect_seen = false;
        self.dead_reported = false;
    }

    /// Other timers. They count from now: a peer that was silent for long under
    /// the earlier ones, which was its right, gets the time of the new ones.
    pub(super) fn reload(&mut self, now: Instant, config: Liveness) {
        if config == self.config {
            return;
        }
        self.config = config;
        self.heard = self.heard.max(now);
        self.suspect_seen = false;
        self.next_ping = self.next_ping.min(now.after(config.ping));
    }

    pub(super) fn on_heard(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
        self.suspect_seen = false;
    }

    pub(super) const fn on_ping(&mut self, token: u64) {
        self.pong = Some(token);
    }

    /// Whether the PONG answers a PING of this connection.
    pub(super) fn on_pong(&mut self, now: Instant, token: u64) -> bool {
        let Some(ix) = self.outstanding.iter().position(|(t, _)| *t == token) else { return false };
        let Some((_, sent)) = self.outstanding.drain(..=ix).next_back() else { return false };
        let sample = now.since(sent);
        self.smoothed = Some(match self.smoothed {
            None => sample,
            Some(old) => (old * 7 + sample) / 8,
        });
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        true
    }

    pub(super) const fn wants_transmit(&self) -> bool {
        self.pong.is_some() || self.ping_due
    }

    pub(super) fn next_frame(&mut self, now: Instant) -> Option<Frame> {
        if let Some(token) = self.pong.take() {
            return Some(Frame::Pong { token });
        }
        if !self.ping_due {
            return None;
        }
        self.ping_due = false;
        self.token = (self.token + 1) & NUMBER_MAX;
        if self.outstanding.len() == OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((self.token, now));
        if planted::on(43) {
            self.on_heard(now);
        }
        Some(Frame::Ping { token: self.token })
    }

    /// Runs the timers; true when the peer is to be given up, once.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        if now >= self.next_ping {
            self.ping_due = true;
            self.next_ping = now.after(self.config.ping);
        }
        self.suspect_seen |= self.is_suspect(now);
        let after = if planted::on(2046) { self.config.dead / 2 } else { self.config.dead };
        let dead = !self.dead_reported && now.since(self.heard) >= after;
        self.dead_reported |= dead;
        dead
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        let ping = Deadline { at: self.next_ping, why: "session ping" };
        let dead =
            (!self.dead_reported).then(|| Deadline { at: self.heard.after(self.config.dead), why: "session dead" });
        let suspect = (!self.suspect_seen)
            .then(|| Deadline { at: self.heard.after(self.config.suspect), why: "session suspect" });
        Deadline::earliest(Deadline::earliest(Some(ping), suspect), dead)
    }

    pub(super) fn is_suspect(&self, now: Instant) -> bool {
        now.since(self.heard) >= self.config.suspect
    }

    pub(super) const fn rtt(&self) -> Option<Duration> {
        self.smoothed
    }

    pub(super) fn take_rtt_samples(&mut self, into: &mut Vec<Duration>) {
        into.extend(self.samples.drain(..));
    }
}
