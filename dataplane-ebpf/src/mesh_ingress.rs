//! Routing mesh, ingress node (N1): a client's packet to an address of this node and a published port is given to a
//! backend's node inside the mesh VNI, untouched but for its TTL; the reply comes back the same way.

use dataplane_common::{
    addr::{Ip4, NODE_MAC_PREFIX, TASK_MAC_PREFIX, mac_of},
    config::Config,
    counter::Counter,
    drop_reason::DropReason,
    flow::{MESH_ZONE, flag},
    fragment::{Fragmented, place},
    headers::{ipproto, tcpflag},
    service::{PortKey, PublishedPort, port_flag},
};

use crate::{
    admission, affinity, clock, connection, decap, encap, fragment, host, icmp, left,
    maps::{self, NODE_ADDRESSES, PORTS},
    mesh_backend, mesh_stock,
    parse::{Eth, Fragment, Packet},
    path, probe, reject, returns, reverse,
    scratch::scratch,
    sender, service,
    skb::Skb,
    ttl,
    verdict::{self, Action, Verdict},
};

/// A packet from outside. Whatever is not for a published port of ours is the stack's. `uplink`: tunnels arrive here too.
#[inline(always)]
pub(crate) fn from_outside(ctx: &Skb, config: &Config, packet: &Packet, uplink: bool) -> Verdict {
    let mut slow = false;
    let (task, vtep, stock) = if packet.proto == ipproto::ICMP {
        match icmp::given_away(ctx, packet) {
            Some(known) => (known.ip, known.vtep, known.flags & flag::STOCK != 0),
            None => {
                path::note(ctx, config, packet);
                return Ok(Action::Pass);
            }
        }
    } else if packet.fragment == Fragment::Later {
        if !fragment::recall(ctx, packet, MESH_ZONE, place::INGRESS) {
            if uplink {
                sender::unclaimed(ctx, config, packet);
            }
            return Ok(Action::Pass);
        }
        let first = &scratch()?.fragmented;
        slow = first.slow != 0;
        // Only what is translated here has new addresses.
        (first.task, first.peer, first.src != [0; 4])
    } else {
        fragment::begin(packet, MESH_ZONE, place::INGRESS);
        // SAFETY: entries are replaced as a whole by the agent.
        let Some(port) = (unsafe { PORTS.get(PortKey { proto: packet.proto, _pad: 0, port: packet.dport }) }) else {
            probe::note_stray(ctx, config, packet);
            return Ok(Action::Pass);
        };
        // SAFETY: as above.
        let Some(address) = (unsafe { NODE_ADDRESSES.get(packet.dst) }) else {
            return Ok(Action::Pass);
        };
        if host::misplaced(config, || verdict::ifindex(ctx), packet) {
            return Ok(Action::Pass);
        }
        // What comes over the host link has passed the node's own rules.
        if port.flags & port_flag::LEFT != 0 && packet.dst != config.host_ip && is_left(ctx, port, packet)? {
            return Ok(Action::Pass);
        }
        let elsewhere = port.flags & port_flag::BOUND != 0 && (address.classes >> (port.class & 31)) & 1 == 0;
        if ttl::is_spent(packet) && is_hop(config, packet) {
            return ttl::spent(ctx, config, port, elsewhere, packet);
        }
        let Some(chosen) = affinity(ctx, config, port, elsewhere, packet)? else {
            return Ok(Action::Pass);
        };
        chosen
    };
    let local = vtep == config.vtep;
    if !local && !encap::fits(ctx, config, &vtep, packet) {
        if packet.dont_fragment {
            return reject::too_big(ctx, packet, encap::room(config, &vtep));
        }
        // A network of the engine's has no slow path of ours; its own balancer fragments.
        if config.ingress_vni != [0; 4] {
            return Ok(Action::Pass);
        }
        slow = true;
    }
    if is_hop(config, packet) {
        ttl::lower(ctx, packet)?;
    }
    if stock {
        mesh_stock::translate(ctx, packet, &config.ingress_ip, &vtep)?;
    } else {
        let decided = Fragmented { task, peer: vtep, slow: u8::from(slow), ..Fragmented::default() };
        fragment::decided(ctx, packet, MESH_ZONE, place::INGRESS, decided)?;
    }
    verdict::count(ctx, Counter::MeshForward);
    if local {
        return mesh_backend::to_task(ctx, config, packet, task, vtep);
    }
    let dst = mac_of(TASK_MAC_PREFIX, task);
    let (vni, src) = if stock {
        (config.ingress_vni, mac_of(TASK_MAC_PREFIX, config.ingress_ip))
    } else {
        (config.mesh_vni, mac_of(NODE_MAC_PREFIX, config.vtep))
    };
    if slow {
        return encap::by_kernel(ctx, config, dst, src);
    }
    encap::encapsulate(ctx, config, vtep, vni, dst, src, packet.tos, encap::own_hash_apart(packet))
}

/// Whether the packet is left to the host; counts it. The host's rules do not know who may use the port, so who may not opens
/// no connection there either.
// VERIFIER(6.18): not inlined. LLVM merged the ends of two paths otherwise, and shifted a pointer on one of them.
#[inline(never)]
fn is_left(ctx: &Skb, port: &PublishedPort, packet: &Packet) -> Result<bool, DropReason> {
    let key = PortKey { proto: packet.proto, _pad: 0, port: packet.dport };
    if !left::is_left(port, verdict::ifindex(ctx), key, u32::from_ne_bytes(packet.src)) {
        return Ok(false);
    }
    if connection::may_open(packet) && affinity::of_packet(packet).is_none() {
        admission::check_allowed(port, packet)?;
    }
    verdict::count(ctx, Counter::LeftToHost);
    Ok(true)
}

/// The connection's backend as (ingress address, VTEP, whether that node runs no Hiveway). `None`: nobody serves, or
/// not at this address, or TCP in the middle of a connection that did not begin with us, or one of this node's own, or a source
/// that the kernel would refuse; the stack goes on with it, drops it, or answers with a reset or an ICMP error.
#[inline(always)]
fn affinity(
    ctx: &Skb,
    config: &Config,
    port: &PublishedPort,
    elsewhere: bool,
    packet: &Packet,
) -> Result<Option<(Ip4, Ip4, bool)>, DropReason> {
    let key = connection::affinity_key(packet);
    let known = affinity::forward(ctx, &key, packet);
    let replaced = known.is_some();
    if let Some(known) = known
        && admission::goes_on(known, packet)
    {
        affinity::of_client(&key, packet);
        clock::note(&mut known.last_seen, &mut known.flags, flag::SEEN);
        let stock = known.flags & flag::STOCK != 0;
        return Ok(if known.flags & flag::OWN != 0 { None } else { Some((known.ip, known.vtep, stock)) });
    }
    if elsewhere || !connection::may_open(packet) || admission::is_martian(config, packet) {
        return Ok(None);
    }
    admission::check_allowed(port, packet)?;
    if packet.dst != config.host_ip && reverse::refuses(ctx, packet) {
        return Ok(None);
    }
    let Some(backend) = service::pick(port.set) else {
        return Ok(None);
    };
    let stock = maps::is_stock(&backend.vtep);
    if replaced {
        affinity::clear(&key);
    }
    affinity::enter(&key, backend, flag::SEEN | if stock { flag::STOCK } else { 0 })?;
    verdict::count(ctx, Counter::MeshFlow);
    Ok(Some((backend.ip, backend.vtep, stock)))
}

/// Whether this node is a hop for a client's packet. Over the host link it is not: the kernel has routed such a packet
/// already, if it is not of a process of this node.
#[inline(always)]
fn is_hop(config: &Config, packet: &Packet) -> bool {
    packet.dst != config.host_ip
}

/// A reply in the tunnel. It leaves only if it comes from the backend that this very connection was given: its source
/// is an address and published port of ours, and the MAC and the outer source are those in the affinity entry. So
/// nobody can have this node send packets of his choice.
#[inline(always)]
pub(crate) fn from_tunnel(ctx: &Skb, config: &Config, outer: &Packet, eth: &Eth, inner: &mut Packet) -> Verdict {
    returns::check_return(ctx, inner, &eth.src, &outer.src)?;
    decap::decapsulate(ctx, outer.tos, inner)?;
    if inner.proto == ipproto::TCP && inner.flags & tcpflag::SYN != 0 {
        encap::clamp_mss(ctx, config, inner, &outer.src)?;
    }
    verdict::count(ctx, Counter::MeshReply);
    host::leave(ctx, config, inner)
}
