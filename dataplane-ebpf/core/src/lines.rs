//! A table of connections in cache lines (see `dataplane_common::line`): how one is found, entered and taken out while
//! other CPUs and the agent do the same.
//!
//! A writer claims a line by compare-and-exchange, writes it and publishes it by another. Each claim raises the
//! version, so comparing the whole state word shows any claim in between. A look-up accepts a line only if both words
//! of the key belong to one claim. Afterwards the line may be given to another connection: see [`copied`].
//!
//! The same code runs in the programs, in the agent, and under loom (`tests/lines_loom.rs`).

use dataplane_common::{
    hash::mix,
    line::{KEY, SLOTS, STATE, VALUE, WORDS, header, state},
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

    /// The bucket with this number; `None` behind the last one.
    fn bucket(&self, index: u32) -> Option<Self::Bucket>;

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

/// The numbers of the two buckets where a connection may be. `None`: the table is not ready.
#[inline(always)]
pub fn places<L: Lines>(lines: &L, key: &Key) -> Option<[u32; 2]> {
    let head = lines.line(lines.bucket(0)?, 0);
    let (seed, count) = (head.load(header::SEED), head.load(header::COUNT));
    let hash = mix(mix(seed ^ key.words[0]) ^ key.words[1]);
    let first = u64::from(key.half) * count + 1;
    let place = |hash: u32| (first + ((u64::from(hash) * count) >> 32)) as u32;
    if count == 0 { None } else { Some([place(hash as u32), place((hash >> 32) as u32)]) }
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

/// Where the connection is.
#[inline(always)]
pub fn find<L: Lines>(lines: &L, key: &Key) -> Option<Found> {
    for place in places(lines, key)? {
        let bucket = lines.bucket(place)?;
        for slot in 0..L::SLOTS {
            if let Some(seen) = holds(lines.line(bucket, slot), key) {
                return Some(Found { bucket: place, slot, seen });
            }
        }
    }
    None
}

/// The line's state, if the connection is in it.
#[inline(always)]
fn holds(line: impl Line, key: &Key) -> Option<u64> {
    let seen = line.load(STATE);
    if !is_of(seen, key) {
        return None;
    }
    let low = line.load_after(KEY, seen);
    let again = line.load_after(STATE, low);
    // Both words of one claim.
    if low == key.words[0] && again == seen { Some(again) } else { None }
}

/// Whether a line with this state may be the connection's.
#[inline(always)]
fn is_of(seen: u64, key: &Key) -> bool {
    seen & !state::VERSION == key.words[1] | state::USED
}

/// Inserts a connection: over the entry with the same key, else into a free line, else over the entry that was last
/// seen before all others. False if the table is not ready, or no line could be claimed in two attempts.
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

/// Rank of a line, with its index among the connection's eight in the last bits. The lowest is chosen.
// VERIFIER: a scalar of unknown value. With the line itself all that follows would be verified once for each line.
pub type Choice = u64;

/// Bits of a [`Choice`] that are the index.
const INDEX: Choice = 2 * SLOTS as u64 - 1;
/// The line holds this key.
const OWN: Choice = 0;
const FREE: Choice = INDEX + 1;
/// From here on: when the entry in the line was last seen, in nanoseconds since the machine started.
const SEEN: Choice = 2 * FREE;
const LATEST: Choice = NONE - 2 * INDEX - 1;
/// No line: the table is not ready, or all lines are claimed.
pub const NONE: Choice = u64::MAX;

/// Chooses a line for [`write`].
#[inline(always)]
pub fn choose<L: Lines>(lines: &L, key: &Key) -> Choice {
    let Some(places) = places(lines, key) else { return NONE };
    let mut lowest = NONE;
    for (nth, place) in places.iter().enumerate() {
        let Some(bucket) = lines.bucket(*place) else { return NONE };
        for slot in 0..L::SLOTS {
            let line = lines.line(bucket, slot);
            let choice = rank(line, line.load(STATE), key) | (nth * L::SLOTS + slot) as u64;
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
        state::USED if is_of(seen, key) && line.load_after(KEY, seen) == key.words[0] => OWN,
        state::USED => (line.load_after(VALUE, seen) & !INDEX).clamp(SEEN, LATEST),
        state::FREE => FREE,
        // Claimed.
        _ => NONE,
    }
}

/// Enters the connection in the line that was chosen, if that still is as it was.
#[inline(always)]
pub fn write<L: Lines>(lines: &L, key: &Key, choice: Choice, value: &Value) -> bool {
    if choice == NONE {
        return false;
    }
    let index = (choice & INDEX) as usize;
    let Some([one, other]) = places(lines, key) else { return false };
    let (place, slot) = if index < L::SLOTS { (one, index) } else { (other, index - L::SLOTS) };
    let Some(bucket) = lines.bucket(place) else { return false };
    let line = lines.line(bucket, slot);
    let seen = line.load(STATE);
    let version = (seen & state::VERSION).wrapping_add(state::ONE_CLAIM);
    if rank(line, seen, key) != choice & !INDEX || !line.replace_state(seen, version | L::CLAIM) {
        return false;
    }
    line.store(KEY, key.words[0]);
    for (word, part) in value.iter().enumerate() {
        line.store(VALUE + word, *part);
    }
    line.replace_state(version | L::CLAIM, version | state::USED | key.words[1])
}

/// Two CPUs may insert one connection into two lines. Each calls this after it has published: the first line keeps
/// the entry, the others are freed.
#[inline(always)]
pub fn keep_first<L: Lines>(lines: &L, key: &Key) {
    let Some([one, other]) = places(lines, key) else { return };
    let mut found = false;
    for place in [one, other] {
        let Some(bucket) = lines.bucket(place) else { return };
        for slot in 0..L::SLOTS {
            let line = lines.line(bucket, slot);
            if found {
                remove_from(line, key);
            } else {
                found = holds(line, key).is_some();
            }
        }
        // The same bucket twice is one bucket.
        if one == other {
            return;
        }
    }
}

/// Empties a line if the connection is in it. Whether it was.
#[inline(always)]
pub fn remove_from(line: impl Line, key: &Key) -> bool {
    let seen = line.load(STATE);
    is_of(seen, key) && line.load_after(KEY, seen) == key.words[0] && free(line, seen)
}

/// Empties a line whose state still is `seen`. Whether it was.
#[inline(always)]
pub fn free(line: impl Line, seen: u64) -> bool {
    line.replace_state(seen, seen & state::VERSION)
}

/// Runs `copy`. Whether the line held this connection's entry from before it until after it.
#[inline(always)]
pub fn copied(line: impl Line, key: &Key, copy: impl FnOnce()) -> bool {
    let seen = line.load(STATE);
    if !is_of(seen, key) || line.load_after(KEY, seen) != key.words[0] {
        return false;
    }
    // Replaced by itself: what is copied is read between the two, on every processor.
    if !line.replace_state(seen, seen) {
        return false;
    }
    copy();
    line.replace_state(seen, seen)
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
    if seen & state::BITS != state::USED {
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
