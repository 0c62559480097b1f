//! Places that are limited: so many connections per node, so many handshakes per address.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// A limited number of places per key.
#[derive(Clone, Debug)]
pub struct Places {
    taken: Arc<Mutex<BTreeMap<String, usize>>>,
    each: usize,
    all: usize,
}

/// One of them; given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Places,
    key: String,
}

impl Places {
    /// `each` per key, `all` together.
    pub fn new(each: usize, all: usize) -> Self {
        Self { taken: Arc::default(), each, all }
    }

    /// A place for `key`, if there is one.
    pub fn take(&self, key: impl Into<String>) -> Option<Place> {
        let key = key.into();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= self.all {
            return None;
        }
        let count = taken.entry(key.clone()).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), key })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_given_back() {
        let places = Places::new(2, 3);
        let first = places.take("a").unwrap();
        let _second = places.take("a").unwrap();
        assert!(places.take("a").is_none(), "per key");
        let _third = places.take("b").unwrap();
        assert!(places.take("c").is_none(), "together");
        drop(first);
        assert!(places.take("a").is_some());
    }
}
