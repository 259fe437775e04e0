//! Shards driven directly, without sessions or encodings: three of them (origin,
//! owner, agent) joined by perfect queues. `hostile` sends what no honest peer
//! sends; `wire` compares random runs with a perfect wire.

#![allow(clippy::unwrap_used, reason = "a broken test bench should panic")]

mod budget;
mod hostile;
mod select;
mod wire;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Attach, ControlNote, Role, SessionUp, Shard, ShardNote, ShardOut, SockEvent};
use crate::config::{Limits, ListenerConfig, OpenRule, OpenTimers, Selection};
use crate::error::RstCode;
use crate::id::{
    AgentId, Epoch, Fence, Incarnation, Instance, ListenerIx, Name, Nonce, SessionKey, SockKey, StreamKey,
};
use crate::rng::Seed;
use crate::route::Candidate;
use crate::time::Instant;
use crate::wire::{Body, Frame, Plane};

const ORIGIN: usize = 0;
const OWNER: usize = 1;
const AGENT: usize = 2;

const fn session(ix: u32) -> SessionKey {
    SessionKey { ix, generation: 0 }
}

/// The link at the origin and at the owner, the tunnel at the owner and at the agent.
const LINK_O: SessionKey = session(1);
const LINK_W: SessionKey = session(2);
const TUNNEL_W: SessionKey = session(3);
const TUNNEL_A: SessionKey = session(4);
const FENCE: Fence = Fence { epoch: Epoch(7), nonce: Nonce(70) };

/// Where a frame sent on a session arrives: node and its key of the session.
fn far_end(key: SessionKey) -> (usize, SessionKey) {
    match key {
        LINK_O => (OWNER, LINK_W),
        LINK_W => (ORIGIN, LINK_O),
        TUNNEL_W => (AGENT, TUNNEL_A),
        TUNNEL_A => (OWNER, TUNNEL_W),
        other => panic!("no session {other:?}"),
    }
}

fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

fn agent_id() -> AgentId {
    AgentId::new("plant-7").unwrap()
}

fn up(session: SessionKey, plane: Plane, peer: Option<u64>) -> ControlNote {
    ControlNote::SessionUp(SessionUp {
        session,
        plane,
        peer: peer.map(Incarnation),
        replica: None,
        initial_window: 64 << 10,
    })
}

/// Three shards and what is on the way between them.
struct Bench {
    now: Instant,
    shards: Vec<Shard>,
    outs: Vec<ShardOut>,
    /// By the key of the sender's end, minus one.
    queues: [VecDeque<Frame>; 4],
    notes: Vec<ShardNote>,
}

impl Bench {
    fn new() -> Self {
        let hub = |incarnation: u64| {
            let role = Role::Hub {
                listeners: vec![ListenerConfig {
                    name: name("l1"),
                    connector: name("ldap"),
                    open: OpenRule::Eager,
                    max_connections: 1000,
                }],
                open: OpenTimers::default(),
                selection: Selection::default(),
            };
            Shard::new(role, Limits::default(), Incarnation(incarnation), 0, &Seed::from_u64(incarnation))
        };
        let agent = Shard::new(
            Role::Agent { target_timeout: Duration::from_millis(1500) },
            Limits::default(),
            Incarnation(0),
            0,
            &Seed::from_u64(9),
        );
        let mut b = Self {
            now: Instant::from_nanos(1),
            shards: vec![hub(1), hub(2), agent],
            outs: vec![ShardOut::default(), ShardOut::default(), ShardOut::default()],
            queues: Default::default(),
            notes: Vec::new(),
        };
        let attach = |session| {
            ControlNote::Attach(Attach { agent_id: agent_id(), session, fence: FENCE, connectors: vec![name("ldap")] })
        };
        let candidate = Candidate {
            agent_id: agent_id(),
            instance: Instance(1),
            fence: FENCE,
            session: LINK_O,
            owner: name("hub-w"),
            local: false,
            rank: 0,
            weight: 1,
        };
        b.note(ORIGIN, up(LINK_O, Plane::Mesh, Some(2)));
        b.note(ORIGIN, ControlNote::Routes(Arc::from([candidate.at(name("ldap"))])));
        b.note(OWNER, up(LINK_W, Plane::Mesh, Some(1)));
        b.note(OWNER, up(TUNNEL_W, Plane::Tunnel, None));
        b.note(OWNER, attach(TUNNEL_W));
        b.note(OWNER, ControlNote::Lease(Some(Instant::from_nanos(u64::MAX))));
        b.note(AGENT, up(TUNNEL_A, Plane::Tunnel, None));
        b.note(AGENT, attach(TUNNEL_A));
        b
    }

    fn note(&mut self, n: usize, note: ControlNote) {
        self.shards[n].on_note(self.now, note, &mut self.outs[n]);
    }

    /// Puts what the shards want said on the way, and checks them.
    fn flush(&mut self) {
        for n in 0..3 {
            for (key, frame) in std::mem::take(&mut self.outs[n].frames) {
                self.queues[key.ix as usize - 1].push_back(frame);
            }
            self.notes.append(&mut self.outs[n].notes);
            self.shards[n].check_invariants();
        }
    }

    /// Delivers the oldest frame sent on a session; false if there is none.
    fn deliver(&mut self, from: SessionKey) -> bool {
        let Some(frame) = self.queues[from.ix as usize - 1].pop_front() else { return false };
        let Frame::Stream { cid, epoch, body } = frame else { panic!("shards send stream frames") };
        let sender = far_end(far_end(from).1).0;
        if let Body::Data { bytes, .. } = &body {
            let n = bytes.len() as u64;
            self.shards[sender].on_released(self.now, cid, from, n, &mut self.outs[sender]);
        }
        let (to, key) = far_end(from);
        self.shards[to].on_frame(self.now, key, cid, epoch, body, &mut self.outs[to]);
        self.flush();
        true
    }

    fn deliver_all(&mut self) {
        while [LINK_O, LINK_W, TUNNEL_W, TUNNEL_A].into_iter().any(|k| self.deliver(k)) {}
    }

    fn open(&mut self, sock: u32) -> StreamKey {
        let sock = SockKey { ix: sock, generation: 0 };
        let key = self.shards[ORIGIN].open(self.now, ListenerIx(0), sock, &mut self.outs[ORIGIN]).unwrap();
        self.flush();
        key
    }

    fn socket(&mut self, n: usize, stream: StreamKey, event: SockEvent) {
        self.shards[n].on_socket(self.now, stream, event, &mut self.outs[n]);
        self.flush();
    }

    fn target(&mut self, stream: StreamKey, result: Result<u32, RstCode>) {
        let result = result.map(|ix| SockKey { ix, generation: 0 });
        self.shards[AGENT].on_target(self.now, stream, result, &mut self.outs[AGENT]);
        self.flush();
    }

    fn data(&mut self, n: usize, stream: StreamKey, len: usize) {
        self.socket(n, stream, SockEvent::Data(Bytes::from(vec![5; len])));
    }

    /// Nothing of any stream may be left (B5).
    fn assert_empty(&self) {
        for (n, s) in self.shards.iter().enumerate() {
            assert_eq!(s.streams.len(), 0, "node {n}: streams");
            assert!(s.by_cid.is_empty() && s.timers.is_empty() && s.throttled.is_empty(), "node {n}: indexes");
            assert!(s.load.is_empty() && s.waiting_route.is_empty() && s.lost.is_empty(), "node {n}: waits");
            assert_eq!((s.socket_held, s.clients.iter().sum::<u32>()), (0, 0), "node {n}: held");
            for (key, info) in &s.sessions {
                assert_eq!((info.pending_opens, info.streams.len()), (0, 0), "node {n}: {key:?}");
            }
        }
    }
}
