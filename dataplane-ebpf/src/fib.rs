//! Where a packet leaves the node.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as Params,
    },
    helpers::generated::bpf_fib_lookup,
    programs::TcContext,
};
use dataplane_common::drop_reason::DropReason;

use crate::{
    maps::scratch,
    parse::Packet,
    verdict::{Action, Verdict, ifindex},
};

const AF_INET: u8 = 2;

/// Sends the packet out of the interface that the main routing table names.
#[inline(always)]
pub(crate) fn route(ctx: &TcContext, packet: &Packet) -> Verdict {
    let params = &mut scratch()?.fib;
    // SAFETY: an all-zero parameter block is valid; unions are written through their IPv4 members.
    *params = unsafe { core::mem::zeroed() };
    params.family = AF_INET;
    params.l4_protocol = packet.proto;
    params.ifindex = ifindex(ctx);
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(packet.src);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(packet.dst);
    // SAFETY: the parameter block lives in scratch memory and has the size that is given.
    let result = unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut *params, size_of::<Params>() as i32, 0) };
    // Without a neighbour entry the interface is known all the same; the kernel resolves the rest.
    if result == BPF_FIB_LKUP_RET_SUCCESS as i64 || result == BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
        Ok(Action::Neigh(params.ifindex))
    } else if result == BPF_FIB_LKUP_RET_FRAG_NEEDED as i64 {
        // Nobody would fragment it between here and the interface.
        Err(DropReason::MtuExceeded)
    } else {
        Err(DropReason::NoRoute)
    }
}
