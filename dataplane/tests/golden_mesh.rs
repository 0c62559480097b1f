//! Golden packets of the routing mesh at the ingress node: clients' packets on the way in (`from_underlay`,
//! `from_client`), and replies on the way back (`from_underlay`, `from_gateway`).

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Drop, Neigh, Pass},
};
use dataplane_common::{
    addr::Mac,
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{Vtep, vtep_mesh},
    flow::flag,
    mark,
    xdp::Hop,
};
use support::{
    golden::golden,
    mesh::*,
    packets::{Ip, Ip4, L4, frame, ip, ping, routed, tcp, udp, vxlan},
    sandbox::run,
    world::*,
};

#[test]
fn clients_are_given_the_backends_in_turn_and_keep_them() -> Result<()> {
    world(|world| {
        for proto in [6, 17] {
            world.harness.set_cursor(&port_set(proto, PUBLISHED), 0)?;
            for (port, task) in (CLIENT_PORT..).zip(BACKENDS.iter().cycle()).take(7) {
                if proto == 6 {
                    given_to(world, "SYN", task, &tcp(port, PUBLISHED, "S"), true)?;
                    given_to(world, "SYN again", task, &tcp(port, PUBLISHED, "S"), false)?;
                    given_to(world, "data", task, &tcp(port, PUBLISHED, "PA"), false)?;
                    given_to(world, "FIN", task, &tcp(port, PUBLISHED, "FA"), false)?;
                    given_to(world, "last ACK", task, &tcp(port, PUBLISHED, "A"), false)?;
                } else {
                    given_to(world, "datagram", task, &udp(port, PUBLISHED), true)?;
                    given_to(world, "next datagram", task, &udp(port, PUBLISHED), false)?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn every_backend_gets_exactly_its_share() -> Result<()> {
    world(|world| {
        for port in 1000..1300 {
            underlay(world, "one of 300", from_client(&tcp(port, PUBLISHED, "S")), Pass).run(&mut world.harness)?;
        }
        let mut shares = BTreeMap::<_, u32>::new();
        for affinity in world.harness.affinity()?.values() {
            *shares.entry(affinity.tag).or_default() += 1;
        }
        assert_eq!(shares, BACKENDS.iter().map(|task| (task.tag, 100)).collect());
        Ok(())
    })
}

#[test]
fn every_address_of_the_node_answers() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        for (program, ifindex) in [(Program::FromClient, dev.client), (Program::FromUnderlay, dev.underlay)] {
            for node in [VTEP, NODE2] {
                world.harness.forget_connections()?;
                world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
                let (packet, l4) = (ip(NEAR, node), tcp(CLIENT_PORT, PUBLISHED, "S"));
                let arrived = frame(NEAR_MAC, NODE_MAC, &packet, &l4);
                let len = arrived.len();
                golden("to any address, on any interface", program, ifindex, arrived, Neigh(dev.underlay))
                    .counts(Counter::MeshFlow, len)
                    .counts(Counter::MeshForward, len)
                    .counts(Counter::Encapsulated, len + 50)
                    .becomes(forwarded(&REMOTE1, &packet, &l4))
                    .check_tunnelled(&mut world.harness)?;
            }
        }
        Ok(())
    })
}

/// Sources that the kernel calls martian on any interface.
const MARTIANS: [Ip4; 8] =
    [[0; 4], [0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 5], [239, 255, 0, 1], [255; 4], VTEP, NODE2];

#[test]
fn a_source_that_nobody_outside_has_opens_nothing() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        for (program, ifindex) in [(Program::FromClient, dev.client), (Program::FromUnderlay, dev.underlay)] {
            for source in MARTIANS {
                for l4 in [tcp(CLIENT_PORT, PUBLISHED, "S"), udp(CLIENT_PORT, PUBLISHED)] {
                    let packet = frame(ROUTER_MAC, NODE_MAC, &ip(source, VTEP), &l4);
                    golden("martian", program, ifindex, packet, Pass).check(&mut world.harness)?;
                }
            }
        }
        assert_eq!((world.harness.pending_affinity()?.len(), world.harness.pending_flows()?.len()), (0, 0));
        // Its neighbours in the address space are clients; Linux routes the reserved ones like any other.
        let neighbours = [[1, 0, 0, 1], [126, 255, 255, 255], [128, 0, 0, 1], [223, 255, 255, 255], [240, 0, 0, 1]];
        for source in neighbours {
            world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
            let packet = frame(ROUTER_MAC, NODE_MAC, &ip(source, VTEP), &udp(CLIENT_PORT, PUBLISHED));
            let outcome = underlay(world, "a client", packet, Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Neigh(dev.underlay)), "{source:?}");
        }
        Ok(())
    })
}

#[test]
fn what_is_not_published_is_the_stacks() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let to = |dst: Ip4, l4: &L4| frame(ROUTER_MAC, NODE_MAC, &ip(CLIENT, dst), l4);
        let raw = |proto| L4::Raw { proto, payload: vec![0x1f; 32] };
        let fragment = |fragment_offset| {
            let piece = Ip { dont_fragment: false, fragment_offset, ..ip(CLIENT, VTEP) };
            frame(ROUTER_MAC, NODE_MAC, &piece, &udp(CLIENT_PORT, PUBLISHED))
        };
        for (what, packet) in [
            ("another port", to(VTEP, &tcp(CLIENT_PORT, 22, "S"))),
            ("another address", to([10, 9, 9, 9], &tcp(CLIENT_PORT, PUBLISHED, "S"))),
            ("a port without a backend", to(VTEP, &tcp(CLIENT_PORT, PUBLISHED_EMPTY, "S"))),
            ("a port without a backend, UDP", to(VTEP, &udp(CLIENT_PORT, PUBLISHED_EMPTY))),
            ("SCTP", to(VTEP, &raw(132))),
            ("a ping", to(VTEP, &ping(1))),
            ("a later fragment", fragment(3)),
            ("in mid-connection", to(VTEP, &tcp(CLIENT_PORT, PUBLISHED, "A"))),
            ("data", to(VTEP, &tcp(CLIENT_PORT, PUBLISHED, "PA"))),
            ("FIN", to(VTEP, &tcp(CLIENT_PORT, PUBLISHED, "FA"))),
            ("RST", to(VTEP, &tcp(CLIENT_PORT, PUBLISHED, "R"))),
            ("an answer to the node's own connection", to(VTEP, &tcp(CLIENT_PORT, PUBLISHED, "SA"))),
            ("cut off", to(VTEP, &tcp(CLIENT_PORT, PUBLISHED, "S"))[..50].to_vec()),
        ] {
            underlay(world, what, packet.clone(), Pass).check(&mut world.harness)?;
            golden(what, Program::FromClient, dev.client, packet, Pass).check(&mut world.harness)?;
        }
        assert_eq!(world.harness.affinity()?, BTreeMap::new());
        // Nor is a tunnel to be found on an interface that does not carry the VTEP.
        let inner = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &ip(REMOTE1.ip, LOCAL1.ip), &udp(53, 1000));
        let (outer, l4) = vxlan(PEER, VTEP, 50000, APP, &inner);
        golden("a tunnel", Program::FromClient, dev.client, frame(ROUTER_MAC, NODE_MAC, &outer, &l4), Pass)
            .check(&mut world.harness)
    })
}

#[test]
fn clients_packets_that_do_not_fit_the_tunnel() -> Result<()> {
    world(|world| {
        let of_length = |len: usize| {
            let payload = vec![7; len - 28];
            L4::Udp { sport: CLIENT_PORT, dport: PUBLISHED, payload, checksum: true }
        };
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        given_to(world, "just fits", &REMOTE1, &of_length(1450), true)?;
        // One byte too long is answered: see `golden_icmp_mesh.rs`.
        // To a task on this node there is no tunnel.
        world.harness.forget_connections()?;
        world.harness.set_cursor(&port_set(17, PUBLISHED), 0)?;
        given_to(world, "long, to this node's task", &LOCAL1, &of_length(1500), true)
    })
}

/// This node gives CLIENT's connection to the second backend, REMOTE1.
fn opened(world: &mut World) -> Result<()> {
    world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
    given_to(world, "SYN", &REMOTE1, &tcp(CLIENT_PORT, PUBLISHED, "S"), true)
}

#[test]
fn the_reply_reaches_the_client() -> Result<()> {
    world(|world| {
        opened(world)?;
        let (back, l4) = (Ip { ttl: 63, ..ip(VTEP, CLIENT) }, tcp(PUBLISHED, CLIENT_PORT, "SA"));
        // The kernel writes the Ethernet addresses when it has found the next hop.
        let out = frame(ROUTER_MAC, NODE_MAC, &back, &l4);
        underlay(world, "answer", returning(PEER, &REMOTE1, &back, &l4), Neigh(world.dev.underlay))
            .counts(Counter::MeshReply, out.len())
            .becomes(out)
            .check(&mut world.harness)?;
        let affinity: Vec<_> = world.harness.affinity()?.into_values().collect();
        assert_eq!(affinity.len(), 1);
        assert_eq!(affinity[0].flags, flag::SEEN | flag::REPLIED);
        Ok(())
    })
}

#[test]
fn a_node_that_has_just_left_is_heard_out() -> Result<()> {
    world(|world| {
        opened(world)?;
        let (back, l4) = (Ip { ttl: 63, ..ip(VTEP, CLIENT) }, tcp(PUBLISHED, CLIENT_PORT, "SA"));
        let out = frame(ROUTER_MAC, NODE_MAC, &back, &l4);
        let answer = || returning(PEER, &REMOTE1, &back, &l4);
        world.state.vteps.insert(PEER, Vtep { hiveway: vtep_mesh::LEFT, ..Vtep::default() });
        world.harness.apply(&world.state)?;
        underlay(world, "answer", answer(), Neigh(world.dev.underlay))
            .counts(Counter::MeshReply, out.len())
            .becomes(out)
            .check(&mut world.harness)?;
        given_to(world, "ACK", &REMOTE1, &tcp(CLIENT_PORT, PUBLISHED, "A"), false)?;
        world.state.vteps.insert(PEER, Vtep::default());
        world.harness.apply(&world.state)?;
        underlay(world, "too late", answer(), Drop(DropReason::UnknownVtep)).check(&mut world.harness)
    })
}

#[test]
fn the_reply_leaves_where_the_client_is() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        let asked = frame(NEAR_MAC, NODE_MAC, &ip(NEAR, NODE2), &udp(CLIENT_PORT, PUBLISHED));
        golden("question", Program::FromClient, dev.client, asked, Pass).run(&mut world.harness)?;
        let (back, l4) = (ip(NODE2, NEAR), udp(PUBLISHED, CLIENT_PORT));
        let out = frame(ROUTER_MAC, NODE_MAC, &back, &l4);
        underlay(world, "answer", returning(PEER, &REMOTE1, &back, &l4), Neigh(dev.client))
            .leaves_mark(mark::MESH_REPLY)
            .counts(Counter::MeshReply, out.len())
            .becomes(out)
            .check(&mut world.harness)
    })
}

/// The kernel is given the next hop of an Ethernet uplink, and looks for all others itself.
#[test]
fn the_reply_goes_to_the_router_that_the_routing_table_names() -> Result<()> {
    world(|world| {
        opened(world)?;
        let back = ip(VTEP, CLIENT);
        // Next hops that the kernel was given, and addresses that were written: until there are so many, or for longer
        // than there are no samples.
        let ways = |world: &mut World, flags: &'static str, wanted: usize| -> Result<_> {
            let (mut given, mut written) = (BTreeSet::new(), BTreeSet::new());
            let limit = Duration::from_millis(if wanted > 1 { 60_000 } else { 300 });
            let until = Instant::now() + limit;
            while Instant::now() < until && given.len() + written.len() < wanted.max(2) {
                let answer = returning(PEER, &REMOTE1, &back, &tcp(PUBLISHED, CLIENT_PORT, flags));
                let outcome = underlay(world, "answer", answer, Neigh(world.dev.underlay)).run(&mut world.harness)?;
                assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)));
                if outcome.addressed {
                    written.insert(outcome.packet[..12].to_vec());
                } else {
                    given.insert(outcome.next_hop);
                }
            }
            Ok((given, written))
        };
        let only = |router: Option<Ip4>| (BTreeSet::from([router]), BTreeSet::new());
        let router = Some([192, 0, 2, 254]);
        assert_eq!(ways(world, "SA", 1)?, only(router), "what accepts a connection has the neighbour asked for");
        let both = (BTreeSet::from([router]), BTreeSet::from([[ROUTER_MAC, NODE_MAC].concat()]));
        assert_eq!(ways(world, "PA", 2)?, both, "the default route's router, which the kernel knows");
        run("ip route add 198.51.100.7/32 via 192.0.2.253")?;
        assert_eq!(ways(world, "PA", 1)?, only(Some([192, 0, 2, 253])), "a nearer route's, which it has to ask for");
        run("ip route replace 198.51.100.7/32 dev eth0")?;
        assert_eq!(ways(world, "PA", 1)?, only(Some(CLIENT)), "the client itself");
        run("ip route replace 198.51.100.7/32 via inet6 fe80::1 dev eth0")?;
        assert_eq!(ways(world, "PA", 1)?, only(None), "a router with an IPv6 address");
        // A link without an Ethernet header, as the agent writes it.
        run("ip route del 198.51.100.7/32")?;
        world.state.config.underlay_mac = [0; 6];
        world.harness.apply(&world.state)?;
        assert_eq!(ways(world, "PA", 1)?, only(None), "no Ethernet");
        Ok(())
    })
}

/// Clients' packets leave with the addresses that the agent keeps, as long as it may be believed.
#[test]
fn a_tunnels_packet_gets_the_next_hop_that_the_agent_keeps() -> Result<()> {
    world(|world| {
        opened(world)?;
        let kept: Mac = [2, 0, 0, 0, 0, 7];
        let hop = Hop { vtep: PEER, ifindex: world.dev.underlay, src: NODE_MAC, dst: kept, mtu: 1500 };
        let written = |world: &mut World| -> Result<Option<Mac>> {
            let data = from_client(&tcp(CLIENT_PORT, PUBLISHED, "PA"));
            let outcome = underlay(world, "data", data, Neigh(world.dev.underlay)).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)));
            let addresses: [u8; 12] = outcome.packet[..12].try_into()?;
            assert_eq!(outcome.addressed, addresses == *[kept, NODE_MAC].as_flattened());
            Ok(outcome.addressed.then_some(kept))
        };
        world.harness.hops_valid_for(Duration::ZERO);
        world.harness.put_hop(PEER, Some(hop))?;
        assert_eq!(written(world)?, None, "nobody follows it");
        world.harness.hops_valid_for(Duration::from_secs(3600));
        assert_eq!(written(world)?, Some(kept));
        world.harness.put_hop(PEER, Some(Hop { vtep: THIRD, ..hop }))?;
        assert_eq!(written(world)?, None, "another node's");
        world.harness.put_hop(PEER, Some(Hop { ifindex: world.dev.client, ..hop }))?;
        assert_eq!(written(world)?, None, "through another interface");
        world.harness.put_hop(PEER, None)?;
        assert_eq!(written(world)?, None, "there is none");
        world.harness.put_hop(PEER, Some(hop))?;
        world.harness.hops_valid_for(Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(written(world)?, None, "nobody follows it any more");
        Ok(())
    })
}

#[test]
fn the_node_is_no_reflector() -> Result<()> {
    world(|world| {
        opened(world)?;
        let (back, l4) = (ip(VTEP, CLIENT), tcp(PUBLISHED, CLIENT_PORT, "PA"));
        let first = Ip { dont_fragment: false, more_fragments: true, ..back.clone() };
        let later = Ip { dont_fragment: false, fragment_offset: 3, ..back.clone() };
        let mut third = world.state.clone();
        third.vteps.insert(THIRD, Vtep { hiveway: 1, ..Vtep::default() });
        world.harness.apply(&third)?;
        for (what, packet, reason) in [
            ("from another node", returning(THIRD, &REMOTE1, &back, &l4), DropReason::MeshBadReturn),
            ("from another backend", returning(PEER, &REMOTE2, &back, &l4), DropReason::MeshBadReturn),
            (
                "from an address that is not ours",
                returning(PEER, &REMOTE1, &ip(PEER, CLIENT), &l4),
                DropReason::MeshBadReturn,
            ),
            (
                "to a client that never asked",
                returning(PEER, &REMOTE1, &ip(VTEP, [8; 4]), &l4),
                DropReason::MeshBadReturn,
            ),
            (
                "from another port",
                returning(PEER, &REMOTE1, &back, &tcp(81, CLIENT_PORT, "PA")),
                DropReason::MeshBadReturn,
            ),
            ("to another port", returning(PEER, &REMOTE1, &back, &tcp(PUBLISHED, 41, "PA")), DropReason::MeshBadReturn),
            (
                "another protocol",
                returning(PEER, &REMOTE1, &back, &udp(PUBLISHED, CLIENT_PORT)),
                DropReason::MeshBadReturn,
            ),
            (
                "a first fragment",
                returning(PEER, &REMOTE1, &first, &udp(PUBLISHED, CLIENT_PORT)),
                DropReason::MeshBadReturn,
            ),
            ("a later fragment", returning(PEER, &REMOTE1, &later, &l4), DropReason::Fragment),
            ("from a node without Hiveway", returning(PLAIN, &REMOTE1, &back, &l4), DropReason::UnknownVtep),
            ("from a stranger", returning(STRANGER, &REMOTE1, &back, &l4), DropReason::UnknownVtep),
        ] {
            underlay(world, what, packet, Drop(reason)).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn a_reply_without_a_route_is_dropped() -> Result<()> {
    world(|world| {
        opened(world)?;
        run("ip route del default")?;
        let packet = returning(PEER, &REMOTE1, &ip(VTEP, CLIENT), &tcp(PUBLISHED, CLIENT_PORT, "SA"));
        let outcome = underlay(world, "no route", packet, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Drop(DropReason::NoRoute)));
        Ok(())
    })
}

#[test]
fn a_task_on_the_ingress_node_itself() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        world.harness.set_cursor(&port_set(6, PUBLISHED), 0)?;
        given_to(world, "SYN", &LOCAL1, &tcp(CLIENT_PORT, PUBLISHED, "S"), true)?;
        let answer = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &tcp(TARGET_PORT, CLIENT_PORT, "SA"));
        let out = frame(mac(GW1), [9; 6], &routed(VTEP, CLIENT), &tcp(PUBLISHED, CLIENT_PORT, "SA"));
        gateway(world, "answer", answer, Neigh(dev.underlay))
            .counts(Counter::MeshReturn, out.len())
            .counts(Counter::MeshReply, out.len())
            .becomes(out)
            .check(&mut world.harness)?;
        given_to(world, "ACK", &LOCAL1, &tcp(CLIENT_PORT, PUBLISHED, "A"), false)?;
        // The backend refuses: the connection is over on both sides, and a new one may begin at once, elsewhere.
        let reset = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &tcp(TARGET_PORT, CLIENT_PORT, "R"));
        gateway(world, "RST", reset, Pass).run(&mut world.harness)?;
        let closed = world.harness.flows()?.values().all(|flow| flow.flags & flag::ENDED != 0);
        assert!(closed, "{:?}", world.harness.flows()?);
        given_to(world, "another connection", &REMOTE1, &tcp(CLIENT_PORT, PUBLISHED, "S"), true)
    })
}

/// It is in two tables of this node, of clients and of translated connections, and has still proved itself once.
#[test]
fn a_connection_to_a_task_on_the_ingress_node_is_counted_once() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let client = |flags| tcp(CLIENT_PORT, PUBLISHED, flags);
        let segments = [client("S"), tcp(TARGET_PORT, CLIENT_PORT, "SA"), client("K")];
        let asked = udp(CLIENT_PORT, PUBLISHED);
        let datagrams = [asked.clone(), udp(TARGET_PORT, CLIENT_PORT), asked];
        for (proto, [first, answer, proof]) in [(6, segments), (17, datagrams)] {
            world.harness.set_cursor(&port_set(proto, PUBLISHED), 0)?;
            given_to(world, "the first packet", &LOCAL1, &first, true)?;
            let answer = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &answer);
            gateway(world, "answer", answer, Neigh(dev.underlay)).run(&mut world.harness)?;
            let packet = from_client(&proof);
            let counted = underlay(world, "the proof", packet, Pass).run(&mut world.harness)?.counters;
            assert_eq!(counted.get(&Counter::FlowPromoted).map(|stat| stat.packets), Some(1), "{counted:?}");
        }
        let tables = (world.harness.established_affinity()?.len(), world.harness.established_flows()?.len());
        assert_eq!(tables, (2, 4));
        Ok(())
    })
}
