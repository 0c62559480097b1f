//! Routing mesh, ingress node (N1): a client's packet to an address of this node and a published port is given to a
//! backend's node untouched, inside the mesh VNI; the reply comes back the same way.

use aya_ebpf::{btf_maps::lpm_trie::Key, programs::TcContext};
use dataplane_common::{
    addr::{Ip4, Mac, NODE_MAC_PREFIX, TASK_MAC_PREFIX, mac_of},
    config::Config,
    counter::Counter,
    drop_reason::DropReason,
    flow::{AffinityKey, MESH_ZONE, flag},
    fragment::{Fragmented, place},
    headers::ipproto,
    service::{AllowPrefix, PortKey, PublishedPort, port_flag},
};

use crate::{
    affinity, decap, encap, flow, fragment, host, icmp,
    maps::{ALLOW, NODE_ADDRESSES, PORTS, scratch},
    mesh_backend,
    parse::{Eth, Fragment, Packet},
    reject, service, slow_path, underlay,
    verdict::{self, Action, Verdict},
};

/// A packet from outside. Whatever is not for a published port of ours is the stack's.
#[inline(always)]
pub(crate) fn from_outside(ctx: &TcContext, config: &Config, packet: &Packet) -> Verdict {
    let mut slow = false;
    let (task, vtep) = if packet.proto == ipproto::ICMP {
        match icmp::given_away(ctx, packet) {
            Some(known) => (known.ip, known.vtep),
            None => return Ok(Action::Pass),
        }
    } else if packet.fragment == Fragment::Later {
        if !fragment::recall(ctx, packet, MESH_ZONE, place::INGRESS) {
            underlay::unclaimed(ctx, config, packet);
            return Ok(Action::Pass);
        }
        let first = &scratch()?.fragmented;
        slow = first.slow != 0;
        (first.task, first.peer)
    } else {
        fragment::begin(packet, MESH_ZONE, place::INGRESS);
        // SAFETY: entries are replaced as a whole by the agent.
        let Some(port) = (unsafe { PORTS.get(PortKey { proto: packet.proto, _pad: 0, port: packet.dport }) }) else {
            return Ok(Action::Pass);
        };
        // SAFETY: as above.
        if unsafe { NODE_ADDRESSES.get(packet.dst) }.is_none() || host::misplaced(ctx, config, packet) {
            return Ok(Action::Pass);
        }
        let Some(chosen) = affinity(ctx, port, packet)? else {
            return Ok(Action::Pass);
        };
        chosen
    };
    let local = vtep == config.vtep;
    if !local && !encap::fits(ctx, config, packet) {
        if packet.dont_fragment {
            return reject::too_big(ctx, packet, config.underlay_mtu);
        }
        slow = true;
    }
    let decided = Fragmented { task, peer: vtep, slow: u8::from(slow), ..Fragmented::default() };
    fragment::decided(ctx, packet, MESH_ZONE, place::INGRESS, decided)?;
    verdict::count(ctx, Counter::MeshForward);
    if local {
        return mesh_backend::to_task(ctx, config, packet, task, vtep);
    }
    let (dst, src) = (mac_of(TASK_MAC_PREFIX, task), mac_of(NODE_MAC_PREFIX, config.vtep));
    if slow {
        return slow_path::to_node(ctx, config, dst, src);
    }
    encap::encapsulate(ctx, config, vtep, config.mesh_vni, dst, src, packet.tos)
}

/// The connection's backend as (ingress address, VTEP). `None`: nobody serves, or TCP in the middle of a connection
/// that did not begin with us, or one of this node's own; the stack goes on with it, or answers with a reset or an ICMP
/// error.
#[inline(always)]
fn affinity(ctx: &TcContext, port: &PublishedPort, packet: &Packet) -> Result<Option<(Ip4, Ip4)>, DropReason> {
    let key = affinity::key(packet);
    if let Some(known) = affinity::forward(ctx, &key, packet)
        && !(flow::is_syn(packet) && known.flags & (flag::FIN | flag::RST) != 0)
    {
        flow::note(&mut known.last_seen, &mut known.flags, flow::bits(packet));
        return Ok(if known.flags & flag::OWN != 0 { None } else { Some((known.ip, known.vtep)) });
    }
    if !flow::may_open(packet) {
        return Ok(None);
    }
    if port.flags & port_flag::RESTRICTED != 0 && !allowed(packet) {
        return Err(DropReason::NotAllowed);
    }
    let Some(backend) = service::pick(port.set) else {
        return Ok(None);
    };
    affinity::enter(&key, backend, flow::bits(packet))?;
    verdict::count(ctx, Counter::MeshFlow);
    Ok(Some((backend.ip, backend.vtep)))
}

/// Whether the client is on the list of a restricted port.
#[inline(always)]
fn allowed(packet: &Packet) -> bool {
    let port = PortKey { proto: packet.proto, _pad: 0, port: packet.dport };
    ALLOW.get(&Key::new(8 * size_of::<AllowPrefix>() as u32, AllowPrefix { port, ip: packet.src })).is_some()
}

/// A reply in the tunnel. It leaves only if it comes from the backend that this very connection was given: its source
/// is an address and published port of ours, and the MAC and the outer source are those in the affinity entry. So
/// nobody can have this node send packets of his choice.
#[inline(always)]
pub(crate) fn from_tunnel(ctx: &TcContext, config: &Config, outer: &Packet, eth: &Eth, inner: &mut Packet) -> Verdict {
    check_return(ctx, inner, &eth.src, &outer.src)?;
    decap::decapsulate(ctx, outer.tos, inner)?;
    verdict::count(ctx, Counter::MeshReply);
    host::leave(ctx, config, inner)
}

/// Lets a reply pass that comes from where its connection was given to: `task` (ingress MAC) behind `vtep`. A later
/// fragment passes if its first has passed, from there.
#[inline(always)]
pub(crate) fn check_return(ctx: &TcContext, packet: &Packet, task: &Mac, vtep: &Ip4) -> Result<(), DropReason> {
    if icmp::is_error(packet) {
        return if icmp::returned(ctx, packet, task, vtep) { Ok(()) } else { Err(DropReason::MeshBadReturn) };
    }
    if packet.fragment != Fragment::Later {
        fragment::begin(packet, MESH_ZONE, place::RETURN);
        if !returned(ctx, packet, task, vtep) {
            return Err(DropReason::MeshBadReturn);
        }
        let decided = Fragmented { task: [task[2], task[3], task[4], task[5]], peer: *vtep, ..Fragmented::default() };
        return fragment::decided(ctx, packet, MESH_ZONE, place::RETURN, decided);
    }
    if !fragment::recall(ctx, packet, MESH_ZONE, place::RETURN) {
        return Err(DropReason::Fragment);
    }
    let first = &scratch()?.fragmented;
    let same = *task == mac_of(TASK_MAC_PREFIX, first.task) && *vtep == first.peer;
    if same { Ok(()) } else { Err(DropReason::MeshBadReturn) }
}

/// Whether `packet` answers a connection that this node gave to the task with ingress MAC `task` behind `vtep`; notes it.
#[inline(never)]
fn returned(ctx: &TcContext, packet: &Packet, task: &Mac, vtep: &Ip4) -> bool {
    let key = AffinityKey {
        client: packet.dst,
        node: packet.src,
        client_port: packet.dport,
        port: packet.sport,
        proto: packet.proto,
        _pad: [0; 3],
    };
    let Some(known) = affinity::get(&key) else {
        return false;
    };
    if known.flags & flag::OWN != 0 || *task != mac_of(TASK_MAC_PREFIX, known.ip) || *vtep != known.vtep {
        return false;
    }
    let bits = (flow::bits(packet) & !flag::SEEN) | flag::REPLIED;
    flow::note(&mut known.last_seen, &mut known.flags, bits);
    affinity::backward(ctx, &key, packet);
    true
}
