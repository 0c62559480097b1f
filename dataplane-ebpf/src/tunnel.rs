//! A VXLAN frame on our port and address: sender checks, then decapsulation into the container, the routing mesh, or
//! the slow path.

use dataplane_common::{
    addr::{NODE_MAC_PREFIX, NetId, TASK_MAC_PREFIX, VniBytes, ip_in_mac},
    config::Config,
    drop_reason::DropReason,
    endpoint::{Endpoint, EndpointKey, endpoint_flag::VIP_BACKEND, kind, vtep_mesh},
    headers::{INNER_ETH, INNER_NET, UDP_LEN, VXLAN_FLAG_VNI, VXLAN_LEN, ethertype},
    mark,
};

use crate::{
    arp::{Arp, ETHERNET_IPV4},
    decap, deliver,
    maps::{self, VNIS},
    mesh_backend, mesh_ingress, mesh_stock,
    parse::{self, Copied, Eth, Fragment, Packet},
    probe,
    sender::low24,
    skb::{self, Skb},
    slow_path,
    verdict::{Action, Verdict},
};

/// A frame with this outer header.
#[inline(always)]
pub(crate) fn handle(ctx: &Skb, config: &Config, outer: &Packet) -> Verdict {
    let Copied::<VXLAN_LEN>(header) = ctx.load(outer.l4 + UDP_LEN).map_err(|_| DropReason::Truncated)?;
    if header[0] & VXLAN_FLAG_VNI == 0 {
        return Err(DropReason::MalformedHeader);
    }
    let vni: VniBytes = [0, header[4], header[5], header[6]];
    let sender = maps::vtep(&outer.src);
    if vni == config.mesh_vni {
        let sender = sender.ok_or(DropReason::UnknownVtep)?;
        if sender.hiveway == vtep_mesh::NONE {
            return Err(DropReason::UnknownVtep);
        }
        // Our own nodes send no options; what the mesh leaves to the kernel has the ingress network's VNI.
        return if outer.has_options() { Err(DropReason::MalformedIp) } else { mesh(ctx, config, outer) };
    }
    // SAFETY: entries are replaced as a whole by the agent.
    let Some(info) = (unsafe { VNIS.get(vni) }) else {
        // Somebody else's VNI on the same port: to its owner, untouched, but for answers to our mesh on the engine's.
        return if vni == config.ingress_vni { mesh_stock::from_tunnel(ctx, config, outer) } else { Ok(Action::Pass) };
    };
    if sender.is_none() {
        return Err(DropReason::UnknownVtep);
    }
    if outer.has_options() {
        // The offsets below are those of a header without options; the kernel's vxlan device copes.
        ctx.set_mark(mark::FRAGMENT | low24(outer.src));
        return Ok(Action::SlowPath);
    }
    overlay(ctx, config, info.net, vni, outer)
}

#[inline(always)]
fn overlay(ctx: &Skb, config: &Config, net: NetId, vni: VniBytes, outer: &Packet) -> Verdict {
    let eth = parse::eth(ctx, INNER_ETH)?;
    match eth.ethertype {
        ethertype::IPV4 => {}
        ethertype::ARP => {
            let arp: Arp = ctx.load(INNER_NET).map_err(|_| DropReason::Truncated)?;
            // Linux takes ARP of the hardware type IEEE 802 for Ethernet's; no container sends it.
            if arp.format != ETHERNET_IPV4 {
                return Err(DropReason::UnsupportedProtocol);
            }
            // A zero sender address is a probe (RFC 5227).
            if arp.sender_ip != [0; 4] {
                inner_source(net, arp.sender_ip, outer).ok_or(DropReason::BadInnerSource)?;
            }
            return leave(ctx, vni, outer);
        }
        // The kernel takes a tag with VID 0 off behind all checks, and what it hid would be believed.
        ethertype::VLAN | ethertype::QINQ => return Err(DropReason::UnsupportedProtocol),
        _ => {
            ctx.set_mark(mark::OTHER | u32::from_be_bytes(vni));
            return Ok(Action::SlowPath);
        }
    }
    let inner = skb::inner(ctx, INNER_NET)?;
    let Some(from) = inner_source(net, inner.src, outer) else {
        if !is_mesh_fragment(config, net, &eth, inner) {
            return Err(DropReason::BadInnerSource);
        }
        ctx.set_mark(mark::FRAGMENT | low24(outer.src));
        return Ok(Action::SlowPath);
    };
    // The sender's kernel cut this datagram's first piece once more: the small one behind it must not overtake.
    let behind = inner.fragment != Fragment::Whole && !outer.dont_fragment;
    if eth.is_group() || behind || decap::needs_kernel(ctx, inner) {
        return leave(ctx, vni, outer);
    }
    let to = maps::endpoint(&EndpointKey { net, ip: inner.dst }).ok_or(DropReason::UnknownDestination)?;
    if to.kind != kind::LOCAL {
        return Err(DropReason::UnknownDestination);
    }
    let origin = deliver::origin(from.flags & VIP_BACKEND != 0);
    decap::decapsulate(ctx, outer.tos, inner)?;
    deliver::to_container(ctx, net, eth.src, to, inner, origin)
}

/// Whose address the inner source is: it must live on the node that sent the frame.
#[inline(always)]
fn inner_source(net: NetId, src: [u8; 4], outer: &Packet) -> Option<&'static Endpoint> {
    maps::endpoint(&EndpointKey { net, ip: src })
        .filter(|from| (from.kind == kind::REMOTE || from.kind == kind::NODE) && from.vtep == outer.src)
}

/// Whether it is a piece of a mesh datagram whose first piece had to take the slow path: it takes the same, so as not
/// to overtake. `from_vxlan` checks its sender.
#[inline(never)]
fn is_mesh_fragment(config: &Config, net: NetId, eth: &Eth, inner: &Packet) -> bool {
    net == config.ingress_net && inner.fragment == Fragment::Later && slow_path::is_mesh(eth)
}

/// Leaves a checked frame to the kernel's vxlan device. Several datagrams in one packet may be several frames
/// (`UDP_SEGMENT` at their sender), of which only the first was checked: `from_vxlan` looks at each.
#[inline(always)]
fn leave(ctx: &Skb, vni: VniBytes, outer: &Packet) -> Verdict {
    ctx.set_mark(match ctx.gso_size() {
        0 => mark::CHECKED | u32::from_be_bytes(vni),
        _ => mark::FRAGMENT | low24(outer.src),
    });
    Ok(Action::SlowPath)
}

/// A mesh frame from a node that takes part. Which way it goes is in its MACs, see `dataplane_common::mesh`.
#[inline(always)]
fn mesh(ctx: &Skb, config: &Config, outer: &Packet) -> Verdict {
    let eth = parse::eth(ctx, INNER_ETH)?;
    if eth.ethertype != ethertype::IPV4 {
        return Err(DropReason::MalformedHeader);
    }
    let inner = skb::inner(ctx, INNER_NET)?;
    if let Some(task) = ip_in_mac(TASK_MAC_PREFIX, eth.dst) {
        forward(ctx, config, outer, &eth, inner, task)
    } else if ip_in_mac(NODE_MAC_PREFIX, eth.dst) == Some(config.vtep) {
        if probe::is_probe(&eth) {
            return probe::arrived(ctx, config, outer, &eth, inner);
        }
        mesh_ingress::from_tunnel(ctx, config, outer, &eth, inner)
    } else {
        Err(DropReason::MeshNoTarget)
    }
}

#[inline(always)]
fn forward(ctx: &Skb, config: &Config, outer: &Packet, eth: &Eth, inner: &mut Packet, task: [u8; 4]) -> Verdict {
    if ip_in_mac(NODE_MAC_PREFIX, eth.src) != Some(outer.src) {
        return Err(DropReason::BadInnerSource);
    }
    decap::decapsulate(ctx, outer.tos, inner)?;
    mesh_backend::to_task(ctx, config, inner, task, outer.src)
}
