//! What the manager's table lacks, put into it: what a node's own engine sees at once, and what the agents report.
//!
//! A manager's table comes without tunnel addresses and network namespaces, does not know where Hiveway runs, and says
//! seconds late that a task is unhealthy or dead.

mod local;
mod reports;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    num::NonZeroU16,
    path::PathBuf,
};

use crate::docker_api::Loaded;

/// What a node's own engine says of the node and its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalView {
    /// This node's id in the swarm; `None` while it is no member or the engine has not been asked yet.
    pub node: Option<String>,
    /// Its data-path address: where its engine's VXLAN tunnels end.
    pub vtep: Option<Ipv4Addr>,
    /// UDP port of this node's VXLAN, once its agent has decided.
    pub vxlan_port: Option<NonZeroU16>,
    /// Ids of running tasks here without an interface on the gateway bridge, as the agent has found.
    pub unreachable: BTreeSet<String>,
    /// Containers by id.
    pub containers: BTreeMap<String, Container>,
}

/// A container on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// The task that it is for; `None` for a standalone container.
    pub task: Option<String>,
    /// Its network namespace, while it has one.
    pub netns: Option<PathBuf>,
    /// Its address per network id. Tells which attachment task a standalone container belongs to.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// How it is.
    pub health: Health,
}

/// How a container is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Running, as far as anybody knows.
    #[default]
    Fine,
    /// Fails its health check.
    Unhealthy,
    /// Its process has ended.
    Dead,
}

/// What the agent on a node reports to the managers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Where its tunnels end; `None` if it does not know (yet): then at the node's address.
    pub vtep: Option<Ipv4Addr>,
    /// Smaller than those of nodes that have claimed their tunnel address later. Not the node's own word: the
    /// manager's agent numbers what it hears.
    pub since: u64,
    /// UDP port of its VXLAN; `None` if it does not say (agents before 0.2).
    pub vxlan_port: Option<NonZeroU16>,
    /// The agent's version.
    pub version: String,
    /// Its data plane is not ready: it has only said where its tunnels end. It has no Hiveway as far as others go.
    pub preparing: bool,
    /// Ids of its own node's tasks that fail their health check.
    pub unhealthy: BTreeSet<String>,
    /// Ids of its own node's tasks whose process has ended.
    pub dead: BTreeSet<String>,
    /// Ids of its own node's tasks that the routing mesh cannot deliver to.
    pub unreachable: BTreeSet<String>,
}

/// The last report of each node, by node id. A node without one, or one that is preparing, has no Hiveway.
pub type Reports = BTreeMap<String, Report>;

impl LocalView {
    /// What this node's agent reports to the managers.
    pub fn report(&self, version: &str) -> Report {
        let with = |health: Health| {
            let all = self.containers.values().filter(move |container| container.health == health);
            all.filter_map(|container| container.task.clone()).collect()
        };
        Report {
            vtep: self.vtep,
            since: 0,
            vxlan_port: self.vxlan_port,
            version: version.to_owned(),
            preparing: false,
            unhealthy: with(Health::Unhealthy),
            dead: with(Health::Dead),
            unreachable: self.unreachable.clone(),
        }
    }
}

/// `table` with what `local` knows of this node and, on managers, with what `reports` say of all others. `None`: the
/// table comes from a manager's agent that has put them in already.
pub fn merge(table: &Loaded, local: &LocalView, reports: Option<&Reports>) -> Loaded {
    let mut merged = table.clone();
    if let Some(reports) = reports {
        reports::apply(&mut merged, reports, local.node.as_deref());
    }
    local::apply(&mut merged, local);
    // Only now: nodes behind one NAT have one address until they say where they are.
    merged.settle(|node| {
        if local.node.as_deref() == Some(node) {
            return Some(0);
        }
        reports?.get(node).filter(|report| report.vtep.is_some()).map(|report| report.since)
    });
    merged
}
