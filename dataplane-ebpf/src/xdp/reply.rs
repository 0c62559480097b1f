//! A backend's answer in the tunnel, back to its client.

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use dataplane_common::{
    addr::{NODE_MAC_PREFIX, ip_in_mac},
    config::Config,
    counter::Counter,
    endpoint::vtep_mesh,
    headers::{ENCAP_LEN, ETH_LEN, INNER_ETH, INNER_NET, VXLAN, VXLAN_FLAG_VNI, VXLAN_LEN},
};

use super::{
    access::Frame,
    head,
    hop::{self, Route},
    is_sample,
};
use crate::{affinity, decap, flow, maps, mesh_ingress, parse::Packet, verdict};

/// Carries what is in the tunnel; `None`: not for this path.
#[inline(always)]
pub(super) fn carry(ctx: &XdpContext, frame: Frame, config: &Config, outer: &Packet) -> Option<u32> {
    // The same questions in the same order as in `tunnel::handle` and `mesh_ingress::from_tunnel`.
    let tunnel = frame.part::<{ VXLAN_LEN + ETH_LEN }>(VXLAN)?;
    let [high, middle, low, _] = tunnel.four::<4>();
    if tunnel.byte::<0>() & VXLAN_FLAG_VNI == 0 || [0, high, middle, low] != config.mesh_vni {
        return None;
    }
    if maps::vtep(&outer.src)?.hiveway == vtep_mesh::NONE {
        return None;
    }
    let [d0, d1, d2, d3] = tunnel.four::<{ VXLAN_LEN }>();
    let [d4, d5, s0, s1] = tunnel.four::<{ VXLAN_LEN + 4 }>();
    let [s2, s3, s4, s5] = tunnel.four::<{ VXLAN_LEN + 8 }>();
    if ip_in_mac(NODE_MAC_PREFIX, [d0, d1, d2, d3, d4, d5]) != Some(config.vtep) {
        return None;
    }
    let inner = &head::ethernet(frame, INNER_ETH)?;
    let known = affinity::established(&affinity::key_of_answer(inner))?;
    if !mesh_ingress::given_to(known, &[s0, s1, s2, s3, s4, s5], &outer.src)
        || decap::congested(outer.tos, inner)
        || (config.host_ifindex != 0 && inner.src == config.host_ip)
        || is_sample(known)
    {
        return None;
    }
    let len = frame.len() - ENCAP_LEN;
    let route = Route { src: inner.src, dst: inner.dst, proto: inner.proto, len: (len - ETH_LEN) as u16 };
    let hop = hop::forwarded(ctx, frame, &route)?;
    // SAFETY: the context is valid; every pointer into the frame is made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, ENCAP_LEN as i32) } != 0 {
        return None;
    }
    // The inner Ethernet header takes the place of the outer one, with its type.
    const _: () = assert!(INNER_NET - ENCAP_LEN == ETH_LEN);
    let Some(head) = Frame::of(ctx).part::<ETH_LEN>(0) else { return Some(hop::broken(len)) };
    hop.address(head);
    flow::note(&mut known.last_seen, &mut known.flags, mesh_ingress::bits_of_answer(inner));
    verdict::count_of(Counter::MeshReply, len);
    verdict::count_of(Counter::XdpReply, len);
    Some(hop.leave(frame))
}
