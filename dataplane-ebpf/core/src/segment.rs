//! What is looked at of a packet to tell what it says about its connection. TC has a [`Packet`], XDP words of the
//! frame.

use dataplane_common::headers::{ipproto, tcpflag};

use crate::parse::{Fragment, Packet};

/// A packet with a transport header. Numbers, flags and lengths of TCP mean nothing for other protocols.
pub trait Segment {
    /// IP protocol number.
    fn proto(&self) -> u8;

    /// See [`Packet::flags`].
    fn flags(&self) -> u8;

    /// TCP's sequence number.
    fn sequence(&self) -> u32;

    /// TCP's acknowledgement number.
    fn acknowledgement(&self) -> u32;

    /// Whether there is anything behind the TCP header.
    fn has_data(&self) -> bool;

    /// The sequence number behind the FIN of a TCP segment, if it has one and that can be told.
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

    /// Of a part of a segment it is not known, nor of one with more than 64 kB.
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

/// The sequence number behind a segment with a FIN: of `payload` bytes, from `sequence` on.
#[inline(always)]
pub fn behind_fin(sequence: u32, payload: u32) -> u32 {
    // The FIN counts as one.
    sequence.wrapping_add(payload).wrapping_add(1)
}
