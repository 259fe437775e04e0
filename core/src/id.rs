//! Identifiers. Wire names (`Cid`, `Epoch`, `SessionId` ...) and local slab keys
//! (`SessionKey`, `StreamKey`, `ConnKey`) are separate types and never convert
//! into each other implicitly.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name accepted anywhere (attack 53).
pub const NAME_MAX_BYTES: usize = 64;

/// Why a name was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to 64 characters of A-Z a-z 0-9 . _ -{}", if *.slash { " (an agent id may hold one '/')" } else { "" })]
pub struct NameError {
    slash: bool,
}

fn plain(s: &str) -> bool {
    (1..=NAME_MAX_BYTES).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A validated name: connector, replica id, namespace, region or listener,
/// `[A-Za-z0-9._-]{1,64}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// When the text is empty, longer than 64 bytes or has another character.
    pub fn new(s: &str) -> Result<Self, NameError> {
        if plain(s) { Ok(Self(s.into())) } else { Err(NameError { slash: false }) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An agent id: a name, or `SUB/NAME` for replicas that share one token
/// (semantics 8).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId(Arc<str>);

impl AgentId {
    /// Checks and wraps an agent id.
    ///
    /// # Errors
    /// When it is neither a name nor two names joined by one `/`.
    pub fn new(s: &str) -> Result<Self, NameError> {
        let ok = match s.split_once('/') {
            None => plain(s),
            Some((a, b)) => plain(a) && plain(b),
        };
        if ok { Ok(Self(s.into())) } else { Err(NameError { slash: true }) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a token whose subject is `sub` may speak for this agent:
    /// equal, or this is `sub/NAME`.
    #[must_use]
    pub fn covered_by_subject(&self, sub: &str) -> bool {
        &*self.0 == sub || self.0.split_once('/').is_some_and(|(head, _)| head == sub)
    }
}

macro_rules! text_impls {
    ($($t:ty),*) => {$(
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Debug::fmt(&*self.0, f) }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
        impl TryFrom<String> for $t {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> { Self::new(&s) }
        }
        impl std::str::FromStr for $t {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> { Self::new(s) }
        }
        impl From<$t> for String {
            fn from(n: $t) -> Self { (*n.0).to_owned() }
        }
    )*};
}
text_impls!(Name, AgentId);

macro_rules! hex_id {
    ($(#[$doc:meta])* $t:ident($int:ty), $digits:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $t(pub $int);

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:0", $digits, "x}"), self.0)
            }
        }
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($t), "({:0", $digits, "x})"), self.0)
            }
        }
        impl $t {
            /// Parses the fixed-width lower-case hexadecimal form; `None` for
            /// any other text (one value has exactly one spelling).
            #[must_use]
            pub fn parse(s: &str) -> Option<Self> {
                let canonical = s.len() == $digits
                    && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                if canonical { <$int>::from_str_radix(s, 16).ok().map(Self) } else { None }
            }
        }
        impl Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.collect_str(self) }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                Self::parse(&s).ok_or_else(|| serde::de::Error::custom(concat!("expected ", $digits, " lower-case hexadecimal digits")))
            }
        }
    };
}

hex_id!(
    /// Names one stream everywhere: origin incarnation (64 bit), lane (8),
    /// counter (56). Minted by the origin when OPEN is queued, used once.
    Cid(u128), 32);
hex_id!(
    /// One run of a hub process (random, drawn at start).
    Incarnation(u64), 16);
hex_id!(
    /// One run of an agent process (random, drawn at start).
    Instance(u64), 16);
hex_id!(
    /// Distinguishes two claims that were granted the same epoch (O3).
    Nonce(u64), 16);
hex_id!(
    /// Names one session, chosen by the acceptor.
    SessionId(u128), 32);
hex_id!(
    /// Identifies one claim over its retries (O5).
    ClaimId(u128), 32);

/// Largest counter in a cid (56 bit).
pub const CID_COUNTER_MAX: u64 = (1 << 56) - 1;

impl Cid {
    /// Assembles a cid; `counter` is truncated to 56 bit by the caller's care
    /// (2^56 opens at a million a second are 2,283 years).
    #[must_use]
    pub fn new(incarnation: Incarnation, lane: u8, counter: u64) -> Self {
        debug_assert!(counter <= CID_COUNTER_MAX);
        Self((u128::from(incarnation.0) << 64) | (u128::from(lane) << 56) | u128::from(counter & CID_COUNTER_MAX))
    }

    /// The origin hub's run.
    #[must_use]
    pub const fn incarnation(self) -> Incarnation {
        Incarnation((self.0 >> 64) as u64)
    }

    /// The lane: OPENs of one lane leave in mint order.
    #[must_use]
    pub const fn lane(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// Position in the lane, from 1.
    #[must_use]
    pub const fn counter(self) -> u64 {
        (self.0 as u64) & CID_COUNTER_MAX
    }
}

/// Fencing token of an attachment; higher is newer. Decimal text on v1 wires
/// because JSON numbers lose bits above 2^53 (planted bug 11).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({})", self.0)
    }
}
impl Epoch {
    /// Parses canonical decimal text: no sign, no leading zero, at most 20 digits.
    #[must_use]
    pub fn parse(s: &str) -> Option<Self> {
        let canonical = s == "0" || (!s.is_empty() && !s.starts_with('0') && s.bytes().all(|b| b.is_ascii_digit()));
        if canonical { s.parse().ok().map(Self) } else { None }
    }
}
impl Serialize for Epoch {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        Self::parse(&s).ok_or_else(|| serde::de::Error::custom("expected a decimal number in a string"))
    }
}

/// What an attachment is fenced by. OPEN and RESUME must name exactly the
/// attachment's pair (O4); equality, not order, is the test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The attachment's epoch.
    pub epoch: Epoch,
    /// The nonce of the claim that was granted it.
    pub nonce: Nonce,
}

/// 128 or 256 secret bits; never shown by `Debug`. Hexadecimal on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<const N: usize> Secret<N> {
    /// Lower-case hexadecimal form.
    #[must_use]
    pub fn to_hex(&self) -> String {
        use fmt::Write as _;
        self.0.iter().fold(String::with_capacity(N * 2), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
    }

    /// Parses exactly `2 * N` lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(s: &str) -> Option<Self> {
        let digits = s.as_bytes();
        if digits.len() != N * 2 {
            return None;
        }
        let nibble = |b: u8| match b {
            b'0'..=b'9' => Some(b - b'0'),
            b'a'..=b'f' => Some(b - b'a' + 10),
            _ => None,
        };
        let mut out = [0; N];
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (nibble(*pair.first()?)? << 4) | nibble(*pair.get(1)?)?;
        }
        Some(Self(out))
    }
}
impl<const N: usize> Serialize for Secret<N> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.to_hex())
    }
}
impl<'de, const N: usize> Deserialize<'de> for Secret<N> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        Self::parse(&s).ok_or_else(|| serde::de::Error::custom("expected lower-case hexadecimal digits"))
    }
}

macro_rules! local_key {
    ($($(#[$doc:meta])* $t:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $t {
            /// Index in its slab.
            pub ix: u32,
            /// Generation: a key outlives its entry harmlessly (C5).
            pub generation: u32,
        }
        impl crate::slots::Key for $t {
            fn new(ix: u32, generation: u32) -> Self { Self { ix, generation } }
            fn ix(self) -> u32 { self.ix }
            fn generation(self) -> u32 { self.generation }
        }
    )*};
}
local_key!(
    /// A session of this node; a new session gets a new generation.
    SessionKey,
    /// A stream of this node. Opaque outside of it; a hub's key also says which
    /// shard has the stream, see [`StreamKey::in_shard`].
    StreamKey,
    /// A WebSocket connection, minted by the driver.
    ConnKey,
    /// A client or target TCP connection, minted by the driver.
    SockKey
);

/// Low bits of a stream key's index that count inside its shard; the others
/// number the shard.
const STREAM_IX_BITS: u32 = 29;

/// Shards one hub may be split into: what the key of a stream can tell apart.
pub const SHARDS_MAX: u8 = 1 << (u32::BITS - STREAM_IX_BITS);

impl StreamKey {
    /// A shard's own key as the hub shows it, so that keys of different shards
    /// never collide. Shard 0 changes nothing: a whole hub's keys are its
    /// shard's own. No limit allows 2^29 streams in one shard.
    #[must_use]
    pub const fn in_shard(self, shard: u8) -> Self {
        debug_assert!(self.ix >> STREAM_IX_BITS == 0 && shard < SHARDS_MAX);
        Self { ix: self.ix | ((shard as u32) << STREAM_IX_BITS), generation: self.generation }
    }

    /// Which shard has the stream, and its key there.
    #[must_use]
    pub const fn parts(self) -> (u8, Self) {
        let ix = self.ix & ((1 << STREAM_IX_BITS) - 1);
        ((self.ix >> STREAM_IX_BITS) as u8, Self { ix, generation: self.generation })
    }
}

const _: () = assert!(size_of::<StreamKey>() == 8);

/// Which configured peer (hub: a mesh peer; agent: a hub) a dial goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetIx(pub u16);

/// Which configured listener accepted a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerIx(pub u16);
