//! Maps `NODE_ADDRESSES` and `MESH_TARGETS`: the routing mesh's two ends.
//!
//! Mesh frames are VXLAN frames with the mesh VNI around the client's untouched packet.
//! * Forward (ingress node to backend's node): destination MAC `02:42` + the task's ingress address, source MAC
//!   `02:48` + the ingress node's VTEP.
//! * Return (backend's node to ingress node): destination MAC `02:48` + the ingress node's VTEP, source MAC `02:42` +
//!   the task's ingress address.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ip4, Mac, Port, Tag};

/// How many addresses map `NODE_ADDRESSES` holds, the host link's included.
pub const MAX_NODE_ADDRESSES: u32 = 16_384;

/// Value of map `NODE_ADDRESSES` (hash, key: [`Ip4`]): addresses of this node at which published ports answer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NodeAddress {
    /// Interface that carries the address, native order.
    pub ifindex: u32,
    /// Bit [`crate::service::PublishedPort::class`] of a bound port: the port answers at this address.
    pub classes: u32,
}

/// Key of map `MESH_TARGETS` (hash): a local task as mesh frames name it.
#[repr(C, align(4))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TargetKey {
    /// The task's address on the ingress network.
    pub ip: Ip4,
    /// The published port.
    pub port: Port,
    /// IP protocol number.
    pub proto: u8,
    /// Always zero.
    pub _pad: u8,
}

/// Value of map `MESH_TARGETS`: where the packet goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Target {
    /// The task.
    pub tag: Tag,
    /// Host-side veth of its interface on the gateway bridge, native order.
    pub ifindex: u32,
    /// Its address on the gateway bridge.
    pub ip: Ip4,
    /// Its port.
    pub port: Port,
    /// MAC of its interface on the gateway bridge.
    pub mac: Mac,
    /// Bits of [`target_flag`].
    pub flags: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

/// Bits of [`Target::flags`].
pub mod target_flag {
    /// A port published in host mode: only this node's own clients may name the target, mesh frames may not. Its
    /// [`super::TargetKey::ip`] is the task's address on the gateway bridge.
    pub const LOCAL_ONLY: u8 = 1;
}

/// Data of the keys of map `CLIENTS` (longest prefix match): clients whose replies would not leave the container by its
/// gateway, because their address lies in a subnet that is connected there or has a route of its own. A prefix length
/// counts from the start of this structure: 32 + the subnet's.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ClientPrefix {
    /// [`Target::ifindex`], big endian.
    pub ifindex: [u8; 4],
    /// Address of the subnet.
    pub ip: Ip4,
}

/// Value of map `CLIENTS`: whose address such a client is shown with. One of [`shown_as`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ClientRule {
    /// One of [`shown_as`].
    pub shown_as: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

/// Values of [`ClientRule::shown_as`].
pub mod shown_as {
    /// The ingress node's tunnel address: for clients in the gateway bridge's subnet, which is the same on every node.
    pub const INGRESS_NODE: u8 = 1;
    /// The backend's node's address on the gateway bridge: for clients in an overlay subnet of the task, and others to
    /// whom a route of the task's namespace leads elsewhere.
    pub const GATEWAY: u8 = 2;
    /// Its own: for clients inside such a route's range to whom a more specific one leads by the gateway bridge again.
    pub const ITSELF: u8 = 3;
}

crate::assert_layout!(
    NodeAddress: size 8 align 4,
    TargetKey: size 8 align 4,
    Target: size 28 align 4,
    ClientPrefix: size 8 align 1,
    ClientRule: size 4 align 1,
);
