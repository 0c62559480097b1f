//! A client's packet of an established connection, towards its backend's node.

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use dataplane_common::{
    addr::{NODE_MAC_PREFIX, TASK_MAC_PREFIX, mac_of},
    config::Config,
    counter::Counter,
    flow::{Affinity, flag},
    headers::{ENCAP_LEN, ETH_LEN, INNER_NET, IPV4_LEN, VXLAN_FLAG_VNI, ethertype, ipproto},
    service::PortKey,
};

use super::{
    access::Frame,
    hop::{self, Hop, Route},
    is_sample,
};
use crate::{
    affinity,
    encap::{self, Headers},
    flow, host,
    maps::{NODE_ADDRESSES, PORTS},
    mesh_ingress,
    parse::Packet,
    verdict,
};

/// Carries the packet; `None`: not for this path.
#[inline(always)]
pub(super) fn carry(ctx: &XdpContext, frame: Frame, config: &Config, packet: &Packet) -> Option<u32> {
    // The same questions in the same order as in `mesh_ingress::from_outside`.
    // SAFETY: entries are replaced as a whole by the agent.
    unsafe { PORTS.get(PortKey { proto: packet.proto, _pad: 0, port: packet.dport }) }?;
    // SAFETY: as above.
    unsafe { NODE_ADDRESSES.get(packet.dst) }?;
    if host::misplaced(config, || frame.ifindex, packet) {
        return None;
    }
    let known = affinity::established(&affinity::key(packet))?;
    // Another connection, or one for another backend. (Written out as it is there, for a function in common cost the
    // verifier half as much again in `from_underlay`.)
    if (flow::is_syn(packet) && known.flags & (flag::FIN | flag::RST) != 0)
        || (flow::may_open(packet) && mesh_ingress::left_behind(known))
    {
        return None;
    }
    if known.flags & (flag::OWN | flag::STOCK) != 0 || known.vtep == config.vtep || is_sample(known) {
        return None;
    }
    // Generic mode shows whole GSO packets; those are too big as well.
    if u32::from(packet.total_len) + ENCAP_LEN as u32 > u32::from(config.underlay_mtu) {
        return None;
    }
    let len = frame.len();
    let ip_len = (len - ETH_LEN + ENCAP_LEN) as u16;
    let route = Route { src: config.vtep, dst: known.vtep, proto: ipproto::UDP, len: ip_len };
    let hop = hop::through(ctx, frame, &route, config.underlay_ifindex)?;
    // SAFETY: the context is valid; every pointer into the frame is made anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(ENCAP_LEN as i32)) } != 0 {
        return None;
    }
    let Some(head) = Frame::of(ctx).part::<INNER_NET>(0) else { return Some(hop::broken(len)) };
    head.put_headers(around(config, known, packet, ip_len, &hop));
    flow::note(&mut known.last_seen, &mut known.flags, flow::bits(packet));
    verdict::count_of(Counter::MeshForward, len);
    verdict::count_of(Counter::Encapsulated, len + ENCAP_LEN);
    verdict::count_of(Counter::XdpForward, len);
    Some(hop.leave(frame))
}

/// What `encap::encapsulate` writes, with the outer Ethernet addresses, which the kernel writes there.
#[inline(always)]
fn around(config: &Config, known: &Affinity, packet: &Packet, ip_len: u16, hop: &Hop) -> Headers {
    let vni = config.mesh_vni;
    let port = encap::source_port(encap::own_hash(packet));
    let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (hop.dst, hop.src);
    let [type_high, type_low] = ethertype::IPV4;
    Headers {
        eth: [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, type_high, type_low],
        ip: encap::outer_ip(config.vtep, known.vtep, packet.tos & 0x03, ip_len),
        udp: encap::outer_udp(port, config.vxlan_port, ip_len - IPV4_LEN as u16),
        vxlan_flags: [VXLAN_FLAG_VNI, 0, 0, 0],
        vni: [vni[1], vni[2], vni[3]],
        reserved: 0,
        inner_dst: mac_of(TASK_MAC_PREFIX, known.ip),
        inner_src: mac_of(NODE_MAC_PREFIX, config.vtep),
        inner_type: ethertype::IPV4,
    }
}
