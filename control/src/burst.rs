//! A token bucket.

use std::time::{Duration, Instant};

/// Size and rate of a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// So many at once.
    pub(crate) burst: u32,
    /// Then one in this time.
    pub(crate) every: Duration,
}

/// A bucket; new ones are full.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Burst {
    /// When all of it may be had again.
    whole: Option<Instant>,
}

impl Burst {
    /// When the next one may be had, if that is not at once.
    pub(crate) fn due(self, allowance: Allowance, now: Instant) -> Option<Instant> {
        let ahead = allowance.every * allowance.burst.saturating_sub(1);
        self.whole
            .filter(|whole| whole.saturating_duration_since(now) > ahead)
            .and_then(|whole| whole.checked_sub(ahead))
    }

    /// Takes one, if it may be had now.
    pub(crate) fn take(&mut self, allowance: Allowance, now: Instant) -> bool {
        let may = self.due(allowance, now).is_none();
        if may {
            self.whole = Some(self.whole.map_or(now, |whole| whole.max(now)) + allowance.every);
        }
        may
    }

    /// Nothing has been had lately: as good as new.
    pub(crate) fn is_whole(self, now: Instant) -> bool {
        self.whole.is_none_or(|whole| whole <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_had_at_once_and_the_rest_in_its_time() {
        let (allowance, start) = (Allowance { burst: 10, every: Duration::from_millis(200) }, Instant::now());
        let ms = |ms: u64| start + Duration::from_millis(ms);
        let mut burst = Burst::default();
        assert!((0..10).all(|_| burst.take(allowance, start)));
        assert!(!burst.take(allowance, start) && !burst.is_whole(start));
        assert_eq!(burst.due(allowance, start), Some(ms(200)));
        // Tried all the time for ten seconds.
        let taken = (0..10_000).filter(|at| burst.take(allowance, ms(*at))).count();
        assert_eq!(taken, 49, "five a second");
        assert!(burst.is_whole(ms(12_000)) && burst.due(allowance, ms(12_000)).is_none());
        assert_eq!((0..20).filter(|_| burst.take(allowance, ms(20_000))).count(), 10, "after a rest");
    }
}
