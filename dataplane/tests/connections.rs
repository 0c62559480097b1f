//! The sweep, on connections that the programs themselves have entered.

mod support;

use std::{collections::HashSet, thread::sleep, time::Duration};

use anyhow::Result;
use dataplane::{Program, SweepReport, Timeouts, testing::Decision::Pass};
use dataplane_common::service::Backend;
use support::{
    golden::golden,
    mesh::*,
    packets::{frame, ip, tcp, udp},
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

fn everybody() -> HashSet<[u8; 8]> {
    [LOCAL1, LOCAL2, REMOTE1, REMOTE2].iter().map(|task| task.tag).collect()
}

#[test]
#[ignore = "the sweep does not look into the pending tables yet"]
fn live_connections_stay() -> Result<()> {
    world(|world| {
        talk(world)?;
        // Older than what is still being written.
        sleep(Duration::from_millis(2100));
        let report = world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!(report, SweepReport { flows: 14, affinity: 3, ..SweepReport::default() });
        Ok(())
    })
}

#[test]
#[ignore = "the sweep does not look into the pending tables yet"]
fn connections_of_a_task_that_is_gone_go_whole() -> Result<()> {
    world(|world| {
        talk(world)?;
        // LOCAL1 serves the hairpin, one client of this node's and the mesh frame: two entries each, one affinity.
        let mut live = everybody();
        live.remove(&LOCAL1.tag);
        let report = world.harness.sweep(&live, &Timeouts::default())?;
        assert_eq!(report, SweepReport { flows: 8, affinity: 2, task_gone: 7, ..SweepReport::default() });
        assert!(world.harness.flows()?.values().all(|flow| flow.tag != LOCAL1.tag));
        let report = world.harness.sweep(&HashSet::new(), &Timeouts::default())?;
        assert_eq!(report, SweepReport { task_gone: 10, ..SweepReport::default() });
        Ok(())
    })
}

#[test]
#[ignore = "the sweep does not look into the pending tables yet"]
fn idle_connections_go_whole() -> Result<()> {
    world(|world| {
        talk(world)?;
        let short = Timeouts { tcp_half_open: Duration::from_millis(50), ..Timeouts::default() };
        sleep(Duration::from_millis(100));
        // The two UDP connections stay.
        let report = world.harness.sweep(&everybody(), &short)?;
        assert_eq!(report, SweepReport { flows: 4, expired: 13, ..SweepReport::default() });
        Ok(())
    })
}
