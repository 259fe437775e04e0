//! Tokens of live tunnels: when one runs out, and a fresh one that comes in
//! band. Keeps I4: nothing is opened past the end of a token, and a narrower
//! one counts from the next OPEN. What a token says is the driver's to judge;
//! open streams are touched only as `auth.on_expiry` says.

use super::control::{AttachmentState, Control};
use crate::config::OnExpiry;
use crate::error::CloseCode;
use crate::id::{AgentId, SessionKey};
use crate::mux::{Mux, NodeOut, Peer};
use crate::observed::Observed;
use crate::planted;
use crate::principal::AgentGrant;
use crate::shard::ControlNote;
use crate::time::Instant;
use crate::wire::{Frame, SecretText, TOKEN_ACCEPTED, TOKEN_REFUSED};

fn answer(accepted: bool) -> Frame {
    let word = if accepted { TOKEN_ACCEPTED } else { TOKEN_REFUSED };
    Frame::Token { token: SecretText(word.to_owned()) }
}

impl Control {
    fn attached_over(&self, key: SessionKey, mux: &Mux) -> Option<AgentId> {
        let Some(Peer::Agent { id, .. }) = mux.get(key).map(|e| &e.peer) else { return None };
        self.attachments.get(id).filter(|a| a.session == key).map(|_| id.clone())
    }

    /// An agent sends a fresh token: the driver judges it. One at a time, so
    /// that a peer cannot make it judge many.
    pub(super) fn on_token(
        &mut self,
        now: Instant,
        key: SessionKey,
        token: SecretText,
        mux: &mut Mux,
        out: &mut NodeOut,
    ) {
        let Some(agent_id) = self.attached_over(key, mux) else { return };
        let Some(a) = self.attachments.get_mut(&agent_id) else { return };
        if std::mem::replace(&mut a.judging, true) {
            mux.send(now, key, answer(false), out);
        } else {
            out.tokens.push((key, token));
        }
    }

    /// The verdict on it.
    pub(super) fn on_judged(
        &mut self,
        now: Instant,
        key: SessionKey,
        grant: Option<AgentGrant>,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        let Some(agent_id) = self.attached_over(key, mux) else { return };
        let Some(a) = self.attachments.get_mut(&agent_id) else { return };
        if !std::mem::take(&mut a.judging) {
            return;
        }
        // Another subject is another agent's token, even if it covers this one.
        let fits = |g: &AgentGrant| g.subject == a.grant.subject && g.expires.is_none_or(|at| at > now);
        let Some(grant) = grant.filter(fits) else {
            mux.send(now, key, answer(false), out);
            return out.observed.push(Observed::TokenRefused { agent_id });
        };
        self.renew_grant(now, &agent_id, grant, notes, out);
        mux.send(now, key, answer(true), out);
        self.need_not_leave(now, key, mux, out);
        out.observed.push(Observed::TokenRenewed { agent_id });
    }

    /// It was told to go elsewhere, perhaps: it need not any more.
    pub(super) fn need_not_leave(&mut self, now: Instant, key: SessionKey, mux: &mut Mux, out: &mut NodeOut) {
        if self.running_out.remove(&key) {
            mux.send(now, key, Frame::Status(self.status_to(key)), out);
        }
    }

    /// Attachments whose token ran out take nothing new (I4); what is open
    /// goes on, ends within a time, or ends now.
    pub(super) fn expire_tokens(
        &mut self,
        now: Instant,
        mux: &mut Mux,
        notes: &mut Vec<ControlNote>,
        out: &mut NodeOut,
    ) {
        if self.expiry_at.is_none_or(|at| at > now) {
            return;
        }
        let due = |a: &AttachmentState| !a.expired && a.grant.expires.is_some_and(|at| at <= now);
        let late: Vec<AgentId> = self.attachments.iter().filter(|(_, a)| due(a)).map(|(id, _)| id.clone()).collect();
        for agent_id in late {
            let Some(a) = self.attachments.get_mut(&agent_id) else { continue };
            a.expired = true;
            let key = a.session;
            a.close_at = match self.config.on_expiry {
                OnExpiry::Keep => None,
                OnExpiry::Cut => Some(now),
                OnExpiry::Drain(within) => Some(now.after(within)),
            };
            if matches!(self.config.on_expiry, OnExpiry::Drain(_)) {
                self.running_out.insert(key);
                mux.send(now, key, Frame::Status(self.status_to(key)), out);
                mux.send(now, key, Frame::GoAway { code: CloseCode::Draining, retry_after_ms: 0 }, out);
            }
            self.publish_connectors(now, &agent_id, notes, out);
            out.observed.push(Observed::TokenExpired { agent_id });
        }
        let over = |a: &AttachmentState| a.close_at.is_some_and(|at| at <= now);
        let over: Vec<SessionKey> = self.attachments.values().filter(|a| over(a)).map(|a| a.session).collect();
        for key in over {
            self.lose(now, key, CloseCode::Auth, mux, notes, out);
        }
        let next = |a: &AttachmentState| if a.expired { a.close_at } else { a.grant.expires };
        self.expiry_at = self.attachments.values().filter_map(next).min();
        if planted::on(2012) {
            self.expiry_at = None;
        }
    }
}
