//! What outlives an agent, what the next one takes over, and what a teardown leaves: on real maps and devices.
//! Needs root.

mod support;

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Result, bail};
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, MapType, lpm_trie::Key};
use dataplane::{
    AdoptError, Attached, Dataplane, LockError, MapName, OpenError, Options, PreflightError, Program, Sizes, TcHook,
    TeardownError, Timeouts, teardown,
};
use dataplane_common::{
    config::Config,
    endpoint::{Endpoint, EndpointKey, Local, VniInfo, Vtep, kind},
    mesh::{ClientPrefix, ClientRule, NodeAddress, Target, TargetKey, shown_as},
    service::{AllowPrefix, PortKey},
    state::MapState,
};
use support::{
    attached::{attached, filters, options},
    maps::{NET, backends, pin, port, vip},
    sandbox::{run, sandbox, veth},
};

/// Port 8080 in map `PORTS`.
const PORT: PortKey = PortKey { proto: 6, _pad: 0, port: 8080u16.to_be_bytes() };

fn prefix(ip: [u8; 4]) -> AllowPrefix {
    AllowPrefix { port: PORT, ip }
}

/// A bit of everything.
fn state() -> MapState {
    let mut state = MapState {
        config: Config {
            underlay_ifindex: 1,
            vtep: [192, 0, 2, 1],
            underlay_ip: [192, 0, 2, 1],
            underlay_mtu: 1500,
            ..Config::default()
        },
        locals: BTreeMap::from([(7, Local { tag: [1; 8], net: NET, ip: [10, 0, 1, 100], ..Local::default() })]),
        vnis: BTreeMap::from([(NET, VniInfo { net: NET, vxlan_ifindex: 9 })]),
        vteps: BTreeMap::from([([192, 0, 2, 2], Vtep { hiveway: 1, ..Vtep::default() })]),
        node_addresses: BTreeMap::from([([192, 0, 2, 1], NodeAddress { ifindex: 1, ..NodeAddress::default() })]),
        targets: BTreeMap::from([(
            TargetKey { ip: [10, 0, 0, 6], port: [31, 144], proto: 6, _pad: 0 },
            Target { tag: [1; 8], ifindex: 8, ip: [172, 18, 0, 2], port: [0, 80], ..Target::default() },
        )]),
        ..MapState::default()
    };
    let local = Endpoint { tag: [1; 8], kind: kind::LOCAL, ifindex: 7, ..Endpoint::default() };
    state.endpoints.insert(EndpointKey { net: NET, ip: [10, 0, 1, 100] }, local);
    for (last, count) in [(2, 3), (3, 0), (4, 1)] {
        let vip_endpoint = Endpoint { kind: kind::VIP, ..Endpoint::default() };
        state.endpoints.insert(EndpointKey { net: NET, ip: [10, 0, 1, last] }, vip_endpoint);
        state.sets.insert(vip(last), backends(count));
    }
    state.sets.insert(port(8080), backends(2));
    state.restricted.insert(PORT);
    state.allow.extend([(32, prefix([0; 4])), (40, prefix([198, 0, 0, 0])), (64, prefix([198, 51, 100, 7]))]);
    let client = ClientPrefix { ifindex: 8u32.to_be_bytes(), ip: [10, 0, 1, 0] };
    state.clients.insert((56, client), ClientRule { shown_as: shown_as::GATEWAY, ..ClientRule::default() });
    state
}

#[test]
fn applying_twice_changes_nothing_and_damage_is_repaired() -> Result<()> {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::open(&options(bpffs))?;
        let state = state();
        let first = dataplane.apply(&state)?;
        assert_eq!(first.failures, []);
        let inserted: BTreeMap<_, _> = first.maps.iter().map(|(map, delta)| (*map, delta.inserted)).collect();
        assert_eq!(inserted[&MapName::Endpoints], 4);
        assert_eq!(inserted[&MapName::Sets], 4);
        assert_eq!(inserted[&MapName::Backends], 3 + 1 + 2);
        assert_eq!(inserted[&MapName::Ports], 1);
        assert_eq!((inserted[&MapName::Allow], inserted[&MapName::Clients]), (3, 1));
        assert!(dataplane.apply(&state)?.is_empty());

        // A foreign hand.
        pin::<[u8; 4], [u8; 4]>(bpffs, MapName::Vteps)?.remove(&[192, 0, 2, 2])?;
        pin::<[u8; 4], [u8; 4]>(bpffs, MapName::Vteps)?.insert([1, 2, 3, 4], [1, 0, 0, 0], 0)?;
        let mut slots: Array<_, [u8; 16]> =
            Map::Array(MapData::from_pin(bpffs.join("hiveway/maps/BACKENDS"))?).try_into()?;
        slots.set(0, [0xee; 16], 0)?;
        let mut allow: LpmTrie<_, [u8; 8], u32> =
            Map::LpmTrie(MapData::from_pin(bpffs.join("hiveway/maps/ALLOW"))?).try_into()?;
        allow.insert(&Key::new(64, [6, 0, 31, 144, 1, 2, 3, 4]), 1, 0)?;
        allow.remove(&Key::new(40, [6, 0, 31, 144, 198, 0, 0, 0]))?;
        let mut clients: LpmTrie<_, [u8; 8], [u8; 4]> =
            Map::LpmTrie(MapData::from_pin(bpffs.join("hiveway/maps/CLIENTS"))?).try_into()?;
        clients.insert(&Key::new(56, [0, 0, 0, 8, 10, 0, 1, 0]), [shown_as::INGRESS_NODE, 0, 0, 0], 0)?;
        let repaired = dataplane.apply(&state)?;
        let vteps = repaired.maps[&MapName::Vteps];
        assert_eq!((vteps.inserted, vteps.removed), (1, 1));
        assert_eq!(repaired.maps[&MapName::Sets].updated, 1);
        let allow = repaired.maps[&MapName::Allow];
        assert_eq!((allow.inserted, allow.updated, allow.removed), (1, 0, 1));
        assert_eq!(repaired.maps[&MapName::Clients].updated, 1);
        assert!(dataplane.apply(&state)?.is_empty());

        // Everything can be taken away again.
        assert_eq!(dataplane.apply(&MapState { config: state.config, ..MapState::default() })?.failures, []);
        assert_eq!(pin::<[u8; 8], [u8; 32]>(bpffs, MapName::Endpoints)?.keys().count(), 0);
        assert_eq!(pin::<[u8; 4], [u8; 8]>(bpffs, MapName::Ports)?.keys().count(), 0);
        Ok(())
    })
}

#[test]
fn a_new_agent_finds_everything_as_it_was() -> Result<()> {
    sandbox(|bpffs| {
        let state = state();
        Dataplane::open(&options(bpffs))?.apply(&state)?;
        let mut next = Dataplane::open(&options(bpffs))?;
        assert!(next.apply(&state)?.is_empty(), "sets and slots were not recovered");

        // Sets that are not touched stay where they are when another changes.
        let words = || -> Result<Vec<u64>> {
            let sets: Array<_, u64> = Map::Array(MapData::from_pin(bpffs.join("hiveway/maps/SETS"))?).try_into()?;
            Ok((0..16).map(|id| sets.get(&id, 0)).collect::<Result<_, _>>()?)
        };
        let before = words()?;
        let mut changed = state.clone();
        changed.sets.insert(vip(2), backends(4));
        assert_eq!(next.apply(&changed)?.maps[&MapName::Sets].updated, 1);
        let after = words()?;
        assert_eq!(before.iter().zip(&after).filter(|(old, new)| old != new).count(), 1);
        Ok(())
    })
}

#[test]
fn backends_of_a_changed_set_are_written_elsewhere() -> Result<()> {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::open(&options(bpffs))?;
        let mut state = state();
        dataplane.apply(&state)?;
        let slots: Array<_, [u8; 16]> =
            Map::Array(MapData::from_pin(bpffs.join("hiveway/maps/BACKENDS"))?).try_into()?;
        let old: Vec<_> = (0..6).map(|slot| slots.get(&slot, 0)).collect::<Result<_, _>>()?;
        state.sets.insert(vip(2), backends(2));
        dataplane.apply(&state)?;
        let now: Vec<_> = (0..6).map(|slot| slots.get(&slot, 0)).collect::<Result<_, _>>()?;
        assert_eq!(old, now, "slots that a packet may be reading were overwritten");
        Ok(())
    })
}

#[test]
fn one_bad_entry_does_not_stop_the_rest() -> Result<()> {
    sandbox(|bpffs| {
        let mut dataplane = Dataplane::open(&options(bpffs))?;
        let mut state = state();
        state.sets.remove(&vip(4));
        let changes = dataplane.apply(&state)?;
        assert_eq!(changes.failures.len(), 1);
        assert_eq!(changes.failures[0].map, MapName::Endpoints);
        assert_eq!(changes.maps[&MapName::Endpoints].inserted, 3);
        Ok(())
    })
}

#[test]
fn a_second_agent_is_refused_and_told_who_has_it() -> Result<()> {
    sandbox(|bpffs| {
        let first = Dataplane::open(&options(bpffs))?;
        let Err(OpenError::Lock(LockError::Busy { path, pid })) = Dataplane::open(&options(bpffs)) else {
            bail!("opened twice")
        };
        assert_eq!((path, pid), (bpffs.join("hiveway"), Some(std::process::id())));
        let Err(TeardownError::Lock(LockError::Busy { .. })) = teardown(&bpffs.join("hiveway")) else {
            bail!("torn down under a running agent")
        };
        drop(first);
        Dataplane::open(&options(bpffs))?;
        Ok(())
    })
}

#[test]
fn other_file_systems_and_versions_are_refused_with_the_remedy() -> Result<()> {
    sandbox(|bpffs| {
        let elsewhere = tempfile::tempdir()?;
        let Err(OpenError::Preflight(error @ PreflightError::NoBpffs { .. })) =
            Dataplane::open(&options(elsewhere.path()))
        else {
            bail!("opened outside a BPF file system")
        };
        assert!(error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"), "{error}");
        assert_eq!(fs::read_dir(elsewhere.path())?.count(), 0, "something was left behind");

        Dataplane::open(&options(bpffs))?.apply(&state())?;
        let path = bpffs.join("hiveway/maps/CONFIG");
        let mut config: Array<_, [u32; size_of::<Config>() / 4]> = Map::Array(MapData::from_pin(&path)?).try_into()?;
        let good = config.get(&0, 0)?;
        let mut bad = good;
        bad[0] = 99;
        config.set(0, bad, 0)?;
        let Err(OpenError::Adopt(error @ AdoptError::Abi { found: 99, .. })) = Dataplane::open(&options(bpffs)) else {
            bail!("adopted maps of another version")
        };
        assert!(error.to_string().contains("hiveway teardown"), "{error}");
        config.set(0, good, 0)?;
        Dataplane::open(&options(bpffs))?;

        let path = bpffs.join("hiveway/maps/VTEPS");
        fs::remove_file(&path)?;
        HashMap::<MapData, [u8; 4], [u8; 8]>::create(16, 0)?;
        let other = MapData::from_id(foreign_map()?)?;
        other.pin(&path)?;
        let Err(OpenError::Adopt(error @ AdoptError::Definition { .. })) = Dataplane::open(&options(bpffs)) else {
            bail!("adopted a map of another shape")
        };
        assert!(error.to_string().contains("VTEPS") && error.to_string().contains("hiveway teardown"), "{error}");
        Ok(())
    })
}

/// A hash map that is none of ours, kept alive by this thread; returns its id.
fn foreign_map() -> Result<u32> {
    let map = HashMap::<MapData, [u8; 4], [u8; 8]>::create(16, 0)?;
    let id = aya::maps::loaded_maps()
        .filter_map(Result::ok)
        .filter(|info| info.name_as_str() == Some("standalone_hash") && info.value_size() == 8)
        .map(|info| info.id())
        .max();
    std::mem::forget(map);
    id.ok_or_else(|| anyhow::anyhow!("the map is not listed"))
}

#[test]
fn teardown_removes_ours_and_nothing_else() -> Result<()> {
    sandbox(|bpffs| {
        let root = bpffs.join("hiveway");
        veth("hwv0", "peer0")?;
        veth("hwv1", "peer1")?;
        let mut dataplane = Dataplane::open(&Options { tc_hook: TcHook::Clsact, ..options(bpffs) })?;
        dataplane.apply(&state())?;
        dataplane.attach(Program::FromGateway, "hwv1")?;
        drop(dataplane);
        let mut dataplane = Dataplane::open(&Options { tc_hook: TcHook::Tcx, ..options(bpffs) })?;
        dataplane.attach(Program::FromContainer, "hwv0")?;
        drop(dataplane);
        let foreign = root.join("maps/somebody_elses");
        MapData::from_id(foreign_map()?)?.pin(&foreign)?;

        let report = teardown(&root)?;
        assert_eq!(report.failures, [""; 0]);
        assert_eq!(report.detached.len(), 2);
        assert_eq!(report.maps, MapName::ALL);
        assert_eq!(report.foreign.first(), Some(&foreign));
        assert!(foreign.exists());
        assert_eq!((attached("hwv0")?.len(), filters("hwv1")?), (0, 0));

        fs::remove_file(&foreign)?;
        assert_eq!(teardown(&root)?.directories, [root.join("maps"), root.clone()]);
        assert!(!root.exists());
        assert!(teardown(&root)?.directories.is_empty());
        Ok(())
    })
}

#[test]
fn sweep_reads_tables_larger_than_one_batch() -> Result<()> {
    sandbox(|bpffs| {
        let dataplane = Dataplane::open(&options(bpffs))?;
        let mut connections = dataplane.connections()?;
        // None of them is a reply, so that each is a connection.
        let entries = 5000u32;
        let started = dataplane::monotonic_now();
        let mut table = flows(bpffs)?;
        for i in 0..entries {
            let mut key = [0u8; 20];
            key[..4].copy_from_slice(&NET);
            key[4..8].copy_from_slice(&i.to_be_bytes());
            key[16] = 6;
            let mut value = [0u8; 48];
            value[..8].copy_from_slice(&started.to_ne_bytes());
            value[8..16].copy_from_slice(&started.to_ne_bytes());
            value[16..24].copy_from_slice(&[if i % 2 == 0 { 1 } else { 2 }; 8]);
            table.insert(key, value, 0)?;
        }
        assert_eq!(connections.rows()?.len(), entries as usize);
        let live = [[1; 8]].into_iter().collect();
        let buffers = std::cell::Cell::new(0);
        let progress = || buffers.set(buffers.get() + 1);
        let report = connections.sweep(&live, started - TICK, &Timeouts::default(), &progress)?;
        // The lines are read and counted, too, and the map once more for what finds a line.
        assert!(buffers.get() >= 2 * entries / 1024, "it told of its progress {} times", buffers.get());
        assert_eq!((report.left.flows, report.left.flows_pending, report.removed.task_gone), (5000, 0, 0));
        assert!(table.keys().count() < 100, "nearly all are in lines");
        assert_eq!(connections.rows()?.len(), entries as usize);
        let report = connections.sweep(&live, started + TICK, &Timeouts::default(), &|| ())?;
        assert_eq!((report.left.flows, report.left.flows_pending, report.removed.task_gone), (2500, 0, 2500));
        assert!(connections.rows()?.iter().all(|row| row.tag == [1; 8]));
        Ok(())
    })
}

/// To so many nanoseconds it is known when a translated connection began.
const TICK: u64 = 1 << dataplane_common::line::TICK_BITS;

/// `FLOWS`.
fn flows(bpffs: &Path) -> Result<HashMap<MapData, [u8; 20], [u8; 48]>> {
    Ok(Map::HashMap(MapData::from_pin(bpffs.join("hiveway/maps/FLOWS"))?).try_into()?)
}

/// Room in the tables by default, in the order of `PerTable::named`.
const DEFAULT_ROOM: [u32; 6] = [1 << 20, 1 << 20, 1 << 14, 1 << 14, 1 << 14, 1 << 14];

#[test]
fn connection_tables_of_another_size_are_kept_and_others_refused() -> Result<()> {
    sandbox(|bpffs| {
        let sizes = Sizes { max_flows: 5000, max_pending: 3000 };
        let small = Options { sizes, ..options(bpffs) };
        let dataplane = Dataplane::open(&small)?;
        assert_eq!(dataplane.capacity().named().map(|(_, room)| room), [5000, 5000, 4096, 4096, 4096, 4096]);
        flows(bpffs)?.insert([0; 20], [0; 48], 0)?;
        drop(dataplane);

        // Connections are worth more than a map's size, which is not what bounds them.
        let dataplane = Dataplane::open(&options(bpffs))?;
        let room = dataplane.capacity().named().map(|(_, room)| room);
        // Its lines are there, and grow when they are needed.
        let wanted = [1 << 20, 1 << 20, 4096, 4096, 4096, 4096];
        assert_eq!((room, dataplane.connections()?.rows()?.len()), (wanted, 1));
        drop(dataplane);
        teardown(&bpffs.join("hiveway"))?;
        let room = Dataplane::open(&options(bpffs))?.capacity().named().map(|(_, room)| room);
        assert_eq!(room, DEFAULT_ROOM);
        Ok(())
    })
}

/// Places in a map, or how many maps it holds.
fn places(bpffs: &Path, map: MapName) -> Result<usize> {
    let map = MapData::from_pin(bpffs.join("hiveway/maps").join(map.name()))?;
    let places = map.info()?.max_entries();
    if map.info()?.map_type()? != MapType::ArrayOfMaps {
        return Ok(places as usize);
    }
    let maps: ArrayOfMaps<MapData> = Map::from_map_data(map)?.try_into()?;
    Ok((0..places).filter(|nth| maps.get(nth, 0).is_ok()).count())
}

/// Room of each table's own maps: its lines in MiB, and its overflow.
fn tables(bpffs: &Path) -> Result<[[usize; 2]; 2]> {
    let of = |lines, overflow| anyhow::Ok([places(bpffs, lines)?, places(bpffs, overflow)?]);
    Ok([of(MapName::AffinitySegments, MapName::Affinity)?, of(MapName::FlowsSegments, MapName::Flows)?])
}

#[test]
fn an_idle_data_planes_tables_of_connections_are_small() -> Result<()> {
    sandbox(|bpffs| {
        let dataplane = Dataplane::open(&options(bpffs))?;
        // A MiB for each half, and twice as much for each overflow: 16 bytes a place.
        assert_eq!(tables(bpffs)?, [[2, 1 << 17]; 2]);
        assert!(!dataplane.connections()?.grow(&|| ())?, "nothing is there that would need more");
        drop(dataplane);
        drop(Dataplane::open(&options(bpffs))?);
        assert_eq!(tables(bpffs)?, [[2, 1 << 17]; 2], "the next agent finds them so");
        Ok(())
    })
}

/// The version before made the overflow with `--max-flows` places.
#[test]
fn an_overflow_of_the_version_before_is_kept_as_it_is() -> Result<()> {
    const BEFORE: u32 = 1 << 19;
    sandbox(|bpffs| {
        let sizes = Sizes { max_flows: BEFORE * 8, ..Sizes::default() };
        drop(Dataplane::open(&Options { sizes, ..options(bpffs) })?);
        let mut map = flows(bpffs)?;
        let now = dataplane::monotonic_now().to_ne_bytes();
        let mut value = [0u8; 48];
        value[..24].copy_from_slice(&[now, now, [1; 8]].concat());
        map.insert([6; 20], value, 0)?;

        let dataplane = Dataplane::open(&options(bpffs))?;
        assert_eq!(tables(bpffs)?, [[2, BEFORE as usize]; 2]);
        assert_eq!(dataplane.capacity().named().map(|(_, room)| room), DEFAULT_ROOM);
        assert_eq!(dataplane.connections()?.rows()?.len(), 1);
        // It moves to a line, and is the same one.
        let report =
            dataplane.connections()?.sweep(&[[1; 8]].into_iter().collect(), 0, &Timeouts::default(), &|| ())?;
        assert_eq!((map.keys().count(), report.left.flows, dataplane.connections()?.rows()?.len()), (0, 1, 1));
        drop(dataplane);

        // With room for fewer, fewer are established: it does not go by the map.
        let sizes = Sizes { max_flows: 2048, ..Sizes::default() };
        let dataplane = Dataplane::open(&Options { sizes, ..options(bpffs) })?;
        assert_eq!((dataplane.capacity().flows, dataplane.capacity().affinity), (2048, 2048));
        assert_eq!((tables(bpffs)?[0][1], dataplane.connections()?.rows()?.len()), (BEFORE as usize, 1));
        Ok(())
    })
}

#[test]
fn the_verifier_gives_figures_for_every_program() -> Result<()> {
    let figures = dataplane::verify()?;
    assert_eq!(figures.iter().map(|f| f.program).collect::<Vec<_>>(), Program::ALL);
    for figure in figures {
        // What only calls on, for links without an Ethernet header, has little of its own that is reached.
        assert!(figure.length > 10 && figure.instructions >= figure.length as u64 / 8, "{figure:?}");
        assert!(figure.stack > 0 && figure.peak_states > 0, "{figure:?}");
        assert!(figure.instructions < 1_000_000, "{figure:?}");
    }
    Ok(())
}

/// How many endpoints the pinned map holds.
fn endpoints(bpffs: &Path) -> Result<usize> {
    let map: HashMap<_, [u8; size_of::<EndpointKey>()], [u8; size_of::<Endpoint>()]> =
        Map::HashMap(MapData::from_pin(bpffs.join("hiveway/maps/ENDPOINTS"))?).try_into()?;
    Ok(map.keys().count())
}

#[test]
fn pins_that_are_gone_are_made_anew() -> Result<()> {
    use nix::mount::{MntFlags, umount2};
    sandbox(|bpffs| {
        veth("v0", "v1")?;
        let mut dataplane = Dataplane::open(&options(bpffs))?;
        dataplane.apply(&state())?;
        dataplane.attach(Program::FromContainer, "v0")?;
        assert!(!dataplane.mend_pins()?.any(), "nothing is wrong");
        let (before, links) = (endpoints(bpffs)?, attached("v0")?);

        fs::remove_file(bpffs.join("hiveway/maps/FLOWS"))?;
        assert_eq!(dataplane.mend_pins()?.maps, 1);
        fs::remove_dir_all(bpffs.join("hiveway"))?;
        let mended = dataplane.mend_pins()?;
        assert_eq!((mended.maps, mended.links, mended.mounted), (MapName::ALL.len(), 1, false));
        assert_eq!(attached("v0")?, links, "the same link, without a gap");
        assert_eq!(dataplane.attach(Program::FromContainer, "v0")?, Attached::Unchanged);
        assert_eq!((endpoints(bpffs)?, attached("v0")?.len()), (before, 1));

        // Gone with its file system, which the agent's lock keeps: the links have not ended.
        umount2(bpffs, MntFlags::MNT_DETACH)?;
        assert!(!bpffs.join("hiveway").exists());
        let mended = dataplane.mend_pins()?;
        assert_eq!((mended.maps, mended.links, mended.mounted), (MapName::ALL.len(), 1, true));
        assert_eq!((endpoints(bpffs)?, attached("v0")?), (before, links), "the same link, without a gap");
        assert_eq!(dataplane.attach(Program::FromContainer, "v0")?, Attached::Unchanged);
        assert_eq!(attached("v0")?.len(), 1, "not twice");
        // One that nobody holds any more is attached anew.
        fs::remove_file(bpffs.join("hiveway/links/from_container@v0"))?;
        assert_eq!(dataplane.mend_pins()?.links, 1);
        assert!(!dataplane.mend_pins()?.any());
        let other = Dataplane::open(&options(bpffs));
        assert!(matches!(other, Err(OpenError::Lock(LockError::Busy { .. }))), "it is still locked");
        drop(dataplane);
        let mut next = Dataplane::open(&options(bpffs))?;
        next.attach(Program::FromContainer, "v0")?;
        assert_eq!((endpoints(bpffs)?, attached("v0")?.len()), (before, 1), "the next agent takes over");
        Ok(())
    })
}

/// A pin that goes while a round is under way, behind the look at the pins and before what is not needed is detached.
#[test]
fn a_pin_that_goes_during_a_round_takes_no_link_along() -> Result<()> {
    sandbox(|bpffs| {
        veth("v0", "v1")?;
        veth("w0", "w1")?;
        let mut dataplane = Dataplane::open(&options(bpffs))?;
        let pin = |ifname: &str| bpffs.join(format!("hiveway/links/from_client@{ifname}"));
        let keep = |names: &[&str]| names.iter().map(|name| (Program::FromClient, (*name).to_owned())).collect();
        for ifname in ["v0", "w0"] {
            dataplane.attach(Program::FromClient, ifname)?;
        }
        let links = attached("v0")?;
        fs::remove_file(pin("v0"))?;
        let detached = dataplane.detach_all_except(&keep(&["v0"]));
        assert_eq!((detached.detached.len(), detached.failures.len()), (1, 0), "w0 is detached: {detached:?}");
        assert_eq!((attached("v0")?, attached("w0")?.len()), (links.clone(), 0), "v0 has lost its link");
        assert_eq!(dataplane.mend_pins()?.links, 1);
        assert_eq!(dataplane.attach(Program::FromClient, "v0")?, Attached::Unchanged);
        assert_eq!(attached("v0")?, links, "the same link, without a gap");

        // Under its device's new name, and no other, also when that is the name of a device that comes later.
        run("ip link set v0 down")?;
        run("ip link set v0 name x0")?;
        assert_eq!(dataplane.attach(Program::FromClient, "x0")?, Attached::Unchanged);
        assert!(!dataplane.mend_pins()?.any() && !pin("v0").exists(), "the former name was pinned anew");
        fs::remove_file(pin("x0"))?;
        assert!(dataplane.detach_all_except(&keep(&["x0"])).detached.is_empty());
        assert_eq!((dataplane.mend_pins()?.links, attached("x0")?), (1, links));
        assert!(pin("x0").exists() && !pin("v0").exists());

        // What was not wanted any more when its pin went is detached all the same, in the next round.
        fs::remove_file(pin("x0"))?;
        assert!(dataplane.detach_all_except(&keep(&[])).detached.is_empty());
        assert_eq!(dataplane.mend_pins()?.links, 1);
        assert_eq!(dataplane.detach_all_except(&keep(&[])).detached.len(), 1);
        assert!(attached("x0")?.is_empty());
        assert!(!dataplane.mend_pins()?.any());
        Ok(())
    })
}
