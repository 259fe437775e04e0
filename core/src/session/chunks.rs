//! The parts of one message, held twice: by the replay queue until they are
//! acknowledged and by the driver until they are written. Up to four are held
//! in place, so that a small message asks for no memory; more are shared, so
//! that the second holder costs one count and not one for each part.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

/// Parts held in place.
const IN_PLACE: usize = 4;

/// Parts in the order in which they are written.
#[derive(Clone, Debug)]
pub struct Chunks(Held);

#[derive(Clone, Debug)]
enum Held {
    InPlace(SmallVec<[Bytes; IN_PLACE]>),
    Shared(Arc<[Bytes]>),
}

impl Chunks {
    /// Takes all of `parts`, whose room stays for the next message.
    pub(super) fn take(parts: &mut Vec<Bytes>) -> Self {
        let all = parts.drain(..);
        Self(if all.len() <= IN_PLACE { Held::InPlace(all.collect()) } else { Held::Shared(all.collect()) })
    }
}

impl Default for Chunks {
    fn default() -> Self {
        Self(Held::InPlace(SmallVec::new()))
    }
}

impl From<Bytes> for Chunks {
    fn from(only: Bytes) -> Self {
        Self(Held::InPlace(smallvec::smallvec![only]))
    }
}

impl Deref for Chunks {
    type Target = [Bytes];

    fn deref(&self) -> &[Bytes] {
        match &self.0 {
            Held::InPlace(parts) => parts,
            Held::Shared(parts) => parts,
        }
    }
}

impl IntoIterator for Chunks {
    type Item = Bytes;
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter(match self.0 {
            Held::InPlace(parts) => Rest::InPlace(parts.into_iter()),
            Held::Shared(parts) => Rest::Shared(parts, 0),
        })
    }
}

/// The parts that are left.
#[derive(Debug)]
pub struct IntoIter(Rest);

#[derive(Debug)]
enum Rest {
    InPlace(smallvec::IntoIter<[Bytes; IN_PLACE]>),
    Shared(Arc<[Bytes]>, usize),
}

impl Iterator for IntoIter {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        match &mut self.0 {
            Rest::InPlace(parts) => parts.next(),
            Rest::Shared(parts, at) => {
                let part = parts.get(*at)?;
                *at += 1;
                Some(part.clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_out_in_their_order_however_they_are_held() {
        for n in 0..12_u8 {
            let mut parts: Vec<Bytes> = (0..n).map(|i| Bytes::copy_from_slice(&[i])).collect();
            let want = parts.clone();
            let chunks = Chunks::take(&mut parts);
            assert!(parts.is_empty());
            assert_eq!(*chunks, *want);
            assert_eq!(chunks.clone().into_iter().collect::<Vec<_>>(), want);
        }
    }
}
