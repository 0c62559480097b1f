//! Time to live (RFC 1812 section 5.3.1): a node is one hop for packets of the routing mesh, in each direction
//! ([ADR 22](../../docs/adr/0022-one-hop-each-way.md)).
//!
//! It is counted where a router would have the packet in hand as its sender sent it: a client's at the ingress node, a
//! reply at the backend's node, or where the ingress node has translated. The second node of the two is as the far end
//! of a wire.

use dataplane_common::drop_reason::DropReason;

use crate::{parse::Packet, skb::Skb};

/// Offsets within the IPv4 header.
const TTL: usize = 8;
const CHECKSUM: usize = 10;

/// Whether the packet must go no further.
#[inline(always)]
pub(crate) fn is_spent(packet: &Packet) -> bool {
    packet.ttl <= 1
}

/// Counts a hop.
// Not inlined: the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
pub(crate) fn lower(ctx: &Skb, packet: &Packet) -> Result<(), DropReason> {
    if is_spent(packet) {
        return Err(DropReason::TtlExceeded);
    }
    // The word of the checksum that the TTL is in has the protocol, too.
    let word = |ttl| u64::from(u16::from_ne_bytes([ttl, packet.proto]));
    let (from, to) = (word(packet.ttl), word(packet.ttl - 1));
    let failed = |_| DropReason::RewriteFailed;
    ctx.l3_csum_replace(packet.net + CHECKSUM, from, to, 2).map_err(failed)?;
    ctx.store(packet.net + TTL, &(packet.ttl - 1), 0).map_err(failed)
}
