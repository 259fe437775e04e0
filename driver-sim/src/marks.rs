//! `sometimes!` marks: rare circumstances that a campaign must have met, or its
//! silence about them means nothing. A campaign fails when a mark that applies
//! was never hit.

macro_rules! marks {
    ($($(#[$doc:meta])* $m:ident = $text:literal $(later $why:literal)?;)*) => {
        /// A rare circumstance.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mark { $($(#[$doc])* #[doc = $text] $m),* }

        impl Mark {
            /// All marks.
            pub const ALL: &'static [Self] = &[$(Self::$m),*];

            /// In words.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$m => $text),* }
            }

            /// Why nothing can hit it yet.
            #[must_use]
            pub const fn later(self) -> Option<&'static str> {
                match self { $(Self::$m => marks!(@later $($why)?)),* }
            }
        }
    };
    (@later) => { None };
    (@later $why:literal) => { Some($why) };
}

marks! {
    SourcePaused = "a source was paused for want of credit or room";
    SourcePausedAndResumed = "credit exhausted, then refilled";
    QueueFull = "a session's queue or in-flight cap stopped its data";
    ResumedWithReplay = "a session resumed and sent bytes again";
    ResumeRefused = "a resumption was refused";
    ClaimUnknownThenHit = "a claim's answer was lost and its retry answered from memory";
    ClaimReplyLost = "a claim was executed and its answer lost";
    EpochRaisedBySeen = "an epoch was raised by `seen` (the registry had gone back)";
    EpochRaisedByFloor = "an epoch was raised by the floor";
    ClaimLostInFailover = "a failover lost a claim";
    LateExecution = "the registry executed an operation after its time-out";
    ReleaseFoundNewer = "a release found a newer owner and did nothing";
    SweepRacedClaim = "the sweeper ran beside a claim";
    EpochMismatch = "an OPEN or bound frame under another fence was refused";
    DuplicateDropped = "a duplicate OPEN or DATA was dropped";
    SimultaneousDialKeptOurs = "of two links dialled at once the own dial survived";
    SimultaneousDialKeptTheirs = "of two links dialled at once the peer's dial survived";
    OpenCancelled = "a client went away before its OPEN was answered";
    AckAfterCancel = "an OPEN_ACK met a stream that was cancelled";
    FinClientFirst = "the client ended its direction first";
    FinTargetFirst = "the target ended its direction first";
    FinWithDataBuffered = "a direction ended while its bytes were still on their way";
    RstCrossedFin = "an RST met a FIN on its way";
    AgentMoved = "an agent moved to another hub while a stream was open";
    NewerPeer = "a peer of a later version sent an optional frame";
    TwoInstances = "two processes of one agent were alive";
    Superseded = "an instance superseded another's attachments";
    LeaseSelfFence = "a hub's lease ran out by its own clock and it refused an OPEN as owner";
    LeaseTaken = "a hub was told that another run holds its lease";
    Provisional = "an agent was attached without the registry";
    ProvisionalReclaimed = "a provisional attachment was claimed after the outage";
    OwnerCrashed = "an owner crashed with streams of another hub";
    CrossHub = "a stream crossed two hubs and finished";
    Retried = "an origin tried the next candidate";
    SlowReaderFastNeighbour = "a stream finished beside one that nobody read";
    HalfClosedLong = "a half-closed stream was open for more than 60 s";
    EqualEpoch = "an agent was given one epoch under two nonces";
    TombstoneEvicted = "a node forgot how a stream had ended";
    ClockCrossedDeadline = "the registry's clock stepped across the end of a lease";
    TombstoneUsed = "a late frame met a tombstone";
    PausedPastLease = "a hub slept longer than its lease";
    SilentDeath = "a machine died without a word";
    DeadPeerNoticed = "a silent peer was given up by its timer";
    WallClockStepped = "the registry's clock stepped";
    BudgetPressure = "the memory budget held a source back";
    Ejected = "a candidate was ejected";
    Reinstated = "an ejected candidate came back by its successes";
    TargetDown = "a target failed its checks and its connector was withdrawn";
    TargetUp = "a withdrawn connector was exposed again";
    Split = "a hub was split and its notes were late";
    Scaled = "a hub came while others served, and left for good once drained";
    Drained = "a node was drained to its last stream";
    DrainDeadline = "a drained node was stopped with streams left";
    DrainReset = "a drain's deadline passed and what was left was reset";
    DrainTakenBack = "a drain was taken back";
    LameDuck = "a hub had served for a while after it was told to leave";
    MovedInTime = "all that could attach elsewhere had when their hub took nothing new";
    TokenCut = "a token ran out and its tunnel was ended";
    CachedServed = "a stream crossed hubs while the registry was away";
    Reloaded = "a reload took a peer, a hub, a listener or a connector away while streams were open";
    LimitBelowUse = "a reload lowered a limit below its use";
    ReloadRefused = "a configuration that cannot be used was refused, and changed nothing";
    CertificateChanged = "a hub's certificate or its CAs changed";
    UntrustedCa = "a hub showed a certificate of a CA that its peer does not know";
    TrustLost = "a link ended because the CA of its peer left";
    TrustedAgain = "a hub whose CA had left was let in with a certificate of another";
    ModeFlip = "a mode flipped under cross-hub streams";
    TokenExpired = "a token ran out on a live tunnel";
    TokenRenewed = "a fresh token came on a live tunnel and was taken";
    TokenRefused = "a fresh token came on a live tunnel and was refused";
    WrongSession = "a frame of a stream came on a session it is not bound to";
    Forged = "an authenticated peer sent a frame of somebody else's stream";
    ForgedV1 = "a frame nobody sent came on a session of version 1";
    UnknownFrame = "a frame of an unknown optional type came along";
    WrongCertificate = "a hub showed a certificate that is not its own";
    Repeated = "the frame of a message came twice";
    Replayed = "a frame seen before came again, later or on another session";
    IdleCut = "a proxy cut a connection for being idle";
    IngressRestarted = "a proxy lost every connection through it at once";
    NoDescriptors = "a client waited for a hub that had no descriptor left";
    TwinHub = "two live hubs had one replica id";
    TwinFenced = "of two live hubs with one replica id one gave the lease up";
    RegistryReady = "a hub that holds agents counted its registry as ready again";
    ProvisionalServed = "a client was served over an attachment without the registry";
    ShardStalled = "a shard of a hub stood still while the rest of it went on";
    OtherRegistry = "a hub was answered by another registry than its peers";
    Partitioned = "hubs and agents fell into two groups that lost each other";
    OldAddress = "a dial ended where a name led by mistake";
    ClockSkew = "a hub's clock was off and it took a token for older or younger than it was";
    HostileStream = "a hostile peer broke the rules of a stream of its own";
    HostileGuess = "a hostile peer spoke of a stream that is not its own, or of none";
    HostileSession = "a hostile peer broke its session";
    HostileEnded = "a hub closed the connection of an agent that broke the protocol";
    HostileHubEnded = "a hub closed the connection of a hub that broke the protocol";
    HostileOpenCarried = "an OPEN of a hostile hub was carried to an agent";
    HostileOpenRefused = "an OPEN of a hostile hub that named no attachment was refused";
    HostileCidRefused = "an OPEN of a hostile hub with a cid that was used was not carried";
    HostileFloodRefused = "a hostile hub opened more streams than may wait for an answer";
    HostileHubLied = "a hostile hub lied about agents or about itself";
    RapidReset = "a hostile hub opened and reset many streams at once and went on";
    RegistryAtMoment = "the registry failed just as it was asked for a claim or a lease";
    V1 = "a session spoke wire version 1";
    BothEncodings = "both encodings were used in one run";
}

/// Which marks were hit, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    hits: Vec<u64>,
}

impl Marks {
    /// Counts one.
    pub fn hit(&mut self, mark: Mark) {
        self.add(mark, 1);
    }

    /// Counts several.
    pub fn add(&mut self, mark: Mark, n: u64) {
        if n > 0 {
            let ix = mark as usize;
            if self.hits.len() <= ix {
                self.hits.resize(Mark::ALL.len(), 0);
            }
            if let Some(h) = self.hits.get_mut(ix) {
                *h += n;
            }
        }
    }

    /// How often a mark was hit.
    #[must_use]
    pub fn count(&self, mark: Mark) -> u64 {
        self.hits.get(mark as usize).copied().unwrap_or(0)
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: &Self) {
        for m in Mark::ALL {
            self.add(*m, other.count(*m));
        }
    }

    /// Marks that apply and were never hit.
    pub fn missing(&self) -> impl Iterator<Item = Mark> {
        Mark::ALL.iter().copied().filter(|m| m.later().is_none() && self.count(*m) == 0)
    }
}
