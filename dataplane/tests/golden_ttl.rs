//! Golden packets of the hops that the routing mesh counts: one at the ingress node for clients' packets, one at the
//! backend's node for replies, none inside an overlay network. Who sent what has no hop left is told so by the node.
//!
//! `Harness::run` compares with TC whatever XDP carries.

mod support;

use std::collections::BTreeMap;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Drop, Neigh, Pass, Peer, Refuse, Reply},
};
use dataplane_common::{
    addr::VIRTUAL_MAC,
    counter::Counter,
    drop_reason::DropReason::{NotAllowed, TtlExceeded},
    flow::{Affinity, AffinityKey, flag},
    mesh::NodeAddress,
    reverse::{LOOPBACK, ReversePath, reverse_mode},
    service::PortKey,
};
use support::{
    golden::{Golden, golden},
    icmp::{PORT, TIME_EXCEEDED, error, quote, unreachable},
    mesh::*,
    packets::{Ip, Ip4, L4, Mac, frame, hop, ip, pieces, ping, pong, routed, tcp, udp},
    world::*,
    xdp::passes,
};

/// This node on the gateway bridge.
const BRIDGE: Ip4 = [172, 18, 0, 1];
const BRIDGE_MAC: Mac = [2, 0, 0, 0, 0, 9];

fn turn(world: &mut World, number: u64) -> Result<()> {
    world.harness.set_cursor(&port_set(6, PUBLISHED), number)?;
    Ok(world.harness.set_cursor(&port_set(17, PUBLISHED), number)?)
}

/// The answer to `packet`: it had no hop left at `router`.
fn told(from: Mac, to: Mac, router: Ip4, packet: &Ip, l4: &L4) -> Vec<u8> {
    let back = Ip { id: 0, dont_fragment: false, ..ip(router, packet.src) };
    frame(from, to, &back, &error(TIME_EXCEEDED, 0, 0, &quote(packet, l4, 8)))
}

/// TC and XDP agree on the checksum wherever it is carried over.
#[test]
fn a_clients_packet_loses_one_hop_and_its_checksum_stays_right() -> Result<()> {
    world(|world| {
        let checksum = |packet: &[u8]| u16::from_be_bytes([packet[24], packet[25]]);
        let mut seen = BTreeMap::new();
        for id in 0..=u16::MAX {
            for ttl in [2, 64, 255] {
                let packet = frame(ROUTER_MAC, NODE_MAC, &Ip { id, ttl, ..client_ip() }, &udp(CLIENT_PORT, PUBLISHED));
                let near_carry = matches!(checksum(&packet), 0..=1 | 0xfe..=0x101 | 0xfefe..=0xff01 | 0xfffd..);
                if near_carry {
                    seen.insert((checksum(&packet), ttl), (id, packet));
                }
            }
        }
        assert!(seen.len() > 30, "{}", seen.len());
        for task in [REMOTE1, LOCAL1] {
            world.harness.forget_connections()?;
            turn(world, if task.vtep == VTEP { 0 } else { 1 })?;
            given_to(world, "first", &task, &udp(CLIENT_PORT, PUBLISHED), true)?;
            for ((_, ttl), (id, packet)) in &seen {
                let out = underlay(world, "a client's", packet.clone(), Pass).run(&mut world.harness)?.packet;
                let after = hop(&Ip { id: *id, ttl: *ttl, ..client_ip() });
                let expected = if task.vtep == VTEP {
                    frame(VIRTUAL_MAC, mac(GW1), &Ip { dst: GW1, ..after }, &udp(CLIENT_PORT, TARGET_PORT))
                } else {
                    frame(node_mac(VTEP), mac(REMOTE1.ingress), &after, &udp(CLIENT_PORT, PUBLISHED))
                };
                assert_eq!(out[out.len() - expected.len()..], expected, "TTL {ttl}, id {id}");
            }
        }
        Ok(())
    })
}

fn at_both(world: &World) -> [(Program, u32, Ip4); 2] {
    [(Program::FromUnderlay, world.dev.underlay, VTEP), (Program::FromClient, world.dev.client, NODE2)]
}

#[test]
fn a_client_is_told_by_the_ingress_node_that_its_packet_had_no_hop_left() -> Result<()> {
    world(|world| {
        for (program, ifindex, node) in at_both(world) {
            for (what, known) in [("opens nothing", false), ("of an open connection", true)] {
                world.harness.forget_connections()?;
                turn(world, 1)?;
                let syn = tcp(CLIENT_PORT, PUBLISHED, "S");
                let datagram = udp(CLIENT_PORT, PUBLISHED);
                if known {
                    for l4 in [&syn, &datagram] {
                        let packet = frame(ROUTER_MAC, NODE_MAC, &ip(CLIENT, node), l4);
                        golden("opens", program, ifindex, packet, Pass).run(&mut world.harness)?;
                    }
                }
                let entries = world.harness.affinity()?.len();
                let turns = [6, 17].map(|proto| world.harness.cursor(&port_set(proto, PUBLISHED)).unwrap());
                for ttl in [0, 1] {
                    for options in [vec![], vec![1; 8]] {
                        for l4 in [&syn, &datagram] {
                            let sent = Ip { ttl, options: options.clone(), ..ip(CLIENT, node) };
                            let packet = frame(ROUTER_MAC, NODE_MAC, &sent, l4);
                            passes(world, what, &packet, ifindex)?;
                            golden(what, program, ifindex, packet, Refuse(TtlExceeded))
                                .becomes(told(NODE_MAC, ROUTER_MAC, node, &sent, l4))
                                .check(&mut world.harness)?;
                        }
                    }
                    // In pieces: the first one is answered, the others are not.
                    let sent = Ip { ttl, ..ip(CLIENT, node) };
                    let parts = pieces(
                        &sent,
                        &L4::Udp { sport: CLIENT_PORT, dport: PUBLISHED, payload: vec![7; 40], checksum: true },
                        16,
                    );
                    let packet = frame(ROUTER_MAC, NODE_MAC, &parts[0].0, &parts[0].1);
                    golden("first piece", program, ifindex, packet, Refuse(TtlExceeded))
                        .becomes(told(NODE_MAC, ROUTER_MAC, node, &parts[0].0, &parts[0].1))
                        .check(&mut world.harness)?;
                    let packet = frame(ROUTER_MAC, NODE_MAC, &parts[1].0, &parts[1].1);
                    golden("later piece without its first", program, ifindex, packet, Pass)
                        .check(&mut world.harness)?;
                }
                assert_eq!(world.harness.affinity()?.len(), entries, "{what}");
                let after = [6, 17].map(|proto| world.harness.cursor(&port_set(proto, PUBLISHED)).unwrap());
                assert_eq!(after, turns, "{what}: it was nobody's turn");
            }
        }
        Ok(())
    })
}

#[test]
fn what_must_not_be_answered_is_dropped() -> Result<()> {
    world(|world| {
        turn(world, 1)?;
        given_to(world, "a connection", &REMOTE1, &udp(CLIENT_PORT, PUBLISHED), true)?;
        let spent = |packet: Ip| Ip { ttl: 1, ..packet };
        let about = unreachable(PORT, &quote(&ip(VTEP, CLIENT), &udp(PUBLISHED, CLIENT_PORT), 8));
        let long = L4::Udp { sport: CLIENT_PORT, dport: PUBLISHED, payload: vec![7; 40], checksum: true };
        let parts = pieces(&client_ip(), &long, 16);
        let first = frame(ROUTER_MAC, NODE_MAC, &parts[0].0, &parts[0].1);
        underlay(world, "its first arrives", first, Pass).run(&mut world.harness)?;
        let from_router = |packet: &Ip, l4: &L4| frame(ROUTER_MAC, NODE_MAC, packet, l4);
        let datagram = udp(CLIENT_PORT, PUBLISHED);
        for (what, packet) in [
            ("an ICMP error", from_router(&spent(client_ip()), &about)),
            ("from a group's MAC", frame([1, 0, 0x5e, 0, 0, 1], NODE_MAC, &spent(client_ip()), &datagram)),
        ] {
            underlay(world, what, packet, Drop(TtlExceeded)).check(&mut world.harness)?;
        }
        let later = from_router(&spent(parts[1].0.clone()), &parts[1].1);
        let len = later.len();
        underlay(world, "a later piece", later, Drop(TtlExceeded))
            .counts(Counter::FragmentTranslated, len)
            .check(&mut world.harness)?;
        // And what is too much for one interface (RFC 1812 section 4.3.2.8).
        let packet = from_router(&spent(client_ip()), &datagram);
        let answered = underlay(world, "few", packet.clone(), Pass).run(&mut world.harness)?;
        assert_eq!(answered.decision, Some(Refuse(TtlExceeded)));
        world.harness.drain_group_rate(world.dev.underlay)?;
        underlay(world, "too many", packet, Drop(TtlExceeded)).check(&mut world.harness)
    })
}

/// What would open nothing is the kernel's, which drops it: nothing is said to addresses that an outsider cannot have,
/// nor of ports that the packet would not reach.
#[test]
fn a_packet_that_would_open_no_connection_is_not_answered() -> Result<()> {
    const NOBODYS: [Ip4; 6] = [[0; 4], [127, 0, 0, 1], [224, 0, 0, 5], [255, 255, 255, 255], VTEP, NODE2];
    world(|world| {
        let packet = |source, l4: &L4| frame(ROUTER_MAC, NODE_MAC, &Ip { ttl: 1, ..ip(source, VTEP) }, l4);
        turn(world, 1)?;
        let kinds = [tcp(CLIENT_PORT, PUBLISHED, "S"), udp(CLIENT_PORT, PUBLISHED)];
        for (program, ifindex, _) in at_both(world) {
            for (source, l4) in NOBODYS.into_iter().flat_map(|source| kinds.iter().map(move |l4| (source, l4))) {
                golden("a source that is no client's", program, ifindex, packet(source, l4), Pass)
                    .check(&mut world.harness)?;
            }
        }
        // The way to the client leads out of the other interface.
        let (client, strict) = (world.dev.client, reverse_mode::STRICT);
        let opened = frame(ROUTER_MAC, NODE_MAC, &ip(CLIENT, VTEP), &udp(CLIENT_PORT + 1, PUBLISHED));
        golden("before the filter", Program::FromClient, client, opened, Pass).run(&mut world.harness)?;
        let filter = ReversePath { mode: strict, at: client, from: LOOPBACK };
        world.harness.keep_filters(&BTreeMap::from([(client, filter)]))?;
        for l4 in &kinds {
            golden("a source that the filter refuses", Program::FromClient, client, packet(CLIENT, l4), Pass)
                .check(&mut world.harness)?;
        }
        for (source, port) in [(NEAR, CLIENT_PORT), (CLIENT, CLIENT_PORT + 1)] {
            let (l4, sent) = (udp(port, PUBLISHED), Ip { ttl: 1, ..ip(source, VTEP) });
            golden("a client's", Program::FromClient, client, packet(source, &l4), Refuse(TtlExceeded))
                .becomes(told(NODE_MAC, ROUTER_MAC, VTEP, &sent, &l4))
                .check(&mut world.harness)?;
        }
        // The list is asked first: whom it does not let in learns nothing of the port, and is counted.
        world.state.restricted.insert(PortKey { proto: 17, _pad: 0, port: PUBLISHED.to_be_bytes() });
        world.harness.apply(&world.state)?;
        for source in [NEAR, CLIENT] {
            golden("not let in", Program::FromClient, client, packet(source, &kinds[1]), Drop(NotAllowed))
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn what_is_for_the_node_itself_needs_no_hop() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let own = AffinityKey {
            client: CLIENT,
            node: VTEP,
            client_port: 53u16.to_be_bytes(),
            port: PUBLISHED.to_be_bytes(),
            proto: 17,
            _pad: [0; 3],
        };
        world.harness.put_pending_affinity(own, Affinity { flags: flag::OWN | flag::SEEN, ..Affinity::default() })?;
        for (what, l4) in [
            ("another port", tcp(CLIENT_PORT, 22, "S")),
            ("nobody serves", tcp(CLIENT_PORT, PUBLISHED_EMPTY, "S")),
            ("in mid-connection", tcp(CLIENT_PORT, PUBLISHED, "PA")),
            ("a ping", ping(1)),
            ("an answer to a socket of the node's own", udp(53, PUBLISHED)),
        ] {
            let packet = frame(ROUTER_MAC, NODE_MAC, &Ip { ttl: 1, ..client_ip() }, &l4);
            underlay(world, what, packet.clone(), Pass).check(&mut world.harness)?;
            golden(what, Program::FromClient, dev.client, packet, Pass).check(&mut world.harness)?;
        }
        world.state.restricted.insert(PortKey { proto: 6, _pad: 0, port: PUBLISHED.to_be_bytes() });
        world.harness.apply(&world.state)?;
        let packet = frame(ROUTER_MAC, NODE_MAC, &Ip { ttl: 1, ..client_ip() }, &tcp(CLIENT_PORT, PUBLISHED, "S"));
        underlay(world, "not let in", packet, Drop(NotAllowed)).check(&mut world.harness)
    })
}

/// The kernel has routed what comes over the host link, if a process of the node has not made it.
#[test]
fn the_host_link_is_no_hop() -> Result<()> {
    world(|world| {
        let host: Ip4 = [169, 254, 72, 1];
        let link = world.dev.client;
        (world.state.config.host_ip, world.state.config.host_ifindex) = (host, link);
        world.state.node_addresses.insert(host, NodeAddress { ifindex: link, ..NodeAddress::default() });
        world.harness.apply(&world.state)?;
        turn(world, 0)?;
        for ttl in [1, 64] {
            let packet = frame(ROUTER_MAC, NODE_MAC, &Ip { ttl, ..ip(VTEP, host) }, &udp(CLIENT_PORT, PUBLISHED));
            let out = frame(VIRTUAL_MAC, mac(GW1), &Ip { ttl, ..ip(VTEP, GW1) }, &udp(CLIENT_PORT, TARGET_PORT));
            let outcome = golden("from the node", Program::FromClient, link, packet, Pass).run(&mut world.harness)?;
            assert_eq!((outcome.decision, outcome.packet), (Some(Peer(world.dev.gw1)), out));
        }
        Ok(())
    })
}

fn replies(world: &World, what: &'static str, ip: &Ip, l4: &L4, decision: dataplane::testing::Decision) -> Golden {
    gateway(world, what, frame(mac(GW1), BRIDGE_MAC, ip, l4), decision)
}

#[test]
fn a_reply_loses_one_hop_at_the_backends_node() -> Result<()> {
    world(|world| {
        world.state.config.gateway_ip = BRIDGE;
        world.harness.apply(&world.state)?;
        let question = arriving(PEER, &LOCAL1, &ip(CLIENT, PEER), &udp(CLIENT_PORT, PUBLISHED));
        underlay(world, "question", question, Pass).run(&mut world.harness)?;
        let (inside, outside) = (udp(TARGET_PORT, CLIENT_PORT), udp(PUBLISHED, CLIENT_PORT));
        for ttl in [2, 64, 255] {
            let sent = Ip { ttl, ..ip(GW1, CLIENT) };
            let left = Ip { ttl, ..ip(PEER, CLIENT) };
            let out =
                mesh_frame(([0; 6], [0; 6]), VTEP, PEER, mac(LOCAL1.ingress), node_mac(PEER), &hop(&left), &outside);
            let len = out.len() - 50;
            replies(world, "reply", &sent, &inside, Neigh(world.dev.underlay))
                .counts(Counter::MeshReturn, len)
                .counts(Counter::Encapsulated, len + 50)
                .becomes(out)
                .check_tunnelled(&mut world.harness)?;
        }
        for ttl in [0, 1] {
            let sent = Ip { ttl, ..ip(GW1, CLIENT) };
            replies(world, "no hop left", &sent, &inside, Refuse(TtlExceeded))
                .becomes(told(BRIDGE_MAC, mac(GW1), BRIDGE, &sent, &inside))
                .check(&mut world.harness)?;
            let about = unreachable(PORT, &quote(&ip(CLIENT, GW1), &udp(CLIENT_PORT, TARGET_PORT), 8));
            replies(world, "an ICMP error", &sent, &about, Drop(TtlExceeded)).check(&mut world.harness)?;
            // Its own traffic is the stack's, which routes it.
            replies(world, "its own", &sent, &udp(5000, 53), Pass).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn an_overlay_network_has_no_hops() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        for ttl in [0, 1, 64] {
            let sent = |dst| Ip { ttl, ..ip(LOCAL1.ip, dst) };
            let out_of = |packet: Ip, l4: &L4| frame(mac(LOCAL1.ip), VIRTUAL_MAC, &packet, l4);
            for (to, port) in [(VIP, 1000), (REMOTE1.ip, 1001)] {
                let l4 = udp(port, 53);
                let packet = out_of(sent(to), &l4);
                let outcome =
                    golden("overlay", Program::FromContainer, dev.veth1, packet, Pass).run(&mut world.harness)?;
                assert_eq!(outcome.decision, Some(Neigh(dev.underlay)), "TTL {ttl}");
                let inner = frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &sent(REMOTE1.ip), &l4);
                assert_eq!(outcome.packet[50..], inner, "TTL {ttl}");
            }
            let packet = out_of(sent(VIP), &ping(7));
            let len = packet.len();
            let outcome = golden("ping", Program::FromContainer, dev.veth1, packet, Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Reply(dev.veth1)));
            assert_eq!(outcome.packet.len(), len);
            let answer = frame(VIRTUAL_MAC, mac(LOCAL1.ip), &ip(VIP, LOCAL1.ip), &pong(7));
            assert_eq!(outcome.packet[26..], answer[26..], "addresses and message");
        }
        Ok(())
    })
}

#[test]
fn at_the_ingress_node_a_reply_is_not_counted_again() -> Result<()> {
    world(|world| {
        turn(world, 1)?;
        given_to(world, "question", &REMOTE1, &tcp(CLIENT_PORT, PUBLISHED, "S"), true)?;
        for ttl in [1, 63] {
            let (back, l4) = (Ip { ttl, ..routed(VTEP, CLIENT) }, tcp(PUBLISHED, CLIENT_PORT, "SA"));
            let out = frame(ROUTER_MAC, NODE_MAC, &back, &l4);
            underlay(world, "answer", returning(PEER, &REMOTE1, &back, &l4), Neigh(world.dev.underlay))
                .counts(Counter::MeshReply, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}
