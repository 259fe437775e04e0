//! What waits and in which order it leaves.

use super::super::queue::QUANTUM_BYTES;
use super::*;
use crate::id::Instance;
use crate::wire::EpochNotice;

fn resume(n: u64, epoch: Epoch) -> Frame {
    let resume =
        Resume { nonce: Nonce(2), agent_id: AgentId::new("plant-7").unwrap(), key: Secret([3; 16]), next: 0, limit: 1 };
    Frame::stream(cid(n), epoch, Body::Resume(Box::new(resume)))
}

fn notice(epoch: u64) -> Frame {
    Frame::Epoch(Box::new(EpochNotice {
        agent_id: AgentId::new("plant-7").unwrap(),
        instance: Instance(1),
        replica_id: Name::new("hub-a").unwrap(),
        epoch: Epoch(epoch),
        nonce: Nonce(1),
        firm: true,
    }))
}

fn go_away() -> Frame {
    Frame::GoAway { code: CloseCode::Draining, retry_after_ms: 0 }
}

#[test]
fn control_of_a_stream_leaves_in_the_order_a_receiver_needs() {
    let mut s = session(V2);
    let ack = frame(1, Body::OpenAck { result: Ok(()) });
    send(&mut s, [credit(1, 1, 2), resume(1, E), ack.clone(), open(1)]);
    assert_eq!(transmitted(&mut s, at(0)), [open(1), ack, resume(1, E), credit(1, 1, 2)]);
}

#[test]
fn opens_leave_in_mint_order_and_control_never_waits_behind_data() {
    let mut s = session(V2);
    send(&mut s, [data(9, 0, 70_000), open(1), data(1, 0, 5), open(2), open(3), credit(1, 1, 1), rst(9)]);
    send(&mut s, [data(8, 0, 6), credit(2, 1, 1)]);
    let kinds: Vec<_> = transmitted(&mut s, at(0)).iter().map(|f| (f.kind(), cid_of(f))).collect();
    let expected =
        [("OPEN", 1), ("CREDIT", 1), ("OPEN", 2), ("CREDIT", 2), ("OPEN", 3), ("RST", 9), ("DATA", 1), ("DATA", 8)];
    assert_eq!(kinds, expected);
}

fn cid_of(f: &Frame) -> u64 {
    if let Frame::Stream { cid, .. } = f { cid.counter() } else { 0 }
}

#[test]
fn credits_coalesce_into_the_largest_values() {
    let mut s = session(V2);
    send(&mut s, [credit(1, 5, 100), credit(1, 9, 90), credit(1, 7, 110)]);
    assert_eq!(transmitted(&mut s, at(0)), [credit(1, 9, 110)]);
    assert!(transmitted(&mut s, at(0)).is_empty());
}

#[test]
fn rst_supersedes_credit_data_and_fin() {
    let mut s = session(V2);
    let released = send(&mut s, [data(1, 0, 10), data(1, 10, 20), fin(1, 30), credit(1, 1, 1), rst(1), data(1, 30, 7)]);
    let expected = [Released { cid: cid(1), bytes: 30 }, Released { cid: cid(1), bytes: 7 }];
    assert_eq!(released, expected, "what is discarded is reported (A2)");
    send(&mut s, [credit(1, 2, 2), fin(1, 30), rst(1)]);
    assert_eq!((s.held_bytes(), s.unsent_bytes(cid(1))), (0, 0));
    assert_eq!(transmitted(&mut s, at(0)), [rst(1)]);
}

#[test]
fn rst_takes_back_an_open_that_has_not_left() {
    let mut s = session(V2);
    let released = send(&mut s, [open(1), data(1, 0, 10), credit(1, 1, 1), rst(1)]);
    assert_eq!(released, [Released { cid: cid(1), bytes: 10 }]);
    assert!(!s.wants_transmit(at(0)));
    assert_eq!(transmit(&mut s, at(0)), (vec![], TxState::Idle));

    send(&mut s, [open(2)]);
    transmit(&mut s, at(0));
    send(&mut s, [rst(2)]);
    assert_eq!(transmitted(&mut s, at(0)), [rst(2)], "an OPEN that left needs its RST");
}

#[test]
fn resume_drops_the_old_bindings_data_and_keeps_its_credit() {
    let mut s = session(V2);
    send(&mut s, [data(1, 0, 10), credit(1, 5, 6)]);
    let new = Epoch(6);
    let released = send(&mut s, [resume(1, new)]);
    assert_eq!(released, [Released { cid: cid(1), bytes: 10 }]);
    let later = Frame::stream(cid(1), new, Body::Data { off: 0, bytes: Bytes::from_static(b"0123456789") });
    assert!(send(&mut s, [later.clone(), resume(1, new)]).is_empty());
    let kept = Frame::stream(cid(1), new, Body::Credit { consumed: 5, limit: 6 });
    assert_eq!(transmitted(&mut s, at(0)), [resume(1, new), kept, later]);
}

#[test]
fn notices_keep_their_order_and_the_latest_state() {
    let mut s = session(V2);
    send(&mut s, [notice(1), status(1), notice(2), status(2), notice(3)]);
    assert_eq!(transmitted(&mut s, at(0)), [notice(1), status(2), notice(2), notice(3)]);
}

#[test]
fn waiting_epoch_notices_are_bounded() {
    let mut s = session(V2);
    let mut released = Vec::new();
    s.send(at(0), status(1), &mut released);
    for n in 0..5000 {
        s.send(at(0), notice(n), &mut released);
    }
    assert_eq!(s.counters().epochs_dropped, 904);
    let out = transmitted(&mut s, at(0));
    assert_eq!((out.len(), &out[0], &out[1], &out[4096]), (4097, &status(1), &notice(904), &notice(4999)));
}

#[test]
fn epoch_notices_that_left_do_not_count_towards_the_bound() {
    let mut s = session(V2);
    for round in 0..3 {
        send(&mut s, (0..2000).map(|n| notice(round * 2000 + n)));
        assert_eq!(transmitted(&mut s, at(0)).len(), 2000);
    }
    assert_eq!(s.counters().epochs_dropped, 0);
}

#[test]
fn go_away_follows_control_and_precedes_data_outside_the_numbers() {
    for dialect in [V1, V2] {
        let mut s = session(dialect);
        send(&mut s, [data(1, 0, 5), go_away(), credit(2, 1, 1), notice(1)]);
        let out: Vec<_> = transmit(&mut s, at(0)).0.iter().map(|m| decoded(dialect, m)).collect();
        let frames: Vec<_> = out.iter().flat_map(|(_, f)| f.clone()).collect();
        assert_eq!(frames, [notice(1), credit(2, 1, 1), go_away(), data(1, 0, 5)]);
        let alone = out.iter().find(|(_, f)| f.contains(&go_away())).unwrap();
        assert_eq!(alone, &(0, vec![go_away()]));
        assert_eq!(s.queue_depth(), 3, "GOAWAY is not in flight");
    }
}

#[test]
fn v2_packs_frames_up_to_its_marks_and_v1_sends_one() {
    let packed = |dialect, frames: Vec<Frame>| -> Vec<(usize, usize)> {
        let mut s = session(dialect);
        send(&mut s, frames);
        let out = transmit(&mut s, at(0)).0;
        out.iter().map(|m| (decoded(dialect, m).1.len(), m.len())).collect()
    };
    let counts = |out: &[(usize, usize)]| out.iter().map(|(n, _)| *n).collect::<Vec<_>>();

    assert_eq!(counts(&packed(V2, (0..150).map(|n| data(n, 0, 1)).collect())), [64, 64, 22]);
    let big = packed(V2, (0..10).map(|n| data(n, 0, 16_384)).collect());
    assert_eq!(counts(&big), [3, 3, 3, 1]);
    assert!(big.iter().all(|(_, len)| *len <= 65_536 + 64));
    assert_eq!(counts(&packed(V1, (0..5).map(|n| data(n, 0, 10)).collect())), [1; 5]);
    let alone = packed(V1, vec![data(1, 0, 65_536)]);
    assert_eq!(alone.len(), 1);
    assert!(alone[0].1 < crate::wire::MESSAGE_MAX_BYTES / 2);
}

/// The payload of each DATA frame, with its stream.
fn turns(s: &mut Session) -> Vec<(u64, usize)> {
    transmitted(s, at(0))
        .iter()
        .filter_map(|f| {
            let Frame::Stream { cid, body: Body::Data { bytes, .. }, .. } = f else { return None };
            Some((cid.counter(), bytes.len()))
        })
        .collect()
}

#[test]
fn a_stream_alone_fills_frames_and_company_gets_turns() {
    let mut s = session(V2);
    send(&mut s, [data(1, 0, 150_000)]);
    assert_eq!(turns(&mut s), [(1, 65_536), (1, 65_536), (1, 18_928)]);

    send(&mut s, [data(1, 0, 40_000), data(2, 0, 40_000)]);
    let q = QUANTUM_BYTES;
    assert_eq!(turns(&mut s), [(1, q), (2, q), (1, q), (2, q), (1, 40_000 - 2 * q), (2, 40_000 - 2 * q)]);
}

/// L7: whatever one stream has queued, another that comes is served within
/// about two quanta.
#[test]
fn a_backlogged_stream_costs_the_others_one_turn() {
    let mut s = session(V2);
    send(&mut s, [data(1, 0, 1_000_000)]);
    send(&mut s, (2..102).map(|n| data(n, 0, 500)));
    let out = turns(&mut s);
    let before_last_small: usize = {
        let last = out.iter().rposition(|(n, _)| *n != 1).unwrap();
        out[..last].iter().filter(|(n, _)| *n == 1).map(|(_, len)| *len).sum()
    };
    assert!(before_last_small <= 2 * QUANTUM_BYTES, "{before_last_small} bytes of the backlog went first");
    assert_eq!(out.iter().map(|(_, len)| *len).sum::<usize>(), 1_050_000);
}

#[test]
fn tiny_frames_do_not_stretch_a_turn() {
    let mut s = session(V2);
    send(&mut s, (0..20_000).map(|n| data(1, n, 1)));
    send(&mut s, [data(2, 0, 100)]);
    let out = turns(&mut s);
    let before: Vec<usize> = out.iter().take_while(|(n, _)| *n == 1).map(|(_, len)| *len).collect();
    assert_eq!(before, vec![64; QUANTUM_BYTES / 64]);
}

/// Bytes that tell where they stand.
fn told(off: u64, len: u64) -> Bytes {
    (off..off + len).map(|n| (n % 251) as u8).collect()
}

/// Who writes little at a time takes no more frames of a session than others:
/// turns are counted in bytes, the cap in frames (L7).
#[test]
fn small_pieces_that_wait_share_a_frame_and_keep_their_order() {
    for dialect in [V1, V2] {
        for piece in [1_000, 10_000, 16_384, 20_000] {
            let mut s = session(dialect);
            let pieces = (0..).map(|n| n * piece).take_while(|off| *off < 80_000);
            send(&mut s, pieces.map(|off| frame(1, Body::Data { off, bytes: told(off, piece) })));
            let whole = 80_000_u64.div_ceil(piece) * piece;
            send(&mut s, [fin(1, whole), data(2, 0, 5)]);
            let out = transmitted(&mut s, at(0));
            let (mut next, mut ended) = (0, false);
            for f in out.iter().filter(|f| cid_of(f) == 1) {
                let Frame::Stream { body, .. } = f else { unreachable!() };
                match body {
                    Body::Data { off, bytes } => {
                        assert_eq!((*off, bytes), (next, &told(*off, bytes.len() as u64)), "{piece}");
                        next += bytes.len() as u64;
                        let full = piece != 1_000 || bytes.len() >= 16_000;
                        assert!(full || next == whole, "a frame of {} bytes", bytes.len());
                    }
                    Body::Fin { final_off } => ended = *final_off == next && next == whole,
                    Body::Open(_) | Body::OpenAck { .. } | Body::Credit { .. } | Body::Rst { .. } | Body::Resume(_) => {
                        panic!("{body:?}")
                    }
                }
            }
            assert!(ended, "{piece}");
            assert_eq!((s.unsent_bytes(cid(1)), s.queue_depth()), (0, out.len() as u32));
            assert!(s.queue_depth() <= 3 + (whole / QUANTUM_BYTES as u64) as u32 + 1, "{piece}: {}", s.queue_depth());
            s.check_invariants();
        }
    }
}

#[test]
fn pieces_under_different_epochs_share_no_frame() {
    let mut s = session(V2);
    let newer = Frame::stream(cid(1), Epoch(E.0 + 1), Body::Data { off: 5, bytes: Bytes::from_static(b"67890") });
    send(&mut s, [data(1, 0, 5), newer.clone()]);
    assert_eq!(transmitted(&mut s, at(0)), [data(1, 0, 5), newer]);
}

#[test]
fn fin_follows_its_data() {
    let mut s = session(V2);
    send(&mut s, [data(1, 0, 70_000), fin(1, 70_000), fin(2, 0)]);
    let out = transmitted(&mut s, at(0));
    let own: Vec<_> = out.iter().filter(|f| cid_of(f) == 1).map(Frame::kind).collect();
    assert_eq!(own.last(), Some(&"FIN"));
    assert!(out.contains(&fin(2, 0)));
}
