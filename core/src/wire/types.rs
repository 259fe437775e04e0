//! The closed set of frame types and how each encoding spells them: v2 numbers
//! follow the order of [`FRAME_KINDS`], v1 prefixes stream frames with `M_` on
//! links (seeds: `M_OPEN`, `M_DATA` ...). Both codecs judge types here, so the
//! numbering rules cannot differ between them. Knows nothing of bodies.

use super::{Body, FRAME_KINDS, Frame, Plane};

/// A frame type; the discriminant is the v2 type number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FrameType {
    Hello = 1,
    Welcome,
    Auth,
    Ack,
    Ping,
    Pong,
    GoAway,
    Epoch,
    Status,
    Connectors,
    Token,
    Open,
    OpenAck,
    Data,
    Credit,
    Fin,
    Rst,
    Resume,
}

impl FrameType {
    /// All types, in v2 number order.
    const ALL: [Self; FRAME_KINDS.len()] = [
        Self::Hello,
        Self::Welcome,
        Self::Auth,
        Self::Ack,
        Self::Ping,
        Self::Pong,
        Self::GoAway,
        Self::Epoch,
        Self::Status,
        Self::Connectors,
        Self::Token,
        Self::Open,
        Self::OpenAck,
        Self::Data,
        Self::Credit,
        Self::Fin,
        Self::Rst,
        Self::Resume,
    ];

    pub(super) const fn number(self) -> u8 {
        self as u8
    }

    pub(super) fn from_number(n: u8) -> Option<Self> {
        Self::ALL.get(usize::from(n).checked_sub(1)?).copied()
    }

    /// The type's name on a v1 wire of this plane.
    pub(super) const fn v1_name(self, plane: Plane) -> &'static str {
        match (plane, self) {
            (Plane::Mesh, Self::Open) => "M_OPEN",
            (Plane::Mesh, Self::OpenAck) => "M_OPEN_ACK",
            (Plane::Mesh, Self::Data) => "M_DATA",
            (Plane::Mesh, Self::Credit) => "M_CREDIT",
            (Plane::Mesh, Self::Fin) => "M_FIN",
            (Plane::Mesh, Self::Rst) => "M_RST",
            (Plane::Mesh, Self::Resume) => "M_RESUME",
            (Plane::Tunnel | Plane::Mesh, _) => FRAME_KINDS[self as usize - 1],
        }
    }

    pub(super) fn from_v1_name(plane: Plane, name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.v1_name(plane) == name)
    }

    /// HELLO, WELCOME and AUTH: never numbered, bodies extensible.
    pub(super) const fn handshake(self) -> bool {
        matches!(self, Self::Hello | Self::Welcome | Self::Auth)
    }

    /// As [`Frame::unnumbered`].
    pub(super) const fn unnumbered(self) -> bool {
        self.handshake() || matches!(self, Self::Ack | Self::Ping | Self::Pong | Self::GoAway)
    }

    pub(super) const fn of(frame: &Frame) -> Self {
        match frame {
            Frame::Hello(_) => Self::Hello,
            Frame::Welcome(_) => Self::Welcome,
            Frame::Auth(_) => Self::Auth,
            Frame::Ack { .. } => Self::Ack,
            Frame::Ping { .. } => Self::Ping,
            Frame::Pong { .. } => Self::Pong,
            Frame::GoAway { .. } => Self::GoAway,
            Frame::Epoch(_) => Self::Epoch,
            Frame::Status(_) => Self::Status,
            Frame::Connectors { .. } => Self::Connectors,
            Frame::Token { .. } => Self::Token,
            Frame::Stream { body, .. } => match body {
                Body::Open(_) => Self::Open,
                Body::OpenAck { .. } => Self::OpenAck,
                Body::Data { .. } => Self::Data,
                Body::Credit { .. } => Self::Credit,
                Body::Fin { .. } => Self::Fin,
                Body::Rst { .. } => Self::Rst,
                Body::Resume(_) => Self::Resume,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_frame_kinds_and_names_are_inverse() {
        for (kind, n) in FRAME_KINDS.into_iter().zip(1_u8..) {
            let t = FrameType::from_number(n).expect("every kind has a number");
            assert_eq!(t.number(), n);
            assert_eq!(t.v1_name(Plane::Tunnel), kind);
            assert_eq!(t.v1_name(Plane::Mesh).trim_start_matches("M_"), kind);
            for plane in [Plane::Tunnel, Plane::Mesh] {
                assert_eq!(FrameType::from_v1_name(plane, t.v1_name(plane)), Some(t));
            }
        }
        assert_eq!(FrameType::from_number(0), None);
        assert_eq!(FrameType::from_number(19), None);
        assert_eq!(FrameType::from_v1_name(Plane::Mesh, "DATA"), None);
        assert_eq!(FrameType::from_v1_name(Plane::Tunnel, "M_DATA"), None);
        assert_eq!(FrameType::from_v1_name(Plane::Mesh, "M_HELLO"), None);
    }
}
