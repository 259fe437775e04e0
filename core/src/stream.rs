//! One stream at one node: two ends, two halves between them, and the rules of
//! offsets, FIN and RST.
//!
//! The same type serves the origin (client socket ↔ session), the owner
//! (session ↔ session) and the agent (session ↔ target socket): end 0 points to
//! the client, end 1 to the target; half 0 flows up (0 → 1), half 1 down.
//! Keeps S1, S2, S3, S4, S9, B1. Knows no policy: who may open what is the
//! shard's business.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::credit::RecvWindow;
use crate::error::RstCode;
use crate::id::{Cid, Fence, ListenerIx, SessionKey, SockKey};
use crate::planted;
use crate::time::Instant;

/// What is at one end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing yet: the target is being connected, or no route is known.
    Pending,
    /// A client or target connection of this node.
    Socket(SockKey),
    /// A session to the next node.
    Session(SessionKey),
}

/// How far a half is. Transitions are [`HALF_TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HalfState {
    /// Bytes may come.
    Open,
    /// The source has ended; its end is not yet passed to the sink.
    Ending,
    /// The end was passed to the sink, which has not confirmed it.
    Ended,
    /// The far end took the end of the half (`consumed` = final + 1).
    Done,
    /// The stream was reset.
    Aborted,
}

/// What happens to a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HalfEvent {
    /// FIN or EOF came from the source.
    Fin,
    /// Everything and the end was passed to the sink.
    Passed,
    /// The sink's side confirmed the end.
    Confirmed,
    /// RST from anywhere, an abort, or the loss of a session.
    Reset,
}

/// Every transition there is; a pair that is missing changes nothing.
pub const HALF_TABLE: &[(HalfState, HalfEvent, HalfState)] = &[
    (HalfState::Open, HalfEvent::Fin, HalfState::Ending),
    (HalfState::Ending, HalfEvent::Passed, HalfState::Ended),
    (HalfState::Ended, HalfEvent::Confirmed, HalfState::Done),
    (HalfState::Open, HalfEvent::Reset, HalfState::Aborted),
    (HalfState::Ending, HalfEvent::Reset, HalfState::Aborted),
    (HalfState::Ended, HalfEvent::Reset, HalfState::Aborted),
];

impl HalfState {
    /// The state after `event`.
    #[must_use]
    pub fn after(self, event: HalfEvent) -> Self {
        HALF_TABLE.iter().find(|(s, e, _)| *s == self && *e == event).map_or(self, |t| t.2)
    }
}

/// What a DATA frame from a session is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataVerdict {
    /// New bytes from this position of the payload on.
    Deliver {
        /// Bytes at its start that were had before.
        skip: usize,
    },
    /// Nothing new.
    Duplicate,
    /// Starts beyond the next expected offset.
    Gap,
    /// Ends beyond the granted limit.
    OverCredit,
    /// Ends beyond the final offset, or the half ended.
    AfterFin,
}

/// What a FIN frame from a session is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinVerdict {
    /// The half ends here.
    End,
    /// Said before, same offset.
    Duplicate,
    /// Not where the bytes end, or another offset than before.
    Mismatch,
}

/// Bytes in their order. Nearly always empty, and then it holds no memory.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "8 bytes in every idle half instead of 32")]
pub struct Waiting(Option<Box<VecDeque<Bytes>>>);

impl Waiting {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|q| q.is_empty())
    }

    /// Waits behind everything else.
    pub fn push_back(&mut self, bytes: Bytes) {
        self.0.get_or_insert_default().push_back(bytes);
    }

    /// Is next again.
    pub fn push_front(&mut self, bytes: Bytes) {
        self.0.get_or_insert_default().push_front(bytes);
    }

    /// The next bytes.
    pub fn pop_front(&mut self) -> Option<Bytes> {
        self.0.as_mut()?.pop_front()
    }

    /// Everything that waits, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.0.iter().flat_map(|q| q.iter())
    }

    /// Gives the memory back if nothing waits.
    pub fn release(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}

impl FromIterator<Bytes> for Waiting {
    fn from_iter<I: IntoIterator<Item = Bytes>>(all: I) -> Self {
        let all: VecDeque<Bytes> = all.into_iter().collect();
        Self((!all.is_empty()).then(|| Box::new(all)))
    }
}

/// One direction of a stream at this node.
#[derive(Debug)]
pub struct Half {
    /// How far it is.
    pub state: HalfState,
    /// Next offset expected from the source = bytes received.
    pub next: u64,
    /// Offset the source may send up to (sessions only).
    pub granted: u64,
    /// Bytes passed on to the sink (handed to its session or socket).
    pub sent: u64,
    /// Offset the sink's session lets us send up to.
    pub limit: u64,
    /// What the far end consumed (`final + 1` after its end).
    pub consumed: u64,
    /// Payload bytes handed to the sink's session and not yet on the wire.
    pub queued: u64,
    /// Received and not yet passed on: early data, or the sink's limit is lower.
    pub waiting: Waiting,
    /// The receive window, at the node that owns the sink socket.
    pub window: Option<Box<RecvWindow>>,
    /// The source socket was told not to read.
    pub paused: bool,
    /// The CREDIT last passed on to the source (owner).
    pub told: (u64, u64),
}

impl Half {
    /// A fresh half.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: HalfState::Open,
            next: 0,
            granted: 0,
            sent: 0,
            limit: 0,
            consumed: 0,
            queued: 0,
            waiting: Waiting(None),
            window: None,
            paused: false,
            told: (0, 0),
        }
    }

    /// Payload bytes received and not yet passed to the sink.
    #[must_use]
    pub const fn waiting_bytes(&self) -> u64 {
        self.next - self.sent
    }

    /// Judges DATA without changing anything.
    #[must_use]
    pub fn judge_data(&self, off: u64, len: u64) -> DataVerdict {
        let Some(end) = off.checked_add(len) else { return DataVerdict::OverCredit };
        if !matches!(self.state, HalfState::Open) {
            return if end <= self.next || planted::on(2039) { DataVerdict::Duplicate } else { DataVerdict::AfterFin };
        }
        if end < self.next || (end == self.next && !planted::on(12)) {
            return DataVerdict::Duplicate;
        }
        if off > self.next {
            return DataVerdict::Gap;
        }
        if end > self.granted {
            return DataVerdict::OverCredit;
        }
        let skip = self.next - off;
        let skip = if planted::on(12) { skip.min(len.saturating_sub(1)) } else { skip };
        DataVerdict::Deliver { skip: skip as usize }
    }

    /// Judges FIN without changing anything.
    #[must_use]
    pub const fn judge_fin(&self, final_off: u64) -> FinVerdict {
        match (self.state, final_off == self.next) {
            (HalfState::Open, true) => FinVerdict::End,
            (_, true) => FinVerdict::Duplicate,
            (_, false) => FinVerdict::Mismatch,
        }
    }

    /// Judges and applies CREDIT from the sink's session. `None` is a glitch:
    /// an offset beyond what was sent, or nothing new (attack 40).
    pub fn on_credit(&mut self, consumed: u64, limit: u64) -> Option<CreditEffect> {
        let passed_end = matches!(self.state, HalfState::Ended | HalfState::Done);
        let most = if passed_end { self.sent.saturating_add(1) } else { self.sent };
        if consumed > most {
            return None;
        }
        let raised = limit > self.limit;
        let progress = consumed > self.consumed;
        if !raised && !progress {
            return None;
        }
        self.limit = self.limit.max(limit);
        self.consumed = self.consumed.max(consumed);
        if passed_end && self.consumed == self.sent + 1 {
            self.state = self.state.after(HalfEvent::Confirmed);
        }
        Some(CreditEffect { raised, progress })
    }

    /// Nothing more will happen in this half.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.state, HalfState::Done)
    }
}

impl Default for Half {
    fn default() -> Self {
        Self::new()
    }
}

/// What a CREDIT changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditEffect {
    /// More may be sent.
    pub raised: bool,
    /// The far end consumed more.
    pub progress: bool,
}

/// What this node is to the stream.
#[derive(Debug)]
pub enum Part {
    /// The hub that accepted the client.
    Origin(Box<Origin>),
    /// A hub between origin and agent.
    Owner,
    /// The agent.
    Agent,
}

/// What only the origin keeps.
#[derive(Debug)]
pub struct Origin {
    /// Which listener accepted the client.
    pub listener: ListenerIx,
    /// Attachments tried, so that none is asked twice.
    pub tried: Box<[Fence]>,
    /// The last definite no, told to the client when no candidate is left.
    pub last_no: Option<RstCode>,
    /// First bytes, kept until OPEN_ACK for the next candidate.
    pub retained: Waiting,
    /// The routes were asked for afresh once already.
    pub asked_afresh: bool,
    /// The end of `open.timeout`.
    pub give_up_at: Instant,
    /// Waits for a route, or for the client's first byte.
    pub waits: OriginWait,
    /// For the stream record.
    pub times: OpenTimes,
    /// For the stream record: who carries it.
    pub carrier: Option<Carrier>,
    /// How often its session had been interrupted before, modulo 2^16: a
    /// larger count would cost every idle stream eight bytes.
    pub interruptions_before: u16,
    /// Secret of the OPEN.
    pub key: [u8; 16],
}

/// What an unopened stream waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginWait {
    /// The client's first byte (`open: first-byte`).
    FirstByte,
    /// A route.
    Route,
    /// The answer to OPEN.
    Answer,
    /// Nothing: it is open.
    Nothing,
}

/// When an open made progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenTimes {
    /// The client was accepted.
    pub accepted: Instant,
    /// A candidate was chosen (the last one).
    pub routed: Option<Instant>,
    /// OPEN_ACK came.
    pub opened: Option<Instant>,
    /// The first byte came back.
    pub first_byte: Option<Instant>,
}

/// Who carries a stream, for its record.
#[derive(Clone, Debug)]
pub struct Carrier {
    /// The agent.
    pub agent_id: crate::id::AgentId,
    /// The hub whose tunnel is used.
    pub owner: crate::id::Name,
    /// Whether that is this hub.
    pub local: bool,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    /// Its present wire name (an origin that retries mints a new one).
    pub cid: Cid,
    /// What it is bound under.
    pub fence: Fence,
    /// Client side, target side.
    pub ends: [End; 2],
    /// Up, down.
    pub halves: [Half; 2],
    /// OPEN_ACK(ok) was sent or received.
    pub open: bool,
    /// This node's part.
    pub part: Part,
    /// When an unopened stream is given up; armed in the shard's timers.
    pub deadline: Option<Instant>,
}

impl Stream {
    /// Which end a session is, if the stream is bound to it.
    #[must_use]
    pub fn side_of(&self, session: SessionKey) -> Option<usize> {
        self.ends.iter().position(|e| *e == End::Session(session))
    }

    /// Which end is a socket of this node.
    #[must_use]
    pub fn socket(&self) -> Option<(usize, SockKey)> {
        self.ends.iter().enumerate().find_map(|(side, e)| if let End::Socket(k) = e { Some((side, *k)) } else { None })
    }

    /// Whether the bytes of half 0 are kept for the next candidate, also those
    /// that were passed on.
    #[must_use]
    pub const fn keeps(&self) -> bool {
        !self.open && matches!(self.part, Part::Origin(_))
    }

    /// Payload bytes this stream holds in the shard and in its sockets
    /// (what its sessions hold, they count themselves).
    #[must_use]
    pub fn held(&self) -> u64 {
        // Bytes that a candidate has taken are in memory until it says yes.
        let mut held = if self.keeps() { self.halves[0].sent } else { 0 };
        for (half, sink) in self.halves.iter().zip([1, 0]) {
            held += half.waiting_bytes();
            if matches!(self.ends[sink], End::Socket(_)) {
                held += half.sent.saturating_sub(half.consumed.min(half.sent));
            }
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [HalfState; 5] =
        [HalfState::Open, HalfState::Ending, HalfState::Ended, HalfState::Done, HalfState::Aborted];
    const EVENTS: [HalfEvent; 4] = [HalfEvent::Fin, HalfEvent::Passed, HalfEvent::Confirmed, HalfEvent::Reset];

    #[test]
    fn every_pair_of_state_and_event_has_its_line() {
        let mut lines = String::new();
        for s in STATES {
            for e in EVENTS {
                lines.push_str(&format!("{s:?} + {e:?} -> {:?}\n", s.after(e)));
            }
        }
        assert_eq!(
            lines,
            "Open + Fin -> Ending\nOpen + Passed -> Open\nOpen + Confirmed -> Open\nOpen + Reset -> Aborted\n\
             Ending + Fin -> Ending\nEnding + Passed -> Ended\nEnding + Confirmed -> Ending\nEnding + Reset -> Aborted\n\
             Ended + Fin -> Ended\nEnded + Passed -> Ended\nEnded + Confirmed -> Done\nEnded + Reset -> Aborted\n\
             Done + Fin -> Done\nDone + Passed -> Done\nDone + Confirmed -> Done\nDone + Reset -> Done\n\
             Aborted + Fin -> Aborted\nAborted + Passed -> Aborted\nAborted + Confirmed -> Aborted\nAborted + Reset -> Aborted\n"
        );
    }

    fn half(state: HalfState, next: u64, granted: u64) -> Half {
        Half { state, next, granted, ..Half::new() }
    }

    #[test]
    fn data_is_judged_by_position_then_credit() {
        use DataVerdict as V;
        let h = half(HalfState::Open, 100, 200);
        for (off, len, want) in [
            (100, 100, V::Deliver { skip: 0 }),
            (90, 20, V::Deliver { skip: 10 }),
            (50, 50, V::Duplicate),
            (0, 100, V::Duplicate),
            (101, 1, V::Gap),
            (100, 101, V::OverCredit),
            (u64::MAX, 2, V::OverCredit),
        ] {
            assert_eq!(h.judge_data(off, len), want, "{off}+{len}");
        }
        let ended = half(HalfState::Ending, 100, 200);
        assert_eq!(ended.judge_data(100, 1), V::AfterFin);
        assert_eq!(ended.judge_data(0, 100), V::Duplicate);
    }

    #[test]
    fn fin_must_match_and_may_repeat() {
        let h = half(HalfState::Open, 10, 10);
        assert_eq!(h.judge_fin(10), FinVerdict::End);
        assert_eq!(h.judge_fin(11), FinVerdict::Mismatch);
        assert_eq!(h.judge_fin(9), FinVerdict::Mismatch);
        let h = half(HalfState::Ended, 10, 10);
        assert_eq!(h.judge_fin(10), FinVerdict::Duplicate);
        assert_eq!(h.judge_fin(11), FinVerdict::Mismatch);
    }

    #[test]
    fn the_end_is_confirmed_by_final_plus_one_only() {
        let mut h = Half { state: HalfState::Ended, next: 10, sent: 10, limit: 10, ..Half::new() };
        assert!(h.on_credit(10, 10).is_some());
        assert!(!h.is_done());
        assert!(h.on_credit(12, 10).is_none());
        assert!(h.on_credit(11, 10).is_some());
        assert!(h.is_done());
        assert!(h.on_credit(11, 10).is_none(), "a replayed CREDIT changes nothing");
    }

    #[test]
    fn an_end_that_was_not_sent_cannot_be_confirmed() {
        let mut h = Half { next: 10, sent: 10, limit: 10, ..Half::new() };
        assert!(h.on_credit(11, 10).is_none());
        assert_eq!(h.consumed, 0);
    }
}
