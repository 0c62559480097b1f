//! Map `DIRECT_GATE`: whether any direct connection has its source port translated.

use std::sync::Arc;

use aya::maps::{Map, MapError};
use dataplane_common::flow::DirectGate;

use crate::{
    MapName,
    mmap_array::MmapArray,
    table::{MapFault, descriptor},
};

/// The gate's two numbers. Memory-mapped: a write of the whole entry could undo what a packet adds at that moment.
#[derive(Clone)]
pub(crate) struct Gate(Arc<MmapArray>);

impl Gate {
    const CREATED: u32 = (std::mem::offset_of!(DirectGate, created) / size_of::<u64>()) as u32;
    const CLEARED: u32 = (std::mem::offset_of!(DirectGate, cleared) / size_of::<u64>()) as u32;

    pub(crate) fn new(map: &Map) -> Result<Self, MapFault> {
        let words = (size_of::<DirectGate>() / size_of::<u64>()) as u32;
        let mapped = MmapArray::map(descriptor(MapName::DirectGate, map)?, words);
        mapped
            .map(|words| Self(Arc::new(words)))
            .map_err(|error| MapFault { map: MapName::DirectGate, source: MapError::IoError(error) })
    }

    /// Both numbers.
    pub(crate) fn read(&self) -> DirectGate {
        DirectGate { created: self.0.load(Self::CREATED), cleared: self.0.load(Self::CLEARED) }
    }

    /// Counts one more, as the programs do.
    #[cfg(feature = "testing")]
    pub(crate) fn open(&self) {
        self.0.store(Self::CREATED, self.read().created + 1);
    }

    /// Says that no such connection is left of those that `created` counted.
    pub(crate) fn clear(&self, created: u64) {
        self.0.store(Self::CLEARED, created);
    }
}
