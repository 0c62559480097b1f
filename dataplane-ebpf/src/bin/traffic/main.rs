//! The bench's own programs: traffic in front of a node, and its far end. Never attached by an agent; `hw-bench` loads
//! them from an object of their own.
//!
//! ```text
//!  generate, replay (BPF_PROG_TEST_RUN, live frames) ── veth ──▶ eth0 of the node under test
//!                                                               (bounce, push, pull: floors)
//!  far_end, sink ◀──────────────────────────────────────── what it sends
//! ```
#![no_std]
#![no_main]
#![expect(missing_docs, unreachable_pub, reason = "the macros generate the exported symbols without docs")]

mod far_end;
mod generate;

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_TX},
    btf_maps::{Array, PerCpuArray},
    helpers::generated::bpf_xdp_adjust_head,
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use dataplane_common::{
    headers::{ENCAP_LEN, ETH_LEN, INNER_NET, ethertype},
    traffic::{self, Answer, HEADERS, Order, TUNNELLED_HEADERS, tally},
};

#[btf_map]
pub(crate) static ORDER: Array<Order, 1> = Array::new();
#[btf_map]
pub(crate) static FAR_END: Array<u32, { traffic::far_end::SLOTS as usize }> = Array::new();
#[btf_map]
pub(crate) static ANSWERS: Array<Answer, { traffic::ANSWERS as usize }> = Array::new();
#[btf_map]
pub(crate) static TALLY: PerCpuArray<u64, { tally::SLOTS as usize }> = PerCpuArray::new();

/// Fills in one frame and sends it out of the device that the run names.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    generate::fill(&ctx)
}

/// The same with one frame from a server to a client of a flow that was opened, as it arrives at the node under test.
#[xdp]
pub fn replay(ctx: XdpContext) -> u32 {
    generate::reply::<0, HEADERS>(&ctx)
}

/// The same in the tunnel.
#[xdp]
pub fn replay_tunnel(ctx: XdpContext) -> u32 {
    generate::reply::<ENCAP_LEN, TUNNELLED_HEADERS>(&ctx)
}

/// The least that a node can do with a packet.
#[xdp]
pub fn bounce(_ctx: XdpContext) -> u32 {
    XDP_TX
}

/// The least that a node can do with a packet that it tunnels: headers of the tunnel's length in front, always the
/// same.
#[xdp]
pub fn push(ctx: XdpContext) -> u32 {
    // SAFETY: the context is valid; pointers into the frame are made below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(ENCAP_LEN as i32)) } != 0 {
        return XDP_ABORTED;
    }
    let frame = ctx.data();
    if frame + INNER_NET > ctx.data_end() {
        return XDP_ABORTED;
    }
    // SAFETY: within the bounds checked above; the programs run where words may be anywhere.
    let word = |at: usize, value: u64| unsafe { ((frame + 8 * at) as *mut u64).write(value) };
    word(0, 0);
    word(1, u64::from(u16::from_le_bytes(ethertype::IPV4)) << 32);
    (2..8).for_each(|at| word(at, 0));
    XDP_TX
}

/// The least that a node can do with a packet that it takes out of a tunnel: without those bytes, and with addresses in
/// the inner Ethernet header that are always the same.
#[xdp]
pub fn pull(ctx: XdpContext) -> u32 {
    // SAFETY: as in `push`.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, ENCAP_LEN as i32) } != 0 {
        return XDP_ABORTED;
    }
    let frame = ctx.data();
    if frame + ETH_LEN > ctx.data_end() {
        return XDP_ABORTED;
    }
    // SAFETY: within the bounds checked above; the programs run where words may be anywhere.
    unsafe {
        (frame as *mut u64).write(0);
        ((frame + 8) as *mut u32).write(0);
    }
    XDP_TX
}

/// Far end of nodes that send whole packet buffers (TC, the stack): TC ingress.
#[classifier]
pub fn far_end(ctx: TcContext) -> i32 {
    far_end::take(&ctx)
}

/// Far end of nodes that send XDP frames: counts them before a packet buffer is made. What is to be answered passes on
/// to `far_end`.
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    far_end::sink(&ctx)
}

/// Counts one packet.
#[inline(always)]
pub(crate) fn count(slot: u32) {
    if let Some(count) = TALLY.get_ptr_mut(slot) {
        // SAFETY: this CPU's slot, and the programs run with bottom halves off.
        unsafe { *count += 1 };
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: nothing here can panic: the verifier rejects the loop that a reachable one would be.
    unsafe { core::hint::unreachable_unchecked() }
}

// SAFETY: the section is read by the loader only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
