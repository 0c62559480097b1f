//! The validated task table: what every source is parsed into, and all that the rest of the crate looks at.
//!
//! Invariants (made by [`crate::table`] and [`crate::docker_api`], relied on everywhere):
//! * a map's key is its item's `id`;
//! * network ids in `addresses` and `virtual_ips` are keys of [`Model::networks`], and each address lies in one of that
//!   network's subnets;
//! * [`Task::node`] is a key of [`Model::nodes`]; [`Task::service`] may name a service that has vanished;
//! * no two networks share a VNI, no two nodes a VTEP, at most one network is the ingress network;
//! * lists are sorted, so that equal tables are equal models.

mod allow;
mod by_network;
mod find;
mod id;
mod labels;
mod net;
mod places;
mod port;
mod state;
mod time;

use std::{collections::BTreeMap, net::Ipv4Addr, num::NonZeroU16, path::PathBuf, sync::Arc};

use dataplane_common::addr::{Mac, TASK_MAC_PREFIX, mac_of};

pub use allow::{ALLOW_LABEL, Access, AllowEntry, AllowList, DENY_LABEL, parse_allow};
pub use by_network::ByNetwork;
pub use find::NodeLookup;
pub use id::{Id, Ids};
pub use labels::{Oddity, is_meant_for_us, oddities};
pub use net::{Carrier, DEFAULT_MTU, MAX_MTU, MIN_MTU, Network, Subnet, Vni, checked_mac, parse_mac};
pub use places::{ADDRESSES_LABEL, Place, Places};
pub use port::{Port, Ports, Protocol, PublishMode};
pub use state::{NodeState, TaskState};
pub use time::Timestamp;

/// A swarm's task table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// By id.
    pub nodes: BTreeMap<Id, Node>,
    /// By id.
    pub networks: BTreeMap<Id, Network>,
    /// By id. These and tasks are shared between versions of a table: there may be many, and most stay the same.
    pub services: BTreeMap<Id, Arc<Service>>,
    /// By id.
    pub tasks: BTreeMap<Id, Arc<Task>>,
    /// Tasks of jobs (desired state `complete`) are backends while they run, as they are for a swarm's own balancer.
    /// Set for what a swarm says of itself, not for table files.
    pub jobs_serve: bool,
}

/// A machine of the swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Engine's node id.
    pub id: Id,
    /// Its host name.
    pub hostname: String,
    /// What the manager thinks of it.
    pub state: NodeState,
    /// Its address in the swarm.
    pub address: Ipv4Addr,
    /// Its tunnel address.
    pub vtep: Ipv4Addr,
    /// Who moves its packets.
    pub dataplane: Dataplane,
    /// UDP port of its VXLAN, as its agent reports it; `None` where no agent has said.
    pub vxlan_port: Option<NonZeroU16>,
    /// The node's own address per network id (stock nodes source VIP and mesh traffic from it).
    pub addresses: ByNetwork<Ipv4Addr>,
}

/// Who moves a node's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dataplane {
    /// Hiveway.
    #[default]
    Hiveway,
    /// Something else that speaks VXLAN: no part in the mesh.
    None,
    /// As `None`, but Hiveway was there until a moment ago: what it has sent still arrives. Never in a table that is
    /// read.
    Left,
}

/// How clients find a service's tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointMode {
    /// A virtual address per network.
    #[default]
    Vip,
    /// DNS answers with the tasks' addresses.
    Dnsrr,
}

impl EndpointMode {
    /// As the engine writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vip => "vip",
            Self::Dnsrr => "dnsrr",
        }
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Engine's service id.
    pub id: Id,
    /// Its name.
    pub name: String,
    /// How clients find its tasks.
    pub endpoint_mode: EndpointMode,
    /// Per network id; empty with [`EndpointMode::Dnsrr`].
    pub virtual_ips: ByNetwork<Ipv4Addr>,
    /// What it publishes.
    pub ports: Ports,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The manager has deleted it, but tasks of it still run: they drain, see [`Model::remember`].
    pub vanished: bool,
}

impl Model {
    /// Takes from `before` what is the same there: it is kept in memory once, and seen at a glance.
    pub fn share(&mut self, before: &Self) {
        share(&mut self.services, &before.services);
        share(&mut self.tasks, &before.tasks);
    }

    /// Whether the task is networked: its role is not [`Absent`](crate::TaskRole::Absent).
    pub fn is_endpoint(&self, task: &Task) -> bool {
        let placed = task.node.as_ref().is_some_and(|id| self.nodes.contains_key(id));
        placed && task.state.is_networked() && !task.addresses.is_empty()
    }
}

fn share<T: PartialEq>(items: &mut BTreeMap<Id, Arc<T>>, before: &BTreeMap<Id, Arc<T>>) {
    let mut old = before.iter().peekable();
    let shared = std::mem::take(items).into_iter().map(|(id, item)| {
        // Both are in order of ids.
        while old.next_if(|(other, _)| **other < id).is_some() {}
        match old.next_if(|(other, _)| **other == id) {
            Some((id, same)) if *same == item => (id.clone(), same.clone()),
            Some((same, _)) => (same.clone(), item),
            None => (id, item),
        }
    });
    *items = shared.collect();
}

impl Service {
    /// Who may use its published ports at a node where `node` says it for all services; `None` means everybody in both.
    /// A label of ours that there is not, or that can't be read, allows nobody.
    pub fn allowed(&self, node: Option<&AllowList>) -> Option<AllowList> {
        if self.labels.iter().any(|(key, text)| labels::closes(key, text)) {
            return Some(AllowList::default());
        }
        let own = self.labels.get(ALLOW_LABEL).map(|text| AllowList::new(&parse_allow(text).unwrap_or_default()));
        match (own, node) {
            (Some(own), Some(node)) => Some(own.and(node)),
            (own, node) => own.or_else(|| node.cloned()),
        }
    }

    /// Who may not use its published ports at a node where `node` says it for all services.
    pub fn denied(&self, node: &AllowList) -> AllowList {
        let own = self.labels.get(DENY_LABEL).and_then(|text| parse_allow(text).ok());
        own.map_or_else(|| node.clone(), |own| AllowList::new(&own).or(node))
    }

    /// At which addresses its published ports answer, if not at all of a node's.
    pub fn places(&self) -> Option<Places> {
        self.labels.get(ADDRESSES_LABEL).and_then(|text| Places::parse(text).ok())
    }
}

/// A task: one container that runs, ran or is about to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Engine's task id.
    pub id: Id,
    /// Id of its service; `None` for a standalone container on an attachable network.
    pub service: Option<Id>,
    /// Which replica it is; `None` for global services.
    pub slot: Option<u64>,
    /// Id of the node it was assigned to.
    pub node: Option<Id>,
    /// Where the manager wants it.
    pub desired_state: TaskState,
    /// Where it is.
    pub state: TaskState,
    /// Its node's engine calls it unhealthy: it drains, seconds before the manager says so.
    pub unhealthy: bool,
    /// Its node's agent says that it has no interface on the gateway bridge: the routing mesh cannot deliver to it.
    pub unreachable: bool,
    /// Per network id.
    pub addresses: ByNetwork<Address>,
    /// When it was made, where the table says so.
    pub created: Option<Timestamp>,
    /// Its network namespace, where the table says so.
    pub netns: Option<PathBuf>,
    /// Its own ports (while ports are being changed, old and new tasks differ).
    pub ports: Ports,
}

/// A task's place on a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Overlay address.
    pub ip: Ipv4Addr,
    /// MAC.
    pub mac: Mac,
}

impl Address {
    /// With the engine's default MAC, `02:42:` + the address.
    pub fn with_default_mac(ip: Ipv4Addr) -> Self {
        Self { ip, mac: mac_of(TASK_MAC_PREFIX, ip.octets()) }
    }
}
