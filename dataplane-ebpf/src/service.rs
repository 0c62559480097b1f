//! Choosing a backend: exact round robin over an atomically published set.

use dataplane_common::service::{Backend, SetWord};

use crate::{
    atomics::{compare_exchange, fetch_add},
    maps::{BACKENDS, CURSORS, SETS},
};

/// The current state of set `id`, read as one word.
#[inline(always)]
pub(crate) fn set(id: u32) -> Option<SetWord> {
    let word = SETS.get_ptr(id)?;
    // SAFETY: an aligned 8-byte load is atomic on every architecture with eBPF JIT; the agent stores it likewise.
    Some(SetWord::unpack(unsafe { core::ptr::read_volatile(word) }))
}

/// The next backend of set `id`, or `None` when nobody serves. Every call moves the cursor by one, on whatever CPU, so
/// that N picks over B backends give each ⌊N/B⌋ or ⌈N/B⌉.
#[inline(always)]
pub(crate) fn pick(id: u32) -> Option<&'static Backend> {
    let set = set(id)?;
    if set.count == 0 {
        return None;
    }
    let cursor = CURSORS.get_ptr_mut(id)?;
    // SAFETY: the pointer is into a live array map, aligned to 8.
    let n = unsafe { fetch_add(cursor, 1) };
    BACKENDS.get(set.base + (n % u64::from(set.count)) as u32)
}

/// The backend whose turn it is, not taken yet.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) backend: &'static Backend,
    cursor: *mut u64,
    n: u64,
}

/// Whose turn it is in set `id`, for who may have to leave the choice to others. `None`: nobody serves.
#[inline(always)]
pub(crate) fn peek(id: u32) -> Option<Turn> {
    let set = set(id)?;
    if set.count == 0 {
        return None;
    }
    let cursor = CURSORS.get_ptr_mut(id)?;
    // SAFETY: the pointer is into a live array map, aligned to 8.
    let n = unsafe { core::ptr::read_volatile(cursor) };
    let backend = BACKENDS.get(set.base + (n % u64::from(set.count)) as u32)?;
    Some(Turn { backend, cursor, n })
}

impl Turn {
    /// Takes it, as [`pick`] does, unless somebody else has meanwhile.
    #[inline(always)]
    pub(crate) fn take(self) -> bool {
        // SAFETY: as in `peek`.
        let found = unsafe { compare_exchange(self.cursor, self.n, self.n.wrapping_add(1)) };
        found == self.n
    }
}
