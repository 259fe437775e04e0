//! Agents that take turns or come back too often: two processes with one agent
//! id would supersede each other for ever, and one that attaches afresh ten
//! times a second would keep the registry busy (semantics 4: flap guard).
//!
//! Three takeovers between the same two instances within a minute: the one that
//! holds the agent then stays for a minute, the other is sent away before
//! anything is claimed. Of more than two processes each pair is counted on its
//! own, and each that is sent away stays so for its minute. With the incumbent
//! gone the guard ends: it is there for two that live, not against the one that
//! is left. A restart is a takeover by an instance that was not there before and
//! never counts. Work and memory per agent are bounded (L8).
//!
//! Must not know sessions, epochs or the registry.

use std::collections::VecDeque;
use std::time::Duration;

use crate::id::Instance;
use crate::time::Instant;

/// Takeovers between two instances within [`GUARD`] that make a flap.
const TAKEOVERS: usize = 3;
/// How long takeovers count, and how long the incumbent stays then.
pub(super) const GUARD: Duration = Duration::from_secs(60);
/// Takeovers remembered per agent, and instances sent away; older ones do not
/// count.
const REMEMBERED: usize = 16;
/// Attachments an agent may make at a hub at once ...
const ATTACHES: u32 = 60;
/// ... and how long one of them takes to come back.
const ATTACH_EVERY: Duration = Duration::from_millis(500);

/// What an agent that is sent away is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Away {
    /// Another live instance holds the id.
    Duplicate(Duration),
    /// It attaches too often.
    TooOften(Duration),
}

/// Who held an agent, and who took it over from whom.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    holder: Option<Instance>,
    takeovers: VecDeque<(Instant, Instance, Instance)>,
    /// Who is sent away, and until when.
    guarded: VecDeque<(Instance, Instant)>,
    /// Attachments used of [`ATTACHES`], and when that was so.
    used: u32,
    used_at: Option<Instant>,
}

impl Turns {
    /// An instance holds the agent now; `before` if somebody else is known to
    /// have held it up to now. True if that makes a flap: from now on the other
    /// one is sent away.
    pub(super) fn held_by(&mut self, now: Instant, instance: Instance, before: Option<Instance>) -> bool {
        let before = before.or(self.holder);
        self.holder = Some(instance);
        let Some(before) = before.filter(|before| *before != instance) else { return false };
        self.takeovers.retain(|(at, ..)| now.since(*at) < GUARD);
        if self.takeovers.len() == REMEMBERED {
            self.takeovers.pop_front();
        }
        self.takeovers.push_back((now, before, instance));
        let pair = |(_, from, to): &&(Instant, Instance, Instance)| {
            (*from, *to) == (before, instance) || (*from, *to) == (instance, before)
        };
        if self.takeovers.iter().filter(pair).count() < TAKEOVERS || crate::planted::on(2048) {
            return false;
        }
        // Others that take turns with one of the two go on being counted.
        self.takeovers.retain(|t| !pair(&t));
        self.guarded.retain(|(away, until)| *away != before && *away != instance && now < *until);
        if self.guarded.len() == REMEMBERED {
            self.guarded.pop_front();
        }
        self.guarded.push_back((before, now.after(GUARD)));
        true
    }

    /// Who holds the agent now, as far as anybody knows. With nobody but those
    /// that are sent away the guard protects nobody.
    pub(super) fn held_only_by(&mut self, mut holders: impl Iterator<Item = Instance>) {
        let away = |holder: Instance| self.guarded.iter().any(|(away, _)| *away == holder);
        if !self.guarded.is_empty() && holders.all(away) {
            self.guarded.clear();
            // Coming back is no takeover.
            self.holder = None;
        }
    }

    /// Whether this instance is sent away now, and for how long. Counts one
    /// attachment if not.
    pub(super) fn send_away(&mut self, now: Instant, instance: Instance) -> Option<Away> {
        self.guarded.retain(|(_, until)| now < *until);
        if let Some((_, until)) = self.guarded.iter().find(|(away, _)| *away == instance) {
            return Some(Away::Duplicate(until.since(now)));
        }
        let since = self.used_at.map_or(Duration::ZERO, |at| now.since(at));
        let back = u32::try_from(since.as_nanos() / ATTACH_EVERY.as_nanos()).unwrap_or(u32::MAX);
        if back > 0 || self.used_at.is_none() {
            self.used = self.used.saturating_sub(back);
            self.used_at = Some(now);
        }
        if self.used >= ATTACHES {
            return Some(Away::TooOften(ATTACH_EVERY * 4));
        }
        self.used += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Instance = Instance(1);
    const B: Instance = Instance(2);

    fn at(secs: u64) -> Instant {
        Instant::from_nanos(secs * 1_000_000_000)
    }

    #[test]
    fn the_third_takeover_in_a_minute_between_two_is_the_last() {
        let mut t = Turns::default();
        for (secs, who, flap) in [(1, A, false), (2, B, false), (3, A, false), (4, B, true)] {
            assert_eq!(t.held_by(at(secs), who, None), flap, "{secs}");
        }
        assert_eq!(t.send_away(at(5), A), Some(Away::Duplicate(Duration::from_secs(59))));
        assert_eq!(t.send_away(at(5), B), None, "the incumbent comes back as it likes");
        assert_eq!(t.send_away(at(5), Instance(3)), None, "a restart is none of the two");
        assert_eq!(t.send_away(at(64), A), None, "a minute later");
        assert!(!t.held_by(at(64), A, None), "and counts afresh");
    }

    #[test]
    fn of_three_each_pair_has_its_turns_and_its_minute() {
        const C: Instance = Instance(3);
        let mut t = Turns::default();
        // Two turns of A and B, then three of B and C.
        for (secs, who, flap) in [(1, A, false), (2, B, false), (3, A, false), (4, C, false)] {
            assert_eq!(t.held_by(at(secs), who, None), flap, "{secs}");
        }
        for (secs, who, flap) in [(5, B, false), (6, C, false), (7, B, true)] {
            assert_eq!(t.held_by(at(secs), who, None), flap, "{secs}");
        }
        assert!(t.held_by(at(8), A, None), "the third turn of A and B, whatever C did");
        assert_eq!(t.send_away(at(9), B), Some(Away::Duplicate(Duration::from_secs(59))));
        assert_eq!(t.send_away(at(9), C), Some(Away::Duplicate(Duration::from_secs(58))), "and C stays away");
        assert_eq!(t.send_away(at(9), A), None);
        t.held_only_by([B, C].into_iter());
        assert_eq!((t.send_away(at(10), B), t.send_away(at(10), C)), (None, None), "with A gone both may come");
    }

    #[test]
    fn who_is_left_alone_is_let_in_again() {
        let mut t = Turns::default();
        for (secs, who) in [(1, A), (2, B), (3, A), (4, B)] {
            t.held_by(at(secs), who, None);
        }
        t.held_only_by([A, B].into_iter());
        t.held_only_by([Instance(3)].into_iter());
        assert_eq!(t.send_away(at(5), A), Some(Away::Duplicate(Duration::from_secs(59))), "somebody else is there");
        t.held_only_by([A].into_iter());
        assert_eq!(t.send_away(at(6), A), None);
        for (secs, who, flap) in [(6, A, false), (7, B, false), (8, A, false), (9, B, true)] {
            assert_eq!(t.held_by(at(secs), who, None), flap, "{secs}: counted afresh");
        }
    }

    #[test]
    fn slow_turns_and_restarts_are_no_flap() {
        let mut t = Turns::default();
        for n in 0..20 {
            assert!(!t.held_by(at(31 * n), if n % 2 == 0 { A } else { B }, None), "twice a minute");
        }
        let mut t = Turns::default();
        for n in 0..200 {
            assert!(!t.held_by(at(n / 10), Instance(n), None), "always another one");
        }
        assert!(t.takeovers.len() <= REMEMBERED);
    }

    #[test]
    fn a_holder_that_only_the_registry_knew_counts() {
        let mut t = Turns::default();
        assert!(!t.held_by(at(1), A, Some(B)));
        assert!(!t.held_by(at(2), B, None));
        assert!(t.held_by(at(3), A, Some(B)));
    }

    #[test]
    fn ten_attachments_a_second_become_two() {
        let mut t = Turns::default();
        let let_in = |t: &mut Turns, from: u64, secs: u64| {
            (0..secs * 10)
                .filter(|n| t.send_away(Instant::from_nanos(from * 1_000_000_000 + n * 100_000_000), A).is_none())
                .count()
        };
        assert_eq!(let_in(&mut t, 0, 5), 50, "a bad moment is no flap");
        let then = let_in(&mut t, 5, 60);
        assert!((110..=140).contains(&then), "{then} in a minute");
        assert_eq!(let_in(&mut t, 200, 5), 50, "what was used came back");
    }
}
