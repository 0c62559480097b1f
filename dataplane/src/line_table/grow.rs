//! When and how the agent has the table grow.

use std::{cell::RefCell, sync::atomic::AtomicU64};

use dataplane_common::{
    flow::{MAX_PENDING, pending},
    line::{self, SLOTS, WORDS, head},
};
use dataplane_core::{
    growth::{self, Growing, Moved},
    lines::{self, KeyWords, Lines, Mapped, Value},
};

use super::{Contents, LineTable};
use crate::table::MapFault;

/// A half grows once more of its lines hold established connections than this share, in eighths: up to there hardly any
/// connection finds both of its buckets full.
const FULL: u64 = 3;
/// The same as long as it is smaller than what pending connections may need: up to there hardly one finds them full.
const SPARSE: u64 = 1;
/// Not in larger ones, though: so many buckets are 4 MiB.
const MOST_SPARSE: u32 = line::buckets(MAX_PENDING);
/// Buckets that are looked at to find out how many lines are used.
const SAMPLE: u32 = 256;

/// The table as [`growth`] wants it.
struct Growth<'a, T: Contents> {
    lines: &'a LineTable<T>,
    progress: &'a dyn Fn(),
    spill: RefCell<Spill<'a, T>>,
}

/// Puts an established entry into the map of those that find no line, and counts it; or takes the one with this key
/// out.
pub(crate) type Spill<'a, T> =
    &'a mut dyn FnMut(<T as Contents>::Key, Option<<T as Contents>::Entry>) -> Result<(), MapFault>;

impl<'a, T: Contents> Lines for Growth<'a, T> {
    const CLAIM: u64 = <&LineTable<T> as Lines>::CLAIM;
    type Line = Mapped<'a, T>;
    type Bucket = &'a [[AtomicU64; WORDS]; SLOTS];

    fn head(&self, word: usize) -> u64 {
        self.lines.head(word)
    }

    fn bucket(&self, number: u32) -> Option<Self::Bucket> {
        self.lines.bucket(number)
    }

    fn line(&self, bucket: Self::Bucket, slot: usize) -> Self::Line {
        self.lines.line(bucket, slot)
    }
}

impl<T: Contents> Growing for Growth<'_, T> {
    type Error = MapFault;

    fn add(&self, half: u32, buckets: u32) -> Result<(), MapFault> {
        self.lines.shared.segments.add(half, buckets, self.progress)
    }

    fn set_head(&self, word: usize, value: u64) {
        self.lines.shared.segments.set_head(word, value);
    }

    fn wait(&self) -> Result<(), MapFault> {
        self.lines.shared.segments.wait_for_programs()?;
        self.lines.shared.all_done();
        Ok(())
    }

    fn spill(&self, key: KeyWords, value: &Value) -> Result<(), MapFault> {
        (self.spill.borrow_mut())(T::key_of(key), Some(T::entry_of(*value)))
    }

    fn unspill(&self, key: KeyWords) -> Result<(), MapFault> {
        (self.spill.borrow_mut())(T::key_of(key), None)
    }

    fn progress(&self) {
        (self.progress)();
    }
}

impl<T: Contents> LineTable<T> {
    /// Has a half grow as far as it takes for so many established connections in it, TCP's first, and for the pending
    /// ones that are there, to `least` buckets in any case; and ends what an earlier call has begun. Whether a half has
    /// grown.
    ///
    /// # Errors
    /// When the kernel refuses. The table is as good as before, and the next call goes on.
    pub(crate) fn grow(
        &self,
        used: [u64; pending::COUNT as usize],
        least: u32,
        progress: &dyn Fn(),
        spill: Spill<'_, T>,
    ) -> Result<bool, MapFault> {
        let _pass = self.shared.pass();
        let lines = Growth { lines: self, progress, spill: RefCell::new(spill) };
        let grow = |half, used| -> Result<bool, MapFault> {
            self.tell(half, growth::resume(&lines, half)?);
            let wanted = self.wanted(half, used).max(least);
            if wanted <= self.buckets(half) {
                return Ok(false);
            }
            self.tell(half, growth::grow(&lines, half, wanted)?);
            Ok(true)
        };
        // Each on its own: one may be refused what the other gets.
        let [tcp, other] = [grow(pending::TCP, used[0]), grow(pending::OTHER, used[1])];
        Ok(tcp? | other?)
    }

    /// Frees the lines that an agent has left behind that was ended when a half had just grown.
    pub(crate) fn free_misplaced(&self) {
        let _pass = self.shared.pass();
        let mut nothing = |_, _| Ok(());
        let lines = Growth { lines: self, progress: &|| (), spill: RefCell::new(&mut nothing) };
        (0..pending::COUNT).for_each(|half| growth::free_misplaced(&lines, half));
    }

    /// Says what became of connections when their half had grown.
    fn tell(&self, half: u32, moved: Moved) {
        if moved == Moved::default() {
            return;
        }
        let room = self.lines()[half as usize];
        tracing::info!("{} have {room} lines now; {} were moved", T::WHAT, moved.moved);
        if moved.spilled > 0 {
            let (spilled, map) = (moved.spilled, T::SPILLED);
            tracing::info!("{spilled} established ones found no line: they are in map {map}, which takes longer");
        }
        if moved.lost > 0 {
            tracing::warn!("{} pending ones found no line among {room}: they end", moved.lost);
        }
    }

    /// As an agent leaves a half that is ended as soon as the programs know that it grows.
    #[cfg(feature = "testing")]
    pub(crate) fn begin_to_grow(&self, half: u32) -> Result<(), MapFault> {
        let mut nothing = |_, _| Ok(());
        let spill = RefCell::new(&mut nothing as Spill<'_, T>);
        growth::begin(&Growth { lines: self, progress: &|| (), spill }, half, 2 * self.buckets(half))
    }

    /// How many buckets a half should have.
    fn wanted(&self, half: u32, used: u64) -> u32 {
        let (segments, mut buckets) = (&self.shared.segments, self.buckets(half));
        if buckets < segments.pending && self.is_pressed(half) {
            buckets = segments.pending;
        }
        let is_fuller = |buckets: u32, share: u64| 8 * used > share * u64::from(buckets) * SLOTS as u64;
        while buckets < segments.pending.min(MOST_SPARSE) && is_fuller(buckets, SPARSE) {
            buckets *= 2;
        }
        while u64::from(buckets) < segments.head(head::MOST) && is_fuller(buckets, FULL) {
            buckets *= 2;
        }
        buckets
    }

    /// Whether half of the lines are used, by a look at some buckets: with more, pending connections displace one
    /// another soon. A flood fills what the tables begin with in a fraction of a second.
    fn is_pressed(&self, half: u32) -> bool {
        let buckets = self.buckets(half);
        let sample = (0..buckets).step_by((buckets / SAMPLE).max(1) as usize);
        let lines = sample.filter_map(|index| self.shared.segments.bucket(line::number(half, index))).flatten();
        let (mut all, mut used) = (0, 0);
        for line in lines {
            all += 1;
            used += u32::from(lines::is_used(lines::state_in(Mapped::<T>::new(line))));
        }
        2 * used > all
    }
}
