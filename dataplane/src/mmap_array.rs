//! A memory-mapped array map: numbers of eight bytes, each read and written as a whole.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use dataplane_common::line::{SLOTS, WORDS};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The words of a map.
pub(crate) struct MmapArray {
    start: NonNull<AtomicU64>,
    count: usize,
    bytes: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is accessed atomically only.
unsafe impl Send for MmapArray {}
// SAFETY: as above.
unsafe impl Sync for MmapArray {}

impl MmapArray {
    /// Maps the array map `fd` of `count` words, which must have `BPF_F_MMAPABLE`.
    pub(crate) fn map(fd: BorrowedFd<'_>, count: u32) -> io::Result<Self> {
        let count = count as usize;
        // The kernel refuses to map more than the whole pages that the array takes; mmap rounds up to them.
        let bytes = NonZeroUsize::new(count * size_of::<u64>()).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let start =
            unsafe { mmap(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0)? };
        Ok(Self { start: start.cast(), count, bytes })
    }

    fn word(&self, index: u32) -> Option<&AtomicU64> {
        let index = index as usize;
        // SAFETY: the index lies inside the mapping, which lives as long as `self`; pages are aligned for u64; both
        // the programs and we access the words as wholes.
        (index < self.count).then(|| unsafe { self.start.add(index).as_ref() })
    }

    /// A bucket of lines, by its number.
    pub(crate) fn bucket(&self, index: u32) -> Option<&[[AtomicU64; WORDS]; SLOTS]> {
        let first = index as usize * WORDS * SLOTS;
        // SAFETY: as in `word`, for all of them.
        (first + WORDS * SLOTS <= self.count).then(|| unsafe { self.start.add(first).cast().as_ref() })
    }

    /// A word; zero for a number that is too high.
    pub(crate) fn load(&self, index: u32) -> u64 {
        self.word(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Stores a word. Packets see the old or the new one, and with the new one what was written before it.
    pub(crate) fn store(&self, index: u32, value: u64) {
        if let Some(word) = self.word(index) {
            word.store(value, Ordering::Release);
        }
    }

    /// Adds to a word, whatever else does so at the same time.
    pub(crate) fn add(&self, index: u32, value: u64) {
        if let Some(word) = self.word(index) {
            word.fetch_add(value, Ordering::AcqRel);
        }
    }
}

impl Drop for MmapArray {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`; no reference into it outlives `self`.
        if let Err(error) = unsafe { munmap(self.start.cast(), self.bytes.get()) } {
            tracing::warn!(%error, "cannot unmap an array");
        }
    }
}
