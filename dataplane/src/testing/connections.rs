//! The harness's connections, as packets make them.

use std::{collections::BTreeMap, ops::ControlFlow};

use dataplane_common::{
    flow::{Affinity, AffinityKey, DirectGate, Flow, FlowKey, pending},
    shares,
};

use super::harness::{Harness, HarnessError, LINES};
use crate::{
    Connections, MapFault,
    connections::Stage,
    pod::Plain,
    table::{Entries as _, Table},
};

impl Harness {
    /// What `FLOWS` and `FLOWS_PENDING` hold; an established entry hides a pending one.
    pub fn flows(&self) -> Result<BTreeMap<FlowKey, Flow>, HarnessError> {
        let mut flows = self.pending_flows()?;
        flows.extend(self.established_flows()?);
        Ok(flows)
    }

    /// What `FLOWS` holds.
    pub fn established_flows(&self) -> Result<BTreeMap<FlowKey, Flow>, HarnessError> {
        Ok(self.tables.connections.flows.read()?)
    }

    /// What `FLOWS_PENDING` and its twin hold.
    pub fn pending_flows(&self) -> Result<BTreeMap<FlowKey, Flow>, HarnessError> {
        Ok(self.tables.connections.flows_pending.read()?)
    }

    /// How many connections there are, counted one by one.
    pub fn count_rows(&self) -> Result<usize, HarnessError> {
        let mut count = 0;
        self.tables.connections.each_row(|_| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        Ok(count)
    }

    /// Puts an entry into `FLOWS`, as packets do.
    pub fn put_flow(&mut self, key: FlowKey, flow: Flow) -> Result<(), HarnessError> {
        Ok(self.tables.connections.flows.put(key, flow)?)
    }

    /// Removes an entry of `FLOWS`, as nobody does who counts.
    pub fn remove_flow(&mut self, key: &FlowKey) -> Result<(), HarnessError> {
        Ok(self.tables.connections.flows.remove(key)?)
    }

    /// Puts an entry into `FLOWS_PENDING`, as packets do.
    pub fn put_pending_flow(&mut self, key: FlowKey, flow: Flow) -> Result<(), HarnessError> {
        Ok(self.tables.connections.flows_pending.put(key, flow)?)
    }

    /// Removes an entry of `FLOWS_PENDING`, as the kernel does when it needs room.
    pub fn remove_pending_flow(&mut self, key: &FlowKey) -> Result<(), HarnessError> {
        Ok(self.tables.connections.flows_pending.remove(key)?)
    }

    /// What `SHARES` counts of `FLOWS`: its entries, and those of them that are not of TCP.
    pub fn counted_flows(&self) -> [i64; 2] {
        self.tables.connections.shares.entries(shares::FLOWS)
    }

    /// The same of `AFFINITY`.
    pub fn counted_affinity(&self) -> [i64; 2] {
        self.tables.connections.shares.entries(shares::AFFINITY)
    }

    /// What `AFFINITY_SEGMENTS` and `AFFINITY` hold.
    pub fn affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>, HarnessError> {
        let mut affinity = self.pending_affinity()?;
        affinity.extend(self.established_affinity()?);
        Ok(affinity)
    }

    /// The established ones of them.
    pub fn established_affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>, HarnessError> {
        Ok(established(&self.tables.connections)?)
    }

    /// What `AFFINITY` holds.
    pub fn spilled_affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>, HarnessError> {
        Ok(self.tables.connections.affinity.read()?)
    }

    /// The pending ones, all in `AFFINITY_SEGMENTS`.
    pub fn pending_affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>, HarnessError> {
        Ok(self.tables.connections.clients.read(Stage::Pending)?)
    }

    /// What `DIRECT_GATE` holds.
    pub fn direct_gate(&self) -> DirectGate {
        self.tables.connections.gate.read()
    }

    /// Puts an established entry into the lines, or into `AFFINITY` where there is no room, as packets do.
    pub fn put_affinity(&mut self, key: AffinityKey, affinity: Affinity) -> Result<(), HarnessError> {
        Ok(put_established(&mut self.tables.connections, key, affinity)?)
    }

    /// Whether programs look into `AFFINITY`.
    pub fn looks_into_affinity(&self) -> bool {
        self.tables.connections.clients.spilled().0
    }

    /// Has them look there, as an agent does that takes the maps over.
    pub fn look_into_affinity(&mut self) {
        self.tables.connections.clients.look_there();
    }

    /// Puts an entry into `AFFINITY`, as programs of an earlier version do.
    pub fn put_spilled_affinity(&mut self, key: AffinityKey, affinity: Affinity) -> Result<(), HarnessError> {
        Ok(self.tables.connections.affinity.put(key, affinity)?)
    }

    /// Counts one more translated direct connection in `DIRECT_GATE`, as packets do.
    pub fn open_direct_gate(&mut self) {
        self.tables.connections.gate.open();
    }

    /// Puts a pending entry into the lines, as packets do.
    pub fn put_pending_affinity(&mut self, key: AffinityKey, affinity: Affinity) -> Result<(), HarnessError> {
        let put = self.tables.connections.clients.put(&key, affinity);
        assert!(put, "nobody else writes these lines");
        Ok(())
    }

    /// Has the lines of clients' connections grow as the agent does for so many, TCP's first. Whether they have.
    pub fn grow_lines(&mut self, used: [u64; 2]) -> Result<bool, HarnessError> {
        Ok(self.tables.connections.grow_for(used, &|| ())?)
    }

    /// Has those of TCP begin to grow, as an agent leaves them that is ended then.
    pub fn begin_to_grow_lines(&mut self) -> Result<(), HarnessError> {
        Ok(self.tables.connections.clients.begin_to_grow(pending::TCP)?)
    }

    /// Room in them, TCP's first.
    pub fn lines(&self) -> [u32; 2] {
        self.tables.connections.clients.capacity()
    }

    /// Takes the lines over as the next agent does.
    pub fn next_agent(&mut self) -> Result<(), HarnessError> {
        self.tables = self.loaded.tables(LINES)?;
        let tables = &self.tables.connections;
        Ok(tables.clients.recover(&tables.affinity, false)?)
    }

    /// Forgets all connections.
    pub fn forget_connections(&mut self) -> Result<(), HarnessError> {
        let tables = &mut self.tables.connections;
        forget(&mut tables.flows)?;
        for pending in [&mut tables.flows_pending.tcp, &mut tables.flows_pending.other] {
            forget(pending)?;
        }
        forget_clients(tables)?;
        tables.gate.clear(tables.gate.read().created);
        Ok(())
    }
}

/// All established connections of clients.
pub(super) fn established(tables: &Connections) -> Result<BTreeMap<AffinityKey, Affinity>, MapFault> {
    let mut entries = tables.affinity.read()?;
    entries.extend(tables.clients.read(Stage::Established)?);
    Ok(entries)
}

/// Puts an established entry where packets put it, in place of another one with this key.
pub(super) fn put_established(tables: &mut Connections, key: AffinityKey, entry: Affinity) -> Result<(), MapFault> {
    tables.clients.remove_if(&key, |_| true);
    if !tables.clients.put_established(&key, entry) {
        tables.clients.spill(&mut tables.affinity, key, Some(entry))?;
    }
    Ok(())
}

/// Empties the tables of clients' connections.
pub(super) fn forget_clients(tables: &mut Connections) -> Result<(), MapFault> {
    forget(&mut tables.affinity)?;
    let _ = tables.clients.for_each(&|| (), |found| {
        found.remove();
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(())
}

fn forget<K: Plain + Ord, V: Plain>(table: &mut Table<K, V>) -> Result<(), MapFault> {
    table.read()?.keys().try_for_each(|key| table.remove(key))
}
