//! The time that entries of maps carry.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

/// `CLOCK_MONOTONIC_COARSE`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: plain helper call.
    unsafe { bpf_ktime_get_coarse_ns() }
}
