//! The connection tables `FLOWS` and `FLOWS_PENDING`: two entries per translated connection, one per direction.
//!
//! A connection begins in `FLOWS_PENDING`, where the least recently used entry makes room, and moves to `FLOWS`, where
//! nothing is ever displaced, once both ends have proved that they are there (see `pending.rs`). A flood of packets
//! from invented sources never gets that far. Either entry of a pending connection may be displaced; each can be made
//! again from the other.
//!
//! Concurrency: entries are created by whichever CPU sees the first packet (`BPF_NOEXIST` decides races); after that
//! only `last_seen`, `flags` and `expected_ack` change. Who moves an entry puts it into `FLOWS` before it takes it out
//! of `FLOWS_PENDING`; readers that must not miss it look into them in the opposite order.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::bpf_ktime_get_coarse_ns,
    programs::TcContext,
};
use dataplane_common::{
    addr::{Ip4, NetId, Port, Tag},
    drop_reason::DropReason,
    flow::{Flow, FlowKey, flag},
    headers::{ipproto, sctpchunk, tcpflag},
};

use crate::{
    maps::{FLOWS, FLOWS_PENDING, scratch},
    nat::Translation,
    parse::{Fragment, Packet},
    pending,
};

/// Entries are touched at most this often: a shared cache line per packet would cost more than the precision is worth.
const TOUCH_NS: u64 = 500_000_000;

/// How long a backend may keep an ended connection in TIME-WAIT (Linux: 60 s). Another connection that looks the same to
/// it would be answered with a challenge instead of a SYN-ACK, and stall the client.
const TIME_WAIT_NS: u64 = 61_000_000_000;

/// `CLOCK_MONOTONIC_COARSE`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: plain helper call.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The packet opens a TCP connection or an SCTP association.
#[inline(always)]
pub(crate) fn is_syn(packet: &Packet) -> bool {
    opens(packet.proto, packet.flags)
}

/// The same of a packet with these [`Packet::flags`].
#[inline(always)]
pub(crate) fn opens(proto: u8, flags: u8) -> bool {
    match proto {
        ipproto::TCP => flags & (tcpflag::SYN | tcpflag::ACK | tcpflag::RST | tcpflag::FIN) == tcpflag::SYN,
        ipproto::SCTP => flags == sctpchunk::INIT,
        _ => false,
    }
}

/// The packet may open a flow: every one of a protocol without connections, or one that opens a connection.
#[inline(always)]
pub(crate) fn may_open(packet: &Packet) -> bool {
    (packet.proto != ipproto::TCP && packet.proto != ipproto::SCTP) || is_syn(packet)
}

/// `flag` bits that this packet adds to its direction's entry.
#[inline(always)]
pub(crate) fn bits(packet: &Packet) -> u8 {
    bits_of(packet.proto, packet.flags)
}

/// The same of a packet with these [`Packet::flags`].
#[inline(always)]
pub(crate) fn bits_of(proto: u8, flags: u8) -> u8 {
    let mut bits = flag::SEEN;
    match proto {
        ipproto::TCP => {
            if flags & tcpflag::FIN != 0 {
                bits |= flag::FIN;
            }
            if flags & tcpflag::RST != 0 {
                bits |= flag::RST;
            }
        }
        ipproto::SCTP if flags == sctpchunk::ABORT => bits |= flag::RST,
        ipproto::SCTP if flags == sctpchunk::SHUTDOWN_COMPLETE => bits |= flag::FIN,
        _ => {}
    }
    bits
}

/// Key of the packet as it stands.
#[inline(always)]
pub(crate) fn key(zone: NetId, packet: &Packet) -> FlowKey {
    FlowKey::new(zone, (packet.src, packet.sport), (packet.dst, packet.dport), packet.proto)
}

/// Key of the answers to the packet as it stands.
#[inline(always)]
pub(crate) fn key_of_answer(zone: NetId, packet: &Packet) -> FlowKey {
    FlowKey::new(zone, (packet.dst, packet.dport), (packet.src, packet.sport), packet.proto)
}

/// The entry with this key, in whichever table.
#[inline(always)]
pub(crate) fn get(key: &FlowKey) -> Option<&'static mut Flow> {
    match established(key) {
        None => pending(key),
        found => found,
    }
}

/// The entry with this key in `FLOWS`.
#[inline(always)]
pub(crate) fn established(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: see the module's note on concurrency; a torn read cannot happen on the fields that change (8 and 1 byte).
    FLOWS.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// The entry with this key in `FLOWS_PENDING`.
#[inline(always)]
pub(crate) fn pending(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: as above.
    FLOWS_PENDING.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// Finds the entry of a packet from the client. One that is still pending may have proved itself with this packet.
#[inline(always)]
pub(crate) fn forward(ctx: &TcContext, key: &FlowKey, packet: &Packet) -> Option<&'static mut Flow> {
    if let Some(flow) = established(key) {
        return Some(flow);
    }
    let flow = pending(key)?;
    // An entry that has moved may be another connection's by now.
    let moved = flow.flags & flag::REPLY == 0 && pending::forward(ctx, key, flow, packet) && pending::promote(ctx);
    if moved { established(key) } else { Some(flow) }
}

/// Finds the reply entry of a packet from the backend; likewise.
#[inline(always)]
pub(crate) fn backward(ctx: &TcContext, key: &FlowKey, packet: &Packet) -> Option<&'static mut Flow> {
    let flow = match established(key) {
        Some(flow) => flow,
        None => {
            let flow = pending(key)?;
            let moved =
                flow.flags & flag::REPLY != 0 && pending::backward(ctx, key, flow, packet) && pending::promote(ctx);
            if moved { established(key)? } else { flow }
        }
    };
    (flow.flags & flag::REPLY != 0).then_some(flow)
}

/// Notes that `packet` went by.
#[inline(always)]
pub(crate) fn touch(flow: &mut Flow, packet: &Packet) {
    note(&mut flow.last_seen, &mut flow.flags, bits(packet));
}

/// Notes that a packet that adds `bits` went by an entry.
#[inline(always)]
pub(crate) fn note(last_seen: &mut u64, flags: &mut u8, bits: u8) {
    note_at(last_seen, flags, bits, now());
}

/// The same for who knows the time.
#[inline(always)]
pub(crate) fn note_at(last_seen: &mut u64, flags: &mut u8, bits: u8, now: u64) {
    if *flags & bits != bits {
        *flags |= bits;
    }
    if old(*last_seen, now) {
        *last_seen = now;
    }
}

/// Whether a packet at `now` renews an entry's time.
#[inline(always)]
pub(crate) fn old(last_seen: u64, now: u64) -> bool {
    now.wrapping_sub(last_seen) > TOUCH_NS
}

/// The connection has ended as far as this entry knows; a new SYN may take its place.
#[inline(always)]
pub(crate) fn closed(flow: &Flow) -> bool {
    flow.flags & (flag::FIN | flag::RST) != 0
}

/// What the entry makes of its packets.
#[inline(always)]
pub(crate) fn translation(flow: &Flow) -> Translation {
    Translation { src: flow.src, dst: flow.dst, sport: flow.sport, dport: flow.dport }
}

/// If the packet is a reply of a VIP flow: how it must look to the client.
#[inline(always)]
pub(crate) fn reply(ctx: &TcContext, net: NetId, packet: &Packet) -> Option<Translation> {
    if packet.fragment == Fragment::Later || packet.proto == ipproto::ICMP {
        return None;
    }
    let flow = backward(ctx, &key(net, packet), packet)?;
    if packet.flags & tcpflag::RST != 0 && packet.proto == ipproto::TCP {
        close_forward(net, flow, packet.proto);
    }
    touch(flow, packet);
    Some(translation(flow))
}

/// A reset from the backend ends the forward direction too: the client may come back from the same port at once.
#[inline(always)]
pub(crate) fn close_forward(zone: NetId, reply: &Flow, proto: u8) {
    if let Some(forward) = get(&forward_key(zone, reply, proto)) {
        forward.flags |= flag::RST;
    }
}

/// Key of the forward entry that belongs to a reply entry.
#[inline(always)]
pub(crate) fn forward_key(zone: NetId, reply: &Flow, proto: u8) -> FlowKey {
    FlowKey::new(zone, (reply.dst, reply.dport), (reply.src, reply.sport), proto)
}

/// Key of the reply entry that belongs to a forward entry.
#[inline(always)]
pub(crate) fn reply_key(zone: NetId, forward: &Flow, proto: u8) -> FlowKey {
    // The same turn: both are what the entry makes of its packets, turned round.
    forward_key(zone, forward, proto)
}

/// Whether `reply` turns packets back into answers to packets with key `forward`.
#[inline(always)]
pub(crate) fn answers(reply: &Flow, forward: &FlowKey) -> bool {
    reply.flags & flag::REPLY != 0
        && reply.dst == forward.src
        && reply.src == forward.dst
        && reply.dport == forward.sport
        && reply.sport == forward.dport
}

/// A new connection.
#[repr(C)]
pub(crate) struct NewFlow {
    pub zone: NetId,
    /// Addresses that the backend shall see; the source port may still be changed by [`open`].
    pub to: Translation,
    pub tag: Tag,
    /// See [`Flow::peer`].
    pub peer: Ip4,
    /// See [`Flow::task`].
    pub task: Ip4,
    /// [`flag::DIRECT`] or 0.
    pub flags: u8,
}

/// How many source ports are tried when the backend already talks to the same address and port.
const PORT_TRIES: u16 = 8;

/// Enters both directions of a connection whose first packet is `packet`. When the reply direction is taken by another
/// live connection (two services or two ingress nodes lead one client port to one backend), the source port that the
/// backend sees is changed, in `new.to`; after a bounded number of tries the packet is dropped and counted. Protocols
/// other than TCP and UDP have no port to change.
// Not inlined, as `enter_reply`: the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
pub(crate) fn open(packet: &Packet, new: &mut NewFlow) -> Result<(), DropReason> {
    let wanted = new.to.sport;
    let tries = if packet.proto == ipproto::TCP || packet.proto == ipproto::UDP { PORT_TRIES } else { 1 };
    let mut entered = enter_reply(packet, new);
    for attempt in 1..tries {
        if entered != Err(DropReason::FlowCollision) {
            break;
        }
        new.to.sport = another_port(wanted, attempt);
        entered = enter_reply(packet, new);
    }
    entered?;
    let now = now();
    let forward = &mut scratch()?.flow;
    *forward = Flow::new(
        now,
        new.tag,
        (new.to.src, new.to.sport),
        (new.to.dst, new.to.dport),
        [new.peer, new.task],
        bits(packet) | new.flags,
    );
    let key_slot = &mut scratch()?.key;
    *key_slot = key(new.zone, packet);
    FLOWS_PENDING.insert(&*key_slot, forward, BPF_ANY as u64).map_err(|_| DropReason::FlowTableFull)
}

#[inline(always)]
fn another_port(port: Port, attempt: u16) -> Port {
    // The upper half only: never a service's port. Odd multiplier, so different attempts give different ports.
    let mixed = u16::from_be_bytes(port).wrapping_mul(31).wrapping_add(attempt.wrapping_mul(7919));
    (mixed | 0x8000).to_be_bytes()
}

/// Makes the reply entry if its key is free, held by this very connection's former life, or by one that ended long
/// enough ago; `FlowCollision` otherwise.
#[inline(never)]
fn enter_reply(packet: &Packet, new: &NewFlow) -> Result<(), DropReason> {
    let reply_key = &mut scratch()?.key;
    *reply_key = FlowKey::new(new.zone, (new.to.dst, new.to.dport), (new.to.src, new.to.sport), packet.proto);
    let reply_key = &*reply_key;
    let now = now();
    // In this order: see the module's note on concurrency.
    let existing = match pending(reply_key) {
        None => established(reply_key),
        found => found,
    };
    if let Some(existing) = existing {
        if !answers(existing, &key(new.zone, packet)) && !outlived(existing, new.zone, packet.proto, now) {
            return Err(DropReason::FlowCollision);
        }
        let _ = FLOWS.remove(reply_key);
        let _ = FLOWS_PENDING.remove(reply_key);
    }
    let reply = &mut scratch()?.flow;
    *reply = Flow::new(
        now,
        new.tag,
        (packet.dst, packet.dport),
        (packet.src, packet.sport),
        [new.peer, new.task],
        flag::REPLY | new.flags,
    );
    enter(reply_key, reply)
}

/// Whether the connection of a reply entry has ended, and so long ago that its key may be used again.
#[inline(always)]
pub(crate) fn outlived(reply: &Flow, zone: NetId, proto: u8, now: u64) -> bool {
    // A direct connection that was only noted has no forward entry.
    let ended = closed(reply)
        || (reply.flags & flag::DIRECT == 0
            && get(&forward_key(zone, reply, proto)).is_none_or(|forward| closed(forward)));
    ended && now.wrapping_sub(reply.last_seen) > TIME_WAIT_NS
}

/// Enters a new pending entry. `FlowCollision`: another CPU was faster with the same key.
#[inline(always)]
pub(crate) fn enter(key: &FlowKey, flow: &Flow) -> Result<(), DropReason> {
    const EEXIST: i32 = -17;
    match FLOWS_PENDING.insert(key, flow, BPF_NOEXIST as u64) {
        Ok(()) => Ok(()),
        Err(EEXIST) => Err(DropReason::FlowCollision),
        Err(_) => Err(DropReason::FlowTableFull),
    }
}

/// Forgets a connection by its forward key and entry. Where it has ended, its backend may keep it in TIME-WAIT: then the
/// reply entry stays and holds its key, until `outlived` or the sweep finds it old enough.
#[inline(never)]
pub(crate) fn forget(forward_key: &FlowKey, forward: &Flow) {
    let reply_key = reply_key(forward_key.zone, forward, forward_key.proto);
    if forward_key.proto == ipproto::TCP && closed(forward) {
        if let Some(reply) = get(&reply_key)
            && answers(reply, forward_key)
        {
            reply.flags |= flag::RST;
        }
    } else {
        let _ = FLOWS.remove(reply_key);
        let _ = FLOWS_PENDING.remove(reply_key);
    }
    let _ = FLOWS.remove(forward_key);
    let _ = FLOWS_PENDING.remove(forward_key);
}
