//! Forgetting connections: those idle for too long, and those of tasks that are gone.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    hash::Hash,
};

use dataplane_common::{
    addr::Tag,
    flow::{Affinity, AffinityKey, Flow, FlowKey},
};

use super::{
    Connections, PerTable, Snapshot, Stage,
    decide::{self, Reason, Rules},
    pairs::holds_the_gate,
    timeouts::Timeouts,
};
use crate::{
    clock::monotonic_now,
    pod::Plain,
    table::{Entries as _, MapFault, Table},
};

/// What a sweep saw and removed, in table entries (a translated connection has two in `FLOWS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Entries in each table after the sweep.
    pub left: PerTable<usize>,
    /// Entries removed.
    pub removed: Removed,
}

/// Entries removed by sweeps, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// They were idle for too long.
    pub expired: usize,
    /// Their task is gone.
    pub task_gone: usize,
    /// Established reply entries whose forward entry was missing.
    pub orphans: usize,
}

impl Removed {
    fn count(&mut self, reason: Reason) {
        match reason {
            Reason::Expired => self.expired += 1,
            Reason::TaskGone => self.task_gone += 1,
            Reason::Orphan => self.orphans += 1,
        }
    }

    /// With the reasons' names as in the metrics.
    pub fn named(&self) -> [(&'static str, usize); 3] {
        [("expired", self.expired), ("task_gone", self.task_gone), ("orphan", self.orphans)]
    }
}

impl std::ops::AddAssign for Removed {
    fn add_assign(&mut self, more: Self) {
        self.expired += more.expired;
        self.task_gone += more.task_gone;
        self.orphans += more.orphans;
    }
}

/// When an entry was made, and when a packet was last seen.
trait Stamps {
    fn stamps(&self) -> (u64, u64);
}

impl Stamps for Flow {
    fn stamps(&self) -> (u64, u64) {
        (self.created, self.last_seen)
    }
}

impl Stamps for Affinity {
    fn stamps(&self) -> (u64, u64) {
        (self.created, self.last_seen)
    }
}

/// Whether the reason still holds for an entry that was created and last seen then, and says so now: it may have been
/// made anew, and an idle one may have seen a packet.
fn still(reason: Reason, then: (u64, u64), now: (u64, u64)) -> bool {
    then.0 == now.0 && (reason != Reason::Expired || then.1 == now.1)
}

/// What two tables hold: under each key what is in force, and besides pending entries that an established one hides
/// (the programs were about to remove them, or a race left them behind).
struct Both<K, V> {
    in_force: Snapshot<K, V>,
    hidden: HashMap<K, V>,
    left: (usize, usize),
}

/// Reads both tables, the pending one first: what moves meanwhile is seen twice rather than not at all.
fn read<K: Plain + Ord + Hash, V: Plain>(
    established: &Table<K, V>,
    pending: &Table<K, V>,
) -> Result<Both<K, V>, MapFault> {
    let pending = pending.read_unordered()?;
    let established = established.read_unordered()?;
    let left = (established.len(), pending.len());
    // A table of a million entries is not to be hashed again and again while it grows.
    let mut in_force: Snapshot<K, V> = HashMap::with_capacity(left.0 + left.1);
    in_force.extend(established.into_iter().map(|(key, value)| (key, (Stage::Established, value))));
    let mut hidden = HashMap::new();
    for (key, value) in pending {
        match in_force.entry(key) {
            Entry::Occupied(_) => drop(hidden.insert(key, value)),
            Entry::Vacant(free) => drop(free.insert((Stage::Pending, value))),
        }
    }
    Ok(Both { in_force, hidden, left })
}

impl<K: Plain + Ord + Hash, V: Plain + Stamps> Both<K, V> {
    /// Removes what was decided on, unless it has changed since; returns whether it did.
    fn remove(
        &mut self,
        (key, stage, reason): (K, Stage, Reason),
        established: &mut Table<K, V>,
        pending: &mut Table<K, V>,
    ) -> Result<bool, MapFault> {
        let (table, left) = match stage {
            Stage::Established => (established, &mut self.left.0),
            Stage::Pending => (pending, &mut self.left.1),
        };
        let Some((_, then)) = self.in_force.get(&key) else { return Ok(false) };
        if !table.get(&key)?.is_some_and(|now| still(reason, then.stamps(), now.stamps())) {
            return Ok(false);
        }
        table.remove(&key)?;
        self.in_force.remove(&key);
        *left = left.saturating_sub(1);
        Ok(true)
    }

    /// Removes pending entries that an established one hides: nobody reads them.
    fn remove_hidden(&mut self, pending: &mut Table<K, V>) -> Result<(), MapFault> {
        for (key, then) in self.hidden.drain() {
            if pending.get(&key)?.is_some_and(|now| now.stamps().0 == then.stamps().0) {
                pending.remove(&key)?;
                self.left.1 = self.left.1.saturating_sub(1);
            }
        }
        Ok(())
    }
}

impl Connections {
    /// Forgets connections that have been idle for too long, and all that began before `as_of` with tasks that are not
    /// in `live`: the tags of **every** endpoint in the table at that time, on whichever node. Never call it before the
    /// first full table has been read. Times are [`monotonic_now`]'s.
    pub fn sweep(&mut self, live: &HashSet<Tag>, as_of: u64, timeouts: &Timeouts) -> Result<SweepReport, MapFault> {
        // Read before the tables, so that an entry made meanwhile is not older than it looks, and a connection that is
        // not seen is counted later.
        let now = monotonic_now();
        let translated = self.gate.read().created;
        let rules = Rules { live, as_of, timeouts, now };
        let mut removed = Removed::default();

        let mut flows = read(&self.flows, &self.flows_pending)?;
        for entry in decide::flows(&flows.in_force, &rules) {
            if flows.remove(entry, &mut self.flows, &mut self.flows_pending)? {
                removed.count(entry.2);
            }
        }
        flows.remove_hidden(&mut self.flows_pending)?;
        self.close_gate(translated, &flows.in_force);

        let mut affinity = read(&self.affinity, &self.affinity_pending)?;
        for entry in decide::affinity(&affinity.in_force, &rules) {
            if affinity.remove(entry, &mut self.affinity, &mut self.affinity_pending)? {
                removed.count(entry.2);
            }
        }
        affinity.remove_hidden(&mut self.affinity_pending)?;
        let left = PerTable {
            flows: flows.left.0,
            affinity: affinity.left.0,
            flows_pending: flows.left.1,
            affinity_pending: affinity.left.1,
        };
        Ok(SweepReport { left, removed })
    }

    /// Lets the programs stop looking for translated direct connections if none is left. `created` was read before the
    /// table: a connection that is not in `left` is counted after it.
    fn close_gate(&self, created: u64, left: &Snapshot<FlowKey, Flow>) {
        let gate = self.gate.read();
        let open = gate.created != gate.cleared;
        if open && gate.created == created && !left.iter().any(|(key, (_, flow))| holds_the_gate(key, flow)) {
            self.gate.clear(created);
        }
    }

    /// What the tables of translated connections hold.
    pub(super) fn flow_snapshot(&self) -> Result<Snapshot<FlowKey, Flow>, MapFault> {
        Ok(read(&self.flows, &self.flows_pending)?.in_force)
    }

    /// What the tables of the ingress node hold.
    pub(super) fn affinity_snapshot(&self) -> Result<Snapshot<AffinityKey, Affinity>, MapFault> {
        Ok(read(&self.affinity, &self.affinity_pending)?.in_force)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_since_it_was_read_is_looked_at_again() {
        for reason in [Reason::Expired, Reason::TaskGone, Reason::Orphan] {
            assert!(still(reason, (1, 2), (1, 2)));
            assert!(!still(reason, (1, 2), (2, 2)), "made anew");
            assert_eq!(still(reason, (1, 2), (1, 3)), reason != Reason::Expired, "seen again");
        }
    }
}
