//! The WebSocket layer over sockets of every size.

#![allow(clippy::wildcard_enum_match_arm, reason = "tests name what they wait for")]

use super::*;
use crate::tape::Tape;

fn messages(text: bool) -> Vec<Bytes> {
    [0, 1, 5, 125, 126, 700, 5000, 65_535, 65_536, 70_000]
        .iter()
        .map(|n| {
            if text {
                // Two and three bytes a letter: cut inside one as well.
                "aé€"
                    .chars()
                    .cycle()
                    .scan(0, |len, c| {
                        *len += c.len_utf8();
                        (*len <= *n).then_some(c)
                    })
                    .collect::<String>()
                    .into()
            } else {
                (0..*n).map(|i| (i * 31 % 251) as u8).collect::<Vec<u8>>().into()
            }
        })
        .collect()
}

/// Carries everything from one end to the other through sockets of these
/// sizes, and says what was read.
fn carry(codec: Codec, role: Role, sizes: (u64, u64), most: u64, ping: bool) -> Vec<Incoming> {
    let mut lane = Tape::from_seed(most ^ sizes.0).lane("test", 0);
    let other = if role == Role::Client { Role::Server } else { Role::Client };
    let (mut from, mut to) = (Ws::new(role, codec, 7), Ws::new(other, codec, 7));
    to.trust();
    let mut pipe = Pipe::sized(sizes.0, sizes.1);
    for (n, m) in messages(codec == Codec::JsonV1).into_iter().enumerate() {
        let (a, b) = (m.slice(..m.len() / 3), m.slice(m.len() / 3..));
        from.queue([a, b], m.len());
        if ping && n == 4 {
            from.ping(*b"12345678");
        }
    }
    // A close drops a control frame that still waits for its place.
    from.flush(&mut pipe, &mut lane, most);
    from.close(1000);
    let mut got = Vec::new();
    while got.last() != Some(&Incoming::Closed) {
        from.flush(&mut pipe, &mut lane, most);
        while let Some(item) = pipe.launch(lane.between(1, most) as usize) {
            pipe.landed(item.len());
            if let super::super::pipe::Item::Piece(b) = item {
                assert!(pipe.receive(&b));
            }
        }
        loop {
            match to.read(&mut pipe, &mut lane) {
                Incoming::Nothing => break,
                other => got.push(other),
            }
            if got.last() == Some(&Incoming::Closed) {
                break;
            }
        }
    }
    got
}

#[test]
fn messages_come_out_as_they_went_in_under_any_chunking() {
    for codec in [Codec::BinaryV2, Codec::JsonV1] {
        for role in [Role::Client, Role::Server] {
            for (sizes, most) in
                [((1, 1), 1), ((3, 50_000), 2), ((70_000, 5), 9), ((1 << 20, 1 << 20), 1500), ((4096, 4096), 65_536)]
            {
                let got = carry(codec, role, sizes, most, false);
                let mut want: Vec<Incoming> =
                    messages(codec == Codec::JsonV1).into_iter().map(Incoming::Message).collect();
                want.push(Incoming::Closed);
                assert_eq!(got.len(), want.len(), "{codec:?} {role:?} {sizes:?} {most}");
                assert!(got == want, "{codec:?} {role:?} {sizes:?} {most}");
            }
        }
    }
}

#[test]
fn a_ping_goes_between_frames_and_is_answered_with_its_own_words() {
    for role in [Role::Client, Role::Server] {
        let got = carry(Codec::BinaryV2, role, (700, 300), 64, true);
        let pings: Vec<_> = got.iter().filter(|g| matches!(g, Incoming::Ping(_))).collect();
        assert_eq!(pings, [&Incoming::Ping(Bytes::from_static(b"12345678"))]);
        assert_eq!(got.len(), messages(false).len() + 2);
    }
    let (mut a, mut b) = (Ws::new(Role::Client, Codec::BinaryV2, 1), Ws::new(Role::Server, Codec::BinaryV2, 1));
    let mut lane = Tape::from_seed(1).lane("test", 0);
    let (mut up, mut down) = (Pipe::sized(100, 100), Pipe::sized(100, 100));
    let pass = |pipe: &mut Pipe| {
        while let Some(super::super::pipe::Item::Piece(p)) = pipe.launch(3) {
            pipe.landed(p.len() as u64);
            assert!(pipe.receive(&p));
        }
    };
    a.ping(*b"abcdefgh");
    assert!(a.flush(&mut up, &mut lane, 10));
    pass(&mut up);
    assert!(matches!(b.read(&mut up, &mut lane), Incoming::Ping(_)));
    assert!(b.flush(&mut down, &mut lane, 10));
    pass(&mut down);
    assert_eq!(a.read(&mut down, &mut lane), Incoming::Pong(Bytes::from_static(b"abcdefgh")));
}

#[test]
fn the_size_of_a_message_is_bounded_until_the_peer_is_trusted() {
    let read = |trusted: bool| {
        let (mut a, mut b) = (Ws::new(Role::Client, Codec::BinaryV2, 1), Ws::new(Role::Server, Codec::BinaryV2, 1));
        if trusted {
            b.trust();
        }
        let mut lane = Tape::from_seed(1).lane("test", 0);
        let mut up = Pipe::sized(1 << 20, 1 << 20);
        let big = Bytes::from(vec![1; MESSAGE_MAX_BEFORE_AUTH_BYTES + 1]);
        a.queue([big.clone()], big.len());
        a.flush(&mut up, &mut lane, 1 << 20);
        while let Some(super::super::pipe::Item::Piece(p)) = up.launch(1 << 20) {
            assert!(up.receive(&p));
        }
        loop {
            match b.read(&mut up, &mut lane) {
                Incoming::Nothing if up.readable() > 0 => {}
                other => return other,
            }
        }
    };
    assert_eq!(read(false), Incoming::Broken(1009));
    assert!(matches!(read(true), Incoming::Message(_)));
}

#[test]
fn an_unmasked_client_is_told_1002() {
    let mut b = Ws::new(Role::Server, Codec::BinaryV2, 1);
    let mut lane = Tape::from_seed(1).lane("test", 0);
    let mut up = Pipe::sized(100, 100);
    assert!(up.receive(&[0x82, 1, 7]));
    let mut got = Incoming::Nothing;
    while got == Incoming::Nothing {
        got = b.read(&mut up, &mut lane);
    }
    assert_eq!(got, Incoming::Broken(1002));
}
