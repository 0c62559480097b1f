//! Map `SHARES`, which the programs keep while they run and each sweep counts anew.

use std::{io, mem::offset_of, os::fd::BorrowedFd, sync::Arc};

use dataplane_common::shares::{AFFINITY, FLOWS, PREFIXES, Place, SERVICES, Shares as Value};

use crate::{MapName, mmap_array::MmapArray, random::random, table::MapFault};

const WORD: usize = size_of::<u64>();
const WORDS: usize = size_of::<Value>() / WORD;

/// The numbers, memory-mapped: a write of the whole value would undo what packets add meanwhile.
#[derive(Clone)]
pub(crate) struct Shares(Arc<MmapArray>);

impl Shares {
    const SEED: usize = offset_of!(Value, seed) / WORD;
    const ROOM: usize = offset_of!(Value, room) / WORD;

    /// Takes the map over. `room`: how many entries may be established, of clients first.
    pub(crate) fn new(map: BorrowedFd<'_>, room: [u32; 2]) -> Result<Self, MapFault> {
        let fault = |error: io::Error| MapFault { map: MapName::Shares, source: error.into() };
        let words = MmapArray::map(map, WORDS as u32).map_err(fault)?;
        if words.load(Self::SEED as u32) == 0 {
            words.store(Self::SEED as u32, random().map_err(fault)?);
        }
        for (table, room) in [(AFFINITY, room[AFFINITY]), (FLOWS, room[FLOWS])] {
            words.store((Self::ROOM + table) as u32, room.into());
        }
        Ok(Self(Arc::new(words)))
    }

    /// How many entries of a table, [`AFFINITY`] or [`FLOWS`], may be established.
    pub(crate) fn room(&self, table: usize) -> u32 {
        self.0.load((Self::ROOM + table) as u32) as u32
    }

    /// What the connections' places are computed with.
    pub(crate) fn seed(&self) -> u64 {
        self.0.load(Self::SEED as u32)
    }

    /// Begins to count anew.
    pub(crate) fn recount(&self) -> Recount {
        Recount { before: (0..WORDS as u32).map(|word| self.0.load(word)).collect(), counted: vec![0; WORDS] }
    }

    /// Puts right what was counted wrong. What packets have added or taken away since [`Shares::recount`] stays: of
    /// that, what was counted as well is counted twice, until the next time.
    pub(crate) fn correct(&self, recount: &Recount) {
        for (word, (counted, before)) in (0u32..).zip(recount.counted.iter().zip(&recount.before)) {
            let is_number = word as usize >= offset_of!(Value, entries) / WORD;
            if is_number && counted != before {
                self.0.add(word, counted.wrapping_sub(*before));
            }
        }
    }

    /// All numbers, for [`Shares::restore`].
    #[cfg(feature = "testing")]
    pub(crate) fn save(&self) -> Vec<u64> {
        self.recount().before
    }

    /// As [`Self::new`] sets it.
    #[cfg(feature = "testing")]
    pub(crate) fn set_room(&self, room: [u32; 2]) {
        (0..).zip(room).for_each(|(table, room)| self.0.store(Self::ROOM as u32 + table, room.into()));
    }

    /// Puts them back.
    #[cfg(feature = "testing")]
    pub(crate) fn restore(&self, numbers: &[u64]) {
        (0..).zip(numbers).for_each(|(word, number)| self.0.store(word, *number));
    }

    /// Established entries of a table, [`AFFINITY`] or [`FLOWS`], TCP's first.
    pub(crate) fn established(&self, table: usize) -> [u64; 2] {
        let place = Place { table, other: true, service: 0, prefix: 0 };
        let [all, other, ..] = words_of(&place).map(|word| (self.0.load(word as u32) as i64).max(0) as u64);
        [all.saturating_sub(other), other]
    }

    /// What is counted of a table, [`AFFINITY`] or [`FLOWS`]: its entries, and those of them that are not of TCP.
    #[cfg(feature = "testing")]
    pub(crate) fn entries(&self, table: usize) -> [i64; 2] {
        let place = Place { table, other: true, service: 0, prefix: 0 };
        let [entries, other, ..] = words_of(&place);
        [entries, other].map(|word| self.0.load(word as u32) as i64)
    }
}

/// Entries as a sweep finds them.
pub(crate) struct Recount {
    before: Vec<u64>,
    counted: Vec<u64>,
}

impl Recount {
    /// One more entry.
    pub(crate) fn add(&mut self, place: &Place) {
        let [entries, other, service, prefix] = words_of(place);
        for word in [Some(entries), place.other.then_some(other), Some(service), Some(prefix)].into_iter().flatten() {
            if let Some(count) = self.counted.get_mut(word) {
                *count += 1;
            }
        }
    }
}

/// Where a place's numbers are.
fn words_of(place: &Place) -> [usize; 4] {
    [
        offset_of!(Value, entries) / WORD + place.table,
        offset_of!(Value, other) / WORD + place.table,
        offset_of!(Value, services) / WORD + place.service % SERVICES,
        offset_of!(Value, prefixes) / WORD + place.prefix % PREFIXES,
    ]
}
