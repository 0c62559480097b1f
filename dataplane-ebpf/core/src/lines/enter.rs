//! How a connection is entered: which line it gets, and what of two CPUs that enter it at once remains.

use dataplane_common::line::{KEY, Layout, SLOTS, VALUE, state};

use super::{
    Key, Line, Lines, Places, Value, free, free_at_any_stage, holds, is_established, is_its, state_in, state_of,
};

/// Inserts a pending connection: over the pending entry with the same key, else into a free line, else over the pending
/// entry that was last seen before all others. An established entry with the same key stays as it is. False if the
/// table is not ready, or no line could be claimed in two attempts.
#[inline(always)]
pub fn put<L: Lines>(lines: &L, key: &Key, value: &Value) -> bool {
    put_by(|| try_put(lines, key, choose(lines, key), value), || keep_first(lines, key))
}

/// What came of an attempt to insert a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Put {
    /// The table is not ready, or another CPU has taken the line that was chosen.
    Not,
    /// It is there.
    Done,
    /// It is there, and was in another line as well: [`keep_first`] must follow.
    Again,
}

impl Put {
    /// The one with this number.
    #[inline(always)]
    #[must_use]
    pub const fn of(number: u32) -> Self {
        const DONE: u32 = Put::Done as u32;
        const AGAIN: u32 = Put::Again as u32;
        match number {
            DONE => Self::Done,
            AGAIN => Self::Again,
            _ => Self::Not,
        }
    }
}

/// The steps of [`put`], for callers whose stack cannot hold both at once.
#[inline(always)]
pub fn put_by(attempt: impl Fn() -> Put, keep_first: impl FnOnce()) -> bool {
    let mut put = attempt();
    if put == Put::Not {
        put = attempt();
    }
    if put == Put::Again {
        keep_first();
    }
    put != Put::Not
}

/// One attempt, where [`choose`] has chosen.
#[inline(always)]
pub fn try_put<L: Lines>(lines: &L, key: &Key, choice: Choice, value: &Value) -> Put {
    let Some(places) = Places::of(lines, key) else { return Put::Not };
    let Some((_, line)) = chosen_at(lines, places.entered(), choice) else { return Put::Not };
    if write_as::<L>(line, key, choice, value, state::PENDING).is_none() {
        return Put::Not;
    }
    if is_twice(lines, places.entered(), key) { Put::Again } else { Put::Done }
}

/// Whether more than one line at these places is the connection's.
#[inline(always)]
fn is_twice<L: Lines>(lines: &L, [one, other]: [u32; 2], key: &Key) -> bool {
    let mut found = false;
    for place in [one, other] {
        let Some(bucket) = lines.bucket(place) else { break };
        for slot in 0..L::SLOTS {
            let line = lines.line(bucket, slot);
            if is_its(line, state_in(line), key) {
                if found {
                    return true;
                }
                found = true;
            }
        }
        // The same bucket twice is one bucket.
        if one == other {
            break;
        }
    }
    false
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
// VERIFIER: a scalar of unknown value, for a global function returns it. With the line itself all that follows would be
// verified once for each line.
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

/// Chooses a line for [`write_as`].
#[inline(always)]
pub fn choose<L: Lines>(lines: &L, key: &Key) -> Choice {
    let Some(places) = Places::of(lines, key) else { return NONE };
    let mut lowest = NONE;
    for (nth, place) in places.entered().iter().enumerate() {
        let Some(bucket) = lines.bucket(*place) else { return NONE };
        for slot in 0..L::SLOTS {
            let line = lines.line(bucket, slot);
            let choice = rank(line, state_in(line), key) | index::<L>(nth, slot);
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
        state::PENDING | state::ESTABLISHED if is_its(line, seen, key) => OWN,
        state::PENDING => (line.load_after(VALUE, seen) & !INDEX).clamp(SEEN, LATEST),
        state::FREE => FREE,
        // Claimed, or another's established.
        _ => NONE,
    }
}

/// The line that was chosen, and its bucket.
#[cfg(not(target_arch = "bpf"))]
pub(crate) fn chosen<L: Lines>(lines: &L, key: &Key, choice: Choice) -> Option<(L::Bucket, L::Line)> {
    chosen_at(lines, Places::of(lines, key)?.entered(), choice)
}

#[inline(always)]
fn chosen_at<L: Lines>(lines: &L, [one, other]: [u32; 2], choice: Choice) -> Option<(L::Bucket, L::Line)> {
    if choice == NONE {
        return None;
    }
    let (nth, slot) = at_index(choice & INDEX);
    let place = if nth == 0 { one } else { other };
    let bucket = lines.bucket(place)?;
    Some((bucket, lines.line(bucket, slot)))
}

/// Enters the connection in the line that was chosen, if that still is as it was. `bits`: of its state then. The whole
/// of that.
#[inline(always)]
pub(crate) fn write_as<L: Lines>(line: L::Line, key: &Key, choice: Choice, value: &Value, bits: u64) -> Option<u64> {
    let seen = state_in(line);
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
    line.store(KEY, line.key_word(key, 0));
    if state_of::<L::Line>() >= VALUE {
        line.store(KEY + 1, line.key_word(key, 1));
    }
    for (word, part) in value.iter().enumerate() {
        if VALUE + word != state_of::<L::Line>() {
            line.store(VALUE + word, *part);
        }
    }
    let published = version | bits | line.key_word(key, 2) | <<L::Line as Line>::Layout as Layout>::of_value(value);
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
            let seen = state_in(line);
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

/// What came of an attempt to insert a connection under a key that only one may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum New {
    /// As [`Put::Not`].
    Not,
    /// It is there, and no other.
    Done,
    /// Another one is there, or was being inserted at the same time: then perhaps neither is there.
    Taken,
}

impl New {
    /// The one with this number.
    #[inline(always)]
    #[must_use]
    pub const fn of(number: u32) -> Self {
        const DONE: u32 = New::Done as u32;
        const TAKEN: u32 = New::Taken as u32;
        match number {
            DONE => Self::Done,
            TAKEN => Self::Taken,
            _ => Self::Not,
        }
    }
}

/// Inserts a pending connection under a key that only one may have, in two attempts; see [`try_put_new`].
#[inline(always)]
pub fn put_new<L: Lines>(lines: &L, key: &Key, value: &Value) -> New {
    put_new_by(|| try_put_new(lines, key, choose(lines, key), value))
}

/// The same for callers whose stack cannot hold an attempt.
#[inline(always)]
pub fn put_new_by(attempt: impl Fn() -> New) -> New {
    match attempt() {
        New::Not => attempt(),
        new => new,
    }
}

/// Inserts a pending connection where none is under its key, and [`choose`] has chosen. Of two CPUs that insert one
/// under the same key at the same time, not more than one is told [`New::Done`]. For two of them to know of each other
/// both must know how large the table is: not so in the moment in which it begins to grow.
#[inline(always)]
pub fn try_put_new<L: Lines>(lines: &L, key: &Key, choice: Choice, value: &Value) -> New {
    let Some(places) = Places::of(lines, key) else { return New::Not };
    if choice & !INDEX == OWN {
        return New::Taken;
    }
    let Some((_, line)) = chosen_at(lines, places.entered(), choice) else { return New::Not };
    let Some(entered) = write_as::<L>(line, key, choice, value, state::PENDING) else { return New::Not };
    if !is_twice(lines, places.entered(), key) {
        return New::Done;
    }
    free_at_any_stage(line, entered);
    New::Taken
}

/// Whether the connection is established in one of these buckets.
#[inline(always)]
fn find_established<L: Lines>(lines: &L, key: &Key, places: [u32; 2]) -> bool {
    for place in places {
        let Some(bucket) = lines.bucket(place) else { return false };
        for slot in 0..L::SLOTS {
            let line = lines.line(bucket, slot);
            let seen = state_in(line);
            if is_established(seen) && holds(line, seen, key) {
                return true;
            }
        }
    }
    false
}
