//! The next hop, and leaving towards it.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as Params,
        xdp_action::{XDP_ABORTED, XDP_TX},
    },
    helpers::generated::{bpf_fib_lookup, bpf_redirect},
    programs::XdpContext,
};
use dataplane_common::{
    drop_reason::DropReason,
    xdp::{HopWords, xdp_mode},
};

use super::access::{Frame, Part};
use crate::{maps::XDP_DEVICES, verdict};

const AF_INET: u8 = 2;

/// Where a packet goes next.
#[derive(Clone, Copy)]
pub(super) struct Hop {
    ifindex: u32,
    /// The Ethernet addresses as they stand in the header: eight bytes, and four.
    pub(super) first: u64,
    pub(super) second: u32,
}

/// What the routing table is asked.
#[derive(Clone, Copy)]
pub(super) struct Route {
    pub src: u32,
    pub dst: u32,
    pub proto: u8,
    /// Length of the IP packet.
    pub len: u16,
}

/// The way of a packet that the node forwards. `None`: no way, no neighbour yet, too big for it, or an interface that
/// XDP cannot send out of; the kernel knows better.
#[inline(always)]
pub(super) fn forwarded(ctx: &XdpContext, frame: Frame, route: &Route) -> Option<Hop> {
    lookup(ctx, frame, route, frame.ifindex, 0)
}

/// The same for a packet that leaves through the interface `ifindex` in any case.
#[inline(always)]
pub(super) fn through(ctx: &XdpContext, frame: Frame, route: &Route, ifindex: u32) -> Option<Hop> {
    lookup(ctx, frame, route, ifindex, BPF_FIB_LOOKUP_OUTPUT).filter(|hop| hop.ifindex == ifindex)
}

/// The same if the agent keeps the way.
#[inline(always)]
pub(super) fn kept(frame: Frame, words: HopWords, len: u16) -> Option<Hop> {
    let ifindex = words.ifindex();
    if len > words.mtu() || !(ifindex == frame.ifindex || sends(frame.ifindex, ifindex)) {
        return None;
    }
    let (first, second) = words.ethernet();
    Some(Hop { ifindex, first, second })
}

#[inline(always)]
fn lookup(ctx: &XdpContext, frame: Frame, route: &Route, ifindex: u32, flags: u32) -> Option<Hop> {
    let question = Question { route: *route, ifindex, flags };
    let mut found = Hop { ifindex: 0, first: 0, second: 0 };
    ask(ctx.as_ptr(), &question, &mut found);
    (found.ifindex != 0 && (found.ifindex == frame.ifindex || sends(frame.ifindex, found.ifindex))).then_some(found)
}

/// What the kernel is asked.
struct Question {
    route: Route,
    ifindex: u32,
    flags: u32,
}

/// Asks the kernel; `found` stays as it is if it finds nothing.
// Not inlined: its parameter block would lie on the stack below everything else.
#[inline(never)]
fn ask(ctx: *mut c_void, question: &Question, found: &mut Hop) {
    const { assert!(size_of::<Params>() == 64 && align_of::<Params>() <= 8) };
    // In words, for LLVM zeroes byte by byte what is aligned to less.
    let mut zeroed = [0u64; 8];
    // SAFETY: as many bytes; an all-zero parameter block is valid; unions are written through their IPv4 members.
    let params = unsafe { &mut *zeroed.as_mut_ptr().cast::<Params>() };
    params.family = AF_INET;
    params.l4_protocol = question.route.proto;
    params.ifindex = question.ifindex;
    params.__bindgen_anon_1.tot_len = question.route.len;
    params.__bindgen_anon_3.ipv4_src = question.route.src;
    params.__bindgen_anon_4.ipv4_dst = question.route.dst;
    // SAFETY: the parameter block has the size that is given.
    let result = unsafe { bpf_fib_lookup(ctx, &raw mut *params, size_of::<Params>() as i32, question.flags) };
    if result == BPF_FIB_LKUP_RET_SUCCESS as i64 {
        let (d, s) = (params.dmac, params.smac);
        found.ifindex = params.ifindex;
        found.first = u64::from_ne_bytes([d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1]]);
        found.second = u32::from_ne_bytes([s[2], s[3], s[4], s[5]]);
    }
}

/// Whether a frame that came in through `from` can leave through `to`, another one. A driver that cannot send for XDP
/// would drop it without a word; those that run this program can.
// VERIFIER(6.18): not inlined, for the compiler then reads one of the two modes back from a slot of the stack that was
// never written for it, and holds a pointer.
#[inline(never)]
fn sends(from: u32, to: u32) -> bool {
    // SAFETY: entries are replaced as a whole by the agent.
    let mode = |ifindex: u32| unsafe { XDP_DEVICES.get(ifindex) }.map(|device| device.mode);
    match (mode(from), mode(to)) {
        (_, Some(xdp_mode::NATIVE)) => true,
        // In the stack every device can send.
        (Some(xdp_mode::GENERIC), Some(xdp_mode::GENERIC)) => true,
        _ => false,
    }
}

impl Hop {
    /// Writes the Ethernet addresses at the start of the frame.
    #[inline(always)]
    pub(super) fn address<const LEN: usize>(&self, head: Part<LEN>) {
        head.put_eight::<0>(self.first);
        head.put_four::<8>(self.second);
    }

    /// Sends the frame there.
    #[inline(always)]
    pub(super) fn leave(&self, frame: Frame) -> u32 {
        if self.ifindex == frame.ifindex {
            return XDP_TX;
        }
        // SAFETY: plain helper call.
        unsafe { bpf_redirect(self.ifindex, 0) as u32 }
    }
}

/// The frame was moved, and its headers are not where they must be now. Cannot happen; if it does, it is counted.
#[inline(always)]
pub(super) fn broken(len: usize) -> u32 {
    verdict::count_drop_of(DropReason::RewriteFailed, len);
    XDP_ABORTED
}
