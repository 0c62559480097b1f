//! A small map by network id: most tasks are on one network or two, and there are many tasks. A `BTreeMap` takes 400
//! bytes for its first entry.

use super::Id;

/// Values by network id, in order of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByNetwork<V>(Vec<(Id, V)>);

impl<V> Default for ByNetwork<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> ByNetwork<V> {
    fn place(&self, network: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(id, _)| id.as_str().cmp(network))
    }

    /// The value on a network.
    pub fn get(&self, network: &str) -> Option<&V> {
        self.place(network).ok().map(|index| &self.0[index].1)
    }

    /// Whether there is one.
    pub fn contains_key(&self, network: &str) -> bool {
        self.place(network).is_ok()
    }

    /// Sets the value on a network; returns the one before.
    pub fn insert(&mut self, network: Id, value: V) -> Option<V> {
        match self.place(&network) {
            Ok(index) => Some(std::mem::replace(&mut self.0[index].1, value)),
            Err(index) => {
                self.0.insert(index, (network, value));
                None
            }
        }
    }

    /// Keeps those for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&Id, &mut V) -> bool) {
        self.0.retain_mut(|(network, value)| keep(network, value));
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Id, &V)> {
        self.0.iter().map(|(network, value)| (network, value))
    }

    /// Ids of the networks.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Id> {
        self.0.iter().map(|(network, _)| network)
    }

    /// The values.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    /// The values.
    pub fn values_mut(&mut self) -> impl ExactSizeIterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes all of them out.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<V> std::ops::Index<&str> for ByNetwork<V> {
    type Output = V;

    /// Panics when there is none, as maps do.
    fn index(&self, network: &str) -> &V {
        self.get(network).expect("no value on this network")
    }
}

/// Of several values for a network the last one counts.
impl<V> FromIterator<(Id, V)> for ByNetwork<V> {
    fn from_iter<I: IntoIterator<Item = (Id, V)>>(items: I) -> Self {
        let mut this = Self::default();
        items.into_iter().for_each(|(network, value)| drop(this.insert(network, value)));
        this.0.shrink_to_fit();
        this
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{ByNetwork, Id};

    proptest! {
        #[test]
        fn is_a_map(items: Vec<(String, u8)>, other in "[a-c]{0,2}") {
            let items: Vec<(Id, u8)> = items.into_iter().map(|(network, value)| (network.into(), value)).collect();
            let (small, map): (ByNetwork<u8>, BTreeMap<Id, u8>) =
                (items.iter().cloned().collect(), items.into_iter().collect());
            prop_assert!(small.iter().eq(map.iter()) && small.keys().eq(map.keys()) && small.values().eq(map.values()));
            prop_assert_eq!((small.len(), small.is_empty()), (map.len(), map.is_empty()));
            for network in map.keys().chain([&Id::from(other)]) {
                prop_assert_eq!((small.get(network), small.contains_key(network)), (map.get(network), map.contains_key(network)));
            }
            let (mut small, mut map) = (small, map);
            small.retain(|network, value| network.len() % 2 == usize::from(*value % 2));
            map.retain(|network, value| network.len() % 2 == usize::from(*value % 2));
            prop_assert!(small.iter().eq(map.iter()));
        }
    }
}
