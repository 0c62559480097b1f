//! The tables of translated connections (`FLOWS_SEGMENTS`, `FLOWS`) and of clients (`AFFINITY_SEGMENTS`, `AFFINITY`):
//! what connections remember.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ip4, NetId, Port, Tag};

/// For how long a backend may hold an ended connection in TIME-WAIT, in seconds from [`Flow::last_seen`] of the entry.
/// In Linux: 60 (`TCP_TIMEWAIT_LEN`), and as much more as its timer wheel is late (`kernel/time/timer.c`: up to 5.1 s,
/// at 100 Hz); and half a second, because entries are not touched for every packet.
pub const TIME_WAIT_SECONDS: u64 = 66;
/// Room for established entries: so many of translated connections (two each), and so many of clients. `FLOWS` and
/// `AFFINITY`, for those that find no line, are made with fewer places.
/// Ended connections stay for [`TIME_WAIT_SECONDS`], so this bounds the sustained rate of short connections: 7,900 per
/// second and node.
pub const MAX_FLOWS: u32 = 1 << 20;
/// Lines that each half of `FLOWS_SEGMENTS` (two entries per connection) and of `AFFINITY_SEGMENTS` gets once half of
/// the [`crate::line::SEGMENT`] it begins with is used: room for connections that have not proved yet that somebody is
/// there, and those that have found no share of the established ones (see [`crate::shares`]). Those that were silent
/// for longest make room, so a flood only ever displaces its like.
pub const MAX_PENDING: u32 = 1 << 16;

/// Halves of `FLOWS_SEGMENTS` and `AFFINITY_SEGMENTS`: one for TCP, one for all else, so that neither displaces the
/// other's.
pub mod pending {
    use crate::headers::ipproto;

    /// The first.
    pub const TCP: u32 = 0;
    /// The second.
    pub const OTHER: u32 = 1;
    /// Their number.
    pub const COUNT: u32 = 2;

    /// The one of this protocol.
    #[inline(always)]
    #[must_use]
    pub const fn of(proto: u8) -> u32 {
        (proto != ipproto::TCP) as u32
    }
}

/// [`FlowKey::zone`] of flows that came through the routing mesh; VIP flows use their network's id.
pub const MESH_ZONE: NetId = [0xff; 4];
/// [`FlowKey::zone`] of mesh flows at their ingress node, to backends on nodes without Hiveway.
pub const STOCK_ZONE: NetId = [0xff, 0xff, 0xff, 0xfe];

/// Key of a translated connection: a packet's addresses as they stand **before** translation, in the direction it
/// travels.
///
/// Ports of ICMP echo flows are the identifier, in both fields.
#[repr(C, align(4))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FlowKey {
    /// Network id, or [`MESH_ZONE`].
    pub zone: NetId,
    /// Source address.
    pub src: Ip4,
    /// Destination address.
    pub dst: Ip4,
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
    /// IP protocol number.
    pub proto: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

impl FlowKey {
    /// Puts a key together in words: LLVM clears the three bytes of padding with a call to `memset`, which takes a
    /// frame.
    #[inline(always)]
    #[must_use]
    pub const fn new(zone: NetId, (src, sport): (Ip4, Port), (dst, dport): (Ip4, Port), proto: u8) -> Self {
        let [a, b] = sport;
        let [c, d] = dport;
        zerocopy::transmute!([zone, src, dst, [a, b, c, d], (proto as u32).to_le_bytes()])
    }
}

/// Its value: how a packet with that key is rewritten. A connection has two entries, one per direction;
/// each is written by packets of its own direction, and at the end of the connection by the other's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flow {
    /// When a packet of this direction was last seen: `CLOCK_MONOTONIC` (coarse) in nanoseconds.
    pub last_seen: u64,
    /// When the entry was made, same clock. In a line, programs find its state here (see [`crate::line::Translated`]):
    /// a number that tells it from other entries with its key.
    pub created: u64,
    /// The task that serves.
    pub tag: Tag,
    /// Source address after translation.
    pub src: Ip4,
    /// Destination address after translation.
    pub dst: Ip4,
    /// Source port after translation.
    pub sport: Port,
    /// Destination port after translation.
    pub dport: Port,
    /// Mesh flows: VTEP of the ingress node. Otherwise zero.
    pub peer: Ip4,
    /// Mesh flows: the task's ingress address. Otherwise zero.
    pub task: Ip4,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Of TCP. Pending reply entries: the lower 24 bits of the acknowledgement number, big endian, with which the
    /// client completes the handshake; zero before the SYN-ACK was seen. Established ones: the upper 24 bits of the
    /// number that the backend has acknowledged last. Established forward entries with [`flag::FIN`]: the upper 24 bits
    /// of the sequence number behind the client's FIN.
    pub tcp_number: [u8; 3],
}

/// [`Flow`] with its last four bytes in one, see [`Flow::new`].
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct FlowWords {
    times: [u64; 2],
    tag: Tag,
    addresses: [Ip4; 2],
    ports: [Port; 2],
    mesh: [Ip4; 2],
    flags: u32,
}

impl Flow {
    /// A connection's entry made at `now`, in words as [`FlowKey::new`]; `mesh`: peer and task.
    #[inline(always)]
    #[must_use]
    pub const fn new(
        now: u64,
        tag: Tag,
        (src, sport): (Ip4, Port),
        (dst, dport): (Ip4, Port),
        mesh: [Ip4; 2],
        flags: u8,
    ) -> Self {
        let flags = (flags as u32).to_le();
        zerocopy::transmute!(FlowWords {
            times: [now, now],
            tag,
            addresses: [src, dst],
            ports: [sport, dport],
            mesh,
            flags
        })
    }
}

/// Bits of [`Flow::flags`] and [`Affinity::flags`].
pub mod flag {
    /// The entry rewrites replies (backend to client).
    pub const REPLY: u8 = 1;
    /// At least one packet of this direction was seen (set at creation for forward entries).
    pub const SEEN: u8 = 1 << 1;
    /// A FIN was seen in this direction; in clients' entries the client's. What a client says is only believed once its
    /// backend has acknowledged it.
    pub const FIN: u8 = 1 << 2;
    /// The connection has ended, by the backend's word: an RST, or a FIN and the acknowledgement of the client's. In
    /// `FLOWS` also by an RST of the client's at the sequence number that the backend waits for. On both entries.
    pub const ENDED: u8 = 1 << 3;
    /// Clients' entries only: a reply came back through this node.
    pub const REPLIED: u8 = 1 << 4;
    /// Clients' entries only: a FIN of the backend's was seen.
    pub const BACKEND_FIN: u8 = 1 << 0;
    /// Pending entries of translated connections: the connection has proved itself, and found no share or no room.
    pub const KEPT: u8 = 1 << 6;
    /// The same of pending entries of clients.
    pub const AFFINITY_KEPT: u8 = 1 << 5;
    /// Translated connections only: one made directly to a task that is also a VIP's backend. Alone under its reply key
    /// it changes nothing and only keeps the key; with a forward entry the source port is translated.
    pub const DIRECT: u8 = 1 << 5;
    /// Clients' entries only: this node (or a container behind its masquerade) opened the connection from a port that
    /// is also published; packets are the stack's.
    pub const OWN: u8 = 1 << 6;
    /// Clients' entries only: the backend's node ran no Hiveway when the connection began, so its packets are
    /// translated here and travel as ordinary traffic of the ingress network.
    pub const STOCK: u8 = 1 << 7;
}

/// Key of a client's connection at the ingress node, before anything is rewritten.
#[repr(C, align(4))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct AffinityKey {
    /// The client.
    pub client: Ip4,
    /// The address of this node that it talks to.
    pub node: Ip4,
    /// The client's port.
    pub client_port: Port,
    /// The published port.
    pub port: Port,
    /// IP protocol number.
    pub proto: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

impl AffinityKey {
    /// Puts a key together in words, as [`FlowKey::new`].
    #[inline(always)]
    #[must_use]
    pub const fn new((client, client_port): (Ip4, Port), (node, port): (Ip4, Port), proto: u8) -> Self {
        let [a, b] = client_port;
        let [c, d] = port;
        zerocopy::transmute!([client, node, [a, b, c, d], (proto as u32).to_le_bytes()])
    }
}

/// Value of a client's connection: which backend it was given.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Affinity {
    /// When a packet was last seen: `CLOCK_MONOTONIC` (coarse) in nanoseconds.
    pub last_seen: u64,
    /// When the entry was made, same clock.
    pub created: u64,
    /// The task.
    pub tag: Tag,
    /// Its ingress address.
    pub ip: Ip4,
    /// VTEP of its node; this node's own for a local one.
    pub vtep: Ip4,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Of TCP. While it is pending as [`Flow::tcp_number`] of reply entries. Established with [`flag::FIN`]: the upper
    /// 24 bits of the sequence number behind the client's FIN, big endian.
    pub tcp_number: [u8; 3],
    /// [`crate::xdp::XdpState::generation`] under which XDP last asked everything that it asks besides this entry; 0:
    /// never.
    pub generation: u32,
    /// [`crate::endpoint::Vtep::hop`] of `vtep` then.
    pub hop: u16,
    /// Established: 1 from when the client has proved itself until the backend says something else than SYN-ACK and
    /// RST.
    pub unspoken: u8,
    /// Index in map `REPLY_HOPS` of the next hop that XDP last found for replies to the client.
    pub reply_hop: u8,
    /// [`crate::xdp::HopWords::version`] of that element. If the element has another version, it holds another next
    /// hop.
    pub reply_hop_version: u16,
    /// When XDP asked for it: [`crate::xdp::reply_hop::step`].
    pub reply_hop_asked: u16,
}

/// Value of map `DIRECT_GATE` (memory-mapped array of one, each side writes its own number only): whether any direct
/// connection has its source port translated. Programs look for such connections only while the two numbers differ.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DirectGate {
    /// Incremented by the programs after such a connection has been entered.
    pub created: u64,
    /// Set by the agent to the value of `created` that it read before a sweep that found none left.
    pub cleared: u64,
}

crate::assert_layout!(
    FlowKey: size 20 align 4,
    Flow: size 48 align 8,
    AffinityKey: size 16 align 4,
    Affinity: size 48 align 8,
    DirectGate: size 16 align 8,
);
