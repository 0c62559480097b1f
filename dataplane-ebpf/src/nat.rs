//! Rewriting of addresses and ports, for the hooks that have an skb.

use aya_ebpf::bindings::__sk_buff;
use dataplane_common::drop_reason::DropReason;
pub(crate) use dataplane_core::nat::Translation;

use crate::{
    global::{self, code, context, outcome},
    parse::Packet,
    skb::Skb,
};

/// See [`dataplane_core::nat::rewrite`].
#[inline(always)]
pub(crate) fn rewrite(ctx: &Skb, packet: &Packet, to: &Translation) -> Result<(), DropReason> {
    outcome(nat_rewrite(ctx.skb.skb, packet, to))
}

/// Global, see [`global`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nat_rewrite(ctx: *mut __sk_buff, packet: *const Packet, to: *const Translation) -> u32 {
    // SAFETY: `rewrite` passes references.
    let (Some(packet), Some(to)) = (unsafe { (packet.as_ref(), to.as_ref()) }) else { return global::NULL };
    code(dataplane_core::nat::rewrite(&context(ctx), packet, to))
}
