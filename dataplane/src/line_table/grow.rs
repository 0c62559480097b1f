//! When and how the agent has the table grow.

use std::{cell::RefCell, sync::atomic::AtomicU64};

use dataplane_common::{
    flow::pending,
    line::{SLOTS, WORDS, head},
};
use dataplane_core::{
    growth::{self, Growing, Moved},
    lines::{KeyWords, Lines, Mapped, Value},
};

use super::{Contents, LineTable};
use crate::table::MapFault;

/// A half is doubled once more of its lines hold established connections than this share, in eighths: up to there
/// hardly any connection finds both of its buckets full.
const FULL: u64 = 3;

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
    /// Doubles a half as often as it takes for so many connections in it, TCP's first, and ends what an earlier call
    /// has begun. Whether a half has grown.
    ///
    /// # Errors
    /// When the kernel refuses. The table is as good as before, and the next call goes on.
    pub(crate) fn grow(
        &self,
        used: [u64; pending::COUNT as usize],
        progress: &dyn Fn(),
        spill: Spill<'_, T>,
    ) -> Result<bool, MapFault> {
        let _pass = self.shared.pass();
        let lines = Growth { lines: self, progress, spill: RefCell::new(spill) };
        let mut grown = false;
        for (half, used) in (0..).zip(used) {
            self.tell(half, growth::resume(&lines, half)?);
            while self.is_full(half, used) && u64::from(self.buckets(half)) < self.shared.segments.head(head::MOST) {
                self.tell(half, growth::double(&lines, half)?);
                grown = true;
            }
        }
        Ok(grown)
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
        let room = self.capacity()[half as usize];
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
        growth::begin(&Growth { lines: self, progress: &|| (), spill }, half)
    }

    fn is_full(&self, half: u32, used: u64) -> bool {
        8 * used > FULL * u64::from(self.buckets(half)) * SLOTS as u64
    }
}
