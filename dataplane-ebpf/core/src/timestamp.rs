//! The TCP timestamps option (RFC 7323 section 3) of a SYN that takes the port of a connection which the backend may
//! keep in TIME-WAIT.
//!
//! To the backend it is the same peer's next connection, and a timestamp below the last one of that peer marks a stale
//! segment (PAWS, RFC 7323 section 5): it would be answered with an acknowledgement instead of a SYN-ACK, and the
//! client stalls for a second. Timestamps of two clients, or of one client towards two addresses, have nothing in
//! common. Without the option in the SYN the connection does without timestamps. A SYN that is lost on the way and sent
//! again keeps its own: then the second may stall.

use dataplane_common::headers::TCP_LEN;

use crate::{Edit, parse::Packet};

const END: u8 = 0;
const NOP: u8 = 1;
const TIMESTAMPS: u8 = 8;
const LEN: usize = 10;
/// Options looked at: no system puts so many before the timestamps.
const MAX_OPTIONS: u32 = 10;
/// Of the checksum in the TCP header.
const CHECKSUM: usize = 16;

/// A walk through the options, in scratch memory.
// VERIFIER(6.18): whose contents the verifier does not follow, so that it walks an option once, not once per place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    /// Offset of the option.
    at: u32,
    /// Offset of what follows the last one; 0: the timestamps are at `at`.
    end: u32,
}

/// Replaces the timestamps of a TCP segment by fillers; one without any is left alone. Where that fails for want of
/// memory the segment goes on as it is, or with a wrong checksum, and is sent again.
#[inline(never)]
pub fn remove(frame: &impl Edit, packet: &Packet, walk: &mut Walk) {
    let end = packet.l4 + usize::from(packet.tcp_len);
    *walk = Walk { at: (packet.l4 + TCP_LEN) as u32, end: end as u32 };
    for _ in 0..MAX_OPTIONS {
        if !advance(frame, walk) {
            break;
        }
    }
    if walk.end == 0 {
        erase(frame, packet, walk.at as usize);
    }
}

#[inline(always)]
fn erase(frame: &impl Edit, packet: &Packet, at: usize) {
    let Ok(old) = frame.load::<[u8; LEN]>(at) else { return };
    let (from, to) = (sum(&old, at - packet.l4), sum(&[NOP; LEN], 0));
    if frame.l4_csum_replace(packet.l4 + CHECKSUM, from, to, 2).is_ok() {
        let _ = frame.store(at, &[NOP; LEN]);
    }
}

/// Looks at one option. Whether there may be another.
#[inline(always)]
fn advance(frame: &impl Edit, walk: &mut Walk) -> bool {
    if walk.at + 2 > walk.end {
        return false;
    }
    let Ok([kind, length]) = frame.load::<[u8; 2]>(walk.at as usize) else { return false };
    let length = u32::from(length);
    match kind {
        END => return false,
        NOP => walk.at += 1,
        _ if length < 2 || walk.at + length > walk.end => return false,
        TIMESTAMPS if length == LEN as u32 => {
            walk.end = 0;
            return false;
        }
        _ => walk.at += length,
    }
    true
}

/// What the bytes at this offset of the segment add to its checksum, in the packet's byte order (RFC 1071).
#[inline(always)]
fn sum(bytes: &[u8; LEN], offset: usize) -> u64 {
    let mut sum = 0_u32;
    for pair in bytes.as_chunks::<2>().0 {
        sum += u32::from(u16::from_ne_bytes(*pair));
    }
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = ((folded & 0xffff) + (folded >> 16)) as u16;
    u64::from(if offset.is_multiple_of(2) { folded } else { folded.swap_bytes() })
}
