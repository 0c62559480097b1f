//! Into a container on this node.

use dataplane_common::{
    addr::{Mac, NetId},
    drop_reason::DropReason,
    endpoint::Endpoint,
    fragment::{Fragmented, place},
};
use dataplane_core::PACKET_HOST;

use crate::{
    follow, fragment, icmp,
    nat::{self, Translation},
    parse::{Fragment, Packet},
    scratch::scratch,
    skb::Skb,
    verdict::{Action, Verdict},
};

/// Whether a packet that goes into a container may have to be translated back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It was just translated towards a backend.
    Translated,
    /// It comes from a task that VIPs may lead to, or nobody has looked: it may be a reply.
    Backend,
    /// It comes from anybody else. What was decided about a datagram's first piece still holds for the later ones, and
    /// an ICMP error is judged by what it quotes.
    Other,
}

/// The origin of an untranslated packet.
#[inline(always)]
pub(crate) fn origin(from_backend: bool) -> Origin {
    if from_backend { Origin::Backend } else { Origin::Other }
}

/// Hands the packet (no tunnel around it any more) to the container behind `to`. A reply of a VIP flow gets the VIP
/// back as its source here, on the client's node.
#[inline(always)]
pub(crate) fn to_container(
    ctx: &Skb,
    net: NetId,
    src_mac: Mac,
    to: &Endpoint,
    packet: &Packet,
    origin: Origin,
) -> Verdict {
    if origin != Origin::Translated {
        restore(ctx, net, packet, origin == Origin::Backend)?;
    }
    into_veth(ctx, to.ifindex, to.mac, src_mac)
}

/// Gives the reply of a VIP flow, on its way into the client's container, the VIP back as its source; likewise its
/// fragments and ICMP errors about it. `from_backend`: the sender is a task that VIPs may lead to; from anybody else
/// nothing whole and no first fragment is a reply.
#[inline(always)]
pub(crate) fn restore(ctx: &Skb, net: NetId, packet: &Packet, from_backend: bool) -> Result<(), DropReason> {
    if icmp::is_error(packet) {
        return icmp::to_client(ctx, packet, &net);
    }
    if packet.fragment == Fragment::Later {
        return follow(ctx, net, packet);
    }
    fragment::begin(packet, net, place::FROM_VIP);
    if !from_backend {
        return Ok(());
    }
    let Some(to) = follow::reply(ctx, net, packet) else { return Ok(()) };
    let decided = Fragmented { src: to.src, dst: to.dst, ..Fragmented::default() };
    fragment::decided(ctx, packet, net, place::FROM_VIP, decided)?;
    nat::rewrite(ctx, packet, &to)
}

/// A later fragment of a VIP flow's reply gets the VIP as its source, as its first did.
#[inline(never)]
fn follow(ctx: &Skb, net: NetId, packet: &Packet) -> Result<(), DropReason> {
    if !fragment::recall(ctx, packet, net, place::FROM_VIP) {
        return Ok(());
    }
    let scratch = scratch()?;
    let (src, dst) = (scratch.fragmented.src, scratch.fragmented.dst);
    scratch.new.to = Translation { src, dst, sport: packet.sport, dport: packet.dport };
    nat::rewrite(ctx, packet, &scratch.new.to)
}

/// Sets the Ethernet addresses and moves the packet through the veth with host index `ifindex`.
#[inline(always)]
pub(crate) fn into_veth(ctx: &Skb, ifindex: u32, dst: Mac, src: Mac) -> Verdict {
    ctx.store(0, &[dst, src], 0).map_err(|_| DropReason::RewriteFailed)?;
    // The skb was classified by the MAC it arrived with, which was not the receiving interface's.
    ctx.change_type(PACKET_HOST).map_err(|_| DropReason::RewriteFailed)?;
    Ok(Action::Peer(ifindex))
}
