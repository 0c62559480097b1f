//! The cooldown between two looks at everything, where one takes much of the processor: a large swarm that nothing
//! happens in is to take little of it all the same.

use std::time::{Duration, Instant};

use super::reconcile::Agent;
use crate::{cost, netlink};

/// How much longer than the processor time of a look the cooldown after it is, at least.
const SPARING: u32 = 10;
/// But no longer than this: what somebody else has done to maps, routes or firewall is found.
const MOST: Duration = Duration::from_secs(30);

impl Agent {
    /// Whether everything may be looked at again only because time has passed.
    pub(super) fn has_cooled_down(&self) -> bool {
        enough(self.looked, self.cost, Instant::now())
    }

    /// What is done in time all the same.
    pub(super) fn cool_down(&mut self) {
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

/// Processor time that rounds have used so far: of this thread, which the loop runs on, and of the netlink sockets'
/// connections, which read for it on others. What a look costs does not grow because of sweeps, tables that are served
/// or scrapes.
pub(super) fn used() -> Duration {
    cost::of_thread() + netlink::used()
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
    fn work_is_counted_and_that_of_others_is_not() {
        let work = || {
            let (before, started) = (cost::of_thread(), Instant::now());
            while cost::of_thread() < before + Duration::from_millis(200) {
                assert!(started.elapsed() < Duration::from_secs(60), "work is not counted");
                std::hint::black_box((0..1000).sum::<u64>());
            }
        };
        let before = used();
        std::thread::spawn(work).join().unwrap();
        let others = used().saturating_sub(before);
        assert!(others < Duration::from_millis(100), "another thread's work counts: {others:?}");
        work();
        assert!(used() - before >= Duration::from_millis(200));
    }
}
