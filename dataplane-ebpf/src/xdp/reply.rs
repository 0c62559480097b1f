//! A backend's answer in the tunnel, back to its client.

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use dataplane_common::{
    addr::{NODE_MAC_PREFIX, TASK_MAC_PREFIX},
    config::Config,
    counter::Counter,
    endpoint::vtep_mesh,
    flow::flag,
    headers::{
        ENCAP_LEN, ETH_LEN, INNER_ETH, INNER_NET, IPV4_LEN, TCP_LEN, VXLAN, VXLAN_FLAG_VNI, VXLAN_LEN, ipproto, tcpflag,
    },
};

use super::{
    access::{Frame, word},
    head::{self, Head, Said},
    hop::{self, Route},
    is_sample, known,
};
use crate::{
    affinity,
    client_lines::{self, Clients},
    clock, decap, maps, notes, path, proof, verdict,
};

/// Carries what is in the tunnel; `None`: not for this path.
#[inline(always)]
pub(super) fn carry(ctx: &XdpContext, frame: Frame, config: &Config, outer: &Head) -> Option<u32> {
    const TO_NODE: u16 = u16::from_le_bytes(NODE_MAC_PREFIX);
    const FROM_TASK: u16 = u16::from_le_bytes(TASK_MAC_PREFIX);
    // The same questions as in `tunnel::handle` and `mesh_ingress::from_tunnel`.
    let tunnel = frame.part::<VXLAN, VXLAN_LEN>()?;
    let vni = tunnel.four::<4>() << 8;
    if tunnel.byte::<0>() & VXLAN_FLAG_VNI == 0 || vni != word(&config.mesh_vni) {
        return None;
    }
    let eth = frame.part::<INNER_ETH, ETH_LEN>()?;
    let task = eth.four::<8>();
    if eth.two::<0>() != TO_NODE || eth.four::<2>() != word(&config.vtep) || eth.two::<6>() != FROM_TASK {
        return None;
    }
    let inner = &head::inner(frame)?;
    let key = inner.key_of_answer();
    let place = client_lines::find(key.get());
    // What is in `AFFINITY` is TC's.
    let known = if place.is_found() { place.entry::<Clients>()? } else { return None };
    if !notes::was_given_to(known, task.to_le_bytes(), outer.src.to_le_bytes()) {
        return None;
    }
    let now = clock::now();
    // A packet the other way has heard that its node runs Hiveway, or this one asks.
    if (known.generation != known::generation(known::state()?)
        && maps::vtep(&outer.src.to_le_bytes())?.hiveway == vtep_mesh::NONE)
        || decap::congested(outer.tos, inner.tos)
        || (config.host_ifindex != 0 && inner.src == word(&config.host_ip))
        || is_sample(known, now)
    {
        return None;
    }
    if inner.proto == ipproto::TCP && inner.flags & tcpflag::SYN != 0 && !mss_fits(frame, config, inner) {
        return None;
    }
    let said = Said::inner(frame, inner)?;
    // A client that does not answer the first one may be another machine by now: see `fib::route`.
    if known.flags & flag::REPLIED != 0 && proof::is_syn_ack(&said) {
        return None;
    }
    let len = frame.len() - ENCAP_LEN;
    let route = Route { src: inner.src, dst: inner.dst, proto: inner.proto, len: (len - ETH_LEN) as u16 };
    let hop = hop::of_reply(ctx, frame, config, &route, (&mut *known, place.is_established()), now)?;
    // SAFETY: the context is valid; every pointer into the frame is made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, ENCAP_LEN as i32) } != 0 {
        return None;
    }
    // The inner Ethernet header takes the place of the outer one, with its type.
    const _: () = assert!(INNER_NET - ENCAP_LEN == ETH_LEN);
    let Some(head) = Frame::of(ctx).part::<0, ETH_LEN>() else { return Some(hop::broken(len)) };
    hop.address(head);
    if notes::of_backend(known, !place.is_established(), &said, now) {
        affinity::promote(key.get(), known, frame.len());
    }
    verdict::count_of(Counter::XdpReply, len);
    Some(hop.leave(frame))
}

/// Whether `mss::clamp` would leave a SYN as it is. Also no if it would lower it for another path, or if the MSS is not
/// where it is looked for here.
#[inline(always)]
fn mss_fits(frame: Frame, config: &Config, inner: &Head) -> bool {
    const AROUND: u32 = (ENCAP_LEN + IPV4_LEN + TCP_LEN) as u32;
    head::inner_mss(frame, inner.tcp_len).is_some_and(|mss| path::all_take(config, u32::from(mss) + AROUND))
}
