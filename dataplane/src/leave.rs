//! The first step of leaving a node to its Docker engine: what is new is the engine's, what is under way goes on.

use std::{os::fd::AsFd, path::Path};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use dataplane_common::{
    config::Config,
    endpoint::{Local, SANDBOX_BIT, local_flag},
    service::{MAX_SETS, PortKey, PublishedPort, SetWord},
};

use crate::{MapName, adopt::pin_path, mmap_array::MmapArray, pod::Raw};

/// What is left to a Docker engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Published ports.
    pub ports: usize,
    /// Containers' own interfaces, whose VIPs are balanced there.
    pub interfaces: usize,
}

/// If a Docker engine carries this node's ingress network, empties the backend sets of published ports in the maps
/// pinned under `bpffs`: new connections to them go to the stack, where the engine's own balancer waits. Likewise the
/// VIPs of containers on the engine's networks, where it has a balancer. Nothing is left if nothing is pinned there.
///
/// # Errors
/// When a pinned map cannot be read or written.
pub fn leave(bpffs: &Path) -> Result<Left, MapError> {
    let pinned = |map| pin_path(bpffs, map);
    if !pinned(MapName::Config).exists() {
        return Ok(Left::default());
    }
    let config: Array<_, Raw<Config>> = Map::Array(MapData::from_pin(pinned(MapName::Config))?).try_into()?;
    let interfaces = leave_vips(&pinned(MapName::Locals))?;
    let Raw(config) = config.get(&0, 0)?;
    if config.ingress_ip == [0; 4] {
        return Ok(Left { ports: 0, interfaces });
    }
    let ports: HashMap<_, Raw<PortKey>, Raw<PublishedPort>> =
        Map::HashMap(MapData::from_pin(pinned(MapName::Ports))?).try_into()?;
    let sets = MapData::from_pin(pinned(MapName::Sets))?;
    let words = MmapArray::map(sets.fd().as_fd(), MAX_SETS)?;
    let mut emptied = 0;
    for entry in ports.iter() {
        let (_, Raw(port)) = entry?;
        emptied += usize::from(SetWord::unpack(words.load(port.set)).count != 0);
        words.store(port.set, 0);
    }
    Ok(Left { ports: emptied, interfaces })
}

/// Marks the containers' own interfaces in the map pinned at `locals`; returns how many.
fn leave_vips(locals: &Path) -> Result<usize, MapError> {
    let mut locals: HashMap<_, u32, Raw<Local>> = Map::HashMap(MapData::from_pin(locals)?).try_into()?;
    let stays =
        |(id, Raw(local)): &(u32, Raw<Local>)| id & SANDBOX_BIT == 0 || local.flags & local_flag::NO_BALANCER != 0;
    let entries = locals.iter().filter(|entry| !entry.as_ref().is_ok_and(stays)).collect::<Result<Vec<_>, _>>()?;
    for (id, Raw(local)) in &entries {
        locals.insert(id, Raw(Local { flags: local.flags | local_flag::LEAVING, ..*local }), 0)?;
    }
    Ok(entries.len())
}
