//! Forgetting connections: those idle for too long, and those of tasks that are gone.

use dataplane_common::{
    flow::{flag, pending},
    shares::Place,
};

use super::{
    Connections, Live, PerTable, Stage,
    decide::{self, Reason, Rules},
    kept::{Count, Kept},
    pairs::{holds_the_gate, pair},
    timeouts::Timeouts,
};
use crate::{clock::monotonic_now, line_table::Entry, table::MapFault};

/// What a sweep saw and removed, in table entries (a translated connection has two).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Entries in each table after the sweep.
    pub left: PerTable<usize>,
    /// Entries removed.
    pub removed: Removed,
    /// Entries of connections that have proved themselves and found no share of the established tables, or no room.
    pub kept: Kept,
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

impl PerTable<usize> {
    fn add_flow(&mut self, stage: Stage, proto: u8) {
        *match (stage, pending::of(proto)) {
            (Stage::Established, _) => &mut self.flows,
            (Stage::Pending, pending::TCP) => &mut self.flows_pending,
            (Stage::Pending, _) => &mut self.flows_pending_other,
        } += 1;
    }

    fn add_client(&mut self, stage: Stage, proto: u8) {
        *match (stage, pending::of(proto)) {
            (Stage::Established, _) => &mut self.affinity,
            (Stage::Pending, pending::TCP) => &mut self.affinity_pending,
            (Stage::Pending, _) => &mut self.affinity_pending_other,
        } += 1;
    }
}

/// Whether the reason still holds for an entry that was `then`, and is `now`: it may have been made anew or promoted,
/// and an idle one may have seen a packet.
fn still<E: Entry>(reason: Reason, then: (Stage, &E), now: (Stage, &E)) -> bool {
    then.0 == now.0
        && then.1.made() == now.1.made()
        && (reason != Reason::Expired || then.1.last_seen() == now.1.last_seen())
}

impl Connections {
    /// Forgets connections that have been idle for too long, and all that began before `as_of` with tasks that are not
    /// in `live`: the tags of **every** endpoint in the table at that time, on whichever node. Never call it before the
    /// first full table has been read. Times are [`monotonic_now`]'s.
    ///
    /// Takes the same little memory whatever the tables hold: lines are read one by one, the overflow a buffer's worth
    /// at a time, and a connection's other entry is asked for by its key. A million connections take from a tenth of a
    /// second to two: `progress` is called again and again meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn sweep(
        &mut self,
        live: &Live,
        as_of: u64,
        timeouts: &Timeouts,
        progress: &dyn Fn(),
    ) -> Result<SweepReport, MapFault> {
        // Read before the tables, so that an entry made meanwhile is not older than it looks, and a connection that is
        // not seen is counted later.
        let now = monotonic_now();
        let opened = self.gate.read().created;
        let rules = Rules { live, as_of, timeouts, now };
        let mut removed = Removed::default();
        // The programs of an earlier version may have gone on until a moment ago.
        self.hand_over(true)?;
        self.translated.establish();
        self.clients.establish();
        let counted = monotonic_now();
        let (seed, mut recount, mut kept) = (self.shares.seed(), self.shares.recount(), Count::default());
        let mut holds_gate = false;

        // Another handle of the same table to remove through, while the first reads.
        let mut table = self.translated.try_clone()?;
        let mut left = PerTable::default();
        self.translated.sweep(progress, |here| {
            let Some(pair) = pair(here, |key| self.translated.get(key))? else { return Ok(()) };
            let (reason, forward) = (decide::flow(&pair, &rules), pair.forward_key());
            let place = Place::of_flow(seed, &forward);
            for (key, stage, flow) in pair.halves() {
                if let Some(reason) = reason {
                    if table.remove_if(&key, |now_stage, now| still(reason, (stage, &flow), (now_stage, now)))? {
                        removed.count(reason);
                        continue;
                    }
                    // What has seen a packet since it was read stays, and counts. What was removed with its other half
                    // may have been read before.
                    if self.translated.get(&key)?.is_none() {
                        continue;
                    }
                }
                holds_gate |= holds_the_gate(&key, &flow);
                left.add_flow(stage, key.proto);
                match stage {
                    // What is younger has been counted by who has put it there, since the recount began.
                    Stage::Established if flow.created > counted => {}
                    Stage::Established => recount.add(&place),
                    Stage::Pending if flow.flags & flag::KEPT != 0 => kept.flow(&forward),
                    Stage::Pending => {}
                }
            }
            Ok(())
        })?;
        self.close_gate(opened, holds_gate);

        let mut table = self.clients.try_clone()?;
        self.clients.sweep(progress, |(key, stage, entry)| {
            if let Some(reason) = decide::affinity(&key, stage, &entry, &rules)
                && table.remove_if(&key, |now_stage, now| still(reason, (stage, &entry), (now_stage, now)))?
            {
                removed.count(reason);
                return Ok(());
            }
            left.add_client(stage, key.proto);
            match stage {
                // As above.
                Stage::Established if entry.created > counted => {}
                Stage::Established => recount.add(&Place::of_affinity(seed, &key)),
                Stage::Pending if entry.flags & flag::AFFINITY_KEPT != 0 => kept.affinity(&key),
                Stage::Pending => {}
            }
            Ok(())
        })?;
        self.shares.correct(&recount);
        Ok(SweepReport { left, removed, kept: kept.result() })
    }

    /// Lets the programs stop looking for translated direct connections if none is left. `created` was read before the
    /// table: a connection that was not seen is counted after it.
    fn close_gate(&self, created: u64, held: bool) {
        let gate = self.gate.read();
        let open = gate.created != gate.cleared;
        if open && gate.created == created && !held {
            self.gate.clear(created);
        }
    }
}

#[cfg(test)]
mod tests {
    use dataplane_common::flow::{Affinity, Flow};

    use super::*;

    fn entry(created: u64, last_seen: u64) -> Affinity {
        Affinity { created, last_seen, ..Affinity::default() }
    }

    #[test]
    fn what_changed_since_it_was_read_is_looked_at_again() {
        let then = (Stage::Pending, &entry(1, 2));
        for reason in [Reason::Expired, Reason::TaskGone, Reason::Orphan] {
            assert!(still(reason, then, then));
            assert!(!still(reason, then, (Stage::Pending, &entry(2, 2))), "made anew");
            assert!(!still(reason, then, (Stage::Established, &entry(1, 2))), "promoted");
            let seen = still(reason, then, (Stage::Pending, &entry(1, 3)));
            assert_eq!(seen, reason != Reason::Expired, "seen again");
        }
    }

    #[test]
    fn a_translated_entry_is_the_same_where_only_its_line_tells_less_of_when_it_was_made() {
        let made = |created| Flow { created, ..Flow::default() };
        let same = |one: u64, other: u64| {
            still(Reason::TaskGone, (Stage::Established, &made(one)), (Stage::Established, &made(other)))
        };
        assert!(same(3 << 22, (4 << 22) - 1) && !same(3 << 22, 4 << 22));
    }
}
