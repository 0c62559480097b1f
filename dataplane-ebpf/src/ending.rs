//! When a connection has ended: its key may then be used for another one, and is kept for a short time only.
//!
//! What only a client says ends nothing, for anybody may say it with the client's address. The backend's word counts: its
//! RST, or its FIN together with its acknowledgement of the client's. An RST of the client's counts where it stands at the
//! sequence number that the backend waits for, as RFC 5961 section 3.2 has it; at an ingress node, which does not follow
//! the numbers, the backend is asked (see `mesh_backend.rs`). Until then a SYN goes to the connection's own backend, which
//! answers it as RFC 5961 section 4.2 says, or opens a connection anew if it knows of none. So does one that follows both
//! FINs at once: the last segments of the backend may have been lost behind this node.
//!
//! An SCTP association ends by the backend's chunks only, and an INIT goes to its own backend as long as there is an entry:
//! a backend that lives aborts what a stranger's malformed INIT asks for, and one that has ended opens an association anew
//! (RFC 9260 section 5.2).

use dataplane_common::{
    flow::{Affinity, AffinityKey, Flow, FlowKey, flag},
    headers::{ipproto, sctpchunk, tcpflag},
};

use crate::{
    affinity, clock, flow,
    parse::{Fragment, Packet},
    scratch::scratch,
};

/// An RST of the client's may lie this many times 256 bytes behind what the backend has acknowledged last: what it got
/// meanwhile.
const UNACKNOWLEDGED: u32 = 1;

/// The upper 24 bits of a TCP sequence number, big endian.
#[inline(always)]
pub(crate) fn upper(number: u32) -> [u8; 3] {
    let [a, b, c, _] = number.to_be_bytes();
    [a, b, c]
}

/// The upper 24 bits of the sequence number behind a segment with a FIN: of `payload` bytes, from `sequence` on.
#[inline(always)]
pub(crate) fn behind_fin(sequence: u32, payload: u32) -> [u8; 3] {
    // The FIN counts as one.
    upper(sequence.wrapping_add(payload).wrapping_add(1))
}

#[inline(always)]
fn end_of(packet: &Packet) -> [u8; 3] {
    let headers = (packet.l4 - packet.net) as u32 + u32::from(packet.tcp_len);
    behind_fin(packet.sequence, u32::from(packet.total_len).wrapping_sub(headers))
}

/// Whether a segment has a FIN, and its end is known: of a part of one it is not, nor of one with more than 64 kB.
#[inline(always)]
fn is_fin(packet: &Packet) -> bool {
    packet.flags & tcpflag::FIN != 0 && packet.fragment == Fragment::Whole && packet.total_len != 0
}

/// Whether a segment of the client's has something to say about the connection's end.
#[inline(always)]
fn client_ends(packet: &Packet) -> bool {
    packet.proto == ipproto::TCP && (packet.flags & tcpflag::RST != 0 || is_fin(packet))
}

/// Whether a packet of the client's opens another connection in the place of its established or pending one, at the ingress
/// node.
///
/// Not where the backend has only sent an RST since the client has proved itself. A backend that has not accepted yet (a full
/// queue, `TCP_DEFER_ACCEPT`) answers so to anybody who acknowledges what it never sent, and keeps the connection (RFC 9293
/// section 3.10.7.4, SYN-RECEIVED): it is asked again, with the SYN.
// Not inlined: the verifier walks what follows once instead of once per condition.
#[inline(never)]
pub(crate) fn makes_room(known: &Affinity, packet: &Packet) -> bool {
    const FINS: u8 = flag::FIN | flag::BACKEND_FIN;
    packet.proto == ipproto::TCP
        && known.flags & flag::ENDED != 0
        && known.unspoken == 0
        && flow::is_syn(packet)
        && (known.flags & FINS != FINS || flow::is_quiet(known.last_seen))
}

/// Whether a packet of the backend's, with these [`Packet::flags`], says that the connection is over. SHUTDOWN ACK: it has
/// nothing more to send, and waits for the client's last word.
#[inline(always)]
fn is_over(proto: u8, flags: u8) -> bool {
    match proto {
        ipproto::TCP => flags & tcpflag::RST != 0,
        ipproto::SCTP => {
            matches!(flags, sctpchunk::ABORT | sctpchunk::SHUTDOWN_ACK | sctpchunk::SHUTDOWN_COMPLETE)
        }
        _ => false,
    }
}

/// Whether a packet of the backend's, with these [`Packet::flags`], begins a connection.
#[inline(always)]
fn begins(proto: u8, flags: u8) -> bool {
    match proto {
        ipproto::TCP => flags & (tcpflag::SYN | tcpflag::ACK) == tcpflag::SYN | tcpflag::ACK,
        ipproto::SCTP => flags == sctpchunk::INIT_ACK,
        _ => false,
    }
}

/// The bits of `flag` that a connection has after a packet of its backend's. `fin`: the one for a FIN of the backend's.
/// `acknowledged`: whether the packet acknowledges a FIN of the client's.
#[inline(always)]
fn after_backend(bits: u8, fin: u8, proto: u8, flags: u8, acknowledged: bool) -> u8 {
    if begins(proto, flags) {
        return bits & !(fin | flag::FIN | flag::ENDED);
    }
    if is_over(proto, flags) {
        return bits | flag::ENDED;
    }
    let bits = if proto == ipproto::TCP && flags & tcpflag::FIN != 0 { bits | fin } else { bits };
    if bits & fin != 0 && acknowledged {
        bits | flag::ENDED
    } else {
        // An RST or ABORT that was meant for somebody else's segment, or a FIN that the client never sent: the backend
        // goes on.
        bits & !flag::ENDED
    }
}

/// Notes what a packet of the client's says about the end of the connection with the forward entry `forward`, in `FLOWS`.
#[inline(always)]
pub(crate) fn of_client(key: &FlowKey, forward: &mut Flow, packet: &Packet) {
    if client_ends(packet) {
        client_has_ended(key, forward, packet);
    }
}

// Not inlined, and its keys in scratch memory: the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
fn client_has_ended(key: &FlowKey, forward: &mut Flow, packet: &Packet) {
    let Ok(scratch) = scratch() else { return };
    scratch.reply_key = flow::reply_key(key.zone, forward, key.proto);
    let Some(reply) = flow::established(&scratch.reply_key) else { return };
    if packet.flags & tcpflag::RST != 0 {
        if is_next(packet.sequence, reply.tcp_number) {
            forward.flags |= flag::ENDED;
            reply.flags |= flag::ENDED;
        }
        return;
    }
    if !flow::ended(forward) {
        forward.tcp_number = end_of(packet);
        forward.flags |= flag::FIN;
    }
    // Not only packets of the backend's: see `flow::QUIET_NS`.
    reply.last_seen = clock::now();
}

/// The same for an RST of a direct connection that was only noted: its entry in `FLOWS` is the reply entry.
#[inline(always)]
pub(crate) fn of_lone_client(reply: &mut Flow, packet: &Packet) {
    if is_next(packet.sequence, reply.tcp_number) {
        reply.flags |= flag::ENDED;
    }
}

/// Whether `sequence` is what the backend waits for, that has acknowledged `acknowledged`. Zero: nothing that is known of,
/// as in the entries of versions that did not note it.
#[inline(always)]
fn is_next(sequence: u32, acknowledged: [u8; 3]) -> bool {
    let [a, b, c] = acknowledged;
    let ahead = (sequence >> 8).wrapping_sub(u32::from_be_bytes([0, a, b, c])) & 0xff_ffff;
    ahead <= UNACKNOWLEDGED && acknowledged != [0; 3]
}

/// Notes what a packet of the backend's says about the connection with the reply entry `reply`, in `FLOWS` if it is
/// `established`.
#[inline(always)]
pub(crate) fn of_backend(key: &FlowKey, reply: &mut Flow, packet: &Packet, established: bool) {
    let tcp = packet.proto == ipproto::TCP;
    if tcp && established && packet.flags & tcpflag::ACK != 0 {
        let acknowledged = upper(packet.acknowledgement);
        if reply.tcp_number != acknowledged {
            reply.tcp_number = acknowledged;
        }
    }
    let ends = packet.flags & (tcpflag::FIN | tcpflag::RST) != 0;
    let again = established && packet.flags & tcpflag::SYN != 0;
    if (tcp && (ends || again || reply.flags & (flag::FIN | flag::ENDED) != 0)) || packet.proto == ipproto::SCTP {
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
    scratch.key = flow::forward_key(key.zone, reply, key.proto);
    let forward = flow::get(&scratch.key).filter(|forward| flow::leads_to(forward, key));
    let acknowledged = forward
        .as_ref()
        .is_some_and(|forward| forward.flags & flag::FIN != 0 && forward.tcp_number == upper(packet.acknowledgement));
    let was = reply.flags;
    reply.flags = after_backend(was, flag::FIN, packet.proto, packet.flags, acknowledged);
    if let Some(forward) = forward {
        if begins(packet.proto, packet.flags) {
            forward.flags &= !(flag::FIN | flag::ENDED);
        } else {
            forward.flags = (forward.flags & !flag::ENDED) | (reply.flags & flag::ENDED);
        }
    }
    if reply.flags & !was & flag::ENDED != 0 {
        // From here on: see `flow::QUIET_NS`.
        reply.last_seen = clock::now();
    }
    0
}

/// Notes what a packet of the client's says about the end of its connection at the ingress node.
#[inline(always)]
pub(crate) fn of_client_at_ingress(key: &AffinityKey, packet: &Packet) {
    if packet.proto == ipproto::TCP
        && is_fin(packet)
        && let Some(known) = affinity::established(key)
    {
        note_client_fin(known, end_of(packet));
    }
}

/// Notes a FIN of the client's in an established entry, with what [`behind_fin`] says of it. None that comes after the end:
/// it would be another's.
#[inline(always)]
pub(crate) fn note_client_fin(known: &mut Affinity, end: [u8; 3]) {
    if known.flags & flag::ENDED == 0 {
        known.tcp_number = end;
        known.flags |= flag::FIN;
    }
}

/// Whether a packet of the backend's with these flags may change what the connection `known` has come to.
#[inline(always)]
pub(crate) fn may_change(known: &Affinity, proto: u8, flags: u8) -> bool {
    const SPEAKS: u8 = tcpflag::SYN | tcpflag::FIN | tcpflag::RST;
    const CHANGES: u8 = flag::FIN | flag::BACKEND_FIN | flag::ENDED;
    match proto {
        ipproto::TCP => flags & SPEAKS != 0 || (known.flags & CHANGES) | known.unspoken != 0,
        ipproto::SCTP => true,
        _ => false,
    }
}

/// Notes what a packet of the backend's says about the end of a connection at its ingress node; `acknowledgement`: of TCP.
#[inline(always)]
pub(crate) fn of_backend_at_ingress(known: &mut Affinity, proto: u8, flags: u8, acknowledgement: u32) {
    if may_change(known, proto, flags) {
        let acknowledged = known.flags & flag::FIN != 0 && known.tcp_number == upper(acknowledgement);
        let bits = after_backend(known.flags, flag::BACKEND_FIN, proto, flags, acknowledged);
        if bits != known.flags {
            known.flags = bits;
        }
        if flags & (tcpflag::SYN | tcpflag::RST) == 0 && known.unspoken != 0 {
            known.unspoken = 0;
        }
    }
}
