//! Every transition, the diagram, and the arithmetic of the back-off.

use proptest::prelude::*;

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn at(ms: u64) -> Instant {
    Instant::ZERO.after(MS(ms))
}

fn fixed() -> Backoff {
    Backoff { jitter_milli: 0, ..Backoff::default() }
}

/// Every (state, event) pair has its line, so that "what if Up arrives in
/// Closed" is answered in a file.
#[test]
fn every_pair_of_state_and_event() {
    let mut got = String::new();
    for state in State::ALL {
        for event in Event::ALL {
            let to = next(state, event).map_or("-", State::name);
            let _ = writeln!(got, "{:<12}{:<10}{to}", state.name(), format!("{event:?}"));
        }
    }
    let expected = "\
Connecting  Up        Established
Connecting  Failed    Backoff
Connecting  Exhausted Closed
Connecting  Lost      -
Connecting  Retry     -
Connecting  Disabled  Closed
Connecting  Enabled   -
Connecting  Shutdown  Closed
Established Up        -
Established Failed    -
Established Exhausted Closed
Established Lost      Backoff
Established Retry     -
Established Disabled  Closed
Established Enabled   -
Established Shutdown  Closed
Backoff     Up        Established
Backoff     Failed    -
Backoff     Exhausted -
Backoff     Lost      -
Backoff     Retry     Connecting
Backoff     Disabled  Closed
Backoff     Enabled   -
Backoff     Shutdown  Closed
Closed      Up        -
Closed      Failed    -
Closed      Exhausted -
Closed      Lost      -
Closed      Retry     -
Closed      Disabled  -
Closed      Enabled   Connecting
Closed      Shutdown  -
";
    assert_eq!(got, expected);
}

#[test]
fn the_labels_are_those_of_the_metric() {
    assert_eq!(State::ALL.map(State::label), ["connecting", "established", "backoff", "closed"]);
}

#[test]
fn no_pair_has_two_transitions() {
    for (i, (from, event, _)) in TABLE.iter().enumerate() {
        assert!(!TABLE[..i].iter().any(|(f, e, _)| (f, e) == (from, event)), "{from:?} {event:?} twice");
    }
}

/// The seed's arrows are all there (nowconnect-ha-v2-architecture, "Mesh link
/// state machine"; its "TLS OK" is the whole handshake here).
#[test]
fn the_diagram_has_the_seeds_arrows() {
    let diagram = mermaid();
    for arrow in [
        "[*] --> Connecting",
        "Connecting --> Established: handshake done",
        "Connecting --> Backoff: error",
        "Backoff --> Connecting: retry after back-off",
        "Established --> Backoff: link error",
        "Established --> Closed: shutdown",
        "Backoff --> Closed: disabled",
    ] {
        assert!(diagram.lines().any(|l| l.trim() == arrow), "{arrow} is missing in\n{diagram}");
    }
    assert_eq!(diagram.lines().count(), TABLE.len() + 2);
}

/// Fails dials until `delays` are measured.
fn delays(link: &mut Link, now: &mut Instant, n: usize) -> Vec<Duration> {
    (0..n)
        .map(|_| {
            assert_eq!(link.on_event(*now, Event::Failed), None);
            let due = link.poll_timeout().unwrap().at;
            let delay = due.since(*now);
            if delay > Duration::ZERO {
                assert_eq!(link.handle_timeout(Instant::from_nanos(due.as_nanos() - 1)), None, "never early");
            }
            *now = due;
            assert_eq!(link.handle_timeout(*now), Some(Action::Dial));
            assert_eq!(link.poll_timeout(), None);
            delay
        })
        .collect()
}

#[test]
fn delays_grow_by_the_multiplier_up_to_the_maximum() {
    let mut link = Link::new(fixed(), Seed::from_u64(1), at(0));
    let mut now = at(0);
    let got = delays(&mut link, &mut now, 14);
    assert_eq!(&got[..4], &[MS(500), MS(750), MS(1125), Duration::from_micros(1_687_500)]);
    assert_eq!(&got[12..], &[MS(30_000), MS(30_000)]);
    assert_eq!((link.attempts(), link.errors()), (14, 14));
}

#[test]
fn waiting_streams_shorten_a_back_off_in_progress_and_later_ones() {
    let mut link = Link::new(fixed(), Seed::from_u64(1), at(0));
    let mut now = at(0);
    delays(&mut link, &mut now, 12);
    link.on_event(now, Event::Failed);
    assert_eq!(link.poll_timeout().unwrap().at, now.after(MS(30_000)));
    link.set_streams_wait(now.after(MS(100)), true);
    let due = link.poll_timeout().unwrap().at;
    assert_eq!(due, now.after(MS(2_100)));
    link.set_streams_wait(now.after(MS(200)), true);
    assert_eq!(link.poll_timeout().unwrap().at, due, "saying it again moves nothing");
    now = due;
    link.handle_timeout(now);
    assert_eq!(delays(&mut link, &mut now, 1), [MS(2_000)]);
    link.set_streams_wait(now, false);
    assert_eq!(delays(&mut link, &mut now, 1), [MS(30_000)]);
}

/// Each draw of the jitter could come out shorter: whoever tells the link
/// often that streams wait must not thereby dial sooner (L8).
#[test]
fn repeating_that_streams_wait_draws_no_new_delay() {
    let mut link = Link::new(Backoff::default(), Seed::from_u64(1), at(0));
    let mut now = at(0);
    delays(&mut link, &mut now, 12);
    link.on_event(now, Event::Failed);
    link.set_streams_wait(now, true);
    let due = link.poll_timeout().unwrap().at;
    for _ in 0..50 {
        link.set_streams_wait(now, true);
        assert_eq!(link.poll_timeout().unwrap().at, due);
    }
}

#[test]
fn only_a_connection_that_lasted_resets_the_back_off() {
    let mut link = Link::new(fixed(), Seed::from_u64(1), at(0));
    let mut now = at(0);
    delays(&mut link, &mut now, 5);
    link.on_event(now, Event::Up);
    now = now.after(MS(999));
    assert_eq!(link.on_event(now, Event::Lost), None);
    assert_eq!(link.attempts(), 6, "it did not last: one more failure");
    assert!(link.poll_timeout().unwrap().at > now.after(MS(3_000)));

    now = link.poll_timeout().unwrap().at;
    assert_eq!(link.handle_timeout(now), Some(Action::Dial));
    link.on_event(now, Event::Up);
    now = now.after(MS(1_000));
    link.on_event(now, Event::Lost);
    assert_eq!(link.attempts(), 0);
    assert_eq!(link.poll_timeout().unwrap().at, now, "at once, spread by the jitter, which is 0 here");
    assert_eq!((link.reconnects(), link.errors()), (1, 7));
}

/// All who depend on something that is gone look elsewhere now; not as one (L8).
#[test]
fn a_link_made_because_another_is_gone_is_dialled_soon_but_spread() {
    let dials: std::collections::BTreeSet<Instant> = (0..100)
        .map(|seed| {
            let mut link = Link::soon(Backoff::default(), Seed::from_u64(seed), at(1000));
            assert_eq!((link.state(), link.attempts()), (State::Backoff, 0));
            let due = link.poll_timeout().unwrap().at;
            // jitter 0.3 of the initial delay
            assert!((at(1000)..=at(1150)).contains(&due), "{due:?}");
            assert_eq!(link.handle_timeout(due), Some(Action::Dial));
            due
        })
        .collect();
    assert!(dials.len() > 90, "{} of 100 at distinct instants", dials.len());
    assert!(dials.last().unwrap().since(*dials.first().unwrap()) > MS(100));
}

#[test]
fn a_pause_is_cut_short_once_and_never_below_a_dial_a_second() {
    let far = || {
        let mut link = Link::wary(Backoff::default(), Seed::from_u64(1), at(0), 12);
        assert!(link.poll_timeout().unwrap().at > at(10_000), "a long pause");
        assert_eq!(link.handle_timeout(at(9000)), None);
        link
    };
    let due = |link: &Link| link.poll_timeout().unwrap().at;
    let mut link = far();
    link.hasten(at(100));
    assert!((at(100)..=at(250)).contains(&due(&link)), "{:?}", due(&link));
    let (soon, attempts) = (due(&link), link.attempts());
    link.hasten(at(200));
    assert!(due(&link) <= soon, "never later than before");
    link.handle_timeout(at(260));
    link.on_event(at(260), Event::Failed);
    assert!(due(&link) > at(10_000) && link.attempts() == attempts + 1, "the next pause is as long as it would be");

    let mut link = far();
    let mut dials = 0;
    for ms in 0..10_000 {
        link.hasten_gently(at(ms));
        if link.handle_timeout(at(ms)) == Some(Action::Dial) {
            dials += 1;
            link.on_event(at(ms), Event::Failed);
        }
    }
    assert!((8..=10).contains(&dials), "{dials} dials in 10 s, although somebody asks every millisecond");
    // Nor before a time the peer asked for.
    let mut link = far();
    link.on_retry_after(at(0), MS(60_000));
    link.hasten(at(5));
    assert_eq!(due(&link), at(60_000));
}

#[test]
fn max_retries_closes_the_link_until_it_is_enabled_again() {
    let mut link = Link::new(Backoff { max_retries: 3, ..fixed() }, Seed::from_u64(1), at(0));
    let mut now = at(0);
    delays(&mut link, &mut now, 2);
    assert_eq!(link.on_event(now, Event::Failed), None, "there is nothing left to close");
    assert_eq!(link.state(), State::Closed);
    assert_eq!(link.poll_timeout(), None);
    assert_eq!(link.on_event(now, Event::Enabled), Some(Action::Dial));
    assert_eq!(delays(&mut link, &mut now, 1), [MS(500)]);
}

#[test]
fn a_peers_wish_delays_the_next_dial_but_not_for_ever() {
    let mut link = Link::new(fixed(), Seed::from_u64(1), at(0));
    link.on_event(at(0), Event::Up);
    link.on_retry_after(at(5_000), MS(60_000));
    link.on_event(at(6_000), Event::Lost);
    assert_eq!(link.poll_timeout().unwrap().at, at(65_000));
    link.set_streams_wait(at(7_000), true);
    assert_eq!(link.poll_timeout().unwrap().at, at(65_000), "waiting streams do not break the flap guard");
    link.on_retry_after(at(7_000), Duration::MAX);
    assert_eq!(link.poll_timeout().unwrap().at, at(7_000).after(RETRY_AFTER_MAX));
}

#[test]
fn closing_says_what_is_left_to_close() {
    for (events, action) in [
        (&[][..], Some(Action::Close)),
        (&[Event::Up][..], Some(Action::Close)),
        (&[Event::Failed][..], None),
        (&[Event::Disabled][..], None),
    ] {
        let mut link = Link::new(fixed(), Seed::from_u64(1), at(0));
        for e in events {
            link.on_event(at(0), *e);
        }
        assert_eq!(link.on_event(at(1), Event::Shutdown), action, "after {events:?}");
        assert_eq!(link.state(), State::Closed);
    }
}

proptest! {
    #[test]
    fn a_delay_is_the_formulas_less_at_most_the_jitter(
        initial in 1u64..5_000, max in 1u64..60_000, multiplier in 1_000u32..4_000, jitter in 0u32..=1_000,
        waiting in any::<bool>(), most in 1u64..30_000, seed in any::<u64>(),
    ) {
        let backoff = Backoff {
            initial: MS(initial), max: MS(max), multiplier_milli: multiplier, jitter_milli: jitter,
            max_retries: 0, max_while_streams_wait: MS(most),
        };
        let mut link = Link::new(backoff, Seed::from_u64(seed), at(0));
        link.set_streams_wait(at(0), waiting);
        let mut now = at(0);
        let mut full = u128::from(initial) * 1_000_000;
        for got in delays(&mut link, &mut now, 20) {
            full = full.min(u128::from(max) * 1_000_000);
            let cap = if waiting { full.min(u128::from(most) * 1_000_000) } else { full };
            let least = cap - cap * u128::from(jitter) / 1000;
            prop_assert!((least..=cap).contains(&got.as_nanos()), "{got:?} not in {least}..={cap}");
            full = full * u128::from(multiplier) / 1000;
        }
    }

    #[test]
    fn any_events_keep_deadline_and_state_together(
        seed in any::<u64>(), events in proptest::collection::vec((0usize..8, 0u64..5_000), 0..100),
    ) {
        let mut link = Link::new(Backoff { max_retries: 5, ..Backoff::default() }, Seed::from_u64(seed), at(0));
        let mut now = at(0);
        for (ix, ms) in events {
            now = now.after(MS(ms));
            let from = link.state();
            let action = link.on_event(now, Event::ALL[ix]);
            prop_assert_eq!(link.poll_timeout().is_some(), link.state() == State::Backoff);
            prop_assert_eq!(action == Some(Action::Dial), from != link.state() && link.state() == State::Connecting);
        }
    }
}

#[test]
fn a_wary_link_waits_as_after_so_many_failures_and_none_of_them_is_its_own() {
    let delay = |link: &Link| link.poll_timeout().unwrap().at.since(at(0));
    let wary = |failures| Link::wary(fixed(), Seed::from_u64(1), at(0), failures);
    for failures in [1, 2, 5, 40, u32::MAX] {
        let mut failed = Link::new(fixed(), Seed::from_u64(1), at(0));
        for _ in 0..failures.min(100) {
            let _ = failed.on_event(at(0), Event::Failed);
            if failed.attempts() < failures.min(100) {
                failed.state = State::Connecting;
            }
        }
        assert_eq!(delay(&wary(failures)), delay(&failed), "{failures}");
        assert_eq!((wary(failures).attempts(), wary(failures).state()), (0, State::Backoff));
    }
}
