//! How old an entry of a connection is, and what that means. Times are `CLOCK_MONOTONIC` (coarse) in nanoseconds. Who
//! calls passes the time; where most packets do not need it, as a closure, for the kernel's clock is a helper call.

use dataplane_common::flow::TIME_WAIT_SECONDS;

/// Entries are touched at most this often: a shared cache line per packet would cost more than the precision is worth.
const TOUCH_NS: u64 = 500_000_000;

/// How long a backend may keep an ended connection in TIME-WAIT. Another connection that looks the same to it would be
/// answered with a challenge instead of a SYN-ACK, and stall the client.
pub const TIME_WAIT_NS: u64 = TIME_WAIT_SECONDS * 1_000_000_000;

/// How long a connection that has ended must have been silent before a SYN with a suitable sequence number takes its
/// key: until then a last segment may still be on its way to either end.
pub const QUIET_NS: u64 = 3_000_000_000;

/// Notes in an entry that a packet that adds `bits` went by at `now`.
#[inline(always)]
pub fn note_at(last_seen: &mut u64, flags: &mut u8, bits: u8, now: u64) {
    if *flags & bits != bits {
        *flags |= bits;
    }
    if old(*last_seen, now) {
        *last_seen = now;
    }
}

/// Whether a packet at `now` renews an entry's time.
#[inline(always)]
pub fn old(last_seen: u64, now: u64) -> bool {
    // No difference: coarse clocks of two CPUs may differ by a tick.
    now > last_seen.wrapping_add(TOUCH_NS)
}

/// Nothing has gone by for so long that no segment is on its way any more.
#[inline(always)]
pub fn is_quiet(last_seen: u64, now: u64) -> bool {
    now.saturating_sub(last_seen) > QUIET_NS
}

/// Nothing has gone by for so long that a backend keeps nothing of an ended connection.
#[inline(always)]
pub fn is_silent(last_seen: u64, now: u64) -> bool {
    now.saturating_sub(last_seen) > TIME_WAIT_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_touched_twice_a_second_and_its_bits_at_once() {
        let (mut last_seen, mut flags) = (1_000, 0b01);
        note_at(&mut last_seen, &mut flags, 0b10, 1_000 + TOUCH_NS);
        assert_eq!((last_seen, flags), (1_000, 0b11));
        note_at(&mut last_seen, &mut flags, 0, 1_001 + TOUCH_NS);
        assert_eq!((last_seen, flags), (1_001 + TOUCH_NS, 0b11));
    }

    #[test]
    fn a_clock_that_lags_behind_an_entry_makes_it_young() {
        assert!(!old(TIME_WAIT_NS, 0) && !is_quiet(1, 0) && !is_silent(1, 0));
    }

    #[test]
    fn the_limits_themselves_are_not_reached() {
        assert!(!is_quiet(5, 5 + QUIET_NS) && is_quiet(5, 6 + QUIET_NS));
        assert!(!is_silent(5, 5 + TIME_WAIT_NS) && is_silent(5, 6 + TIME_WAIT_NS));
    }
}
