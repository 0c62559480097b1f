//! What this node should look like, as plain data: the links, addresses, routes, firewall and map contents that follow
//! from a table. Computed by [`crate::derive`], compared with what is observed by the planner.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::PathBuf,
};

use dataplane_common::addr::{Mac, Tag};
use ipnet::Ipv4Net;

use crate::model::{Access, AllowList, Places};

/// A network interface's name: at most 15 bytes. Ours begin with `hw`.
pub type IfName = String;

/// The whole node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// This node's id.
    pub node: String,
    /// Its tunnel address; `None` only in an empty value.
    pub vtep: Option<Ipv4Addr>,
    /// Networks with an endpoint on this node, and the ingress network wherever ports are published in ingress mode: it
    /// is the routing mesh's slow path.
    pub networks: Vec<OverlayNetwork>,
    /// Tasks that get networking on this node.
    pub tasks: Vec<LocalTask>,
    /// Tasks on this node whose namespace and interfaces a Docker engine has made; by id.
    pub attached: Vec<AttachedTask>,
    /// The gateway bridge; `None` while no local task needs one.
    pub gateway: Option<GatewayBridge>,
    /// The host link; `None` while this node has no published port and no other node that runs Hiveway.
    pub host_link: Option<HostLink>,
    /// Published ports that answer here: in ingress mode, whether or not this node has a task, and those of its tasks
    /// in host mode. (IP protocol number, port).
    pub published: BTreeSet<(u8, u16)>,
    /// Those of them that answer at some of this node's addresses only.
    pub bound: BTreeMap<(u8, u16), Binding>,
    /// Those of them that not every client may use, and who may.
    pub restricted: BTreeMap<(u8, u16), Access>,
    /// All other nodes' tunnel addresses.
    pub vteps: BTreeSet<Ipv4Addr>,
    /// What was left out of the table, and why; shown in `status`.
    pub left_out: Vec<LeftOut>,
}

/// A bridge and, per subnet, a kernel vxlan device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayNetwork {
    /// Engine's network id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `hwb` + VNI of the first subnet.
    pub bridge: IfName,
    /// MTU of the containers' interfaces (and bridge and vxlan devices).
    pub mtu: u32,
    /// One per VNI.
    pub subnets: Vec<OverlaySubnet>,
}

/// One VNI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlaySubnet {
    /// The VNI, host order.
    pub vni: u32,
    /// `hwx` + VNI.
    pub vxlan: IfName,
    /// The subnet.
    pub subnet: Ipv4Net,
    /// Its gateway address.
    pub gateway: Ipv4Addr,
    /// Endpoints on other nodes: permanent neighbour and FDB entries of the vxlan device.
    pub peers: BTreeSet<Peer>,
    /// Where broadcast goes: VTEPs of nodes with an endpoint (or node address) in this network.
    pub flood: BTreeSet<Ipv4Addr>,
    /// The ingress network's first subnet: whom else mesh frames on the slow path name as their destination, and where
    /// that is. Forwarding entries without a neighbour.
    pub mesh: BTreeMap<Mac, Ipv4Addr>,
}

/// An endpoint on another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Overlay address.
    pub ip: Ipv4Addr,
    /// Its MAC.
    pub mac: Mac,
    /// VTEP of its node.
    pub vtep: Ipv4Addr,
}

/// A task on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalTask {
    /// Task id.
    pub id: String,
    /// Its tag, from its id.
    pub tag: Tag,
    /// `netns` from the table; `None`: `<netns-dir>/<task id>`.
    pub netns: Option<PathBuf>,
    /// In the order of the container's interface names: overlay networks by name, then ingress, then the gateway
    /// bridge.
    pub interfaces: Vec<Interface>,
}

/// A veth pair: one end on a bridge of ours, the other in a task's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Host side: `hwv` + 12 hex digits derived from task id and network id.
    pub host: IfName,
    /// Container side: `eth0`, `eth1`, ...
    pub container: IfName,
    /// Name of the bridge that the host side belongs to.
    pub bridge: IfName,
    /// Address with its subnet's prefix length.
    pub address: Ipv4Net,
    /// MAC of the container side.
    pub mac: Mac,
    /// MTU of both sides.
    pub mtu: u32,
    /// Static routes inside the container: (destination, next hop). `0.0.0.0/0` on the gateway bridge.
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
    /// What it is for.
    pub role: Role,
}

/// What an interface is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An overlay network: `net` is the VNI of the network's first subnet, `vni` that of the interface's own subnet.
    Overlay {
        /// First VNI of the network.
        net: u32,
        /// VNI of this subnet.
        vni: u32,
    },
    /// The gateway bridge; its port is isolated from the others.
    Gateway,
}

/// A task on networks that a Docker engine carries: nothing is made for it, its own interfaces get programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedTask {
    /// Task id.
    pub id: String,
    /// Its tag, from its id.
    pub tag: Tag,
    /// Its sandbox, as [`LocalTask::netns`].
    pub netns: Option<PathBuf>,
    /// One of its addresses, by which its sandbox is known among the engine's where the table does not say.
    pub ip: Ipv4Addr,
    /// Its overlay interfaces; the ingress network's is left alone, because nobody is told of the VIPs there.
    pub overlay_ports: Vec<OverlayPort>,
    /// Clients of published ports come in through its interface on the engine's gateway bridge.
    pub gateway: bool,
    /// It serves: its interfaces are all there.
    pub running: bool,
    /// It is known to have none on the gateway bridge.
    pub unreachable: bool,
}

/// The interface of an [`AttachedTask`] on a network that the engine carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayPort {
    /// Stands for the interface in map `LOCALS`: indices are unique per namespace only. Real indices never have the
    /// highest bit.
    pub id: u32,
    /// Network id.
    pub network: String,
    /// VNI of the network's first subnet, host order.
    pub net: u32,
    /// VNI of the interface's own subnet, host order.
    pub vni: u32,
    /// Its address, by which it is found.
    pub ip: Ipv4Addr,
    /// Its MAC as the table has it.
    pub mac: Mac,
}

/// The bridge that connects containers to the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayBridge {
    /// Bridge name.
    pub bridge: IfName,
    /// The bridge's own address, which is the containers' default route.
    pub address: Ipv4Net,
}

/// The veth pair through which the node's own connections to published ports enter the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLink {
    /// Stands for all published ports on it.
    pub ip: Ipv4Addr,
}

/// Something in the table that is not programmed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct LeftOut {
    /// What, as a path like `tasks[3].addresses.app` or an object like `network enc (bvu01v5v…)`.
    pub what: String,
    /// Why, and what to do about it.
    pub why: String,
}

/// Addresses of local tasks on the gateway bridge, by task id. Kept in the state directory so that a task keeps its
/// address through agent restarts.
pub type GatewayAddresses = BTreeMap<String, Ipv4Addr>;

/// Where a port answers: at addresses that are in each of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding(Vec<Places>);

impl Binding {
    /// `None`: at all addresses.
    pub(crate) fn new(node: Option<&Places>, service: Option<Places>) -> Option<Self> {
        let all: Vec<_> = node.cloned().into_iter().chain(service).collect();
        (!all.is_empty()).then_some(Self(all))
    }

    /// As CIDRs, on a node whose interfaces carry `addresses`.
    pub fn nets(&self, addresses: &dyn Fn(&str) -> Vec<ipnet::Ipv4Net>) -> AllowList {
        let mut all = self.0.iter().map(|places| places.nets(addresses));
        let first = all.next().unwrap_or_default();
        all.fold(first, |both, other| both.and(&other))
    }
}
