//! Clients' connections that prove themselves where the lines around them are full of established ones: they go to map
//! `AFFINITY`, and lose nothing by it but XDP.

mod support;

use std::{collections::HashSet, thread::sleep, time::Duration};

use anyhow::{Context as _, Result};
use dataplane::{Timeouts, testing::Decision::Pass};
use dataplane_common::{
    addr::Tag,
    counter::Counter,
    flow::{Affinity, AffinityKey, flag},
};
use support::{
    mesh::*,
    packets::{L4, ip, tcp},
    world::*,
    xdp::*,
};

/// More than the lines of one half hold, and fewer than they and `AFFINITY` do.
const OTHERS: u32 = 2600;

fn full(test: impl FnOnce(&mut World) -> Result<()> + Send + 'static) -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
        handshake(world, 999)?;
        let entry = world.harness.established_affinity()?.into_values().next().context("the first one")?;
        for number in 0..OTHERS {
            let [_, _, a, b] = number.to_be_bytes();
            let key = AffinityKey::new(([10, 9, a, b], [1, 1]), (VTEP, PUBLISHED.to_be_bytes()), 6);
            world.harness.put_affinity(key, entry)?;
        }
        assert!(!world.harness.spilled_affinity()?.is_empty());
        test(world)
    })
}

fn run(world: &mut World, what: &'static str, packet: Vec<u8>) -> Result<Vec<Counter>> {
    let outcome = underlay(world, what, packet, Pass).run(&mut world.harness).context(what)?;
    Ok(outcome.counters.into_keys().collect())
}

fn reply(l4: &L4) -> Vec<u8> {
    returning(REMOTE1.vtep, &REMOTE1, &ip(VTEP, CLIENT), l4)
}

fn handshake(world: &mut World, port: u16) -> Result<()> {
    world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
    run(world, "SYN", from_client(&tcp(port, PUBLISHED, "S")))?;
    run(world, "SYN-ACK", reply(&tcp(PUBLISHED, port, "SA")))?;
    run(world, "ACK", from_client(&tcp(port, PUBLISHED, "K")))?;
    Ok(())
}

fn spilled(world: &World, port: u16) -> Result<Option<Affinity>> {
    let key = AffinityKey::new((CLIENT, port.to_be_bytes()), (VTEP, PUBLISHED.to_be_bytes()), 6);
    Ok(world.harness.spilled_affinity()?.get(&key).copied())
}

/// Connects from port after port until one has found no room in the lines.
fn spill(world: &mut World) -> Result<u16> {
    for port in 1000..1100 {
        let counted = world.harness.counted_affinity()[0];
        handshake(world, port)?;
        assert_eq!(world.harness.counted_affinity()[0], counted + 1, "wherever it is");
        if spilled(world, port)?.is_some() {
            return Ok(port);
        }
    }
    anyhow::bail!("they all found room")
}

fn everybody() -> HashSet<Tag> {
    [LOCAL1.tag, LOCAL2.tag, REMOTE1.tag, REMOTE2.tag].into()
}

#[test]
fn it_goes_on_with_its_backend_both_ways_until_its_end() -> Result<()> {
    full(|world| {
        let port = spill(world)?;
        assert!(world.harness.pending_affinity()?.keys().all(|key| key.client_port != port.to_be_bytes()), "twice");
        let data = from_client(&tcp(port, PUBLISHED, "PA"));
        passes(world, "left to TC", &data, world.dev.underlay)?;
        passes(world, "answer left to TC", &reply(&tcp(PUBLISHED, port, "PA")), world.dev.underlay)?;
        assert_eq!(run(world, "data", data)?, [Counter::Encapsulated, Counter::MeshForward]);
        let answer = run(world, "answer", reply(&tcp(PUBLISHED, port, "PA")))?;
        assert!(answer.contains(&Counter::MeshReply), "{answer:?}");

        // The client closes, the backend acknowledges that and closes, too.
        run(world, "FIN", from_client(&tcp(port, PUBLISHED, "FK")))?;
        assert!(spilled(world, port)?.is_some_and(|known| known.flags & flag::FIN != 0));
        run(world, "RST", reply(&tcp(PUBLISHED, port, "R")))?;
        assert!(spilled(world, port)?.is_some_and(|known| known.flags & flag::ENDED != 0));
        Ok(())
    })
}

#[test]
fn another_one_from_the_same_port_takes_its_place() -> Result<()> {
    full(|world| {
        let port = spill(world)?;
        run(world, "answer", reply(&tcp(PUBLISHED, port, "PA")))?;
        run(world, "RST", reply(&tcp(PUBLISHED, port, "R")))?;
        let counted = world.harness.counted_affinity()[0];
        world.harness.set_cursor(&port_set(6, PUBLISHED), 2)?;
        // Behind the former one's numbers.
        let mut again = from_client(&tcp(port, PUBLISHED, "S"));
        again[38..42].copy_from_slice(&0x2000_0000u32.to_be_bytes());
        let counters = run(world, "SYN", again)?;
        assert!(counters.contains(&Counter::MeshFlow), "{counters:?}");
        assert_eq!((spilled(world, port)?, world.harness.counted_affinity()[0]), (None, counted - 1));
        let pending = world.harness.pending_affinity()?;
        let known = pending.iter().find(|(key, _)| key.client_port == port.to_be_bytes()).context("the new one")?;
        assert_eq!(known.1.tag, REMOTE2.tag);
        Ok(())
    })
}

#[test]
fn the_sweep_counts_it_and_lets_the_programs_look_there_only_while_there_is_something() -> Result<()> {
    full(|world| {
        let port = spill(world)?;
        let report = world.harness.sweep(&everybody(), &Timeouts::default())?;
        let established = world.harness.established_affinity()?.len();
        assert_eq!((report.left.affinity, world.harness.counted_affinity()[0]), (established, established as i64));
        assert!(world.harness.looks_into_affinity());
        let rows = world.harness.rows()?;
        assert_eq!(rows.iter().filter(|row| row.client.port() == port).count(), 1);

        let entry = spilled(world, port)?.context("still there")?;
        let short = Timeouts { tcp_established: Duration::from_millis(20), ..Timeouts::default() };
        sleep(Duration::from_millis(100));
        let report = world.harness.sweep(&everybody(), &short)?;
        assert_eq!((report.left.affinity, world.harness.counted_affinity()[0]), (0, 0));
        assert!(!world.harness.looks_into_affinity());

        // Programs of an earlier version do not say that they have put something there.
        let key = AffinityKey::new((CLIENT, port.to_be_bytes()), (VTEP, PUBLISHED.to_be_bytes()), 6);
        world.harness.put_spilled_affinity(key, entry)?;
        world.harness.look_into_affinity();
        let counters = run(world, "data", from_client(&tcp(port, PUBLISHED, "PA")))?;
        assert_eq!(counters, [Counter::Encapsulated, Counter::MeshForward]);
        assert!(spilled(world, port)?.is_some());
        // There is room for it by now.
        let report = world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!((report.left.affinity, world.harness.spilled_affinity()?.len()), (1, 0));
        assert_eq!(world.harness.established_affinity()?[&key].created, entry.created);
        // In both: the line counts.
        world.harness.put_spilled_affinity(key, Affinity { tag: [9; 8], ..entry })?;
        let report = world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!((report.left.affinity, world.harness.spilled_affinity()?.len()), (1, 0));
        assert_eq!(world.harness.established_affinity()?[&key].tag, entry.tag);
        world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert!(!world.harness.looks_into_affinity());
        Ok(())
    })
}
