//! What the tests of this crate share.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unreachable_pub, missing_docs, reason = "a module of several test crates")]

pub mod attached;
pub mod dissect;
pub mod engine;
pub mod fragments;
pub mod golden;
pub mod icmp;
pub mod mangle;
pub mod maps;
pub mod mesh;
pub mod netns;
pub mod packets;
pub mod pcap;
pub mod random;
pub mod replies;
pub mod sandbox;
pub mod vip;
pub mod world;
pub mod xdp;
