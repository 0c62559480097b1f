//! The Internet checksum (RFC 1071) for headers that we write ourselves.

use dataplane_common::addr::Ip4;

/// Sum of big-endian 16-bit words, not folded.
#[inline(always)]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
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
pub fn pseudo(src: Ip4, dst: Ip4, proto: u8, len: u16) -> u32 {
    sum(&src) + sum(&dst) + u32::from(proto) + u32::from(len)
}

/// What a sum of four-byte words (as they lie in the packet) changes by when `from` becomes `to` (RFC 1624), for
/// [`crate::Edit::l3_csum_replace`] and [`crate::Edit::l4_csum_replace`] with size 0.
#[inline(always)]
pub fn replaced(from: u32, to: u32) -> u32 {
    add(!from, to)
}

/// One's complement sum.
#[inline(always)]
pub fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u32::from(carry)
}

/// Folds a sum of at most 2¹⁵ words to 16 bits.
#[inline(always)]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The word of an IPv4 header with TTL, protocol and checksum, as it stands there, with a TTL that is lower by one. The
/// sum of the header has become 0x0100 less, and its complement so much more (RFC 1624; as the kernel's
/// `ip_decrease_ttl`).
#[inline(always)]
pub fn lowered(word: u32) -> u32 {
    // In little-endian words: the checksum's first byte is the lower one.
    let checksum = (word >> 16) + 1;
    let checksum = checksum + u32::from(checksum >= 0xffff);
    (word & 0xffff).wrapping_sub(1) | checksum << 16
}
