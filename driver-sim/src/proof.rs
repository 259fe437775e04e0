//! Keys and certificates of hubs, as a model: a certificate is a name, a
//! signature a fingerprint of what was signed under that name. What matters is
//! kept: nobody can show a name that the fingerprint was not made with, and the
//! fingerprint fits one statement only. TLS ends at hubs of even number
//! (`listen_tls: native`), before the others (`ingress`).

use nowconnect_core::id::ConnKey;
use nowconnect_core::identity::{Proof, Verified};
use nowconnect_core::mux::Input;
use nowconnect_core::principal::HubGrant;
use nowconnect_core::wire::Signature;

use crate::faults::At;
use crate::marks::Mark;
use crate::net::place;
use crate::node::name;
use crate::world::World;

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

fn judge(statements: &[Vec<u8>], s: &Signature) -> Result<Verified, &'static str> {
    let certificate = s.chain.first().map(|c| shown(c)).unwrap_or_default();
    let fits = |statement: &Vec<u8>| mark(&certificate, statement) == s.signature;
    let statement = statements.iter().position(fits).ok_or("the signature does not fit")?;
    Ok(Verified { names: vec![certificate], statement })
}

impl World {
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
                Input::Verified { conn: k, result: judge(statements, signature) }
            }
            Proof::Sign { statement } => {
                let (certificate, wrong) =
                    if end == 0 { self.certificate(conn, n) } else { (format!("hub-{n}"), false) };
                if wrong {
                    self.conns[conn as usize].wrong_certificate = true;
                    self.marks.hit(Mark::WrongCertificate);
                }
                let chain = vec![text(certificate.as_bytes())];
                let signature = mark(&certificate, statement);
                let result = Ok(Signature { chain, scheme: name("model"), signature });
                Input::Signed { conn: k, result }
            }
        };
        self.raw_input(ix, input);
    }
}

/// What both ends of a TLS connection can compute.
pub(crate) fn exporter(conn: u32) -> [u8; 32] {
    let mut out = [0x5a; 32];
    out[..4].copy_from_slice(&conn.to_be_bytes());
    out
}
