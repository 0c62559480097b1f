//! A packet as the code of this crate sees it.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What was asked for is not in the packet, or the kernel had no memory to change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// `PACKET_HOST` of `<linux/if_packet.h>`: the frame is for the MAC of the interface that it is on.
pub const PACKET_HOST: u32 = 0;

/// Flags of [`Edit::l4_csum_replace`], as in `<linux/bpf.h>`, beside the size of what has changed.
pub mod csum {
    /// What has changed is covered by the pseudo-header, too.
    pub const PSEUDO_HDR: u64 = 0x10;
    /// A checksum of 0 means none and stays; one that becomes 0 is written as 0xffff (RFC 768).
    pub const MARK_MANGLED_0: u64 = 0x20;
}

/// What can be read of a packet.
pub trait View {
    /// The bytes from `offset` on.
    fn load<T: FromBytes>(&self, offset: usize) -> Result<T, Failed>;

    /// The same, copied to where they are wanted: not by way of the stack.
    fn load_to(&self, offset: usize, to: &mut [u8]) -> Result<(), Failed>;

    /// Length of the frame in bytes.
    fn frame_len(&self) -> u32;

    /// Payload bytes per segment of a GSO packet, 0 for others.
    fn gso_size(&self) -> u32;

    /// The tag that `__netif_receive_skb` or the NIC has moved from the frame into its metadata before TC ingress:
    /// priority, DEI and VID (IEEE 802.1Q) as a number.
    fn vlan_tci(&self) -> Option<u16>;

    /// Whom the frame is for, of `<linux/if_packet.h>`: [`PACKET_HOST`] and others.
    fn pkt_type(&self) -> u32;
}

/// What can be changed of a packet: by the helpers of `bpf-helpers(7)`, whose names they have. Checksums are changed
/// through them only. A container's packet usually carries a partial checksum (only the pseudo-header is summed, the
/// NIC or the receiver does the rest), which a program cannot see and the helpers can: with the pseudo-header flag they
/// correct a partial sum, without it they leave it alone.
pub trait Edit: View {
    /// Overwrites the bytes from `offset` on.
    fn store<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) -> Result<(), Failed>;

    /// Corrects the IPv4 header checksum at `offset` for `size` bytes that were `from` and are `to`, each in the
    /// packet's byte order; with size 0 for a sum that has changed by `to` ([`crate::checksum::replaced`]), and `from`
    /// is 0.
    fn l3_csum_replace(&self, offset: usize, from: u64, to: u64, size: u64) -> Result<(), Failed>;

    /// The same for a transport checksum; `flags`: the size, and what [`csum`] has.
    fn l4_csum_replace(&self, offset: usize, from: u64, to: u64, flags: u64) -> Result<(), Failed>;
}
