//! The next hops that the agent keeps ([ADR 15](../../docs/adr/0015-next-hops-and-generations.md)): where a tunnel's
//! packet goes is one look into an array instead of a route and a neighbour looked up by the kernel.

use aya_ebpf::bindings::__sk_buff;
use dataplane_common::{addr::Ip4, xdp::HopWords, xdp::XdpState};

use crate::{
    clock,
    global::context,
    maps::{self, HOPS, XDP_STATE},
    scratch::scratch,
    skb::Skb,
    verdict::Action,
};

/// The next hop towards the node with the tunnel address `vtep`, whose number is that. `None`: the agent keeps none, or
/// has not looked for longer than it may be believed.
#[inline(always)]
pub(crate) fn kept(state: &XdpState, number: u16, vtep: u32, now: u64) -> Option<HopWords> {
    // SAFETY: the reference is valid; the agent stores it as a whole.
    let until = unsafe { core::ptr::read_volatile(&raw const state.hops_until) };
    if until < now {
        return None;
    }
    let at = HOPS.get_ptr(number.into())?.cast::<u64>();
    // SAFETY: four words of a live array map; the agent stores each as a whole.
    let words = HopWords(unsafe {
        [
            core::ptr::read_volatile(at),
            core::ptr::read_volatile(at.add(1)),
            core::ptr::read_volatile(at.add(2)),
            core::ptr::read_volatile(at.add(3)),
        ]
    });
    words.version()?;
    (words.vtep() == vtep && words.ifindex() != 0).then_some(words)
}

/// Sends a tunnel's packet to `vtep` through the interface `out`: with the addresses of the next hop if that is kept,
/// else the kernel finds one.
#[inline(always)]
pub(crate) fn towards(ctx: &Skb, vtep: Ip4, out: u32) -> Action {
    match next_hop_address(ctx.skb.skb, u32::from_le_bytes(vtep), out) {
        true => Action::Addressed(out),
        false => Action::Neigh(out),
    }
}

/// Global, see [`crate::global`]: writes the Ethernet addresses, if the next hop is kept. Whether it is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn next_hop_address(ctx: *mut __sk_buff, vtep: u32, out: u32) -> bool {
    let (Some(node), Some(state)) = (maps::vtep(&vtep.to_le_bytes()), XDP_STATE.get(0)) else { return false };
    let Some(hop) = kept(state, node.hop, vtep, clock::now()) else { return false };
    if hop.ifindex() != out {
        return false;
    }
    let Ok(scratch) = scratch() else { return false };
    let (first, second) = hop.ethernet();
    let addresses = scratch.packet.0.as_mut_ptr().cast::<[u8; 12]>();
    // SAFETY: the buffer is larger, and aligned as words; any bytes are valid.
    let addresses = unsafe {
        addresses.cast::<u64>().write(first);
        addresses.cast::<u32>().add(2).write(second);
        &*addresses
    };
    context(ctx).store(0, addresses, 0).is_ok()
}
