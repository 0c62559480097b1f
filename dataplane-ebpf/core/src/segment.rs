//! The view of a packet that connection tracking needs. TC implements it by [`Packet`], XDP by words of the frame.

use dataplane_common::headers::{ipproto, tcpflag};

use crate::parse::{Fragment, Packet};

/// A packet with a transport header. TCP's numbers, flags and lengths have no meaning for other protocols.
pub trait Segment {
    /// IP protocol number.
    fn proto(&self) -> u8;

    /// See [`Packet::flags`].
    fn flags(&self) -> u8;

    /// TCP's sequence number.
    fn sequence(&self) -> u32;

    /// TCP's acknowledgement number.
    fn acknowledgement(&self) -> u32;

    /// Whether payload follows the TCP header.
    fn has_data(&self) -> bool;

    /// The sequence number after the FIN of a TCP segment; `None` without a FIN, or if the segment's length is not
    /// known.
    fn end(&self) -> Option<u32>;
}

impl Segment for Packet {
    #[inline(always)]
    fn proto(&self) -> u8 {
        self.proto
    }

    #[inline(always)]
    fn flags(&self) -> u8 {
        self.flags
    }

    #[inline(always)]
    fn sequence(&self) -> u32 {
        self.sequence
    }

    #[inline(always)]
    fn acknowledgement(&self) -> u32 {
        self.acknowledgement
    }

    #[inline(always)]
    fn has_data(&self) -> bool {
        // Zero on BIG TCP, which always carries data.
        self.total_len == 0 || usize::from(self.total_len) > self.l4 - self.net + usize::from(self.tcp_len)
    }

    /// The length of a fragmented segment is not known, nor that of one with more than 64 kB.
    #[inline(always)]
    fn end(&self) -> Option<u32> {
        let has_fin = self.proto == ipproto::TCP && self.flags & tcpflag::FIN != 0;
        if !has_fin || self.fragment != Fragment::Whole || self.total_len == 0 {
            return None;
        }
        let headers = (self.l4 - self.net) as u32 + u32::from(self.tcp_len);
        Some(behind_fin(self.sequence, u32::from(self.total_len).wrapping_sub(headers)))
    }
}

/// The sequence number after a segment that begins at `sequence`, has `payload` bytes and a FIN.
#[inline(always)]
pub fn behind_fin(sequence: u32, payload: u32) -> u32 {
    // The FIN counts as one.
    sequence.wrapping_add(payload).wrapping_add(1)
}
