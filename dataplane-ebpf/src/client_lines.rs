//! Maps `AFFINITY_SEGMENTS` and `AFFINITY_HEAD`: clients' connections in lines.

use core::ptr;

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap};
use dataplane_common::{
    flow::{Affinity, AffinityKey, MAX_FLOWS, pending},
    line::{Head, SEGMENTS},
};

use crate::{
    lines::{self, Choice, Key, Promotion, Put},
    lines_map::{self, InMaps, Place, Table, line_of},
    maps::{AFFINITY, AFFINITY_HEAD, AFFINITY_SEGMENTS, GROWING, MMAPABLE, Segment, kind},
    scratch::copy,
};

pub(crate) use dataplane_common::line::Clients;

const LINES: InMaps<Clients> = InMaps::NEW;

impl Table for Clients {
    type Key = AffinityKey;
    type Entry = Affinity;

    #[inline(always)]
    fn segments() -> &'static ArrayOfMaps<Segment, { (pending::COUNT * SEGMENTS) as usize }> {
        &AFFINITY_SEGMENTS
    }

    #[inline(always)]
    fn head() -> &'static Array<Head, 1, MMAPABLE> {
        &AFFINITY_HEAD
    }

    #[inline(always)]
    fn overflow() -> &'static HashMap<AffinityKey, Affinity, { MAX_FLOWS as usize }, GROWING> {
        &AFFINITY
    }

    #[inline(always)]
    fn key(key: &AffinityKey) -> Key {
        const { assert!(size_of::<AffinityKey>() == 16 && align_of::<AffinityKey>() == 4) };
        // In halves: a key on the stack is aligned to four.
        // SAFETY: as many bytes, aligned likewise.
        let [a, b, c, d] = unsafe { *ptr::from_ref(key).cast::<[u32; 4]>() };
        let word = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        Key { words: [word(a, b), 0, word(c, d)], half: kind(key.proto) }
    }
}

/// Looks up the entry of a client's connection.
#[inline(always)]
pub(crate) fn find(key: &AffinityKey) -> Place {
    Place::of(client_lines_find(key))
}

/// Global, see [`crate::global`]; returns the number in a [`Place`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_find(key: *const AffinityKey) -> u64 {
    let Some(key) = lines_map::key::<Clients>(key) else { return 0 };
    lines_map::find::<Clients>(key)
}

/// Makes a pending connection an established one; see [`lines::promote`].
#[inline(always)]
pub(crate) fn promote(key: &AffinityKey) -> u32 {
    client_lines_promote(key)
}

/// Global, see [`crate::global`]; returns a [`Promotion`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_promote(key: *const AffinityKey) -> u32 {
    let Some(key) = lines_map::key::<Clients>(key) else { return Promotion::Gone as u32 };
    lines::promote(&LINES, key) as u32
}

/// Takes a connection out that is established here. Whether it was.
#[inline(always)]
pub(crate) fn remove_established(key: &AffinityKey) -> bool {
    let removed = client_lines_remove(key);
    if removed {
        client_lines_remove(key);
    }
    removed
}

/// Global, see [`crate::global`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_remove(key: *const AffinityKey) -> bool {
    let Some(key) = lines_map::key::<Clients>(key) else { return false };
    lines::remove_established(&LINES, key)
}

/// Enters a connection; see [`lines::put`].
#[inline(always)]
pub(crate) fn put(key: &AffinityKey, entry: &Affinity) -> bool {
    let attempt = || Put::of(client_lines_put(key, client_lines_choose(key), entry));
    lines::put_by(attempt, || _ = client_lines_keep_first(key))
}

/// Global, see [`crate::global`]; returns a [`Choice`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_choose(key: *const AffinityKey) -> Choice {
    let Some(key) = lines_map::key::<Clients>(key) else { return lines::NONE };
    lines::choose(&LINES, key)
}

/// Global, see [`crate::global`]; returns a [`Put`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_put(key: *const AffinityKey, choice: Choice, entry: *const Affinity) -> u32 {
    let Some(key) = lines_map::key::<Clients>(key) else { return Put::Not as u32 };
    let Some(value) = lines_map::words::<Clients>(entry) else { return Put::Not as u32 };
    lines::try_put(&LINES, key, choice, value) as u32
}

/// Global, see [`crate::global`]; returns 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_keep_first(key: *const AffinityKey) -> u32 {
    let Some(key) = lines_map::key::<Clients>(key) else { return 0 };
    lines::keep_first(&LINES, key);
    0
}

/// Whether an entry that was found is still this connection's, and pending.
#[inline(always)]
pub(crate) fn is_pending(key: &AffinityKey, entry: &mut Affinity) -> bool {
    lines::is_pending(line_of::<Clients>(entry), &Clients::key(key))
}

/// Copies an entry that was found. Its line's state, if it is still this connection's, and pending.
#[inline(always)]
pub(crate) fn copied(key: &AffinityKey, entry: &mut Affinity, to: &mut Affinity) -> Option<u64> {
    lines::copied(line_of::<Clients>(entry), &Clients::key(key), || copy(entry, to))
}
