//! Frames no honest peer sends, against an owner with one open stream: what the
//! peer gets, and that nothing else moved (verification d 38 to 50, I2, O4, S8).

use super::*;
use crate::id::{Cid, Secret};
use crate::wire::Open;

/// A second link, of another hub.
const OTHER: SessionKey = session(5);

/// An open stream with 10 bytes up and 4 down; nothing is on the way.
fn opened() -> (Bench, Cid, StreamKey, StreamKey) {
    let mut b = Bench::new();
    b.note(OWNER, up(OTHER, Plane::Mesh, Some(3)));
    let c = b.open(1);
    b.deliver_all();
    let (t, _) = b.outs[AGENT].targets.pop().unwrap();
    b.target(t, Ok(2));
    b.data(ORIGIN, c, 10);
    b.data(AGENT, t, 4);
    b.deliver_all();
    let cid = b.shards[ORIGIN].stream(c).unwrap().cid;
    (b, cid, c, t)
}

fn digest(b: &Bench) -> Vec<String> {
    b.shards.iter().map(|s| format!("{:?} {:?} {:?}", s.streams, s.timers, s.socket_held)).collect()
}

fn open(agent: &str, connector: &str, nonce: u64) -> Body {
    Body::Open(Box::new(Open {
        nonce: Nonce(nonce),
        connector: name(connector),
        agent_id: AgentId::new(agent).unwrap(),
        key: Secret([0; 16]),
        limit: 1000,
    }))
}

fn data(off: u64, len: usize) -> Body {
    Body::Data { off, bytes: Bytes::from(vec![1; len]) }
}

fn resume() -> Body {
    Body::Resume(Box::new(crate::wire::Resume {
        nonce: Nonce(70),
        agent_id: AgentId::new("plant-7").unwrap(),
        key: Secret([0; 16]),
        next: 4,
        limit: 1000,
    }))
}

/// What a frame brings about.
#[derive(Debug, PartialEq)]
enum Effect {
    /// Nothing but this counter.
    Nothing(Counter),
    /// This answer on the session it came on, and nothing else.
    Answer(RstCode),
    /// The stream is reset with this code on both sides.
    Reset(RstCode),
    /// Its session is to be closed.
    Misbehaved,
}

/// Which counter shows it (semantics 3: dropped and counted).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Counter {
    Session,
    Epoch,
    Unknown,
    Duplicate,
    Glitch,
}

/// What it is, session, cid (`None`: the live one), epoch, body, effect.
type Row = (&'static str, SessionKey, Option<Cid>, u64, Body, Effect);

fn counters(b: &Bench) -> [(Counter, u64); 5] {
    let c = b.shards[OWNER].counters();
    [
        (Counter::Session, c.wrong_session),
        (Counter::Epoch, c.wrong_epoch),
        (Counter::Unknown, c.unknown),
        (Counter::Duplicate, c.duplicates),
        (Counter::Glitch, c.glitches),
    ]
}

#[test]
fn every_hostile_frame_has_its_outcome_and_touches_no_other_stream() {
    use Counter::{Duplicate, Epoch as OtherEpoch, Glitch, Session, Unknown};
    use Effect::{Answer, Misbehaved, Nothing, Reset};
    let fresh = Cid::new(Incarnation(1), 0, 99);
    let fin = |final_off| Body::Fin { final_off };
    let rst = Body::Rst { code: RstCode::Abort, final_off: 0 };
    let credit = |consumed, limit| Body::Credit { consumed, limit };
    let ack = Body::OpenAck { result: Ok(()) };
    let live = None;
    let table: Vec<Row> = vec![
        ("DATA off its session", OTHER, live, 7, data(10, 1), Nothing(Session)),
        ("FIN off its session", OTHER, live, 7, fin(10), Nothing(Session)),
        ("RST off its session", OTHER, live, 7, rst.clone(), Nothing(Session)),
        ("CREDIT off its session", OTHER, live, 7, credit(1, 1 << 20), Nothing(Session)),
        ("DATA of an older epoch", LINK_W, live, 6, data(10, 1), Nothing(OtherEpoch)),
        ("DATA of a newer epoch", LINK_W, live, 8, data(10, 1), Nothing(OtherEpoch)),
        ("FIN of an older epoch", LINK_W, live, 6, fin(10), Nothing(OtherEpoch)),
        ("CREDIT of an older epoch", LINK_W, live, 6, credit(1, 1 << 20), Nothing(OtherEpoch)),
        ("RST of an older epoch", LINK_W, live, 6, rst.clone(), Nothing(OtherEpoch)),
        ("DATA beyond credit", LINK_W, live, 7, data(10, 65_536), Reset(RstCode::Flow)),
        ("DATA at the end of numbers", LINK_W, live, 7, data(u64::MAX, 2), Reset(RstCode::Flow)),
        ("DATA with a gap", LINK_W, live, 7, data(11, 1), Reset(RstCode::Flow)),
        ("DATA again", LINK_W, live, 7, data(0, 10), Nothing(Duplicate)),
        ("FIN short", LINK_W, live, 7, fin(9), Reset(RstCode::Flow)),
        ("FIN long", LINK_W, live, 7, fin(11), Reset(RstCode::Flow)),
        ("CREDIT that says nothing", LINK_W, live, 7, credit(0, 0), Nothing(Glitch)),
        ("CREDIT lower than before", LINK_W, live, 7, credit(0, 1), Nothing(Glitch)),
        ("CREDIT beyond what was sent", LINK_W, live, 7, credit(5, u64::MAX), Nothing(Glitch)),
        ("CREDIT of an end not sent", TUNNEL_W, live, 7, credit(11, 1 << 20), Nothing(Glitch)),
        ("CREDIT for nobody", LINK_W, Some(fresh), 7, credit(1, 1), Nothing(Unknown)),
        ("RST for nobody", LINK_W, Some(fresh), 7, rst, Nothing(Unknown)),
        ("FIN for nobody", LINK_W, Some(fresh), 7, fin(0), Nothing(Unknown)),
        ("OPEN_ACK for nobody", TUNNEL_W, Some(fresh), 7, ack.clone(), Nothing(Unknown)),
        ("DATA for nobody", LINK_W, Some(fresh), 7, data(0, 1), Answer(RstCode::Unknown)),
        ("OPEN_ACK again", TUNNEL_W, live, 7, ack.clone(), Nothing(Glitch)),
        ("OPEN_ACK from the origin", LINK_W, live, 7, ack, Nothing(Glitch)),
        ("OPEN of a live cid", LINK_W, live, 7, open("plant-7", "ldap", 70), Nothing(Duplicate)),
        ("OPEN from an agent", TUNNEL_W, Some(fresh), 7, open("plant-7", "ldap", 70), Misbehaved),
        ("OPEN with another hub's cid", OTHER, Some(fresh), 7, open("plant-7", "ldap", 70), Misbehaved),
        (
            "OPEN with counter 0",
            LINK_W,
            Some(Cid::new(Incarnation(1), 0, 0)),
            7,
            open("plant-7", "ldap", 70),
            Misbehaved,
        ),
        ("OPEN under an old epoch", LINK_W, Some(fresh), 6, open("plant-7", "ldap", 70), Answer(RstCode::NotOwner)),
        ("OPEN under a future epoch", LINK_W, Some(fresh), 8, open("plant-7", "ldap", 70), Answer(RstCode::NotOwner)),
        ("OPEN under another nonce", LINK_W, Some(fresh), 7, open("plant-7", "ldap", 71), Answer(RstCode::NotOwner)),
        ("OPEN for another agent", LINK_W, Some(fresh), 7, open("plant-8", "ldap", 70), Answer(RstCode::NotOwner)),
        ("RESUME of the live cid", LINK_W, live, 7, resume(), Reset(RstCode::Unknown)),
        ("RESUME off its session", OTHER, live, 7, resume(), Answer(RstCode::Unknown)),
        ("RESUME for nobody", LINK_W, Some(fresh), 7, resume(), Answer(RstCode::Unknown)),
        ("OPEN outside the scope", LINK_W, Some(fresh), 7, open("plant-7", "ssh", 70), Answer(RstCode::Denied)),
    ];
    for (what, key, cid, epoch, body, want) in table {
        let (mut b, live, _, _) = opened();
        let before = digest(&b);
        let counted = counters(&b);
        let cid = cid.unwrap_or(live);
        b.shards[OWNER].on_frame(b.now, key, cid, Epoch(epoch), body, &mut b.outs[OWNER]);
        b.shards[OWNER].check_invariants();
        let frames = std::mem::take(&mut b.outs[OWNER].frames);
        let notes = std::mem::take(&mut b.outs[OWNER].notes);
        let code = |f: &Frame| {
            let Frame::Stream { body: Body::Rst { code, .. } | Body::OpenAck { result: Err(code) }, .. } = f else {
                panic!("{what}: {f:?}")
            };
            *code
        };
        let sent: Vec<(SessionKey, RstCode)> = frames.iter().map(|(k, f)| (*k, code(f))).collect();
        let misbehaved = notes.iter().any(|n| matches!(n, ShardNote::Misbehaved { .. }));
        match want {
            Nothing(counter) => {
                assert_eq!((sent, misbehaved), (vec![], false), "{what}");
                let moved = counters(&b).into_iter().zip(counted).filter(|(now, before)| now != before);
                let moved: Vec<_> = moved.map(|((which, now), (_, before))| (which, now - before)).collect();
                assert_eq!(moved, [(counter, 1)], "{what}");
            }
            Answer(code) => assert_eq!((sent, misbehaved), (vec![(key, code)], false), "{what}"),
            Reset(code) => {
                assert_eq!((sent, misbehaved), (vec![(LINK_W, code), (TUNNEL_W, code)], false), "{what}");
                assert_eq!(b.shards[OWNER].streams(), 0);
            }
            Misbehaved => assert_eq!((sent, misbehaved), (vec![], true), "{what}"),
        }
        if !matches!(want, Reset(_)) {
            assert_eq!(digest(&b), before, "{what}: no stream moved");
        }
    }
}

#[test]
fn before_its_answer_the_agents_side_has_nothing_to_say() {
    for (body, resets) in [
        (data(0, 1), true),
        (Body::Fin { final_off: 0 }, true),
        (Body::Credit { consumed: 0, limit: 1 << 20 }, false),
        (Body::Credit { consumed: 1, limit: 0 }, false),
    ] {
        let mut b = Bench::new();
        let c = b.open(1);
        b.socket(ORIGIN, c, SockEvent::Eof);
        b.deliver_all();
        let s = b.shards[ORIGIN].stream(c).unwrap();
        let (cid, before) = (s.cid, format!("{s:?}"));
        b.shards[ORIGIN].on_frame(b.now, LINK_O, cid, FENCE.epoch, body, &mut b.outs[ORIGIN]);
        let after = b.shards[ORIGIN].stream(c).map(|s| format!("{s:?}"));
        assert_eq!(after, (!resets).then_some(before));
        assert!(!b.outs[ORIGIN].socks.iter().any(|(_, op)| *op == super::super::SockOp::ShutDown), "no false EOF (S2)");
    }
}

#[test]
fn an_open_of_a_finished_cid_is_not_executed() {
    let (mut b, cid, c, t) = opened();
    b.socket(ORIGIN, c, SockEvent::Aborted);
    b.deliver_all();
    assert_eq!(b.shards[AGENT].streams(), 0);
    assert!(b.shards[AGENT].stream(t).is_none());
    b.shards[AGENT].on_frame(b.now, TUNNEL_A, cid, FENCE.epoch, open("plant-7", "ldap", 70), &mut b.outs[AGENT]);
    assert!(b.outs[AGENT].targets.is_empty() && b.outs[AGENT].frames.is_empty(), "S6, S8");
}

/// Attack 46: the agent would not execute it, nor answer.
#[test]
fn a_cid_that_an_earlier_link_carried_is_not_passed_on_again() {
    let (mut b, cid, _, _) = opened();
    let again = session(9);
    b.note(OWNER, ControlNote::SessionLost { session: LINK_W });
    b.note(OWNER, up(again, Plane::Mesh, Some(1)));
    b.outs[OWNER] = ShardOut::default();
    let ask = |b: &mut Bench, cid| {
        b.shards[OWNER].on_frame(b.now, again, cid, FENCE.epoch, open("plant-7", "ldap", 70), &mut b.outs[OWNER]);
        b.shards[OWNER].check_invariants();
        std::mem::take(&mut b.outs[OWNER].frames)
    };
    let refused = Body::OpenAck { result: Err(RstCode::Protocol) };
    assert_eq!(ask(&mut b, cid), [(again, Frame::stream(cid, FENCE.epoch, refused))]);
    assert_eq!(
        (b.shards[OWNER].streams(), b.shards[OWNER].pending_opens()),
        (0, 0),
        "nothing waits for an answer (B7)"
    );
    // The next one of that run is as good as any.
    let next = Cid::new(cid.incarnation(), cid.lane(), cid.counter() + 1);
    let sent = ask(&mut b, next);
    assert!(matches!(sent[..], [(TUNNEL_W, Frame::Stream { body: Body::Open(_), .. })]), "{sent:?}");
}

#[test]
fn a_session_that_breaks_limits_again_and_again_is_closed() {
    let mut b = Bench::new();
    for i in 0..3 {
        let c = b.open(i);
        let cid = b.shards[ORIGIN].stream(c).unwrap().cid;
        b.deliver_all();
        b.shards[OWNER].on_frame(b.now, LINK_W, cid, FENCE.epoch, data(1, 1), &mut b.outs[OWNER]);
        b.flush();
        let closed = b.notes.iter().any(|n| matches!(n, ShardNote::Misbehaved { session: LINK_W, .. }));
        assert_eq!(closed, i == 2, "attack 39");
    }
}

#[test]
fn a_recorded_conversation_played_again_changes_nothing() {
    let mut b = Bench::new();
    let mut record: Vec<(usize, SessionKey, Frame)> = Vec::new();
    let run = |b: &mut Bench, record: &mut Vec<(usize, SessionKey, Frame)>| {
        loop {
            let mut any = false;
            for from in [LINK_O, LINK_W, TUNNEL_W, TUNNEL_A] {
                if let Some(f) = b.queues[from.ix as usize - 1].front() {
                    let (to, key) = far_end(from);
                    record.push((to, key, f.clone()));
                    any |= b.deliver(from);
                }
            }
            if !any {
                return;
            }
        }
    };
    let c = b.open(1);
    run(&mut b, &mut record);
    let (t, _) = b.outs[AGENT].targets.pop().unwrap();
    b.target(t, Ok(2));
    b.data(ORIGIN, c, 40_000);
    b.data(AGENT, t, 30_000);
    run(&mut b, &mut record);
    b.socket(AGENT, t, SockEvent::Written(40_000));
    b.socket(ORIGIN, c, SockEvent::Written(30_000));
    b.socket(ORIGIN, c, SockEvent::Eof);
    run(&mut b, &mut record);
    b.socket(AGENT, t, SockEvent::ShutDown);
    run(&mut b, &mut record);
    for out in &mut b.outs {
        *out = ShardOut::default();
    }
    // In the middle of the stream, one half ended; and once more after its end.
    for ended in [false, true] {
        if ended {
            b.socket(AGENT, t, SockEvent::Eof);
            run(&mut b, &mut record);
            b.socket(ORIGIN, c, SockEvent::ShutDown);
            run(&mut b, &mut record);
            b.assert_empty();
            for out in &mut b.outs {
                *out = ShardOut::default();
            }
        }
        let before = digest(&b);
        for (to, key, frame) in &record {
            let Frame::Stream { cid, epoch, body } = frame.clone() else { continue };
            b.shards[*to].on_frame(b.now, *key, cid, epoch, body, &mut b.outs[*to]);
            let out = &b.outs[*to];
            assert!(out.frames.is_empty() && out.socks.is_empty() && out.targets.is_empty(), "{frame:?} (S8)");
            assert_eq!(digest(&b), before, "{frame:?} (S8)");
        }
    }
}

#[test]
fn without_a_lease_a_hub_opens_for_its_own_clients_only() {
    let mut b = Bench::new();
    b.note(OWNER, ControlNote::Lease(Some(b.now)));
    let c = b.open(1);
    b.deliver_all();
    // The only candidate said no: the origin asks for others.
    assert!(b.notes.iter().any(|n| matches!(n, ShardNote::NeedRoute { afresh: true, .. })), "O7");
    assert!(b.shards[ORIGIN].stream(c).is_some());
}

#[test]
fn a_refusal_of_a_hub_is_no_answer_of_the_agent() {
    let mut b = Bench::new();
    b.open(1);
    b.deliver_all();
    // The tunnel is lost: whether a target was connected is not known.
    b.note(OWNER, ControlNote::SessionLost { session: TUNNEL_W });
    let frames = std::mem::take(&mut b.outs[OWNER].frames);
    assert!(
        matches!(frames.as_slice(), [(LINK_W, Frame::Stream { body: Body::Rst { code: RstCode::Lost, .. }, .. })]),
        "{frames:?} (S7)"
    );
}

#[test]
fn while_pressure_lasts_nothing_spins_and_a_stream_that_holds_little_goes_on() {
    use crate::credit::Pressure;
    let (mut b, _, c, t) = opened();
    b.data(ORIGIN, c, 65_526);
    b.deliver_all();
    for n in 0..3 {
        b.shards[n].set_pressure(b.now, Pressure::High);
    }
    // The target takes it in uneven bites; after the last nothing is held.
    for bite in [60_000, 5_000, 536] {
        b.socket(AGENT, t, SockEvent::Written(bite));
        b.deliver_all();
    }
    assert!(b.shards[ORIGIN].read_budget(c) > 0, "L7");
    for n in 0..3 {
        b.shards[n].set_pressure(b.now, Pressure::Low);
        b.shards[n].set_pressure(b.now, Pressure::High);
        let due = b.shards[n].poll_timeout();
        assert!(due.is_none_or(|d| d.at > b.now), "node {n}: {due:?} (B9)");
    }
}
