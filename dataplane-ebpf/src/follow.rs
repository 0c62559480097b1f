//! A packet of a translated connection: finds its entry, establishes one that has proved itself, and notes what the
//! packet says about the connection's end. The rules are in `dataplane-core` (`proof`, `ending`); this is their way
//! through the tables.

use dataplane_common::{
    addr::NetId,
    flow::{Flow, FlowKey, flag},
    headers::ipproto,
};

use crate::{
    clock, connection, ending, flow,
    nat::Translation,
    parse::{Fragment, Packet},
    pending,
    scratch::scratch,
    skb::Skb,
};

/// Finds the entry of a packet from the client. One that is still pending may have proved itself with this packet.
#[inline(always)]
pub(crate) fn forward(ctx: &Skb, key: &FlowKey, packet: &Packet) -> Option<&'static mut Flow> {
    let (flow, is_pending) = flow::find(key)?;
    if !is_pending {
        return Some(flow);
    }
    if flow.flags & flag::REPLY != 0 || !pending::forward(key, flow, packet) {
        return Some(flow);
    }
    pending::promote(ctx, packet.sequence);
    // It may have gone to the other table, or was displaced since it was found.
    flow::get(key)
}

/// Finds the reply entry of a packet from the backend, likewise; notes what that says about the connection's end.
#[inline(always)]
pub(crate) fn backward(ctx: &Skb, key: &FlowKey, packet: &Packet) -> Option<&'static mut Flow> {
    backward_if(ctx, key, packet, |_, _| true)
}

/// The same for an entry that `comes_from` lets pass, pending or not; of another nothing is noted.
#[inline(always)]
pub(crate) fn backward_if(
    ctx: &Skb,
    key: &FlowKey,
    packet: &Packet,
    comes_from: impl FnOnce(&Flow, bool) -> bool,
) -> Option<&'static mut Flow> {
    let (mut flow, mut is_pending) = flow::find(key)?;
    if !comes_from(flow, is_pending) {
        return None;
    }
    if is_pending && flow.flags & flag::REPLY != 0 && pending::backward(key, flow, packet) {
        pending::promote(ctx, packet.acknowledgement);
        (flow, is_pending) = flow::find(key)?;
    }
    if flow.flags & flag::REPLY == 0 {
        return None;
    }
    of_backend(key, flow, packet, !is_pending);
    Some(flow)
}

/// If the packet is a reply of a VIP flow: how it must look to the client.
#[inline(always)]
pub(crate) fn reply(ctx: &Skb, net: NetId, packet: &Packet) -> Option<Translation> {
    if packet.fragment == Fragment::Later || packet.proto == ipproto::ICMP {
        return None;
    }
    let flow = backward(ctx, &connection::flow_key(net, packet), packet)?;
    flow::touch(flow);
    Some(flow::translation(flow))
}

/// Notes that `packet` of the client's went by the forward entry `known` with the key `key`. A task that is its own
/// backend answers to the VIP, too: what it finds there is a reply entry.
#[inline(always)]
pub(crate) fn touch_forward(key: &FlowKey, known: &mut Flow, packet: &Packet) {
    if known.flags & flag::REPLY == 0 {
        of_client(key, known, packet);
    } else {
        of_backend(key, known, packet, flow::is_established(key));
    }
    flow::touch(known);
}

/// Notes what a packet of the client's says about the end of the connection with the established forward
/// entry `forward`.
#[inline(always)]
pub(crate) fn of_client(key: &FlowKey, forward: &mut Flow, packet: &Packet) {
    if ending::client_ends(packet) {
        client_has_ended(key, forward, packet);
    }
}

// Not inlined, and its keys in scratch memory: the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
fn client_has_ended(key: &FlowKey, forward: &mut Flow, packet: &Packet) {
    let Ok(scratch) = scratch() else { return };
    scratch.reply_key = connection::reply_key(key.zone, forward, key.proto);
    let Some(reply) = flow::established(&scratch.reply_key) else { return };
    ending::of_client(forward, reply, packet, clock::now);
}

/// Notes what a packet of the backend's says about the connection with the reply entry `reply`, which may be
/// `established`.
#[inline(always)]
fn of_backend(key: &FlowKey, reply: &mut Flow, packet: &Packet, established: bool) {
    if ending::backend_speaks(reply, packet, established) {
        flow_backend_has_spoken(key, reply, packet);
    }
}

/// Global, see [`crate::global`]; returns 0. Its key in scratch memory, likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_backend_has_spoken(key: *const FlowKey, reply: *mut Flow, packet: *const Packet) -> u32 {
    // SAFETY: `of_backend` passes references.
    let given = unsafe { (key.as_ref(), reply.as_mut(), packet.as_ref()) };
    let (Some(key), Some(reply), Some(packet)) = given else { return 0 };
    let Ok(scratch) = scratch() else { return 0 };
    scratch.key = connection::forward_key(key.zone, reply, key.proto);
    let forward = flow::get(&scratch.key).filter(|forward| connection::leads_to(forward, key));
    ending::of_backend(reply, forward, packet, clock::now);
    0
}
