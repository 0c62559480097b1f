//! Maps `LOCALS`, `ENDPOINTS`, `VNIS`, `VTEPS`: who is where.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ip4, Mac, NetId, Tag, VniBytes};

/// Set in the keys of map `LOCALS` that stand for a container's own interface on a network that the engine carries, and
/// in no interface index. The rest of such an id is the agent's choice; the programs attached there know it.
pub const SANDBOX_BIT: u32 = 1 << 31;

/// Value of map `LOCALS` (hash, key: index of the host-side veth, or an id with [`SANDBOX_BIT`]; native `u32`): whose
/// interface this is.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Local {
    /// The task behind the veth.
    pub tag: Tag,
    /// Network of the veth; zero on the gateway bridge.
    pub net: NetId,
    /// VNI of the subnet that `ip` lies in; zero on the gateway bridge.
    pub vni: VniBytes,
    /// The only source address that may come out of this veth.
    pub ip: Ip4,
    /// The only source MAC that may come out of this veth.
    pub mac: Mac,
    /// Bits of [`local_flag`].
    pub flags: u8,
    /// Always zero.
    pub _pad: u8,
}

/// Bits of [`Local::flags`].
pub mod local_flag {
    /// On a network that the engine carries: the engine has no balancer of its own here (a kernel without IPVS), so TCP
    /// towards a VIP in the middle of a connection that nobody knows is reset. Otherwise it is left to that balancer,
    /// which may know it from before.
    pub const NO_BALANCER: u8 = 1;
    /// As [`endpoint_flag::VIP_BACKEND`](super::endpoint_flag::VIP_BACKEND), of the task behind the veth.
    pub const VIP_BACKEND: u8 = 1 << 1;
    /// On a network that the engine carries: Hiveway is about to leave this node. What opens a connection to a VIP is
    /// left to the engine's own balancer, and so are ARP and pings; what is under way goes on.
    pub const LEAVING: u8 = 1 << 2;
}

/// Key of map `ENDPOINTS` (hash).
#[repr(C, align(4))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct EndpointKey {
    /// Network that the address belongs to.
    pub net: NetId,
    /// The address.
    pub ip: Ip4,
}

/// Value of map `ENDPOINTS`: what answers at an overlay address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Endpoint {
    /// The task (zero for VIPs, gateways and node addresses).
    pub tag: Tag,
    /// One of [`kind`].
    pub kind: u8,
    /// Bits of [`endpoint_flag`].
    pub flags: u8,
    /// What ARP answers for this address.
    pub mac: Mac,
    /// Where it lives; this node's own VTEP for local ones, zero for VIPs and gateways.
    pub vtep: Ip4,
    /// VNI of its subnet.
    pub vni: VniBytes,
    /// Host-side veth, native order, for [`kind::LOCAL`] only.
    pub ifindex: u32,
    /// Backend set, native order, for [`kind::VIP`] only.
    pub set: u32,
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flag {
    /// A VIP on this network may lead here, or did: direct connections towards it are noted, so that a VIP connection
    /// never looks the same to it; and only what comes from it can be a VIP's reply.
    pub const VIP_BACKEND: u8 = 1;
}

/// Values of [`Endpoint::kind`].
pub mod kind {
    /// A task on this node.
    pub const LOCAL: u8 = 1;
    /// A task on another node.
    pub const REMOTE: u8 = 2;
    /// A service's virtual address.
    pub const VIP: u8 = 3;
    /// A subnet's gateway: answers ARP and ping, routes between the subnets of one network.
    pub const GATEWAY: u8 = 4;
    /// A remote node's own address on the network (stock nodes source traffic from it).
    pub const NODE: u8 = 5;
}

/// Value of map `VNIS` (hash, key: [`VniBytes`]): VNIs that this node has joined.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VniInfo {
    /// Network of the VNI.
    pub net: NetId,
    /// Kernel vxlan device that is its slow path, native order.
    pub vxlan_ifindex: u32,
}

/// Values of [`Vtep::hiveway`].
pub mod vtep_mesh {
    /// No Hiveway there: frames of the mesh from it are forged.
    pub const NONE: u8 = 0;
    /// It sends and takes frames of the mesh.
    pub const MEMBER: u8 = 1;
    /// Hiveway was there a moment ago: what it still sends is taken, no connection is opened towards it.
    pub const LEFT: u8 = 2;
}

/// Value of map `VTEPS` (hash, key: [`Ip4`]): tunnel addresses we accept frames from and send to. Never our own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vtep {
    /// Whether the node takes part in the mesh, see [`vtep_mesh`].
    pub hiveway: u8,
    /// Always zero.
    pub _pad: u8,
    /// Where in map `HOPS` the way to it is kept, native order; 0: nowhere. Filled in when it is written.
    pub hop: u16,
}

crate::assert_layout!(
    Local: size 28 align 4,
    EndpointKey: size 8 align 4,
    Endpoint: size 32 align 4,
    VniInfo: size 8 align 4,
    Vtep: size 4 align 2,
);
