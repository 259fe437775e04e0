//! What a shard takes while the process holds nearly all it may, and what it
//! counts (B3).

use super::*;
use crate::credit::Budget;
use crate::shard::SockOp;

fn budget(cap: u64, held: u64) -> Budget {
    let mut budget = Budget::new(cap);
    budget.set_held(held);
    budget
}

/// The sockets of a node that were told to be read again.
fn readable(out: &mut ShardOut) -> Vec<u32> {
    let told = std::mem::take(&mut out.socks);
    told.into_iter().filter(|(_, op)| *op == SockOp::Readable).map(|(sock, _)| sock.ix).collect()
}

#[test]
fn a_socket_is_read_as_far_as_there_is_room_and_again_in_turn_when_there_is() {
    let mut b = Bench::new();
    let streams: Vec<StreamKey> = (1..=3).map(|n| b.open(n)).collect();
    let now = b.now;
    b.shards[ORIGIN].set_budget(now, &budget(100_000, 99_000));
    assert_eq!(b.shards[ORIGIN].read_budget(streams[0]), 1000);
    b.shards[ORIGIN].set_budget(now, &budget(100_000, 100_000));
    for ix in [2, 0, 1] {
        assert_eq!(b.shards[ORIGIN].read_budget(streams[ix]), 0, "B3");
    }
    // More than the cap is no less, and nothing is due while it lasts (B9).
    b.shards[ORIGIN].set_budget(now, &budget(100_000, 120_000));
    let due = b.shards[ORIGIN].poll_timeout();
    assert!(due.is_none_or(|d| d.at > now), "{due:?}");
    // The one in the middle of the queue leaves.
    b.socket(ORIGIN, streams[0], SockEvent::Aborted);
    b.outs[ORIGIN].socks.clear();
    b.shards[ORIGIN].set_budget(now, &budget(100_000, 99_999));
    assert!(b.shards[ORIGIN].poll_timeout().is_some_and(|d| d.at <= now), "L7");
    b.shards[ORIGIN].handle_timeout(now, &mut b.outs[ORIGIN]);
    assert_eq!(readable(&mut b.outs[ORIGIN]), [3, 2], "first come, first read");
    assert_eq!(b.shards[ORIGIN].read_budget(streams[1]), 1);
    b.shards[ORIGIN].check_invariants();
}

#[test]
fn a_stream_whose_credit_comes_while_the_budget_is_full_is_read_when_there_is_room() {
    let mut b = Bench::new();
    let c = b.open(1);
    b.deliver_all();
    let target = b.outs[AGENT].targets.pop().unwrap().0;
    b.target(target, Ok(2));
    b.deliver_all();
    b.data(ORIGIN, c, 64 << 10);
    b.deliver_all();
    assert_eq!(b.shards[ORIGIN].read_budget(c), 0, "without credit");
    let now = b.now;
    b.shards[ORIGIN].set_budget(now, &budget(100, 100));
    b.socket(AGENT, target, SockEvent::Written(64 << 10));
    b.deliver_all();
    assert!(readable(&mut b.outs[ORIGIN]).is_empty(), "credit is no room");
    b.shards[ORIGIN].set_budget(now, &budget(100, 0));
    b.shards[ORIGIN].handle_timeout(now, &mut b.outs[ORIGIN]);
    assert_eq!(readable(&mut b.outs[ORIGIN]), [1], "L7");
}

#[test]
fn first_bytes_count_until_the_answer_and_are_passed_on_twice_only_where_there_is_room() {
    let mut b = Bench::new();
    let c = b.open(1);
    b.data(ORIGIN, c, 1000);
    let sent = |b: &Bench| -> u64 {
        let of = |f: &Frame| if let Frame::Stream { body: Body::Data { bytes, .. }, .. } = f { bytes.len() } else { 0 };
        b.queues[LINK_O.ix as usize - 1].iter().map(|f| of(f) as u64).sum()
    };
    assert_eq!((sent(&b), b.shards[ORIGIN].held_bytes()), (1000, 1000), "kept for the next one");
    // Room for what is read, none for it to be held a second time.
    let now = b.now;
    b.shards[ORIGIN].set_budget(now, &budget(5000, 4000));
    b.data(ORIGIN, c, 600);
    assert_eq!((sent(&b), b.shards[ORIGIN].held_bytes()), (1400, 1600));
    b.socket(ORIGIN, c, SockEvent::Eof);
    b.deliver_all();
    let target = b.outs[AGENT].targets.pop().unwrap().0;
    b.target(target, Ok(2));
    b.deliver_all();
    // Open: the session's alone, the rest goes its way, the end behind it.
    assert_eq!(b.shards[ORIGIN].held_bytes(), 0);
    let agent = b.shards[AGENT].stream(target).unwrap();
    assert_eq!(agent.halves[0].next, 1600, "S1");
    assert_eq!(agent.halves[0].state, crate::stream::HalfState::Ended, "S2");
    for shard in &b.shards {
        shard.check_invariants();
    }
}

#[test]
fn first_bytes_of_a_refused_attempt_are_counted_once() {
    let mut b = Bench::new();
    let c = b.open(1);
    b.data(ORIGIN, c, 1000);
    b.deliver_all();
    let target = b.outs[AGENT].targets.pop().unwrap().0;
    b.target(target, Err(RstCode::Refused));
    b.deliver_all();
    // Refused by the only one: asked for others, with the bytes at hand.
    assert_eq!(b.shards[ORIGIN].held_bytes(), 1000);
    b.shards[ORIGIN].check_invariants();
    b.socket(ORIGIN, c, SockEvent::Aborted);
    b.deliver_all();
    assert_eq!(b.shards[ORIGIN].held_bytes(), 0);
    b.assert_empty();
}
