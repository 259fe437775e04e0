//! A map whose values have a deadline: lookup by key, and the earliest deadline
//! without a walk (C3). Keeps B9 together with its owner: a removed value has
//! no deadline left. Knows nothing of what it holds.

use std::collections::{BTreeMap, BTreeSet};

use crate::time::Instant;

/// Values by key, each due at an instant that is fixed when it is inserted.
#[derive(Debug)]
pub(crate) struct Due<K, V> {
    values: BTreeMap<K, (Instant, V)>,
    order: BTreeSet<(Instant, K)>,
}

impl<K, V> Default for Due<K, V> {
    fn default() -> Self {
        Self { values: BTreeMap::new(), order: BTreeSet::new() }
    }
}

impl<K: Clone + Ord, V> Due<K, V> {
    pub(crate) fn insert(&mut self, key: K, at: Instant, value: V) {
        let order = key.clone();
        if let Some((old, _)) = self.values.insert(order, (at, value)) {
            self.order.remove(&(old, key.clone()));
        }
        self.order.insert((at, key));
    }

    pub(crate) fn get(&self, key: K) -> Option<&V> {
        self.values.get(&key).map(|(_, v)| v)
    }

    /// When a key is due.
    pub(crate) fn at(&self, key: &K) -> Option<Instant> {
        self.values.get(key).map(|(at, _)| *at)
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        self.values.get_mut(&key).map(|(_, v)| v)
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        let (at, value) = self.values.remove(&key)?;
        self.order.remove(&(at, key));
        Some(value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.values.iter().map(|(k, (_, v))| (k, v))
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// A key whose deadline is not after `now`.
    pub(crate) fn late(&self, now: Instant) -> Option<K> {
        self.order.first().filter(|(at, _)| *at <= now).map(|(_, k)| k.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_is_known_and_goes_with_its_value() {
        let mut d: Due<u32, &str> = Due::default();
        let at = Instant::from_nanos;
        d.insert(1, at(20), "a");
        d.insert(2, at(10), "b");
        d.insert(2, at(30), "c");
        assert_eq!((d.next(), d.late(at(19)), d.late(at(20))), (Some(at(20)), None, Some(1)));
        assert_eq!(d.remove(1), Some("a"));
        assert_eq!((d.next(), d.get(2).copied(), d.len()), (Some(at(30)), Some("c"), 1));
        assert_eq!(d.remove(2), Some("c"));
        assert_eq!((d.next(), d.len()), (None, 0));
    }
}
