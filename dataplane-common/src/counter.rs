//! Maps `DROPS` and `COUNTERS`: what is counted.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::headers::ENCAP_LEN;

/// Value of maps `DROPS` and `COUNTERS` (per-CPU arrays).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Stat {
    /// Packets; a GSO packet counts once.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

crate::assert_layout!(Stat: size 16 align 8);

/// Declares [`Counter`]. Append only, as with drop reasons.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal;)+) => {
        /// What was done with packets that were not dropped. Index of map `COUNTERS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Counter { $($(#[$doc])* $name = $number,)+ }

        impl Counter {
            /// All counters, in order of number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable name, as in the metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }
        }
    };
}

counters! {
    /// Handed to a container on this node.
    Delivered = 0, "delivered";
    /// Encapsulated towards another node.
    Encapsulated = 1, "encapsulated";
    /// Left to the kernel's bridge and vxlan device.
    SlowPath = 2, "slow_path";
    /// ARP requests answered on the spot.
    ArpReply = 3, "arp_reply";
    /// Pings of a VIP or gateway answered on the spot.
    EchoReply = 4, "echo_reply";
    /// New VIP flows.
    VipFlow = 5, "vip_flow";
    /// New mesh flows on this node as ingress node.
    MeshFlow = 6, "mesh_flow";
    /// Mesh packets sent towards a backend's node.
    MeshForward = 7, "mesh_forward";
    /// Mesh replies sent towards the ingress node.
    MeshReturn = 8, "mesh_return";
    /// Mesh replies handed to the client.
    MeshReply = 9, "mesh_reply";
    /// Connections that have proved that both ends are there (handshake complete, or answered and continued): once on
    /// each node, also where it is both ingress node and the backend's.
    FlowPromoted = 10, "flow_promoted";
    /// Connections made directly to a VIP's backend, noted to keep them apart from VIP connections.
    DirectNoted = 11, "direct_noted";
    /// Such connections whose source port had to be translated.
    DirectTranslated = 12, "direct_translated";
    /// Mesh connections whose client is shown with a node's address.
    ClientTranslated = 13, "client_translated";
    /// ICMP errors rewritten for whoever must see them.
    IcmpTranslated = 14, "icmp_translated";
    /// ICMP "fragmentation needed" sent by this node.
    FragNeeded = 15, "frag_needed";
    /// Fragments of translated datagrams passed on.
    FragmentTranslated = 16, "fragment_translated";
    /// Connections from this node's own sockets and from masqueraded containers that use a published port as their
    /// source.
    OwnNoted = 17, "own_noted";
    /// New mesh flows on this node as ingress node to a backend on a node without Hiveway: the client is shown with
    /// this node's ingress address.
    MeshStock = 18, "mesh_stock";
    /// Of `mesh_forward`: those that XDP has carried. It counts them here only, see [`Counter::includes`].
    XdpForward = 19, "xdp_forward";
    /// Of `mesh_reply`: those that XDP has carried; likewise.
    XdpReply = 20, "xdp_reply";
    /// Mesh replies of this node's tasks sent directly to the client of another ingress node.
    MeshDirectReply = 21, "mesh_direct_reply";
    /// ICMP errors that said how large a tunnel's packet may be, and were believed.
    PathMtuLearned = 22, "path_mtu_learned";
    /// Packets of clients to published ports that the host's packet filters may close to them: left to the host.
    LeftToHost = 23, "left_to_host";
    /// Probes of this node's agent sent to other nodes.
    ProbeSent = 24, "probe_sent";
    /// Answers to them.
    ProbeAnswered = 25, "probe_answered";
    /// Other nodes' probes answered.
    ProbeReply = 26, "probe_reply";
    /// Connections that have proved themselves and stay pending, because their service, their clients' prefix or their
    /// protocol holds its share of the established entries, or there is no room. They work as long as nothing displaces
    /// them.
    KeptPending = 27, "kept_pending";
}

impl Counter {
    /// What counts under this counter, too, but is counted under another one only: that one, and by how many bytes each
    /// packet is longer here. One slot per packet is all that XDP touches.
    pub const fn includes(self) -> Option<(Self, u64)> {
        match self {
            Self::MeshForward => Some((Self::XdpForward, 0)),
            Self::Encapsulated => Some((Self::XdpForward, ENCAP_LEN as u64)),
            Self::MeshReply => Some((Self::XdpReply, 0)),
            _ => None,
        }
    }
}

/// Number of slots in map `COUNTERS`.
pub const COUNTER_SLOTS: u32 = 64;

const _: () = assert!(Counter::ALL.len() <= COUNTER_SLOTS as usize);
