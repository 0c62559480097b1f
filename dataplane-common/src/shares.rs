//! Map `SHARES`: how much of the tables of established connections each service and each client prefix holds.
//!
//! Shares are of what is **free**, as switches with shared buffers have it (dynamic thresholds: Choudhury and Hahne,
//! IEEE/ACM Transactions on Networking 6(2), 1998): whoever is alone may take most of a table, and the more hold much
//! of it, the less each gets; there is always something left for who holds little. What finds no share is refused
//! nothing: it stays pending, where what was silent for longest makes room.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::NetId,
    flow::{AffinityKey, FlowKey, MESH_ZONE, STOCK_ZONE},
    hash::mix,
    headers::ipproto,
};

/// Numbers of services; several may share one.
pub const SERVICES: usize = 1 << 12;
/// Numbers of client prefixes; several may share one.
pub const PREFIXES: usize = 1 << 16;

/// How many times what is free a service may hold: 80 % of the table if it is alone.
const OF_SERVICE: i64 = 4;
/// The same for a prefix: 67 % of the table if it is alone.
const OF_PREFIX: i64 = 2;

/// Index of clients' connections in [`Shares`].
pub const AFFINITY: usize = 0;
/// Index of translated connections' entries in [`Shares`].
pub const FLOWS: usize = 1;

/// Value of map `SHARES` (memory-mapped array of one). Numbers are of table entries, in two's complement: between two
/// sweeps, which count anew, more may be given back than was taken.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Shares {
    /// Of the hash that services and prefixes are numbered by: who does not know it cannot find others with another's
    /// number.
    pub seed: u64,
    /// Room in each table; 0: not known yet, everybody has a share.
    pub room: [u64; 2],
    /// Entries in each table.
    pub entries: [u64; 2],
    /// Those of them that are not of TCP.
    pub other: [u64; 2],
    /// Always zero.
    pub _pad: u64,
    /// Entries of each service.
    pub services: [u64; SERVICES],
    /// Entries of each prefix.
    pub prefixes: [u64; PREFIXES],
}

crate::assert_layout!(Shares: size 557_120 align 8);

/// Where a connection's entries are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// [`AFFINITY`] or [`FLOWS`].
    pub table: usize,
    /// Not TCP.
    pub other: bool,
    /// Index of [`Shares::services`].
    pub service: usize,
    /// Index of [`Shares::prefixes`].
    pub prefix: usize,
}

impl Place {
    /// Of a client's entry: the service is the published port, the prefix the client's /24. TCP and all else have
    /// numbers of their own: datagrams of invented sources take nothing from who connects.
    #[inline(always)]
    #[must_use]
    pub const fn of_affinity(seed: u64, key: &AffinityKey) -> Self {
        let [a, b, c, _] = key.client;
        Self::new(AFFINITY, seed, [0; 4], key.proto, port(key.port, key.proto), word([a, b, c, 0]))
    }

    /// Of both entries of a translated connection with this forward key. Through the mesh as for [`Self::of_affinity`];
    /// inside an overlay network the service is an address, and the prefix one container.
    #[inline(always)]
    #[must_use]
    pub const fn of_flow(seed: u64, forward: &FlowKey) -> Self {
        let [a, b, c, d] = forward.src;
        if is_mesh(forward.zone) {
            let service = port(forward.dport, forward.proto);
            Self::new(FLOWS, seed, forward.zone, forward.proto, service, word([a, b, c, 0]))
        } else {
            Self::new(FLOWS, seed, forward.zone, forward.proto, word(forward.dst), word([a, b, c, d]))
        }
    }

    #[inline(always)]
    const fn new(table: usize, seed: u64, zone: NetId, proto: u8, service: u32, prefix: u32) -> Self {
        let other = proto != ipproto::TCP;
        // Mixed one after the other: what is only combined with the seed would collide whatever that is.
        let place = mix(seed ^ ((word(zone) as u64) << 2 | (other as u64) << 1 | table as u64));
        Self {
            table,
            other,
            service: mix(place ^ service as u64) as usize & (SERVICES - 1),
            prefix: mix(place.rotate_left(32) ^ prefix as u64) as usize & (PREFIXES - 1),
        }
    }
}

/// What is held where a connection wants a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Room in the table; 0: not known.
    pub room: u64,
    /// All entries.
    pub entries: u64,
    /// Those that are not of TCP; `None` for a connection of TCP.
    pub other: Option<u64>,
    /// The service's.
    pub service: u64,
    /// The prefix's.
    pub prefix: u64,
}

impl Held {
    /// Whether there is a share for one more connection.
    #[inline(always)]
    #[must_use]
    pub const fn admits(&self) -> bool {
        // Nothing else says that there is no room: the lines have some for more.
        let free = self.room as i64 - self.entries as i64;
        if self.room == 0 {
            return true;
        }
        if let Some(other) = self.other
            && other as i64 >= (self.room / 2) as i64
        {
            return false;
        }
        free > 0 && (self.service as i64) < OF_SERVICE * free && (self.prefix as i64) < OF_PREFIX * free
    }
}

/// Whether a connection of this zone goes to a published port.
#[inline(always)]
#[must_use]
pub const fn is_mesh(zone: NetId) -> bool {
    let zone = word(zone);
    zone == word(MESH_ZONE) || zone == word(STOCK_ZONE)
}

#[inline(always)]
const fn word(bytes: [u8; 4]) -> u32 {
    u32::from_le_bytes(bytes)
}

#[inline(always)]
const fn port([a, b]: [u8; 2], proto: u8) -> u32 {
    word([a, b, proto, 0])
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeSet, vec};

    use super::*;

    const SEED: u64 = 0x1234_5678_9abc_def0;
    const ROOM: u64 = 1000;

    fn held(entries: u64) -> Held {
        Held { room: ROOM, entries, other: None, service: 0, prefix: 0 }
    }

    /// How many entries somebody gets who asks as long as `admits` says yes, while others hold `others`.
    fn most(others: u64, with: impl Fn(Held, u64) -> Held) -> u64 {
        (0..ROOM - others).find(|&own| !with(held(others + own), own).admits()).unwrap_or(ROOM - others)
    }

    #[test]
    fn who_is_alone_gets_most_of_a_table_and_never_all() {
        let service = |held, own| Held { service: own, ..held };
        let prefix = |held, own| Held { prefix: own, ..held };
        assert_eq!((most(0, service), most(0, prefix)), (800, 667));
        assert_eq!((most(800, service), most(800, prefix)), (160, 134), "the second one");
    }

    #[test]
    fn what_is_not_tcp_leaves_half_to_tcp() {
        let other = |held, own| Held { other: Some(own), ..held };
        assert_eq!(most(0, other), 500);
        assert!(Held { other: Some(0), ..held(999) }.admits(), "and may have what is left");
        assert!(held(999).admits(), "TCP may have all");
    }

    #[test]
    fn numbers_that_are_too_low_close_no_table() {
        assert!(Held { room: 0, ..held(5000) }.admits(), "before the room is known");
        let full = |entries| !held(entries).admits();
        assert!(!full(999) && full(1000) && full(1001), "nothing else says that it is full");
        assert!(
            Held { service: (-3i64) as u64, prefix: (-3i64) as u64, other: Some(-1i64 as u64), ..held(0) }.admits()
        );
        assert!(held(-10i64 as u64).admits());
    }

    #[test]
    fn the_same_connection_has_the_same_place() {
        let key = |client, node, port| AffinityKey::new((client, [1, 2]), (node, port), 6);
        let first = Place::of_affinity(SEED, &key([198, 51, 100, 7], [192, 0, 2, 1], [0, 80]));
        assert_eq!(first, Place::of_affinity(SEED, &key([198, 51, 100, 9], [192, 0, 2, 2], [0, 80])));
        assert_ne!(first.service, Place::of_affinity(SEED, &key([198, 51, 100, 7], [192, 0, 2, 1], [0, 81])).service);
        assert_ne!(first.prefix, Place::of_affinity(SEED, &key([198, 51, 101, 7], [192, 0, 2, 1], [0, 80])).prefix);
        assert_ne!(first.prefix, Place::of_affinity(SEED + 1, &key([198, 51, 100, 7], [192, 0, 2, 1], [0, 80])).prefix);
        let flow =
            |zone, src, dst, proto| Place::of_flow(SEED, &FlowKey::new(zone, (src, [1; 2]), (dst, [0, 80]), proto));
        let mesh = flow(MESH_ZONE, [198, 51, 100, 7], [192, 0, 2, 1], 6);
        assert_eq!(mesh, flow(MESH_ZONE, [198, 51, 100, 8], [192, 0, 2, 2], 6));
        let vip = flow([0, 0, 16, 1], [10, 0, 1, 7], [10, 0, 1, 2], 17);
        assert_ne!(vip.prefix, flow([0, 0, 16, 1], [10, 0, 1, 8], [10, 0, 1, 2], 17).prefix, "container by container");
        assert_ne!(vip.prefix, flow([0, 0, 16, 2], [10, 0, 1, 7], [10, 0, 1, 2], 17).prefix, "network by network");
        assert_ne!(vip.service, flow([0, 0, 16, 1], [10, 0, 1, 7], [10, 0, 1, 3], 17).service);
        assert_ne!(vip.service, flow([0, 0, 16, 2], [10, 0, 1, 7], [10, 0, 1, 2], 17).service, "network by network");
        let tcp = flow([0, 0, 16, 1], [10, 0, 1, 7], [10, 0, 1, 2], 6);
        assert!(vip.service != tcp.service && vip.prefix != tcp.prefix, "TCP has its own");
        assert_eq!((mesh.other, vip.other, first.table, vip.table), (false, true, AFFINITY, FLOWS));
    }

    /// Who knows no seed finds no two that share a number with every seed.
    #[test]
    fn what_shares_a_number_does_so_with_one_seed_only() {
        let place = |seed, zone, src, dst| Place::of_flow(seed, &FlowKey::new(zone, (src, [1; 2]), (dst, [0, 80]), 6));
        let pairs = [
            // The same VIP in two networks; an address and a network that differ in the same bits.
            (([0, 0, 16, 1], [10, 0, 1, 7], [10, 0, 1, 2]), ([0, 0, 16, 2], [10, 0, 1, 8], [10, 0, 1, 2])),
            (([0, 0, 16, 1], [10, 0, 1, 7], [10, 0, 1, 2]), ([0, 0, 16, 2], [10, 0, 1, 4], [10, 0, 1, 1])),
        ];
        for (one, other) in pairs {
            let both = |seed| (place(seed, one.0, one.1, one.2), place(seed, other.0, other.1, other.2));
            let (mut services, mut prefixes) = (0, 0);
            for seed in (0..64).map(mix) {
                let (one, other) = both(seed);
                services += u32::from(one.service == other.service);
                prefixes += u32::from(one.prefix == other.prefix);
            }
            assert!(services <= 2 && prefixes <= 1, "{services} services, {prefixes} prefixes");
        }
        let affinity =
            |seed, client| Place::of_affinity(seed, &AffinityKey::new((client, [1; 2]), ([1; 4], [0, 80]), 6));
        let shared = (0..64).map(mix).filter(|&seed| {
            affinity(seed, [198, 51, 100, 1]).prefix == place(seed, MESH_ZONE, [199, 51, 100, 1], [1; 4]).prefix
        });
        assert!(shared.count() <= 1, "of both tables");
    }

    #[test]
    fn prefixes_spread_over_all_numbers() {
        let mut counts = vec![0u32; PREFIXES];
        for prefix in 0..PREFIXES as u32 {
            let [_, a, b, c] = prefix.to_be_bytes();
            let key = AffinityKey::new(([a, b, c, 9], [0; 2]), ([192, 0, 2, 1], [0, 80]), 6);
            counts[Place::of_affinity(SEED, &key).prefix] += 1;
        }
        let most = counts.iter().max().copied();
        assert!(most <= Some(12), "{most:?}");
        let services: BTreeSet<_> = (0..1000u16)
            .map(|port| Place::of_affinity(SEED, &AffinityKey::new(([9; 4], [0; 2]), ([1; 4], port.to_be_bytes()), 6)))
            .map(|place| place.service)
            .collect();
        assert!(services.len() > 850, "{}", services.len());
    }
}
