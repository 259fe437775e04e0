//! Flow-control arithmetic: what a receiver grants, how a window grows, and how
//! the process budget presses on both. All offsets are absolute, so a replayed
//! CREDIT changes nothing (S8, planted bug 21); credit is granted from bytes
//! consumed, never on receipt (planted bug 24).
//!
//! Keeps B1, B3 and B4. Knows no stream, session or frame.

use crate::time::Instant;

/// Bytes a stream may hold and still take more once the budget is above 75 %.
pub const HOLD_UNDER_PRESSURE_BYTES: u64 = 16 * 1024;

/// Shortest credit loop that is believed: 50 µs.
const LOOP_MIN_NS: u64 = 50_000;

/// How much of the process budget is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Below half.
    #[default]
    Low,
    /// Half or more: new halves start with a quarter of the initial window.
    Half,
    /// Three quarters or more: no window grows, and only streams that hold
    /// less than 16 KiB may take more.
    High,
    /// All of a cap that was lowered below what was held: new streams are
    /// refused, no socket is read, and none is reset for what it was granted
    /// before.
    Lowered,
    /// All of it: new streams are refused, no socket is read, and room is made
    /// by force.
    Full,
}

/// The process-wide cap on payload bytes held.
///
/// What is read from a socket is asked for here first and never goes beyond the
/// cap ([`Budget::room`]). What a peer sends was asked for when its credit was
/// granted, and is taken even when the budget is full: refusing it would break
/// the promise. So more than the cap is held only by that, or by what was held
/// before a reload lowered the cap, or by JSON, whose text is longer than the
/// payload it was made of; and nothing a socket offers is taken meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    cap: u64,
    /// The cap before it was lowered below what was held, until that fell.
    before: u64,
    held: u64,
}

impl Budget {
    /// A budget of `cap` bytes.
    #[must_use]
    pub const fn new(cap: u64) -> Self {
        Self { cap, before: cap, held: 0 }
    }

    /// Replaces the amount held.
    pub const fn set_held(&mut self, held: u64) {
        self.held = held;
        if held < self.cap {
            self.before = self.cap;
        }
    }

    /// Replaces the cap. What is held beyond a lower one stays: it was granted.
    pub const fn set_cap(&mut self, cap: u64) {
        let before = if self.before > cap { self.before } else { cap };
        self.before = if self.held < cap { cap } else { before };
        self.cap = cap;
    }

    /// Bytes held now.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.held
    }

    /// Bytes that may be held.
    #[must_use]
    pub const fn cap(&self) -> u64 {
        self.cap
    }

    /// Bytes that may be taken from sockets now.
    #[must_use]
    pub const fn room(&self) -> u64 {
        self.cap.saturating_sub(self.held)
    }

    /// The level the machines act on.
    #[must_use]
    pub const fn pressure(&self) -> Pressure {
        if self.held >= self.before {
            Pressure::Full
        } else if self.held >= self.cap {
            Pressure::Lowered
        } else if self.held >= self.cap / 4 * 3 {
            Pressure::High
        } else if self.held >= self.cap / 2 {
            Pressure::Half
        } else {
            Pressure::Low
        }
    }
}

/// Window a new half starts with.
#[must_use]
pub const fn initial_window(configured: u64, pressure: Pressure) -> u64 {
    match pressure {
        Pressure::Low => configured,
        Pressure::Half | Pressure::High | Pressure::Lowered | Pressure::Full => configured / 4,
    }
}

/// The receive side of a half at the node that writes it to a socket.
///
/// The window is tuned to twice the bandwidth-delay product as consumption
/// shows it: a *credit loop* is the time from sending a limit until a byte
/// beyond the previous limit arrives (it cannot be shorter than the path's
/// round trip); the bytes consumed in one loop, scaled to the shortest loop
/// seen, are the product.
#[derive(Clone, Copy, Debug)]
pub struct RecvWindow {
    window: u64,
    max: u64,
    granted: u64,
    consumed: u64,
    reported: u64,
    loop_mark: Option<LoopMark>,
    shortest_loop_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct LoopMark {
    at: Instant,
    beyond: u64,
    consumed: u64,
}

impl RecvWindow {
    /// A half that was granted `window` from offset 0, growing to at most `max`.
    #[must_use]
    pub const fn new(window: u64, max: u64) -> Self {
        Self { window, max, granted: window, consumed: 0, reported: 0, loop_mark: None, shortest_loop_ns: u64::MAX }
    }

    /// The limit granted so far; never decreases.
    #[must_use]
    pub const fn granted(&self) -> u64 {
        self.granted
    }

    /// Offset up to which the socket took the bytes.
    #[must_use]
    pub const fn consumed(&self) -> u64 {
        self.consumed
    }

    /// The present window in bytes.
    #[must_use]
    pub const fn window(&self) -> u64 {
        self.window
    }

    /// Data up to `next` has arrived: closes a credit loop, perhaps.
    pub fn on_received(&mut self, now: Instant, next: u64, pressure: Pressure) {
        let Some(mark) = self.loop_mark else { return };
        if next <= mark.beyond {
            return;
        }
        self.loop_mark = None;
        let took = now.as_nanos().saturating_sub(mark.at.as_nanos()).max(LOOP_MIN_NS);
        self.shortest_loop_ns = self.shortest_loop_ns.min(took);
        let consumed = u128::from(self.consumed.saturating_sub(mark.consumed));
        let product = consumed * u128::from(self.shortest_loop_ns) / u128::from(took);
        let target = u64::try_from(product.saturating_mul(2)).unwrap_or(u64::MAX);
        if pressure < Pressure::High && target > self.window {
            self.window = target.min(self.window.saturating_mul(2)).min(if crate::planted::on(2055) {
                u64::MAX
            } else {
                self.max.max(self.window)
            });
        }
    }

    /// The socket took bytes up to offset `consumed` (`final + 1` once it took
    /// the end). Returns the CREDIT to send, if it is worth one: a quarter of
    /// the window was consumed, or `flush` demands it.
    pub fn on_consumed(
        &mut self,
        now: Instant,
        consumed: u64,
        held: u64,
        flush: bool,
        pressure: Pressure,
    ) -> Option<(u64, u64)> {
        self.consumed = self.consumed.max(consumed);
        // Under pressure the source may be left with less than a quarter of the
        // window, which is then all there is to consume: no later call would
        // be due by the first rule.
        let short = self.granted.saturating_sub(self.consumed) < (self.window / 4).min(HOLD_UNDER_PRESSURE_BYTES);
        let due = short || self.consumed.saturating_sub(self.reported) >= self.window / 4;
        if !due && !flush {
            return None;
        }
        self.reported = self.consumed;
        self.grant(now, held, pressure);
        Some((self.consumed, self.granted))
    }

    /// Raises the limit as far as the budget's pressure allows; true if raised.
    pub fn grant(&mut self, now: Instant, held: u64, pressure: Pressure) -> bool {
        let room = if pressure < Pressure::High {
            self.window
        } else if held < HOLD_UNDER_PRESSURE_BYTES {
            self.window.min(HOLD_UNDER_PRESSURE_BYTES)
        } else {
            0
        };
        let limit = self.consumed.saturating_add(room);
        if limit <= self.granted {
            return false;
        }
        if self.loop_mark.is_none() {
            self.loop_mark = Some(LoopMark { at: now, beyond: self.granted, consumed: self.consumed });
        }
        self.granted = limit;
        true
    }

    /// Whether pressure kept the limit below what the window would allow.
    #[must_use]
    pub const fn throttled(&self) -> bool {
        self.granted < self.consumed.saturating_add(self.window / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_window_limited_half_doubles_until_the_cap() {
        // 50 ms path, the sender always fills the window at once.
        let mut w = RecvWindow::new(64 << 10, 1 << 20);
        let (mut now, mut next) = (Instant::ZERO, 0u64);
        for _ in 0..200 {
            let target = w.granted();
            while next < target {
                next += 16 << 10;
                w.on_received(now, next.min(target), Pressure::Low);
                w.on_consumed(now, next.min(target), 0, false, Pressure::Low);
            }
            next = next.min(target);
            now = Instant::from_nanos(now.as_nanos() + 50 * MS);
        }
        assert_eq!(w.window(), 1 << 20);
    }

    #[test]
    fn a_slow_sender_does_not_inflate_the_window() {
        let mut w = RecvWindow::new(64 << 10, 1 << 20);
        let (mut now, mut next) = (Instant::ZERO, 0u64);
        for _ in 0..5_000 {
            next += 1000;
            now = Instant::from_nanos(now.as_nanos() + MS);
            w.on_received(now, next, Pressure::Low);
            w.on_consumed(now, next, 0, false, Pressure::Low);
        }
        assert!(w.window() <= 128 << 10, "{}", w.window());
    }

    #[test]
    fn a_cap_lowered_below_what_is_held_forces_nothing_until_that_fell() {
        let mut b = Budget::new(100);
        b.set_held(80);
        b.set_cap(40);
        assert_eq!((b.cap(), b.pressure()), (40, Pressure::Lowered));
        b.set_held(95);
        assert_eq!(b.pressure(), Pressure::Lowered, "granted before");
        b.set_held(100);
        assert_eq!(b.pressure(), Pressure::Full, "the cap before holds");
        b.set_held(39);
        b.set_held(40);
        assert_eq!(b.pressure(), Pressure::Full, "what fell is not granted again");
        b.set_cap(200);
        assert_eq!(b.pressure(), Pressure::Low);
        b.set_held(150);
        b.set_cap(120);
        b.set_cap(60);
        b.set_held(160);
        assert_eq!(b.pressure(), Pressure::Lowered, "two steps down are one");
    }

    #[test]
    fn pressure_stops_growth_and_grants_only_to_those_that_hold_little() {
        let mut w = RecvWindow::new(64 << 10, 1 << 20);
        assert_eq!(w.on_consumed(Instant::ZERO, 64 << 10, 20 << 10, true, Pressure::High), Some((64 << 10, 64 << 10)));
        assert!(w.throttled());
        assert_eq!(w.on_consumed(Instant::ZERO, 64 << 10, 0, true, Pressure::High), Some((64 << 10, 80 << 10)));
        assert!(w.grant(Instant::ZERO, 0, Pressure::Low));
        assert_eq!(w.granted(), 128 << 10);
    }

    #[test]
    fn the_levels_of_the_budget_begin_at_half_three_quarters_and_all() {
        let mut budget = Budget::new(1000);
        let mut level = |held| {
            budget.set_held(held);
            assert_eq!((budget.held(), budget.cap(), budget.room()), (held, 1000, 1000u64.saturating_sub(held)));
            budget.pressure()
        };
        let edges = [0, 499, 500, 749, 750, 999, 1000, 5000].map(&mut level);
        use Pressure::{Full, Half, High, Low};
        assert_eq!(edges, [Low, Low, Half, Half, High, High, Full, Full]);
        assert_eq!([Low, Half, High, Full].map(|p| initial_window(4096, p)), [4096, 1024, 1024, 1024]);
    }

    #[test]
    fn credit_is_worth_sending_from_a_quarter_of_the_window() {
        let t = Instant::ZERO;
        let mut w = RecvWindow::new(64 << 10, 1 << 20);
        assert_eq!(w.on_consumed(t, (16 << 10) - 1, 0, false, Pressure::Low), None);
        assert_eq!(w.on_consumed(t, 16 << 10, 0, false, Pressure::Low), Some((16 << 10, 80 << 10)));
        // Counted from what was reported, not from the start.
        assert_eq!(w.on_consumed(t, (32 << 10) - 1, 0, false, Pressure::Low), None);
        assert_eq!(w.on_consumed(t, 32 << 10, 0, false, Pressure::Low), Some((32 << 10, 96 << 10)));
    }

    #[test]
    fn the_last_of_a_limit_held_back_is_reported_at_once() {
        let t = Instant::ZERO;
        // Exactly a quarter left of a window of 64 KiB: not short. One byte
        // less: short, though less than a quarter was consumed since.
        let mut w = RecvWindow::new(64 << 10, 1 << 20);
        assert!(w.on_consumed(t, 47 << 10, 20 << 10, true, Pressure::High).is_some());
        assert_eq!(w.on_consumed(t, 48 << 10, 20 << 10, false, Pressure::High), None);
        assert_eq!(w.on_consumed(t, (48 << 10) + 1, 20 << 10, false, Pressure::High), Some(((48 << 10) + 1, 64 << 10)));
        // Of a large window what counts as short stays at 16 KiB.
        let mut w = RecvWindow::new(1 << 20, 1 << 20);
        assert!(w.on_consumed(t, 900 << 10, 20 << 10, true, Pressure::High).is_some());
        assert_eq!(w.on_consumed(t, 1008 << 10, 20 << 10, false, Pressure::High), None);
        assert!(w.on_consumed(t, (1008 << 10) + 1, 20 << 10, false, Pressure::High).is_some());
    }

    #[test]
    fn throttled_is_less_than_half_a_window_ahead() {
        let t = Instant::ZERO;
        let mut w = RecvWindow::new(64 << 10, 1 << 20);
        w.on_consumed(t, 32 << 10, 20 << 10, true, Pressure::High);
        assert!(!w.throttled(), "half a window is left");
        w.on_consumed(t, (32 << 10) + 1, 20 << 10, true, Pressure::High);
        assert!(w.throttled());
    }

    #[test]
    fn the_window_is_twice_what_one_loop_consumed_scaled_to_the_shortest_loop() {
        let at = |ms: u64| Instant::from_nanos(ms * MS);
        let mut w = RecvWindow::new(64 << 10, 1 << 20);
        // A loop of 10 ms in which 40 KiB were consumed: 80 KiB.
        assert!(w.on_consumed(at(0), 16 << 10, 0, true, Pressure::Low).is_some());
        w.on_consumed(at(5), 56 << 10, 0, false, Pressure::Low);
        w.on_received(at(10), 64 << 10, Pressure::Low);
        assert_eq!(w.window(), 64 << 10, "the old limit itself is not beyond it");
        w.on_received(at(10), (64 << 10) + 1, Pressure::Low);
        assert_eq!(w.window(), 80 << 10);
        // The next loop takes 20 ms and consumes 100 KiB: 50 KiB in 10 ms, so 100 KiB.
        let beyond = w.granted();
        assert!(w.on_consumed(at(20), 60 << 10, 0, true, Pressure::Low).is_some());
        w.on_consumed(at(30), 160 << 10, 0, false, Pressure::Low);
        w.on_received(at(40), beyond + 1, Pressure::Low);
        assert_eq!(w.window(), 100 << 10);
        // Under pressure it does not grow.
        let beyond = w.granted();
        assert!(w.on_consumed(at(50), 170 << 10, 0, true, Pressure::Low).is_some());
        w.on_consumed(at(51), 400 << 10, 0, false, Pressure::Low);
        w.on_received(at(60), beyond + 1, Pressure::High);
        assert_eq!(w.window(), 100 << 10);
    }

    proptest! {
        /// B4: the limit never decreases and never exceeds consumed + window.
        #[test]
        fn the_limit_is_monotone_and_bounded(ops in prop::collection::vec((0u64..100_000, 0u64..50 * MS, 0u8..4), 1..200)) {
            let mut w = RecvWindow::new(64 << 10, 1 << 20);
            let (mut now, mut next, mut last) = (Instant::ZERO, 0u64, w.granted());
            for (bytes, dt, p) in ops {
                let p = [Pressure::Low, Pressure::Half, Pressure::High, Pressure::Full][usize::from(p)];
                now = Instant::from_nanos(now.as_nanos() + dt);
                next = (next + bytes).min(w.granted());
                w.on_received(now, next, p);
                w.on_consumed(now, next, next % 40_000, bytes % 3 == 0, p);
                prop_assert!(w.granted() >= last);
                prop_assert!(w.granted() <= (w.consumed() + w.window()).max(last));
                prop_assert!(w.window() <= 1 << 20);
                last = w.granted();
            }
        }
    }
}
