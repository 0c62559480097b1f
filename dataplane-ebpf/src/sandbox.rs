//! Hooks `from_sandbox` and `to_sandbox`: a container's own interface on a network that the engine carries, in the
//! container's namespace. Connections to VIPs are translated before the engine's bridge, tunnel and encryption see
//! them; everything else passes as it is. Nothing is checked here that the engine does not check, no sender above all.
//!
//! What goes back to the container (an ARP answer, a reset) comes in through the same interface, past `to_sandbox`.

use dataplane_common::{
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{Endpoint, EndpointKey, Local, kind, local_flag},
    headers::{ETH_LEN, ethertype, ipproto},
    mark::SANDBOX_ID,
};

use crate::{
    arp, connection, deliver, direct, flow, icmp, maps,
    parse::{self, Eth, Fragment, Packet},
    reject,
    skb::{self, Skb},
    succession,
    verdict::{self, Action, Verdict},
    vip,
};

/// Entry of `from_sandbox`, where packets leave the container.
#[inline(always)]
pub(crate) fn from(ctx: &Skb) -> Verdict {
    let Some(local) = local(ctx) else { return Ok(Action::Pass) };
    let Ok(eth) = parse::eth(ctx, 0) else { return Ok(Action::Pass) };
    match eth.ethertype {
        ethertype::IPV4 if !eth.is_group() => match ipv4(ctx, local, &eth) {
            // What we do not know the engine's own balancer may know: connections that are older than the takeover.
            Err(DropReason::IcmpUnmatched) => Ok(Action::Pass),
            Err(DropReason::NoFlow) if local.flags & local_flag::NO_BALANCER == 0 => Ok(Action::Pass),
            verdict => verdict,
        },
        ethertype::ARP if local.flags & local_flag::LEAVING == 0 => arp::for_vip(ctx, local),
        _ => Ok(Action::Pass),
    }
}

#[inline(always)]
fn ipv4(ctx: &Skb, local: &Local, eth: &Eth) -> Verdict {
    let Ok(packet) = skb::outer(ctx, ETH_LEN) else { return Ok(Action::Pass) };
    if skb::has_source_route(ctx, packet) {
        return Ok(Action::Pass);
    }
    let Some(endpoint) = maps::endpoint(&EndpointKey { net: local.net, ip: packet.dst }) else {
        return Ok(Action::Pass);
    };
    if endpoint.kind != kind::VIP {
        if direct::concerns(endpoint, packet) {
            direct::translate(ctx, local, endpoint, packet)?;
        }
        return Ok(Action::Pass);
    }
    if icmp::is_error(packet) {
        let backend = icmp::to_backend(ctx, packet, local).ok_or(DropReason::IcmpUnmatched)?;
        icmp::translate(ctx, packet, &local.net)?;
        return hand_over(ctx, local, endpoint, backend, eth);
    }
    if local.flags & local_flag::LEAVING != 0 && !under_way(local, packet) {
        return Ok(Action::Pass);
    }
    if packet.proto == ipproto::ICMP {
        return vip::ping(ctx, endpoint, packet);
    }
    match vip::find(ctx, local, endpoint, packet) {
        Ok(backend) => {
            vip::rewrite(ctx, local, backend, packet)?;
            hand_over(ctx, local, endpoint, backend, eth)
        }
        Err(DropReason::NoFlow) if local.flags & local_flag::NO_BALANCER == 0 => Err(DropReason::NoFlow),
        Err(reason) if vip::is_refusal(reason) => reject::refuse(ctx, packet, reason),
        Err(reason) => Err(reason),
    }
}

/// Whether `packet`, to a VIP, belongs to a connection that was opened before.
#[inline(never)]
fn under_way(local: &Local, packet: &Packet) -> bool {
    if packet.fragment == Fragment::Later {
        return true;
    }
    flow::get(&connection::flow_key(local.net, packet)).is_some_and(|known| !succession::replaces(packet, known))
}

/// Sends a translated packet, which was for `vip`, on its way to `backend`.
#[inline(always)]
fn hand_over(ctx: &Skb, local: &Local, vip: &Endpoint, backend: &Endpoint, eth: &Eth) -> Verdict {
    let failed = |_| DropReason::RewriteFailed;
    if backend.mac == local.mac {
        // A bridge does not send a frame back to where it came from.
        ctx.store(0, &[local.mac, vip.mac], 0).map_err(failed)?;
        verdict::count(ctx, Counter::Delivered);
        return Ok(Action::Reply(verdict::ifindex(ctx)));
    }
    if backend.vni == local.vni {
        ctx.store(0, &backend.mac, 0).map_err(failed)?;
    } else if eth.dst == vip.mac {
        // The backend is in another subnet of the network, and the VIP is not: only the gateway's MAC leads there, and
        // the packet does not have it.
        return Err(DropReason::NoRoute);
    }
    Ok(Action::Pass)
}

/// Entry of `to_sandbox`, where packets come in.
#[inline(always)]
pub(crate) fn to(ctx: &Skb) -> Verdict {
    let Some(local) = local(ctx) else { return Ok(Action::Pass) };
    if let Some(packet) = skb::from_outside(ctx)
        && packet.dst == local.ip
    {
        deliver::restore(ctx, local.net, packet, true)?;
    }
    Ok(Action::Pass)
}

/// Whose interface it is: the trampoline has left its id. `None` also for frames that carry a VLAN tag beside the
/// packet, which would look like others.
#[inline(always)]
fn local(ctx: &Skb) -> Option<&'static Local> {
    // SAFETY: the context pointer is valid for the program's run.
    let id = unsafe { (*ctx.skb.skb).cb[SANDBOX_ID] };
    if parse::in_vlan(ctx) { None } else { maps::local(id) }
}
