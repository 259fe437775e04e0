//! The receiving half of a session: which numbers have arrived and when they
//! are acknowledged. It keeps the highest contiguous number only: over one
//! ordered connection a gap is a protocol error, never a reordering (S9).
//! It must not know what a message holds.

use std::time::Duration;

use crate::error::{ProtocolError, ProtocolErrorKind};
use crate::time::{Deadline, Instant};

/// Bytes received after which an ACK is due (semantics 2).
const ACK_BYTES: usize = 64 * 1024;
/// Messages received after which an ACK is due; it bounds the peer's replay
/// queue when messages are small.
const ACK_MESSAGES: u32 = 64;
/// Time after which an ACK is due (semantics 2).
const ACK_DELAY: Duration = Duration::from_millis(20);

/// What a message's number says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// To be taken.
    New,
    /// Had arrived before.
    Duplicate,
}

#[derive(Debug, Default)]
pub(super) struct Rx {
    /// Highest contiguous number received.
    received: u64,
    /// Highest number this connection's peer was told of.
    told: u64,
    bytes: usize,
    messages: u32,
    /// Set by the byte or message count, by a duplicate, or by the timer.
    due: bool,
    /// Armed by the first message that is not acknowledged.
    timer: Option<Instant>,
}

impl Rx {
    pub(super) const fn received(&self) -> u64 {
        self.received
    }

    /// What was not acknowledged counts as not received (planted bugs 12, 37).
    pub(super) const fn forget_unacknowledged(&mut self) {
        self.received = self.told;
    }

    /// Judges a message's number; 0 is unnumbered.
    pub(super) fn on_number(&mut self, now: Instant, number: u64, len: usize) -> Result<Arrival, ProtocolError> {
        if number == 0 {
            return Ok(Arrival::New);
        }
        if number <= self.received {
            // The peer did not hear the ACK, or it would not send this again.
            self.due = true;
            return Ok(Arrival::Duplicate);
        }
        if number != self.received + 1 {
            return Err(ProtocolError::new(
                ProtocolErrorKind::Numbering,
                format!("expected message number {}, got {number}", self.received + 1),
            ));
        }
        self.received = number;
        self.bytes = self.bytes.saturating_add(len);
        self.messages += 1;
        if self.bytes >= ACK_BYTES || self.messages >= ACK_MESSAGES {
            self.due = true;
        }
        if self.timer.is_none() {
            self.timer = Some(now.after(ACK_DELAY));
        }
        Ok(Arrival::New)
    }

    pub(super) fn ack_due(&self, now: Instant) -> bool {
        self.due || self.timer.is_some_and(|at| now >= at)
    }

    /// The number to acknowledge, if that is due, or if it costs nothing
    /// because it rides on another message and says something new.
    pub(super) fn take_ack(&mut self, now: Instant, rides: bool) -> Option<u64> {
        if !(self.ack_due(now) || (rides && self.received > self.told)) {
            return None;
        }
        self.on_connection();
        Some(self.received)
    }

    /// The peer knows (or learns in the handshake) everything received so far.
    pub(super) const fn on_connection(&mut self) {
        self.told = self.received;
        self.bytes = 0;
        self.messages = 0;
        self.due = false;
        self.timer = None;
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.timer.is_some_and(|at| now >= at) {
            // Disarmed, so that the deadline does not fire twice (B9).
            self.timer = None;
            self.due = true;
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Deadline> {
        if self.due { None } else { self.timer.map(|at| Deadline { at, why: "session ack" }) }
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.told <= self.received, "acknowledged more than was received");
        assert_eq!(self.received - self.told, u64::from(self.messages), "every untold message is counted");
        assert!(
            self.told == self.received || self.due || self.timer.is_some(),
            "an unacknowledged message has a timer or a due ACK"
        );
    }
}
