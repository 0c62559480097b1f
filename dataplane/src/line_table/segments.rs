//! The memory of the lines: a head, and segments that are added while others use those there are.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Mutex, OnceLock, PoisonError, atomic::AtomicU64},
};

use aya::maps::{ArrayOfMaps, Map, MapData, MapError};
use aya_obj::generated::BPF_F_MMAPABLE;
use dataplane_common::{
    flow::pending,
    line::{self, Bucket, SEGMENT, SEGMENTS, SLOTS, WORDS, geometry, head},
};

use super::Contents;
use crate::{
    MapName, Sizes,
    mmap_array::MmapArray,
    options::Buckets,
    random::random,
    sys,
    table::{MapFault, descriptor},
};

/// Words of a segment.
const SEGMENT_WORDS: u32 = SEGMENT * (SLOTS * WORDS) as u32;

/// What is mapped stays so: references into it are good for as long as this is.
pub(super) struct Segments {
    name: MapName,
    head: MmapArray,
    mapped: Box<[OnceLock<MmapArray>]>,
    map: Mutex<ArrayOfMaps<MapData>>,
    /// Buckets in each half that pending connections may need.
    pub(super) pending: u32,
}

fn map_words(map: MapName, fd: BorrowedFd<'_>, count: u32) -> Result<MmapArray, MapFault> {
    MmapArray::map(fd, count).map_err(|error| MapFault { map, source: error.into() })
}

impl Segments {
    /// Maps what there is, and makes what is new ready.
    pub(super) fn new<T: Contents>(segments: Map, head: &Map, sizes: Sizes) -> Result<Self, MapFault> {
        let fault = |source| MapFault { map: T::SEGMENTS, source };
        let Buckets { first, pending, most } = sizes.buckets();
        let segments = Self {
            name: T::SEGMENTS,
            head: map_words(T::HEAD, descriptor(T::HEAD, head)?, head::WORDS as u32)?,
            mapped: (0..pending::COUNT * SEGMENTS).map(|_| OnceLock::new()).collect(),
            map: Mutex::new(segments.try_into().map_err(fault)?),
            pending,
        };
        if segments.head(head::SEED) == 0 {
            segments.set_head(head::SEED, random().map_err(|error| fault(error.into()))?);
        }
        segments.set_head(head::MOST, most.into());
        for half in 0..pending::COUNT {
            let word = head::GEOMETRY + half as usize;
            match geometry::count(segments.head(word)) {
                0 => {
                    segments.add(half, first, &|| ())?;
                    segments.set_head(word, geometry::of(first, 0));
                }
                count => (0..count.div_ceil(SEGMENT)).try_for_each(|nth| segments.open(half * SEGMENTS + nth))?,
            }
        }
        Ok(segments)
    }

    pub(super) fn head(&self, word: usize) -> u64 {
        self.head.load(word as u32)
    }

    pub(super) fn set_head(&self, word: usize, value: u64) {
        self.head.store(word as u32, value);
    }

    pub(super) fn add_to_head(&self, word: usize, more: u64) {
        self.head.add(word as u32, more);
    }

    pub(super) fn bucket(&self, number: u32) -> Option<&[[AtomicU64; WORDS]; SLOTS]> {
        let (segment, index) = line::place(number);
        self.mapped.get(segment as usize)?.get()?.bucket(index)
    }

    /// Maps a segment that the programs have.
    fn open(&self, nth: u32) -> Result<(), MapFault> {
        let segment = self.with_map(|map| map.get(&nth, 0))?;
        self.map_segment(nth, &segment)
    }

    fn map_segment(&self, nth: u32, segment: &MapData) -> Result<(), MapFault> {
        let words = map_words(self.name, segment.fd().as_fd(), SEGMENT_WORDS)?;
        let Some(place) = self.mapped.get(nth as usize) else { return Err(self.fault(MapError::KeyNotFound)) };
        // It is mapped already if it is there.
        let _ = place.set(words);
        Ok(())
    }

    /// Adds what is missing of segments for so many buckets.
    pub(super) fn add(&self, half: u32, buckets: u32, progress: &dyn Fn()) -> Result<(), MapFault> {
        let missing = |nth: &u32| self.mapped.get(*nth as usize).is_none_or(|segment| segment.get().is_none());
        for nth in (half * SEGMENTS..half * SEGMENTS + buckets.div_ceil(SEGMENT)).filter(missing) {
            progress();
            match self.with_map(|map| map.get(&nth, 0)) {
                // An agent was ended before it could use it, or the head was emptied.
                Ok(segment) => {
                    self.map_segment(nth, &segment)?;
                    if let Some(words) = self.mapped[nth as usize].get() {
                        (0..SEGMENT_WORDS).for_each(|word| words.store(word, 0));
                    }
                }
                Err(MapFault { source, .. }) if is_absent(&source) => {
                    let segment = new_segment().map_err(|error| self.fault(error))?;
                    // In this order: what is mapped counts as there.
                    self.with_map(|map| map.set(nth, &segment, 0))?;
                    self.map_segment(nth, &segment)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns once no program runs that has run since before the call.
    // The kernel waits for them whenever an element of a map of maps is written (`maybe_wait_bpf_programs`): by the
    // same one here.
    pub(super) fn wait_for_programs(&self) -> Result<(), MapFault> {
        self.with_map(|map| {
            let first = map.get(&0, 0)?;
            map.set(0, &first, 0)
        })
    }

    fn with_map<T>(&self, run: impl FnOnce(&mut ArrayOfMaps<MapData>) -> Result<T, MapError>) -> Result<T, MapFault> {
        run(&mut self.map.lock().unwrap_or_else(PoisonError::into_inner)).map_err(|error| self.fault(error))
    }

    fn fault(&self, source: MapError) -> MapFault {
        MapFault { map: self.name, source }
    }
}

/// As the programs' object has them: the kernel compares all of this, before 6.4 even that types are described.
fn new_segment() -> Result<MapData, MapError> {
    let types = sys::load_btf(&types())?;
    MapData::from_fd(sys::create_array(size_of::<Bucket>() as u32, SEGMENT, BPF_F_MMAPABLE, types.as_fd())?)
}

/// The types of a segment's key and value as the kernel reads them (`struct btf_header`, `struct btf_type`): a number
/// of 32 bits, and a structure of unnamed contents.
fn types() -> Vec<u8> {
    const MAGIC_AND_VERSION: u32 = 0x0001_eb9f;
    const HEADER: u32 = 24;
    const INT: u32 = 1 << 24;
    const STRUCT: u32 = 4 << 24;
    const NAMES: &[u8] = b"\0key\0bucket\0";
    let types = [1, INT, size_of::<u32>() as u32, u32::BITS, 5, STRUCT, size_of::<Bucket>() as u32];
    let len = size_of_val(&types) as u32;
    let header = [MAGIC_AND_VERSION, HEADER, 0, len, len, NAMES.len() as u32];
    header.iter().chain(&types).flat_map(|word| word.to_ne_bytes()).chain(NAMES.iter().copied()).collect()
}

fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}
