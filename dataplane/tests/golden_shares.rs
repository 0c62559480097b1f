//! Shares of the established tables: who holds much stays pending, and nobody's pending connections displace another
//! protocol's.

mod support;

use std::{collections::HashSet, thread::sleep, time::Duration};

use anyhow::Result;
use dataplane::{
    MapName, Program, State, Timeouts,
    testing::{
        Decision::{Neigh, Pass, Peer},
        Harness,
    },
};
use dataplane_common::{addr::Tag, counter::Counter};
use support::{
    golden::golden,
    mesh::*,
    packets::{L4, frame, ip, tcp, udp},
    vip::{answers, says},
    world::*,
};

/// Room in the established tables.
const ROOM: u32 = 64;

fn small(test: impl FnOnce(&mut World) -> Result<()> + Send + 'static) -> Result<()> {
    world(|world| {
        world.harness = Harness::with_sizes(&[(MapName::Flows, ROOM), (MapName::Affinity, ROOM)])?;
        world.harness.apply(&world.state)?;
        test(world)
    })
}

/// A UDP connection from this port, up to the packet that proves it.
fn asked(world: &mut World, port: u16) -> Result<()> {
    world.harness.set_cursor(&vip_set(VIP), 0)?;
    says(world, &udp(port, 53))?;
    answers(world, &udp(53, port))
}

fn handshake(world: &mut World, port: u16) -> Result<()> {
    world.harness.set_cursor(&vip_set(VIP), 0)?;
    says(world, &tcp(port, 80, "S"))?;
    answers(world, &tcp(80, port, "SA"))?;
    says(world, &tcp(port, 80, "K"))
}

fn everybody() -> HashSet<Tag> {
    [LOCAL1.tag, LOCAL2.tag, REMOTE1.tag, REMOTE2.tag].into()
}

fn established(world: &World) -> Result<usize> {
    Ok(world.harness.established_flows()?.len())
}

#[test]
fn what_is_not_tcp_takes_half_a_table_and_one_client_two_thirds() -> Result<()> {
    small(|world| {
        for port in 1000..1016 {
            asked(world, port)?;
            says(world, &udp(port, 53))?;
        }
        assert_eq!((established(world)?, world.harness.counted_flows()), (32, [32, 32]));

        asked(world, 2000)?;
        let packet = frame(mac(LOCAL1.ip), [2; 6], &ip(LOCAL1.ip, VIP), &udp(2000, 53));
        let len = packet.len();
        let again = packet.clone();
        let out = frame(mac(LOCAL1.ip), mac(LOCAL2.ip), &ip(LOCAL1.ip, LOCAL2.ip), &udp(2000, 53));
        golden("no share", Program::FromContainer, world.dev.veth1, packet, Peer(world.dev.veth2))
            .counts(Counter::KeptPending, len)
            .counts(Counter::Delivered, len)
            .becomes(out.clone())
            .check(&mut world.harness)?;
        golden("counted once", Program::FromContainer, world.dev.veth1, again, Peer(world.dev.veth2))
            .counts(Counter::Delivered, len)
            .becomes(out)
            .check(&mut world.harness)?;
        assert_eq!((established(world)?, world.harness.pending_flows()?.len()), (32, 2));

        // 2 entries each, as long as the client's TCP holds less than twice of what is free.
        for port in 3000..3014 {
            handshake(world, port)?;
        }
        assert_eq!((established(world)?, world.harness.counted_flows()), (54, [54, 32]), "TCP finds room");
        let rows = world.harness.rows()?;
        assert_eq!(rows.len(), 31);
        assert!(rows.iter().all(|row| row.state == State::Established), "kept, and shown as what they are: {rows:?}");

        let report = world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!((report.kept.entries, report.left.flows, report.left.flows_pending_other), (4, 54, 2));

        // What ends them is not noted there.
        let short = Timeouts { tcp_half_closed: Duration::from_millis(20), ..Timeouts::default() };
        sleep(Duration::from_millis(100));
        let report = world.harness.sweep(&everybody(), &short)?;
        assert_eq!((report.kept.entries, report.removed.expired, report.left.flows), (1, 6, 54));
        Ok(())
    })
}

/// One entry each there, and the client's second packet is the proof.
#[test]
fn the_ingress_node_keeps_what_is_not_tcp_out_of_half_its_table() -> Result<()> {
    small(|world| {
        let asked = |world: &mut World, port: u16| -> Result<()> {
            world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
            underlay(world, "question", from_client(&udp(port, PUBLISHED)), Pass).run(&mut world.harness)?;
            let answer = returning(REMOTE1.vtep, &REMOTE1, &ip(VTEP, CLIENT), &udp(PUBLISHED, port));
            underlay(world, "answer", answer, Pass).run(&mut world.harness)?;
            underlay(world, "next", from_client(&udp(port, PUBLISHED)), Pass).run(&mut world.harness)?;
            Ok(())
        };
        for port in 1000..1032 {
            asked(world, port)?;
        }
        assert_eq!((world.harness.established_affinity()?.len(), world.harness.counted_affinity()), (32, [32, 32]));
        asked(world, 2000)?;
        assert_eq!((world.harness.established_affinity()?.len(), world.harness.pending_affinity()?.len()), (32, 1));
        let kept = |world: &World| anyhow::Ok(world.harness.pending_affinity()?.values().map(|a| a.flags & 0x20).max());
        assert_eq!(kept(world)?, Some(0x20));
        let report = world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!((report.kept.entries, report.left.affinity, report.left.affinity_pending_other), (1, 32, 1));

        world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
        let reply = |l4: &L4| returning(REMOTE1.vtep, &REMOTE1, &ip(VTEP, CLIENT), l4);
        underlay(world, "SYN", from_client(&tcp(1000, PUBLISHED, "S")), Pass).run(&mut world.harness)?;
        underlay(world, "SYN-ACK", reply(&tcp(PUBLISHED, 1000, "SA")), Pass).run(&mut world.harness)?;
        underlay(world, "ACK", from_client(&tcp(1000, PUBLISHED, "K")), Pass).run(&mut world.harness)?;
        assert_eq!(world.harness.counted_affinity(), [33, 32], "TCP finds room");
        Ok(())
    })
}

#[test]
fn what_was_kept_is_established_once_there_is_room() -> Result<()> {
    small(|world| {
        for port in 1000..1017 {
            asked(world, port)?;
            says(world, &udp(port, 53))?;
        }
        assert_eq!(established(world)?, 32);
        for key in world.harness.established_flows()?.keys().filter(|key| key.sport == 1000u16.to_be_bytes()) {
            world.harness.remove_flow(key)?;
        }
        says(world, &udp(1016, 53))?;
        assert_eq!((established(world)?, world.harness.counted_flows()), (31, [32, 32]), "nobody has counted anew");
        world.harness.sweep(&everybody(), &Timeouts::default())?;
        says(world, &udp(1016, 53))?;
        assert_eq!(established(world)?, world.harness.counted_flows()[0] as usize);
        assert!(established(world)? >= 32);
        assert!(world.harness.established_flows()?.values().all(|flow| flow.flags & 0x40 == 0), "no longer kept");
        Ok(())
    })
}

#[test]
fn a_sweep_counts_what_others_have_left() -> Result<()> {
    small(|world| {
        for port in 1000..1016 {
            asked(world, port)?;
            says(world, &udp(port, 53))?;
        }
        let left = world.harness.established_flows()?;
        world.harness = Harness::with_sizes(&[(MapName::Flows, ROOM)])?;
        world.harness.apply(&world.state)?;
        left.into_iter().try_for_each(|(key, flow)| world.harness.put_flow(key, flow))?;
        assert_eq!(world.harness.counted_flows(), [0, 0]);
        world.harness.sweep(&everybody(), &Timeouts::default())?;
        assert_eq!(world.harness.counted_flows(), [32, 32]);
        asked(world, 2000)?;
        says(world, &udp(2000, 53))?;
        assert_eq!((established(world)?, world.harness.pending_flows()?.len()), (32, 2));
        world.harness.sweep(&HashSet::new(), &Timeouts::default())?;
        assert_eq!((established(world)?, world.harness.counted_flows()), (0, [0, 0]));
        Ok(())
    })
}

#[test]
fn who_begins_anew_gives_back_what_he_had() -> Result<()> {
    small(|world| {
        for _ in 0..40 {
            handshake(world, 1000)?;
            assert_eq!(established(world)? as i64, world.harness.counted_flows()[0]);
            answers(world, &tcp(80, 1000, "R"))?;
        }
        assert!(established(world)? <= 4, "{}", established(world)?);

        // At the ingress node, whose backend is elsewhere.
        for _ in 0..40 {
            world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
            underlay(world, "SYN", from_client(&tcp(1000, PUBLISHED, "S")), Neigh(world.dev.underlay))
                .run(&mut world.harness)?;
            let reply = |l4: &L4| returning(REMOTE1.vtep, &REMOTE1, &ip(VTEP, CLIENT), l4);
            underlay(world, "SYN-ACK", reply(&tcp(PUBLISHED, 1000, "SA")), Pass).run(&mut world.harness)?;
            underlay(world, "ACK", from_client(&tcp(1000, PUBLISHED, "K")), Pass).run(&mut world.harness)?;
            assert_eq!((world.harness.established_affinity()?.len(), world.harness.counted_affinity()), (1, [1, 0]));
            underlay(world, "RST", reply(&tcp(PUBLISHED, 1000, "R")), Pass).run(&mut world.harness)?;
        }
        Ok(())
    })
}

/// The table of what is not TCP holds 2,048 entries.
#[test]
fn a_flood_of_datagrams_displaces_no_handshake() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        says(world, &tcp(1000, 80, "S"))?;
        for port in 2000..6000 {
            says(world, &udp(port, 53))?;
        }
        assert!(world.harness.pending_flows()?.len() > 1000);
        answers(world, &tcp(80, 1000, "SA"))?;
        says(world, &tcp(1000, 80, "K"))?;
        assert_eq!(established(world)?, 2);
        Ok(())
    })
}
