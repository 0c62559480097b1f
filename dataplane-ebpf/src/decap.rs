//! Taking a VXLAN tunnel off.

use aya_ebpf::{
    bindings::{BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    programs::TcContext,
};
use dataplane_common::{
    drop_reason::DropReason,
    headers::{ENCAP_LEN, ETH_LEN, IPV4_LEN},
};

use crate::parse::Packet;

const ECN_MASK: u8 = 0x03;
const CE: u8 = 0x03;

/// Removes outer IP, UDP, VXLAN and inner Ethernet header; the outer Ethernet header stays in front and is overwritten
/// by whoever delivers. Moves the packet's offsets.
///
/// The kernel goes on to call the skb "encapsulated": it must not be encapsulated again or change its tail.
/// No DECAP flag: they came with 6.6 and IPv4 in IPv4 needs none.
#[inline(always)]
pub(crate) fn decapsulate(ctx: &TcContext, outer_tos: u8, inner: &mut Packet) -> Result<(), DropReason> {
    ctx.adjust_room(-(ENCAP_LEN as i32), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO as u64)
        .map_err(|_| DropReason::RewriteFailed)?;
    inner.l4 = ETH_LEN + (inner.l4 - inner.net).max(IPV4_LEN);
    inner.net = ETH_LEN;
    if congested(outer_tos, inner.tos) {
        mark_congestion(ctx, inner)?;
    }
    Ok(())
}

/// Whether the tunnel has seen congestion that the inner packet does not know of.
#[inline(always)]
pub(crate) fn congested(outer_tos: u8, inner_tos: u8) -> bool {
    outer_tos & ECN_MASK == CE && inner_tos & ECN_MASK != CE
}

/// RFC 6040 section 4.2: congestion seen by the tunnel reaches the inner packet, or drops it if it cannot carry it.
#[inline(always)]
fn mark_congestion(ctx: &TcContext, packet: &mut Packet) -> Result<(), DropReason> {
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
