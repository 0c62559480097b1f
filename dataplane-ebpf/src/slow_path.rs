//! Hook `from_vxlan`: the kernel's vxlan device has taken the tunnel off a frame that the fast path left to it.
//!
//! By now the outer header is gone; the mark says what `from_underlay` has seen of it. A frame without a mark came in
//! through another interface (the loopback, say) and nobody has checked it.

use aya_ebpf::programs::TcContext;
use dataplane_common::{
    drop_reason::DropReason,
    endpoint::{EndpointKey, kind},
    headers::{ETH_LEN, ethertype},
    mark,
};

use crate::{
    maps, parse,
    underlay::low24,
    verdict::{self, Action, Verdict},
};

/// Entry of the hook.
#[inline(always)]
pub(crate) fn handle(ctx: &TcContext) -> Verdict {
    // SAFETY: the context pointer is valid for the program's run.
    let seen = unsafe { (*ctx.skb.skb).mark };
    ctx.set_mark(0);
    match seen & mark::KIND_MASK {
        mark::CHECKED => Ok(Action::Pass),
        mark::FRAGMENT => check(ctx, seen & !mark::KIND_MASK),
        _ => Err(DropReason::UncheckedTunnel),
    }
}

/// A frame that came in pieces: its inner source must live on the node that the pieces came from.
#[inline(always)]
fn check(ctx: &TcContext, sender: u32) -> Verdict {
    let device = maps::local(verdict::ifindex(ctx)).ok_or(DropReason::UnknownInterface)?;
    let eth = parse::eth(ctx, 0)?;
    if eth.ethertype != ethertype::IPV4 {
        return Err(DropReason::UncheckedTunnel);
    }
    let packet = parse::outer(ctx, ETH_LEN)?;
    match maps::endpoint(&EndpointKey { net: device.net, ip: packet.src }) {
        Some(from) if (from.kind == kind::REMOTE || from.kind == kind::NODE) && low24(from.vtep) == sender => {
            Ok(Action::Pass)
        }
        _ => Err(DropReason::BadInnerSource),
    }
}
