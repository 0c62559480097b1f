//! Probes: small packets by which nodes try the paths between them, and map `PROBES`, which holds what came of it.
//!
//! A probe is a mesh frame from node to node: MACs `02:48` + tunnel address on both sides, and in it an IPv4/UDP packet
//! between the two tunnel addresses, to port [`PORT`], without a checksum. The agent hands it to `from_client` on the
//! host link, which encapsulates it as any other packet; the other node's `from_underlay` turns it round, whatever
//! becomes of its agent; and the sender's `from_underlay` notes the answer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::Port,
    headers::{ENCAP_LEN, IPV4_LEN, UDP_LEN},
};

/// UDP port of the packet inside (`discard`, should one ever leave its tunnel).
pub const PORT: Port = 9u16.to_be_bytes();

/// What a probe carries behind its UDP header. What is longer is filled with zeros. Numbers are big endian but for
/// those that only their sender reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Probe {
    /// [`VERSION`].
    pub version: u8,
    /// One of [`kind`].
    pub kind: u8,
    /// Length of the outer IP packet that the request came in.
    pub size: [u8; 2],
    /// Longest outer IP packet that the sender of this packet takes the path to be able to carry.
    pub mtu: [u8; 2],
    /// Always zero.
    pub _pad: [u8; 2],
    /// The sender's: [`Probed::nonce`].
    pub nonce: [u8; 8],
    /// The sender's: `CLOCK_MONOTONIC` in nanoseconds.
    pub sent: [u8; 8],
    /// The sender's: counts its requests to this node.
    pub sequence: [u8; 4],
    /// Always zero.
    pub _pad2: [u8; 4],
}

impl Probe {
    /// As it stands in the packet.
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        zerocopy::transmute!(*self)
    }

    /// The same the other way.
    pub fn from_bytes(bytes: [u8; size_of::<Self>()]) -> Self {
        zerocopy::transmute!(bytes)
    }
}

/// The version that this code speaks.
pub const VERSION: u8 = 1;

/// Values of [`Probe::kind`].
pub mod kind {
    /// To be answered, with a packet of the smallest size.
    pub const REQUEST: u8 = 1;
    /// Never answered.
    pub const ANSWER: u8 = 2;
}

/// Length of the smallest probe from the inner IP header on.
pub const INNER_LEN: usize = IPV4_LEN + UDP_LEN + size_of::<Probe>();
/// Length of its outer IP packet.
pub const OUTER_LEN: usize = ENCAP_LEN + INNER_LEN;

/// Value of map `PROBES` (hash, key: [`crate::addr::Ip4`], tunnel address of the other node). The agent makes the
/// entry; afterwards only programs write it, in place. All in native order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Probed {
    /// Of this agent's requests; answers to others do not count. Never 0.
    pub nonce: u64,
    /// When the other node's last request came in here, `CLOCK_MONOTONIC` in nanoseconds; 0: never.
    pub heard: u64,
    /// When the last answer came in; 0: never.
    pub answered: u64,
    /// Number of answers to requests of the smallest size.
    pub answers: u64,
    /// When a request of the other node last came in at another port than this node's for VXLAN.
    pub stray: u64,
    /// When all requests that were answered have had their share of the rate.
    pub free: u64,
    /// Highest sequence number of an answered request of the smallest size.
    pub sequence: u32,
    /// The same of larger ones.
    pub large_sequence: u32,
    /// Time that the last small request took there and back, in microseconds.
    pub rtt: u32,
    /// Size of the last answered larger request: its outer IP packet.
    pub large_size: u16,
    /// What the other node takes the path back to be able to carry, as its last packet said.
    pub their_mtu: u16,
    /// That other port, in network order.
    pub stray_port: Port,
    /// Always zero.
    pub _pad: [u8; 6],
}

crate::assert_layout!(
    Probe: size 32 align 1,
    Probed: size 72 align 8,
);
