//! What a connection's entry remembers of the other questions, so that one lookup answers all of them
//! ([ADR 15](../../../docs/adr/0015-next-hops-and-generations.md)).

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use dataplane_common::{
    endpoint::vtep_mesh,
    flow::Affinity,
    service::{PublishedPort, port_flag},
    xdp::XdpState,
};

use super::{
    access::Frame,
    head::{self, Head},
};
use crate::{
    atomics, left,
    maps::{self, NODE_ADDRESSES, PORTS, XDP_STATE},
    scratch::scratch,
};

/// What XDP was told, and when.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    /// [`Affinity::generation`]; 0: not to be remembered.
    pub generation: u32,
    /// [`Affinity::hop`].
    pub hop: u16,
}

/// The agent's two numbers.
#[inline(always)]
pub(super) fn state() -> Option<&'static XdpState> {
    XDP_STATE.get(0)
}

/// The current generation.
#[inline(always)]
pub(super) fn generation(state: &XdpState) -> u32 {
    // SAFETY: the reference is valid; the agent stores it as a whole.
    (unsafe { core::ptr::read_volatile(&raw const state.generation) }) as u32
}

/// The questions that TC asks about a client's packet with this entry, but for what the entry and `CONFIG` answer, in the
/// same order. `None`: one of them was answered with no.
#[inline(always)]
pub(super) fn ask(packet: &Head, known: &Affinity, ctx: *mut xdp_md) -> Option<Asked> {
    let mut generation = ordered_generation()?;
    let flags = published(packet)?.flags;
    if flags & port_flag::LEFT != 0 && is_left(ctx) {
        return None;
    }
    // The answer is for the interface of this packet: the next one of the connection may arrive on another.
    if flags & (port_flag::LEFT_AT_INTERFACE | port_flag::LEFT_AT_BOTH) != 0 {
        generation = 0;
    }
    match maps::vtep(&known.vtep) {
        Some(vtep) if vtep.hiveway == vtep_mesh::MEMBER => Some(Asked { generation, hop: vtep.hop }),
        // Hiveway was taken down there (see `admission::left_behind`): asked again for every packet.
        Some(_) if packet.may_open() => None,
        _ => Some(Asked { generation: 0, hop: 0 }),
    }
}

/// Whether the packet of `ctx`, which was looked at already, is left to the host.
// Not inlined, and reads the packet again: the caller has no stack left for what the question needs.
#[inline(never)]
fn is_left(ctx: *mut xdp_md) -> bool {
    let frame = Frame::of(&XdpContext::new(ctx));
    let left = |packet: &Head| Some(left::is_left(published(packet)?, frame.ifindex, packet.port(), packet.src));
    head::outer(frame).and_then(|packet| left(&packet)).unwrap_or(true)
}

/// What TC asks about whom a packet is for: a published port at an address of this node.
#[inline(always)]
pub(super) fn published(packet: &Head) -> Option<&'static PublishedPort> {
    // SAFETY: entries are replaced as a whole by the agent.
    let port = unsafe { PORTS.get(packet.port()) }?;
    // SAFETY: as above.
    unsafe { NODE_ADDRESSES.get(packet.dst.to_le_bytes()) }?;
    Some(port)
}

/// The generation before any question is asked; 0 while the agent takes something back.
#[inline(always)]
fn ordered_generation() -> Option<u32> {
    let generation = generation(state()?);
    // The agent first takes back, then raises the number. Who reads the number must not have asked before: on processors
    // that read ahead, only an atomic instruction that returns something orders the two, wherever it adds: on memory of
    // this CPU's, for all CPUs read the number.
    // SAFETY: into this CPU's scratch slot, aligned to 8; adding nothing changes nothing.
    unsafe { atomics::fetch_add(&raw mut scratch().ok()?.fence, 0) };
    Some(if generation & 1 == 0 { generation } else { 0 })
}

impl Asked {
    /// Writes it into the entry.
    #[inline(always)]
    pub(super) fn remember(self, known: &mut Affinity) {
        known.generation = self.generation;
        known.hop = self.hop;
    }
}
