//! What the eBPF programs and user space share, and nothing else.
//!
//! `no_std`, no aya: this crate compiles for the kernel's BPF target and for host tests alike.
//!
//! Conventions for every type that crosses the boundary:
//! * addresses, ports and VNIs are byte arrays in **network byte order**, exactly as they stand in a packet;
//! * numbers that never leave the node (interface indices, times, set ids) are native integers, naturally aligned;
//! * padding is an explicit field, always zero, because the kernel hashes and compares keys as raw bytes;
//! * size and alignment are asserted at compile time below each type.
#![no_std]

#[cfg(feature = "state")]
extern crate alloc;

pub mod addr;
pub mod config;
pub mod counter;
pub mod drop_reason;
pub mod endpoint;
pub mod flow;
pub mod fragment;
pub mod group;
pub mod hash;
pub mod headers;
pub mod line;
pub mod mark;
pub mod mesh;
pub mod path;
pub mod probe;
pub mod reverse;
pub mod service;
pub mod shares;
#[cfg(feature = "state")]
pub mod state;
pub mod traffic;
pub mod xdp;

/// Version of the map layouts in this crate. Written into [`config::Config::abi`] of the pinned `CONFIG` map; an agent
/// that finds another number there refuses to adopt the maps. Raise it with every change of a key, a value, a map's
/// meaning or a default that persists in a map. A field in the place of padding needs no other number if its zero means
/// what entries without it meant.
pub const ABI_VERSION: u32 = 5;

/// Asserts size and alignment of shared types at compile time.
macro_rules! assert_layout {
    ($($ty:ty: size $size:literal align $align:literal),+ $(,)?) => {
        $(const _: () = assert!(size_of::<$ty>() == $size && align_of::<$ty>() == $align);)+
    };
}
pub(crate) use assert_layout;
