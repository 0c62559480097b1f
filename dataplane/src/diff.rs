//! What must be written and removed so that a table holds what it should.

use std::collections::BTreeMap;

/// The difference between what is and what should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diff<K, V> {
    /// Entries to write. The flag says that the key is new.
    pub(crate) put: Vec<(K, V, bool)>,
    /// Keys to remove.
    pub(crate) remove: Vec<K>,
}

/// Computes the difference, in order of keys.
pub(crate) fn diff<K: Ord + Copy, V: PartialEq + Copy>(have: &BTreeMap<K, V>, want: &BTreeMap<K, V>) -> Diff<K, V> {
    let put = want
        .iter()
        .filter_map(|(key, value)| match have.get(key) {
            Some(old) if old == value => None,
            old => Some((*key, *value, old.is_none())),
        })
        .collect();
    let remove = have.keys().filter(|key| !want.contains_key(key)).copied().collect();
    Diff { put, remove }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Map = BTreeMap<u8, u8>;

    fn applied(mut have: Map, diff: &Diff<u8, u8>) -> Map {
        for (key, value, new) in &diff.put {
            assert_eq!(have.insert(*key, *value).is_none(), *new);
        }
        for key in &diff.remove {
            assert!(have.remove(key).is_some());
        }
        have
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_what_is_wanted(have: Map, want: Map) {
            let after = applied(have.clone(), &diff(&have, &want));
            prop_assert_eq!(&after, &want);
            prop_assert_eq!(diff(&after, &want), Diff { put: vec![], remove: vec![] });
        }
    }
}
