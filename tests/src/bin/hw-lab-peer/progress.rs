//! How far a load has come, on stderr, for scenarios that wait for it.

use std::sync::atomic::{AtomicU64, Ordering};

use hiveway_tests::load::ANSWERS_PER_REPORT;

/// Counts the answers of all threads.
#[derive(Default)]
pub(crate) struct Progress(AtomicU64);

impl Progress {
    /// Notes an answer; `first` is a thread's first one.
    pub(crate) fn answered(&self, first: bool) {
        let total = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        if first {
            eprintln!("first answer");
        }
        if total.is_multiple_of(ANSWERS_PER_REPORT) {
            eprintln!("answers: {total}");
        }
    }

    /// Notes a failure.
    pub(crate) fn failed(&self, error: &anyhow::Error) {
        eprintln!("failure after {} answers: {error:#}", self.0.load(Ordering::Relaxed));
    }
}
