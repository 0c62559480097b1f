//! The mark of what the slow path gets, which names its sender in the tunnel (ADR 3), for pieces of a tunnel.

use dataplane_common::{addr::Ip4, config::Config, headers::ipproto, mark};

use crate::{maps, parse::Packet, skb::Skb};

/// A later fragment that is no client's, as far as we know: perhaps a tunnel's.
#[inline(always)]
pub(crate) fn unclaimed(ctx: &Skb, config: &Config, packet: &Packet) {
    if packet.proto == ipproto::UDP && packet.dst == config.underlay_ip {
        outer_fragment(ctx, packet);
    }
}

/// A fragment of a tunnel: another node's slow path had to cut. The kernel puts it together; `from_vxlan` checks the
/// inner sender against the mark.
#[inline(always)]
pub(crate) fn outer_fragment(ctx: &Skb, packet: &Packet) {
    if maps::vtep(&packet.src).is_some() {
        ctx.set_mark(mark::FRAGMENT | low24(packet.src));
    }
}

/// The lower 24 bits of an address: what fits a mark.
#[inline(always)]
pub(crate) fn low24(ip: Ip4) -> u32 {
    u32::from_be_bytes([0, ip[1], ip[2], ip[3]])
}
