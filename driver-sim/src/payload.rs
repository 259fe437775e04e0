//! Self-describing payload: byte k of a direction of a stream is a function of
//! (stream, direction, k), so the first wrong byte is seen when it arrives,
//! without a copy of what was sent, and tells where it came from (S1, I1).
//!
//! Word w of a direction is a permutation of (stream, direction, w): inverting
//! it names the origin of any eight bytes in a row.

use bytes::Bytes;

use crate::tape::mix;

/// A direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Half {
    /// Number of the client in the plan.
    pub client: u32,
    /// From the client to the target.
    pub up: bool,
}

/// Bits of a word's index; the rest names the direction.
const INDEX_BITS: u32 = 36;
/// Keeps the words of direction 0 from being small numbers.
const SALT: u64 = 0x5bd1_e995_0000_0000;

const fn word(half: Half, index: u64) -> u64 {
    mix((((half.client as u64) << 1 | half.up as u64) << INDEX_BITS | index) ^ SALT)
}

/// Undoes `z ^ (z >> by)`.
const fn unshift(z: u64, by: u32) -> u64 {
    let mut x = z;
    let mut done = by;
    while done < 64 {
        x = z ^ (x >> by);
        done += by;
    }
    x
}

/// The inverse of [`mix`].
const fn unmix(z: u64) -> u64 {
    let z = unshift(z, 31).wrapping_mul(0x3196_42b2_d24d_8ec3);
    let z = unshift(z, 27).wrapping_mul(0x96de_1b17_3f11_9089);
    unshift(z, 30).wrapping_sub(0x9e37_79b9_7f4a_7c15)
}

/// `len` bytes of a direction from `offset` on.
#[must_use]
pub(crate) fn cut(half: Half, offset: u64, len: usize) -> Bytes {
    let skip = (offset % 8) as usize;
    let mut buf = vec![0; (len + skip).next_multiple_of(8)];
    for (eight, index) in buf.as_chunks_mut().0.iter_mut().zip(offset / 8..) {
        *eight = word(half, index).to_le_bytes();
    }
    buf.truncate(len + skip);
    Bytes::from(buf).slice(skip..)
}

/// Whether `bytes` are what a direction holds at `offset`.
///
/// # Errors
/// With a text that names the first wrong byte and where it comes from.
pub(crate) fn check(half: Half, offset: u64, bytes: &[u8]) -> Result<(), String> {
    if holds(half, offset, bytes) {
        return Ok(());
    }
    let all = cut(half, offset, bytes.len());
    let wrong = all.iter().zip(bytes).position(|(want, is)| want != is).unwrap_or(0);
    let tail = bytes.get(wrong..).unwrap_or(&[]);
    Err(format!("byte {} is wrong; what came {}", offset + wrong as u64, origin(tail)))
}

/// The same as a yes or no: every byte is looked at, whole words at a time.
fn holds(half: Half, offset: u64, bytes: &[u8]) -> bool {
    let lead = (offset.next_multiple_of(8) - offset) as usize;
    let (first, rest) = bytes.split_at(lead.min(bytes.len()));
    let (words, last) = rest.as_chunks::<8>();
    let index = offset.div_ceil(8);
    let part = |at: u64, bytes: &[u8]| {
        let skip = (at % 8) as usize;
        word(half, at / 8).to_le_bytes().get(skip..skip + bytes.len()) == Some(bytes)
    };
    let differing = |(eight, index): (&[u8; 8], u64)| u64::from_le_bytes(*eight) ^ word(half, index);
    part(offset, first)
        && words.iter().zip(index..).map(differing).fold(0, |all, one| all | one) == 0
        && part((index + words.len() as u64) * 8, last)
}

/// Where bytes were cut from, in words.
fn origin(tail: &[u8]) -> String {
    // The first whole word of the tail begins at one of eight places.
    for lead in 0..8 {
        let Some(eight) = tail.get(lead..lead + 8).and_then(|b| <[u8; 8]>::try_from(b).ok()) else { break };
        let name = unmix(u64::from_le_bytes(eight)) ^ SALT;
        let (index, direction) = (name & ((1 << INDEX_BITS) - 1), name >> INDEX_BITS);
        if direction < 1 << 16 && index < 1 << 30 {
            let first = (index * 8).saturating_sub(lead as u64);
            let way = if direction & 1 == 1 { "up" } else { "down" };
            return format!("is byte {first} of client {} {way}", direction >> 1);
        }
    }
    if tail.len() < 15 {
        return "is too short to be traced".to_owned();
    }
    "belongs to no stream".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Half = Half { client: 3, up: true };
    const B: Half = Half { client: 4, up: false };

    #[test]
    fn pieces_join_wherever_they_are_cut() {
        let whole = cut(A, 0, 300);
        for at in 0..40 {
            for len in 0..30 {
                assert_eq!(cut(A, at as u64, len), whole.slice(at..at + len));
                assert_eq!(check(A, at as u64, &whole.slice(at..at + len)), Ok(()));
            }
        }
    }

    #[test]
    fn every_byte_counts() {
        for (offset, len) in [(0, 40), (3, 29), (5, 3), (8, 8), (7, 1), (1, 7), (13, 64)] {
            let whole = cut(A, offset, len);
            for at in 0..len {
                let mut bytes = whole.to_vec();
                bytes[at] ^= 1;
                let e = check(A, offset, &bytes).expect_err("one bit is wrong");
                assert!(e.starts_with(&format!("byte {} is wrong", offset + at as u64)), "{e}");
            }
        }
    }

    #[test]
    fn a_wrong_byte_tells_where_it_came_from() {
        for at in 0..16 {
            let e = check(A, 100, &cut(B, at, 50)).expect_err("another stream's bytes");
            assert!(e.contains("byte 100 is wrong") && e.contains(&format!("byte {at} of client 4 down")), "{e}");
        }
        let mut twice = cut(A, 100, 8).to_vec();
        twice.extend_from_slice(&cut(A, 100, 40));
        let e = check(A, 100, &twice).expect_err("bytes again");
        assert!(e.contains("byte 108 is wrong") && e.contains("byte 100 of client 3 up"), "{e}");
        let e = check(A, 0, &[0; 20]).expect_err("nobody's bytes");
        assert!(e.contains("no stream"), "{e}");
    }
}
