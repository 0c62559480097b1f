//! Map `AFFINITY_LINES` for the code of `dataplane-core` that finds and enters connections in it.

use core::{arch::asm, ptr};

use dataplane_common::{
    flow::{Affinity, AffinityKey},
    line::{Bucket, Line as Words, SLOTS, STATE, VALUE, WORDS},
};

use crate::{
    atomics::compare_exchange,
    lines::{self, Found, Key, Line, Lines, Value},
    maps::{AFFINITY_LINES, kind},
    scratch::copy,
};

/// A line: a pointer into the live array map, aligned to its 64 bytes.
#[derive(Clone, Copy)]
struct MapLine(*mut u64);

impl Line for MapLine {
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

    #[inline(always)]
    fn store(self, word: usize, value: u64) {
        // SAFETY: as above.
        unsafe { self.0.add(word).write_volatile(value) };
    }

    // Atomic instructions that return something are full barriers.
    #[inline(always)]
    fn replace_state(self, from: u64, to: u64) -> bool {
        // SAFETY: as above.
        unsafe { compare_exchange(self.0.add(STATE), from, to) == from }
    }
}

/// Always 0, and a number that depends on `seen`.
#[inline(always)]
fn nothing(mut seen: u64) -> u64 {
    // SAFETY: one instruction on a register, whose outcome LLVM does not know. The verifier does.
    unsafe { asm!("{0} &= 0", inout(reg) seen) };
    seen
}

struct Clients;

impl Lines for Clients {
    type Line = MapLine;
    type Bucket = *mut Bucket;

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<*mut Bucket> {
        AFFINITY_LINES.get_ptr_mut(index)
    }

    #[inline(always)]
    fn line(&self, bucket: *mut Bucket, slot: usize) -> MapLine {
        // SAFETY: the bucket has that many lines.
        MapLine(unsafe { bucket.cast::<Words>().add(slot % SLOTS).cast() })
    }
}

/// Looks up the pending entry of a client's connection.
#[inline(always)]
pub(crate) fn find(key: &AffinityKey) -> Option<&'static mut Affinity> {
    let found = client_lines_find(key);
    let line = Clients.line(Clients.bucket(found / SLOTS as u32)?, found as usize);
    // SAFETY: the value lies behind the key in the line, which stays mapped. Entries change under their readers, as
    // those of hash maps do: their fields are read as wholes.
    let entry = unsafe { line.0.add(VALUE).cast::<Affinity>().as_mut() };
    if found == 0 { None } else { entry }
}

/// Global, see [`crate::global`]; returns the line's number, 0 if there is none: the header's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_find(key: *const AffinityKey) -> u32 {
    // SAFETY: `find` passes a reference.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    // The added 0 depends on the state, so the entry is read after the key.
    let number = |found: Found| found.bucket * SLOTS as u32 + found.slot as u32 + nothing(found.seen) as u32;
    lines::find(&Clients, &of(key)).map_or(0, number)
}

/// Enters a connection; see [`lines::put`].
#[inline(always)]
pub(crate) fn put(key: &AffinityKey, entry: &Affinity) -> bool {
    let (choose, write) = (|| client_lines_choose(key), |choice| client_lines_write(key, choice, entry));
    lines::put_by(choose, write, || _ = client_lines_keep_first(key))
}

/// Global, see [`crate::global`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_choose(key: *const AffinityKey) -> u64 {
    // SAFETY: `put` passes a reference.
    let Some(key) = (unsafe { key.as_ref() }) else { return lines::NONE };
    lines::choose(&Clients, &of(key))
}

/// Global, see [`crate::global`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_write(key: *const AffinityKey, choice: u64, entry: *const Affinity) -> bool {
    const { assert!(size_of::<Affinity>() == size_of::<Value>() && align_of::<Affinity>() == align_of::<Value>()) };
    // SAFETY: `put` passes references; as many bytes, aligned likewise, and any bytes are words.
    let given = unsafe { (key.as_ref(), entry.cast::<Value>().as_ref()) };
    let (Some(key), Some(value)) = given else { return false };
    lines::write(&Clients, &of(key), choice, value)
}

/// Global, see [`crate::global`]; returns 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_keep_first(key: *const AffinityKey) -> u32 {
    // SAFETY: `put` passes a reference.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    lines::keep_first(&Clients, &of(key));
    0
}

/// Copies an entry that [`find`] returned. False if its line was given to another connection meanwhile.
#[inline(always)]
pub(crate) fn copied(key: &AffinityKey, entry: &mut Affinity, to: &mut Affinity) -> bool {
    lines::copied(line_of(entry), &of(key), || copy(entry, to))
}

/// Frees the line of an entry that [`find`] returned, if it still holds this key.
#[inline(always)]
pub(crate) fn remove(key: &AffinityKey, entry: &mut Affinity) {
    lines::remove_from(line_of(entry), &of(key));
}

/// The line that an entry is in.
#[inline(always)]
fn line_of(entry: &mut Affinity) -> MapLine {
    // SAFETY: the entry is the value of a line.
    MapLine(unsafe { ptr::from_mut(entry).cast::<u64>().sub(VALUE) })
}

#[inline(always)]
fn of(key: &AffinityKey) -> Key {
    const { assert!(WORDS - VALUE == 6 && size_of::<AffinityKey>() == 16 && align_of::<AffinityKey>() == 4) };
    // In halves: a key on the stack is aligned to four.
    // SAFETY: as many bytes, aligned likewise.
    let [a, b, c, d] = unsafe { *ptr::from_ref(key).cast::<[u32; 4]>() };
    let word = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    Key { words: [word(a, b), word(c, d)], half: kind(key.proto) }
}
