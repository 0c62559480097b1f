//! Lines of loom's atomics, and the orders that it tries.

use std::marker::PhantomData;

use dataplane_common::line::{Layout, WORDS};
use dataplane_core::{growth::Movable, lines::Line};
use loom::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, SeqCst},
    fence,
};

/// A layout of lines that threads share.
pub(crate) trait Shared: Layout + Send + Sync + 'static {}

impl<L: Layout + Send + Sync + 'static> Shared for L {}

/// As `dataplane_core` has it of the standard library's atomics.
pub(crate) struct Modelled<'a, L>(&'a [AtomicU64; WORDS], PhantomData<L>);

impl<'a, L> Modelled<'a, L> {
    pub(crate) fn new(words: &'a [AtomicU64; WORDS]) -> Self {
        Self(words, PhantomData)
    }
}

impl<L> Clone for Modelled<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Modelled<'_, L> {}

impl<L: Layout> Line for Modelled<'_, L> {
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

impl<L: Layout> Movable for Modelled<'_, L> {
    fn replace(self, word: usize, from: u64, to: u64) -> bool {
        self.0[word].compare_exchange(from, to, SeqCst, Relaxed).is_ok()
    }
}

/// All orders in which a thread is interrupted no more than so often: loom's authors have found two or three to be
/// enough for most faults, and without a bound it takes hours.
pub(crate) fn every_order(run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(run);
}
