//! Golden packets of a container's broadcast and multicast: bounded, and nothing else is.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::{
        Decision::{self, Drop, Neigh, Reply, SlowPath},
        Outcome,
    },
};
use dataplane_common::{counter::Counter, drop_reason::DropReason, group};
use etherparse::ArpOperation;
use support::{
    golden::golden,
    packets::{Ip, Ip4, arp, ethernet, frame, ip, tcp, udp},
    world::*,
};

fn out_of(world: &mut World, ifindex: u32, packet: Vec<u8>) -> Result<Outcome> {
    golden("out of a container", Program::FromContainer, ifindex, packet, Decision::Pass).run(&mut world.harness)
}

#[test]
fn a_containers_group_frames_are_bounded_and_nothing_else_is() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let broadcast = frame(mac(LOCAL1.ip), [0xff; 6], &ip(LOCAL1.ip, [10, 0, 1, 255]), &udp(1, 2));
        for _ in 0..group::BURST_NS / group::INTERVAL_NS {
            assert_eq!(out_of(world, dev.veth1, broadcast.clone())?.decision, Some(SlowPath));
        }
        world.harness.drain_group_rate(dev.veth1)?;
        golden("too much", Program::FromContainer, dev.veth1, broadcast, Drop(DropReason::GroupRate))
            .check(&mut world.harness)?;

        let own = (mac(LOCAL1.ip), LOCAL1.ip);
        let group_frames = [
            frame(mac(LOCAL1.ip), [1, 0, 0x5e, 0, 0, 0xfb], &ip(LOCAL1.ip, [224, 0, 0, 251]), &udp(5353, 5353)),
            arp(ArpOperation::REQUEST, own, ([0; 6], [10, 0, 1, 77]), [0xff; 6]),
            ethernet(mac(LOCAL1.ip), [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &[0x60; 40]),
        ];
        for packet in &group_frames {
            golden("too much", Program::FromContainer, dev.veth1, packet.clone(), Drop(DropReason::GroupRate))
                .check(&mut world.harness)?;
        }
        // What is answered on the spot, or goes to one receiver, costs nothing.
        for packet in group_frames {
            let other = out_of(world, dev.veth2, with_source(&packet, LOCAL2))?;
            assert_eq!(other.decision, Some(SlowPath), "another container");
        }
        for _ in 0..20 {
            let request = arp(ArpOperation::REQUEST, own, ([0; 6], REMOTE1.ip), [0xff; 6]);
            assert_eq!(out_of(world, dev.veth1, request)?.decision, Some(Reply(dev.veth1)));
            let unicast = frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &ip(LOCAL1.ip, REMOTE1.ip), &tcp(1, 80, "S"));
            assert_eq!(out_of(world, dev.veth1, unicast)?.decision, Some(Neigh(dev.underlay)));
            let other = ethernet(mac(LOCAL1.ip), mac(REMOTE1.ip), 0x86dd, &[0x60; 40]);
            let outcome = out_of(world, dev.veth1, other)?;
            assert_eq!(outcome.decision, Some(SlowPath));
            assert_eq!(outcome.counters.keys().collect::<Vec<_>>(), [&Counter::SlowPath]);
        }
        // The bridge copies to everybody what is for nobody it knows.
        let (nobody, nobodys) = ([10, 0, 1, 77], mac([10, 0, 1, 77]));
        for packet in [
            frame(mac(LOCAL1.ip), nobodys, &ip(LOCAL1.ip, nobody), &udp(1, 2)),
            frame(mac(LOCAL1.ip), nobodys, &routed_by_source(LOCAL1.ip, REMOTE1.ip), &udp(1, 2)),
            arp(ArpOperation::REPLY, own, (nobodys, nobody), nobodys),
            ethernet(mac(LOCAL1.ip), nobodys, 0x86dd, &[0x60; 40]),
            ethernet(mac(LOCAL1.ip), [2, 0, 0, 0, 0, 9], 0x86dd, &[0x60; 40]),
            // The bridge does not learn where neighbours are whose packets pass it by.
            ethernet(mac(LOCAL1.ip), mac(LOCAL2.ip), 0x86dd, &[0x60; 40]),
        ] {
            golden("for nobody", Program::FromContainer, dev.veth1, packet, Drop(DropReason::GroupRate))
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

/// With a loose source route over a neighbour.
fn routed_by_source(src: Ip4, dst: Ip4) -> Ip {
    Ip { options: vec![1, 131, 7, 4, 10, 0, 1, 9], ..ip(src, dst) }
}

/// The frame as another container would send it.
fn with_source(packet: &[u8], task: Task) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[6..12].copy_from_slice(&mac(task.ip));
    match packet[12..14] {
        [8, 6] => {
            packet[22..28].copy_from_slice(&mac(task.ip));
            packet[28..32].copy_from_slice(&task.ip);
        }
        [8, 0] => packet[26..30].copy_from_slice(&task.ip),
        _ => {}
    }
    packet
}
