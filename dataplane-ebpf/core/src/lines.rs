//! A table of connections in cache lines (see `dataplane_common::line`): how one is found, entered and taken out while
//! other CPUs and the agent do the same.
//!
//! A writer claims a line by compare-and-exchange, writes it and publishes it by another. Each claim raises the
//! version, so comparing the whole state word shows any claim in between. A look-up accepts a line only if both words
//! of the key belong to one claim. Afterwards the line may be given to another connection: see [`copied`].
//!
//! The same code runs in the programs, in the agent, and under loom (`tests/lines_loom.rs`). How the table becomes
//! larger is in [`crate::growth`].

use dataplane_common::{
    hash::mix,
    line::{self, KEY, MOST_ESTABLISHED, SLOTS, STATE, VALUE, WORDS, geometry, head, state},
};

/// A line's words. A copy refers to the same line.
pub trait Line: Copy {
    /// Reads a word, in no order with anything.
    fn load(self, word: usize) -> u64;

    /// Reads a word after that which has given `seen`.
    fn load_after(self, word: usize, seen: u64) -> u64;

    /// Writes a word, in no order with anything.
    fn store(self, word: usize, value: u64);

    /// Writes word [`STATE`] if it still is `from`. What is read or written before it stays before it, and what comes
    /// after it after it, on every processor.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its 16 bytes, of which the last three are zero.
    pub words: [u64; 2],
    /// Which half of the table, see `dataplane_common::flow::pending`.
    pub half: u32,
}

/// The value's words.
pub type Value = [u64; WORDS - VALUE];

/// Where a connection may be.
#[derive(Clone, Copy)]
pub struct Places {
    hash: u64,
    geometry: u64,
    half: u32,
}

impl Places {
    /// Those of the table as it is now. `None`: it is not ready.
    #[inline(always)]
    pub fn of<L: Lines>(lines: &L, key: &Key) -> Option<Self> {
        let (seed, geometry) = (lines.head(head::SEED), lines.head(head::GEOMETRY + key.half as usize));
        let hash = mix(mix(seed ^ key.words[0]) ^ key.words[1]);
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
    let Some(places) = Places::of(lines, key) else { return Err(all) };
    for place in places.entered() {
        if let Some(found) = find_in(lines, place, key, &mut all) {
            return Ok(found);
        }
    }
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
        let seen = line.load(STATE);
        if holds(line, seen, key) {
            return Some(Found { bucket: place, slot, seen });
        }
        *all |= seen;
    }
    None
}

/// Whether the connection is in a line with this state.
#[inline(always)]
fn holds(line: impl Line, seen: u64, key: &Key) -> bool {
    if !is_of(seen, key) {
        return false;
    }
    let low = line.load_after(KEY, seen);
    let again = line.load_after(STATE, low);
    // Both words of one claim.
    low == key.words[0] && again == seen
}

/// Whether a line with this state may be the connection's.
#[inline(always)]
fn is_of(seen: u64, key: &Key) -> bool {
    seen & !(state::VERSION | state::PROVED) == key.words[1] | state::PENDING
}

/// Whether a line with this state holds an established connection.
#[inline(always)]
pub fn is_established(seen: u64) -> bool {
    seen & state::BITS == state::ESTABLISHED
}

/// Inserts a pending connection: over the pending entry with the same key, else into a free line, else over the pending
/// entry that was last seen before all others. An established entry with the same key stays as it is. False if the
/// table is not ready, or no line could be claimed in two attempts.
#[inline(always)]
pub fn put<L: Lines>(lines: &L, key: &Key, value: &Value) -> bool {
    put_by(|| choose(lines, key), |choice| write(lines, key, choice, value), || keep_first(lines, key))
}

/// The steps of [`put`], for callers whose stack cannot hold all of them at once.
#[inline(always)]
pub fn put_by(choose: impl Fn() -> Choice, write: impl Fn(Choice) -> bool, keep_first: impl FnOnce()) -> bool {
    if !write(choose()) && !write(choose()) {
        return false;
    }
    keep_first();
    true
}

/// Whether writing to this line displaces an entry that was last seen at `than` or later.
#[must_use]
pub fn displaces_younger(choice: Choice, than: u64) -> bool {
    choice >= SEEN && choice & !INDEX >= than & !INDEX
}

/// Whether the line that was chosen is free.
#[cfg(not(target_arch = "bpf"))]
pub(crate) fn is_free(choice: Choice) -> bool {
    choice & !INDEX == FREE
}

/// Whether the line that was chosen holds the connection already.
#[cfg(not(target_arch = "bpf"))]
pub(crate) fn is_own(choice: Choice) -> bool {
    choice & !INDEX == OWN
}

/// Rank of a line, with its index among the connection's eight in the last bits. The lowest is chosen.
// VERIFIER: a scalar of unknown value. With the line itself all that follows would be verified once for each line.
pub type Choice = u64;

/// Bits of a [`Choice`] that are the index.
const INDEX: Choice = 4 * SLOTS as u64 - 1;
/// The line holds this key.
const OWN: Choice = 0;
const FREE: Choice = INDEX + 1;
/// From here on: when the entry in the line was last seen, in nanoseconds since the machine started.
const SEEN: Choice = 2 * FREE;
const LATEST: Choice = NONE - 2 * INDEX - 1;
/// No line: the table is not ready, or all lines are claimed.
pub const NONE: Choice = u64::MAX;

/// A line's index among the connection's eight: in order of preference. The last line of a bucket, which mostly is used
/// last, comes after all others of both: so buckets become full later, and rarely both.
#[inline(always)]
fn index<L: Lines>(nth: usize, slot: usize) -> Choice {
    let last = Choice::from(slot == L::SLOTS - 1);
    (last * 2 + nth as Choice) * SLOTS as Choice + slot as Choice
}

/// Which bucket it is in, and which line of that it is.
#[inline(always)]
fn at_index(index: Choice) -> (usize, usize) {
    (index as usize / SLOTS % 2, index as usize % SLOTS)
}

/// Chooses a line for [`write`].
#[inline(always)]
pub fn choose<L: Lines>(lines: &L, key: &Key) -> Choice {
    let Some(places) = Places::of(lines, key) else { return NONE };
    let mut lowest = NONE;
    for (nth, place) in places.entered().iter().enumerate() {
        let Some(bucket) = lines.bucket(*place) else { return NONE };
        for slot in 0..L::SLOTS {
            let line = lines.line(bucket, slot);
            let choice = rank(line, line.load(STATE), key) | index::<L>(nth, slot);
            if choice < lowest {
                lowest = choice;
            }
        }
    }
    lowest
}

#[inline(always)]
fn rank(line: impl Line, seen: u64, key: &Key) -> Choice {
    match seen & state::BITS {
        state::PENDING | state::ESTABLISHED if is_of(seen, key) && line.load_after(KEY, seen) == key.words[0] => OWN,
        state::PENDING => (line.load_after(VALUE, seen) & !INDEX).clamp(SEEN, LATEST),
        state::FREE => FREE,
        // Claimed, or another's established.
        _ => NONE,
    }
}

/// Enters the connection in the line that was chosen, if that still is as it was.
#[inline(always)]
pub fn write<L: Lines>(lines: &L, key: &Key, choice: Choice, value: &Value) -> bool {
    let Some((_, line)) = chosen(lines, key, choice) else { return false };
    write_as::<L>(line, key, choice, value, state::PENDING).is_some()
}

/// The line that was chosen, and its bucket.
#[inline(always)]
pub(crate) fn chosen<L: Lines>(lines: &L, key: &Key, choice: Choice) -> Option<(L::Bucket, L::Line)> {
    if choice == NONE {
        return None;
    }
    let [one, other] = Places::of(lines, key)?.entered();
    let (nth, slot) = at_index(choice & INDEX);
    let place = if nth == 0 { one } else { other };
    let bucket = lines.bucket(place)?;
    Some((bucket, lines.line(bucket, slot)))
}

/// As [`write`], with the bits of the state that it has afterwards. The whole of the line's state then.
#[inline(always)]
pub(crate) fn write_as<L: Lines>(line: L::Line, key: &Key, choice: Choice, value: &Value, bits: u64) -> Option<u64> {
    let seen = line.load(STATE);
    let version = (seen & state::VERSION).wrapping_add(state::ONE_CLAIM);
    if rank(line, seen, key) != choice & !INDEX {
        return None;
    }
    // Another CPU has entered it, and it has proved itself since.
    if is_established(seen) {
        return Some(seen);
    }
    if !line.replace_state(seen, version | L::CLAIM) {
        return None;
    }
    line.store(KEY, key.words[0]);
    for (word, part) in value.iter().enumerate() {
        line.store(VALUE + word, *part);
    }
    let published = version | bits | key.words[1];
    line.replace_state(version | L::CLAIM, published).then_some(published)
}

/// Two CPUs may insert one connection into two lines. Each calls this after it has published: the first line keeps the
/// entry, or one in which the connection has proved itself since; the others are freed. Where it was before the table
/// began to grow it is found no more, and freed with what is moved.
#[inline(always)]
pub fn keep_first<L: Lines>(lines: &L, key: &Key) {
    let Some(places) = Places::of(lines, key) else { return };
    let [one, other] = places.entered();
    let mut found = find_established(lines, key, [one, other]);
    for place in [one, other] {
        let Some(bucket) = lines.bucket(place) else { return };
        for slot in 0..L::SLOTS {
            let line = lines.line(bucket, slot);
            let seen = line.load(STATE);
            if !holds(line, seen, key) {
                continue;
            }
            if found && !is_established(seen) {
                free(line, seen);
            }
            found = true;
        }
        // The same bucket twice is one bucket.
        if one == other {
            return;
        }
    }
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
        count += usize::from(is_established(lines.line(bucket, slot).load(STATE)));
    }
    count
}

/// Empties the lines of a connection that is established in them: in two while it is moved. Whether it was.
#[inline(always)]
pub fn remove_established<L: Lines>(lines: &L, key: &Key) -> bool {
    let mut removed = false;
    for _ in 0..2 {
        removed |= remove_one(lines, key);
    }
    removed
}

#[inline(always)]
fn remove_one<L: Lines>(lines: &L, key: &Key) -> bool {
    let Some(found) = find(lines, key) else { return false };
    let Some(bucket) = lines.bucket(found.bucket) else { return false };
    is_established(found.seen) && free(lines.line(bucket, found.slot), found.seen)
}

/// Whether the connection is established in one of these buckets.
#[inline(always)]
fn find_established<L: Lines>(lines: &L, key: &Key, places: [u32; 2]) -> bool {
    for place in places {
        let Some(bucket) = lines.bucket(place) else { return false };
        for slot in 0..L::SLOTS {
            let line = lines.line(bucket, slot);
            let seen = line.load(STATE);
            if is_established(seen) && holds(line, seen, key) {
                return true;
            }
        }
    }
    false
}

/// A line's state after [`free`].
#[inline(always)]
pub(crate) fn freed(seen: u64) -> u64 {
    seen & state::VERSION
}

/// Empties a line if the connection is in it. Whether it was.
#[inline(always)]
pub fn remove_from(line: impl Line, key: &Key) -> bool {
    let seen = line.load(STATE);
    is_of(seen, key) && line.load_after(KEY, seen) == key.words[0] && free(line, seen)
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
    let seen = line.load(STATE);
    !is_established(seen) && holds(line, seen, key)
}

/// Runs `copy`. The line's state if it held this connection's pending entry from before it until after it.
#[inline(always)]
pub fn copied(line: impl Line, key: &Key, copy: impl FnOnce()) -> Option<u64> {
    let seen = line.load(STATE);
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
    let seen = line.load(STATE);
    seen & state::BITS == state::CLAIMED_BY_AGENT && free(line, seen)
}

/// What is in a line, and its state then; `None`: nothing, or it is being written. The words of the value are each
/// read as a whole; the programs may change them at any time.
#[inline(always)]
pub fn read(line: impl Line) -> Option<([u64; 2], Value, u64)> {
    let seen = line.load(STATE);
    if !matches!(seen & state::BITS, state::PENDING | state::ESTABLISHED) {
        return None;
    }
    let mut value = [0; WORDS - VALUE];
    let low = line.load_after(KEY, seen);
    let mut all = low;
    for (word, part) in value.iter_mut().enumerate() {
        *part = line.load_after(VALUE + word, seen);
        all |= *part;
    }
    if line.load_after(STATE, all) == seen { Some(([low, seen & state::KEY_BITS], value, seen)) } else { None }
}

#[cfg(not(target_arch = "bpf"))]
mod mapped {
    use core::sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, SeqCst},
        fence,
    };

    use dataplane_common::line::{STATE, WORDS};

    use super::Line;

    /// A line in memory that is shared with the programs, or with other threads.
    impl Line for &[AtomicU64; WORDS] {
        fn load(self, word: usize) -> u64 {
            self[word].load(Relaxed)
        }

        fn load_after(self, word: usize, _: u64) -> u64 {
            fence(Acquire);
            self[word].load(Relaxed)
        }

        fn store(self, word: usize, value: u64) {
            self[word].store(value, Relaxed);
        }

        fn replace_state(self, from: u64, to: u64) -> bool {
            fence(SeqCst);
            let replaced = self[STATE].compare_exchange(from, to, SeqCst, Relaxed).is_ok();
            fence(SeqCst);
            replaced
        }
    }
}
