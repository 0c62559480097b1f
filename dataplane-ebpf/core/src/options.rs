//! IPv4 options (RFC 791 section 3.1). Only source routes matter: a packet that names its own way may be for this node
//! only in passing, and the stack, which obeys no such way unless it is told to (`accept_source_route`), must see it.

use dataplane_common::headers::IPV4_LEN;

use crate::{View, parse::Packet};

/// Longest options: the header's length is four bits of words.
const MAX_LEN: usize = 40;
/// End of the options, and one byte of nothing; all other options have a length.
const END: u8 = 0;
const NOTHING: u8 = 1;
/// Loose and strict source and record route.
const LOOSE_ROUTE: u8 = 131;
const STRICT_ROUTE: u8 = 137;

/// What the verifier can follow: more than any offset into options.
const MASK: usize = 63;
/// Room for the options of a packet, and for a place in them.
pub const ROOM: usize = PLACE + 8;
/// Where the place is: behind all that is read.
const PLACE: usize = 72;

const _: () = assert!(MASK + 1 < PLACE && PLACE.is_multiple_of(8) && MAX_LEN <= MASK);

/// Where options are looked through. Lives in scratch memory.
#[repr(C, align(8))]
pub struct Room(pub [u8; ROOM]);

impl Default for Room {
    fn default() -> Self {
        Self([0; ROOM])
    }
}

/// An offset of at most [`MASK`], which LLVM and the verifier know it to be.
// VERIFIER(6.1): once in assembler, for LLVM would leave it out after a comparison that the kernel learns nothing from
// before 6.8.
#[cfg_attr(not(target_arch = "bpf"), expect(unused_mut, reason = "the kernel's build changes it in assembler"))]
#[inline(always)]
fn masked(mut at: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    // SAFETY: one instruction, no memory, no stack.
    unsafe {
        core::arch::asm!("{at} &= {mask}", at = inout(reg) at, mask = const MASK, options(pure, nomem, nostack))
    };
    at & MASK
}

/// Whether the packet, which has options, has a source route among them.
#[inline(always)]
pub fn find_source_route(frame: &impl View, packet: &Packet, room: &mut Room) -> bool {
    // VERIFIER(6.18): in this form, because the helper refuses to read nothing, and LLVM would compare another
    // register.
    let len = ((packet.l4 - packet.net - IPV4_LEN - 1) & MASK) + 1;
    let buffer = &mut room.0;
    // SAFETY: the buffer has room for `MASK` + 1 bytes.
    let to = unsafe { core::slice::from_raw_parts_mut(buffer.as_mut_ptr(), len) };
    if frame.load_to(packet.net + IPV4_LEN, to).is_err() {
        return false;
    }
    // VERIFIER(6.18): the place in memory, where the verifier knows no values: in a register it would be walked for
    // every place that every option may begin at, which is 250,000 instructions instead of 3,000.
    // SAFETY: aligned to eight, inside the buffer and behind what is read of it below.
    let place = unsafe { buffer.as_mut_ptr().cast::<u64>().add(PLACE / 8) };
    // SAFETY: a live slot of this CPU.
    unsafe { place.write_volatile(0) };
    for _ in 0..MAX_LEN {
        // SAFETY: as above.
        let at = unsafe { place.read_volatile() } as usize;
        if at >= len {
            return false;
        }
        let within = masked(at);
        let next = match buffer[within] {
            END => return false,
            NOTHING => at + 1,
            LOOSE_ROUTE | STRICT_ROUTE => return true,
            _ => {
                let option_len = usize::from(buffer[within + 1]);
                // Nobody can tell what comes behind it.
                if option_len < 2 {
                    return false;
                }
                at + option_len
            }
        };
        // SAFETY: as above.
        unsafe { place.write_volatile(next as u64) };
    }
    false
}
