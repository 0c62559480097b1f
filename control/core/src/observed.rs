//! What the kernel holds, as plain data: the links of the node and the inside of its tasks' namespaces. Filled in over
//! netlink by the agent, compared with [`crate::desired::Desired`] by [`crate::plan`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::PathBuf,
};

use dataplane_common::addr::Mac;
use ipnet::Ipv4Net;

use crate::{desired::IfName, names};

/// Alias of the gateway bridge, if it is ours.
pub const GATEWAY_ALIAS: &str = "hiveway gwbridge";
/// What every alias of ours begins with.
pub const ALIAS_PREFIX: &str = "hiveway ";
/// Name prefixes of overlay bridges, vxlan devices and host-side veths; names of the host link's ends.
pub const NAME_PREFIXES: [&str; 5] = [names::BRIDGE, "hwx", "hwv", names::HOST, names::HOST_FAR];

/// The node as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// All links in the node's own namespace, foreign ones too.
    pub links: BTreeMap<IfName, Link>,
    /// By task id, for every task that was asked about.
    pub namespaces: BTreeMap<String, Namespace>,
    /// What the node's end of the host link has besides a link's properties.
    pub host: HostEnd,
}

/// The node's end of the host link; empty if there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostEnd {
    /// IPv4 routes over it, with the MTU they give (0: the link's).
    pub routes: BTreeMap<Ipv4Net, u32>,
    /// Permanent neighbours.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// `route_localnet` is on.
    pub route_localnet: bool,
}

/// A link in the node's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// What it is.
    pub kind: Kind,
    /// What its packets begin with.
    pub layer: Layer,
    /// Alias, `None` if it has none.
    pub alias: Option<String>,
    /// Name of the bridge (or other master) that it belongs to.
    pub master: Option<IfName>,
    /// VLAN devices: name of the interface whose frames with the VLAN's tag they take; `None` if that is in another
    /// namespace.
    pub vlan_on: Option<IfName>,
    /// MTU.
    pub mtu: u32,
    /// MAC; zero for links without one.
    pub mac: Mac,
    /// Administratively up.
    pub up: bool,
    /// The other end of its cable, or what stands for it, is there.
    pub carrier: bool,
    /// IPv4 addresses.
    pub addresses: BTreeSet<Ipv4Net>,
    /// The bridge port is isolated from other isolated ports.
    pub isolated: bool,
    /// Vxlan devices: static forwarding entries.
    pub fdb: BTreeSet<(Mac, Ipv4Addr)>,
    /// Vxlan devices: permanent neighbours.
    pub neighbours: BTreeMap<Ipv4Addr, Mac>,
}

impl Link {
    /// One that is up and has a carrier, with nothing on it and an MTU of 1500.
    pub fn new(index: u32, kind: Kind) -> Self {
        Self {
            index,
            kind,
            layer: Layer::Ethernet,
            alias: None,
            master: None,
            vlan_on: None,
            mtu: 1500,
            mac: Mac::default(),
            up: true,
            carrier: true,
            addresses: BTreeSet::new(),
            isolated: false,
            fdb: BTreeSet::new(),
            neighbours: BTreeMap::new(),
        }
    }
}

/// What a link's packets begin with, by its type (`ARPHRD_…` of `<linux/if_arp.h>`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layer {
    /// An Ethernet header; the loopback device has one, too.
    #[default]
    Ethernet,
    /// The IP header: WireGuard, tun, IP tunnels, PPP.
    Ip,
    /// Another header, which no program knows; the type's number.
    Other(u16),
}

impl Layer {
    /// Why nothing can be served on such a link, if so.
    pub fn unsupported(self) -> Option<String> {
        match self {
            Self::Ethernet | Self::Ip => None,
            Self::Other(number) => Some(format!(
                "its link type {number} is neither Ethernet nor without a header (WireGuard, tun, IP tunnels, PPP)"
            )),
        }
    }
}

/// What a link is, as far as we care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bridge.
    Bridge,
    /// A vxlan device.
    Vxlan(Vxlan),
    /// One end of a veth pair.
    Veth {
        /// Interface index of the other end, in whatever namespace that is.
        peer: u32,
    },
    /// Anything else, by its kernel name; empty for physical devices.
    Other(String),
}

/// Settings of a vxlan device that cannot be changed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// VNI, host order.
    pub vni: u32,
    /// Local tunnel address.
    pub local: Ipv4Addr,
    /// UDP destination port.
    pub port: u16,
    /// Whether it learns addresses from what it receives.
    pub learning: bool,
}

/// A task's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Nothing is there yet, or no longer.
    Missing {
        /// Where it was looked for.
        path: String,
    },
    /// Something is there that cannot be used.
    Unusable {
        /// Why, naming the path.
        why: String,
    },
    /// Something is there that could not be looked into this time, which says nothing of it.
    Unread {
        /// Where it is.
        path: PathBuf,
        /// Why, naming the path.
        why: String,
        /// Whether a look was begun: else the round's time was over before.
        begun: bool,
    },
    /// Its inside.
    Present(Inside),
}

/// The inside of a task's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// Device and inode of the namespace: two paths may lead to one. `None`: unknown, and the same as no other.
    pub identity: Option<(u64, u64)>,
    /// The loopback device is up.
    pub loopback_up: bool,
    /// All other links.
    pub links: BTreeMap<IfName, InnerLink>,
    /// Where replies go.
    pub replies: Replies,
}

/// Which clients' replies leave a task's namespace by its interface on the gateway bridge, as its routing tables and
/// rules say. A client belongs to the longest prefix that holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replies {
    /// The prefixes of its routes, and whether replies go **elsewhere**.
    pub elsewhere: BTreeMap<Ipv4Net, bool>,
    /// How many more there are that were not looked at: the longest ones.
    pub more: usize,
}

/// A link inside a task's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InnerLink {
    /// Interface index.
    pub index: u32,
    /// Interface index of the other end, for veths.
    pub peer: Option<u32>,
    /// MAC.
    pub mac: Mac,
    /// MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// IPv4 addresses.
    pub addresses: BTreeSet<Ipv4Net>,
    /// Routes with a next hop over this link, main table: (destination, next hop) and whether the route carries our
    /// routing protocol number.
    pub routes: BTreeMap<(Ipv4Net, Ipv4Addr), bool>,
}

impl Link {
    /// Whether we made this link: by alias, and by name except for the gateway bridge, whose name the operator picks.
    pub fn is_ours(&self, name: &str) -> bool {
        match self.alias.as_deref() {
            Some(GATEWAY_ALIAS) => self.kind == Kind::Bridge,
            Some(alias) => alias.starts_with(ALIAS_PREFIX) && NAME_PREFIXES.iter().any(|p| name.starts_with(p)),
            None => false,
        }
    }

    /// Whether it is an overlay network's bridge that we made.
    pub fn is_overlay_bridge(&self, name: &str) -> bool {
        let overlays = name.starts_with(names::BRIDGE) && self.alias.as_deref() != Some(GATEWAY_ALIAS);
        self.kind == Kind::Bridge && overlays && self.is_ours(name)
    }
}

/// The interfaces of one [`crate::desired::AttachedTask`] that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// [`crate::desired::AttachedTask::netns`] when it was looked into.
    pub netns: Option<PathBuf>,
    /// By [`crate::desired::OverlayPort::id`].
    pub overlay_ports: BTreeMap<u32, OverlayLink>,
    /// Its interface on the gateway bridge.
    pub gateway: Option<GatewayPort>,
}

/// An overlay interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayLink {
    /// Its name inside.
    pub name: IfName,
    /// Its MAC.
    pub mac: Mac,
}

/// An interface on the engine's gateway bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayPort {
    /// Its name inside.
    pub name: IfName,
    /// The other end's name, in the node's namespace.
    pub host: IfName,
    /// The other end's index.
    pub ifindex: u32,
    /// Address inside, with the bridge's prefix length.
    pub address: Ipv4Net,
    /// MAC inside.
    pub mac: Mac,
}
