//! Into a container on this node.

use aya_ebpf::programs::TcContext;
use dataplane_common::{
    addr::{Mac, NetId},
    drop_reason::DropReason,
    endpoint::Endpoint,
};

use crate::{
    flow, nat,
    parse::Packet,
    verdict::{Action, Verdict},
};

/// `PACKET_HOST` of `<linux/if_packet.h>`: the packet is for whoever receives it.
const PACKET_HOST: u32 = 0;

/// Hands the packet (no tunnel around it any more) to the container behind `to`. A reply of a VIP flow gets the VIP
/// back as its source here, on the client's node, unless the packet was itself just `translated` towards a backend.
#[inline(always)]
pub(crate) fn to_container(
    ctx: &TcContext,
    net: NetId,
    src_mac: Mac,
    to: &Endpoint,
    packet: &Packet,
    translated: bool,
) -> Verdict {
    if !translated && let Some(translation) = flow::reply(ctx, net, packet) {
        nat::rewrite(ctx, packet, &translation)?;
    }
    into_veth(ctx, to.ifindex, to.mac, src_mac)
}

/// Sets the Ethernet addresses and moves the packet through the veth with host index `ifindex`.
#[inline(always)]
pub(crate) fn into_veth(ctx: &TcContext, ifindex: u32, dst: Mac, src: Mac) -> Verdict {
    ctx.store(0, &[dst, src], 0).map_err(|_| DropReason::RewriteFailed)?;
    // The skb was classified by the MAC it arrived with, which was not the receiving interface's.
    ctx.change_type(PACKET_HOST).map_err(|_| DropReason::RewriteFailed)?;
    Ok(Action::Peer(ifindex))
}
