//! Keys and certificates of hubs, as a model: a certificate is a name and the
//! number of a CA, a signature a fingerprint of what was signed under both. What
//! matters is kept: nobody can show a name that the fingerprint was not made
//! with, the fingerprint fits one statement only, and a CA counts where it is
//! known. What a hub has of it changes while it runs (X4). TLS ends at hubs of even number
//! (`listen_tls: native`), before the others (`ingress`).

use nowconnect_core::id::ConnKey;
use nowconnect_core::identity::{Proof, Verified};
use nowconnect_core::mux::Input;
use nowconnect_core::principal::HubGrant;
use nowconnect_core::wire::Signature;
use serde::{Deserialize, Serialize};

use crate::faults::At;
use crate::marks::Mark;
use crate::net::place;
use crate::node::name;
use crate::tape::Lane;
use crate::world::World;

/// What a hub proves itself with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// Its certificate has another hub's name.
    pub wrong_name: bool,
    /// The CA its certificate is of, by number below 8.
    pub ca: u8,
    /// CAs it knows, by bit.
    pub knows: u8,
}

impl Default for Keys {
    fn default() -> Self {
        Self { wrong_name: false, ca: 0, knows: 1 }
    }
}

impl Keys {
    /// A certificate of a new CA, with or without overlap, or for another name;
    /// or the old CA just leaves.
    pub(crate) fn draw(l: &mut Lane) -> Self {
        match l.below(5) {
            0 => Self { wrong_name: true, ..Self::default() },
            1 => Self { knows: 3, ..Self::default() },
            2 => Self { ca: 1, knows: 3, ..Self::default() },
            3 => Self { knows: 2, ..Self::default() },
            _ => Self { ca: 1, knows: 2, ..Self::default() },
        }
    }

    pub(crate) const fn knows(self, ca: u8) -> bool {
        self.knows >> (ca & 7) & 1 == 1
    }
}

/// Why a certificate of a CA that is not in the bundle is refused.
const UNKNOWN_CA: &str = "the chain reaches no CA of the bundle";

/// FNV-1a, from a basis of its own.
fn fingerprint(basis: u64, parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|p| p.iter().chain(&[0xff]));
    bytes.fold(basis, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// Hexadecimal digits, four at a time, are canonical base64 as well.
fn text(bytes: &[u8]) -> String {
    let mut out: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    while !out.len().is_multiple_of(4) {
        out.push_str("00");
    }
    out
}

fn shown(text: &str) -> String {
    let byte = |at: usize| text.get(at..at + 2).and_then(|h| u8::from_str_radix(h, 16).ok());
    (0..text.len()).step_by(2).filter_map(byte).filter(|b| *b != 0).map(char::from).collect()
}

fn mark(certificate: &str, statement: &[u8]) -> String {
    let parts: [&[u8]; 2] = [certificate.as_bytes(), statement];
    let halves = [0xcbf2_9ce4_8422_2325, 0x6c62_272e_07bb_0142].map(|basis| fingerprint(basis, &parts).to_be_bytes());
    text(halves.as_flattened())
}

/// The name and the CA of the certificate at the head of a chain.
fn leaf(chain: &[String]) -> Option<(String, u8)> {
    let certificate = shown(chain.first()?);
    let (name, ca) = certificate.split_once('@')?;
    Some((name.to_owned(), ca.parse().ok()?))
}

/// What a hub with this name and a certificate of this CA puts under a statement.
pub(crate) fn sign(name_shown: &str, ca: u8, statement: &[u8]) -> Signature {
    let certificate = format!("{name_shown}@{ca}");
    let chain = vec![text(certificate.as_bytes())];
    Signature { chain, scheme: name("model"), signature: mark(&certificate, statement) }
}

fn judge(statements: &[Vec<u8>], s: &Signature, keys: Keys) -> Result<Verified, &'static str> {
    let certificate = s.chain.first().map(|c| shown(c)).unwrap_or_default();
    let fits = |statement: &Vec<u8>| mark(&certificate, statement) == s.signature;
    let statement = statements.iter().position(fits).ok_or("the signature does not fit")?;
    let (name, ca) = leaf(&s.chain).ok_or("a certificate of no CA")?;
    if !keys.knows(ca) {
        return Err(UNKNOWN_CA);
    }
    Ok(Verified { names: vec![name], statement })
}

impl World {
    /// A hub proves itself with something else from now on.
    pub(crate) fn set_keys(&mut self, ix: u16, keys: Keys) {
        self.nodes[usize::from(ix)].keys = keys;
        self.marks.hit(Mark::CertificateChanged);
        let hubs = || self.nodes.iter().filter(|n| n.is_hub());
        let strange = hubs().any(|a| a.keys.wrong_name || hubs().any(|b| !b.keys.knows(a.keys.ca)));
        self.check.strange_keys |= strange;
        self.judge_again(ix);
    }

    /// Whether a chain that was accepted before still would be.
    pub(crate) fn stands(&self, ix: u16, chain: &[String]) -> bool {
        leaf(chain).is_some_and(|(_, ca)| self.nodes[usize::from(ix)].keys.knows(ca))
    }

    /// I3: a hub is refused on the mesh for what it shows. With a right name and
    /// a CA that all know, as from the first to the last step of a rotation with
    /// overlap, none may be.
    pub(crate) fn judge_unproven(&mut self, ix: u16) {
        let owed = self.check.nodes.get(&ix).is_some_and(|g| g.unproven);
        if !self.check.strange_keys && self.plan.hostile == 0 && !owed {
            let text = format!("node {ix} or its peer refuses a hub for its certificate, which all know");
            self.fail("I3", text);
        }
    }

    /// What TLS tells the acceptor of a link.
    pub(crate) fn link_grant(&self, conn: u32, from: u8) -> HubGrant {
        if !self.ends_tls(conn) {
            return HubGrant::default();
        }
        let dns_names = Some(vec![self.certificate(conn, from).0]);
        HubGrant { dns_names, exporter: Some(exporter(conn)) }
    }

    /// Whether TLS ends at the hub that was dialled.
    pub(crate) fn ends_tls(&self, conn: u32) -> bool {
        self.conns[conn as usize].nodes[1].is_multiple_of(2)
    }

    /// A hub signs or judges. Inside `settle`.
    pub(crate) fn prove(&mut self, ix: u16, k: ConnKey, proof: &Proof) {
        let (conn, end) = place(k);
        let At::Hub(n) = self.nodes[usize::from(ix)].at else {
            return self.fail("I3", format!("node {ix}, an agent, signs on conn {conn}"));
        };
        let input = match proof {
            Proof::Verify { statements, signature } => {
                let result = judge(statements, signature, self.nodes[usize::from(ix)].keys);
                if result == Err(UNKNOWN_CA) {
                    self.conns[conn as usize].unproven[1 - end] = true;
                    self.marks.hit(Mark::UntrustedCa);
                } else if let (Ok(_), Some((_, ca))) = (&result, leaf(&signature.chain)) {
                    self.note_signed(conn, end, ca);
                }
                Input::Verified { conn: k, result }
            }
            Proof::Sign { statement } => {
                let keys = self.nodes[usize::from(ix)].keys;
                let (name_shown, wrong) =
                    if end == 0 { self.certificate(conn, n) } else { own_name(n, keys.wrong_name) };
                if wrong {
                    self.conns[conn as usize].unproven[end] = true;
                    self.marks.hit(Mark::WrongCertificate);
                }
                Input::Signed { conn: k, result: Ok(sign(&name_shown, keys.ca, statement)) }
            }
        };
        self.raw_input(ix, input);
        self.note_proved(ix, conn, end);
    }
}

/// The name in a hub's certificate, and whether it is wrong.
pub(crate) fn own_name(hub: u8, wrong: bool) -> (String, bool) {
    (if wrong { format!("hub-{hub}0") } else { format!("hub-{hub}") }, wrong)
}

/// What both ends of a TLS connection can compute.
pub(crate) fn exporter(conn: u32) -> [u8; 32] {
    let mut out = [0x5a; 32];
    out[..4].copy_from_slice(&conn.to_be_bytes());
    out
}
