//! A longest-prefix-match map of the data plane as a typed table.

use std::collections::BTreeMap;

use aya::maps::{LpmTrie, Map, MapData, lpm_trie::Key};

use crate::{
    MapName,
    pod::{Plain, Raw},
    table::{Entries, MapFault, absent_is_gone},
};

/// A trie with keys (prefix length in bits, `K`) and values `V`. Only the agent writes it.
pub(crate) struct Trie<K, V> {
    name: MapName,
    map: LpmTrie<MapData, Raw<K>, Raw<V>>,
}

impl<K: Plain + Ord, V: Plain> Trie<K, V> {
    /// Wraps the map; fails if it is no trie with such keys and values.
    pub(crate) fn new(name: MapName, map: Map) -> Result<Self, MapFault> {
        let map = LpmTrie::try_from(map).map_err(|source| MapFault { map: name, source })?;
        Ok(Self { name, map })
    }

    /// Everything that the map holds.
    pub(crate) fn read(&self) -> Result<BTreeMap<(u32, K), V>, MapFault> {
        let entries = self.map.iter().map(|entry| {
            let (key, Raw(value)) = entry.map_err(|source| MapFault { map: self.name, source })?;
            let Raw(data) = key.data();
            Ok(((key.prefix_len(), data), value))
        });
        entries.collect()
    }
}

impl<K: Plain + Ord, V: Plain> Entries<(u32, K), V> for Trie<K, V> {
    fn name(&self) -> MapName {
        self.name
    }

    fn put(&mut self, (bits, data): (u32, K), value: V) -> Result<(), MapFault> {
        let inserted = self.map.insert(&Key::new(bits, Raw(data)), Raw(value), 0);
        inserted.map_err(|source| MapFault { map: self.name, source })
    }

    fn remove(&mut self, (bits, data): &(u32, K)) -> Result<(), MapFault> {
        let removed = self.map.remove(&Key::new(*bits, Raw(*data)));
        absent_is_gone(removed).map_err(|source| MapFault { map: self.name, source })
    }
}
