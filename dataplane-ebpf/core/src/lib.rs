//! What the programs make of a packet: its headers, how they are rewritten, and what it says about its connection.
//!
//! No aya, and nothing of a hook: a packet is what [`View`] and [`Edit`] say, which the programs are given by the
//! kernel and tests and fuzz targets by `host::Bytes`. So the code that reads what strangers send runs on the host
//! without privilege, byte for byte the same.
//!
//! Everything is inlined into the programs unless it says why not: a call costs stack, of which there are 512 bytes.
#![no_std]
// One instruction in `options` that the target's core library does not offer.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
extern crate alloc;
#[cfg(any(test, feature = "host"))]
extern crate std;

pub mod age;
pub mod checksum;
pub mod connection;
pub mod ending;
#[cfg(not(target_arch = "bpf"))]
pub mod growth;
pub mod headers;
#[cfg(feature = "host")]
pub mod host;
pub mod ingress;
pub mod lines;
pub mod mss;
pub mod nat;
pub mod notes;
pub mod options;
pub mod parse;
pub mod proof;
pub mod quote;
pub mod segment;
pub mod succession;
pub mod timestamp;
mod view;

pub use self::view::{Edit, Failed, PACKET_HOST, View, csum};
