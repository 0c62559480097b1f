//! Fragments (RFC 791) of datagrams that are translated or given to somebody: the first carries the ports, goes through
//! the ordinary decision and leaves what was decided in `FRAGS`; the later ones follow it.
//!
//! Nothing is held back: a later fragment that arrives before its first is dropped and counted, or is the stack's where
//! that might know better. The last first fragment of an identification wins: it removes what another one has left,
//! before anything is decided about it.
//!
//! Concurrency: `FRAGS` is an LRU hash, entries are replaced as a whole. An entry may be recycled for another datagram
//! while it is copied, after 16,383 others have come in between; the receiver's checksum is left to notice.

use aya_ebpf::bindings::BPF_ANY;
use dataplane_common::{
    addr::NetId,
    counter::Counter,
    drop_reason::DropReason,
    fragment::{FragmentKey, Fragmented, LIFETIME_NS, place},
};

use crate::{
    clock,
    maps::FRAGS,
    parse::{Fragment, Packet},
    scratch::{copy, scratch},
    skb::Skb,
    verdict,
};

/// The datagram that `packet` is a piece of, at a place on its way.
#[inline(always)]
fn key(packet: &Packet, zone: NetId, place: u8) -> FragmentKey {
    FragmentKey { zone, src: packet.src, dst: packet.dst, id: packet.id, proto: packet.proto, place }
}

/// Whether the first fragment of `packet`, a later one, has left something: it is in `scratch().fragmented` then.
// Not inlined, as the others: fragments are rare, and callers have little of the 512 bytes of stack to spare.
#[inline(never)]
pub(crate) fn recall(ctx: &Skb, packet: &Packet, zone: NetId, place: u8) -> bool {
    let Ok(scratch) = scratch() else { return false };
    // SAFETY: see the module's note on concurrency.
    let Some(entry) = (unsafe { FRAGS.get(key(packet, zone, place)) }) else { return false };
    copy(entry, &mut scratch.fragmented);
    if clock::now().wrapping_sub(scratch.fragmented.seen) > LIFETIME_NS {
        return false;
    }
    if place != place::SLOW {
        verdict::count(ctx, Counter::FragmentTranslated);
    }
    true
}

/// Forgets what another datagram's first fragment has left, if `packet` is one.
#[inline(always)]
pub(crate) fn begin(packet: &Packet, zone: NetId, place: u8) {
    if packet.fragment == Fragment::First {
        forget(packet, zone, place);
    }
}

#[inline(never)]
fn forget(packet: &Packet, zone: NetId, place: u8) {
    let _ = FRAGS.remove(key(packet, zone, place));
}

/// What was decided about `packet` holds for the rest of its datagram, if it is a first fragment.
#[inline(always)]
pub(crate) fn decided(
    ctx: &Skb,
    packet: &Packet,
    zone: NetId,
    place: u8,
    decided: Fragmented,
) -> Result<(), DropReason> {
    if packet.fragment != Fragment::First {
        return Ok(());
    }
    scratch()?.fragmented = decided;
    remember(ctx, packet, zone, place)
}

/// As [`decided`], with what is in `scratch().fragmented` already.
#[inline(never)]
pub(crate) fn remember(ctx: &Skb, packet: &Packet, zone: NetId, place: u8) -> Result<(), DropReason> {
    let entry = &mut scratch()?.fragmented;
    entry.seen = clock::now();
    FRAGS.insert(key(packet, zone, place), &*entry, BPF_ANY as u64).map_err(|_| DropReason::FlowTableFull)?;
    if place != place::SLOW {
        verdict::count(ctx, Counter::FragmentTranslated);
    }
    Ok(())
}
