//! The tables `AFFINITY` and `AFFINITY_LINES`: which backend the ingress node gave a client's connection to.
//!
//! As with flows (see `flow.rs`) a connection begins in the pending table, the lines, where one that was silent for longer
//! makes room, and moves to the established one when both ends have proved that they are there.

use core::mem::offset_of;

use aya_ebpf::bindings::BPF_ANY;
use dataplane_common::{
    counter::Counter,
    drop_reason::DropReason,
    flow::{Affinity, AffinityKey, flag},
    service::Backend,
};

use crate::{
    client_lines, clock, connection, ending, maps::AFFINITY, parse::Packet, proof, scratch::scratch, shares, skb::Skb,
    verdict,
};

/// The entry with this key, in whichever table.
#[inline(always)]
pub(crate) fn get(key: &AffinityKey) -> Option<&'static mut Affinity> {
    find(key).map(|found| found.0)
}

/// The entry of a client's packet, in whichever table.
// Not inlined: the callers have no stack to spare for another key.
#[inline(never)]
pub(crate) fn of_packet(packet: &Packet) -> Option<&'static mut Affinity> {
    get(&connection::affinity_key(packet))
}

/// The entry with this key, and whether it is still pending.
#[inline(always)]
pub(crate) fn find(key: &AffinityKey) -> Option<(&'static mut Affinity, bool)> {
    match established(key) {
        None => pending(key).map(|known| (known, true)),
        Some(known) => Some((known, false)),
    }
}

/// The entry with this key in `AFFINITY`.
#[inline(always)]
pub(crate) fn established(key: &AffinityKey) -> Option<&'static mut Affinity> {
    // SAFETY: as for flows: only `last_seen`, `flags` and `tcp_number` change after creation.
    AFFINITY.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
}

/// The entry with this key in the pending table.
#[inline(always)]
pub(crate) fn pending(key: &AffinityKey) -> Option<&'static mut Affinity> {
    client_lines::find(key)
}

/// Finds the entry of a client's packet. One that is still pending may have proved itself with this packet.
#[inline(always)]
pub(crate) fn forward(ctx: &Skb, key: &AffinityKey, packet: &Packet) -> Option<&'static mut Affinity> {
    if let Some(known) = established(key) {
        return Some(known);
    }
    let known = pending(key)?;
    clock::renew(&mut known.last_seen);
    if !proof::client_proves_at_ingress(packet, known) {
        return Some(known);
    }
    if copied(key, known) && !establish(key, known, ctx.len() as usize) {
        return Some(known);
    }
    // Where it could not be copied another CPU has promoted it since it was found, or it was displaced.
    established(key)
}

/// Notes what a packet of the client's says about the end of its connection.
#[inline(always)]
pub(crate) fn of_client(key: &AffinityKey, packet: &Packet) {
    if ending::client_ends_at_ingress(packet)
        && let Some(known) = established(key)
    {
        ending::note_client_fin(known, ending::end_of(packet));
    }
}

/// Notes a packet from the backend in its connection's entry, as [`find`] has found it.
#[inline(always)]
pub(crate) fn answered(ctx: &Skb, key: &AffinityKey, (known, is_pending): (&mut Affinity, bool), packet: &Packet) {
    ending::of_backend_at_ingress(known, packet);
    clock::note(&mut known.last_seen, &mut known.flags, flag::REPLIED);
    if !is_pending {
        return;
    }
    clock::renew(&mut known.last_seen);
    if let Some(expected) = proof::expected_ack(packet) {
        known.tcp_number = expected;
    } else if proof::server_proves(packet) && established(key).is_none() {
        // Not if another CPU has promoted it since: it would be counted twice.
        promote(key, known, ctx.len() as usize);
    }
}

/// Enters a new connection, where none is established (see [`clear`]). `backend`: in its map.
#[inline(never)]
pub(crate) fn enter(key: &AffinityKey, backend: &Backend, flags: u8) -> Result<(), DropReason> {
    const {
        assert!(offset_of!(Affinity, created) == 8 && offset_of!(Affinity, tag) == 16 && size_of::<Backend>() == 16);
        assert!(offset_of!(Affinity, ip) == 24 && offset_of!(Backend, ip) == 8 && offset_of!(Backend, tag) == 0);
        assert!(offset_of!(Affinity, vtep) == 28 && offset_of!(Backend, vtep) == 12);
        assert!(offset_of!(Affinity, flags) == 32 && size_of::<Affinity>() == 48 && cfg!(target_endian = "little"));
    }
    let now = clock::now();
    // In words: field by field it takes LLVM three times as much of the stack.
    // SAFETY: values of array maps are aligned to 8; as many plain bytes.
    let [tag, place] = unsafe { core::ptr::read(core::ptr::from_ref(backend).cast::<[u64; 2]>()) };
    // In scratch memory: XDP has none of the stack to spare.
    let entry = &mut scratch()?.affinity;
    // SAFETY: as asserted above; any bytes are valid.
    unsafe { core::ptr::from_mut(entry).cast::<[u64; 6]>().write([now, now, tag, place, flags.into(), 0]) };
    insert_pending(key, entry)
}

/// Takes the established entry out, if there is one: of a connection from the same port that has ended.
#[inline(never)]
pub(crate) fn clear(key: &AffinityKey) {
    shares::count_affinity(key, shares::taken_out(AFFINITY.remove(key)));
}

/// Puts an entry into the pending table.
#[inline(always)]
pub(crate) fn insert_pending(key: &AffinityKey, entry: &Affinity) -> Result<(), DropReason> {
    if client_lines::put(key, entry) { Ok(()) } else { Err(DropReason::FlowTableFull) }
}

/// Moves an entry to the established table, with a packet of `len` bytes. Where it finds no share or no room there it
/// stays where it is: the connection works as long as nothing displaces it.
#[inline(always)]
pub(crate) fn promote(key: &AffinityKey, known: &mut Affinity, len: usize) -> bool {
    // One after the other: the stack has no room for both.
    copied(key, known) && establish(key, known, len)
}

/// Copies a pending entry to scratch memory. Not if another connection has taken its place since it was found.
#[inline(never)]
fn copied(key: &AffinityKey, known: &mut Affinity) -> bool {
    scratch().is_ok_and(|scratch| client_lines::copied(key, known, &mut scratch.affinity))
}

#[inline(never)]
fn establish(key: &AffinityKey, known: &mut Affinity, len: usize) -> bool {
    // In scratch memory: XDP has none of the 512 bytes of stack to spare.
    let Ok(scratch) = scratch() else { return false };
    proof::establish_at_ingress(&mut scratch.affinity, key.proto);
    if !shares::admits_affinity(key) || AFFINITY.insert(key, &scratch.affinity, BPF_ANY as u64).is_err() {
        if known.flags & flag::AFFINITY_KEPT == 0 {
            known.flags |= flag::AFFINITY_KEPT;
            verdict::count_of(Counter::KeptPending, len);
        }
        return false;
    }
    shares::count_affinity(key, 1);
    client_lines::remove(key, known);
    verdict::count_of(Counter::FlowPromoted, len);
    true
}
