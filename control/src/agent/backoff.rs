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
    /// Only something around the agent is missing: there is nothing to put off once it is there.
    lacking: bool,
}

/// All failing items by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Backoff(BTreeMap<String, Failing>);

impl Backoff {
    /// Whether it is this item's turn.
    pub(super) fn ready(&self, item: &str, now: Instant) -> bool {
        self.0.get(item).is_none_or(|failing| failing.lacking || failing.next <= now)
    }

    /// Notes a failure. Returns whether it is news (the first one, or another error than before).
    pub(super) fn failed(&mut self, item: &str, error: String, now: Instant) -> bool {
        self.note(item, error, now, false)
    }

    /// Notes that an item cannot even be tried for want of something around the agent. It is its turn in every round.
    /// Returns as [`failed`](Self::failed).
    pub(super) fn lacks(&mut self, item: &str, error: String, now: Instant) -> bool {
        self.note(item, error, now, true)
    }

    fn note(&mut self, item: &str, error: String, now: Instant, lacking: bool) -> bool {
        let before = self.0.get(item);
        let news = before.is_none_or(|before| before.error != error);
        // A failure of the item's own is the first one after something was missing.
        let attempts = before.filter(|before| before.lacking == lacking).map_or(0, |before| before.attempts) + 1;
        let pause = FIRST.saturating_mul(1 << (attempts - 1).min(16)).min(LONGEST);
        self.0.insert(item.to_owned(), Failing { error, attempts, next: now + pause, lacking });
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

    /// When a round is due because of a failing item: when it has its turn, but while rounds end early, and may never
    /// come to it, not before the whole has.
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

    #[test]
    fn what_lacks_something_is_tried_as_soon_as_that_is_there() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        for _ in 0..10 {
            backoff.lacks("maps", "interface eth1 is gone".into(), now);
        }
        assert_eq!(backoff.next(), Some(now + LONGEST), "rounds because of it alone are few");
        assert!(backoff.ready("maps", now), "but it is its turn in each");
        assert!(backoff.failed("maps", "full".into(), now), "that is news");
        assert_eq!((backoff.all()["maps"].attempts, backoff.ready("maps", now)), (1, false));
        assert!(backoff.ready("maps", now + FIRST));
    }
}
