//! Pending connections in maps of an earlier version, which today's programs do not know.

use std::{
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use aya::maps::{Map, MapData};
use dataplane_common::flow::{Affinity, AffinityKey};

use crate::{
    MapName,
    client_lines::ClientLines,
    clock::monotonic_now,
    map_name::RETIRED,
    table::{MapFault, Table},
};

/// How far `last_seen` may lag behind the last packet, in nanoseconds: earlier programs write it every half second.
const TOUCHED: u64 = 1_000_000_000;

/// The maps that are still pinned.
#[derive(Clone, Default)]
pub(crate) struct Earlier(Arc<Mutex<Found>>);

#[derive(Default)]
struct Found {
    tables: Vec<(PathBuf, Table<AffinityKey, Affinity>)>,
    /// When they were last looked at, on the clock of the entries.
    looked: u64,
}

impl Earlier {
    /// Opens the retired maps below this directory. Pins that cannot be opened stay.
    pub(crate) fn pinned(bpffs: &Path) -> Self {
        let open = |name: &&str| {
            let path = bpffs.join("maps").join(name);
            if !path.exists() {
                return None;
            }
            let map = MapData::from_pin(&path).and_then(Map::from_map_data);
            match map.map_err(|source| MapFault { map: MapName::AffinityLines, source }) {
                Ok(map) => Table::new(MapName::AffinityLines, map).ok().map(|table| (path, table)),
                Err(error) => {
                    tracing::warn!("{} stays as it is: {error}", path.display());
                    None
                }
            }
        };
        let tables = RETIRED.iter().filter_map(open).collect();
        Self(Arc::new(Mutex::new(Found { tables, looked: 0 })))
    }

    /// Copies entries that were seen since the last call into `lines`, except established ones. With `remove` the
    /// maps are unpinned if there were none.
    pub(crate) fn hand_over(
        &self,
        lines: &ClientLines,
        established: &Table<AffinityKey, Affinity>,
        remove: bool,
    ) -> Result<(), MapFault> {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = monotonic_now();
        let since = found.looked.saturating_sub(TOUCHED);
        let mut alive = false;
        for (_, table) in &found.tables {
            let _ = table.for_each(&|| (), |key, entry| {
                alive |= entry.last_seen >= since;
                if entry.last_seen >= since && established.get(&key)?.is_none() {
                    lines.take_over(&key, entry);
                }
                Ok(ControlFlow::Continue(()))
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
