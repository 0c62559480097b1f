//! Datagrams in pieces, for their golden packets.

use dataplane_common::counter::Counter;

use super::{
    golden::Golden,
    packets::{Ip, Ip4, L4, Mac, frame, pieces, vxlan},
};

/// Of each piece's payload.
pub const SIZE: usize = 48;

/// A datagram of three pieces.
pub fn datagram(sport: u16, dport: u16) -> L4 {
    let payload = (0..110).collect();
    L4::Udp { sport, dport, payload, checksum: true }
}

pub fn frames(src: Mac, dst: Mac, ip: &Ip, l4: &L4) -> Vec<Vec<u8>> {
    let pieces: Vec<_> = pieces(ip, l4, SIZE).iter().map(|(ip, l4)| frame(src, dst, ip, l4)).collect();
    assert_eq!(pieces.len(), 3);
    pieces
}

pub fn tunnelled(from: Ip4, to: Ip4, vni: u32, eth: (Mac, Mac), inner: &[u8]) -> Vec<u8> {
    let (outer, l4) = vxlan(from, to, 50000, vni, inner);
    frame(eth.0, eth.1, &outer, &l4)
}

/// A translated piece counts as such, at the length it has when that is noted.
pub fn translated(case: Golden, len: usize) -> Golden {
    case.counts(Counter::FragmentTranslated, len)
}
