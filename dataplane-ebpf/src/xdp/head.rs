//! Headers of the packets that this path is for: IPv4 without options, in one piece, TCP or UDP. Anything else, and
//! anything that contradicts itself, is `None`: TC judges it.

use dataplane_common::headers::{ETH_LEN, IPV4_LEN, TCP_LEN, UDP_LEN, ethertype, ipproto};

use super::access::Frame;
use crate::parse::{Fragment, Packet};

/// IPv4, five words of header.
const VERSION_IHL: u8 = 0x45;
/// All of the fragment field but DF.
const FRAGMENTED: u16 = 0x3fff;

/// The packet in the Ethernet frame at `offset`.
#[inline(always)]
pub(super) fn ethernet(frame: Frame, offset: usize) -> Option<Packet> {
    let eth = frame.part::<ETH_LEN>(offset)?;
    if eth.two::<12>() != ethertype::IPV4 {
        return None;
    }
    ipv4(frame, offset + ETH_LEN)
}

/// The packet whose IPv4 header starts at `net`.
#[inline(always)]
pub(super) fn ipv4(frame: Frame, net: usize) -> Option<Packet> {
    const L4: usize = IPV4_LEN;
    let ip = frame.part::<{ L4 + UDP_LEN }>(net)?;
    let [version_ihl, tos, len_high, len_low] = ip.four::<0>();
    let total_len = u16::from_be_bytes([len_high, len_low]);
    let [id_high, id_low, fragment_high, fragment_low] = ip.four::<4>();
    let fragment = u16::from_be_bytes([fragment_high, fragment_low]);
    let proto = ip.byte::<9>();
    if version_ihl != VERSION_IHL
        || fragment & FRAGMENTED != 0
        || usize::from(total_len) < L4 + UDP_LEN
        || net + usize::from(total_len) > frame.len()
    {
        return None;
    }
    let [sport_high, sport_low, dport_high, dport_low] = ip.four::<L4>();
    let mut packet = Packet {
        net,
        l4: net + L4,
        src: ip.four::<12>(),
        dst: ip.four::<16>(),
        id: [id_high, id_low],
        proto,
        tos,
        total_len,
        dont_fragment: fragment & 0x4000 != 0,
        fragment: Fragment::Whole,
        sport: [sport_high, sport_low],
        dport: [dport_high, dport_low],
        flags: 0,
        tcp_len: 0,
    };
    match proto {
        ipproto::TCP => {
            let tcp = frame.part::<TCP_LEN>(net + L4)?;
            let [offset, flags] = tcp.two::<12>();
            packet.tcp_len = (offset >> 4) * 4;
            packet.flags = flags;
            let len = usize::from(packet.tcp_len);
            if len < TCP_LEN || L4 + len > usize::from(total_len) {
                return None;
            }
        }
        ipproto::UDP => {}
        _ => return None,
    }
    Some(packet)
}
