//! Unit tests of the session through its public face and the real codecs. The
//! queues' own rules are in `queues`, properties against models in `props`.

mod props;
mod queues;

use super::*;
use crate::error::RstCode;
use crate::id::{AgentId, Epoch, Incarnation, Name, Nonce};
use crate::wire::{NUMBER_MAX, Open, Plane, Resume, Status, encode_message};

const V2: Dialect = Dialect { codec: Codec::BinaryV2, plane: Plane::Mesh };
const V1: Dialect = Dialect { codec: Codec::JsonV1, plane: Plane::Mesh };
const DIALLER: Secret<16> = Secret([1; 16]);
const ACCEPTOR: Secret<16> = Secret([2; 16]);
const E: Epoch = Epoch(5);

fn at(ms: u64) -> Instant {
    Instant::ZERO.after(Duration::from_millis(ms))
}

fn config(dialect: Dialect) -> SessionConfig {
    SessionConfig {
        dialect,
        id: SessionId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        secret: Secret([7; 32]),
        send_queue_depth: 1000,
        inflight_bytes: 8 << 20,
        liveness: Liveness::default(),
    }
}

fn session(dialect: Dialect) -> Session {
    Session::new(config(dialect), Seed::from_u64(1), at(0))
}

fn capped(send_queue_depth: u32, inflight_bytes: u64) -> Session {
    Session::new(SessionConfig { send_queue_depth, inflight_bytes, ..config(V2) }, Seed::from_u64(1), at(0))
}

fn cid(n: u64) -> Cid {
    Cid::new(Incarnation(9), 0, n)
}

fn frame(n: u64, body: Body) -> Frame {
    Frame::stream(cid(n), E, body)
}

fn open(n: u64) -> Frame {
    frame(
        n,
        Body::Open(Box::new(Open {
            nonce: Nonce(1),
            connector: Name::new("ldap").unwrap(),
            agent_id: AgentId::new("plant-7").unwrap(),
            key: Secret([3; 16]),
            limit: 65_536,
        })),
    )
}

fn data(n: u64, off: u64, len: usize) -> Frame {
    frame(n, Body::Data { off, bytes: Bytes::from(vec![b'x'; len]) })
}

fn fin(n: u64, final_off: u64) -> Frame {
    frame(n, Body::Fin { final_off })
}

fn credit(n: u64, consumed: u64, limit: u64) -> Frame {
    frame(n, Body::Credit { consumed, limit })
}

fn rst(n: u64) -> Frame {
    frame(n, Body::Rst { code: RstCode::Abort, final_off: 0 })
}

fn status(initial_window: u64) -> Frame {
    Frame::Status(Status { registry_healthy: true, draining: false, active: true, initial_window })
}

fn send(s: &mut Session, frames: impl IntoIterator<Item = Frame>) -> Vec<Released> {
    let mut released = Vec::new();
    for f in frames {
        s.send(at(0), f, &mut released);
        s.check_invariants();
    }
    released
}

/// Everything the session transmits now.
fn transmit(s: &mut Session, now: Instant) -> (Vec<Bytes>, TxState) {
    let mut batch = TxBatch::default();
    let state = s.poll_transmit(now, usize::MAX, &mut batch, &mut Vec::new());
    s.check_invariants();
    assert_eq!(batch.bytes, batch.messages.iter().map(|m| m.len).sum::<usize>());
    (batch.messages.iter().map(TxMessage::to_bytes).collect(), state)
}

fn decoded(dialect: Dialect, msg: &Bytes) -> (u64, Vec<Frame>) {
    let mut frames = Vec::new();
    let number = decode(dialect, msg, &WireLimits::ESTABLISHED, &mut frames).unwrap();
    (number, frames)
}

/// The frames the session transmits now, in order.
fn transmitted(s: &mut Session, now: Instant) -> Vec<Frame> {
    let dialect = s.dialect();
    transmit(s, now).0.iter().flat_map(|m| decoded(dialect, m).1).collect()
}

/// What arrives at `to` of what `from` transmits now.
fn carry(from: &mut Session, to: &mut Session, now: Instant) -> Vec<Frame> {
    let mut frames = Vec::new();
    for m in transmit(from, now).0 {
        to.on_message(now, &m, &mut frames).unwrap();
        to.check_invariants();
    }
    frames
}

fn numbered(number: u64, frames: &[Frame]) -> Bytes {
    encode_message(V2, number, frames)
}

fn take(s: &mut Session, now: Instant, msg: &Bytes) -> Result<Vec<Frame>, ProtocolErrorKind> {
    let mut frames = Vec::new();
    s.on_message(now, msg, &mut frames).map(|()| frames.clone()).map_err(|e| {
        assert!(frames.is_empty(), "an error appends nothing");
        e.kind
    })
}

#[test]
fn kinds_are_indexed_as_they_are_listed() {
    let frames = [
        Frame::Ack { received: 1 },
        Frame::Ping { token: 1 },
        Frame::Pong { token: 1 },
        Frame::GoAway { code: CloseCode::Draining, retry_after_ms: 0 },
        status(1),
        Frame::Connectors { generation: 1, connectors: vec![] },
        open(1),
        frame(1, Body::OpenAck { result: Ok(()) }),
        data(1, 0, 1),
        credit(1, 0, 0),
        fin(1, 0),
        rst(1),
    ];
    for f in frames {
        assert_eq!(FRAME_KINDS[kind_ix(&f)], f.kind());
    }
}

#[test]
fn messages_are_numbered_from_one_and_arrive_once() {
    for dialect in [V1, V2] {
        let (mut a, mut b) = (session(dialect), session(dialect));
        send(&mut a, [open(1)]);
        let first = transmit(&mut a, at(0)).0;
        send(&mut a, [data(1, 0, 10)]);
        let second = transmit(&mut a, at(0)).0;
        assert_eq!(decoded(dialect, &first[0]).0, 1);
        assert_eq!(decoded(dialect, &second[0]).0, 2);

        let mut got = Vec::new();
        for m in [&first[0], &first[0], &second[0], &first[0], &second[0]] {
            b.on_message(at(1), m, &mut got).unwrap();
        }
        assert_eq!(got, [open(1), data(1, 0, 10)], "a replayed message changes nothing (S8)");
        assert_eq!(b.counters().messages_duplicate, 3);
        assert_eq!(b.counters().frames_in[11], 1);
    }
}

#[test]
fn numbering_is_enforced() {
    let mut s = session(V2);
    assert_eq!(take(&mut s, at(0), &numbered(2, &[data(1, 0, 1)])), Err(ProtocolErrorKind::Numbering));
    let mut s = session(V2);
    assert_eq!(take(&mut s, at(0), &numbered(0, &[Frame::Ack { received: 1 }])), Err(ProtocolErrorKind::Numbering));
    let mut s = session(V2);
    assert!(take(&mut s, at(0), &numbered(0, &[data(1, 0, 1)])).is_err(), "DATA must be numbered");
    let auth = Frame::Auth(Box::default());
    assert_eq!(take(&mut s, at(0), &numbered(0, &[auth])), Err(ProtocolErrorKind::Unexpected));
    assert!(take(&mut s, at(0), &Bytes::from_static(b"\xff\xff")).is_err());
}

#[test]
fn payload_is_passed_by_reference() {
    let mut a = session(V2);
    let payload = Bytes::from(vec![1; 50_000]);
    send(&mut a, [frame(1, Body::Data { off: 0, bytes: payload.clone() })]);
    let mut batch = TxBatch::default();
    a.poll_transmit(at(0), usize::MAX, &mut batch, &mut Vec::new());
    let parts = &batch.messages[0].chunks;
    assert_eq!(parts[1].as_ptr(), payload.as_ptr());
    assert_eq!(parts[1].len(), payload.len());

    a.on_connection_lost(at(1));
    reconnect(&mut a, &mut session(V2), at(2));
    a.poll_transmit(at(2), usize::MAX, &mut batch, &mut Vec::new());
    assert_eq!(batch.messages[1].chunks[1].as_ptr(), payload.as_ptr(), "the replay holds a reference");
}

#[test]
fn an_ack_is_due_after_64_messages_64_kib_or_20_ms() {
    let mut s = session(V2);
    for n in 1..=64 {
        assert!(!s.wants_transmit(at(0)), "message {n}");
        take(&mut s, at(0), &numbered(n, &[credit(1, n, n)])).unwrap();
    }
    assert_eq!(transmitted(&mut s, at(0)), [Frame::Ack { received: 64 }]);
    assert!(!s.wants_transmit(at(0)));

    take(&mut s, at(0), &numbered(65, &[data(1, 0, 40_000)])).unwrap();
    assert!(!s.wants_transmit(at(0)));
    take(&mut s, at(0), &numbered(66, &[data(1, 40_000, 30_000)])).unwrap();
    assert_eq!(transmitted(&mut s, at(0)), [Frame::Ack { received: 66 }]);

    take(&mut s, at(100), &numbered(67, &[data(1, 0, 1)])).unwrap();
    take(&mut s, at(110), &numbered(68, &[data(1, 1, 1)])).unwrap();
    assert_eq!(s.poll_timeout(), Some(Deadline { at: at(120), why: "session ack" }));
    assert!(!s.wants_transmit(at(119)));
    assert_eq!(s.handle_timeout(at(120)), SessionEvent::None);
    assert_ne!(s.poll_timeout().unwrap().why, "session ack", "a deadline does not fire twice (B9)");
    assert_eq!(transmitted(&mut s, at(120)), [Frame::Ack { received: 68 }]);

    take(&mut s, at(130), &numbered(3, &[data(1, 0, 1)])).unwrap();
    assert_eq!(transmitted(&mut s, at(130)), [Frame::Ack { received: 68 }], "a duplicate asks for the ACK again");
    s.check_invariants();
}

#[test]
fn an_ack_rides_on_a_v2_message_and_stands_alone_in_v1() {
    let ping_pong = |dialect| {
        let (mut a, mut b) = (session(dialect), session(dialect));
        send(&mut a, [data(1, 0, 10)]);
        carry(&mut a, &mut b, at(0));
        send(&mut b, [data(2, 0, 10)]);
        let out = transmit(&mut b, at(1)).0;
        out.iter().map(|m| decoded(dialect, m)).collect::<Vec<_>>()
    };
    assert_eq!(ping_pong(V2), [(1, vec![Frame::Ack { received: 1 }, data(2, 0, 10)])]);
    assert_eq!(ping_pong(V1), [(1, vec![data(2, 0, 10)])]);
}

#[test]
fn in_flight_returns_to_zero_when_all_is_acknowledged() {
    for dialect in [V1, V2] {
        let (mut a, mut b) = (session(dialect), session(dialect));
        send(&mut a, [open(1), data(1, 0, 100_000), fin(1, 100_000), status(7)]);
        assert_eq!((a.held_bytes(), a.unsent_bytes(cid(1))), (100_000, 100_000));
        let sent: usize = transmit(&mut a, at(0)).0.iter().map(Bytes::len).sum();
        assert_eq!(a.inflight_bytes(), sent as u64);
        assert_eq!(a.queue_depth(), 5, "OPEN, STATUS, two DATA and FIN");
        assert_eq!(a.unsent_bytes(cid(1)), 0);
        assert!(a.held_bytes() >= 100_000, "the replay holds it");

        take(&mut b, at(0), &encode_message(dialect, 0, &[Frame::Ping { token: 1 }])).unwrap();
        let last = a.tx_last_number();
        let ack = encode_message(dialect, 0, &[Frame::Ack { received: last }]);
        take(&mut a, at(1), &ack).unwrap();
        assert_eq!((a.inflight_bytes(), a.queue_depth(), a.held_bytes()), (0, 0, 0));
        take(&mut a, at(1), &encode_message(dialect, 0, &[Frame::Ack { received: 1 }])).unwrap();
        a.check_invariants();
    }
}

impl Session {
    fn tx_last_number(&self) -> u64 {
        (0..).take_while(|n| self.tx.may_resume_at(*n) || *n == 0).last().unwrap()
    }
}

#[test]
fn data_stops_at_the_caps_and_control_does_not() {
    for (mut s, reason) in
        [(capped(3, 1 << 20), BlockedBy::QueueDepth), (capped(1000, 40_000), BlockedBy::InflightBytes)]
    {
        send(&mut s, [data(1, 0, 200_000), data(2, 0, 200_000)]);
        let (out, state) = transmit(&mut s, at(0));
        assert_eq!(state, TxState::Blocked(reason));
        assert_eq!(s.queue_depth(), 3, "three quanta reach either cap, the third being the last");
        assert!(s.inflight_bytes() < 40_000 + 16_384 + 200);
        assert!(!s.wants_transmit(at(0)));
        let c = s.counters();
        assert_eq!(c.blocked_queue_depth + c.blocked_inflight_bytes, 1);

        send(&mut s, [credit(1, 1, 2)]);
        assert_eq!(transmitted(&mut s, at(0)), [credit(1, 1, 2)]);
        assert_eq!(s.queue_depth(), 4, "control counts");

        let n = out.len() as u64 + 1;
        take(&mut s, at(0), &numbered(0, &[Frame::Ack { received: n }])).unwrap();
        assert!(s.wants_transmit(at(0)), "an ACK lifts the cap");
        assert_eq!(transmit(&mut s, at(0)).1, TxState::Blocked(reason));
    }
}

#[test]
fn one_in_flight_frame_is_always_possible() {
    let mut s = capped(0, 0);
    send(&mut s, [data(1, 0, 10), data(2, 0, 10)]);
    assert_eq!(transmitted(&mut s, at(0)), [data(1, 0, 10)]);
}

#[test]
fn the_budget_ends_a_call_after_a_whole_message() {
    let mut s = session(V2);
    send(&mut s, [data(1, 0, 200_000)]);
    let mut batch = TxBatch::default();
    let mut released = Vec::new();
    assert_eq!(s.poll_transmit(at(0), 70_000, &mut batch, &mut released), TxState::More);
    assert_eq!(batch.messages.len(), 2);
    assert_eq!(released.iter().map(|r| r.bytes).sum::<u64>(), 131_072);
    assert_eq!(s.poll_transmit(at(0), 0, &mut batch, &mut released), TxState::More);
    assert_eq!(batch.messages.len(), 2);
    assert_eq!(s.poll_transmit(at(0), 100_000, &mut batch, &mut released), TxState::Idle);
    assert_eq!(released.iter().map(|r| r.bytes).sum::<u64>(), 200_000);
}

/// A full resumption: `a` dials, `b` accepts.
fn reconnect(a: &mut Session, b: &mut Session, now: Instant) {
    let req = a.resume_request(&DIALLER);
    let accept = b.accept_resume(now, &req, &DIALLER, &ACCEPTOR).unwrap();
    a.on_resume_accepted(now, &accept, &DIALLER, &ACCEPTOR).unwrap();
}

#[test]
fn a_resumption_replays_what_the_other_lacks_before_anything_new() {
    for dialect in [V1, V2] {
        let (mut a, mut b) = (session(dialect), session(dialect));
        send(&mut a, [data(1, 0, 10)]);
        carry(&mut a, &mut b, at(0));
        for n in 1..4 {
            send(&mut a, [data(1, n * 10, 10)]);
            transmit(&mut a, at(0));
        }
        a.on_connection_lost(at(1));
        assert!(!a.is_connected() && a.is_suspect(at(1)));
        assert_eq!(a.poll_timeout(), None);
        send(&mut a, [credit(1, 1, 1), data(1, 40, 10)]);
        assert!(!a.wants_transmit(at(1)));
        assert_eq!(transmit(&mut a, at(1)), (vec![], TxState::Idle));

        // The acceptor still believes in the old connection.
        reconnect(&mut a, &mut b, at(2));
        let expected = [data(1, 10, 10), data(1, 20, 10), data(1, 30, 10), credit(1, 1, 1), data(1, 40, 10)];
        assert_eq!(carry(&mut a, &mut b, at(2)), expected);
        assert_eq!(a.counters().messages_replayed, 3);
        assert_eq!((a.counters().resumed, b.counters().resumed), (1, 1));
    }
}

#[test]
fn a_late_message_of_the_old_connection_is_ignored_and_replayed() {
    let (mut a, mut b) = (session(V2), session(V2));
    send(&mut a, [data(1, 0, 10)]);
    let late = transmit(&mut a, at(0)).0;
    b.on_connection_lost(at(1));
    assert_eq!(take(&mut b, at(1), &late[0]), Ok(vec![]));
    assert_eq!(b.counters().messages_stale, 1);
    reconnect(&mut a, &mut b, at(2));
    assert_eq!(carry(&mut a, &mut b, at(2)), [data(1, 0, 10)]);
}

/// Everything a resumption may change, as text.
fn image(s: &Session) -> String {
    format!("{:?} {:?} {:?} {:?} {:?}", s.connected, s.tx, s.rx, s.live, s.attempts)
}

#[test]
fn an_acceptor_refuses_what_is_not_proved_new_and_within_what_was_sent() {
    let (mut a, mut b) = (session(V2), session(V2));
    // b sends three messages, a receives two and acknowledges one.
    for n in 0..3 {
        send(&mut b, [data(2, n, 1)]);
        let out = transmit(&mut b, at(0)).0;
        if n < 2 {
            take(&mut a, at(0), &out[0]).unwrap();
        }
    }
    take(&mut b, at(0), &numbered(0, &[Frame::Ack { received: 1 }])).unwrap();
    let old = a.resume_request(&DIALLER);
    reconnect(&mut a, &mut b, at(1));
    b.on_connection_lost(at(2));
    let good = a.resume_request(&DIALLER);
    assert_eq!((good.attempt, good.received), (3, 2));

    let proved = |attempt, received| {
        let proof = resume::request_proof(&a.secret, a.id, attempt, received, &DIALLER);
        ResumeRequest { session: a.id, attempt, received, proof }
    };
    let mut wrong_proof = good.clone();
    wrong_proof.proof.0[31] ^= 1;
    let mut wrong_session = good.clone();
    wrong_session.session.0 ^= 1;
    let mut raised_number = good.clone();
    raised_number.received = 3;
    for (req, challenge, why) in [
        (wrong_proof, DIALLER, "wrong proof"),
        (wrong_session, DIALLER, "another session"),
        (raised_number, DIALLER, "a number the proof does not cover"),
        (good.clone(), Secret([9; 16]), "a proof for another connection"),
        (old, DIALLER, "a lower attempt"),
        (proved(2, 2), DIALLER, "the attempt accepted before"),
        (proved(9, 4), DIALLER, "received above sent"),
        (proved(9, 1), DIALLER, "received below acknowledged"),
        (proved(9, u64::MAX), DIALLER, "received at the end of numbers"),
    ] {
        let before = image(&b);
        assert_eq!(b.accept_resume(at(3), &req, &challenge, &ACCEPTOR), Err(CloseCode::ResumeRefused), "{why}");
        assert_eq!(image(&b), before, "{why}: the session is as it was");
        b.check_invariants();
    }
    assert_eq!(b.counters().resume_refused, 9);
    b.accept_resume(at(3), &good, &DIALLER, &ACCEPTOR).unwrap();
}

#[test]
fn a_dialler_refuses_what_is_not_proved_and_within_what_was_sent() {
    let (mut a, mut b) = (session(V2), session(V2));
    send(&mut a, [data(1, 0, 1)]);
    carry(&mut a, &mut b, at(0));
    a.on_connection_lost(at(1));
    let first = a.resume_request(&DIALLER);
    let first_accept = b.accept_resume(at(1), &first, &DIALLER, &ACCEPTOR).unwrap();
    let second = a.resume_request(&DIALLER);
    let good = b.accept_resume(at(2), &second, &DIALLER, &ACCEPTOR).unwrap();

    let proved = |received| {
        let proof = resume::accept_proof(&a.secret, a.id, second.attempt, received, &DIALLER, &ACCEPTOR);
        ResumeAccept { received, proof }
    };
    let mut wrong_proof = good.clone();
    wrong_proof.proof.0[0] ^= 1;
    for (accept, challenge, why) in [
        (wrong_proof, ACCEPTOR, "wrong proof"),
        (first_accept, ACCEPTOR, "the answer to an earlier attempt"),
        (good.clone(), Secret([9; 16]), "a proof for another connection"),
        (ResumeAccept { received: 1, proof: second.proof }, ACCEPTOR, "its own proof, reflected"),
        (proved(2), ACCEPTOR, "received above sent"),
    ] {
        let before = image(&a);
        assert_eq!(a.on_resume_accepted(at(3), &accept, &DIALLER, &challenge), Err(CloseCode::ResumeRefused), "{why}");
        assert_eq!(image(&a), before, "{why}: the session is as it was");
    }
    a.on_resume_accepted(at(3), &good, &DIALLER, &ACCEPTOR).unwrap();
    assert!(a.is_connected());
    assert_eq!(
        a.on_resume_accepted(at(3), &good, &DIALLER, &ACCEPTOR),
        Err(CloseCode::ResumeRefused),
        "no answer is awaited any more"
    );
}

/// The formulas of PROTOCOL.md, computed with another implementation.
#[test]
fn proofs_are_the_documented_ones() {
    let s = session(V2);
    assert_eq!(
        resume::request_proof(&s.secret, s.id, 3, 42, &DIALLER).to_hex(),
        "2feb880412db55a305d47ed2fdb9e9e84ec81acaea4f523a3c4972725d1b539f"
    );
    assert_eq!(
        resume::accept_proof(&s.secret, s.id, 3, 17, &DIALLER, &ACCEPTOR).to_hex(),
        "4cf16b6b574fda1b05bfa5498657c5c728f78049d6923ace9f7bfa29df5443bc"
    );
}

#[test]
fn pings_measure_the_round_trip() {
    let (mut a, mut b) = (session(V2), session(V2));
    assert_eq!(a.poll_timeout().unwrap(), Deadline { at: at(1000), why: "session ping" });
    a.handle_timeout(at(999));
    assert!(!a.wants_transmit(at(999)));
    a.handle_timeout(at(1000));
    carry(&mut a, &mut b, at(1000));
    carry(&mut b, &mut a, at(1040));
    assert_eq!(a.rtt(), Some(Duration::from_millis(40)));

    a.handle_timeout(at(2000));
    carry(&mut a, &mut b, at(2000));
    carry(&mut b, &mut a, at(2120));
    assert_eq!(a.rtt(), Some(Duration::from_millis(50)), "smoothed by an eighth");
    let mut samples = Vec::new();
    a.take_rtt_samples(&mut samples);
    assert_eq!(samples, [Duration::from_millis(40), Duration::from_millis(120)]);

    take(&mut a, at(2200), &numbered(0, &[Frame::Pong { token: 12 }])).unwrap();
    assert_eq!((a.counters().glitches, a.rtt()), (1, Some(Duration::from_millis(50))));
}

#[test]
fn pings_are_counted_and_their_tokens_follow_each_other() {
    let mut a = session(V2);
    let mut b = session(V2);
    let mut tokens = Vec::new();
    for n in 1..=3 {
        a.handle_timeout(at(1000 * n));
        let frames = transmitted(&mut a, at(1000 * n));
        let [Frame::Ping { token }] = frames[..] else { panic!("{frames:?}") };
        tokens.push(token);
        assert_eq!(a.counters().frames_out[kind_ix(&frames[0])], n);
        take(&mut b, at(1000 * n), &numbered(0, &frames)).unwrap();
        let pong = transmit(&mut b, at(1000 * n)).0;
        take(&mut a, at(1000 * n), &pong[0]).unwrap();
        assert_eq!((a.counters().messages_in, b.counters().messages_in), (n, n));
        assert_eq!(a.counters().bytes_in, n * pong[0].len() as u64);
    }
    assert_eq!(tokens, [tokens[0], (tokens[0] + 1) & NUMBER_MAX, (tokens[0] + 2) & NUMBER_MAX]);
}

#[test]
fn a_round_trip_longer_than_the_ping_interval_is_measured() {
    let (mut a, mut b) = (session(V2), session(V2));
    a.handle_timeout(at(1000));
    carry(&mut a, &mut b, at(1000));
    let pong = transmit(&mut b, at(1500)).0;
    a.handle_timeout(at(2000));
    transmit(&mut a, at(2000));
    take(&mut a, at(2700), &pong[0]).unwrap();
    assert_eq!(a.rtt(), Some(Duration::from_millis(1700)));
}

#[test]
fn silence_is_suspect_and_then_death_once_and_own_writes_do_not_count() {
    let (mut a, mut b) = (session(V2), session(V2));
    let mut died = Vec::new();
    for ms in (0..20_000).step_by(100) {
        send(&mut a, [data(1, ms, 1)]);
        transmit(&mut a, at(ms));
        assert_eq!(a.is_suspect(at(ms)), ms >= 3_000);
        if a.handle_timeout(at(ms)) == SessionEvent::Dead {
            died.push(ms);
        }
    }
    assert_eq!(died, [10_000]);
    a.on_connection_lost(at(20_000));
    reconnect(&mut a, &mut b, at(21_000));
    assert!(!a.is_suspect(at(21_000)));
    assert_eq!(a.handle_timeout(at(30_999)), SessionEvent::None);
    assert_eq!(a.handle_timeout(at(31_000)), SessionEvent::Dead, "once per connection");
}

/// It has a deadline of its own, whenever the last word came: who avoids a link
/// that is suspect must not learn of it with the next PING.
#[test]
fn suspicion_is_due_when_it_begins() {
    for last in [0, 1, 400, 999, 1000] {
        let mut a = session(V2);
        a.on_heard(at(last));
        let mut dues = Vec::new();
        while let Some(due) = a.poll_timeout().filter(|due| due.at < at(9_000)) {
            a.handle_timeout(due.at);
            transmit(&mut a, due.at);
            dues.push(due.at);
        }
        assert!(dues.contains(&at(last + 3_000)), "{dues:?} after {last}");
        assert!(dues.len() <= 9, "once (B9): {dues:?}");
    }
}

#[test]
fn a_peer_whose_message_is_still_arriving_is_neither_suspect_nor_dead() {
    let mut a = session(V2);
    for ms in (0..60_000).step_by(1000) {
        a.on_heard(at(ms));
        transmit(&mut a, at(ms));
        assert!(!a.is_suspect(at(ms)));
        assert_eq!(a.handle_timeout(at(ms)), SessionEvent::None);
    }
    assert_eq!(a.counters().messages_in, 0, "life is all it is");
    // It stops in the middle: death comes as late as ever.
    assert_eq!(a.handle_timeout(at(68_999)), SessionEvent::None);
    assert_eq!(a.handle_timeout(at(69_000)), SessionEvent::Dead);
    a.on_connection_lost(at(69_000));
    let before = image(&a);
    a.on_heard(at(70_000));
    assert_eq!(image(&a), before, "without a connection nobody is heard");
}

#[test]
fn deadlines_make_progress() {
    let (mut a, mut b) = (session(V2), session(V2));
    let mut now = at(0);
    let mut calls = 0;
    while now < at(60_000) {
        let due = Deadline::earliest(a.poll_timeout(), b.poll_timeout()).unwrap().at;
        assert!(due > now, "a deadline that was served is due again (B9)");
        now = due;
        calls += 1;
        send(&mut a, [data(1, 0, 1)]);
        for _ in 0..2 {
            assert_eq!(a.handle_timeout(now), SessionEvent::None);
            assert_eq!(b.handle_timeout(now), SessionEvent::None);
            carry(&mut a, &mut b, now);
            carry(&mut b, &mut a, now);
        }
    }
    assert!(calls < 60 * 52 + 10, "{calls}");
}
