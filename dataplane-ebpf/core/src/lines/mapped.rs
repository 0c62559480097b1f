//! Lines in memory, outside of programs.

use core::{
    marker::PhantomData,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, SeqCst},
        fence,
    },
};

use dataplane_common::line::{Layout, WORDS};

use super::Line;

/// A line in memory that is shared with the programs, or with other threads.
#[derive(Debug)]
pub struct Mapped<'a, L>(pub &'a [AtomicU64; WORDS], PhantomData<L>);

impl<'a, L> Mapped<'a, L> {
    /// One with this layout.
    pub fn new(words: &'a [AtomicU64; WORDS]) -> Self {
        Self(words, PhantomData)
    }
}

impl<L> Clone for Mapped<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Mapped<'_, L> {}

impl<L: Layout> Line for Mapped<'_, L> {
    type Layout = L;

    fn load(self, word: usize) -> u64 {
        self.0[word].load(Relaxed)
    }

    fn load_after(self, word: usize, _: u64) -> u64 {
        fence(Acquire);
        self.0[word].load(Relaxed)
    }

    fn store(self, word: usize, value: u64) {
        self.0[word].store(value, Relaxed);
    }

    fn replace_state(self, from: u64, to: u64) -> bool {
        fence(SeqCst);
        let replaced = self.0[L::STATE].compare_exchange(from, to, SeqCst, Relaxed).is_ok();
        fence(SeqCst);
        replaced
    }
}
