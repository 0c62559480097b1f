//! Hook `from_underlay`: a packet arrives on an uplink: a tunnel's frame, a client of the
//! routing mesh, or somebody else's business.

use dataplane_common::{flow::MESH_ZONE, fragment::place, headers::ipproto};

use crate::{
    fragment,
    maps::config,
    mesh_ingress,
    parse::{self, Fragment},
    path, sender,
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
            sender::outer_fragment(ctx, packet);
            path::note_cut(ctx, config, packet);
            Ok(Action::Pass)
        }
        _ => mesh_ingress::from_outside(ctx, config, packet, true),
    }
}
