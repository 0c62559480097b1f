//! The sweep, on connections that the programs themselves have entered.

mod support;

use std::{collections::HashSet, thread::sleep, time::Duration};

use anyhow::Result;
use dataplane::{Program, Removed, SweepReport, Timeouts, monotonic_now, testing::Decision::Pass};
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
    (left.flows + left.flows_pending, left.affinity + left.affinity_pending)
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
