//! Maps `NODE_ADDRESSES` and `MESH_TARGETS`: the routing mesh's two ends.
//!
//! Mesh frames are VXLAN frames with the mesh VNI around the client's untouched packet.
//! * Forward (ingress node to backend's node): destination MAC `02:42` + the task's ingress address, source MAC
//!   `02:48` + the ingress node's VTEP.
//! * Return (backend's node to ingress node): destination MAC `02:48` + the ingress node's VTEP, source MAC `02:42` +
//!   the task's ingress address.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ip4, Mac, Port, Tag};

/// Value of map `NODE_ADDRESSES` (hash, key: [`Ip4`]): addresses of this node at which published ports answer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NodeAddress {
    /// Interface that carries the address, native order.
    pub ifindex: u32,
}

/// Key of map `MESH_TARGETS` (hash): a local task as mesh frames name it.
#[repr(C)]
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
}

crate::assert_layout!(
    NodeAddress: size 4 align 4,
    TargetKey: size 8 align 1,
    Target: size 24 align 4,
);
