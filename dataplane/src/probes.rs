//! Map `PROBES`: what came of probes.

use std::collections::{BTreeMap, BTreeSet};

use dataplane_common::{addr::Ip4, probe::Probed};

use crate::table::{Entries as _, MapFault, Table};

/// The map's one writer besides the programs.
pub struct Probes {
    table: Table<Ip4, Probed>,
    nonce: u64,
}

impl Probes {
    /// `nonce`: of this agent's requests, so that answers to an earlier one's do not count; not 0.
    pub(crate) fn new(table: Table<Ip4, Probed>, nonce: u64) -> Self {
        Self { table, nonce: nonce.max(1) }
    }

    /// What requests must carry for their answers to count.
    pub fn nonce(&self) -> u64 {
        self.nonce
    }

    /// Notes answers of these nodes, and their own requests, from now on, and forgets all others. Returns what was
    /// noted.
    ///
    /// # Errors
    /// When the map cannot be read or written.
    pub fn follow(&mut self, nodes: &BTreeSet<Ip4>) -> Result<BTreeMap<Ip4, Probed>, MapFault> {
        let mut found = self.table.read()?;
        for vtep in nodes {
            let known = found.get(vtep).copied().unwrap_or_default();
            if known.nonce != self.nonce {
                // What came from there is still true; what was answered was asked by another agent.
                let entry = Probed {
                    nonce: self.nonce,
                    heard: known.heard,
                    stray: known.stray,
                    stray_port: known.stray_port,
                    their_mtu: known.their_mtu,
                    ..Probed::default()
                };
                self.table.put(*vtep, entry)?;
                found.insert(*vtep, entry);
            }
        }
        for vtep in found.keys().filter(|vtep| !nodes.contains(*vtep)) {
            self.table.remove(vtep)?;
        }
        found.retain(|vtep, _| nodes.contains(vtep));
        Ok(found)
    }
}
