//! When a connection has proved that both its ends are there, and moves from the pending to the established table.
//!
//! * TCP: the client acknowledges the SYN-ACK's sequence number, which a sender of invented addresses never saw; or the
//!   server sends data or a FIN, which it does only when its own TCP calls the connection established. A plain ACK of the
//!   server's proves nothing: one in SYN-RECEIVED answers any second SYN with another sequence number so.
//! * Everything else: the client sends again after it was answered. An answer alone proves nothing: an echo service
//!   answers a flood, too. Single questions and answers (DNS) so never leave the pending table.
//!
//! These functions run for the first few packets of a connection only (and for one-way UDP), so they are not inlined.

use aya_ebpf::{bindings::BPF_ANY, programs::TcContext};
use dataplane_common::{
    counter::Counter,
    flow::{Flow, FlowKey, flag},
    headers::{ipproto, tcpflag},
};

use crate::{
    flow,
    maps::{FLOWS, FLOWS_PENDING, scratch},
    parse::Packet,
    verdict,
};

/// Offsets in the TCP header.
pub(crate) const SEQUENCE: usize = 4;
pub(crate) const ACKNOWLEDGEMENT: usize = 8;

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
pub(crate) fn after(sequence: [u8; 4]) -> [u8; 3] {
    let next = u32::from_be_bytes(sequence).wrapping_add(1).to_be_bytes();
    [next[1], next[2], next[3]]
}

/// What the client's packet must acknowledge after this one of the server, if it is a SYN-ACK.
#[inline(always)]
pub(crate) fn expected_ack(ctx: &TcContext, packet: &Packet) -> Option<[u8; 3]> {
    if !is_syn_ack(packet.proto, packet.flags) {
        return None;
    }
    ctx.load(packet.l4 + SEQUENCE).ok().map(after)
}

/// Whether the client's packet proves that it has seen an answer. `expected`: of the SYN-ACK, zero if there was none;
/// `answered`: something came back.
#[inline(always)]
pub(crate) fn client_proves(ctx: &TcContext, packet: &Packet, expected: [u8; 3], answered: bool) -> bool {
    proves(packet.proto, packet.flags, expected, answered, || ctx.load(packet.l4 + ACKNOWLEDGEMENT).ok())
}

/// The same for who reads the acknowledgement number in another way.
#[inline(always)]
pub(crate) fn proves(
    proto: u8,
    flags: u8,
    expected: [u8; 3],
    answered: bool,
    acknowledgement: impl FnOnce() -> Option<[u8; 4]>,
) -> bool {
    if proto != ipproto::TCP {
        return answered;
    }
    if expected == [0; 3] || !is_plain_ack(flags) {
        return false;
    }
    matches!(acknowledgement(), Some(number) if [number[1], number[2], number[3]] == expected)
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
pub(crate) fn forward(ctx: &TcContext, key: &FlowKey, flow: &Flow, packet: &Packet) -> bool {
    let Ok(scratch) = scratch() else { return false };
    scratch.reply_key = flow::reply_key(key.zone, flow, key.proto);
    match flow::get(&scratch.reply_key) {
        Some(reply) if flow::answers(reply, key) => {
            client_proves(ctx, packet, reply.expected_ack, reply.flags & flag::SEEN != 0)
        }
        // The key is another connection's by now: this one's entry is about to be displaced, too.
        Some(_) => false,
        None => {
            scratch.flow = *flow;
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
pub(crate) fn backward(ctx: &TcContext, key: &FlowKey, reply: &mut Flow, packet: &Packet) -> bool {
    if let Some(expected) = expected_ack(ctx, packet) {
        reply.expected_ack = expected;
    }
    let Ok(scratch) = scratch() else { return false };
    scratch.reply_key = *key;
    server_proves(packet)
}

/// Moves both entries of the connection whose reply key is in `scratch` to the established table. When that is full they
/// stay where they are: the connection works as long as nothing displaces it. Whether they have moved.
// Called beside the functions above, not by them: the stack has no room for three frames below a program's.
#[inline(never)]
pub(crate) fn promote(ctx: &TcContext) -> bool {
    let Ok(scratch) = scratch() else { return false };
    let Some(reply) = flow::get(&scratch.reply_key) else { return false };
    scratch.key = flow::forward_key(scratch.reply_key.zone, reply, scratch.reply_key.proto);
    let forward = flow::pending(&scratch.key);
    // A direct connection that was only noted has no forward entry.
    let lone = forward.is_none() && reply.flags & flag::DIRECT != 0;
    scratch.flow = *reply;
    // From here on it says where the client's stream ends.
    scratch.flow.expected_ack = [0; 3];
    if FLOWS.insert(&scratch.reply_key, &scratch.flow, BPF_ANY as u64).is_err() {
        return false;
    }
    if !lone {
        match forward {
            Some(forward) => scratch.flow = *forward,
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
            return false;
        }
        let _ = FLOWS_PENDING.remove(&scratch.key);
    }
    let _ = FLOWS_PENDING.remove(&scratch.reply_key);
    verdict::count(ctx, Counter::FlowPromoted);
    true
}
