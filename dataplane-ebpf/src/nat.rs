//! Rewriting addresses and ports.
//!
//! Ports of TCP and UDP only. Other protocols and later fragments have their addresses rewritten, which is all there is
//! to do: SCTP's checksum (CRC32c) does not cover addresses, and a datagram's checksum is in its first fragment.
//!
//! Only through the checksum helpers: a container's packet usually carries a partial checksum (only the pseudo-header
//! is summed, the NIC or the receiver does the rest), which a program cannot see. The helpers do: with the
//! pseudo-header flag they correct a partial sum, without it they leave it alone.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    programs::TcContext,
};
use dataplane_common::{
    addr::{Ip4, Port},
    drop_reason::DropReason,
    headers::ipproto,
};

use crate::parse::{Fragment, Packet};

/// Addresses and ports as they should be.
#[derive(Clone, Copy)]
pub(crate) struct Translation {
    pub src: Ip4,
    pub dst: Ip4,
    pub sport: Port,
    pub dport: Port,
}

/// Offsets within the IPv4 header.
const IP_CHECKSUM: usize = 10;
const IP_SRC: usize = 12;
const IP_DST: usize = 16;

/// Rewrites whatever differs. Without a checksum that we know that is the addresses at most.
// Not inlined: the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
pub(crate) fn rewrite(ctx: &TcContext, packet: &Packet, to: &Translation) -> Result<(), DropReason> {
    let (checksum, flags) = match packet.proto {
        _ if packet.fragment == Fragment::Later => return addresses(ctx, packet, to),
        ipproto::TCP => (packet.l4 + 16, 0),
        // A UDP checksum of 0 means none and stays; one that becomes 0 is sent as 0xffff (RFC 768).
        ipproto::UDP => (packet.l4 + 6, BPF_F_MARK_MANGLED_0 as u64),
        _ => return addresses(ctx, packet, to),
    };
    if packet.src != to.src {
        address(ctx, packet, IP_SRC, packet.src, to.src, checksum, flags)?;
    }
    if packet.dst != to.dst {
        address(ctx, packet, IP_DST, packet.dst, to.dst, checksum, flags)?;
    }
    if packet.sport != to.sport {
        port(ctx, packet.l4, packet.sport, to.sport, checksum, flags)?;
    }
    if packet.dport != to.dport {
        port(ctx, packet.l4 + 2, packet.dport, to.dport, checksum, flags)?;
    }
    Ok(())
}

/// Rewrites the addresses where no checksum but the IP header's covers them. Nobody asks for other ports: `flow::open`
/// rather refuses a connection that would need one, and `mesh_backend::to_task` a target that has one.
#[inline(always)]
fn addresses(ctx: &TcContext, packet: &Packet, to: &Translation) -> Result<(), DropReason> {
    bare_address(ctx, packet, IP_SRC, packet.src, to.src)?;
    bare_address(ctx, packet, IP_DST, packet.dst, to.dst)
}

#[inline(always)]
fn bare_address(ctx: &TcContext, packet: &Packet, offset: usize, from: Ip4, to: Ip4) -> Result<(), DropReason> {
    let failed = |_| DropReason::RewriteFailed;
    let (old, new) = (u64::from(u32::from_ne_bytes(from)), u64::from(u32::from_ne_bytes(to)));
    ctx.l3_csum_replace(packet.net + IP_CHECKSUM, old, new, 4).map_err(failed)?;
    ctx.store(packet.net + offset, &to, 0).map_err(failed)
}

#[inline(always)]
fn address(
    ctx: &TcContext,
    packet: &Packet,
    offset: usize,
    from: Ip4,
    to: Ip4,
    checksum: usize,
    flags: u64,
) -> Result<(), DropReason> {
    let failed = |_| DropReason::RewriteFailed;
    let (old, new) = (u64::from(u32::from_ne_bytes(from)), u64::from(u32::from_ne_bytes(to)));
    ctx.l4_csum_replace(checksum, old, new, BPF_F_PSEUDO_HDR as u64 | flags | 4).map_err(failed)?;
    ctx.l3_csum_replace(packet.net + IP_CHECKSUM, old, new, 4).map_err(failed)?;
    ctx.store(packet.net + offset, &to, 0).map_err(failed)
}

#[inline(always)]
fn port(ctx: &TcContext, offset: usize, from: Port, to: Port, checksum: usize, flags: u64) -> Result<(), DropReason> {
    let failed = |_| DropReason::RewriteFailed;
    let (old, new) = (u64::from(u16::from_ne_bytes(from)), u64::from(u16::from_ne_bytes(to)));
    ctx.l4_csum_replace(checksum, old, new, flags | 2).map_err(failed)?;
    ctx.store(offset, &to, 0).map_err(failed)
}
