//! Routing mesh, the backend's node (N2): late DNAT into the container, and the reply's way back to the ingress node.

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::generated::bpf_clone_redirect};
use dataplane_common::{
    addr::{Ip4, NODE_MAC_PREFIX, Port, TASK_MAC_PREFIX, Tag, VIRTUAL_MAC, mac_of},
    config::Config,
    counter::Counter,
    drop_reason::DropReason,
    flow::{Flow, FlowKey, MESH_ZONE, flag},
    fragment::{Fragmented, place, way},
    headers::{ipproto, tcpflag},
    mesh::{ClientPrefix, Target, TargetKey, shown_as, target_flag},
};

use crate::{
    clock, connection, deliver, encap, ending, flow, follow, fragment, host, icmp,
    maps::{CLIENTS, MESH_TARGETS},
    mesh_direct::{self, Leaves},
    nat::{self, Translation},
    opening,
    parse::{Fragment, Packet},
    reject, returns,
    scratch::{NewFlow, scratch},
    skb::Skb,
    succession::{self, Place},
    ttl,
    verdict::{self, Action, Verdict},
};

/// Delivers a client's packet (no tunnel around it any more) to the task with ingress address `task`, on behalf of the
/// ingress node with VTEP `ingress`.
#[inline(always)]
pub(crate) fn to_task(ctx: &Skb, config: &Config, packet: &Packet, task: Ip4, ingress: Ip4) -> Verdict {
    if icmp::is_error(packet) {
        let target = icmp::to_task(ctx, packet, &task, &ingress).ok_or(DropReason::IcmpUnmatched)?;
        icmp::translate(ctx, packet, &MESH_ZONE)?;
        return deliver::into_veth(ctx, target.ifindex, target.mac, VIRTUAL_MAC);
    }
    let later = packet.fragment == Fragment::Later;
    let mut port = packet.dport;
    if later {
        port = follow(ctx, packet, &task, &ingress)?;
    }
    let key = TargetKey { ip: task, port, proto: packet.proto, _pad: 0 };
    // SAFETY: entries are replaced as a whole by the agent.
    let target = unsafe { MESH_TARGETS.get(key) }.ok_or(DropReason::MeshNoTarget)?;
    if target.flags & target_flag::LOCAL_ONLY != 0 && ingress != config.vtep {
        return Err(DropReason::MeshNoTarget);
    }
    // SCTP's ports cannot be changed: its checksum is left alone.
    if packet.proto == ipproto::SCTP && target.port != port {
        return Err(DropReason::MeshNoTarget);
    }
    let to = if later {
        let first = &scratch()?.fragmented;
        if first.tag != target.tag {
            return Err(DropReason::Fragment);
        }
        Translation { src: first.src, dst: first.dst, sport: packet.sport, dport: packet.dport }
    } else {
        fragment::begin(packet, MESH_ZONE, place::BACKEND);
        match established(ctx, packet, target, ingress)? {
            Some(to) => to,
            None => open(ctx, config, packet, target, task, ingress)?,
        }
    };
    let (src, dst, tag, peer) = (to.src, to.dst, target.tag, ingress);
    let decided = Fragmented { src, dst, tag, peer, task, port, ..Fragmented::default() };
    fragment::decided(ctx, packet, MESH_ZONE, place::BACKEND, decided)?;
    if packet.proto == ipproto::TCP && packet.flags & tcpflag::SYN != 0 {
        encap::clamp_mss(ctx, config, packet, &ingress)?;
    }
    nat::rewrite(ctx, packet, &to)?;
    deliver::into_veth(ctx, target.ifindex, target.mac, VIRTUAL_MAC)?;
    let asked = packet.proto == ipproto::TCP && packet.flags & tcpflag::RST != 0 && asks(ctx, packet, target.ifindex);
    Ok(if asked { Action::Device(target.ifindex) } else { Action::Peer(target.ifindex) })
}

/// Delivers a client's RST, and the same segment as an ACK behind it. A backend that has taken the RST answers with one
/// of its own, which ends the connection here and at the ingress node; one whose connection goes on acknowledges, as it
/// does for any segment that is out of place (RFC 9293 section 3.10.7.4). Whether the RST was delivered: then the
/// packet is the question, and follows through the same device. Nobody is asked where the ACK could do more than ask:
/// complete a handshake, or deliver data.
#[inline(never)]
fn asks(ctx: &Skb, packet: &Packet, ifindex: u32) -> bool {
    const OFFSET_AND_FLAGS: usize = 12;
    const CHECKSUM: usize = 16;
    const OFFSET: u16 = 0xf000;
    let Ok(scratch) = scratch() else { return false };
    scratch.key = connection::flow_key(MESH_ZONE, packet);
    let l4 = packet.l4;
    let bare = usize::from(packet.total_len) == l4 - packet.net + usize::from(packet.tcp_len);
    if !bare || packet.fragment != Fragment::Whole || !flow::is_established(&scratch.key) {
        return false;
    }
    let Ok(old) = ctx.load::<[u8; 2]>(l4 + OFFSET_AND_FLAGS) else { return false };
    // SAFETY: plain helper call on a valid context.
    if unsafe { bpf_clone_redirect(ctx.skb.skb, ifindex, 0) } != 0 {
        return false;
    }
    verdict::count(ctx, Counter::Delivered);
    let new = (u16::from_be_bytes(old) & OFFSET | u16::from(tcpflag::ACK)).to_be_bytes();
    let _ = ctx.l4_csum_replace(l4 + CHECKSUM, u16::from_ne_bytes(old).into(), u16::from_ne_bytes(new).into(), 2);
    let _ = ctx.store(l4 + OFFSET_AND_FLAGS, &new, 0);
    true
}

/// A later fragment goes where its first went, if it comes the same way: the published port of the first.
#[inline(never)]
fn follow(ctx: &Skb, packet: &Packet, task: &Ip4, ingress: &Ip4) -> Result<Port, DropReason> {
    if !fragment::recall(ctx, packet, MESH_ZONE, place::BACKEND) {
        return Err(DropReason::Fragment);
    }
    let first = &scratch()?.fragmented;
    if first.task == *task && first.peer == *ingress { Ok(first.port) } else { Err(DropReason::Fragment) }
}

#[inline(always)]
fn established(ctx: &Skb, packet: &Packet, target: &Target, ingress: Ip4) -> Result<Option<Translation>, DropReason> {
    let key = connection::flow_key(MESH_ZONE, packet);
    let Some(known) = follow::forward(ctx, &key, packet) else {
        return Ok(None);
    };
    // Only asked where another task or another ingress node wants the connection's place.
    let proved = (known.tag != target.tag || known.peer != ingress) && is_proved(&key, known);
    match place_of(packet, known, proved, &target.tag, &ingress) {
        Place::Own => {}
        Place::Anothers => {
            flow::forget(&key, known);
            return Ok(None);
        }
        Place::Taken => return Err(DropReason::FlowCollision),
        Place::None => return Err(DropReason::MeshNoFlow),
    }
    follow::of_client(&key, known, packet);
    flow::touch(known);
    Ok(Some(flow::translation(known)))
}

/// Whether a connection has proved itself: it is established, or has found no share.
#[inline(never)]
fn is_proved(key: &FlowKey, known: &Flow) -> bool {
    let Ok(scratch) = scratch() else { return false };
    if flow::is_established(key) {
        return true;
    }
    scratch.reply_key = connection::reply_key(key.zone, known, key.proto);
    flow::get(&scratch.reply_key).is_some_and(|reply| reply.flags & flag::KEPT != 0)
}

/// See [`succession::place_of`].
// Not inlined: the verifier walks what follows once instead of once per condition.
#[inline(never)]
fn place_of(packet: &Packet, known: &Flow, proved: bool, tag: &Tag, ingress: &Ip4) -> Place {
    succession::place_of(packet, known, proved, tag, ingress, clock::now)
}

#[inline(always)]
fn open(
    ctx: &Skb,
    config: &Config,
    packet: &Packet,
    target: &Target,
    task: Ip4,
    ingress: Ip4,
) -> Result<Translation, DropReason> {
    if !connection::may_open(packet) {
        return Err(DropReason::MeshNoFlow);
    }
    let src = shown_as(ctx, config, packet.src, target, ingress);
    let to = Translation { src, dst: target.ip, sport: packet.sport, dport: target.port };
    let new = &mut scratch()?.new;
    *new = NewFlow { zone: MESH_ZONE, to, tag: target.tag, peer: ingress, task, flags: 0 };
    opening::open(ctx, packet, new)?;
    Ok(new.to)
}

/// The address that the task sees: the client's, except where the reply would stay inside the container's namespace or
/// on the gateway bridge instead of coming back to us.
#[inline(always)]
fn shown_as(ctx: &Skb, config: &Config, client: Ip4, target: &Target, ingress: Ip4) -> Ip4 {
    let data = ClientPrefix { ifindex: target.ifindex.to_be_bytes(), ip: client };
    let Some(rule) = CLIENTS.get(&Key::new(8 * size_of::<ClientPrefix>() as u32, data)) else {
        return client;
    };
    if rule.shown_as == shown_as::ITSELF {
        return client;
    }
    verdict::count(ctx, Counter::ClientTranslated);
    if rule.shown_as == shown_as::INGRESS_NODE { ingress } else { config.gateway_ip }
}

/// If a packet out of a gateway-bridge veth answers a mesh connection of task `tag`, sends it back to the client
/// through the ingress node. `None`: it is ordinary traffic.
#[inline(always)]
pub(crate) fn reply(ctx: &Skb, config: &Config, tag: Tag, packet: &mut Packet) -> Option<Verdict> {
    if packet.proto == ipproto::ICMP {
        return icmp::from_task(ctx, packet, &tag).then(|| send_back(ctx, config, packet));
    }
    fragment::begin(packet, MESH_ZONE, place::REPLY);
    let ours = if packet.fragment == Fragment::Later {
        follow_back(ctx, tag, packet)
    } else {
        answers(ctx, config, tag, packet)
    };
    ours.then(|| send_back(ctx, config, packet))
}

/// Whether the packet answers a mesh connection of task `tag`: how it must look and where it goes is in
/// `scratch().fragmented` and `scratch().new.to` then.
#[inline(never)]
fn answers(ctx: &Skb, config: &Config, tag: Tag, packet: &Packet) -> bool {
    let key = connection::flow_key(MESH_ZONE, packet);
    let mut proved = false;
    // On a bridge of the engine's the address is what the container says it is: another task's connection is left
    // alone.
    let comes_from = |known: &Flow, is_pending: bool| {
        proved = !is_pending && !ending::ended(known);
        known.tag == tag
    };
    let Some(known) = follow::backward_if(ctx, &key, packet, comes_from) else { return false };
    let Ok(scratch) = scratch() else { return false };
    let way = mesh_direct::way_of(config, packet, known, proved);
    flow::touch(known);
    let (src, dst, peer, task) = (known.src, known.dst, known.peer, known.task);
    scratch.new.to = flow::translation(known);
    scratch.fragmented = Fragmented { src, dst, tag, peer, task, way, ..Fragmented::default() };
    true
}

/// The same for a later fragment, whose first has answered.
#[inline(never)]
fn follow_back(ctx: &Skb, tag: Tag, packet: &Packet) -> bool {
    if !fragment::recall(ctx, packet, MESH_ZONE, place::REPLY) {
        return false;
    }
    let Ok(scratch) = scratch() else { return false };
    let first = &scratch.fragmented;
    scratch.new.to = Translation { src: first.src, dst: first.dst, sport: packet.sport, dport: packet.dport };
    first.tag == tag
}

#[inline(always)]
fn send_back(ctx: &Skb, config: &Config, packet: &mut Packet) -> Verdict {
    if ttl::is_spent(packet) {
        return reject::time_exceeded(ctx, packet, config.gateway_ip);
    }
    let scratch = scratch()?;
    let back = &mut scratch.fragmented;
    let (peer, task) = (back.peer, back.task);
    let local = peer == config.vtep;
    if packet.proto == ipproto::TCP && packet.flags & tcpflag::SYN != 0 {
        encap::clamp_mss(ctx, config, packet, &peer)?;
    }
    let fits = local || encap::fits(ctx, config, &peer, packet);
    let stays = !fits && packet.dont_fragment;
    let mut direct = 0;
    if !local && (back.way == way::DIRECT || (stays && back.way == way::TUNNEL_IF_IT_FITS)) {
        match mesh_direct::ask(ctx, packet, &scratch.new.to, peer)? {
            Leaves::Directly(index) => direct = index,
            Leaves::TooBig(mtu) => return reject::too_big(ctx, packet, mtu),
            Leaves::Tunnel => {}
        }
    }
    back.way = if direct == 0 { way::TUNNEL } else { way::DIRECT };
    if direct == 0 && !fits {
        if packet.dont_fragment {
            return reject::too_big(ctx, packet, encap::room(config, &peer));
        }
        back.slow = 1;
    }
    let slow = back.slow != 0;
    if packet.fragment == Fragment::First {
        fragment::remember(ctx, packet, MESH_ZONE, place::REPLY)?;
    }
    ttl::lower(ctx, packet)?;
    let to = &scratch.new.to;
    if packet.proto == ipproto::ICMP {
        icmp::translate(ctx, packet, &MESH_ZONE)?;
    } else {
        nat::rewrite(ctx, packet, to)?;
    }
    (packet.src, packet.dst, packet.sport, packet.dport) = (to.src, to.dst, to.sport, to.dport);
    if direct != 0 {
        return mesh_direct::leave(ctx, packet, direct);
    }
    verdict::count(ctx, Counter::MeshReturn);
    if local {
        returns::check_return(ctx, packet, task, config.vtep)?;
        verdict::count(ctx, Counter::MeshReply);
        return host::leave(ctx, config, packet);
    }
    let mac = mac_of(TASK_MAC_PREFIX, task);
    if slow {
        return encap::by_kernel(ctx, config, mac_of(NODE_MAC_PREFIX, peer), mac);
    }
    let (to, hash) = (mac_of(NODE_MAC_PREFIX, peer), encap::kernels_hash(ctx));
    encap::encapsulate(ctx, config, peer, config.mesh_vni, to, mac, packet.tos, hash)
}
