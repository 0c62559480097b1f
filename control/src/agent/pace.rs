//! How often the surroundings may cause a round, and which of their events may. Somebody who makes and deletes
//! interfaces all the time must neither keep the agent from what is due nor take the processor.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use hiveway_core::observed::Kind;
use tokio::time::sleep_until;

use super::{facts::Gateway, reconcile::Agent};
use crate::netlink::monitor::About;

/// The least time from a round to one that the surroundings cause.
const LEAST: Duration = Duration::from_millis(75);
/// How much longer than the last round's processor time it is.
const SPARING: u32 = 2;
/// But no longer than this.
const MOST: Duration = Duration::from_secs(2);

/// When the surroundings may cause the next round.
#[derive(Debug, Default)]
pub(super) struct Pace {
    due: Option<Instant>,
}

impl Pace {
    /// A round has ended that took so much of the processor.
    pub(super) fn round(&mut self, ended: Instant, cost: Duration) {
        self.due = Some(ended + (cost * SPARING).clamp(LEAST, MOST));
    }

    /// `time`, or when the next round may be if that is later.
    pub(super) fn not_before(&self, time: Instant) -> Instant {
        self.due.map_or(time, |due| due.max(time))
    }
}

/// What comes when the surroundings may cause a round.
pub(super) async fn paced<T>(pace: &Pace, event: impl Future<Output = T>) -> T {
    until(Some(pace.not_before(Instant::now()))).await;
    event.await
}

/// Returns at that time, or never.
pub(super) async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// What of the node's interfaces is no concern of the agent's: ports of other people's bridges.
#[derive(Clone, Debug, Default)]
pub(super) struct Foreign(Arc<RwLock<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Bridges that are neither the agent's nor the gateway bridge, by index.
    bridges: BTreeSet<u32>,
    /// Ports of theirs that are used all the same: clients arrive there, or tunnels.
    used: BTreeSet<u32>,
}

impl Foreign {
    /// Whether an event of an interface may be left alone. What is not known is not.
    pub(super) fn ignores(&self, event: &About) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        event.master.is_some_and(|master| known.bridges.contains(&master)) && !known.used.contains(&event.index)
    }
}

impl Agent {
    /// Notes what the last look has shown to be no concern.
    pub(super) fn note_foreign(
        &self,
        links: &std::collections::BTreeMap<String, hiveway_core::observed::Link>,
        gateway: &Gateway,
        clients: &BTreeSet<String>,
    ) {
        let foreign = links
            .iter()
            .filter(|(name, link)| link.kind == Kind::Bridge && !link.is_ours(name) && **name != gateway.name);
        let used = links.iter().filter(|(name, link)| clients.contains(*name) || !link.addresses.is_empty());
        *self.foreign.0.write().unwrap_or_else(PoisonError::into_inner) = Known {
            bridges: foreign.map(|(_, link)| link.index).collect(),
            used: used.map(|(_, link)| link.index).collect(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_at_once_and_the_next_ones_leave_room() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let ms = Duration::from_millis;
        assert_eq!(pace.not_before(now), now);
        for (cost, pause) in [(0, 75), (20, 75), (100, 200), (60_000, 2000)] {
            pace.round(now, ms(cost));
            assert_eq!(pace.not_before(now), now + ms(pause), "after {cost} ms");
            assert_eq!(pace.not_before(now + ms(5000)), now + ms(5000), "what is later stays");
        }
    }

    #[test]
    fn ports_of_other_peoples_bridges_are_no_concern() {
        let foreign = Foreign::default();
        let event = |index, master| About { index, master };
        assert!(!foreign.ignores(&event(7, Some(5))), "nothing is known yet");
        *foreign.0.write().unwrap() = Known { bridges: [5].into(), used: [5, 8].into() };
        assert!(foreign.ignores(&event(7, Some(5))));
        assert!(!foreign.ignores(&event(7, Some(6))), "another bridge");
        assert!(!foreign.ignores(&event(7, None)), "it has left the bridge");
        assert!(!foreign.ignores(&event(8, Some(5))), "clients arrive there");
        assert!(!foreign.ignores(&event(5, None)), "the bridge itself");
    }
}
