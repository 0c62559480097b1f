//! A client's packet of a connection that is not established: its first one, or one that may prove it.
//!
//! The same questions and the same functions as in TC. The first packet's backend is chosen only once it is sure that
//! this path can send to it: whoever else's turn it is waits for TC, and is counted once. Only where the agent keeps
//! the way: to ask the kernel for it would need more stack than there is.

use core::ptr;

use aya_ebpf::{
    bindings::{xdp_action::XDP_PASS, xdp_md},
    programs::XdpContext,
};
use dataplane_common::{
    config::Config,
    counter::Counter,
    endpoint::vtep_mesh,
    flow::{Affinity, flag},
    service::PublishedPort,
};

use super::{
    access::{Frame, word},
    arrival::{Arrival, Entry},
    head::{self, Head, Said},
    hop::Hop,
    known, send,
    tunnel::Backend,
};
use crate::{
    affinity,
    client_lines::Clients,
    clock,
    ingress::{self, Decision},
    lines_map::Place,
    maps::{self, config},
    notes, path, service, verdict,
};

/// How often another CPU may have taken the turn meanwhile.
const TRIES: usize = 4;

/// The packet of `ctx`, which was looked at already. `place`: of its pending entry, if there is one.
// Not inlined, and reads the packet again: what is established shall not have to step around it, nor what is known of
// it have to lie in memory.
#[inline(never)]
pub(super) fn handle(ctx: *mut xdp_md, place: Place) -> u32 {
    carry(&XdpContext::new(ctx), place).unwrap_or(XDP_PASS)
}

#[inline(always)]
fn carry(ctx: &XdpContext, place: Place) -> Option<u32> {
    let frame = Frame::of(ctx);
    let packet = &head::outer(frame)?;
    let config = config().ok()?;
    // Where its stream ends is noted by who finds it established.
    if packet.is_fin() {
        return None;
    }
    // What fits only some paths is left to TC: to ask about this one would need more stack than there is.
    if !path::all_take(config, send::tunnelled_len(packet)) {
        return None;
    }
    let now = clock::now();
    let ifindex = frame.ifindex;
    let mut known = ptr::null_mut();
    if place.is_found() {
        known = place.entry::<Clients>()?;
    }
    let arrival = Arrival::<false> { ctx: ctx.ctx, ifindex, config, packet, known, is_current: false };
    let known = match ingress::decide(&arrival).ok()? {
        Decision::Forward(Entry(known), _) => known,
        Decision::Open { port, replaces: false } => {
            let (backend, hop) = open(frame, config, packet, port, now)?;
            return send::leave(ctx, frame, config, packet, &backend, &hop);
        }
        _ => return None,
    };
    let hop = way_of(frame, config, packet, known, now)?;
    let said = Said::outer(frame, packet)?;
    let sent = send::leave(ctx, frame, config, packet, &Backend::of(known), &hop)?;
    if notes::of_client(known, true, &said, now) {
        affinity::promote(packet.key().get(), known, frame.len());
    }
    Some(sent)
}

/// The way of a packet with this pending entry.
#[inline(always)]
fn way_of(frame: Frame, config: &Config, packet: &Head, known: &Affinity, now: u64) -> Option<Hop> {
    if !send::can_carry(config, packet, known.flags, word(&known.vtep)) {
        return None;
    }
    let vtep = maps::vtep(&known.vtep)?;
    send::kept_hop(frame, known::state()?, vtep.hop, word(&known.vtep), now)
}

/// The first packet of a connection, which is entered: who serves it, and the way there.
#[inline(always)]
fn open(frame: Frame, config: &Config, packet: &Head, port: &PublishedPort, now: u64) -> Option<(Backend, Hop)> {
    for _ in 0..TRIES {
        let turn = service::peek(port.set)?;
        let vtep = maps::vtep(&turn.backend.vtep).filter(|vtep| vtep.hiveway == vtep_mesh::MEMBER)?;
        let backend = Backend { vtep: word(&turn.backend.vtep), task: word(&turn.backend.ip) };
        if !send::can_carry(config, packet, 0, backend.vtep) {
            return None;
        }
        let hop = send::kept_hop(frame, known::state()?, vtep.hop, backend.vtep, now)?;
        if !turn.take() {
            continue;
        }
        // From here on it is entered: if the packet were left to TC, that would find the entry. If there is no room, TC
        // chooses anew.
        affinity::enter(packet.key().get(), turn.backend, flag::SEEN).ok()?;
        verdict::count_of(Counter::MeshFlow, frame.len());
        return Some((backend, hop));
    }
    None
}
