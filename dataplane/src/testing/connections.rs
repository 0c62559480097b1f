//! The harness's connections, as packets make them.

use std::{collections::BTreeMap, ops::ControlFlow};

use dataplane_common::{
    flow::{Affinity, AffinityKey, DirectGate, Flow, FlowKey, pending},
    shares,
};

use super::harness::{Harness, HarnessError, LINES, tables};
use crate::{
    line_table::{Contents, LineTable, Stage},
    table::Entries as _,
};

/// Translated connections.
impl Harness {
    /// What `FLOWS_SEGMENTS` and `FLOWS` hold.
    pub fn flows(&self) -> Result<BTreeMap<FlowKey, Flow>, HarnessError> {
        let mut flows = self.pending_flows()?;
        flows.extend(self.established_flows()?);
        Ok(flows)
    }

    /// The established ones of them.
    pub fn established_flows(&self) -> Result<BTreeMap<FlowKey, Flow>, HarnessError> {
        Ok(self.tables.connections.translated.established()?)
    }

    /// What `FLOWS` holds.
    pub fn spilled_flows(&self) -> Result<BTreeMap<FlowKey, Flow>, HarnessError> {
        Ok(self.tables.connections.translated.spilled.read()?)
    }

    /// The pending ones, all in `FLOWS_SEGMENTS`.
    pub fn pending_flows(&self) -> Result<BTreeMap<FlowKey, Flow>, HarnessError> {
        Ok(self.tables.connections.translated.lines.read(Stage::Pending)?)
    }

    /// Puts an established entry into the lines, or into `FLOWS` where there is no room, as packets do.
    pub fn put_flow(&mut self, key: FlowKey, flow: Flow) -> Result<(), HarnessError> {
        Ok(self.tables.connections.translated.put_established(key, flow)?)
    }

    /// Removes an entry, as nobody does who counts.
    pub fn remove_flow(&mut self, key: &FlowKey) -> Result<(), HarnessError> {
        self.tables.connections.translated.lines.remove_if(key, |_, _| true);
        Ok(self.tables.connections.translated.spilled.remove(key)?)
    }

    /// Puts an entry into `FLOWS`, as programs of an earlier version do.
    pub fn put_spilled_flow(&mut self, key: FlowKey, flow: Flow) -> Result<(), HarnessError> {
        Ok(self.tables.connections.translated.spilled.put(key, flow)?)
    }

    /// Puts a pending entry into the lines, as packets do.
    pub fn put_pending_flow(&mut self, key: FlowKey, flow: Flow) -> Result<(), HarnessError> {
        put(&self.tables.connections.translated.lines, &key, flow);
        Ok(())
    }

    /// Removes a pending entry, as one that takes its line does.
    pub fn remove_pending_flow(&mut self, key: &FlowKey) -> Result<(), HarnessError> {
        self.tables.connections.translated.lines.remove_if(key, |stage, _| stage == Stage::Pending);
        Ok(())
    }

    /// What `SHARES` counts of established entries, and of those of them that are not of TCP.
    pub fn counted_flows(&self) -> [i64; 2] {
        self.tables.connections.shares.entries(shares::FLOWS)
    }

    /// Whether programs look into `FLOWS`.
    pub fn looks_into_flows(&self) -> bool {
        self.tables.connections.translated.lines.spilled().0
    }

    /// Has them look there, as an agent does that takes the maps over.
    pub fn look_into_flows(&mut self) {
        self.tables.connections.translated.lines.look_there();
    }

    /// What `DIRECT_GATE` holds.
    pub fn direct_gate(&self) -> DirectGate {
        self.tables.connections.gate.read()
    }

    /// Counts one more translated direct connection in `DIRECT_GATE`, as packets do.
    pub fn open_direct_gate(&mut self) {
        self.tables.connections.gate.open();
    }
}

/// Connections of clients.
impl Harness {
    /// What `AFFINITY_SEGMENTS` and `AFFINITY` hold.
    pub fn affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>, HarnessError> {
        let mut affinity = self.pending_affinity()?;
        affinity.extend(self.established_affinity()?);
        Ok(affinity)
    }

    /// The established ones of them.
    pub fn established_affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>, HarnessError> {
        Ok(self.tables.connections.clients.established()?)
    }

    /// What `AFFINITY` holds.
    pub fn spilled_affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>, HarnessError> {
        Ok(self.tables.connections.clients.spilled.read()?)
    }

    /// The pending ones, all in `AFFINITY_SEGMENTS`.
    pub fn pending_affinity(&self) -> Result<BTreeMap<AffinityKey, Affinity>, HarnessError> {
        Ok(self.tables.connections.clients.lines.read(Stage::Pending)?)
    }

    /// Puts an established entry into the lines, or into `AFFINITY` where there is no room, as packets do.
    pub fn put_affinity(&mut self, key: AffinityKey, affinity: Affinity) -> Result<(), HarnessError> {
        Ok(self.tables.connections.clients.put_established(key, affinity)?)
    }

    /// Puts an entry into `AFFINITY`, as programs of an earlier version do.
    pub fn put_spilled_affinity(&mut self, key: AffinityKey, affinity: Affinity) -> Result<(), HarnessError> {
        Ok(self.tables.connections.clients.spilled.put(key, affinity)?)
    }

    /// Puts a pending entry into the lines, as packets do.
    pub fn put_pending_affinity(&mut self, key: AffinityKey, affinity: Affinity) -> Result<(), HarnessError> {
        put(&self.tables.connections.clients.lines, &key, affinity);
        Ok(())
    }

    /// What `SHARES` counts of established entries, and of those of them that are not of TCP.
    pub fn counted_affinity(&self) -> [i64; 2] {
        self.tables.connections.shares.entries(shares::AFFINITY)
    }

    /// Whether programs look into `AFFINITY`.
    pub fn looks_into_affinity(&self) -> bool {
        self.tables.connections.clients.lines.spilled().0
    }

    /// Has them look there, as an agent does that takes the maps over.
    pub fn look_into_affinity(&mut self) {
        self.tables.connections.clients.lines.look_there();
    }
}

/// Both.
impl Harness {
    /// How many connections there are, counted one by one.
    pub fn count_rows(&self) -> Result<usize, HarnessError> {
        let mut count = 0;
        self.tables.connections.each_row(|_| {
            count += 1;
            ControlFlow::Continue(())
        })?;
        Ok(count)
    }

    /// Has the lines of both tables grow as the agent does for so many established entries in each, TCP's first.
    /// Whether those of clients and the others have.
    pub fn grow_lines(&mut self, used: [u64; 2]) -> Result<[bool; 2], HarnessError> {
        let tables = &mut self.tables.connections;
        Ok([tables.clients.grow(used, &|| ())?, tables.translated.grow(used, &|| ())?])
    }

    /// Has those of TCP begin to grow, as an agent leaves them that is ended then.
    pub fn begin_to_grow_lines(&mut self) -> Result<(), HarnessError> {
        self.tables.connections.clients.lines.begin_to_grow(pending::TCP)?;
        Ok(self.tables.connections.translated.lines.begin_to_grow(pending::TCP)?)
    }

    /// Room in them, clients' first, of each TCP's first.
    pub fn lines(&self) -> [[u32; 2]; 2] {
        [self.tables.connections.clients.lines.lines(), self.tables.connections.translated.lines.lines()]
    }

    /// Takes the lines over as the next agent does.
    pub fn next_agent(&mut self) -> Result<(), HarnessError> {
        self.tables = tables(&self.loaded, LINES)?;
        self.tables.connections.clients.recover()?;
        Ok(self.tables.connections.translated.recover()?)
    }

    /// Forgets all connections.
    pub fn forget_connections(&mut self) -> Result<(), HarnessError> {
        let tables = &mut self.tables.connections;
        tables.translated.clear()?;
        tables.clients.clear()?;
        tables.gate.clear(tables.gate.read().created);
        Ok(())
    }
}

fn put<T: Contents>(lines: &LineTable<T>, key: &T::Key, entry: T::Entry) {
    assert!(lines.put(key, entry), "nobody else writes these lines");
}
