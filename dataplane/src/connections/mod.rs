//! Connections: what the connection tables hold, how long it is kept, and how it is shown.
//!
//! Timestamps and a sweep instead of an LRU map for established connections: that evicts exactly the long-idle ones that
//! must be kept. Only connections that have proved nothing yet make room for others.

mod by_protocol;
mod decide;
mod earlier;
mod kept;
mod live;
mod pairs;
mod rows;
mod shares;
mod state;
mod sweep;
mod timeouts;

use std::ops::ControlFlow;

use dataplane_common::flow::{Affinity, AffinityKey, Flow, FlowKey};

use self::pairs::Half;
pub(crate) use self::{by_protocol::ByProtocol, earlier::Earlier, shares::Shares};
pub use self::{
    kept::{Kept, KeptClients, KeptService},
    live::Live,
    rows::{ConnectionRow, Kind},
    state::State,
    sweep::{Removed, SweepReport},
    timeouts::Timeouts,
};
use crate::{
    client_lines::ClientLines,
    gate::Gate,
    table::{MapFault, Table},
};

/// Handles of the connection tables. They are the holder's own: reading whole tables keeps nobody else waiting.
pub struct Connections {
    pub(crate) flows: Table<FlowKey, Flow>,
    pub(crate) flows_pending: ByProtocol<FlowKey, Flow>,
    pub(crate) clients: ClientLines,
    /// Established ones that found no room in `clients`.
    pub(crate) affinity: Table<AffinityKey, Affinity>,
    pub(crate) earlier: Earlier,
    pub(crate) shares: Shares,
    pub(crate) gate: Gate,
}

/// One number per connection table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerTable<T> {
    /// `FLOWS`.
    pub flows: T,
    /// Established entries of `AFFINITY_SEGMENTS`, and `AFFINITY`.
    pub affinity: T,
    /// `FLOWS_PENDING`.
    pub flows_pending: T,
    /// Pending entries in TCP's half of `AFFINITY_SEGMENTS`.
    pub affinity_pending: T,
    /// `FLOWS_PENDING_OTHER`.
    pub flows_pending_other: T,
    /// Pending entries in the other half.
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

/// Which of two tables an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Both ends have proved that they are there.
    Established,
    /// Not yet.
    Pending,
}

impl Connections {
    /// More handles of the same tables.
    pub(crate) fn try_clone(&self) -> Result<Self, MapFault> {
        Ok(Self {
            flows: self.flows.try_clone()?,
            affinity: self.affinity.try_clone()?,
            flows_pending: self.flows_pending.try_clone()?,
            clients: self.clients.clone(),
            earlier: self.earlier.clone(),
            shares: self.shares.clone(),
            gate: self.gate.clone(),
        })
    }

    /// Puts pending connections of an earlier version's programs into the tables of their protocols; see [`ByProtocol::sort`].
    pub(crate) fn sort_pending(&mut self, remove: bool) -> Result<(), MapFault> {
        self.flows_pending.sort(remove)?;
        self.hand_over(remove)
    }

    /// See [`Earlier::hand_over`].
    pub(crate) fn hand_over(&self, remove: bool) -> Result<(), MapFault> {
        self.earlier.hand_over(&self.clients, &self.affinity, remove)
    }

    /// Has the table of clients' connections grow if it is about to be full. Whether it has.
    ///
    /// # Errors
    /// When the kernel refuses; the table is as good as before.
    pub fn grow(&mut self, progress: &dyn Fn()) -> Result<bool, MapFault> {
        self.grow_for(self.shares.established_clients(), progress)
    }

    /// The same for so many, TCP's first.
    pub(crate) fn grow_for(&mut self, used: [u64; 2], progress: &dyn Fn()) -> Result<bool, MapFault> {
        let clients = self.clients.clone();
        let grown = clients.grow(used, progress, &mut |key, entry| clients.spill(&mut self.affinity, key, entry))?;
        if grown {
            self.return_all(progress)?;
        }
        Ok(grown)
    }

    /// What is in force under a key of the tables of translated connections.
    fn flow(&self, key: &FlowKey) -> Result<Option<(Stage, Flow)>, MapFault> {
        if let Some(flow) = self.flows.get(key)? {
            return Ok(Some((Stage::Established, flow)));
        }
        Ok(self.flows_pending.get(key)?.map(|flow| (Stage::Pending, flow)))
    }

    /// Hands on what is in force in the tables of translated connections, the pending one first: what moves meanwhile is seen
    /// twice rather than not at all. A pending entry that an established one hides is left out. `progress` is called with
    /// each buffer's worth of entries.
    fn each_flow(
        &self,
        progress: &dyn Fn(),
        mut each: impl FnMut(Half) -> Result<ControlFlow<()>, MapFault>,
    ) -> Result<ControlFlow<()>, MapFault> {
        let pending = self.flows_pending.for_each(progress, |key, flow| match self.flows.get(&key)? {
            Some(_) => Ok(ControlFlow::Continue(())),
            None => each((key, Stage::Pending, flow)),
        })?;
        match pending {
            ControlFlow::Break(()) => Ok(pending),
            ControlFlow::Continue(()) => {
                self.flows.for_each(progress, |key, flow| each((key, Stage::Established, flow)))
            }
        }
    }

    /// Room in each table, in entries.
    pub fn capacity(&self) -> PerTable<u32> {
        let [affinity_pending, affinity_pending_other] = self.clients.capacity();
        PerTable {
            flows: self.flows.capacity(),
            affinity: self.affinity.capacity(),
            flows_pending: self.flows_pending.tcp.capacity(),
            affinity_pending,
            flows_pending_other: self.flows_pending.other.capacity(),
            affinity_pending_other,
        }
    }
}
