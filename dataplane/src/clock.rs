//! The clock of flow entries.

/// Now, on the clock that the programs stamp flows with (`bpf_ktime_get_coarse_ns`): `CLOCK_MONOTONIC_COARSE` in
/// nanoseconds. It stands still while the machine is suspended.
pub fn monotonic_now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec; the clock exists on every Linux we support, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
