//! Map `CONFIG`: what is true for the whole node.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ip4, Mac, NetId, Port, VniBytes};

/// The single value of map `CONFIG` (array of one).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Config {
    /// [`crate::ABI_VERSION`] of whoever wrote the maps; 0 in a map that was never written.
    pub abi: u32,
    /// The uplink, if there is exactly one: tunnels leave through it. 0: several, or none; the routing table is asked
    /// for each packet.
    pub underlay_ifindex: u32,
    /// This node's tunnel address, as other nodes know it: its name in frames and tables.
    pub vtep: Ip4,
    /// The underlay's own address, where tunnels arrive and from which they leave: [`Config::vtep`] too, unless a 1:1
    /// NAT stands between this node and the others. What arrives from there has been translated: its outer source is
    /// the other node's `vtep`, its outer destination this address.
    pub underlay_ip: Ip4,
    /// VNI of mesh frames.
    pub mesh_vni: VniBytes,
    /// UDP port of VXLAN.
    pub vxlan_port: Port,
    /// The smallest MTU of the uplinks, native order.
    pub underlay_mtu: u16,
    /// End of the host link where the node's own connections to published ports arrive as those of a client; 0: none.
    pub host_ifindex: u32,
    /// The address that stands for this node's published ports on the host link; zero: none.
    pub host_ip: Ip4,
    /// This node's own address on the gateway bridge; zero: there is no gateway bridge.
    pub gateway_ip: Ip4,
    /// The ingress network; zero: there is none.
    pub ingress_net: NetId,
    /// Kernel vxlan device of the ingress network's first subnet, the mesh's slow path; 0: none.
    pub ingress_vxlan_ifindex: u32,
    /// This node's own address on the ingress network, where the engine carries that: backends on nodes without Hiveway
    /// see it as the client of the routing mesh. Zero: such backends cannot be reached.
    pub ingress_ip: Ip4,
    /// VNI of the ingress network's subnet that `ingress_ip` lies in, where the engine carries it; zero otherwise.
    pub ingress_vni: VniBytes,
    /// One of [`mesh_return`].
    pub mesh_return: u32,
    /// MAC of the interface `underlay_ifindex`; XDP leaves frames for another one to the stack. Zero: it has none.
    pub underlay_mac: Mac,
    /// Bits of [`node_flag`].
    pub flags: u8,
    /// Always zero.
    pub _pad: u8,
}

/// Bits of [`Config::flags`].
pub mod node_flag {
    /// Some nodes run no Hiveway: nobody tries the paths to them, so tunnels there may be fragmented on the way.
    pub const STOCK_NODES: u8 = 1;
}

/// Values of [`Config::mesh_return`]: how replies of this node's tasks to clients of other ingress nodes go.
pub mod mesh_return {
    /// Through the tunnel to the ingress node.
    pub const TUNNEL: u32 = 0;
    /// Directly to the client, but for those that the ingress node has to see.
    pub const DIRECT: u32 = 1;
}

crate::assert_layout!(Config: size 64 align 4);
