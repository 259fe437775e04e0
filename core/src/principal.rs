//! Who a connection belongs to, as the driver authenticated it before the
//! core hears of it (TLS, JWT). The core compares it with what HELLO claims.

use crate::id::Name;
use crate::time::Instant;

/// An authenticated peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// The bearer of a valid token, on `/tunnel`.
    Agent(AgentGrant),
    /// A hub, on `/mesh`.
    Hub(HubGrant),
}

/// What a token grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentGrant {
    /// The token's `sub`: the agent id, or the part before its `/`.
    pub subject: String,
    /// Claim `connectors`: what may be advertised and opened; `None` when the
    /// token does not say, which means nothing unless `insecure_allow_unscoped`.
    pub connectors: Option<Vec<Name>>,
    /// When the token runs out, leeway included.
    pub expires: Option<Instant>,
}

/// What is known of a hub before its HELLO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HubGrant {
    /// dNSNames of the certificate it showed in TLS; `None` when TLS did not ask
    /// for one (an acceptor behind an ingress, or plaintext on loopback). Whom a
    /// dialler sees may be an ingress.
    pub dns_names: Option<Vec<String>>,
    /// What both ends of this very TLS connection can compute and nobody else.
    /// A dialler has it with every TLS connection; an acceptor only where it
    /// ends TLS itself (`ha.mesh.listen_tls: native`).
    pub exporter: Option<[u8; 32]>,
}
