//! Map `HOPS`: the ways to other nodes, kept by whoever follows routes and neighbours.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use aya::maps::{Array, Map, MapError};
use dataplane_common::{
    addr::Ip4,
    endpoint::Vtep,
    xdp::{Hop, HopWords, MAX_HOPS},
};

use crate::{
    MapName,
    clock::monotonic_now,
    mmap_array::MmapArray,
    pod::Raw,
    table::{MapFault, descriptor},
    xdp_state::State,
};

const WORDS: u32 = (size_of::<HopWords>() / size_of::<u64>()) as u32;

/// The map's one writer.
pub struct Hops {
    words: MmapArray,
    count: u32,
    state: State,
}

impl Hops {
    pub(crate) fn new(map: &Map, state: State) -> Result<Self, MapFault> {
        let fault = |source| MapFault { map: MapName::Hops, source };
        let count = Array::<_, Raw<HopWords>>::try_from(map).map_err(fault)?.len();
        let words = MmapArray::map(descriptor(MapName::Hops, map)?, count * WORDS)
            .map_err(|error| fault(MapError::IoError(error)))?;
        Ok(Self { words, count, state })
    }

    /// Stores the way to the node whose [`Vtep::hop`] this is, or that there is none. Does nothing if it is stored
    /// already; whether it was not.
    pub fn put(&mut self, number: u16, hop: Option<Hop>) -> bool {
        let at = u32::from(number);
        if at == 0 || at >= self.count {
            return false;
        }
        let found = self.load(at);
        // An earlier agent may have ended between two words.
        let version = found.version();
        if version.is_some_and(|version| found == HopWords::pack(hop, version)) {
            return false;
        }
        let newest = (found.0.map(|word| (word >> 48) as u16).into_iter().max()).unwrap_or(0);
        let words = HopWords::pack(hop, version.unwrap_or(newest).wrapping_add(1));
        for (word, value) in (at * WORDS..).zip(words.0) {
            self.words.store(word, value);
        }
        true
    }

    /// What is stored for a node; `None`: no way, or only parts of one.
    pub fn get(&self, number: u16) -> Option<HopWords> {
        let words = self.load(number.into());
        (words.version().is_some() && words.ifindex() != 0).then_some(words)
    }

    /// All numbers that there can be.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + use<> {
        (1..self.count).filter_map(|number| u16::try_from(number).ok())
    }

    fn load(&self, at: u32) -> HopWords {
        HopWords(std::array::from_fn(|word| self.words.load(at * WORDS + word as u32)))
    }

    /// The programs may use what is stored for so long from now on; zero: not any more.
    pub fn valid_for(&self, time: Duration) {
        let until = match time.is_zero() {
            true => 0,
            false => monotonic_now() + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2),
        };
        self.state.use_hops_until(until);
    }
}

/// `want` with a number for each node: the one that it has, or one that is free. Nodes beyond the map's room have none.
///
/// A number may be another node's at once: whoever remembers it compares the address that is stored with the hop.
pub(crate) fn numbered(have: &BTreeMap<Ip4, Vtep>, want: &BTreeMap<Ip4, Vtep>) -> BTreeMap<Ip4, Vtep> {
    let mut taken = BTreeSet::new();
    let mut numbered = want.clone();
    for (ip, vtep) in &mut numbered {
        let had = have.get(ip).map_or(0, |had| had.hop);
        vtep.hop = if u32::from(had) < MAX_HOPS && had != 0 && taken.insert(had) { had } else { 0 };
    }
    let mut free = (1..MAX_HOPS as u16).filter(|number| !taken.contains(number));
    for vtep in numbered.values_mut().filter(|vtep| vtep.hop == 0) {
        vtep.hop = free.next().unwrap_or(0);
    }
    numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(of: &[(u8, u16)]) -> BTreeMap<Ip4, Vtep> {
        of.iter().map(|(last, hop)| ([192, 0, 2, *last], Vtep { hiveway: 1, hop: *hop, ..Vtep::default() })).collect()
    }

    #[test]
    fn nodes_keep_their_numbers_and_new_ones_get_free_ones() {
        assert_eq!(numbered(&nodes(&[]), &nodes(&[(1, 0), (2, 0)])), nodes(&[(1, 1), (2, 2)]));
        assert_eq!(numbered(&nodes(&[(1, 1), (2, 2)]), &nodes(&[(2, 0), (3, 0)])), nodes(&[(2, 2), (3, 1)]));
        // Damage.
        assert_eq!(numbered(&nodes(&[(1, 5), (2, 5), (3, 65535)]), &nodes(&[(1, 0), (2, 0), (3, 0)])).len(), 3);
        let repaired = numbered(&nodes(&[(1, 5), (2, 5)]), &nodes(&[(1, 0), (2, 0)]));
        assert_eq!(repaired, nodes(&[(1, 5), (2, 1)]));
    }

    #[test]
    fn there_are_no_more_numbers_than_hops() {
        let many: BTreeMap<Ip4, Vtep> =
            (0..MAX_HOPS + 5).map(|n| (n.to_be_bytes(), Vtep { hiveway: 1, ..Vtep::default() })).collect();
        let numbered = numbered(&BTreeMap::new(), &many);
        let numbers: BTreeSet<u16> = numbered.values().map(|vtep| vtep.hop).filter(|hop| *hop != 0).collect();
        assert_eq!((numbers.len(), numbers.last()), (MAX_HOPS as usize - 1, Some(&(MAX_HOPS as u16 - 1))));
        assert_eq!(numbered.values().filter(|vtep| vtep.hop == 0).count(), 6);
    }
}
