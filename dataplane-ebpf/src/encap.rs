//! VXLAN encapsulation (RFC 7348) that keeps GSO packets whole.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::generated::bpf_get_hash_recalc,
    programs::TcContext,
};
use dataplane_common::{
    addr::{Ip4, Mac, VniBytes},
    config::Config,
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{Endpoint, kind},
    hash,
    headers::{ENCAP_LEN, ETH_LEN, INNER_NET, IPV4_LEN, UDP_LEN, VXLAN_FLAG_VNI, ethertype, ipproto},
};

use crate::{
    maps,
    parse::{self, Fragment, Packet},
    verdict::{self, Action, Verdict},
};

/// `BPF_ADJ_ROOM_ENCAP_L2(14)`: with the VXLAN header counted in (22), small packets pass and every GSO packet is lost.
const ENCAP_L2: u64 = (ETH_LEN as u64) << 56;
const ROOM_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | ENCAP_L2;

/// First of the ports that flows are spread over (the dynamic range of RFC 6335), and how many there are (a power of two).
const SOURCE_PORT_BASE: u16 = 49152;
const SOURCE_PORT_MASK: u32 = 0x3fff;

/// Everything in front of the inner IP header.
#[repr(C)]
pub(crate) struct Headers {
    pub eth: [u8; ETH_LEN],
    pub ip: [u8; IPV4_LEN],
    pub udp: [u8; UDP_LEN],
    pub vxlan_flags: [u8; 4],
    pub vni: [u8; 3],
    pub reserved: u8,
    pub inner_dst: Mac,
    pub inner_src: Mac,
    pub inner_type: [u8; 2],
}

const _: () = assert!(size_of::<Headers>() == INNER_NET && align_of::<Headers>() == 1);

/// Whether the packet, or each segment of a GSO packet, fits the underlay once encapsulated.
#[inline(always)]
pub(crate) fn fits(ctx: &TcContext, config: &Config, packet: &Packet) -> bool {
    network_len(ctx, packet) + ENCAP_LEN as u32 <= u32::from(config.underlay_mtu)
}

/// Length of the packet, or of each segment of a GSO packet, from the IP header on.
#[inline(always)]
pub(crate) fn network_len(ctx: &TcContext, packet: &Packet) -> u32 {
    let gso_size = parse::gso_size(ctx);
    if gso_size == 0 {
        return u32::from(packet.total_len);
    }
    let transport = if packet.proto == ipproto::TCP { u32::from(packet.tcp_len) } else { UDP_LEN as u32 };
    (packet.l4 - packet.net) as u32 + transport + gso_size
}

/// The longest packet that fits a tunnel over this underlay.
#[inline(always)]
pub(crate) fn room(config: &Config) -> u16 {
    config.underlay_mtu.saturating_sub(ENCAP_LEN as u16)
}

/// Whether the packet must not be fragmented and is too big for the way to `to`.
#[inline(always)]
pub(crate) fn exceeds(ctx: &TcContext, to: &Endpoint, packet: &Packet) -> bool {
    packet.dont_fragment && to.kind != kind::LOCAL && maps::config().is_ok_and(|config| !fits(ctx, config, packet))
}

/// The kernel's hash of the flow. To be taken before headers move.
#[inline(always)]
pub(crate) fn kernels_hash(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid.
    unsafe { bpf_get_hash_recalc(ctx.skb.skb) }
}

/// Our own, which XDP has too. All fragments of a datagram have one hash.
#[inline(always)]
pub(crate) fn own_hash(packet: &Packet) -> u32 {
    let whole = packet.fragment == Fragment::Whole;
    let (sport, dport) = if whole { (packet.sport, packet.dport) } else { ([0; 2], [0; 2]) };
    hash::flow(packet.src, packet.dst, sport, dport, packet.proto)
}

/// As [`own_hash`], for callers who have little of the 512 bytes of stack to spare.
#[inline(never)]
pub(crate) fn own_hash_apart(packet: &Packet) -> u32 {
    own_hash(packet)
}

/// Puts outer headers around the packet and sends it to `vtep`. The inner Ethernet header gets the given addresses; the
/// outer one is written by the kernel when it has resolved the next hop.
///
/// Outer: source port from `hash`, ECN copied (RFC 6040 normal mode), DSCP 0, DF, TTL 64, no UDP checksum.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "as a struct they are on the stack, which then is too deep")]
pub(crate) fn encapsulate(
    ctx: &TcContext,
    config: &Config,
    vtep: Ip4,
    vni: VniBytes,
    inner_dst: Mac,
    inner_src: Mac,
    tos: u8,
    hash: u32,
) -> Verdict {
    let ip_len = ctx.len() as usize - ETH_LEN + ENCAP_LEN;
    if ip_len > usize::from(u16::MAX) {
        return Err(DropReason::MtuExceeded);
    }
    ctx.adjust_room(ENCAP_LEN as i32, BPF_ADJ_ROOM_MAC, ROOM_FLAGS).map_err(|_| DropReason::RewriteFailed)?;
    // SAFETY: the buffer is large enough, `Headers` has alignment 1 and any bytes are valid.
    let headers = unsafe { &mut *maps::scratch()?.packet.as_mut_ptr().cast::<Headers>() };
    *headers = Headers {
        eth: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ethertype::IPV4[0], ethertype::IPV4[1]],
        ip: outer_ip(config.vtep, vtep, tos & 0x03, ip_len as u16),
        udp: outer_udp(source_port(hash), config.vxlan_port, (ip_len - IPV4_LEN) as u16),
        vxlan_flags: [VXLAN_FLAG_VNI, 0, 0, 0],
        vni: [vni[1], vni[2], vni[3]],
        reserved: 0,
        inner_dst,
        inner_src,
        inner_type: ethertype::IPV4,
    };
    ctx.store(0, headers, 0).map_err(|_| DropReason::RewriteFailed)?;
    verdict::count(ctx, Counter::Encapsulated);
    Ok(Action::Neigh(config.underlay_ifindex))
}

#[inline(always)]
pub(crate) fn source_port(hash: u32) -> u16 {
    SOURCE_PORT_BASE + ((hash ^ hash >> 16) & SOURCE_PORT_MASK) as u16
}

#[inline(always)]
pub(crate) fn outer_ip(src: Ip4, dst: Ip4, tos: u8, len: u16) -> [u8; IPV4_LEN] {
    const DF: u16 = 0x4000;
    const TTL: u8 = 64;
    let word = |bytes: [u8; 2]| u32::from(u16::from_be_bytes(bytes));
    let mut sum = (0x4500 | u32::from(tos))
        + u32::from(len)
        + u32::from(DF)
        + (u32::from(TTL) << 8 | u32::from(ipproto::UDP))
        + word([src[0], src[1]])
        + word([src[2], src[3]])
        + word([dst[0], dst[1]])
        + word([dst[2], dst[3]]);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let checksum = (!(sum as u16)).to_be_bytes();
    let len = len.to_be_bytes();
    [
        0x45,
        tos,
        len[0],
        len[1],
        0,
        0,
        0x40,
        0,
        TTL,
        ipproto::UDP,
        checksum[0],
        checksum[1],
        src[0],
        src[1],
        src[2],
        src[3],
        dst[0],
        dst[1],
        dst[2],
        dst[3],
    ]
}

#[inline(always)]
pub(crate) fn outer_udp(source: u16, port: [u8; 2], len: u16) -> [u8; UDP_LEN] {
    let source = source.to_be_bytes();
    let len = len.to_be_bytes();
    [source[0], source[1], port[0], port[1], len[0], len[1], 0, 0]
}
