//! Maps `PATHS` and `PATH_STATE`: how large packets to other nodes may be.

use std::{collections::BTreeMap, mem::offset_of, time::Duration};

use aya::maps::{Map, MapError};
use dataplane_common::{
    addr::Ip4,
    path::{Path, PathState},
};

use crate::{
    MapName,
    clock::monotonic_now,
    mmap_array::MmapArray,
    table::{Entries as _, MapFault, Table, descriptor},
};

/// What the agent knows about the path to a node, in bytes of the outer IP packet; 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathLimit {
    /// As the routing table says.
    pub route: u16,
    /// As probes have found out.
    pub probed: u16,
}

/// What of ICMP "fragmentation needed" the programs believe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Belief {
    /// No smaller MTU.
    pub min: u16,
    /// For how long; zero: nothing.
    pub expires: Duration,
}

/// The maps' one writer besides the programs.
pub struct Paths {
    table: Table<Ip4, Path>,
    state: MmapArray,
}

impl Paths {
    const FLOOR: u32 = (offset_of!(PathState, floor) / size_of::<u64>()) as u32;
    const MIN: u32 = (offset_of!(PathState, min) / size_of::<u64>()) as u32;
    const EXPIRES: u32 = (offset_of!(PathState, expires) / size_of::<u64>()) as u32;

    pub(crate) fn new(paths: Map, state: &Map) -> Result<Self, MapFault> {
        let words = (size_of::<PathState>() / size_of::<u64>()) as u32;
        let state = MmapArray::map(descriptor(MapName::PathState, state)?, words)
            .map_err(|error| MapFault { map: MapName::PathState, source: MapError::IoError(error) })?;
        Ok(Self { table: Table::new(MapName::Paths, paths)?, state })
    }

    /// What of ICMP is believed from now on.
    pub fn believe(&mut self, belief: Belief) {
        self.state.store(Self::MIN, belief.min.into());
        self.state.store(Self::EXPIRES, u64::try_from(belief.expires.as_nanos()).unwrap_or(u64::MAX / 2));
    }

    /// Limits the paths to these nodes, over an interface that takes `interface` bytes, and forgets all other paths.
    /// What ICMP has said stays until it expires. Returns the MTU of each path.
    ///
    /// # Errors
    /// When the map cannot be read or written. What was written stays.
    pub fn limit(&mut self, limits: &BTreeMap<Ip4, PathLimit>, interface: u16) -> Result<BTreeMap<Ip4, u16>, MapFault> {
        let now = monotonic_now();
        for (vtep, path) in self.table.read()? {
            let limit = limits.get(&vtep).copied().unwrap_or_default();
            let learned = path.learned_until > now && limits.contains_key(&vtep);
            match (learned, limit == PathLimit::default()) {
                (false, true) => self.table.remove(&vtep)?,
                _ if (path.route, path.probed) != (limit.route, limit.probed) => {
                    self.table.put(vtep, Path { route: limit.route, probed: limit.probed, ..path })?;
                }
                _ => {}
            }
        }
        for (vtep, limit) in limits.iter().filter(|(_, limit)| **limit != PathLimit::default()) {
            if self.table.get(vtep)?.is_none() {
                self.table.put(*vtep, Path { route: limit.route, probed: limit.probed, ..Path::default() })?;
            }
        }
        let mtus = self.mtus(limits, interface)?;
        let floor = mtus.values().copied().min().unwrap_or(interface);
        if self.state.load(Self::FLOOR) != u64::from(floor) {
            self.state.store(Self::FLOOR, floor.into());
            // A program may have learned of a smaller one meanwhile.
            if let Some(smaller) = self.mtus(limits, interface)?.into_values().min().filter(|mtu| *mtu < floor) {
                self.state.store(Self::FLOOR, smaller.into());
            }
        }
        Ok(mtus)
    }

    fn mtus(&self, limits: &BTreeMap<Ip4, PathLimit>, interface: u16) -> Result<BTreeMap<Ip4, u16>, MapFault> {
        let paths = self.table.read()?;
        let now = monotonic_now();
        let mtu = |vtep| paths.get(vtep).map_or(interface, |path| path.mtu(interface, now));
        Ok(limits.keys().map(|vtep| (*vtep, mtu(vtep))).collect())
    }

    /// What is known about the path to a node; `None`: nothing limits it.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn get(&self, vtep: &Ip4) -> Result<Option<Path>, MapFault> {
        self.table.get(vtep)
    }
}
