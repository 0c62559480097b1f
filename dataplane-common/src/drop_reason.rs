//! Why a packet was dropped: one source for the programs, the metrics, the CLI and the tests.

/// Declares [`DropReason`]. Append only: numbers are indices of the pinned `DROPS` map and names are a stable
/// interface.
macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal;)+) => {
        /// Why a packet was dropped. Index of map `DROPS` (per-CPU array of [`crate::counter::Stat`]).
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $($(#[$doc])* $name = $number,)+ }

        const _: () = {
            // What the programs return to each other as a number.
            let mut number = 0;
            while number < DropReason::ALL.len() {
                assert!(DropReason::ALL[number] as usize == number, "numbers go from 0 on without a gap");
                number += 1;
            }
        };

        impl DropReason {
            /// All reasons, in order of number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable name, as in `hiveway drops` and the metric's `reason` label.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }
        }
    };
}

drop_reasons! {
    /// A header is cut off by the end of the packet.
    Truncated = 0, "truncated";
    /// IP version, header length or total length make no sense.
    MalformedIp = 1, "malformed_ip";
    /// VXLAN header without a valid VNI, or a TCP/UDP header that makes no sense.
    MalformedHeader = 2, "malformed_header";
    /// A container used a source MAC that is not its own.
    SpoofedMac = 3, "spoofed_mac";
    /// A container used a source address that is not its own.
    SpoofedIp = 4, "spoofed_ip";
    /// The program ran on an interface that no task owns.
    UnknownInterface = 5, "unknown_interface";
    /// The service has no backend.
    NoBackend = 6, "no_backend";
    /// TCP towards a VIP in the middle of a connection that we do not know.
    NoFlow = 7, "no_flow";
    /// The connection's backend no longer exists.
    BackendGone = 8, "backend_gone";
    /// The connection table is full.
    FlowTableFull = 9, "flow_table_full";
    /// A tunnelled frame came from an address that is no node's.
    UnknownVtep = 10, "unknown_vtep";
    /// The inner source does not live on the node that sent the frame.
    BadInnerSource = 11, "bad_inner_source";
    /// The inner destination does not live here. Or a container has sent over an overlay bridge to the node or through
    /// it (dropped and counted by the agent's nftables rules).
    UnknownDestination = 12, "unknown_destination";
    /// The packet does not fit the path and must not be fragmented.
    MtuExceeded = 13, "mtu_exceeded";
    /// A fragment that cannot be matched to its flow.
    Fragment = 14, "fragment";
    /// A container sent a packet to a node's VXLAN port.
    ForgedTunnel = 15, "forged_tunnel";
    /// A mesh frame names a task or port that is not here.
    MeshNoTarget = 16, "mesh_no_target";
    /// A mesh return frame whose source is not a backend that we chose.
    MeshBadReturn = 17, "mesh_bad_return";
    /// The same addresses and ports are already in use by another flow.
    FlowCollision = 18, "flow_collision";
    /// The kernel refused to change the packet.
    RewriteFailed = 19, "rewrite_failed";
    /// No route or no neighbour towards the destination.
    NoRoute = 20, "no_route";
    /// A protocol that this destination does not serve.
    UnsupportedProtocol = 21, "unsupported_protocol";
    /// A frame on the slow path that no sender check has seen.
    UncheckedTunnel = 22, "unchecked_tunnel";
    /// TCP in the middle of a mesh connection that this node does not know.
    MeshNoFlow = 23, "mesh_no_flow";
    /// A map that must hold an entry did not (the agent is not done yet, or a bug).
    NotConfigured = 24, "not_configured";
    /// The tunnel marked congestion on a packet that does not speak ECN (RFC 6040 section 4.2).
    EcnViolation = 25, "ecn_violation";
    /// The client may not use this published port.
    NotAllowed = 26, "not_allowed";
    /// A container sends more broadcast and multicast than its network is to bear.
    GroupRate = 27, "group_rate";
    /// An ICMP error that quotes no connection we know.
    IcmpUnmatched = 28, "icmp_unmatched";
    /// A packet that is to be segmented later (GSO), of a kind that a tunnel cannot be put around or taken off.
    UnsupportedGso = 29, "unsupported_gso";
    /// A node sends more probes than are answered.
    ProbeRate = 30, "probe_rate";
    /// A packet of the routing mesh has no hop left.
    TtlExceeded = 31, "ttl_exceeded";
}

/// Number of slots in map `DROPS`; leaves room so that a new reason does not change the map.
pub const DROP_SLOTS: u32 = 64;

const _: () = assert!(DropReason::ALL.len() <= DROP_SLOTS as usize);

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::counter::Counter;

    /// The names in the first column of a table of docs/drops.md.
    fn documented(heading: &str) -> Vec<&'static str> {
        let text = include_str!("../../docs/drops.md");
        let table = text.split(heading).nth(1).unwrap().split("\n## ").next().unwrap();
        let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
        cells.flat_map(|cell| cell.split(", ").map(|name| name.trim_matches('`'))).collect()
    }

    #[test]
    fn operators_are_told_of_every_reason_and_counter() {
        let reasons: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(documented("# Drop reasons"), reasons);
        let counters: Vec<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        let mut told = documented("## Counters");
        told.sort_by_key(|name| counters.iter().position(|known| known == name));
        assert_eq!(told, counters);
    }
}
