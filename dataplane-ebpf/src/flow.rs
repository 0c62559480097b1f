//! The connection table `FLOWS`: two entries per translated connection, one per direction.
//!
//! Concurrency: entries are created by whichever CPU sees the first packet (`BPF_NOEXIST` decides races); after that
//! only `last_seen` and `flags` change, each written by packets of the entry's own direction.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::bpf_ktime_get_coarse_ns,
};
use dataplane_common::{
    addr::{Ip4, NetId, Port, Tag},
    drop_reason::DropReason,
    flow::{Flow, FlowKey, flag},
    headers::{ipproto, tcpflag},
};

use crate::{
    maps::{FLOWS, scratch},
    nat::Translation,
    parse::{Fragment, Packet},
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

/// The packet opens a TCP connection.
#[inline(always)]
pub(crate) fn is_syn(packet: &Packet) -> bool {
    packet.proto == ipproto::TCP
        && packet.flags & (tcpflag::SYN | tcpflag::ACK | tcpflag::RST | tcpflag::FIN) == tcpflag::SYN
}

/// The packet may open a flow.
#[inline(always)]
pub(crate) fn may_open(packet: &Packet) -> bool {
    packet.proto == ipproto::UDP || is_syn(packet)
}

/// `flag` bits that this packet adds to its direction's entry.
#[inline(always)]
pub(crate) fn bits(packet: &Packet) -> u8 {
    let mut bits = flag::SEEN;
    if packet.proto == ipproto::TCP {
        if packet.flags & tcpflag::FIN != 0 {
            bits |= flag::FIN;
        }
        if packet.flags & tcpflag::RST != 0 {
            bits |= flag::RST;
        }
    }
    bits
}

/// Key of the packet as it stands.
#[inline(always)]
pub(crate) fn key(zone: NetId, packet: &Packet) -> FlowKey {
    FlowKey {
        zone,
        src: packet.src,
        dst: packet.dst,
        sport: packet.sport,
        dport: packet.dport,
        proto: packet.proto,
        _pad: [0; 3],
    }
}

/// The entry with this key.
#[inline(always)]
pub(crate) fn get(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: see the module's note on concurrency; a torn read cannot happen on the fields that change (8 and 1 byte).
    FLOWS.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// Notes that `packet` went by.
#[inline(always)]
pub(crate) fn touch(flow: &mut Flow, packet: &Packet) {
    note(&mut flow.last_seen, &mut flow.flags, bits(packet));
}

/// Notes that a packet that adds `bits` went by an entry.
#[inline(always)]
pub(crate) fn note(last_seen: &mut u64, flags: &mut u8, bits: u8) {
    if *flags & bits != bits {
        *flags |= bits;
    }
    let now = now();
    if now.wrapping_sub(*last_seen) > TOUCH_NS {
        *last_seen = now;
    }
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
pub(crate) fn reply(net: NetId, packet: &Packet) -> Option<Translation> {
    if packet.fragment != Fragment::Whole || (packet.proto != ipproto::TCP && packet.proto != ipproto::UDP) {
        return None;
    }
    let flow = get(&key(net, packet))?;
    if flow.flags & flag::REPLY == 0 {
        return None;
    }
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
fn forward_key(zone: NetId, reply: &Flow, proto: u8) -> FlowKey {
    FlowKey { zone, src: reply.dst, dst: reply.src, sport: reply.dport, dport: reply.sport, proto, _pad: [0; 3] }
}

/// A new connection.
pub(crate) struct NewFlow {
    pub zone: NetId,
    /// Addresses that the backend shall see; the source port may still be changed.
    pub to: Translation,
    pub tag: Tag,
    /// See [`Flow::peer`].
    pub peer: Ip4,
    /// See [`Flow::task`].
    pub task: Ip4,
}

/// How many source ports are tried when the backend already talks to the same address and port.
const PORT_TRIES: u16 = 8;

/// Enters both directions of a connection whose first packet is `packet`. When the reply direction is taken by another
/// live connection (two services or two ingress nodes lead one client port to one backend), the source port that the
/// backend sees is changed; after a bounded number of tries the packet is dropped and counted.
#[inline(always)]
pub(crate) fn open(packet: &Packet, new: &NewFlow) -> Result<Translation, DropReason> {
    let now = now();
    let mut to = new.to;
    let mut entered = false;
    for attempt in 0..PORT_TRIES {
        if attempt > 0 {
            to.sport = another_port(new.to.sport, attempt);
        }
        if enter_reply(packet, new, &to, now)? {
            entered = true;
            break;
        }
    }
    if !entered {
        return Err(DropReason::FlowCollision);
    }
    let forward = &mut scratch()?.flow;
    *forward = Flow {
        last_seen: now,
        created: now,
        tag: new.tag,
        src: to.src,
        dst: to.dst,
        sport: to.sport,
        dport: to.dport,
        peer: new.peer,
        task: new.task,
        flags: bits(packet),
        expected_ack: [0; 3],
    };
    FLOWS.insert(key(new.zone, packet), forward, BPF_ANY as u64).map_err(|_| DropReason::FlowTableFull)?;
    Ok(to)
}

#[inline(always)]
fn another_port(port: Port, attempt: u16) -> Port {
    // The upper half only: never a service's port. Odd multiplier, so different attempts give different ports.
    let mixed = u16::from_be_bytes(port).wrapping_mul(31).wrapping_add(attempt.wrapping_mul(7919));
    (mixed | 0x8000).to_be_bytes()
}

/// Whether the reply entry could be made: the key was free, held by this very connection's former life, or by one that
/// ended long enough ago.
#[inline(always)]
fn enter_reply(packet: &Packet, new: &NewFlow, to: &Translation, now: u64) -> Result<bool, DropReason> {
    let reply_key = FlowKey {
        zone: new.zone,
        src: to.dst,
        dst: to.src,
        sport: to.dport,
        dport: to.sport,
        proto: packet.proto,
        _pad: [0; 3],
    };
    let reply = &mut scratch()?.flow;
    *reply = Flow {
        last_seen: now,
        created: now,
        tag: new.tag,
        src: packet.dst,
        dst: packet.src,
        sport: packet.dport,
        dport: packet.sport,
        peer: new.peer,
        task: new.task,
        flags: flag::REPLY,
        expected_ack: [0; 3],
    };
    if let Some(existing) = get(&reply_key) {
        let own = existing.dst == reply.dst
            && existing.src == reply.src
            && existing.sport == reply.sport
            && existing.dport == reply.dport;
        let ended = closed(existing)
            || get(&forward_key(new.zone, existing, packet.proto)).is_none_or(|forward| closed(forward));
        let free = own || (ended && now.wrapping_sub(existing.last_seen) > TIME_WAIT_NS);
        if !free {
            return Ok(false);
        }
        return match FLOWS.insert(reply_key, reply, BPF_ANY as u64) {
            Ok(()) => Ok(true),
            Err(_) => Err(DropReason::FlowTableFull),
        };
    }
    const EEXIST: i32 = -17;
    match FLOWS.insert(reply_key, reply, BPF_NOEXIST as u64) {
        Ok(()) => Ok(true),
        // Another CPU was faster with the same key.
        Err(EEXIST) => Ok(false),
        Err(_) => Err(DropReason::FlowTableFull),
    }
}

/// Forgets a connection by its forward key and entry.
#[inline(always)]
pub(crate) fn forget(forward_key: &FlowKey, forward: &Flow) {
    let reply_key = FlowKey {
        zone: forward_key.zone,
        src: forward.dst,
        dst: forward.src,
        sport: forward.dport,
        dport: forward.sport,
        proto: forward_key.proto,
        _pad: [0; 3],
    };
    let _ = FLOWS.remove(reply_key);
    let _ = FLOWS.remove(forward_key);
}
