//! Golden packets of the host link: the node as a client of its own published ports (`from_client` on the link's far
//! end, answers of the mesh into it), and the node's own use of published ports as source ports (`to_outside`).

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Device, Drop, Neigh, Pass, Peer, Refuse},
};
use dataplane_common::{
    addr::{HOST_MAC, HOST_PEER_MAC, VIRTUAL_MAC},
    counter::Counter,
    drop_reason::DropReason,
    flow::{Affinity, AffinityKey, flag},
    mark,
    mesh::NodeAddress,
};
use support::{
    golden::{Golden, golden},
    mesh::*,
    packets::{Ip, Ip4, L4, frame, ip, routed, tcp, udp, vxlan},
    sandbox::{run, veth},
    world::*,
};

/// Stands for this node's published ports on the host link.
const HOST_IP: Ip4 = [169, 254, 72, 1];
/// An address outside that the node talks to.
const ELSEWHERE: Ip4 = [198, 51, 100, 53];

/// The world with a host link; returns the index of its far end.
fn linked(world: &mut World) -> Result<u32> {
    let link = veth("hw-mesh", "hw-host")?;
    let mac = HOST_PEER_MAC.map(|byte| format!("{byte:02x}")).join(":");
    run(&format!("ip link set hw-mesh address {mac}"))?;
    world.state.config.host_ifindex = link;
    world.state.config.host_ip = HOST_IP;
    world.state.node_addresses.insert(HOST_IP, NodeAddress { ifindex: link, ..NodeAddress::default() });
    world.harness.apply(&world.state)?;
    Ok(link)
}

/// What the kernel's NAT makes of a connection of the node's own.
fn from_host(l4: &L4) -> Vec<u8> {
    frame(HOST_MAC, HOST_PEER_MAC, &ip(VTEP, HOST_IP), l4)
}

fn on_link(link: u32, what: &'static str, packet: Vec<u8>, decision: dataplane::testing::Decision) -> Golden {
    golden(what, Program::FromClient, link, packet, decision)
}

fn leaving(world: &World, what: &'static str, packet: Vec<u8>) -> Golden {
    golden(what, Program::ToOutside, world.dev.underlay, packet, Pass)
}

fn key(client: Ip4, node: Ip4, client_port: u16) -> AffinityKey {
    let (client_port, port) = (client_port.to_be_bytes(), PUBLISHED.to_be_bytes());
    AffinityKey { client, node, client_port, port, proto: 17, _pad: [0; 3] }
}

#[test]
fn the_node_is_a_client_with_its_tunnel_address() -> Result<()> {
    world(|world| {
        let link = linked(world)?;
        for (proto, first) in [(6, tcp(CLIENT_PORT, PUBLISHED, "S")), (17, udp(CLIENT_PORT, PUBLISHED))] {
            world.harness.forget_connections()?;
            world.harness.set_cursor(&port_set(proto, PUBLISHED), 1)?;
            let packet = from_host(&first);
            let len = packet.len();
            on_link(link, "to a backend elsewhere", packet, Neigh(world.dev.underlay))
                .counts(Counter::MeshFlow, len)
                .counts(Counter::MeshForward, len)
                .counts(Counter::Encapsulated, len + 50)
                .becomes(mesh_frame(
                    ([0; 6], [0; 6]),
                    VTEP,
                    PEER,
                    node_mac(VTEP),
                    mac(REMOTE1.ingress),
                    // No hop: the kernel has routed it, if it was not made here.
                    &ip(VTEP, HOST_IP),
                    &first,
                ))
                .check_tunnelled(&mut world.harness)?;
            let answer = match proto {
                6 => tcp(PUBLISHED, CLIENT_PORT, "SA"),
                _ => udp(PUBLISHED, CLIENT_PORT),
            };
            let back = frame(HOST_PEER_MAC, HOST_MAC, &ip(HOST_IP, VTEP), &answer);
            underlay(world, "answer", returning(PEER, &REMOTE1, &ip(HOST_IP, VTEP), &answer), Device(link))
                .counts(Counter::MeshReply, back.len())
                .becomes(back)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn a_backend_on_this_node_answers_through_the_link_too() -> Result<()> {
    world(|world| {
        let link = linked(world)?;
        world.harness.set_cursor(&port_set(6, PUBLISHED), 0)?;
        let packet = from_host(&tcp(CLIENT_PORT, PUBLISHED, "S"));
        let len = packet.len();
        let inside = frame(VIRTUAL_MAC, mac(GW1), &ip(VTEP, GW1), &tcp(CLIENT_PORT, TARGET_PORT, "S"));
        on_link(link, "to a backend here", packet, Peer(world.dev.gw1))
            .counts(Counter::MeshFlow, len)
            .counts(Counter::MeshForward, len)
            .counts(Counter::Delivered, len)
            .becomes(inside)
            .check(&mut world.harness)?;
        let answer = frame(mac(GW1), VIRTUAL_MAC, &ip(GW1, VTEP), &tcp(TARGET_PORT, CLIENT_PORT, "SA"));
        let back = frame(HOST_PEER_MAC, HOST_MAC, &routed(HOST_IP, VTEP), &tcp(PUBLISHED, CLIENT_PORT, "SA"));
        gateway(world, "answer", answer, Device(link))
            .counts(Counter::MeshReturn, back.len())
            .counts(Counter::MeshReply, back.len())
            .becomes(back)
            .check(&mut world.harness)
    })
}

#[test]
fn what_nobody_serves_is_answered_on_the_link() -> Result<()> {
    world(|world| {
        let link = linked(world)?;
        let refused = Refuse(DropReason::NoBackend);
        for (what, l4, answer) in [
            ("no backend", tcp(CLIENT_PORT, PUBLISHED_EMPTY, "S"), tcp(PUBLISHED_EMPTY, CLIENT_PORT, "RA")),
            ("not published (any more)", tcp(CLIENT_PORT, 22, "S"), tcp(22, CLIENT_PORT, "RA")),
        ] {
            let outcome = on_link(link, what, from_host(&l4), refused).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(refused), "{what}");
            // Everything but sequence numbers and what belongs to them is as in a plain packet of that kind.
            let plain = frame(HOST_PEER_MAC, HOST_MAC, &ip(HOST_IP, VTEP), &answer);
            assert_eq!(outcome.packet[..16], plain[..16], "{what}: Ethernet");
            assert_eq!(outcome.packet[26..38], plain[26..38], "{what}: addresses and ports");
            assert_eq!(outcome.packet[47], 0x14, "{what}: RST and ACK");
        }
        // In the middle of a connection, whether somebody serves the port or not.
        for port in [PUBLISHED, PUBLISHED_EMPTY, 22] {
            let unknown = from_host(&tcp(CLIENT_PORT, port, "A"));
            let outcome =
                on_link(link, "no such connection", unknown, Refuse(DropReason::MeshNoFlow)).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Refuse(DropReason::MeshNoFlow)), "port {port}");
            assert_eq!(outcome.packet[47], 0x04, "RST");
            assert_eq!(outcome.drops.keys().collect::<Vec<_>>(), [&DropReason::MeshNoFlow]);
        }
        let asked = from_host(&udp(CLIENT_PORT, PUBLISHED_EMPTY));
        let outcome = on_link(link, "UDP", asked.clone(), refused).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(refused));
        assert_eq!(outcome.packet[..12], [HOST_MAC, HOST_PEER_MAC].concat(), "Ethernet");
        assert_eq!(outcome.packet[26..36], [&HOST_IP[..], &VTEP, &[3, 3]].concat(), "addresses, port unreachable");
        assert_eq!(outcome.packet[42..], asked[14..42], "quotes the datagram's headers");
        Ok(())
    })
}

#[test]
fn the_links_address_is_nobodys_outside() -> Result<()> {
    world(|world| {
        linked(world)?;
        let packet = frame(ROUTER_MAC, NODE_MAC, &ip(CLIENT, HOST_IP), &tcp(CLIENT_PORT, PUBLISHED, "S"));
        underlay(world, "from the underlay", packet.clone(), Pass).check(&mut world.harness)?;
        golden("from a client", Program::FromClient, world.dev.client, packet, Pass).check(&mut world.harness)?;
        // And nobody gets an answer of the mesh into the link who did not ask through it.
        let forged = returning(PEER, &REMOTE1, &ip(HOST_IP, VTEP), &tcp(PUBLISHED, CLIENT_PORT, "SA"));
        underlay(world, "an answer unasked for", forged, Drop(DropReason::MeshBadReturn)).check(&mut world.harness)
    })
}

#[test]
fn answers_of_the_mesh_are_marked_and_the_mark_ends_at_the_way_out() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        given_to(world, "question", &REMOTE1, &udp(CLIENT_PORT, PUBLISHED), true)?;
        let answer = udp(PUBLISHED, CLIENT_PORT);
        let out = frame(ROUTER_MAC, NODE_MAC, &ip(VTEP, CLIENT), &answer);
        underlay(world, "answer", returning(PEER, &REMOTE1, &ip(VTEP, CLIENT), &answer), Neigh(world.dev.underlay))
            .counts(Counter::MeshReply, out.len())
            .leaves_mark(mark::MESH_REPLY)
            .becomes(out.clone())
            .check(&mut world.harness)?;
        let before = world.harness.affinity()?;
        leaving(world, "the same on its way out", out).marked(mark::MESH_REPLY).check(&mut world.harness)?;
        assert_eq!(world.harness.affinity()?, before);
        Ok(())
    })
}

#[test]
fn the_nodes_own_use_of_a_published_port_is_noted_once() -> Result<()> {
    world(|world| {
        let own = frame(NODE_MAC, ROUTER_MAC, &ip(VTEP, ELSEWHERE), &udp(PUBLISHED, 53));
        let len = own.len();
        leaving(world, "question", own.clone()).counts(Counter::OwnNoted, len).check(&mut world.harness)?;
        leaving(world, "again", own).check(&mut world.harness)?;
        let noted = world.harness.pending_affinity()?;
        let flags: Vec<_> = noted.iter().map(|(key, entry)| (*key, entry.flags)).collect();
        assert_eq!(flags, [(key(ELSEWHERE, VTEP, 53), flag::OWN | flag::SEEN)]);
        // With options or as a first fragment it is the same; a floating address is like any other.
        for (what, packet) in [
            (
                "options",
                frame(NODE_MAC, ROUTER_MAC, &Ip { options: vec![1; 4], ..ip(NODE2, ELSEWHERE) }, &udp(PUBLISHED, 54)),
            ),
            (
                "a first fragment",
                frame(
                    NODE_MAC,
                    ROUTER_MAC,
                    &Ip { dont_fragment: false, more_fragments: true, ..ip(NODE2, ELSEWHERE) },
                    &udp(PUBLISHED, 55),
                ),
            ),
        ] {
            let len = packet.len();
            leaving(world, what, packet).counts(Counter::OwnNoted, len).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn nothing_else_that_leaves_is_noted() -> Result<()> {
    world(|world| {
        let out = |src: Ip4, l4: &L4| frame(NODE_MAC, ROUTER_MAC, &ip(src, ELSEWHERE), l4);
        let inner = frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &ip(LOCAL1.ip, REMOTE1.ip), &udp(PUBLISHED, 53));
        let (outer, tunnel) = vxlan(VTEP, PEER, PUBLISHED, APP, &inner);
        let later = Ip { dont_fragment: false, fragment_offset: 3, ..ip(VTEP, ELSEWHERE) };
        for (what, packet) in [
            ("another source port", out(VTEP, &udp(40000, 53))),
            ("TCP", out(VTEP, &tcp(PUBLISHED, 53, "S"))),
            ("an address that is not ours", out([10, 9, 9, 9], &udp(PUBLISHED, 53))),
            ("a tunnel", frame(NODE_MAC, ROUTER_MAC, &outer, &tunnel)),
            ("a later fragment", frame(NODE_MAC, ROUTER_MAC, &later, &udp(PUBLISHED, 53))),
            ("cut off", out(VTEP, &udp(PUBLISHED, 53))[..40].to_vec()),
        ] {
            leaving(world, what, packet).check(&mut world.harness)?;
        }
        leaving(world, "another's mark", out(VTEP, &udp(40000, 53)))
            .marked(7)
            .leaves_mark(7)
            .check(&mut world.harness)?;
        assert!(world.harness.affinity()?.is_empty());
        Ok(())
    })
}

#[test]
fn a_clients_connection_keeps_its_backend_whatever_a_socket_sends() -> Result<()> {
    world(|world| {
        let client =
            Affinity { tag: REMOTE1.tag, ip: REMOTE1.ingress, vtep: PEER, flags: flag::SEEN, ..Affinity::default() };
        let key = key(CLIENT, VTEP, CLIENT_PORT);
        let sent = frame(NODE_MAC, ROUTER_MAC, &ip(VTEP, CLIENT), &udp(PUBLISHED, CLIENT_PORT));
        world.harness.put_affinity(key, client)?;
        leaving(world, "established", sent.clone()).check(&mut world.harness)?;
        assert_eq!(world.harness.affinity()?.into_iter().collect::<Vec<_>>(), [(key, client)]);
        world.harness.forget_connections()?;
        world.harness.put_pending_affinity(key, client)?;
        leaving(world, "pending", sent).check(&mut world.harness)?;
        assert_eq!(world.harness.affinity()?.into_iter().collect::<Vec<_>>(), [(key, client)]);
        Ok(())
    })
}
