//! What an `apply` did.

use std::collections::BTreeMap;

use crate::MapName;

/// Entries of one map that were written or removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// New entries.
    pub inserted: usize,
    /// Entries with another value than before.
    pub updated: usize,
    /// Entries that are gone.
    pub removed: usize,
}

impl Delta {
    /// Whether anything changed.
    pub const fn is_empty(&self) -> bool {
        self.inserted == 0 && self.updated == 0 && self.removed == 0
    }
}

/// One item that could not be written or removed; the rest was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In which map.
    pub map: MapName,
    /// Which entry.
    pub item: String,
    /// Why, and what to do about it.
    pub error: String,
}

/// What one `apply` did. Nothing, if the maps were as they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// By map; maps without changes are left out. For `SETS` one unit is one backend set, for `BACKENDS` one slot.
    pub maps: BTreeMap<MapName, Delta>,
    /// What could not be done. Try again later.
    pub failures: Vec<Failure>,
}

impl Changes {
    /// Whether nothing had to be done and nothing failed.
    pub fn is_empty(&self) -> bool {
        self.maps.is_empty() && self.failures.is_empty()
    }

    pub(crate) fn count(&mut self, map: MapName, delta: Delta) {
        if !delta.is_empty() {
            let sum = self.maps.entry(map).or_default();
            sum.inserted += delta.inserted;
            sum.updated += delta.updated;
            sum.removed += delta.removed;
        }
    }

    pub(crate) fn fail(&mut self, map: MapName, item: impl std::fmt::Debug, error: impl std::fmt::Display) {
        self.failures.push(Failure { map, item: format!("{item:?}"), error: error.to_string() });
    }
}
