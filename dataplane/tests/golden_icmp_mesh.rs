//! Golden packets of ICMP errors about connections of the routing mesh: from outside through the ingress node into the
//! task's container, and from there to the client. What is expected is built anew with all checksums, not updated.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Device, Drop, Neigh, Pass, Peer, Refuse},
};
use dataplane_common::{
    addr::{HOST_MAC, HOST_PEER_MAC, VIRTUAL_MAC},
    counter::Counter,
    drop_reason::DropReason,
    endpoint::Vtep,
    mesh::{ClientPrefix, ClientRule, shown_as},
};
use support::{
    golden::{Golden, golden},
    icmp::{PORT, TIME_EXCEEDED, TOO_BIG, error, quote, unreachable},
    mesh::*,
    packets::{Ip, Ip4, L4, Mac, frame, hop, ip, routed, tcp, udp},
    sandbox::run,
    world::*,
};

/// A router between client and ingress node.
const ROUTER: Ip4 = [198, 51, 100, 254];
/// What the container's kernel sends frames to.
const VIA: Mac = [8; 6];

/// A packet of the server's or the client's to be quoted.
fn segment(sport: u16, dport: u16) -> L4 {
    L4::Tcp { sport, dport, flags: "PA", mss: None, payload: vec![3; 30] }
}

fn datagram(sport: u16, dport: u16) -> L4 {
    L4::Udp { sport, dport, payload: b"quite a long datagram".to_vec(), checksum: true }
}

/// The errors that follow a connection.
const ERRORS: [(&str, u8, u8, u32); 4] = [
    ("port unreachable", 3, PORT, 0),
    ("fragmentation needed", 3, TOO_BIG, 1300),
    ("time exceeded", TIME_EXCEEDED, 0, 0),
    ("parameter problem", 12, 0, 0x1400_0000),
];

/// This node gives the client's connection to `task`.
fn give(world: &mut World, task: &Task, l4: &L4) -> Result<()> {
    let position = BACKENDS.iter().position(|backend| backend.tag == task.tag).expect("a backend");
    let proto = if matches!(l4, L4::Udp { .. }) { 17 } else { 6 };
    world.harness.set_cursor(&port_set(proto, PUBLISHED), position as u64)?;
    underlay(world, "given away", from_client(l4), Pass).run(&mut world.harness)?;
    Ok(())
}

/// LOCAL1 is given a connection by node PEER.
fn arrive(world: &mut World, l4: &L4) -> Result<()> {
    underlay(world, "arrives", arriving(PEER, &LOCAL1, &ip(CLIENT, PEER), l4), Pass).run(&mut world.harness)?;
    Ok(())
}

#[test]
fn an_error_from_outside_is_passed_on_untouched_to_the_backends_node() -> Result<()> {
    world(|world| {
        give(world, &REMOTE1, &udp(CLIENT_PORT, PUBLISHED))?;
        give(world, &REMOTE1, &tcp(CLIENT_PORT, PUBLISHED, "S"))?;
        for l4 in [datagram(PUBLISHED, CLIENT_PORT), segment(PUBLISHED, CLIENT_PORT)] {
            for (what, kind, code, rest) in ERRORS {
                for src in [CLIENT, ROUTER] {
                    let packet = Ip { ttl: 60, ..ip(src, VTEP) };
                    let l4 = error(kind, code, rest, &quote(&ip(VTEP, CLIENT), &l4, 8));
                    let sent = frame(ROUTER_MAC, NODE_MAC, &packet, &l4);
                    let len = sent.len();
                    underlay(world, what, sent, Neigh(world.dev.underlay))
                        .counts(Counter::MeshForward, len)
                        .counts(Counter::Encapsulated, len + 50)
                        .becomes(forwarded(&REMOTE1, &packet, &l4))
                        .check_tunnelled(&mut world.harness)?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn errors_from_outside_about_nothing_of_ours_are_the_stacks() -> Result<()> {
    world(|world| {
        give(world, &REMOTE1, &udp(CLIENT_PORT, PUBLISHED))?;
        let l4 = datagram(PUBLISHED, CLIENT_PORT);
        let mut truncated = quote(&ip(VTEP, CLIENT), &l4, 8);
        truncated.truncate(27);
        for (what, dst, payload) in [
            ("another client port", VTEP, quote(&ip(VTEP, CLIENT), &datagram(PUBLISHED, 1), 8)),
            ("another port of the node", VTEP, quote(&ip(VTEP, CLIENT), &datagram(22, CLIENT_PORT), 8)),
            ("another protocol", VTEP, quote(&ip(VTEP, CLIENT), &segment(PUBLISHED, CLIENT_PORT), 8)),
            ("another client", VTEP, quote(&ip(VTEP, ROUTER), &l4, 8)),
            ("the client's own packet", VTEP, quote(&ip(CLIENT, VTEP), &datagram(CLIENT_PORT, PUBLISHED), 8)),
            ("sent to another address", NODE2, quote(&ip(VTEP, CLIENT), &l4, 8)),
            ("truncated", VTEP, truncated),
        ] {
            let packet = frame(ROUTER_MAC, NODE_MAC, &ip(ROUTER, dst), &unreachable(PORT, &payload));
            underlay(world, what, packet, Pass).check(&mut world.harness)?;
        }
        let packet = frame(ROUTER_MAC, NODE_MAC, &ip(ROUTER, VTEP), &support::packets::ping(7));
        underlay(world, "a ping", packet, Pass).check(&mut world.harness)
    })
}

#[test]
fn the_backends_node_translates_an_error_for_the_container() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        arrive(world, &udp(CLIENT_PORT, PUBLISHED))?;
        arrive(world, &tcp(CLIENT_PORT, PUBLISHED, "S"))?;
        for (outside, inside) in [
            (datagram(PUBLISHED, CLIENT_PORT), datagram(TARGET_PORT, CLIENT_PORT)),
            (segment(PUBLISHED, CLIENT_PORT), segment(TARGET_PORT, CLIENT_PORT)),
        ] {
            for (what, kind, code, rest) in ERRORS {
                for (src, len) in [(CLIENT, 8), (ROUTER, 8), (ROUTER, 28)] {
                    let came = error(kind, code, rest, &quote(&ip(PEER, CLIENT), &outside, len));
                    let seen = error(kind, code, rest, &quote(&ip(GW1, CLIENT), &inside, len));
                    let out = frame(VIRTUAL_MAC, mac(GW1), &ip(src, GW1), &seen);
                    underlay(world, what, arriving(PEER, &LOCAL1, &ip(src, PEER), &came), Peer(dev.gw1))
                        .counts(Counter::IcmpTranslated, out.len())
                        .counts(Counter::Delivered, out.len())
                        .becomes(out)
                        .check(&mut world.harness)?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_translated_client_is_translated_in_errors_too() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        // This client is shown as the ingress node.
        let prefix = ClientPrefix { ifindex: dev.gw1.to_be_bytes(), ip: CLIENT };
        let rule = ClientRule { shown_as: shown_as::INGRESS_NODE, ..ClientRule::default() };
        world.state.clients.insert((64, prefix), rule);
        world.harness.apply(&world.state)?;
        arrive(world, &udp(CLIENT_PORT, PUBLISHED))?;
        let came = unreachable(PORT, &quote(&ip(PEER, CLIENT), &datagram(PUBLISHED, CLIENT_PORT), 8));
        let seen = unreachable(PORT, &quote(&ip(GW1, PEER), &datagram(TARGET_PORT, CLIENT_PORT), 8));
        for (src, shown) in [(CLIENT, PEER), (ROUTER, ROUTER)] {
            let out = frame(VIRTUAL_MAC, mac(GW1), &ip(shown, GW1), &seen);
            underlay(world, "in", arriving(PEER, &LOCAL1, &ip(src, PEER), &came), Peer(dev.gw1))
                .counts(Counter::IcmpTranslated, out.len())
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        let about = unreachable(PORT, &quote(&ip(PEER, GW1), &datagram(CLIENT_PORT, TARGET_PORT), 29));
        let told = unreachable(PORT, &quote(&ip(CLIENT, PEER), &datagram(CLIENT_PORT, PUBLISHED), 29));
        out_of_container(world, "out", &ip(GW1, PEER), &about, &ip(PEER, CLIENT), &told)
    })
}

/// LOCAL1's container sends `l4`, which goes to node PEER as `told`.
fn out_of_container(world: &mut World, what: &'static str, ip: &Ip, l4: &L4, told_ip: &Ip, told: &L4) -> Result<()> {
    let sent = frame(mac(GW1), VIA, ip, l4);
    let len = sent.len();
    let out = mesh_frame(([0; 6], [0; 6]), VTEP, PEER, mac(LOCAL1.ingress), node_mac(PEER), &hop(told_ip), told);
    gateway(world, what, sent, Neigh(world.dev.underlay))
        .counts(Counter::IcmpTranslated, len)
        .counts(Counter::MeshReturn, len)
        .counts(Counter::Encapsulated, len + 50)
        .becomes(out)
        .check_tunnelled(&mut world.harness)?;
    Ok(())
}

#[test]
fn a_containers_error_about_a_client_goes_back_through_the_ingress_node() -> Result<()> {
    world(|world| {
        arrive(world, &udp(CLIENT_PORT, PUBLISHED))?;
        arrive(world, &tcp(CLIENT_PORT, PUBLISHED, "S"))?;
        for (inside, outside) in [
            (datagram(CLIENT_PORT, TARGET_PORT), datagram(CLIENT_PORT, PUBLISHED)),
            (segment(CLIENT_PORT, TARGET_PORT), segment(CLIENT_PORT, PUBLISHED)),
        ] {
            for (what, kind, code, rest) in ERRORS {
                let about = error(kind, code, rest, &quote(&ip(CLIENT, GW1), &inside, 29));
                let told = error(kind, code, rest, &quote(&ip(CLIENT, PEER), &outside, 29));
                out_of_container(world, what, &ip(GW1, CLIENT), &about, &ip(PEER, CLIENT), &told)?;
            }
        }
        // About nothing of the mesh's: an ordinary packet.
        for (what, payload) in [
            ("another port", quote(&ip(CLIENT, GW1), &datagram(CLIENT_PORT, 81), 8)),
            ("another client", quote(&ip(ROUTER, GW1), &datagram(CLIENT_PORT, TARGET_PORT), 8)),
            ("another container's", quote(&ip(CLIENT, GW2), &datagram(CLIENT_PORT, TARGET_PORT), 8)),
        ] {
            let sent = frame(mac(GW1), VIA, &ip(GW1, CLIENT), &unreachable(PORT, &payload));
            gateway(world, what, sent, Pass).check(&mut world.harness)?;
        }
        // Another container cannot speak about it.
        let about = unreachable(PORT, &quote(&ip(CLIENT, GW1), &datagram(CLIENT_PORT, TARGET_PORT), 8));
        let sent = frame(mac(GW2), VIA, &ip(GW2, CLIENT), &about);
        golden("not its own", Program::FromGateway, world.dev.gw2, sent, Pass).check(&mut world.harness)
    })
}

#[test]
fn forged_errors_on_their_way_to_a_task_are_dropped() -> Result<()> {
    world(|world| {
        world.state.vteps.insert(THIRD, Vtep { hiveway: 1, ..Vtep::default() });
        world.harness.apply(&world.state)?;
        arrive(world, &udp(CLIENT_PORT, PUBLISHED))?;
        let l4 = datagram(PUBLISHED, CLIENT_PORT);
        let unmatched = Drop(DropReason::IcmpUnmatched);
        let mut truncated = quote(&ip(PEER, CLIENT), &l4, 8);
        truncated.truncate(27);
        for (what, from, task, payload) in [
            ("another ingress node's", THIRD, LOCAL1, quote(&ip(PEER, CLIENT), &l4, 8)),
            ("another task's", PEER, LOCAL2, quote(&ip(PEER, CLIENT), &l4, 8)),
            ("another connection", PEER, LOCAL1, quote(&ip(PEER, CLIENT), &datagram(PUBLISHED, 1), 8)),
            ("another port", PEER, LOCAL1, quote(&ip(PEER, CLIENT), &datagram(81, CLIENT_PORT), 8)),
            ("the other direction", PEER, LOCAL1, quote(&ip(CLIENT, GW1), &datagram(CLIENT_PORT, TARGET_PORT), 8)),
            ("truncated", PEER, LOCAL1, truncated),
        ] {
            let packet = arriving(from, &task, &ip(ROUTER, PEER), &unreachable(PORT, &payload));
            dropped(world, what, packet, unmatched)?;
        }
        Ok(())
    })
}

/// Dropped and counted once, whatever it looked like by then.
fn dropped(world: &mut World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Result<()> {
    let outcome = underlay(world, what, packet, decision).run(&mut world.harness)?;
    assert_eq!(outcome.decision, Some(decision), "{what}");
    assert_eq!(outcome.drops.values().map(|stat| stat.packets).sum::<u64>(), 1, "{what}");
    Ok(())
}

fn returned(world: &World, what: &'static str, from: Ip4, task: &Task, ip: &Ip, l4: &L4) -> Golden {
    underlay(world, what, returning(from, task, ip, l4), Neigh(world.dev.underlay))
}

#[test]
fn the_ingress_node_hands_a_tasks_error_to_the_client() -> Result<()> {
    world(|world| {
        give(world, &REMOTE1, &udp(CLIENT_PORT, PUBLISHED))?;
        for (what, kind, code, rest) in ERRORS {
            let told = error(kind, code, rest, &quote(&ip(CLIENT, VTEP), &datagram(CLIENT_PORT, PUBLISHED), 29));
            let out = frame(ROUTER_MAC, NODE_MAC, &ip(VTEP, CLIENT), &told);
            returned(world, what, PEER, &REMOTE1, &ip(VTEP, CLIENT), &told)
                .counts(Counter::MeshReply, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn the_ingress_node_is_no_reflector_of_errors() -> Result<()> {
    world(|world| {
        world.state.vteps.insert(THIRD, Vtep { hiveway: 1, ..Vtep::default() });
        world.harness.apply(&world.state)?;
        give(world, &REMOTE1, &udp(CLIENT_PORT, PUBLISHED))?;
        let l4 = datagram(CLIENT_PORT, PUBLISHED);
        let good = quote(&ip(CLIENT, VTEP), &l4, 8);
        let victim = [203, 0, 113, 77];
        let mut truncated = good.clone();
        truncated.truncate(27);
        for (what, from, task, (src, dst), payload) in [
            ("another node", THIRD, REMOTE1, (VTEP, CLIENT), good.clone()),
            ("another task", PEER, REMOTE2, (VTEP, CLIENT), good.clone()),
            ("in another address's name", PEER, REMOTE1, (ROUTER, CLIENT), good.clone()),
            ("in another node address's name", PEER, REMOTE1, (NODE2, CLIENT), good.clone()),
            ("to somebody else", PEER, REMOTE1, (VTEP, victim), good.clone()),
            ("about somebody else", PEER, REMOTE1, (VTEP, victim), quote(&ip(victim, VTEP), &l4, 8)),
            ("about another port", PEER, REMOTE1, (VTEP, CLIENT), quote(&ip(CLIENT, VTEP), &datagram(1, PUBLISHED), 8)),
            ("truncated", PEER, REMOTE1, (VTEP, CLIENT), truncated),
            ("no quote", PEER, REMOTE1, (VTEP, CLIENT), vec![]),
        ] {
            let packet = returning(from, &task, &ip(src, dst), &unreachable(PORT, &payload));
            dropped(world, what, packet, Drop(DropReason::MeshBadReturn))?;
        }
        // Nor of other messages.
        let packet = returning(PEER, &REMOTE1, &ip(VTEP, CLIENT), &error(5, 1, 0, &good));
        dropped(world, "redirect", packet, Drop(DropReason::MeshBadReturn))
    })
}

#[test]
fn on_one_node_errors_need_no_tunnel() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        give(world, &LOCAL1, &udp(CLIENT_PORT, PUBLISHED))?;
        let came = unreachable(PORT, &quote(&ip(VTEP, CLIENT), &datagram(PUBLISHED, CLIENT_PORT), 8));
        let seen = unreachable(PORT, &quote(&ip(GW1, CLIENT), &datagram(TARGET_PORT, CLIENT_PORT), 8));
        let out = frame(VIRTUAL_MAC, mac(GW1), &routed(CLIENT, GW1), &seen);
        let packet = frame(ROUTER_MAC, NODE_MAC, &ip(CLIENT, VTEP), &came);
        underlay(world, "in", packet, Peer(dev.gw1))
            .counts(Counter::MeshForward, out.len())
            .counts(Counter::IcmpTranslated, out.len())
            .counts(Counter::Delivered, out.len())
            .becomes(out)
            .check(&mut world.harness)?;
        let about = unreachable(PORT, &quote(&ip(CLIENT, GW1), &datagram(CLIENT_PORT, TARGET_PORT), 8));
        let told = unreachable(PORT, &quote(&ip(CLIENT, VTEP), &datagram(CLIENT_PORT, PUBLISHED), 8));
        let out = frame(mac(GW1), VIA, &routed(VTEP, CLIENT), &told);
        gateway(world, "out", frame(mac(GW1), VIA, &ip(GW1, CLIENT), &about), Neigh(dev.underlay))
            .counts(Counter::IcmpTranslated, out.len())
            .counts(Counter::MeshReturn, out.len())
            .counts(Counter::MeshReply, out.len())
            .becomes(out)
            .check(&mut world.harness)
    })
}

#[test]
fn an_error_to_the_node_itself_leaves_by_the_host_link() -> Result<()> {
    world(|world| {
        let host: Ip4 = [169, 254, 72, 1];
        run(&format!("ip link set stray address {}", HOST_PEER_MAC.map(|byte| format!("{byte:02x}")).join(":")))?;
        (world.state.config.host_ip, world.state.config.host_ifindex) = (host, world.dev.stray);
        let address = dataplane_common::mesh::NodeAddress { ifindex: world.dev.stray, ..Default::default() };
        world.state.node_addresses.insert(host, address);
        world.harness.apply(&world.state)?;
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        let first = frame(HOST_MAC, HOST_PEER_MAC, &ip(VTEP, host), &udp(CLIENT_PORT, PUBLISHED));
        golden("the node is the client", Program::FromClient, world.dev.stray, first, Pass).run(&mut world.harness)?;
        let told = unreachable(PORT, &quote(&ip(VTEP, host), &datagram(CLIENT_PORT, PUBLISHED), 8));
        let out = frame(HOST_MAC, HOST_PEER_MAC, &ip(host, VTEP), &told);
        let out = [&HOST_MAC[..], &HOST_PEER_MAC, &out[12..]].concat();
        underlay(world, "error", returning(PEER, &REMOTE1, &ip(host, VTEP), &told), Device(world.dev.stray))
            .counts(Counter::MeshReply, out.len())
            .becomes(out)
            .check(&mut world.harness)
    })
}

#[test]
fn a_client_whose_packet_does_not_fit_the_tunnel_is_told() -> Result<()> {
    world(|world| {
        give(world, &REMOTE1, &udp(CLIENT_PORT, PUBLISHED))?;
        let long =
            |len: usize| L4::Udp { sport: CLIENT_PORT, dport: PUBLISHED, payload: vec![1; len - 28], checksum: true };
        let len = 14 + 1451;
        let told = error(3, TOO_BIG, 1450, &quote(&client_ip(), &long(1451), 8));
        let back = Ip { id: 0, dont_fragment: false, ..ip(VTEP, CLIENT) };
        underlay(world, "too long", from_client(&long(1451)), Refuse(DropReason::MtuExceeded))
            .counts(Counter::FragNeeded, len)
            .becomes(frame(NODE_MAC, ROUTER_MAC, &back, &told))
            .check(&mut world.harness)?;
        let outcome = underlay(world, "fits", from_client(&long(1450)), Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)));
        // Who is nobody or many opens nothing; a frame from or to many is not answered.
        for (what, src) in [
            ("no address", [0, 0, 0, 0]),
            ("loopback", [127, 0, 0, 1]),
            ("multicast", [224, 0, 0, 5]),
            ("broadcast", [255, 255, 255, 255]),
        ] {
            let packet = frame(ROUTER_MAC, NODE_MAC, &ip(src, VTEP), &long(1451));
            underlay(world, what, packet, Pass).check(&mut world.harness)?;
        }
        // Reserved addresses may be somebody's, and are not answered either.
        let reserved = frame(ROUTER_MAC, NODE_MAC, &ip([240, 1, 1, 1], VTEP), &long(1451));
        dropped(world, "reserved", reserved, Drop(DropReason::MtuExceeded))?;
        let from_group = frame([3, 0, 0, 0, 0, 1], NODE_MAC, &client_ip(), &long(1451));
        dropped(world, "from a group", from_group, Drop(DropReason::MtuExceeded))?;
        // Not even looked at.
        let to_group = frame(ROUTER_MAC, [0xff; 6], &client_ip(), &long(1451));
        underlay(world, "to a group", to_group, Pass).check(&mut world.harness)?;
        // On this node there is no tunnel.
        world.harness.forget_connections()?;
        give(world, &LOCAL1, &udp(CLIENT_PORT, PUBLISHED))?;
        let outcome = underlay(world, "local", from_client(&long(1500)), Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Peer(world.dev.gw1)));
        Ok(())
    })
}

#[test]
fn a_container_whose_reply_does_not_fit_the_tunnel_is_told() -> Result<()> {
    world(|world| {
        arrive(world, &udp(CLIENT_PORT, PUBLISHED))?;
        let long =
            |len: usize| L4::Udp { sport: TARGET_PORT, dport: CLIENT_PORT, payload: vec![1; len - 28], checksum: true };
        // In its own terms: as it sent it.
        let told = error(3, TOO_BIG, 1450, &quote(&ip(GW1, CLIENT), &long(1451), 8));
        let back = Ip { id: 0, dont_fragment: false, ..ip(CLIENT, GW1) };
        let sent = frame(mac(GW1), VIA, &ip(GW1, CLIENT), &long(1451));
        gateway(world, "too long", sent.clone(), Refuse(DropReason::MtuExceeded))
            .counts(Counter::FragNeeded, sent.len())
            .becomes(frame(VIA, mac(GW1), &back, &told))
            .check(&mut world.harness)?;
        let fits = frame(mac(GW1), VIA, &ip(GW1, CLIENT), &long(1450));
        let outcome = gateway(world, "fits", fits, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)));
        Ok(())
    })
}
