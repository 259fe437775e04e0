//! An authenticated peer that misbehaves: frames nobody sent ride along in the
//! messages of honest nodes (in version 1: instead of one), under their numbers, so that nothing but the frame
//! itself is wrong. A forged frame names a live stream and either comes on a
//! session that stream is not bound to, or under another epoch, or repeats one of
//! the message it rides in or one that came before, there or elsewhere, once or
//! often, or is of a type from the future that may be skipped. None may change
//! anything but counters (S8, I2, O4, B8), which the other oracles see by themselves: a byte that nobody
//! wrote, an end nobody made, a reset without a cause.
//!
//! Also credentials that prove too little: another hub's certificate (I3), a
//! token that names fewer connectors or runs out (I1, I4).

use bytes::{Bytes, BytesMut};
use nowconnect_core::error::RstCode;
use nowconnect_core::id::{Epoch, SessionKey};
use nowconnect_core::mux::Input;
use nowconnect_core::principal::AgentGrant;
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{
    Body, Codec, Frame, HelloRole, Plane, SecretText, WireLimits, encode_frame, encode_message,
};

use crate::check::wire::Told;
use crate::event::Event;
use crate::faults::At;
use crate::marks::Mark;
use crate::net::place;
use crate::node::connector;
use crate::plan::MS;
use crate::proof::own_name;
use crate::world::{Phase, World};

/// A frame type of no version, flagged as optional, and its body.
const FROM_THE_FUTURE: [u8; 5] = [0x80 | 0x55, 3, 1, 2, 3];
/// Times that a frame is said in one message when it is said often.
const FLOOD: u64 = 12;
/// Few messages of version 1 can be put to use, so more of them are.
const V1_IN: u64 = 500;
/// In how many dials of a hostile run a hub shows another's certificate.
const WRONG_CERTIFICATE_IN: u64 = 24;
/// In how many dials of an agent with short tokens one names fewer connectors.
const NARROW_TOKEN_IN: u64 = 3;

/// The last frame of a message that moves a stream on, once more.
fn repeat(frames: &[Frame]) -> Option<Frame> {
    let moves =
        |f: &&Frame| matches!(f, Frame::Stream { body: Body::Open(_) | Body::Data { .. } | Body::Fin { .. }, .. });
    frames.iter().rfind(moves).cloned()
}

impl World {
    /// What reaches a machine instead of a message.
    pub(crate) fn tamper(&mut self, conn: u32, to: usize, told: &Told) -> Bytes {
        let message = told.bytes.clone();
        if let Some(hello) = self.narrow_hello(conn, to, told) {
            return hello;
        }
        let c = &self.conns[conn as usize];
        let (dialect, node) = (c.dialect, c.nodes[to]);
        if self.plan.hostile == 0 || self.phase != Phase::Safety || told.number == 0 {
            return message;
        }
        if dialect.codec == Codec::JsonV1 {
            return self.tamper_v1(conn, to, told).unwrap_or(message);
        }
        if !self.hostile_draws.chance(u64::from(self.plan.hostile), 10_000) {
            return message;
        }
        let mut forged = BytesMut::from(&message[..]);
        if self.hostile_draws.chance(1, 4) {
            self.marks.hit(Mark::UnknownFrame);
            forged.extend_from_slice(&FROM_THE_FUTURE);
            return forged.freeze();
        }
        let (frame, how) = match self.hostile_draws.below(3) {
            0 => (repeat(&told.frames), Mark::Repeated),
            1 => (self.replay(conn, to), Mark::Replayed),
            _ => (self.forge(conn), Mark::Forged),
        };
        let Some(frame) = frame else { return message };
        self.line(None, || format!("{} reaches end {to} of conn {conn}: {frame:?}", how.text()));
        self.marks.hit(how);
        // Now and then as fast as a message can carry it.
        let times = if self.hostile_draws.chance(1, 8) { FLOOD } else { 1 };
        let mut said = 0;
        for _ in 0..times {
            let before = forged.len();
            if let Some(payload) = encode_frame(dialect, told.number, &frame, &mut forged) {
                forged.extend_from_slice(&payload);
            }
            // A message that is too long would be a breach of the protocol.
            if forged.len() > WireLimits::ESTABLISHED.message_bytes {
                forged.truncate(before);
                break;
            }
            said += 1;
            self.check.wire.cause(node, 1);
        }
        self.expect_odd(conn, to, &frame, how, said);
        forged.freeze()
    }

    /// Version 1 has one frame a message, and each number once: a forged frame
    /// takes the place of a CREDIT that a later one, under way already, repeats
    /// and surpasses, as if the two had been one.
    fn tamper_v1(&mut self, conn: u32, to: usize, told: &Told) -> Option<Bytes> {
        let [Frame::Stream { cid, body: Body::Credit { consumed, limit }, .. }] = told.frames.as_slice() else {
            return None;
        };
        let surpasses = |f: &Frame| {
            let Frame::Stream { cid: c, body: Body::Credit { consumed: n, limit: l }, .. } = f else { return false };
            c == cid && n >= consumed && l >= limit
        };
        let c = &self.conns[conn as usize];
        if !c.under_way(1 - to).any(|t| t.frames.iter().any(surpasses))
            || !self.hostile_draws.chance(u64::from(self.plan.hostile), V1_IN)
        {
            return None;
        }
        let (dialect, node) = (c.dialect, c.nodes[to]);
        let (frame, how) = match self.hostile_draws.below(2) {
            0 => (self.replay(conn, to)?, Mark::Replayed),
            _ => (self.forge(conn)?, Mark::Forged),
        };
        self.line(None, || format!("{} reaches end {to} of conn {conn}: {frame:?}", how.text()));
        self.marks.hit(how);
        self.marks.hit(Mark::ForgedV1);
        self.check.wire.cause(node, 1);
        self.expect_odd(conn, to, &frame, how, 1);
        Some(encode_message(dialect, told.number, &[frame]))
    }

    /// A frame that came before: on its own session again, or on one that never
    /// carried its stream (S8, I2).
    fn replay(&mut self, conn: u32, to: usize) -> Option<Frame> {
        let wire = &self.check.wire;
        let seen = wire.seen.as_ref()?;
        let n = self.hostile_draws.below(seen.len() as u64) as usize;
        let seen = seen.get(n)?;
        let Frame::Stream { cid, body, .. } = &seen.frame else { return None };
        let own = wire.session_of(conn) == Some(seen.session) && seen.from == 1 - to;
        // Whoever opens streams of another, or speaks of one that is still on
        // its way to here, hurts streams of its own.
        let strange = !wire.carries(conn, *cid) && wire.is_answered(*cid) && !matches!(body, Body::Open(_));
        (own || strange).then(|| seen.frame.clone())
    }

    /// An agent whose token names fewer connectors says no more in its HELLO
    /// (G7): it is let in, or resumes, with less than it had.
    fn narrow_hello(&self, conn: u32, to: usize, told: &Told) -> Option<Bytes> {
        let c = &self.conns[conn as usize];
        let At::Agent(agent) = self.nodes[usize::from(c.nodes[0])].at else { return None };
        if to == 0 || self.plan.agents[usize::from(agent)].token_ns == 0 || self.phase != Phase::Safety {
            return None;
        }
        let scope =
            self.token(conn, agent).0.filter(|s| Some(s) != self.plan.agents[usize::from(agent)].scope.as_ref())?;
        let Some(Frame::Hello(_)) = told.frames.first() else { return None };
        let mut frames = told.frames.clone();
        let Some(Frame::Hello(hello)) = frames.first_mut() else { return None };
        let HelloRole::Agent(says) = &mut hello.role else { return None };
        says.connectors.retain(|ad| scope.iter().any(|c| connector(*c) == ad.name));
        Some(encode_message(c.dialect, 0, &frames))
    }

    fn forge(&mut self, conn: u32) -> Option<Frame> {
        let lane = &mut self.hostile_draws;
        let wire = &self.check.wire;
        let recent: Vec<_> = wire.recent.iter().copied().collect();
        let (cid, epoch) = *lane.pick(&recent)?;
        let at = wire.position(cid)?;
        let off = at[lane.below(2) as usize];
        // On its own session only another epoch makes it a stranger.
        let epoch = match (wire.carries(conn, cid), lane.chance(1, 2)) {
            (true, up) => Epoch(if up { epoch.0 + 1 } else { epoch.0.saturating_sub(1) }),
            // Before the OPEN was answered it may still be on its way to here,
            // and who sends it ahead hurts streams of its own.
            (false, true) if wire.is_answered(cid) => epoch,
            (false, _) => Epoch(epoch.0 + 1),
        };
        let body = match lane.below(5) {
            0 => Body::Data { off, bytes: Bytes::from_static(b"bytes that nobody ever wrote") },
            1 | 2 => Body::Fin { final_off: off },
            3 => Body::Rst { code: RstCode::Abort, final_off: off },
            _ => Body::Credit { consumed: off, limit: off + (64 << 20) },
        };
        Some(Frame::stream(cid, epoch, body))
    }

    /// The name in the certificate a hub shows for a connection.
    pub(crate) fn certificate(&self, conn: u32, hub: u8) -> (String, bool) {
        let wrong = self.plan.hostile > 0
            && self.phase == Phase::Safety
            && self.conns[conn as usize].dialect.plane == Plane::Mesh
            && self.tape.lane("certificate", u64::from(conn)).chance(1, WRONG_CERTIFICATE_IN);
        own_name(hub, wrong || self.nodes[usize::from(hub)].keys.wrong_name)
    }

    /// The connectors and the lifetime of the token an agent shows.
    pub(crate) fn token(&self, conn: u32, agent: u8) -> (Option<Vec<u16>>, u64) {
        let plan = &self.plan.agents[usize::from(agent)];
        let mut scope = plan.scope.clone();
        if plan.token_ns == 0 || self.phase != Phase::Safety {
            return (scope, 0);
        }
        let mut lane = self.tape.lane("token", u64::from(conn));
        if let Some(s) = scope.as_mut().filter(|s| s.len() > 1)
            && lane.chance(1, NARROW_TOKEN_IN)
        {
            s.pop();
        }
        let lasts = plan.token_ns / 2 + lane.below(plan.token_ns);
        (scope, lasts)
    }

    /// How long a hub takes a token of this lifetime for valid, by its own clock;
    /// `None`: it has run out. One without an end has none there either.
    pub(crate) fn lasts_at(&mut self, ix: u16, lasts: u64) -> Option<u64> {
        let At::Hub(n) = self.nodes[usize::from(ix)].at else { return Some(lasts) };
        let skew = self.plan.hubs[usize::from(n)].skew_ms;
        if lasts == 0 || skew == 0 {
            return Some(lasts);
        }
        self.marks.hit(Mark::ClockSkew);
        let left = lasts.saturating_add_signed(skew.saturating_mul(-(MS as i64)));
        (left > 0).then_some(left)
    }

    /// Before a token runs out, a fresh one may be put into the agent's file.
    pub(crate) fn plan_renewal(&mut self, conn: u32, agent: u8) {
        let (_, lasts) = self.token(conn, agent);
        let mut lane = self.tape.lane("renewal", u64::from(conn));
        if lasts > 0 && lane.chance(1, 2) {
            let c = &self.conns[conn as usize];
            let (node, run) = (c.nodes[0], c.runs[0]);
            self.after(lasts / 10 * (5 + lane.below(6)), Event::Renew { node, run });
        }
    }

    /// An agent finds a fresh token in its file.
    pub(crate) fn on_renew(&mut self, ix: u16, run: u32) {
        if self.nodes[usize::from(ix)].run == run && self.nodes[usize::from(ix)].is_up() {
            self.input(ix, Input::Token { token: SecretText("a fresh token".to_owned()) });
        }
    }

    /// A hub judges a token that came in band: as narrow as the one its
    /// connection was made with, of a lifetime of its own, or no good. Inside
    /// `settle`.
    pub(crate) fn judge_token(&mut self, ix: u16, session: SessionKey, _token: &SecretText) {
        let node = &self.nodes[usize::from(ix)];
        let now = node.clock(self.now);
        let conn = node.hub().and_then(|h| h.mux().get(session)?.conn).map(|k| place(k).0);
        let agent = conn.map(|conn| self.nodes[usize::from(self.conns[conn as usize].nodes[0])].at);
        let grant = match (conn, agent) {
            (Some(conn), Some(At::Agent(n))) if self.draws.chance(3, 4) => {
                let (scope, _) = self.token(conn, n);
                let connectors = scope.map(|s| s.iter().map(|c| connector(*c)).collect());
                let whole = self.plan.agents[usize::from(n)].token_ns;
                let ends = whole > 0 && self.phase == Phase::Safety;
                let lasts = if ends { whole / 2 + self.draws.below(whole + 1) } else { 0 };
                self.lasts_at(ix, lasts).map(|lasts| {
                    let expires = ends.then(|| Instant::from_nanos(now.as_nanos().saturating_add(lasts)));
                    self.ghost_token(ix, n, expires);
                    AgentGrant { subject: format!("agent-{n}"), connectors, expires }
                })
            }
            _ => None,
        };
        self.raw_input(ix, Input::Judged { session, grant });
    }
}
