//! Maps `PATHS` and `PATH_STATE`: how large a packet may be on its way to another node.
//!
//! Three sources say so, and the smallest counts: the routing table (which knows what the kernel was told about the
//! path), ICMP "fragmentation needed" about a tunnel's packet, which the programs note themselves so that it works
//! without an agent, and probes. The agent keeps the first and the last.
//!
//! Concurrency: the programs change `learned` and `learned_until` in place, the agent replaces whole entries. What a
//! program has learned while the agent replaced the entry is lost, until the next packet that is too big is answered
//! with the same error.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How many paths are kept: as many as there can be nodes.
pub const MAX_PATHS: u32 = 16_384;

/// Value of map `PATHS` (hash, key: [`crate::addr::Ip4`], tunnel address of the other node). There is none for a path
/// that takes what the interface takes. Lengths are those of the outer IP packet in bytes, in native order; 0: not
/// limited.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Path {
    /// As the routing table says.
    pub route: u16,
    /// As probes have found out.
    pub probed: u16,
    /// As an ICMP error has said, valid until `learned_until`.
    pub learned: u16,
    /// Always zero.
    pub _pad: u16,
    /// `CLOCK_MONOTONIC` (coarse) in nanoseconds.
    pub learned_until: u64,
}

impl Path {
    /// The longest outer IP packet that the path takes, of an interface that takes `interface` bytes.
    #[inline(always)]
    pub const fn mtu(&self, interface: u16, now: u64) -> u16 {
        let learned = if self.learned_until > now { self.learned } else { 0 };
        smaller(smaller(smaller(interface, self.route), self.probed), learned)
    }
}

/// The smaller of the two, where 0 is no limit.
#[inline(always)]
const fn smaller(mtu: u16, limit: u16) -> u16 {
    if limit != 0 && limit < mtu { limit } else { mtu }
}

/// Value of map `PATH_STATE` (memory-mapped array of one); all zero before an agent has written it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PathState {
    /// No path takes less: an outer IP packet of this length fits all that are not limited by the interface, and
    /// `PATHS` need not be asked. The programs lower it, the agent raises it.
    pub floor: u64,
    /// What an ICMP error says counts as no less than this (`net.ipv4.route.min_pmtu`).
    pub min: u64,
    /// For how long it is believed, in nanoseconds (`net.ipv4.route.mtu_expires`); 0: not at all
    /// (`net.ipv4.ip_no_pmtu_disc`).
    pub expires: u64,
}

crate::assert_layout!(
    Path: size 16 align 8,
    PathState: size 24 align 8,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_is_said_counts() {
        let path = Path { route: 1450, probed: 0, learned: 1400, learned_until: 10, ..Path::default() };
        assert_eq!(path.mtu(1500, 9), 1400);
        assert_eq!(path.mtu(1500, 10), 1450);
        assert_eq!(path.mtu(1300, 9), 1300);
        assert_eq!(Path { probed: 1350, ..path }.mtu(1500, 9), 1350);
        assert_eq!(Path::default().mtu(1500, 0), 1500);
    }
}
