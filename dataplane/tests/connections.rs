//! The sweep, on connections that the programs themselves have entered.

mod support;

use std::{collections::HashSet, thread::sleep, time::Duration};

use anyhow::Result;
use dataplane::{
    MapName, Program, Removed, SweepReport, Timeouts, monotonic_now,
    testing::{Decision::Pass, Harness},
};
use dataplane_common::{
    flow::{DirectGate, Flow, FlowKey, flag},
    service::Backend,
};
use support::{
    golden::golden,
    mesh::*,
    packets::{Ip4, frame, ip, tcp, udp},
    world::*,
};

/// A VIP connection to each backend, a hairpin, one with a changed source port, and mesh connections at either end.
fn talk(world: &mut World) -> Result<()> {
    let set = vec![Backend { tag: LOCAL2.tag, ip: LOCAL2.ip, vtep: VTEP }];
    world.state.sets.insert(vip_set(EMPTY_VIP), set);
    world.harness.apply(&world.state)?;
    let dev = world.dev;
    world.harness.set_cursor(&vip_set(VIP), 0)?;
    for (vip, l4) in [
        (VIP, udp(1000, 53)),
        (EMPTY_VIP, udp(1000, 53)),
        (VIP, tcp(1001, 80, "S")),
        (VIP, tcp(1002, 80, "S")),
        (SELF_VIP, tcp(1003, 80, "S")),
    ] {
        let packet = frame(mac(LOCAL1.ip), [2; 6], &ip(LOCAL1.ip, vip), &l4);
        golden("through a VIP", Program::FromContainer, dev.veth1, packet, Pass).run(&mut world.harness)?;
    }
    world.harness.set_cursor(&port_set(6, PUBLISHED), 0)?;
    for port in [2000, 2001, 2002] {
        underlay(world, "a client", from_client(&tcp(port, PUBLISHED, "S")), Pass).run(&mut world.harness)?;
    }
    let packet = arriving(PEER, &LOCAL1, &ip(CLIENT, PEER), &tcp(3000, PUBLISHED, "S"));
    underlay(world, "a mesh frame", packet, Pass).run(&mut world.harness)?;
    // Five VIP connections, one mesh client whose backend is here, one mesh frame; three clients at this ingress node.
    assert_eq!((world.harness.flows()?.len(), world.harness.affinity()?.len()), (14, 3));
    Ok(())
}

/// Entries left: of translated connections, and of clients at this ingress node.
fn left(report: &SweepReport) -> (usize, usize) {
    let left = report.left;
    let pending = (left.flows_pending + left.flows_pending_other, left.affinity_pending + left.affinity_pending_other);
    (left.flows + pending.0, left.affinity + pending.1)
}

fn everybody() -> HashSet<[u8; 8]> {
    [LOCAL1, LOCAL2, REMOTE1, REMOTE2].iter().map(|task| task.tag).collect()
}

#[test]
fn live_connections_stay() -> Result<()> {
    world(|world| {
        talk(world)?;
        // Older than what is still being written.
        sleep(Duration::from_millis(2100));
        let report = world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!((left(&report), report.removed), ((14, 3), Removed::default()));
        Ok(())
    })
}

#[test]
fn connections_of_a_task_that_is_gone_go_whole() -> Result<()> {
    world(|world| {
        talk(world)?;
        // LOCAL1 serves the hairpin, one client of this node's and the mesh frame: two entries each, one affinity.
        let mut live = everybody();
        live.remove(&LOCAL1.tag);
        let report = world.harness.sweep(&live, &Timeouts::default())?;
        assert_eq!((left(&report), report.removed), ((8, 2), Removed { task_gone: 7, ..Removed::default() }));
        assert!(world.harness.flows()?.values().all(|flow| flow.tag != LOCAL1.tag));
        let report = world.harness.sweep(&HashSet::new(), &Timeouts::default())?;
        assert_eq!((left(&report), report.removed), ((0, 0), Removed { task_gone: 10, ..Removed::default() }));
        Ok(())
    })
}

#[test]
fn idle_connections_go_whole() -> Result<()> {
    world(|world| {
        talk(world)?;
        let short = Timeouts { tcp_half_open: Duration::from_millis(50), ..Timeouts::default() };
        sleep(Duration::from_millis(100));
        // The two UDP connections stay.
        let report = world.harness.sweep(&everybody(), &short)?;
        assert_eq!((left(&report), report.removed), ((4, 0), Removed { expired: 13, ..Removed::default() }));
        Ok(())
    })
}

/// A direct connection of LOCAL1's to REMOTE1, whose backend is shown port `shown`: forward and reply entry.
fn direct(port: u16, shown: u16) -> [(FlowKey, Flow); 2] {
    let key = |src: (Ip4, u16), dst: (Ip4, u16)| FlowKey {
        zone: net(APP),
        src: src.0,
        dst: dst.0,
        sport: src.1.to_be_bytes(),
        dport: dst.1.to_be_bytes(),
        proto: 6,
        _pad: [0; 3],
    };
    let flow = |src: (Ip4, u16), dst: (Ip4, u16), flags| Flow {
        last_seen: monotonic_now(),
        created: monotonic_now(),
        tag: REMOTE1.tag,
        src: src.0,
        dst: dst.0,
        sport: src.1.to_be_bytes(),
        dport: dst.1.to_be_bytes(),
        flags: flags | flag::DIRECT | flag::SEEN,
        ..Flow::default()
    };
    let (task, backend) = ((LOCAL1.ip, port), (REMOTE1.ip, 80));
    let seen_as = (LOCAL1.ip, shown);
    [(key(task, backend), flow(seen_as, backend, 0)), (key(backend, seen_as), flow(backend, task, flag::REPLY))]
}

#[test]
fn the_gate_stays_open_while_a_direct_connection_is_translated() -> Result<()> {
    world(|world| {
        let harness = &mut world.harness;
        let gate = |created, cleared| DirectGate { created, cleared };
        // Noted only: nothing is looked for.
        let [_, (key, noted)] = direct(1000, 1000);
        harness.put_flow(key, noted)?;
        harness.open_direct_gate();
        assert_eq!(harness.sweep(&everybody(), &Timeouts::default())?.left.flows, 1);
        assert_eq!(harness.direct_gate(), gate(1, 1));

        // Translated: whatever is left of it keeps the gate open, in whichever table.
        let [(forward_key, forward), (reply_key, reply)] = direct(1001, 40000);
        harness.open_direct_gate();
        harness.put_pending_flow(forward_key, forward)?;
        harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!(harness.direct_gate(), gate(2, 1));
        harness.forget_connections()?;
        harness.open_direct_gate();
        harness.put_flow(reply_key, reply)?;
        harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!(harness.direct_gate(), gate(3, 2));

        // Its backend has gone.
        harness.sweep(&HashSet::new(), &Timeouts::default())?;
        assert_eq!(harness.direct_gate(), gate(3, 3));
        Ok(())
    })
}

/// A figure of this process in `/proc/self/status`, in KiB.
fn memory(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.and_then(|text| text.split_whitespace().next()).map_or(Ok(0), str::parse)?)
}

#[test]
fn a_sweep_and_a_listing_take_no_memory_that_grows_with_the_tables() -> Result<()> {
    const CONNECTIONS: u32 = 116_000;
    let mut harness = Harness::with_sizes(&[(MapName::Flows, 1 << 18)])?;
    let now = monotonic_now();
    for n in 0..CONNECTIONS {
        let [_, a, b, c] = n.to_be_bytes();
        let (client, vip, task, ports) = ([198, a, b, c], [10, 0, 1, 2], [10, 0, 1, 9], ([4, 1], [0, 80]));
        let flow = Flow { created: now, last_seen: now, tag: LOCAL1.tag, flags: flag::SEEN, ..Flow::default() };
        let (from, to) = ((client, ports.0), (vip, ports.1));
        let forward = Flow { src: client, sport: ports.0, dst: task, dport: ports.1, ..flow };
        let reply =
            Flow { src: vip, sport: ports.1, dst: client, dport: ports.0, flags: flag::SEEN | flag::REPLY, ..flow };
        harness.put_flow(FlowKey::new([0, 0, 16, 1], from, to, 6), forward)?;
        harness.put_flow(FlowKey::new([0, 0, 16, 1], (task, ports.1), from, 6), reply)?;
    }
    // The peak begins anew.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = memory("VmRSS")?;
    let started = std::time::Instant::now();
    let report = harness.sweep(&everybody(), &Timeouts::default())?;
    let took = started.elapsed();
    assert_eq!((report.left.flows, report.removed), (2 * CONNECTIONS as usize, Removed::default()));
    let started = std::time::Instant::now();
    assert_eq!(harness.count_rows()?, CONNECTIONS as usize);
    let listed = started.elapsed();
    let grown = memory("VmHWM")?.saturating_sub(before);
    eprintln!("{CONNECTIONS} connections: swept in {took:?}, listed in {listed:?}, {before} KiB and {grown} KiB more");
    // Other tests of this program run beside this one.
    assert!(grown < 16 << 10, "{grown} KiB more for {CONNECTIONS} connections");
    let report = harness.sweep(&HashSet::new(), &Timeouts::default())?;
    assert_eq!((report.left.flows, report.removed.task_gone), (0, 2 * CONNECTIONS as usize));
    Ok(())
}
