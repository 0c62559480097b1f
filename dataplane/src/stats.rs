//! Maps `DROPS` and `COUNTERS`, summed over CPUs.

use std::sync::Arc;

use aya::maps::{MapData, PerCpuArray};
use dataplane_common::{
    counter::{Counter, Stat},
    drop_reason::DropReason,
};

use crate::{MapName, pod::Raw, table::MapFault};

/// Handles of both maps: reading them waits for nothing, whatever the data plane's owner is doing.
#[derive(Clone)]
pub struct Counts {
    pub(crate) drops: Arc<PerCpuArray<MapData, Raw<Stat>>>,
    pub(crate) counters: Arc<PerCpuArray<MapData, Raw<Stat>>>,
}

impl Counts {
    /// Dropped packets by reason since the maps were made, all reasons.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn drops(&self) -> Result<Vec<(DropReason, Stat)>, MapFault> {
        DropReason::ALL.iter().map(|r| Ok((*r, sum(MapName::Drops, &self.drops, *r as u32)?))).collect()
    }

    /// Handled packets by what was done since the maps were made, all counters.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn counters(&self) -> Result<Vec<(Counter, Stat)>, MapFault> {
        let count = |counter: Counter| sum(MapName::Counters, &self.counters, counter as u32);
        Counter::ALL.iter().map(|counter| Ok((*counter, with_included(*counter, count)?))).collect()
    }
}

/// What counts under a counter: what is counted under it, and what XDP counts elsewhere.
fn with_included<E>(counter: Counter, count: impl Fn(Counter) -> Result<Stat, E>) -> Result<Stat, E> {
    let own = count(counter)?;
    let Some((other, longer)) = counter.includes() else { return Ok(own) };
    let included = count(other)?;
    Ok(Stat {
        packets: own.packets.wrapping_add(included.packets),
        bytes: own.bytes.wrapping_add(included.bytes).wrapping_add(included.packets.wrapping_mul(longer)),
    })
}

fn sum(name: MapName, map: &PerCpuArray<MapData, Raw<Stat>>, index: u32) -> Result<Stat, MapFault> {
    let per_cpu = map.get(&index, 0).map_err(|source| MapFault { map: name, source })?;
    Ok(per_cpu.iter().fold(Stat::default(), |sum, Raw(stat)| Stat {
        packets: sum.packets.wrapping_add(stat.packets),
        bytes: sum.bytes.wrapping_add(stat.bytes),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xdp_carries_counts_where_tc_would_count_it() {
        let count = |counter| {
            Ok::<_, ()>(match counter {
                Counter::XdpForward => Stat { packets: 2, bytes: 200 },
                Counter::XdpReply => Stat { packets: 3, bytes: 600 },
                _ => Stat { packets: 1, bytes: 10 },
            })
        };
        let of = |counter| with_included(counter, count).map(|stat| (stat.packets, stat.bytes));
        assert_eq!(of(Counter::MeshForward), Ok((3, 210)));
        assert_eq!(of(Counter::Encapsulated), Ok((3, 310)));
        assert_eq!(of(Counter::MeshReply), Ok((4, 610)));
        assert_eq!(of(Counter::XdpForward), Ok((2, 200)));
        assert_eq!(of(Counter::Delivered), Ok((1, 10)));
    }
}
