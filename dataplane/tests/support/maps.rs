//! Entries for tests that write whole maps, and the pinned maps themselves.

use std::path::Path;

use anyhow::Result;
use aya::maps::{HashMap, Map, MapData};
use dataplane::MapName;
use dataplane_common::{service::Backend, state::SetKey};

/// Network id 4097.
pub const NET: [u8; 4] = [0, 0, 16, 1];

/// The backend set of VIP 10.0.1.`last`.
pub fn vip(last: u8) -> SetKey {
    SetKey::Vip { net: NET, ip: [10, 0, 1, last] }
}

/// The backend set of a published TCP port.
pub fn port(port: u16) -> SetKey {
    SetKey::Port { proto: 6, port: port.to_be_bytes() }
}

/// `count` backends with incarnations and addresses of their own.
pub fn backends(count: u8) -> Vec<Backend> {
    (0..count).map(|i| Backend { tag: [i + 1; 8], ip: [10, 0, 1, 100 + i], vtep: [192, 0, 2, 1] }).collect()
}

/// A hash map, by its pin below `bpffs`.
///
/// # Errors
/// When it is not pinned there, or is of another type.
pub fn pin<K: aya::Pod, V: aya::Pod>(bpffs: &Path, map: MapName) -> Result<HashMap<MapData, K, V>> {
    let path = bpffs.join("hiveway/maps").join(map.name());
    Ok(Map::HashMap(MapData::from_pin(path)?).try_into()?)
}
