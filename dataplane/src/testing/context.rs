//! What a program sees besides the packet: the part of `__sk_buff` that `BPF_PROG_TEST_RUN` takes and gives back.

use dataplane_common::mark::SANDBOX_ID;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct __sk_buff` of `<linux/bpf.h>`. The kernel refuses a run that sets anything but the fields named here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(super) struct SkbContext {
    len: u32,
    pkt_type: u32,
    /// `skb->mark`.
    pub(super) mark: u32,
    queue_mapping: u32,
    protocol: u32,
    vlan: [u32; 3],
    /// `skb->priority`.
    priority: u32,
    /// Interface that the packet came in through.
    ingress_ifindex: u32,
    /// Interface that the program runs on.
    ifindex: u32,
    tc_index: u32,
    /// Scratch space of TC programs.
    pub(super) cb: [u32; 5],
    hash_to_data_meta: [u32; 19],
    flow_keys: u64,
    /// `skb->tstamp`.
    tstamp: u64,
    /// Length on the wire.
    wire_len: u32,
    /// GSO segments.
    gso_segs: u32,
    sk: u64,
    /// Payload bytes per GSO segment.
    gso_size: u32,
    tstamp_type: u8,
    _pad: [u8; 3],
    /// Hardware time stamp.
    hwtstamp: u64,
}

const _: () = assert!(size_of::<SkbContext>() == 192);

impl SkbContext {
    /// What the kernel is given with `input`.
    pub(super) fn of(input: &Input) -> Self {
        let mut cb = [0; 5];
        cb[SANDBOX_ID] = input.sandbox;
        let gso_segs = u32::from(input.gso_size != 0);
        Self { ifindex: input.ifindex, mark: input.mark, cb, gso_segs, gso_size: input.gso_size, ..Self::default() }
    }
}

/// `struct xdp_md` of `<linux/bpf.h>`: what an XDP program sees besides the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(super) struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl XdpContext {
    /// What the kernel is given with `input`.
    pub(super) fn of(input: &Input) -> Self {
        Self { data_end: input.packet.len() as u32, ingress_ifindex: input.ifindex, ..Self::default() }
    }
}

/// A packet on its way into a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// From the Ethernet header on; at least 14 bytes.
    pub packet: Vec<u8>,
    /// Interface that the program runs on; must exist in this thread's network namespace.
    pub ifindex: u32,
    /// `skb->mark` before.
    pub mark: u32,
    /// The id that a trampoline has left for `from_sandbox` and `to_sandbox`; 0 for other programs.
    pub sandbox: u32,
    /// Payload bytes per segment of a GSO packet; 0: it is none. TC programs only.
    pub gso_size: u32,
}
