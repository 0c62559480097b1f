//! Hook `from_client`: a packet arrives on an interface that is not the underlay, or from the node itself through the
//! host link.

use crate::{
    host,
    maps::config,
    mesh_ingress, parse, probe,
    skb::{self, Skb},
    verdict::{self, Action, Verdict},
};

/// Entry of the hook.
#[inline(always)]
pub(crate) fn handle(ctx: &Skb) -> Verdict {
    if !parse::is_own(ctx) {
        return Ok(Action::Pass);
    }
    match skb::from_outside(ctx) {
        Some(packet) if !skb::has_source_route(ctx, packet) => {
            let config = config()?;
            if probe::is_to_leave(config, packet, verdict::ifindex(ctx)) {
                return probe::leave(ctx, config, packet);
            }
            match mesh_ingress::from_outside(ctx, config, packet, false) {
                Ok(Action::Pass) => host::unserved(ctx, config, packet),
                served => served,
            }
        }
        _ => Ok(Action::Pass),
    }
}
