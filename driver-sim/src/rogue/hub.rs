//! Hostile hubs (attack 33): each has a certificate of a CA that the others
//! know, with its own name, and reads the registry like any hub. It dials a hub,
//! gets through HELLO, WELCOME and AUTH, and then opens streams to agents of its
//! own choice, as it may; opens what it may not; and says what no hub says.
//!
//! Keeps: what must be refused is never carried to an agent (O1, O4; judged on
//! the tunnels' wire); a stream of another hub is not its own, whatever it calls
//! it (I2, S8); what it opens and resets at once leaves nothing behind (B5, B7);
//! who shows too little is not let in (I3). Must not know how a hub notices.

use std::collections::{BTreeSet, VecDeque};

use nowconnect_core::error::RstCode;
use nowconnect_core::id::{Cid, Epoch, Incarnation, Instance, Name, Nonce, Secret, SessionId};
use nowconnect_core::identity::{Party, Signer, Statement};
use nowconnect_core::mux::Input;
use nowconnect_core::principal::{HubGrant, Principal};
use nowconnect_core::registry::Located;
use nowconnect_core::shard::Shard;
use nowconnect_core::time::Instant;
use nowconnect_core::wire::{
    Auth, Body, EpochNotice, Frame, Hello, HelloHub, HelloRole, NUMBER_MAX, Open, ResumeRequest, SecretText, Status,
    Welcome, encode_message,
};

use super::{Bound, Outcome, PEER, Rogue, WINDOW, agent_id};
use crate::marks::Mark;
use crate::net::key;
use crate::node::{connector, name};
use crate::plan::MS;
use crate::world::World;

/// It dials no more often than this.
const DIALS_EVERY: u64 = 500 * MS;
/// Lanes of OPENs that may be carried; above are those of OPENs that may not.
const LANES: u8 = 240;
/// OPENs it remembers, to say them again.
const OPENS_KEPT: usize = 16;
/// Streams of its own that it leaves alone.
const STREAMS_MAX: usize = 12;
/// Times that it opens many streams at once, in a whole run: each costs the
/// simulator a target.
const CROWDS_MAX: u32 = 8;
/// OPENs that it sends in one message.
const BATCH: usize = 64;
/// A lane in which no hub has counted so far.
const FAR: u64 = 1 << 40;
/// A day of epochs, and more.
const DAYS: u64 = 1 << 40;

/// What in a handshake is not true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// The replica id is another hub's (attack 27).
    Name,
    /// It is of another namespace.
    Namespace,
    /// The session that it wants back was never its own (attack 51).
    Session,
    /// The signature was made for another handshake (attack 30).
    Signature,
}

/// What it says of itself.
#[derive(Debug)]
struct Says {
    lie: Option<Lie>,
    replica_id: Name,
    incarnation: Incarnation,
    challenge: Secret<16>,
    ca: u8,
    exporter: Option<[u8; 32]>,
}

/// What a hostile hub knows.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What it was answered last.
    pub(super) welcome: Option<Welcome>,
    minted: u64,
    /// The same for OPENs that must be refused, in lanes of their own: it never
    /// counts those anew, so none of their cids is ever a good one.
    minted_in_vain: u64,
    /// OPENs that it said, the latest last.
    opens: VecDeque<(Cid, Epoch, Open)>,
    /// OPENs that must be refused and are not answered yet, and those that
    /// repeat a cid.
    refused: BTreeSet<Cid>,
    again: BTreeSet<Cid>,
    /// A flood of OPENs that it resets next.
    flood: Vec<(Cid, Epoch)>,
    /// It opened and reset many streams on this connection.
    rapid: bool,
    /// It has asked for more than a hub waits for.
    flooded: bool,
    /// It does not dial before.
    pub(super) rests_until: u64,
}

impl Known {
    /// What an answer to an OPEN shows.
    pub(super) fn hears_of(&mut self, cid: Cid, body: &Body) -> Option<Mark> {
        let Body::OpenAck { result } = body else { return None };
        let (refused, again) = (self.refused.remove(&cid), self.again.remove(&cid));
        match result {
            Ok(()) => None,
            Err(RstCode::Busy) => Some(Mark::HostileFloodRefused),
            Err(_) if refused => Some(Mark::HostileOpenRefused),
            Err(_) => again.then_some(Mark::HostileCidRefused),
        }
    }

    fn keep(&mut self, cid: Cid, epoch: Epoch, open: &Open) {
        self.opens.push_back((cid, epoch, open.clone()));
        if self.opens.len() > OPENS_KEPT {
            self.opens.pop_front();
        }
    }
}

impl World {
    /// HELLO and AUTH, right or wrong.
    pub(super) fn rogue_hub_comes(&mut self, ix: u32, hub: u16, conn: u32) {
        let keys = self.nodes[usize::from(hub)].keys;
        // It has a certificate of each CA there is.
        let ca = (0..8).find(|ca| keys.knows(*ca)).unwrap_or(0);
        let exporter = self.ends_tls(conn).then(|| crate::proof::exporter(conn));
        let own_name = format!("{PEER}{ix}");
        let hubs = self.plan.hubs.len() as u64;
        let r = &mut self.rogues[ix as usize];
        if r.lane.chance(1, 3) {
            r.run = r.lane.next_u64();
            r.of_hub = Known::default();
        } else if r.lane.chance(1, 3) {
            // The same run counts from the beginning again.
            r.of_hub.minted = 0;
        }
        let dialect = r.dialect();
        (r.of_hub.rests_until, r.of_hub.welcome, r.of_hub.rapid) = (self.now + DIALS_EVERY, None, false);
        r.of_hub.flood.clear();
        let early = r.lane.chance(1, 16);
        let lie = match r.lane.below(40) {
            0..=3 => Some(Lie::Name),
            4 => Some(Lie::Namespace),
            5 => Some(Lie::Session),
            6 => Some(Lie::Signature),
            _ => None,
        };
        let replica_id = if lie == Some(Lie::Name) { format!("hub-{}", r.lane.below(hubs)) } else { own_name.clone() };
        let says = Says {
            lie,
            replica_id: name(&replica_id),
            incarnation: Incarnation(r.run),
            challenge: Secret([r.lane.below(256) as u8; 16]),
            ca,
            exporter,
        };
        self.check.wire.strangers.insert(says.incarnation);
        self.line(None, || {
            format!("hostile hub {ix} comes to node {hub} as {replica_id} (conn {conn}), lies: {lie:?}")
        });
        if exporter.is_some() {
            self.conns[conn as usize].shown[0] = Some(ca);
        }
        let grant = HubGrant { dns_names: exporter.map(|_| vec![own_name]), exporter };
        self.input(hub, Input::Accepted { conn: key(conn, 1), dialect, principal: Principal::Hub(grant) });
        if early {
            self.marks.hit(Mark::HostileSession);
            let auth = Frame::Auth(Box::default());
            return self.rogue_sends(ix, encode_message(dialect, 0, &[auth]), Outcome::Ended);
        }
        // Whatever it is refused for its proof now is right.
        self.check.nodes.entry(hub).or_default().unproven = lie.is_some();
        self.rogue_shakes_hands(ix, hub, conn, &says);
        self.check.nodes.entry(hub).or_default().unproven = false;
    }

    fn rogue_shakes_hands(&mut self, ix: u32, hub: u16, conn: u32, says: &Says) {
        let stolen =
            self.nodes[usize::from(hub)].hub().and_then(|h| h.mux().iter().next().map(|(_, e)| e.session.id()));
        let dialect = self.rogues[ix as usize].dialect();
        let lies = |l: Lie| says.lie == Some(l);
        let resume = lies(Lie::Session).then(|| ResumeRequest {
            session: stolen.unwrap_or(SessionId(1)),
            attempt: 1,
            received: 0,
            proof: Secret([3; 32]),
        });
        let hello = Frame::Hello(Box::new(Hello {
            role: HelloRole::Hub(HelloHub {
                replica_id: says.replica_id.clone(),
                incarnation: says.incarnation,
                namespace: name(if lies(Lie::Namespace) { "another" } else { "sim" }),
                region: None,
                sessions: Vec::new(),
            }),
            challenge: says.challenge,
            initial_window: WINDOW,
            capabilities: Vec::new(),
            resume,
        }));
        self.rogue_sends(ix, encode_message(dialect, 0, &[hello]), Outcome::Borne);
        if let Some(w) = self.rogues[ix as usize].of_hub.welcome.clone() {
            let ns = name("sim");
            let statement = Statement {
                signer: Signer::Dialler,
                dialler: Party {
                    replica_id: &says.replica_id,
                    incarnation: says.incarnation,
                    challenge: &says.challenge,
                },
                acceptor: Party { replica_id: &w.replica_id, incarnation: w.incarnation, challenge: &w.challenge },
                namespace: &ns,
                dialect,
                exporter: says.exporter.as_ref(),
            };
            let mut statement = statement.to_bytes();
            if lies(Lie::Signature) {
                // Signed for another handshake.
                statement.push(0);
            }
            let signature = Some(crate::proof::sign(&format!("{PEER}{ix}"), says.ca, &statement));
            let auth = Frame::Auth(Box::new(Auth { signature }));
            self.rogue_sends(ix, encode_message(dialect, 0, &[auth]), Outcome::Borne);
        }
        let carried = self.nodes[usize::from(hub)].hub().is_some_and(|h| h.mux().carried_by(key(conn, 1)).is_some());
        if let (true, Some(lie)) = (carried, says.lie) {
            let text = format!("node {hub} lets hostile hub {ix} in as {} ({lie:?} is a lie)", says.replica_id);
            return self.fail("I3", text);
        }
        let r = &mut self.rogues[ix as usize];
        r.welcomed = carried;
        if says.lie.is_some() {
            // Not let in, and not kept either.
            r.broken = Some(self.now);
        }
    }

    /// It opens, or breaks a rule.
    pub(super) fn rogue_hub_acts(&mut self, ix: u32, hub: u16) {
        if std::mem::take(&mut self.rogues[ix as usize].of_hub.rapid) {
            self.marks.hit(Mark::RapidReset);
        }
        let flood = std::mem::take(&mut self.rogues[ix as usize].of_hub.flood);
        if !flood.is_empty() {
            return self.rogue_resets(ix, &flood);
        }
        let (there, elsewhere) = self.attachments_at(hub);
        let others: Vec<(Cid, Epoch)> = self.check.wire.recent.iter().copied().collect();
        let r = &mut self.rogues[ix as usize];
        let mine: Vec<Cid> = r.streams.keys().copied().collect();
        match r.lane.below(16) {
            0..=3 => self.rogue_opens(ix, &there),
            4..=7 => {
                let Some(cid) = r.lane.pick(&mine).copied() else { return };
                let (frames, outcome) = r.on_own(cid);
                self.rogue_tries(ix, &frames, outcome, Mark::HostileStream);
            }
            8 | 9 => self.rogue_opens_what_is_refused(ix, &there, &elsewhere),
            10 => self.rogue_repeats_a_cid(ix, hub, &others),
            11 => {
                let run = r.run;
                let (frames, outcome) = match r.lane.pick(&others).filter(|(cid, _)| cid.incarnation().0 != run) {
                    Some((cid, epoch)) => r.on_others(*cid, *epoch),
                    None => r.on_nobodys(),
                };
                self.rogue_tries(ix, &frames, outcome, Mark::HostileGuess);
            }
            12 | 13 if r.crowds < CROWDS_MAX => {
                r.crowds += 1;
                if r.lane.chance(1, 2) {
                    self.rogue_resets_rapidly(ix, hub, &there);
                } else {
                    self.rogue_floods(ix, hub, &there);
                }
            }
            14 => self.rogue_lies(ix, &there),
            _ if r.lane.chance(1, 3) => {
                let frames = r.what_agents_say();
                self.rogue_breaks(ix, frames);
            }
            _ => {}
        }
    }

    /// What the registry lists: at this hub, and at others. Attachments of
    /// hostile agents are left to themselves.
    fn attachments_at(&self, hub: u16) -> (Vec<Located>, Vec<Located>) {
        let Some(run) = self.nodes[usize::from(hub)].hub().map(|h| h.run().clone()) else { return Default::default() };
        let listed = self.registry.snapshot(Instant::from_nanos(self.now));
        let honest = listed.into_iter().filter(|l| l.agent_id.as_str().starts_with("agent-"));
        honest.partition(|l| l.hub == run)
    }

    /// Says frames, once or often.
    fn rogue_tries(&mut self, ix: u32, frames: &[Frame], outcome: Outcome, mark: Mark) {
        if frames.is_empty() {
            return;
        }
        self.marks.hit(mark);
        self.line(None, || format!("hostile hub {ix} says {frames:?}"));
        let often = outcome != Outcome::Ended && self.rogues[ix as usize].lane.chance(1, 10);
        for _ in 0..if often { 20 } else { 1 } {
            let message = self.rogue_message(ix, frames);
            self.rogue_sends(ix, message, outcome);
        }
    }

    /// An OPEN under the true fence: its own stream, and its own business.
    fn rogue_opens(&mut self, ix: u32, there: &[Located]) {
        let Some((cid, frame)) = self.rogues[ix as usize].open(there) else { return };
        let r = &mut self.rogues[ix as usize];
        let mut frames = vec![frame];
        if r.streams.len() > STREAMS_MAX
            && let Some((oldest, s)) = r.streams.pop_first().filter(|(oldest, _)| *oldest != cid)
        {
            frames.push(Frame::stream(oldest, s.epoch, Body::Rst { code: RstCode::Abort, final_off: s.next }));
        }
        self.line(None, || format!("hostile hub {ix} opens {cid}"));
        self.rogue_says(ix, &frames);
    }

    /// An OPEN under a fence that is none, for an agent or a connector that is not
    /// there: refused, and carried to nobody (O1, O4).
    fn rogue_opens_what_is_refused(&mut self, ix: u32, there: &[Located], elsewhere: &[Located]) {
        let r = &mut self.rogues[ix as usize];
        r.of_hub.minted_in_vain += 1;
        let lane = LANES + r.lane.below(u64::from(u8::MAX - LANES)) as u8;
        let cid = Cid::new(Incarnation(r.run), lane, r.of_hub.minted_in_vain);
        let any = r.lane.pick(there).or_else(|| r.lane.pick(elsewhere)).cloned();
        let (mut epoch, mut open) = match &any {
            Some(l) => r.open_for(l),
            None => (Epoch(1), r.open_of(agent_id("agent-0"), Nonce(1), connector(0))),
        };
        match r.lane.below(6) {
            0 => epoch = Epoch(epoch.0.saturating_sub(1)),
            1 => epoch = Epoch(epoch.0.saturating_add(1)),
            2 => open.nonce = Nonce(!open.nonce.0),
            3 => open.agent_id = agent_id("agent-99"),
            4 => open.connector = name("nothing"),
            // Another hub's attachment of the same or another agent.
            _ => match r.lane.pick(elsewhere) {
                Some(l) => (epoch, open) = r.open_for(l),
                None => epoch = Epoch(u64::MAX),
            },
        }
        r.of_hub.refused.insert(cid);
        self.check.wire.forbidden.insert(cid);
        let frame = Frame::stream(cid, epoch, Body::Open(Box::new(open)));
        self.line(None, || format!("hostile hub {ix} opens what must be refused: {frame:?}"));
        self.rogue_says(ix, &[frame]);
    }

    /// An OPEN with a cid that it used before, live or over; or with one of
    /// another hub, which ends the session (attack 46).
    fn rogue_repeats_a_cid(&mut self, ix: u32, hub: u16, others: &[(Cid, Epoch)]) {
        let r = &mut self.rogues[ix as usize];
        let kept: Vec<_> = r.of_hub.opens.iter().cloned().collect();
        let Some((cid, epoch, mut open)) = r.lane.pick(&kept).cloned() else { return };
        let run = r.run;
        if r.lane.chance(1, 5) {
            let Some((other, _)) = r.lane.pick(others).copied().filter(|(c, _)| c.incarnation().0 != run) else {
                return;
            };
            // One that lives or lived, or one that its hub will never come to.
            let ahead = r.lane.chance(1, 2);
            let cid = if ahead { Cid::new(other.incarnation(), other.lane(), FAR + other.counter()) } else { other };
            if ahead {
                self.check.wire.forbidden.insert(cid);
            }
            let frame = Frame::stream(cid, epoch, Body::Open(Box::new(open)));
            return self.rogue_tries(ix, &[frame], Outcome::Ended, Mark::HostileSession);
        }
        if r.lane.chance(1, 2) {
            open.key = Secret([9; 16]);
            open.limit = NUMBER_MAX;
        }
        r.of_hub.again.insert(cid);
        let duplicates = |w: &Self| -> u64 {
            let hub = w.nodes[usize::from(hub)].hub();
            hub.map_or(0, |h| h.shards().iter().map(|s| s.counters().duplicates).sum())
        };
        let before = duplicates(self);
        self.line(None, || format!("hostile hub {ix} opens {cid} again"));
        self.rogue_says(ix, &[Frame::stream(cid, epoch, Body::Open(Box::new(open)))]);
        if duplicates(self) > before {
            self.marks.hit(Mark::HostileCidRefused);
        }
    }

    /// Many streams that are opened and reset in one breath (attack 45). A whole
    /// hub has forgotten them by the time it is asked.
    fn rogue_resets_rapidly(&mut self, ix: u32, hub: u16, there: &[Located]) {
        let pairs = self.rogues[ix as usize].lane.spread(8, 400);
        let held = |w: &Self| {
            let m = w.nodes[usize::from(hub)].machine.as_ref();
            let pending = |m: &crate::node::Machine| m.shards().iter().map(Shard::pending_opens).sum::<u32>();
            m.map_or((0, 0), |m| (m.streams(), pending(m)))
        };
        let before = held(self);
        self.line(None, || format!("hostile hub {ix} opens and resets {pairs} streams"));
        let mut frames = Vec::new();
        for n in 0..pairs {
            let Some((cid, frame)) = self.rogues[ix as usize].open(there) else { return };
            let r = &mut self.rogues[ix as usize];
            let epoch = r.streams.remove(&cid).map_or(Epoch(0), |s| s.epoch);
            frames.push(frame);
            frames.push(Frame::stream(cid, epoch, Body::Rst { code: RstCode::Cancelled, final_off: 0 }));
            if frames.len() >= BATCH || n + 1 == pairs {
                self.rogue_says(ix, &std::mem::take(&mut frames));
            }
        }
        self.rogues[ix as usize].of_hub.rapid = true;
        let whole = self.plan.hubs[usize::from(hub)].shards == 0;
        let after = held(self);
        if whole && (after.0 > before.0 || after.1 > before.1) {
            let text = format!(
                "node {hub} has {} streams and waits for {} answers after {pairs} streams were opened and reset; \
                 before that {} and {}",
                after.0, after.1, before.0, before.1
            );
            self.fail("B7", text);
        }
    }

    /// OPENs for their own sake, once in a while more than a hub waits for at a
    /// time; they are reset at its next turn.
    fn rogue_floods(&mut self, ix: u32, hub: u16, there: &[Located]) {
        let most = self.nodes[usize::from(hub)].hub().map_or(0, |h| h.control().config().limits.max_pending_opens);
        let r = &mut self.rogues[ix as usize];
        let beyond = !r.of_hub.flooded && r.lane.chance(1, 80);
        r.of_hub.flooded |= beyond;
        let count = if beyond { u64::from(most) + 100 } else { r.lane.spread(16, 300) };
        self.line(None, || format!("hostile hub {ix} opens {count} streams at once"));
        let (mut frames, mut flood) = (Vec::new(), Vec::new());
        for n in 0..count {
            let Some((cid, frame)) = self.rogues[ix as usize].open(there) else { return };
            let r = &mut self.rogues[ix as usize];
            flood.extend(r.streams.remove(&cid).map(|s| (cid, s.epoch)));
            frames.push(frame);
            if frames.len() >= BATCH || n + 1 == count {
                self.rogue_says(ix, &std::mem::take(&mut frames));
            }
        }
        self.rogues[ix as usize].of_hub.flood = flood;
    }

    fn rogue_resets(&mut self, ix: u32, streams: &[(Cid, Epoch)]) {
        for some in streams.chunks(BATCH) {
            let rst = |(cid, epoch): &(Cid, Epoch)| {
                Frame::stream(*cid, *epoch, Body::Rst { code: RstCode::Abort, final_off: 0 })
            };
            let frames: Vec<Frame> = some.iter().map(rst).collect();
            self.rogue_says(ix, &frames);
        }
    }

    /// STATUS and EPOCH about what is not its own. A hub speaks for itself: an
    /// EPOCH in another one's name ends the session (I3).
    fn rogue_lies(&mut self, ix: u32, there: &[Located]) {
        let hubs = self.plan.hubs.len() as u64;
        let r = &mut self.rogues[ix as usize];
        let hub = self.nodes[usize::from(r.plan.hub)].hub();
        // Without the registry a hub takes its peers' word for it.
        let asked = hub.is_some_and(|h| h.control().registry_healthy());
        let mut outcome = Outcome::Borne;
        let frame = if r.lane.chance(1, 4) {
            Frame::Status(Status {
                registry_healthy: r.lane.chance(1, 2),
                draining: r.lane.chance(1, 2),
                active: r.lane.chance(1, 2),
                initial_window: if r.lane.chance(1, 2) { 0 } else { NUMBER_MAX },
            })
        } else {
            let any = r.lane.pick(there).cloned();
            let (agent, instance, epoch) = match &any {
                // Another process of an agent that is there has taken over.
                Some(l) if asked && r.lane.chance(1, 4) => {
                    (l.agent_id.clone(), Instance(r.lane.next_u64()), l.fence.epoch)
                }
                Some(l) if r.lane.chance(3, 4) => (l.agent_id.clone(), l.instance, l.fence.epoch),
                _ => (agent_id(&format!("agent-{}", 90 + r.lane.below(1000))), Instance(r.lane.next_u64()), Epoch(1)),
            };
            let epoch = match r.lane.below(5) {
                0 => Epoch(epoch.0.saturating_sub(1)),
                1 => Epoch(epoch.0.saturating_add(1)),
                2 => Epoch(epoch.0.saturating_add(DAYS)),
                3 => Epoch(u64::MAX),
                _ => epoch,
            };
            let replica_id = if r.lane.chance(1, 6) {
                outcome = Outcome::Ended;
                name(&format!("hub-{}", r.lane.below(hubs)))
            } else {
                name(&format!("{PEER}{ix}"))
            };
            let (nonce, firm) = (Nonce(r.lane.next_u64()), r.lane.chance(1, 2));
            Frame::Epoch(Box::new(EpochNotice { agent_id: agent, instance, replica_id, epoch, nonce, firm }))
        };
        self.rogue_tries(ix, &[frame], outcome, Mark::HostileHubLied);
    }
}

impl Rogue {
    /// The next cid of its run: in one lane as a rule, in any now and then.
    fn mint(&mut self) -> Cid {
        self.of_hub.minted += 1 + self.lane.below(3);
        let lane = if self.lane.chance(1, 16) { self.lane.below(u64::from(LANES)) as u8 } else { 0 };
        Cid::new(Incarnation(self.run), lane, self.of_hub.minted)
    }

    fn open_of(&mut self, agent_id: nowconnect_core::id::AgentId, nonce: Nonce, connector: Name) -> Open {
        let limit = [0, 1000, WINDOW, NUMBER_MAX][self.lane.below(4) as usize];
        Open { nonce, connector, agent_id, key: Secret([self.lane.below(256) as u8; 16]), limit }
    }

    /// An OPEN for an attachment, as the registry lists it.
    fn open_for(&mut self, l: &Located) -> (Epoch, Open) {
        let ads: Vec<Name> = l.connectors.iter().map(|ad| ad.name.clone()).collect();
        let connector = self.lane.pick(&ads).cloned().unwrap_or_else(|| connector(0));
        (l.fence.epoch, self.open_of(l.agent_id.clone(), l.fence.nonce, connector))
    }

    /// Opens a stream at one of these attachments.
    fn open(&mut self, there: &[Located]) -> Option<(Cid, Frame)> {
        let l = self.lane.pick(there)?;
        let (cid, (epoch, open)) = (self.mint(), self.open_for(l));
        let limit = self.of_hub.welcome.as_ref().map_or(0, |w| w.initial_window);
        self.streams.insert(cid, Bound { epoch, limit, next: 0, got: 0 });
        self.of_hub.keep(cid, epoch, &open);
        Some((cid, Frame::stream(cid, epoch, Body::Open(Box::new(open)))))
    }

    /// What no hub may say on a link that stands.
    fn what_agents_say(&mut self) -> Vec<Frame> {
        let token = SecretText("an agent's".to_owned());
        let open = self.open_of(agent_id("agent-0"), Nonce(1), connector(0));
        let nothing = Cid::new(Incarnation(self.run), 0, 0);
        vec![
            Frame::Connectors { generation: 1, connectors: Vec::new() },
            Frame::Token { token },
            Frame::Auth(Box::default()),
            Frame::stream(nothing, Epoch(1), Body::Open(Box::new(open))),
        ]
    }
}
