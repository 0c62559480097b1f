//! Damaged packets: whatever comes in, a program decides, counts what it drops exactly once, and lets nobody speak for
//! somebody else.

mod support;

use std::cell::RefCell;

use anyhow::Result;
use dataplane::{
    Program,
    testing::{Decision, Input, Outcome},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use support::{
    mangle::{damage, wrong_checksum},
    mesh::{arriving, from_client, returning},
    packets::{Ip4, arp, frame, ip, ping, tcp, udp, vxlan},
    world::*,
};

/// Runs per program.
const CASES: u32 = 4000;

/// Runs damaged versions of `seeds` and lets `judge` look at each outcome.
fn run(
    program: Program,
    ifindex: fn(&Devices) -> u32,
    seeds: Vec<Vec<u8>>,
    judge: fn(&Devices, &[u8], &Outcome) -> Result<(), TestCaseError>,
) -> Result<()> {
    world(move |world| {
        let world = RefCell::new(world);
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new(config);
        let tried = RefCell::new(0u32);
        let result = runner.run(&damage(), |damage| {
            let packet = damage.of(&seeds);
            let mut world = world.borrow_mut();
            let dev = world.dev;
            let input = Input { packet: packet.clone(), ifindex: ifindex(&dev), ..Input::default() };
            let outcome = match world.harness.run(program, &input) {
                Ok(outcome) => outcome,
                // The kernel takes no packet without a whole network header into a run.
                Err(_) if packet.len() < 14 + 40 => return Ok(()),
                Err(error) => return Err(TestCaseError::fail(format!("{error:#?} {packet:02x?}"))),
            };
            *tried.borrow_mut() += 1;
            let decision = outcome.decision.ok_or_else(|| TestCaseError::fail("no decision"))?;
            let drops: Vec<_> = outcome.drops.iter().map(|(reason, stat)| (*reason, stat.packets)).collect();
            match decision {
                Decision::Drop(reason) | Decision::Refuse(reason) => prop_assert_eq!(drops, [(reason, 1)]),
                _ => prop_assert_eq!(drops, []),
            }
            if matches!(decision, Decision::Pass | Decision::SlowPath) {
                prop_assert_eq!(&outcome.packet, &packet, "handed on, but changed");
            } else if !matches!(decision, Decision::Drop(_)) && wrong_checksum(&packet).is_none() {
                prop_assert_eq!(
                    wrong_checksum(&outcome.packet),
                    None,
                    "{:02x?} became {:02x?}",
                    packet,
                    outcome.packet
                );
            }
            judge(&dev, &packet, &outcome)
        });
        result.map_err(|error| anyhow::anyhow!("{program}: {error}"))?;
        anyhow::ensure!(*tried.borrow() > CASES / 2, "only {} packets were taken", tried.borrow());
        Ok(())
    })
}

fn ip_at(packet: &[u8], offset: usize) -> Option<Ip4> {
    packet.get(offset..offset + 4)?.try_into().ok()
}

#[test]
fn a_container_speaks_for_itself_only() -> Result<()> {
    let from = |to, l4: &_| frame(mac(LOCAL1.ip), [2; 6], &ip(LOCAL1.ip, to), l4);
    let mut seeds = vec![arp(etherparse::ArpOperation::REQUEST, (mac(LOCAL1.ip), LOCAL1.ip), ([0; 6], VIP), [0xff; 6])];
    for to in [LOCAL2.ip, REMOTE1.ip, VIP, SELF_VIP, GATEWAY, OTHER_SUBNET] {
        seeds.extend([tcp(1000, 80, "S"), tcp(1000, 80, "PA"), udp(1000, 53), ping(1)].iter().map(|l4| from(to, l4)));
    }
    run(
        Program::FromContainer,
        |dev| dev.veth1,
        seeds,
        |dev, _, outcome| {
            match outcome.decision {
                // In the tunnel: ours outside, the container's own inside, to a node of the swarm.
                Some(Decision::Neigh(ifindex)) => {
                    prop_assert_eq!(ifindex, dev.underlay);
                    prop_assert_eq!(ip_at(&outcome.packet, 26), Some(VTEP));
                    prop_assert!([Some(PEER), Some(PLAIN)].contains(&ip_at(&outcome.packet, 30)));
                    prop_assert_eq!(ip_at(&outcome.packet, 64 + 12), Some(LOCAL1.ip));
                    prop_assert_eq!(&outcome.packet[56..62], &mac(LOCAL1.ip));
                }
                // On this node: its own address, or the VIP that it talks to itself through.
                Some(Decision::Peer(ifindex)) => {
                    prop_assert!([dev.veth1, dev.veth2].contains(&ifindex));
                    prop_assert_eq!(&outcome.packet[6..12], &mac(LOCAL1.ip));
                    let src = ip_at(&outcome.packet, 26);
                    prop_assert!(src == Some(LOCAL1.ip) || src == Some(SELF_VIP) || src == Some(VIP), "{:?}", src);
                }
                Some(Decision::Reply(ifindex)) => prop_assert_eq!(ifindex, dev.veth1),
                _ => {}
            }
            Ok(())
        },
    )
}

#[test]
fn a_container_cannot_reach_the_tunnel_through_the_gateway() -> Result<()> {
    let from = |to, l4: &_| frame(mac(GW1), [2; 6], &ip(GW1, to), l4);
    let mut seeds = Vec::new();
    for to in [VTEP, PEER, CLIENT] {
        seeds.extend([tcp(80, 40000, "SA"), udp(50000, 4789), udp(80, 40000), ping(1)].iter().map(|l4| from(to, l4)));
    }
    run(
        Program::FromGateway,
        |dev| dev.gw1,
        seeds,
        |_, packet, outcome| {
            // There are no mesh connections here: nothing may be redirected.
            prop_assert!(matches!(outcome.decision, Some(Decision::Pass | Decision::Drop(_))));
            if outcome.decision == Some(Decision::Pass) && packet[12..14] == [8, 0] {
                prop_assert_eq!(ip_at(packet, 26), Some(GW1));
                let header = usize::from(packet[14] & 15) * 4 + 14;
                let first_or_whole = u16::from_be_bytes([packet[20], packet[21]]) & 0x1fff == 0;
                let to_node = [Some(VTEP), Some(PEER), Some(PLAIN)].contains(&ip_at(packet, 30));
                if packet[23] == 17 && first_or_whole && to_node {
                    prop_assert_ne!(&packet[header + 2..header + 4], &4789u16.to_be_bytes());
                }
            }
            Ok(())
        },
    )
}

#[test]
fn nothing_gets_out_of_a_tunnel_that_the_sender_may_not_say() -> Result<()> {
    let tunnelled = |from: Ip4, to: Ip4, l4: &_| {
        let inner = frame(mac(from), mac(to), &ip(from, to), l4);
        let (outer, tunnel) = vxlan(PEER, VTEP, 50000, APP, &inner);
        frame(ROUTER_MAC, NODE_MAC, &outer, &tunnel)
    };
    let mut seeds = vec![
        arriving(PEER, &LOCAL1, &ip(CLIENT, PEER), &tcp(40000, PUBLISHED, "S")),
        arriving(PEER, &LOCAL1, &ip(CLIENT, PEER), &udp(40000, PUBLISHED)),
        returning(PEER, &REMOTE1, &ip(VTEP, CLIENT), &tcp(PUBLISHED, 40000, "SA")),
        from_client(&tcp(40000, PUBLISHED, "S")),
        from_client(&udp(40000, PUBLISHED)),
    ];
    for l4 in [tcp(80, 1000, "PA"), udp(53, 1000), ping(1)] {
        seeds.push(tunnelled(REMOTE1.ip, LOCAL1.ip, &l4));
    }
    run(
        Program::FromUnderlay,
        |dev| dev.underlay,
        seeds,
        |dev, packet, outcome| {
            match outcome.decision {
                // The mesh: to the task's own address.
                Some(Decision::Peer(ifindex)) if [dev.gw1, dev.gw2].contains(&ifindex) => {
                    let task = if ifindex == dev.gw1 { GW1 } else { GW2 };
                    prop_assert_eq!(ip_at(&outcome.packet, 30), Some(task));
                }
                Some(Decision::Peer(ifindex)) => {
                    prop_assert!([dev.veth1, dev.veth2].contains(&ifindex));
                    let (sender, source) = (ip_at(packet, 26), ip_at(&outcome.packet, 26));
                    let allowed =
                        [(PEER, vec![REMOTE1.ip, REMOTE2.ip, OTHER_SUBNET]), (PLAIN, vec![ON_PLAIN.ip, NODE_ON_APP])];
                    prop_assert!(
                        allowed.iter().any(|(n, ips)| Some(*n) == sender && ips.iter().any(|ip| Some(*ip) == source)),
                        "{:?} said to be {:?}",
                        sender,
                        source
                    );
                }
                // Into the tunnel towards a backend's node, or out to a client: the latter needs a connection.
                Some(Decision::Neigh(ifindex)) => {
                    prop_assert_eq!(ifindex, dev.underlay);
                    prop_assert_eq!(ip_at(&outcome.packet, 26), Some(VTEP));
                    prop_assert!(
                        outcome.packet.len() == packet.len() + 50 || outcome.packet.len() + 50 == packet.len()
                    );
                }
                Some(Decision::Reply(_)) => return Err(TestCaseError::fail("nothing is answered on the underlay")),
                _ => {}
            }
            Ok(())
        },
    )
}
