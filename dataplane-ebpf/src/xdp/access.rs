//! Direct access to a frame that is one piece of memory, in words as it lies there.
//!
//! Words are little endian, as the programs are: the byte with the lowest address is the lowest.

use core::arch::asm;

use aya_ebpf::programs::XdpContext;
use dataplane_common::addr::Mac;

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

    /// The `LEN` bytes at `OFFSET`, if they are there.
    #[inline(always)]
    pub(super) fn part<const OFFSET: usize, const LEN: usize>(self) -> Option<Part<LEN>> {
        let at = self.data + OFFSET;
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
    pub(super) fn two<const OFFSET: usize>(self) -> u16 {
        const { assert!(OFFSET + 2 <= LEN) };
        let value: u64;
        // SAFETY: inside the frame; reads only.
        unsafe {
            asm!("{value} = *(u16 *)({at} + {offset})", value = out(reg) value, at = in(reg) self.at, offset = const OFFSET,
                 options(pure, readonly, nostack));
        }
        value as u16
    }

    /// The four bytes at `OFFSET`.
    #[inline(always)]
    pub(super) fn four<const OFFSET: usize>(self) -> u32 {
        const { assert!(OFFSET + 4 <= LEN) };
        let value: u64;
        // SAFETY: inside the frame; reads only.
        unsafe {
            asm!("{value} = *(u32 *)({at} + {offset})", value = out(reg) value, at = in(reg) self.at, offset = const OFFSET,
                 options(pure, readonly, nostack));
        }
        value as u32
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
    pub(super) fn put_four<const OFFSET: usize>(self, value: u32) {
        const { assert!(OFFSET + 4 <= LEN) };
        // SAFETY: inside the frame.
        unsafe {
            asm!("*(u32 *)({at} + {offset}) = {value}", at = in(reg) self.at, value = in(reg) u64::from(value),
                 offset = const OFFSET, options(nostack));
        }
    }
}

/// Four bytes of a map's value, of which the caller knows that they lie at a multiple of four there.
#[inline(always)]
pub(super) fn word(bytes: &[u8; 4]) -> u32 {
    // SAFETY: as many bytes, aligned as the caller says. LLVM would read byte by byte otherwise.
    unsafe { core::ptr::read(bytes.as_ptr().cast::<u32>()) }
}

/// The same with two.
#[inline(always)]
pub(super) fn half(bytes: &[u8; 2]) -> u16 {
    // SAFETY: as above.
    unsafe { core::ptr::read(bytes.as_ptr().cast::<u16>()) }
}

/// A MAC in a map's value, which lies at a multiple of four there: four bytes and two.
#[inline(always)]
pub(super) fn mac(bytes: &Mac) -> [u32; 2] {
    let at = bytes.as_ptr();
    // SAFETY: as many bytes, aligned as the caller says.
    unsafe { [core::ptr::read(at.cast::<u32>()), u32::from(core::ptr::read(at.add(4).cast::<u16>()))] }
}

// Where `word`, `half` and `mac` are used.
const _: () = {
    use core::mem::offset_of;

    use dataplane_common::{config::Config, flow::Affinity, service::Backend, xdp::XdpDevice};

    assert!(align_of::<Config>() == 4 && align_of::<Affinity>() == 8);
    assert!(offset_of!(Config, vtep).is_multiple_of(4) && offset_of!(Config, host_ip).is_multiple_of(4));
    assert!(offset_of!(Config, mesh_vni).is_multiple_of(4) && offset_of!(Config, vxlan_port).is_multiple_of(2));
    assert!(offset_of!(Affinity, ip).is_multiple_of(4) && offset_of!(Affinity, vtep).is_multiple_of(4));
    assert!(offset_of!(Backend, ip).is_multiple_of(4) && offset_of!(Backend, vtep).is_multiple_of(4));
    assert!(offset_of!(Config, underlay_mac).is_multiple_of(4) && offset_of!(XdpDevice, mac).is_multiple_of(4));
    assert!(cfg!(target_endian = "little"));
};
