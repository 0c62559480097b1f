//! Hooks `from_underlay_l3` and `from_client_l3`: links without an Ethernet header (WireGuard, tun, IP tunnels, PPP).
//! At TC ingress there the skb begins with the IP header.
//!
//! A packet for this node gets an Ethernet header in front, all zeroes but for the type, and goes on in the program
//! that the interface would have if it were Ethernet. So the programs know one layout only, and Ethernet pays nothing
//! for the other ([ADR 19](../../docs/adr/0019-links-without-ethernet-header.md)). The kernel takes the header off
//! again wherever there must be none: before the stack sees the packet, and when it is redirected to such a link.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_skb_change_head};
use dataplane_common::{
    addr::{Ip4, Mac},
    drop_reason::DropReason,
    headers::{ETH_LEN, ethertype},
};

use crate::{
    maps::{L3_PROGRAMS, NODE_ADDRESSES, config},
    parse::Eth,
    skb::Skb,
    verdict::{self, Action, Verdict},
};

/// Where the IPv4 header has its destination.
const DESTINATION: usize = 16;

/// Hands a packet for this node to the program at `program` of map `L3_PROGRAMS`, as an Ethernet frame.
#[inline(always)]
pub(crate) fn enter(ctx: &Skb, program: u32) -> i32 {
    verdict::fold(ctx, dress(ctx, program))
}

#[inline(always)]
fn dress(ctx: &Skb, program: u32) -> Verdict {
    // What is not for this node is only routed: it stays as it is.
    if protocol(ctx) != u32::from(u16::from_ne_bytes(ethertype::IPV4)) || !is_here(ctx)? {
        return Ok(Action::Pass);
    }
    // SAFETY: plain helper call on a valid context. It keeps GSO packets whole.
    if unsafe { bpf_skb_change_head(ctx.skb.skb, ETH_LEN as u32, 0) } != 0 {
        return Err(DropReason::RewriteFailed);
    }
    let eth = Eth { dst: Mac::default(), src: Mac::default(), ethertype: ethertype::IPV4 };
    ctx.store(0, &eth, 0).map_err(|_| DropReason::RewriteFailed)?;
    // SAFETY: the agent puts TC programs of the same kind there. It returns only if there is none yet.
    unsafe { L3_PROGRAMS.tail_call(ctx, program) };
    Ok(Action::Pass)
}

/// Whether the packet is for an address of this node.
#[inline(always)]
fn is_here(ctx: &Skb) -> Result<bool, DropReason> {
    let Ok(to) = ctx.load::<Ip4>(DESTINATION) else { return Ok(false) };
    // SAFETY: entries are replaced as a whole by the agent.
    Ok(to == config()?.underlay_ip || unsafe { NODE_ADDRESSES.get(to) }.is_some())
}

/// `skb->protocol`, in network byte order.
#[inline(always)]
pub(crate) fn protocol(ctx: &Skb) -> u32 {
    // VERIFIER(6.18): volatile, as in `verdict::ifindex`.
    // SAFETY: the context pointer is valid for the program's run.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.as_ptr().cast::<aya_ebpf::bindings::__sk_buff>()).protocol) }
}
