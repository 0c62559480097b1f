//! Taking a VXLAN tunnel off.

use aya_ebpf::{
    bindings::{
        BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::generated::bpf_csum_level,
};
use dataplane_common::{
    drop_reason::DropReason,
    headers::{ENCAP_LEN, ETH_LEN, IPV4_LEN, ipproto},
};

use crate::{parse::Packet, skb::Skb};

const ECN_MASK: u8 = 0x03;
const CE: u8 = 0x03;

/// Removes outer IP, UDP, VXLAN and inner Ethernet header; the outer Ethernet header stays in front and is overwritten
/// by whoever delivers. Moves the packet's offsets.
///
/// The kernel goes on to call the skb "encapsulated": it must not be encapsulated again or change its tail, and a UDP
/// GSO packet would be cut as if the tunnel were still there: it is refused. No released kernel has a flag against that
/// (those for `DECAP_L3` change the protocol only, and IPv4 in IPv4 needs none); `BPF_F_ADJ_ROOM_DECAP_L4_UDP` will be
/// one.
// VERIFIER(6.18): not inlined, for LLVM then joins two ways of the caller, one of which holds a pointer where the other
// has a number.
#[inline(never)]
pub(crate) fn decapsulate(ctx: &Skb, outer_tos: u8, inner: &mut Packet) -> Result<(), DropReason> {
    if needs_kernel(ctx, inner) {
        return Err(DropReason::UnsupportedGso);
    }
    ctx.adjust_room(-(ENCAP_LEN as i32), BPF_ADJ_ROOM_MAC, ROOM_FLAGS).map_err(|_| DropReason::RewriteFailed)?;
    verified(ctx);
    inner.l4 = ETH_LEN + (inner.l4 - inner.net).max(IPV4_LEN);
    inner.net = ETH_LEN;
    if congested(outer_tos, inner.tos) {
        mark_congestion(ctx, inner)?;
    }
    Ok(())
}

/// Whether what is in the tunnel is several datagrams of UDP or chunks of SCTP in one GSO packet, or the first of
/// several frames, which only the kernel's own device can take out. (A total length of 0 is that of more than 64 kB of
/// TCP.)
#[inline(always)]
pub(crate) fn needs_kernel(ctx: &Skb, inner: &Packet) -> bool {
    ctx.gso_size() != 0
        && (inner.proto != ipproto::TCP
            || (inner.total_len != 0 && inner.net as u32 + u32::from(inner.total_len) < ctx.len()))
}

/// `NO_CSUM_RESET`: the helper would forget what the NIC has verified; [`verified`] keeps what still holds.
const ROOM_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;

/// Takes the outer UDP checksum off what the NIC has verified, as a tunnel device does: of so many checksums from the
/// outside in, one less is left, and none if it was the only one. No other state of a checksum is changed by this; the
/// helper has corrected a sum of the whole packet (`CHECKSUM_COMPLETE`) already.
#[inline(always)]
fn verified(ctx: &Skb) {
    // SAFETY: plain helper call on a valid context; it fails where the NIC has verified nothing, which is fine.
    unsafe { bpf_csum_level(ctx.skb.skb, BPF_CSUM_LEVEL_DEC.into()) };
}

/// Whether the tunnel has seen congestion that the inner packet does not know of.
#[inline(always)]
pub(crate) fn congested(outer_tos: u8, inner_tos: u8) -> bool {
    outer_tos & ECN_MASK == CE && inner_tos & ECN_MASK != CE
}

/// RFC 6040 section 4.2: congestion seen by the tunnel reaches the inner packet, or drops it if it cannot carry it.
#[inline(always)]
fn mark_congestion(ctx: &Skb, packet: &mut Packet) -> Result<(), DropReason> {
    if packet.tos & ECN_MASK == 0 {
        return Err(DropReason::EcnViolation);
    }
    let failed = |_| DropReason::RewriteFailed;
    let tos = packet.tos | CE;
    let from = u64::from(u16::from_ne_bytes([0, packet.tos]));
    let to = u64::from(u16::from_ne_bytes([0, tos]));
    ctx.l3_csum_replace(packet.net + 10, from, to, 2).map_err(failed)?;
    ctx.store(packet.net + 1, &tos, 0).map_err(failed)?;
    packet.tos = tos;
    Ok(())
}
