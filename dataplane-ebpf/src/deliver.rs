//! Into a container on this node.

use aya_ebpf::programs::TcContext;
use dataplane_common::{
    addr::{Mac, NetId},
    drop_reason::DropReason,
    endpoint::Endpoint,
    fragment::{Fragmented, place},
};

use crate::{
    flow, fragment, icmp, maps, nat,
    nat::Translation,
    parse::{Fragment, Packet},
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
    if !translated {
        if icmp::is_error(packet) {
            icmp::to_client(ctx, packet, &net)?;
        } else if packet.fragment == Fragment::Later {
            follow(ctx, net, packet)?;
        } else {
            fragment::begin(packet, net, place::FROM_VIP);
            if let Some(to) = flow::reply(ctx, net, packet) {
                let decided = Fragmented { src: to.src, dst: to.dst, ..Fragmented::default() };
                fragment::decided(ctx, packet, net, place::FROM_VIP, decided)?;
                nat::rewrite(ctx, packet, &to)?;
            }
        }
    }
    into_veth(ctx, to.ifindex, to.mac, src_mac)
}

/// A later fragment of a VIP flow's reply gets the VIP as its source, as its first did.
#[inline(never)]
fn follow(ctx: &TcContext, net: NetId, packet: &Packet) -> Result<(), DropReason> {
    if !fragment::recall(ctx, packet, net, place::FROM_VIP) {
        return Ok(());
    }
    let scratch = maps::scratch()?;
    let (src, dst) = (scratch.fragmented.src, scratch.fragmented.dst);
    scratch.new.to = Translation { src, dst, sport: packet.sport, dport: packet.dport };
    nat::rewrite(ctx, packet, &scratch.new.to)
}

/// Sets the Ethernet addresses and moves the packet through the veth with host index `ifindex`.
#[inline(always)]
pub(crate) fn into_veth(ctx: &TcContext, ifindex: u32, dst: Mac, src: Mac) -> Verdict {
    ctx.store(0, &[dst, src], 0).map_err(|_| DropReason::RewriteFailed)?;
    // The skb was classified by the MAC it arrived with, which was not the receiving interface's.
    ctx.change_type(PACKET_HOST).map_err(|_| DropReason::RewriteFailed)?;
    Ok(Action::Peer(ifindex))
}
