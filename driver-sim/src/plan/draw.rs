//! Plans from the tape: what a profile leaves open is drawn here, each part
//! from a lane of its own. Must not know how anything is carried out.

use super::{
    AgentPlan, ClientPlan, Ending, ExpiryPlan, FlowPlan, Frozen, HubPlan, Level, MS, ModePlan, NetPlan, Plan,
    TargetPlan, TimerPlan,
};
use crate::faults::{At, Class, Fault, Planned};
use crate::profile::Profile;
use crate::rogue::RoguePlan;
use crate::scenario;
use crate::tape::{Lane, Tape};

impl Plan {
    /// Draws a plan of a profile.
    #[must_use]
    pub fn draw(tape: &Tape, seed: u64, profile: &Profile, level: Level) -> Self {
        let mut l = tape.lane("plan", 0);
        let p = profile;
        let hubs = p.hubs.map_or_else(|| [1, 2, 2, 3, 3, 3][l.below(6) as usize], u64::from);
        let agents = p.agents.map_or_else(|| l.between(1, 4), u64::from);
        let clients = p.clients.map_or_else(|| l.spread(4, 96), u64::from);
        let connectors = l.between(1, 3) as u16;
        let safety_ns = p.safety_ms.unwrap_or_else(|| l.between(15_000, 60_000)) * MS;
        let timers = TimerPlan::draw(&mut tape.lane("timers", 0));
        let mode =
            p.mode.unwrap_or_else(|| [ModePlan::Active, ModePlan::Off, ModePlan::Shadow][l.weighted(&[12, 1, 1])]);
        let mixed = p.mode.is_none() && l.chance(1, 12);
        let split = p.split.unwrap_or_else(|| l.chance(1, 3));
        let hubs: Vec<HubPlan> =
            (0..hubs).map(|n| HubPlan::draw(&mut tape.lane("hub", n), hubs as u8, mode, mixed, split)).collect();
        let agents = (0..agents)
            .map(|n| AgentPlan::draw(&mut tape.lane("agent", n), n == 0, hubs.len() as u8, connectors))
            .collect();
        let calm = p.faults_per_minute == Some(0);
        let mut hubs = hubs;
        for (ix, hub) in hubs.iter_mut().enumerate() {
            // A list of peers that is the same file for all holds oneself.
            let itself = tape.lane("peers", ix as u64).chance(1, 4);
            hub.peers.retain(|p| itself || usize::from(*p) != ix);
        }
        for (ix, hub) in hubs.iter_mut().enumerate() {
            let mut l = tape.lane("rules", ix as u64);
            hub.cached = l.chance(1, 4);
            let mut late = tape.lane("late hub", ix as u64);
            if ix > 0 && !calm && late.chance(1, 10) {
                hub.start_ns = late.spread(500, safety_ns / MS / 2) * MS;
            }
            let mut skew = tape.lane("skew", ix as u64);
            if skew.chance(1, 6) {
                let by = skew.spread(100, 300_000) as i64;
                hub.skew_ms = if skew.chance(1, 2) { by } else { -by };
            }
            hub.on_expiry = match l.weighted(&[2, 1, 1]) {
                0 => ExpiryPlan::Keep,
                1 => ExpiryPlan::Cut,
                _ => ExpiryPlan::Drain(l.spread(100, 10_000)),
            };
        }
        let net = NetPlan::draw(&mut tape.lane("net plan", 0), level, calm);
        let clients: Vec<ClientPlan> = (0..clients)
            .map(|n| {
                let mut l = tape.lane("client", n);
                ClientPlan::draw(&mut l, n as u32, hubs.len() as u8, connectors, safety_ns, p.bytes_max)
            })
            .collect();
        let clients = if level == Level::L1 { net.bound(clients) } else { clients };
        let mut plan = Self {
            seed,
            profile: p.name.to_owned(),
            level,
            hubs,
            agents,
            clients,
            faults: Vec::new(),
            at_vulnerable: 0,
            hostile: 0,
            rogues: Vec::new(),
            classes: Vec::new(),
            triggered: None,
            frozen: None,
            twin: None,
            safety_ns,
            net,
            timers,
            connectors,
            v1: if l.chance(1, 6) { l.below(257) as u16 } else { 0 },
            newer: if l.chance(1, 8) { l.spread(1, 100) as u16 } else { 0 },
            tombstones: 0,
            late_timers_ns: if l.chance(1, 4) { l.spread(1, 200) * MS } else { 0 },
            shuffle: l.chance(7, 8),
        };
        let mut few = tape.lane("tombstones", 0);
        plan.tombstones = if few.chance(1, 8) { few.spread(1, 64) as u32 } else { 0 };
        plan.draw_burst(&mut tape.lane("burst", 0));
        plan.draw_faults(tape, profile);
        plan.draw_rogues(&mut tape.lane("rogues", 0), profile);
        plan.draw_rogue_hubs(&mut tape.lane("rogue hubs", 0));
        plan.draw_frozen(&mut tape.lane("frozen", 0));
        let mut l = tape.lane("script", 0);
        // Everything drawn includes what chance alone finds seldom.
        let mixed = p.script.is_none() && p.classes.is_empty() && p.clients.is_none() && !calm && l.chance(1, 6);
        let script = p.script.or_else(|| l.pick(scenario::ALL).copied().filter(|_| mixed));
        if let Some(script) = script {
            script(&mut plan, &mut l);
        }
        plan.timers.fit(&plan.net, plan.late_timers_ns, &plan.hubs);
        plan
    }

    /// Now and then clients come all at once (C5).
    fn draw_burst(&mut self, l: &mut Lane) {
        if self.clients.is_empty() || !l.chance(1, 12) {
            return;
        }
        let (at, hub) = (l.between(2000, self.safety_ns / MS / 2 + 2000) * MS, l.below(self.hubs.len() as u64) as u8);
        let count = l.spread(8, 400);
        let first = self.clients.len() as u32;
        for n in 0..count as u32 {
            let mut c = self.clients[(n % first) as usize];
            c.id = first + n;
            c.at = at + l.below(MS);
            c.hub = hub;
            c.up.total = c.up.total.min(2048);
            c.down.total = c.down.total.min(2048);
            c.up.after = 0;
            c.down.after = 0;
            self.clients.push(c);
        }
    }

    /// Now and then hostile agents are about (G8).
    fn draw_rogues(&mut self, l: &mut Lane, profile: &Profile) {
        if profile.classes.is_empty() && profile.script.is_none() && l.chance(1, 6) {
            for _ in 0..l.between(1, 2) {
                self.rogues.push(RoguePlan::draw(l, self.hubs.len() as u64, self.safety_ns));
            }
        }
    }

    /// Where hostile agents are about a hub may be hostile too.
    fn draw_rogue_hubs(&mut self, l: &mut Lane) {
        if !self.rogues.is_empty() && l.chance(2, 3) {
            self.rogues.push(RoguePlan::draw_hub(l, self.hubs.len() as u64, self.safety_ns));
        }
    }

    /// In a quarter of the runs with faults only a core of the nodes is healed.
    fn draw_frozen(&mut self, l: &mut Lane) {
        let (hubs, agents) = (self.hubs.len() as u64, self.agents.len() as u64);
        if self.faults.is_empty() || hubs < 2 || !l.chance(1, 4) {
            return;
        }
        let at = if l.chance(2, 3) { At::Hub(l.below(hubs) as u8) } else { At::Agent(l.below(agents) as u8) };
        self.frozen = Some(Frozen { at, silent: l.chance(1, 2) });
    }

    /// Swarm selection: each class is off in about half the runs, the others
    /// have wildly different weights.
    fn draw_faults(&mut self, tape: &Tape, profile: &Profile) {
        let mut l = tape.lane("faults", 0);
        let per_minute = profile.faults_per_minute.unwrap_or_else(|| l.spread(1, 120) as u32);
        if per_minute == 0 {
            return;
        }
        let classes: Vec<(Class, u32)> = Class::ALL
            .iter()
            .filter(|c| profile.classes.is_empty() || profile.classes.contains(c))
            .filter_map(|c| {
                let (on, weight) = (l.chance(1, 2), l.spread(1, 64) as u32);
                (on || !profile.classes.is_empty()).then_some((*c, weight))
            })
            .collect();
        if classes.is_empty() {
            return;
        }
        let weights: Vec<u32> = classes.iter().map(|(_, w)| *w).collect();
        let count = self.safety_ns / MS * u64::from(per_minute) / 60_000;
        for n in 0..count.max(1) {
            let mut l = tape.lane("fault", n);
            let at = l.between(1500, (self.safety_ns / MS).saturating_sub(500).max(1501)) * MS;
            if let Some((class, _)) = classes.get(l.weighted(&weights))
                && let Some(fault) = Fault::draw(*class, self, &mut l)
            {
                self.faults.push(Planned { at, fault });
            }
        }
        self.classes = classes.into_iter().map(|(c, _)| c).collect();
        self.hostile = if profile.classes.is_empty() && l.chance(1, 4) { l.spread(1, 400) as u32 } else { 0 };
        if profile.classes.is_empty() && l.chance(1, 5) {
            for a in &mut self.agents {
                a.scope = Some(a.connectors.iter().map(|c| c.0).collect());
                a.token_ns = l.between(2000, self.safety_ns / MS) * MS;
            }
        }
        self.at_vulnerable = if l.chance(1, 2) { l.spread(1, 300) as u32 } else { 0 };
    }
}

impl TimerPlan {
    /// An OPEN must be able to return in time: an attempt that ends before the
    /// answer can have come is a configuration without cross-hub streams, not a
    /// run to judge. Only deadlines that no answer could keep grow.
    fn fit(&mut self, net: &NetPlan, late_timers_ns: u64, hubs: &[HubPlan]) {
        let hop = net.latency.1 + net.jitter;
        // What a quiet wire has to carry before an OPEN's answer: the OPEN, the
        // first bytes behind it, acknowledgements, pings.
        let wire = 8192 * 1_000_000_000 / net.bandwidth.0.max(1);
        let notes = hubs.iter().map(|h| h.note_delay_ns).max().unwrap_or(0);
        let answer = 4 * hop + 2 * wire + 4 * notes + late_timers_ns + 100 * MS;
        self.attempt = self.attempt.max(answer);
        self.open = self.open.max(self.attempt);
    }

    fn draw(l: &mut Lane) -> Self {
        let open = [2000, 2000, 5000, 10_000][l.below(4) as usize] * MS;
        Self {
            attempt: open / [1, 2, 4][l.below(3) as usize],
            open,
            resume: [30_000, 30_000, 5000, 60_000, 0][l.weighted(&[6, 4, 2, 1, 1])] * MS,
            lease: [10_000, 10_000, 5000][l.below(3) as usize] * MS,
            dead: [10_000, 10_000, 6000][l.below(3) as usize] * MS,
            backoff_max: [30_000, 5000, 10_000][l.below(3) as usize] * MS,
            target: 1500 * MS,
            handshake: 5000 * MS,
        }
    }
}

fn window(l: &mut Lane) -> (u64, u64) {
    let initial = [65_536, 65_536, 16_384, 4096][l.weighted(&[4, 4, 2, 1])];
    (initial, [1 << 20, 1 << 20, 65_536][l.below(3) as usize].max(initial))
}

fn inflight(l: &mut Lane) -> u64 {
    if l.chance(1, 4) { l.spread(64 << 10, 1 << 20) } else { 8 << 20 }
}

fn drift(l: &mut Lane) -> i32 {
    if l.chance(1, 3) { l.below(1001) as i32 - 500 } else { 0 }
}

impl HubPlan {
    fn draw(l: &mut Lane, hubs: u8, mode: ModePlan, mixed: bool, split: bool) -> Self {
        let mixed_mode = [ModePlan::Active, ModePlan::Off, ModePlan::Shadow][l.below(3) as usize];
        Self {
            mode: if mixed { mixed_mode } else { mode },
            shards: if split && l.chance(2, 3) { l.between(1, 3) as u8 } else { 0 },
            note_delay_ns: l.spread(1, 20_000) * 1000,
            budget: if l.chance(1, 16) { l.spread(256 << 10, 4 << 20) } else { 512 << 20 },
            queue_depth: if l.chance(1, 5) { l.spread(4, 256) as u32 } else { 1000 },
            inflight: inflight(l),
            window: window(l),
            first_byte: l.chance(1, 5),
            drift_ppm: drift(l),
            region: l.below(2) as u8,
            peers: (0..hubs).collect(),
            cached: false,
            on_expiry: ExpiryPlan::Keep,
            skew_ms: 0,
            failback_ns: if l.chance(1, 3) { l.spread(500, 20_000) * MS } else { 0 },
            start_ns: 0,
        }
    }
}

impl AgentPlan {
    fn draw(l: &mut Lane, first: bool, hubs: u8, connectors: u16) -> Self {
        let mut order: Vec<u8> = (0..hubs).collect();
        for ix in (1..order.len()).rev() {
            order.swap(ix, l.below(ix as u64 + 1) as usize);
        }
        if l.chance(1, 4) {
            order.truncate(l.between(1, u64::from(hubs)) as usize);
        }
        let mut exposed: Vec<(u16, u16, u16)> = Vec::new();
        for c in 0..connectors {
            let (there, priority, weight) = (l.chance(2, 3), l.below(3) as u16, l.between(1, 4) as u16);
            if first || there {
                exposed.push((c, priority, weight));
            }
        }
        let parallel = if l.chance(2, 3) { 1 } else { l.between(1, order.len() as u64) as u16 };
        Self {
            parallel,
            hubs: order,
            scope: l.chance(1, 2).then(|| exposed.iter().map(|c| c.0).collect()),
            connectors: exposed,
            token_ns: if l.chance(1, 10) { l.spread(2000, 60_000) * MS } else { 0 },
            budget: if l.chance(1, 16) { l.spread(256 << 10, 4 << 20) } else { 512 << 20 },
            window: window(l),
            inflight: inflight(l),
            drift_ppm: drift(l),
            start_ns: if l.chance(1, 4) { l.below(3000) * MS } else { 0 },
            check_ns: if l.chance(1, 3) { l.spread(200, 2000) * MS } else { 0 },
        }
    }
}

impl FlowPlan {
    fn draw(l: &mut Lane, bytes_max: u32, safety_ns: u64) -> Self {
        let total = match l.weighted(&[2, 6, 4, 2]) {
            0 => l.below(2) as u32,
            1 => l.spread(1, 2048) as u32,
            2 => l.spread(1, 65_536) as u32,
            _ => l.spread(1, u64::from(bytes_max)) as u32,
        };
        // At window edges now and then (C7).
        let total = if l.chance(1, 16) { [4096, 16_384, 65_536, 65_537][l.below(4) as usize] } else { total };
        let chunk = if l.chance(1, 8) { l.spread(1, 16) as u32 } else { l.spread(16, 65_536) as u32 };
        // No more than about two hundred writes or reads a direction.
        let chunk = chunk.max(total / 200 + 1);
        let writes = u64::from(total / chunk + 1);
        let write_gap = if l.chance(1, 2) { 0 } else { l.below(safety_ns / 4 / writes) };
        let read =
            if l.chance(1, 8) { l.spread(1, 64) as u32 } else { l.spread(256, 65_536) as u32 }.max(total / 200 + 1);
        let reads = u64::from(total / read + 1);
        let read_gap = match l.weighted(&[12, 5, 1]) {
            0 => 0,
            1 => l.below(safety_ns / 3 / reads),
            _ => u64::MAX,
        };
        let after = if l.chance(1, 4) { l.spread(1, 4096) as u32 } else { 0 };
        Self { total, chunk, write_gap, read, read_gap, after }
    }
}

impl Ending {
    fn draw(l: &mut Lane, total: u32, incoming: u32, safety_ns: u64) -> Self {
        match l.weighted(&[10, 3, 4, 1, 1, 2]) {
            0 => Self::Fin,
            1 => Self::FinLater(l.below(safety_ns / 2)),
            2 => Self::FinAfterOther,
            3 => Self::Abort(l.below(u64::from(total) + 1) as u32),
            4 => Self::AbortAfterRead(l.below(u64::from(incoming) + 1) as u32),
            _ => Self::Hold,
        }
    }
}

impl ClientPlan {
    fn draw(l: &mut Lane, id: u32, hubs: u8, connectors: u16, safety_ns: u64, bytes_max: u32) -> Self {
        let mut up = FlowPlan::draw(l, bytes_max, safety_ns);
        let mut down = FlowPlan::draw(l, bytes_max, safety_ns);
        up.after = up.after.min(down.total);
        // Both may not wait for the other.
        down.after = if up.after > 0 { 0 } else { down.after.min(up.total) };
        let client_end = Ending::draw(l, up.total, down.total, safety_ns);
        let mut target_end = Ending::draw(l, down.total, up.total, safety_ns);
        if client_end == Ending::FinAfterOther && target_end == Ending::FinAfterOther {
            target_end = Ending::Fin;
        }
        Self {
            id,
            at: l.between(500, (safety_ns / MS * 9 / 10).max(501)) * MS + l.below(MS),
            hub: l.below(u64::from(hubs)) as u8,
            connector: l.below(u64::from(connectors)) as u16,
            up,
            down,
            client_end,
            target_end,
            target: match l.weighted(&[24, 1, 1]) {
                0 => TargetPlan::Accept(l.spread(1, 200) * MS / 4),
                1 => TargetPlan::Refuse(l.below(500) * MS),
                _ => TargetPlan::Hang,
            },
            latency: l.spread(10, 5000) * 1000,
            buffer: l.spread(512, 256 << 10) as u32,
        }
    }
}

/// Pieces the bytes of one direction are carried in at least (L1), where they
/// are small.
const PIECES: u64 = 1000;

impl NetPlan {
    /// A network that carries little at a time is given little to carry: a
    /// run is to end, and what a thousand pieces do not show a million do not
    /// show either.
    fn bound(&self, mut clients: Vec<ClientPlan>) -> Vec<ClientPlan> {
        let most = u32::try_from(self.mtu.1.min(self.buffer.1).max(2) * PIECES).unwrap_or(u32::MAX);
        for c in &mut clients {
            for flow in [&mut c.up, &mut c.down] {
                flow.total = flow.total.min(most);
            }
            c.up.after = c.up.after.min(c.down.total);
            c.down.after = c.down.after.min(c.up.total);
        }
        clients
    }

    fn draw(l: &mut Lane, level: Level, calm: bool) -> Self {
        let low = l.spread(50, 20_000) * 1000;
        let slow = !calm && l.chance(1, 6);
        let bandwidth = if slow { l.spread(8_000, 1 << 20) } else { l.spread(4 << 20, 1 << 30) };
        let buffer = match level {
            Level::L0 => l.spread(16 << 10, 4 << 20),
            Level::L1 => l.spread(1, 1 << 20),
        };
        let mtu = if l.chance(1, 4) { l.spread(1, 1500) } else { 65_536 };
        let latency = (low, low + l.spread(1, 200_000) * 1000);
        let jitter = l.spread(1, 20_000) * 1000;
        // With a tail that is long and thin.
        let exponential = l.chance(1, 3);
        let longer = if exponential { l.between(1, 10) } else { 1 };
        // Only where the way is short can a buffer of a few bytes carry
        // anything in time.
        let near = level == Level::L1 && l.chance(1, 3);
        Self {
            latency: if near { (20_000, 50_000) } else { latency },
            jitter: if near { jitter.min(20_000) } else { jitter * longer },
            exponential,
            bandwidth: (bandwidth, bandwidth * 4),
            buffer: (buffer, buffer * 4),
            mtu: (mtu, mtu),
            dial_timeout: 5000 * MS,
        }
    }
}
