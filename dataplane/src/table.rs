//! A hash map of the data plane as a typed table.

use std::{
    collections::BTreeMap,
    io,
    ops::ControlFlow,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya::maps::{HashMap, Map, MapData, MapError};

use crate::{
    MapName,
    pod::{Plain, Raw},
    sys::{Batch, lookup_batch, update_batch},
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

/// A hash map, plain or LRU, with key `K` and value `V`.
pub(crate) struct Table<K, V> {
    name: MapName,
    map: HashMap<MapData, Raw<K>, Raw<V>>,
    /// The same map once more: aya's handle does not show its descriptor, and has no batch reads.
    fd: OwnedFd,
}

/// What can be written entry by entry.
pub(crate) trait Entries<K, V> {
    fn name(&self) -> MapName;
    fn put(&mut self, key: K, value: V) -> Result<(), MapFault>;
    /// Writes entries in order with one system call, up to the first that fails; returns how many were written. Where
    /// the map has no such call that is none.
    fn put_first(&mut self, _: &[(K, V)]) -> usize {
        0
    }
    /// Removes the entry; it is no error if there is none.
    fn remove(&mut self, key: &K) -> Result<(), MapFault>;
}

impl<K: Plain + Ord, V: Plain> Table<K, V> {
    /// Wraps the map; fails if it is no hash map with such keys and values.
    pub(crate) fn new(name: MapName, map: Map) -> Result<Self, MapFault> {
        let fault = |source| MapFault { map: name, source };
        let data = data(name, &map)?;
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(|e| fault(e.into()))?;
        Ok(Self { name, map: HashMap::try_from(map).map_err(fault)?, fd })
    }

    /// Another handle of the same map.
    pub(crate) fn try_clone(&self) -> Result<Self, MapFault> {
        let fd = self.fd.try_clone().map_err(|e| self.fault(e.into()))?;
        let map = MapData::from_fd(fd).and_then(Map::from_map_data).map_err(|e| self.fault(e))?;
        Self::new(self.name, map)
    }

    /// Room in the map, in entries.
    pub(crate) fn capacity(&self) -> Result<u32, MapFault> {
        let fd = self.fd.try_clone().map_err(|e| self.fault(e.into()))?;
        let info = MapData::from_fd(fd).and_then(|map| map.info()).map_err(|e| self.fault(e))?;
        Ok(info.max_entries())
    }

    /// Everything that the map holds. Entries that are added or removed meanwhile may or may not be there; all others
    /// are, once.
    pub(crate) fn read(&self) -> Result<BTreeMap<K, V>, MapFault> {
        Ok(self.read_unordered()?.into_iter().collect())
    }

    /// As [`Table::read`], as a list in order of keys.
    pub(crate) fn read_sorted(&self) -> Result<Vec<(K, V)>, MapFault> {
        let mut entries = self.read_unordered()?;
        entries.sort_unstable_by_key(|(key, _)| *key);
        Ok(entries)
    }

    /// As [`Table::read`], in any order: for large tables.
    pub(crate) fn read_unordered(&self) -> Result<Vec<(K, V)>, MapFault> {
        read_all(self.fd.as_fd()).map_err(|error| self.fault(error.into()))
    }

    /// Hands everything that the map holds to `each`, a buffer's worth at a time: however large the map, no more than
    /// that is in memory. `each` may change the map; what is added or removed meanwhile may or may not be handed over.
    /// It ends early where `each` breaks. `progress` is called with each buffer.
    pub(crate) fn for_each(
        &self,
        progress: &dyn Fn(),
        mut each: impl FnMut(K, V) -> Result<ControlFlow<()>, MapFault>,
    ) -> Result<ControlFlow<()>, MapFault> {
        let mut outcome = Ok(ControlFlow::Continue(()));
        let read = read_batches(self.fd.as_fd(), |entries| {
            progress();
            for (key, value) in entries {
                outcome = each(*key, *value);
                if !matches!(outcome, Ok(ControlFlow::Continue(()))) {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        });
        read.map_err(|error| self.fault(error.into()))?;
        outcome
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>, MapFault> {
        match self.map.get(&Raw(*key), 0) {
            Ok(Raw(value)) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(self.fault(error)),
        }
    }

    fn fault(&self, source: MapError) -> MapFault {
        MapFault { map: self.name, source }
    }
}

impl<K: Plain + Ord, V: Plain> Entries<K, V> for Table<K, V> {
    fn name(&self) -> MapName {
        self.name
    }

    fn put(&mut self, key: K, value: V) -> Result<(), MapFault> {
        self.map.insert(Raw(key), Raw(value), 0).map_err(|error| self.fault(error))
    }

    fn put_first(&mut self, entries: &[(K, V)]) -> usize {
        write_first(self.fd.as_fd(), entries)
    }

    fn remove(&mut self, key: &K) -> Result<(), MapFault> {
        absent_is_gone(self.map.remove(&Raw(*key))).map_err(|error| self.fault(error))
    }
}

/// Entries that are read with one system call; more where a bucket of the map holds more.
const BATCH: usize = 1024;

/// The outcome of a removal, where what was not there counts as removed.
pub(crate) fn absent_is_gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// The descriptor of a map of one of the types that we keep; `None` for others.
pub(crate) fn map_fd(map: &Map) -> Option<BorrowedFd<'_>> {
    map_data(map).map(|data| data.fd().as_fd())
}

fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::ArrayOfMaps(data) => Some(data),
        _ => None,
    }
}

/// The map itself.
pub(crate) fn data(name: MapName, map: &Map) -> Result<&MapData, MapFault> {
    let wrong = || MapFault { map: name, source: MapError::InvalidMapType { map_type: 0 } };
    map_data(map).ok_or_else(wrong)
}

/// As [`map_fd`]; for maps whose type a user cannot have got wrong.
pub(crate) fn descriptor(name: MapName, map: &Map) -> Result<BorrowedFd<'_>, MapFault> {
    data(name, map).map(|data| data.fd().as_fd())
}

/// Writes entries of a hash map, or of an array, in order, up to the first that fails. Returns how many were written.
pub(crate) fn write_first<K: Plain, V: Plain>(fd: BorrowedFd<'_>, entries: &[(K, V)]) -> usize {
    let keys: Vec<u8> = entries.iter().flat_map(|(key, _)| key.as_bytes()).copied().collect();
    let values: Vec<u8> = entries.iter().flat_map(|(_, value)| value.as_bytes()).copied().collect();
    match update_batch(fd, &keys, &values, entries.len()) {
        Ok(()) => entries.len(),
        Err(written) => written,
    }
}

/// Reads a hash map bucket by bucket: unlike key by key, a removal meanwhile cannot send us back to the start.
fn read_all<K: Plain, V: Plain>(fd: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    read_until(fd, &mut entries, usize::MAX)?;
    Ok(entries)
}

/// Adds entries of a hash map, or of an array, until there are that many or no more.
pub(crate) fn read_until<K: Plain, V: Plain>(
    fd: BorrowedFd<'_>,
    entries: &mut Vec<(K, V)>,
    enough: usize,
) -> io::Result<()> {
    if entries.len() >= enough {
        return Ok(());
    }
    read_batches(fd, |more| {
        entries.extend_from_slice(more);
        if entries.len() < enough { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
}

/// Hands entries of a hash map, or of an array, to `take` until there are no more or it breaks.
fn read_batches<K: Plain, V: Plain>(
    fd: BorrowedFd<'_>,
    mut take: impl FnMut(&[(K, V)]) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut capacity = BATCH;
    let mut cursor = None;
    let (mut keys, mut values, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        keys.resize(capacity * size_of::<K>(), 0u8);
        values.resize(capacity * size_of::<V>(), 0u8);
        let (count, last) = match lookup_batch(fd, &mut cursor, &mut keys, &mut values, capacity)? {
            Batch::More(count) => (count, false),
            Batch::Last(count) => (count, true),
            Batch::TooSmall => {
                capacity *= 2;
                continue;
            }
        };
        entries.clear();
        entries.extend(
            (keys.chunks_exact(size_of::<K>()).zip(values.chunks_exact(size_of::<V>())))
                .take(count)
                .filter_map(|(key, value)| Some((K::read_from_bytes(key).ok()?, V::read_from_bytes(value).ok()?))),
        );
        if take(&entries).is_break() || last {
            return Ok(());
        }
    }
}
