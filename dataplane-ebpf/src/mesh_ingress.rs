//! Routing mesh, ingress node (N1): a client's packet to an address of this node and a published port is given to a
//! backend's node untouched, inside the mesh VNI; the reply comes back the same way.

use aya_ebpf::{bindings::BPF_ANY, programs::TcContext};
use dataplane_common::{
    addr::{Ip4, NODE_MAC_PREFIX, TASK_MAC_PREFIX, mac_of},
    config::Config,
    counter::Counter,
    drop_reason::DropReason,
    flow::{Affinity, AffinityKey, flag},
    headers::ipproto,
    service::PortKey,
};

use crate::{
    decap, encap, flow, host,
    maps::{AFFINITY, NODE_ADDRESSES, PORTS},
    mesh_backend,
    parse::{Eth, Fragment, Packet},
    service,
    verdict::{self, Action, Verdict},
};

/// A packet from outside. Whatever is not for a published port of ours is the stack's.
#[inline(always)]
pub(crate) fn from_outside(ctx: &TcContext, config: &Config, packet: &Packet) -> Verdict {
    if packet.fragment != Fragment::Whole || (packet.proto != ipproto::TCP && packet.proto != ipproto::UDP) {
        return Ok(Action::Pass);
    }
    // SAFETY: entries are replaced as a whole by the agent.
    let Some(port) = (unsafe { PORTS.get(PortKey { proto: packet.proto, _pad: 0, port: packet.dport }) }) else {
        return Ok(Action::Pass);
    };
    // SAFETY: as above.
    if unsafe { NODE_ADDRESSES.get(packet.dst) }.is_none() || host::misplaced(ctx, config, packet) {
        return Ok(Action::Pass);
    }
    let Some((task, vtep)) = affinity(ctx, port.set, packet)? else {
        return Ok(Action::Pass);
    };
    let local = vtep == config.vtep;
    if !local && !encap::fits(ctx, config, packet) {
        return Err(DropReason::MtuExceeded);
    }
    verdict::count(ctx, Counter::MeshForward);
    if local {
        return mesh_backend::to_task(ctx, config, packet, task, vtep);
    }
    let (dst, src) = (mac_of(TASK_MAC_PREFIX, task), mac_of(NODE_MAC_PREFIX, config.vtep));
    encap::encapsulate(ctx, config, vtep, config.mesh_vni, dst, src, packet.tos)
}

/// The connection's backend as (ingress address, VTEP). `None`: nobody serves, or TCP in the middle of a connection
/// that did not begin with us; the stack answers both with a reset or an ICMP error.
#[inline(always)]
fn affinity(ctx: &TcContext, set: u32, packet: &Packet) -> Result<Option<(Ip4, Ip4)>, DropReason> {
    let key = AffinityKey {
        client: packet.src,
        node: packet.dst,
        client_port: packet.sport,
        port: packet.dport,
        proto: packet.proto,
        _pad: [0; 3],
    };
    if let Some(known) = AFFINITY.get_ptr_mut(key) {
        // SAFETY: as for flows: only `last_seen` and `flags` change after creation.
        let known = unsafe { &mut *known };
        if !(flow::is_syn(packet) && known.flags & (flag::FIN | flag::RST) != 0) {
            flow::note(&mut known.last_seen, &mut known.flags, flow::bits(packet));
            return Ok(Some((known.ip, known.vtep)));
        }
    }
    if !flow::may_open(packet) {
        return Ok(None);
    }
    let Some(backend) = service::pick(set) else {
        return Ok(None);
    };
    let now = flow::now();
    let entry = Affinity {
        last_seen: now,
        created: now,
        tag: backend.tag,
        ip: backend.ip,
        vtep: backend.vtep,
        flags: flow::bits(packet),
        expected_ack: [0; 3],
        _pad: [0; 4],
    };
    AFFINITY.insert(key, entry, BPF_ANY as u64).map_err(|_| DropReason::FlowTableFull)?;
    verdict::count(ctx, Counter::MeshFlow);
    Ok(Some((backend.ip, backend.vtep)))
}

/// A reply in the tunnel. It leaves only if it comes from the backend that this very connection was given: its source
/// is an address and published port of ours, and the MAC and the outer source are those in the affinity entry. So
/// nobody can have this node send packets of his choice.
#[inline(always)]
pub(crate) fn from_tunnel(ctx: &TcContext, config: &Config, outer: &Packet, eth: &Eth, inner: &Packet) -> Verdict {
    if inner.fragment != Fragment::Whole {
        return Err(DropReason::Fragment);
    }
    if !returned(inner, eth.src, outer.src) {
        return Err(DropReason::MeshBadReturn);
    }
    let packet = decap::decapsulate(ctx, outer.tos, inner)?;
    verdict::count(ctx, Counter::MeshReply);
    host::leave(ctx, config, &packet)
}

/// Whether `packet` answers a connection that this node gave to the task with ingress MAC `task` behind `vtep`; notes it.
#[inline(always)]
pub(crate) fn returned(packet: &Packet, task: [u8; 6], vtep: Ip4) -> bool {
    let key = AffinityKey {
        client: packet.dst,
        node: packet.src,
        client_port: packet.dport,
        port: packet.sport,
        proto: packet.proto,
        _pad: [0; 3],
    };
    let Some(known) = AFFINITY.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: as above.
    let known = unsafe { &mut *known };
    if task != mac_of(TASK_MAC_PREFIX, known.ip) || vtep != known.vtep {
        return false;
    }
    let bits = (flow::bits(packet) & !flag::SEEN) | flag::REPLIED;
    flow::note(&mut known.last_seen, &mut known.flags, bits);
    true
}
