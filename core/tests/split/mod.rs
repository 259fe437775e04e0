//! Split hubs: every scenario of whole hubs again with several shards and notes
//! that take their time, and clients must not see the difference. Then the
//! races that only delays open, one note at a time.

mod races;

use std::collections::BTreeSet;

use crate::world::notes::{Form, Pace, in_form};

/// Every number of shards with every pace.
fn forms() -> impl Iterator<Item = Form> {
    let drawn = (1..=4).map(Pace::Drawn);
    let paces: Vec<Pace> = [Pace::AtOnce, Pace::Late].into_iter().chain(drawn).collect();
    [1, 2, 4].into_iter().flat_map(move |n| paces.clone().into_iter().map(move |p| Form::Split(n, p)))
}

/// Holds in every form, and clients see the same as with whole hubs.
pub(crate) fn in_every_form(scenario: fn()) {
    let whole = in_form(Form::Whole, scenario);
    for form in forms() {
        let run = std::panic::catch_unwind(|| in_form(form, scenario));
        let split = run.unwrap_or_else(|_| panic!("{form:?}: the scenario fails as said above"));
        assert_eq!(split.len(), whole.len(), "{form:?}: clients");
        for (split, whole) in split.iter().zip(&whole) {
            let (hub, client) = (&whole.hub, whole.client);
            assert!(split.received == whole.received, "{form:?}: bytes of client {client} of {hub}");
            let end = |s: &crate::world::notes::Seen| (s.hub.clone(), s.client, s.eof, s.closed, s.aborted);
            assert_eq!(end(split), end(whole), "{form:?}");
        }
    }
}

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        const SCENARIOS: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                in_every_form(super::$name);
            }
        )*
    };
}

scenarios!(
    an_echo_travels_locally_and_across_hubs_in_both_encodings,
    a_cut_tunnel_or_link_loses_no_stream,
    a_peer_whose_message_is_still_arriving_is_not_given_up,
    a_refused_target_resets_the_client,
    a_target_that_never_answers_is_given_up_in_time,
    an_abort_on_either_side_is_an_abort_on_the_other,
    a_lost_session_aborts_and_never_shows_an_end,
    a_reader_that_stalls_holds_one_window_and_is_served_later,
    without_a_registry_clients_of_the_agents_own_hub_are_served,
    parallel_tunnels_go_to_distinct_hubs_and_both_serve,
    the_agent_moves_when_its_hub_dies_and_is_found_there,
    shadow_and_off_serve_locally_and_send_nothing_across,
    the_same_seeds_make_the_same_world,
    a_client_that_waits_for_a_lookup_is_opened_by_its_answer,
    a_client_that_waits_is_opened_when_the_agent_attaches_here,
    of_two_simultaneous_dials_one_session_is_left_whoever_is_lower_and_whatever_is_configured,
    a_link_that_breaks_after_two_simultaneous_dials_is_resumed,
    a_hub_among_its_own_peers_is_dropped_once,
    a_hub_dialled_by_two_peers_first_knows_both_as_linked_and_rests,
    one_replica_behind_two_addresses_gets_one_tunnel_and_no_flapping,
    a_second_instance_supersedes_the_first_at_another_hub,
    after_a_registry_outage_cross_hub_clients_are_served_again_and_nothing_spins,
    a_hub_whose_lease_is_over_carries_no_stream_of_another,
    a_newer_run_of_a_replica_takes_its_lease_once_and_the_older_fences_itself,
    a_hub_that_restarts_refuses_the_resumption_and_the_agent_starts_anew,
    a_draining_hub_finishes_its_streams_and_says_when,
    a_draining_agent_withdraws_and_finishes,
    a_full_hub_resumes_what_it_has_and_refuses_what_is_new,
    an_agent_that_leaves_while_it_is_claimed_leaves_nothing_in_the_registry,
    windows_of_hub_and_agent_may_differ_widely,
    an_expired_token_takes_no_new_streams_until_the_agent_brings_another,
);

#[test]
fn no_scenario_is_left_out() {
    // Those of endings that are for everybody say so; the others do it themselves.
    let of = |text: &'static str, start: &'static str| text.split(start).skip(1).filter_map(|s| s.split('(').next());
    let all = of(include_str!("../nodes.rs"), "#[test]\nfn ")
        .chain(of(include_str!("../endings/mod.rs"), "#[test]\npub(crate) fn "));
    let (all, run): (BTreeSet<&str>, BTreeSet<&str>) = (all.collect(), SCENARIOS.iter().copied().collect());
    assert_eq!(all, run, "every test of nodes.rs runs split, too");
}
