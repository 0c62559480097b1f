//! A hash map of the data plane as a typed table.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya::maps::{HashMap, Map, MapData, MapError};

use crate::{
    MapName,
    pod::{Plain, Raw},
    sys::{Batch, lookup_batch},
};

/// A map could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {source}")]
pub struct MapFault {
    /// Which map.
    pub map: MapName,
    /// What the kernel said.
    #[source]
    pub source: MapError,
}

/// A hash map with key `K` and value `V`.
pub(crate) struct Table<K, V> {
    name: MapName,
    map: HashMap<MapData, Raw<K>, Raw<V>>,
    /// The same map once more: aya's handle does not show its descriptor, and has no batch reads.
    fd: OwnedFd,
}

impl<K: Plain + Ord, V: Plain> Table<K, V> {
    /// Wraps the map; fails if it is no hash map with such keys and values.
    pub(crate) fn new(name: MapName, map: Map) -> Result<Self, MapFault> {
        let fault = |source| MapFault { map: name, source };
        let fd = map_fd(&map).try_clone_to_owned().map_err(|e| fault(e.into()))?;
        Ok(Self { name, map: HashMap::try_from(map).map_err(fault)?, fd })
    }

    pub(crate) fn name(&self) -> MapName {
        self.name
    }

    /// Everything that the map holds. Entries that are added or removed meanwhile may or may not be there; all others
    /// are, once.
    pub(crate) fn read(&self) -> Result<BTreeMap<K, V>, MapFault> {
        read_all(self.fd.as_fd()).map_err(|error| self.fault(error.into()))
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, MapFault> {
        match self.map.get(&Raw(*key), 0) {
            Ok(Raw(value)) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.fault(error)),
        }
    }

    pub(crate) fn put(&mut self, key: K, value: V) -> Result<(), MapFault> {
        self.map.insert(Raw(key), Raw(value), 0).map_err(|error| self.fault(error))
    }

    /// Removes the entry; it is no error if there is none.
    pub(crate) fn remove(&mut self, key: &K) -> Result<(), MapFault> {
        match self.map.remove(&Raw(*key)) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(self.fault(error)),
        }
    }

    fn fault(&self, source: MapError) -> MapFault {
        MapFault { map: self.name, source }
    }
}

/// The descriptor of a map of one of the types that we use.
pub(crate) fn map_fd(map: &Map) -> BorrowedFd<'_> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) => data.fd().as_fd(),
        other => unreachable!("the object's definitions were checked; {other:?} is none of ours"),
    }
}

/// Reads a hash map bucket by bucket: unlike key by key, a removal meanwhile cannot send us back to the start.
fn read_all<K: Plain + Ord, V: Plain>(fd: BorrowedFd<'_>) -> io::Result<BTreeMap<K, V>> {
    let mut capacity = 1024;
    let mut cursor = None;
    let mut entries = BTreeMap::new();
    loop {
        let mut keys = vec![0u8; capacity * size_of::<K>()];
        let mut values = vec![0u8; capacity * size_of::<V>()];
        let (count, last) = match lookup_batch(fd, &mut cursor, &mut keys, &mut values, capacity)? {
            Batch::More(count) => (count, false),
            Batch::Last(count) => (count, true),
            Batch::TooSmall => {
                capacity *= 2;
                continue;
            }
        };
        let keys = keys.chunks_exact(size_of::<K>());
        let values = values.chunks_exact(size_of::<V>());
        entries.extend(
            keys.zip(values)
                .take(count)
                .filter_map(|(key, value)| Some((K::read_from_bytes(key).ok()?, V::read_from_bytes(value).ok()?))),
        );
        if last {
            return Ok(entries);
        }
    }
}
