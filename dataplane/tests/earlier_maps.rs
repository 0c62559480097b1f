//! Connections in maps of earlier versions: they are taken over, and the maps go. Needs root.

mod support;

use std::{collections::BTreeSet, path::Path};

use anyhow::Result;
use aya::maps::{Array, HashMap, Map, MapData};
use dataplane::{Connections, Dataplane, Live, Timeouts, teardown};
use dataplane_common::line::{head, state};
use support::{attached::options, sandbox::sandbox};

/// Its programs kept clients' pending connections in LRU hashes, one for TCP and one for all else.
#[test]
fn clients_pending_with_an_earlier_version_are_taken_over_and_its_maps_go() -> Result<()> {
    sandbox(|bpffs| {
        let dataplane = Dataplane::open(&options(bpffs))?;
        let started = dataplane::monotonic_now();
        let maps = bpffs.join("hiveway/maps");
        let earlier = [("AFFINITY_PENDING", 6), ("AFFINITY_PENDING_OTHER", 17)];
        for (name, proto) in earlier {
            let mut table = pinned_lru::<16, 48>(&maps.join(name))?;
            for client in 1..=100u8 {
                let (mut key, mut value) = ([0u8; 16], [0u8; 48]);
                key[3] = client;
                key[12] = proto;
                value[..8].copy_from_slice(&started.to_ne_bytes());
                value[8..16].copy_from_slice(&started.to_ne_bytes());
                value[16..24].copy_from_slice(&[7; 8]);
                table.insert(key, value, 0)?;
            }
        }
        drop(dataplane);
        let dataplane = Dataplane::open(&options(bpffs))?;
        let mut connections = dataplane.connections()?;
        assert_eq!(connections.rows()?.iter().filter(|row| row.tag == [7; 8]).count(), 200);
        // What the old programs enter until the new ones are attached.
        let mut late = [0; 48];
        late[..8].copy_from_slice(&dataplane::monotonic_now().to_ne_bytes());
        late[8..16].copy_from_slice(&dataplane::monotonic_now().to_ne_bytes());
        let key = [9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0];
        pinned::<16, 48>(&maps.join("AFFINITY_PENDING"))?.insert(key, late, 0)?;
        let mut sweep = || -> Result<_> {
            let report = connections.sweep(&Live::default(), started - 1, &Timeouts::default(), &|| ())?;
            Ok((report.left.affinity_pending, report.left.affinity_pending_other))
        };
        assert_eq!(sweep()?, (101, 100));
        assert!(earlier.iter().all(|(name, _)| maps.join(name).exists()), "somebody was there a moment ago");
        // Entries are touched every half second, so a second is taken for a moment.
        std::thread::sleep(std::time::Duration::from_millis(1200));
        assert_eq!((sweep()?, sweep()?), ((101, 100), (101, 100)));
        assert!(earlier.iter().all(|(name, _)| !maps.join(name).exists()), "they are gone");
        drop((connections, dataplane));
        let connections = Dataplane::open(&options(bpffs))?.connections()?;
        assert_eq!(connections.rows()?.len(), 201, "the lines are adopted");
        drop(connections);
        pinned_lru::<16, 48>(&maps.join("AFFINITY_PENDING"))?;
        teardown(&bpffs.join("hiveway"))?;
        assert!(!maps.exists(), "teardown knows them");
        Ok(())
    })
}

/// Between the two, its programs kept them in lines of one array.
#[test]
fn clients_pending_in_lines_of_one_array_are_taken_over_and_it_goes() -> Result<()> {
    sandbox(|bpffs| {
        drop(Dataplane::open(&options(bpffs))?);
        let started = dataplane::monotonic_now();
        let path = bpffs.join("hiveway/maps/AFFINITY_LINES");
        let mut earlier = pinned_lines(&path)?;
        // A line for each, of a bucket's four; the first bucket has the head in its place.
        let entry = |client: u8, proto: u8| {
            let now = dataplane::monotonic_now();
            let key = [u64::from(client) << 24, u64::from(proto) << 32 | state::USED | state::ONE_CLAIM];
            [key[0], key[1], now, now, u64::from_ne_bytes([7; 8]), 0, 0, 0]
        };
        let mut bucket = [[0; 8]; 4];
        bucket[0] = [0x5eed, 4, 0, 0, 0, 0, 0, 0];
        earlier.set(0, bucket, 0)?;
        let proto = |number: u32| if number <= 4 { 6 } else { 17 };
        for number in 1..=8u32 {
            let mut bucket = [entry(number as u8, proto(number)); 4];
            bucket[1] = entry(100 + number as u8, proto(number));
            // Nothing, and something that is being written.
            bucket[2][1] &= state::VERSION;
            bucket[3][1] = state::CLAIMED;
            earlier.set(number, bucket, 0)?;
        }
        let dataplane = Dataplane::open(&options(bpffs))?;
        let mut connections = dataplane.connections()?;
        assert_eq!(connections.rows()?.iter().filter(|row| row.tag == [7; 8]).count(), 16);
        let establishes = || establishes(&bpffs.join("hiveway/maps/AFFINITY_HEAD"));
        assert_eq!(establishes()?, 0, "its programs look for established ones in `AFFINITY` only");
        // What the old programs enter until the new ones are attached.
        let mut bucket = earlier.get(&3, 0)?;
        bucket[2] = entry(200, 6);
        earlier.set(3, bucket, 0)?;
        let mut sweep = || -> Result<_> {
            let report = connections.sweep(&Live::default(), started - 1, &Timeouts::default(), &|| ())?;
            Ok((report.left.affinity_pending, report.left.affinity_pending_other))
        };
        assert_eq!((sweep()?, path.exists()), ((9, 8), true), "somebody was there a moment ago");
        std::thread::sleep(std::time::Duration::from_millis(1200));
        // And what they have established.
        let mut established = pinned::<16, 48>(&bpffs.join("hiveway/maps/AFFINITY"))?;
        let mut value = [0; 48];
        for at in [0, 8] {
            value[at..at + 8].copy_from_slice(&dataplane::monotonic_now().to_ne_bytes());
        }
        established.insert([8, 8, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0], value, 0)?;
        assert_eq!((sweep()?, sweep()?, path.exists()), ((9, 8), (9, 8), false));
        assert_eq!((establishes()?, established.keys().count()), (1, 0), "it is in a line now");
        assert_eq!(connections.rows()?.iter().filter(|row| row.client.ip().octets() == [8; 4]).count(), 1);
        pinned_lines(&path)?;
        drop((connections, dataplane));
        teardown(&bpffs.join("hiveway"))?;
        assert!(!path.exists(), "teardown knows it");
        Ok(())
    })
}

/// Its programs kept translated connections that had proved nothing in LRU hashes, one for TCP and one for all else
/// (those of an earlier one in the first only), and established ones in `FLOWS`.
#[test]
fn translated_connections_of_an_earlier_version_are_taken_over_and_its_maps_go() -> Result<()> {
    sandbox(|bpffs| {
        drop(Dataplane::open(&options(bpffs))?);
        let started = dataplane::monotonic_now();
        let maps = bpffs.join("hiveway/maps");
        let earlier = ["FLOWS_PENDING", "FLOWS_PENDING_OTHER"].map(|name| maps.join(name));
        // Forward entries: each is a connection.
        let entry = |client: u8, proto: u8| {
            let (mut key, mut value) = ([0u8; 20], [0u8; 48]);
            key[..8].copy_from_slice(&[0, 0, 16, 1, 10, 0, 1, client]);
            key[16] = proto;
            for at in [0, 8] {
                value[at..at + 8].copy_from_slice(&dataplane::monotonic_now().to_ne_bytes());
            }
            value[16..24].copy_from_slice(&[7; 8]);
            (key, value)
        };
        let mut tables = [pinned_lru::<20, 48>(&earlier[0])?, pinned_lru::<20, 48>(&earlier[1])?];
        for (table, client, proto) in [(0, 1, 6), (0, 2, 6), (0, 3, 132), (1, 4, 17), (1, 5, 17)] {
            let (key, value) = entry(client, proto);
            tables[table].insert(key, value, 0)?;
        }
        let mut established =
            HashMap::<_, [u8; 20], [u8; 48]>::try_from(Map::HashMap(MapData::from_pin(maps.join("FLOWS"))?))?;
        let (key, value) = entry(6, 6);
        established.insert(key, value, 0)?;

        let dataplane = Dataplane::open(&options(bpffs))?;
        let mut connections = dataplane.connections()?;
        let clients = |connections: &Connections| -> Result<Vec<u8>> {
            Ok(connections
                .rows()?
                .iter()
                .map(|row| row.client.ip().octets()[3])
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect())
        };
        assert_eq!(clients(&connections)?, [1, 2, 3, 4, 5, 6]);
        let establishes = || establishes(&maps.join("FLOWS_HEAD"));
        assert_eq!(establishes()?, 0, "its programs look for established ones in `FLOWS` only");
        // What they enter until the new ones are attached, and what they establish.
        let (late, value) = entry(7, 6);
        tables[0].insert(late, value, 0)?;
        let (proved, _) = entry(2, 6);
        let value = tables[0].get(&proved, 0)?;
        established.insert(proved, value, 0)?;
        tables[0].remove(&proved)?;
        let mut sweep = || -> Result<_> {
            let left = connections.sweep(&Live::default(), started - TICK, &Timeouts::default(), &|| ())?.left;
            Ok((left.flows, left.flows_pending, left.flows_pending_other))
        };
        assert_eq!(sweep()?, (2, 2, 3));
        assert!(earlier.iter().all(|path| path.exists()), "somebody was there a moment ago");
        assert_eq!(established.keys().count(), 2, "they still look for them there");
        // Entries are touched every half second, so a second is taken for a moment.
        std::thread::sleep(std::time::Duration::from_millis(1200));
        assert_eq!((sweep()?, sweep()?), ((2, 2, 3), (2, 2, 3)));
        assert!(earlier.iter().all(|path| !path.exists()), "they are gone");
        assert_eq!((establishes()?, established.keys().count()), (1, 0), "they are in lines now");
        assert_eq!(clients(&connections)?, [1, 2, 3, 4, 5, 6, 7]);
        drop((connections, dataplane));
        let connections = Dataplane::open(&options(bpffs))?.connections()?;
        assert_eq!(clients(&connections)?, [1, 2, 3, 4, 5, 6, 7], "the lines are adopted");
        Ok(())
    })
}

/// To so many nanoseconds it is known when a translated connection began.
const TICK: u64 = 1 << dataplane_common::line::TICK_BITS;

/// Whether programs establish connections in their lines, as this head says.
fn establishes(head: &Path) -> Result<u64> {
    let head = Map::Array(MapData::from_pin(head)?);
    let words: [u64; head::WORDS] = Array::<_, [u64; head::WORDS]>::try_from(head)?.get(&0, 0)?;
    Ok(words[head::ESTABLISHES])
}

/// A new LRU hash, pinned.
fn pinned_lru<const KEY: usize, const VALUE: usize>(path: &Path) -> Result<HashMap<MapData, [u8; KEY], [u8; VALUE]>> {
    const LRU_HASH: u32 = 9;
    pin_new(&[LRU_HASH, KEY as u32, VALUE as u32, 1024, 0], path)?;
    pinned(path)
}

/// An array as `AFFINITY_LINES` was, of nine buckets.
fn pinned_lines(path: &Path) -> Result<Array<MapData, [[u64; 8]; 4]>> {
    const ARRAY: u32 = 2;
    const BPF_F_MMAPABLE: u32 = 1 << 10;
    pin_new(&[ARRAY, 4, 256, 9, BPF_F_MMAPABLE], path)?;
    Ok(Map::Array(MapData::from_pin(path)?).try_into()?)
}

/// A new map, pinned: type, sizes of key and value, entries, flags.
fn pin_new(definition: &[u32; 5], path: &Path) -> Result<()> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_OBJ_PIN: libc::c_int = 6;
    let bpf = |command: libc::c_int, words: &[u32]| {
        // SAFETY: the kernel reads so many bytes of the attributes, as <linux/bpf.h> defines them.
        let got = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words)) };
        if got < 0 { Err(std::io::Error::last_os_error()) } else { Ok(got as u32) }
    };
    let fd = bpf(BPF_MAP_CREATE, definition)?;
    let name = std::ffi::CString::new(path.to_str().unwrap())?;
    let at = name.as_ptr() as u64;
    bpf(BPF_OBJ_PIN, &[at as u32, (at >> 32) as u32, fd, 0])?;
    // SAFETY: ours, and not used any more: the pin holds the map.
    unsafe { libc::close(fd as libc::c_int) };
    Ok(())
}

fn pinned<const KEY: usize, const VALUE: usize>(path: &Path) -> Result<HashMap<MapData, [u8; KEY], [u8; VALUE]>> {
    Ok(Map::LruHashMap(MapData::from_pin(path)?).try_into()?)
}
