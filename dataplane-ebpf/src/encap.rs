//! VXLAN encapsulation (RFC 7348) that keeps GSO packets whole.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::generated::{bpf_get_hash_recalc, bpf_get_prandom_u32},
};
use dataplane_common::{
    addr::{Ip4, Mac, VniBytes},
    config::{Config, node_flag},
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{Endpoint, kind},
    hash,
    headers::{ENCAP_LEN, ETH_LEN, ipproto},
};

use crate::{
    fib::{self, Ends, Way},
    global::{self, code, context, outcome},
    headers::{ATOMIC, Headers, WORDS, fragmentable},
    maps, mss, next_hop,
    parse::{Fragment, Packet},
    path,
    scratch::{Buffer, scratch},
    skb::{self, Skb},
    verdict::{self, Action, Verdict},
};

/// `BPF_ADJ_ROOM_ENCAP_L2(14)`: with the VXLAN header counted in (22), small packets pass and every GSO packet is lost.
const ENCAP_L2: u64 = (ETH_LEN as u64) << 56;
const ROOM_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | ENCAP_L2;

/// First of the ports that flows are spread over (the dynamic range of RFC 6335), and how many there are (a power of
/// two).
const SOURCE_PORT_BASE: u16 = 49152;
const SOURCE_PORT_MASK: u32 = 0x3fff;

/// Whether only the kernel's own tunnel device can carry the packet.
#[inline(always)]
pub(crate) fn is_packet_list(ctx: &Skb) -> bool {
    ctx.gso_size() == skb::GSO_BY_FRAGS
}

/// Whether the packet, or each segment of a GSO packet, fits the path to `vtep` once encapsulated.
#[inline(always)]
pub(crate) fn fits(ctx: &Skb, config: &Config, vtep: &Ip4, packet: &Packet) -> bool {
    path::takes(config, vtep, skb::network_len(ctx, packet) + ENCAP_LEN as u32)
}

/// The longest packet that fits the tunnel to `vtep`.
#[inline(always)]
pub(crate) fn room(config: &Config, vtep: &Ip4) -> u16 {
    path::mtu(config, vtep).saturating_sub(ENCAP_LEN as u16)
}

/// Lowers the MSS option of a SYN so that full segments fit the tunnel to `peer`, or for a task of this node the
/// underlay, which may take less than the 1500 bytes that the container's interface claims.
///
/// Each end of the tunnel knows its own way: N2 lowers what the client says in its SYN, which limits the replies, and
/// the task's SYN-ACK, in case the way is the same both ways; N1 lowers the SYN-ACK by its own way to N2. For a backend
/// on a node without Hiveway N1 lowers both.
#[inline(always)]
pub(crate) fn clamp_mss(ctx: &Skb, config: &Config, packet: &Packet, peer: &Ip4) -> Result<(), DropReason> {
    outcome(mss_clamp(ctx.skb.skb, config, packet, peer))
}

/// Global, see [`global`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn mss_clamp(ctx: *mut __sk_buff, config: *const Config, packet: *const Packet, peer: *const Ip4) -> u32 {
    // SAFETY: `clamp_mss` passes references.
    let given = unsafe { (config.as_ref(), packet.as_ref(), peer.as_ref()) };
    let (Some(config), Some(packet), Some(peer)) = given else { return global::NULL };
    let peer = global::key(peer);
    let most = if peer == config.vtep { config.underlay_mtu } else { room(config, &peer) };
    code(mss::clamp(&context(ctx), packet, most))
}

/// Whether the packet must not be fragmented and is too big for the way to `to`.
#[inline(always)]
pub(crate) fn exceeds(ctx: &Skb, to: &Endpoint, packet: &Packet) -> bool {
    packet.dont_fragment
        && to.kind != kind::LOCAL
        && maps::config().is_ok_and(|config| !fits(ctx, config, &to.vtep, packet))
}

/// The kernel's hash of the flow. To be taken before headers move.
#[inline(always)]
pub(crate) fn kernels_hash(ctx: &Skb) -> u32 {
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
/// outer one those of the next hop that the agent keeps, or the kernel writes them when it has resolved one.
///
/// Outer: source port from `hash`; the rest as [`Headers::words`] says.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "as a struct they are on the stack, which then is too deep")]
pub(crate) fn encapsulate(
    ctx: &Skb,
    config: &Config,
    vtep: Ip4,
    vni: VniBytes,
    inner_dst: Mac,
    inner_src: Mac,
    tos: u8,
    hash: u32,
) -> Verdict {
    let gso_size = ctx.gso_size();
    if gso_size == skb::GSO_BY_FRAGS {
        return Err(DropReason::UnsupportedGso);
    }
    let ip_len = ctx.len() - ETH_LEN as u32 + ENCAP_LEN as u32;
    // Of a GSO packet every segment gets a length of its own when it is cut: here or, where the devices on the way take
    // more than 64 kB at once (BIG TCP), further on.
    if ip_len > u32::from(u16::MAX) && gso_size == 0 {
        return Err(DropReason::MtuExceeded);
    }
    let out = uplink(ctx, config, &vtep, hash)?;
    ctx.adjust_room(ENCAP_LEN as i32, BPF_ADJ_ROOM_MAC, ROOM_FLAGS).map_err(|_| DropReason::RewriteFailed)?;
    let second = if may_be_fragmented(config, &vtep) { fragmentable(random()) } else { ATOMIC };
    write_headers(ctx, config, vtep, vni, inner_dst, inner_src, tos, ip_len, second, hash)?;
    verdict::count(ctx, Counter::Encapsulated);
    Ok(next_hop::towards(ctx, vtep, out))
}

/// The interface that a tunnel's packet with this hash leaves through.
#[inline(always)]
pub(crate) fn uplink(ctx: &Skb, config: &Config, vtep: &Ip4, hash: u32) -> Result<u32, DropReason> {
    match config.underlay_ifindex {
        0 => egress(ctx, config, vtep, source_port(hash)),
        only => Ok(only),
    }
}

/// Writes all headers of a tunnelled frame up to the inner Ethernet header; `ip_len`: of the outer IP packet; `second`:
/// as in [`Headers`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "as for `encapsulate`")]
pub(crate) fn write_headers(
    ctx: &Skb,
    config: &Config,
    vtep: Ip4,
    vni: VniBytes,
    inner_dst: Mac,
    inner_src: Mac,
    tos: u8,
    ip_len: u32,
    second: u32,
    hash: u32,
) -> Result<(), DropReason> {
    let headers = Headers {
        // Later: see `encapsulate`.
        eth: (0, 0),
        vtep: u32::from_le_bytes(vtep),
        tos,
        ip_len: u16::try_from(ip_len).unwrap_or(0),
        second,
        sport: source_port(hash),
        vni: u32::from_le_bytes(vni),
        inner_dst: of_mac(inner_dst),
        inner_src: of_mac(inner_src),
    };
    const { assert!(size_of::<[u64; WORDS]>() <= size_of::<Buffer>()) };
    let words = headers.words(config, u32::from_le_bytes(config.underlay_ip));
    let buffer = scratch()?.packet.0.as_mut_ptr().cast::<[u64; WORDS]>();
    // SAFETY: the buffer is large enough and aligned; any bytes are valid.
    unsafe { buffer.write(words) };
    // SAFETY: as above.
    ctx.store(0, unsafe { &*buffer }, 0).map_err(|_| DropReason::RewriteFailed)
}

/// Whether routers may fragment what goes to `vtep`, as they may the kernel's own tunnels: no probes find out what a
/// path to a node without Hiveway takes, and where no router says so either, larger packets would be lost for good.
#[inline(always)]
fn may_be_fragmented(config: &Config, vtep: &Ip4) -> bool {
    config.flags & node_flag::STOCK_NODES != 0 && maps::is_stock(vtep)
}

fn random() -> u32 {
    // SAFETY: takes nothing, and returns a number.
    unsafe { bpf_get_prandom_u32() }
}

/// The uplink that the route to `vtep` leads through; where it has several next hops, by the tunnel's ports if the node
/// spreads by those (`net.ipv4.fib_multipath_hash_policy`).
// Not inlined: nodes with one uplink never ask, and callers have little of the 512 bytes of stack to spare.
#[inline(never)]
fn egress(ctx: &Skb, config: &Config, vtep: &Ip4, sport: u16) -> Result<u32, DropReason> {
    // No length: the packet has been compared with the smallest MTU of the uplinks.
    let ends = Ends {
        src: config.underlay_ip,
        dst: *vtep,
        proto: ipproto::UDP,
        sport,
        dport: u16::from_be_bytes(config.vxlan_port),
    };
    match fib::ask(ctx, &ends, 0)? {
        Way::Interface { index, .. } => Ok(index),
        Way::TooNarrow(_) => Err(DropReason::MtuExceeded),
        Way::None => Err(DropReason::NoRoute),
    }
}

#[inline(always)]
pub(crate) fn source_port(hash: u32) -> u16 {
    SOURCE_PORT_BASE + ((hash ^ hash >> 16) & SOURCE_PORT_MASK) as u16
}

/// A MAC in the lower six bytes of a word.
#[inline(always)]
fn of_mac([a, b, c, d, e, f]: Mac) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// Leaves a mesh packet to the kernel's vxlan device of the ingress network, which fragments the outer packet.
#[inline(always)]
pub(crate) fn by_kernel(ctx: &Skb, config: &Config, dst: Mac, src: Mac) -> Verdict {
    if config.ingress_vxlan_ifindex == 0 {
        return Err(DropReason::MtuExceeded);
    }
    ctx.store(0, &[dst, src], 0).map_err(|_| DropReason::RewriteFailed)?;
    verdict::count(ctx, Counter::SlowPath);
    Ok(Action::Device(config.ingress_vxlan_ifindex))
}
