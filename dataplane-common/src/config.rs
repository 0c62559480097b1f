//! Map `CONFIG`: what is true for the whole node.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ip4, Port, VniBytes};

/// The single value of map `CONFIG` (array of one).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Config {
    /// [`crate::ABI_VERSION`] of whoever wrote the maps; 0 in a map that was never written.
    pub abi: u32,
    /// Interface that carries the VTEP.
    pub underlay_ifindex: u32,
    /// This node's tunnel address.
    pub vtep: Ip4,
    /// VNI of mesh frames.
    pub mesh_vni: VniBytes,
    /// UDP port of VXLAN.
    pub vxlan_port: Port,
    /// MTU of the underlay interface, native order.
    pub underlay_mtu: u16,
    /// Always zero.
    pub _pad: [u8; 4],
}

crate::assert_layout!(Config: size 24 align 4);
