//! A token that changes in its file counts without a restart: it is sent to
//! every hub over the live tunnels, and no stream notices. A hub that does not
//! take it (its keys may be on their way) is asked again, ever more slowly.
//! When four fifths of a token's life have passed and the file is still the
//! same, a warning says so.

use std::rc::Rc;
use std::time::Duration;

use nowconnect_core::agent::Agent;
use nowconnect_core::mux::Input;
use nowconnect_core::wire::SecretText;

use super::token::Lifetime;
use super::{Shared, read_token};
use crate::clock::unix_millis;
use crate::node::Node;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks within which a dial that read a token before its change has its tunnel up
/// or has failed: connecting, TLS, the upgrade and the handshake have 5 s each.
const DIAL_MAX_LOOKS: u32 = 60;
/// Looks until a refused token is sent again, at first and at most.
const AGAIN: (u32, u32) = (2, 60);

fn send(node: &Node<Agent>, shared: &Shared, token: &str) {
    shared.scopes.borrow_mut().sends(token);
    node.input(Input::Token { token: SecretText(token.to_owned()) });
}

/// Runs until the task is dropped; `used` is the token so far.
pub(super) async fn run(node: Node<Agent>, shared: Rc<Shared>, mut used: Option<String>) {
    let mut life = used.as_deref().and_then(Lifetime::of);
    let (mut read_at, mut warned) = (unix_millis() / 1000, false);
    let (mut wait, mut left) = (AGAIN.0, 0);
    let mut dials_of_before = 0_u32;
    shared.token_ends.set(life.map(|l| l.exp));
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = unix_millis() / 1000;
        let tunnel_came = shared.tunnel_came.take();
        dials_of_before = dials_of_before.saturating_sub(1);
        // Unreadable or empty: somebody is writing it. The dials say so.
        if let Ok(token) = read_token(&shared.setup().token_file)
            && used.as_ref() != Some(&token)
        {
            tracing::info!(event = "token_changed", "the new token is sent to the hubs");
            life = Lifetime::of(&token);
            (read_at, warned, wait, left) = (now, false, AGAIN.0, 0);
            shared.token_ends.set(life.map(|l| l.exp));
            shared.token_refused.set(false);
            send(&node, &shared, &token);
            used = Some(token);
            dials_of_before = DIAL_MAX_LOOKS;
        } else if tunnel_came
            && dials_of_before > 0
            && let Some(token) = &used
        {
            // Its dial may have begun before the change, with the token of before.
            send(&node, &shared, token);
        } else if shared.token_refused.get() {
            // The first look after a refusal begins the wait.
            left = if left == 0 { wait } else { left - 1 };
            if left == 0 {
                shared.token_refused.set(false);
                wait = (wait * 2).min(AGAIN.1);
                if let Some(token) = &used {
                    send(&node, &shared, token);
                }
            }
        }
        if !warned && life.is_some_and(|l| l.is_old(read_at, now)) {
            warned = true;
            let left_s = life.map_or(0, |l| l.exp.saturating_sub(now));
            tracing::warn!(
                event = "token_ages",
                left_s,
                "token_file: 80 % of the token's life have passed, and the file is the same"
            );
        }
    }
}
