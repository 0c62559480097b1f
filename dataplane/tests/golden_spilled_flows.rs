//! Translated connections that prove themselves where the lines around them are full of established ones: they go to
//! map `FLOWS`, and lose nothing by it.

mod support;

use std::{collections::HashSet, thread::sleep, time::Duration};

use anyhow::Result;
use dataplane::{
    Timeouts,
    testing::Decision::{Pass, Peer},
};
use dataplane_common::{
    addr::Tag,
    counter::Counter,
    flow::{Flow, FlowKey, flag},
    line::TICK_BITS,
};
use support::{
    packets::{frame, ip, tcp},
    vip::*,
    world::*,
};

/// More than the lines of one half hold, and fewer than they and `FLOWS` do.
const OTHERS: u32 = 2600;

/// The two keys of LOCAL1's connection from this port, which LOCAL2 serves.
fn keys(port: u16) -> [FlowKey; 2] {
    let client = (LOCAL1.ip, port.to_be_bytes());
    [(client, (VIP, [0, 80])), ((LOCAL2.ip, [0, 80]), client)].map(|(from, to)| FlowKey::new(net(APP), from, to, 6))
}

fn full(test: impl FnOnce(&mut World) -> Result<()> + Send + 'static) -> Result<()> {
    world(|world| {
        handshake(world, 999)?;
        let flow = world.harness.established_flows()?[&keys(999)[0]];
        for number in 0..OTHERS {
            let [_, _, a, b] = number.to_be_bytes();
            let key = FlowKey::new(net(APP), ([10, 9, a, b], [1, 1]), (VIP, [0, 80]), 6);
            world.harness.put_flow(key, flow)?;
        }
        assert!(!world.harness.spilled_flows()?.is_empty());
        test(world)
    })
}

fn handshake(world: &mut World, port: u16) -> Result<()> {
    world.harness.set_cursor(&vip_set(VIP), 0)?;
    says(world, &tcp(port, 80, "S"))?;
    answers(world, &tcp(80, port, "SA"))?;
    says(world, &tcp(port, 80, "K"))
}

/// What of the connection from this port is in `FLOWS`, the forward entry first.
fn spilled(world: &World, port: u16) -> Result<[Option<Flow>; 2]> {
    let flows = world.harness.spilled_flows()?;
    Ok(keys(port).map(|key| flows.get(&key).copied()))
}

/// Connects from port after port until one has found no room in the lines for either entry.
fn spill(world: &mut World) -> Result<u16> {
    for port in 1000..1400 {
        let counted = world.harness.counted_flows()[0];
        handshake(world, port)?;
        assert_eq!(world.harness.counted_flows()[0], counted + 2, "wherever they are");
        if spilled(world, port)?.iter().all(Option::is_some) {
            return Ok(port);
        }
    }
    anyhow::bail!("they all found room")
}

/// Data of both ends is translated.
fn goes_on(world: &mut World, port: u16) -> Result<()> {
    goes_to(world, "data", VIP, &LOCAL2, &tcp(port, 80, "PA"), false)?;
    let answer = frame(mac(LOCAL2.ip), STALE, &ip(LOCAL2.ip, LOCAL1.ip), &tcp(80, port, "PA"));
    let out = frame(mac(LOCAL2.ip), mac(LOCAL1.ip), &ip(VIP, LOCAL1.ip), &tcp(80, port, "PA"));
    support::golden::golden("answer", dataplane::Program::FromContainer, world.dev.veth2, answer, Peer(world.dev.veth1))
        .counts(Counter::Delivered, out.len())
        .becomes(out)
        .check(&mut world.harness)
}

fn everybody() -> HashSet<Tag> {
    [LOCAL1.tag, LOCAL2.tag, REMOTE1.tag, REMOTE2.tag].into()
}

#[test]
fn it_goes_on_with_its_backend_both_ways_until_its_end() -> Result<()> {
    full(|world| {
        let port = spill(world)?;
        assert!(keys(port).iter().all(|key| !world.harness.pending_flows().unwrap().contains_key(key)), "twice");
        goes_on(world, port)?;
        let flags = |world: &World| -> Result<u8> {
            Ok(spilled(world, port)?.iter().flatten().fold(0, |all, flow| all | flow.flags))
        };
        says(world, &tcp(port, 80, "FK"))?;
        assert!(flags(world)? & (flag::FIN | flag::ENDED) == flag::FIN, "{:#x}", flags(world)?);
        answers(world, &tcp(80, port, "R"))?;
        assert!(flags(world)? & flag::ENDED != 0, "{:#x}", flags(world)?);
        Ok(())
    })
}

#[test]
fn another_one_from_the_same_port_takes_its_place() -> Result<()> {
    full(|world| {
        let port = spill(world)?;
        answers(world, &tcp(80, port, "PA"))?;
        answers(world, &tcp(80, port, "R"))?;
        let counted = world.harness.counted_flows()[0];
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        // Behind the former one's numbers.
        let mut again = sent(VIP, &tcp(port, 80, "S"));
        again[38..42].copy_from_slice(&0x2000_0000u32.to_be_bytes());
        let outcome = case(world, "SYN", again, Pass).run(&mut world.harness)?;
        assert!(outcome.counters.contains_key(&Counter::VipFlow), "{outcome:?}");
        // The reply entry keeps its key, for its backend may be in TIME-WAIT.
        let [forward, reply] = spilled(world, port)?;
        assert_eq!((forward, world.harness.counted_flows()[0]), (None, counted - 1));
        assert!(reply.is_some_and(|reply| reply.flags & flag::ENDED != 0));
        assert_eq!(world.harness.pending_flows()?[&keys(port)[0]].tag, REMOTE1.tag);
        Ok(())
    })
}

#[test]
fn the_sweep_counts_it_and_lets_the_programs_look_there_only_while_there_is_something() -> Result<()> {
    full(|world| {
        let port = spill(world)?;
        let report = world.harness.sweep(&everybody(), &Timeouts::default())?;
        let established = world.harness.established_flows()?.len();
        assert_eq!((report.left.flows, world.harness.counted_flows()[0]), (established, established as i64));
        assert!(world.harness.looks_into_flows());
        let rows = world.harness.rows()?;
        assert_eq!(rows.iter().filter(|row| row.client.port() == port).count(), 1);
        goes_on(world, port)?;

        let [forward, reply] = spilled(world, port)?.map(Option::unwrap);
        let short = Timeouts { tcp_established: Duration::from_millis(20), ..Timeouts::default() };
        sleep(Duration::from_millis(100));
        let report = world.harness.sweep(&everybody(), &short)?;
        assert_eq!((report.left.flows, world.harness.counted_flows()[0]), (0, 0));
        assert!(!world.harness.looks_into_flows());

        // Programs of an earlier version do not say that they have put something there.
        let [forward_key, reply_key] = keys(port);
        world.harness.put_spilled_flow(forward_key, forward)?;
        world.harness.put_spilled_flow(reply_key, reply)?;
        world.harness.look_into_flows();
        goes_on(world, port)?;
        assert_eq!(world.harness.flows()?.len(), 2, "found where they are");
        assert!(spilled(world, port)?.iter().all(Option::is_some));
        // There is room for them by now.
        let report = world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!((report.left.flows, world.harness.spilled_flows()?.len()), (2, 0));
        assert_eq!(world.harness.established_flows()?[&forward_key].created, forward.created >> TICK_BITS << TICK_BITS);
        goes_on(world, port)?;
        // In both: the line counts.
        world.harness.put_spilled_flow(forward_key, Flow { tag: [9; 8], ..forward })?;
        let report = world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!((report.left.flows, world.harness.spilled_flows()?.len()), (2, 0));
        assert_eq!(world.harness.established_flows()?[&forward_key].tag, forward.tag);
        world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert!(!world.harness.looks_into_flows());
        Ok(())
    })
}

/// What waits for a proof in a line while an earlier version's program establishes it in `FLOWS`.
#[test]
fn what_is_pending_in_a_line_and_established_there_is_established() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        says(world, &tcp(1000, 80, "S"))?;
        for (key, flow) in world.harness.pending_flows()? {
            // They tell the time exactly.
            world.harness.put_spilled_flow(key, Flow { created: flow.created + 1, ..flow })?;
        }
        world.harness.look_into_flows();
        let report = world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!((report.left.flows, report.left.flows_pending), (2, 0));
        assert_eq!(world.harness.established_flows()?.len(), 2);
        goes_on(world, 1000)
    })
}
