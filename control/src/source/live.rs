//! Live tables: what their producers hand to the agent.
//!
//! ```text
//! swarm  (control socket) ─┐
//! relay client ────────────┼─ supervisor ─ Hub::table ─┬─ agent::Table
//! engine (this node's) ────┤                           └─ relay server (managers)
//! reports (relay server) ──┤
//! agent (of this node) ────┘
//! ```

use std::{collections::BTreeSet, num::NonZeroU16, sync::Arc, time::Instant};

use hiveway_core::{
    docker_api::Loaded,
    merge::{LocalView, Reports},
};
use tokio::sync::watch;

use crate::engine::EngineView;

/// What a live source says now.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// The last table, kept while the source is unreachable; `None` before the first.
    pub table: Option<Arc<Loaded>>,
    /// Where it comes from, as `status` shows it: `control socket /run/…`, `relay 192.0.2.1:4788`.
    pub from: String,
    /// The source is unreachable; `None` while `table` is what it says now.
    pub lost: Option<Lost>,
    /// This node is no member of the swarm (any more), and why we think so: its table is to be emptied.
    pub expelled: Option<String>,
    /// Why this node is not in the table, although it belongs to the swarm (only in [`Hub::table`]).
    pub absent: Option<String>,
    /// Why the table would be missing after a power cut (only in [`Hub::table`]).
    pub unkept: Option<String>,
    /// This node's id, once it is known (only in [`Hub::table`]).
    pub node: Option<String>,
}

/// A source that is unreachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Since when.
    pub since: Instant,
    /// Why.
    pub why: String,
}

impl Lost {
    /// Now, unless it was lost `before`.
    pub fn again(before: Option<&Self>, why: impl Into<String>) -> Self {
        Self { since: before.map_or_else(Instant::now, |before| before.since), why: why.into() }
    }
}

impl Live {
    /// The source says this now.
    pub fn current(table: Arc<Loaded>, from: impl Into<String>) -> Self {
        Self { table: Some(table), from: from.into(), ..Self::default() }
    }

    /// Why this node has nothing to go by, if there is a reason.
    pub fn waits_for_what(&self) -> Option<String> {
        let lost = || self.lost.as_ref().map(|lost| lost.why.clone());
        self.expelled.clone().or_else(lost).or_else(|| self.absent.clone())
    }

    /// The source can't be reached (or still can't); its last table stays.
    pub fn lose(&mut self, why: impl Into<String>) {
        self.lost = Some(Lost::again(self.lost.as_ref(), why));
    }

    /// The source says that this node is no member.
    pub fn expel(&mut self, why: impl Into<String>) {
        (self.lost, self.expelled) = (None, Some(why.into()));
    }

    /// Whether the source says now what the table should be: there is one, or this node is no member.
    pub fn is_current(&self) -> bool {
        self.lost.is_none() && (self.table.is_some() || self.expelled.is_some())
    }
}

/// Where the parts of a live source meet. The relay's client and server hold one.
#[derive(Clone, Debug)]
pub struct Hub {
    /// What this node's engine says: id, role, managers, containers.
    pub engine: watch::Receiver<Arc<EngineView>>,
    /// The table that the agent uses: of the whole swarm on managers, reports merged; this node's part on workers.
    pub table: watch::Receiver<Arc<Live>>,
    /// The relay server's: the last report of each other node (managers).
    pub reports: watch::Sender<Arc<Reports>>,
    /// The relay client's: the table that a manager's agent sends.
    pub relayed: watch::Sender<Arc<Live>>,
    /// The agent's: what it says of its own node.
    pub own: watch::Sender<Arc<Own>>,
}

/// What this node's agent knows of the node, and its engine does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// UDP port of its VXLAN; `None` before the first table.
    pub vxlan_port: Option<NonZeroU16>,
    /// Ids of running tasks here that the routing mesh cannot deliver to.
    pub unreachable: BTreeSet<String>,
}

impl Own {
    /// `local` with it.
    pub fn complete(&self, local: &LocalView) -> LocalView {
        LocalView { vxlan_port: self.vxlan_port, unreachable: self.unreachable.clone(), ..local.clone() }
    }
}
