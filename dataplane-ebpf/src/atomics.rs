//! Atomic instructions on words of maps that the target's `AtomicU64` has no methods for yet.

use core::arch::asm;

/// Atomic compare-and-exchange (BPF CPU v3); what was found.
///
/// # Safety
/// `at` must point to an aligned `u64` in a map.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(at: *mut u64, expected: u64, new: u64) -> u64 {
    let found: u64;
    // SAFETY: the caller's promise; one instruction, no stack, no flags.
    unsafe {
        asm!("r0 = cmpxchg_64({at} + 0, r0, {new})", at = in(reg) at, new = in(reg) new, inlateout("r0") expected => found);
    }
    found
}

/// Atomic fetch-and-add (BPF CPU v3, kernel 5.12); what was found.
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
