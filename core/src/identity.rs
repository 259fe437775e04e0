//! What a hub signs to prove who it is on the mesh (semantics 8; PROTOCOL.md
//! section 3), and how the driver is asked to sign and to judge.
//!
//! Owns the bytes under a signature: everything that must not be taken from
//! one handshake into another is among them, so that a reflected, replayed or
//! relayed signature fails (attacks 29 to 31). Keys, certificates and
//! algorithms are the driver's; which names prove which replica is for the hub
//! to say (I3). It must not know how a connection came about.

use crate::id::{Incarnation, Name, Secret};
use crate::wire::{Dialect, Signature};

const LABEL: &[u8] = b"nowconnect mesh identity v1\0";

/// Which side signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// Who was dialled, in WELCOME.
    Acceptor,
    /// Who dialled, in AUTH.
    Dialler,
}

/// One side of a handshake, as both see it.
#[derive(Clone, Copy, Debug)]
pub struct Party<'a> {
    /// Its replica id.
    pub replica_id: &'a Name,
    /// Its run.
    pub incarnation: Incarnation,
    /// Its challenge in this handshake.
    pub challenge: &'a Secret<16>,
}

/// What is signed.
#[derive(Clone, Copy, Debug)]
pub struct Statement<'a> {
    /// Who signs it.
    pub signer: Signer,
    /// Who sent HELLO.
    pub dialler: Party<'a>,
    /// Who sent WELCOME.
    pub acceptor: Party<'a>,
    /// The namespace both are in.
    pub namespace: &'a Name,
    /// Stands for the subprotocol that was agreed.
    pub dialect: Dialect,
    /// Of the TLS connection, when TLS ends at both hubs.
    pub exporter: Option<&'a [u8; 32]>,
}

impl Statement<'_> {
    /// The bytes under the signature.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(LABEL);
        out.push(match self.signer {
            Signer::Acceptor => 1,
            Signer::Dialler => 2,
        });
        let (d, a) = (&self.dialler, &self.acceptor);
        text(&mut out, d.replica_id.as_str().as_bytes());
        text(&mut out, a.replica_id.as_str().as_bytes());
        out.extend_from_slice(&d.incarnation.0.to_be_bytes());
        out.extend_from_slice(&a.incarnation.0.to_be_bytes());
        out.extend_from_slice(&d.challenge.0);
        out.extend_from_slice(&a.challenge.0);
        text(&mut out, self.namespace.as_str().as_bytes());
        text(&mut out, self.dialect.subprotocol().as_bytes());
        text(&mut out, self.exporter.map_or(&[], <[u8; 32]>::as_slice));
        out
    }
}

/// Length in 2 bytes, then the bytes: no two statements share a spelling.
fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    // Names are at most 64 bytes long, an exporter 32.
    out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// What the driver is asked for. It answers each with the input of that name.
#[derive(Clone, Debug, PartialEq)]
pub enum Proof {
    /// Sign with this hub's mesh key.
    Sign {
        /// The bytes to be signed.
        statement: Vec<u8>,
    },
    /// Judge a peer's signature: its chain must reach the CAs of the mesh and
    /// be a hub's, and its leaf's key have signed one of the statements.
    Verify {
        /// What the peer may have signed, the most wanted first; at most two.
        statements: Vec<Vec<u8>>,
        /// Chain, scheme and signature as they came, bounded by the wire.
        signature: Signature,
    },
}

/// A signature that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The dNSNames of the leaf.
    pub names: Vec<String>,
    /// Which of the statements was signed.
    pub statement: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Codec, Plane};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The layout of PROTOCOL.md, written out by hand.
    #[test]
    fn the_signed_bytes_are_those_of_the_protocol() {
        let (a, b, ns) = (Name::new("hub-a").unwrap(), Name::new("hub-b").unwrap(), Name::new("default").unwrap());
        let (ca, cb) = (Secret([0xaa; 16]), Secret([0xbb; 16]));
        let statement = Statement {
            signer: Signer::Acceptor,
            dialler: Party { replica_id: &a, incarnation: Incarnation(1), challenge: &ca },
            acceptor: Party { replica_id: &b, incarnation: Incarnation(0x0203), challenge: &cb },
            namespace: &ns,
            dialect: Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh },
            exporter: None,
        };
        let head = format!("{}01", hex(b"nowconnect mesh identity v1\0"));
        let rest = [
            "0005",
            &hex(b"hub-a"),
            "0005",
            &hex(b"hub-b"),
            "0000000000000001",
            "0000000000000203",
            &"aa".repeat(16),
            &"bb".repeat(16),
            "0007",
            &hex(b"default"),
            "0012",
            &hex(b"nowconnect.mesh.v2"),
        ]
        .concat();
        assert_eq!(hex(&statement.to_bytes()), format!("{head}{rest}0000"));
        let bound = Statement { exporter: Some(&[7; 32]), ..statement };
        assert_eq!(hex(&bound.to_bytes()), format!("{head}{rest}0020{}", "07".repeat(32)));
        let dialler = Statement { signer: Signer::Dialler, ..statement };
        assert_eq!(hex(&dialler.to_bytes()), format!("{}02{rest}0000", hex(b"nowconnect mesh identity v1\0")));
    }

    /// Whatever differs between two handshakes differs in the bytes (attacks 29 to 31).
    #[test]
    fn no_part_of_a_handshake_can_be_exchanged() {
        let names: Vec<Name> = ["a", "b", "ab", "default", "other"].iter().map(|n| Name::new(n).unwrap()).collect();
        let challenges = [Secret([1; 16]), Secret([2; 16]), Secret([3; 16])];
        let base = Statement {
            signer: Signer::Acceptor,
            dialler: Party { replica_id: &names[0], incarnation: Incarnation(1), challenge: &challenges[0] },
            acceptor: Party { replica_id: &names[1], incarnation: Incarnation(2), challenge: &challenges[1] },
            namespace: &names[3],
            dialect: Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh },
            exporter: Some(&[4; 32]),
        };
        let others = [
            Statement { signer: Signer::Dialler, ..base },
            Statement { dialler: base.acceptor, acceptor: base.dialler, ..base },
            Statement { dialler: Party { replica_id: &names[2], ..base.dialler }, ..base },
            Statement { dialler: Party { incarnation: Incarnation(9), ..base.dialler }, ..base },
            Statement { dialler: Party { challenge: &challenges[2], ..base.dialler }, ..base },
            Statement { acceptor: Party { replica_id: &names[2], ..base.acceptor }, ..base },
            Statement { acceptor: Party { incarnation: Incarnation(9), ..base.acceptor }, ..base },
            Statement { acceptor: Party { challenge: &challenges[2], ..base.acceptor }, ..base },
            Statement { namespace: &names[4], ..base },
            Statement { dialect: Dialect { codec: Codec::JsonV1, plane: Plane::Mesh }, ..base },
            Statement { exporter: Some(&[5; 32]), ..base },
            Statement { exporter: None, ..base },
        ];
        for (n, other) in others.iter().enumerate() {
            assert_ne!(base.to_bytes(), other.to_bytes(), "part {n}");
        }
    }
}
