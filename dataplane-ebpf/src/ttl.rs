//! Time to live (RFC 1812 section 5.3.1): a node is one hop for packets of the routing mesh, in each direction
//! ([ADR 22](../../docs/adr/0022-one-hop-each-way.md)).
//!
//! It is counted where a router would have the packet in hand as its sender sent it: a client's at the ingress node, a
//! reply at the backend's node, or where the ingress node has translated. The second node of the two is as the far end
//! of a wire.

use dataplane_common::{config::Config, drop_reason::DropReason, flow::flag, service::PublishedPort};

use crate::{
    admission, affinity, connection,
    parse::Packet,
    reject, reverse, service,
    skb::Skb,
    verdict::{Action, Verdict},
};

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

/// A client's packet to the published port `port` that must go no further: its sender is told so if the packet would
/// have gone on to a backend. Every other packet is the stack's, for it is addressed to this node. Selects no backend.
#[inline(always)]
pub(crate) fn spent(ctx: &Skb, config: &Config, port: &PublishedPort, elsewhere: bool, packet: &Packet) -> Verdict {
    let goes_on = match class_of(packet) {
        Class::Served => true,
        Class::Opening => !elsewhere && may_begin(ctx, config, port, packet)?,
        Class::Local => false,
    };
    if goes_on { reject::time_exceeded(ctx, packet, packet.dst) } else { Ok(Action::Pass) }
}

/// What a client's packet to a published port is.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It belongs to a connection with a backend.
    Served,
    /// It would open one.
    Opening,
    /// It belongs to a connection of this node's own, or to none.
    Local,
}

// Not inlined, as `lower`.
#[inline(never)]
fn class_of(packet: &Packet) -> Class {
    match affinity::of_packet(packet) {
        Some(known) if admission::goes_on(known, packet) => {
            if known.flags & flag::OWN == 0 {
                Class::Served
            } else {
                Class::Local
            }
        }
        _ if connection::may_open(packet) => Class::Opening,
        _ => Class::Local,
    }
}

/// Whether the packet would open a connection: the questions of [`mesh_ingress`], in their order.
// Not inlined, as `lower`, and called beside `class_of`: the frames of both have no room below one another.
#[inline(never)]
fn may_begin(ctx: &Skb, config: &Config, port: &PublishedPort, packet: &Packet) -> Result<bool, DropReason> {
    if admission::is_martian(config, packet) {
        return Ok(false);
    }
    admission::check_allowed(port, packet)?;
    Ok(!reverse::refuses(ctx, packet) && service::set(port.set).is_some_and(|set| set.count > 0))
}
