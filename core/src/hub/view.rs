//! What readiness, metrics and `status` may see of a hub's control: links,
//! attachments, lease, handshakes. Views of state, taken when asked; they
//! change nothing.

use super::control::Control;
use super::leases::PeerLease;
use crate::id::{AgentId, Fence, Name, SessionKey};
use crate::link::State;
use crate::mux::Mux;
use crate::planted;
use crate::time::Instant;

impl Control {
    /// The links to peers, for gauges and readiness: configured peers first.
    #[must_use]
    pub fn links<'a>(&'a self, mux: &'a Mux) -> Vec<LinkView<'a>> {
        let mut views: Vec<LinkView<'a>> = Vec::new();
        let is_up = |key: SessionKey| mux.get(key).is_some_and(|e| e.conn.is_some());
        let listed = || self.peers.iter().zip(&self.config.peers).filter(|(p, _)| !p.itself && p.listed);
        // Links of which no address is known stand for as many peers: for those
        // that refused a dial because there is a link, and for those that never
        // answered if there is one for each. Which is which, nobody knows.
        let (mut spare, mut covered) = (self.of_no_address().filter(|key| is_up(*key)).count(), 0_usize);
        let all_there = listed().filter(|(p, _)| p.replica.is_none()).count() <= spare;
        let away = self.of_no_address().filter_map(|key| mux.get(key)?.suspended_at).max();
        for (p, named) in listed() {
            let session = p.replica.as_ref().and_then(|r| self.links.get(r)).copied();
            let entry = session.and_then(|k| mux.get(k));
            if (p.covered || all_there && p.replica.is_none()) && spare > 0 {
                // Shown below, by its name.
                (spare, covered) = (spare - 1, covered + 1);
                continue;
            }
            let up = session.is_some_and(is_up) || (planted::on(2023) && session.is_some());
            let lost_at = if p.replica.is_none() { p.lost_at.max(away) } else { p.lost_at };
            views.push(LinkView {
                replica: p.replica.as_ref(),
                url: Some(&named.url),
                // Not established without a connection, also where the peer's
                // dial carried it and is waited for.
                state: match (up, p.link.state()) {
                    (true, _) => State::Established,
                    (false, State::Established) => State::Backoff,
                    (false, state @ (State::Connecting | State::Backoff | State::Closed)) => state,
                },
                session,
                reconnects: p.link.reconnects(),
                errors: p.link.errors(),
                configured: true,
                down_since: if up { None } else { entry.and_then(|e| e.suspended_at).or(lost_at) },
                lease: if up { PeerLease::Unknown } else { p.lease },
            });
        }
        for (replica, key) in &self.links {
            if !views.iter().any(|v| v.replica == Some(replica)) {
                let entry = mux.get(*key);
                let down_since = entry.and_then(|e| e.suspended_at);
                let dialled = entry.and_then(|e| e.dialled).and_then(|t| self.config.peers.get(usize::from(t.0)));
                let up = down_since.is_none();
                let configured = up && covered > 0;
                covered -= usize::from(configured);
                views.push(LinkView {
                    replica: Some(replica),
                    url: dialled.map(|p| p.url.as_str()),
                    state: if up { State::Established } else { State::Backoff },
                    session: Some(*key),
                    reconnects: 0,
                    errors: 0,
                    configured,
                    down_since,
                    lease: PeerLease::Unknown,
                });
            }
        }
        views
    }

    /// The links that stay and of which no configured address is known.
    fn of_no_address(&self) -> impl Iterator<Item = SessionKey> {
        let known = |r: &Name| self.peers.iter().any(|p| p.listed && p.replica.as_ref() == Some(r));
        self.links.iter().filter(move |(r, key)| !known(r) && !self.quitting.contains_key(key)).map(|(_, key)| *key)
    }

    /// What became of this hub's dials since its start, those of peers that the
    /// configuration does not name any more included: totals never fall.
    #[must_use]
    pub fn link_totals(&self) -> LinkTotals {
        let mut sum = LinkTotals::default();
        for p in &self.peers {
            sum.reconnects += p.link.reconnects();
            sum.errors += p.link.errors();
        }
        sum
    }

    /// The attachments of this hub, by agent.
    pub fn tunnels(&self) -> impl Iterator<Item = TunnelView<'_>> {
        self.attachments.iter().map(|(agent_id, a)| TunnelView {
            agent_id,
            fence: a.fence,
            firm: a.firm,
            session: a.session,
            expires: a.grant.expires,
        })
    }

    /// When this hub's lease ends or ended, by the last renewal that succeeded;
    /// `None` when it holds none.
    #[must_use]
    pub const fn lease_until(&self) -> Option<Instant> {
        self.lease_until
    }

    /// Connections that have not finished their handshake.
    #[must_use]
    pub fn handshakes(&self) -> usize {
        self.handshakes.len()
    }
}

/// Totals of the links to every peer there ever was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkTotals {
    /// Times a link was established again.
    pub reconnects: u64,
    /// Failed dials and lost connections.
    pub errors: u64,
}

/// A link as gauges and readiness show it.
#[derive(Clone, Copy, Debug)]
pub struct LinkView<'a> {
    /// The peer's replica id, once known.
    pub replica: Option<&'a Name>,
    /// The URL it is dialled at, as configured; `None`: the peer dialled.
    pub url: Option<&'a str>,
    /// Where the link stands.
    pub state: State,
    /// Its session, connected or suspended.
    pub session: Option<SessionKey>,
    /// Times it was established again.
    pub reconnects: u64,
    /// Failed dials and lost connections.
    pub errors: u64,
    /// Whether it leads to a configured peer; else that hub dialled this one.
    pub configured: bool,
    /// Since when it is not established any more; `None` also when it never was.
    pub down_since: Option<Instant>,
    /// Whether a configured peer without a link holds a lease.
    pub lease: PeerLease,
}

/// An attachment as `status` shows it.
#[derive(Clone, Copy, Debug)]
pub struct TunnelView<'a> {
    /// The agent.
    pub agent_id: &'a AgentId,
    /// Its fence.
    pub fence: Fence,
    /// Granted by the registry.
    pub firm: bool,
    /// Its session.
    pub session: SessionKey,
    /// When its token runs out, leeway included.
    pub expires: Option<Instant>,
}
