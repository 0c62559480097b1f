//! The reverse-path filter of the interface that a client's packet arrived at, asked before the packet opens a
//! connection.
//!
//! The programs take packets before the kernel's input routing, which would ask `__fib_validate_source`
//! (`net/ipv4/fib_frontend.c`). The same question is put to the routing table here, by `bpf_fib_lookup` with the
//! packet's addresses and ports exchanged. A packet that the filter refuses is left to the kernel, which drops and
//! counts it (`IPReversePathFilter`, `log_martians`). [ADR 24](../../docs/adr/0024-the-kernels-reverse-path-filter.md)
//! lists what the helper cannot see.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE,
        BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as Params,
    },
    helpers::generated::{bpf_fib_lookup, bpf_get_prandom_u32},
};
use dataplane_common::reverse::{EVERY_INTERFACE, ReversePath, reverse_mode};

use crate::{fib, global::context, maps::REVERSE, parse::Packet, scratch::scratch, skb::Skb, verdict::ifindex};

/// Questions that find out whether another next hop of a multipath route leads out of the interface. With two next hops
/// of equal weight one in 2^32 honest openings is refused, with four one in 10,000.
const TRIES: u32 = 32;

/// The filter of an interface. An interface without an entry (its agent has not seen it yet, or the map is full) is
/// loose unless `conf.all` is 0: the kernel is never less strict, so no honest client is cut.
#[inline(always)]
fn filter(interface: u32) -> Option<&'static ReversePath> {
    // SAFETY: entries are replaced as a whole by the agent.
    match unsafe { REVERSE.get(interface) } {
        // SAFETY: as above.
        None => unsafe { REVERSE.get(EVERY_INTERFACE) },
        found => found,
    }
}

/// Whether the interface has a reverse-path filter.
// Not inlined: XDP has no stack left for the key.
#[inline(never)]
pub(crate) fn is_asked(interface: u32) -> bool {
    filter(interface).is_some_and(|filter| filter.mode != reverse_mode::NONE)
}

/// Whether the reverse-path filter of the interface that the packet arrived at refuses its source. Without an answer of
/// the routing table nothing is refused: an outsider cannot cause that, and honest clients would be cut.
#[inline(always)]
pub(crate) fn refuses(ctx: &Skb, packet: &Packet) -> bool {
    reverse_refuses(ctx.skb.skb, packet)
}

/// Global, see [`crate::global`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reverse_refuses(ctx: *mut __sk_buff, packet: *const Packet) -> bool {
    // SAFETY: `refuses` passes a reference.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return false };
    let ctx = &context(ctx);
    let arrival = ifindex(ctx);
    let Some(filter) = filter(arrival) else { return false };
    if filter.mode == reverse_mode::NONE {
        return false;
    }
    let at = if filter.at == 0 { arrival } else { filter.at };
    let ctx = ctx.as_ptr();
    let best = match ask(ctx, packet, filter.from, 0, 0) {
        Answer::None => return true,
        Answer::Unknown => return false,
        Answer::Route(best) => best,
    };
    if filter.mode == reverse_mode::LOOSE || leads_to() == at {
        return false;
    }
    // Another next hop of a multipath route counts, too. If there is one out of the interface, so is a route with the
    // metric of the first.
    match ask(ctx, packet, at, BPF_FIB_LOOKUP_OUTPUT, 0) {
        Answer::None => return true,
        Answer::Route(metric) if metric != best => return true,
        // The helper answers no such question about an interface that does not forward.
        Answer::Route(_) | Answer::Unknown => {}
    }
    !reached_by_another_hop(ctx, packet, filter.from, at)
}

/// Whether the best route to the packet's source has a next hop out of the interface `at`. The kernel chooses the next
/// hop by a hash of what is asked, and the helper tells the chosen one only, so other questions about the same source
/// are asked.
#[inline(always)]
fn reached_by_another_hop(ctx: *mut c_void, packet: &Packet, from: u32, at: u32) -> bool {
    for _ in 0..TRIES {
        // SAFETY: plain helper call.
        let vary = unsafe { bpf_get_prandom_u32() };
        if matches!(ask(ctx, packet, from, 0, vary), Answer::Route(_)) && leads_to() == at {
            return true;
        }
    }
    false
}

/// What the routing table says of a packet's source.
#[derive(Clone, Copy)]
enum Answer {
    /// Unicast, with this metric; [`leads_to`] says where.
    Route(u32),
    /// No route, or none that is unicast.
    None,
    /// The helper cannot tell.
    Unknown,
}

/// Asks for the way back to the packet's source. `interface`: where the answer would come from, or with
/// `BPF_FIB_LOOKUP_OUTPUT` where it has to leave. `vary` changes everything that only the choice of a next hop depends
/// on.
#[inline(always)]
fn ask(ctx: *mut c_void, packet: &Packet, interface: u32, flags: u32, vary: u32) -> Answer {
    let result = lookup(ctx, packet, interface, flags, vary);
    if result == BPF_FIB_LKUP_RET_SUCCESS as i64
        || result == BPF_FIB_LKUP_RET_NO_NEIGH as i64
        || result == BPF_FIB_LKUP_RET_FRAG_NEEDED as i64
    {
        // SAFETY: the kernel has written it; any bytes are valid.
        return Answer::Route(scratch().map_or(0, |scratch| unsafe { scratch.fib.__bindgen_anon_2.rt_metric }));
    }
    let refused = result == BPF_FIB_LKUP_RET_BLACKHOLE as i64
        || result == BPF_FIB_LKUP_RET_UNREACHABLE as i64
        || result == BPF_FIB_LKUP_RET_PROHIBIT as i64
        || result == BPF_FIB_LKUP_RET_NOT_FWDED as i64;
    if refused { Answer::None } else { Answer::Unknown }
}

/// The interface that the route of the last [`Answer::Route`] leads out of.
#[inline(always)]
fn leads_to() -> u32 {
    scratch().map_or(0, |scratch| scratch.fib.ifindex)
}

/// The helper's own answer; its parameters stay in the scratch slot.
// Not inlined: it is called in a loop.
#[inline(never)]
fn lookup(ctx: *mut c_void, packet: &Packet, interface: u32, flags: u32, vary: u32) -> i64 {
    let Ok(params) = fib::question(packet.proto) else { return -1 };
    params.sport = u16::from_ne_bytes(packet.dport) ^ vary as u16;
    params.dport = u16::from_ne_bytes(packet.sport) ^ (vary >> 16) as u16;
    params.ifindex = interface;
    params.__bindgen_anon_2.tos = packet.tos;
    // Any length that fits: without one the kernel would compare the skb's with the interface's MTU.
    params.__bindgen_anon_1.tot_len = 1;
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(packet.dst) ^ vary;
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(packet.src);
    // SAFETY: the parameter block lives in scratch memory and has the size that is given.
    unsafe { bpf_fib_lookup(ctx, &raw mut *params, size_of::<Params>() as i32, flags) }
}
