//! An agent's pinned maps, seen from outside.

use std::{fs, os::fd::AsRawFd as _, path::Path};

use anyhow::{Context as _, Result};
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapType};
use dataplane_common::service::{PortKey, PublishedPort, SetWord};

/// A type of the maps as aya wants it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Raw<T>(pub(crate) T);

// SAFETY: plain integers without padding, any bits are valid (both types derive `IntoBytes` and `FromBytes`).
unsafe impl aya::Pod for Raw<PortKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Raw<PublishedPort> {}
// SAFETY: as above.
unsafe impl aya::Pod for Raw<dataplane_common::traffic::Order> {}

/// Who serves published ports, as the programs see it.
pub(crate) struct Published {
    ports: HashMap<MapData, Raw<PortKey>, Raw<PublishedPort>>,
    sets: Array<MapData, u64>,
}

impl Published {
    pub(crate) fn open(bpffs: &Path) -> Result<Self> {
        let open = |name: &str| {
            let path = bpffs.join("maps").join(name);
            MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
        };
        let ports = Map::HashMap(open("PORTS")?).try_into()?;
        Ok(Self { ports, sets: Map::Array(open("SETS")?).try_into()? })
    }

    /// Backends of a TCP port; `None` while it is not published.
    pub(crate) fn backends(&self, port: u16) -> Option<u16> {
        let key = PortKey { proto: 6, _pad: 0, port: port.to_be_bytes() };
        let Raw(published) = self.ports.get(&Raw(key), 0).ok()?;
        Some(SetWord::unpack(self.sets.get(&published.set, 0).ok()?).count)
    }
}

/// Bytes of kernel memory in all maps that are pinned under a directory, and in those that they hold, by what the
/// kernel says of each.
pub(crate) fn memory(bpffs: &Path) -> Result<u64> {
    let directory = bpffs.join("maps");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut bytes = 0;
    for entry in entries {
        let map = MapData::from_pin(entry?.path())?;
        bytes += memlock(&map)?;
        let info = map.info()?;
        if info.map_type()? == MapType::ArrayOfMaps {
            let maps: ArrayOfMaps<MapData> = Map::from_map_data(map)?.try_into()?;
            for inner in (0..info.max_entries()).filter_map(|nth| maps.get(&nth, 0).ok()) {
                bytes += memlock(&inner)?;
            }
        }
    }
    Ok(bytes)
}

fn memlock(map: &MapData) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", std::os::fd::AsFd::as_fd(map.fd()).as_raw_fd());
    let text = fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.with_context(|| format!("no memlock in {path}"))?.trim().parse()?)
}
