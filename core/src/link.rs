//! The life of a dial: hub to peer, or agent to hub. The transitions are data;
//! the diagram in the README is generated from them and compared by a test
//! (seed: "Mesh link state machine").
//!
//! It owns the state, the jittered back-off and the count of failures in a
//! row. A session outlives its connection; this machine is about connections:
//! `Established` means one carries the session now. A link whose peer dialled
//! us first is `Established` as well, so of two hubs nobody dials in vain
//! (L4). Back-off has no floats and never shrinks to a storm (L8).
//! It must not know sessions, handshakes, sockets or who the peer is.

use std::fmt::Write as _;
use std::time::Duration;

use crate::config::Backoff;
use crate::planted;
use crate::rng::{Rng, Seed};
use crate::time::{Deadline, Instant};

/// Where a link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// A dial or its handshake is on the way.
    Connecting,
    /// A connection carries the session.
    Established,
    /// Waiting before the next dial.
    Backoff,
    /// Not wanted any more.
    Closed,
}

impl State {
    /// Every state, in the order of the diagram.
    pub const ALL: [Self; 4] = [Self::Connecting, Self::Established, Self::Backoff, Self::Closed];

    /// The name in the diagram.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "Connecting",
            Self::Established => "Established",
            Self::Backoff => "Backoff",
            Self::Closed => "Closed",
        }
    }

    /// The name in logs, readiness and the `state` label of
    /// `nowconnect_mesh_links`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Established => "established",
            Self::Backoff => "backoff",
            Self::Closed => "closed",
        }
    }
}

/// What happens to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// The handshake is done, whoever dialled.
    Up,
    /// The dial or the handshake failed.
    Failed,
    /// `max_retries` dials in a row failed.
    Exhausted,
    /// The connection that carried the session is gone.
    Lost,
    /// The back-off has passed, or somebody wants the link at once.
    Retry,
    /// The configuration does not want the link any more.
    Disabled,
    /// The configuration wants the link again.
    Enabled,
    /// The process stops.
    Shutdown,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 8] = [
        Self::Up,
        Self::Failed,
        Self::Exhausted,
        Self::Lost,
        Self::Retry,
        Self::Disabled,
        Self::Enabled,
        Self::Shutdown,
    ];

    /// The label in the diagram.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Up => "handshake done",
            Self::Failed => "error",
            Self::Exhausted => "max_retries reached",
            Self::Lost => "link error",
            Self::Retry => "retry after back-off",
            Self::Disabled => "disabled",
            Self::Enabled => "enabled",
            Self::Shutdown => "shutdown",
        }
    }
}

/// All transitions; any other event leaves the state as it is (late events
/// are normal, C5).
pub const TABLE: &[(State, Event, State)] = &[
    (State::Connecting, Event::Up, State::Established),
    (State::Connecting, Event::Failed, State::Backoff),
    (State::Connecting, Event::Exhausted, State::Closed),
    (State::Connecting, Event::Disabled, State::Closed),
    (State::Connecting, Event::Shutdown, State::Closed),
    (State::Established, Event::Lost, State::Backoff),
    (State::Established, Event::Exhausted, State::Closed),
    (State::Established, Event::Disabled, State::Closed),
    (State::Established, Event::Shutdown, State::Closed),
    (State::Backoff, Event::Up, State::Established),
    (State::Backoff, Event::Retry, State::Connecting),
    (State::Backoff, Event::Disabled, State::Closed),
    (State::Backoff, Event::Shutdown, State::Closed),
    (State::Closed, Event::Enabled, State::Connecting),
];

/// The state after an event.
#[must_use]
pub fn next(state: State, event: Event) -> Option<State> {
    TABLE.iter().find(|(from, ev, _)| (*from, *ev) == (state, event)).map(|(.., to)| *to)
}

/// The table as a mermaid state diagram.
#[must_use]
pub fn mermaid() -> String {
    let mut out = String::from("stateDiagram-v2\n  [*] --> Connecting\n");
    for (from, event, to) in TABLE {
        let _ = writeln!(out, "  {} --> {}: {}", from.name(), to.name(), event.label());
    }
    out
}

/// What the owner has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a dial.
    Dial,
    /// End the dial or the connection.
    Close,
}

/// A connection must have lasted this many initial delays to count as a
/// success; a peer that accepts and drops at once must not be dialled at the
/// initial pace for ever (L8).
const LASTED_INITIAL_DELAYS: u32 = 2;

/// Longest wait a peer may impose by GOAWAY{retry_after}; a mistaken or
/// hostile one must not park a link for ever. The flap guard asks for 60 s.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// One link. Starts in `Connecting`: whoever makes it dials at once.
#[derive(Debug)]
pub struct Link {
    backoff: Backoff,
    rng: Rng,
    state: State,
    /// Dials in a row that did not lead to a lasting connection.
    attempts: u32,
    /// The delay of the next back-off before caps and jitter.
    base: Duration,
    /// `base` of the back-off in progress.
    waiting_base: Duration,
    since: Instant,
    retry_at: Instant,
    not_before: Instant,
    streams_wait: bool,
    reconnects: u64,
    errors: u64,
    was_established: bool,
}

impl Link {
    /// A link about to be dialled.
    #[must_use]
    pub fn new(backoff: Backoff, seed: Seed, now: Instant) -> Self {
        Self {
            backoff,
            rng: seed.fork("link").rng(),
            state: State::Connecting,
            attempts: 0,
            base: backoff.initial,
            waiting_base: Duration::ZERO,
            since: now,
            retry_at: now,
            not_before: now,
            streams_wait: false,
            reconnects: 0,
            errors: 0,
            was_established: false,
        }
    }

    /// A link whose first dial is spread like that after a lost connection:
    /// for whoever makes it because something many depend on is gone (L8).
    #[must_use]
    pub fn soon(backoff: Backoff, seed: Seed, now: Instant) -> Self {
        let mut link = Self::new(backoff, seed, now);
        link.state = State::Backoff;
        link.start_backoff(now);
        link
    }

    /// A link whose first dial waits as one would after so many failures in a
    /// row: for whoever makes it because others of its kind did not last (L8).
    /// Its own failures count from none.
    #[must_use]
    pub fn wary(backoff: Backoff, seed: Seed, now: Instant, failures: u32) -> Self {
        let mut link = Self::new(backoff, seed, now);
        link.state = State::Backoff;
        for _ in 1..failures {
            if link.base >= backoff.max {
                break;
            }
            link.base = scale(link.base, backoff.multiplier_milli).min(backoff.max);
        }
        link.grow(now);
        link
    }

    /// Other delays from the next one on.
    pub const fn reload(&mut self, backoff: Backoff) {
        self.backoff = backoff;
    }

    /// Where it stands.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Since when it is in that state.
    #[must_use]
    pub const fn since(&self) -> Instant {
        self.since
    }

    /// Dials in a row that did not lead to a lasting connection.
    #[must_use]
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Times it was established again (`nowconnect_mesh_link_reconnects_total`).
    #[must_use]
    pub const fn reconnects(&self) -> u64 {
        self.reconnects
    }

    /// Failed dials and lost connections (`nowconnect_mesh_link_errors_total`).
    #[must_use]
    pub const fn errors(&self) -> u64 {
        self.errors
    }

    /// Applies an event. [`Event::Exhausted`] is the link's own: it takes the
    /// place of `Failed` or `Lost` once `max_retries` dials in a row failed.
    pub fn on_event(&mut self, now: Instant, event: Event) -> Option<Action> {
        let event = self.count(now, event);
        self.enter(now, event)
    }

    /// The dial failed, yet the peer answered it: a failure for the back-off,
    /// and never the last one allowed.
    pub fn on_refused(&mut self, now: Instant) -> Option<Action> {
        let counted = self.count(now, Event::Failed);
        let event = if counted == Event::Exhausted { Event::Failed } else { counted };
        self.enter(now, event)
    }

    fn enter(&mut self, now: Instant, event: Event) -> Option<Action> {
        let from = self.state;
        let to = next(from, event)?;
        self.state = to;
        self.since = now;
        match to {
            State::Connecting => {
                if from == State::Closed {
                    self.attempts = 0;
                    self.base = self.backoff.initial;
                }
                Some(Action::Dial)
            }
            State::Established => {
                self.reconnects += u64::from(self.was_established || planted::on(2042));
                self.was_established = true;
                None
            }
            State::Backoff => {
                self.start_backoff(now);
                None
            }
            State::Closed => (from != State::Backoff && event != Event::Exhausted).then_some(Action::Close),
        }
    }

    /// Books failures, and says whether this one was the last allowed.
    fn count(&mut self, now: Instant, event: Event) -> Event {
        match (self.state, event) {
            (State::Connecting, Event::Failed) => {}
            (State::Established, Event::Lost) => {
                let lasted = now.since(self.since) >= self.backoff.initial.saturating_mul(LASTED_INITIAL_DELAYS);
                if lasted && !planted::on(42) {
                    self.attempts = 0;
                    self.base = self.backoff.initial;
                    self.errors += 1;
                    return event;
                }
            }
            _ => return event,
        }
        self.errors += 1;
        self.attempts = self.attempts.saturating_add(1);
        let most = if planted::on(2019) { 4 } else { self.backoff.max_retries };
        if most > 0 && self.attempts >= most { Event::Exhausted } else { event }
    }

    fn start_backoff(&mut self, now: Instant) {
        if self.attempts == 0 {
            // A connection that had lasted broke: the first dial comes almost at
            // once, so that a session goes on within 200 ms, yet spread, so that
            // the agents of a crashed hub do not come as one (L8).
            self.waiting_base = scale(self.backoff.initial, self.backoff.jitter_milli.min(1000));
            self.retry_at = self.spread(now).max(self.not_before);
            return;
        }
        self.grow(now);
    }

    /// Almost at once, yet not when all others do.
    fn spread(&mut self, now: Instant) -> Instant {
        let spread = scale(self.backoff.initial, self.backoff.jitter_milli.min(1000));
        let nanos = u64::try_from(spread.as_nanos()).unwrap_or(u64::MAX);
        let nanos = if planted::on(2040) { 0 } else { self.rng.below(nanos.saturating_add(1)) };
        now.after(Duration::from_nanos(nanos))
    }

    /// The peer answers after all: a back-off in progress ends almost at once.
    /// Failures in a row count on, so that this helps once (L8).
    pub fn hasten(&mut self, now: Instant) {
        if self.state == State::Backoff {
            self.retry_at = self.retry_at.min(self.spread(now)).max(self.not_before);
        }
    }

    /// The peer is needed more than before: the same, yet a while after the last
    /// dial, however often this is said (L8).
    pub fn hasten_gently(&mut self, now: Instant) {
        let rested = self.since.after(self.backoff.initial.saturating_mul(LASTED_INITIAL_DELAYS));
        self.hasten(now.max(rested));
    }

    /// The next delay, longer than the one before.
    fn grow(&mut self, now: Instant) {
        self.waiting_base = self.base.min(self.backoff.max);
        self.base = scale(self.waiting_base, self.backoff.multiplier_milli).min(self.backoff.max);
        let delay = self.jittered(self.capped(self.waiting_base));
        self.retry_at = now.after(delay).max(self.not_before);
    }

    fn capped(&self, base: Duration) -> Duration {
        if self.streams_wait { base.min(self.backoff.max_while_streams_wait) } else { base }
    }

    /// The delay less a random share of it, up to `jitter`.
    fn jittered(&mut self, delay: Duration) -> Duration {
        let share = scale(delay, self.backoff.jitter_milli.min(1000));
        let nanos = u64::try_from(share.as_nanos()).unwrap_or(u64::MAX);
        let nanos = if planted::on(2037) { 0 } else { self.rng.below(nanos.saturating_add(1)) };
        delay.saturating_sub(Duration::from_nanos(nanos))
    }

    /// Whether streams wait on the session: then the delay is at most
    /// `max_while_streams_wait`, also of a back-off in progress.
    pub fn set_streams_wait(&mut self, now: Instant, wait: bool) {
        let begins = wait && !self.streams_wait;
        self.streams_wait = wait;
        if begins && self.state == State::Backoff {
            let delay = self.jittered(self.capped(self.waiting_base));
            self.retry_at = self.retry_at.min(now.after(delay)).max(self.not_before);
        }
    }

    /// The peer asked not to be dialled for a while (GOAWAY). Honoured up to
    /// [`RETRY_AFTER_MAX`], also by a back-off in progress.
    pub fn on_retry_after(&mut self, now: Instant, wish: Duration) {
        self.rest_until(now.after(wish.min(RETRY_AFTER_MAX)));
    }

    /// Until when a wish of the peer holds.
    #[must_use]
    pub const fn rests_until(&self) -> Instant {
        self.not_before
    }

    /// What a peer asked of an earlier link to it holds for this one, too.
    pub fn rest_until(&mut self, at: Instant) {
        self.not_before = self.not_before.max(at);
        if self.state == State::Backoff {
            self.retry_at = self.retry_at.max(self.not_before);
        }
    }

    /// Ends the back-off when it has passed.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Action> {
        if self.state == State::Backoff && now >= self.retry_at { self.on_event(now, Event::Retry) } else { None }
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Deadline> {
        (self.state == State::Backoff).then_some(Deadline { at: self.retry_at, why: "link back-off" })
    }
}

/// `d` times `milli` thousandths, saturating, in whole nanoseconds.
fn scale(d: Duration, milli: u32) -> Duration {
    let nanos = d.as_nanos().saturating_mul(u128::from(milli)) / 1000;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
