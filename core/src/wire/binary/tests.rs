use super::*;
use crate::error::ProtocolErrorKind::{self, BadName, Malformed, TooLarge, Unexpected, UnknownType};
use crate::wire::{Codec, Dialect, Plane, encode_message};

const V2: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Tunnel };

fn decoded(bytes: &[u8]) -> Result<(u64, Vec<Frame>), ProtocolErrorKind> {
    let mut frames = Vec::new();
    let number = decode(&Bytes::copy_from_slice(bytes), &WireLimits::ESTABLISHED, &mut frames).map_err(|e| e.kind)?;
    Ok((number, frames))
}

fn stream(body: Body) -> Frame {
    Frame::stream(Cid(7), Epoch(u64::MAX), body)
}

#[test]
fn a_payload_is_shared_both_ways() {
    let payload = Bytes::from(vec![9; 300]);
    let mut head = BytesMut::new();
    encode_message_start(1, &mut head);
    let frame = stream(Body::Data { off: 5, bytes: payload.clone() });
    let v2 = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };
    let out = crate::wire::encode_frame(v2, 1, &frame, &mut head).expect("DATA returns its payload");
    assert_eq!(out.as_ptr(), payload.as_ptr());
    assert_eq!(head.len(), 1 + 1 + 2 + STREAM_HEAD_BYTES + 1);

    let mut whole = head.to_vec();
    whole.extend_from_slice(&out);
    whole.extend_from_slice(&[4, 1, 0]);
    let msg = Bytes::from(whole);
    let mut frames = Vec::new();
    assert_eq!(decode(&msg, &WireLimits::ESTABLISHED, &mut frames).expect("valid"), 1);
    let Frame::Stream { body: Body::Data { bytes, .. }, .. } = &frames[0] else { panic!("DATA came first") };
    assert!(msg.as_ptr_range().contains(&bytes.as_ptr()), "the payload is a slice of the message");
    assert_eq!(frames, [frame, Frame::Ack { received: 0 }]);
}

#[test]
fn numbers_have_one_spelling_and_a_bound() {
    for n in [0, 1, 127, 128, 16_383, 16_384, (1 << 49) - 1, 1 << 49, NUMBER_MAX] {
        let mut out = BytesMut::new();
        put_number(n, &mut out);
        assert_eq!(out.len(), number_len(n));
        let mut r = Reader { rest: &out };
        assert_eq!(r.number(), Ok(n));
        assert!(r.rest.is_empty());
        let mut longer = out.to_vec();
        *longer.last_mut().expect("not empty") |= 0x80;
        assert!(Reader { rest: &longer }.number().is_err(), "ends early");
        longer.push(0);
        assert!(Reader { rest: &longer }.number().is_err(), "not the shortest form of {n}");
    }
    let over = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    assert!(Reader { rest: &over }.number().is_err(), "2^53");
}

#[test]
fn an_unknown_frame_is_skipped_only_when_flagged() {
    let mut msg = vec![3, 0x80 | 100, 2, 1, 2];
    assert_eq!(decoded(&msg), Ok((3, vec![])));
    msg.extend_from_slice(&[4, 1, 9]);
    assert_eq!(decoded(&msg), Ok((3, vec![Frame::Ack { received: 9 }])));
    assert_eq!(decoded(&[0, 0x80, 0]), Ok((0, vec![])));
    assert_eq!(decoded(&[0, 100, 0]), Err(UnknownType));
    assert_eq!(decoded(&[0, 0, 0]), Err(UnknownType));
    assert_eq!(decoded(&[0, 0x84, 1, 0]), Err(Malformed), "ACK is not optional");
    assert_eq!(decoded(&[0, 0x80 | 100, 2, 1]), Err(Malformed), "a skipped body is complete too");
}

#[test]
fn numbering_is_judged_per_message() {
    let fin = stream(Body::Fin { final_off: 1 });
    let ack = Frame::Ack { received: 1 };
    let bye = Frame::GoAway { code: CloseCode::Shutdown, retry_after_ms: 0 };
    let auth = Frame::Auth(Box::default());
    let send = |number, frames: &[Frame]| decoded(&encode_message(V2, number, frames)).map(|(n, _)| n);
    assert_eq!(send(0, &[ack.clone(), bye.clone()]), Ok(0));
    assert_eq!(send(8, &[ack.clone(), fin.clone(), bye]), Ok(8));
    assert_eq!(send(0, std::slice::from_ref(&fin)), Err(Unexpected));
    assert_eq!(send(8, std::slice::from_ref(&ack)), Err(Unexpected));
    assert_eq!(send(0, &[ack, fin.clone()]), Err(Unexpected));
    assert_eq!(send(8, &[fin, auth]), Err(Unexpected));
    assert_eq!(send(8, &[]), Err(Malformed));
}

#[test]
fn the_count_of_frames_is_bounded_by_the_message_limit() {
    let tiny = |count| {
        let mut m = vec![0];
        for _ in 0..count {
            m.extend_from_slice(&[4, 1, 0]);
        }
        m
    };
    let most = crate::wire::MESSAGE_MAX_BYTES / MESSAGE_BYTES_PER_FRAME;
    assert_eq!(decoded(&tiny(most)).map(|(_, f)| f.len()), Ok(most));
    assert_eq!(decoded(&tiny(most + 1)), Err(TooLarge));
    assert!(size_of::<Frame>() <= 80, "a message of frames decodes to at most 80/64 of its limit");
}

#[test]
fn lists_are_refused_before_they_are_reserved() {
    // generation 0, then a count, then nothing.
    assert_eq!(decoded(&[1, 10, 3, 0, 0x81, 0x02]), Err(BadName));
    assert_eq!(decoded(&[1, 10, 9, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]), Err(BadName));
    assert_eq!(decoded(&[1, 10, 3, 0, 0x80, 0x02]), Err(Malformed), "256 were promised, none came");
}

#[test]
fn long_bodies_get_their_length_right() {
    for len in [1, 126, 127, 128, 129, 8192] {
        let frame = Frame::Token { token: SecretText("t".repeat(len)) };
        let msg = encode_message(V2, 1, &[frame.clone(), Frame::Ping { token: 3 }]);
        assert_eq!(decoded(&msg), Ok((1, vec![frame, Frame::Ping { token: 3 }])));
    }
    let long = Frame::Token { token: SecretText("t".repeat(8193)) };
    assert_eq!(decoded(&encode_message(V2, 1, &[long])), Err(TooLarge));
}

#[test]
fn every_cut_and_every_extension_of_a_message_is_refused() {
    let frames = [
        stream(Body::Rst { code: RstCode::Flow, final_off: 1 << 40 }),
        Frame::Status(Status { registry_healthy: true, draining: false, active: true, initial_window: 65_536 }),
    ];
    let msg = encode_message(V2, 4, &frames);
    // A cut between two frames is a message of its own.
    let boundary = encode_message(V2, 4, &frames[..1]).len();
    for cut in 0..msg.len() {
        assert_eq!(decoded(&msg[..cut]).is_ok(), cut == boundary, "cut at {cut}");
    }
    let mut longer = msg.to_vec();
    longer.push(4);
    assert_eq!(decoded(&longer), Err(Malformed));
    // Grow the first body by one byte.
    let mut fat = encode_message(V2, 4, &frames[..1]).to_vec();
    fat[2] += 1;
    fat.push(0);
    assert_eq!(decoded(&fat), Err(Malformed));
}

#[test]
fn data_before_authentication_is_refused() {
    let msg = encode_message(V2, 1, &[stream(Body::Data { off: 0, bytes: Bytes::from_static(b"x") })]);
    let refused = decode(&msg, &WireLimits::BEFORE_AUTH, &mut Vec::new()).map_err(|e| e.kind);
    assert_eq!(refused, Err(TooLarge));
}

/// The obvious reading of a number, byte by byte.
fn number_by_bytes(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (i, &b) in bytes.iter().take(8).enumerate() {
        value |= u64::from(b & 0x7f) << (7 * i);
        if b < 0x80 {
            let shortest = b != 0 || i == 0;
            return (shortest && value <= NUMBER_MAX).then_some((value, i + 1));
        }
    }
    None
}

proptest::proptest! {
    #[test]
    fn numbers_read_by_word_and_by_byte_agree(
        bytes in proptest::collection::vec(proptest::prop_oneof![0..=255_u8, 0x80..=255_u8, proptest::strategy::Just(0_u8)], 0..12),
    ) {
        let mut r = Reader { rest: &bytes };
        let got = r.number().ok().map(|n| (n, bytes.len() - r.rest.len()));
        proptest::prop_assert_eq!(got, number_by_bytes(&bytes));
    }
}
