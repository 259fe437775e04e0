//! The hostile end of a session: it speaks the wire by the crate's own encoder,
//! knows enough to get past every handshake, and then says whatever the tape
//! says. What the node answers is judged here as far as one session shows it:
//! well-formed, numbered, contiguous, inside the credit given (S4, S8, S9, B4).

use std::collections::BTreeMap;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use nowconnect_core::error::{CloseCode, RstCode};
use nowconnect_core::id::{AgentId, Cid, Epoch, Fence, Incarnation, Instance, Name, Nonce, Secret, SessionId};
use nowconnect_core::wire::{
    Body, Codec, ConnectorAd, Dialect, EpochNotice, Frame, NUMBER_MAX, Open, Plane, Resume, ResumeRequest, SecretText,
    Status, WireLimits, decode, encode_message,
};
use sha2::Sha256;

use crate::tape::{Tape, payload, says};

/// Names and fences that hostile peers know of each other.
#[derive(Debug, Default)]
pub(crate) struct Cast {
    pub(crate) agents: Vec<AgentId>,
    pub(crate) connectors: Vec<Name>,
    pub(crate) fences: Vec<Fence>,
    pub(crate) cids: Vec<Cid>,
    pub(crate) incarnations: Vec<Incarnation>,
    pub(crate) instances: Vec<Instance>,
}

/// One stream as this end of the session sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) epoch: Epoch,
    /// An OPEN of ours; otherwise one of the node's.
    pub(crate) ours: bool,
    /// Next offset of ours, the furthest end ever said, and what we may send.
    pub(crate) next: u64,
    pub(crate) said: u64,
    pub(crate) limit: u64,
    pub(crate) ended: bool,
    /// Bytes the node sent, and the furthest it was allowed to.
    pub(crate) got: u64,
    pub(crate) allowed: u64,
    pub(crate) got_fin: bool,
    pub(crate) consumed: u64,
    /// The node said that the stream is over.
    pub(crate) over: bool,
    /// The node was told that it is open.
    pub(crate) open: bool,
    /// Not everything said on it was of our pattern.
    pub(crate) tainted: bool,
    /// The node said that it is open.
    acked: bool,
    /// We spoke of it before its OPEN: the RST that answers this says nothing of
    /// what came after.
    premature: bool,
    vague: bool,
    /// The node opened it here.
    opened_by_node: bool,
}

/// One session with the node.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) tag: u128,
    pub(crate) dialect: Dialect,
    pub(crate) id: SessionId,
    pub(crate) secret: Secret<32>,
    pub(crate) attempt: u64,
    /// Highest number sent and received.
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Largest initial window we ever declared in it.
    pub(crate) window: u64,
    /// Fences under which the node may use this session (tunnels).
    pub(crate) fences: Vec<Fence>,
    pub(crate) streams: BTreeMap<Cid, Told>,
    /// Some messages sent, for replays out of place.
    pub(crate) said: Vec<Bytes>,
    /// Numbered messages sent, for the replay after a resumption.
    log: Vec<(u64, Bytes)>,
    counter: u64,
    generation: u64,
}

impl Peer {
    pub(crate) fn new(tag: u128, dialect: Dialect, id: SessionId, secret: Secret<32>, window: u64) -> Self {
        Self {
            tag,
            dialect,
            id,
            secret,
            attempt: 0,
            sent: 0,
            received: 0,
            window,
            fences: Vec::new(),
            streams: BTreeMap::new(),
            said: Vec::new(),
            log: Vec::new(),
            counter: 0,
            generation: 0,
        }
    }

    /// What this end says in the half of a stream.
    pub(crate) fn says_in(&self, cid: Cid) -> u128 {
        self.tag << 64 ^ cid.0
    }

    /// HELLO's half of a resumption, right unless the tape spoils it.
    pub(crate) fn resume_request(&mut self, tape: &mut Tape<'_>, challenge: &Secret<16>) -> ResumeRequest {
        if !tape.one_in(8) {
            self.attempt += 1;
        }
        // Never between what came and what the node sent: we could not go on.
        let received = match tape.below(16) {
            14 => tape.number().min(self.received),
            15 => NUMBER_MAX,
            _ => self.received,
        };
        let mut proof =
            proof(&self.secret, b"nowconnect resume v1\0", self.id, self.attempt, received, &[&challenge.0]);
        if tape.one_in(16) {
            proof.0[0] ^= 1;
        }
        ResumeRequest { session: self.id, attempt: self.attempt, received, proof }
    }

    /// These frames in as few messages as the encoding allows.
    pub(crate) fn encode_all(&mut self, frames: Vec<Frame>) -> Vec<Bytes> {
        if self.dialect.codec == Codec::BinaryV2 {
            return if frames.is_empty() { Vec::new() } else { vec![self.encode(&frames)] };
        }
        frames.into_iter().map(|f| self.encode(&[f])).collect()
    }

    /// A numbered or unnumbered message of these frames, under the next number.
    pub(crate) fn encode(&mut self, frames: &[Frame]) -> Bytes {
        let number = if frames.iter().all(Frame::unnumbered) { 0 } else { self.sent + 1 };
        self.sent = self.sent.max(number);
        for frame in frames {
            self.note_sent(frame);
        }
        let message = encode_message(self.dialect, number, frames);
        self.log(number, &message);
        if self.said.len() < 32 {
            self.said.push(message.clone());
        }
        message
    }

    fn log(&mut self, number: u64, message: &Bytes) {
        if number > 0 {
            self.log.push((number, message.clone()));
            if self.log.len() > 256 {
                self.log.drain(..128);
            }
        }
    }

    /// What the node lacks after a resumption at `received`.
    pub(crate) fn unheard(&self, received: u64) -> Vec<Bytes> {
        self.log.iter().filter(|(n, _)| *n > received).map(|(_, m)| m.clone()).collect()
    }

    fn note_sent(&mut self, frame: &Frame) {
        match frame {
            Frame::Status(s) => self.window = self.window.max(s.initial_window),
            Frame::Stream { cid, epoch, body } => {
                let told = self.streams.entry(*cid).or_insert_with(|| Told { epoch: *epoch, ..Told::default() });
                let answered = matches!(body, Body::Data { .. } | Body::Resume(_));
                told.premature |= answered && !told.ours && !told.opened_by_node;
                match body {
                    Body::Open(open) => {
                        told.ours |= !told.opened_by_node;
                        told.limit = told.limit.max(window_of_the_node());
                        told.allowed = told.allowed.max(open.limit);
                    }
                    Body::OpenAck { .. } => told.open = true,
                    Body::Data { off, bytes } => told.said = told.said.max(off.saturating_add(bytes.len() as u64)),
                    Body::Credit { limit, .. } => told.allowed = told.allowed.max(*limit),
                    Body::Fin { .. } => told.ended = true,
                    Body::Rst { .. } => {}
                    Body::Resume(r) => told.allowed = told.allowed.max(r.limit),
                }
            }
            Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Auth(_)
            | Frame::Ack { .. }
            | Frame::Ping { .. }
            | Frame::Pong { .. }
            | Frame::GoAway { .. }
            | Frame::Epoch(_)
            | Frame::Connectors { .. }
            | Frame::Token { .. } => {}
        }
    }

    /// Bytes that are not of our making arrive at the node as if we had sent
    /// them: what they may have changed is noted.
    pub(crate) fn said_raw(&mut self, message: &Bytes) {
        let mut frames = Vec::new();
        let number = decode(self.dialect, message, &WireLimits::ESTABLISHED, &mut frames);
        // Under any other number it is a replay, a gap or no frames of streams.
        if number != Ok(self.sent + 1) {
            return;
        }
        self.sent += 1;
        self.log(self.sent, message);
        for frame in &frames {
            self.note_sent(frame);
            if let Frame::Stream { cid, body: Body::Data { .. } | Body::Fin { .. }, .. } = frame
                && let Some(told) = self.streams.get_mut(cid)
            {
                told.tainted = true;
            }
        }
    }

    /// Frames as the tape wants them, likely ones more often.
    pub(crate) fn frames(&mut self, tape: &mut Tape<'_>, cast: &Cast) -> Vec<Frame> {
        let mut frames = Vec::new();
        for _ in 0..=tape.below(4) {
            let cid = self.cid(tape, cast);
            frames.push(if tape.one_in(6) { self.notice(tape, cast) } else { self.stream_frame(tape, cast, cid) });
        }
        frames
    }

    fn cid(&mut self, tape: &mut Tape<'_>, cast: &Cast) -> Cid {
        let known: Vec<Cid> = self.streams.keys().copied().collect();
        match tape.below(8) {
            0 => tape.pick(&cast.cids).unwrap_or_default(),
            1 => {
                self.counter += 1 + tape.below(3) as u64;
                Cid::new(tape.pick(&cast.incarnations).unwrap_or_default(), 0, self.counter)
            }
            _ => tape.pick(&known).unwrap_or_default(),
        }
    }

    fn notice(&mut self, tape: &mut Tape<'_>, cast: &Cast) -> Frame {
        let fence = tape.pick(&cast.fences).unwrap_or_default();
        match tape.below(9) {
            0 => Frame::Status(Status {
                registry_healthy: tape.one_in(2),
                draining: tape.one_in(2),
                active: !tape.one_in(4),
                initial_window: tape.number(),
            }),
            1 => Frame::Connectors {
                generation: {
                    self.generation += 1;
                    if tape.one_in(4) { tape.number() } else { self.generation }
                },
                connectors: ads(tape, cast),
            },
            2 => Frame::Epoch(Box::new(EpochNotice {
                agent_id: tape.pick(&cast.agents).unwrap_or_else(|| agent("a")),
                instance: tape.pick(&cast.instances).unwrap_or_default(),
                replica_id: name("hub-b"),
                epoch: if tape.one_in(2) { Epoch(fence.epoch.0.saturating_add(1)) } else { fence.epoch },
                nonce: fence.nonce,
                firm: tape.one_in(2),
            })),
            3 => Frame::GoAway {
                code: tape.pick(CloseCode::ALL).unwrap_or(CloseCode::Draining),
                retry_after_ms: tape.number(),
            },
            4 => Frame::Token { token: SecretText("t".to_owned()) },
            5 => Frame::Ping { token: tape.number() },
            6 => Frame::Pong { token: tape.number() },
            7 => Frame::Ack { received: if tape.one_in(4) { tape.number() } else { self.received } },
            _ => Frame::Auth(Box::default()),
        }
    }

    fn stream_frame(&mut self, tape: &mut Tape<'_>, cast: &Cast, cid: Cid) -> Frame {
        let says = self.says_in(cid);
        let told = self.streams.get(&cid).cloned().unwrap_or_default();
        let fence = tape.pick(&cast.fences).unwrap_or_default();
        let mut epoch = if told.epoch == Epoch(0) || tape.one_in(8) { fence.epoch } else { told.epoch };
        let body = match tape.below(10) {
            0 => {
                epoch = fence.epoch;
                Body::Open(Box::new(self.open(tape, cast, fence)))
            }
            1 => Body::OpenAck { result: Ok(()) },
            2 => Body::OpenAck { result: Err(tape.pick(RstCode::ALL).unwrap_or(RstCode::Busy)) },
            3..=5 => {
                let off = if tape.one_in(6) { tape.number() } else { told.next };
                let room = told.limit.saturating_sub(off);
                let mut len = tape.size();
                if room > 0 && !tape.one_in(16) {
                    len = len.min(usize::try_from(room).unwrap_or(len));
                }
                let len = len.min(usize::try_from(NUMBER_MAX - off).unwrap_or(len)).max(1);
                if off == told.next
                    && let Some(t) = self.streams.get_mut(&cid)
                {
                    t.next += len as u64;
                }
                Body::Data { off, bytes: payload(says, off, len) }
            }
            6 => Body::Credit {
                consumed: if tape.one_in(6) { tape.number() } else { told.got + u64::from(told.got_fin) },
                limit: if tape.one_in(4) {
                    tape.number()
                } else {
                    (told.got + tape.size() as u64).max(told.allowed).min(NUMBER_MAX)
                },
            },
            7 => Body::Fin { final_off: if tape.one_in(6) { tape.number() } else { told.next } },
            8 => Body::Rst { code: tape.pick(RstCode::ALL).unwrap_or(RstCode::Abort), final_off: told.next },
            _ => Body::Resume(Box::new(Resume {
                nonce: fence.nonce,
                agent_id: tape.pick(&cast.agents).unwrap_or_else(|| agent("a")),
                key: Secret([0; 16]),
                next: told.got,
                limit: tape.number(),
            })),
        };
        Frame::stream(cid, epoch, body)
    }

    fn open(&self, tape: &mut Tape<'_>, cast: &Cast, fence: Fence) -> Open {
        Open {
            nonce: if tape.one_in(8) { Nonce(tape.number()) } else { fence.nonce },
            connector: tape.pick(&cast.connectors).unwrap_or_else(|| name("ldap")),
            agent_id: tape.pick(&cast.agents).unwrap_or_else(|| agent("a")),
            key: Secret([7; 16]),
            limit: if tape.one_in(4) { tape.number() } else { tape.size() as u64 * 16 },
        }
    }

    /// An OPEN of a fresh cid under this fence.
    pub(crate) fn good_open(&mut self, tape: &mut Tape<'_>, fence: Fence, agent_id: AgentId, connector: Name) -> Frame {
        self.counter += 1;
        let cid = Cid::new(Incarnation(1), 1, self.tag as u64 & 0xffff_ffff_0000 | self.counter);
        let limit = 16 * tape.size() as u64;
        let open = Open { nonce: fence.nonce, connector, agent_id, key: Secret([7; 16]), limit };
        Frame::stream(cid, fence.epoch, Body::Open(Box::new(open)))
    }

    /// A well-meant next step: opens what waits, takes what came, and writes
    /// back as much as it may.
    pub(crate) fn good_step(&mut self, tape: &mut Tape<'_>) -> Vec<Frame> {
        let tag = self.tag;
        let mut frames = vec![Frame::Ack { received: self.received }];
        for (cid, t) in &mut self.streams {
            let (cid, epoch) = (*cid, t.epoch);
            if t.over {
                continue;
            }
            if !t.ours && !t.open {
                t.open = true;
                frames.push(Frame::stream(cid, epoch, Body::OpenAck { result: Ok(()) }));
            }
            if t.got + u64::from(t.got_fin) > t.consumed || t.allowed < t.got + 4096 {
                t.consumed = t.got + u64::from(t.got_fin);
                t.allowed = t.allowed.max(t.got + 32_768);
                frames.push(Frame::stream(cid, epoch, Body::Credit { consumed: t.consumed, limit: t.allowed }));
            }
            let room = t.limit.saturating_sub(t.next).min(16_384);
            if room > 0 && !t.ended && !t.tainted {
                let len = tape.size().min(usize::try_from(room).unwrap_or(1));
                frames.push(Frame::stream(
                    cid,
                    epoch,
                    Body::Data { off: t.next, bytes: payload(tag << 64 ^ cid.0, t.next, len) },
                ));
                t.next += len as u64;
            }
            if t.got_fin && !t.ended {
                frames.push(Frame::stream(cid, epoch, Body::Fin { final_off: t.next }));
                t.ended = true;
            }
            if frames.len() > 32 {
                break;
            }
        }
        frames
    }

    /// Takes a message of the node and returns its frames. `None` for a replay
    /// of what was had before.
    pub(crate) fn hear(&mut self, message: &Bytes) -> Option<Vec<Frame>> {
        let mut frames = Vec::new();
        let number = decode(self.dialect, message, &WireLimits::ESTABLISHED, &mut frames)
            .unwrap_or_else(|e| panic!("the node sends what no peer takes: {e}"));
        if number > 0 {
            if number <= self.received {
                return None;
            }
            assert_eq!(number, self.received + 1, "the node leaves a gap in the numbers (S9)");
            self.received = number;
        }
        for frame in &frames {
            match frame {
                Frame::Ack { received } => {
                    assert!(*received <= self.sent, "the node acknowledges what was never sent");
                }
                Frame::Stream { cid, epoch, body } => self.hear_stream(*cid, *epoch, body),
                // A re-claim: from here on OPENs may come under this fence too.
                Frame::Epoch(n) => self.fences.push(Fence { epoch: n.epoch, nonce: n.nonce }),
                Frame::Hello(_) | Frame::Welcome(_) | Frame::Auth(_) => {
                    panic!("a handshake frame in a session: {frame:?}")
                }
                Frame::Ping { .. }
                | Frame::Pong { .. }
                | Frame::GoAway { .. }
                | Frame::Status(_)
                | Frame::Connectors { .. }
                | Frame::Token { .. } => {}
            }
        }
        Some(frames)
    }

    fn hear_stream(&mut self, cid: Cid, epoch: Epoch, body: &Body) {
        let window = self.window;
        if let Body::Open(open) = body {
            let fence = Fence { epoch, nonce: open.nonce };
            assert!(
                self.dialect.plane == Plane::Mesh || self.fences.contains(&fence),
                "an OPEN under a fence this tunnel never had (O4)"
            );
            // It may have been made up by us before; what is said from now on counts.
            let old = self.streams.get(&cid);
            assert!(old.is_none_or(|t| !t.opened_by_node), "a cid is opened twice (S4)");
            let premature = old.is_some_and(|t| t.premature);
            let (limit, allowed) = (open.limit, window);
            let told = Told { epoch, limit, allowed, premature, opened_by_node: true, ..Told::default() };
            self.streams.insert(cid, told);
            return;
        }
        let Some(t) = self.streams.get_mut(&cid) else {
            assert!(
                matches!(body, Body::Rst { .. } | Body::OpenAck { result: Err(_) }),
                "{} of a stream that was never opened",
                body.kind()
            );
            return;
        };
        if t.vague {
            return;
        }
        if t.premature && matches!(body, Body::Rst { code: RstCode::Unknown, .. }) {
            t.vague = true;
            return;
        }
        if t.over {
            assert!(
                matches!(body, Body::Rst { .. } | Body::OpenAck { result: Err(_) }),
                "{} after the end of its stream (S4)",
                body.kind()
            );
            return;
        }
        match body {
            Body::Open(_) | Body::Resume(_) => {}
            Body::OpenAck { result: Ok(()) } => {
                assert!(t.ours && !t.acked, "an OPEN_ACK nobody waits for");
                t.acked = true;
            }
            Body::OpenAck { result: Err(_) } | Body::Rst { .. } => t.over = true,
            Body::Data { off, bytes } => {
                assert_eq!(*off, t.got, "DATA is not contiguous (S9)");
                assert!(!t.got_fin, "DATA after FIN");
                t.got += bytes.len() as u64;
                assert!(t.got <= t.allowed.max(window), "more than the credit given (B4)");
            }
            Body::Credit { consumed, limit } => {
                assert!(*limit >= t.limit, "the limit falls (B4)");
                assert!(*consumed <= t.said + 1, "the node consumed what was never sent");
                t.limit = t.limit.max(*limit);
            }
            Body::Fin { final_off } => {
                assert!(!t.got_fin, "a second FIN");
                assert_eq!(*final_off, t.got, "FIN is not where the bytes end (S2)");
                t.got_fin = true;
            }
        }
    }

    /// Whether DATA that another end got is what this end said in that stream.
    pub(crate) fn is_source_of(&self, cid: Cid, off: u64, bytes: &[u8]) -> bool {
        self.streams.get(&cid).is_some_and(|t| t.tainted || says(self.says_in(cid), off, bytes))
    }
}

/// What nodes under test take directly after an OPEN.
pub(crate) const fn window_of_the_node() -> u64 {
    16 << 10
}

pub(crate) fn name(s: &str) -> Name {
    Name::new(s).expect("a valid name")
}

pub(crate) fn agent(s: &str) -> AgentId {
    AgentId::new(s).expect("a valid agent id")
}

/// Advertised connectors, as the tape wants them.
pub(crate) fn ads(tape: &mut Tape<'_>, cast: &Cast) -> Vec<ConnectorAd> {
    let set = tape.byte();
    let all = cast.connectors.iter().enumerate().filter(|(i, _)| set == 0 || set >> i & 1 == 1);
    all.map(|(_, c)| ConnectorAd { name: c.clone(), priority: u16::from(set >> 6), weight: u16::from(set >> 4 & 3) })
        .collect()
}

/// The proofs of PROTOCOL.md section 4, written down a second time.
pub(crate) fn proof(
    secret: &Secret<32>,
    label: &[u8],
    session: SessionId,
    attempt: u64,
    received: u64,
    challenges: &[&[u8; 16]],
) -> Secret<32> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).expect("HMAC takes a key of any length");
    mac.update(label);
    mac.update(&session.0.to_be_bytes());
    mac.update(&attempt.to_be_bytes());
    mac.update(&received.to_be_bytes());
    for c in challenges {
        mac.update(*c);
    }
    Secret(mac.finalize().into_bytes().into())
}
