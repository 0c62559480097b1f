//! How a connection that has proved itself is established; what proves it is in `dataplane-core`'s `proof`.
//!
//! These functions run for the first few packets of a connection only (and for one-way UDP), so none of them is inlined
//! into the programs.

use aya_ebpf::bindings::__sk_buff;
use dataplane_common::{
    addr::{Ip4, NetId},
    counter::Counter,
    flow::{Flow, FlowKey, MESH_ZONE, STOCK_ZONE, flag},
};

use crate::{
    clock, connection, flow,
    flow_lines::{self, Translated},
    global::context,
    lines::Promotion,
    lines_map::{self, Established},
    maps,
    parse::Packet,
    proof,
    scratch::{copy, scratch},
    shares,
    skb::Skb,
    verdict,
};

/// A packet from the client of a pending connection. Whether it proves the connection: then [`promote`] follows.
#[inline(never)]
pub(crate) fn forward(key: &FlowKey, flow: &Flow, packet: &Packet) -> bool {
    let Ok(scratch) = scratch() else { return false };
    scratch.reply_key = connection::reply_key(key.zone, flow, key.proto);
    match flow::find(&scratch.reply_key) {
        Some((reply, is_pending)) if connection::answers(reply, key) => {
            !is_pending || proof::client_proves_flow(packet, reply)
        }
        // The key is another connection's by now: this one's entry is about to be displaced, too.
        Some(_) => false,
        None => {
            copy(flow, &mut scratch.flow);
            connection::answer(&mut scratch.flow, key);
            scratch.flow.created = clock::now();
            scratch.flow.flags = flag::REPLY | (flow.flags & flag::DIRECT);
            let _ = flow::enter(&scratch.reply_key, &scratch.flow);
            false
        }
    }
}

/// A packet from the backend of a pending connection. Whether it proves the connection: then [`promote`] follows.
#[inline(never)]
pub(crate) fn backward(key: &FlowKey, reply: &mut Flow, packet: &Packet) -> bool {
    proof::note_syn_ack(&mut reply.tcp_number, packet);
    let Ok(scratch) = scratch() else { return false };
    scratch.reply_key = *key;
    proof::server_proves(packet)
}

/// Establishes both entries of the connection whose reply key is in `scratch`, or neither. Where they find no share or
/// no room they stay pending: the connection works as long as nothing displaces it. `acknowledged`: of TCP, the
/// sequence number that the backend waits for, as the packet that was the proof has it.
// One step after the other, beside the functions above and not below them: the stack has no room for more frames.
#[inline(always)]
pub(crate) fn promote(ctx: &Skb, acknowledged: u32) {
    let forward = flow_promote_forward(ctx.skb.skb);
    if forward != promoted::PENDING && flow_promote_reply(ctx.skb.skb, acknowledged) == 0 && forward == promoted::NEW {
        flow_demote_forward();
    }
}

/// What [`flow_promote_forward`] returns.
mod promoted {
    /// The forward entry is pending: the reply entry must stay so.
    pub(super) const PENDING: u32 = 0;
    /// It was established before, or there is none to establish.
    pub(super) const DONE: u32 = 1;
    /// This call has established it.
    pub(super) const NEW: u32 = 2;
}

/// Global, see [`crate::global`]: establishes the forward entry, whose key it puts into `scratch`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_promote_forward(ctx: *mut __sk_buff) -> u32 {
    let Ok(scratch) = scratch() else { return promoted::PENDING };
    let Some((reply, is_pending)) = flow::find(&scratch.reply_key) else { return promoted::PENDING };
    scratch.key = connection::forward_key(scratch.reply_key.zone, reply, scratch.reply_key.proto);
    let key = &scratch.key;
    if !shares::admits_flow(key) {
        if is_pending {
            keep(&context(ctx), reply);
        }
        return promoted::PENDING;
    }
    if flow::find(key).is_none() {
        // A direct connection that was only noted has none.
        if reply.flags & flag::DIRECT != 0 {
            return promoted::DONE;
        }
        // It was displaced.
        copy(reply, &mut scratch.flow);
        connection::answer(&mut scratch.flow, &scratch.reply_key);
        scratch.flow.created = clock::now();
        scratch.flow.flags = flag::SEEN;
        let _ = flow::put_pending(key, &scratch.flow);
    }
    let Some((known, forward_is_pending)) = flow::find(key) else { return promoted::PENDING };
    // Of another connection by now.
    if !connection::leads_to(known, &scratch.reply_key) {
        return promoted::PENDING;
    }
    if !forward_is_pending {
        return promoted::DONE;
    }
    let ended = known.flags & flag::ENDED;
    proof::establish_forward(known);
    match establish(key, known) {
        Established::Now => {
            shares::count_flow(key, 1);
            promoted::NEW
        }
        Established::Elsewhere => promoted::PENDING,
        Established::NoRoom => {
            known.flags |= ended;
            if is_pending {
                keep(&context(ctx), reply);
            }
            promoted::PENDING
        }
    }
}

/// Global, see [`crate::global`]: establishes the reply entry. Whether it is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_promote_reply(ctx: *mut __sk_buff, acknowledged: u32) -> u32 {
    let ctx = &context(ctx);
    let Ok(scratch) = scratch() else { return 0 };
    let Some((reply, is_pending)) = flow::find(&scratch.reply_key) else { return 0 };
    if !is_pending {
        return 1;
    }
    let (peer, noted, expected) = (reply.peer, reply.flags & (flag::KEPT | flag::ENDED), reply.tcp_number);
    // Before it is established: from then on other CPUs go by it.
    proof::establish_reply(reply, acknowledged);
    match establish(&scratch.reply_key, reply) {
        Established::Now => {
            shares::count_flow(&scratch.key, 1);
            if !is_counted_at_ingress(scratch.reply_key.zone, peer) {
                verdict::count(ctx, Counter::FlowPromoted);
            }
            1
        }
        Established::Elsewhere => u32::from(flow::is_established(&scratch.reply_key)),
        Established::NoRoom => {
            reply.flags |= noted;
            reply.tcp_number = expected;
            keep(ctx, reply);
            0
        }
    }
}

/// Global, see [`crate::global`]; returns 0. Takes back what [`flow_promote_forward`] has done: an established forward
/// entry whose reply entry may be displaced would lead there for as long as its connection is used.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_demote_forward() -> u32 {
    let Ok(scratch) = scratch() else { return 0 };
    let key = &scratch.key;
    if flow_lines::demote(key) {
        shares::count_flow(key, -1);
        return 0;
    }
    let Some((known, false)) = flow::find(key) else { return 0 };
    copy(known, &mut scratch.flow);
    if flow::put_pending(key, &scratch.flow).is_ok() {
        shares::count_flow(key, lines_map::take_out_spilled::<Translated>(key));
    }
    0
}

/// Makes the pending entry `known` an established one.
#[inline(always)]
fn establish(key: &FlowKey, known: &mut Flow) -> Established {
    const GONE: u32 = Promotion::Gone as u32;
    const DONE: u32 = Promotion::Done as u32;
    match flow_lines::promote(key) {
        GONE => Established::Elsewhere,
        DONE => Established::Now,
        _ => spill(key, known),
    }
}

/// Moves an entry of a connection that has proved itself to `FLOWS`.
#[inline(never)]
fn spill(key: &FlowKey, known: &mut Flow) -> Established {
    let Ok(scratch) = scratch() else { return Established::NoRoom };
    let Some(seen) = flow_lines::copied(key, known, &mut scratch.flow) else { return Established::Elsewhere };
    lines_map::spill::<Translated>(key, known, &scratch.flow, seen)
}

/// Whether this node is also the connection's ingress node: then the connection is in the table of clients too, and its
/// proof is counted there. `peer`: see [`Flow::peer`].
#[inline(always)]
fn is_counted_at_ingress(zone: NetId, peer: Ip4) -> bool {
    zone == STOCK_ZONE || (zone == MESH_ZONE && maps::config().is_ok_and(|config| config.vtep == peer))
}

/// Notes that a connection has proved itself and stays pending.
#[inline(always)]
fn keep(ctx: &Skb, reply: &mut Flow) {
    if reply.flags & flag::KEPT == 0 {
        reply.flags |= flag::KEPT;
        verdict::count(ctx, Counter::KeptPending);
    }
}
