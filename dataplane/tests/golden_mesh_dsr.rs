//! Golden packets of `--mesh-return dsr`: which replies of the backend's node leave directly for the client, and which
//! go back through the ingress node.

mod support;

use std::time::Duration;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Neigh, Pass, Refuse},
};
use dataplane_common::{
    config::mesh_return,
    counter::Counter,
    drop_reason::DropReason,
    mark,
    mesh::{ClientPrefix, ClientRule, shown_as},
};
use support::{
    golden::golden,
    icmp::{PORT, error, quote, unreachable},
    mesh::*,
    packets::{Ip, Ip4, L4, frame, ip, pieces, routed, tcp, udp},
    replies::*,
    sandbox::run,
    world::*,
};

#[test]
fn what_opens_or_ends_a_tcp_connection_goes_back_through_the_ingress_node() -> Result<()> {
    direct_world(|world| {
        let direct = Goes::Directly(world.dev.underlay);
        asks(world, CLIENT, &tcp(CLIENT_PORT, PUBLISHED, "S"))?;
        // Once more, as after a loss; and an answer to a second SYN.
        for flags in ["SA", "SA", "A"] {
            segment(world, flags, CLIENT, Goes::Tunnel)?;
        }
        asks(world, CLIENT, &tcp(CLIENT_PORT, PUBLISHED, "K"))?;
        for flags in ["A", "PA", "PA"] {
            segment(world, flags, CLIENT, direct)?;
        }
        for flags in ["SA", "FA", "RA"] {
            segment(world, flags, CLIENT, Goes::Tunnel)?;
        }
        // What follows a FIN may acknowledge the client's; data sent again does not have to go by.
        segment(world, "A", CLIENT, Goes::Tunnel)?;
        segment(world, "PA", CLIENT, direct)
    })
}

#[test]
fn a_server_that_sends_before_the_client_is_proved_goes_through_the_ingress_node() -> Result<()> {
    direct_world(|world| {
        asks(world, CLIENT, &tcp(CLIENT_PORT, PUBLISHED, "S"))?;
        // Promotes, here and there; so there it has to come by.
        let packet = frame(mac(GW1), VIA, &ip(GW1, CLIENT), &tcp(TARGET_PORT, CLIENT_PORT, "PA"));
        let outcome = gateway(world, "early data", packet, Pass).run(&mut world.harness)?;
        let counted: Vec<_> = outcome.counters.keys().copied().collect();
        assert_eq!(counted, [Counter::Encapsulated, Counter::MeshReturn, Counter::FlowPromoted]);
        segment(world, "PA", CLIENT, Goes::Directly(world.dev.underlay))
    })
}

#[test]
fn of_datagrams_the_first_answer_goes_back_through_the_ingress_node() -> Result<()> {
    direct_world(|world| {
        let direct = Goes::Directly(world.dev.underlay);
        asks(world, CLIENT, &udp(CLIENT_PORT, PUBLISHED))?;
        datagram(world, "first", (CLIENT, CLIENT_PORT), Goes::Tunnel)?;
        // The client has not shown yet that it is there, which changes nothing.
        datagram(world, "second", (CLIENT, CLIENT_PORT), direct)?;
        asks(world, CLIENT, &udp(CLIENT_PORT, PUBLISHED))?;
        datagram(world, "third", (CLIENT, CLIENT_PORT), direct)
    })
}

#[test]
fn a_client_that_only_listens_is_not_forgotten_by_the_ingress_node() -> Result<()> {
    direct_world(|world| {
        let direct = Goes::Directly(world.dev.underlay);
        for established in [false, true] {
            world.harness.forget_connections()?;
            let port = port_in_turn(false);
            asks(world, CLIENT, &udp(port, PUBLISHED))?;
            datagram(world, "first", (CLIENT, port), Goes::Tunnel)?;
            if established {
                asks(world, CLIENT, &udp(port, PUBLISHED))?;
            }
            age(world, true, Duration::from_secs(1))?;
            datagram(world, "the client was heard", (CLIENT, port), direct)?;
            age(world, false, Duration::from_secs(2))?;
            datagram(world, "not due yet", (CLIENT, port), direct)?;
            age(world, true, Duration::from_secs(1))?;
            datagram(world, "due", (CLIENT, port), Goes::Tunnel)?;
            datagram(world, "done", (CLIENT, port), direct)?;
        }
        Ok(())
    })
}

#[test]
fn every_connection_has_its_turn() -> Result<()> {
    direct_world(|world| {
        let direct = Goes::Directly(world.dev.underlay);
        for turn in [false, true] {
            let port = port_in_turn(turn);
            asks(world, CLIENT, &tcp(port, PUBLISHED, "S"))?;
            let reply = |flags| (tcp(TARGET_PORT, port, flags), tcp(PUBLISHED, port, flags));
            let (inside, outside) = reply("SA");
            answers(world, "SYN-ACK", CLIENT, &inside, &outside, Goes::Tunnel)?;
            asks(world, CLIENT, &tcp(port, PUBLISHED, "K"))?;
            let (inside, outside) = reply("PA");
            answers(world, "not due", CLIENT, &inside, &outside, direct)?;
            // However silent the client is: it acknowledges what it gets.
            age(world, true, Duration::from_secs(5))?;
            age(world, false, Duration::from_secs(5))?;
            let goes = if turn { Goes::Tunnel } else { direct };
            answers(world, "due", CLIENT, &inside, &outside, goes)?;
            answers(world, "done", CLIENT, &inside, &outside, direct)?;
        }
        Ok(())
    })
}

#[test]
fn with_tunnel_every_reply_goes_back() -> Result<()> {
    world(|world| {
        connect(world, CLIENT)?;
        segment(world, "PA", CLIENT, Goes::Tunnel)?;
        talk(world, CLIENT)?;
        datagram(world, "answer", (CLIENT, CLIENT_PORT), Goes::Tunnel)
    })
}

#[test]
fn an_agents_other_choice_holds_for_what_is_under_way() -> Result<()> {
    direct_world(|world| {
        let direct = Goes::Directly(world.dev.underlay);
        connect(world, CLIENT)?;
        talk(world, CLIENT)?;
        for (choice, goes) in
            [(mesh_return::DIRECT, direct), (mesh_return::TUNNEL, Goes::Tunnel), (mesh_return::DIRECT, direct)]
        {
            world.state.config.mesh_return = choice;
            world.harness.apply(&world.state)?;
            segment(world, "PA", CLIENT, goes)?;
            datagram(world, "answer", (CLIENT, CLIENT_PORT), goes)?;
        }
        Ok(())
    })
}

#[test]
fn the_routing_table_says_which_way_is_direct() -> Result<()> {
    direct_world(|world| {
        // On another interface than the tunnel's.
        connect(world, NEAR)?;
        segment(world, "PA", NEAR, Goes::Directly(world.dev.client))?;
        run("ip route add unreachable 198.51.100.99")?;
        run("ip route add 198.51.100.98 via 192.0.2.2")?;
        let (nowhere, behind_ingress, own): (Ip4, Ip4, Ip4) = ([198, 51, 100, 99], [198, 51, 100, 98], NODE2);
        for client in [nowhere, behind_ingress, PEER, own] {
            connect(world, client)?;
            segment(world, "PA", client, Goes::Tunnel)?;
            talk(world, client)?;
            datagram(world, "answer", (client, CLIENT_PORT), Goes::Tunnel)?;
        }
        Ok(())
    })
}

#[test]
fn a_client_that_is_shown_with_another_address_is_answered_through_the_ingress_node() -> Result<()> {
    direct_world(|world| {
        let prefix = ClientPrefix { ifindex: world.dev.gw1.to_be_bytes(), ip: CLIENT };
        for (rule, shown) in [(shown_as::INGRESS_NODE, PEER), (shown_as::GATEWAY, [172, 18, 0, 1])] {
            world.harness.forget_connections()?;
            world.state.config.gateway_ip = [172, 18, 0, 1];
            world.state.clients.insert((64, prefix), ClientRule { shown_as: rule, ..ClientRule::default() });
            world.harness.apply(&world.state)?;
            let question = udp(CLIENT_PORT, PUBLISHED);
            for _ in 0..2 {
                asks(world, CLIENT, &question)?;
                let (inside, outside) = (udp(TARGET_PORT, CLIENT_PORT), udp(PUBLISHED, CLIENT_PORT));
                answers_as(world, "answer", (&ip(GW1, shown), &inside), (&ip(PEER, CLIENT), &outside), Goes::Tunnel)?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_node_that_is_its_own_client_is_answered_through_the_tunnel() -> Result<()> {
    direct_world(|world| {
        let host: Ip4 = [169, 254, 72, 1];
        let arrives = arriving(PEER, &LOCAL1, &ip(PEER, host), &udp(CLIENT_PORT, PUBLISHED));
        for _ in 0..2 {
            underlay(world, "question", arrives.clone(), Pass).run(&mut world.harness)?;
            let (inside, outside) = (udp(TARGET_PORT, CLIENT_PORT), udp(PUBLISHED, CLIENT_PORT));
            answers_as(world, "answer", (&ip(GW1, PEER), &inside), (&ip(host, PEER), &outside), Goes::Tunnel)?;
        }
        Ok(())
    })
}

#[test]
fn a_client_of_this_node_is_answered_as_ever() -> Result<()> {
    direct_world(|world| {
        world.harness.set_cursor(&port_set(17, PUBLISHED), 0)?;
        given_to(world, "question", &LOCAL1, &udp(CLIENT_PORT, PUBLISHED), true)?;
        for _ in 0..2 {
            let sent = frame(mac(GW1), VIA, &ip(GW1, CLIENT), &udp(TARGET_PORT, CLIENT_PORT));
            let len = sent.len();
            gateway(world, "answer", sent, Neigh(world.dev.underlay))
                .counts(Counter::MeshReturn, len)
                .counts(Counter::MeshReply, len)
                .leaves_mark(mark::MESH_REPLY)
                .becomes(frame(mac(GW1), VIA, &routed(VTEP, CLIENT), &udp(PUBLISHED, CLIENT_PORT)))
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

/// UDP in an IP packet of this length.
fn of_length(len: usize, sport: u16, dport: u16) -> L4 {
    L4::Udp { sport, dport, payload: vec![7; len - 28], checksum: true }
}

fn sized(world: &mut World, what: &'static str, len: usize, dont_fragment: bool, goes: Goes) -> Result<()> {
    let cut = |ip: Ip| Ip { dont_fragment, ..ip };
    let (inside, outside) = (of_length(len, TARGET_PORT, CLIENT_PORT), of_length(len, PUBLISHED, CLIENT_PORT));
    answers_as(world, what, (&cut(ip(GW1, CLIENT)), &inside), (&cut(ip(PEER, CLIENT)), &outside), goes)
}

#[test]
fn a_reply_needs_room_for_no_tunnel() -> Result<()> {
    direct_world(|world| {
        let direct = Goes::Directly(world.dev.underlay);
        asks(world, CLIENT, &udp(CLIENT_PORT, PUBLISHED))?;
        // Even the first answer rather goes directly than not at all.
        sized(world, "too big for the tunnel", 1500, true, direct)?;
        sized(world, "fits the tunnel", 1450, true, direct)?;
        sized(world, "full size", 1500, true, direct)?;
        sized(world, "full size, may be cut", 1500, false, direct)
    })
}

#[test]
fn a_narrow_direct_way_is_told_to_the_container() -> Result<()> {
    direct_world(|world| {
        // As the kernel's own forwarding: what path discovery has taught the node's sockets does not count.
        run("ip route add 198.51.100.0/24 via 192.0.2.254 mtu lock 1300")?;
        talk(world, CLIENT)?;
        sized(world, "fits", 1300, true, Goes::Directly(world.dev.underlay))?;
        sized(world, "must be cut", 1301, false, Goes::Tunnel)?;
        let too_big = of_length(1301, TARGET_PORT, CLIENT_PORT);
        let sent = ip(GW1, CLIENT);
        let answer = error(3, 4, 1300, &quote(&sent, &too_big, 8));
        let told = Ip { id: 0, dont_fragment: false, ..ip(CLIENT, GW1) };
        gateway(world, "too big", frame(mac(GW1), VIA, &sent, &too_big), Refuse(DropReason::MtuExceeded))
            .counts(Counter::FragNeeded, 1301 + 14)
            .becomes(frame(VIA, mac(GW1), &told, &answer))
            .check(&mut world.harness)
    })
}

#[test]
fn fragments_go_where_their_first_goes() -> Result<()> {
    direct_world(|world| {
        asks(world, CLIENT, &udp(CLIENT_PORT, PUBLISHED))?;
        let whole = |sport| of_length(400, sport, CLIENT_PORT);
        for (id, goes) in [(1, Goes::Tunnel), (2, Goes::Directly(world.dev.underlay))] {
            let cut = |ip: Ip| Ip { id, dont_fragment: false, ..ip };
            let (sent, told) = (cut(ip(GW1, CLIENT)), cut(ip(PEER, CLIENT)));
            let inside = pieces(&sent, &whole(TARGET_PORT), 160);
            for ((sent, inside), (told, outside)) in inside.iter().zip(&pieces(&told, &whole(PUBLISHED), 160)) {
                answers_as(world, "piece", (sent, inside), (told, outside), goes)?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_containers_icmp_error_goes_through_the_ingress_node() -> Result<()> {
    direct_world(|world| {
        talk(world, CLIENT)?;
        let about = unreachable(PORT, &quote(&ip(CLIENT, GW1), &udp(CLIENT_PORT, TARGET_PORT), 8));
        let told = unreachable(PORT, &quote(&ip(CLIENT, PEER), &udp(CLIENT_PORT, PUBLISHED), 8));
        let sent = frame(mac(GW1), VIA, &ip(GW1, CLIENT), &about);
        let len = sent.len();
        let out =
            mesh_frame(([0; 6], [0; 6]), VTEP, PEER, mac(LOCAL1.ingress), node_mac(PEER), &routed(PEER, CLIENT), &told);
        gateway(world, "error", sent, Neigh(world.dev.underlay))
            .counts(Counter::IcmpTranslated, len)
            .counts(Counter::MeshReturn, len)
            .counts(Counter::Encapsulated, len + 50)
            .becomes(out)
            .check_tunnelled(&mut world.harness)
            .map(drop)
    })
}

/// As ingress node: what the backend's node sends through the tunnel is all that this node needs.
#[test]
fn the_ingress_node_lives_by_what_it_sees() -> Result<()> {
    world(|world| {
        let given = |world: &mut World, flags| {
            let packet = from_client(&tcp(CLIENT_PORT, PUBLISHED, flags));
            underlay(world, "client", packet, Pass).run(&mut world.harness)
        };
        world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
        given(world, "S")?;
        let back = returning(PEER, &REMOTE1, &ip(VTEP, CLIENT), &tcp(PUBLISHED, CLIENT_PORT, "SA"));
        underlay(world, "SYN-ACK", back, Pass).run(&mut world.harness)?;
        assert_eq!(world.harness.established_affinity()?.len(), 0);
        given(world, "K")?;
        assert_eq!(world.harness.established_affinity()?.len(), 1, "proved, and nothing else needs to come back");
        let outcome = golden(
            "an error of a router on the direct way",
            Program::FromUnderlay,
            world.dev.underlay,
            frame(
                ROUTER_MAC,
                NODE_MAC,
                &ip([203, 0, 113, 9], VTEP),
                &error(3, 4, 1300, &quote(&ip(VTEP, CLIENT), &tcp(PUBLISHED, CLIENT_PORT, "PA"), 8)),
            ),
            Pass,
        )
        .run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)), "to the backend's node");
        Ok(())
    })
}
