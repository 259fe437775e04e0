//! What `shadow` says `active` would have done: the same choice among the same
//! candidates, counted, while clients are carried as in `off` (M2).

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests; everything unexpected is one case")]

mod world;

use std::time::Duration;

use nowconnect_core::config::{HubConfig, Mode};
use nowconnect_core::error::RstCode;
use nowconnect_core::wire::{FRAME_KINDS, Plane};
use world::notes::{Form, Pace, in_form};
use world::{World, agent_config, hub_config};

const S: fn(u64) -> Duration = Duration::from_secs;

fn in_forms(scenario: fn()) {
    for form in [Form::Whole, Form::Split(2, Pace::Drawn(7)), Form::Split(4, Pace::Late)] {
        let run = std::panic::catch_unwind(|| in_form(form, scenario));
        run.unwrap_or_else(|_| panic!("{form:?}: the scenario fails as said above"));
    }
}

/// Two hubs in these modes; the agent is attached to the first one only.
fn hubs(modes: [Mode; 2]) -> (World, usize, usize) {
    let mut w = World::new();
    let a = w.hub(hub_config("hub-a", modes[0], &["hub-b"]), 1);
    let b = w.hub(hub_config("hub-b", modes[1], &["hub-a"]), 2);
    w.agent(agent_config("plant-7", &["hub-a"], 1), 3);
    w.run_for(S(4));
    (w, a, b)
}

/// What was decided at a hub so far: local, over the mesh, refused for want of a
/// route, refused for want of the registry.
fn decided(w: &World, n: usize) -> [u64; 4] {
    let c = w.as_hub(n).counters();
    let refused = |code: RstCode| c.shadow_refused.iter().map(|r| r[usize::from(code.number())]).sum::<u64>();
    let all: u64 = c.shadow_refused.iter().flatten().sum();
    let [route, registry] = [RstCode::NoRoute, RstCode::RegistryDown].map(refused);
    assert_eq!(all, route + registry, "no other reason is decided on");
    [c.shadow_local.iter().sum(), c.shadow_mesh.iter().sum(), route, registry]
}

/// A client comes and wants an echo.
fn client(w: &mut World, n: usize) -> Result<(), RstCode> {
    let c = w.client(n)?;
    w.write(n, c, vec![7; 10]);
    w.eof(n, c);
    w.run_until(S(15), |w| w.sock(n, c).closed || w.sock(n, c).aborted.is_some());
    match w.sock(n, c).aborted {
        Some(code) => Err(code),
        None => {
            assert_eq!(w.sock(n, c).received, vec![7; 10]);
            Ok(())
        }
    }
}

/// M2: no client's byte, and nothing that would announce one.
fn nothing_crossed(w: &World, n: usize) {
    let mux = w.as_hub(n).mux();
    let forbidden = |counts: &[u64]| {
        let of = |kind: &str| FRAME_KINDS.iter().position(|k| *k == kind).map_or(0, |ix| counts[ix]);
        of("OPEN") + of("DATA") + of("RESUME")
    };
    let (received, sent) = &mux.retired()[1];
    let mut crossed = forbidden(received) + forbidden(sent);
    for (_, e) in mux.iter().filter(|(_, e)| e.plane == Plane::Mesh) {
        crossed += forbidden(&e.session.counters().frames_in) + forbidden(&e.session.counters().frames_out);
    }
    assert_eq!(crossed, 0);
}

fn flip(w: &mut World, n: usize, mode: Mode) {
    let config = HubConfig { mode, ..w.as_hub(n).control().config().clone() };
    w.reload_hub(n, &config).unwrap();
    w.run_for(S(4));
}

#[test]
fn shadow_counts_where_active_would_have_carried_a_client() {
    for beside in [Mode::Shadow, Mode::Active] {
        in_forms(match beside {
            Mode::Active => || counts_beside(Mode::Active),
            _ => || counts_beside(Mode::Shadow),
        });
    }
}

fn counts_beside(beside: Mode) {
    let (mut w, a, b) = hubs([beside, Mode::Shadow]);
    assert_eq!(client(&mut w, a), Ok(()));
    assert_eq!(decided(&w, a), [u64::from(beside == Mode::Shadow), 0, 0, 0], "{beside:?}");
    for n in 1..=3 {
        assert_eq!(client(&mut w, b), Err(RstCode::NoRoute), "carried as in off");
        assert_eq!(decided(&w, b), [0, n, 0, 0], "{beside:?}");
    }
    // Nobody to go to, even across.
    w.crash(2);
    w.run_for(S(60));
    assert_eq!(client(&mut w, b), Err(RstCode::NoRoute));
    assert_eq!(decided(&w, b), [0, 3, 1, 0], "{beside:?}");
    nothing_crossed(&w, a);
    nothing_crossed(&w, b);
}

#[test]
fn the_first_client_is_decided_on_before_anything_else_happened() {
    in_forms(|| {
        let mut w = World::new();
        w.registry_down = true;
        let (a, b) =
            (w.hub(hub_config("hub-a", Mode::Active, &[]), 1), w.hub(hub_config("hub-b", Mode::Shadow, &[]), 2));
        assert_eq!(client(&mut w, b), Err(RstCode::NoRoute), "carried as in off");
        assert_eq!(decided(&w, b), [0, 0, 0, 1]);
        assert_eq!(client(&mut w, a), Err(RstCode::RegistryDown), "as was decided");
    });
}

#[test]
fn shadow_counts_what_an_outage_of_the_registry_would_have_cost() {
    in_forms(|| {
        let (mut w, a, b) = hubs([Mode::Shadow; 2]);
        w.registry_down = true;
        w.run_for(S(6));
        assert_eq!(client(&mut w, a), Ok(()));
        assert_eq!(decided(&w, a), [1, 0, 0, 0], "its own agent is served");
        assert_eq!(client(&mut w, b), Err(RstCode::NoRoute), "as in off: the registry is nobody's business");
        assert_eq!(decided(&w, b), [0, 0, 0, 1]);
        w.registry_down = false;
        w.run_for(S(6));
        assert_eq!(client(&mut w, b), Err(RstCode::NoRoute));
        assert_eq!(decided(&w, b), [0, 1, 0, 1]);
        nothing_crossed(&w, b);
    });
}

#[test]
fn decisions_begin_and_end_with_the_mode() {
    in_forms(|| {
        let (mut w, a, b) = hubs([Mode::Active; 2]);
        assert_eq!(client(&mut w, b), Ok(()), "over the mesh");
        assert_eq!(decided(&w, b), [0; 4]);
        for round in 1..=3 {
            flip(&mut w, b, Mode::Shadow);
            assert_eq!(client(&mut w, b), Err(RstCode::NoRoute));
            assert_eq!(decided(&w, b), [0, round, 0, 0]);
            flip(&mut w, b, Mode::Off);
            assert_eq!(client(&mut w, b), Err(RstCode::NoRoute));
            flip(&mut w, b, Mode::Active);
            assert_eq!(client(&mut w, b), Ok(()));
            assert_eq!(decided(&w, b), [0, round, 0, 0], "neither off nor active counts");
        }
        // The other hub's agents come and go while this one only looks on.
        flip(&mut w, a, Mode::Shadow);
        assert_eq!(client(&mut w, a), Ok(()));
        assert_eq!(decided(&w, a), [1, 0, 0, 0]);
    });
}
