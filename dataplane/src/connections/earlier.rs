//! Pending connections in maps of an earlier version, which today's programs do not know.

use std::{
    fs, io,
    ops::ControlFlow,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use aya::maps::{Map, MapData, MapType};
use dataplane_core::lines::{self, Mapped};

use crate::{
    clock::monotonic_now,
    line_table::{Contents, Entry as _, LineTable},
    mmap_array::MmapArray,
    table::{MapFault, Table},
};

/// How far `last_seen` may lag behind the last packet, in nanoseconds: earlier programs write it every half second.
const TOUCHED: u64 = 1_000_000_000;

/// The maps that are still pinned. Clones share them.
pub(crate) struct Earlier<T: Contents>(Arc<Mutex<Pinned<T>>>);

struct Pinned<T: Contents> {
    tables: Vec<(PathBuf, Entries<T>)>,
    /// When they were last looked at, on the clock of the entries.
    looked: u64,
    /// Some could not be opened.
    unopened: bool,
}

/// A map's entries.
enum Entries<T: Contents> {
    /// In `AFFINITY_PENDING`, `FLOWS_PENDING` and their twins for what is not TCP.
    Hash(Table<T::Key, T::Entry>),
    /// In `AFFINITY_LINES`: lines as they are now, all in one map.
    Lines(MmapArray),
}

impl<T: Contents> Entries<T> {
    fn open(path: &Path) -> Result<Self, MapFault> {
        let fault = |source| MapFault { map: T::SEGMENTS, source };
        let map = MapData::from_pin(path).map_err(fault)?;
        let info = map.info().map_err(fault)?;
        if info.map_type().map_err(fault)? != MapType::Array {
            return Table::new(T::SEGMENTS, Map::from_map_data(map).map_err(fault)?).map(Self::Hash);
        }
        let words = info.max_entries().saturating_mul(info.value_size() / size_of::<u64>() as u32);
        let words = MmapArray::map(map.fd().as_fd(), words).map_err(|error| fault(error.into()))?;
        Ok(Self::Lines(words))
    }

    fn for_each(&self, mut each: impl FnMut(T::Key, T::Entry) -> Result<(), MapFault>) -> Result<(), MapFault> {
        match self {
            Self::Hash(table) => {
                let each = |key, entry| each(key, entry).map(|()| ControlFlow::Continue(()));
                table.for_each(&|| (), each).map(|_| ())
            }
            // The first bucket has no connections in it.
            Self::Lines(words) => (1..).map_while(|number| words.bucket(number)).flatten().try_for_each(|line| {
                let Some((key, value, _)) = lines::read(Mapped::<T>::new(line)) else { return Ok(()) };
                each(T::key_of(key), T::entry_of(value))
            }),
        }
    }
}

impl<T: Contents> Clone for Earlier<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Contents> Earlier<T> {
    /// There are none.
    pub(crate) fn none() -> Self {
        Self(Arc::new(Mutex::new(Pinned { tables: Vec::new(), looked: 0, unopened: false })))
    }

    /// Opens the retired maps below this directory. Pins that cannot be opened stay.
    pub(crate) fn pinned(bpffs: &Path) -> Self {
        let mut unopened = false;
        let open = |name: &&str| {
            let path = bpffs.join("maps").join(name);
            if !path.exists() {
                return None;
            }
            match Entries::open(&path) {
                Ok(entries) => Some((path, entries)),
                Err(error) => {
                    unopened = true;
                    let (path, error) = (path.display(), error.source);
                    tracing::warn!(
                        "{path} stays as it is: {error}; remove it once no agent of an earlier version runs"
                    );
                    None
                }
            }
        };
        let tables = T::RETIRED.iter().filter_map(open).collect();
        Self(Arc::new(Mutex::new(Pinned { tables, looked: 0, unopened })))
    }

    /// Whether there are any: programs of an earlier version may be attached.
    pub(crate) fn are_there(&self) -> bool {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found.unopened || !found.tables.is_empty()
    }

    /// Copies entries that were seen since the last call into `lines`, except established ones. With `remove` the
    /// maps are unpinned if there were none.
    pub(crate) fn hand_over(
        &self,
        lines: &LineTable<T>,
        established: &Table<T::Key, T::Entry>,
        remove: bool,
    ) -> Result<(), MapFault> {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.tables.is_empty() {
            return Ok(());
        }
        let now = monotonic_now();
        let since = found.looked.saturating_sub(TOUCHED);
        let mut alive = false;
        for (_, entries) in &found.tables {
            entries.for_each(|key, entry| {
                alive |= entry.last_seen() >= since;
                if entry.last_seen() >= since && established.get(&key)?.is_none() {
                    lines.take_over(&key, entry);
                }
                Ok(())
            })?;
        }
        found.looked = now;
        if remove && !alive {
            for (path, _) in found.tables.drain(..) {
                if let Err(error) = fs::remove_file(&path)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!("{} cannot be removed: {error}", path.display());
                }
            }
        }
        Ok(())
    }
}
