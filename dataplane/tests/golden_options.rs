//! Golden packets with IPv4 options: what names its own way (RFC 791, loose and strict source route) is left to the
//! stack at every hook; all other options change nothing.

mod support;

use std::collections::BTreeMap;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Neigh, Pass, SlowPath},
};
use dataplane_common::addr::VIRTUAL_MAC;
use support::{
    engine,
    golden::golden,
    mesh::*,
    packets::{Ip, frame, ip, ping, tcp, udp},
    world::*,
    xdp::passes,
};

/// Padded to whole words.
fn padded(options: &[&[u8]]) -> Vec<u8> {
    let mut bytes = options.concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

const LOOSE: [u8; 7] = [131, 7, 4, 10, 9, 9, 9];
const STRICT: [u8; 7] = [137, 7, 4, 10, 9, 9, 9];
const RECORD: [u8; 7] = [7, 7, 4, 0, 0, 0, 0];
const ALERT: [u8; 4] = [148, 4, 0, 0];

fn source_routes() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("loose", padded(&[&LOOSE])),
        ("strict", padded(&[&STRICT])),
        ("behind nothing", padded(&[&[1; 5], &LOOSE])),
        ("behind a recorded route", padded(&[&RECORD, &STRICT])),
        ("behind two others", padded(&[&ALERT, &[1], &RECORD, &LOOSE])),
        ("the longest", [&[131, 39, 4][..], &[9; 36], &[0]].concat()),
        ("as far back as it goes", [&[1; 37][..], &[131, 3, 4]].concat()),
        ("without its length", [&[1; 39][..], &[137]].concat()),
    ]
}

fn harmless() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", vec![1; 40]),
        ("a recorded route", padded(&[&RECORD])),
        ("router alert", padded(&[&ALERT])),
        ("its number behind the end", [&[0][..], &LOOSE].concat()),
        ("its number inside another", padded(&[&[7, 11, 4, 131, 7, 4, 10, 131, 7, 4, 137]])),
        ("a length of nought", vec![68, 0, 131, 7]),
        ("a length of one", vec![68, 1, 137, 7]),
        ("a length past the end", vec![68, 255, 131, 7]),
    ]
}

#[test]
fn a_clients_source_route_is_left_to_the_stack() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let hooks = [(Program::FromUnderlay, dev.underlay), (Program::FromClient, dev.client)];
        for established in [false, true] {
            if established {
                for l4 in [tcp(CLIENT_PORT, PUBLISHED, "S"), udp(CLIENT_PORT, PUBLISHED)] {
                    underlay(world, "opens", from_client(&l4), Pass).run(&mut world.harness)?;
                }
            }
            let before = world.harness.affinity()?;
            for (what, options) in source_routes() {
                for l4 in [tcp(CLIENT_PORT, PUBLISHED, "S"), udp(CLIENT_PORT, PUBLISHED)] {
                    for ttl in [1, 64] {
                        let packet = Ip { ttl, options: options.clone(), ..client_ip() };
                        let packet = frame(ROUTER_MAC, NODE_MAC, &packet, &l4);
                        for (program, ifindex) in hooks {
                            golden(what, program, ifindex, packet.clone(), Pass).check(&mut world.harness)?;
                            passes(world, what, &packet, ifindex)?;
                        }
                    }
                }
            }
            assert_eq!(world.harness.affinity()?.len(), before.len());
        }
        Ok(())
    })
}

#[test]
fn a_clients_other_options_change_nothing() -> Result<()> {
    world(|world| {
        for (what, options) in harmless() {
            world.harness.forget_connections()?;
            world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
            let packet = Ip { options, ..client_ip() };
            let l4 = tcp(CLIENT_PORT, PUBLISHED, "S");
            let packet = (frame(ROUTER_MAC, NODE_MAC, &packet, &l4), forwarded(&REMOTE1, &packet, &l4));
            let outcome = underlay(world, what, packet.0, Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)), "{what}");
            assert_eq!(outcome.packet[50..], packet.1[50..], "{what}");
        }
        Ok(())
    })
}

#[test]
fn a_containers_source_route_is_the_bridges() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        for (what, options) in source_routes() {
            for to in [VIP, EMPTY_VIP, LOCAL2.ip, REMOTE1.ip, GATEWAY] {
                for l4 in [tcp(1000, 80, "S"), udp(1000, 53), ping(1)] {
                    let packet = Ip { options: options.clone(), ..ip(LOCAL1.ip, to) };
                    let packet = frame(mac(LOCAL1.ip), VIRTUAL_MAC, &packet, &l4);
                    golden(what, Program::FromContainer, dev.veth1, packet.clone(), SlowPath)
                        .check(&mut world.harness)?;
                    engine::out(world, what, packet, Pass).check(&mut world.harness)?;
                }
            }
        }
        assert_eq!(world.harness.flows()?, BTreeMap::new());
        for (what, options) in harmless() {
            let packet = Ip { options, ..ip(LOCAL1.ip, REMOTE1.ip) };
            let packet = frame(mac(LOCAL1.ip), VIRTUAL_MAC, &packet, &udp(1000, 53));
            let outcome = golden(what, Program::FromContainer, dev.veth1, packet, Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Neigh(dev.underlay)), "{what}");
        }
        Ok(())
    })
}

#[test]
fn a_replys_source_route_is_left_to_the_stack() -> Result<()> {
    world(|world| {
        let question = arriving(PEER, &LOCAL1, &ip(CLIENT, PEER), &udp(CLIENT_PORT, PUBLISHED));
        underlay(world, "question", question, Pass).run(&mut world.harness)?;
        let reply = |options| {
            let packet = Ip { options, ..ip(GW1, CLIENT) };
            frame(mac(GW1), [2, 0, 0, 0, 0, 9], &packet, &udp(TARGET_PORT, CLIENT_PORT))
        };
        for (what, options) in source_routes() {
            gateway(world, what, reply(options), Pass).check(&mut world.harness)?;
        }
        for (what, options) in harmless() {
            let outcome = gateway(world, what, reply(options), Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)), "{what}");
        }
        Ok(())
    })
}
