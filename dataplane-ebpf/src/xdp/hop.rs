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
    config::Config,
    drop_reason::DropReason,
    flow::Affinity,
    line::head,
    xdp::{HopWords, reply_hop, xdp_mode},
};

use super::access::{Frame, Part};
use crate::{
    client_lines::Clients,
    lines_map::Table as _,
    maps::{REPLY_HOPS, XDP_DEVICES},
    verdict,
};

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

/// The way of a packet that leaves through the interface `ifindex` in any case. `None`: no way, no neighbour yet, too
/// big for it, or an interface that XDP cannot send out of; the kernel knows better.
#[inline(always)]
pub(super) fn through(ctx: &XdpContext, frame: Frame, route: &Route, ifindex: u32) -> Option<Hop> {
    asked(ctx, frame, route, ifindex, BPF_FIB_LOOKUP_OUTPUT).filter(|hop| hop.ifindex == ifindex)
}

/// The same of one that the node forwards, as the kernel finds it.
#[inline(always)]
pub(super) fn forwarded(ctx: &XdpContext, frame: Frame, route: &Route) -> Option<Hop> {
    asked(ctx, frame, route, frame.ifindex, 0)
}

/// The next hop of a reply of the connection `known`: the one that the entry remembers, or the kernel's answer. The
/// entry remembers an answer only if the connection `is_established`: a pending entry may lose its line to another
/// connection between the question and the store.
#[inline(always)]
pub(super) fn of_reply(
    ctx: &XdpContext,
    frame: Frame,
    config: &Config,
    route: &Route,
    (known, is_established): (&mut Affinity, bool),
    now: u64,
) -> Option<Hop> {
    let question = Question { route: *route, ifindex: frame.ifindex, flags: 0 };
    let mut found = Found { ethernet: (0, 0), ifindex: 0, mtu: 0 };
    let step = reply_hop::step(now);
    let remembered = is_established && recall(known, frame.ifindex, step, &mut found);
    if !remembered {
        ask(ctx.as_ptr(), &question, &mut found);
    }
    let hop = sendable(frame, &found, route.len)?;
    // A narrower path is asked for each time: forged ICMP errors can lower its MTU, and so vary the hash of the next
    // hop.
    if !remembered && is_established && u32::from(found.mtu) >= u32::from(config.underlay_mtu) {
        remember(known, frame.ifindex, step, &found);
    }
    Some(hop)
}

/// The same if the agent keeps the way.
#[inline(always)]
pub(super) fn of_words(frame: Frame, words: HopWords, len: u16) -> Option<Hop> {
    sendable(frame, &Found { ethernet: words.ethernet(), ifindex: words.ifindex(), mtu: words.mtu() }, len)
}

#[inline(always)]
fn asked(ctx: &XdpContext, frame: Frame, route: &Route, ifindex: u32, flags: u32) -> Option<Hop> {
    let question = Question { route: *route, ifindex, flags };
    let mut found = Found { ethernet: (0, 0), ifindex: 0, mtu: 0 };
    ask(ctx.as_ptr(), &question, &mut found);
    sendable(frame, &found, route.len)
}

/// The hop, if there is one that XDP can send an IP packet of `len` bytes to.
#[inline(always)]
fn sendable(frame: Frame, found: &Found, len: u16) -> Option<Hop> {
    let Found { ethernet: (first, second), ifindex, mtu } = *found;
    if ifindex == 0 || len > mtu || !(ifindex == frame.ifindex || sends(frame.ifindex, ifindex)) {
        return None;
    }
    Some(Hop { ifindex, first, second })
}

/// What the kernel is asked.
struct Question {
    route: Route,
    ifindex: u32,
    flags: u32,
}

/// A way.
struct Found {
    /// See [`HopWords::ethernet`].
    ethernet: (u64, u32),
    /// 0: there is none.
    ifindex: u32,
    /// Longest IP packet.
    mtu: u16,
}

/// Reads the next hop that the entry `known` remembers for replies that arrive at the interface `from`. Returns whether
/// the entry remembers one that is still valid.
// A function of its own, like the ones below: XDP's stack is full, and the verifier walks what follows the call once.
#[inline(never)]
fn recall(known: &Affinity, from: u32, step: u16, found: &mut Found) -> bool {
    if !reply_hop::is_fresh(known.reply_hop_asked, step) {
        return false;
    }
    let Some(words) = slot(known.reply_hop).map(load) else { return false };
    // An element that was never written has interface 0.
    if words.version() != Some(known.reply_hop_version) || words.vtep() != from {
        return false;
    }
    *found = Found { ethernet: words.ethernet(), ifindex: words.ifindex(), mtu: words.mtu() };
    true
}

/// Stores a next hop in map `REPLY_HOPS`, and a reference to it in the entry.
#[inline(never)]
fn remember(known: &mut Affinity, from: u32, step: u16, found: &Found) {
    let Some(head) = Clients::head().get(0) else { return };
    let (words, number) = HopWords::reply_hop(head.words[head::SEED], found.ethernet, found.ifindex, found.mtu, from);
    let (Some(slot), Some(version)) = (slot(number), words.version()) else { return };
    for (at, word) in words.0.into_iter().enumerate() {
        // An unchanged word is not written: all CPUs read this cache line.
        // SAFETY: a word of an element of a live array map; aligned, so read and written as a whole.
        unsafe {
            if slot.add(at).read_volatile() != word {
                slot.add(at).write_volatile(word);
            }
        }
    }
    (known.reply_hop, known.reply_hop_version, known.reply_hop_asked) = (number, version, step);
}

/// The first word of an element of `REPLY_HOPS`.
#[inline(always)]
fn slot(number: u8) -> Option<*mut u64> {
    Some(REPLY_HOPS.get_ptr_mut(number.into())?.cast())
}

/// Four words, each read as a whole.
#[inline(always)]
fn load(at: *mut u64) -> HopWords {
    // SAFETY: an element of a live array map.
    HopWords(core::array::from_fn(|word| unsafe { at.add(word).read_volatile() }))
}

/// Asks the kernel; `found` stays as it is if it finds nothing.
// Not inlined: its parameter block would lie on the stack below everything else.
#[inline(never)]
fn ask(ctx: *mut c_void, question: &Question, found: &mut Found) {
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
        // SAFETY: the kernel has written it (since 5.12), or left the length; any bytes are valid.
        found.mtu = unsafe { params.__bindgen_anon_1.mtu_result };
        found.ethernet = (
            u64::from_ne_bytes([d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1]]),
            u32::from_ne_bytes([s[2], s[3], s[4], s[5]]),
        );
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
