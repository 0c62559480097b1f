//! Sending a client's packet to its backend's node: what established connections and new ones have in common.

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use dataplane_common::{
    config::Config,
    counter::Counter,
    flow::flag,
    headers::{ENCAP_LEN, ETH_LEN, INNER_NET, IPV4_LEN},
    xdp::XdpState,
};

use super::{
    access::{Frame, word},
    head::Head,
    hop::{self, Hop},
    tunnel::{Backend, Tunnel},
};
use crate::{next_hop, verdict};

/// Length of the outer IP packet around `packet`. A whole GSO packet, as generic mode shows it, is too long as well.
#[inline(always)]
pub(super) fn tunnelled_len(packet: &Head) -> u32 {
    u32::from(packet.total_len) + ENCAP_LEN as u32
}

/// Whether XDP can carry a packet of a connection with these flags to that node, whatever its length. A packet over the
/// host link loses no hop, so TC carries it.
#[inline(always)]
pub(super) fn can_carry(config: &Config, packet: &Head, flags: u8, vtep: u32) -> bool {
    packet.dst != word(&config.host_ip) && flags & flag::STOCK == 0 && vtep != word(&config.vtep)
}

/// The next hop to the node with the tunnel address `vtep`, if the agent keeps it.
#[inline(always)]
pub(super) fn kept_hop(frame: Frame, state: &XdpState, number: u16, vtep: u32, now: u64) -> Option<Hop> {
    hop::of_words(frame, next_hop::kept(state, number, vtep, now)?, outer_len(frame))
}

/// Length of the outer IP packet.
#[inline(always)]
pub(super) fn outer_len(frame: Frame) -> u16 {
    (frame.len() - ETH_LEN + ENCAP_LEN) as u16
}

/// Lowers the TTL, encapsulates the packet and sends it. Returns `None` if the packet was not changed.
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
