//! The tables `AFFINITY` and `AFFINITY_PENDING`: which backend the ingress node gave a client's connection to.
//!
//! As with flows (see `flow.rs` and `pending.rs`) a connection begins in the pending table, where the least recently
//! used entry makes room, and moves to the established one when both ends have proved that they are there.

use core::mem::offset_of;

use aya_ebpf::{bindings::BPF_ANY, programs::TcContext};
use dataplane_common::{
    counter::Counter,
    drop_reason::DropReason,
    flow::{Affinity, AffinityKey, flag},
    service::Backend,
};

use crate::{
    ending, flow,
    maps::{AFFINITY, AFFINITY_PENDING},
    parse::Packet,
    pending, verdict,
};

/// Key of a client's packet.
#[inline(always)]
pub(crate) fn key(packet: &Packet) -> AffinityKey {
    AffinityKey::new((packet.src, packet.sport), (packet.dst, packet.dport), packet.proto)
}

/// Key of the connection that a packet towards the client belongs to.
#[inline(always)]
pub(crate) fn key_of_answer(packet: &Packet) -> AffinityKey {
    AffinityKey::new((packet.dst, packet.dport), (packet.src, packet.sport), packet.proto)
}

/// The entry with this key, in whichever table.
#[inline(always)]
pub(crate) fn get(key: &AffinityKey) -> Option<&'static mut Affinity> {
    match established(key) {
        None => pending(key),
        found => found,
    }
}

/// The entry with this key in `AFFINITY`.
#[inline(always)]
pub(crate) fn established(key: &AffinityKey) -> Option<&'static mut Affinity> {
    // SAFETY: as for flows: only `last_seen`, `flags` and `tcp_number` change after creation.
    AFFINITY.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
}

/// The entry with this key in `AFFINITY_PENDING`.
#[inline(always)]
pub(crate) fn pending(key: &AffinityKey) -> Option<&'static mut Affinity> {
    // SAFETY: as above.
    AFFINITY_PENDING.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
}

/// Finds the entry of a client's packet. One that is still pending may have proved itself with this packet.
#[inline(always)]
pub(crate) fn forward(ctx: &TcContext, key: &AffinityKey, packet: &Packet) -> Option<&'static mut Affinity> {
    if let Some(known) = established(key) {
        return Some(known);
    }
    let known = pending(key)?;
    let proved = known.flags & flag::OWN == 0
        && pending::client_proves(packet, known.tcp_number, known.flags & flag::REPLIED != 0);
    if proved && promote(key, known, ctx.len() as usize) { established(key) } else { Some(known) }
}

/// Notes a packet from the backend in its connection's entry.
#[inline(always)]
pub(crate) fn answered(ctx: &TcContext, key: &AffinityKey, known: &mut Affinity, packet: &Packet) {
    ending::of_backend_at_ingress(known, packet.proto, packet.flags, packet.acknowledgement);
    flow::note(&mut known.last_seen, &mut known.flags, flag::REPLIED);
    backward(ctx, key, packet);
}

/// Notes what a packet from the backend proves about a connection.
#[inline(always)]
fn backward(ctx: &TcContext, key: &AffinityKey, packet: &Packet) {
    if established(key).is_none()
        && let Some(known) = pending(key)
    {
        if let Some(expected) = pending::expected_ack(packet) {
            known.tcp_number = expected;
        } else if pending::server_proves(packet) {
            promote(key, known, ctx.len() as usize);
        }
    }
}

/// Enters a new connection. `backend`: in its map.
#[inline(never)]
pub(crate) fn enter(key: &AffinityKey, backend: &Backend, flags: u8) -> Result<(), DropReason> {
    const {
        assert!(offset_of!(Affinity, created) == 8 && offset_of!(Affinity, tag) == 16 && size_of::<Backend>() == 16);
        assert!(offset_of!(Affinity, ip) == 24 && offset_of!(Backend, ip) == 8 && offset_of!(Backend, tag) == 0);
        assert!(offset_of!(Affinity, vtep) == 28 && offset_of!(Backend, vtep) == 12);
        assert!(offset_of!(Affinity, flags) == 32 && size_of::<Affinity>() == 48 && cfg!(target_endian = "little"));
    }
    let now = flow::now();
    // In words: field by field it takes LLVM three times as much of the stack.
    // SAFETY: values of array maps are aligned to 8; as many plain bytes.
    let [tag, place] = unsafe { core::ptr::read(core::ptr::from_ref(backend).cast::<[u64; 2]>()) };
    let entry = [now, now, tag, place, flags.into(), 0];
    // SAFETY: as asserted above; any bytes are valid.
    let entry = unsafe { &*entry.as_ptr().cast::<Affinity>() };
    // A connection from the same port that has ended.
    let _ = AFFINITY.remove(key);
    AFFINITY_PENDING.insert(key, entry, BPF_ANY as u64).map_err(|_| DropReason::FlowTableFull)
}

/// Moves an entry to the established table, with a packet of `len` bytes. When that is full it stays where it is.
#[inline(never)]
pub(crate) fn promote(key: &AffinityKey, known: &Affinity, len: usize) -> bool {
    let mut entry = *known;
    // What the backend may have said to a stranger's segment meanwhile.
    entry.flags &= !flag::ENDED;
    if AFFINITY.insert(key, &entry, BPF_ANY as u64).is_err() {
        return false;
    }
    let _ = AFFINITY_PENDING.remove(key);
    verdict::count_of(Counter::FlowPromoted, len);
    true
}
