//! Maps `SETS`, `CURSORS`, `BACKENDS`, `PORTS`: services and their backends.
//!
//! A backend set is a run of slots in the flat array `BACKENDS`, named by one aligned 8-byte word in `SETS`. The agent
//! fills fresh slots, then stores the word with one atomic write, and lets the old slots rest before it uses them
//! again: no packet sees a half-written set.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Ip4, Port, Tag};

/// How many backend sets there can be: one per VIP and one per published port.
pub const MAX_SETS: u32 = 65_536;
/// How many backend slots there are for all sets together, resting ones included.
pub const MAX_BACKENDS: u32 = 262_144;

/// One word of map `SETS` (memory-mapped array, index: set id), packed so that it is read and written as a whole:
/// bits 0–31 `base`, 32–47 `count`, 48–63 `generation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetWord {
    /// First slot in `BACKENDS`.
    pub base: u32,
    /// Number of slots; 0 means that nobody serves.
    pub count: u16,
    /// Changes with every change of the set.
    pub generation: u16,
}

impl SetWord {
    /// The word as stored.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.base as u64 | (self.count as u64) << 32 | (self.generation as u64) << 48
    }

    /// The inverse of [`SetWord::pack`].
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self { base: word as u32, count: (word >> 32) as u16, generation: (word >> 48) as u16 }
    }
}

/// Value of map `BACKENDS` (array, index: slot).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Backend {
    /// The task.
    pub tag: Tag,
    /// Its address: on the VIP's network, or on the ingress network for a published port.
    pub ip: Ip4,
    /// The VTEP of its node; this node's own for a local one.
    pub vtep: Ip4,
}

/// Key of map `PORTS` (hash): a published port in ingress mode.
#[repr(C, align(4))]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct PortKey {
    /// IP protocol number.
    pub proto: u8,
    /// Always zero.
    pub _pad: u8,
    /// Published port.
    pub port: Port,
}

/// Value of map `PORTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PublishedPort {
    /// Backend set, native order.
    pub set: u32,
    /// Bits of [`port_flag`].
    pub flags: u8,
    /// With [`port_flag::BOUND`]: which bit of [`crate::mesh::NodeAddress::classes`] an address must have so that
    /// connections are opened at it. Less than [`CLASSES`], or [`NOWHERE`].
    pub class: u8,
    /// Always zero.
    pub _pad: [u8; 2],
}

/// How many different sets of addresses the bound ports of a node may have.
pub const CLASSES: u8 = 31;
/// The class that no address is of.
pub const NOWHERE: u8 = 31;

/// Bits of [`PublishedPort::flags`].
pub mod port_flag {
    /// Connections are opened at some of the node's addresses only; elsewhere the port is the stack's.
    pub const BOUND: u8 = 2;
    /// Only clients whose longest prefix in map `ALLOW` says so may open connections.
    pub const RESTRICTED: u8 = 1;
    /// Map `LEFT` has entries for all ports at all interfaces.
    pub const LEFT_EVERYWHERE: u8 = 0x10;
    /// It has entries for all ports at one interface.
    pub const LEFT_AT_INTERFACE: u8 = 0x20;
    /// It has entries for this port at all interfaces.
    pub const LEFT_AT_PORT: u8 = 0x40;
    /// It has entries for this port at one interface.
    pub const LEFT_AT_BOTH: u8 = 0x80;
    /// Any of these: without them nobody looks into map `LEFT`.
    pub const LEFT: u8 = LEFT_EVERYWHERE | LEFT_AT_INTERFACE | LEFT_AT_PORT | LEFT_AT_BOTH;
}

/// Values of map `ALLOW`: what is true for clients with that longest prefix. Clients without any may not.
pub mod access {
    /// They may open connections.
    pub const ALLOWED: u32 = 1;
    /// They may not.
    pub const DENIED: u32 = 2;
}

/// How many entries map `ALLOW` has, for all restricted ports together.
pub const MAX_ACCESS: u32 = 65_536;

/// Data of the keys of map `ALLOW` (longest prefix match, value: one of [`access`]): who may use a restricted port. A
/// prefix length counts from the start of this structure: 32 + that of the CIDR.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct AllowPrefix {
    /// The port.
    pub port: PortKey,
    /// Address of the CIDR.
    pub ip: Ip4,
}

/// Data of the keys of map `LEFT` (longest prefix match, value: 1): clients whose packets to published ports are left
/// to the host's own path, because its packet filters may close the port to them. A prefix length counts from the start
/// of this structure: 64 + that of the CIDR.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct LeftPrefix {
    /// Index of the interface that they arrive at, in the processor's byte order; zero: any.
    pub ifindex: [u8; 4],
    /// The port; all zero: any.
    pub port: PortKey,
    /// Address of the CIDR.
    pub ip: Ip4,
}

/// Bits of a [`LeftPrefix`] before the address.
pub const LEFT_BITS: u32 = 64;

crate::assert_layout!(
    Backend: size 16 align 8,
    PortKey: size 4 align 4,
    PublishedPort: size 8 align 4,
    AllowPrefix: size 8 align 4,
    LeftPrefix: size 12 align 4,
);
