//! From a decision to a TC verdict: the only place that drops, counts and logs. (XDP counts here too, and never drops.)

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_fib_lookup, bpf_redir_neigh},
    helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_vlan_pop},
};
use aya_log_ebpf::debug;
use dataplane_common::{
    counter::{Counter, Stat},
    drop_reason::DropReason,
    mark::{DECISION, decision},
};

use crate::{
    maps::{COUNTERS, DROPS},
    scratch::scratch,
    skb::Skb,
};

/// What to do with a packet that is not dropped.
#[derive(Clone, Copy)]
pub(crate) enum Action {
    /// Not ours: the next program, or the stack.
    Pass,
    /// Ours, but the kernel's bridge and vxlan device carry it.
    SlowPath,
    /// Into the namespace behind this host-side veth.
    Peer(u32),
    /// Out of this interface; the kernel finds the next hop and resolves it.
    Neigh(u32),
    /// Out of this interface to the next hop that `fib::route` has noted; the kernel resolves it.
    // VERIFIER(6.18): not in here. With another word in this enum the verifier refuses how LLVM keeps it on the stack.
    Via(u32),
    /// Out of this interface, with the Ethernet addresses of the next hop, which are written.
    Addressed(u32),
    /// Out of this interface as it is.
    Device(u32),
    /// Back to its sender: out of the interface it came from, or into the one it was to leave by.
    Reply(u32),
    /// For the programs alone, and done with: not dropped, for it has come where it should.
    Taken,
    /// As [`Action::Reply`], with the answer that the packet is not served. It was counted as dropped before it became
    /// the answer.
    Refuse(u32, DropReason),
}

/// What every step returns.
pub(crate) type Verdict = Result<Action, DropReason>;

/// Carries out a decision at a hook where packets come in. `TC_ACT_UNSPEC` is `TCX_NEXT`: other people's programs and
/// the stack go on.
#[inline(always)]
pub(crate) fn fold(ctx: &Skb, verdict: Verdict) -> i32 {
    carry_out(ctx, verdict, 0)
}

/// The same where packets go out: what goes back to its sender comes in through the same interface.
#[inline(always)]
pub(crate) fn fold_out(ctx: &Skb, verdict: Verdict) -> i32 {
    carry_out(ctx, verdict, u64::from(BPF_F_INGRESS))
}

/// `back`: flags of a redirection back to the sender.
#[inline(always)]
fn carry_out(ctx: &Skb, verdict: Verdict, back: u64) -> i32 {
    if !matches!(verdict, Ok(Action::Pass | Action::SlowPath) | Err(_)) {
        untag(ctx);
    }
    match verdict {
        Ok(Action::Pass) => {
            note(ctx, decision::PASS, 0);
            TC_ACT_UNSPEC
        }
        Ok(Action::SlowPath) => {
            count(ctx, Counter::SlowPath);
            note(ctx, decision::SLOW_PATH, 0);
            TC_ACT_UNSPEC
        }
        Ok(Action::Peer(ifindex)) => {
            count(ctx, Counter::Delivered);
            note(ctx, decision::PEER, ifindex);
            // SAFETY: plain helper call.
            unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
        }
        Ok(Action::Neigh(ifindex)) => {
            note(ctx, decision::NEIGH, ifindex);
            // SAFETY: no next hop given: the helper looks up route and neighbour itself.
            unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
        }
        Ok(Action::Via(ifindex)) => {
            note(ctx, decision::VIA, ifindex);
            let next_hop = next_hop();
            show_next_hop(ctx, next_hop);
            match next_hop {
                // SAFETY: the next hop lives in scratch memory and has the size that is given.
                Ok(hop) => unsafe { bpf_redirect_neigh(ifindex, hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32 },
                // No scratch memory: cannot happen, for the next hop was noted there. The kernel finds it by itself
                // then.
                // SAFETY: as for `Neigh`.
                Err(_) => unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 },
            }
        }
        Ok(Action::Addressed(ifindex)) => {
            note(ctx, decision::ADDRESSED, ifindex);
            // SAFETY: plain helper call.
            unsafe { bpf_redirect(ifindex, 0) as i32 }
        }
        Ok(Action::Device(ifindex)) => {
            note(ctx, decision::DEVICE, ifindex);
            // SAFETY: plain helper call.
            unsafe { bpf_redirect(ifindex, 0) as i32 }
        }
        Ok(Action::Reply(ifindex)) => {
            note(ctx, decision::REPLY, ifindex);
            // SAFETY: plain helper call.
            unsafe { bpf_redirect(ifindex, back) as i32 }
        }
        Ok(Action::Refuse(ifindex, reason)) => {
            note(ctx, decision::REFUSE, reason as u32);
            // SAFETY: plain helper call.
            unsafe { bpf_redirect(ifindex, back) as i32 }
        }
        Ok(Action::Taken) => {
            note(ctx, decision::TAKEN, 0);
            TC_ACT_SHOT
        }
        Err(reason) => {
            count_drop(ctx, reason);
            note(ctx, decision::DROP, reason as u32);
            debug!(ctx, "drop {} on ifindex {}", reason as u32, ifindex(ctx));
            TC_ACT_SHOT
        }
    }
}

/// Takes a priority tag (VID 0, see [`crate::parse::in_vlan`]) off a packet that is sent on: it was for the link that
/// the packet came over, and the kernel would write it into the frame that leaves.
#[inline(always)]
fn untag(ctx: &Skb) {
    // VERIFIER(6.18): volatile, as in `ifindex`.
    // SAFETY: the context pointer is valid for the program's run.
    if unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).vlan_present) } != 0 {
        // Cannot fail: the tag is in the metadata, and what follows is IPv4 or ARP.
        // SAFETY: plain helper call on a valid context.
        unsafe { bpf_skb_vlan_pop(ctx.skb.skb) };
    }
}

/// Where the next hop of [`Action::Via`] is: in scratch memory, in the place of the last question.
#[inline(always)]
pub(crate) fn next_hop() -> Result<*mut bpf_redir_neigh, DropReason> {
    const { assert!(size_of::<bpf_redir_neigh>() <= size_of::<bpf_fib_lookup>() && align_of::<bpf_redir_neigh>() <= 4) };
    Ok(core::ptr::from_mut(&mut scratch()?.fib).cast())
}

/// Leaves the next hop in `skb->cb`, where `BPF_PROG_TEST_RUN` shows it.
#[inline(always)]
fn show_next_hop(ctx: &Skb, next_hop: Result<*mut bpf_redir_neigh, DropReason>) {
    let skb = ctx.as_ptr().cast::<aya_ebpf::bindings::__sk_buff>();
    if let Ok(hop) = next_hop {
        // SAFETY: TC programs own skb->cb between hooks; the next hop lives in scratch memory.
        unsafe { (*skb).cb[3] = (*hop).__bindgen_anon_1.ipv4_nh }
    }
}

/// Counts a packet under `counter`.
#[inline(always)]
pub(crate) fn count(ctx: &Skb, counter: Counter) {
    add(COUNTERS.get_ptr_mut(counter as u32), u64::from(ctx.len()));
}

/// Counts a packet of `bytes` under `counter`.
#[inline(always)]
pub(crate) fn count_of(counter: Counter, bytes: usize) {
    add(COUNTERS.get_ptr_mut(counter as u32), bytes as u64);
}

/// Counts a packet of `bytes` as dropped.
#[inline(always)]
pub(crate) fn count_drop_of(reason: DropReason, bytes: usize) {
    add(DROPS.get_ptr_mut(reason as u32), bytes as u64);
}

/// Counts a packet as dropped.
#[inline(always)]
pub(crate) fn count_drop(ctx: &Skb, reason: DropReason) {
    add(DROPS.get_ptr_mut(reason as u32), u64::from(ctx.len()));
}

/// The interface the program runs on.
#[inline(always)]
pub(crate) fn ifindex(ctx: &Skb) -> u32 {
    // VERIFIER(6.18): volatile, so that LLVM does not merge this load with another one through a pointer into the
    // context, which the verifier refuses.
    // SAFETY: the context pointer is valid for the program's run.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.skb.skb).ifindex) }
}

#[inline(always)]
fn add(stat: Option<*mut Stat>, bytes: u64) {
    if let Some(stat) = stat {
        // SAFETY: a per-CPU slot; programs do not nest on one CPU at these hooks except through redirects, which run
        // after this one has returned.
        unsafe {
            (*stat).packets += 1;
            (*stat).bytes += bytes;
        }
    }
}

/// Leaves the decision in `skb->cb` where `BPF_PROG_TEST_RUN` shows it; two stores per packet.
#[inline(always)]
fn note(ctx: &Skb, decision: u32, detail: u32) {
    let skb = ctx.as_ptr().cast::<aya_ebpf::bindings::__sk_buff>();
    // SAFETY: TC programs own skb->cb between hooks.
    unsafe {
        (*skb).cb[0] = DECISION | decision;
        (*skb).cb[1] = detail;
    }
}
