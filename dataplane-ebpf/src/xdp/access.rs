//! Direct access to a frame that is one piece of memory.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use dataplane_common::headers::INNER_NET;

use crate::encap::Headers;

/// Where a frame lies, and where it came in. Not valid any more once the frame was moved.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    data: usize,
    end: usize,
    /// The interface it came in through.
    pub(super) ifindex: u32,
}

impl Frame {
    #[inline(always)]
    pub(super) fn of(ctx: &XdpContext) -> Self {
        Self { data: ctx.data(), end: ctx.data_end(), ifindex: ctx.ingress_ifindex() as u32 }
    }

    /// Length in bytes, from the Ethernet header on.
    #[inline(always)]
    pub(super) fn len(self) -> usize {
        self.end - self.data
    }

    /// The `LEN` bytes at `offset`, if they are there.
    #[inline(always)]
    pub(super) fn part<const LEN: usize>(self, offset: usize) -> Option<Part<LEN>> {
        let at = self.data + offset;
        (at + LEN <= self.end).then_some(Part { at })
    }
}

/// That many bytes of a frame, which are there.
#[derive(Clone, Copy)]
pub(super) struct Part<const LEN: usize> {
    at: usize,
}

// In assembler, because LLVM takes it that BPF cannot read words from odd places and would read byte by byte. The
// kernel's verifier and all architectures whose compilers for BPF we rely on can.
impl<const LEN: usize> Part<LEN> {
    /// The byte at `OFFSET`.
    #[inline(always)]
    pub(super) fn byte<const OFFSET: usize>(self) -> u8 {
        const { assert!(OFFSET < LEN) };
        // SAFETY: inside the frame, which `Frame::part` has made sure of.
        unsafe { *((self.at + OFFSET) as *const u8) }
    }

    /// The two bytes at `OFFSET`.
    #[inline(always)]
    pub(super) fn two<const OFFSET: usize>(self) -> [u8; 2] {
        const { assert!(OFFSET + 2 <= LEN) };
        let value: u64;
        // SAFETY: inside the frame; reads only.
        unsafe {
            asm!("{value} = *(u16 *)({at} + {offset})", value = out(reg) value, at = in(reg) self.at, offset = const OFFSET,
                 options(pure, readonly, nostack));
        }
        (value as u16).to_ne_bytes()
    }

    /// The four bytes at `OFFSET`.
    #[inline(always)]
    pub(super) fn four<const OFFSET: usize>(self) -> [u8; 4] {
        const { assert!(OFFSET + 4 <= LEN) };
        let value: u64;
        // SAFETY: inside the frame; reads only.
        unsafe {
            asm!("{value} = *(u32 *)({at} + {offset})", value = out(reg) value, at = in(reg) self.at, offset = const OFFSET,
                 options(pure, readonly, nostack));
        }
        (value as u32).to_ne_bytes()
    }

    /// Writes eight bytes at `OFFSET`.
    #[inline(always)]
    pub(super) fn put_eight<const OFFSET: usize>(self, value: u64) {
        const { assert!(OFFSET + 8 <= LEN) };
        // SAFETY: inside the frame.
        unsafe {
            asm!("*(u64 *)({at} + {offset}) = {value}", at = in(reg) self.at, value = in(reg) value, offset = const OFFSET,
                 options(nostack));
        }
    }

    /// Writes four bytes at `OFFSET`.
    #[inline(always)]
    pub(super) fn put_four<const OFFSET: usize>(self, value: [u8; 4]) {
        const { assert!(OFFSET + 4 <= LEN) };
        // SAFETY: inside the frame.
        unsafe {
            asm!("*(u32 *)({at} + {offset}) = {value}", at = in(reg) self.at,
                 value = in(reg) u64::from(u32::from_ne_bytes(value)), offset = const OFFSET, options(nostack));
        }
    }
}

impl Part<INNER_NET> {
    /// Writes all headers in front of the inner IP header.
    #[inline(always)]
    pub(super) fn put_headers(self, headers: Headers) {
        // SAFETY: both are as many plain bytes.
        let words: [u64; INNER_NET / 8] = unsafe { core::mem::transmute(headers) };
        self.put_eight::<0>(words[0]);
        self.put_eight::<8>(words[1]);
        self.put_eight::<16>(words[2]);
        self.put_eight::<24>(words[3]);
        self.put_eight::<32>(words[4]);
        self.put_eight::<40>(words[5]);
        self.put_eight::<48>(words[6]);
        self.put_eight::<56>(words[7]);
    }
}
