//! Maps `DROPS` and `COUNTERS`, summed over CPUs.

use aya::maps::{MapData, PerCpuArray};
use dataplane_common::{
    counter::{Counter, Stat},
    drop_reason::DropReason,
};

use crate::{MapName, pod::Raw, table::MapFault, tables::Tables};

impl Tables {
    /// Dropped packets by reason, all reasons.
    pub(crate) fn drops(&self) -> Result<Vec<(DropReason, Stat)>, MapFault> {
        DropReason::ALL.iter().map(|r| Ok((*r, sum(MapName::Drops, &self.drops, *r as u32)?))).collect()
    }

    /// Handled packets by what was done, all counters.
    pub(crate) fn counters(&self) -> Result<Vec<(Counter, Stat)>, MapFault> {
        Counter::ALL.iter().map(|c| Ok((*c, sum(MapName::Counters, &self.counters, *c as u32)?))).collect()
    }
}

fn sum(name: MapName, map: &PerCpuArray<MapData, Raw<Stat>>, index: u32) -> Result<Stat, MapFault> {
    let per_cpu = map.get(&index, 0).map_err(|source| MapFault { map: name, source })?;
    Ok(per_cpu.iter().fold(Stat::default(), |sum, Raw(stat)| Stat {
        packets: sum.packets.wrapping_add(stat.packets),
        bytes: sum.bytes.wrapping_add(stat.bytes),
    }))
}
