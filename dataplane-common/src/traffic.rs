//! What the bench's traffic programs (`dataplane-ebpf/src/bin/traffic`) are told, and what they count. No agent loads them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of headers that the generator writes into every frame: Ethernet, IPv4 and TCP without options.
pub const HEADERS: usize = 54;

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
    /// The headers; client address, both ports and both checksums are filled in for each frame.
    pub headers: [u8; HEADERS],
    /// Offset of the transport header's checksum in the frame.
    pub checksum_at: u16,
    /// Sum of the IP header's 16-bit words without the client's address, not folded.
    pub ip_sum: u32,
    /// The same for the pseudo header and the transport header, without the client's address and both ports.
    pub transport_sum: u32,
    /// Flows to choose from; 0: every frame has a random client address and port.
    pub flows: u32,
    /// From one frame's flow to the next one's, modulo [`Order::flows`]; less than that.
    pub stride: u32,
    /// The next frame's flow; the generator moves it on.
    pub flow: u32,
    /// Flows that share a source port in a row: 2 to this power.
    pub port_shift: u32,
    /// The first published port.
    pub first_published: u16,
    /// Published ports to choose from: flow modulo this. Divides [`Order::flows`].
    pub published: u16,
    /// [`Order::stride`] modulo [`Order::published`].
    pub published_stride: u16,
    /// [`Order::flow`] modulo [`Order::published`]; the generator moves it on.
    pub published_at: u16,
}

/// Map `FAR_END` (array, 1): what becomes of what the node under test sends.
pub mod far_end {
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

crate::assert_layout!(Order: size 88 align 4);
