//! A client's packet, towards its backend's node.

use aya_ebpf::programs::XdpContext;
use dataplane_common::{config::Config, flow::Affinity, headers::ipproto, xdp::XdpState};

use super::{
    access::{Frame, word},
    arrival::{Arrival, Entry},
    head::{Head, Said},
    hop::{self, Hop, Route},
    is_sample,
    known::{self, Asked},
    opening, send,
    tunnel::Backend,
};
use crate::{
    affinity,
    client_lines::{self, Clients},
    clock, ending,
    ingress::{self, Decision},
    next_hop, notes, path,
};

/// Carries the packet; `None`: not for this path.
#[inline(always)]
pub(super) fn carry(ctx: &XdpContext, frame: Frame, config: &Config, packet: &Head) -> Option<u32> {
    let place = client_lines::find(packet.key().get());
    if !place.is_established() {
        // What is in `AFFINITY` is TC's.
        let spilled = !place.is_found() && affinity::has_spilled(place, packet.key().get());
        return if spilled { None } else { Some(opening::handle(ctx.ctx, place)) };
    }
    let state = known::state()?;
    let known = place.entry::<Clients>()?;
    let is_current = known.generation == known::generation(state);
    let generation = if is_current { 0 } else { known::ordered_generation(state)? };
    let arrival = Arrival::<true> { ctx: ctx.ctx, ifindex: frame.ifindex, config, packet, known, is_current };
    let Ok(Decision::Forward(Entry(known), port)) = ingress::decide(&arrival) else { return None };
    let asked = match port {
        Some(port) => Asked::since(generation, port, known),
        None => Asked::of(known),
    };
    let now = clock::now();
    if !send::can_carry(config, packet, known.flags, word(&known.vtep))
        || !path::takes(config, &known.vtep, send::tunnelled_len(packet))
    {
        return None;
    }
    let hop = hop(ctx, frame, config, known, (state, asked.hop, now))?;
    let said = Said::outer(frame, packet)?;
    let sent = send::leave(ctx, frame, config, packet, &Backend::of(known), &hop)?;
    if known.generation != asked.generation {
        asked.remember(known);
    }
    notes::of_client(known, false, &said, now);
    if let Some(end) = ending::client_ends_at_ingress(&said) {
        ending::note_client_fin(known, end);
    }
    Some(sent)
}

/// The way to the backend's node: as the agent keeps it, or as the kernel finds it.
#[inline(always)]
fn hop(
    ctx: &XdpContext,
    frame: Frame,
    config: &Config,
    known: &Affinity,
    (state, number, now): (&XdpState, u16, u64),
) -> Option<Hop> {
    let vtep = word(&known.vtep);
    if let Some(words) = next_hop::kept(state, number, vtep, now) {
        return hop::of_words(frame, words, send::outer_len(frame));
    }
    if is_sample(known, now) {
        return None;
    }
    let route = Route { src: word(&config.underlay_ip), dst: vtep, proto: ipproto::UDP, len: send::outer_len(frame) };
    match config.underlay_ifindex {
        0 => hop::forwarded(ctx, frame, &route),
        only => hop::through(ctx, frame, &route, only),
    }
}
