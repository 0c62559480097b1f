//! Connections made directly to a task that is also a VIP's backend.
//!
//! To the backend a VIP connection and a direct one from the same source port would be one and the same. So a direct
//! connection is noted under the key of its replies, where a VIP connection finds it and takes another source port; and
//! where a VIP connection was first, the direct one's source port is translated. The cost: one insertion per direct TCP
//! connection, a lookup per direct UDP datagram; nothing for TCP segments in between.

use dataplane_common::{
    addr::Port,
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{Endpoint, Local, endpoint_flag},
    flow::{Flow, flag},
    headers::{ipproto, tcpflag},
};

use crate::{
    atomics, clock, connection, ending, flow, follow,
    maps::DIRECT_GATE,
    nat::{self, Translation},
    opening,
    parse::{Fragment, Packet},
    scratch::{NewFlow, scratch},
    skb::Skb,
    succession, verdict,
};

/// Whether `packet`, which goes directly to `to`, is to be looked at more closely by [`translate`].
#[inline(always)]
pub(crate) fn concerns(to: &Endpoint, packet: &Packet) -> bool {
    if to.flags & endpoint_flag::VIP_BACKEND == 0 || packet.fragment == Fragment::Later {
        return false;
    }
    match packet.proto {
        ipproto::TCP => packet.flags & (tcpflag::SYN | tcpflag::FIN | tcpflag::RST) != 0 || gate_open(),
        ipproto::UDP => true,
        _ => false,
    }
}

/// Whether any direct connection has its source port translated.
#[inline(always)]
fn gate_open() -> bool {
    // SAFETY: aligned 8-byte loads.
    DIRECT_GATE.get_ptr(0).is_some_and(|gate| unsafe {
        core::ptr::read_volatile(&raw const (*gate).created) != core::ptr::read_volatile(&raw const (*gate).cleared)
    })
}

/// Notes the connection, or rewrites the packet so that it can be told apart from a VIP's. Whether it was rewritten.
// Its three steps are not inlined, and none calls the next: together they would need more stack than there is.
#[inline(always)]
pub(crate) fn translate(ctx: &Skb, local: &Local, backend: &Endpoint, packet: &mut Packet) -> Result<bool, DropReason> {
    let found = match known(ctx, local, backend, packet) {
        None => note(ctx, local, backend, packet)?,
        found => found,
    };
    let sport = match found {
        Some(sport) => sport,
        None => another_port(ctx, local, backend, packet)?,
    };
    if sport == packet.sport {
        return Ok(false);
    }
    let to = Translation { src: packet.src, dst: packet.dst, sport, dport: packet.dport };
    nat::rewrite(ctx, packet, &to)?;
    packet.sport = sport;
    Ok(true)
}

/// The source port that a connection of which both directions are known has at the backend.
#[inline(never)]
fn known(ctx: &Skb, local: &Local, backend: &Endpoint, packet: &Packet) -> Option<Port> {
    let key = connection::flow_key(local.net, packet);
    let known = follow::forward(ctx, &key, packet)?;
    if known.flags & flag::REPLY != 0 {
        // An answer to a connection that the other side opened, on this very node.
        return Some(packet.sport);
    }
    if known.tag == backend.tag && !succession::replaces(packet, known) {
        follow::touch_forward(&key, known, packet);
        return Some(known.sport);
    }
    flow::forget(&key, known);
    None
}

/// Notes a connection that keeps its source port. `None`: the backend already talks to this address and port on behalf
/// of a VIP.
#[inline(never)]
fn note(ctx: &Skb, local: &Local, backend: &Endpoint, packet: &Packet) -> Result<Option<Port>, DropReason> {
    let reply_key = connection::flow_key_of_answer(local.net, packet);
    if let Some(known) = flow::get(&reply_key) {
        let lone = known.flags & flag::DIRECT != 0 && known.src == packet.dst && known.dport == packet.sport;
        if lone && known.tag == backend.tag {
            if connection::is_syn(packet) {
                known.flags = flag::REPLY | flag::DIRECT;
            }
            if packet.flags & tcpflag::RST != 0 && packet.proto == ipproto::TCP && flow::is_established(&reply_key) {
                ending::of_lone_client(known, packet);
            }
            flow::note(known, 0);
            return Ok(Some(packet.sport));
        }
        if !connection::may_open(packet) {
            return Ok(Some(packet.sport));
        }
        if !lone && !flow::outlived(known, local.net, packet.proto) {
            return Ok(None);
        }
        let forward_key = connection::forward_key(local.net, known, packet.proto);
        flow::remove(&reply_key, &forward_key);
    }
    if !connection::may_open(packet) {
        return Ok(Some(packet.sport));
    }
    let reply = &mut scratch()?.flow;
    *reply = Flow::new(
        clock::now(),
        backend.tag,
        (packet.dst, packet.dport),
        (packet.src, packet.sport),
        [[0; 4]; 2],
        flag::REPLY | flag::DIRECT,
    );
    flow::put_pending(&reply_key, reply)?;
    verdict::count(ctx, Counter::DirectNoted);
    Ok(Some(packet.sport))
}

/// Enters a connection with another source port.
#[inline(never)]
fn another_port(ctx: &Skb, local: &Local, backend: &Endpoint, packet: &Packet) -> Result<Port, DropReason> {
    let to = Translation { src: packet.src, dst: packet.dst, sport: packet.sport, dport: packet.dport };
    let new = &mut scratch()?.new;
    *new = NewFlow { zone: local.net, to, tag: backend.tag, peer: [0; 4], task: [0; 4], flags: flag::DIRECT };
    opening::open(ctx, packet, new)?;
    if let Some(gate) = DIRECT_GATE.get_ptr_mut(0) {
        // SAFETY: aligned, in a live array map; the agent only reads this field.
        unsafe { atomics::fetch_add(&raw mut (*gate).created, 1) };
    }
    verdict::count(ctx, Counter::DirectTranslated);
    Ok(new.to.sport)
}
