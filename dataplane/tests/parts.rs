//! Parts of the maps: changes that are written without looking at the rest, and sets among many. Needs root.

mod support;

use std::collections::BTreeMap;

use anyhow::Result;
use aya::maps::{Array, Map, MapData};
use dataplane::{Dataplane, MapName};
use dataplane_common::{
    config::Config,
    endpoint::{Endpoint, EndpointKey, Vtep, kind},
    mesh::{MAX_NODE_ADDRESSES, NodeAddress},
    state::{MapChange, MapState},
};
use support::{
    attached::options,
    maps::{NET, backends, pin, port, vip},
    sandbox::sandbox,
};

fn state() -> MapState {
    let mut state = MapState {
        config: Config {
            underlay_ifindex: 1,
            vtep: [192, 0, 2, 1],
            underlay_ip: [192, 0, 2, 1],
            underlay_mtu: 1500,
            ..Config::default()
        },
        vteps: BTreeMap::from([([192, 0, 2, 2], Vtep { hiveway: 1, ..Vtep::default() })]),
        ..MapState::default()
    };
    let vip_endpoint = Endpoint { kind: kind::VIP, ..Endpoint::default() };
    state.endpoints.insert(EndpointKey { net: NET, ip: [10, 0, 1, 2] }, vip_endpoint);
    state.sets.insert(vip(2), backends(3));
    state.sets.insert(port(8080), backends(2));
    state
}

/// What comes before a whole comparison leads to the same, and leaves everything else alone.
#[test]
fn a_change_writes_what_it_names_and_nothing_else() -> Result<()> {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::open(&options(bpffs))?;
        let mut state = state();
        let remote = |last| EndpointKey { net: NET, ip: [10, 0, 1, last] };
        let endpoint = Endpoint { tag: [9; 8], kind: kind::REMOTE, ..Endpoint::default() };
        state.endpoints.insert(remote(120), endpoint);
        dataplane.apply(&state)?;
        // Of damage elsewhere it knows nothing; what it names itself, it compares.
        pin::<[u8; 4], [u8; 4]>(bpffs, MapName::Vteps)?.remove(&[192, 0, 2, 2])?;

        let change = MapChange {
            endpoints: BTreeMap::from([(remote(120), None), (remote(121), Some(endpoint))]),
            sets: BTreeMap::from([(vip(2), backends(2)), (port(8080), backends(2)), (vip(99), backends(1))]),
        };
        let changes = dataplane.change(&change);
        assert_eq!(changes.failures, []);
        let endpoints = changes.maps[&MapName::Endpoints];
        assert_eq!((endpoints.inserted, endpoints.updated, endpoints.removed), (1, 0, 1));
        let sets = changes.maps[&MapName::Sets];
        assert_eq!((sets.inserted, sets.updated), (0, 1), "one is as it should be, one belongs to nobody");
        assert_eq!(changes.maps.len(), 3, "{changes:?}");
        assert!(dataplane.change(&change).is_empty());

        state.endpoints.remove(&remote(120));
        state.endpoints.insert(remote(121), endpoint);
        state.sets.insert(vip(2), backends(2));
        let after = dataplane.apply(&state)?;
        assert_eq!(after.maps.keys().collect::<Vec<_>>(), [&MapName::Vteps], "only the damage was left: {after:?}");
        Ok(())
    })
}

/// Many sets are compared with one read of all slots, over more than one batch of them.
#[test]
fn damage_is_found_among_many_sets() -> Result<()> {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::open(&options(bpffs))?;
        let mut state = state();
        for number in 0..400u16 {
            state.sets.insert(port(20_000 + number), backends((number % 7) as u8));
        }
        dataplane.apply(&state)?;
        assert!(dataplane.apply(&state)?.is_empty());
        let mut slots: Array<_, [u8; 16]> =
            Map::Array(MapData::from_pin(bpffs.join("hiveway/maps/BACKENDS"))?).try_into()?;
        for slot in [0, 600, 1150] {
            slots.set(slot, [0xee; 16], 0)?;
        }
        let repaired = dataplane.apply(&state)?;
        assert_eq!(repaired.maps[&MapName::Sets].updated, 3, "{repaired:?}");
        assert!(dataplane.apply(&state)?.is_empty());
        Ok(())
    })
}

/// What a batch stops at is passed by and named, and everything that fits is there.
#[test]
fn a_full_map_in_the_middle_of_a_batch() -> Result<()> {
    sandbox(|bpffs| {
        /// Of `NODE_ADDRESSES`.
        const ROOM: u16 = MAX_NODE_ADDRESSES as u16;
        let address = |number: u16| {
            let [high, low] = number.to_be_bytes();
            [10, 9, high, low]
        };
        let mut dataplane = Dataplane::open(&options(bpffs))?;
        let mut state = state();
        // In the middle of the others, by key.
        state
            .node_addresses
            .extend((500..600).map(|number| (address(number), NodeAddress { ifindex: 1, ..NodeAddress::default() })));
        dataplane.apply(&state)?;
        state.node_addresses.extend(
            (0..ROOM + 76).map(|number| (address(number), NodeAddress { ifindex: 2, ..NodeAddress::default() })),
        );
        state.sets.insert(port(8081), backends(1));
        let changes = dataplane.apply(&state)?;
        let addresses = changes.maps[&MapName::NodeAddresses];
        assert_eq!((addresses.inserted, addresses.updated, addresses.removed), (usize::from(ROOM) - 100, 100, 0));
        assert_eq!(changes.failures.len(), 76);
        for (failure, number) in changes.failures.iter().zip(ROOM..) {
            assert_eq!((failure.map, &failure.item), (MapName::NodeAddresses, &format!("{:?}", address(number))));
            assert!(failure.error.contains("the map is full"), "{}", failure.error);
        }
        assert_eq!(changes.maps[&MapName::Ports].inserted, 1, "the other maps are served all the same");
        let map = pin::<[u8; 4], [u32; 2]>(bpffs, MapName::NodeAddresses)?;
        for number in 0..ROOM {
            assert_eq!(map.get(&address(number), 0)?, [2, 0], "address {number}");
        }
        Ok(())
    })
}
