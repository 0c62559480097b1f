//! The headers of a tunnelled client's packet: what `encap::encapsulate` writes, in words.

use dataplane_common::{
    addr::{NODE_MAC_PREFIX, TASK_MAC_PREFIX},
    config::Config,
    hash,
    headers::{INNER_NET, IPV4_LEN, VXLAN_FLAG_VNI, ethertype, ipproto},
};

use super::{
    access::{Part, half, word},
    head::Head,
    hop::Hop,
};
use crate::encap;

const WORDS: usize = INNER_NET / size_of::<u64>();

/// What differs between packets of one node.
pub(super) struct Tunnel {
    /// Backend's node.
    pub vtep: u32,
    /// Backend's ingress address.
    pub task: u32,
    /// Length of the outer IP packet.
    pub ip_len: u16,
}

impl Part<INNER_NET> {
    /// Writes all headers in front of the inner IP header.
    #[inline(always)]
    pub(super) fn put_headers(self, config: &Config, hop: &Hop, tunnel: &Tunnel, inner: &Head) {
        let words = headers(config, hop, tunnel, inner);
        self.put_eight::<0>(words[0]);
        self.put_eight::<8>(words[1]);
        self.put_eight::<16>(words[2]);
        self.put_eight::<24>(words[3]);
        self.put_eight::<32>(words[4]);
        self.put_eight::<40>(words[5]);
        self.put_eight::<48>(words[6]);
        self.put_eight::<56>(words[7]);
    }
}

#[inline(always)]
fn headers(config: &Config, hop: &Hop, tunnel: &Tunnel, inner: &Head) -> [u64; WORDS] {
    const TYPE: u64 = u16::from_le_bytes(ethertype::IPV4) as u64;
    const TASK: u64 = u16::from_le_bytes(TASK_MAC_PREFIX) as u64;
    const NODE: u64 = u16::from_le_bytes(NODE_MAC_PREFIX) as u64;
    let (src, dst) = (word(&config.vtep), tunnel.vtep);
    // Version, header length and ECN; no identification, DF; TTL 64.
    let first = 0x45 | u32::from(inner.tos & 0x03) << 8 | u32::from(tunnel.ip_len.swap_bytes()) << 16;
    let second = u32::from_le_bytes([0, 0, 0x40, 0]);
    let third = u32::from_le_bytes([64, ipproto::UDP, 0, 0]);
    let checksum = checksum(u64::from(first) + u64::from(second) + u64::from(third) + u64::from(src) + u64::from(dst));
    let third = third | u32::from(checksum) << 16;
    let sport = encap::source_port(hash::flow_of_words(inner.src, inner.dst, inner.ports, inner.proto)).swap_bytes();
    let udp_len = (tunnel.ip_len - IPV4_LEN as u16).swap_bytes();
    // Its first byte is zero.
    let vni = u64::from(word(&config.mesh_vni) >> 8);
    [
        hop.first,
        u64::from(hop.second) | TYPE << 32 | u64::from(first) << 48,
        u64::from(first >> 16) | u64::from(second) << 16 | u64::from(third) << 48,
        u64::from(third >> 16) | u64::from(src) << 16 | u64::from(dst) << 48,
        u64::from(dst >> 16)
            | u64::from(sport) << 16
            | u64::from(half(&config.vxlan_port)) << 32
            | u64::from(udp_len) << 48,
        u64::from(VXLAN_FLAG_VNI) << 16 | vni << 48,
        vni >> 16 | TASK << 16 | u64::from(tunnel.task) << 32,
        NODE | u64::from(src) << 16 | TYPE << 48,
    ]
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
