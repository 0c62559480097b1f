//! The connection tables `FLOWS` and `FLOWS_PENDING` (with its twin for what is not TCP): two entries per translated
//! connection, one per direction.
//!
//! A connection begins in `FLOWS_PENDING`, where the least recently used entry makes room, and moves to `FLOWS`, where
//! nothing is ever displaced, once both ends have proved that they are there (see `pending.rs`). A flood of packets
//! from invented sources never gets that far. Either entry of a pending connection may be displaced; each can be made
//! again from the other.
//!
//! Concurrency: entries are created by whichever CPU sees the first packet (`BPF_NOEXIST` decides races); after that
//! only `last_seen`, `flags` and `tcp_number` change. Who moves an entry puts it into `FLOWS` before it takes it out
//! of `FLOWS_PENDING`; readers that must not miss it look into them in the opposite order. Two CPUs that note something
//! in `flags` at once may lose one of both: a connection whose FINs cross so lasts until it has been silent for long.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_NOEXIST},
    helpers::generated::{bpf_get_prandom_u32, bpf_loop},
};
use dataplane_common::{
    addr::{NetId, Port},
    drop_reason::DropReason,
    flow::{Flow, FlowKey, STOCK_ZONE, flag},
    headers::{ipproto, sctpchunk, tcpflag},
};

use crate::{
    clock, ending,
    global::{self, code, context, outcome},
    maps::{FLOWS, pending_flows},
    nat::Translation,
    parse::{Fragment, Packet},
    pending,
    scratch::{NewFlow, scratch},
    shares,
    skb::Skb,
    timestamp,
};

/// Entries are touched at most this often: a shared cache line per packet would cost more than the precision is worth.
const TOUCH_NS: u64 = 500_000_000;

/// How long a backend may keep an ended connection in TIME-WAIT (Linux: 60 s). Another connection that looks the same to
/// it would be answered with a challenge instead of a SYN-ACK, and stall the client.
const TIME_WAIT_NS: u64 = 61_000_000_000;

/// How long a connection that has ended must have been silent before a SYN with a suitable sequence number takes its key:
/// until then a last segment may still be on its way to either end.
const QUIET_NS: u64 = 3_000_000_000;

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

/// The entry with this key in the pending table of its protocol.
#[inline(always)]
pub(crate) fn pending(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: as above.
    pending_flows(key.proto)?.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// Finds the entry of a packet from the client. One that is still pending may have proved itself with this packet.
#[inline(always)]
pub(crate) fn forward(ctx: &Skb, key: &FlowKey, packet: &Packet) -> Option<&'static mut Flow> {
    if let Some(flow) = established(key) {
        return Some(flow);
    }
    let flow = pending(key)?;
    // An entry that has moved may be another connection's by now.
    let moved =
        flow.flags & flag::REPLY == 0 && pending::forward(key, flow, packet) && pending::promote(ctx, packet.sequence);
    if moved { established(key) } else { Some(flow) }
}

/// Finds the reply entry of a packet from the backend, likewise; notes what that says about the connection's end.
#[inline(always)]
pub(crate) fn backward(ctx: &Skb, key: &FlowKey, packet: &Packet) -> Option<&'static mut Flow> {
    backward_if(ctx, key, packet, |_| true)
}

/// The same for an entry that `comes_from` lets pass; of another nothing is noted.
#[inline(always)]
pub(crate) fn backward_if(
    ctx: &Skb,
    key: &FlowKey,
    packet: &Packet,
    comes_from: impl Fn(&Flow) -> bool,
) -> Option<&'static mut Flow> {
    let mut proved = true;
    let flow = match established(key) {
        Some(flow) if comes_from(flow) => flow,
        Some(_) => return None,
        None => {
            let flow = pending(key)?;
            if !comes_from(flow) {
                return None;
            }
            proved = flow.flags & flag::REPLY != 0
                && pending::backward(key, flow, packet)
                && pending::promote(ctx, packet.acknowledgement);
            if proved { established(key)? } else { flow }
        }
    };
    if flow.flags & flag::REPLY == 0 {
        return None;
    }
    ending::of_backend(key, flow, packet, proved);
    Some(flow)
}

/// Notes that a packet went by.
#[inline(always)]
pub(crate) fn touch(flow: &mut Flow) {
    note(&mut flow.last_seen, &mut flow.flags, flag::SEEN);
}

/// Notes that a packet that adds `bits` went by an entry.
#[inline(always)]
pub(crate) fn note(last_seen: &mut u64, flags: &mut u8, bits: u8) {
    note_at(last_seen, flags, bits, clock::now());
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
    // No difference: coarse clocks of two CPUs may differ by a tick.
    now > last_seen.wrapping_add(TOUCH_NS)
}

/// The connection has ended; a new SYN may take its place.
#[inline(always)]
pub(crate) fn ended(flow: &Flow) -> bool {
    flow.flags & flag::ENDED != 0
}

/// The packet opens another connection in the place of this one, which has ended. See `ending.rs` for what does not.
#[inline(always)]
pub(crate) fn replaces(packet: &Packet, known: &Flow) -> bool {
    packet.proto == ipproto::TCP && is_syn(packet) && ended(known)
}

/// Nothing has gone by for so long that no segment is on its way any more.
#[inline(always)]
pub(crate) fn is_quiet(last_seen: u64) -> bool {
    clock::now().saturating_sub(last_seen) > QUIET_NS
}

/// Nothing has gone by for so long that a backend keeps nothing of an ended connection.
#[inline(always)]
pub(crate) fn is_silent(last_seen: u64) -> bool {
    clock::now().saturating_sub(last_seen) > TIME_WAIT_NS
}

/// What the entry makes of its packets.
#[inline(always)]
pub(crate) fn translation(flow: &Flow) -> Translation {
    Translation { src: flow.src, dst: flow.dst, sport: flow.sport, dport: flow.dport }
}

/// If the packet is a reply of a VIP flow: how it must look to the client.
#[inline(always)]
pub(crate) fn reply(ctx: &Skb, net: NetId, packet: &Packet) -> Option<Translation> {
    if packet.fragment == Fragment::Later || packet.proto == ipproto::ICMP {
        return None;
    }
    let flow = backward(ctx, &key(net, packet), packet)?;
    touch(flow);
    Some(translation(flow))
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

/// The same for a packet instead of its key.
#[inline(always)]
fn answers_to(reply: &Flow, packet: &Packet) -> bool {
    reply.flags & flag::REPLY != 0
        && reply.dst == packet.src
        && reply.src == packet.dst
        && reply.dport == packet.sport
        && reply.sport == packet.dport
}

/// How many source ports are tried when the backend already talks to the same address and port: first only those that
/// are free, then also those of ended connections that the backend may still hold in TIME-WAIT.
const FREE_TRIES: u64 = 8;
const PORT_TRIES: u32 = 40;

/// Enters both directions of a connection whose first packet is `packet`. When the reply direction is taken by another
/// live connection (two services or two ingress nodes lead one client port to one backend, or all clients are shown to it
/// with one address), the source port that the backend sees is changed, in `new.to`, to one at random; after a bounded
/// number of tries the packet is dropped and counted, and its retransmission tries others. Protocols other than TCP and
/// UDP have no port to change.
#[inline(always)]
pub(crate) fn open(ctx: &Skb, packet: &Packet, new: &mut NewFlow) -> Result<(), DropReason> {
    outcome(flow_open(ctx.skb.skb, packet, new))
}

/// Global, see [`global`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_open(ctx: *mut __sk_buff, packet: *const Packet, new: *mut NewFlow) -> u32 {
    // SAFETY: `open` passes references.
    let (Some(packet), Some(new)) = (unsafe { (packet.as_ref(), new.as_mut()) }) else { return global::NULL };
    code(enter_both(&context(ctx), packet, new))
}

#[inline(always)]
fn enter_both(ctx: &Skb, packet: &Packet, new: &mut NewFlow) -> Result<(), DropReason> {
    let tries = if packet.proto == ipproto::TCP || packet.proto == ipproto::UDP { PORT_TRIES } else { 1 };
    let shared = scratch()?;
    (shared.isn, shared.port_found) = (initial_sequence(packet), port_found::NO);
    let mut search = PortSearch { packet, new };
    // VERIFIER(6.1): by the helper, which walks the body once. A loop would be walked as often as it runs.
    // SAFETY: the callback has the signature that the helper calls, and its context outlives the call.
    unsafe { bpf_loop(tries, try_port as *mut c_void, (&raw mut search).cast(), 0) };
    if shared.port_found == port_found::NO {
        return Err(DropReason::FlowCollision);
    }
    let new = search.new;
    enter_reply(packet, new)?;
    if shared.port_found == port_found::ENDED {
        timestamp::remove(ctx, packet, &mut shared.options);
    }
    enter_forward(packet, new)
}

/// What a search for a source port has found, in `Scratch::port_found`.
mod port_found {
    /// None so far.
    pub(super) const NO: u64 = 0;
    /// A port that is free, or was this very connection's before.
    pub(super) const FREE: u64 = 1;
    /// The port of a connection that the backend may keep in TIME-WAIT.
    pub(super) const ENDED: u64 = 2;
}

/// A search for a source port.
#[repr(C)]
struct PortSearch<'a> {
    packet: &'a Packet,
    new: &'a mut NewFlow,
}

/// One try: the port in `new.to`. If it is taken, puts another there. Returns 1 when the search is over.
extern "C" fn try_port(attempt: u64, search: *mut PortSearch<'_>) -> u64 {
    // SAFETY: `open` has passed a valid pointer, and uses it only after the loop.
    let search = unsafe { &mut *search };
    let Ok(scratch) = scratch() else { return 1 };
    let isn = if attempt < FREE_TRIES { NO_SEQUENCE } else { scratch.isn };
    scratch.port_found = usable(search.packet, search.new, isn);
    if scratch.port_found != port_found::NO {
        return 1;
    }
    search.new.to.sport = random_port(&search.new.zone);
    0
}

/// A port for a source address. At the node's own ingress address, which all clients of a backend on a node without
/// Hiveway share and where nothing else has ports, all above the privileged ones. At a client's address the upper half
/// only: there is never a service's port, from which the client could talk to the backend on its own account.
#[inline(always)]
fn random_port(zone: &NetId) -> Port {
    const PRIVILEGED: u32 = 1024;
    let first: u32 = if *zone == STOCK_ZONE { PRIVILEGED } else { 0x8000 };
    // SAFETY: plain helper call.
    let random = unsafe { bpf_get_prandom_u32() } as u32 & 0xffff;
    ((first + ((random * (0x1_0000 - first)) >> 16)) as u16).to_be_bytes()
}

/// No sequence number has so many bits.
const NO_SEQUENCE: u64 = u64::MAX;

/// The sequence number of a SYN; [`NO_SEQUENCE`] of any other packet.
#[inline(always)]
fn initial_sequence(packet: &Packet) -> u64 {
    if packet.proto == ipproto::TCP && is_syn(packet) { packet.sequence.into() } else { NO_SEQUENCE }
}

/// Whether the reply direction's key is free, held by this very connection's former life, or by one that ended long
/// enough ago ([`port_found::FREE`]); or, for a SYN with the sequence number `isn`, by one whose end it does not disturb
/// ([`port_found::ENDED`]).
#[inline(always)]
fn usable(packet: &Packet, new: &NewFlow, isn: u64) -> u64 {
    let Ok(scratch) = scratch() else { return port_found::NO };
    scratch.key = FlowKey::new(new.zone, (new.to.dst, new.to.dport), (new.to.src, new.to.sport), packet.proto);
    scratch.displaced = 0;
    // In this order: see the module's note on concurrency.
    let existing = match pending(&scratch.key) {
        Some(existing) => {
            scratch.displaced = existing.created;
            existing
        }
        None => {
            let Some(existing) = established(&scratch.key) else { return port_found::FREE };
            scratch.displaced = existing.created;
            if succeeds(existing, isn) {
                return port_found::ENDED;
            }
            existing
        }
    };
    let free = answers_to(existing, packet) || outlived(existing, new.zone, packet.proto);
    if free { port_found::FREE } else { port_found::NO }
}

/// Whether a SYN with the sequence number `isn` opens a new connection at a backend that keeps the one of this established
/// reply entry in TIME-WAIT. As Linux has it (RFC 9293 section 3.10.7.4; RFC 6191): its number lies behind all that the
/// backend has received. Both sides' FIN must have been seen, and nothing since.
#[inline(always)]
fn succeeds(reply: &Flow, isn: u64) -> bool {
    let [a, b, c] = reply.tcp_number;
    let end = u32::from_be_bytes([0, a, b, c]);
    let ahead = (isn as u32 >> 8).wrapping_sub(end) & 0xff_ffff;
    let both = flag::FIN | flag::ENDED;
    let behind = isn != NO_SEQUENCE && ahead != 0 && ahead < 0x80_0000;
    reply.flags & both == both && behind && is_quiet(reply.last_seen)
}

/// Notes that `packet` of the client's went by the forward entry `known` with the key `key`. A task that is its own backend
/// answers to the VIP, too: what it finds there is a reply entry.
#[inline(always)]
pub(crate) fn touch_forward(key: &FlowKey, known: &mut Flow, packet: &Packet) {
    if known.flags & flag::REPLY == 0 {
        ending::of_client(key, known, packet);
    } else {
        let proved = established(key).is_some();
        ending::of_backend(key, known, packet, proved);
    }
    touch(known);
}

/// Makes the reply entry, under a key that is [`usable`]. `FlowCollision`: another CPU was faster.
// Not inlined, as `enter_forward`: the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
fn enter_reply(packet: &Packet, new: &NewFlow) -> Result<(), DropReason> {
    let scratch = scratch()?;
    let reply_key = &mut scratch.key;
    *reply_key = FlowKey::new(new.zone, (new.to.dst, new.to.dport), (new.to.src, new.to.sport), packet.proto);
    let reply_key = &*reply_key;
    // Only what `usable` has judged makes room, and this very connection, which another CPU may be entering.
    if let Some(existing) = pending(reply_key) {
        if existing.created != scratch.displaced && !answers_to(existing, packet) {
            return Err(DropReason::FlowCollision);
        }
        remove_forward(&mut scratch.reply_key, existing, reply_key);
        remove_pending(reply_key);
    }
    if established(reply_key).is_some_and(|existing| existing.created != scratch.displaced) {
        return Err(DropReason::FlowCollision);
    }
    let reply = &mut scratch.flow;
    *reply = Flow::new(
        clock::now(),
        new.tag,
        (packet.dst, packet.dport),
        (packet.src, packet.sport),
        [new.peer, new.task],
        flag::REPLY | new.flags,
    );
    // Of two CPUs that take one ended connection's place, the pending table lets one in, which then clears the place.
    enter(reply_key, reply)?;
    if let Some(existing) = established(reply_key)
        && existing.created == scratch.displaced
    {
        remove_forward(&mut scratch.reply_key, existing, reply_key);
        shares::count_flow(&scratch.reply_key, shares::taken_out(FLOWS.remove(reply_key)));
    }
    Ok(())
}

/// Makes the forward entry.
#[inline(never)]
fn enter_forward(packet: &Packet, new: &NewFlow) -> Result<(), DropReason> {
    let scratch = scratch()?;
    scratch.flow = Flow::new(
        clock::now(),
        new.tag,
        (new.to.src, new.to.sport),
        (new.to.dst, new.to.dport),
        [new.peer, new.task],
        flag::SEEN | new.flags,
    );
    scratch.key = key(new.zone, packet);
    insert_pending(&scratch.key, &scratch.flow, BPF_ANY)
}

/// Removes the forward entry of a connection whose reply entry `existing`, under `reply_key`, makes room: what its client
/// still sends must not reach the new connection. `slot`: where the forward key is put together.
#[inline(always)]
fn remove_forward(slot: &mut FlowKey, existing: &Flow, reply_key: &FlowKey) {
    *slot = forward_key(reply_key.zone, existing, reply_key.proto);
    let forward_key = &*slot;
    if get(forward_key).is_some_and(|forward| leads_to(forward, reply_key)) {
        remove(forward_key, forward_key);
    }
}

/// Whether packets of the forward entry `forward` are answered under `reply_key`.
#[inline(always)]
pub(crate) fn leads_to(forward: &Flow, reply_key: &FlowKey) -> bool {
    forward.flags & flag::REPLY == 0
        && forward.dst == reply_key.src
        && forward.src == reply_key.dst
        && forward.dport == reply_key.sport
        && forward.sport == reply_key.dport
}

/// Whether the connection of a reply entry has ended, and so long ago that its key may be used again.
#[inline(always)]
pub(crate) fn outlived(reply: &Flow, zone: NetId, proto: u8) -> bool {
    if !is_silent(reply.last_seen) {
        return false;
    }
    // Of a client that has gone without a word the backend's FIN is all there is.
    let finished = reply.flags & flag::FIN != 0;
    // A direct connection that was only noted has no forward entry.
    let alone = reply.flags & flag::DIRECT != 0;
    ended(reply) || (alone && finished) || (!alone && forward_over(zone, reply, proto, finished))
}

/// Whether the forward entry of a reply entry is gone, has seen the end, or is silent after the backend has `finished`.
#[inline(always)]
fn forward_over(zone: NetId, reply: &Flow, proto: u8, finished: bool) -> bool {
    // In scratch memory: the callers have little of the 512 bytes of stack to spare.
    let Ok(scratch) = scratch() else { return false };
    scratch.reply_key = forward_key(zone, reply, proto);
    get(&scratch.reply_key).is_none_or(|forward| ended(forward) || (finished && is_silent(forward.last_seen)))
}

/// Enters a new pending entry. `FlowCollision`: another CPU was faster with the same key.
#[inline(always)]
pub(crate) fn enter(key: &FlowKey, flow: &Flow) -> Result<(), DropReason> {
    insert_pending(key, flow, BPF_NOEXIST)
}

/// Puts an entry into the pending table of its protocol. `FlowCollision`: with `BPF_NOEXIST` there is one already.
#[inline(always)]
pub(crate) fn insert_pending(key: &FlowKey, flow: &Flow, mode: u32) -> Result<(), DropReason> {
    const EEXIST: i32 = -17;
    let table = pending_flows(key.proto).ok_or(DropReason::FlowTableFull)?;
    match table.insert(key, flow, mode.into()) {
        Ok(()) => Ok(()),
        Err(EEXIST) => Err(DropReason::FlowCollision),
        Err(_) => Err(DropReason::FlowTableFull),
    }
}

/// Removes an entry from the pending table of its protocol.
#[inline(always)]
pub(crate) fn remove_pending(key: &FlowKey) {
    if let Some(table) = pending_flows(key.proto) {
        let _ = table.remove(key);
    }
}

/// Removes an entry of the connection with this forward key from both tables.
#[inline(always)]
pub(crate) fn remove(key: &FlowKey, forward_key: &FlowKey) {
    shares::count_flow(forward_key, shares::taken_out(FLOWS.remove(key)));
    remove_pending(key);
}

/// Forgets a connection by its forward key and entry. Where it has ended, its backend may keep it in TIME-WAIT: then the
/// reply entry stays and holds its key, until `outlived` or the sweep finds it old enough.
#[inline(always)]
pub(crate) fn forget(forward_key: &FlowKey, forward: &Flow) {
    flow_forget(forward_key, forward);
}

/// Global, see [`global`]; returns 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_forget(forward_key: *const FlowKey, forward: *const Flow) -> u32 {
    // SAFETY: `forget` passes references.
    let given = unsafe { (forward_key.as_ref(), forward.as_ref()) };
    let (Some(forward_key), Some(forward)) = given else { return 0 };
    let forward_key = &global::key(forward_key);
    let reply_key = reply_key(forward_key.zone, forward, forward_key.proto);
    if forward_key.proto == ipproto::TCP && ended(forward) {
        if let Some(reply) = get(&reply_key)
            && answers(reply, forward_key)
        {
            reply.flags |= flag::ENDED;
        }
    } else {
        remove(&reply_key, forward_key);
    }
    remove(forward_key, forward_key);
    0
}
