//! Maps `AFFINITY_SEGMENTS` and `AFFINITY_HEAD` for the code of `dataplane-core` that finds and enters connections in
//! it.

use core::{arch::asm, ptr};

use dataplane_common::{
    flow::{Affinity, AffinityKey},
    line::{self, Bucket, Line as Words, SLOTS, STATE, VALUE, WORDS, head},
};

use crate::{
    atomics::{compare_exchange, fetch_add},
    lines::{self, Found, Key, Line, Lines, Promotion, Value},
    maps::{AFFINITY_HEAD, AFFINITY_SEGMENTS, kind},
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
    fn head(&self, word: usize) -> u64 {
        // SAFETY: a live array map, and one of its words; aligned, so read as a whole.
        AFFINITY_HEAD.get_ptr(0).map_or(0, |at| unsafe { at.cast::<u64>().add(word % head::WORDS).read_volatile() })
    }

    #[inline(always)]
    fn bucket(&self, number: u32) -> Option<*mut Bucket> {
        let (segment, index) = line::place(number);
        AFFINITY_SEGMENTS.get_value_ptr_mut(segment, &index)
    }

    #[inline(always)]
    fn line(&self, bucket: *mut Bucket, slot: usize) -> MapLine {
        // SAFETY: the bucket has that many lines.
        MapLine(unsafe { bucket.cast::<Words>().add(slot % SLOTS).cast() })
    }
}

/// Where an entry is: its line's number and one, or 0; and a bit.
#[derive(Clone, Copy)]
pub(crate) struct Place(u64);

impl Place {
    const ESTABLISHED: u64 = 1 << 32;
    /// Of a connection that is in no line.
    pub(crate) const NOWHERE: Self = Self(0);

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
    pub(crate) fn entry(self) -> Option<&'static mut Affinity> {
        at(self.0 as u32)
    }
}

/// The entry in the line with this number less one; `None` for 0.
// Not inlined: with two look-ups in them the callers would be verified half as long again.
#[inline(never)]
fn at(number: u32) -> Option<&'static mut Affinity> {
    // For 0 a number that no bucket has.
    let number = number.wrapping_sub(1);
    let line = Clients.line(Clients.bucket(number / SLOTS as u32)?, number as usize);
    // SAFETY: the value lies behind the key in the line, which stays mapped. Entries change under their readers, as
    // those of hash maps do: their fields are read as wholes.
    unsafe { line.0.add(VALUE).cast::<Affinity>().as_mut() }
}

/// Looks up the entry of a client's connection.
#[inline(always)]
pub(crate) fn find(key: &AffinityKey) -> Place {
    Place(client_lines_find(key))
}

/// Global, see [`crate::global`]; returns a [`Place`], 0 if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_find(key: *const AffinityKey) -> u64 {
    // SAFETY: `find` passes a reference.
    let Some(key) = (unsafe { key.as_ref() }) else { return 0 };
    match lines::look(&Clients, &of(key)) {
        Ok(Found { bucket, slot, seen }) => {
            let bit = if lines::is_established(seen) { Place::ESTABLISHED } else { 0 };
            // The added 0 depends on the state, so the entry is read after the key.
            (u64::from(bucket) * SLOTS as u64 + slot as u64 + 1 + nothing(seen)) | bit
        }
        // So that what is read next is read after all of them: see `have_spilled`.
        Err(all) => nothing(all),
    }
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
    // SAFETY: `promote` passes a reference.
    let Some(key) = (unsafe { key.as_ref() }) else { return Promotion::Gone as u32 };
    lines::promote(&Clients, &of(key)) as u32
}

/// Takes a connection out that is established here. Whether it was.
#[inline(always)]
pub(crate) fn remove_established(key: &AffinityKey) -> bool {
    client_lines_remove(key)
}

/// Global, see [`crate::global`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_lines_remove(key: *const AffinityKey) -> bool {
    // SAFETY: `remove_established` passes a reference.
    let Some(key) = (unsafe { key.as_ref() }) else { return false };
    lines::remove_established(&Clients, &of(key))
}

/// Whether map `AFFINITY` may hold anything; read after `place` was.
#[inline(always)]
pub(crate) fn have_spilled(place: Place) -> bool {
    AFFINITY_HEAD.get_ptr_mut(0).is_some_and(|head| {
        let head = MapLine(head.cast());
        head.load_after(head::SPILLED, place.0) != head.load_after(head::RETURNED, place.0)
    })
}

/// Notes that an entry was put into `AFFINITY`. Afterwards, for the agent reads the number before the map.
#[inline(always)]
pub(crate) fn spilled() {
    if let Some(head) = AFFINITY_HEAD.get_ptr_mut(0) {
        // SAFETY: a word of a live array map.
        unsafe { fetch_add(head.cast::<u64>().add(head::SPILLED), 1) };
    }
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

/// Whether an entry that was found is still this connection's, and pending.
#[inline(always)]
pub(crate) fn is_pending(key: &AffinityKey, entry: &mut Affinity) -> bool {
    lines::is_pending(line_of(entry), &of(key))
}

/// Copies an entry that was found. Its line's state, if it is still this connection's, and pending.
#[inline(always)]
pub(crate) fn copied(key: &AffinityKey, entry: &mut Affinity, to: &mut Affinity) -> Option<u64> {
    lines::copied(line_of(entry), &of(key), || copy(entry, to))
}

/// Frees the line of an entry that was found, if its state still is `seen`.
#[inline(always)]
pub(crate) fn free(entry: &mut Affinity, seen: u64) {
    lines::free(line_of(entry), seen);
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
