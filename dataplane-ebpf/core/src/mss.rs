//! Clamping the TCP maximum segment size (RFC 9293 section 3.7.1) of mesh connections: neither the client nor the task
//! knows that a tunnel lies between them.

use dataplane_common::{
    drop_reason::DropReason,
    headers::{IPV4_LEN, TCP_LEN},
};

use crate::{Edit, parse::Packet};

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
/// Options looked at: Linux, BSD and Windows send MSS first; 10 one-byte fillers before it would be a curiosity.
const MAX_OPTIONS: usize = 10;

/// Lowers the MSS option of a SYN so that full segments fit packets of `room` bytes. A SYN without the option is left
/// alone, and so is what is behind an option that makes no sense, or a second MSS: path-MTU discovery is there for
/// those.
///
/// # Errors
/// [`DropReason::RewriteFailed`]: the kernel could not; the packet may be half rewritten.
#[inline(always)]
pub fn clamp(frame: &impl Edit, packet: &Packet, room: u16) -> Result<(), DropReason> {
    let limit = room.saturating_sub((IPV4_LEN + TCP_LEN) as u16);
    let end = packet.l4 + usize::from(packet.tcp_len);
    let mut at = packet.l4 + TCP_LEN;
    for _ in 0..MAX_OPTIONS {
        if at + 2 > end {
            return Ok(());
        }
        let option: [u8; 2] = frame.load(at).map_err(|_| DropReason::Truncated)?;
        match option[0] {
            END => return Ok(()),
            NOP => at += 1,
            _ if option[1] < 2 || at + usize::from(option[1]) > end => return Ok(()),
            MSS if option[1] == 4 => return lower(frame, packet, at + 2, limit),
            _ => at += usize::from(option[1]),
        }
    }
    Ok(())
}

#[inline(always)]
fn lower(frame: &impl Edit, packet: &Packet, at: usize, limit: u16) -> Result<(), DropReason> {
    let failed = |_| DropReason::RewriteFailed;
    let value: [u8; 2] = frame.load(at).map_err(|_| DropReason::Truncated)?;
    if u16::from_be_bytes(value) <= limit {
        return Ok(());
    }
    let new = limit.to_be_bytes();
    // The checksum sees 16-bit words; an option at an odd offset has its bytes exchanged.
    let word = |bytes: [u8; 2]| {
        let bytes = if (at - packet.l4).is_multiple_of(2) { bytes } else { [bytes[1], bytes[0]] };
        u64::from(u16::from_ne_bytes(bytes))
    };
    frame.l4_csum_replace(packet.l4 + 16, word(value), word(new), 2).map_err(failed)?;
    frame.store(at, &new).map_err(failed)
}
