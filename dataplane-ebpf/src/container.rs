//! Hook `from_container`: a packet leaves a container through its overlay interface.
//!
//! Anti-spoofing, then: ARP answered, group traffic to the slow path, VIPs translated, and known destinations delivered
//! or encapsulated.

use dataplane_common::{
    drop_reason::DropReason,
    endpoint::{Endpoint, EndpointKey, Local, kind, local_flag::VIP_BACKEND},
    fragment::{Fragmented, place},
    headers::{ETH_LEN, ethertype, ipproto},
};

use crate::{
    arp,
    deliver::{self, Origin},
    direct, echo, encap, fragment, group, icmp,
    maps::{self, config},
    parse::{self, Eth, Fragment, Packet},
    reject,
    scratch::scratch,
    skb::{self, Skb},
    verdict::{self, Action, Verdict},
    vip,
};

/// Entry of the hook.
#[inline(always)]
pub(crate) fn handle(ctx: &Skb) -> Verdict {
    let local = maps::local(verdict::ifindex(ctx)).ok_or(DropReason::UnknownInterface)?;
    let eth = parse::eth(ctx, 0)?;
    if eth.src != local.mac {
        return Err(DropReason::SpoofedMac);
    }
    // Containers have no VLANs, and the tag would be that of the outer frame.
    if parse::in_vlan(ctx) {
        return Err(DropReason::UnsupportedProtocol);
    }
    match eth.ethertype {
        ethertype::IPV4 => ipv4(ctx, local, &eth),
        ethertype::ARP => arp::handle(ctx, local, &eth.dst),
        // A second tag, behind one with VID 0, would hide the addresses from every check.
        ethertype::VLAN | ethertype::QINQ => Err(DropReason::UnsupportedProtocol),
        _ => group::slow_path(ctx, local, &eth.dst),
    }
}

#[inline(always)]
fn ipv4(ctx: &Skb, local: &Local, eth: &Eth) -> Verdict {
    let packet = skb::outer(ctx, ETH_LEN)?;
    if packet.src != local.ip {
        return Err(DropReason::SpoofedIp);
    }
    if icmp::is_hidden(packet, eth.is_group()) {
        return Err(DropReason::IcmpUnmatched);
    }
    if eth.is_group() || skb::has_source_route(ctx, packet) {
        return group::slow_path(ctx, local, &eth.dst);
    }
    let Some(endpoint) = maps::endpoint(&EndpointKey { net: local.net, ip: packet.dst }) else {
        return group::slow_path(ctx, local, &eth.dst);
    };
    match endpoint.kind {
        kind::VIP if icmp::is_error(packet) => {
            let backend = icmp::to_backend(ctx, packet, local).ok_or(DropReason::IcmpUnmatched)?;
            icmp::translate(ctx, packet, &local.net)?;
            hand_over(ctx, local, backend, packet, true)
        }
        kind::VIP if packet.proto == ipproto::ICMP => vip::ping(ctx, endpoint, packet),
        kind::VIP => match vip::translate(ctx, local, endpoint, packet) {
            Ok(backend) => hand_over(ctx, local, backend, packet, true),
            Err(DropReason::MtuExceeded) => too_big_for_backend(ctx, local, packet),
            Err(reason) if vip::is_refusal(reason) => reject::refuse(ctx, packet, reason),
            Err(reason) => Err(reason),
        },
        kind::GATEWAY => echo::answer(ctx, packet),
        _ if direct::concerns(endpoint, packet) && !encap::exceeds(ctx, endpoint, packet) => {
            let translated = direct::translate(ctx, local, endpoint, packet)?;
            hand_over(ctx, local, endpoint, packet, translated)
        }
        _ => hand_over(ctx, local, endpoint, packet, false),
    }
}

/// Says what fits the way to the backend that [`vip::translate`] has found.
#[inline(always)]
fn too_big_for_backend(ctx: &Skb, local: &Local, packet: &Packet) -> Verdict {
    let config = config()?;
    let ip = scratch()?.new.to.dst;
    let backend = maps::endpoint(&EndpointKey { net: local.net, ip }).ok_or(DropReason::BackendGone)?;
    reject::too_big(ctx, packet, encap::room(config, &backend.vtep))
}

/// To an endpoint on this node or another. `translated`: the packet was already rewritten towards it.
#[inline(always)]
fn hand_over(ctx: &Skb, local: &Local, to: &Endpoint, packet: &Packet, translated: bool) -> Verdict {
    if to.kind == kind::LOCAL {
        let origin = if translated { Origin::Translated } else { deliver::origin(local.flags & VIP_BACKEND != 0) };
        return deliver::to_container(ctx, local.net, local.mac, to, packet, origin);
    }
    let config = config()?;
    let fits = encap::fits(ctx, config, &to.vtep, packet);
    if !fits && packet.dont_fragment {
        // Who has translated the packet has looked before.
        return if translated {
            Err(DropReason::MtuExceeded)
        } else {
            reject::too_big(ctx, packet, encap::room(config, &to.vtep))
        };
    }
    if !fits || encap::is_packet_list(ctx) || (packet.fragment != Fragment::Whole && behind(ctx, local, packet)) {
        fragment::decided(ctx, packet, local.net, place::SLOW, Fragmented::default())?;
        // The bridge finds the vxlan device, which fragments the outer packet.
        ctx.store(0, &to.mac, 0).map_err(|_| DropReason::RewriteFailed)?;
        return Ok(Action::SlowPath);
    }
    encap::encapsulate(ctx, config, to.vtep, to.vni, to.mac, local.mac, packet.tos, encap::kernels_hash(ctx))
}

/// Whether a fragment that fits comes behind a first one that did not: it must not overtake that on the fast path, for
/// it is no use to a VIP's client before.
#[inline(always)]
fn behind(ctx: &Skb, local: &Local, packet: &Packet) -> bool {
    fragment::begin(packet, local.net, place::SLOW);
    packet.fragment == Fragment::Later && fragment::recall(ctx, packet, local.net, place::SLOW)
}
