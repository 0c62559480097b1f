//! Map `AFFINITY_LINES`: pending connections of clients, in lines of the memory that the programs write, too.

#[cfg(feature = "testing")]
use std::collections::BTreeMap;
use std::{
    io,
    ops::ControlFlow,
    os::fd::AsFd as _,
    sync::{Arc, atomic::AtomicU64},
};

use aya::maps::{Map, MapError};
use dataplane_common::{
    flow::{Affinity, AffinityKey, pending},
    line::{SLOTS, WORDS, header, state},
};
use dataplane_core::lines::{self, Key, Lines, Value};
use zerocopy::transmute;

use crate::{
    MapName,
    random::random,
    table::{MapFault, data},
    words::Words,
};

/// Between two calls of `progress`.
const BATCH: u32 = 1 << 12;

/// The mapped table; clones share the mapping.
#[derive(Clone)]
pub(crate) struct ClientLines {
    mapped: Arc<Words>,
    /// Buckets in each half.
    count: u32,
}

impl<'a> Lines for &'a ClientLines {
    const CLAIM: u64 = state::CLAIMED_BY_AGENT;
    type Line = &'a [AtomicU64; WORDS];
    type Bucket = &'a [[AtomicU64; WORDS]; SLOTS];

    fn bucket(&self, index: u32) -> Option<Self::Bucket> {
        self.mapped.bucket(index)
    }

    fn line(&self, bucket: Self::Bucket, slot: usize) -> Self::Line {
        &bucket[slot]
    }
}

impl ClientLines {
    /// Takes the map over, and makes it ready if it is new.
    pub(crate) fn new(map: &Map) -> Result<Self, MapFault> {
        let fault = |source| MapFault { map: MapName::AffinityLines, source };
        let of_memory = |error: io::Error| fault(MapError::IoError(error));
        let map = data(MapName::AffinityLines, map)?;
        let info = map.info().map_err(fault)?;
        let count = info.max_entries().saturating_sub(1) / 2;
        let words = (2 * count as usize + 1) * SLOTS * WORDS;
        let mapped = Words::map(map.fd().as_fd(), words as u32).map_err(of_memory)?;
        if mapped.load(header::SEED as u32) == 0 {
            mapped.store(header::SEED as u32, random().map_err(of_memory)?);
        }
        mapped.store(header::COUNT as u32, count.into());
        Ok(Self { mapped: Arc::new(mapped), count })
    }

    /// Frees lines that a killed agent had claimed. The caller holds the lock: there is no other agent.
    pub(crate) fn reclaim(&self) {
        let freed = self.all().filter(|line| lines::reclaim(*line)).count();
        if freed > 0 {
            tracing::info!("{freed} lines of AFFINITY_LINES were being written by an agent that was ended: free again");
        }
    }

    fn all(&self) -> impl Iterator<Item = &[AtomicU64; WORDS]> {
        (1..2 * self.count + 1).filter_map(|index| self.mapped.bucket(index)).flatten()
    }

    /// Room in each half, in connections.
    pub(crate) fn capacity(&self) -> u32 {
        self.count * SLOTS as u32
    }

    pub(crate) fn get(&self, key: &AffinityKey) -> Option<Affinity> {
        let wanted = of(key);
        let (words, value, _) = lines::read(self.find(&wanted)?)?;
        // The line may have been given to another connection since the look-up.
        (words == wanted.words).then(|| transmute!(value))
    }

    fn find(&self, key: &Key) -> Option<&[AtomicU64; WORDS]> {
        let found = lines::find(&self, key)?;
        Some(&self.mapped.bucket(found.bucket)?[found.slot])
    }

    /// Enters a connection, as the programs do. Whether it is in the table.
    pub(crate) fn put(&self, key: &AffinityKey, entry: Affinity) -> bool {
        lines::put(&self, &of(key), &transmute!(entry))
    }

    /// Takes over an earlier map's entry, unless it would displace a younger one. An entry that is here already is
    /// merged with it: programs of both versions may have seen its packets.
    pub(crate) fn take_over(&self, key: &AffinityKey, entry: Affinity) {
        if lines::displaces_younger(lines::choose(&self, &of(key)), entry.last_seen) {
            return;
        }
        match self.get(key) {
            Some(known) if known.created > entry.created => {}
            Some(known) if known.created == entry.created => {
                let mut both = Affinity { flags: known.flags | entry.flags, ..known };
                both.last_seen = known.last_seen.max(entry.last_seen);
                if known.tcp_number == [0; 3] {
                    both.tcp_number = entry.tcp_number;
                }
                if both != known {
                    self.put(key, both);
                }
            }
            _ => _ = self.put(key, entry),
        }
    }

    /// Frees the entry's line if `is_meant` accepts its present value. Whether it did.
    pub(crate) fn remove_if(&self, key: &AffinityKey, is_meant: impl Fn(&Affinity) -> bool) -> bool {
        let wanted = of(key);
        let Some(line) = self.find(&wanted) else { return false };
        let Some((words, value, seen)) = lines::read(line) else { return false };
        words == wanted.words && is_meant(&transmute!(value)) && lines::free(line, seen)
    }

    /// Hands all connections to `each`, as [`crate::table::Table::for_each`].
    pub(crate) fn for_each(
        &self,
        progress: &dyn Fn(),
        mut each: impl FnMut(AffinityKey, Affinity) -> Result<ControlFlow<()>, MapFault>,
    ) -> Result<ControlFlow<()>, MapFault> {
        for index in 1..2 * self.count + 1 {
            if index % BATCH == 0 {
                progress();
            }
            for line in self.mapped.bucket(index).into_iter().flatten() {
                let Some((key, value, _)) = lines::read(line) else { continue };
                if each(transmute!(key), transmute!(value))?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// How many connections each half holds, TCP's first.
    pub(crate) fn count(&self, progress: &dyn Fn()) -> Result<[usize; pending::COUNT as usize], MapFault> {
        let mut counts = [0; _];
        let _ = self.for_each(progress, |key, _| {
            counts[pending::of(key.proto) as usize] += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(counts)
    }

    /// Everything that both halves hold.
    #[cfg(feature = "testing")]
    pub(crate) fn read(&self) -> Result<BTreeMap<AffinityKey, Affinity>, MapFault> {
        let mut entries = BTreeMap::new();
        let _ = self.for_each(&|| (), |key, entry| {
            entries.insert(key, entry);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(entries)
    }
}

fn of(key: &AffinityKey) -> Key {
    Key { words: transmute!(*key), half: pending::of(key.proto) }
}

const _: () = assert!(size_of::<Value>() == size_of::<Affinity>());
