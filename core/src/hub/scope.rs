//! What a tunnel's tokens let its agent expose (I1, I4), and what an earlier
//! one let it. Must not know frames or the registry.

use std::collections::BTreeSet;

use crate::id::Name;
use crate::principal::AgentGrant;
use crate::wire::{CONNECTORS_MAX, ConnectorAd};

/// Most names of earlier grants that are remembered; a tunnel whose tokens
/// took away more is treated as if it had never had the rest.
const EARLIER_MAX: usize = 4 * CONNECTORS_MAX;

/// May this grant expose this connector? (I1, chisel's lesson: also asked at
/// every change, not at HELLO alone.)
pub(super) fn allowed(grant: &AgentGrant, connector: &Name, insecure_allow_unscoped: bool) -> bool {
    match &grant.connectors {
        Some(scope) => scope.contains(connector),
        None => insecure_allow_unscoped,
    }
}

/// Parts what this grant may expose from what it may not.
pub(super) fn part(
    grant: &AgentGrant,
    ads: Vec<ConnectorAd>,
    insecure_allow_unscoped: bool,
) -> (Vec<ConnectorAd>, Vec<ConnectorAd>) {
    ads.into_iter().partition(|ad| allowed(grant, &ad.name, insecure_allow_unscoped))
}

/// What earlier grants of a tunnel allowed and the next one did not.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// One of them named nothing, when that meant everything.
    everything: bool,
    names: BTreeSet<Name>,
}

impl Earlier {
    /// A grant is replaced by another.
    pub(super) fn replaced(&mut self, old: &AgentGrant, new: &AgentGrant, insecure_allow_unscoped: bool) {
        match &old.connectors {
            None => self.everything |= insecure_allow_unscoped,
            Some(scope) => {
                let lost = scope.iter().filter(|c| !allowed(new, c, insecure_allow_unscoped));
                for name in lost {
                    if self.names.len() < EARLIER_MAX {
                        self.names.insert(name.clone());
                    }
                }
            }
        }
    }

    /// Tokens that name nothing do not mean everything any more.
    pub(super) const fn unscoped(&mut self) {
        self.everything = true;
    }

    /// Whether one of them allowed this connector.
    pub(super) fn allowed(&self, connector: &Name) -> bool {
        self.everything || self.names.contains(connector)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn grant(connectors: &[String]) -> AgentGrant {
        let connectors = connectors.iter().map(|c| Name::new(c).unwrap()).collect();
        AgentGrant { subject: "plant-7".to_owned(), connectors: Some(connectors), expires: None }
    }

    #[test]
    fn what_earlier_grants_allowed_is_remembered_and_bounded() {
        let mut earlier = Earlier::default();
        let none = grant(&[]);
        for n in 0..EARLIER_MAX + 10 {
            earlier.replaced(&grant(&[format!("c{n}")]), &none, false);
        }
        assert_eq!(earlier.names.len(), EARLIER_MAX);
        assert!(earlier.allowed(&Name::new("c0").unwrap()));
        assert!(!earlier.allowed(&Name::new("other").unwrap()));
        earlier.replaced(&AgentGrant { connectors: None, ..grant(&[]) }, &none, false);
        assert!(!earlier.everything, "it allowed nothing");
        earlier.replaced(&AgentGrant { connectors: None, ..grant(&[]) }, &none, true);
        assert!(earlier.everything);
    }
}
