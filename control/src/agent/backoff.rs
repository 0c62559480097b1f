//! Failing items: tried again later and later, and visible until they succeed.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// First pause after a failure; doubled with each further one.
const FIRST: Duration = Duration::from_millis(500);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(30);

/// The item of rounds that end early.
pub(super) const WHOLE: &str = "reconciliation";

/// Why an item failed, how often in a row, and when it is its turn again.
#[derive(Clone, Debug)]
pub(super) struct Failing {
    /// The last error.
    pub(super) error: String,
    /// Failures in a row.
    pub(super) attempts: u32,
    /// Not before.
    pub(super) next: Instant,
}

/// All failing items by name.
#[derive(Debug, Default)]
pub(super) struct Backoff(BTreeMap<String, Failing>);

impl Backoff {
    /// Whether it is this item's turn.
    pub(super) fn ready(&self, item: &str, now: Instant) -> bool {
        self.0.get(item).is_none_or(|failing| failing.next <= now)
    }

    /// Notes a failure. Returns whether it is news (the first one, or another error than before).
    pub(super) fn failed(&mut self, item: &str, error: String, now: Instant) -> bool {
        let before = self.0.get(item);
        let news = before.is_none_or(|before| before.error != error);
        let attempts = before.map_or(0, |before| before.attempts) + 1;
        let pause = FIRST.saturating_mul(1 << (attempts - 1).min(16)).min(LONGEST);
        self.0.insert(item.to_owned(), Failing { error, attempts, next: now + pause });
        news
    }

    /// Notes a success. Returns whether it was failing before.
    pub(super) fn succeeded(&mut self, item: &str) -> bool {
        self.0.remove(item).is_some()
    }

    /// Forgets items that are not in `kept`.
    pub(super) fn retain(&mut self, kept: impl Fn(&str) -> bool) {
        self.0.retain(|item, _| kept(item));
    }

    /// A new table: everything may be tried at once.
    pub(super) fn hurry(&mut self, now: Instant) {
        for failing in self.0.values_mut() {
            failing.next = now;
        }
    }

    /// All failing items.
    pub(super) fn all(&self) -> &BTreeMap<String, Failing> {
        &self.0
    }

    /// When a round is due because of a failing item: when it has its turn, but while rounds end early, and may never come to
    /// it, not before the whole has.
    pub(super) fn next(&self) -> Option<Instant> {
        let first = self.0.values().map(|failing| failing.next).min();
        first.max(self.0.get(WHOLE).map(|whole| whole.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        assert!(backoff.ready("x", now));
        assert!(backoff.failed("x", "no".into(), now));
        assert!(!backoff.failed("x", "no".into(), now), "the same error is no news");
        assert!(!backoff.ready("x", now + Duration::from_millis(900)));
        assert!(backoff.ready("x", now + Duration::from_millis(1000)));
        for _ in 0..40 {
            backoff.failed("x", "no".into(), now);
        }
        assert_eq!(backoff.next(), Some(now + LONGEST));
        backoff.hurry(now);
        assert!(backoff.ready("x", now));
        assert!(backoff.succeeded("x") && !backoff.succeeded("x"));
    }
}
