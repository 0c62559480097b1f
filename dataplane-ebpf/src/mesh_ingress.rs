//! Routing mesh, ingress node (N1): a client's packet to an address of this node and a published port is given to a
//! backend's node inside the mesh VNI, untouched but for its TTL; the reply comes back the same way.

use dataplane_common::{
    addr::{Ip4, NODE_MAC_PREFIX, TASK_MAC_PREFIX, ip_in_mac, mac_of},
    config::Config,
    counter::Counter,
    drop_reason::DropReason,
    flow::{Affinity, MESH_ZONE, flag},
    fragment::{Fragmented, place},
    headers::{ipproto, tcpflag},
    service::PublishedPort,
};

use crate::{
    admission::{Arrival, Found},
    affinity, clock, connection, decap, encap, fragment, host, icmp,
    ingress::{self, Decision},
    maps, mesh_backend, mesh_stock, notes,
    parse::{Eth, Fragment, Packet},
    path, probe, reject, returns,
    scratch::scratch,
    sender, service,
    skb::Skb,
    ttl,
    verdict::{self, Action, Verdict},
};

/// A packet from outside. Whatever is not for a published port of ours is the stack's. `uplink`: tunnels arrive here
/// too.
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
        match ingress::decide(&Arrival { ctx, config, packet })? {
            Decision::Forward(Found(known, is_pending), _) => forward(ctx, packet, known, is_pending),
            Decision::Open { port, replaces } => match open(ctx, packet, port, replaces)? {
                Some(backend) => backend,
                None => return Ok(Action::Pass),
            },
            Decision::Own(Found(known, is_pending)) => {
                notes::of_client(known, is_pending, packet, clock::now());
                return Ok(Action::Pass);
            }
            Decision::TimeExceeded => return reject::time_exceeded(ctx, packet, packet.dst),
            Decision::Unpublished => {
                probe::note_stray(ctx, config, packet);
                return Ok(Action::Pass);
            }
            Decision::Left => {
                verdict::count(ctx, Counter::LeftToHost);
                return Ok(Action::Pass);
            }
            Decision::Pass => return Ok(Action::Pass),
        }
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

/// Whom a packet goes to: his ingress address, his node's VTEP, and whether that node runs no Hiveway.
type Chosen = (Ip4, Ip4, bool);

/// The backend of the connection that the packet belongs to; notes the packet there.
#[inline(always)]
fn forward(ctx: &Skb, packet: &Packet, known: &mut Affinity, is_pending: bool) -> Chosen {
    let backend = (known.ip, known.vtep, known.flags & flag::STOCK != 0);
    affinity::from_client(ctx, &connection::affinity_key(packet), packet, known, is_pending);
    backend
}

/// The next backend of the port, which the connection that the packet opens is given to. `None`: nobody serves.
#[inline(always)]
fn open(ctx: &Skb, packet: &Packet, port: &PublishedPort, replaces: bool) -> Result<Option<Chosen>, DropReason> {
    let Some(backend) = service::pick(port.set) else {
        return Ok(None);
    };
    let key = connection::affinity_key(packet);
    let stock = maps::is_stock(&backend.vtep);
    if replaces {
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
    let task = ip_in_mac(TASK_MAC_PREFIX, eth.src).ok_or(DropReason::MeshBadReturn)?;
    returns::check_return(ctx, inner, task, outer.src)?;
    decap::decapsulate(ctx, outer.tos, inner)?;
    if inner.proto == ipproto::TCP && inner.flags & tcpflag::SYN != 0 {
        encap::clamp_mss(ctx, config, inner, &outer.src)?;
    }
    verdict::count(ctx, Counter::MeshReply);
    host::leave(ctx, config, inner)
}
