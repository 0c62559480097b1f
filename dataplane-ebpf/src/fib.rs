//! Where a packet leaves the node.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as Params},
    helpers::generated::bpf_fib_lookup,
    programs::TcContext,
};
use dataplane_common::{addr::Ip4, drop_reason::DropReason};

use crate::{
    parse::Packet,
    verdict::{Action, Verdict, ifindex},
};

const AF_INET: u8 = 2;

/// Sends the packet, which carries `src` and `dst` now, out of the interface that the main routing table names.
#[inline(always)]
pub(crate) fn route(ctx: &TcContext, packet: &Packet, src: Ip4, dst: Ip4) -> Verdict {
    // SAFETY: an all-zero parameter block is valid; unions are written through their IPv4 members.
    let mut params: Params = unsafe { core::mem::zeroed() };
    params.family = AF_INET;
    params.l4_protocol = packet.proto;
    params.ifindex = ifindex(ctx);
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(src);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(dst);
    // SAFETY: the parameter block lives on our stack and has the size that is given.
    let result = unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut params, size_of::<Params>() as i32, 0) };
    // Without a neighbour entry the interface is known all the same; the kernel resolves the rest.
    if result == BPF_FIB_LKUP_RET_SUCCESS as i64 || result == BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
        Ok(Action::Neigh(params.ifindex))
    } else {
        Err(DropReason::NoRoute)
    }
}
