//! Routing mesh, the backend's node (N2): late DNAT into the container, and the reply's way back to the ingress node.

use aya_ebpf::programs::TcContext;
use dataplane_common::{
    addr::{Ip4, NODE_MAC_PREFIX, TASK_MAC_PREFIX, Tag, VIRTUAL_MAC, mac_of},
    config::Config,
    counter::Counter,
    drop_reason::DropReason,
    flow::{Flow, MESH_ZONE, flag},
    headers::{ipproto, tcpflag},
    mesh::{Target, TargetKey},
};

use crate::{
    deliver, encap, flow, host,
    maps::MESH_TARGETS,
    mesh_ingress, mss, nat,
    nat::Translation,
    parse::{Fragment, Packet},
    verdict::{self, Verdict},
};

/// Delivers a client's packet (no tunnel around it any more) to the task with ingress address `task`, on behalf of the
/// ingress node with VTEP `ingress`.
#[inline(always)]
pub(crate) fn to_task(ctx: &TcContext, config: &Config, packet: &Packet, task: Ip4, ingress: Ip4) -> Verdict {
    let key = TargetKey { ip: task, port: packet.dport, proto: packet.proto, _pad: 0 };
    // SAFETY: entries are replaced as a whole by the agent.
    let target = unsafe { MESH_TARGETS.get(key) }.ok_or(DropReason::MeshNoTarget)?;
    let to = match established(packet, target, ingress)? {
        Some(to) => to,
        None => open(packet, target, task, ingress)?,
    };
    if ingress != config.vtep && packet.proto == ipproto::TCP && packet.flags & tcpflag::SYN != 0 {
        mss::clamp(ctx, config, packet)?;
    }
    nat::rewrite(ctx, packet, &to)?;
    deliver::into_veth(ctx, target.ifindex, target.mac, VIRTUAL_MAC)
}

#[inline(always)]
fn established(packet: &Packet, target: &Target, ingress: Ip4) -> Result<Option<Translation>, DropReason> {
    let key = flow::key(MESH_ZONE, packet);
    let Some(known) = flow::get(&key) else {
        return Ok(None);
    };
    let fresh_start = flow::is_syn(packet) && flow::closed(known);
    // The same client port may reach another task (its former backend is gone) or another ingress node (a floating
    // address moved) under the same addresses: then this is another connection.
    if fresh_start || known.tag != target.tag || known.peer != ingress {
        flow::forget(&key, known);
        return Ok(None);
    }
    flow::touch(known, packet);
    Ok(Some(flow::translation(known)))
}

#[inline(always)]
fn open(packet: &Packet, target: &Target, task: Ip4, ingress: Ip4) -> Result<Translation, DropReason> {
    if !flow::may_open(packet) {
        return Err(DropReason::MeshNoFlow);
    }
    let to = Translation { src: packet.src, dst: target.ip, sport: packet.sport, dport: target.port };
    flow::open(packet, &flow::NewFlow { zone: MESH_ZONE, to, tag: target.tag, peer: ingress, task })
}

/// If a packet out of a gateway-bridge veth answers a mesh connection of task `tag`, sends it back to the client through
/// the ingress node. `None`: it is ordinary traffic.
#[inline(always)]
pub(crate) fn reply(ctx: &TcContext, config: &Config, tag: Tag, packet: &Packet) -> Option<Verdict> {
    if packet.fragment != Fragment::Whole || (packet.proto != ipproto::TCP && packet.proto != ipproto::UDP) {
        return None;
    }
    let known = flow::get(&flow::key(MESH_ZONE, packet))?;
    if known.flags & flag::REPLY == 0 || known.tag != tag {
        return None;
    }
    Some(send_back(ctx, config, known, packet))
}

#[inline(always)]
fn send_back(ctx: &TcContext, config: &Config, known: &mut Flow, packet: &Packet) -> Verdict {
    if packet.proto == ipproto::TCP && packet.flags & tcpflag::RST != 0 {
        flow::close_forward(MESH_ZONE, known, packet.proto);
    }
    flow::touch(known, packet);
    let (peer, task) = (known.peer, known.task);
    let to = flow::translation(known);
    let translated = Packet { src: to.src, dst: to.dst, sport: to.sport, dport: to.dport, ..*packet };
    let local = peer == config.vtep;
    if !local {
        if packet.proto == ipproto::TCP && packet.flags & tcpflag::SYN != 0 {
            mss::clamp(ctx, config, packet)?;
        }
        if !encap::fits(ctx, config, packet) {
            return Err(DropReason::MtuExceeded);
        }
    }
    nat::rewrite(ctx, packet, &to)?;
    verdict::count(ctx, Counter::MeshReturn);
    if local {
        if !mesh_ingress::returned(&translated, mac_of(TASK_MAC_PREFIX, task), config.vtep) {
            return Err(DropReason::MeshBadReturn);
        }
        verdict::count(ctx, Counter::MeshReply);
        return host::leave(ctx, config, &translated);
    }
    let (dst, src) = (mac_of(NODE_MAC_PREFIX, peer), mac_of(TASK_MAC_PREFIX, task));
    encap::encapsulate(ctx, config, peer, config.mesh_vni, dst, src, packet.tos)
}
