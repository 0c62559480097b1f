//! When and how the agent has the table grow.

use std::{cell::RefCell, sync::atomic::AtomicU64};

use dataplane_common::{
    flow::{Affinity, AffinityKey, pending},
    line::{SLOTS, WORDS, head},
};
use dataplane_core::{
    growth::{self, Growing, Moved},
    lines::{Lines, Value},
};
use zerocopy::transmute;

use super::ClientLines;
use crate::table::MapFault;

/// A half is doubled once more of its lines hold established connections than this share, in eighths: up to there
/// hardly any connection finds both of its buckets full.
const FULL: u64 = 3;

/// The table as [`growth`] wants it.
struct Growth<'a> {
    lines: &'a ClientLines,
    progress: &'a dyn Fn(),
    spill: RefCell<Spill<'a>>,
}

/// Puts an established entry into map `AFFINITY`, and counts it; or takes the one with this key out.
pub(crate) type Spill<'a> = &'a mut dyn FnMut(AffinityKey, Option<Affinity>) -> Result<(), MapFault>;

impl<'a> Lines for Growth<'a> {
    const CLAIM: u64 = <&ClientLines as Lines>::CLAIM;
    type Line = &'a [AtomicU64; WORDS];
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

impl Growing for Growth<'_> {
    type Error = MapFault;

    fn add(&self, half: u32, buckets: u32) -> Result<(), MapFault> {
        self.lines.0.segments.add(half, buckets, self.progress)
    }

    fn set_head(&self, word: usize, value: u64) {
        self.lines.0.segments.set_head(word, value);
    }

    fn wait(&self) -> Result<(), MapFault> {
        self.lines.0.segments.wait_for_programs()?;
        self.lines.0.all_done();
        Ok(())
    }

    fn spill(&self, key: [u64; 2], value: &Value) -> Result<(), MapFault> {
        (self.spill.borrow_mut())(transmute!(key), Some(transmute!(*value)))
    }

    fn unspill(&self, key: [u64; 2]) -> Result<(), MapFault> {
        (self.spill.borrow_mut())(transmute!(key), None)
    }

    fn progress(&self) {
        (self.progress)();
    }
}

impl ClientLines {
    /// Doubles a half as often as it takes for so many connections in it, TCP's first, and ends what an earlier call
    /// has begun. Whether a half has grown.
    ///
    /// # Errors
    /// When the kernel refuses. The table is as good as before, and the next call goes on.
    pub(crate) fn grow(
        &self,
        used: [u64; pending::COUNT as usize],
        progress: &dyn Fn(),
        spill: Spill<'_>,
    ) -> Result<bool, MapFault> {
        let _pass = self.0.pass();
        let lines = Growth { lines: self, progress, spill: RefCell::new(spill) };
        let mut grown = false;
        for (half, used) in (0..).zip(used) {
            self.tell(half, growth::resume(&lines, half)?);
            while self.is_full(half, used) && u64::from(self.buckets(half)) < self.0.segments.head(head::MOST) {
                self.tell(half, growth::double(&lines, half)?);
                grown = true;
            }
        }
        Ok(grown)
    }

    /// Says what became of connections when their half had grown.
    fn tell(&self, half: u32, moved: Moved) {
        if moved == Moved::default() {
            return;
        }
        let room = self.capacity()[half as usize];
        tracing::info!("clients' connections have {room} lines now; {} were moved", moved.moved);
        if moved.spilled > 0 {
            let spilled = moved.spilled;
            tracing::info!("{spilled} established ones found no line: they are in map AFFINITY, and go without XDP");
        }
        if moved.lost > 0 {
            tracing::warn!("{} pending ones found no line among {room}: they end", moved.lost);
        }
    }

    /// As an agent leaves a half that is ended as soon as the programs know that it grows.
    #[cfg(feature = "testing")]
    pub(crate) fn begin_to_grow(&self, half: u32) -> Result<(), MapFault> {
        let mut nothing = |_, _| Ok(());
        let spill = RefCell::new(&mut nothing as Spill<'_>);
        growth::begin(&Growth { lines: self, progress: &|| (), spill }, half)
    }

    fn is_full(&self, half: u32, used: u64) -> bool {
        8 * used > FULL * u64::from(self.buckets(half)) * SLOTS as u64
    }
}
