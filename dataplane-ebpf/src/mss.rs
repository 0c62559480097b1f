//! Clamping the TCP maximum segment size (RFC 9293 section 3.7.1) of mesh connections: neither the client nor the task
//! knows that a tunnel lies between them.

use aya_ebpf::programs::TcContext;
use dataplane_common::{
    addr::Ip4,
    config::Config,
    drop_reason::DropReason,
    headers::{IPV4_LEN, TCP_LEN},
};

use crate::{encap, parse::Packet};

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
/// Options looked at: Linux, BSD and Windows send MSS first; 10 one-byte fillers before it would be a curiosity.
const MAX_OPTIONS: usize = 10;

/// Lowers the MSS option of a SYN so that full segments fit the tunnel to `peer`, or for a task of this node the underlay,
/// which may take less than the 1500 bytes that the container's interface claims. A SYN without the option is left alone,
/// and so is what is behind an option that makes no sense, or a second MSS: path-MTU discovery is there for those.
///
/// Each end of the tunnel knows its own way: N2 lowers what the client says in its SYN, which limits the replies, and the
/// task's SYN-ACK, in case the way is the same both ways; N1 lowers the SYN-ACK by its own way to N2. For a backend on a node
/// without Hiveway N1 lowers both.
// Not inlined: the callers have little of the 512 bytes of stack to spare.
#[inline(never)]
pub(crate) fn clamp(ctx: &TcContext, config: &Config, packet: &Packet, peer: &Ip4) -> Result<(), DropReason> {
    let room = if *peer == config.vtep { config.underlay_mtu } else { encap::room(config, peer) };
    let limit = room.saturating_sub((IPV4_LEN + TCP_LEN) as u16);
    let end = packet.l4 + usize::from(packet.tcp_len);
    let mut at = packet.l4 + TCP_LEN;
    for _ in 0..MAX_OPTIONS {
        if at + 2 > end {
            return Ok(());
        }
        let option: [u8; 2] = ctx.load(at).map_err(|_| DropReason::Truncated)?;
        match option[0] {
            END => return Ok(()),
            NOP => at += 1,
            _ if option[1] < 2 || at + usize::from(option[1]) > end => return Ok(()),
            MSS if option[1] == 4 => return lower(ctx, packet, at + 2, limit),
            _ => at += usize::from(option[1]),
        }
    }
    Ok(())
}

#[inline(always)]
fn lower(ctx: &TcContext, packet: &Packet, at: usize, limit: u16) -> Result<(), DropReason> {
    let failed = |_| DropReason::RewriteFailed;
    let value: [u8; 2] = ctx.load(at).map_err(|_| DropReason::Truncated)?;
    if u16::from_be_bytes(value) <= limit {
        return Ok(());
    }
    let new = limit.to_be_bytes();
    // The checksum sees 16-bit words; an option at an odd offset has its bytes exchanged.
    let word = |bytes: [u8; 2]| {
        let bytes = if (at - packet.l4).is_multiple_of(2) { bytes } else { [bytes[1], bytes[0]] };
        u64::from(u16::from_ne_bytes(bytes))
    };
    ctx.l4_csum_replace(packet.l4 + 16, word(value), word(new), 2).map_err(failed)?;
    ctx.store(at, &new, 0).map_err(failed)
}
