//! Two maps side by side.

use std::{cmp::Ordering, collections::BTreeMap};

/// All keys of both maps in order, with what each of them has there. One walk along both.
pub(crate) fn joined<'a, K: Ord, A, B>(
    left: &'a BTreeMap<K, A>,
    right: &'a BTreeMap<K, B>,
) -> impl Iterator<Item = (&'a K, Option<&'a A>, Option<&'a B>)> {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (left.peek(), right.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        let first = (order != Ordering::Greater).then(|| left.next()).flatten();
        let second = (order != Ordering::Less).then(|| right.next()).flatten();
        let key = first.map(|(key, _)| key).or(second.map(|(key, _)| key))?;
        Some((key, first.map(|(_, value)| value), second.map(|(_, value)| value)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn everything_once_and_in_order(left: BTreeMap<u8, u8>, right: BTreeMap<u8, u8>) {
            let found: Vec<_> = joined(&left, &right).map(|(key, a, b)| (*key, a.copied(), b.copied())).collect();
            let keys: std::collections::BTreeSet<u8> = left.keys().chain(right.keys()).copied().collect();
            let want: Vec<_> =
                keys.into_iter().map(|key| (key, left.get(&key).copied(), right.get(&key).copied())).collect();
            prop_assert_eq!(found, want);
        }
    }
}
