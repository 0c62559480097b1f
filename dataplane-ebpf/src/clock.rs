//! The time that entries of maps carry.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

use crate::age;

/// `CLOCK_MONOTONIC_COARSE`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: plain helper call.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Notes that a packet went by a pending entry: who is silent makes room for others there.
#[inline(always)]
pub(crate) fn renew(last_seen: &mut u64) {
    *last_seen = now();
}

/// Notes that a packet that adds `bits` went by an entry.
#[inline(always)]
pub(crate) fn note(last_seen: &mut u64, flags: &mut u8, bits: u8) {
    age::note_at(last_seen, flags, bits, now());
}
