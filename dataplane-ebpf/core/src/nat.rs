//! Rewriting addresses and ports.
//!
//! Ports of TCP and UDP only. Other protocols and later fragments have their addresses rewritten, which is all there is
//! to do: SCTP's checksum (CRC32c) does not cover addresses, and a datagram's checksum is in its first fragment.
//!
//! Only through the checksum helpers: see [`Edit`].

use dataplane_common::{
    addr::{Ip4, Port},
    drop_reason::DropReason,
    headers::ipproto,
};

use crate::{
    Edit, csum,
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
const IP_DST: usize = 16;

/// Rewrites whatever differs. Without a checksum that we know that is the addresses at most.
///
/// # Errors
/// [`DropReason::RewriteFailed`]: the kernel could not; the packet may be half rewritten.
// Not inlined: the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
pub fn rewrite(frame: &impl Edit, packet: &Packet, to: &Translation) -> Result<(), DropReason> {
    let (checksum, flags) = match packet.proto {
        _ if packet.fragment == Fragment::Later => return addresses(frame, packet, to),
        ipproto::TCP => (packet.l4 + 16, 0),
        // A UDP checksum of 0 means none and stays; one that becomes 0 is sent as 0xffff (RFC 768).
        ipproto::UDP => (packet.l4 + 6, csum::MARK_MANGLED_0),
        _ => return addresses(frame, packet, to),
    };
    if packet.src != to.src {
        address(frame, packet, IP_SRC, packet.src, to.src, checksum, flags)?;
    }
    if packet.dst != to.dst {
        address(frame, packet, IP_DST, packet.dst, to.dst, checksum, flags)?;
    }
    if packet.sport != to.sport {
        port(frame, packet.l4, packet.sport, to.sport, checksum, flags)?;
    }
    if packet.dport != to.dport {
        port(frame, packet.l4 + 2, packet.dport, to.dport, checksum, flags)?;
    }
    Ok(())
}

/// Rewrites the addresses where no checksum but the IP header's covers them. Nobody asks for other ports: `flow::open`
/// rather refuses a connection that would need one, and `mesh_backend::to_task` a target that has one.
#[inline(always)]
fn addresses(frame: &impl Edit, packet: &Packet, to: &Translation) -> Result<(), DropReason> {
    bare_address(frame, packet, IP_SRC, packet.src, to.src)?;
    bare_address(frame, packet, IP_DST, packet.dst, to.dst)
}

#[inline(always)]
fn bare_address(frame: &impl Edit, packet: &Packet, offset: usize, from: Ip4, to: Ip4) -> Result<(), DropReason> {
    let failed = |_| DropReason::RewriteFailed;
    let (old, new) = (u64::from(u32::from_ne_bytes(from)), u64::from(u32::from_ne_bytes(to)));
    frame.l3_csum_replace(packet.net + IP_CHECKSUM, old, new, 4).map_err(failed)?;
    frame.store(packet.net + offset, &to).map_err(failed)
}

#[inline(always)]
fn address(
    frame: &impl Edit,
    packet: &Packet,
    offset: usize,
    from: Ip4,
    to: Ip4,
    checksum: usize,
    flags: u64,
) -> Result<(), DropReason> {
    let failed = |_| DropReason::RewriteFailed;
    let (old, new) = (u64::from(u32::from_ne_bytes(from)), u64::from(u32::from_ne_bytes(to)));
    frame.l4_csum_replace(checksum, old, new, csum::PSEUDO_HDR | flags | 4).map_err(failed)?;
    frame.l3_csum_replace(packet.net + IP_CHECKSUM, old, new, 4).map_err(failed)?;
    frame.store(packet.net + offset, &to).map_err(failed)
}

#[inline(always)]
fn port(frame: &impl Edit, offset: usize, from: Port, to: Port, checksum: usize, flags: u64) -> Result<(), DropReason> {
    let failed = |_| DropReason::RewriteFailed;
    let (old, new) = (u64::from(u16::from_ne_bytes(from)), u64::from(u16::from_ne_bytes(to)));
    frame.l4_csum_replace(checksum, old, new, flags | 2).map_err(failed)?;
    frame.store(offset, &to).map_err(failed)
}
