//! Map `REVERSE`: which sources an interface's reverse-path filter lets in (`net.ipv4.conf.*.rp_filter`, RFC 3704).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Value of map `REVERSE` (hash, key: interface index, native `u32`): the reverse-path filter of an interface where
/// clients arrive.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReversePath {
    /// One of [`reverse_mode`].
    pub mode: u32,
    /// Index of the interface that the kernel's input routing takes the packet for: the bridge or bond that the
    /// interface belongs to, else the interface itself. 0: the interface itself.
    pub at: u32,
    /// Index of the interface whose routing rules (`iif`) apply: the loopback device's as in the kernel's own check, or
    /// the VRF's that the interface belongs to.
    pub from: u32,
}

/// The key whose value holds for interfaces that have none of their own: what `net.ipv4.conf.all` asks at least.
pub const EVERY_INTERFACE: u32 = 0;

/// Index of the loopback device, in every network namespace.
pub const LOOPBACK: u32 = 1;

/// How many interfaces can have a value of their own.
pub const MAX_REVERSE: u32 = 4_096;

/// Values of [`ReversePath::mode`].
pub mod reverse_mode {
    /// Every source is let in.
    pub const NONE: u32 = 0;
    /// The best route to the source leads out of the interface.
    pub const STRICT: u32 = 1;
    /// There is a unicast route to the source.
    pub const LOOSE: u32 = 2;
}

crate::assert_layout!(ReversePath: size 12 align 4);
