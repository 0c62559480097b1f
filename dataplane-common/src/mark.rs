//! What a program leaves in the skb for whoever comes next.

/// Upper byte of `skb->mark` on a tunnelled frame whose outer and inner sender `from_underlay` has checked; the lower
/// 24 bits are its VNI. The mark survives the kernel's decapsulation within one namespace; `from_vxlan` clears it.
pub const CHECKED: u32 = 0x48 << 24;
/// Upper byte of `skb->mark` on what a known VTEP has sent to ours and `from_underlay` has not seen whole: an IP
/// fragment, or several datagrams in one packet (GSO). The lower 24 bits are those of the VTEP's address. After
/// reassembly or segmentation, and decapsulation, `from_vxlan` checks the inner sender of each frame against them.
pub const FRAGMENT: u32 = 0x49 << 24;
/// Upper byte of `skb->mark` on a frame of a known VTEP that is neither IPv4 nor ARP, so that no sender can be checked;
/// the lower 24 bits are its VNI. Others that have come in the same packet (GSO) are not taken for it.
pub const OTHER: u32 = 0x4b << 24;
/// Upper byte of `skb->mark` on a mesh reply that this node hands to its client: `to_outside` must not take it for a
/// connection of the node's own; it clears the mark.
pub const MESH_REPLY: u32 = 0x4a << 24;
/// The part of a mark that says what kind it is.
pub const KIND_MASK: u32 = 0xff << 24;

/// Upper half of `skb->cb[0]` after a program has run: the lower half is a [`decision`]. For tests only
/// (`BPF_PROG_TEST_RUN` does not show where a redirect leads); `cb[1]` holds the interface.
pub const DECISION: u32 = 0x4857 << 16;

/// Lower half of `skb->cb[0]`.
pub mod decision {
    /// Not ours: handed on.
    pub const PASS: u32 = 1;
    /// Ours, left to the kernel's bridge and vxlan device.
    pub const SLOW_PATH: u32 = 2;
    /// Into the namespace behind the veth in `cb[1]`.
    pub const PEER: u32 = 3;
    /// Out of the interface in `cb[1]`, next hop resolved by the kernel.
    pub const NEIGH: u32 = 4;
    /// Back out of the interface in `cb[1]`.
    pub const REPLY: u32 = 5;
    /// Dropped; `cb[1]` holds the [`crate::drop_reason::DropReason`].
    pub const DROP: u32 = 6;
    /// Answered with a reset or an ICMP error, back where it came from; `cb[1]` holds the
    /// [`crate::drop_reason::DropReason`] it is counted under.
    pub const REFUSE: u32 = 7;
    /// Out of the interface in `cb[1]` as it is.
    pub const DEVICE: u32 = 8;
    /// For the programs alone; nobody else sees it.
    pub const TAKEN: u32 = 9;
    /// As [`NEIGH`], but the kernel is given the next hop, in `cb[3]`.
    pub const VIA: u32 = 10;
    /// As [`NEIGH`], but the packet has the next hop's Ethernet addresses already.
    pub const ADDRESSED: u32 = 11;
}

/// Which word of `skb->cb` holds the interface's id (with [`crate::endpoint::SANDBOX_BIT`]) when `from_sandbox` and
/// `to_sandbox` run: the trampoline in front of them puts it there.
pub const SANDBOX_ID: usize = 2;

/// Indices of map `L3_PROGRAMS`, where packets of links without an Ethernet header go on.
pub mod l3_program {
    /// `from_underlay`.
    pub const UNDERLAY: u32 = 0;
    /// `from_client`.
    pub const CLIENT: u32 = 1;
    /// Number of entries.
    pub const COUNT: u32 = 2;
}

/// Indices of map `SANDBOX_PROGRAMS`, where the trampolines find their program.
pub mod sandbox_program {
    /// `from_sandbox`.
    pub const FROM: u32 = 0;
    /// `to_sandbox`.
    pub const TO: u32 = 1;
    /// Number of entries.
    pub const COUNT: u32 = 2;
}
