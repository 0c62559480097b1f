//! ICMP errors, built byte by byte.

use super::packets::{Ip, L4, ipv4};

/// Destination unreachable, codes.
pub const HOST: u8 = 1;
pub const PORT: u8 = 3;
pub const TOO_BIG: u8 = 4;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;

/// An ICMP message of this type and code with `rest` (the second word of the header) and a quote, checksum filled in.
pub fn error(kind: u8, code: u8, rest: u32, quote: &[u8]) -> L4 {
    let mut payload = vec![kind, code, 0, 0];
    payload.extend(rest.to_be_bytes());
    payload.extend(quote);
    let checksum = !sum(&payload);
    payload[2..4].copy_from_slice(&checksum.to_be_bytes());
    L4::Raw { proto: 1, payload }
}

/// Destination unreachable.
pub fn unreachable(code: u8, quote: &[u8]) -> L4 {
    error(3, code, 0, quote)
}

/// The first `len` bytes of a packet's transport header and payload, behind its whole IP header.
pub fn quote(ip: &Ip, l4: &L4, len: usize) -> Vec<u8> {
    let mut packet = ipv4(ip, l4);
    packet.truncate(20 + ip.options.len() + len);
    packet
}

/// RFC 1071, the slow way.
pub fn sum(bytes: &[u8]) -> u16 {
    let total: u64 =
        bytes.chunks(2).map(|word| u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]))).sum();
    match total % 0xffff {
        0 if total != 0 => 0xffff,
        rest => rest as u16,
    }
}
