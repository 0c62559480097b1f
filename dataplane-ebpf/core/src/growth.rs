//! How the table of connections becomes larger while programs use it (ADR 30).
//!
//! From the moment the head names both sizes, connections are entered at their places in the larger table and looked
//! for at both, there first. Once no program runs that knows the smaller one only, each connection whose place is
//! another one is copied there, a batch at a time. Once no program runs that may have found one of the batch at its old
//! place, what was noted there since is merged into the copy, and the old line is freed. A look-up finds a connection
//! all the time.
//!
//! An agent that is ended meanwhile leaves both sizes in the head; the next one begins again with the copies.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use dataplane_common::line::{self, CREATED, Layout, VALUE, WORDS, geometry, head, state};

use crate::lines::{self, Key, KeyWords, Line, Lines, Mapped, Places, Value, state_in};

/// Copies at once: so many connections are at both places at most.
const BATCH: usize = 1 << 14;
/// Buckets between two calls of [`Growing::progress`].
const BUCKETS: u32 = 1 << 12;
/// How often a line is looked at again that changes while it is copied. Each change is somebody's who knows the new
/// size, and leaves a connection there that need not be moved, or none.
const ATTEMPTS: u32 = 8;
/// Passes over the smaller table: what finds no line at first may find one when others have moved.
const PASSES: u32 = 3;

/// A line that its connection can be moved from and to.
pub trait Movable: Line {
    /// Writes a word if it still is `from`.
    fn replace(self, word: usize, from: u64, to: u64) -> bool;
}

/// A line in memory that is shared with the programs, or with other threads.
impl<L: Layout> Movable for Mapped<'_, L> {
    fn replace(self, word: usize, from: u64, to: u64) -> bool {
        self.0[word].compare_exchange(from, to, SeqCst, Relaxed).is_ok()
    }
}

/// A table that can grow.
pub trait Growing: Lines<Line: Movable> {
    /// Why not.
    type Error;

    /// Makes sure that there are so many buckets in this half, empty ones behind those there were.
    fn add(&self, half: u32, buckets: u32) -> Result<(), Self::Error>;

    /// Writes a word of the head.
    fn set_head(&self, word: usize, value: u64);

    /// Returns once nothing looks up, enters or removes connections any more that has done so since before the call.
    fn wait(&self) -> Result<(), Self::Error>;

    /// Puts an established connection somewhere else, where it is found once this has returned: there is no line for
    /// it.
    fn spill(&self, key: KeyWords, value: &Value) -> Result<(), Self::Error>;

    /// Takes it out there again.
    fn unspill(&self, key: KeyWords) -> Result<(), Self::Error>;

    /// Called now and then.
    fn progress(&self) {}
}

/// What became of the connections whose place is another one in a larger table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// They are there.
    pub moved: usize,
    /// They were established, found no room there and are somewhere else: see [`Growing::spill`].
    pub spilled: usize,
    /// They were pending and found no room there.
    pub lost: usize,
}

/// Has a half grow to so many buckets, a power of two and more than there are. Nobody else may do so meanwhile. In one
/// step: in a table that is still too small connections would find no line.
///
/// # Errors
/// Those of [`Growing`]. The table works on, and [`resume`] has it grow further.
pub fn grow<L: Growing>(lines: &L, half: u32, buckets: u32) -> Result<Moved, L::Error> {
    let before = resume(lines, half)?;
    begin(lines, half, buckets)?;
    let moved = resume(lines, half)?;
    Ok(Moved {
        moved: before.moved + moved.moved,
        spilled: before.spilled + moved.spilled,
        lost: before.lost + moved.lost,
    })
}

/// Has connections entered at their places among so many buckets. [`resume`] must follow before the next time.
///
/// # Errors
/// Those of [`Growing`].
pub fn begin<L: Growing>(lines: &L, half: u32, buckets: u32) -> Result<(), L::Error> {
    let count = geometry::count(sizes(lines, half));
    debug_assert!(buckets.is_power_of_two() && buckets > count);
    lines.add(half, buckets)?;
    lines.set_head(word(half), geometry::of(buckets, count));
    Ok(())
}

/// Moves connections from where they were in a table that has begun to grow; does nothing in another one.
///
/// # Errors
/// As [`grow`].
pub fn resume<L: Growing>(lines: &L, half: u32) -> Result<Moved, L::Error> {
    let sizes = sizes(lines, half);
    let (count, old) = (geometry::count(sizes), geometry::old(sizes));
    let mut moved = Moved::default();
    if old == 0 {
        return Ok(moved);
    }
    // Whoever knows the smaller table only has entered what he had to.
    lines.wait()?;
    let mut copies = Vec::new();
    for _ in 0..PASSES {
        let mut left = 0;
        for (line, place) in lines_below(lines, half, old) {
            match copy(lines, line, place, half) {
                Copied::Nothing => {}
                Copied::To(copy) => copies.push(copy),
                Copied::NoRoom => left += 1,
            }
            if copies.len() == BATCH {
                left += settle(lines, &mut copies, &mut moved)?;
            }
        }
        left += settle(lines, &mut copies, &mut moved)?;
        if left == 0 {
            break;
        }
    }
    let mut spilled = Vec::new();
    for (line, place) in lines_below(lines, half, old) {
        // Again where it has proved itself, or was taken out, since it was read.
        while let Some((words, value, seen)) = lines::read(line)
            && misplaced(lines, &Key { words, half }, place)
        {
            if !lines::is_established(seen) {
                moved.lost += usize::from(lines::free(line, seen));
                continue;
            }
            lines.spill(words, &value)?;
            if state_in(line) == seen {
                spilled.push((line, seen));
                break;
            }
            lines.unspill(words)?;
        }
    }
    moved.spilled += spilled.len();
    lines.set_head(word(half), geometry::of(count, 0));
    // Whoever has found one there has noted what he had to.
    let waited = if spilled.is_empty() { Ok(()) } else { lines.wait() };
    for (line, seen) in spilled {
        lines::free(line, seen);
    }
    waited.map(|()| moved)
}

/// Frees the lines that no look-up comes to: an agent was ended before it could, when it had put their connections
/// somewhere else. Nobody else may have the half grow meanwhile.
pub fn free_misplaced<L: Growing>(lines: &L, half: u32) {
    let sizes = sizes(lines, half);
    if geometry::old(sizes) != 0 {
        return;
    }
    for (line, place) in lines_below(lines, half, geometry::count(sizes)) {
        if let Some((words, _, seen)) = lines::read(line)
            && misplaced(lines, &Key { words, half }, place)
        {
            lines::free(line, seen);
        }
    }
}

fn word(half: u32) -> usize {
    head::GEOMETRY + half as usize
}

fn sizes<L: Lines>(lines: &L, half: u32) -> u64 {
    lines.head(word(half))
}

/// The lines of a half's first buckets, each with its bucket's number.
fn lines_below<L: Growing>(lines: &L, half: u32, count: u32) -> impl Iterator<Item = (L::Line, u32)> {
    let buckets = (0..count).filter_map(move |index| {
        if index % BUCKETS == 0 {
            lines.progress();
        }
        let number = line::number(half, index);
        Some((lines.bucket(number)?, number))
    });
    buckets.flat_map(move |(bucket, number)| (0..L::SLOTS).map(move |slot| (lines.line(bucket, slot), number)))
}

/// Whether the connection is not entered in this bucket any more.
fn misplaced<L: Lines>(lines: &L, key: &Key, place: u32) -> bool {
    Places::of(lines, key).is_some_and(|places| !places.entered().contains(&place))
}

/// A connection at both places.
struct Copy<L> {
    from: L,
    /// The old line's state when it was copied.
    from_seen: u64,
    to: L,
    to_seen: u64,
    /// What was copied; `None`: an agent before has copied it, or it was entered anew.
    value: Option<Value>,
}

enum Copied<L> {
    /// There is nothing to be moved.
    Nothing,
    To(Copy<L>),
    /// All lines at its new places are younger connections', or are being written.
    NoRoom,
}

/// Copies a line's connection to its new place, if that is another one.
fn copy<L: Growing>(lines: &L, from: L::Line, place: u32, half: u32) -> Copied<L::Line> {
    for _ in 0..ATTEMPTS {
        // What is being written now is written by somebody who knows the new size.
        if !lines::is_used(state_in(from)) {
            return Copied::Nothing;
        }
        let Some((words, value, seen)) = lines::read(from) else { continue };
        let key = Key { words, half };
        if !misplaced(lines, &key, place) {
            return Copied::Nothing;
        }
        let choice = lines::choose(lines, &key);
        let Some((bucket, to)) = lines::chosen(lines, &key, choice) else { return Copied::NoRoom };
        if lines::is_own(choice) {
            match lines::read(to) {
                Some((there, _, to_seen)) if there == words => {
                    return Copied::To(Copy { from, from_seen: seen, to, to_seen, value: None });
                }
                _ => continue,
            }
        }
        let has_room = match lines::is_established(seen) {
            true => lines::has_room(lines, bucket),
            false => !lines::displaces_younger(choice, value[0]),
        };
        if !has_room {
            return Copied::NoRoom;
        }
        let Some(to_seen) = lines::write_as::<L>(to, &key, choice, &value, seen & state::BITS) else { continue };
        if lines::is_overfull(lines, bucket) && lines::free(to, to_seen) {
            return Copied::NoRoom;
        }
        // Somebody may have entered it at the same time.
        lines::keep_first(lines, &key);
        if state_in(from) == lines::freed(seen) {
            // It was taken out before the copy was there to be seen.
            lines::free(to, to_seen);
            return Copied::Nothing;
        }
        return Copied::To(Copy { from, from_seen: seen, to, to_seen, value: Some(value) });
    }
    Copied::NoRoom
}

/// Ends a batch of copies: they alone remain, but for connections whose copy was displaced meanwhile. How many these
/// are.
fn settle<L: Growing>(lines: &L, copies: &mut Vec<Copy<L::Line>>, moved: &mut Moved) -> Result<u32, L::Error> {
    if copies.is_empty() {
        return Ok(0);
    }
    // Whoever has found one at its old place has noted there what he had to.
    lines.wait()?;
    moved.moved += copies.len();
    let mut left = 0;
    for copy in copies.drain(..) {
        loop {
            let now = state_in(copy.from);
            if now == lines::freed(copy.from_seen) {
                // Taken out by somebody who had found it before the copy was there.
                lines::free(copy.to, copy.to_seen);
            } else if lines::is_established(now)
                && !lines::is_established(copy.to_seen)
                && state_in(copy.to) | state::PROVED != copy.to_seen | state::PROVED
            {
                // It has proved itself here, and its copy was displaced.
                moved.moved -= 1;
                left += 1;
            } else if now | state::PROVED == copy.from_seen | state::PROVED {
                if created(copy.to) == created(copy.from) {
                    if now != copy.from_seen {
                        // Promoted by such a one.
                        copy.to.replace_state(copy.to_seen, copy.to_seen | state::PROVED);
                    }
                    let old = values(copy.from);
                    merge(copy.to, copy.to_seen, &copy.value.unwrap_or(old), &old);
                }
                if !lines::free(copy.from, now) {
                    continue;
                }
            } else if lines::is_established(copy.from_seen) {
                // Taken out, and another one is in its line by now.
                lines::free(copy.to, copy.to_seen);
            }
            break;
        }
    }
    Ok(left)
}

/// When a line's entry was made.
fn created<L: Line>(line: L) -> u64 {
    values(line)[CREATED]
}

/// The words of a line's value.
fn values<L: Line>(line: L) -> Value {
    core::array::from_fn(|word| match VALUE + word == L::Layout::STATE {
        true => L::Layout::created(state_in(line)),
        false => line.load(VALUE + word),
    })
}

/// Adds to the entry in a line with the state `seen` what was noted in another one, which was `copied` there and is now
/// `old`.
pub fn merge<L: Movable>(line: L, seen: u64, copied: &Value, old: &Value) {
    for word in (0..WORDS - VALUE).filter(|word| *word != CREATED) {
        loop {
            let new = line.load(VALUE + word);
            // Only while it is this connection's; it may have proved itself.
            if line.load_after(L::Layout::STATE, new) | state::PROVED != seen | state::PROVED {
                return;
            }
            let both = merged::<L::Layout>(word, copied[word], old[word], new);
            if both == new || line.replace(VALUE + word, new, both) {
                break;
            }
        }
    }
}

/// Enters an established connection in a free line. Whether there was one, in a bucket that has room for it.
pub fn put_established<L: Lines>(lines: &L, key: &Key, value: &Value) -> bool {
    let choice = lines::choose(lines, key);
    let Some((bucket, line)) = lines::chosen(lines, key, choice) else { return false };
    if !lines::is_free(choice) || !lines::has_room(lines, bucket) {
        return false;
    }
    let Some(entered) = lines::write_as::<L>(line, key, choice, value, state::ESTABLISHED) else { return false };
    if lines::is_overfull(lines, bucket) && lines::free(line, entered) {
        return false;
    }
    lines::keep_first(lines, key);
    true
}

/// What a word of the value is that was `copied`, is now `old` at the old place and `new` at the new one.
fn merged<L: Layout>(word: usize, copied: u64, old: u64, new: u64) -> u64 {
    if word == 0 {
        return old.max(new);
    }
    let [copied, old, new] = [copied, old, new].map(u64::to_le_bytes);
    u64::from_le_bytes(core::array::from_fn(|at| match at {
        // Bit by bit.
        _ if 8 * word + at == L::FLAGS => (new[at] & !(copied[at] ^ old[at])) | (old[at] & (copied[at] ^ old[at])),
        // What was noted at the new place is younger.
        _ if old[at] != copied[at] && new[at] == copied[at] => old[at],
        _ => new[at],
    }))
}

#[cfg(test)]
mod tests {
    use dataplane_common::line::{Clients, Translated};

    use super::*;

    /// Word of a client's value with its flags.
    const FLAGS: usize = Clients::FLAGS / 8;

    #[test]
    fn what_was_noted_at_either_place_is_merged() {
        assert_eq!([merged::<Clients>(0, 5, 7, 6), merged::<Clients>(0, 5, 5, 6)], [7, 6], "when it was last seen");
        // Of flags each that has changed; of other bytes the younger change counts, which is at the new place.
        assert_eq!(merged::<Clients>(FLAGS, 0x1101, 0x2203, 0x1105), 0x2207);
        assert_eq!(merged::<Clients>(FLAGS, 0x1101, 0x2201, 0x3301), 0x3301);
        assert_eq!(
            [merged::<Clients>(FLAGS, 9, 9, 1), merged::<Clients>(FLAGS, 9, 1, 0xb)],
            [1, 3],
            "flags are cleared, too"
        );
        assert_eq!(merged::<Clients>(FLAGS + 1, 0x1101, 0x1103, 0x1105), 0x1105);
        let (word, shift) = (Translated::FLAGS / 8, 8 * (Translated::FLAGS % 8));
        assert_eq!(merged::<Translated>(word, 1 << shift, 3 << shift, 5 << shift), 7 << shift);
    }
}
