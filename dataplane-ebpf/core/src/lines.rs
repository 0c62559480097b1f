//! A table of connections in cache lines (see `dataplane_common::line`): how one is found, entered and taken out while
//! other CPUs and the agent do the same.
//!
//! A writer claims a line by compare-and-exchange, writes it and publishes it by another. Each claim raises the
//! version, so comparing the whole state word shows any claim in between. A look-up accepts a line only if all words
//! of the key belong to one claim. Afterwards the line may be given to another connection: see [`copied`].
//!
//! The same code runs in the programs, in the agent, and under loom (`tests/lines_loom.rs`). How the table becomes
//! larger is in [`crate::growth`].

use dataplane_common::{
    hash::mix,
    line::{self, KEY, Layout, MOST_ESTABLISHED, SLOTS, VALUE, WORDS, geometry, head, state},
};

mod enter;
#[cfg(not(target_arch = "bpf"))]
mod mapped;

pub use self::enter::{
    Choice, NONE, New, Put, choose, displaces_younger, keep_first, put, put_by, put_new, put_new_by, try_put,
    try_put_new,
};
#[cfg(not(target_arch = "bpf"))]
pub(crate) use self::enter::{chosen, is_free, is_own, write_as};
#[cfg(not(target_arch = "bpf"))]
pub use self::mapped::Mapped;

/// A line's words. A copy refers to the same line.
pub trait Line: Copy {
    /// What is where in it.
    type Layout: Layout;

    /// Reads a word, in no order with anything.
    fn load(self, word: usize) -> u64;

    /// Reads a word after that which has given `seen`.
    fn load_after(self, word: usize, seen: u64) -> u64;

    /// A word of a key that is compared with the line's, or entered in it.
    #[inline(always)]
    fn key_word(self, key: &Key, word: usize) -> u64 {
        key.words[word]
    }

    /// Writes a word, in no order with anything.
    fn store(self, word: usize, value: u64);

    /// Writes word [`Layout::STATE`] if it still is `from`. What is read or written before it stays before it, and what
    /// comes after it after it, on every processor.
    fn replace_state(self, from: u64, to: u64) -> bool;
}

/// The table.
pub trait Lines {
    /// State of a line while it is written. The agent has its own: it can be killed before it publishes.
    const CLAIM: u64 = state::CLAIMED;
    /// A line.
    type Line: Line;
    /// A bucket.
    type Bucket: Copy;
    /// Lines in a bucket.
    const SLOTS: usize = SLOTS;

    /// A word of the head; see `dataplane_common::line::head`.
    fn head(&self, word: usize) -> u64;

    /// The bucket with this number, see `dataplane_common::line::number`; `None` where there is none.
    fn bucket(&self, number: u32) -> Option<Self::Bucket>;

    /// A line of a bucket; `slot` is below [`Self::SLOTS`].
    fn line(&self, bucket: Self::Bucket, slot: usize) -> Self::Line;
}

/// A connection's key.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// See [`KeyWords`].
    pub words: KeyWords,
    /// Which half of the table, see `dataplane_common::flow::pending`.
    pub half: u32,
}

/// A key as it lies in a line: the words before the value, then the state's [`Layout::KEY_BITS`]. Where
/// [`Layout::STATE`] is one of the words before the value, the second of the three is 0.
pub type KeyWords = [u64; 3];

/// The value's words, from [`VALUE`] on. Where one of them lies in the state, it is the time at which the entry was
/// made: nanoseconds on the monotonic clock, rounded down to 2²² and modulo 2⁵⁴.
pub type Value = [u64; WORDS - VALUE];

/// Word of the state.
const fn state_of<L: Line>() -> usize {
    <L::Layout as Layout>::STATE
}

/// A line's state.
#[inline(always)]
pub fn state_in<L: Line>(line: L) -> u64 {
    line.load(state_of::<L>())
}

/// Where a connection may be.
#[derive(Clone, Copy)]
pub struct Places {
    hash: u64,
    geometry: u64,
    half: u32,
}

/// The number of no bucket.
const NOWHERE: u32 = u32::MAX;

impl Places {
    /// Those of the table as it is now. `None`: it is not ready.
    #[inline(always)]
    pub fn of<L: Lines>(lines: &L, key: &Key) -> Option<Self> {
        let (seed, geometry) = (lines.head(head::SEED), lines.head(head::GEOMETRY + key.half as usize));
        let mut hash = mix(seed ^ key.words[0]);
        if state_of::<L::Line>() >= VALUE {
            hash = mix(hash ^ key.words[1]);
        }
        hash = mix(hash ^ key.words[2]);
        if geometry::count(geometry) == 0 { None } else { Some(Self { hash, geometry, half: key.half }) }
    }

    /// The numbers of the two buckets where it is entered.
    #[inline(always)]
    pub fn entered(self) -> [u32; 2] {
        self.among(geometry::count(self.geometry))
    }

    /// While the table grows: the two where it was entered before.
    #[inline(always)]
    pub fn before(self) -> Option<[u32; 2]> {
        let old = geometry::old(self.geometry);
        if old == 0 { None } else { Some(self.among(old)) }
    }

    #[inline(always)]
    fn among(self, count: u32) -> [u32; 2] {
        [self.hash as u32, (self.hash >> 32) as u32].map(|hash| line::number(self.half, hash & (count - 1)))
    }
}

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The bucket's number.
    pub bucket: u32,
    /// The line's number in it.
    pub slot: usize,
    /// The line's state then. What is read of the line only counts if it is read after this, see [`Line::load_after`].
    pub seen: u64,
}

/// Where the connection is. One that is being moved is at its new place before it leaves the old one.
#[inline(always)]
pub fn find<L: Lines>(lines: &L, key: &Key) -> Option<Found> {
    look(lines, key).ok()
}

/// The same. If it is nowhere, a number that all states looked at are part of: what is read after it, see
/// [`Line::load_after`], is read after them.
#[inline(always)]
pub fn look<L: Lines>(lines: &L, key: &Key) -> Result<Found, u64> {
    let mut all = 0;
    for place in Places::of(lines, key).map_or([NOWHERE; 2], Places::entered) {
        if let Some(found) = find_in(lines, place, key, &mut all) {
            return Ok(found);
        }
    }
    // Asked anew rather than kept: programs have little stack. What has been spilled before this was read is found
    // then.
    let Some(places) = Places::of(lines, key) else { return Err(all) };
    all |= places.geometry;
    let Some(before) = places.before() else { return Err(all) };
    for place in before {
        if let Some(found) = find_in(lines, place, key, &mut all) {
            return Ok(found);
        }
    }
    Err(all)
}

#[inline(always)]
fn find_in<L: Lines>(lines: &L, place: u32, key: &Key, all: &mut u64) -> Option<Found> {
    let bucket = lines.bucket(place)?;
    for slot in 0..L::SLOTS {
        let line = lines.line(bucket, slot);
        let seen = state_in(line);
        if holds(line, seen, key) {
            return Some(Found { bucket: place, slot, seen });
        }
        *all |= seen;
    }
    None
}

/// Whether the connection is in a line with this state.
#[inline(always)]
fn holds<L: Line>(line: L, seen: u64, key: &Key) -> bool {
    if !is_of(line, seen, key) {
        return false;
    }
    let [low, high] = key_after(line, seen);
    let again = line.load_after(state_of::<L>(), low | high);
    // All words of one claim; it may have proved itself meanwhile.
    low == line.key_word(key, 0) && high == line.key_word(key, 1) && again | state::PROVED == seen | state::PROVED
}

/// The key's words before the value, read after the state.
#[inline(always)]
fn key_after<L: Line>(line: L, seen: u64) -> [u64; 2] {
    let high = if state_of::<L>() >= VALUE { line.load_after(KEY + 1, seen) } else { 0 };
    [line.load_after(KEY, seen), high]
}

/// Whether a line with this state may be the connection's.
#[inline(always)]
fn is_of<L: Line>(line: L, seen: u64, key: &Key) -> bool {
    seen & (state::BITS & !state::PROVED | <L::Layout as Layout>::KEY_BITS) == line.key_word(key, 2) | state::PENDING
}

/// The same, with its key's other words.
#[inline(always)]
fn is_its<L: Line>(line: L, seen: u64, key: &Key) -> bool {
    let [low, high] = if is_of(line, seen, key) { key_after(line, seen) } else { return false };
    low == line.key_word(key, 0) && high == line.key_word(key, 1)
}

/// Whether a line with this state holds a connection.
#[inline(always)]
pub fn is_used(seen: u64) -> bool {
    seen & state::USED != 0
}

/// Whether a line with this state holds an established connection.
#[inline(always)]
pub fn is_established(seen: u64) -> bool {
    seen & state::BITS == state::ESTABLISHED
}

/// What came of a promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Promotion {
    /// The connection is not pending here: another CPU has promoted it, or it was displaced.
    Gone,
    /// It is established.
    Done,
    /// Its bucket has as many established entries as it may have, or none may be established here yet.
    Full,
}

/// Makes a pending connection an established one, in its line.
#[inline(always)]
pub fn promote<L: Lines>(lines: &L, key: &Key) -> Promotion {
    let Some(found) = find(lines, key) else { return Promotion::Gone };
    let Some(bucket) = lines.bucket(found.bucket) else { return Promotion::Gone };
    if is_established(found.seen) {
        return Promotion::Gone;
    }
    if lines.head(head::ESTABLISHES) == 0 || !has_room(lines, bucket) {
        return Promotion::Full;
    }
    let line = lines.line(bucket, found.slot);
    let proved = found.seen | state::PROVED;
    if !line.replace_state(found.seen, proved) {
        return Promotion::Gone;
    }
    // Another CPU may have promoted in this bucket at the same time.
    if is_overfull(lines, bucket) && line.replace_state(proved, found.seen) {
        return Promotion::Full;
    }
    Promotion::Done
}

/// Makes an established connection a pending one again. Whether it was established.
#[inline(always)]
pub fn demote<L: Lines>(lines: &L, key: &Key) -> bool {
    let Some(found) = find(lines, key) else { return false };
    let Some(bucket) = lines.bucket(found.bucket) else { return false };
    let line = lines.line(bucket, found.slot);
    is_established(found.seen) && line.replace_state(found.seen, found.seen & !state::PROVED)
}

/// Whether more are established in a bucket than may be.
#[inline(always)]
pub(crate) fn is_overfull<L: Lines>(lines: &L, bucket: L::Bucket) -> bool {
    established(lines, bucket) > L::SLOTS.min(MOST_ESTABLISHED)
}

/// Whether one more may be established in a bucket.
#[inline(always)]
pub(crate) fn has_room<L: Lines>(lines: &L, bucket: L::Bucket) -> bool {
    established(lines, bucket) < L::SLOTS.min(MOST_ESTABLISHED)
}

/// How many lines of a bucket hold established connections.
#[inline(always)]
fn established<L: Lines>(lines: &L, bucket: L::Bucket) -> usize {
    let mut count = 0;
    for slot in 0..L::SLOTS {
        count += usize::from(is_established(state_in(lines.line(bucket, slot))));
    }
    count
}

/// Frees a line in which the connection is established. Whether there was one. While the table grows there may be two:
/// call it again after a success.
#[inline(always)]
pub fn remove_established<L: Lines>(lines: &L, key: &Key) -> bool {
    remove_one(lines, key, is_established) != 0
}

/// Frees a line of the connection, pending or established. Its state before, or 0. Call it again likewise.
#[inline(always)]
pub fn remove<L: Lines>(lines: &L, key: &Key) -> u64 {
    let Some(found) = find(lines, key) else { return 0 };
    let Some(bucket) = lines.bucket(found.bucket) else { return 0 };
    free_at_any_stage(lines.line(bucket, found.slot), found.seen)
}

/// Frees a line whose state is `seen`, or differs from it only by a promotion or a demotion since. Its state before, or
/// 0.
#[inline(always)]
pub(crate) fn free_at_any_stage(line: impl Line, seen: u64) -> u64 {
    if free(line, seen) {
        return seen;
    }
    let other = seen ^ state::PROVED;
    if free(line, other) { other } else { 0 }
}

/// Empties the line of a connection if its state still is `seen`. Whether it was.
#[inline(always)]
pub fn remove_found<L: Lines>(lines: &L, key: &Key, seen: u64) -> bool {
    remove_one(lines, key, |now| now == seen) != 0
}

/// The state of the line that was emptied, or 0.
#[inline(always)]
fn remove_one<L: Lines>(lines: &L, key: &Key, is_meant: impl Fn(u64) -> bool) -> u64 {
    let Some(found) = find(lines, key) else { return 0 };
    let Some(bucket) = lines.bucket(found.bucket) else { return 0 };
    let removed = is_meant(found.seen) && free(lines.line(bucket, found.slot), found.seen);
    if removed { found.seen } else { 0 }
}

/// A line's state after [`free`].
#[inline(always)]
pub(crate) fn freed(seen: u64) -> u64 {
    seen & state::VERSION
}

/// Empties a line if the connection is in it. Whether it was.
#[inline(always)]
pub fn remove_from(line: impl Line, key: &Key) -> bool {
    let seen = state_in(line);
    is_its(line, seen, key) && free(line, seen)
}

/// After a connection was taken out of one line: takes it out of all, because it may be in two while the table grows.
pub fn remove_rest<L: Lines>(lines: &L, key: &Key) {
    let Some(places) = Places::of(lines, key) else { return };
    let Some(before) = places.before() else { return };
    for bucket in before.into_iter().chain(places.entered()).filter_map(|place| lines.bucket(place)) {
        for slot in 0..L::SLOTS {
            remove_from(lines.line(bucket, slot), key);
        }
    }
}

/// Empties a line whose state still is `seen`. Whether it was.
#[inline(always)]
pub fn free(line: impl Line, seen: u64) -> bool {
    line.replace_state(seen, freed(seen))
}

/// Whether this connection is pending in the line.
#[inline(always)]
pub fn is_pending(line: impl Line, key: &Key) -> bool {
    let seen = state_in(line);
    !is_established(seen) && holds(line, seen, key)
}

/// Runs `copy`. The line's state if it held this connection's pending entry from before it until after it.
#[inline(always)]
pub fn copied(line: impl Line, key: &Key, copy: impl FnOnce()) -> Option<u64> {
    let seen = state_in(line);
    if is_established(seen) || !holds(line, seen, key) {
        return None;
    }
    // Replaced by itself: what is copied is read between the two, on every processor.
    if !line.replace_state(seen, seen) {
        return None;
    }
    copy();
    line.replace_state(seen, seen).then_some(seen)
}

/// Frees a line that an agent had claimed; no other agent may run. Whether it was.
pub fn reclaim(line: impl Line) -> bool {
    let seen = state_in(line);
    seen & state::BITS == state::CLAIMED_BY_AGENT && free(line, seen)
}

/// What is in a line, and its state then; `None`: nothing, or it is being written. The words of the value are each
/// read as a whole; the programs may change them at any time.
#[inline(always)]
pub fn read<L: Line>(line: L) -> Option<(KeyWords, Value, u64)> {
    let seen = state_in(line);
    if !matches!(seen & state::BITS, state::PENDING | state::ESTABLISHED) {
        return None;
    }
    let mut value = [0; WORDS - VALUE];
    let [low, high] = key_after(line, seen);
    let mut all = low | high;
    for (word, part) in value.iter_mut().enumerate() {
        *part = match VALUE + word == state_of::<L>() {
            true => <L::Layout as Layout>::created(seen),
            false => line.load_after(VALUE + word, seen),
        };
        all |= *part;
    }
    let key = [low, high, seen & <L::Layout as Layout>::KEY_BITS];
    if line.load_after(state_of::<L>(), all) == seen { Some((key, value, seen)) } else { None }
}
