//! The tables `AFFINITY_SEGMENTS` and `AFFINITY`: which backend the ingress node gave a client's connection to.
//!
//! A connection begins as a pending entry in the lines, which makes room for others when it was silent for longest.
//! When both ends have proved that they are there it is established, in the same line. Only where its bucket has as
//! many established ones as it may have it moves to the hash `AFFINITY`.

use core::mem::offset_of;

use dataplane_common::{
    counter::Counter,
    drop_reason::DropReason,
    flow::{Affinity, AffinityKey, flag},
    service::Backend,
};

use crate::{
    client_lines::{self, Clients},
    clock, connection, ending,
    lines::Promotion,
    lines_map::{self, Established, Place},
    notes,
    parse::Packet,
    proof,
    scratch::scratch,
    shares,
    skb::Skb,
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
    let place = client_lines::find(key);
    // VERIFIER: whether the place is none is not asked, which would be another way to the same end.
    match place.entry::<Clients>() {
        Some(entry) => Some((entry, !place.is_established())),
        None => lines_map::get_spilled::<Clients>(place, key).map(|entry| (entry, false)),
    }
}

/// Whether the entry with this key is in `AFFINITY`. `place`: where it was not found in the lines.
#[inline(never)]
pub(crate) fn has_spilled(place: Place, key: &AffinityKey) -> bool {
    lines_map::get_spilled::<Clients>(place, key).is_some()
}

/// Notes a packet of the client's in its connection's entry, as [`find`] has found it. One that is still pending may
/// have proved itself with this packet; and the packet may be the last of its stream.
#[inline(always)]
pub(crate) fn from_client(ctx: &Skb, key: &AffinityKey, packet: &Packet, known: &mut Affinity, is_pending: bool) {
    if notes::of_client(known, is_pending, packet, clock::now()) {
        promote(key, known, ctx.len() as usize);
    }
    if let Some(end) = ending::client_ends_at_ingress(packet) {
        note_client_fin(key, end);
    }
}

// Not inlined: what follows would be verified once for each table.
#[inline(never)]
fn note_client_fin(key: &AffinityKey, end: u32) {
    if let Some((known, false)) = find(key) {
        ending::note_client_fin(known, end);
    }
}

/// Notes a packet from the backend in its connection's entry, as [`find`] has found it.
#[inline(always)]
pub(crate) fn answered(ctx: &Skb, key: &AffinityKey, (known, is_pending): (&mut Affinity, bool), packet: &Packet) {
    if notes::of_backend(known, is_pending, packet, clock::now()) {
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
    // In both while a sweep moves it back: it was counted once.
    let removed = -i64::from(client_lines::remove_established(key)) | lines_map::take_out_spilled::<Clients>(key);
    shares::count_affinity(key, removed);
}

/// Enters a pending connection.
#[inline(always)]
pub(crate) fn insert_pending(key: &AffinityKey, entry: &Affinity) -> Result<(), DropReason> {
    if client_lines::put(key, entry) { Ok(()) } else { Err(DropReason::FlowTableFull) }
}

/// Makes a pending entry an established one, with a packet of `len` bytes. Where it finds no share or no room it stays
/// pending: the connection works as long as nothing displaces it.
#[inline(never)]
pub(crate) fn promote(key: &AffinityKey, known: &mut Affinity, len: usize) {
    const GONE: u32 = Promotion::Gone as u32;
    const DONE: u32 = Promotion::Done as u32;
    // Another CPU may have promoted it since it was found, or given its line to another connection.
    if !is_pending(key, known) {
        return;
    }
    if !shares::admits_affinity(key) {
        return keep(known, len);
    }
    let kept = known.flags & flag::AFFINITY_KEPT;
    // Before it is established: from then on other CPUs go by it.
    proof::establish_at_ingress(known, key.proto);
    match client_lines::promote(key) {
        GONE => return,
        DONE => {}
        _ => match spill(key, known) {
            Established::Elsewhere => return,
            Established::Now => {}
            Established::NoRoom => {
                known.flags |= kept;
                return keep(known, len);
            }
        },
    }
    shares::count_affinity(key, 1);
    verdict::count_of(Counter::FlowPromoted, len);
}

// Functions of their own, one after the other: the stack has no room for both.
#[inline(never)]
fn is_pending(key: &AffinityKey, known: &mut Affinity) -> bool {
    client_lines::is_pending(key, known)
}

/// Notes that a connection has proved itself and stays pending.
#[inline(always)]
fn keep(known: &mut Affinity, len: usize) {
    if known.flags & flag::AFFINITY_KEPT == 0 {
        known.flags |= flag::AFFINITY_KEPT;
        verdict::count_of(Counter::KeptPending, len);
    }
}

/// Moves a connection that has proved itself to `AFFINITY`.
#[inline(never)]
fn spill(key: &AffinityKey, known: &mut Affinity) -> Established {
    // In scratch memory: XDP has none of the 512 bytes of stack to spare.
    let Ok(scratch) = scratch() else { return Established::NoRoom };
    let Some(seen) = client_lines::copied(key, known, &mut scratch.affinity) else { return Established::Elsewhere };
    lines_map::spill::<Clients>(key, known, &scratch.affinity, seen)
}
