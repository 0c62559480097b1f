//! Maps `AFFINITY_SEGMENTS` and `AFFINITY_HEAD`: connections of clients, in lines of the memory that the programs
//! write, too.

mod grow;
mod segments;

#[cfg(feature = "testing")]
use std::collections::BTreeMap;
use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, atomic::AtomicU64},
};

use aya::maps::Map;
use dataplane_common::{
    flow::{Affinity, AffinityKey, pending},
    line::{self, SLOTS, WORDS, geometry, head, state},
};
use dataplane_core::{
    growth,
    lines::{self, Key, Lines, Value},
};
use zerocopy::transmute;

use self::segments::Segments;
use crate::{
    Sizes,
    connections::Stage,
    table::{Entries as _, MapFault, Table},
};

/// Between two calls of `progress`.
const BATCH: u32 = 1 << 12;

/// The mapped table; clones share it.
#[derive(Clone)]
pub(crate) struct ClientLines(Arc<Shared>);

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

impl<'a> Lines for &'a ClientLines {
    const CLAIM: u64 = state::CLAIMED_BY_AGENT;
    type Line = &'a [AtomicU64; WORDS];
    type Bucket = &'a [[AtomicU64; WORDS]; SLOTS];

    fn head(&self, word: usize) -> u64 {
        self.0.segments.head(word)
    }

    fn bucket(&self, number: u32) -> Option<Self::Bucket> {
        self.0.segments.bucket(number)
    }

    fn line(&self, bucket: Self::Bucket, slot: usize) -> Self::Line {
        &bucket[slot]
    }
}

impl ClientLines {
    /// Takes the maps over, and makes them ready with this room if they are new.
    pub(crate) fn new(segments: Map, head: &Map, sizes: Sizes) -> Result<Self, MapFault> {
        let segments = Segments::new(segments, head, sizes)?;
        Ok(Self(Arc::new(Shared { segments, passes: Mutex::default(), uses: RwLock::default() })))
    }

    /// Frees lines that a killed agent had claimed, and has the table grow to the end where that one had begun. The
    /// caller holds the lock: there is no other agent. `earlier`: programs of a version may be attached that knows of
    /// map `AFFINITY` only, `spilled`.
    pub(crate) fn recover(&self, spilled: &Table<AffinityKey, Affinity>, earlier: bool) -> Result<(), MapFault> {
        let freed = self.numbers().filter_map(|number| self.0.segments.bucket(number)).flatten();
        let freed = freed.filter(|line| lines::reclaim(*line)).count();
        if freed > 0 {
            tracing::info!(
                "{freed} lines of AFFINITY_SEGMENTS were being written by an agent that was ended: free again"
            );
        }
        // What that version has put there it has not counted.
        self.look_there();
        self.establish(!earlier);
        if earlier {
            // After a step back: what has begun there since is in force.
            let _ = spilled.for_each(&|| (), |key, entry| {
                self.remove_if(&key, |known| known.created < entry.created);
                Ok(ControlFlow::Continue(()))
            })?;
        }
        let mut affinity = spilled.try_clone()?;
        self.grow([0; _], &|| (), &mut |key, entry| self.spill(&mut affinity, key, entry)).map(drop)
    }

    /// Whether connections are established in their lines from now on.
    pub(crate) fn establish(&self, yes: bool) {
        self.0.segments.set_head(head::ESTABLISHES, yes.into());
    }

    /// Whether programs look into map `AFFINITY`, and how many entries they have put there.
    pub(crate) fn spilled(&self) -> (bool, u64) {
        let spilled = self.0.segments.head(head::SPILLED);
        (spilled != self.0.segments.head(head::RETURNED), spilled)
    }

    /// Has the programs look into `AFFINITY`.
    pub(crate) fn look_there(&self) {
        if !self.spilled().0 {
            self.count_spilled();
        }
    }

    /// Puts an established entry into map `AFFINITY`, for want of a line, or takes the one with this key out.
    pub(crate) fn spill(
        &self,
        affinity: &mut Table<AffinityKey, Affinity>,
        key: AffinityKey,
        entry: Option<Affinity>,
    ) -> Result<(), MapFault> {
        match entry {
            Some(entry) => {
                affinity.put(key, entry)?;
                self.count_spilled();
                Ok(())
            }
            None => affinity.remove(&key),
        }
    }

    /// Counts an entry that was put into `AFFINITY`.
    pub(crate) fn count_spilled(&self) {
        self.0.segments.add_to_head(head::SPILLED, 1);
    }

    /// Has the programs stop looking there. `spilled`: their number, read before `AFFINITY` was found to be empty.
    pub(crate) fn look_here_only(&self, spilled: u64) {
        self.0.segments.set_head(head::RETURNED, spilled);
    }

    /// The numbers of all buckets.
    fn numbers(&self) -> impl Iterator<Item = u32> {
        let of_half = |half| (0..self.buckets(half)).map(move |index| line::number(half, index));
        (0..pending::COUNT).flat_map(of_half)
    }

    /// Buckets in a half.
    fn buckets(&self, half: u32) -> u32 {
        geometry::count(self.0.segments.head(head::GEOMETRY + half as usize))
    }

    /// Room in each half, in connections.
    pub(crate) fn capacity(&self) -> [u32; pending::COUNT as usize] {
        [pending::TCP, pending::OTHER].map(|half| self.buckets(half) * SLOTS as u32)
    }

    pub(crate) fn get(&self, key: &AffinityKey) -> Option<(Stage, Affinity)> {
        let _use = self.0.in_use();
        // The line may have been given to another connection since the look-up.
        Connection::read(self.find(&of(key))?).filter(|found| found.key == *key).map(|found| (found.stage, found.entry))
    }

    fn find(&self, key: &Key) -> Option<&[AtomicU64; WORDS]> {
        let found = lines::find(&self, key)?;
        Some(&self.0.segments.bucket(found.bucket)?[found.slot])
    }

    /// Enters a pending connection, as the programs do. Whether it is in the table.
    pub(crate) fn put(&self, key: &AffinityKey, entry: Affinity) -> bool {
        let _use = self.0.in_use();
        lines::put(&self, &of(key), &transmute!(entry))
    }

    /// Enters an established connection where nothing is in its way. Whether it is in the table.
    pub(crate) fn put_established(&self, key: &AffinityKey, entry: Affinity) -> bool {
        let _use = self.0.in_use();
        growth::put_established(&self, &of(key), &transmute!(entry))
    }

    /// Adds to an established entry what was noted in another one that was `copied` here, and is `now`.
    pub(crate) fn merge(&self, key: &AffinityKey, copied: Affinity, now: Affinity) {
        let _use = self.0.in_use();
        if let Some(found) = self.find(&of(key)).and_then(Connection::read)
            && found.key == *key
            && found.entry.created == copied.created
        {
            growth::merge(found.line, found.seen, &transmute!(copied), &transmute!(now));
        }
    }

    /// Returns once no program runs that has run since before the call.
    pub(crate) fn wait_for_programs(&self) -> Result<(), MapFault> {
        self.0.segments.wait_for_programs()
    }

    /// Takes over an earlier map's entry, unless it would displace a younger one. An entry that is here already is
    /// merged with it: programs of both versions may have seen its packets.
    pub(crate) fn take_over(&self, key: &AffinityKey, entry: Affinity) {
        let choice = {
            let _use = self.0.in_use();
            lines::choose(&self, &of(key))
        };
        if lines::displaces_younger(choice, entry.last_seen) {
            return;
        }
        match self.get(key) {
            Some((stage, known)) if known.created > entry.created || stage == Stage::Established => {
                // Of before a step back: this one has begun since.
                if known.created < entry.created && self.remove_if(key, |now| now.created == known.created) {
                    self.put(key, entry);
                }
            }
            Some((_, known)) if known.created == entry.created => {
                let mut both = Affinity { flags: known.flags | entry.flags, ..known };
                both.last_seen = known.last_seen.max(entry.last_seen);
                if known.tcp_number == [0; 3] {
                    both.tcp_number = entry.tcp_number;
                }
                if both != known {
                    self.put(key, both);
                }
            }
            _ => _ = self.put(key, entry),
        }
    }

    /// Frees the entry's line if `is_meant` accepts its present value. Whether it did.
    pub(crate) fn remove_if(&self, key: &AffinityKey, is_meant: impl Fn(&Affinity) -> bool) -> bool {
        let (wanted, _use) = (of(key), self.0.in_use());
        let Some(found) = self.find(&wanted).and_then(Connection::read) else { return false };
        let removed = found.key == *key && is_meant(&found.entry) && found.remove();
        if removed {
            lines::remove_rest(&self, &wanted);
        }
        removed
    }

    /// Hands all connections to `each`, as [`crate::table::Table::for_each`]. The table does not grow meanwhile: `each`
    /// must not wait for anybody.
    pub(crate) fn for_each(
        &self,
        progress: &dyn Fn(),
        each: impl FnMut(&Connection<'_>) -> Result<ControlFlow<()>, MapFault>,
    ) -> Result<ControlFlow<()>, MapFault> {
        let _pass = self.0.pass();
        self.for_each_as_it_grows(progress, each)
    }

    /// The same without keeping the table from growing: what is moved meanwhile may be missing or come twice.
    pub(crate) fn for_each_as_it_grows(
        &self,
        progress: &dyn Fn(),
        mut each: impl FnMut(&Connection<'_>) -> Result<ControlFlow<()>, MapFault>,
    ) -> Result<ControlFlow<()>, MapFault> {
        for number in self.numbers() {
            if number % BATCH == 0 {
                progress();
            }
            for line in self.0.segments.bucket(number).into_iter().flatten() {
                let Some(connection) = Connection::read(line) else { continue };
                if each(&connection)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// How many connections the table holds.
    pub(crate) fn count(&self, progress: &dyn Fn()) -> Result<Counts, MapFault> {
        let mut counts = Counts::default();
        let _ = self.for_each(progress, |connection| {
            match connection.stage {
                Stage::Established => counts.established += 1,
                Stage::Pending => counts.pending[pending::of(connection.key.proto) as usize] += 1,
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(counts)
    }

    /// All connections that are established, or all that are pending.
    #[cfg(feature = "testing")]
    pub(crate) fn read(&self, stage: Stage) -> Result<BTreeMap<AffinityKey, Affinity>, MapFault> {
        let mut entries = BTreeMap::new();
        let _ = self.for_each(&|| (), |connection| {
            if connection.stage == stage {
                entries.insert(connection.key, connection.entry);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(entries)
    }
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) established: usize,
    /// Of each half, TCP's first.
    pub(crate) pending: [usize; pending::COUNT as usize],
}

/// What a line held when it was read.
pub(crate) struct Connection<'a> {
    pub(crate) key: AffinityKey,
    pub(crate) stage: Stage,
    pub(crate) entry: Affinity,
    line: &'a [AtomicU64; WORDS],
    /// The line's state then.
    seen: u64,
}

impl<'a> Connection<'a> {
    fn read(line: &'a [AtomicU64; WORDS]) -> Option<Self> {
        let (key, value, seen) = lines::read(line)?;
        let stage = if lines::is_established(seen) { Stage::Established } else { Stage::Pending };
        Some(Self { key: transmute!(key), stage, entry: transmute!(value), line, seen })
    }

    /// Frees the line, unless it was given to another connection since it was read, or this one was promoted. Whether
    /// it did.
    pub(crate) fn remove(&self) -> bool {
        lines::free(self.line, self.seen)
    }
}

fn of(key: &AffinityKey) -> Key {
    Key { words: transmute!(*key), half: pending::of(key.proto) }
}

const _: () = assert!(size_of::<Value>() == size_of::<Affinity>());
