//! Choosing a backend: exact round robin over an atomically published set.

use core::arch::asm;

use dataplane_common::service::{Backend, SetWord};

use crate::maps::{BACKENDS, CURSORS, SETS};

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

/// Atomic fetch-and-add (BPF CPU v3, kernel 5.12). The target's `AtomicU64` has no such method yet.
///
/// # Safety
/// `at` must point to an aligned `u64` in a map.
#[inline(always)]
pub(crate) unsafe fn fetch_add(at: *mut u64, add: u64) -> u64 {
    let mut value = add;
    // SAFETY: the caller's promise; one instruction, no stack, no flags.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({at} + 0), {value})", at = in(reg) at, value = inout(reg) value);
    }
    value
}
