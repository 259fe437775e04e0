//! One client's connection to the registry: order of requests and replies,
//! when it is given up, when it is dialled again. The twin of
//! `driver-tokio/src/registry/connection.rs`.
//!
//! Keeps: requests of one connection arrive in order and so do its replies;
//! while there is none, callers are refused at once (planted bug 49).
//!
//! Must not know: operations, what is the matter with the server.

use std::time::Duration;

use nowconnect_core::time::Instant;

use super::{Client, Draw};

/// `RedisTimeouts::default()` of the production driver.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// `TIMEOUTS_MAX` there.
const TIMEOUTS_MAX: u32 = 2;

#[derive(Clone, Debug)]
pub(super) struct Conn {
    pub(super) run: u64,
    /// Counts connections: what belongs to an earlier one is known by it.
    pub(super) generation: u32,
    /// When this one was made; what it resolved dates from there.
    pub(super) since: Instant,
    redial_at: Option<Instant>,
    pause: Duration,
    timeouts: u32,
    last_arrival: Instant,
    last_reply: Instant,
    /// It ends at a server that takes no writes, and is kept all the same
    /// (planted bug 48).
    pub(super) stuck: bool,
}

/// A client that does not connect anew when it is told READONLY.
const PLANTED_NEVER_ANEW: u16 = 48;

impl Conn {
    /// The server says READONLY: it was demoted, and another one is master now.
    pub(super) fn read_only(&mut self, now: Instant, draw: &mut dyn Draw) {
        if nowconnect_core::planted::current() == Some(PLANTED_NEVER_ANEW) {
            self.stuck = true;
        } else {
            self.abandon(self.generation, now, draw);
        }
    }

    pub(super) fn new(run: u64, now: Instant) -> Self {
        Self {
            run,
            generation: 0,
            since: now,
            redial_at: None,
            pause: BACKOFF_MIN,
            timeouts: 0,
            last_arrival: Instant::ZERO,
            last_reply: Instant::ZERO,
            stuck: false,
        }
    }

    /// Whether there is a connection, after the dials that were due. A dial
    /// succeeds unless `blocked`.
    pub(super) fn is_up(&mut self, now: Instant, blocked: bool) -> bool {
        let Some(at) = self.redial_at else { return true };
        if now < at {
            return false;
        }
        if blocked {
            self.pause = self.pause.saturating_mul(2).min(BACKOFF_MAX);
            self.redial_at = Some(now.after(self.pause));
            return false;
        }
        self.redial_at = None;
        self.since = now;
        true
    }

    /// Closes the connection, unless a newer one took its place.
    pub(super) fn abandon(&mut self, generation: u32, now: Instant, draw: &mut dyn Draw) {
        if generation != self.generation || self.redial_at.is_some() {
            return;
        }
        self.generation += 1;
        self.stuck = false;
        self.timeouts = 0;
        self.last_arrival = now;
        self.last_reply = now;
        // The pause and the round trips of dialling and the first questions.
        self.redial_at = Some(now.after(self.pause + Duration::from_micros(500 + draw.below(20_000))));
    }

    pub(super) fn answered(&mut self, generation: u32) {
        if generation == self.generation {
            self.timeouts = 0;
            self.pause = BACKOFF_MIN;
        }
    }

    pub(super) fn timed_out(&mut self, generation: u32, now: Instant, draw: &mut dyn Draw) {
        if generation == self.generation {
            self.timeouts += 1;
            if self.timeouts >= TIMEOUTS_MAX {
                self.abandon(generation, now, draw);
            }
        }
    }

    /// When a request that would arrive at `at` does.
    pub(super) fn arrival(&mut self, at: Instant) -> Instant {
        self.last_arrival = at.max(self.last_arrival.after(Duration::from_nanos(1)));
        self.last_arrival
    }

    /// The same for a reply.
    pub(super) fn reply(&mut self, generation: u32, at: Instant) -> Instant {
        if generation != self.generation {
            return at;
        }
        self.last_reply = at.max(self.last_reply.after(Duration::from_nanos(1)));
        self.last_reply
    }
}

/// Connections by machine; a new run of a machine has a new one.
#[derive(Clone, Debug, Default)]
pub(super) struct Conns(Vec<Option<Conn>>);

impl Conns {
    /// The client's connection, made at `now` if this run has none yet.
    pub(super) fn of(&mut self, client: Client, now: Instant) -> &mut Conn {
        if self.0.len() <= client.node {
            self.0.resize(client.node + 1, None);
        }
        let slot = &mut self.0[client.node];
        if slot.as_ref().is_some_and(|c| c.run < client.run) {
            *slot = None;
        }
        slot.get_or_insert_with(|| Conn::new(client.run, now))
    }

    /// The machine's connection is given up: it leads elsewhere from now on.
    pub(super) fn dial_anew(&mut self, node: usize, now: Instant, draw: &mut dyn Draw) {
        if let Some(conn) = self.0.get_mut(node).and_then(Option::as_mut) {
            conn.abandon(conn.generation, now, draw);
        }
    }

    /// The connection of exactly this run, if it is still there.
    pub(super) fn find(&mut self, client: Client) -> Option<&mut Conn> {
        self.0.get_mut(client.node)?.as_mut().filter(|c| c.run == client.run)
    }
}
