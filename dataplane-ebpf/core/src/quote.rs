//! The packet that an ICMP error quotes: its IPv4 header and at least eight bytes of what it carries (RFC 792).
//!
//! An error travels against the packet that it quotes, the same way as the packets of the opposite direction. So the
//! entry that translates those says what becomes of error and quote: [`Quote::key`] finds it, [`rewrite`] applies it.

use dataplane_common::{
    addr::{Ip4, NetId, Port},
    drop_reason::DropReason,
    flow::{Flow, FlowKey},
    headers::{ICMP_LEN, IPV4_LEN, ipproto},
};

use crate::{Edit, View, csum, parse::Packet};

/// What every error quotes of the transport header: enough for the ports.
const TRANSPORT: usize = 8;
/// Offsets within an IPv4 header.
const IP_CHECKSUM: usize = 10;
const IP_SRC: usize = 12;
const IP_DST: usize = 16;
/// Offset of the checksum in an ICMP, UDP and TCP header.
const ICMP_CHECKSUM: usize = 2;
const UDP_CHECKSUM: usize = 6;
const TCP_CHECKSUM: usize = 16;

/// A quoted packet. Lives in scratch memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Quote {
    /// Key of packets the other way: source is the quoted destination.
    pub key: FlowKey,
    /// Offset of the quoted IPv4 header.
    net: u32,
    /// Offset of the quoted transport header.
    l4: u32,
    /// Offset of the quoted transport checksum; 0: there is none, or the quote ends before it.
    checksum: u32,
    header: [u8; IPV4_LEN],
    transport: [u8; TRANSPORT],
}

/// Reads what the ICMP error `packet` quotes into `quote`. `None`: it does not reach as far as the ports, is a later
/// fragment, or was not sent by the node that the error goes to.
// Inlined into the hooks' one caller, which is not, and `quote` in scratch memory: they have little of the 512 bytes of
// stack to spare.
#[inline(always)]
pub fn of<'a>(frame: &impl View, packet: &Packet, zone: &NetId, quote: &'a mut Quote) -> Option<&'a Quote> {
    let net = packet.l4 + ICMP_LEN;
    // Padding behind the packet is no quote.
    let end = packet.net + usize::from(packet.total_len);
    if net + IPV4_LEN + TRANSPORT > end {
        return None;
    }
    frame.load_to(net, &mut quote.header).ok()?;
    let header = &quote.header;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let l4 = net + header_len;
    let later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    if header[0] >> 4 != 4 || header_len < IPV4_LEN || l4 + TRANSPORT > end || later_fragment {
        return None;
    }
    frame.load_to(l4, &mut quote.transport).ok()?;
    let transport = &quote.transport;
    let proto = header[9];
    (quote.net, quote.l4) = (net as u32, l4 as u32);
    quote.checksum = match proto {
        // A UDP checksum of 0 means none (RFC 768).
        ipproto::UDP if transport[UDP_CHECKSUM..] != [0, 0] => (l4 + UDP_CHECKSUM) as u32,
        ipproto::TCP if l4 + TCP_CHECKSUM + 2 <= end => (l4 + TCP_CHECKSUM) as u32,
        _ => 0,
    };
    let ports = proto == ipproto::TCP || proto == ipproto::UDP || proto == ipproto::SCTP;
    let [source, destination] =
        if ports { [[transport[0], transport[1]], [transport[2], transport[3]]] } else { [[0; 2]; 2] };
    quote.key = FlowKey::new(
        *zone,
        ([header[16], header[17], header[18], header[19]], destination),
        ([header[12], header[13], header[14], header[15]], source),
        proto,
    );
    (quote.key.dst == packet.dst && proto != ipproto::ICMP).then_some(&*quote)
}

/// Translates an error and its quote as `flow`, found by the quote's key, says. The error's source changes only if it
/// is the translated end itself: a router on the way keeps its address.
#[inline(never)]
pub fn rewrite(frame: &impl Edit, packet: &Packet, quote: &Quote, flow: &Flow) -> Result<(), DropReason> {
    let key = &quote.key;
    if packet.src == key.src {
        outer(frame, packet, IP_SRC, &key.src, &flow.src)?;
    }
    outer(frame, packet, IP_DST, &key.dst, &flow.dst)?;
    let icmp = packet.l4 + ICMP_CHECKSUM;
    inner_address(frame, icmp, quote, (&key.dst, &flow.dst, IP_SRC))?;
    inner_address(frame, icmp, quote, (&key.src, &flow.src, IP_DST))?;
    inner_port(frame, icmp, quote, (&key.dport, &flow.dport, 0))?;
    inner_port(frame, icmp, quote, (&key.sport, &flow.sport, 2))
}

#[inline(always)]
fn failed<E>(_: E) -> DropReason {
    DropReason::RewriteFailed
}

#[inline(always)]
fn outer(frame: &impl Edit, packet: &Packet, at: usize, from: &Ip4, to: &Ip4) -> Result<(), DropReason> {
    if from == to {
        return Ok(());
    }
    let (old, new) = (u64::from(u32::from_ne_bytes(*from)), u64::from(u32::from_ne_bytes(*to)));
    frame.l3_csum_replace(packet.net + IP_CHECKSUM, old, new, 4).map_err(failed)?;
    frame.store(packet.net + at, to).map_err(failed)
}

/// A quoted address. The quoted IP header's sum stays as it was, because its checksum takes up the difference. The
/// quoted transport checksum changes as if the address were a part of what it is the sum of, and it is: of the
/// pseudo-header. That is a change of the ICMP message, which the ICMP checksum takes up.
#[inline(always)]
fn inner_address(
    frame: &impl Edit,
    icmp: usize,
    quote: &Quote,
    (from, to, at): (&Ip4, &Ip4, usize),
) -> Result<(), DropReason> {
    if from == to {
        return Ok(());
    }
    let (old, new) = (u64::from(u32::from_ne_bytes(*from)), u64::from(u32::from_ne_bytes(*to)));
    frame.l3_csum_replace(quote.net as usize + IP_CHECKSUM, old, new, 4).map_err(failed)?;
    frame.store(quote.net as usize + at, to).map_err(failed)?;
    if quote.checksum != 0 {
        frame.l4_csum_replace(quote.checksum as usize, old, new, mangled(quote) | 4).map_err(failed)?;
        // The field above has changed by old - new.
        frame.l4_csum_replace(icmp, new, old, 4).map_err(failed)?;
    }
    Ok(())
}

/// A quoted port: either the quoted transport checksum takes up the difference, or the ICMP checksum does.
#[inline(always)]
fn inner_port(
    frame: &impl Edit,
    icmp: usize,
    quote: &Quote,
    (from, to, at): (&Port, &Port, usize),
) -> Result<(), DropReason> {
    if from == to {
        return Ok(());
    }
    let (old, new) = (u64::from(u16::from_ne_bytes(*from)), u64::from(u16::from_ne_bytes(*to)));
    let (checksum, flags) = if quote.checksum != 0 { (quote.checksum as usize, mangled(quote)) } else { (icmp, 0) };
    frame.l4_csum_replace(checksum, old, new, flags | 2).map_err(failed)?;
    frame.store(quote.l4 as usize + at, to).map_err(failed)
}

/// A UDP checksum that becomes 0 is written as 0xffff.
#[inline(always)]
fn mangled(quote: &Quote) -> u64 {
    if quote.key.proto == ipproto::UDP { csum::MARK_MANGLED_0 } else { 0 }
}
