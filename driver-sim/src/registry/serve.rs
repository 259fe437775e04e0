//! How a server answers a request while faults are in force.
//!
//! Keeps: what the production driver would report of each fault; a refusal by
//! the server executes nothing.
//!
//! Must not know: how a reply travels.

use std::time::Duration;

use nowconnect_core::id::AgentId;
use nowconnect_core::registry::{RegistryError, RegistryOp, RegistryReply, RegistryResult};
use nowconnect_core::time::Instant;
use nowconnect_core::wire::ConnectorAd;

use super::fault::{Active, reads, writes};
use super::server::Change;
use super::{Class, Draw, Fault, RegistryModel, Request, ServerError, chance};

impl RegistryModel {
    /// Executes under faults. False: nobody hears of it.
    pub(super) fn serve(&mut self, now: Instant, request: &mut Request, draw: &mut dyn Draw) -> bool {
        let node = request.client.node;
        let mut error = None;
        for a in self.active.iter().filter(|a| a.whom.is(node)) {
            if let Fault::Errors { error: e, per_mille } = a.fault
                && e.meets(&request.op)
                && error.is_none()
                && chance(per_mille, draw)
            {
                error = Some(e);
            }
        }
        if let Some(error) = error {
            self.count(Fault::Errors { error, per_mille: 0 }.class());
            // A script that failed in its middle may have done its work.
            if error == ServerError::Unrecognised && draw.below(2) == 1 {
                self.execute(now, request, 0).ok();
            }
            request.result = Err(error.outcome());
            if error.abandons() {
                self.abandon(now, request, draw);
            }
            return true;
        }
        if let Some(view) = self.stale_view(now, request, draw) {
            request.result = view;
            return true;
        }
        let skew = self.skew(&request.op, node);
        let done = self.with_half_done(now, request, skew, draw);
        let lost = |f: &Fault| if let Fault::LoseReplies { per_mille } = f { Some(*per_mille) } else { None };
        if done && self.strikes(node, lost, draw) {
            self.count(Class::R2);
            return false;
        }
        true
    }

    /// The answer of a replica, when that is whom the client reaches.
    fn stale_view(&mut self, now: Instant, request: &Request, draw: &mut dyn Draw) -> Option<RegistryResult> {
        let wall = self.wall_millis(now);
        let node = request.client.node;
        let since = self.conns.of(request.client, now).since;
        let of_this_connection = |a: &&Active| {
            (matches!(a.fault, Fault::Demoted { .. }) && since <= a.from)
                || (matches!(a.fault, Fault::StaleReads { .. }) && reads(&request.op))
        };
        let active = self.active.iter().filter(|a| a.whom.is(node)).find(of_this_connection)?;
        let class = active.fault.class();
        if writes(&request.op) {
            self.count(class);
            if let Some(conn) = self.conns.find(request.client).filter(|c| c.generation == request.generation) {
                conn.read_only(now, draw);
            }
            return Some(Err(ServerError::ReadOnly.outcome()));
        }
        let result = active.view.clone().unwrap_or_default().execute(wall, &request.op);
        self.count(class);
        Some(result)
    }

    /// By how many milliseconds the clock that ends leases is off for readers.
    fn skew(&mut self, op: &RegistryOp, node: usize) -> i64 {
        if !reads(op) && *op != RegistryOp::Sweep {
            return 0;
        }
        let millis = |by: &Duration| i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        let off = |f: &Fault| {
            if let Fault::EarlyExpiry { by } = f {
                millis(by)
            } else if let Fault::LateExpiry { by } = f {
                -millis(by)
            } else {
                0
            }
        };
        let skew: i64 = self.active.iter().filter(|a| a.whom.is(node)).map(|a| off(&a.fault)).sum();
        if skew != 0 {
            self.count(Class::R8);
        }
        skew
    }

    /// False when only the first of two steps was taken.
    fn with_half_done(&mut self, now: Instant, request: &mut Request, skew: i64, draw: &mut dyn Draw) -> bool {
        let Some((agent_id, connectors)) = announces(&request.op) else {
            request.result = self.execute(now, request, skew);
            return true;
        };
        let half = |f: &Fault| if let Fault::HalfDone { per_mille } = f { Some(*per_mille) } else { None };
        let half = self.strikes(request.client.node, half, draw);
        let unannounced: Vec<_> = if half {
            let state = &self.server(request.client.node).state;
            let new = connectors.iter().filter(|ad| !state.is_announced(&ad.name, agent_id));
            new.map(|ad| Change::Unannounce(ad.name.clone(), agent_id.clone())).collect()
        } else {
            Vec::new()
        };
        request.result = self.execute(now, request, skew);
        if !half || !matches!(request.result, Ok(RegistryReply::Claimed { .. } | RegistryReply::Done)) {
            return true;
        }
        self.count(Class::R2);
        if matches!(request.op, RegistryOp::Claim(_)) {
            self.ghost.mark("claim executed but its connectors were not announced");
        }
        for change in unannounced {
            self.server_mut(request.client.node).change(now, change);
        }
        request.result = Err(RegistryError::Unknown("the server answered an error in the second step".to_owned()));
        false
    }
}

/// What an operation announces in a step of its own.
fn announces(op: &RegistryOp) -> Option<(&AgentId, &[ConnectorAd])> {
    if let RegistryOp::Claim(c) = op {
        Some((&c.agent_id, &c.connectors))
    } else if let RegistryOp::SetConnectors { agent_id, connectors, .. } = op {
        Some((agent_id, connectors))
    } else {
        None
    }
}
