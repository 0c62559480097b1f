//! What must be written and removed so that a table holds what it should: one walk along what is and what should be.

use std::collections::BTreeMap;

/// Entries in order of keys, each key once.
pub(crate) trait Sorted<K, V> {
    fn sorted(&self) -> impl Iterator<Item = (K, V)>;
}

impl<K: Copy, V: Copy> Sorted<K, V> for BTreeMap<K, V> {
    fn sorted(&self) -> impl Iterator<Item = (K, V)> {
        self.iter().map(|(key, value)| (*key, *value))
    }
}

/// Made with [`Table::read_sorted`](crate::table::Table::read_sorted).
impl<K: Copy, V: Copy> Sorted<K, V> for Vec<(K, V)> {
    fn sorted(&self) -> impl Iterator<Item = (K, V)> {
        self.iter().copied()
    }
}

/// The entries of a map whose values are so.
pub(crate) struct Part<'m, K, V, F>(pub(crate) &'m BTreeMap<K, V>, pub(crate) F);

impl<K: Copy, V: Copy, F: Fn(&V) -> bool> Sorted<K, V> for Part<'_, K, V, F> {
    fn sorted(&self) -> impl Iterator<Item = (K, V)> {
        self.0.sorted().filter(|(_, value)| self.1(value))
    }
}

/// Entries to write, in order of keys. The flag says that the key is new.
pub(crate) fn to_put<K: Ord + Copy, V: PartialEq + Copy>(
    have: impl Iterator<Item = (K, V)>,
    want: impl Iterator<Item = (K, V)>,
) -> Vec<(K, V, bool)> {
    let mut have = have.peekable();
    let differing = want.filter_map(|(key, value)| {
        while have.next_if(|(other, _)| *other < key).is_some() {}
        match have.next_if(|(other, _)| *other == key) {
            Some((_, old)) if old == value => None,
            old => Some((key, value, old.is_none())),
        }
    });
    differing.collect()
}

/// Keys to remove, in order.
pub(crate) fn to_remove<K: Ord + Copy, V>(have: impl Iterator<Item = (K, V)>, want: impl Iterator<Item = K>) -> Vec<K> {
    let mut want = want.peekable();
    let unwanted = have.map(|(key, _)| key).filter(|key| {
        while want.next_if(|other| other < key).is_some() {}
        want.peek() != Some(key)
    });
    unwanted.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Map = BTreeMap<u8, u8>;

    proptest! {
        #[test]
        fn applying_the_difference_gives_what_is_wanted(have: Map, want: Map) {
            let mut after = have.clone();
            let list: Vec<(u8, u8)> = have.sorted().collect();
            for (key, value, new) in to_put(list.sorted(), want.sorted()) {
                prop_assert!(have.get(&key) != Some(&value));
                prop_assert_eq!(after.insert(key, value).is_none(), new);
            }
            for key in to_remove(list.sorted(), want.keys().copied()) {
                prop_assert!(after.remove(&key).is_some());
            }
            prop_assert_eq!(&after, &want);
        }

        #[test]
        fn a_part_is_what_fulfils_the_condition(map: Map) {
            let even = |value: &u8| value.is_multiple_of(2);
            let part: Map = Part(&map, even).sorted().collect();
            let want: Map = map.into_iter().filter(|(_, value)| even(value)).collect();
            prop_assert_eq!(part, want);
        }
    }
}
