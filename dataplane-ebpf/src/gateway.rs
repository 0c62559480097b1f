//! Hook `from_gateway`: a packet leaves a container through its interface on the gateway bridge: towards the outside,
//! or as the answer to a client of the routing mesh.

use dataplane_common::{
    config::Config,
    drop_reason::DropReason,
    endpoint::Local,
    headers::{ETH_LEN, ethertype, ipproto},
};

use crate::{
    arp,
    maps::{self, config},
    mesh_backend,
    parse::{self, Packet},
    skb::{self, Skb},
    verdict::{self, Action, Verdict},
};

/// Entry of the hook.
#[inline(always)]
pub(crate) fn handle(ctx: &Skb) -> Verdict {
    let local = maps::local(verdict::ifindex(ctx)).ok_or(DropReason::UnknownInterface)?;
    let eth = parse::eth(ctx, 0)?;
    if eth.src != local.mac {
        return Err(DropReason::SpoofedMac);
    }
    // Containers have no VLANs, and the tag would stay with the packet on its way out.
    if parse::in_vlan(ctx) {
        return Err(DropReason::UnsupportedProtocol);
    }
    match eth.ethertype {
        ethertype::IPV4 => ipv4(ctx, local),
        ethertype::ARP => arp::check_sender(ctx, local).map(|_| Action::Pass),
        // A second tag, behind one with VID 0, would hide the addresses from every check.
        ethertype::VLAN | ethertype::QINQ => Err(DropReason::UnsupportedProtocol),
        _ => Ok(Action::Pass),
    }
}

#[inline(always)]
fn ipv4(ctx: &Skb, local: &Local) -> Verdict {
    let packet = skb::outer(ctx, ETH_LEN)?;
    if packet.src != local.ip {
        return Err(DropReason::SpoofedIp);
    }
    let config = config()?;
    if forges_tunnel(config, packet) {
        return Err(DropReason::ForgedTunnel);
    }
    if skb::has_source_route(ctx, packet) {
        return Ok(Action::Pass);
    }
    mesh_backend::reply(ctx, config, local.tag, packet).unwrap_or(Ok(Action::Pass))
}

/// Behind masquerade a container's packet carries this node's address: it could speak for the node's VTEP.
#[inline(always)]
fn forges_tunnel(config: &Config, packet: &Packet) -> bool {
    packet.proto == ipproto::UDP
        && packet.dport == config.vxlan_port
        && (packet.dst == config.vtep || packet.dst == config.underlay_ip || maps::vtep(&packet.dst).is_some())
}
