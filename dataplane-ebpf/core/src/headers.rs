//! The headers that a tunnel puts in front of a packet's IP header, in words: LLVM writes what is put together of bytes
//! byte by byte, and clears a few of them with a function call.

use dataplane_common::{
    config::Config,
    headers::{INNER_NET, IPV4_LEN, VXLAN_FLAG_VNI, ethertype, ipproto},
};

/// Length of the headers.
pub const WORDS: usize = INNER_NET / size_of::<u64>();

/// What differs between packets of one node. Words hold what the wire has in the order of its bytes, the first one
/// lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Both MACs of the outer Ethernet header: eight bytes and four.
    pub eth: (u64, u32),
    /// Tunnel address of the other node.
    pub vtep: u32,
    /// Inner type of service.
    pub tos: u8,
    /// Length of the outer IP packet, as a number; 0 if it is more than 65,535 bytes long, and segmentation is to write
    /// that of each segment (as the kernel's `iph_set_totlen`).
    pub ip_len: u16,
    /// The outer header's second word: [`ATOMIC`], or [`fragmentable`].
    pub second: u32,
    /// Source port, as a number.
    pub sport: u16,
    /// VXLAN network identifier, the first byte zero.
    pub vni: u32,
    /// MACs of the inner Ethernet header, in the lower six bytes.
    pub inner_dst: u64,
    /// The source.
    pub inner_src: u64,
}

/// An outer header's second word: no identification, DF.
pub const ATOMIC: u32 = u32::from_le_bytes([0, 0, 0x40, 0]);

/// The second word of a packet that routers may fragment: an identification (RFC 6864), no DF.
#[inline(always)]
pub fn fragmentable(identification: u32) -> u32 {
    identification & 0xffff
}

impl Headers {
    /// Outer: ECN copied (RFC 6040 normal mode), DSCP 0, TTL 64, no UDP checksum. `src` is this node's underlay
    /// address.
    #[inline(always)]
    pub fn words(&self, config: &Config, src: u32) -> [u64; WORDS] {
        const TYPE: u64 = u16::from_le_bytes(ethertype::IPV4) as u64;
        let dst = self.vtep;
        // Version, header length and ECN; identification and flags; TTL 64.
        let first = 0x45 | u32::from(self.tos & 0x03) << 8 | u32::from(self.ip_len.swap_bytes()) << 16;
        let second = self.second;
        let third = u32::from_le_bytes([64, ipproto::UDP, 0, 0]);
        let sum = u64::from(first) + u64::from(second) + u64::from(third) + u64::from(src) + u64::from(dst);
        let third = third | u32::from(checksum(sum)) << 16;
        let udp_len = self.ip_len.wrapping_sub(IPV4_LEN as u16).swap_bytes();
        // Its first byte is zero.
        let vni = u64::from(self.vni >> 8);
        [
            self.eth.0,
            u64::from(self.eth.1) | TYPE << 32 | u64::from(first) << 48,
            u64::from(first >> 16) | u64::from(second) << 16 | u64::from(third) << 48,
            u64::from(third >> 16) | u64::from(src) << 16 | u64::from(dst) << 48,
            u64::from(dst >> 16)
                | u64::from(self.sport.swap_bytes()) << 16
                | u64::from(u16::from_le_bytes(config.vxlan_port)) << 32
                | u64::from(udp_len) << 48,
            u64::from(VXLAN_FLAG_VNI) << 16 | vni << 48,
            vni >> 16 | self.inner_dst << 16,
            self.inner_src | TYPE << 48,
        ]
    }
}

/// The Internet checksum of what adds up to `sum` in little-endian words, as it stands in the header.
#[inline(always)]
fn checksum(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

const _: () = assert!(cfg!(target_endian = "little") && WORDS * size_of::<u64>() == INNER_NET);
