//! The vocabulary of plans.

use std::{fmt, net::Ipv4Addr};

use dataplane_common::addr::Mac;
use ipnet::Ipv4Net;

use crate::{desired::IfName, names, observed::Vxlan};

/// One small change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it serves.
    pub item: Item,
    /// When it may be done.
    pub stage: Stage,
    /// What to do.
    pub action: Action,
}

/// What a step serves; the unit of failure, backoff and status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Item {
    /// An overlay network, by id.
    Network(String),
    /// The gateway bridge.
    Gateway,
    /// The host link.
    HostLink,
    /// A task, by id.
    Task(String),
    /// Something of ours that nothing needs any more, by interface name.
    Leftover(IfName),
    /// An interface that is none of ours, on a bridge of ours.
    Stray {
        /// Its name.
        name: IfName,
        /// The bridge's.
        bridge: IfName,
    },
}

/// When a step may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before maps are written and programs attached: links come to be, but nothing that a container can send through.
    Prepare,
    /// Afterwards: interfaces go up, leftovers go away.
    Finish,
    /// At the end: the slow path's static entries. They may be many, are independent of each other, and nothing that
    /// the programs forward waits for them.
    Fill,
}

/// A change in the node's namespace, or inside a task's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A bridge without STP and multicast snooping, down.
    CreateBridge {
        /// Name.
        name: IfName,
        /// Alias.
        alias: String,
        /// MTU; `None` leaves the kernel's choice.
        mtu: Option<u32>,
    },
    /// A vxlan device as a port of a bridge, down.
    CreateVxlan {
        /// Name.
        name: IfName,
        /// Alias.
        alias: String,
        /// Tunnel settings.
        vxlan: Vxlan,
        /// MTU.
        mtu: u32,
    },
    /// A veth pair whose far end is born inside the task's namespace; both ends down.
    CreateVeth {
        /// Task whose namespace it is.
        task: String,
        /// Host side.
        host: IfName,
        /// Alias of the host side.
        alias: String,
        /// Container side.
        container: IfName,
        /// MAC of the container side.
        mac: Mac,
        /// MTU of both sides.
        mtu: u32,
    },
    /// The host link: a veth pair with both ends in the node's namespace, both down.
    CreateHostLink {
        /// MTU of both ends.
        mtu: u32,
    },
    /// The route to the address on the host link, replaced if it is there.
    HostRoute {
        /// The address.
        to: Ipv4Addr,
        /// Largest packet that the node's sockets may send there.
        mtu: u32,
    },
    /// Removes a link of ours.
    DeleteLink {
        /// Name.
        name: IfName,
    },
    /// Changes a link of ours.
    Set {
        /// Name.
        name: IfName,
        /// What to change.
        setting: Setting,
    },
    /// A static forwarding entry: replaces that of a unicast MAC, is added to those of the zero MAC (flooding).
    AddFdb {
        /// Vxlan device.
        name: IfName,
        /// Destination MAC; zero means flooding.
        mac: Mac,
        /// Where it is.
        vtep: Ipv4Addr,
    },
    /// The opposite.
    RemoveFdb {
        /// Vxlan device.
        name: IfName,
        /// Destination MAC.
        mac: Mac,
        /// Where it was.
        vtep: Ipv4Addr,
    },
    /// A permanent neighbour; replaces one with the same address.
    AddNeighbour {
        /// Vxlan device.
        name: IfName,
        /// Overlay address.
        ip: Ipv4Addr,
        /// Its MAC.
        mac: Mac,
    },
    /// The opposite.
    RemoveNeighbour {
        /// Vxlan device.
        name: IfName,
        /// Overlay address.
        ip: Ipv4Addr,
    },
    /// Changes the inside of a task's namespace.
    Inside {
        /// Task whose namespace it is.
        task: String,
        /// Interface in there.
        container: IfName,
        /// What to do.
        inner: Inner,
    },
}

/// A property of a link in the node's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Alias.
    Alias(String),
    /// MTU.
    Mtu(u32),
    /// Bridge that it belongs to.
    Master(IfName),
    /// It belongs to no bridge.
    NoMaster,
    /// Isolated bridge port.
    Isolated,
    /// An IPv4 address more.
    AddAddress(Ipv4Net),
    /// Loopback addresses may be routed through it.
    RouteLocalnet,
    /// Administratively up.
    Up,
}

/// A change inside a task's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inner {
    /// Takes the loopback device up.
    LoopbackUp,
    /// Sets the MTU.
    Mtu(u32),
    /// Adds an address.
    AddAddress(Ipv4Net),
    /// Removes an address.
    RemoveAddress(Ipv4Net),
    /// Takes the interface up.
    Up,
    /// Adds or replaces the route to a destination.
    AddRoute(Ipv4Net, Ipv4Addr),
    /// Removes a route of ours.
    RemoveRoute(Ipv4Net, Ipv4Addr),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(id) => write!(f, "network {id}"),
            Self::Gateway => f.write_str("gateway bridge"),
            Self::HostLink => f.write_str("host link"),
            Self::Task(id) => write!(f, "task {id}"),
            Self::Leftover(name) => write!(f, "leftover interface {name}"),
            Self::Stray { name, bridge } => write!(f, "foreign interface {name} on bridge {bridge}"),
        }
    }
}

/// A MAC in the usual notation.
struct Colons(Mac);

impl fmt::Display for Colons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateBridge { name, .. } => write!(f, "create bridge {name}"),
            Self::CreateVxlan { name, vxlan, .. } => write!(f, "create vxlan device {name} (VNI {})", vxlan.vni),
            Self::CreateVeth { host, container, .. } => write!(f, "create veth pair {host} – {container}"),
            Self::CreateHostLink { .. } => write!(f, "create veth pair {} – {}", names::HOST, names::HOST_FAR),
            Self::HostRoute { to, mtu } => write!(f, "add route to {to} via {} with MTU {mtu}", names::HOST),
            Self::DeleteLink { name } => write!(f, "delete interface {name}"),
            Self::Set { name, setting } => write!(f, "set {setting} on {name}"),
            Self::AddFdb { name, mac, vtep } => write!(f, "add forwarding entry {} via {vtep} to {name}", Colons(*mac)),
            Self::RemoveFdb { name, mac, vtep } => {
                write!(f, "remove forwarding entry {} via {vtep} from {name}", Colons(*mac))
            }
            Self::AddNeighbour { name, ip, mac } => write!(f, "add neighbour {ip} at {} to {name}", Colons(*mac)),
            Self::RemoveNeighbour { name, ip } => write!(f, "remove neighbour {ip} from {name}"),
            Self::Inside { task, container, inner } => write!(f, "{inner} on {container} of task {task}"),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(alias) => write!(f, "alias {alias:?}"),
            Self::Mtu(mtu) => write!(f, "MTU {mtu}"),
            Self::Master(name) => write!(f, "bridge {name}"),
            Self::NoMaster => f.write_str("no bridge"),
            Self::Isolated => f.write_str("port isolation"),
            Self::AddAddress(address) => write!(f, "address {address}"),
            Self::RouteLocalnet => f.write_str("route_localnet"),
            Self::Up => f.write_str("state up"),
        }
    }
}

impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoopbackUp => f.write_str("set loopback up"),
            Self::Mtu(mtu) => write!(f, "set MTU {mtu}"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::RemoveAddress(address) => write!(f, "remove address {address}"),
            Self::Up => f.write_str("set state up"),
            Self::AddRoute(to, via) => write!(f, "add route to {to} via {via}"),
            Self::RemoveRoute(to, via) => write!(f, "remove route to {to} via {via}"),
        }
    }
}
