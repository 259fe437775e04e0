//! Planted bugs: mistakes that a run can be told to make, so that the
//! simulator's oracles are themselves tested (each bug must be caught by one).
//!
//! Owns the catalogue [`BUGS`] and the switch. At each place that a bug
//! changes stands `if planted::on(ID)`. Only with the cargo feature `planted`
//! is there anything to switch: a number per thread, because one thread runs
//! one simulated world at a time. Without it [`on`] is a constant `false` and
//! the optimiser removes the branch; no other file asks for the feature.
//! Nothing here decides anything: it must not know a machine, a frame or a
//! stream. The switch and the random order of bug 56 are the core's only state
//! outside its machines.

/// Where a bug can be switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// In this crate, the registry's model included.
    Core,
    /// In the simulator's own model: it asks [`current`].
    Simulator,
    /// What it breaks exists in the tokio driver only; [`Bug::needs`] says
    /// which test holds that.
    Driver,
    /// What it breaks does not exist yet; the reason.
    Later(&'static str),
}

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bug {
    /// Its number in the catalogue; from 2001: beyond the catalogue.
    pub id: u16,
    /// The mistake, as it is made here.
    pub what: &'static str,
    /// Invariants of which at least one must be seen broken. Empty: not told,
    /// as a test of how general the oracles are.
    pub oracle: &'static [&'static str],
    /// Where it can be switched on.
    pub applies: Applies,
    /// What a run must hold for the mistake to be made at all, beyond clients,
    /// cuts and crashes. Empty: nothing.
    pub needs: &'static str,
}

/// The bug that fails one run in a hundred, chosen by a hash of its seed: a check
/// of the pipeline, not of an oracle.
pub const CANARY: u16 = 1000;

const fn core(id: u16, what: &'static str, oracle: &'static [&'static str], needs: &'static str) -> Bug {
    Bug { id, what, oracle, applies: Applies::Core, needs }
}

const fn other(
    id: u16,
    what: &'static str,
    oracle: &'static [&'static str],
    applies: Applies,
    needs: &'static str,
) -> Bug {
    Bug { id, what, oracle, applies, needs }
}

const fn further(id: u16, what: &'static str, needs: &'static str) -> Bug {
    Bug { id, what, oracle: &[], applies: Applies::Core, needs }
}

/// Every bug there is, by rising number.
pub const BUGS: &[Bug] = &[
    core(
        1,
        "an agent takes an attachment under the epoch it has already: two nonces of one epoch",
        &["O3", "O2"],
        "an agent with two tunnels that dials both hubs at once while the registry is out or the mode is off",
    ),
    core(
        2,
        "a claim, firm or provisional, leaves out the `seen` of HELLO",
        &["O2", "L2", "L11"],
        "a registry outage during which an agent attaches to a hub that never heard of it (EPOCH notices of linked \
         hubs count as hearing); or a failover that loses the claim together with the registry's clock stepping back",
    ),
    core(
        3,
        "a claim without an answer is sent again under a new id, and the first answer that comes counts; the \
         second one's grant is then released, and with it the attachment's entry",
        &["O6", "O1"],
        "a registry that answers a claim after more than op_timeout and less than two of them",
    ),
    core(
        5,
        "release deletes the stored epoch too",
        // O5: The registry sees the epoch fall by that very release.
        &["O5", "O6", "O2"],
        "an oracle that reads MemoryRegistry::stored_epoch; O2 needs the registry's clock stepping back between \
         the release and a claim through another hub for an agent that restarted",
    ),
    core(6, "the sweeper takes its own clock, a minute ahead of the registry's, for the leases", &["O5", "O6"], ""),
    core(
        7,
        "the lease is counted from the answer to the renewal, not from its sending",
        &["O7"],
        "slow renewals (below op_timeout), then a registry that this hub cannot reach for more than a lease, with \
         OPENs of other hubs all the while; the overrun is as long as the last renewal took",
    ),
    core(
        9,
        "a stream takes frames off its session: whoever names its cid is believed",
        // B4: What a stranger says moves offsets: honest peers are found beyond their credit.
        // B1: The limit that a hostile one names is passed on.
        &["B1", "B4", "O1", "O4", "I2", "S8"],
        "frames seen on one session sent again by an authenticated peer on another",
    ),
    core(
        10,
        "the epoch of DATA is checked, that of FIN is not",
        // B1: A false end is written, and the CREDIT that counts it is above what arrived.
        &["B1", "O4", "S2"],
        "a FIN at the right offset under another epoch, on the stream's own session",
    ),
    core(
        11,
        "an epoch passes through Lua's tostring and keeps 14 digits",
        &["O2", "O3", "O6", "L2"],
        "a registry clock of a present-day date and two claims for one agent in the same millisecond (two tunnels \
         dialled at once)",
    ),
    core(
        12,
        "off by one in dedup: after a cut the unacknowledged messages are asked for again, and a frame that ends \
         exactly at the next offset is not held for a repeat",
        // A1: what comes again is not counted.
        &["S1", "S9", "S8", "A1"],
        "a cut while DATA is on its way to the side that dials; a silent phase before the cut makes it likelier",
    ),
    core(14, "a stream is forgotten when the first of its halves is done", &["S3", "S2"], ""),
    core(
        16,
        "a socket sees an end instead of an abort when its session is lost",
        &["S2", "S5"],
        "an outage beyond the resume window, or a crash, under open streams",
    ),
    // B1: The end that nobody said is written, and the CREDIT that counts it is above what arrived.
    core(17, "RST of an open stream is taken for FIN", &["B1", "S5", "S2", "B5"], ""),
    // L1: Whoever still writes is reset for no reason.
    // S4: The other half goes on at the socket that was closed.
    core(18, "the end of one half closes the whole socket", &["L1", "S4", "S3", "S1"], ""),
    core(
        20,
        "a resumption names the next number instead of the last one received, and a position above what was sent \
         is accepted",
        &["D2", "S1", "L1"],
        "",
    ),
    core(
        21,
        "the initial window is added once more to every open stream when its session resumes or its peer's STATUS \
         comes",
        &["B4", "L1"],
        "streams whose sender fills the window (a slow reader) while a cut heals or a hub's status changes",
    ),
    core(
        22,
        "what a stream held is not given back when it is reset",
        &["B3", "B4", "B5"],
        "resets of streams with unwritten or waiting data (a slow reader that aborts)",
    ),
    core(
        24,
        "credit is granted for what was received, not for what the socket took",
        &["B1"],
        "a slow reader, and more than a window of data for it",
    ),
    core(
        25,
        "the credit that is left is calculated with wrapping arithmetic",
        &["B1", "B4", "D2"],
        "agents whose initial window is smaller than the hub's, and clients that write before the stream is open \
         (a slow lookup or `open: first-byte`)",
    ),
    core(
        27,
        "no stream is read while another one of the same session waits for credit",
        &["L7", "L1"],
        "a slow reader beside other streams of the same session",
    ),
    // I2: An OPEN that was dropped: frames of a stream that nobody opened there.
    core(29, "control frames wait behind all DATA of the session", &["I2", "L1", "L3", "A2", "L9"], ""),
    core(
        30,
        "DATA that finds 32 KiB of its stream waiting in the session's queue is dropped",
        // S2: The FIN after what was dropped stands behind bytes that nobody got.
        // S9: what follows it stands at an offset that nobody expects.
        &["S2", "A2", "S1", "L1", "S9"],
        "more than 32 KiB of one stream at once, over a slow or suspended session",
    ),
    core(
        31,
        "the in-flight cap counts bytes before base64",
        &["B2"],
        "v1 sessions, an in-flight cap that traffic reaches (limits.inflight_bytes small), and an oracle that reads \
         Session::inflight_bytes",
    ),
    core(
        32,
        "what a session held is not subtracted from the budget when it is lost without a connection",
        &["B3", "B4", "B5"],
        "an outage beyond the resume window with data in flight",
    ),
    core(
        33,
        "an OPEN without an answer stays when its session is lost, and its deadline goes",
        // L1: Its client waits for ever.
        &["L1", "L12", "B5", "B7"],
        "an agent or an owner lost for good while a target is slow to connect",
    ),
    core(35, "a client whose OPEN was refused is not told", &["L12", "L1"], "targets that refuse"),
    core(
        36,
        "the owner acknowledges an OPEN before the agent connected",
        &["S7", "L12"],
        "streams that cross hubs to targets that refuse or are slow",
    ),
    core(
        37,
        "an OPEN that a resumption brings again is dialled again",
        // A1: as one that came before it is not counted.
        &["S6", "A1"],
        "a cut within the ACK delay after an OPEN reached an agent (a silent phase before the cut makes it likelier)",
    ),
    core(
        39,
        "of two simultaneous dials each hub refuses the other's",
        &["L4"],
        "two hubs that dial each other within the time of a handshake, again and again: a latency of 50 ms or more, \
         or a back-off without jitter",
    ),
    core(
        40,
        "of two simultaneous dials both are kept",
        // B5: What the second link carried is never ended.
        &["B5", "L4"],
        "two hubs that dial each other within the time of a handshake",
    ),
    core(
        42,
        "the back-off goes on growing over connections that lasted",
        &["L2", "L8", "L4"],
        "eight or more cuts of one link or tunnel",
    ),
    core(43, "a PING that was written counts as life of the peer", &["L9"], "a connection that goes silent unclosed"),
    other(
        44,
        "timers run by the wall clock",
        // L6: A wall clock that stepped back keeps renewals from being made or missed.
        &["L6", "L9", "B9"],
        Applies::Simulator,
        "the core has no clock: the world passes the wall clock, with its steps, as `now` of this node",
    ),
    core(
        47,
        "readiness remembers that the registry once answered",
        &["L6"],
        "a registry outage; the oracle asks Control::registry_healthy",
    ),
    other(
        48,
        "an answer READONLY does not make the registry's client connect anew",
        &["L5", "L6"],
        Applies::Simulator,
        "the connection to Redis is the driver's, the simulator has a twin of it; a master that is demoted while \
         hubs hold connections to it",
    ),
    core(
        49,
        "a client that needs another hub waits for the registry's time-out although it is known to be out",
        &["M4"],
        "a registry that does not answer (not: that refuses), and clients of a connector without a local agent",
    ),
    core(
        50,
        "a hub in shadow mode looks remote agents up and opens streams there",
        &["M2"],
        "a hub in `shadow` beside one in `active` that holds the only agent",
    ),
    core(
        52,
        "a reload lowers a cap below its use and the room left underflows",
        &["D2", "B3"],
        "a listener whose max_connections is lowered below its clients, and a client that comes then",
    ),
    core(
        54,
        "the scope is checked at HELLO only: neither at an OPEN from another hub nor when a narrower token resumes",
        &["I1", "I4"],
        "tokens that run out, or resume with fewer connectors, while other hubs open from what they looked up before",
    ),
    core(
        55,
        "a certificate proves every replica id that its name contains",
        &["I3"],
        "peers with certificates (HubGrant::dns_names), one of which claims a part of its name, as hub-1 does with hub-10's",
    ),
    core(56, "notices leave in the order of a hash with a random key", &["D1"], "two sessions or more at one hub"),
    core(
        58,
        "violations are labelled with the names of agents too",
        &["B10"],
        "an oracle that compares Shard::violations_by_peer with the configured peers",
    ),
    core(
        59,
        "an unknown frame ends the session although it is flagged optional",
        // D2: Nobody broke the protocol, and a hub says so.
        &["D2", "L4", "L2", "L1"],
        "a peer of another version that sends an optional frame",
    ),
    core(
        60,
        "a draining hub closes its listeners before its agents have moved",
        &["L10"],
        "a drain with a lame duck, while clients come that only this hub's listeners or tunnels can serve",
    ),
    other(
        CANARY,
        "the run fails if a hash of its seed is a multiple of 100",
        &[],
        Applies::Simulator,
        "the seed of a run is the simulator's",
    ),
    further(2001, "the first message that a resumption should send again is left out", ""),
    further(2002, "a stream whose turn is over gets the next one at once", "streams of one session that all have data"),
    further(
        2003,
        "the end of a half is passed on while bytes of it still wait for credit",
        "an agent whose initial window is smaller than the hub's, and a client that writes more than that and ends \
         before the stream is open (`open: first-byte`)",
    ),
    further(
        2004,
        "a session that was given up for silence has no deadline",
        "a connection that goes silent and a peer that never comes back",
    ),
    further(
        2005,
        "a connection that a session has left still counts as its own",
        "a cut that only the dialling side notices, and whose other end is noticed after the resumption",
    ),
    further(
        2006,
        "release compares the hub but not the fence",
        "an agent that restarts and comes back to the same hub",
    ),
    further(
        2007,
        "a lease is renewed without regard to who holds it",
        "a hub paused beyond its lease and replaced by another run of its replica id, which then wakes",
    ),
    further(
        2008,
        "an attachment of an earlier run of the agent is not ended by the next one's",
        "an agent that restarts before its hub noticed that it was gone, or two processes under one id",
    ),
    further(2009, "a second candidate is asked under the first one's cid", "targets that refuse, with two agents"),
    further(
        2010,
        "a target that was connected after the stream was cancelled stays",
        "clients that abort, or sessions lost, while a target is slow to connect",
    ),
    further(2011, "the confirmation of an end waits until credit is due", ""),
    further(
        2012,
        "once one token ran out, the others are forgotten",
        "two agents whose tokens run out one after the other",
    ),
    further(
        2013,
        "a link lives on although what its peer proved itself with reaches no CA any more",
        "a CA that leaves a hub while links through an ingress rest on it",
    ),
    further(2014, "a socket is read although the process holds all it may", "a small memory budget and slow readers"),
    further(
        2015,
        "a client is opened on a session that waits for as many answers as it may",
        "max_pending_opens near what clients ask for, and targets that are slow",
    ),
    further(2016, "a lower limit of tombstones is for the next start only", "a reload that lowers limits.tombstones"),
    further(
        2017,
        "streams that cross no hub are reset with any link that is lost",
        "clients of local agents while a link is away for longer than the resume window, or its hub dies",
    ),
    further(
        2018,
        "streams over other links are reset with a link that is lost",
        "three hubs, of which one dies while streams run between the others",
    ),
    further(
        2019,
        "what could not be dialled four times in a row is not dialled again",
        "an outage of several back-offs",
    ),
    further(2020, "a configuration that is refused leaves its limits behind", "a reload that cannot be put in force"),
    further(2021, "a stream opened over the mesh is counted as one over a tunnel", "streams that cross hubs"),
    further(2022, "a session that goes on is counted as a new one", "a cut"),
    further(
        2023,
        "a link counts as established while its session waits for a connection",
        "a link that is away for seconds",
    ),
    further(2024, "a listener counts as ready before anybody can be asked", "agents that start late"),
    further(
        2025,
        "the registry counts as ready with the first renewal after an outage, whatever it still lists",
        "a registry that is out and loses data, while agents are attached",
    ),
    further(
        2026,
        "a hub may open streams under the cids of another hub's run",
        "a hostile hub that has heard of cids of others (attack 46)",
    ),
    further(
        2027,
        "an OPEN of another hub that it resets before the answer goes on counting as one without an answer",
        "a hub that opens and resets many streams at once (attack 45)",
    ),
    further(
        2028,
        "the next candidate is asked whatever the one before answered",
        "tunnels and links that are lost while a target is slow",
    ),
    further(2029, "a node that is closed takes OPENs", "a drain, or an agent that leaves, while other hubs open there"),
    further(
        2030,
        "candidates are asked without regard to their rank",
        "agents of different priorities, at different hubs",
    ),
    core(
        2031,
        "an agent connects the first connector it exposes, whichever was asked for",
        &["I1"],
        "agents with several connectors",
    ),
    core(
        2032,
        "an owner grants its origin more than the agent granted it",
        &["B1"],
        "streams that cross hubs, and agents with windows below 64 KiB",
    ),
    core(
        2033,
        "a peer that holds its lease counts as one that does not, and the other way round",
        &["L6"],
        "a link that is away for several seconds, with the registry in reach of both",
    ),
    core(
        2034,
        "the sweeper leaves attachments at hubs that are gone",
        &["B5"],
        "a hub that restarts or never comes back",
    ),
    core(
        2035,
        "an OPEN under a fence that is not the attachment's is refused and not counted",
        &["A1"],
        "agents that move",
    ),
    core(
        2036,
        "a client that needs another hub waits for the registry for as long as it takes, until it is known to be out",
        &["M4", "L12"],
        "a registry that does not answer, and clients of a connector without a local agent",
    ),
    core(2037, "delays between dials that fail are not spread", &["L8"], "dials that fail several times in a row"),
    core(2038, "late frames of a stream that ended count as frames of one that never was", &["A1", "B8"], ""),
    core(2039, "DATA after the end of its half passes for a repeat", &["B4"], "a hostile agent or hub (attack 41)"),
    core(2040, "the first dial after a connection that lasted is not spread", &["L8"], "cuts"),
    core(2041, "DATA and FIN that come again are not counted", &["A1"], "frames that an authenticated peer repeats"),
    core(2042, "the first establishment of a link counts as a reconnect", &["A1"], ""),
    core(
        2043,
        "in shadow only clients that would have been carried are counted",
        &["A1"],
        "a hub in shadow, and clients that nobody would serve",
    ),
    core(
        2044,
        "a session is resumed by the attempt that follows the last accepted one only",
        &["L1"],
        "a HELLO that is lost under way",
    ),
    core(
        2045,
        "a session that was accepted is kept for an eighth of its time",
        &["L1"],
        "interruptions of some seconds",
    ),
    core(
        2046,
        "a peer is given up for dead after half of `liveness.dead`",
        &["L9"],
        "a connection that is silent for seconds",
    ),
    core(
        2047,
        "an agent that leaves does not withdraw its connectors",
        &["L10"],
        "an agent that drains while others serve",
    ),
    core(2048, "two processes with one agent id take turns without end", &["L8"], "two that live, for a minute"),
    core(2049, "a hub that leaves is asked as if it stayed", &["L10"], "a drain, and agents at several hubs"),
    core(2050, "OPENs are BUSY when two wait for their answers", &["L3"], "clients that come together"),
    core(2051, "what was just withdrawn is DENIED", &["L3"], "connectors that go while clients come"),
    core(2052, "`open.timeout` is three times as long", &["L12"], "targets that hang"),
    core(
        2053,
        "the end of the last stream of a node that leaves is not noticed",
        &["L10"],
        "a drain whose streams end before its deadline",
    ),
    core(2054, "own tunnels rank like those of other hubs", &["M8"], "agents at several hubs"),
    core(2055, "a window grows beyond `stream_window_max_bytes`", &["B1"], "streams that are fast enough to grow"),
    core(
        2056,
        "a repeated claim is known again only while its attachment is listed",
        &["O5"],
        "claims whose answers are lost",
    ),
    core(
        2057,
        "after an outage only attachments made without the registry are looked after",
        &["L6"],
        "a registry that lost data",
    ),
    core(2058, "what waits for a stream that its peer ended is sent on", &["B5"], "resets under load"),
];

/// The bug with this number.
#[must_use]
pub fn find(id: u16) -> Option<&'static Bug> {
    BUGS.iter().find(|b| b.id == id)
}

#[cfg(feature = "planted")]
mod switch {
    //! The switch of this thread, and the disorder of bug 56.

    use std::cell::Cell;
    use std::collections::hash_map::RandomState;
    use std::hash::{BuildHasher as _, Hash};

    thread_local! {
        /// 0: none.
        static ON: Cell<u16> = const { Cell::new(0) };
    }

    pub(super) fn set(id: u16) {
        ON.set(id);
    }

    pub(super) fn current() -> u16 {
        ON.get()
    }

    /// Brings items into an order that differs from run to run.
    pub(crate) fn hash_order<T: Hash>(items: &mut [T]) {
        let keys = RandomState::new();
        items.sort_by_cached_key(|item| keys.hash_one(item));
    }
}

#[cfg(not(feature = "planted"))]
mod switch {
    //! Nothing to switch.

    pub(super) const fn set(_id: u16) {}

    pub(super) const fn current() -> u16 {
        0
    }

    pub(crate) const fn hash_order<T>(_items: &mut [T]) {}
}

pub(crate) use switch::hash_order;

/// Switches one bug on for this thread, or (`None`) all off. False when that
/// bug cannot be on: it is in no catalogue, or this build has no planted bugs.
/// A campaign must look at that, or it tests nothing.
pub fn set(id: Option<u16>) -> bool {
    let known = id.is_none_or(|id| find(id).is_some());
    switch::set(if known { id.unwrap_or(0) } else { 0 });
    current() == id
}

/// The bug that is on in this thread.
#[must_use]
pub fn current() -> Option<u16> {
    match switch::current() {
        0 => None,
        id => Some(id),
    }
}

/// Whether this bug is on in this thread.
#[cfg(feature = "planted")]
pub(crate) fn on(id: u16) -> bool {
    switch::current() == id
}

/// No bug is on in this build.
#[cfg(not(feature = "planted"))]
pub(crate) const fn on(_id: u16) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The catalogue, as verification numbers it.
    const CATALOGUE: [u16; 44] = [
        1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 14, 16, 17, 18, 20, 21, 22, 24, 25, 27, 29, 30, 31, 32, 33, 35, 36, 37, 39,
        40, 42, 43, 44, 47, 48, 49, 50, 52, 54, 55, 56, 58, 59, 60,
    ];

    #[test]
    fn the_table_holds_every_number_once() {
        let expected = CATALOGUE.into_iter().chain([CANARY]).chain(2001..=2058);
        assert!(BUGS.iter().map(|b| b.id).eq(expected));
    }

    #[test]
    fn a_bug_names_its_oracles_unless_it_is_to_show_how_general_they_are() {
        for bug in BUGS {
            assert_eq!(bug.oracle.is_empty(), (CANARY..=2030).contains(&bug.id), "{}", bug.id);
            assert!(!bug.what.is_empty());
            assert_eq!(find(bug.id), Some(bug));
            let elsewhere = matches!(bug.applies, Applies::Simulator | Applies::Driver);
            assert!(!elsewhere || !bug.needs.is_empty(), "{}: where it is made or tested", bug.id);
        }
    }

    #[test]
    fn a_bug_is_on_exactly_if_it_was_set_and_the_build_has_them() {
        let compiled = cfg!(feature = "planted");
        for bug in BUGS {
            assert_eq!(set(Some(bug.id)), compiled);
            assert_eq!(current(), compiled.then_some(bug.id));
            for other in BUGS {
                assert_eq!(on(other.id), compiled && other.id == bug.id);
            }
        }
        assert!(!set(Some(4)), "a number that is in no catalogue");
        assert_eq!(current(), None);
        assert!(set(None));
    }

    #[cfg(feature = "planted")]
    #[test]
    fn a_switch_is_its_threads_own() {
        set(Some(1));
        std::thread::scope(|s| {
            s.spawn(|| assert_eq!(current(), None));
        });
        set(None);
    }

    #[cfg(feature = "planted")]
    #[test]
    fn the_order_of_bug_56_differs_between_two_calls() {
        let mut orders = std::collections::BTreeSet::new();
        for _ in 0..8 {
            let mut items: Vec<u32> = (0..32).collect();
            hash_order(&mut items);
            orders.insert(items);
        }
        assert!(orders.len() > 1);
    }
}
