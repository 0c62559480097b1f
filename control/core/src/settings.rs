//! What the agent's command line and the kernel add to the table.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use crate::{
    desired::IfName,
    firewall::LeftEntries,
    model::{AllowList, Places},
    observed::{Replies, Sandbox},
};

/// Default of `--vxlan-port` (IANA's number for VXLAN).
pub const DEFAULT_VXLAN_PORT: u16 = 4789;
/// Default of `--mesh-vni`: one below the largest VNI, far from what managers hand out.
pub const DEFAULT_MESH_VNI: u32 = 16_777_214;
/// Stands for the node's published ports on the host link: link-local (RFC 3927), so that no network can hold it, and
/// the same on every node, because it never leaves one.
pub const DEFAULT_HOST_IP: Ipv4Addr = Ipv4Addr::new(169, 254, 72, 1);

/// The agent's settings that the desired state depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `--node`: an id or a host name.
    pub node: String,
    /// This node's tunnel address where it is not the table's.
    pub vtep: Option<Ipv4Addr>,
    /// `--vxlan-port`.
    pub vxlan_port: u16,
    /// `--mesh-vni`.
    pub mesh_vni: u32,
    /// Name of the gateway bridge (resolved: never "adopt if it exists").
    pub gwbridge: IfName,
    /// The gateway bridge's subnet. With host bits set, those are the bridge's own address (as on an adopted bridge);
    /// without, the bridge has the first address.
    pub gwbridge_subnet: Ipv4Net,
    /// MTU of the containers' interfaces on the gateway bridge: 1500 as Docker's, or the underlay's if that is less. A
    /// mesh reply leaves its ingress node as the container has sent it; nobody fragments it there.
    pub gateway_mtu: u32,
    /// `--mesh-allow`; `None`: published ports are open to all.
    pub mesh_allow: Option<AllowList>,
    /// `--mesh-deny`.
    pub mesh_deny: AllowList,
    /// `--mesh-addresses`; `None`: published ports answer at all addresses of the node.
    pub mesh_addresses: Option<Places>,
    /// `--mesh-return dsr`: replies of this node's tasks leave directly for the clients of other ingress nodes.
    pub direct_return: bool,
    /// See [`DEFAULT_HOST_IP`].
    pub host_ip: Ipv4Addr,
    /// Why an engine's routing mesh is not taken over, if something of this node stands against it.
    pub mesh_refused: Option<String>,
}

/// [`Settings::gateway_mtu`] on an underlay that carries it.
pub const DEFAULT_GATEWAY_MTU: u32 = 1500;

impl Settings {
    /// The contract's defaults for `node`.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            vtep: None,
            vxlan_port: DEFAULT_VXLAN_PORT,
            mesh_vni: DEFAULT_MESH_VNI,
            gwbridge: "hw-gwbridge".into(),
            gwbridge_subnet: Ipv4Net::new_assert(Ipv4Addr::new(172, 18, 0, 0), 16),
            gateway_mtu: DEFAULT_GATEWAY_MTU,
            mesh_allow: None,
            mesh_deny: AllowList::default(),
            mesh_addresses: None,
            direct_return: false,
            host_ip: DEFAULT_HOST_IP,
            mesh_refused: None,
        }
    }

    /// Whether the gateway bridge is somebody else's: then its address is given, not derived.
    pub fn adopts_gwbridge(&self) -> bool {
        self.gwbridge_subnet.addr() != self.gwbridge_subnet.network()
    }

    /// The gateway bridge's own address, which is the containers' default route.
    pub fn gwbridge_address(&self) -> Ipv4Net {
        let net = self.gwbridge_subnet;
        let own = if self.adopts_gwbridge() {
            net.addr()
        } else {
            Ipv4Addr::from_bits(net.network().to_bits().saturating_add(1))
        };
        Ipv4Net::new_assert(own, net.prefix_len())
    }
}

/// What only the kernel knows: interface indices, and the addresses that clients talk to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Indices of the interfaces that exist, ours at least.
    pub ifindex: BTreeMap<IfName, u32>,
    /// Those of tasks' interfaces (their ends on this node) that have not been up yet: a container can be reached by
    /// them and cannot answer.
    pub unopened: BTreeSet<IfName>,
    /// Index of the interface that carries the VTEP.
    pub underlay_ifindex: u32,
    /// Its MTU.
    pub underlay_mtu: u16,
    /// Its MAC; zero: it has none.
    pub underlay_mac: [u8; 6],
    /// Its own address, where that is not the node's tunnel address: a 1:1 NAT announces another.
    pub underlay_ip: Option<Ipv4Addr>,
    /// This node's addresses on its mesh interfaces, with the interface's index.
    pub node_addresses: BTreeMap<Ipv4Addr, u32>,
    /// Addresses that each interface carries; one may be on several.
    pub carried: BTreeMap<IfName, Vec<Ipv4Net>>,
    /// A Docker engine here balances VIPs by itself (the kernel has IPVS): connections that began before us are its.
    pub engine_balances: bool,
    /// Clients that are left to the host's own path.
    pub left: LeftEntries,
    /// What was found in the sandboxes of attached tasks, by task id.
    pub sandboxes: BTreeMap<String, Sandbox>,
    /// Where replies of this node's tasks go, by task id, as far as that is known.
    pub replies: BTreeMap<String, Replies>,
}
