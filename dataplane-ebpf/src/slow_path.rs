//! The slow path's two ends, where the kernel's vxlan device puts the tunnel on and takes it off.
//!
//! At the hook `from_vxlan` the outer header is gone; the mark says what `from_underlay` has seen of it. A frame
//! without a mark came in through another interface (the loopback, say) and nobody has checked it.
//!
//! The routing mesh has no vxlan device of its own. Its packets that must be fragmented travel on the ingress
//! network's, with the MACs of mesh frames: its forwarding entries know tasks by `02:42` + ingress address and nodes by
//! `02:48` + VTEP, and no container has a MAC of the second kind.

use dataplane_common::{
    addr::{Ip4, NODE_MAC_PREFIX, NetId, TASK_MAC_PREFIX, ip_in_mac},
    config::Config,
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{Endpoint, EndpointKey, kind, vtep_mesh},
    headers::{ETH_LEN, ethertype},
    mark,
};

use crate::{
    deliver::{self, Origin},
    host,
    maps::{self, config},
    mesh_backend,
    parse::{self, Eth, Packet},
    returns,
    sender::low24,
    skb::{self, Skb},
    verdict::{self, Action, Verdict},
};

/// Entry of the hook `from_vxlan`.
#[inline(always)]
pub(crate) fn handle(ctx: &Skb) -> Verdict {
    // SAFETY: the context pointer is valid for the program's run.
    let seen = unsafe { (*ctx.skb.skb).mark };
    ctx.set_mark(0);
    let kind = seen & mark::KIND_MASK;
    if kind != mark::CHECKED && kind != mark::FRAGMENT && kind != mark::OTHER {
        return Err(DropReason::UncheckedTunnel);
    }
    let device = maps::local(verdict::ifindex(ctx)).ok_or(DropReason::UnknownInterface)?;
    let eth = parse::eth(ctx, 0)?;
    // What is in a VLAN of its senders is the bridge's, as what is not IPv4.
    if eth.ethertype != ethertype::IPV4 || parse::in_vlan(ctx) {
        let is_other = kind == mark::OTHER && eth.ethertype != ethertype::ARP && !parse::in_vlan(ctx);
        return if kind == mark::CHECKED || is_other { Ok(Action::Pass) } else { Err(DropReason::UncheckedTunnel) };
    }
    if kind == mark::OTHER {
        return Err(DropReason::UncheckedTunnel);
    }
    let packet = skb::outer(ctx, ETH_LEN)?;
    if kind == mark::FRAGMENT {
        let sender = seen & !mark::KIND_MASK;
        let config = config()?;
        if config.ingress_net != [0; 4] && device.net == config.ingress_net && is_mesh(&eth) {
            return mesh(ctx, config, &eth, packet, sender);
        }
        check(device.net, packet.src, sender)?;
    }
    if eth.is_group() {
        return Ok(Action::Pass);
    }
    match maps::endpoint(&EndpointKey { net: device.net, ip: packet.dst }) {
        // The bridge would do, but the reply of a VIP has to be translated.
        Some(to) if to.kind == kind::LOCAL => {
            deliver::to_container(ctx, device.net, eth.src, to, packet, Origin::Backend)
        }
        _ => Ok(Action::Pass),
    }
}

/// The inner source must live on the node that the packet came from.
#[inline(always)]
fn check(net: NetId, src: Ip4, sender: u32) -> Result<(), DropReason> {
    match elsewhere(net, src) {
        Some(from) if low24(from.vtep) == sender => Ok(()),
        _ => Err(DropReason::BadInnerSource),
    }
}

/// What answers at an address on another node.
#[inline(always)]
fn elsewhere(net: NetId, ip: Ip4) -> Option<&'static Endpoint> {
    maps::endpoint(&EndpointKey { net, ip }).filter(|at| at.kind == kind::REMOTE || at.kind == kind::NODE)
}

/// Whether a frame names a node by its MAC, as only mesh frames do.
#[inline(always)]
pub(crate) fn is_mesh(eth: &Eth) -> bool {
    ip_in_mac(NODE_MAC_PREFIX, eth.src).is_some() || ip_in_mac(NODE_MAC_PREFIX, eth.dst).is_some()
}

/// A mesh frame from the node whose VTEP ends in the 24 bits `sender`.
#[inline(always)]
fn mesh(ctx: &Skb, config: &Config, eth: &Eth, packet: &Packet, sender: u32) -> Verdict {
    if let Some(task) = ip_in_mac(TASK_MAC_PREFIX, eth.dst) {
        let ingress = ip_in_mac(NODE_MAC_PREFIX, eth.src).ok_or(DropReason::BadInnerSource)?;
        if low24(ingress) != sender {
            return Err(DropReason::BadInnerSource);
        }
        let vtep = maps::vtep(&ingress).ok_or(DropReason::BadInnerSource)?;
        if vtep.hiveway == vtep_mesh::NONE {
            return Err(DropReason::BadInnerSource);
        }
        return mesh_backend::to_task(ctx, config, packet, task, ingress);
    }
    if ip_in_mac(NODE_MAC_PREFIX, eth.dst) != Some(config.vtep) {
        return Err(DropReason::MeshNoTarget);
    }
    let task = ip_in_mac(TASK_MAC_PREFIX, eth.src).ok_or(DropReason::MeshBadReturn)?;
    let from = elsewhere(config.ingress_net, task).filter(|from| low24(from.vtep) == sender);
    let from = from.ok_or(DropReason::BadInnerSource)?;
    returns::check_return(ctx, packet, task, from.vtep)?;
    verdict::count(ctx, Counter::MeshReply);
    host::leave(ctx, config, packet)
}
