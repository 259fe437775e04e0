//! The order of candidates: random ones against an order written down
//! independently, what a distance and a load decide, and bounds of what is
//! kept of those that failed or left.

use super::*;
use crate::route::{RANK_FADED, RouteChange, rank};
use crate::shard::eject::{Ejections, Standing, Verdict};
use proptest::prelude::*;

/// What is known of one candidate. Sessions are its own.
#[derive(Clone, Debug)]
struct Facts {
    priority: u16,
    local: bool,
    same_region: bool,
    class: u8,
    weight: u16,
    usable: bool,
    faded: bool,
    /// OPENs that fail there beforehand.
    fails: u32,
    /// It was gone and came back.
    back: bool,
}

/// A candidate at which nothing is out of the ordinary.
const PLAIN: Facts = Facts {
    priority: 0,
    local: true,
    same_region: true,
    class: 0,
    weight: 1,
    usable: true,
    faded: false,
    fails: 0,
    back: false,
};

fn facts() -> impl Strategy<Value = Facts> {
    (0u16..3, any::<bool>(), any::<bool>(), 0u8..3, 1u16..4, 0u8..10, 0u8..10, 0u32..5, 0u8..4).prop_map(
        |(priority, local, same_region, class, weight, usable, faded, fails, back)| Facts {
            priority,
            local,
            same_region: local || same_region,
            class,
            weight,
            usable: usable > 2,
            faded: !local && faded < 2,
            fails,
            back: back == 0,
        },
    )
}

struct Origin {
    shard: Shard,
    out: ShardOut,
    now: Instant,
    socks: u32,
}

const RULES: Selection = Selection {
    fall: 3,
    rise: 2,
    eject: Duration::from_secs(10),
    eject_max: Duration::from_secs(300),
    failback_after: Duration::from_secs(30),
    priorities: Vec::new(),
};

impl Origin {
    fn new(selection: Selection) -> Self {
        let role = Role::Hub {
            listeners: vec![ListenerConfig {
                name: name("l1"),
                connector: name("ldap"),
                open: OpenRule::Eager,
                max_connections: 1000,
            }],
            open: OpenTimers::default(),
            selection,
        };
        let shard = Shard::new(role, Limits::default(), Incarnation(1), 0, &Seed::from_u64(1));
        Self { shard, out: ShardOut::default(), now: Instant::from_nanos(1_000_000_000), socks: 0 }
    }

    fn note(&mut self, note: ControlNote) {
        self.shard.on_note(self.now, note, &mut self.out);
        self.shard.check_invariants();
    }

    fn route(&mut self, change: RouteChange) {
        self.note(ControlNote::Routes(Arc::from([change])));
    }

    fn candidate(ix: u32, f: &Facts) -> Candidate {
        Candidate {
            agent_id: AgentId::new(&format!("agent-{ix}")).unwrap(),
            instance: Instance(1),
            fence: Fence { epoch: Epoch(u64::from(ix) + 1), nonce: Nonce(1) },
            session: session(ix),
            owner: name("hub"),
            local: f.local,
            rank: rank(f.priority, f.local, f.same_region) | if f.faded { RANK_FADED } else { 0 },
            weight: f.weight,
        }
    }

    fn gone(c: &Candidate) -> RouteChange {
        RouteChange { candidate: None, ..c.clone().at(name("ldap")) }
    }

    /// A client comes; the candidate it is opened at, and its stream.
    fn opens(&mut self) -> Option<(u32, StreamKey)> {
        let sock = SockKey { ix: self.socks, generation: 0 };
        self.socks += 1;
        self.out.frames.clear();
        let key = self.shard.open(self.now, ListenerIx(0), sock, &mut self.out).unwrap();
        self.shard.check_invariants();
        self.asked().map(|ix| (ix, key))
    }

    /// Where the latest OPEN went.
    fn asked(&mut self) -> Option<u32> {
        let opens =
            |(s, f): (SessionKey, Frame)| matches!(f, Frame::Stream { body: Body::Open(_), .. }).then_some(s.ix);
        self.out.frames.drain(..).filter_map(opens).last()
    }

    fn answer(&mut self, ix: u32, stream: StreamKey, result: Result<(), RstCode>) {
        let s = self.shard.stream(stream).unwrap();
        let (cid, epoch) = (s.cid, s.fence.epoch);
        self.out.frames.clear();
        self.shard.on_frame(self.now, session(ix), cid, epoch, Body::OpenAck { result }, &mut self.out);
        self.shard.check_invariants();
    }

    fn leave(&mut self, stream: StreamKey) {
        self.shard.on_socket(self.now, stream, SockEvent::Aborted, &mut self.out);
    }

    /// Candidates with these facts, brought about the way they come about.
    fn with(all: &[Facts], delays: bool) -> Self {
        let failback_after = if delays { RULES.failback_after } else { Duration::ZERO };
        let mut o = Self::new(Selection { failback_after, ..RULES });
        for (ix, f) in (0..).zip(all) {
            o.note(up(session(ix), Plane::Tunnel, None));
            o.note(ControlNote::Distance { session: session(ix), class: f.class });
            // Failures need a candidate that is listed, alone and reachable.
            let c = Self::candidate(ix, &Facts { faded: false, ..f.clone() });
            o.now = o.now.after(Duration::from_secs(1));
            if f.back {
                o.route(c.clone().at(name("ldap")));
                o.route(Self::gone(&c));
            }
            o.route(c.clone().at(name("ldap")));
            for _ in 0..f.fails {
                let (asked, stream) = o.opens().unwrap();
                assert_eq!(asked, ix);
                o.answer(ix, stream, Err(RstCode::Refused));
                o.leave(stream);
            }
            // The others are asked without it meanwhile.
            o.note(ControlNote::SessionUsable { session: session(ix), usable: false });
            o.shard.interruptions.clear();
        }
        for (ix, f) in (0..).zip(all) {
            if f.usable {
                o.shard.sessions.get_mut(&session(ix)).unwrap().usable = true;
            }
            if f.faded {
                o.route(Self::candidate(ix, f).at(name("ldap")));
            }
        }
        o
    }
}

/// The rules as the documentation has them: what one candidate is behind
/// another for, the most important first. Each came a second after the one
/// before it.
fn expected(all: &[Facts], delays: bool) -> usize {
    let out = |f: &Facts| f.fails >= RULES.fall && !f.faded;
    let there = |f: &Facts| f.usable && !out(f) && !f.faded;
    // Whether a candidate is preferred at once, by those that were there before.
    let mut preferred: Vec<usize> = (0..all.len()).filter(|ix| there(&all[*ix]) && !all[*ix].back).collect();
    let mut held = Vec::new();
    for ix in (0..all.len()).filter(|ix| delays && there(&all[*ix]) && all[*ix].back) {
        let worse = |q: &usize| all[*q].priority > all[ix].priority;
        let all_worse = !preferred.is_empty() && preferred.iter().all(worse);
        if all_worse { held.push(ix) } else { preferred.push(ix) }
    }
    let before = |x: usize, y: usize| {
        let (a, b) = (&all[x], &all[y]);
        [
            (!a.usable).cmp(&!b.usable),
            // Of those that cannot be reached the state does not matter.
            if a.usable { out(a).cmp(&out(b)) } else { std::cmp::Ordering::Equal },
            a.faded.cmp(&b.faded),
            held.contains(&x).cmp(&held.contains(&y)),
            a.priority.cmp(&b.priority),
            b.local.cmp(&a.local),
            b.same_region.cmp(&a.same_region),
            a.class.cmp(&b.class),
            b.weight.cmp(&a.weight),
        ]
        .into_iter()
        .fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    };
    (0..all.len()).min_by(|x, y| before(*x, *y).then(x.cmp(y))).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_best_candidate_is_the_one_the_rules_name(
        all in prop::collection::vec(facts(), 1..7),
        delays in any::<bool>(),
    ) {
        let mut o = Origin::with(&all, delays);
        let (asked, _) = o.opens().expect("somebody is asked");
        prop_assert_eq!(asked as usize, expected(&all, delays), "{:#?}", all);
    }

    #[test]
    fn every_candidate_is_asked_once_before_the_client_is_refused(all in prop::collection::vec(facts(), 1..7)) {
        let mut o = Origin::with(&all, true);
        let (mut at, stream) = o.opens().unwrap();
        let mut seen = vec![at];
        loop {
            o.answer(at, stream, Err(RstCode::Unreachable));
            let Some(next) = o.asked() else { break };
            prop_assert!(!seen.contains(&next), "nobody twice");
            seen.push(next);
            at = next;
        }
        prop_assert_eq!(seen.len(), all.len());
    }

    #[test]
    fn equals_share_by_weight_whatever_their_round_trips_are_within_a_class(
        weights in prop::collection::vec(1u16..5, 2..5),
        class in 0u8..3,
    ) {
        let all: Vec<Facts> = weights.iter().map(|&weight| Facts { class, weight, ..PLAIN }).collect();
        let mut o = Origin::with(&all, false);
        let mut got = vec![0u16; all.len()];
        let rounds = 10;
        for _ in 0..rounds * weights.iter().sum::<u16>() {
            let (ix, stream) = o.opens().unwrap();
            o.answer(ix, stream, Ok(()));
            got[ix as usize] += 1;
        }
        for (got, weight) in got.iter().zip(&weights) {
            prop_assert!(got.abs_diff(weight * rounds) <= 1, "{got} of {}", weight * rounds);
        }
    }
}

#[test]
fn a_distance_that_changes_moves_new_streams_only() {
    let near = Facts { local: false, ..PLAIN };
    let mut o = Origin::with(&[near.clone(), near.clone()], false);
    let (first, stream) = o.opens().unwrap();
    o.answer(first, stream, Ok(()));
    o.note(ControlNote::Distance { session: session(1 - first), class: 1 });
    for _ in 0..3 {
        assert_eq!(o.opens().unwrap().0, first, "the nearer one, whatever it carries");
    }
    o.note(ControlNote::Distance { session: session(first), class: 2 });
    assert_eq!(o.opens().unwrap().0, 1 - first);
    assert!(o.shard.stream(stream).unwrap().open);
    o.note(ControlNote::Distance { session: session(9), class: 2 });
}

fn at(agent: u32) -> (Name, AgentId, Name) {
    (name("ldap"), AgentId::new(&format!("agent-{agent}")).unwrap(), name("hub"))
}

#[test]
fn an_ejection_doubles_up_to_the_most_and_starts_over() {
    let (mut e, mut now) = (Ejections::default(), Instant::from_nanos(1));
    let rules = Selection { eject_max: Duration::from_secs(60), ..RULES };
    let c = Origin::candidate(1, &PLAIN);
    for seconds in [10, 20, 40, 60, 60] {
        let fails = if seconds == 10 { 3 } else { 1 };
        let time = Duration::from_secs(seconds);
        for n in 1..=fails {
            let verdict = e.failed(now, at(1), &rules);
            assert_eq!(verdict, (n == fails).then_some(Verdict::Ejected(time)));
        }
        assert_eq!(e.failed(now, at(1), &rules), None, "what was on its way does not count again");
        assert_eq!(e.standing(now, &name("ldap"), &c), Standing::Out);
        now = now.after(time);
        assert_eq!(e.standing(now, &name("ldap"), &c), Standing::Trial(None));
    }
    // A most below the least is no less than that.
    let rules = Selection { eject_max: Duration::ZERO, ..RULES };
    assert_eq!(e.failed(now, at(1), &rules), Some(Verdict::Ejected(RULES.eject)));
    assert_eq!(e.succeeded(now, &at(1), &rules), None);
    assert_eq!(e.succeeded(now, &at(1), &rules), Some(Verdict::Reinstated));
    assert_eq!((e.succeeded(now, &at(1), &rules), e.any_record()), (None, false));
    for _ in 0..1_000 {
        for _ in 0..3 {
            e.failed(now, at(2), &Selection { eject: Duration::MAX, ..RULES });
        }
        now = now.after(Duration::from_secs(1));
    }
}

#[test]
fn what_is_kept_of_those_who_left_is_bounded() {
    let mut o = Origin::new(RULES);
    for ix in 0..5_000 {
        let c = Origin::candidate(ix, &PLAIN);
        o.route(c.clone().at(name("ldap")));
        o.route(Origin::gone(&c));
    }
    let came_back = |o: &mut Origin, ix| {
        let c = Origin::candidate(ix, &PLAIN);
        o.route(c.clone().at(name("ldap")));
        o.shard.ejections.back_since(&name("ldap"), &c).is_some()
    };
    assert!(came_back(&mut o, 4_999));
    assert!(!came_back(&mut o, 0), "the first ones are forgotten, and new again");
}
