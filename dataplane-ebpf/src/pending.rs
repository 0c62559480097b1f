//! When a connection has proved that both its ends are there, and moves from the pending to the established table.
//!
//! * TCP: the client acknowledges the SYN-ACK's sequence number, which a sender of invented addresses never saw; or the
//!   server sends data or a FIN, which it does only when its own TCP calls the connection established. A plain ACK of the
//!   server's proves nothing: one in SYN-RECEIVED answers any second SYN with another sequence number so.
//! * Everything else: the client sends again after it was answered. An answer alone proves nothing: an echo service
//!   answers a flood, too. Single questions and answers (DNS) so never leave the pending table.
//!
//! These functions run for the first few packets of a connection only (and for one-way UDP), so none of them is inlined
//! into the programs.

use aya_ebpf::bindings::{__sk_buff, BPF_ANY};
use dataplane_common::{
    addr::{Ip4, NetId},
    counter::Counter,
    flow::{Flow, FlowKey, MESH_ZONE, STOCK_ZONE, flag},
    headers::{ipproto, tcpflag},
};

use crate::{
    ending, flow,
    global::context,
    maps::{self, FLOWS},
    parse::Packet,
    scratch::{copy, scratch},
    shares,
    skb::Skb,
    verdict,
};

/// A TCP segment with ACK and neither SYN nor RST.
#[inline(always)]
fn is_plain_ack(flags: u8) -> bool {
    flags & (tcpflag::ACK | tcpflag::SYN | tcpflag::RST) == tcpflag::ACK
}

/// A TCP segment with SYN and ACK.
#[inline(always)]
pub(crate) fn is_syn_ack(proto: u8, flags: u8) -> bool {
    proto == ipproto::TCP && flags & (tcpflag::SYN | tcpflag::ACK) == tcpflag::SYN | tcpflag::ACK
}

/// What the client must acknowledge after a SYN-ACK with this sequence number.
#[inline(always)]
pub(crate) fn after(sequence: u32) -> [u8; 3] {
    lower(sequence.wrapping_add(1))
}

/// The lower 24 bits of a number, big endian.
#[inline(always)]
fn lower(number: u32) -> [u8; 3] {
    let [_, a, b, c] = number.to_be_bytes();
    [a, b, c]
}

/// What the client's packet must acknowledge after this one of the server, if it is a SYN-ACK.
#[inline(always)]
pub(crate) fn expected_ack(packet: &Packet) -> Option<[u8; 3]> {
    is_syn_ack(packet.proto, packet.flags).then(|| after(packet.sequence))
}

/// Whether the client's packet proves that it has seen an answer. `expected`: of the SYN-ACK, zero if there was none;
/// `answered`: something came back.
#[inline(always)]
pub(crate) fn client_proves(packet: &Packet, expected: [u8; 3], answered: bool) -> bool {
    proves(packet.proto, packet.flags, expected, answered, || Some(packet.acknowledgement))
}

/// The same for who reads the acknowledgement number in another way.
#[inline(always)]
pub(crate) fn proves(
    proto: u8,
    flags: u8,
    expected: [u8; 3],
    answered: bool,
    acknowledgement: impl FnOnce() -> Option<u32>,
) -> bool {
    if proto != ipproto::TCP {
        return answered;
    }
    if expected == [0; 3] || !is_plain_ack(flags) {
        return false;
    }
    acknowledgement().is_some_and(|number| lower(number) == expected)
}

/// Whether the server's packet proves that its side of the handshake is complete.
#[inline(always)]
pub(crate) fn server_proves(packet: &Packet) -> bool {
    // Zero on BIG TCP, which always carries data.
    let header = packet.l4 - packet.net + usize::from(packet.tcp_len);
    let data = packet.total_len == 0 || usize::from(packet.total_len) > header;
    completes(packet.proto, packet.flags, data)
}

/// The same for a packet with or without data.
#[inline(always)]
pub(crate) fn completes(proto: u8, flags: u8, data: bool) -> bool {
    proto == ipproto::TCP && is_plain_ack(flags) && (data || flags & tcpflag::FIN != 0)
}

/// A packet from the client of a pending connection. Whether it proves the connection: then [`promote`] follows.
#[inline(never)]
pub(crate) fn forward(key: &FlowKey, flow: &Flow, packet: &Packet) -> bool {
    let Ok(scratch) = scratch() else { return false };
    scratch.reply_key = flow::reply_key(key.zone, flow, key.proto);
    match flow::get(&scratch.reply_key) {
        Some(reply) if flow::answers(reply, key) => {
            client_proves(packet, reply.tcp_number, reply.flags & flag::SEEN != 0)
        }
        // The key is another connection's by now: this one's entry is about to be displaced, too.
        Some(_) => false,
        None => {
            copy(flow, &mut scratch.flow);
            scratch.flow.src = key.dst;
            scratch.flow.dst = key.src;
            scratch.flow.sport = key.dport;
            scratch.flow.dport = key.sport;
            scratch.flow.flags = flag::REPLY | (flow.flags & flag::DIRECT);
            let _ = flow::enter(&scratch.reply_key, &scratch.flow);
            false
        }
    }
}

/// A packet from the backend of a pending connection. Whether it proves the connection: then [`promote`] follows.
#[inline(never)]
pub(crate) fn backward(key: &FlowKey, reply: &mut Flow, packet: &Packet) -> bool {
    if let Some(expected) = expected_ack(packet) {
        reply.tcp_number = expected;
    }
    let Ok(scratch) = scratch() else { return false };
    scratch.reply_key = *key;
    server_proves(packet)
}

/// Moves both entries of the connection whose reply key is in `scratch` to the established table. Where they find no share
/// or no room there they stay where they are: the connection works as long as nothing displaces it. Whether they have
/// moved. `acknowledged`: of TCP, the sequence number that the backend waits for, as the packet that was the proof has it.
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
    scratch.key = flow::forward_key(scratch.reply_key.zone, reply, scratch.reply_key.proto);
    let forward = flow::pending(&scratch.key);
    // A direct connection that was only noted has no forward entry.
    let lone = forward.is_none() && reply.flags & flag::DIRECT != 0;
    copy(reply, &mut scratch.flow);
    // What the backend may have said to a stranger's segment meanwhile.
    scratch.flow.flags &= !(flag::ENDED | flag::KEPT);
    scratch.flow.tcp_number = ending::upper(acknowledged);
    if !shares::admits_flow(&scratch.key) || FLOWS.insert(&scratch.reply_key, &scratch.flow, BPF_ANY as u64).is_err() {
        return keep(ctx, reply);
    }
    if !lone {
        match forward {
            Some(forward) => {
                copy(forward, &mut scratch.flow);
                scratch.flow.flags &= !flag::ENDED;
            }
            None => {
                scratch.flow.src = scratch.reply_key.dst;
                scratch.flow.dst = scratch.reply_key.src;
                scratch.flow.sport = scratch.reply_key.dport;
                scratch.flow.dport = scratch.reply_key.sport;
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

/// Whether this node is also the connection's ingress node: then the connection is in `AFFINITY` too, and its proof is
/// counted there. `peer`: see [`Flow::peer`].
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
