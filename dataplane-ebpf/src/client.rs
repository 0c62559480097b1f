//! Hook `from_client`: a packet arrives on an interface that is not the underlay.

use aya_ebpf::programs::TcContext;

use crate::{
    maps::config,
    mesh_ingress, parse,
    verdict::{Action, Verdict},
};

/// Entry of the hook.
#[inline(always)]
pub(crate) fn handle(ctx: &TcContext) -> Verdict {
    match parse::from_outside(ctx) {
        Some(packet) => mesh_ingress::from_outside(ctx, config()?, &packet),
        None => Ok(Action::Pass),
    }
}
