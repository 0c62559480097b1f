//! The host link: the node's own connections to published ports, and those of its containers, come in through a veth
//! pair as those of a client that has the tunnel address; the kernel's connection tracking translates them on the other
//! end ([ADR 10](../../docs/adr/0010-the-host-link.md)).

use dataplane_common::{
    addr::{HOST_MAC, HOST_PEER_MAC},
    config::Config,
    drop_reason::DropReason,
    headers::ipproto,
    mark,
};

use crate::{
    connection, fib,
    parse::Packet,
    reject,
    skb::Skb,
    verdict::{self, Action, Verdict},
};

/// A mesh reply that was found in order leaves the ingress node: towards its client, or into the host link.
#[inline(always)]
pub(crate) fn leave(ctx: &Skb, config: &Config, packet: &Packet) -> Verdict {
    if config.host_ifindex != 0 && packet.src == config.host_ip {
        ctx.store(0, &[HOST_MAC, HOST_PEER_MAC], 0).map_err(|_| DropReason::RewriteFailed)?;
        return Ok(Action::Device(config.host_ifindex));
    }
    mark_reply(ctx, packet);
    fib::route(ctx, config, packet)
}

/// Says to `to_outside` that the packet answers a client.
#[inline(always)]
pub(crate) fn mark_reply(ctx: &Skb, packet: &Packet) {
    if packet.proto == ipproto::UDP {
        ctx.set_mark(mark::MESH_REPLY);
    }
}

/// What the stack would have to judge elsewhere must be answered here: to the stack a packet with one of the node's own
/// addresses as its source is a martian, and the sender would wait in vain.
#[inline(always)]
pub(crate) fn unserved(ctx: &Skb, config: &Config, packet: &Packet) -> Verdict {
    if verdict::ifindex(ctx) != config.host_ifindex {
        return Ok(Action::Pass);
    }
    let reason = if connection::may_open(packet) { DropReason::NoBackend } else { DropReason::MeshNoFlow };
    reject::refuse(ctx, packet, reason)
}
