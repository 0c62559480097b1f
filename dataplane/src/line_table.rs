//! Tables of connections in lines of the memory that the programs write, too: of clients' (maps `AFFINITY_SEGMENTS` and
//! `AFFINITY_HEAD`), and of translated ones (`FLOWS_SEGMENTS` and `FLOWS_HEAD`).

mod contents;
mod grow;
mod segments;

#[cfg(feature = "testing")]
use std::collections::BTreeMap;
use std::{
    marker::PhantomData,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering::Acquire, fence},
    },
};

use aya::maps::Map;
use dataplane_common::{
    flow::pending,
    line::{self, SLOTS, WORDS, geometry, head, state},
};
use dataplane_core::{
    growth,
    lines::{self, Key, Lines, Mapped},
};

pub(crate) use self::contents::{Contents, Entry, made_at_most};
use self::segments::Segments;
use crate::{Sizes, table::MapFault};

/// How often a line is read that changes meanwhile.
const ATTEMPTS: u32 = 4;
/// Between two calls of `progress`.
const BATCH: u32 = 1 << 12;

/// The mapped table; clones share it.
#[derive(Clone)]
pub(crate) struct LineTable<T> {
    shared: Arc<Shared>,
    contents: PhantomData<T>,
}

struct Shared {
    segments: Segments,
    /// Held by whoever goes through all lines, and by whoever moves connections.
    passes: Mutex<()>,
    /// Held by whoever looks a connection up, enters or removes it, for as long: see [`Self::all_done`].
    uses: RwLock<()>,
}

impl Shared {
    fn pass(&self) -> MutexGuard<'_, ()> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_use(&self) -> RwLockReadGuard<'_, ()> {
        self.uses.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once whoever uses a connection has done so.
    fn all_done(&self) {
        drop(self.uses.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl<'a, T: Contents> Lines for &'a LineTable<T> {
    const CLAIM: u64 = state::CLAIMED_BY_AGENT;
    type Line = Mapped<'a, T>;
    type Bucket = &'a [[AtomicU64; WORDS]; SLOTS];

    fn head(&self, word: usize) -> u64 {
        self.shared.segments.head(word)
    }

    fn bucket(&self, number: u32) -> Option<Self::Bucket> {
        self.shared.segments.bucket(number)
    }

    fn line(&self, bucket: Self::Bucket, slot: usize) -> Self::Line {
        Mapped::new(&bucket[slot])
    }
}

impl<T: Contents> LineTable<T> {
    /// Takes the maps over, and makes them ready with this room if they are new.
    pub(crate) fn new(segments: Map, head: &Map, sizes: Sizes) -> Result<Self, MapFault> {
        let segments = Segments::new::<T>(segments, head, sizes)?;
        let shared = Arc::new(Shared { segments, passes: Mutex::default(), uses: RwLock::default() });
        Ok(Self { shared, contents: PhantomData })
    }

    /// Frees lines that a killed agent had claimed. The caller holds the lock: there is no other agent.
    pub(crate) fn reclaim(&self) {
        let lines = self.numbers().filter_map(|number| self.shared.segments.bucket(number)).flatten();
        let freed = lines.filter(|line| lines::reclaim(Mapped::<T>::new(line))).count();
        if freed > 0 {
            let map = T::SEGMENTS;
            tracing::info!("{freed} lines of {map} were being written by an agent that was ended: free again");
        }
    }

    /// Whether connections are established in their lines from now on.
    pub(crate) fn establish(&self, yes: bool) {
        self.shared.segments.set_head(head::ESTABLISHES, yes.into());
    }

    /// Whether programs look for entries that found no line, and how many of these they have put into their map.
    pub(crate) fn spilled(&self) -> (bool, u64) {
        // Behind what was read of lines: a program counts before it frees one.
        fence(Acquire);
        let spilled = self.shared.segments.head(head::SPILLED);
        (spilled != self.shared.segments.head(head::RETURNED), spilled)
    }

    /// Has the programs look for them.
    pub(crate) fn look_there(&self) {
        if !self.spilled().0 {
            self.count_spilled();
        }
    }

    /// Counts an entry that was put into their map.
    pub(crate) fn count_spilled(&self) {
        self.shared.segments.add_to_head(head::SPILLED, 1);
    }

    /// Has the programs stop looking there. `spilled`: their number, read before their map was found to be empty.
    pub(crate) fn look_here_only(&self, spilled: u64) {
        self.shared.segments.set_head(head::RETURNED, spilled);
    }

    /// The numbers of all buckets.
    fn numbers(&self) -> impl Iterator<Item = u32> {
        let of_half = |half| (0..self.buckets(half)).map(move |index| line::number(half, index));
        (0..pending::COUNT).flat_map(of_half)
    }

    /// Buckets in a half.
    fn buckets(&self, half: u32) -> u32 {
        geometry::count(self.shared.segments.head(head::GEOMETRY + half as usize))
    }

    /// Lines in each half.
    pub(crate) fn lines(&self) -> [u32; pending::COUNT as usize] {
        [pending::TCP, pending::OTHER].map(|half| self.buckets(half) * SLOTS as u32)
    }

    /// Buckets in each half that pending connections may need.
    pub(crate) fn for_pending(&self) -> u32 {
        self.shared.segments.pending
    }

    pub(crate) fn get(&self, key: &T::Key) -> Option<(Stage, T::Entry)> {
        let _use = self.shared.in_use();
        // The line may have been given to another connection since the look-up.
        Connection::read(self.find(&of::<T>(key))?)
            .filter(|found| found.key == *key)
            .map(|found| (found.stage, found.entry))
    }

    fn find(&self, key: &Key) -> Option<Mapped<'_, T>> {
        let found = lines::find(&self, key)?;
        Some(Mapped::new(&self.shared.segments.bucket(found.bucket)?[found.slot]))
    }

    /// Enters a pending entry, as the programs do. Whether it is in the table.
    pub(crate) fn put(&self, key: &T::Key, entry: T::Entry) -> bool {
        let _use = self.shared.in_use();
        lines::put(&self, &of::<T>(key), &T::value_of(entry))
    }

    /// Enters an established entry where nothing is in its way. Whether it is in the table.
    pub(crate) fn put_established(&self, key: &T::Key, entry: T::Entry) -> bool {
        let _use = self.shared.in_use();
        growth::put_established(&self, &of::<T>(key), &T::value_of(entry))
    }

    /// Adds to an established entry what was noted in another one that was `copied` here, and is `now`.
    pub(crate) fn merge(&self, key: &T::Key, copied: T::Entry, now: T::Entry) {
        let _use = self.shared.in_use();
        if let Some(found) = self.find(&of::<T>(key)).and_then(Connection::read)
            && found.key == *key
            && found.entry.made() == copied.made()
        {
            growth::merge(found.line, found.seen, &T::value_of(copied), &T::value_of(now));
        }
    }

    /// Returns once no program runs that has run since before the call.
    pub(crate) fn wait_for_programs(&self) -> Result<(), MapFault> {
        self.shared.segments.wait_for_programs()
    }

    /// Takes over an earlier map's entry, unless it would displace a younger one. An entry that is here already is
    /// merged with it: programs of both versions may have seen its packets.
    pub(crate) fn take_over(&self, key: &T::Key, entry: T::Entry) {
        let choice = {
            let _use = self.shared.in_use();
            lines::choose(&self, &of::<T>(key))
        };
        if lines::displaces_younger(choice, entry.last_seen()) {
            return;
        }
        match self.get(key) {
            Some((stage, known)) if known.made() > entry.made() || stage == Stage::Established => {
                // Of before a step back: this one has begun since.
                if known.made() < entry.made() && self.remove_if(key, |_, now| now.made() == known.made()) {
                    self.put(key, entry);
                }
            }
            Some((_, known)) if known.made() == entry.made() => {
                let both = known.merged(entry);
                if both != known {
                    self.put(key, both);
                }
            }
            _ => _ = self.put(key, entry),
        }
    }

    /// Frees the entry's line if `is_meant` accepts it as it is now. Whether it did.
    pub(crate) fn remove_if(&self, key: &T::Key, is_meant: impl Fn(Stage, &T::Entry) -> bool) -> bool {
        let (wanted, _use) = (of::<T>(key), self.shared.in_use());
        let Some(found) = self.find(&wanted).and_then(Connection::read) else { return false };
        let removed = found.key == *key && is_meant(found.stage, &found.entry) && found.remove();
        if removed {
            lines::remove_rest(&self, &wanted);
        }
        removed
    }

    /// Hands all entries to `each`, as [`crate::table::Table::for_each`]. The table does not grow meanwhile: `each`
    /// must not wait for others, but may look for entries and remove them.
    pub(crate) fn for_each(
        &self,
        progress: &dyn Fn(),
        each: impl FnMut(&Connection<'_, T>) -> Result<ControlFlow<()>, MapFault>,
    ) -> Result<ControlFlow<()>, MapFault> {
        let _pass = self.shared.pass();
        self.for_each_as_it_grows(progress, each)
    }

    /// The same without keeping the table from growing: what is moved meanwhile may be missing or come twice.
    pub(crate) fn for_each_as_it_grows(
        &self,
        progress: &dyn Fn(),
        mut each: impl FnMut(&Connection<'_, T>) -> Result<ControlFlow<()>, MapFault>,
    ) -> Result<ControlFlow<()>, MapFault> {
        for number in self.numbers() {
            if number % BATCH == 0 {
                progress();
            }
            for line in self.shared.segments.bucket(number).into_iter().flatten() {
                let Some(connection) = Connection::read(Mapped::new(line)) else { continue };
                if each(&connection)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// All entries that are established, or all that are pending.
    #[cfg(feature = "testing")]
    pub(crate) fn read(&self, stage: Stage) -> Result<BTreeMap<T::Key, T::Entry>, MapFault> {
        let mut entries = BTreeMap::new();
        let _ = self.for_each(&|| (), |found| {
            if found.stage == stage {
                entries.insert(found.key, found.entry);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(entries)
    }
}

/// How far an entry has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Both ends have proved that they are there.
    Established,
    /// Not yet.
    Pending,
}

/// What a line held when it was read.
pub(crate) struct Connection<'a, T: Contents> {
    pub(crate) key: T::Key,
    pub(crate) stage: Stage,
    pub(crate) entry: T::Entry,
    line: Mapped<'a, T>,
    /// The line's state then.
    seen: u64,
}

impl<'a, T: Contents> Connection<'a, T> {
    fn read(line: Mapped<'a, T>) -> Option<Self> {
        // Again where it is promoted meanwhile: it is there all the time.
        let again = || lines::is_used(lines::state_in(line)).then(|| lines::read(line)).flatten();
        let (key, value, seen) = (0..ATTEMPTS).find_map(|_| again())?;
        let stage = if lines::is_established(seen) { Stage::Established } else { Stage::Pending };
        Some(Self { key: T::key_of(key), stage, entry: T::entry_of(value), line, seen })
    }

    /// Frees the line, unless it was given to another connection since it was read, or this one was promoted. Whether
    /// it did.
    pub(crate) fn remove(&self) -> bool {
        lines::free(self.line, self.seen)
    }
}

fn of<T: Contents>(key: &T::Key) -> Key {
    Key { words: T::words_of(key), half: pending::of(T::proto(key)) }
}
