//! The node as a router (RFC 1812 section 5.3): a packet of the routing mesh has one hop less to live behind the node that it
//! enters the mesh by, which is the ingress node for a client's packet and the backend's node for the reply. What stays
//! inside one network (overlays, VIPs) is bridged, and keeps its time to live.

use aya_ebpf::programs::TcContext;
use dataplane_common::{addr::Ip4, drop_reason::DropReason, headers::IPV4_LEN};

use crate::{
    parse::Packet,
    reject,
    verdict::Verdict,
};

/// Offset of the word with time to live, protocol and checksum in the IPv4 header.
pub(crate) const WORD: usize = 8;

/// The word at [`WORD`], as it lies in memory, with a time to live that is one less; it must be at least 1. The checksum
/// grows by what the first half of the word has lost (RFC 1141).
#[inline(always)]
pub(crate) fn lowered(word: u32) -> u32 {
    let checksum = (word >> 16) + 1;
    let checksum = (checksum + u32::from(checksum >= 0xffff)) & 0xffff;
    (word & 0xffff) - 1 | checksum << 16
}

/// Whether the packet must not be forwarded any further.
#[inline(always)]
pub(crate) fn is_spent(packet: &Packet) -> bool {
    packet.ttl <= 1
}

/// Answers a packet that [`is_spent`] with "time exceeded" in the name of this node's address `node`, and counts it as
/// dropped. Not for packets that were decapsulated: the kernel refuses to cut them.
#[inline(always)]
pub(crate) fn expired(ctx: &TcContext, packet: &Packet, node: Ip4) -> Verdict {
    reject::expired(ctx, packet, node)
}

/// Takes one hop off a packet that is not spent.
#[inline(always)]
pub(crate) fn lower(ctx: &TcContext, packet: &Packet) -> Result<(), DropReason> {
    let failed = |_| DropReason::RewriteFailed;
    let word: u32 = ctx.load(packet.net + WORD).map_err(failed)?;
    ctx.store(packet.net + WORD, &lowered(word), 0).map_err(failed)
}

/// Loose and strict source route.
const LSRR: u8 = 131;
const SSRR: u8 = 137;
const END: u8 = 0;
const NOP: u8 = 1;
/// Options looked at: a packet with more of them is taken for one with a source route.
const MAX_OPTIONS: usize = 8;

/// Whether the sender says which way the packet is to go (RFC 791), or may say so. The stack drops those unless
/// `accept_source_route` is set, and obeys them then: they are its own to judge.
// Not inlined: rare, and the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
pub(crate) fn is_source_routed(ctx: &TcContext, packet: &Packet) -> bool {
    let mut at = packet.net + IPV4_LEN;
    for _ in 0..MAX_OPTIONS {
        if at + 1 > packet.l4 {
            return false;
        }
        let Ok(kind) = ctx.load::<u8>(at) else { return true };
        if kind == END {
            return false;
        }
        if kind == NOP {
            at += 1;
            continue;
        }
        let Ok(len) = ctx.load::<u8>(at + 1) else { return true };
        if kind == LSRR || kind == SSRR || len < 2 {
            return true;
        }
        at += usize::from(len);
    }
    at < packet.l4
}
