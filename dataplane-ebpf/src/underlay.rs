//! Hook `from_underlay`: a packet arrives on an uplink: a tunnel's frame, a client of the
//! routing mesh, or somebody else's business.

use dataplane_common::{addr::Ip4, config::Config, flow::MESH_ZONE, fragment::place, headers::ipproto, mark};

use crate::{
    fragment,
    maps::{self, config},
    mesh_ingress,
    parse::{self, Fragment, Packet},
    path,
    skb::{self, Skb},
    tunnel,
    verdict::{Action, Verdict},
};

/// Entry of the hook. What is not ours passes, however broken it is.
#[inline(always)]
pub(crate) fn handle(ctx: &Skb) -> Verdict {
    if !parse::is_own(ctx) {
        return Ok(Action::Pass);
    }
    let Some(packet) = skb::from_outside(ctx) else {
        return Ok(Action::Pass);
    };
    if skb::has_source_route(ctx, packet) {
        return Ok(Action::Pass);
    }
    let config = config()?;
    let ours = packet.proto == ipproto::UDP && packet.dst == config.underlay_ip && packet.dport == config.vxlan_port;
    match packet.fragment {
        Fragment::Whole if ours => tunnel::handle(ctx, config, packet),
        Fragment::First if ours => {
            fragment::begin(packet, MESH_ZONE, place::INGRESS);
            outer_fragment(ctx, packet);
            path::note_cut(ctx, config, packet);
            Ok(Action::Pass)
        }
        _ => mesh_ingress::from_outside(ctx, config, packet, true),
    }
}

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
fn outer_fragment(ctx: &Skb, packet: &Packet) {
    if maps::vtep(&packet.src).is_some() {
        ctx.set_mark(mark::FRAGMENT | low24(packet.src));
    }
}

/// The lower 24 bits of an address: what fits a mark.
#[inline(always)]
pub(crate) fn low24(ip: Ip4) -> u32 {
    u32::from_be_bytes([0, ip[1], ip[2], ip[3]])
}
