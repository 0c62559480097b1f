//! What a connection's entry remembers of the questions about whom its packets are for, so that one lookup answers all
//! of them ([ADR 15](../../../docs/adr/0015-next-hops-and-generations.md)).

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use dataplane_common::{
    endpoint::vtep_mesh,
    flow::Affinity,
    service::{PublishedPort, port_flag},
    xdp::XdpState,
};

use super::{access::Frame, head};
use crate::{
    atomics, left,
    maps::{self, PORTS, XDP_STATE},
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

/// The generation before any question is asked; 0 while the agent takes something back.
#[inline(always)]
pub(super) fn ordered_generation(state: &XdpState) -> Option<u32> {
    let generation = generation(state);
    // The agent first takes back, then raises the number. Who reads the number must not have asked before: on
    // processors that read ahead, only an atomic instruction that returns something orders the two, wherever it adds:
    // on memory of this CPU's, for all CPUs read the number.
    // SAFETY: into this CPU's scratch slot, aligned to 8; adding nothing changes nothing.
    unsafe { atomics::fetch_add(&raw mut scratch().ok()?.fence, 0) };
    Some(if generation & 1 == 0 { generation } else { 0 })
}

/// Whether the packet of `ctx`, which was looked at already, is left to the host.
// Not inlined, and reads the packet again: the caller has no stack left for what the question needs.
#[inline(never)]
pub(super) fn is_left(ctx: *mut xdp_md) -> bool {
    let frame = Frame::of(&XdpContext::new(ctx));
    let Some(packet) = head::outer(frame) else { return true };
    // SAFETY: entries are replaced as a whole by the agent.
    let Some(port) = (unsafe { PORTS.get(packet.port()) }) else { return true };
    left::is_left(port, frame.ifindex, packet.port(), packet.src)
}

impl Asked {
    /// What an entry remembers of earlier packets.
    #[inline(always)]
    pub(super) fn of(known: &Affinity) -> Self {
        Self { generation: known.generation, hop: known.hop }
    }

    /// What there is to remember of a packet to this port, since that generation.
    #[inline(always)]
    pub(super) fn since(generation: u32, port: &PublishedPort, known: &Affinity) -> Self {
        // The answer is for the interface of this packet: the next one of the connection may arrive on another.
        let at_interface = port.flags & (port_flag::LEFT_AT_INTERFACE | port_flag::LEFT_AT_BOTH) != 0;
        match maps::vtep(&known.vtep) {
            Some(vtep) if vtep.hiveway == vtep_mesh::MEMBER => {
                Self { generation: if at_interface { 0 } else { generation }, hop: vtep.hop }
            }
            // Hiveway was taken down there: asked again for every packet.
            _ => Self { generation: 0, hop: 0 },
        }
    }

    /// Writes it into the entry.
    #[inline(always)]
    pub(super) fn remember(self, known: &mut Affinity) {
        known.generation = self.generation;
        known.hop = self.hop;
    }
}
