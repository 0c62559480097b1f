//! How a connection that has proved itself moves from the pending to the established table; what proves it is in
//! `dataplane-core`'s `proof`.
//!
//! These functions run for the first few packets of a connection only (and for one-way UDP), so none of them is inlined
//! into the programs.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use dataplane_common::{
    addr::{Ip4, NetId},
    counter::Counter,
    flow::{Flow, FlowKey, MESH_ZONE, STOCK_ZONE, flag},
};

use crate::{
    connection, flow,
    global::context,
    maps::{self, FLOWS},
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
    match flow::get(&scratch.reply_key) {
        Some(reply) if connection::answers(reply, key) => proof::client_proves_flow(packet, reply),
        // The key is another connection's by now: this one's entry is about to be displaced, too.
        Some(_) => false,
        None => {
            copy(flow, &mut scratch.flow);
            connection::answer(&mut scratch.flow, key);
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

/// Moves both entries of the connection whose reply key is in `scratch` to the established table. Where they find no
/// share or no room there they stay where they are: the connection works as long as nothing displaces it. Whether they
/// have moved. `acknowledged`: of TCP, the sequence number that the backend waits for, as the packet that was the proof
/// has it.
#[inline(always)]
pub(crate) fn promote(ctx: &Skb, acknowledged: u32) -> bool {
    flow_promote(ctx.skb.skb, acknowledged)
}

/// Global, see [`crate::global`].
// Called beside the functions above, not by them: the stack has no room for three frames below a program's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_promote(ctx: *mut __sk_buff, acknowledged: u32) -> bool {
    let ctx = &context(ctx);
    let Ok(scratch) = scratch() else { return false };
    let Some(reply) = flow::get(&scratch.reply_key) else { return false };
    scratch.key = connection::forward_key(scratch.reply_key.zone, reply, scratch.reply_key.proto);
    let forward = flow::pending(&scratch.key);
    // A direct connection that was only noted has no forward entry.
    let lone = forward.is_none() && reply.flags & flag::DIRECT != 0;
    copy(reply, &mut scratch.flow);
    proof::establish_reply(&mut scratch.flow, acknowledged);
    if !shares::admits_flow(&scratch.key) || FLOWS.insert(&scratch.reply_key, &scratch.flow, BPF_ANY as u64).is_err() {
        return keep(ctx, reply);
    }
    if !lone {
        match forward {
            Some(forward) => {
                copy(forward, &mut scratch.flow);
                proof::establish_forward(&mut scratch.flow);
            }
            None => {
                connection::answer(&mut scratch.flow, &scratch.reply_key);
                scratch.flow.flags = flag::SEEN;
            }
        }
        if FLOWS.insert(&scratch.key, &scratch.flow, BPF_ANY as u64).is_err() {
            let _ = FLOWS.remove(&scratch.reply_key);
            return keep(ctx, reply);
        }
        flow::remove_pending(&scratch.key);
    }
    flow::remove_pending(&scratch.reply_key);
    shares::count_flow(&scratch.key, if lone { 1 } else { 2 });
    if !is_counted_at_ingress(scratch.reply_key.zone, scratch.flow.peer) {
        verdict::count(ctx, Counter::FlowPromoted);
    }
    true
}

/// Whether this node is also the connection's ingress node: then the connection is in the table of clients too, and its
/// proof is counted there. `peer`: see [`Flow::peer`].
#[inline(always)]
fn is_counted_at_ingress(zone: NetId, peer: Ip4) -> bool {
    zone == STOCK_ZONE || (zone == MESH_ZONE && maps::config().is_ok_and(|config| config.vtep == peer))
}

/// Notes that a connection has proved itself and stays where it is. Returns that it has not moved.
#[inline(always)]
fn keep(ctx: &Skb, reply: &mut Flow) -> bool {
    if reply.flags & flag::KEPT == 0 {
        reply.flags |= flag::KEPT;
        verdict::count(ctx, Counter::KeptPending);
    }
    false
}
