//! Golden packets of the routing mesh at the backend's node: mesh frames into the container (`from_underlay`), and its
//! replies towards the ingress node (`from_gateway`).

mod support;

use std::collections::BTreeMap;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Drop, Neigh, Pass, Peer},
};
use dataplane_common::{
    addr::VIRTUAL_MAC,
    counter::Counter,
    drop_reason::DropReason,
    endpoint::Vtep,
    flow::{Flow, MESH_ZONE, flag},
    mesh::TargetKey,
};
use support::{
    golden::golden,
    mesh::*,
    packets::{Ip, Ip4, L4, Mac, ethernet, frame, ip, routed, tcp, udp, vxlan},
    world::*,
};

/// What the container of LOCAL1 gets of a client's packet; `sport` is the client's port as it sees it.
fn in_container(sport: u16, l4: &L4) -> Vec<u8> {
    let translated = match l4.clone() {
        L4::Tcp { flags, mss, payload, .. } => L4::Tcp { sport, dport: TARGET_PORT, flags, mss, payload },
        L4::Udp { payload, checksum, .. } => L4::Udp { sport, dport: TARGET_PORT, payload, checksum },
        other => other,
    };

    frame(VIRTUAL_MAC, mac(GW1), &Ip { ttl: 57, ..ip(CLIENT, GW1) }, &translated)
}

fn client_to(node: Ip4) -> Ip {
    Ip { ttl: 57, ..ip(CLIENT, node) }
}

#[test]
fn a_mesh_frame_is_delivered_with_the_clients_address() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        for l4 in [tcp(CLIENT_PORT, PUBLISHED, "S"), tcp(CLIENT_PORT, PUBLISHED, "PA"), udp(CLIENT_PORT, PUBLISHED)] {
            let out = in_container(CLIENT_PORT, &l4);
            underlay(world, "delivered", arriving(PEER, &LOCAL1, &client_to(PEER), &l4), Peer(dev.gw1))
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        let flows = world.harness.flows()?;
        assert_eq!(flows.len(), 4, "two entries for TCP, two for UDP");
        for (key, flow) in &flows {
            assert_eq!((key.zone, flow.tag, flow.peer, flow.task), (MESH_ZONE, LOCAL1.tag, PEER, LOCAL1.ingress));
            let (before, after) = if flow.flags & flag::REPLY == 0 {
                ((CLIENT, PEER), (CLIENT, GW1))
            } else {
                ((GW1, CLIENT), (PEER, CLIENT))
            };
            assert_eq!(((key.src, key.dst), (flow.src, flow.dst)), (before, after));
        }
        Ok(())
    })
}

#[test]
fn the_reply_goes_back_through_the_ingress_node() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        for (question, answer, back) in [
            (tcp(CLIENT_PORT, PUBLISHED, "S"), tcp(TARGET_PORT, CLIENT_PORT, "SA"), tcp(PUBLISHED, CLIENT_PORT, "SA")),
            (udp(CLIENT_PORT, PUBLISHED), udp(TARGET_PORT, CLIENT_PORT), udp(PUBLISHED, CLIENT_PORT)),
        ] {
            let packet = arriving(PEER, &LOCAL1, &client_to(PEER), &question);
            underlay(world, "question", packet, Pass).run(&mut world.harness)?;
            let sent = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &answer);
            let len = sent.len();
            let out = mesh_frame(
                ([0; 6], [0; 6]),
                VTEP,
                PEER,
                mac(LOCAL1.ingress),
                node_mac(PEER),
                &routed(PEER, CLIENT),
                &back,
            );
            gateway(world, "answer", sent, Neigh(dev.underlay))
                .counts(Counter::MeshReturn, len)
                .counts(Counter::Encapsulated, len + 50)
                .becomes(out)
                .check_tunnelled(&mut world.harness)?;
        }
        // The same container's own traffic to that client is nothing of the mesh's.
        let own = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &tcp(TARGET_PORT, CLIENT_PORT + 1, "S"));
        gateway(world, "another port", own, Pass).check(&mut world.harness)?;
        // Another container cannot use its flow: the address is not its own, and neither is the flow.
        let foreign = frame(mac(GW2), [9; 6], &ip(GW1, CLIENT), &tcp(TARGET_PORT, CLIENT_PORT, "PA"));
        golden("another container", Program::FromGateway, dev.gw2, foreign, Drop(DropReason::SpoofedIp))
            .check(&mut world.harness)
    })
}

/// As a container makes it look that gives its interface on the engine's bridge another one's address.
#[test]
fn a_container_with_anothers_address_ends_none_of_its_connections() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let arrives = |l4: &L4| arriving(PEER, &LOCAL1, &client_to(PEER), l4);
        underlay(world, "SYN", arrives(&tcp(3000, PUBLISHED, "S")), Pass).run(&mut world.harness)?;
        let pending = world.harness.pending_flows()?;
        let local = world.state.locals.get_mut(&dev.gw2).expect("the other container's veth");
        (local.ip, local.mac) = (GW1, mac(GW1));
        world.harness.apply(&world.state)?;
        for flags in ["PA", "R", "F"] {
            let forged = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &tcp(TARGET_PORT, 3000, flags));
            golden("forged", Program::FromGateway, dev.gw2, forged, Pass).run(&mut world.harness)?;
        }
        assert_eq!(world.harness.pending_flows()?, pending, "neither proved nor ended");
        assert_eq!(world.harness.established_flows()?.len(), 0);
        Ok(())
    })
}

#[test]
fn segment_sizes_are_clamped_to_the_tunnel_both_ways() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let syn = |sport, dport, flags, mss| L4::Tcp { sport, dport, flags, mss: Some(mss), payload: vec![] };
        // 1500 - 50 for the tunnel - 40 for IP and TCP.
        for (port, offered, clamped) in [(1000, 1460, 1410), (1001, 1411, 1410), (1002, 1410, 1410), (1003, 536, 536)] {
            let packet = arriving(PEER, &LOCAL1, &client_to(PEER), &syn(port, PUBLISHED, "S", offered));
            let out = in_container(port, &syn(port, PUBLISHED, "S", clamped));
            underlay(world, "SYN", packet, Peer(dev.gw1))
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
            let sent = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &syn(TARGET_PORT, port, "SA", offered));
            let len = sent.len();
            let back = syn(PUBLISHED, port, "SA", clamped);
            let out = mesh_frame(
                ([0; 6], [0; 6]),
                VTEP,
                PEER,
                mac(LOCAL1.ingress),
                node_mac(PEER),
                &routed(PEER, CLIENT),
                &back,
            );
            gateway(world, "SYN ACK", sent, Neigh(dev.underlay))
                .counts(Counter::MeshReturn, len)
                .counts(Counter::Encapsulated, len + 50)
                .becomes(out)
                .check_tunnelled(&mut world.harness)?;
        }
        // Without a tunnel in the way nothing is clamped.
        world.harness.set_cursor(&port_set(6, PUBLISHED), 0)?;
        given_to(world, "on this node", &LOCAL1, &syn(2000, PUBLISHED, "S", 1460), true)
    })
}

#[test]
fn mesh_frames_are_taken_from_hiveway_nodes_only() -> Result<()> {
    world(|world| {
        let l4 = tcp(CLIENT_PORT, PUBLISHED, "S");
        for from in [STRANGER, PLAIN, VTEP, CLIENT] {
            let packet = arriving(from, &LOCAL1, &client_to(from), &l4);
            underlay(world, "no node of ours", packet, Drop(DropReason::UnknownVtep)).check(&mut world.harness)?;
        }
        // The source MAC names the ingress node; it must be the sender.
        let packet = mesh_frame(
            (ROUTER_MAC, NODE_MAC),
            PEER,
            VTEP,
            node_mac(THIRD),
            mac(LOCAL1.ingress),
            &client_to(THIRD),
            &l4,
        );
        underlay(world, "speaks for another node", packet, Drop(DropReason::BadInnerSource))
            .check(&mut world.harness)?;
        assert_eq!(world.harness.flows()?, BTreeMap::new());
        Ok(())
    })
}

#[test]
fn mesh_frames_that_lead_nowhere_are_dropped() -> Result<()> {
    world(|world| {
        let syn = tcp(CLIENT_PORT, PUBLISHED, "S");
        let to = client_to(PEER);
        let raw = |dst: Mac| mesh_frame((ROUTER_MAC, NODE_MAC), PEER, VTEP, node_mac(PEER), dst, &to, &syn);
        let fragment = Ip { dont_fragment: false, fragment_offset: 3, ..to.clone() };
        let ipv6 = ethernet(node_mac(PEER), mac(LOCAL1.ingress), 0x86dd, &[0x60; 40]);
        let (outer, tunnel) = vxlan(PEER, VTEP, 50000, MESH, &ipv6);
        for (what, packet, reason) in [
            ("a task of another node", arriving(PEER, &REMOTE1, &to, &syn), DropReason::MeshNoTarget),
            ("another port", arriving(PEER, &LOCAL1, &to, &tcp(CLIENT_PORT, 81, "S")), DropReason::MeshNoTarget),
            ("a MAC of no meaning", raw([2, 0, 0, 0, 0, 1]), DropReason::MeshNoTarget),
            ("another node's MAC", raw(node_mac(THIRD)), DropReason::MeshNoTarget),
            (
                "in mid-connection",
                arriving(PEER, &LOCAL1, &to, &tcp(CLIENT_PORT, PUBLISHED, "PA")),
                DropReason::MeshNoFlow,
            ),
            (
                "a later fragment",
                arriving(PEER, &LOCAL1, &fragment, &udp(CLIENT_PORT, PUBLISHED)),
                DropReason::Fragment,
            ),
            ("no IPv4 inside", frame(ROUTER_MAC, NODE_MAC, &outer, &tunnel), DropReason::MalformedHeader),
        ] {
            let outcome = underlay(world, what, packet, Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Drop(reason)), "{what}");
            assert_eq!(outcome.drops.iter().map(|(r, s)| (*r, s.packets)).collect::<Vec<_>>(), [(reason, 1)], "{what}");
            assert_eq!(outcome.counters, BTreeMap::new(), "{what}");
        }
        assert_eq!(world.harness.flows()?, BTreeMap::new());
        Ok(())
    })
}

#[test]
fn one_client_port_through_two_ingress_nodes_is_not_crossed() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        world.state.vteps.insert(THIRD, Vtep { hiveway: 1, ..Vtep::default() });
        world.harness.apply(&world.state)?;
        let question = udp(CLIENT_PORT, PUBLISHED);
        let mut ports = Vec::new();
        for node in [PEER, THIRD] {
            let packet = arriving(node, &LOCAL1, &client_to(node), &question);
            let out = underlay(world, "question", packet, Pass).run(&mut world.harness)?;
            let sport = u16::from_be_bytes([out.packet[34], out.packet[35]]);
            assert_eq!(out.packet, in_container(sport, &question));
            ports.push((node, sport));
        }
        assert_eq!(ports[0].1, CLIENT_PORT);
        assert_ne!(ports[1].1, CLIENT_PORT, "the container cannot tell the two flows apart");
        for (node, sport) in ports {
            let sent = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &udp(TARGET_PORT, sport));
            let len = sent.len();
            let back = udp(PUBLISHED, CLIENT_PORT);
            let out = mesh_frame(
                ([0; 6], [0; 6]),
                VTEP,
                node,
                mac(LOCAL1.ingress),
                node_mac(node),
                &routed(node, CLIENT),
                &back,
            );
            gateway(world, "answer", sent, Neigh(dev.underlay))
                .counts(Counter::MeshReturn, len)
                .counts(Counter::Encapsulated, len + 50)
                .becomes(out)
                .check_tunnelled(&mut world.harness)?;
        }
        Ok(())
    })
}

/// A balancer's address may be on every node: anybody beside one of them reaches it there.
#[test]
fn a_live_connection_keeps_its_ingress_node() -> Result<()> {
    // A backend's TIME-WAIT of 60 seconds may end 5 seconds late.
    const HELD: u64 = 65_000_000_000;
    const SILENT: u64 = 67_000_000_000;
    // A VM may be younger than its connections are made below.
    while dataplane::monotonic_now() <= SILENT {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    world(|world| {
        let dev = world.dev;
        world.state.vteps.insert(THIRD, Vtep { hiveway: 1, ..Vtep::default() });
        world.harness.apply(&world.state)?;
        let through = |node, l4: &L4| arriving(node, &LOCAL1, &client_to(PEER), l4);
        let syn = tcp(CLIENT_PORT, PUBLISHED, "S");
        for (what, l4) in [("SYN", &syn), ("ACK", &tcp(CLIENT_PORT, PUBLISHED, "K"))] {
            let outcome = underlay(world, what, through(PEER, l4), Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Peer(dev.gw1)), "{what}");
            if what == "SYN" {
                let answer = frame(mac(GW1), [2; 6], &ip(GW1, CLIENT), &tcp(TARGET_PORT, CLIENT_PORT, "SA"));
                gateway(world, "SYN-ACK", answer, Pass).run(&mut world.harness)?;
            }
        }
        let before = world.harness.flows()?;
        assert_eq!((before.len(), world.harness.pending_flows()?.len()), (2, 0), "proved");
        for (flags, reason) in
            [("S", DropReason::FlowCollision), ("A", DropReason::MeshNoFlow), ("R", DropReason::MeshNoFlow)]
        {
            let packet = through(THIRD, &tcp(CLIENT_PORT, PUBLISHED, flags));
            let outcome = underlay(world, flags, packet, Drop(reason)).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Drop(reason)), "{flags}");
            assert_eq!(world.harness.flows()?, before, "{flags}");
        }
        // Once the client has been silent for longer than the backend remembers, the address may have moved.
        for (silent, decision) in [(HELD, Drop(DropReason::FlowCollision)), (SILENT, Peer(dev.gw1))] {
            for (key, flow) in before.clone() {
                // From now on: a VM takes long for what comes before.
                world.harness.put_flow(key, Flow { last_seen: dataplane::monotonic_now() - silent, ..flow })?;
            }
            let outcome = underlay(world, "SYN", through(THIRD, &syn), Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(decision), "silent for {silent} ns");
        }
        // Datagrams follow the address at once: nothing of theirs can be cut.
        for node in [PEER, THIRD] {
            let outcome = underlay(world, "datagram", through(node, &udp(CLIENT_PORT, PUBLISHED)), Pass);
            assert_eq!(outcome.run(&mut world.harness)?.decision, Some(Peer(dev.gw1)));
        }
        Ok(())
    })
}

/// Anybody can say a client's SYN to another node that has the address.
#[test]
fn a_handshake_that_nobody_goes_on_with_keeps_no_client_out() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        world.state.vteps.insert(THIRD, Vtep { hiveway: 1, ..Vtep::default() });
        world.harness.apply(&world.state)?;
        let syn = |node| arriving(node, &LOCAL1, &client_to(PEER), &tcp(CLIENT_PORT, PUBLISHED, "S"));
        underlay(world, "a stranger's", syn(THIRD), Pass).run(&mut world.harness)?;
        let soon = underlay(world, "the client's, at once", syn(PEER), Pass).run(&mut world.harness)?;
        assert_eq!(soon.decision, Some(Drop(DropReason::FlowCollision)));
        for (key, flow) in world.harness.pending_flows()? {
            world.harness.put_pending_flow(key, Flow { last_seen: flow.last_seen - 4_000_000_000, ..flow })?;
        }
        let again = underlay(world, "the client's, sent again", syn(PEER), Pass).run(&mut world.harness)?;
        assert_eq!(again.decision, Some(Peer(dev.gw1)));
        Ok(())
    })
}

#[test]
fn two_published_ports_of_one_target_are_not_crossed() -> Result<()> {
    world(|world| {
        let second = 9090u16;
        let key = |port: u16| TargetKey { ip: LOCAL1.ingress, port: port.to_be_bytes(), proto: 17, _pad: 0 };
        let target = world.state.targets[&key(PUBLISHED)];
        world.state.targets.insert(key(second), target);
        world.harness.apply(&world.state)?;
        let mut seen = Vec::new();
        for published in [PUBLISHED, second] {
            let packet = arriving(PEER, &LOCAL1, &client_to(PEER), &udp(CLIENT_PORT, published));
            let out = underlay(world, "question", packet, Peer(world.dev.gw1)).run(&mut world.harness)?;
            assert_eq!(out.decision, Some(Peer(world.dev.gw1)));
            let sport = u16::from_be_bytes([out.packet[34], out.packet[35]]);
            let sent = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &udp(TARGET_PORT, sport));
            let out = gateway(world, "answer", sent, Pass).run(&mut world.harness)?;
            // Behind the outer headers, inner Ethernet and inner IP.
            let inner_udp = 14 + 50 + 20;
            let back = u16::from_be_bytes([out.packet[inner_udp], out.packet[inner_udp + 1]]);
            assert_eq!(back, published);
            seen.push(sport);
        }
        assert_ne!(seen[0], seen[1]);
        Ok(())
    })
}

#[test]
fn a_client_that_begins_anew_with_another_task_does_not_disturb_the_formers_time_wait() -> Result<()> {
    world(|world| {
        world.state.vteps.insert(THIRD, Vtep { hiveway: 1, ..Vtep::default() });
        world.harness.apply(&world.state)?;
        let arrives = |world: &mut World, node: Ip4, task: &Task, flags: &'static str| {
            let packet = arriving(node, task, &client_to(node), &tcp(CLIENT_PORT, PUBLISHED, flags));
            underlay(world, "client", packet, Pass).run(&mut world.harness)
        };
        let answers = |world: &mut World, flags: &'static str| {
            let packet = frame(mac(GW1), [2; 6], &ip(GW1, CLIENT), &tcp(TARGET_PORT, CLIENT_PORT, flags));
            gateway(world, "task", packet, Pass).run(&mut world.harness)
        };
        for connected in [false, true] {
            world.harness.forget_connections()?;
            arrives(world, PEER, &LOCAL1, "S")?;
            answers(world, "SA")?;
            if connected {
                arrives(world, PEER, &LOCAL1, "K")?;
            }
            answers(world, "FA")?;
            // As many bytes before its FIN as all answers acknowledge.
            let last = L4::Tcp { sport: CLIENT_PORT, dport: PUBLISHED, flags: "FA", mss: None, payload: vec![0; 900] };
            let packet = arriving(PEER, &LOCAL1, &client_to(PEER), &last);
            underlay(world, "client", packet, Pass).run(&mut world.harness)?;
            answers(world, "A")?;
            // The same port again: the ingress node has chosen another task.
            let outcome = arrives(world, PEER, &LOCAL2, "S")?;
            assert_eq!(outcome.decision, Some(Peer(world.dev.gw2)));
            // And once more, through another node and with the first task.
            let outcome = arrives(world, THIRD, &LOCAL1, "S")?;
            assert_eq!(outcome.decision, Some(Peer(world.dev.gw1)));
            let port = u16::from_be_bytes([outcome.packet[34], outcome.packet[35]]);
            assert_ne!(port, CLIENT_PORT, "the task may still have this connection in TIME-WAIT");
        }
        Ok(())
    })
}

#[test]
fn a_task_in_anothers_place_gets_none_of_its_connections() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let arrives = |world: &mut World, l4: &L4| {
            let packet = arriving(PEER, &LOCAL1, &client_to(PEER), l4);
            underlay(world, "client", packet, Pass).run(&mut world.harness)
        };
        let (syn, datagram) = (tcp(CLIENT_PORT, PUBLISHED, "S"), udp(CLIENT_PORT, PUBLISHED));
        for opening in [&syn, &datagram] {
            let outcome = arrives(world, opening)?;
            assert_eq!((outcome.decision, outcome.packet), (Some(Peer(dev.gw1)), in_container(CLIENT_PORT, opening)));
        }
        // LOCAL2 is given the ingress address before any sweep has come by.
        for proto in [6, 17] {
            let key = |ip| TargetKey { ip, port: PUBLISHED.to_be_bytes(), proto, _pad: 0 };
            let successor = world.state.targets[&key(LOCAL2.ingress)];
            assert_eq!((successor.tag, successor.ip), (LOCAL2.tag, GW2));
            world.state.targets.insert(key(LOCAL1.ingress), successor);
        }
        world.harness.apply(&world.state)?;
        let outcome = arrives(world, &tcp(CLIENT_PORT, PUBLISHED, "PA"))?;
        assert_eq!(outcome.decision, Some(Drop(DropReason::MeshNoFlow)));
        // What may open a connection opens one.
        for opening in [&datagram, &syn] {
            let outcome = arrives(world, opening)?;
            assert_eq!((outcome.decision, &outcome.packet[30..34]), (Some(Peer(dev.gw2)), &GW2[..]));
        }
        // The former task no longer speaks for the published port.
        for l4 in [udp(TARGET_PORT, CLIENT_PORT), tcp(TARGET_PORT, CLIENT_PORT, "PA")] {
            gateway(world, "answer", frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &l4), Pass).check(&mut world.harness)?;
        }
        Ok(())
    })
}
