//! Lines of loom's atomics, and the orders that it tries.

use dataplane_common::line::{STATE, WORDS};
use dataplane_core::{growth::Movable, lines::Line};
use loom::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, SeqCst},
    fence,
};

/// As `dataplane_core` has it of the standard library's atomics.
#[derive(Clone, Copy)]
pub(crate) struct Modelled<'a>(pub(crate) &'a [AtomicU64; WORDS]);

impl Line for Modelled<'_> {
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
        let replaced = self.0[STATE].compare_exchange(from, to, SeqCst, Relaxed).is_ok();
        fence(SeqCst);
        replaced
    }
}

impl Movable for Modelled<'_> {
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
