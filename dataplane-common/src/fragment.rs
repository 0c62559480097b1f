//! Map `FRAGS`: what a datagram's first fragment decided, for the later ones, which carry no ports.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ip4, NetId, Port, Tag};

/// Size of `FRAGS`: datagrams in pieces, per place that decides about them. The least recently used make room.
pub const MAX_FRAGMENTED: u32 = 16_384;
/// How long later fragments may follow the first: as long as Linux waits for them (`ipfrag_time`).
pub const LIFETIME_NS: u64 = 30_000_000_000;

/// Key of map `FRAGS`: a datagram (RFC 791: addresses, identification, protocol) at one of the places on its way.
#[repr(C, align(4))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FragmentKey {
    /// Network id, or [`crate::flow::MESH_ZONE`].
    pub zone: NetId,
    /// Source address as it stands in the packet at this place.
    pub src: Ip4,
    /// Destination address, likewise.
    pub dst: Ip4,
    /// IPv4 identification, big endian.
    pub id: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    /// One of [`place`].
    pub place: u8,
}

/// Values of [`FragmentKey::place`]: who decided.
pub mod place {
    /// A container's packet to a VIP.
    pub const TO_VIP: u8 = 1;
    /// A VIP's reply on its way into the client's container.
    pub const FROM_VIP: u8 = 2;
    /// A client's packet at the ingress node.
    pub const INGRESS: u8 = 3;
    /// A client's packet at the backend's node.
    pub const BACKEND: u8 = 4;
    /// A task's reply at the backend's node.
    pub const REPLY: u8 = 5;
    /// A task's reply at the ingress node.
    pub const RETURN: u8 = 6;
    /// A container's packet to another node: the datagram takes the slow path.
    pub const SLOW: u8 = 7;
}

/// Values of [`Fragmented::way`]: how a mesh reply goes to the client of another ingress node.
pub mod way {
    /// Through the tunnel.
    pub const TUNNEL: u8 = 0;
    /// Directly.
    pub const DIRECT: u8 = 1;
    /// Through the tunnel if it fits, else directly. Never in the map.
    pub const TUNNEL_IF_IT_FITS: u8 = 2;
}

/// Value of map `FRAGS`. Fields that a place does not need are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fragmented {
    /// When the first fragment was seen: `CLOCK_MONOTONIC` (coarse) in nanoseconds.
    pub seen: u64,
    /// The task that serves.
    pub tag: Tag,
    /// Source address after translation.
    pub src: Ip4,
    /// Destination address after translation.
    pub dst: Ip4,
    /// VTEP of the mesh's other node.
    pub peer: Ip4,
    /// The task's ingress address.
    pub task: Ip4,
    /// The published port.
    pub port: Port,
    /// Non-zero when the first fragment took the slow path; the others must not overtake it.
    pub slow: u8,
    /// [`place::REPLY`] only: one of [`way`].
    pub way: u8,
    /// Always zero.
    pub _pad: [u8; 4],
}

crate::assert_layout!(
    FragmentKey: size 16 align 4,
    Fragmented: size 40 align 8,
);
