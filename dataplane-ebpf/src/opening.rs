//! Opens a translated connection: looks for a source port under which its backend can tell it from all others, and
//! enters both directions as pending.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_get_prandom_u32, bpf_loop},
};
use dataplane_common::{
    addr::{NetId, Port},
    drop_reason::DropReason,
    flow::{Flow, FlowKey, STOCK_ZONE, flag},
    headers::ipproto,
};

use crate::{
    clock, connection, flow,
    global::{self, code, context, outcome},
    parse::Packet,
    scratch::{NewFlow, scratch},
    shares,
    skb::Skb,
    succession, timestamp,
};

/// How many source ports are tried when the backend already talks to the same address and port: first only those that
/// are free, then also those of ended connections that the backend may still hold in TIME-WAIT.
const FREE_TRIES: u64 = 8;
const PORT_TRIES: u32 = 40;

/// Enters both directions of a connection whose first packet is `packet`. When the reply direction is taken by another
/// live connection (two services or two ingress nodes lead one client port to one backend, or all clients are shown to
/// it with one address), the source port that the backend sees is changed, in `new.to`, to one at random; after a
/// bounded number of tries the packet is dropped and counted, and its retransmission tries others. Protocols other than
/// TCP and UDP have no port to change.
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
    (shared.isn, shared.port_found) = (succession::initial_sequence(packet), port_found::NO);
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
    let isn = if attempt < FREE_TRIES { succession::NO_SEQUENCE } else { scratch.isn };
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

/// Whether the reply direction's key is free, held by this very connection's former life, or by one that ended long
/// enough ago ([`port_found::FREE`]); or, for a SYN with the sequence number `isn`, by one whose end it does not
/// disturb ([`port_found::ENDED`]).
#[inline(always)]
fn usable(packet: &Packet, new: &NewFlow, isn: u64) -> u64 {
    let Ok(scratch) = scratch() else { return port_found::NO };
    scratch.key = FlowKey::new(new.zone, (new.to.dst, new.to.dport), (new.to.src, new.to.sport), packet.proto);
    scratch.displaced = 0;
    let Some((existing, is_pending)) = flow::find(&scratch.key) else { return port_found::FREE };
    scratch.displaced = existing.created;
    if !is_pending && succession::succeeds(existing, isn, clock::now) {
        return port_found::ENDED;
    }
    let free = connection::answers_to(existing, packet) || flow::outlived(existing, new.zone, packet.proto);
    if free { port_found::FREE } else { port_found::NO }
}

/// Makes the reply entry, under a key that is [`usable`]. `FlowCollision`: another CPU was faster.
// Not inlined, as `enter_forward`: the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
fn enter_reply(packet: &Packet, new: &NewFlow) -> Result<(), DropReason> {
    let scratch = scratch()?;
    let reply_key = &mut scratch.key;
    *reply_key = FlowKey::new(new.zone, (new.to.dst, new.to.dport), (new.to.src, new.to.sport), packet.proto);
    let reply_key = &*reply_key;
    make_room(packet)?;
    let reply = &mut scratch.flow;
    *reply = Flow::new(
        clock::now(),
        new.tag,
        (packet.dst, packet.dport),
        (packet.src, packet.sport),
        [new.peer, new.task],
        flag::REPLY | new.flags,
    );
    flow::enter(reply_key, reply)
}

/// Takes out the entry under the reply key in `scratch`, and its connection's forward entry: only what `usable` has
/// judged, or this very connection, which another CPU may be entering. `FlowCollision`: another CPU was faster.
#[inline(never)]
fn make_room(packet: &Packet) -> Result<(), DropReason> {
    let scratch = scratch()?;
    let reply_key = &scratch.key;
    let Some(existing) = flow::get(reply_key) else { return Ok(()) };
    let created = existing.created;
    if created != scratch.displaced && !connection::answers_to(existing, packet) {
        return Err(DropReason::FlowCollision);
    }
    scratch.reply_key = connection::forward_key(reply_key.zone, existing, reply_key.proto);
    let forward_key = &scratch.reply_key;
    // The first step: it decides which CPU takes the next.
    let change = flow::take_out_found(reply_key, created).ok_or(DropReason::FlowCollision)?;
    shares::count_flow(forward_key, change);
    // What its client still sends must not reach the new connection.
    if flow::get(forward_key).is_some_and(|forward| connection::leads_to(forward, reply_key)) {
        flow::remove(forward_key, forward_key);
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
    scratch.key = connection::flow_key(new.zone, packet);
    flow::put_pending(&scratch.key, &scratch.flow)
}
