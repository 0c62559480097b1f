//! Connections: what the connection tables hold, how long it is kept, and how it is shown.
//!
//! Timestamps and a sweep instead of an LRU map for established connections: that evicts exactly the long-idle ones
//! that must be kept. Only connections that have proved nothing yet make room for others.

mod decide;
mod earlier;
mod kept;
mod live;
mod pairs;
mod rows;
mod shares;
mod state;
mod sweep;
mod table;
mod timeouts;

use std::path::Path;

use dataplane_common::{
    line::{Clients, Translated},
    shares::{AFFINITY, FLOWS},
};

pub(crate) use self::{earlier::Earlier, shares::Shares, table::ConnectionTable};
pub use self::{
    kept::{Kept, KeptClients, KeptService},
    live::Live,
    rows::{ConnectionRow, Kind},
    state::State,
    sweep::{Removed, SweepReport},
    timeouts::Timeouts,
};
use crate::{gate::Gate, line_table::Stage, table::MapFault};

/// Handles of the connection tables. They are the holder's own: reading whole tables keeps nobody else waiting.
pub struct Connections {
    /// Two entries per connection.
    pub(crate) translated: ConnectionTable<Translated>,
    pub(crate) clients: ConnectionTable<Clients>,
    pub(crate) shares: Shares,
    pub(crate) gate: Gate,
}

/// One number per connection table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerTable<T> {
    /// Established entries of `FLOWS_SEGMENTS`, and `FLOWS`.
    pub flows: T,
    /// Established entries of `AFFINITY_SEGMENTS`, and `AFFINITY`.
    pub affinity: T,
    /// Pending entries in TCP's half of `FLOWS_SEGMENTS`.
    pub flows_pending: T,
    /// Pending entries in TCP's half of `AFFINITY_SEGMENTS`.
    pub affinity_pending: T,
    /// Pending entries in the other half of `FLOWS_SEGMENTS`.
    pub flows_pending_other: T,
    /// Pending entries in the other half of `AFFINITY_SEGMENTS`.
    pub affinity_pending_other: T,
}

impl<T: Copy> PerTable<T> {
    /// With the tables' names as in metrics and `status`.
    pub fn named(&self) -> [(&'static str, T); 6] {
        [
            ("flows", self.flows),
            ("affinity", self.affinity),
            ("flows_pending", self.flows_pending),
            ("affinity_pending", self.affinity_pending),
            ("flows_pending_other", self.flows_pending_other),
            ("affinity_pending_other", self.affinity_pending_other),
        ]
    }
}

impl Connections {
    /// More handles of the same tables.
    pub(crate) fn try_clone(&self) -> Result<Self, MapFault> {
        Ok(Self {
            translated: self.translated.try_clone()?,
            clients: self.clients.try_clone()?,
            shares: self.shares.clone(),
            gate: self.gate.clone(),
        })
    }

    /// Takes over what is pinned below this directory; see [`ConnectionTable::recover`].
    pub(crate) fn recover(&mut self, bpffs: &Path) -> Result<(), MapFault> {
        self.translated.earlier = Earlier::pinned(bpffs);
        self.clients.earlier = Earlier::pinned(bpffs);
        self.translated.recover()?;
        self.clients.recover()?;
        self.hand_over(false)
    }

    /// See [`Earlier::hand_over`].
    pub(crate) fn hand_over(&self, remove: bool) -> Result<(), MapFault> {
        self.translated.hand_over(remove)?;
        self.clients.hand_over(remove)
    }

    /// Has the tables grow that are about to be full. Whether one has.
    ///
    /// # Errors
    /// When the kernel refuses; the tables are as good as before.
    pub fn grow(&mut self, progress: &dyn Fn()) -> Result<bool, MapFault> {
        let translated = self.translated.grow(self.shares.established(FLOWS), progress);
        let clients = self.clients.grow(self.shares.established(AFFINITY), progress);
        Ok(translated? | clients?)
    }

    /// Room in each table, in entries.
    pub fn capacity(&self) -> PerTable<u32> {
        let [flows_pending, flows_pending_other] = self.translated.lines.lines();
        let [affinity_pending, affinity_pending_other] = self.clients.lines.lines();
        PerTable {
            flows: self.shares.room(FLOWS),
            affinity: self.shares.room(AFFINITY),
            flows_pending,
            affinity_pending,
            flows_pending_other,
            affinity_pending_other,
        }
    }
}
