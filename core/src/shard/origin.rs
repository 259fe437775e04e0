//! The origin's side of opening: which candidate, when the next one, when to
//! give up. A candidate is left only on a definite no (S6); first bytes are
//! kept until OPEN_ACK so that the next candidate gets them too. Every client
//! is connected, refused, or still inside `open.timeout` (L12).

use super::{Question, Role, Shard, ShardNote, ShardOut};
use crate::credit::{Pressure, RecvWindow, initial_window};
use crate::dedup::Terminal;
use crate::error::RstCode;
use crate::id::{Cid, Fence, ListenerIx, Name, Secret, SessionKey, SockKey, StreamKey};
use crate::observed::Side;
use crate::planted;
use crate::route::Candidate;
use crate::stream::{Carrier, End, Half, OpenTimes, Origin, OriginWait, Part, Stream, Waiting};
use crate::time::Instant;
use crate::wire::{Body, Frame, Open};
use std::collections::BTreeMap;

impl Shard {
    /// A client was accepted.
    ///
    /// # Errors
    /// When a limit refuses it; the caller resets the connection.
    pub fn open(
        &mut self,
        now: Instant,
        listener: ListenerIx,
        sock: SockKey,
        out: &mut ShardOut,
    ) -> Result<StreamKey, RstCode> {
        let ix = usize::from(listener.0);
        let Role::Hub { listeners, open, .. } = &self.role else { return Err(RstCode::Denied) };
        let Some(config) = listeners.get(ix) else { return Err(RstCode::NoRoute) };
        let code = if self.draining {
            Some(RstCode::Draining)
        } else if self.streams_everywhere() >= self.limits.max_streams as usize
            || self.is_full(ix, config.max_connections)
        {
            Some(RstCode::Busy)
        } else if self.pressure >= Pressure::Lowered {
            Some(RstCode::Budget)
        } else {
            None
        };
        if let Some(code) = code {
            if let Some(n) = self.counters.open_failures.get_mut(ix).and_then(|r| r.get_mut(usize::from(code.number())))
            {
                *n += 1;
            }
            return Err(code);
        }
        let (eager, wait) = (config.open == crate::config::OpenRule::Eager, open.first_byte_wait);
        let give_up_at = now.after(if planted::on(2052) { open.timeout * 3 } else { open.timeout });
        let key = self.streams.insert(Stream {
            cid: Cid(0),
            fence: Fence::default(),
            ends: [End::Socket(sock), End::Pending],
            halves: [Half::new(), Half::new()],
            open: false,
            part: Part::Origin(Box::new(Origin {
                listener,
                tried: Box::default(),
                last_no: None,
                retained: Waiting::default(),
                asked_afresh: false,
                give_up_at,
                waits: OriginWait::FirstByte,
                times: OpenTimes { accepted: now, ..OpenTimes::default() },
                carrier: None,
                interruptions_before: 0,
                key: self.rng.bytes(),
            })),
            deadline: None,
        });
        if let Some(n) = self.clients.get_mut(ix) {
            *n += 1;
        }
        if eager {
            self.try_open(now, key, out);
        } else {
            self.arm(key, now.after(wait));
        }
        Ok(key)
    }

    pub(super) fn connector_of(&self, listener: ListenerIx) -> Name {
        match &self.role {
            Role::Hub { listeners, .. } => listeners.get(usize::from(listener.0)).map(|l| l.connector.clone()),
            Role::Agent { .. } => None,
        }
        .unwrap_or_else(|| Name::new("none").expect("a valid name"))
    }

    /// Opens at the best candidate not tried yet, or asks for routes, or fails.
    pub(super) fn try_open(&mut self, now: Instant, key: StreamKey, out: &mut ShardOut) {
        let Some(Stream { part: Part::Origin(o), .. }) = self.streams.get(key) else { return };
        let connector = self.connector_of(o.listener);
        if o.tried.is_empty() && !o.asked_afresh {
            let listener = o.listener;
            self.decide_in_shadow(now, listener, &connector);
        }
        let Some(o) = self.origin(key) else { return };
        let choice = self.choose(now, &connector, &o.tried);
        let Role::Hub { open, .. } = &self.role else { return };
        let attempt = open.attempt_timeout;
        if let Some(candidate) = choice {
            self.send_open(now, key, connector, candidate, out);
            if let Some(give_up_at) = self.origin(key).map(|o| o.give_up_at) {
                self.arm(key, now.after(attempt).min(give_up_at));
            }
            return;
        }
        let Some(o) = self.origin_mut(key) else { return };
        if o.asked_afresh {
            let code = o.last_no.unwrap_or(RstCode::NoRoute);
            self.fail_open(now, key, code, Side::Hub, out);
            return;
        }
        o.asked_afresh = true;
        o.waits = OriginWait::Route;
        let (afresh, give_up_at) = (!o.tried.is_empty(), o.give_up_at);
        self.arm(key, give_up_at);
        self.questions += 1;
        let question = Question { shard: self.lane, number: self.questions };
        self.waiting_route.entry(connector.clone()).or_default().insert(key, question.number);
        out.notes.push(ShardNote::NeedRoute { connector, afresh, question });
    }

    fn send_open(&mut self, now: Instant, key: StreamKey, connector: Name, c: Candidate, out: &mut ShardOut) {
        let again = planted::on(2009) && self.origin(key).is_some_and(|o| !o.tried.is_empty());
        let cid = if again { Cid::new(self.incarnation, self.lane, self.minted) } else { self.mint() };
        let granted = initial_window(self.limits.stream_window_initial_bytes, self.pressure);
        let max = self.limits.stream_window_max_bytes;
        let early = self.sessions.get(&c.session).map_or(0, |s| s.initial_window);
        let interruptions = self.interruptions_of(c.session);
        self.on_asked(now, key, &connector, &c);
        let Some(s) = self.streams.get_mut(key) else { return };
        let Part::Origin(o) = &mut s.part else { return };
        o.tried = o.tried.iter().copied().chain([c.fence]).collect();
        o.waits = OriginWait::Answer;
        o.interruptions_before = interruptions;
        o.times.routed = Some(now);
        o.carrier = Some(Carrier { agent_id: c.agent_id.clone(), owner: c.owner, local: c.local });
        s.cid = cid;
        s.fence = c.fence;
        s.ends[1] = End::Session(c.session);
        // The up half starts over with what was kept; the client is not asked again.
        let up = &mut s.halves[0];
        up.waiting = o.retained.iter().cloned().collect();
        up.sent = 0;
        up.queued = 0;
        up.consumed = 0;
        up.limit = early;
        if up.state == crate::stream::HalfState::Ended {
            up.state = crate::stream::HalfState::Ending;
        }
        let down = &mut s.halves[1];
        down.granted = granted;
        down.window = Some(Box::new(RecvWindow::new(granted, max)));
        let open = Open { nonce: c.fence.nonce, connector, agent_id: c.agent_id, key: Secret(o.key), limit: granted };
        out.frames.push((c.session, Frame::stream(cid, c.fence.epoch, Body::Open(Box::new(open)))));
        self.by_cid.insert(cid, key);
        *self.load.entry(c.fence).or_default() += 1;
        self.index_session(key, c.session, true);
        self.pass_on(key, 0, out);
        self.wake_source(key, 0, out);
    }

    /// Takes back an attempt that was answered with a definite no.
    fn take_back(&mut self, key: StreamKey, out: &mut ShardOut) {
        let Some(s) = self.streams.get_mut(key) else { return };
        let (cid, fence) = (s.cid, s.fence);
        if let End::Session(session) = s.ends[1] {
            s.ends[1] = End::Pending;
            if !planted::on(2058) {
                out.obsolete.push((session, cid));
            }
            self.unindex_session(key, session, true);
        }
        self.by_cid.remove(&cid);
        if let Some(n) = self.load.get_mut(&fence) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                self.load.remove(&fence);
            }
        }
        if let Some(s) = self.streams.get_mut(key) {
            s.cid = Cid(0);
            // What was sent to that candidate waits again, for the next one.
            let up = &mut s.halves[0];
            up.sent = 0;
            up.queued = 0;
            if let Part::Origin(o) = &mut s.part {
                up.waiting = o.retained.iter().cloned().collect();
                o.carrier = None;
            }
        }
    }

    /// The answer to an OPEN of ours was no.
    pub(super) fn on_refused(&mut self, now: Instant, key: StreamKey, code: RstCode, out: &mut ShardOut) {
        self.on_candidate_failed(now, key, code, out);
        let Some(s) = self.streams.get(key) else { return };
        let (cid, fence) = (s.cid, s.fence);
        let Some(o) = self.origin(key) else { return };
        let connector = self.connector_of(o.listener);
        let faded = self.routes.of(&connector).any(|c| c.fence == fence && c.is_faded());
        // A route that is not listed was rightly gone: over, or withdrawn.
        let over = faded && matches!(code, RstCode::NotOwner | RstCode::Denied | RstCode::Draining);
        let (code, told) = if over { (RstCode::NotOwner, RstCode::NoRoute) } else { (code, code) };
        let Some(o) = self.origin_mut(key) else { return };
        o.last_no = Some(told);
        if (code.definite_no() || planted::on(2028)) && now < o.give_up_at {
            self.take_back(key, out);
            self.dedup.bury(cid, Terminal::Reset(code));
            self.try_open(now, key, out);
        } else {
            // The peer holds nothing of it any more, so it is not told.
            let session =
                self.streams.get(key).and_then(|s| if let End::Session(k) = s.ends[1] { Some(k) } else { None });
            self.reset(now, key, code, Side::Agent, session, out);
        }
    }

    /// Whether a stream of this shard has this name.
    #[must_use]
    pub fn knows(&self, cid: Cid) -> bool {
        self.by_cid.contains_key(&cid)
    }

    /// Whether a stream of this name is bound to a session, for checks.
    #[must_use]
    pub fn is_bound(&self, cid: Cid, session: SessionKey) -> bool {
        let stream = self.by_cid.get(&cid).and_then(|key| self.streams.get(*key));
        stream.is_some_and(|s| s.side_of(session).is_some())
    }

    /// The OPEN of a stream could not be handed to its session: that one is
    /// gone, and the note of its loss is still on the way; or it waited there
    /// until the fence it names was replaced. Nothing was sent, so it is as good
    /// as a definite no (S6); a stale cid is ignored (C5).
    pub fn on_unsent(&mut self, now: Instant, session: SessionKey, cid: Cid, out: &mut ShardOut) {
        let Some(&key) = self.by_cid.get(&cid) else { return };
        if self.streams.get(key).is_some_and(|s| !s.open && s.ends[1] == End::Session(session)) {
            self.on_open_ack(now, key, 1, session, Err(RstCode::NotOwner), out);
        }
    }

    /// Control answered a `NeedRoute`, and those asked before it.
    pub(super) fn on_route_answer(
        &mut self,
        now: Instant,
        connector: &Name,
        number: u64,
        result: Result<(), RstCode>,
        out: &mut ShardOut,
    ) {
        let Some(waiting) = self.waiting_route.remove(connector) else { return };
        // Who asked later waits for a later answer.
        let (answered, later): (BTreeMap<_, _>, BTreeMap<_, _>) =
            waiting.into_iter().partition(|(_, asked)| *asked <= number);
        if !later.is_empty() {
            self.waiting_route.insert(connector.clone(), later);
        }
        for key in answered.into_keys() {
            match result {
                Ok(()) => self.try_open(now, key, out),
                Err(code) => {
                    let code = self.origin(key).and_then(|o| o.last_no).unwrap_or(code);
                    self.fail_open(now, key, code, Side::Hub, out);
                }
            }
        }
    }

    /// The deadline of an unopened stream passed.
    pub(super) fn on_open_deadline(&mut self, now: Instant, key: StreamKey, out: &mut ShardOut) {
        match self.streams.get(key).map(|s| (&s.part, s.open)) {
            Some((Part::Origin(o), false)) if o.waits == OriginWait::FirstByte => self.try_open(now, key, out),
            Some((Part::Origin(o), false)) if o.waits == OriginWait::Answer && now < o.give_up_at => {
                // The candidate could not answer while its session was
                // interrupted; that time does not count against it.
                let give_up_at = o.give_up_at;
                match self.answer_due(now, key) {
                    Some(at) if at > now => self.arm(key, at.min(give_up_at)),
                    _ => {
                        self.on_candidate_failed(now, key, RstCode::Timeout, out);
                        self.fail_open(now, key, RstCode::Timeout, Side::Hub, out);
                    }
                }
            }
            Some((Part::Origin(o), false)) => {
                let code =
                    if o.waits == OriginWait::Route { o.last_no.unwrap_or(RstCode::Timeout) } else { RstCode::Timeout };
                self.fail_open(now, key, code, Side::Hub, out);
            }
            Some((Part::Agent, false)) => self.reset(now, key, RstCode::TargetTimeout, Side::Agent, None, out),
            _ => {}
        }
    }

    /// Until when the candidate asked has time to answer.
    fn answer_due(&self, now: Instant, key: StreamKey) -> Option<Instant> {
        let Role::Hub { open, .. } = &self.role else { return None };
        let End::Session(session) = self.streams.get(key)?.ends[1] else { return None };
        let info = self.sessions.get(&session)?;
        let from = if info.usable { info.back_at } else { now };
        Some(from.after(open.attempt_timeout))
    }

    fn fail_open(&mut self, now: Instant, key: StreamKey, code: RstCode, by: Side, out: &mut ShardOut) {
        // What a candidate said is not this hub's doing.
        let said = self.origin(key).is_some_and(|o| o.last_no == Some(code) && code != RstCode::NoRoute);
        let by = if said { Side::Agent } else { by };
        self.reset(now, key, code, by, None, out);
    }

    pub(super) fn origin(&self, key: StreamKey) -> Option<&Origin> {
        match &self.streams.get(key)?.part {
            Part::Origin(o) => Some(o),
            Part::Owner | Part::Agent => None,
        }
    }

    pub(super) fn origin_mut(&mut self, key: StreamKey) -> Option<&mut Origin> {
        match &mut self.streams.get_mut(key)?.part {
            Part::Origin(o) => Some(o),
            Part::Owner | Part::Agent => None,
        }
    }
}
