//! Hook `from_underlay`: a packet arrives on the interface that carries the VTEP: a tunnel's frame, a client of the
//! routing mesh, or somebody else's business.

use aya_ebpf::programs::TcContext;
use dataplane_common::{addr::Ip4, headers::ipproto, mark};

use crate::{
    maps::{self, config},
    mesh_ingress,
    parse::{self, Fragment, Packet},
    tunnel,
    verdict::{Action, Verdict},
};

/// Entry of the hook. What is not ours passes, however broken it is.
#[inline(always)]
pub(crate) fn handle(ctx: &TcContext) -> Verdict {
    let Some(packet) = parse::from_outside(ctx) else {
        return Ok(Action::Pass);
    };
    let config = config()?;
    if packet.proto == ipproto::UDP && packet.dst == config.vtep {
        if packet.fragment != Fragment::Whole {
            return fragment(ctx, packet);
        }
        if packet.dport == config.vxlan_port {
            return tunnel::handle(ctx, config, packet);
        }
    }
    mesh_ingress::from_outside(ctx, config, packet)
}

/// An outer fragment: another node's slow path had to cut. The kernel puts it together; `from_vxlan` checks the inner
/// sender against the mark.
#[inline(always)]
fn fragment(ctx: &TcContext, packet: &Packet) -> Verdict {
    if maps::vtep(&packet.src).is_some() {
        ctx.set_mark(mark::FRAGMENT | low24(packet.src));
    }
    Ok(Action::Pass)
}

/// The lower 24 bits of an address: what fits a mark.
#[inline(always)]
pub(crate) fn low24(ip: Ip4) -> u32 {
    u32::from_be_bytes([0, ip[1], ip[2], ip[3]])
}
