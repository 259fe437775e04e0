//! What sessions tell a shard: the order of checks is part of the contract.
//! Fence before position, so that a stale owner can neither advance an offset
//! nor refresh a tombstone (O4); position before credit, so that an overlap
//! from a resumption is trimmed, not punished (A2).

use super::{Shard, ShardNote, ShardOut, UNKNOWN_RST_EVERY, VIOLATIONS_PER_MINUTE};
use crate::credit::{Pressure, RecvWindow};
use crate::dedup::{Refusal, Terminal};
use crate::error::{CloseCode, RstCode};
use crate::id::{Cid, Epoch, Fence, Name, SessionKey, StreamKey};
use crate::observed::{Observed, Side};
use crate::planted;
use crate::stream::{DataVerdict, End, FinVerdict, Half, HalfEvent, OriginWait, Part, Stream, Waiting};
use crate::time::Instant;
use crate::wire::{Body, Frame, Open, Plane};
use bytes::Buf as _;
use std::time::Duration;

impl Shard {
    /// A stream frame arrived on a session.
    pub fn on_frame(
        &mut self,
        now: Instant,
        session: SessionKey,
        cid: Cid,
        epoch: Epoch,
        body: Body,
        out: &mut ShardOut,
    ) {
        if !self.sessions.contains_key(&session) {
            return;
        }
        match body {
            Body::Open(open) => return self.on_open(now, session, cid, epoch, *open, out),
            Body::Resume(_) => {
                // Re-homing is not there yet: no stream can be resumed here, and
                // the peer learns it (its wire is specified, its answer is too).
                let code = RstCode::Unknown;
                self.counters.unknown += 1;
                let bound = self.by_cid.get(&cid).copied();
                match bound.and_then(|key| Some((key, self.streams.get(key)?.side_of(session)?))) {
                    // The RST ends a live stream at the peer and takes back what
                    // waits for it, so it has to end here as well (S5).
                    Some((key, side)) => self.reset(now, key, code, side_of(side), None, out),
                    None => self.answer_unknown(now, session, cid, epoch, out),
                }
                return;
            }
            Body::OpenAck { .. } | Body::Data { .. } | Body::Credit { .. } | Body::Fin { .. } | Body::Rst { .. } => {}
        }
        let Some(&key) = self.by_cid.get(&cid) else {
            return self.on_unknown(now, session, cid, epoch, &body, out);
        };
        let Some(s) = self.streams.get_mut(key) else { return };
        let anyone = planted::on(9).then(|| usize::from(!matches!(s.part, Part::Agent)));
        let Some(side) = s.side_of(session).or(anyone) else {
            self.counters.wrong_session += 1;
            return;
        };
        if epoch != s.fence.epoch && !(planted::on(10) && matches!(body, Body::Fin { .. })) {
            self.counters.wrong_epoch += 1;
            return;
        }
        // Before OPEN_ACK the target's side has neither read nor written a byte.
        let unopened = !s.open && side == 1;
        match body {
            Body::Data { .. } | Body::Fin { .. } if unopened => self.punish(now, key, session, out),
            Body::Credit { .. } if unopened => self.counters.glitches += 1,
            Body::Data { off, bytes } => self.on_data(now, key, side, off, bytes, session, out),
            Body::Credit { consumed, limit } => {
                let h = 1 - side;
                let Some(effect) = s.halves[h].on_credit(consumed, limit) else {
                    self.counters.glitches += 1;
                    return;
                };
                if effect.raised {
                    self.pass_on(key, h, out);
                    self.wake_source(key, h, out);
                }
                // Passed on unchanged at once: origin and agent count the same bytes.
                if self.streams.get(key).is_some_and(|s| matches!(s.ends[h], End::Session(_))) {
                    self.grant(now, key, h, true, out);
                }
                self.finish_if_done(now, key, side_of(side), out);
            }
            Body::Fin { final_off } => match s.halves[side].judge_fin(final_off) {
                FinVerdict::End => {
                    s.halves[side].state = s.halves[side].state.after(HalfEvent::Fin);
                    self.pass_on(key, side, out);
                }
                FinVerdict::Duplicate => self.counters.duplicates += u64::from(!planted::on(2041)),
                FinVerdict::Mismatch => self.punish(now, key, session, out),
            },
            Body::Rst { code, .. } => {
                if unopened && matches!(s.part, Part::Origin(_)) {
                    self.on_refused(now, key, code, out);
                } else if planted::on(17) {
                    s.halves[side].state = s.halves[side].state.after(HalfEvent::Fin);
                    self.pass_on(key, side, out);
                } else {
                    self.reset(now, key, code, side_of(side), Some(session), out);
                }
            }
            Body::OpenAck { result } => self.on_open_ack(now, key, side, session, result, out),
            Body::Open(_) | Body::Resume(_) => {}
        }
    }

    fn on_data(
        &mut self,
        now: Instant,
        key: StreamKey,
        side: usize,
        off: u64,
        mut bytes: bytes::Bytes,
        session: SessionKey,
        out: &mut ShardOut,
    ) {
        let pressure = self.pressure;
        let Some(s) = self.streams.get_mut(key) else { return };
        let half = &mut s.halves[side];
        match half.judge_data(off, bytes.len() as u64) {
            DataVerdict::Deliver { skip } => {
                bytes.advance(skip);
                if let Some(w) = half.window.as_deref_mut() {
                    w.on_received(now, half.next + bytes.len() as u64, pressure);
                }
                if side == 1
                    && let Part::Origin(o) = &mut s.part
                    && o.times.first_byte.is_none()
                {
                    o.times.first_byte = Some(now);
                }
                self.take(key, side, bytes, out);
                if planted::on(24) {
                    self.grant(now, key, side, false, out);
                }
            }
            DataVerdict::Duplicate => self.counters.duplicates += u64::from(!planted::on(2041)),
            DataVerdict::Gap | DataVerdict::OverCredit | DataVerdict::AfterFin => self.punish(now, key, session, out),
        }
    }

    /// A peer ignored its limit or its offsets: its stream is reset, and after
    /// the third within a minute its session is closed (attack 39).
    fn punish(&mut self, now: Instant, key: StreamKey, session: SessionKey, out: &mut ShardOut) {
        self.counters.flow_violations += 1;
        self.reset(now, key, RstCode::Flow, Side::Hub, None, out);
        if let Some(info) = self.sessions.get_mut(&session) {
            if now.since(info.violations_since) > Duration::from_secs(60) {
                info.violations = 0;
                info.violations_since = now;
            }
            info.violations += 1;
            if let Some(replica) = &info.replica {
                *self.violations.entry(replica.clone()).or_default() += 1;
            }
            if info.violations == VIOLATIONS_PER_MINUTE {
                out.notes.push(ShardNote::Misbehaved { session, code: CloseCode::Flow });
            }
        }
    }

    fn on_open(&mut self, now: Instant, session: SessionKey, cid: Cid, epoch: Epoch, open: Open, out: &mut ShardOut) {
        let Some(info) = self.sessions.get(&session) else { return };
        let wrong_side = match info.plane {
            // On a tunnel hubs open and agents answer.
            Plane::Tunnel => !self.is_agent(),
            // A hub can only speak for itself as an origin (I3).
            Plane::Mesh => info.peer != Some(cid.incarnation()) && !planted::on(2026),
        };
        if wrong_side || cid.counter() == 0 {
            out.notes.push(ShardNote::Misbehaved { session, code: CloseCode::Protocol });
            return;
        }
        let pending = info.pending_opens;
        match self.dedup.admit(session, cid) {
            Ok(()) => {}
            Err(Refusal::Replay) => {
                // Live, finished or never used: opened once is opened for ever (S6).
                self.counters.duplicates += 1;
                if planted::on(37)
                    && self.is_agent()
                    && let Some(&key) = self.by_cid.get(&cid)
                {
                    out.targets.push((key, open.connector));
                }
                return;
            }
            Err(Refusal::TooManyLanes) => {
                return self.refuse(session, cid, epoch, RstCode::Busy, out);
            }
        }
        if self.by_cid.contains_key(&cid) {
            // The same name on another session: not this session's stream (I2).
            self.counters.duplicates += 1;
            return self.refuse(session, cid, epoch, RstCode::Protocol, out);
        }
        let fence = Fence { epoch, nonce: open.nonce };
        let to = match self.admit_open(now, session, pending, fence, &open) {
            Ok(to) => to,
            Err(code) => {
                if code == RstCode::NotOwner {
                    self.counters.epoch_mismatch += u64::from(!planted::on(2035));
                    let held = self.attachments.get(&open.agent_id);
                    if !self.is_agent() && !held.is_some_and(|h| h.values().any(|a| a.fence == fence)) {
                        out.notes.push(ShardNote::NotOwner { agent_id: open.agent_id });
                    }
                }
                return self.refuse(session, cid, epoch, code, out);
            }
        };
        // A cid that an earlier link of this origin carried to the agent: there it
        // would be a replay without an answer, and wait for one here for ever (B7).
        if let Admitted::Tunnel(tunnel) = to
            && let Err(refusal) = self.dedup.admit(tunnel, cid)
        {
            let code = match refusal {
                Refusal::Replay => RstCode::Protocol,
                Refusal::TooManyLanes => RstCode::Busy,
            };
            self.counters.duplicates += u64::from(refusal == Refusal::Replay);
            return self.refuse(session, cid, epoch, code, out);
        }
        let max = self.limits.stream_window_max_bytes;
        let granted = self.limits.stream_window_initial_bytes;
        let mut up = Half { granted, ..Half::new() };
        let mut down = Half { limit: open.limit, ..Half::new() };
        let (part, far) = match to {
            Admitted::Target => {
                up.window = Some(Box::new(RecvWindow::new(granted, max)));
                (Part::Agent, End::Pending)
            }
            Admitted::Tunnel(tunnel) => {
                up.limit = self.sessions.get(&tunnel).map_or(0, |i| i.initial_window);
                down.granted = open.limit;
                (Part::Owner, End::Session(tunnel))
            }
        };
        let connector = if planted::on(2031) { self.any_connector(&open) } else { open.connector.clone() };
        let key = self.streams.insert(Stream {
            cid,
            fence,
            ends: [End::Session(session), far],
            halves: [up, down],
            open: false,
            part,
            deadline: None,
        });
        self.by_cid.insert(cid, key);
        self.counters.carried += 1;
        self.index_session(key, session, true);
        match to {
            Admitted::Target => {
                if let super::Role::Agent { target_timeout } = self.role {
                    self.arm(key, now.after(target_timeout));
                }
                out.targets.push((key, connector));
            }
            Admitted::Tunnel(tunnel) => {
                self.index_session(key, tunnel, true);
                if planted::on(36) {
                    out.frames.push((session, Frame::stream(cid, epoch, Body::OpenAck { result: Ok(()) })));
                }
                out.frames.push((tunnel, Frame::stream(cid, epoch, Body::Open(Box::new(open)))));
            }
        }
    }

    /// What planted bug 2031 takes for what was asked for.
    fn any_connector(&self, open: &Open) -> Name {
        let held = self.attachments.get(&open.agent_id).and_then(|by_session| by_session.values().next());
        held.and_then(|a| a.connectors.first()).unwrap_or(&open.connector).clone()
    }

    /// Limits first, then the fence, then the scope; nothing is remembered on a no.
    fn admit_open(
        &self,
        now: Instant,
        session: SessionKey,
        pending: u32,
        fence: Fence,
        open: &Open,
    ) -> Result<Admitted, RstCode> {
        if self.draining && !planted::on(2029) {
            return Err(RstCode::Draining);
        }
        let most = if planted::on(2050) { 2 } else { self.limits.max_pending_opens };
        if self.streams_everywhere() >= self.limits.max_streams as usize || pending >= most {
            return Err(RstCode::Busy);
        }
        if self.pressure >= Pressure::Lowered {
            return Err(RstCode::Budget);
        }
        let held = self.attachments.get(&open.agent_id);
        let attachment = held.and_then(|by_session| by_session.values().find(|a| a.fence == fence));
        let attachment = attachment.ok_or(RstCode::NotOwner)?;
        if !attachment.connectors.contains(&open.connector) && !planted::on(54) {
            // Withdrawn while the OPEN was on its way: a definite no, not an offence.
            let late = self.withdrawn.get(&attachment.session).is_some_and(|w| w.contains(&open.connector));
            return Err(if late && !planted::on(2051) { RstCode::Draining } else { RstCode::Denied });
        }
        if self.is_agent() {
            // The agent's fence is the tunnel's own: another tunnel's pair is stale here.
            return if attachment.session == session { Ok(Admitted::Target) } else { Err(RstCode::NotOwner) };
        }
        if self.lease_until.is_none_or(|until| now >= until) {
            // Without its lease a hub cannot know whether it still owns (O7).
            return Err(RstCode::NotOwner);
        }
        match self.sessions.get(&attachment.session) {
            Some(i) if i.pending_opens < self.limits.max_pending_opens => Ok(Admitted::Tunnel(attachment.session)),
            Some(_) => Err(RstCode::Busy),
            None => Err(RstCode::NotOwner),
        }
    }

    fn refuse(&mut self, session: SessionKey, cid: Cid, epoch: Epoch, code: RstCode, out: &mut ShardOut) {
        self.dedup.bury(cid, Terminal::Reset(code));
        out.frames.push((session, Frame::stream(cid, epoch, Body::OpenAck { result: Err(code) })));
    }

    pub(super) fn on_open_ack(
        &mut self,
        now: Instant,
        key: StreamKey,
        side: usize,
        session: SessionKey,
        result: Result<(), RstCode>,
        out: &mut ShardOut,
    ) {
        let Some(s) = self.streams.get_mut(key) else { return };
        if side != 1 || s.open {
            self.counters.glitches += 1;
            return;
        }
        let code = match result {
            Err(code) => code,
            Ok(()) => {
                if s.keeps() {
                    // What was passed on is the session's alone from here on.
                    self.socket_held -= s.halves[0].sent;
                }
                s.open = true;
                self.on_candidate_answered(now, key, out);
                let Some(s) = self.streams.get_mut(key) else { return };
                let (cid, epoch, origin_end) = (s.cid, s.fence.epoch, s.ends[0]);
                if let Part::Origin(o) = &mut s.part {
                    o.waits = OriginWait::Nothing;
                    o.times.opened = Some(now);
                    o.retained = Waiting::default();
                    if o.tried.len() == 1 {
                        // The record knows it from the fence; open streams are many.
                        o.tried = Box::default();
                    }
                    let local = o.carrier.as_ref().is_some_and(|c| c.local);
                    let (listener, after) = (o.listener, now.since(o.times.accepted));
                    let by_listener = if local || planted::on(2021) {
                        &mut self.counters.opened_local
                    } else {
                        &mut self.counters.opened_mesh
                    };
                    if let Some(n) = by_listener.get_mut(usize::from(listener.0)) {
                        *n += 1;
                    }
                    out.observed.push(Observed::Opened { listener, local, after });
                }
                for end in [End::Session(session), origin_end] {
                    if let End::Session(k) = end
                        && let Some(i) = self.sessions.get_mut(&k)
                    {
                        i.pending_opens = i.pending_opens.saturating_sub(1);
                    }
                }
                if let End::Session(origin) = origin_end {
                    out.frames.push((origin, Frame::stream(cid, epoch, Body::OpenAck { result: Ok(()) })));
                }
                let up = &s.halves[0];
                if matches!(s.part, Part::Owner) && up.limit > up.granted {
                    // The agent takes more at once than this hub advertised. It
                    // reports consumption in quarters of its own window, so the
                    // origin must not be left with less than that.
                    self.grant(now, key, 0, true, out);
                }
                self.disarm(key);
                // First bytes that the budget had no second room for.
                self.pass_on(key, 0, out);
                return;
            }
        };
        match (&s.part, s.ends[0]) {
            (Part::Origin(_), _) => self.on_refused(now, key, code, out),
            (_, End::Session(origin)) => {
                out.frames.push((origin, Frame::stream(s.cid, s.fence.epoch, Body::OpenAck { result: Err(code) })));
                self.end(now, key, code, Side::Agent, &[session, origin], out);
            }
            _ => {}
        }
    }

    fn on_unknown(
        &mut self,
        now: Instant,
        session: SessionKey,
        cid: Cid,
        epoch: Epoch,
        body: &Body,
        out: &mut ShardOut,
    ) {
        if self.dedup.terminal(cid).is_some() {
            // Late frames of a finished stream are normal.
            return;
        }
        self.counters.unknown += 1;
        if matches!(body, Body::Data { .. }) {
            self.answer_unknown(now, session, cid, epoch, out);
        }
    }

    /// Seldom enough: what is said is kept until it is acknowledged, and a peer
    /// may ask without end (B2, attack 13).
    fn answer_unknown(&mut self, now: Instant, session: SessionKey, cid: Cid, epoch: Epoch, out: &mut ShardOut) {
        let Some(info) = self.sessions.get_mut(&session) else { return };
        if info.last_unknown_rst.is_none_or(|at| now.since(at) >= UNKNOWN_RST_EVERY) {
            info.last_unknown_rst = Some(now);
            out.frames.push((session, Frame::stream(cid, epoch, Body::Rst { code: RstCode::Unknown, final_off: 0 })));
        }
    }
}

#[derive(Clone, Copy)]
enum Admitted {
    Target,
    Tunnel(SessionKey),
}

const fn side_of(side: usize) -> Side {
    if side == 0 { Side::Client } else { Side::Agent }
}
