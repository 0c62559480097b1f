//! Rest between two looks at everything, where one takes much of the processor: a large swarm that nothing happens in is to take
//! little of it all the same.

use std::time::{Duration, Instant};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};

use super::reconcile::Agent;

/// How much longer than the processor time of a look the rest after it is, at least.
const SPARING: u32 = 10;
/// But no longer than this: what somebody else has done to maps, routes or firewall is found.
const MOST: Duration = Duration::from_secs(30);

impl Agent {
    /// Whether everything may be looked at again only because time has passed.
    pub(super) fn has_rested(&self) -> bool {
        enough(self.looked, self.cost, Instant::now())
    }

    /// What is done in time all the same.
    pub(super) fn rest(&mut self) {
        self.sweep_all_the_same();
        self.last.read_at = Some(self.table.read_at);
        self.shared.publish(self.last.clone());
    }
}

impl Agent {
    /// Has connections swept where a round does not, or has not come to it.
    pub(super) fn sweep_all_the_same(&self) {
        // After a round that failed early the tags may be of another table: its tasks alone would be known.
        if self.last.tags.is_of(&self.table.model) {
            // The next round says what was wrong with it.
            let _ = self.sweeper.ask(self.last.tags.clone(), false);
        }
    }
}

/// Whether it is `now` late enough after a look that ended at `ended` and cost so much.
fn enough(ended: Option<Instant>, cost: Duration, now: Instant) -> bool {
    ended.is_none_or(|ended| now.saturating_duration_since(ended) >= (cost * SPARING).min(MOST))
}

/// Processor time that the agent has used so far: what a look costs does not grow because others are at work.
pub(super) fn used() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let time = usage.user_time() + usage.system_time();
    Duration::from_micros(time.num_microseconds().try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_takes_a_tenth_of_the_time_at_most() {
        let ended = Instant::now();
        let after = |took: u64, passed: u64| {
            enough(Some(ended), Duration::from_millis(took), ended + Duration::from_millis(passed))
        };
        assert!(enough(None, MOST, ended), "there was none");
        assert!(after(100, 5_000) && after(500, 5_000), "a small swarm: at every tick");
        assert!(!after(700, 5_000) && !after(700, 6_999) && after(700, 7_000));
        assert!(!after(9_000, 29_999) && after(9_000, 30_000), "but not for ever");
    }

    #[test]
    fn work_is_counted() {
        let (before, started) = (used(), Instant::now());
        while used() < before + Duration::from_millis(20) {
            assert!(started.elapsed() < Duration::from_secs(60), "work is not counted");
            std::hint::black_box((0..1000).sum::<u64>());
        }
    }
}
