//! Forgetting connections: those idle for too long, and those of tasks that are gone.

use std::ops::ControlFlow;

use dataplane_common::{
    flow::{Affinity, AffinityKey, Flow, flag},
    shares::Place,
};

use super::{
    ByProtocol, Connections, Live, PerTable, Stage,
    by_protocol::OfProtocol,
    decide::{self, Reason, Rules},
    kept::{Count, Kept},
    pairs::{holds_the_gate, pair},
    timeouts::Timeouts,
};
use crate::{
    clock::monotonic_now,
    pod::Plain,
    table::{Entries, MapFault, Table},
};

/// What a sweep saw and removed, in table entries (a translated connection has two in `FLOWS`).
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

impl Connections {
    /// Forgets connections that have been idle for too long, and all that began before `as_of` with tasks that are not
    /// in `live`: the tags of **every** endpoint in the table at that time, on whichever node. Never call it before the
    /// first full table has been read. Times are [`monotonic_now`]'s.
    ///
    /// Takes the same little memory whatever the tables hold: they are looked at a buffer's worth at a time, and a
    /// connection's other entry is asked for by its key. Full tables take seconds to minutes: `progress` is called with
    /// each buffer's worth of entries.
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
        let translated = self.gate.read().created;
        let rules = Rules { live, as_of, timeouts, now };
        let mut removed = Removed::default();
        // The programs of an earlier version may have gone on until a moment ago.
        self.sort_pending(true)?;
        self.clients.establish(!self.earlier.are_there());
        let (seed, mut recount, mut kept) = (self.shares.seed(), self.shares.recount(), Count::default());
        let mut holds_gate = false;
        // Handles of the same tables to remove through, while the others read.
        let (mut flows, mut flows_pending) = (self.flows.try_clone()?, self.flows_pending.try_clone()?);

        let mut hidden = Vec::new();
        let _ = self.flows_pending.for_each(progress, |key, then| hide(&self.flows, &mut hidden, key, &then))?;
        remove_hidden(&mut flows_pending, hidden)?;
        let _ = self.each_flow(progress, |here| {
            let Some(pair) = pair(here, |key| self.flow(key))? else { return Ok(ControlFlow::Continue(())) };
            match decide::flow(&pair, &rules) {
                Some(reason) => {
                    for (key, stage, then) in pair.halves() {
                        let gone = match stage {
                            Stage::Established => remove(&mut flows, &key, reason, then.stamps())?,
                            Stage::Pending => remove(&mut flows_pending, &key, reason, then.stamps())?,
                        };
                        if gone {
                            removed.count(reason);
                        }
                    }
                }
                None => {
                    let forward = pair.forward_key();
                    let place = Place::of_flow(seed, &forward);
                    for (key, stage, flow) in pair.halves() {
                        holds_gate |= holds_the_gate(&key, &flow);
                        match stage {
                            // What is younger has been counted by who has put it there, since the recount began.
                            Stage::Established if flow.created > now => {}
                            Stage::Established => recount.add(&place),
                            Stage::Pending if flow.flags & flag::KEPT != 0 => kept.flow(&forward),
                            Stage::Pending => {}
                        }
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        self.close_gate(translated, holds_gate);

        let _ = self.clients.for_each(progress, |found| {
            let (key, entry) = (&found.key, &found.entry);
            let reason = decide::affinity(key, found.stage, entry, &rules);
            if let Some(reason) = reason
                && found.remove()
            {
                // One that is being moved is in two lines.
                if self.clients.get(key).is_none() {
                    removed.count(reason);
                }
                return Ok(ControlFlow::Continue(()));
            }
            match found.stage {
                // As above.
                Stage::Established if entry.created > now => {}
                Stage::Established => recount.add(&Place::of_affinity(seed, key)),
                Stage::Pending if entry.flags & flag::AFFINITY_KEPT != 0 => kept.affinity(key),
                Stage::Pending => {}
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let spilled = self.sweep_spilled(progress, &rules, &mut removed, |key, entry| {
            if entry.created <= now {
                recount.add(&Place::of_affinity(seed, key));
            }
        })?;
        self.shares.correct(&recount);
        let clients = self.clients.count(progress)?;
        let [affinity_pending, affinity_pending_other] = clients.pending;
        let left = PerTable {
            flows: self.flows.count(progress)?,
            affinity: clients.established + spilled,
            flows_pending: self.flows_pending.tcp.count(progress)?,
            affinity_pending,
            flows_pending_other: self.flows_pending.other.count(progress)?,
            affinity_pending_other,
        };
        Ok(SweepReport { left, removed, kept: kept.result() })
    }

    /// Moves entries of `AFFINITY` to lines: the table has grown.
    pub(super) fn return_all(&self, progress: &dyn Fn()) -> Result<(), MapFault> {
        if !self.clients.spilled().0 {
            return Ok(());
        }
        let mut affinity = self.affinity.try_clone()?;
        let mut returning = Vec::new();
        let _ = self.affinity.for_each(progress, |key, entry| {
            self.return_if_there_is_room(&mut affinity, &mut returning, (key, entry))?;
            Ok(ControlFlow::Continue(()))
        })?;
        self.return_spilled(&mut affinity, returning)
    }

    /// Puts an entry of `AFFINITY` into a line if there is one; in `returning` they wait for [`Self::return_spilled`]. How
    /// many were put.
    fn return_if_there_is_room(
        &self,
        affinity: &mut Table<AffinityKey, Affinity>,
        returning: &mut Vec<(AffinityKey, Affinity)>,
        (key, entry): (AffinityKey, Affinity),
    ) -> Result<usize, MapFault> {
        let returns =
            !self.earlier.are_there() && self.clients.get(&key).is_none() && self.clients.put_established(&key, entry);
        if returns {
            returning.push((key, entry));
            if returning.len() == MOST_RETURNING {
                self.return_spilled(affinity, std::mem::take(returning))?;
            }
        }
        Ok(returns.into())
    }

    /// Takes entries out of `AFFINITY` that are in lines now, as they were read before.
    fn return_spilled(
        &self,
        affinity: &mut Table<AffinityKey, Affinity>,
        returning: Vec<(AffinityKey, Affinity)>,
    ) -> Result<(), MapFault> {
        if returning.is_empty() {
            return Ok(());
        }
        // Whoever has found one in `AFFINITY` has noted there what he had to.
        self.clients.wait_for_programs()?;
        for (key, copied) in returning {
            match self.affinity.get(&key)? {
                Some(now) if now.created == copied.created => {
                    self.clients.merge(&key, copied, now);
                    Entries::remove(affinity, &key)?;
                }
                // It was taken out by somebody who had not found the line yet, or even made anew.
                _ => _ = self.clients.remove_if(&key, |known| known.created == copied.created),
            }
        }
        Ok(())
    }

    /// The part of a sweep that is about `AFFINITY`; `stays` is called with each entry that is left. Those for which
    /// there is a line by now move there. How many have not.
    fn sweep_spilled(
        &self,
        progress: &dyn Fn(),
        rules: &Rules<'_>,
        removed: &mut Removed,
        mut stays: impl FnMut(&AffinityKey, &Affinity),
    ) -> Result<usize, MapFault> {
        let (looked_into, number) = self.clients.spilled();
        let mut affinity = self.affinity.try_clone()?;
        let mut left = 0;
        let (mut returning, mut returned) = (Vec::new(), 0);
        let _ = self.affinity.for_each(progress, |key, entry| {
            match self.clients.get(&key) {
                // Nobody reads it.
                Some((Stage::Established, known)) if known.created >= entry.created => {
                    Entries::remove(&mut affinity, &key)?;
                    return Ok(ControlFlow::Continue(()));
                }
                // What was in force before it, or what it was before it was promoted; by a program that is about to
                // take it out, or one of an earlier version.
                Some((_, known)) if known.created <= entry.created => {
                    self.clients.look_there();
                    self.clients.remove_if(&key, |now| now.created == known.created);
                }
                _ => {}
            }
            match decide::affinity(&key, Stage::Established, &entry, rules) {
                Some(reason) if remove(&mut affinity, &key, reason, entry.stamps())? => removed.count(reason),
                _ => {
                    left += 1;
                    stays(&key, &entry);
                    returned += self.return_if_there_is_room(&mut affinity, &mut returning, (key, entry))?;
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        self.return_spilled(&mut affinity, returning)?;
        match left {
            // Programs of an earlier version do not say that they put something there.
            0 if !self.earlier.are_there() => self.clients.look_here_only(number),
            _ if !looked_into => self.clients.look_there(),
            _ => {}
        }
        Ok(left - returned)
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

/// What entries are looked up in and removed from.
trait Store<K, V> {
    fn get(&self, key: &K) -> Result<Option<V>, MapFault>;
    fn remove(&mut self, key: &K) -> Result<(), MapFault>;
}

impl<K: Plain + Ord, V: Plain> Store<K, V> for Table<K, V> {
    fn get(&self, key: &K) -> Result<Option<V>, MapFault> {
        self.get(key)
    }

    fn remove(&mut self, key: &K) -> Result<(), MapFault> {
        Entries::remove(self, key)
    }
}

impl<K: Plain + Ord + OfProtocol, V: Plain> Store<K, V> for ByProtocol<K, V> {
    fn get(&self, key: &K) -> Result<Option<V>, MapFault> {
        self.get(key)
    }

    fn remove(&mut self, key: &K) -> Result<(), MapFault> {
        self.remove(key)
    }
}

/// Removes what was decided on, unless it has changed since; returns whether it did.
fn remove<K, V: Stamps>(
    table: &mut impl Store<K, V>,
    key: &K,
    reason: Reason,
    then: (u64, u64),
) -> Result<bool, MapFault> {
    if !table.get(key)?.is_some_and(|now| still(reason, then, now.stamps())) {
        return Ok(false);
    }
    table.remove(key)?;
    Ok(true)
}

/// Pending entries that an established one hides, with the time they were made: the programs were about to remove them,
/// or a race left them behind. There are few; the rest of what a race leaves is found by the next sweep.
type Hidden<K> = Vec<(K, u64)>;

/// No more of them than these at once.
const MOST_HIDDEN: usize = 4096;

/// Clients' connections that return to the lines at once, at most: so many are in both.
const MOST_RETURNING: usize = 1 << 14;

fn hide<K: Plain + Ord, V: Plain + Stamps>(
    established: &Table<K, V>,
    hidden: &mut Hidden<K>,
    key: K,
    then: &V,
) -> Result<ControlFlow<()>, MapFault> {
    if hidden.len() < MOST_HIDDEN && established.get(&key)?.is_some() {
        hidden.push((key, then.stamps().0));
    }
    Ok(ControlFlow::Continue(()))
}

/// Nobody reads them.
fn remove_hidden<K: Plain + Ord + OfProtocol, V: Plain + Stamps>(
    pending: &mut ByProtocol<K, V>,
    hidden: Hidden<K>,
) -> Result<(), MapFault> {
    for (key, made) in hidden {
        if pending.get(&key)?.is_some_and(|now| now.stamps().0 == made) {
            pending.remove(&key)?;
        }
    }
    Ok(())
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
