//! Maps `FLOWS_SEGMENTS` and `FLOWS_HEAD`: translated connections in lines.

use core::ptr;

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap};
use dataplane_common::{
    flow::{Flow, FlowKey, MAX_FLOWS, pending},
    line::{self, Head, Layout as _, SEGMENTS},
};

use crate::{
    clock,
    lines::{self, Choice, Key, New, Promotion, Put},
    lines_map::{self, InMaps, Place, Table, line_of},
    maps::{FLOWS, FLOWS_HEAD, FLOWS_SEGMENTS, GROWING, MMAPABLE, Segment, kind},
    scratch::copy,
};

pub(crate) use dataplane_common::line::Translated;

const LINES: InMaps<Translated> = InMaps::NEW;

impl Table for Translated {
    type Key = FlowKey;
    type Entry = Flow;

    #[inline(always)]
    fn segments() -> &'static ArrayOfMaps<Segment, { (pending::COUNT * SEGMENTS) as usize }> {
        &FLOWS_SEGMENTS
    }

    #[inline(always)]
    fn head() -> &'static Array<Head, 1, MMAPABLE> {
        &FLOWS_HEAD
    }

    #[inline(always)]
    fn overflow() -> &'static HashMap<FlowKey, Flow, { MAX_FLOWS as usize }, GROWING> {
        &FLOWS
    }

    #[inline(always)]
    fn key(key: &FlowKey) -> Key {
        const { assert!(size_of::<FlowKey>() == 20 && align_of::<FlowKey>() == 4) };
        // In halves: a key is aligned to four.
        // SAFETY: as many bytes, aligned likewise.
        let [a, b, c, d, e] = unsafe { *ptr::from_ref(key).cast::<[u32; 5]>() };
        let word = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        Key { words: [word(a, b), word(c, d), e.into()], half: kind(key.proto) }
    }
}

/// Looks up an entry of a translated connection.
#[inline(always)]
pub(crate) fn find(key: &FlowKey) -> Place {
    Place::of(flow_lines_find(key))
}

/// Global, see [`crate::global`]; returns the number in a [`Place`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_lines_find(key: *const FlowKey) -> u64 {
    let Some(key) = lines_map::key::<Translated>(key) else { return 0 };
    lines_map::find::<Translated>(key)
}

/// Makes a pending entry an established one; see [`lines::promote`].
#[inline(always)]
pub(crate) fn promote(key: &FlowKey) -> u32 {
    flow_lines_promote(key)
}

/// Global, see [`crate::global`]; returns a [`Promotion`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_lines_promote(key: *const FlowKey) -> u32 {
    let Some(key) = lines_map::key::<Translated>(key) else { return Promotion::Gone as u32 };
    lines::promote(&LINES, key) as u32
}

/// Makes an established entry a pending one again; see [`lines::demote`].
#[inline(always)]
pub(crate) fn demote(key: &FlowKey) -> bool {
    flow_lines_demote(key)
}

/// Global, see [`crate::global`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_lines_demote(key: *const FlowKey) -> bool {
    let Some(key) = lines_map::key::<Translated>(key) else { return false };
    lines::demote(&LINES, key)
}

/// Takes an entry out of the lines. Whether it was established.
#[inline(always)]
pub(crate) fn remove(key: &FlowKey) -> bool {
    let mut removed = flow_lines_remove(key);
    if removed != 0 {
        removed |= flow_lines_remove(key);
    }
    lines::is_established(removed)
}

/// Global, see [`crate::global`]; see [`lines::remove`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_lines_remove(key: *const FlowKey) -> u64 {
    let Some(key) = lines_map::key::<Translated>(key) else { return 0 };
    lines::remove(&LINES, key)
}

/// Enters a pending entry; see [`lines::put`].
#[inline(always)]
pub(crate) fn put(key: &FlowKey, entry: &Flow) -> bool {
    let attempt = || Put::of(flow_lines_put(key, flow_lines_choose(key), entry));
    lines::put_by(attempt, || _ = flow_lines_keep_first(key))
}

/// Global, see [`crate::global`]; returns a [`Choice`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_lines_choose(key: *const FlowKey) -> Choice {
    let Some(key) = lines_map::key::<Translated>(key) else { return lines::NONE };
    lines::choose(&LINES, key)
}

/// Global, see [`crate::global`]; returns a [`Put`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_lines_put(key: *const FlowKey, choice: Choice, entry: *const Flow) -> u32 {
    let Some(key) = lines_map::key::<Translated>(key) else { return Put::Not as u32 };
    let Some(value) = lines_map::words::<Translated>(entry) else { return Put::Not as u32 };
    lines::try_put(&LINES, key, choice, value) as u32
}

/// Global, see [`crate::global`]; returns 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_lines_keep_first(key: *const FlowKey) -> u32 {
    let Some(key) = lines_map::key::<Translated>(key) else { return 0 };
    lines::keep_first(&LINES, key);
    0
}

/// Enters a pending entry under a key that only one connection may have; see [`lines::put_new`].
#[inline(always)]
pub(crate) fn put_new(key: &FlowKey, entry: &Flow) -> New {
    lines::put_new_by(|| New::of(flow_lines_put_new(key, flow_lines_choose(key), entry)))
}

/// Global, see [`crate::global`]; returns a [`New`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_lines_put_new(key: *const FlowKey, choice: Choice, entry: *const Flow) -> u32 {
    let Some(key) = lines_map::key::<Translated>(key) else { return New::Not as u32 };
    let Some(value) = lines_map::words::<Translated>(entry) else { return New::Not as u32 };
    lines::try_put_new(&LINES, key, choice, value) as u32
}

/// Takes an entry out that was found with this [`Flow::created`], of one line: while the table grows another copy may
/// stay, which a new entry hides and its batch frees. Of several CPUs that try, one does; `None`: it is not there.
/// Otherwise whether it was established.
#[inline(always)]
pub(crate) fn remove_found(key: &FlowKey, created: u64) -> Option<bool> {
    match flow_lines_remove_found(key, created) {
        0 => None,
        removed => Some(removed == 2),
    }
}

/// Global, see [`crate::global`]; returns 0 for nothing, 1 for a pending and 2 for an established entry.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_lines_remove_found(key: *const FlowKey, created: u64) -> u32 {
    let Some(key) = lines_map::key::<Translated>(key) else { return 0 };
    match lines::remove_found(&LINES, key, created) {
        false => 0,
        true => 1 + u32::from(lines::is_established(created)),
    }
}

/// Copies an entry that was found, as it is outside of lines. Its line's state, if it is still this connection's, and
/// pending.
#[inline(always)]
pub(crate) fn copied(key: &FlowKey, entry: &mut Flow, to: &mut Flow) -> Option<u64> {
    let seen = lines::copied(line_of::<Translated>(entry), &Translated::key(key), || copy(entry, to))?;
    to.created = line::before(clock::now(), Translated::created(seen));
    Some(seen)
}
