//! What the bench's traffic programs (`dataplane-ebpf/src/bin/traffic`) are told, and what they count. No agent loads
//! them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::headers::ENCAP_LEN;

/// Bytes of headers that the generator writes into every frame: Ethernet, IPv4 and TCP without options.
pub const HEADERS: usize = 54;
/// The same of a frame in a tunnel.
pub const TUNNELLED_HEADERS: usize = ENCAP_LEN + HEADERS;

/// First address of the invented clients, 100.64.0.0/10 (RFC 6598): the far end tells by it which way a packet goes.
pub const CLIENTS: [u8; 4] = [100, 64, 0, 0];
/// How many addresses there are for them.
pub const CLIENT_ADDRESSES: u32 = 1 << 22;

/// First source port of the invented clients.
pub const FIRST_PORT: u16 = 1024;
/// How many source ports they use: a power of two.
pub const CLIENT_PORTS: u16 = 1 << 15;

/// Map `ORDER` (array, 1): what the generator sends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Order {
    /// The headers, [`HEADERS`] bytes or [`TUNNELLED_HEADERS`]. The generator fills in addresses (of requests only the
    /// client's), both ports and both checksums for each frame.
    pub headers: [u8; TUNNELLED_HEADERS],
    /// Offset of the transport header's checksum in the frame; of a tunnelled one in the inner frame.
    pub checksum_at: u16,
    /// Flows that share a source port in a row: 2 to this power. Of requests only.
    pub port_shift: u16,
    /// Sum of the IP header's 16-bit words without what is filled in, not folded.
    pub ip_sum: u32,
    /// The same for the pseudo header and the transport header.
    pub transport_sum: u32,
    /// Flows to choose from; 0: every frame has a random client address and port.
    pub flows: u32,
    /// From one frame's flow to the next one's, modulo [`Order::flows`]; less than that.
    pub stride: u32,
    /// The next frame's flow; the generator moves it on.
    pub flow: u32,
    /// The first published port.
    pub first_published: u16,
    /// Published ports to choose from: flow modulo this. Divides [`Order::flows`].
    pub published: u16,
    /// [`Order::stride`] modulo [`Order::published`].
    pub published_stride: u16,
    /// [`Order::flow`] modulo [`Order::published`]; the generator moves it on.
    pub published_at: u16,
}

/// Map `ANSWERS` (array): what the server of one flow has received, in the order in which flows were opened. The
/// generator makes the flow's replies from it: only the node under test knows which backend and port it has chosen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Answer {
    /// Address that was asked.
    pub server: [u8; 4],
    /// Address that has asked.
    pub client: [u8; 4],
    /// Port that was asked.
    pub server_port: [u8; 2],
    /// Port that has asked.
    pub client_port: [u8; 2],
    /// Of a request in a tunnel the last four bytes of the inner destination MAC, which name the task. Otherwise zero.
    pub task: [u8; 4],
}

/// Size of map `ANSWERS`: room for a million flows.
pub const ANSWERS: u32 = 1 << 20;

/// Map `FAR_END` (array): what becomes of what the node under test sends, and the next index of [`Answer`].
pub mod far_end {
    /// Slot: one of the modes below.
    pub const MODE: u32 = 0;
    /// Slot: where the next [`super::Answer`] goes.
    pub const NEXT: u32 = 1;
    /// Number of slots.
    pub const SLOTS: u32 = 2;
    /// Counted and dropped.
    pub const COUNT: u32 = 0;
    /// Answered as a server would, or as a client whom a server has answered.
    pub const ANSWER: u32 = 1;
}

/// Slots of map `TALLY` (per-CPU array).
pub mod tally {
    /// Frames that were counted and dropped.
    pub const DELIVERED: u32 = 0;
    /// Packets that a server has answered, or taken note of.
    pub const SERVED: u32 = 1;
    /// Answers that came back to a client.
    pub const ANSWERED: u32 = 2;
    /// Number of slots.
    pub const SLOTS: u32 = 3;
}

/// Sequence numbers of the invented connections.
pub mod sequence {
    /// Of the client's SYN.
    pub const CLIENT: u32 = 1000;
    /// Of the server's SYN-ACK.
    pub const SERVER: u32 = 5000;
}

crate::assert_layout!(Order: size 136 align 4, Answer: size 16 align 1);
