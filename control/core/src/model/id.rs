//! Names that are said over and over: a large table has each of them in memory once.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::HashSet,
    fmt,
    hash::{Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

/// An id, of a node, network, service or task. A copy is a pointer to the same text.
#[derive(Clone)]
pub struct Id(Arc<str>);

impl Id {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Id {
    fn default() -> Self {
        Self::from("")
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Id {}

/// The text's, as maps that are asked for a text need it.
impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// That of the texts. Versions of a table share theirs, so that walking along two of them rarely looks at a text.
impl Ord for Id {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for Id {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Deref for Id {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Comparison, order and hash are the text's, so that maps find it by its text.
impl Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Id {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl From<&str> for Id {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Id {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&String> for Id {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.as_str().to_owned()
    }
}

impl From<&Id> for String {
    fn from(id: &Id) -> Self {
        id.as_str().to_owned()
    }
}

impl PartialEq<str> for Id {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for Id {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

impl PartialEq<String> for Id {
    fn eq(&self, other: &String) -> bool {
        &*self.0 == other.as_str()
    }
}

impl PartialEq<Id> for String {
    fn eq(&self, other: &Id) -> bool {
        self.as_str() == &*other.0
    }
}

impl PartialEq<Id> for str {
    fn eq(&self, other: &Id) -> bool {
        self == &*other.0
    }
}

/// Ids while a table is read: the same text is the same [`Id`].
#[derive(Debug, Default)]
pub struct Ids(HashSet<Id>);

impl Ids {
    /// The one with this text.
    pub fn get(&mut self, text: &str) -> Id {
        match self.0.get(text) {
            Some(id) => id.clone(),
            None => {
                let id = Id::from(text);
                self.0.insert(id.clone());
                id
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn compares_as_its_text(a in "[a-c]{0,3}", b in "[a-c]{0,3}") {
            let mut ids = Ids::default();
            for (left, right) in [(Id::from(&a), Id::from(&b)), (ids.get(&a), ids.get(&b))] {
                prop_assert_eq!(left.cmp(&right), a.cmp(&b));
                prop_assert_eq!(left == right, a == b);
                prop_assert_eq!(left.cmp(&left.clone()), Ordering::Equal);
            }
        }
    }

    #[test]
    fn the_same_text_is_there_once() {
        let mut ids = Ids::default();
        let (a, b, other) = (ids.get("n1"), ids.get("n1"), ids.get("n2"));
        assert!(Arc::ptr_eq(&a.0, &b.0) && !Arc::ptr_eq(&a.0, &other.0));
    }
}
