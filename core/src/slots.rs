//! A slab whose keys carry a generation: a stale key finds nothing (C5).

/// A key of a [`Slots`]: index and generation.
pub trait Key: Copy {
    /// Assembles a key.
    fn new(ix: u32, generation: u32) -> Self;
    /// The index.
    fn ix(self) -> u32;
    /// The generation.
    fn generation(self) -> u32;
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Slots of one page; full pages never move, so growing costs the same at any
/// size and holds no room for as many again.
const PAGE: usize = 256;

/// Generational slab. Freed slots are reused last-in first-out, so the order of
/// keys depends on the operations only.
#[derive(Debug)]
pub struct Slots<K, T> {
    pages: Vec<Vec<Slot<T>>>,
    free: Vec<u32>,
    live: usize,
    key: std::marker::PhantomData<K>,
}

impl<K, T> Default for Slots<K, T> {
    fn default() -> Self {
        Self { pages: Vec::new(), free: Vec::new(), live: 0, key: std::marker::PhantomData }
    }
}

impl<K: Key, T> Slots<K, T> {
    /// An empty slab.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many values are held.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.live
    }

    /// Whether nothing is held.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.live == 0
    }

    fn slot(&self, ix: u32) -> Option<&Slot<T>> {
        self.pages.get(ix as usize / PAGE)?.get(ix as usize % PAGE)
    }

    fn slot_mut(&mut self, ix: u32) -> Option<&mut Slot<T>> {
        self.pages.get_mut(ix as usize / PAGE)?.get_mut(ix as usize % PAGE)
    }

    /// Stores a value and returns its key.
    ///
    /// # Panics
    /// After 2^32 live values, which no limit here allows.
    pub fn insert(&mut self, value: T) -> K {
        self.live += 1;
        if let Some(ix) = self.free.pop()
            && let Some(slot) = self.slot_mut(ix)
        {
            slot.value = Some(value);
            return K::new(ix, slot.generation);
        }
        let ix = u32::try_from(self.high_index()).expect("fewer than 2^32 slots");
        let slot = Slot { generation: 0, value: Some(value) };
        match self.pages.last_mut() {
            Some(page) if page.len() < PAGE => page.push(slot),
            // The first page grows as it needs: most slabs stay small.
            None => self.pages.push(vec![slot]),
            Some(_) => {
                let mut page = Vec::with_capacity(PAGE);
                page.push(slot);
                self.pages.push(page);
            }
        }
        K::new(ix, 0)
    }

    /// The value under `key`, unless it was removed.
    #[must_use]
    pub fn get(&self, key: K) -> Option<&T> {
        let slot = self.slot(key.ix())?;
        if slot.generation == key.generation() { slot.value.as_ref() } else { None }
    }

    /// The value under `key`, unless it was removed.
    pub fn get_mut(&mut self, key: K) -> Option<&mut T> {
        let slot = self.slot_mut(key.ix())?;
        if slot.generation == key.generation() { slot.value.as_mut() } else { None }
    }

    /// Takes the value out; its key is stale from now on.
    pub fn remove(&mut self, key: K) -> Option<T> {
        let slot = self.slot_mut(key.ix())?;
        if slot.generation != key.generation() {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.ix());
        self.live -= 1;
        Some(value)
    }

    /// All values with their keys, in index order.
    pub fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        self.pages.iter().flatten().enumerate().filter_map(|(ix, s)| {
            let ix = u32::try_from(ix).ok()?;
            s.value.as_ref().map(|v| (K::new(ix, s.generation), v))
        })
    }

    /// All values with their keys, in index order, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (K, &mut T)> {
        self.pages.iter_mut().flatten().enumerate().filter_map(|(ix, s)| {
            let ix = u32::try_from(ix).ok()?;
            let generation = s.generation;
            s.value.as_mut().map(|v| (K::new(ix, generation), v))
        })
    }

    /// One past the highest index ever used; with [`Self::at`] it lets bulk
    /// work walk the slab in bounded steps (C3).
    #[must_use]
    pub fn high_index(&self) -> usize {
        self.pages.last().map_or(0, |last| (self.pages.len() - 1) * PAGE + last.len())
    }

    /// The entry at an index, if any.
    #[must_use]
    pub fn at(&self, ix: usize) -> Option<(K, &T)> {
        let ix = u32::try_from(ix).ok()?;
        let s = self.slot(ix)?;
        Some((K::new(ix, s.generation), s.value.as_ref()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::StreamKey;

    #[test]
    fn a_stale_key_finds_nothing_after_reuse() {
        let mut s: Slots<StreamKey, &str> = Slots::new();
        let a = s.insert("a");
        assert_eq!(s.remove(a), Some("a"));
        let b = s.insert("b");
        assert_eq!(a.ix, b.ix);
        assert_eq!(s.get(a), None);
        assert_eq!(s.remove(a), None);
        assert_eq!(s.get(b), Some(&"b"));
        assert_eq!(s.len(), 1);
    }

    #[test]
    fn indices_go_on_over_the_pages() {
        let mut s: Slots<StreamKey, usize> = Slots::new();
        let keys: Vec<StreamKey> = (0..3 * PAGE + 7).map(|n| s.insert(n)).collect();
        assert_eq!(s.high_index(), keys.len());
        for (n, key) in keys.iter().enumerate() {
            assert_eq!((key.ix as usize, s.get(*key)), (n, Some(&n)));
            assert_eq!(s.at(n), Some((*key, &n)));
        }
        assert!(s.iter().map(|(k, _)| k).eq(keys.iter().copied()));
        assert_eq!(s.remove(keys[PAGE]), Some(PAGE));
        assert_eq!(s.at(PAGE), None);
        assert_eq!(s.insert(0).ix as usize, PAGE);
    }
}
