//! A client's packet, towards its backend's node.

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use dataplane_common::{
    config::Config,
    counter::Counter,
    flow::{Affinity, flag},
    headers::{ENCAP_LEN, ETH_LEN, INNER_NET, IPV4_LEN, ipproto},
    xdp::XdpState,
};

use super::{
    access::{Frame, word},
    arrival::{Arrival, Entry},
    head::{Head, Said},
    hop::{self, Hop, Route},
    is_sample,
    known::{self, Asked},
    opening,
    tunnel::{Backend, Tunnel},
};
use crate::{
    affinity,
    client_lines::{self, Clients},
    clock, ending,
    ingress::{self, Decision},
    next_hop, notes, path, verdict,
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
    if !is_ours(config, packet, known.flags, word(&known.vtep))
        || !path::takes(config, &known.vtep, tunnelled_len(packet))
    {
        return None;
    }
    let hop = hop(ctx, frame, config, known, (state, asked.hop, now))?;
    let said = Said::outer(frame, packet)?;
    let sent = leave(ctx, frame, config, packet, &Backend::of(known), &hop)?;
    if known.generation != asked.generation {
        asked.remember(known);
    }
    notes::of_client(known, false, &said, now);
    if let Some(end) = ending::client_ends_at_ingress(&said) {
        ending::note_client_fin(known, end);
    }
    Some(sent)
}

/// Length of the tunnel's packet that `packet` becomes. Generic mode shows whole GSO packets; those are too big as
/// well.
#[inline(always)]
pub(super) fn tunnelled_len(packet: &Head) -> u32 {
    u32::from(packet.total_len) + ENCAP_LEN as u32
}

/// Whether XDP can carry a packet of a connection with these flags to that node; but for its length. Over the host link
/// no hop is counted: that is TC's.
#[inline(always)]
pub(super) fn is_ours(config: &Config, packet: &Head, flags: u8, vtep: u32) -> bool {
    packet.dst != word(&config.host_ip) && flags & flag::STOCK == 0 && vtep != word(&config.vtep)
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
        return hop::of_words(frame, words, outer_len(frame));
    }
    if is_sample(known, now) {
        return None;
    }
    let route = Route { src: word(&config.underlay_ip), dst: vtep, proto: ipproto::UDP, len: outer_len(frame) };
    match config.underlay_ifindex {
        0 => hop::forwarded(ctx, frame, &route),
        only => hop::through(ctx, frame, &route, only),
    }
}

/// The way to the node with the tunnel address `vtep` if the agent keeps it.
#[inline(always)]
pub(super) fn kept_hop(frame: Frame, state: &XdpState, number: u16, vtep: u32, now: u64) -> Option<Hop> {
    hop::of_words(frame, next_hop::kept(state, number, vtep, now)?, outer_len(frame))
}

/// Length of the outer IP packet.
#[inline(always)]
fn outer_len(frame: Frame) -> u16 {
    (frame.len() - ETH_LEN + ENCAP_LEN) as u16
}

/// Counts the hop, puts the tunnel around the packet and sends it. `None`: it was not touched.
#[inline(always)]
pub(super) fn leave(
    ctx: &XdpContext,
    frame: Frame,
    config: &Config,
    packet: &Head,
    backend: &Backend,
    hop: &Hop,
) -> Option<u32> {
    let len = frame.len();
    // SAFETY: the context is valid; every pointer into the frame is made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(ENCAP_LEN as i32)) } != 0 {
        return None;
    }
    let Some(head) = Frame::of(ctx).part::<0, { INNER_NET + IPV4_LEN }>() else { return Some(hop::broken(len)) };
    let tunnel = Tunnel { backend: *backend, ip_len: outer_len(frame) };
    head.put_headers(config, hop, &tunnel, packet);
    head.lower_ttl();
    verdict::count_of(Counter::XdpForward, len);
    Some(hop.leave(frame))
}
