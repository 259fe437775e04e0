//! What sockets tell a shard, and when they may be read.

use bytes::Bytes;

use super::{QUEUE_PER_STREAM_BYTES, Role, Shard, ShardOut, SockEvent, SockOp};
use crate::credit::{HOLD_UNDER_PRESSURE_BYTES, Pressure};
use crate::error::RstCode;
use crate::id::{Cid, SessionKey, SockKey, StreamKey};
use crate::observed::Side;
use crate::planted;
use crate::stream::{End, HalfEvent, HalfState, OriginWait, Part, Stream};
use crate::time::Instant;
use crate::wire::{Body, Frame};

fn side_name(side: usize) -> Side {
    if side == 0 { Side::Client } else { Side::Agent }
}

impl Shard {
    /// Something happened at the socket of a stream. A stale key is no error (C5).
    pub fn on_socket(&mut self, now: Instant, key: StreamKey, event: SockEvent, out: &mut ShardOut) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let Some((side, _)) = stream.socket() else { return };
        match event {
            SockEvent::Data(bytes) => self.on_read(now, key, side, bytes, out),
            SockEvent::Written(n) => {
                self.counters.bytes_to_sockets += n;
                let h = 1 - side;
                let half = &mut stream.halves[h];
                let n = n.min(half.sent.saturating_sub(half.consumed));
                half.consumed += n;
                self.socket_held -= n;
                self.grant(now, key, h, false, out);
            }
            SockEvent::ShutDown => {
                let h = 1 - side;
                let half = &mut stream.halves[h];
                if half.state == HalfState::Ended {
                    half.state = half.state.after(HalfEvent::Confirmed);
                    // The end takes one offset; from here on `held` no longer
                    // counts this half, because consumed covers sent.
                    self.socket_held -= half.sent - half.consumed.min(half.sent);
                    half.consumed = half.sent + 1;
                    self.grant(now, key, h, !planted::on(2011), out);
                    self.finish_if_done(now, key, side_name(side), out);
                }
            }
            SockEvent::Eof => {
                if let Part::Origin(o) = &stream.part
                    && o.waits == OriginWait::FirstByte
                {
                    // A probe that came and went: nothing was opened (semantics 3).
                    self.close_silently(now, key, out);
                    return;
                }
                let half = &mut stream.halves[side];
                if half.state == HalfState::Open {
                    half.state = half.state.after(HalfEvent::Fin);
                    self.pass_on(key, side, out);
                }
            }
            SockEvent::Aborted => {
                let code = if stream.open { RstCode::Abort } else { RstCode::Cancelled };
                self.reset(now, key, code, side_name(side), None, out);
            }
        }
    }

    fn on_read(&mut self, now: Instant, key: StreamKey, side: usize, bytes: Bytes, out: &mut ShardOut) {
        if bytes.is_empty() {
            return;
        }
        self.counters.bytes_from_sockets += bytes.len() as u64;
        let Some(stream) = self.streams.get_mut(key) else { return };
        let mut first = false;
        if let Part::Origin(o) = &mut stream.part
            && !stream.open
        {
            // Kept for the next candidate: only OPEN_ACK says this one took it.
            o.retained.push_back(bytes.clone());
            first = o.waits == OriginWait::FirstByte;
        }
        self.take(key, side, bytes, out);
        if first {
            self.try_open(now, key, out);
        }
    }

    /// How many bytes may be read from a stream's socket now. 0: do not read;
    /// [`SockOp::Readable`] follows when that changes.
    pub fn read_budget(&mut self, key: StreamKey) -> usize {
        let Some((side, _)) = self.streams.get(key).and_then(Stream::socket) else { return 0 };
        let (room, reason) = self.room(key, side);
        if room == 0
            && let Some(s) = self.streams.get_mut(key)
            && !s.halves[side].paused
        {
            s.halves[side].paused = true;
            match reason {
                Full::Credit => self.counters.paused_credit += 1,
                Full::Queue => self.counters.paused_queue += 1,
                Full::Budget => {
                    self.counters.paused_budget += 1;
                    self.throttled.insert(key);
                }
                Full::Everything => {
                    self.counters.paused_budget += 1;
                    self.starved.insert(key);
                }
            }
        }
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    fn room(&self, key: StreamKey, side: usize) -> (u64, Full) {
        let Some(s) = self.streams.get(key) else { return (0, Full::Credit) };
        let half = &s.halves[side];
        if half.state != HalfState::Open {
            return (0, Full::Credit);
        }
        let limit = match s.ends[1 - side] {
            End::Session(_) => half.limit,
            End::Pending | End::Socket(_) => self.limits.stream_window_initial_bytes,
        };
        let credit = if planted::on(25) { limit.wrapping_sub(half.next) } else { limit.saturating_sub(half.next) };
        if planted::on(27) && self.neighbour_stalls(key, side) {
            return (0, Full::Queue);
        }
        let queue = QUEUE_PER_STREAM_BYTES.saturating_sub(half.queued);
        let holds = half.queued + half.waiting_bytes();
        if self.pressure >= Pressure::High && holds >= HOLD_UNDER_PRESSURE_BYTES {
            return (0, Full::Budget);
        }
        let (most, reason) = if credit <= queue { (credit, Full::Credit) } else { (queue, Full::Queue) };
        // The cap is asked last: who has no credit waits for that (B3).
        if most > self.room && !planted::on(2014) {
            return (self.room, Full::Everything);
        }
        (most, reason)
    }

    /// Whether another stream of the session this one is read for waits for
    /// credit (planted bug 27).
    fn neighbour_stalls(&self, key: StreamKey, side: usize) -> bool {
        let Some(End::Session(link)) = self.streams.get(key).map(|s| s.ends[1 - side]) else { return false };
        let stalls = |s: &Stream| s.open && s.halves[side].next >= s.halves[side].limit;
        let Some(info) = self.sessions.get(&link) else { return false };
        info.streams.iter().any(|other| *other != key && self.streams.get(*other).is_some_and(stalls))
    }

    /// Tells the source socket of half `h` to read again, if it was paused and may.
    pub(super) fn wake_source(&mut self, key: StreamKey, h: usize, out: &mut ShardOut) {
        let Some(s) = self.streams.get(key) else { return };
        if !s.halves[h].paused {
            return;
        }
        let End::Socket(sock) = s.ends[h] else { return };
        match self.room(key, h) {
            (0, Full::Everything) => return self.starved.insert(key),
            (0, Full::Credit | Full::Queue | Full::Budget) => return,
            _ => {}
        }
        if let Some(s) = self.streams.get_mut(key) {
            s.halves[h].paused = false;
        }
        out.socks.push((sock, SockOp::Readable));
    }

    /// Payload of a stream left a session's queue for the wire.
    pub fn on_released(&mut self, now: Instant, cid: Cid, session: SessionKey, bytes: u64, out: &mut ShardOut) {
        let Some(&key) = self.by_cid.get(&cid) else { return };
        let Some(s) = self.streams.get_mut(key) else { return };
        let Some(side) = s.side_of(session) else { return };
        let h = 1 - side;
        let half = &mut s.halves[h];
        half.queued = half.queued.saturating_sub(bytes);
        if self.throttled.contains(&key) && half.window.is_none() && half.limit > half.granted {
            // A limit that pressure held back: this stream may hold little
            // enough now, and no further CREDIT may come to say so (L7).
            self.grant(now, key, h, true, out);
        }
        self.wake_source(key, h, out);
    }

    /// After consumption, or when pressure fell: tells the source of half `h`
    /// what was consumed and what it may send.
    pub(super) fn grant(&mut self, now: Instant, key: StreamKey, h: usize, flush: bool, out: &mut ShardOut) {
        let pressure = self.pressure;
        let Some(s) = self.streams.get_mut(key) else { return };
        let End::Session(source) = s.ends[h] else { return };
        let half = &mut s.halves[h];
        let held = half.sent.saturating_sub(half.consumed) + half.waiting_bytes();
        let credit = if let Some(w) = half.window.as_deref_mut() {
            let consumed = if planted::on(24) { half.consumed.max(half.next) } else { half.consumed };
            let credit = w.on_consumed(now, consumed, held, flush, pressure);
            half.granted = half.granted.max(w.granted());
            if w.throttled() && pressure >= Pressure::High {
                self.throttled.insert(key);
            }
            credit
        } else {
            let more = if planted::on(2032) { half.consumed.saturating_add(65_536) } else { 0 };
            let wanted = half.limit.max(half.granted).max(more);
            let raise = pressure < Pressure::High || half.waiting_bytes() + half.queued < HOLD_UNDER_PRESSURE_BYTES;
            if raise {
                half.granted = wanted;
            } else if wanted > half.granted {
                self.throttled.insert(key);
            }
            let news = (half.consumed, half.granted);
            (std::mem::replace(&mut half.told, news) != news).then_some(news)
        };
        if let Some((consumed, limit)) = credit {
            out.frames.push((source, Frame::stream(s.cid, s.fence.epoch, Body::Credit { consumed, limit })));
        }
    }

    /// A target was connected, or not (agent).
    pub fn on_target(&mut self, now: Instant, key: StreamKey, result: Result<SockKey, RstCode>, out: &mut ShardOut) {
        let Some(s) = self.streams.get_mut(key) else {
            // Cancelled meanwhile: no target socket may remain (S7).
            if let Ok(sock) = result
                && !planted::on(2010)
            {
                out.socks.push((sock, SockOp::Abort(RstCode::Cancelled)));
            }
            return;
        };
        match result {
            Ok(sock) => {
                if s.open {
                    out.socks.push((sock, SockOp::Abort(RstCode::Protocol)));
                    return;
                }
                s.ends[1] = End::Socket(sock);
                s.open = true;
                let End::Session(session) = s.ends[0] else { return };
                out.frames.push((session, Frame::stream(s.cid, s.fence.epoch, Body::OpenAck { result: Ok(()) })));
                if let Some(info) = self.sessions.get_mut(&session) {
                    info.pending_opens = info.pending_opens.saturating_sub(1);
                }
                self.disarm(key);
                self.pass_on(key, 0, out);
            }
            Err(code) => self.reset(now, key, code, Side::Agent, None, out),
        }
    }

    /// Whether this shard runs an agent.
    pub(super) const fn is_agent(&self) -> bool {
        matches!(self.role, Role::Agent { .. })
    }

    fn close_silently(&mut self, now: Instant, key: StreamKey, out: &mut ShardOut) {
        let before = out.observed.len();
        if let Some(s) = self.remove(now, key, crate::dedup::Terminal::Finished, Side::Client, out)
            && let Some((_, sock)) = s.socket()
        {
            out.socks.push((sock, SockOp::Close));
        }
        // A probe leaves no record.
        out.observed.truncate(before);
    }
}

#[derive(Clone, Copy)]
enum Full {
    Credit,
    Queue,
    /// The stream holds too much for the level.
    Budget,
    /// The process holds as much as it may.
    Everything,
}
