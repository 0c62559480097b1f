//! Memory beside the stack, which has 512 bytes for a program and all that it calls.

use aya_ebpf::{bindings::bpf_fib_lookup, btf_maps::PerCpuArray, macros::btf_map};
use dataplane_common::{
    addr::{Ip4, NetId, Tag},
    drop_reason::DropReason,
    flow::{Affinity, Flow, FlowKey},
    fragment::Fragmented,
    probe::Probe,
};
use dataplane_core::nat::Translation;

use crate::{lines::Key, options::Room, parse::Packet, quote::Quote, timestamp::Walk};

/// A connection that is being opened.
#[repr(C)]
pub(crate) struct NewFlow {
    pub zone: NetId,
    /// Addresses that the backend shall see; the source port may still be changed by `opening::open`.
    pub to: Translation,
    pub tag: Tag,
    /// See [`Flow::peer`].
    pub peer: Ip4,
    /// See [`Flow::task`].
    pub task: Ip4,
    /// [`flag::DIRECT`] or 0.
    pub flags: u8,
}

/// Room for the longest headers that are written at once: a frame with an ICMP error and the longest quote.
pub(crate) const SCRATCH_PACKET: usize = 112;

/// Aligned, so that it is written in words.
#[repr(C, align(8))]
pub(crate) struct Buffer(pub(crate) [u8; SCRATCH_PACKET]);

/// Room for what would not fit the 512 bytes of stack: one slot per CPU, used within one program run only. Not pinned.
#[repr(C)]
pub(crate) struct Scratch {
    /// The packet, or the outer one of two.
    pub(crate) outer: Packet,
    /// The packet inside a tunnel.
    pub(crate) inner: Packet,
    /// An entry that is about to be inserted.
    pub(crate) flow: Flow,
    /// The same of a client's.
    pub(crate) affinity: Affinity,
    /// Key of `flow`.
    pub(crate) key: FlowKey,
    /// Key of the reply entry of a connection that may have proved itself.
    pub(crate) reply_key: FlowKey,
    /// A connection that is being opened.
    pub(crate) new: NewFlow,
    /// The sequence number of its SYN, whether a source port was found for it, and [`Flow::created`] of the entry whose
    /// place it takes, which in a line is its state (0: none): see `opening.rs`.
    pub(crate) isn: u64,
    pub(crate) port_found: u64,
    pub(crate) displaced: u64,
    /// For an instruction that orders what this CPU reads, and changes nothing: always 0.
    pub(crate) fence: u64,
    /// Key of a connection that is looked up in lines.
    pub(crate) line_key: Key,
    /// A walk through the options of its SYN.
    pub(crate) options: Walk,
    /// IPv4 options that are looked through.
    pub(crate) options_room: Room,
    /// A question to the routing table.
    pub(crate) fib: bpf_fib_lookup,
    /// What a first fragment leaves or has left.
    pub(crate) fragmented: Fragmented,
    /// Headers that are about to be written.
    pub(crate) packet: Buffer,
    /// A probe.
    pub(crate) probe: Probe,
    /// The packet that an ICMP error quotes.
    pub(crate) quote: Quote,
}
#[btf_map]
pub(crate) static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// This CPU's scratch slot. At most one reference to each field at a time; nothing in it survives the program run.
#[inline(always)]
pub(crate) fn scratch() -> Result<&'static mut Scratch, DropReason> {
    // SAFETY: TC and XDP programs run with bottom halves off: nothing else uses this CPU's slot meanwhile.
    SCRATCH.get_ptr_mut(0).map(|slot| unsafe { &mut *slot }).ok_or(DropReason::NotConfigured)
}

/// Copies a value of a map, in words.
// VERIFIER: for `*to = *from` LLVM calls `memmove` where it cannot tell that the two do not overlap, and that goes byte
// by byte: 760 instructions for 48 bytes, and as many to verify for each way that leads there. Volatile, or LLVM would
// see through it.
#[inline(always)]
pub(crate) fn copy<T>(from: &T, to: &mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let (from, to) = (core::ptr::from_ref(from).cast::<u64>(), core::ptr::from_mut(to).cast::<u64>());
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: within both values, which are aligned as words; map values have no uninitialised bytes.
        unsafe { to.add(word).write(from.add(word).read_volatile()) }
    }
}
