//! What only a split hub can meet: notes that are still on their way while
//! clients, frames and time go on; and limits that several shards share.

#![allow(clippy::unwrap_used, reason = "a client of a test is accepted unless the test says otherwise")]

use std::time::Duration;

use nowconnect_core::config::{DrainTimes, Mode};
use nowconnect_core::error::RstCode;
use nowconnect_core::id::SockKey;
use nowconnect_core::mux::Input;
use nowconnect_core::shard::{Addressee, ControlNote, Note};
use nowconnect_core::wire::Codec;

use super::in_every_form;
use crate::world::notes::{Form, Pace, in_form};
use crate::world::{Target, World, agent_config, hub_config, two_hubs};
use crate::{echo, payload};

fn split(shards: u8, scenario: impl Fn()) {
    in_form(Form::Split(shards, Pace::Late), scenario);
}

fn all_open(w: &mut World, hub: usize, clients: usize) -> Vec<SockKey> {
    let clients = (0..clients).map(|_| w.client(hub).unwrap()).collect();
    w.run_for(Duration::from_millis(10));
    clients
}

fn nothing_is_left(w: &mut World, hubs: &[usize]) {
    w.run_for(Duration::from_secs(1));
    for hub in hubs {
        assert_eq!(w.as_hub(*hub).streams(), 0, "hub {hub} (B5)");
        assert_eq!(w.as_hub(*hub).mux().budget().held(), 0, "hub {hub} (B5)");
        assert_eq!(w.as_hub(*hub).notes_under_way(), 0, "hub {hub}");
    }
}

#[test]
fn streams_spread_over_the_shards_of_origin_and_owner_and_keys_differ() {
    split(4, || {
        let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
        let clients = all_open(&mut w, b, 8);
        for hub in [a, b] {
            let by_shard: Vec<usize> = w.as_hub(hub).shards().iter().map(|s| s.streams()).collect();
            assert_eq!(by_shard, [2, 2, 2, 2], "hub {hub}");
        }
        let mut keys: Vec<_> = clients.iter().map(|c| w.sock(b, *c).stream).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 8);
        for (n, c) in clients.iter().enumerate() {
            w.write(b, *c, payload(100_000 + n));
            w.eof(b, *c);
        }
        w.run_for(Duration::from_secs(2));
        for (n, c) in clients.iter().enumerate() {
            assert!(w.sock(b, *c).closed && w.sock(b, *c).received == payload(100_000 + n), "its own bytes (I1)");
        }
        nothing_is_left(&mut w, &[a, b]);
    });
}

/// Hub a's shard has not heard that its tunnel is over and opens there; the
/// session takes nothing any more, so the stream goes to the other hub.
#[test]
fn an_open_on_a_session_that_is_over_goes_to_the_next_candidate() {
    split(1, || {
        let mut w = World::new();
        let a = w.hub(hub_config("hub-a", Mode::Active, &["hub-b"]), 1);
        let b = w.hub(hub_config("hub-b", Mode::Active, &["hub-a"]), 2);
        let g = w.agent(agent_config("plant-7", &["hub-a", "hub-b"], 2), 3);
        w.run_for(Duration::from_secs(4));
        w.notes_held.push(a);
        w.unreachable.push(("plant-7".into(), "hub-a".into()));
        w.cut(a, g);
        w.run_for(Duration::from_secs(40));
        assert_eq!(w.as_hub(a).control().tunnels().count(), 0);
        let c = w.client(a).unwrap();
        w.write(a, c, payload(1000));
        w.eof(a, c);
        w.settle();
        assert_eq!((w.as_hub(b).streams(), w.sock(a, c).aborted), (1, None), "it was asked at hub b");
        w.notes_held.clear();
        w.run_for(Duration::from_secs(1));
        assert_eq!((w.sock(a, c).aborted, w.sock(a, c).received.clone()), (None, payload(1000)));
        nothing_is_left(&mut w, &[a, b]);
    });
}

/// An OPEN waits for the owner's shard while the tunnel ends: the origin hears
/// a definite no, and nobody keeps a stream.
#[test]
fn an_open_that_meets_a_tunnel_just_lost_is_refused_to_its_origin() {
    split(2, || {
        let (mut w, a, b, g) = two_hubs(Codec::BinaryV2);
        w.notes_held.push(a);
        let clients = all_open(&mut w, b, 2);
        w.input(g, Input::Shutdown);
        w.run_for(Duration::from_millis(10));
        assert_eq!(w.as_hub(a).control().tunnels().count(), 0);
        w.notes_held.clear();
        w.run_for(Duration::from_secs(1));
        for c in clients {
            let aborted = w.sock(b, c).aborted;
            assert!(matches!(aborted, Some(RstCode::NoRoute | RstCode::NotOwner)), "{aborted:?}");
        }
        nothing_is_left(&mut w, &[a, b]);
    });
}

/// The second client asked after the lookup was answered, though that answer
/// had not arrived: it waits for its own.
#[test]
fn an_answer_on_its_way_does_not_answer_a_later_question() {
    split(1, || {
        let mut w = World::new();
        let a = w.hub(hub_config("hub-a", Mode::Active, &[]), 1);
        w.run_for(Duration::from_secs(2));
        w.notes_held.push(a);
        let shard = Addressee::Shard(0);
        while w.carry(a, shard) {}
        let first = w.client(a).unwrap();
        assert!(w.carry(a, Addressee::Control), "NeedRoute");
        w.settle();
        let second = w.client(a).unwrap();
        let answered = |w: &World| {
            w.nodes[a].mail.of(shard).any(|n| matches!(n, Note::ToShard { note: ControlNote::RouteAnswer { .. }, .. }))
        };
        assert!(answered(&w));
        while w.carry(a, shard) {}
        w.settle();
        assert_eq!(w.sock(a, first).aborted, Some(RstCode::NoRoute));
        w.write(a, second, vec![2; 20]);
        w.eof(a, second);
        w.settle();
        assert_eq!(w.sock(a, second).aborted, None, "it waits for an answer of its own");
        w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
        w.run_for(Duration::from_millis(100));
        w.notes_held.clear();
        w.run_for(Duration::from_millis(100));
        assert_eq!((w.sock(a, second).aborted, w.sock(a, second).received.clone()), (None, vec![2; 20]));
        nothing_is_left(&mut w, &[a]);
    });
}

/// L12 holds whatever becomes of the notes: the deadline is the shard's own.
#[test]
fn a_client_whose_question_is_never_answered_ends_with_its_deadline() {
    split(2, || {
        let mut w = World::new();
        let a = w.hub(hub_config("hub-a", Mode::Off, &[]), 1);
        w.notes_held.push(a);
        let clients = all_open(&mut w, a, 2);
        w.run_for(Duration::from_secs(11));
        for c in clients {
            assert_eq!(w.sock(a, c).aborted, Some(RstCode::Timeout));
        }
        w.notes_held.clear();
        nothing_is_left(&mut w, &[a]);
    });
}

/// A tunnel attaches, and its first clients come, before any shard heard of it.
#[test]
fn a_client_that_is_faster_than_the_attachments_note_is_carried() {
    for mode in [Mode::Off, Mode::Active] {
        split(4, || {
            let mut w = World::new();
            let a = w.hub(hub_config("hub-a", mode, &[]), 1);
            w.run_for(Duration::from_secs(1));
            w.notes_held.push(a);
            w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
            w.run_for(Duration::from_millis(10));
            assert_eq!(w.as_hub(a).control().tunnels().count(), 1);
            let clients = all_open(&mut w, a, 4);
            // Control hears the questions before the shards hear what it knows.
            while w.carry(a, Addressee::Control) {}
            w.notes_held.clear();
            for c in clients {
                w.write(a, c, vec![9; 9]);
                w.eof(a, c);
                w.run_for(Duration::from_millis(10));
                assert_eq!((w.sock(a, c).aborted, w.sock(a, c).received.clone()), (None, vec![9; 9]), "{mode:?}");
            }
            nothing_is_left(&mut w, &[a]);
        });
    }
}

#[test]
fn a_shutdown_ends_what_was_accepted_while_its_note_was_on_the_way() {
    split(4, || {
        let (mut w, a, b, _) = two_hubs(Codec::BinaryV2);
        w.target = Target::Accept;
        let mut clients = all_open(&mut w, a, 4);
        w.notes_held.push(a);
        w.input(a, Input::Shutdown);
        clients.extend(all_open(&mut w, a, 4));
        w.notes_held.clear();
        w.run_for(Duration::from_millis(10));
        for c in clients {
            assert!(w.sock(a, c).aborted.is_some());
        }
        assert_eq!(w.client(a).err(), Some(RstCode::Draining));
        assert!(w.drained(a));
        nothing_is_left(&mut w, &[a, b]);
    });
}

#[test]
fn a_drain_is_over_when_control_heard_it_of_every_shard() {
    split(4, || {
        let (mut w, a, _, g) = two_hubs(Codec::BinaryV2);
        w.target = Target::Accept;
        let clients = all_open(&mut w, a, 4);
        w.input(a, Input::Drain(DrainTimes::at_once(Duration::from_secs(60))));
        w.run_for(Duration::from_millis(10));
        let targets = w.targets(g);
        for (n, c) in clients.into_iter().enumerate() {
            assert!(!w.drained(a), "{n} shards are done");
            w.eof(a, c);
            w.eof(g, targets[n]);
            w.run_for(Duration::from_millis(10));
            assert!(w.sock(a, c).closed);
        }
        assert!(w.drained(a));
    });
}

#[test]
fn limits_hold_over_all_shards() {
    in_every_form(|| {
        let config = |me: &str, other: &str| {
            let mut c = hub_config(me, Mode::Active, &[other]);
            if me == "hub-a" {
                c.limits.max_streams = 5;
            } else {
                c.listeners[0].max_connections = 7;
            }
            c
        };
        let mut w = World::new();
        w.target = Target::Accept;
        let a = w.hub(config("hub-a", "hub-b"), 1);
        let b = w.hub(config("hub-b", "hub-a"), 2);
        w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
        w.run_for(Duration::from_secs(3));
        let clients: Vec<SockKey> = (0..7).map(|_| w.client(b).unwrap()).collect();
        assert_eq!(w.client(b).err(), Some(RstCode::Busy), "the listener's limit");
        w.run_for(Duration::from_millis(10));
        let refused = clients.iter().filter(|c| w.sock(b, **c).aborted == Some(RstCode::Busy)).count();
        assert_eq!((w.as_hub(a).streams(), refused), (5, 2), "the owner's limit");
        assert_eq!(w.client(a).err(), Some(RstCode::Busy));
        for c in clients {
            w.abort(b, c);
        }
        w.run_for(Duration::from_millis(10));
        w.target = Target::Echo;
        assert_eq!(echo(&mut w, b, 1000), Ok(()), "room again");
    });
}

/// The heaviest stream of all shards goes first, one a second, and no more than
/// it takes.
#[test]
fn memory_is_freed_by_force_as_with_one_shard() {
    in_every_form(|| {
        let mut w = World::new();
        w.target = Target::Accept;
        let mut config = hub_config("hub-a", Mode::Off, &[]);
        config.limits.memory_budget_bytes = 300 << 10;
        let a = w.hub(config, 1);
        let g = w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
        w.run_for(Duration::from_secs(2));
        let clients = all_open(&mut w, a, 8);
        let targets = w.targets(g);
        for (n, (c, t)) in clients.iter().zip(&targets).enumerate() {
            w.sock(a, *c).stalled = true;
            // Neither in the order of the shards nor of the sockets.
            w.write(g, *t, payload((40 << 10) + 1024 * ((n * 5) % 8)));
        }
        w.run_for(Duration::from_millis(100));
        assert!(w.as_hub(a).mux().budget().held() > 300 << 10, "the budget is exhausted");
        let mut resets = Vec::new();
        for _ in 0..5 {
            w.run_for(Duration::from_secs(1));
            resets.push(w.as_hub(a).counters().budget_resets);
        }
        assert_eq!(resets, [1, 2, 2, 2, 2]);
        let worst = clients.iter().enumerate().filter(|(_, c)| w.sock(a, **c).aborted.is_some()).map(|(n, _)| n);
        assert_eq!(worst.collect::<Vec<_>>(), [3, 6], "those that held most");
    });
}
