//! XDP opens connections, and sees them prove themselves, as TC does: the same backend in turn, the same entries. What
//! it cannot send it leaves to TC with the turn not taken.
//!
//! `Harness::run` compares with TC whatever XDP carries.

mod support;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use dataplane::{Program, testing::Decision::Pass};
use dataplane_common::{counter::Counter, endpoint::Vtep, service::PortKey};
use support::{
    golden::golden,
    mesh::*,
    packets::{Ip, L4, tcp, udp},
    world::*,
    xdp::*,
};

fn turn(world: &mut World, number: u64) -> Result<()> {
    world.harness.set_cursor(&port_set(6, PUBLISHED), number)?;
    Ok(world.harness.set_cursor(&port_set(17, PUBLISHED), number)?)
}

fn taken(world: &World, proto: u8) -> Result<u64> {
    Ok(world.harness.cursor(&port_set(proto, PUBLISHED))?)
}

/// Through both, and XDP carries it.
fn both(world: &mut World, what: &'static str, packet: Vec<u8>) -> Result<()> {
    golden(what, Program::FromUnderlay, world.dev.underlay, packet, Pass).run(&mut world.harness).context(what)?;
    assert!(world.harness.xdp_carried(), "{what}");
    Ok(())
}

/// Through XDP alone, which carries it.
fn alone(world: &mut World, what: &str, packet: &[u8]) -> Result<BTreeMap<Counter, u64>> {
    let sent = through_xdp(world, packet, world.dev.underlay)?;
    assert_eq!(sent.verdict, XDP_TX, "{what}");
    Ok(sent.counters.into_iter().map(|(counter, stat)| (counter, stat.packets)).collect())
}

/// XDP leaves the packet to TC, and neither takes a turn nor enters anything.
fn leaves(world: &mut World, what: &str, packet: &[u8]) -> Result<()> {
    let before = (taken(world, 6)?, taken(world, 17)?);
    passes(world, what, packet, world.dev.underlay)?;
    assert_eq!((taken(world, 6)?, taken(world, 17)?), before, "{what}: took a turn");
    Ok(())
}

fn acknowledging(l4: L4, sequence: u32) -> Vec<u8> {
    let mut packet = client(&client_ip(), &l4);
    packet[42..46].copy_from_slice(&sequence.to_be_bytes());
    packet
}

#[test]
fn first_packets_get_the_backend_whose_turn_it_is() -> Result<()> {
    world(|world| {
        for (number, port) in [(1, 1001), (2, 1002), (4, 1003), (5, 1004)] {
            turn(world, number)?;
            both(world, "SYN", client(&client_ip(), &tcp(port, PUBLISHED, "S")))?;
            both(world, "SYN again", client(&client_ip(), &tcp(port, PUBLISHED, "S")))?;
            both(world, "datagram", client(&client_ip(), &udp(port, PUBLISHED)))?;
            both(world, "datagram again", client(&client_ip(), &udp(port, PUBLISHED)))?;
            assert_eq!((taken(world, 6)?, taken(world, 17)?), (number + 1, number + 1));
        }
        assert_eq!(world.harness.pending_affinity()?.len(), 8);
        turn(world, 1)?;
        let counted = alone(world, "SYN", &client(&client_ip(), &tcp(2000, PUBLISHED, "S")))?;
        assert_eq!((counted[&Counter::MeshFlow], counted[&Counter::XdpForward], taken(world, 6)?), (1, 1, 2));
        Ok(())
    })
}

#[test]
fn connections_prove_themselves() -> Result<()> {
    world(|world| {
        let there = |port, flags| client(&client_ip(), &tcp(port, PUBLISHED, flags));
        let back = |port, flags| answer(&client_ip(), &tcp(PUBLISHED, port, flags));
        let established = |world: &World| world.harness.established_affinity().map(|all| all.len());
        turn(world, 1)?;
        both(world, "SYN", there(1000, "S"))?;
        both(world, "SYN-ACK", back(1000, "SA"))?;
        both(world, "a wrong acknowledgement", acknowledging(tcp(1000, PUBLISHED, "K"), 0xdead_beef))?;
        both(world, "a plain answer", back(1000, "A"))?;
        assert_eq!(established(world)?, 0);
        both(world, "ACK", there(1000, "K"))?;
        assert_eq!(established(world)?, 1);
        both(world, "data", there(1000, "PA"))?;
        // The server's data prove it, too.
        turn(world, 1)?;
        both(world, "SYN", there(1001, "S"))?;
        both(world, "SYN-ACK", back(1001, "SA"))?;
        both(world, "server's data", back(1001, "PA"))?;
        assert_eq!(established(world)?, 2);
        turn(world, 1)?;
        let datagram = || client(&client_ip(), &udp(1002, PUBLISHED));
        both(world, "datagram", datagram())?;
        both(world, "second one, unanswered", datagram())?;
        both(world, "answer", answer(&client_ip(), &udp(PUBLISHED, 1002)))?;
        assert_eq!(established(world)?, 2);
        both(world, "after the answer", datagram())?;
        assert_eq!((established(world)?, world.harness.pending_affinity()?.len()), (3, 0));
        // The same without TC.
        turn(world, 1)?;
        for (what, packet) in [("SYN", there(1003, "S")), ("SYN-ACK", back(1003, "SA")), ("ACK", there(1003, "K"))] {
            alone(world, what, &packet)?;
        }
        assert_eq!(established(world)?, 4);
        Ok(())
    })
}

#[test]
fn what_xdp_cannot_send_takes_no_turn() -> Result<()> {
    world(|world| {
        let syn = client(&client_ip(), &tcp(1000, PUBLISHED, "S"));
        let datagram = client(&client_ip(), &udp(1000, PUBLISHED));
        turn(world, 0)?;
        leaves(world, "to a task here", &syn)?;
        leaves(world, "to a task here", &datagram)?;
        turn(world, 1)?;
        let long = L4::Udp { sport: 1000, dport: PUBLISHED, payload: vec![1; 1451 - 28], checksum: true };
        leaves(world, "too long", &client(&client_ip(), &long))?;
        leaves(world, "nobody serves", &client(&client_ip(), &tcp(1000, PUBLISHED_EMPTY, "S")))?;
        leaves(world, "RST", &client(&client_ip(), &tcp(1000, PUBLISHED, "R")))?;
        leaves(world, "SYN and FIN", &client(&client_ip(), &tcp(1000, PUBLISHED, "SF")))?;
        leaves(world, "not ours", &client(&Ip { dst: [10, 9, 9, 9], ..client_ip() }, &tcp(1000, PUBLISHED, "S")))?;
        for src in [[0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 5], [255; 4], VTEP, NODE2] {
            for l4 in [tcp(1000, PUBLISHED, "S"), udp(1000, PUBLISHED)] {
                leaves(world, "martian", &client(&Ip { src, ..client_ip() }, &l4))?;
            }
        }
        let full = world.state.clone();
        world.state.restricted.insert(PortKey { proto: 6, _pad: 0, port: PUBLISHED.to_be_bytes() });
        world.harness.apply(&world.state)?;
        leaves(world, "restricted", &syn)?;
        world.state = full.clone();
        for gone in [Some(Vtep::default()), None] {
            match gone {
                Some(vtep) => drop(world.state.vteps.insert(PEER, vtep)),
                None => drop(world.state.vteps.remove(&PEER)),
            }
            world.harness.apply(&world.state)?;
            leaves(world, "to a node without Hiveway", &syn)?;
        }
        world.state = full;
        world.harness.apply(&world.state)?;
        keep_way(world, None)?;
        leaves(world, "nobody keeps the way", &syn)?;
        // Whose connection has ended.
        keep_way(world, Some(PEER_MAC))?;
        both(world, "SYN", syn.clone())?;
        through_tc(world, answer(&client_ip(), &tcp(PUBLISHED, 1000, "R")))?;
        leaves(world, "SYN after RST", &syn)
    })
}

#[test]
fn the_turns_of_xdp_and_tc_are_the_same() -> Result<()> {
    const EACH: usize = 40;
    world(|world| {
        turn(world, 0)?;
        let mut given = BTreeMap::<_, usize>::new();
        for number in 0..3 * EACH as u16 {
            let syn = client(&client_ip(), &tcp(2000 + number, PUBLISHED, "S"));
            // Some come where there is no XDP.
            let carried = number % 5 != 4 && through_xdp(world, &syn, world.dev.underlay)?.verdict == XDP_TX;
            if !carried {
                through_tc(world, syn)?;
            }
        }
        for entry in world.harness.pending_affinity()?.values() {
            *given.entry(entry.ip).or_default() += 1;
        }
        let even = BACKENDS.map(|task| (task.ingress, EACH)).into_iter().collect();
        assert_eq!(given, even);
        Ok(())
    })
}

#[test]
fn a_flood_leaves_established_connections_alone() -> Result<()> {
    const ROOM: usize = 2048;
    established(|world| {
        keep_way(world, Some(PEER_MAC))?;
        let before = world.harness.established_affinity()?;
        for number in 0..3 * ROOM as u32 {
            let [_, _, high, low] = number.to_be_bytes();
            turn(world, 1)?;
            let syn = client(&Ip { src: [11, 0, high, low], ..client_ip() }, &tcp(5, PUBLISHED, "S"));
            alone(world, "SYN", &syn)?;
        }
        assert_eq!(world.harness.established_affinity()?, before);
        let pending = world.harness.pending_affinity()?.len();
        assert!(pending <= ROOM, "{pending}");
        Ok(())
    })
}
