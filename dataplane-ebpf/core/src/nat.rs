//! Rewriting addresses and ports.
//!
//! Ports of TCP and UDP only. Other protocols and later fragments have their addresses rewritten, which is all there is
//! to do: SCTP's checksum (CRC32c) does not cover addresses, and a datagram's checksum is in its first fragment.
//!
//! Only through the checksum helpers: see [`Edit`].

use dataplane_common::{
    addr::{Ip4, Port},
    drop_reason::DropReason,
    headers::{IPV4_LEN, ipproto},
};

use crate::{
    Edit, Failed, checksum, csum,
    parse::{Fragment, Packet},
};

/// Addresses and ports as they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Source address.
    pub src: Ip4,
    /// Destination address.
    pub dst: Ip4,
    /// Source port.
    pub sport: Port,
    /// Destination port.
    pub dport: Port,
}

/// Offsets within the IPv4 header.
const IP_CHECKSUM: usize = 10;
const IP_SRC: usize = 12;

/// Rewrites whatever differs. Without a checksum that we know that is the addresses at most. Fields that lie side by
/// side are changed together: each change is a call of a helper.
///
/// # Errors
/// [`DropReason::RewriteFailed`]: the kernel could not; the packet may be half rewritten.
#[inline(always)]
pub fn rewrite(frame: &impl Edit, packet: &Packet, to: &Translation) -> Result<(), DropReason> {
    change(frame, packet, to).map_err(|_| DropReason::RewriteFailed)
}

#[inline(always)]
fn change(frame: &impl Edit, packet: &Packet, to: &Translation) -> Result<(), Failed> {
    let addresses = checksum::replaced(word(packet.src), word(to.src));
    let addresses = checksum::add(addresses, checksum::replaced(word(packet.dst), word(to.dst)));
    let moved = packet.src != to.src || packet.dst != to.dst;
    if moved {
        frame.l3_csum_replace(packet.net + IP_CHECKSUM, 0, addresses.into(), 0)?;
    }
    let (at, flags) = match packet.proto {
        // No checksum but the IP header's covers the addresses. No caller asks for other ports: `opening::open` rather
        // refuses a connection that would need one, and `mesh_backend::to_task` a target that has one.
        _ if packet.fragment == Fragment::Later => return store_addresses(frame, packet, to, moved),
        ipproto::TCP => (packet.l4 + 16, 0),
        // A UDP checksum of 0 means none and stays; one that becomes 0 is sent as 0xffff (RFC 768).
        ipproto::UDP => (packet.l4 + 6, csum::MARK_MANGLED_0),
        _ => return store_addresses(frame, packet, to, moved),
    };
    if moved {
        frame.l4_csum_replace(at, 0, addresses.into(), csum::PSEUDO_HDR | flags)?;
    }
    let (from, ports) = (pair(packet.sport, packet.dport), pair(to.sport, to.dport));
    if from == ports {
        return store_addresses(frame, packet, to, moved);
    }
    frame.l4_csum_replace(at, word(from).into(), word(ports).into(), flags | 4)?;
    if moved && packet.l4 == packet.net + IPV4_LEN {
        return frame.store(packet.net + IP_SRC, &[to.src, to.dst, ports]);
    }
    store_addresses(frame, packet, to, moved)?;
    frame.store(packet.l4, &ports)
}

#[inline(always)]
fn store_addresses(frame: &impl Edit, packet: &Packet, to: &Translation, moved: bool) -> Result<(), Failed> {
    if moved { frame.store(packet.net + IP_SRC, &[to.src, to.dst]) } else { Ok(()) }
}

/// Source and destination port as they lie in the packet.
#[inline(always)]
fn pair([a, b]: Port, [c, d]: Port) -> [u8; 4] {
    [a, b, c, d]
}

/// Four bytes of a packet as checksums take them.
#[inline(always)]
fn word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}
