//! Map `XDP_STATE`: for how long XDP may believe what it has once asked.

use std::{
    mem::offset_of,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use aya::maps::{Map, MapError};
use dataplane_common::xdp::XdpState;

use crate::{
    MapName,
    mmap_array::MmapArray,
    table::{MapFault, descriptor},
};

/// The two numbers.
#[derive(Clone)]
pub(crate) struct State(Arc<MmapArray>);

impl State {
    const GENERATION: u32 = (offset_of!(XdpState, generation) / size_of::<u64>()) as u32;
    const HOPS_UNTIL: u32 = (offset_of!(XdpState, hops_until) / size_of::<u64>()) as u32;

    /// Takes the map over. A generation that an agent has begun and not ended stays so until the first [`State::end`].
    pub(crate) fn new(map: &Map) -> Result<Self, MapFault> {
        let words = (size_of::<XdpState>() / size_of::<u64>()) as u32;
        let mapped = MmapArray::map(descriptor(MapName::XdpState, map)?, words)
            .map_err(|error| MapFault { map: MapName::XdpState, source: MapError::IoError(error) })?;
        let this = Self(Arc::new(mapped));
        if this.generation() == 0 {
            this.begin();
        }
        Ok(this)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.0.load(Self::GENERATION)
    }

    /// Before something that XDP was told is taken back: from now on it asks. It may be called again.
    pub(crate) fn begin(&self) {
        self.0.store(Self::GENERATION, XdpState::begun(self.generation()));
        fence(Ordering::SeqCst);
    }

    /// After it was taken back: what XDP hears now it may believe again. Does nothing if nothing has begun.
    pub(crate) fn end(&self) {
        // What was taken back is so before the number changes: who reads the new one asks after it.
        fence(Ordering::SeqCst);
        self.0.store(Self::GENERATION, XdpState::ended(self.generation()));
    }

    /// Next hops may be used until then; 0: not at all.
    pub(crate) fn use_hops_until(&self, time: u64) {
        self.0.store(Self::HOPS_UNTIL, time);
    }
}
