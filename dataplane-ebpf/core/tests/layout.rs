//! When a translated connection's entry was made, as its line holds it: in ticks, modulo 2³².

use dataplane_common::line::{Clients, Layout, Translated, before, state};
use proptest::prelude::*;

/// Nanoseconds in a tick, and until ticks begin again.
const TICK: u64 = 1 << 22;
const ROUND: u64 = TICK << 32;
/// So far a time may lie after `now`.
const AHEAD: u64 = 256 * TICK;

/// Also soon after the machine has started, and soon after ticks have begun again.
fn time() -> impl Strategy<Value = u64> {
    let around = (0..64u64, 0..4 * TICK).prop_map(|(rounds, after)| (rounds * ROUND + after).saturating_sub(2 * TICK));
    prop_oneof![0..3 * TICK, around, any::<u64>(), Just(u64::MAX)]
}

/// Up to the longest that is told apart.
fn ago() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..3 * TICK, 0..ROUND - TICK - AHEAD, Just(ROUND - TICK - AHEAD - 1)]
}

/// What a line's state holds of this time, beside all that is not of it.
fn held(created: u64, others: u64) -> u64 {
    let of_value = Translated::of_value(&[7, created, 7, 7, 7, 7]);
    assert_eq!(of_value & (Translated::KEY_BITS | !state::OTHERS), 0, "bits that are not the value's");
    of_value | others & (Translated::KEY_BITS | !state::OTHERS)
}

proptest! {
    #[test]
    fn what_a_state_holds_is_the_time_to_a_tick(created in time(), others: u64) {
        prop_assert_eq!(Translated::created(held(created, others)), created % ROUND / TICK * TICK);
    }

    #[test]
    fn it_is_whole_again_for_208_days(now in time(), ago in ago(), others: u64) {
        let created = now.saturating_sub(ago);
        prop_assert_eq!(before(now, Translated::created(held(created, others))), created / TICK * TICK);
        // Of what is whole already nothing is lost but parts of a tick.
        prop_assert_eq!(before(now, created), created / TICK * TICK);
    }

    #[test]
    fn it_may_lie_a_little_ahead(now in time(), ahead in 0..AHEAD - TICK) {
        let created = now.saturating_add(ahead);
        prop_assert_eq!(before(now, created % ROUND), created / TICK * TICK);
    }

    #[test]
    fn it_is_never_long_after_now(now in time(), created: u64) {
        let created = before(now, created);
        prop_assert!(created <= now.saturating_add(AHEAD) && now.saturating_sub(created) < ROUND);
        prop_assert!(created.is_multiple_of(TICK));
    }

    #[test]
    fn of_clients_the_state_holds_nothing(value: [u64; 6], seen: u64) {
        prop_assert_eq!((Clients::of_value(&value), Clients::created(seen)), (0, 0));
    }
}
