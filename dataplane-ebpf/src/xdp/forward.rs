//! A client's packet of an established connection, towards its backend's node.

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use dataplane_common::{
    config::Config,
    counter::Counter,
    flow::{Affinity, flag},
    headers::{ENCAP_LEN, ETH_LEN, INNER_NET, ipproto},
    xdp::XdpState,
};

use super::{
    access::{Frame, word},
    head::Head,
    hop::{self, Hop, Route},
    is_sample,
    known::{self, Asked},
    tunnel::Tunnel,
};
use crate::{affinity, flow, verdict};

/// Carries the packet; `None`: not for this path.
#[inline(always)]
pub(super) fn carry(ctx: &XdpContext, frame: Frame, config: &Config, packet: &Head) -> Option<u32> {
    // What `mesh_ingress::from_outside` asks. The entry is looked up first, for it may know what the rest would be
    // answered.
    let known = affinity::established(packet.key().get())?;
    let state = known::state()?;
    let asked = if known.generation == known::generation(state) {
        Asked { generation: known.generation, hop: known.hop }
    } else {
        known::ask(packet, known)?
    };
    let vtep = word(&known.vtep);
    if (packet.dst == word(&config.host_ip) && frame.ifindex != config.host_ifindex)
        || known.flags & (flag::OWN | flag::STOCK) != 0
        || vtep == word(&config.vtep)
        // Another connection.
        || (known.flags & (flag::FIN | flag::RST) != 0 && packet.is_syn())
    {
        return None;
    }
    // Generic mode shows whole GSO packets; those are too big as well.
    if u32::from(packet.total_len) + ENCAP_LEN as u32 > u32::from(config.underlay_mtu) {
        return None;
    }
    let now = flow::now();
    let len = frame.len();
    let ip_len = (len - ETH_LEN + ENCAP_LEN) as u16;
    let hop = way(ctx, frame, config, state, (known, asked.hop), ip_len, now)?;
    // SAFETY: the context is valid; every pointer into the frame is made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(ENCAP_LEN as i32)) } != 0 {
        return None;
    }
    let Some(head) = Frame::of(ctx).part::<0, INNER_NET>() else { return Some(hop::broken(len)) };
    head.put_headers(config, &hop, &Tunnel { vtep, task: word(&known.ip), ip_len }, packet);
    if known.generation != asked.generation {
        asked.remember(known);
    }
    flow::note_at(&mut known.last_seen, &mut known.flags, packet.bits(), now);
    verdict::count_of(Counter::XdpForward, len);
    Some(hop.leave(frame))
}

/// The way to the backend's node: as the agent keeps it, or as the kernel finds it.
#[inline(always)]
fn way(
    ctx: &XdpContext,
    frame: Frame,
    config: &Config,
    state: &XdpState,
    (known, number): (&Affinity, u16),
    ip_len: u16,
    now: u64,
) -> Option<Hop> {
    if let Some(words) = known::kept_hop(state, number, word(&known.vtep), now) {
        return hop::kept(frame, words, ip_len);
    }
    if is_sample(known, now) {
        return None;
    }
    let route = Route { src: word(&config.vtep), dst: word(&known.vtep), proto: ipproto::UDP, len: ip_len };
    hop::through(ctx, frame, &route, config.underlay_ifindex)
}
