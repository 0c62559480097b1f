//! The Internet checksum (RFC 1071) for headers that we write ourselves.

use dataplane_common::addr::Ip4;

/// Sum of big-endian 16-bit words, not folded.
#[inline(always)]
pub(crate) fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    const { assert!(N.is_multiple_of(2)) };
    let mut sum = 0;
    let mut at = 0;
    while at < N {
        sum += u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        at += 2;
    }
    sum
}

/// Sum of the pseudo-header of TCP and UDP (RFC 9293 section 3.1), not folded.
#[inline(always)]
pub(crate) fn pseudo(src: Ip4, dst: Ip4, proto: u8, len: u16) -> u32 {
    sum(&src) + sum(&dst) + u32::from(proto) + u32::from(len)
}

/// Folds a sum of at most 2¹⁵ words to 16 bits.
#[inline(always)]
pub(crate) fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
