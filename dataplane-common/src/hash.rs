//! The hash that spreads mesh connections over a tunnel's source ports, and what hashes with a secret seed are made of.
//!
//! The first is ours and not the kernel's, because XDP has no hash of the kernel's to ask for: a connection's packets
//! take one port whether TC or XDP sends them, so that switching from one to the other reorders nothing. It keeps no
//! secret. Who picks his ports so that they all hash alike gets one queue for himself, as with any NIC's published key.

use crate::addr::{Ip4, Port};

/// Hash of a packet's addresses, ports and protocol, in the direction it travels. All of its bits are well mixed.
#[inline(always)]
pub const fn flow(src: Ip4, dst: Ip4, sport: Port, dport: Port, proto: u8) -> u32 {
    let ports = u32::from_le_bytes([sport[0], sport[1], dport[0], dport[1]]);
    flow_of_words(u32::from_le_bytes(src), u32::from_le_bytes(dst), ports, proto)
}

/// The same of what little-endian words of the headers hold: source, destination, both ports.
#[inline(always)]
pub const fn flow_of_words(src: u32, dst: u32, ports: u32, proto: u8) -> u32 {
    // Odd constants of splitmix64.
    const A: u64 = 0xbf58_476d_1ce4_e5b9;
    const B: u64 = 0x94d0_49bb_1331_11eb;
    let addresses = (src as u64) << 32 | dst as u64;
    let mut x = addresses.wrapping_mul(A) ^ ((ports as u64) << 8 | proto as u64);
    x = (x ^ x >> 31).wrapping_mul(B);
    x = (x ^ x >> 29).wrapping_mul(A);
    (x ^ x >> 32) as u32
}

/// The finalizer of splitmix64: a bijection, all of whose bits depend on all bits of `x`.
#[inline(always)]
#[must_use]
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use super::*;

    #[test]
    fn connections_spread_evenly_whatever_differs() {
        const BUCKETS: usize = 64;
        let even = |what: &str, hashes: &mut dyn Iterator<Item = u32>| {
            let (mut low, mut high) = (vec![0u32; BUCKETS], vec![0u32; BUCKETS]);
            for hash in hashes {
                low[hash as usize % BUCKETS] += 1;
                high[(hash >> 26) as usize] += 1;
            }
            for count in low.iter().chain(&high) {
                // 1024 expected; six standard deviations.
                assert!((832..=1216).contains(count), "{what}: {count}");
            }
        };
        let (client, node, port) = ([198, 51, 100, 7], [192, 0, 2, 1], [0x1f, 0x90]);
        let numbers = || 0..=u16::MAX;
        even("ports", &mut numbers().map(|n| flow(client, node, n.to_be_bytes(), port, 6)));
        let from = |n: u16| [10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]];
        even("clients", &mut numbers().map(|n| flow(from(n), node, [0x9c, 0x40], port, 17)));
        let to = |n: u16| [n.to_be_bytes()[0], n.to_be_bytes()[1], 0, 1];
        even("nodes", &mut numbers().map(|n| flow(client, to(n), [0x9c, 0x40], port, 6)));
    }

    #[test]
    fn everything_counts() {
        let base = flow([1; 4], [2; 4], [3; 2], [4; 2], 6);
        for other in [
            flow([9; 4], [2; 4], [3; 2], [4; 2], 6),
            flow([1; 4], [9; 4], [3; 2], [4; 2], 6),
            flow([1; 4], [2; 4], [9; 2], [4; 2], 6),
            flow([1; 4], [2; 4], [3; 2], [9; 2], 6),
            flow([1; 4], [2; 4], [3; 2], [4; 2], 17),
        ] {
            assert_ne!(base, other);
        }
    }
}
