//! Maps of lines (`*_SEGMENTS` and `*_HEAD`) for the code of `dataplane-core` that finds and enters connections in
//! them.
//!
//! A table's global functions (see [`crate::global`]) are in a file of its own: `client_lines.rs`, `flow_lines.rs`.

use core::{arch::asm, marker::PhantomData, ptr};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{Array, ArrayOfMaps, HashMap},
};
use dataplane_common::{
    flow::{MAX_FLOWS, pending},
    line::{self, Bucket, CREATED, Head, Layout, Line as Words, SEGMENTS, SLOTS, VALUE, head},
};

use crate::{
    atomics::{compare_exchange, fetch_add},
    lines::{self, Found, Key, Line, Lines, Value},
    maps::{GROWING, MMAPABLE, Segment},
    scratch::scratch,
    shares,
};

/// A table of connections in lines.
pub(crate) trait Table: Layout {
    /// A connection's key.
    type Key: 'static;
    /// What its line holds beside the key.
    type Entry: 'static;

    /// Its segments.
    fn segments() -> &'static ArrayOfMaps<Segment, { (pending::COUNT * SEGMENTS) as usize }>;

    /// Its head, which says how large the halves are.
    fn head() -> &'static Array<Head, 1, MMAPABLE>;

    /// Established entries that found no line.
    fn overflow() -> &'static HashMap<Self::Key, Self::Entry, { MAX_FLOWS as usize }, GROWING>;

    /// The key as it lies in a line.
    fn key(key: &Self::Key) -> Key;
}

/// A line: a pointer into a live array map, aligned to its 64 bytes.
pub(crate) struct MapLine<L>(*mut u64, PhantomData<L>);

impl<L> Clone for MapLine<L> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for MapLine<L> {}

impl<L: Layout> Line for MapLine<L> {
    type Layout = L;

    #[inline(always)]
    fn load(self, word: usize) -> u64 {
        // SAFETY: the pointer is into a live array map, and `word` is one of its words; aligned, so read as a whole.
        unsafe { self.0.add(word).read_volatile() }
    }

    // The address depends on what was read: no processor reads it earlier, and it costs no barrier, which programs
    // have from kernel 6.15 on only.
    #[inline(always)]
    fn load_after(self, word: usize, seen: u64) -> u64 {
        // SAFETY: as above; nothing is added.
        unsafe { self.0.byte_add(nothing(seen) as usize).add(word).read_volatile() }
    }

    // From memory each time, see `key`.
    #[inline(always)]
    fn key_word(self, key: &Key, word: usize) -> u64 {
        // SAFETY: a reference is valid and aligned.
        unsafe { (&raw const key.words[word]).read_volatile() }
    }

    #[inline(always)]
    fn store(self, word: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.0.add(word).write_volatile(value) };
    }

    // Atomic instructions that return something are full barriers.
    #[inline(always)]
    fn replace_state(self, from: u64, to: u64) -> bool {
        // SAFETY: as above.
        unsafe { compare_exchange(self.0.add(L::STATE), from, to) == from }
    }
}

/// Always 0, and a number that depends on `seen`.
#[inline(always)]
fn nothing(mut seen: u64) -> u64 {
    // SAFETY: one instruction on a register, whose outcome LLVM does not know. The verifier does.
    unsafe { asm!("{0} &= 0", inout(reg) seen) };
    seen
}

/// A table's lines.
pub(crate) struct InMaps<T>(PhantomData<T>);

impl<T> InMaps<T> {
    pub(crate) const NEW: Self = Self(PhantomData);
}

impl<T: Table> Lines for InMaps<T> {
    type Line = MapLine<T>;
    type Bucket = *mut Bucket;

    #[inline(always)]
    fn head(&self, word: usize) -> u64 {
        // SAFETY: a live array map, and one of its words; aligned, so read as a whole.
        T::head().get_ptr(0).map_or(0, |at| unsafe { at.cast::<u64>().add(word % head::WORDS).read_volatile() })
    }

    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<*mut Bucket> {
        let (segment, index) = line::place(number);
        T::segments().get_value_ptr_mut(segment, &index)
    }

    #[inline(always)]
    fn line(&self, bucket: *mut Bucket, slot: usize) -> MapLine<T> {
        // SAFETY: the bucket has that many lines.
        MapLine(unsafe { bucket.cast::<Words>().add(slot % SLOTS).cast() }, PhantomData)
    }
}

/// Where an entry is: one more than its line's number, or 0 for none; bit 32 says that it is established.
#[derive(Clone, Copy)]
pub(crate) struct Place(u64);

impl Place {
    const ESTABLISHED: u64 = 1 << 32;
    /// Of a connection that is in no line.
    pub(crate) const NOWHERE: Self = Self(0);

    /// Of what [`find`] has returned.
    #[inline(always)]
    pub(crate) fn of(found: u64) -> Self {
        Self(found)
    }

    /// Whether there is an entry, established or pending.
    #[inline(always)]
    pub(crate) fn is_found(self) -> bool {
        self.0 != 0
    }

    /// Whether there is one that is established.
    #[inline(always)]
    pub(crate) fn is_established(self) -> bool {
        self.0 & Self::ESTABLISHED != 0
    }

    /// The entry there.
    #[inline(always)]
    pub(crate) fn entry<T: Table>(self) -> Option<&'static mut T::Entry> {
        at::<T>(self.0 as u32)
    }
}

/// The entry in the line with this number less one; `None` for 0.
// Not inlined: with two look-ups in them the callers would be verified half as long again.
#[inline(never)]
fn at<T: Table>(number: u32) -> Option<&'static mut T::Entry> {
    const { assert!(size_of::<T::Entry>() == size_of::<Value>() && align_of::<T::Entry>() == align_of::<Value>()) };
    let lines = InMaps::<T>::NEW;
    // For 0 a number that no bucket has.
    let number = number.wrapping_sub(1);
    let line = lines.line(lines.bucket(number / SLOTS as u32)?, number as usize);
    // SAFETY: the value lies in the line, which stays mapped. Entries change under their readers, as those of hash maps
    // do: their fields are read as wholes.
    unsafe { line.0.add(VALUE).cast::<T::Entry>().as_mut() }
}

/// Looks up an entry: the number in a [`Place`].
#[inline(always)]
pub(crate) fn find<T: Table>(key: &Key) -> u64 {
    match lines::look(&InMaps::<T>::NEW, key) {
        Ok(Found { bucket, slot, seen }) => {
            let bit = if lines::is_established(seen) { Place::ESTABLISHED } else { 0 };
            // The added 0 depends on the state, so the entry is read after the key.
            (u64::from(bucket) * SLOTS as u64 + slot as u64 + 1 + nothing(seen)) | bit
        }
        // So that what is read next is read after all of them: see `have_spilled`.
        Err(all) => nothing(all),
    }
}

/// A key that was passed by pointer, as it lies in a line: in scratch memory, from where it is read again after each
/// call of a helper, for these functions are the last of long chains of calls.
#[inline(always)]
pub(crate) fn key<'a, T: Table>(key: *const T::Key) -> Option<&'a Key> {
    let kept = &mut scratch().ok()?.line_key;
    // SAFETY: callers of global functions pass references.
    *kept = T::key(unsafe { key.as_ref() }?);
    Some(kept)
}

/// The words of an entry that was passed by pointer.
#[inline(always)]
pub(crate) fn words<'a, T: Table>(entry: *const T::Entry) -> Option<&'a Value> {
    const { assert!(size_of::<T::Entry>() == size_of::<Value>() && align_of::<T::Entry>() == align_of::<Value>()) };
    // SAFETY: as for `key`; as many bytes, aligned likewise, and any bytes are words.
    unsafe { entry.cast::<Value>().as_ref() }
}

/// Whether the overflow may hold anything; read after `place` was.
#[inline(always)]
pub(crate) fn have_spilled<T: Table>(place: Place) -> bool {
    T::head().get_ptr_mut(0).is_some_and(|head| {
        let head = MapLine::<T>(head.cast(), PhantomData);
        head.load_after(head::SPILLED, place.0) != head.load_after(head::RETURNED, place.0)
    })
}

/// Has what is read next read after the numbers of [`have_spilled`]: whoever moves an entry to the overflow counts
/// before he frees its line. A full barrier, on memory of this CPU's.
#[inline(always)]
pub(crate) fn look_there_after() -> Option<()> {
    // SAFETY: into this CPU's scratch slot, aligned to 8; adding nothing changes nothing.
    unsafe { fetch_add(&raw mut scratch().ok()?.fence, 0) };
    Some(())
}

/// The entry with this key in the overflow. `place`: where it was not found in the lines.
#[inline(always)]
pub(crate) fn get_spilled<T: Table>(place: Place, key: &T::Key) -> Option<&'static mut T::Entry> {
    if !have_spilled::<T>(place) {
        return None;
    }
    look_there_after()?;
    // SAFETY: entries change under their readers, as those in lines do: their fields are read as wholes.
    T::overflow().get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
}

/// Takes the entry with this key out of the overflow; what that changes, see [`shares::taken_out`].
#[inline(always)]
pub(crate) fn take_out_spilled<T: Table>(key: &T::Key) -> i64 {
    if !have_spilled::<T>(Place::NOWHERE) {
        return 0;
    }
    shares::taken_out(T::overflow().remove(key))
}

/// What came of an attempt to establish an entry.
pub(crate) enum Established {
    /// It is established.
    Now,
    /// Another CPU has done so, or the entry was displaced.
    Elsewhere,
    /// There is no room.
    NoRoom,
}

/// Moves an entry of a connection that has proved itself to the overflow: `known`, as it was `copied` from its line
/// when that had the state `seen`.
#[inline(always)]
pub(crate) fn spill<T: Table>(key: &T::Key, known: &mut T::Entry, copied: &T::Entry, seen: u64) -> Established {
    const EEXIST: i32 = -17;
    match T::overflow().insert(key, copied, BPF_NOEXIST as u64) {
        Ok(()) => {}
        Err(EEXIST) => {
            // Another CPU is doing the same; or it is an older connection's, hidden by the line: the stack has no room
            // for counting it, which the next sweep does.
            if T::overflow().get_ptr(key).is_some_and(|there| made::<T>(there) != made::<T>(copied)) {
                let _ = T::overflow().remove(key);
            }
            return Established::Elsewhere;
        }
        Err(_) => return Established::NoRoom,
    }
    if let Some(head) = T::head().get_ptr_mut(0) {
        // Afterwards, for the agent reads the number before the map.
        // SAFETY: a word of a live array map.
        unsafe { fetch_add(head.cast::<u64>().add(head::SPILLED), 1) };
    }
    // Last: until then it is found here. Where it was taken out meanwhile, or promoted, it is not to be there.
    if !lines::free(line_of::<T>(known), seen) {
        let _ = T::overflow().remove(key);
        return Established::Elsewhere;
    }
    Established::Now
}

/// When an entry outside of lines was made, as exactly as a line tells.
#[inline(always)]
fn made<T: Table>(entry: *const T::Entry) -> u64 {
    // SAFETY: a word of an element of a live map, or of one that was passed by reference; aligned, so read as a whole.
    (unsafe { entry.cast::<u64>().add(CREATED).read_volatile() }) >> T::COARSE_BITS
}

/// The line that an entry is in.
#[inline(always)]
pub(crate) fn line_of<T: Table>(entry: &mut T::Entry) -> MapLine<T> {
    // SAFETY: the entry is the value of a line.
    MapLine(unsafe { ptr::from_mut(entry).cast::<u64>().sub(VALUE) }, PhantomData)
}
