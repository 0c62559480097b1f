//! Routing mesh, ingress node (N1), towards a backend on a node without Hiveway. Its engine knows nothing of mesh
//! frames, but a task serves its published ports on its ingress address too. So the connection is translated here, from
//! this node's own ingress address to the task's, and travels as ordinary traffic of the ingress network. The price is
//! the client's address, which the backend does not see.
//!
//! Both directions are translated entries under a zone of their own; the table of clients names the backend as for any
//! mesh connection.

use dataplane_common::{
    addr::Ip4,
    config::Config,
    counter::Counter,
    drop_reason::DropReason,
    flow::{AffinityKey, Flow, MESH_ZONE, STOCK_ZONE, flag},
    fragment::{Fragmented, place},
    headers::{INNER_ETH, INNER_NET, ethertype, ipproto, tcpflag},
};

use crate::{
    affinity, connection, decap, encap, ending, flow, follow, fragment, host, icmp, maps,
    nat::{self, Translation},
    opening,
    parse::{self, Fragment, Packet},
    scratch::{NewFlow, scratch},
    skb::{self, Skb},
    succession, ttl,
    verdict::{self, Action, Verdict},
};

/// Translates a client's packet, whose backend behind `vtep` is in the table of clients.
#[inline(always)]
pub(crate) fn translate(ctx: &Skb, packet: &Packet, ingress_ip: &Ip4, vtep: &Ip4) -> Result<(), DropReason> {
    if *ingress_ip == [0; 4] {
        return Err(DropReason::NotConfigured);
    }
    if icmp::is_error(packet) {
        return icmp::translate(ctx, packet, &STOCK_ZONE);
    }
    if packet.fragment == Fragment::Later {
        let first = &scratch()?.fragmented;
        let (src, dst) = (first.src, first.dst);
        scratch()?.new.to = Translation { src, dst, sport: packet.sport, dport: packet.dport };
    } else {
        // Opened from here: the stack has no room for the frame of `is_known` below that.
        if !is_known(ctx, packet, ingress_ip, vtep)? {
            opening::open(ctx, packet, &mut scratch()?.new)?;
            verdict::count(ctx, Counter::MeshStock);
        }
        let to = &scratch()?.new.to;
        // The task's address is where it leads, too.
        let decided = Fragmented { src: to.src, dst: to.dst, task: to.dst, peer: *vtep, ..Fragmented::default() };
        fragment::decided(ctx, packet, MESH_ZONE, place::INGRESS, decided)?;
    }
    nat::rewrite(ctx, packet, &scratch()?.new.to)?;
    clamp(ctx, packet, vtep)
}

/// Lowers the MSS of a SYN to what fits the tunnel to `vtep`: the node there does it for nobody.
#[inline(always)]
fn clamp(ctx: &Skb, packet: &Packet, vtep: &Ip4) -> Result<(), DropReason> {
    if packet.proto == ipproto::TCP && packet.flags & tcpflag::SYN != 0 && packet.fragment != Fragment::Later {
        encap::clamp_mss(ctx, maps::config()?, packet, vtep)?;
    }
    Ok(())
}

/// Whether the connection of a client's packet, whose backend is in the table of clients, is known; puts its
/// translation into `scratch().new.to`, or into `scratch().new` what is needed to open it.
#[inline(never)]
fn is_known(ctx: &Skb, packet: &Packet, ingress_ip: &Ip4, vtep: &Ip4) -> Result<bool, DropReason> {
    let given = affinity::of_packet(packet).ok_or(DropReason::BackendGone)?;
    let key = connection::flow_key(STOCK_ZONE, packet);
    if let Some(known) = follow::forward(ctx, &key, packet) {
        let same = known.flags & flag::REPLY == 0 && known.tag == given.tag && known.peer == *vtep;
        if same && !succession::replaces(packet, known) {
            follow::of_client(&key, known, packet);
            flow::touch(known);
            if ending::ended(known) {
                given.flags |= flag::ENDED;
            }
            scratch()?.new.to = flow::translation(known);
            return Ok(true);
        }
        flow::forget(&key, known);
    }
    let to = Translation { src: *ingress_ip, dst: given.ip, sport: packet.sport, dport: packet.dport };
    scratch()?.new = NewFlow { zone: STOCK_ZONE, to, tag: given.tag, peer: *vtep, task: given.ip, flags: 0 };
    Ok(false)
}

/// A frame in the VNI of the ingress network, which the engine carries. Ours only if it answers a connection of ours,
/// and comes from where that was given to; the rest passes to the engine untouched.
#[inline(always)]
pub(crate) fn from_tunnel(ctx: &Skb, config: &Config, outer: &Packet) -> Verdict {
    if config.ingress_ip == [0; 4] || outer.has_options() {
        return Ok(Action::Pass);
    }
    let Ok(eth) = parse::eth(ctx, INNER_ETH) else { return Ok(Action::Pass) };
    if eth.ethertype != ethertype::IPV4 {
        return Ok(Action::Pass);
    }
    let Ok(inner) = skb::inner(ctx, INNER_NET) else { return Ok(Action::Pass) };
    if inner.dst != config.ingress_ip || !answers(ctx, inner, &outer.src) {
        return Ok(Action::Pass);
    }
    decap::decapsulate(ctx, outer.tos, inner)?;
    // Not answered where it is spent: what was in a tunnel cannot be turned into its answer.
    ttl::lower(ctx, inner)?;
    let to = &scratch()?.new.to;
    if icmp::is_error(inner) {
        icmp::translate(ctx, inner, &STOCK_ZONE)?;
    } else {
        let decided = Fragmented { src: to.src, dst: to.dst, peer: outer.src, ..Fragmented::default() };
        fragment::decided(ctx, inner, STOCK_ZONE, place::RETURN, decided)?;
        nat::rewrite(ctx, inner, to)?;
        clamp(ctx, inner, &outer.src)?;
    }
    (inner.src, inner.dst) = (to.src, to.dst);
    verdict::count(ctx, Counter::MeshReply);
    host::leave(ctx, config, inner)
}

/// Whether `packet` answers a connection that was given to a task behind `vtep`; notes it. How it shall look to the
/// client is in `scratch().new.to`.
#[inline(never)]
fn answers(ctx: &Skb, packet: &Packet, vtep: &Ip4) -> bool {
    let Ok(scratch) = scratch() else { return false };
    if packet.fragment == Fragment::Later {
        if !fragment::recall(ctx, packet, STOCK_ZONE, place::RETURN) {
            return false;
        }
        let first = &scratch.fragmented;
        scratch.new.to = Translation { src: first.src, dst: first.dst, sport: packet.sport, dport: packet.dport };
        return first.peer == *vtep;
    }
    if icmp::is_error(packet) {
        let Some(quote) = skb::quoted(ctx, packet, &STOCK_ZONE) else { return false };
        let Some(known) = flow::get(&quote.key) else { return false };
        scratch.new.to = flow::translation(known);
        // A router on the way keeps its address; only the task itself is shown as the published port.
        if packet.src != quote.key.src {
            scratch.new.to.src = packet.src;
        }
        return known.flags & flag::REPLY != 0 && known.peer == *vtep;
    }
    if packet.proto == ipproto::ICMP {
        return false;
    }
    let key = connection::flow_key(STOCK_ZONE, packet);
    // Anybody may send a frame with this VNI: what it says is noted only if it comes from the backend's node.
    let Some(known) = follow::backward_if(ctx, &key, packet, |known, _| known.peer == *vtep) else { return false };
    scratch.new.to = flow::translation(known);
    noted(ctx, packet, known);
    true
}

/// Notes an answer in both tables.
#[inline(always)]
fn noted(ctx: &Skb, packet: &Packet, known: &mut Flow) {
    flow::touch(known);
    let key = AffinityKey::new((known.dst, known.dport), (known.src, known.sport), packet.proto);
    if let Some(given) = affinity::find(&key) {
        affinity::answered(ctx, &key, given, packet);
    }
}
