//! Forgetting connections: those idle for too long, and those of tasks that are gone.
//!
//! Timestamps and a sweep instead of an LRU map: that evicts exactly the long-idle connections that must be kept.

mod decide;
mod timeouts;

use std::collections::HashSet;

use dataplane_common::{
    addr::Tag,
    flow::{Affinity, Flow},
};

use self::decide::Reason;
pub use self::timeouts::Timeouts;
use crate::{
    clock::monotonic_now,
    table::{Entries as _, MapFault},
    tables::Tables,
};

/// What a sweep saw and removed, in table entries (a translated connection has two in `FLOWS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Entries in `FLOWS` after the sweep.
    pub flows: usize,
    /// Entries in `AFFINITY` after the sweep.
    pub affinity: usize,
    /// Entries removed because they were idle for too long.
    pub expired: usize,
    /// Entries removed because their task is gone.
    pub task_gone: usize,
    /// Reply entries removed because their forward entry was missing.
    pub orphans: usize,
}

impl SweepReport {
    fn count(&mut self, reason: Reason) {
        match reason {
            Reason::Expired => self.expired += 1,
            Reason::TaskGone => self.task_gone += 1,
            Reason::Orphan => self.orphans += 1,
        }
    }
}

/// Whether the reason still holds for an entry that was created and last seen then, and says so now: it may have been
/// made anew, and an idle one may have seen a packet.
fn still(reason: Reason, then: Option<(u64, u64)>, now: (u64, u64)) -> bool {
    then.is_some_and(|then| then.0 == now.0 && (reason != Reason::Expired || then.1 == now.1))
}

impl Tables {
    /// Removes what is to be forgotten.
    pub(crate) fn sweep(&mut self, live: &HashSet<Tag>, timeouts: &Timeouts) -> Result<SweepReport, MapFault> {
        // Read before the tables, so that an entry made meanwhile is not older than it looks.
        let now = monotonic_now();
        let (flows, affinity) = (self.flows.read()?, self.affinity.read()?);
        let mut report = SweepReport { flows: flows.len(), affinity: affinity.len(), ..SweepReport::default() };

        for (key, reason) in decide::flows(&flows, live, timeouts, now) {
            let stamps = |flow: &Flow| (flow.created, flow.last_seen);
            if self.flows.get(&key)?.is_some_and(|now| still(reason, flows.get(&key).map(stamps), stamps(&now))) {
                self.flows.remove(&key)?;
                report.flows -= 1;
                report.count(reason);
            }
        }
        for (key, reason) in decide::affinity(&affinity, live, timeouts, now) {
            let stamps = |entry: &Affinity| (entry.created, entry.last_seen);
            if self.affinity.get(&key)?.is_some_and(|now| still(reason, affinity.get(&key).map(stamps), stamps(&now))) {
                self.affinity.remove(&key)?;
                report.affinity -= 1;
                report.count(reason);
            }
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_since_it_was_read_is_looked_at_again() {
        for reason in [Reason::Expired, Reason::TaskGone, Reason::Orphan] {
            assert!(still(reason, Some((1, 2)), (1, 2)));
            assert!(!still(reason, Some((1, 2)), (2, 2)), "made anew");
            assert!(!still(reason, None, (1, 2)));
            assert_eq!(still(reason, Some((1, 2)), (1, 3)), reason != Reason::Expired, "seen again");
        }
    }
}
