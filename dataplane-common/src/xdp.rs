//! Maps `XDP_DEVICES`, `XDP_STATE`, `HOPS` and `REPLY_HOPS`: what XDP needs to know besides what TC knows, and the next
//! hops, which both use.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::{Ip4, Mac},
    hash::mix,
};

/// Value of map `XDP_DEVICES` (hash, key: interface index, native `u32`): an interface that has `xdp_mesh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct XdpDevice {
    /// How it is attached there: one of [`xdp_mode`].
    pub mode: u32,
    /// MAC of the interface: XDP cannot see `skb->pkt_type`, which says to TC whether a frame is for another MAC.
    pub mac: Mac,
    /// 1: an uplink, where tunnels arrive; 0 otherwise.
    pub uplink: u16,
}

/// Values of [`XdpDevice::mode`].
pub mod xdp_mode {
    /// In the driver.
    pub const NATIVE: u32 = 1;
    /// In the stack.
    pub const GENERIC: u32 = 2;
}

/// How many interfaces can have the program.
pub const MAX_DEVICES: u32 = 1_024;

/// How many next hops are kept, number 0 included, which is none.
pub const MAX_HOPS: u32 = 16_384;

/// Value of map `XDP_STATE` (memory-mapped array of one).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct XdpState {
    /// What `PORTS`, `NODE_ADDRESSES` and `VTEPS` have once said yes to holds as long as this does not change. Odd
    /// while the agent takes something out of them: then nothing is known. Fits 32 bits; never 0 once an agent was
    /// there.
    pub generation: u64,
    /// Until when what `HOPS` holds may be used: `CLOCK_MONOTONIC` (coarse) in nanoseconds. The agent puts it off as
    /// long as it follows routes and neighbours.
    pub hops_until: u64,
}

impl XdpState {
    /// The generation while the agent takes something out.
    pub const fn begun(generation: u64) -> u64 {
        generation | 1
    }

    /// The generation after it has.
    pub const fn ended(generation: u64) -> u64 {
        match generation & 1 {
            0 => generation,
            // 0 is what entries have that XDP has not seen.
            _ if generation >= u32::MAX as u64 => 2,
            _ => generation + 1,
        }
    }
}

/// The way to another node, as the kernel would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The node's tunnel address.
    pub vtep: Ip4,
    /// Interface that it leads through.
    pub ifindex: u32,
    /// MAC of the interface.
    pub src: Mac,
    /// MAC of the next hop.
    pub dst: Mac,
    /// Longest IP packet.
    pub mtu: u16,
}

/// Value of map `HOPS` (memory-mapped array, index: [`crate::endpoint::Vtep::hop`]): a [`Hop`] in four words, each
/// stored as a whole. Each has a version in its highest 16 bits, and only where all are the same they belong together:
/// so nobody needs a lock, and no order in which words are stored or read. All zero: none.
///
/// Words are little endian, as the programs are: 0 destination MAC, 1 source MAC, 2 interface and MTU, 3 tunnel
/// address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct HopWords(pub [u64; 4]);

/// Map `REPLY_HOPS` (array of [`HopWords`], written by `xdp_mesh`): next hops towards clients, as the kernel's routing
/// table has named them. In place of the tunnel address an element has the interface at which the reply arrived. The
/// version is a keyed hash of the content: connections whose replies share a next hop share an element, and an entry
/// recognises its next hop by the version.
pub mod reply_hop {
    /// Elements of the map, one for each value of [`crate::flow::Affinity::reply_hop`].
    pub const MAX: u32 = 256;
    /// How many steps a next hop stays valid.
    pub const STEPS: u16 = 6;

    /// The step of a time in nanoseconds. A step is 17 ms; the number wraps after 18 minutes.
    #[inline(always)]
    pub const fn step(now: u64) -> u16 {
        (now >> 24) as u16
    }

    /// Whether a next hop that was asked for in step `asked` is valid in step `now`.
    #[inline(always)]
    pub const fn is_fresh(asked: u16, now: u16) -> bool {
        now.wrapping_sub(asked) < STEPS
    }
}

/// Where the version is.
const VERSION_SHIFT: u32 = 48;
const CONTENT: u64 = (1 << VERSION_SHIFT) - 1;

impl HopWords {
    /// The hop as stored; `None`: none.
    pub const fn pack(hop: Option<Hop>, version: u16) -> Self {
        let version = (version as u64) << VERSION_SHIFT;
        match hop {
            None => Self([version; 4]),
            Some(hop) => Self([
                mac(hop.dst) | version,
                mac(hop.src) | version,
                hop.ifindex as u64 | (hop.mtu as u64) << 32 | version,
                u32::from_le_bytes(hop.vtep) as u64 | version,
            ]),
        }
    }

    /// An element of map `REPLY_HOPS`, with its version, and its index. The first argument keys the hash, so that a
    /// neighbour cannot compute a MAC whose next hop has the version of another one. The second is as in
    /// [`HopWords::ethernet`]; `from` is the interface at which replies arrive.
    #[inline(always)]
    pub const fn reply_hop(seed: u64, (first, second): (u64, u32), ifindex: u32, mtu: u16, from: u32) -> (Self, u8) {
        let dst = first & CONTENT;
        let src = first >> VERSION_SHIFT | (second as u64) << 16;
        let way = ifindex as u64 | (mtu as u64) << 32;
        let hash = mix(mix(mix(mix(seed ^ dst) ^ src) ^ way) ^ from as u64);
        let version = hash & !CONTENT;
        (Self([dst | version, src | version, way | version, from as u64 | version]), hash as u8)
    }

    /// The version of the words, if they belong together.
    #[inline(always)]
    pub const fn version(self) -> Option<u16> {
        let [a, b, c, d] = self.0;
        match ((a ^ b) | (a ^ c) | (a ^ d)) & !CONTENT {
            0 => Some((a >> VERSION_SHIFT) as u16),
            _ => None,
        }
    }

    /// Interface index; 0: none.
    #[inline(always)]
    pub const fn ifindex(self) -> u32 {
        self.0[2] as u32
    }

    /// Longest IP packet.
    #[inline(always)]
    pub const fn mtu(self) -> u16 {
        (self.0[2] >> 32) as u16
    }

    /// Tunnel address of the node that it leads to, as a little-endian word; in map
    /// `REPLY_HOPS` the interface at which replies arrive.
    #[inline(always)]
    pub const fn vtep(self) -> u32 {
        self.0[3] as u32
    }

    /// The first twelve bytes of an Ethernet header, as little-endian words of eight and of four bytes.
    #[inline(always)]
    pub const fn ethernet(self) -> (u64, u32) {
        let [dst, src, ..] = self.0;
        (dst & CONTENT | src << 48, (src >> 16) as u32)
    }
}

const fn mac(m: Mac) -> u64 {
    u64::from_le_bytes([m[0], m[1], m[2], m[3], m[4], m[5], 0, 0])
}

crate::assert_layout!(
    XdpDevice: size 12 align 4,
    XdpState: size 16 align 8,
    HopWords: size 32 align 8,
);

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: Hop =
        Hop { vtep: [192, 0, 2, 2], ifindex: 7, src: [1, 2, 3, 4, 5, 6], dst: [7, 8, 9, 10, 11, 12], mtu: 1500 };

    #[test]
    fn words_hold_a_hop() {
        let words = HopWords::pack(Some(HOP), 0xfffe);
        assert_eq!(words.version(), Some(0xfffe));
        assert_eq!((words.vtep().to_le_bytes(), words.ifindex(), words.mtu()), (HOP.vtep, HOP.ifindex, HOP.mtu));
        let (first, second) = words.ethernet();
        assert_eq!(first.to_le_bytes(), [7, 8, 9, 10, 11, 12, 1, 2]);
        assert_eq!(second.to_le_bytes(), [3, 4, 5, 6]);
        assert_eq!(HopWords::pack(None, 3).ifindex(), 0);
        assert_eq!(HopWords::pack(None, 3).version(), Some(3));
    }

    #[test]
    fn words_of_two_versions_are_not_taken_together() {
        let (old, new) = (HopWords::pack(Some(HOP), 1), HopWords::pack(Some(HOP), 2));
        for torn in 1..15u8 {
            let words: [u64; 4] = core::array::from_fn(|at| if torn >> at & 1 == 0 { old.0[at] } else { new.0[at] });
            assert_eq!(HopWords(words).version(), None);
        }
    }

    #[test]
    fn the_version_of_a_reply_hop_is_a_hash_of_its_content() {
        const SEED: u64 = 0x0123_4567_89ab_cdef;
        let ethernet = HopWords::pack(Some(HOP), 0).ethernet();
        let (words, number) = HopWords::reply_hop(SEED, ethernet, 7, 1500, 3);
        assert_eq!((words.ethernet(), words.ifindex(), words.mtu(), words.vtep()), (ethernet, 7, 1500, 3));
        let version = words.version();
        assert!(version.is_some());
        assert_eq!(HopWords::reply_hop(SEED, ethernet, 7, 1500, 3), (words, number));
        for other in [
            HopWords::reply_hop(SEED ^ 1, ethernet, 7, 1500, 3),
            HopWords::reply_hop(SEED, ethernet, 8, 1500, 3),
            HopWords::reply_hop(SEED, ethernet, 7, 1501, 3),
            HopWords::reply_hop(SEED, ethernet, 7, 1500, 4),
            HopWords::reply_hop(SEED, (ethernet.0 ^ 1, ethernet.1), 7, 1500, 3),
            HopWords::reply_hop(SEED, (ethernet.0, ethernet.1 ^ 1), 7, 1500, 3),
        ] {
            assert_ne!((other.0.version(), other.1), (version, number));
        }
    }

    #[test]
    fn a_reply_hop_is_valid_for_a_tenth_of_a_second() {
        const MS: u64 = 1_000_000;
        let at = |now: u64| reply_hop::is_fresh(reply_hop::step(1 << 40), reply_hop::step((1 << 40) + now));
        assert!(at(0) && at(80 * MS) && !at(120 * MS) && !at(3_600_000 * MS + 200 * MS));
        assert!(reply_hop::is_fresh(u16::MAX, 0) && !reply_hop::is_fresh(0, u16::MAX));
    }

    #[test]
    fn generations_are_even_when_something_is_known() {
        assert_eq!(XdpState::ended(XdpState::begun(0)), 2);
        assert_eq!(XdpState::ended(XdpState::begun(2)), 4);
        assert_eq!(XdpState::ended(4), 4);
        assert_eq!(XdpState::ended(XdpState::begun(u64::from(u32::MAX) - 1)), 2);
    }
}
