//! Which server of a Redis Cluster holds a key: the slot of a key's name, and
//! the map from slots to servers as a node tells it. Plain data.
//!
//! Keeps: nothing a node says makes a map that is larger than a cluster can be;
//! what is not exactly an answer to CLUSTER SLOTS is no map.
//!
//! Must not know: connections.

use redis::Value;

/// Slots of a cluster.
const SLOTS: u16 = 16_384;
/// Most ranges of slots in a map.
const RANGES_MAX: usize = 4096;
/// Longest name of a host.
const HOST_MAX_BYTES: usize = 255;

/// The slot of a key: of the part between the first braces, if there is one.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    crc16(hashed.as_bytes()) % SLOTS
}

/// CRC-16/XMODEM, as Redis Cluster specifies it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ (u16::from(*byte) << 8),
            |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 },
        )
    })
}

/// Ranges of slots and the address of their master, in order of slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotMap(Vec<(u16, u16, String)>);

impl SlotMap {
    /// Reads an answer to CLUSTER SLOTS. `asked` is the host that gave it: a
    /// node that does not know its own address leaves it out.
    pub(super) fn read(answer: &Value, asked: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected ranges of slots with their servers";
        let Value::Array(ranges) = answer else { return Err(EXPECTED) };
        if ranges.len() > RANGES_MAX {
            return Err("more ranges of slots than a cluster can have");
        }
        let mut map = Vec::with_capacity(ranges.len());
        for range in ranges {
            let Value::Array(parts) = range else { return Err(EXPECTED) };
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &**parts else {
                return Err(EXPECTED);
            };
            let [host, Value::Int(port), ..] = &**master else { return Err(EXPECTED) };
            let host = if let Value::BulkString(host) = host {
                std::str::from_utf8(host).map_err(|_| EXPECTED)?
            } else if let Value::SimpleString(host) = host {
                host
            } else if *host == Value::Nil {
                ""
            } else {
                return Err(EXPECTED);
            };
            let number = |n: &i64| u16::try_from(*n).map_err(|_| EXPECTED);
            map.push((number(first)?, number(last)?, address(host, number(port)?, asked)?));
        }
        map.sort_unstable();
        let in_order = map.iter().all(|(first, last, _)| first <= last && *last < SLOTS)
            && map.windows(2).all(|w| matches!(w, [(_, last, _), (first, ..)] if last < first));
        if map.is_empty() || !in_order {
            return Err(EXPECTED);
        }
        Ok(Self(map))
    }

    /// Who holds a slot.
    pub(super) fn holder(&self, slot: u16) -> Option<&str> {
        let ix = self.0.partition_point(|(_, last, _)| *last < slot);
        self.0.get(ix).filter(|(first, ..)| *first <= slot).map(|(.., address)| &**address)
    }

    /// Whether every slot has a holder.
    pub(super) fn is_whole(&self) -> bool {
        self.0.iter().map(|(first, last, _)| u32::from(last - first) + 1).sum::<u32>() == u32::from(SLOTS)
    }

    /// The masters, each once.
    pub(super) fn masters(&self) -> std::collections::BTreeSet<&str> {
        self.0.iter().map(|(.., address)| &**address).collect()
    }
}

/// `HOST:PORT`; the host is `asked` when a node leaves it out.
fn address(host: &str, port: u16, asked: &str) -> Result<String, &'static str> {
    let host = if host.is_empty() || host == "?" { asked } else { host };
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_%".contains(c);
    if host.len() > HOST_MAX_BYTES || host.is_empty() || port == 0 || !host.chars().all(plain) {
        return Err("expected the address of each server");
    }
    Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

/// Where a MOVED or ASK points to, in the form of [`SlotMap`]. `asked` is the
/// address of the server that said so.
pub(super) fn redirection(target: &str, asked: &str) -> Option<String> {
    let (host, port) = target.rsplit_once(':')?;
    let (asked, _) = asked.rsplit_once(':')?;
    let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
    address(&bare(host), port.parse().ok()?, &bare(asked)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let node = |host, port| Value::Array(vec![host, Value::Int(port), bulk("id"), Value::Array(vec![])]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node(host, port), node(bulk("replica"), 1)])
    }

    /// The numbers of the cluster specification and of CLUSTER KEYSLOT.
    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, expected) in [
            ("", 0),
            ("foo", 12_182),
            ("{user1000}.following", slot("{user1000}.followers")),
            ("foo{}{bar}", crc16(b"foo{}{bar}") % SLOTS),
            ("foo{{bar}}zap", slot("{bar")),
            ("foo{bar}{zap}", slot("bar")),
            ("{open", crc16(b"{open") % SLOTS),
        ] {
            assert_eq!(slot(key), expected, "{key}");
        }
    }

    #[test]
    fn a_map_says_who_holds_what() {
        let answer = Value::Array(vec![
            range(8000, 16_383, bulk("10.0.0.2"), 6380),
            range(0, 99, bulk(""), 6379),
            range(200, 7999, Value::Nil, 6379),
        ]);
        let map = SlotMap::read(&answer, "::1").unwrap();
        for (slot, holder) in [
            (0, Some("[::1]:6379")),
            (99, Some("[::1]:6379")),
            (100, None),
            (199, None),
            (7999, Some("[::1]:6379")),
            (16_383, Some("10.0.0.2:6380")),
        ] {
            assert_eq!(map.holder(slot), holder, "{slot}");
        }
        assert!(!map.is_whole());
        assert_eq!(map.masters().len(), 2);
        let whole = Value::Array(vec![range(0, 16_383, bulk("a"), 1)]);
        assert!(SlotMap::read(&whole, "b").unwrap().is_whole());
    }

    #[test]
    fn other_answers_are_no_map() {
        for bad in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(5, 4, bulk("a"), 1)]),
            Value::Array(vec![range(0, 16_384, bulk("a"), 1)]),
            Value::Array(vec![range(-1, 5, bulk("a"), 1)]),
            Value::Array(vec![range(0, 5, bulk("a"), 0)]),
            Value::Array(vec![range(0, 5, bulk("a"), 70_000)]),
            Value::Array(vec![range(0, 5, bulk("user:pw@a/"), 1)]),
            Value::Array(vec![range(0, 5, bulk("a"), 1), range(5, 9, bulk("b"), 1)]),
            Value::Array(vec![range(0, 5, bulk("a"), 1); RANGES_MAX + 1]),
        ] {
            assert!(SlotMap::read(&bad, "asked").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn redirections_name_a_server() {
        for (target, expected) in [
            ("127.0.0.1:6381", Some("127.0.0.1:6381")),
            (":6381", Some("[::1]:6381")),
            ("::2:6381", Some("[::2]:6381")),
            ("host", None),
            ("a@b:1", None),
        ] {
            assert_eq!(redirection(target, "[::1]:6379").as_deref(), expected, "{target}");
        }
    }
}
