//! Scalars of the configuration: how one is written, read and described.
//!
//! Every leaf of a file is kept as the text that was written, with its place,
//! and turned into its type only after `${VAR}` was substituted. So one pass
//! reports every bad value with its line, and a value that came from the
//! environment is never repeated in a message (attack 60).

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use nowconnect_core::config::{Mode, OnOutage, OpenRule};
use nowconnect_core::id::{AgentId, Name};
use nowconnect_core::wire::{Dialect, Plane};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

/// A place in the file, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

impl Place {
    pub(super) fn of(location: serde_saphyr::Location) -> Option<Self> {
        (location.line() > 0).then(|| Self { line: location.line(), column: location.column() })
    }
}

/// One scalar as written; `T` says what it will be read as.
#[derive(Clone)]
pub(super) struct Leaf<T> {
    pub(super) text: String,
    pub(super) at: Option<Place>,
    read_as: PhantomData<T>,
}

impl<T> Leaf<T> {
    pub(super) const fn new(text: String, at: Option<Place>) -> Self {
        Self { text, at, read_as: PhantomData }
    }
}

impl<'de, T> Deserialize<'de> for Leaf<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(d)?;
        Ok(Self::new(spanned.value, Place::of(spanned.referenced)))
    }
}

impl<T: Scalar> JsonSchema for Leaf<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let own = T::schema();
        if own.get("type").and_then(|t| t.as_str()) == Some("string") && own.get("pattern").is_none() {
            return own;
        }
        json_schema!({ "anyOf": [own, { "type": "string", "pattern": "\\$\\{" }] })
    }
}

/// A value with the place it stands at.
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: Option<Place>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(d)?;
        Ok(Self { value: spanned.value, at: Place::of(spanned.referenced) })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// What a scalar can be read as.
pub(super) trait Scalar: Sized {
    /// Whether the text may be repeated in a message.
    const SECRET: bool = false;
    /// Reads the text; the error says what was expected.
    fn read(text: &str) -> Result<Self, Cow<'static, str>>;
    /// The JSON Schema of its written form.
    fn schema() -> Schema;
}

fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, Cow<'static, str>> {
    choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        format!("expected {}", words.join(" or ")).into()
    })
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Scalar for $t {
            fn read(text: &str) -> Result<Self, Cow<'static, str>> {
                if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
                    text.parse().map_err(|_| format!("expected a whole number up to {}", Self::MAX).into())
                } else {
                    Err("expected a whole number in digits, without unit or sign".into())
                }
            }
            fn schema() -> Schema {
                json_schema!({ "type": "integer", "minimum": 0 })
            }
        }
    )*};
}
integers!(u16, u32, u64);

impl Scalar for bool {
    fn read(text: &str) -> Result<Self, Cow<'static, str>> {
        one_of(text, &[("true", true), ("false", false)])
    }
    fn schema() -> Schema {
        json_schema!({ "type": "boolean" })
    }
}

impl Scalar for String {
    fn read(text: &str) -> Result<Self, Cow<'static, str>> {
        if text.is_empty() { Err("expected some text, it is empty".into()) } else { Ok(text.to_owned()) }
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string" })
    }
}

impl Scalar for Duration {
    fn read(text: &str) -> Result<Self, Cow<'static, str>> {
        const EXPECTED: &str = "expected a duration such as 500ms, 30s, 2m or 24h";
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "" => return Err(format!("{EXPECTED}; the unit is missing").into()),
            _ => return Err(EXPECTED.into()),
        };
        let number: u64 = number.parse().map_err(|_| EXPECTED)?;
        number.checked_mul(millis).map(Self::from_millis).ok_or_else(|| EXPECTED.into())
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+(ms|s|m|h)$" })
    }
}

/// How a duration is written in messages.
pub(super) fn show_duration(d: Duration) -> String {
    let ms = d.as_millis();
    if ms.is_multiple_of(1000) { format!("{}s", ms / 1000) } else { format!("{ms}ms") }
}

/// A decimal fraction with up to three digits after the point, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Milli(pub(super) u32);

impl fmt::Display for Milli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

impl Scalar for Milli {
    fn read(text: &str) -> Result<Self, Cow<'static, str>> {
        const EXPECTED: &str = "expected a number with at most three decimals, such as 1.5";
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |s: &str| !s.is_empty() && s.len() <= 6 && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 3 {
            return Err(EXPECTED.into());
        }
        let whole: u32 = whole.parse().map_err(|_| EXPECTED)?;
        let part: u32 = format!("{part:0<3}").parse().map_err(|_| EXPECTED)?;
        Ok(Self(whole * 1000 + part))
    }
    fn schema() -> Schema {
        json_schema!({ "type": "number", "minimum": 0 })
    }
}

impl Scalar for SocketAddr {
    fn read(text: &str) -> Result<Self, Cow<'static, str>> {
        text.parse().map_err(|_| "expected IP:PORT, such as 0.0.0.0:8765 or '[::1]:8765'".into())
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string" })
    }
}

macro_rules! names {
    ($($t:ty),*) => {$(
        impl Scalar for $t {
            fn read(text: &str) -> Result<Self, Cow<'static, str>> {
                <$t>::new(text).map_err(|e| e.to_string().into())
            }
            fn schema() -> Schema {
                json_schema!({ "type": "string" })
            }
        }
    )*};
}
names!(Name, AgentId);

macro_rules! words {
    ($($t:ty { $($word:literal => $value:expr),* $(,)? })*) => {$(
        impl Scalar for $t {
            fn read(text: &str) -> Result<Self, Cow<'static, str>> {
                one_of(text, &[$(($word, $value)),*])
            }
            fn schema() -> Schema {
                json_schema!({ "enum": [$($word),*] })
            }
        }
    )*};
}

/// How TLS reaches the mesh port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListenTls {
    /// The hub ends TLS itself and asks for client certificates.
    Native,
    /// An ingress ends TLS and forwards plain HTTP.
    #[default]
    Ingress,
}

/// Which encodings a dialler offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// Both, v2 preferred.
    #[default]
    Auto,
    /// JSON text only: for the naked eye and for other implementations.
    V1,
    /// Binary only.
    V2,
}

impl Wire {
    /// The dialects of a plane, best first.
    #[must_use]
    pub fn dialects(self, plane: Plane) -> Vec<Dialect> {
        let [v2, v1] = Dialect::of(plane);
        match self {
            Self::Auto => vec![v2, v1],
            Self::V1 => vec![v1],
            Self::V2 => vec![v2],
        }
    }
}

/// What a listener does while nothing serves its connector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenUnavailable {
    /// It stops listening, so that a client's connect fails.
    #[default]
    Refuse,
    /// It accepts and resets.
    Reset,
}

/// What a check of a target does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckKind {
    /// Connects it over TCP.
    Tcp,
}

/// What happens to a live tunnel whose token ran out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum OnExpiry {
    #[default]
    Drain,
    Cut,
    Keep,
}

words! {
    Mode { "off" => Self::Off, "shadow" => Self::Shadow, "active" => Self::Active }
    OpenRule { "eager" => Self::Eager, "first-byte" => Self::FirstByte }
    ListenTls { "native" => Self::Native, "ingress" => Self::Ingress }
    Wire { "auto" => Self::Auto, "v1" => Self::V1, "v2" => Self::V2 }
    OnOutage { "refuse" => Self::Refuse, "cached" => Self::Cached }
    WhenUnavailable { "refuse" => Self::Refuse, "reset" => Self::Reset }
    CheckKind { "tcp" => Self::Tcp }
    OnExpiry { "drain" => Self::Drain, "cut" => Self::Cut, "keep" => Self::Keep }
    Algorithm {
        "HS256" => Self::HS256, "ES256" => Self::ES256, "RS256" => Self::RS256, "PS256" => Self::PS256, "EdDSA" => Self::EdDSA,
    }
}

/// An address range, `10.0.0.0/8` or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Whether `ip` lies in the range. An IPv4 client seen through a dual-stack
    /// socket (`::ffff:a.b.c.d`) is judged as IPv4, or an IPv4 range would
    /// silently shut everybody out.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        fn head(bits: u128, width: u32, prefix: u8) -> u128 {
            bits.checked_shr(width - u32::from(prefix)).unwrap_or(0)
        }
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                head(u128::from(net.to_bits()), 32, self.prefix) == head(u128::from(ip.to_bits()), 32, self.prefix)
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                head(net.to_bits(), 128, self.prefix) == head(ip.to_bits(), 128, self.prefix)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl Scalar for Cidr {
    fn read(text: &str) -> Result<Self, Cow<'static, str>> {
        const EXPECTED: &str = "expected an address range such as 10.0.0.0/8, 2001:db8::/32 or one IP address";
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(u16::read(prefix).map_err(|_| EXPECTED)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| EXPECTED)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(width);
        if prefix > width {
            return Err(EXPECTED.into());
        }
        let prefix = u8::try_from(prefix).map_err(|_| EXPECTED)?;
        Ok(Self { address, prefix })
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// Text that `Debug` does not show: a URL that may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself; never to be logged.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Scalar for Secret {
    const SECRET: bool = true;
    fn read(text: &str) -> Result<Self, Cow<'static, str>> {
        String::read(text).map(Self)
    }
    fn schema() -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [("500ms", 500), ("1s", 1000), ("2m", 120_000), ("24h", 86_400_000), ("0s", 0)] {
            assert_eq!(Duration::read(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "1", "1.5s", "-1s", "1 s", "1S", "99999999999999999999s", "18446744073709551615h"] {
            assert!(Duration::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn fractions() {
        for (text, milli) in [("1.5", 1500), ("0.3", 300), ("2", 2000), ("0.125", 125)] {
            assert_eq!(Milli::read(text), Ok(Milli(milli)), "{text}");
        }
        for text in ["", ".5", "1.", "1.2345", "-1", "1e3", "NaN", "1234567"] {
            assert!(Milli::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges() {
        for (range, ip, inside) in [
            ("10.0.0.0/8", "10.255.1.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "2001:db9::1", true),
        ] {
            let range = Cidr::read(range).unwrap();
            assert_eq!(range.contains(ip.parse().unwrap()), inside, "{range:?} {ip}");
        }
        for text in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "::/129", "host/8", "10.0.0.0/256"] {
            assert!(Cidr::read(text).is_err(), "{text}");
        }
    }
}
