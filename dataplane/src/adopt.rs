//! Whether maps that an earlier agent left behind may be taken over. aya does not look; we must.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use aya_obj::{Object, ParseError, generated::bpf_map_type};
use dataplane_common::{ABI_VERSION, config::Config};

use crate::{MapName, pod::Raw};

/// Pinned maps do not fit.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// A map is not defined as this version needs it.
    #[error(
        "the pinned map {path} has {what} {pinned}, but this version needs {needed}: it is another version's. \
         Take that one down with `hiveway teardown --bpffs {bpffs}` (connections through it end)"
    )]
    Definition {
        /// The pinned map.
        path: PathBuf,
        /// Which property.
        what: &'static str,
        /// What it is.
        pinned: u32,
        /// What it must be.
        needed: u32,
        /// Directory of the data plane.
        bpffs: PathBuf,
    },
    /// The maps were written by a version with another meaning of keys or values.
    #[error(
        "the pinned maps under {bpffs} have layout version {found}, but this version needs {ABI_VERSION}. \
         Take that one down with `hiveway teardown --bpffs {bpffs}` (connections through it end)"
    )]
    Abi {
        /// The version found.
        found: u32,
        /// Directory of the data plane.
        bpffs: PathBuf,
    },
    /// A pinned map could not be opened.
    #[error("cannot open the pinned map {path}: {source}; if it is none of ours, move it away")]
    Open {
        /// The pinned map.
        path: PathBuf,
        /// Why.
        #[source]
        source: MapError,
    },
    /// The embedded object cannot be read, or lacks a map.
    #[error("the embedded programs are damaged ({0}): build them again with `cargo xtask build-ebpf`")]
    Object(String),
    /// The directory could not be read.
    #[error("cannot read {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<ParseError> for AdoptError {
    fn from(error: ParseError) -> Self {
        Self::Object(error.to_string())
    }
}

/// The properties of a map that must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Definition {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl Definition {
    /// The first property that differs: its name, ours, theirs. Some maps may have any size.
    fn difference(&self, needed: &Self, any_size: bool) -> Option<(&'static str, u32, u32)> {
        [
            ("type", self.kind, needed.kind),
            ("key size", self.key, needed.key),
            ("value size", self.value, needed.value),
            ("max_entries", self.entries, needed.entries),
            ("flags", self.flags, needed.flags),
        ]
        .into_iter()
        .find(|(what, pinned, needed)| pinned != needed && !(any_size && *what == "max_entries"))
    }
}

/// Checks all maps that are pinned under `<bpffs>/maps/` against the definitions in `object`, and their layout version.
pub(crate) fn check(object: &[u8], bpffs: &Path) -> Result<(), AdoptError> {
    let object = Object::parse(object)?;
    for map in MapName::ALL {
        let definition = object.maps.get(map.name()).ok_or_else(|| AdoptError::Object(format!("no map {map}")))?;
        let needed = Definition {
            kind: definition.map_type(),
            key: definition.key_size(),
            value: definition.value_size(),
            entries: definition.max_entries(),
            flags: definition.map_flags(),
        };
        let path = pin_path(bpffs, *map);
        if let Some(pinned) = pinned_definition(&path)?
            && let Some((what, pinned, needed)) = pinned.difference(&needed, sized_by_choice(*map))
        {
            return Err(AdoptError::Definition { path, what, pinned, needed, bpffs: bpffs.to_owned() });
        }
    }
    match pinned_abi(&pin_path(bpffs, MapName::Config))? {
        None | Some(0 | ABI_VERSION) => Ok(()),
        Some(found) => Err(AdoptError::Abi { found, bpffs: bpffs.to_owned() }),
    }
}

/// The map's size is its user's choice. A pinned one is adopted as it is, with the connections it holds.
fn sized_by_choice(map: MapName) -> bool {
    crate::Sizes::default().by_map().iter().any(|(sized, _)| *sized == map)
}

/// Where a map is pinned.
pub(crate) fn pin_path(bpffs: &Path, map: MapName) -> PathBuf {
    bpffs.join("maps").join(map.name())
}

fn exists(path: &Path) -> Result<bool, AdoptError> {
    fs::exists(path).map_err(|source| AdoptError::Directory { path: path.to_owned(), source })
}

fn pinned_definition(path: &Path) -> Result<Option<Definition>, AdoptError> {
    if !exists(path)? {
        return Ok(None);
    }
    let open = |source| AdoptError::Open { path: path.to_owned(), source };
    let info = MapInfo::from_pin(path).map_err(open)?;
    Ok(Some(Definition {
        kind: info.map_type().map_err(open)? as u32,
        key: info.key_size(),
        value: info.value_size(),
        entries: info.max_entries(),
        flags: info.map_flags(),
    }))
}

fn pinned_abi(path: &Path) -> Result<Option<u32>, AdoptError> {
    if !exists(path)? {
        return Ok(None);
    }
    let read = || {
        let config: Array<_, Raw<Config>> = Map::Array(MapData::from_pin(path)?).try_into()?;
        config.get(&0, 0).map(|Raw(config)| config.abi)
    };
    read().map(Some).map_err(|source| AdoptError::Open { path: path.to_owned(), source })
}

const _: () = assert!(bpf_map_type::BPF_MAP_TYPE_ARRAY as u32 == aya::maps::MapType::Array as u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_property_counts() {
        let needed = Definition { kind: 1, key: 4, value: 8, entries: 16, flags: 0 };
        assert_eq!(needed.difference(&needed, false), None);
        for (pinned, what) in [
            (Definition { kind: 2, ..needed }, "type"),
            (Definition { key: 8, ..needed }, "key size"),
            (Definition { value: 4, ..needed }, "value size"),
            (Definition { entries: 17, ..needed }, "max_entries"),
            (Definition { flags: 1, ..needed }, "flags"),
        ] {
            assert_eq!(pinned.difference(&needed, false).unwrap().0, what);
            let tolerated = pinned.difference(&needed, true).map(|(what, ..)| what);
            assert_eq!(tolerated, Some(what).filter(|what| *what != "max_entries"));
        }
    }
}
