//! The tables `AFFINITY` and `AFFINITY_PENDING`: which backend the ingress node gave a client's connection to.
//!
//! As with flows (see `flow.rs` and `pending.rs`) a connection begins in the pending table, where the least recently
//! used entry makes room, and moves to the established one when both ends have proved that they are there.

use aya_ebpf::{bindings::BPF_ANY, programs::TcContext};
use dataplane_common::{
    addr::{Ip4, Port},
    counter::Counter,
    drop_reason::DropReason,
    flow::{Affinity, AffinityKey, flag},
    service::Backend,
};

use crate::{
    flow,
    maps::{AFFINITY, AFFINITY_PENDING},
    parse::Packet,
    pending, verdict,
};

/// Key of the connection between a client and an address of this node, each with its port.
#[inline(always)]
pub(crate) fn between((client, client_port): (Ip4, Port), (node, port): (Ip4, Port), proto: u8) -> AffinityKey {
    AffinityKey { client, node, client_port, port, proto, _pad: [0; 3] }
}

/// Key of a client's packet.
#[inline(always)]
pub(crate) fn key(packet: &Packet) -> AffinityKey {
    between((packet.src, packet.sport), (packet.dst, packet.dport), packet.proto)
}

/// Key of the connection that a packet towards the client belongs to.
#[inline(always)]
pub(crate) fn key_of_answer(packet: &Packet) -> AffinityKey {
    between((packet.dst, packet.dport), (packet.src, packet.sport), packet.proto)
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
    // SAFETY: as for flows: only `last_seen`, `flags` and `expected_ack` change after creation.
    AFFINITY.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
}

#[inline(always)]
fn pending(key: &AffinityKey) -> Option<&'static mut Affinity> {
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
        && pending::client_proves(ctx, packet, known.expected_ack, known.flags & flag::REPLIED != 0);
    if proved && promote(ctx, key, known) { established(key) } else { Some(known) }
}

/// Notes what a packet from the backend proves about a connection.
#[inline(always)]
pub(crate) fn backward(ctx: &TcContext, key: &AffinityKey, packet: &Packet) {
    if established(key).is_none()
        && let Some(known) = pending(key)
    {
        if let Some(expected) = pending::expected_ack(ctx, packet) {
            known.expected_ack = expected;
        } else if pending::server_proves(packet) {
            promote(ctx, key, known);
        }
    }
}

/// Enters a new connection.
#[inline(never)]
pub(crate) fn enter(key: &AffinityKey, backend: &Backend, flags: u8) -> Result<(), DropReason> {
    let now = flow::now();
    let entry = Affinity {
        last_seen: now,
        created: now,
        tag: backend.tag,
        ip: backend.ip,
        vtep: backend.vtep,
        flags,
        expected_ack: [0; 3],
        generation: 0,
        hop: 0,
        _pad: [0; 6],
    };
    // A connection from the same port that has ended.
    let _ = AFFINITY.remove(key);
    AFFINITY_PENDING.insert(key, entry, BPF_ANY as u64).map_err(|_| DropReason::FlowTableFull)
}

/// Moves an entry to the established table. When that is full it stays where it is.
#[inline(never)]
fn promote(ctx: &TcContext, key: &AffinityKey, known: &Affinity) -> bool {
    let entry = *known;
    if AFFINITY.insert(key, entry, BPF_ANY as u64).is_err() {
        return false;
    }
    let _ = AFFINITY_PENDING.remove(key);
    verdict::count(ctx, Counter::FlowPromoted);
    true
}
