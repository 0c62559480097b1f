//! The harness's connections, as packets make them.

use std::{collections::BTreeMap, ops::ControlFlow};

use dataplane_common::{
    flow::{Affinity, AffinityKey, DirectGate, Flow, FlowKey},
    shares,
};

use super::harness::{Harness, HarnessError};
use crate::{MapFault, pod::Plain, table::Entries as _, table::Table};

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

    /// What `AFFINITY` and `AFFINITY_LINES` hold; an established entry hides a pending one.
    pub fn affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>, HarnessError> {
        let mut affinity = self.pending_affinity()?;
        affinity.extend(self.established_affinity()?);
        Ok(affinity)
    }

    /// What `AFFINITY` holds.
    pub fn established_affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>, HarnessError> {
        Ok(self.tables.connections.affinity.read()?)
    }

    /// What `AFFINITY_LINES` holds.
    pub fn pending_affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>, HarnessError> {
        Ok(self.tables.connections.affinity_pending.read()?)
    }

    /// What `DIRECT_GATE` holds.
    pub fn direct_gate(&self) -> DirectGate {
        self.tables.connections.gate.read()
    }

    /// Puts an entry into `AFFINITY`, as packets do.
    pub fn put_affinity(&mut self, key: AffinityKey, affinity: Affinity) -> Result<(), HarnessError> {
        Ok(self.tables.connections.affinity.put(key, affinity)?)
    }

    /// Counts one more translated direct connection in `DIRECT_GATE`, as packets do.
    pub fn open_direct_gate(&mut self) {
        self.tables.connections.gate.open();
    }

    /// Puts an entry into `AFFINITY_LINES`, as packets do.
    pub fn put_pending_affinity(&mut self, key: AffinityKey, affinity: Affinity) -> Result<(), HarnessError> {
        let put = self.tables.connections.affinity_pending.put(&key, affinity);
        assert!(put, "nobody else writes these lines");
        Ok(())
    }

    /// Forgets all connections.
    pub fn forget_connections(&mut self) -> Result<(), HarnessError> {
        let tables = &mut self.tables.connections;
        forget(&mut tables.flows)?;
        forget(&mut tables.affinity)?;
        for pending in [&mut tables.flows_pending.tcp, &mut tables.flows_pending.other] {
            forget(pending)?;
        }
        for key in tables.affinity_pending.read()?.keys() {
            tables.affinity_pending.remove_if(key, |_| true);
        }
        tables.gate.clear(tables.gate.read().created);
        Ok(())
    }
}

fn forget<K: Plain + Ord, V: Plain>(table: &mut Table<K, V>) -> Result<(), MapFault> {
    table.read()?.keys().try_for_each(|key| table.remove(key))
}
