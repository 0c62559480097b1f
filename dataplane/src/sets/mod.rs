//! Backend sets: maps `SETS` and `BACKENDS`.
//!
//! A change of a set writes the new backends into fresh slots, flips the set's word with one store, and lets the old
//! slots rest. The agent keeps no file about it: after a restart ids and slots are recovered from what the maps hold.

mod allocator;

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::maps::{Array, Map, MapData, MapError};
use dataplane_common::{
    service::{Backend, SetWord},
    state::SetKey,
};

use self::allocator::{SlotAllocator, SlotRange};
use crate::{
    MapName,
    changes::{Changes, Delta},
    mmap_array::MmapArray,
    pod::Raw,
    table::{MapFault, descriptor, read_until, write_first},
};

/// How long slots and ids rest before they are used again, in nanoseconds. A program run takes microseconds; two
/// seconds leave room for a virtual CPU that is stopped in the middle of one.
const REST: u64 = 2_000_000_000;

/// Slots written with one system call.
const AT_ONCE: usize = 1024;
/// So few slots are written one by one.
const FEW: usize = 4;

/// A set that exists.
#[derive(Clone, Copy, Debug)]
struct Set {
    id: u32,
    /// Its slots, `None` if what the map said cannot be: then the set is written anew.
    range: Option<SlotRange>,
}

/// All backend sets.
pub(crate) struct Sets {
    words: MmapArray,
    backends: Array<MapData, Raw<Backend>>,
    /// The same map once more, for batch reads.
    fd: OwnedFd,
    ids: SlotAllocator,
    slots: SlotAllocator,
    known: BTreeMap<SetKey, Set>,
}

impl Sets {
    /// Takes over the maps with the sets that `PORTS` and the VIPs in `ENDPOINTS` name.
    pub(crate) fn recover(
        sets: &Map,
        backends: Map,
        found: impl IntoIterator<Item = (SetKey, u32)>,
    ) -> Result<Self, MapFault> {
        let fault = |map| move |source| MapFault { map, source };
        let count = Array::<_, u64>::try_from(sets).map_err(fault(MapName::Sets))?.len();
        let words = MmapArray::map(descriptor(MapName::Sets, sets)?, count)
            .map_err(|error| fault(MapName::Sets)(MapError::IoError(error)))?;
        let fd = descriptor(MapName::Backends, &backends)?;
        let fd = fd.try_clone_to_owned().map_err(|error| fault(MapName::Backends)(MapError::IoError(error)))?;
        let backends: Array<MapData, Raw<Backend>> = Array::try_from(backends).map_err(fault(MapName::Backends))?;
        // Id 0 stays unused: it is what an entry says that was never given a set.
        let mut this = Self {
            ids: SlotAllocator::new(1..count, REST),
            slots: SlotAllocator::new(0..backends.len(), REST),
            words,
            backends,
            fd,
            known: BTreeMap::new(),
        };
        // What rested when the previous agent ended counts as free: loading programs has taken far longer than a
        // packet.
        for (key, id) in found {
            if this.ids.reserve(SlotRange { base: id, len: 1 }) {
                let word = this.load(id);
                let range = SlotRange { base: word.base, len: word.count.into() };
                let range = (range.len == 0 || this.slots.reserve(range)).then_some(range);
                this.known.insert(key, Set { id, range });
            }
        }
        Ok(this)
    }

    fn load(&self, id: u32) -> SetWord {
        SetWord::unpack(self.words.load(id))
    }

    /// The id of a set, if there is one.
    pub(crate) fn id(&self, key: &SetKey) -> Option<u32> {
        self.known.get(key).map(|set| set.id)
    }

    /// The word of a set, if there is one.
    #[cfg(feature = "testing")]
    pub(crate) fn word(&self, key: &SetKey) -> Option<SetWord> {
        self.known.get(key).map(|set| self.load(set.id))
    }

    /// Brings all wanted sets into being. Sets that are as they should be are not touched.
    pub(crate) fn put(&mut self, want: &BTreeMap<SetKey, Vec<Backend>>, now: u64, changes: &mut Changes) {
        /// From so many sets on, one read of all slots is cheaper than one of each.
        const MANY: usize = 16;
        let held = if want.len() < MANY { Ok(None) } else { self.slots_in_use().map(Some) };
        let held = match held {
            Ok(held) => held,
            Err(error) => {
                changes.fail(MapName::Backends, "all slots", error);
                None
            }
        };
        let mut planned = Vec::new();
        for (key, backends) in want {
            match self.plan(*key, backends, held.as_deref(), now) {
                Ok(None) => {}
                Ok(Some(range)) => planned.push((*key, backends, range)),
                Err(error) => changes.fail(MapName::Sets, key, error),
            }
        }
        // All slots, then the words that lead packets to them.
        let slots: Vec<(u32, Backend)> =
            planned.iter().flat_map(|(_, backends, range)| (range.base..).zip(backends.iter().copied())).collect();
        let written = self.write_first(&slots);
        let mut before = 0;
        for (key, backends, range) in planned {
            before += backends.len();
            if let Err(error) = self.enter(key, backends, range, before <= written, now, changes) {
                changes.fail(MapName::Sets, key, error);
            }
        }
    }

    /// Writes slots until something stops it; how many. Few are left for later: they come one by one.
    fn write_first(&self, slots: &[(u32, Backend)]) -> usize {
        let mut written = 0;
        for part in slots.chunks(AT_ONCE).filter(|part| part.len() > FEW) {
            let now = write_first(self.fd.as_fd(), part);
            written += now;
            if now < part.len() {
                break;
            }
        }
        written
    }

    /// Room for a set that is not what it should be.
    fn plan(
        &mut self,
        key: SetKey,
        want: &[Backend],
        held: Option<&[Backend]>,
        now: u64,
    ) -> Result<Option<SlotRange>, SetFault> {
        let count = u16::try_from(want.len()).map_err(|_| SetFault::TooMany(want.len()))?;
        if let Some(Set { id, range: Some(range) }) = self.known.get(&key).copied()
            && self.holds(id, range, want, held)?
        {
            return Ok(None);
        }
        if want.is_empty() {
            return Ok(Some(SlotRange { base: 0, len: 0 }));
        }
        self.slots.take(count.into(), now).map(Some).ok_or(SetFault::NoSlots(want.len()))
    }

    /// Lets a set be what its range holds, or shall hold if it is not `written` yet.
    fn enter(
        &mut self,
        key: SetKey,
        want: &[Backend],
        range: SlotRange,
        written: bool,
        now: u64,
        changes: &mut Changes,
    ) -> Result<(), SetFault> {
        let count = u16::try_from(range.len).map_err(|_| SetFault::TooMany(want.len()))?;
        for (slot, backend) in (range.base..).zip(want).filter(|_| !written) {
            if let Err(source) = self.backends.set(slot, Raw(*backend), 0) {
                self.slots.give_back(range, now);
                return Err(MapFault { map: MapName::Backends, source }.into());
            }
        }
        let known = self.known.get(&key).copied();
        let id = match known {
            Some(set) => set.id,
            None => match self.ids.take(1, now) {
                Some(id) => id.base,
                None => {
                    self.slots.give_back(range, now);
                    return Err(SetFault::NoIds);
                }
            },
        };
        let generation = self.load(id).generation.wrapping_add(1);
        self.words.store(id, SetWord { base: range.base, count, generation }.pack());
        if let Some(Set { range: Some(old), .. }) = known {
            self.slots.give_back(old, now);
        }
        self.known.insert(key, Set { id, range: Some(range) });
        changes.count(MapName::Backends, Delta { inserted: want.len(), ..Delta::default() });
        let new = usize::from(known.is_none());
        changes.count(MapName::Sets, Delta { inserted: new, updated: 1 - new, removed: 0 });
        Ok(())
    }

    /// All slots up to the last that a set uses.
    fn slots_in_use(&self) -> Result<Vec<Backend>, MapFault> {
        let ranges = self.known.values().filter_map(|set| set.range);
        let end = ranges.map(|range| range.base + range.len).max().unwrap_or(0) as usize;
        let mut slots: Vec<(u32, Backend)> = Vec::with_capacity(end);
        read_until(self.fd.as_fd(), &mut slots, end)
            .map_err(|error| MapFault { map: MapName::Backends, source: MapError::IoError(error) })?;
        // An array is read in order of its indices.
        Ok(slots.into_iter().map(|(_, backend)| backend).collect())
    }

    /// Whether the maps hold exactly this for the set. `held`: what the slots hold, if they have been read.
    fn holds(&self, id: u32, range: SlotRange, want: &[Backend], held: Option<&[Backend]>) -> Result<bool, MapFault> {
        let word = self.load(id);
        let base_differs = range.len > 0 && word.base != range.base;
        if base_differs || u32::from(word.count) != range.len || range.len as usize != want.len() {
            return Ok(false);
        }
        if let Some(held) = held {
            let slots = held.get(range.base as usize..(range.base + range.len) as usize);
            // A set of none has no slots, wherever it may begin.
            return Ok(want.is_empty() || slots == Some(want));
        }
        for (slot, backend) in (range.base..).zip(want) {
            let Raw(found) =
                self.backends.get(&slot, 0).map_err(|source| MapFault { map: MapName::Backends, source })?;
            if found != *backend {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Counts what [`Self::put`] and [`Self::release_except`] would change.
    pub(crate) fn compare(&self, want: &BTreeMap<SetKey, Vec<Backend>>, changes: &mut Changes) {
        let held = self.slots_in_use().ok();
        for (key, backends) in want {
            let written = match self.known.get(key) {
                None => Delta { inserted: 1, ..Delta::default() },
                Some(Set { id, range: Some(range) })
                    if self.holds(*id, *range, backends, held.as_deref()).unwrap_or(false) =>
                {
                    continue;
                }
                Some(_) => Delta { updated: 1, ..Delta::default() },
            };
            changes.count(MapName::Sets, written);
            changes.count(MapName::Backends, Delta { inserted: backends.len(), ..Delta::default() });
        }
        let removed = self.known.keys().filter(|key| !want.contains_key(key)).count();
        changes.count(MapName::Sets, Delta { removed, ..Delta::default() });
    }

    /// Gives up all sets that `keep` does not want. Nothing may point to them any more.
    pub(crate) fn release_except(&mut self, keep: impl Fn(&SetKey) -> bool, now: u64, changes: &mut Changes) {
        let gone: Vec<_> = self.known.extract_if(.., |key, _| !keep(key)).map(|(_, set)| set).collect();
        for set in gone {
            self.ids.give_back(SlotRange { base: set.id, len: 1 }, now);
            if let Some(range) = set.range {
                self.slots.give_back(range, now);
            }
            changes.count(MapName::Sets, Delta { removed: 1, ..Delta::default() });
        }
    }
}

/// A backend set could not be written.
#[derive(Debug, thiserror::Error)]
enum SetFault {
    #[error("{0} backends are more than a set can hold (65535)")]
    TooMany(usize),
    #[error("no {0} consecutive backend slots are free; slots given up in the last {rest} seconds will be", rest = REST / 1_000_000_000)]
    NoSlots(usize),
    #[error("all backend sets are in use: too many services and published ports")]
    NoIds,
    #[error(transparent)]
    Map(#[from] MapFault),
}
