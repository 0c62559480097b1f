//! Map `SHARES`: whether a connection that has proved itself is established, and who holds how much.
//!
//! Counted where an entry is established, or an established one is taken out. The agent's sweep removes entries and
//! counts anew; what two CPUs get wrong by removing or promoting one entry at once lasts until then.

use dataplane_common::{
    flow::{AffinityKey, FlowKey},
    shares::{Held, Place, Shares},
};

use crate::{atomics::fetch_add, maps::SHARES};

/// Whether there is a share for the connection of a client with this key.
#[inline(always)]
pub(crate) fn admits_affinity(key: &AffinityKey) -> bool {
    map().is_none_or(|shares| admits(shares, &Place::of_affinity(seed(shares), key)))
}

/// Counts `entries` of clients that were established under this key, or, if negative, taken out.
#[inline(always)]
pub(crate) fn count_affinity(key: &AffinityKey, entries: i64) {
    if let Some(shares) = map() {
        add(shares, &Place::of_affinity(seed(shares), key), entries);
    }
}

/// What the removal of an entry changes: -1, or 0 if there was none.
// VERIFIER: without a branch. All that follows a removal would be verified twice.
#[inline(always)]
pub(crate) fn taken_out(removal: Result<(), i32>) -> i64 {
    !i64::from(removal.err().unwrap_or(0)) >> 63
}

/// Whether there is a share for the translated connection with this forward key.
#[inline(always)]
pub(crate) fn admits_flow(forward: &FlowKey) -> bool {
    shares_admit_flow(forward)
}

/// Global, see [`crate::global`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn shares_admit_flow(forward: *const FlowKey) -> bool {
    // SAFETY: `admits_flow` passes a reference.
    let Some(forward) = (unsafe { forward.as_ref() }) else { return false };
    map().is_none_or(|shares| admits(shares, &Place::of_flow(seed(shares), forward)))
}

/// Counts `entries` of the connection with this forward key that were established, or, if negative, taken out.
#[inline(always)]
pub(crate) fn count_flow(forward: &FlowKey, entries: i64) {
    shares_count_flow(forward, entries);
}

/// Global, see [`crate::global`]; returns 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn shares_count_flow(forward: *const FlowKey, entries: i64) -> u32 {
    // SAFETY: `count_flow` passes a reference.
    let Some(forward) = (unsafe { forward.as_ref() }) else { return 0 };
    if let Some(shares) = map() {
        add(shares, &Place::of_flow(seed(shares), forward), entries);
    }
    0
}

#[inline(always)]
fn map() -> Option<*mut Shares> {
    SHARES.get_ptr_mut(0)
}

#[inline(always)]
fn seed(shares: *mut Shares) -> u64 {
    // SAFETY: into a live array map; the agent writes it once, before any program is attached.
    unsafe { (*shares).seed }
}

#[inline(always)]
fn admits(shares: *mut Shares, place: &Place) -> bool {
    // SAFETY: as above; aligned words, each of which other CPUs change as a whole, and the indices are within their
    // arrays.
    let held = unsafe {
        Held {
            room: (*shares).room[place.table],
            entries: (&raw const (*shares).entries[place.table]).read_volatile(),
            other: place.other.then(|| (&raw const (*shares).other[place.table]).read_volatile()),
            service: (&raw const (*shares).services[place.service]).read_volatile(),
            prefix: (&raw const (*shares).prefixes[place.prefix]).read_volatile(),
        }
    };
    held.admits()
}

#[inline(always)]
fn add(shares: *mut Shares, place: &Place, entries: i64) {
    // Many take an entry out and find none: in a flood CPUs shall not fight for these words.
    if entries == 0 {
        return;
    }
    let entries = entries as u64;
    // SAFETY: as above.
    unsafe {
        fetch_add(&raw mut (*shares).entries[place.table], entries);
        if place.other {
            fetch_add(&raw mut (*shares).other[place.table], entries);
        }
        fetch_add(&raw mut (*shares).services[place.service], entries);
        fetch_add(&raw mut (*shares).prefixes[place.prefix], entries);
    }
}
