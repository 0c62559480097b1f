//! Golden packets of fragmented datagrams through VIPs and the routing mesh: every piece comes out as the same piece of
//! the datagram that the receiver should get, checksum included. The slow path is in `golden_slow_path`.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Drop, Neigh, Pass, Peer},
};
use dataplane_common::{
    addr::VIRTUAL_MAC, counter::Counter, drop_reason::DropReason, endpoint::EndpointKey, fragment::LIFETIME_NS, mark,
    service::Backend,
};
use support::{
    golden::{Golden, golden},
    mesh::*,
    packets::{Ip, Ip4, L4, Mac, frame, ip, pieces, vxlan},
    world::*,
};

const STALE: Mac = [0x02, 0, 0, 0, 0, 0x99];
/// Of each piece's payload.
const SIZE: usize = 48;

/// A datagram of three pieces.
fn datagram(sport: u16, dport: u16) -> L4 {
    let payload = (0..110).collect();
    L4::Udp { sport, dport, payload, checksum: true }
}

fn frames(src: Mac, dst: Mac, ip: &Ip, l4: &L4) -> Vec<Vec<u8>> {
    let pieces: Vec<_> = pieces(ip, l4, SIZE).iter().map(|(ip, l4)| frame(src, dst, ip, l4)).collect();
    assert_eq!(pieces.len(), 3);
    pieces
}

fn tunnelled(from: Ip4, to: Ip4, vni: u32, eth: (Mac, Mac), inner: &[u8]) -> Vec<u8> {
    let (outer, l4) = vxlan(from, to, 50000, vni, inner);
    frame(eth.0, eth.1, &outer, &l4)
}

fn sent(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromContainer, world.dev.veth1, packet, decision)
}

/// A translated piece counts as such, at the length it has when that is noted.
fn translated(case: Golden, len: usize) -> Golden {
    case.counts(Counter::FragmentTranslated, len)
}

/// LOCAL1 sends a datagram with identification `id` to the VIP; every piece goes to `task`.
fn vip_gives_to(world: &mut World, id: u16, task: &Task, l4: &L4, new: bool) -> Result<()> {
    let question = frames(mac(LOCAL1.ip), STALE, &Ip { id, ..ip(LOCAL1.ip, VIP) }, l4);
    let answer = frames(mac(LOCAL1.ip), mac(task.ip), &Ip { id, ..ip(LOCAL1.ip, task.ip) }, l4);
    for (number, (asked, inner)) in question.into_iter().zip(answer).enumerate() {
        let len = asked.len();
        let here = task.vtep == VTEP;
        let decision = if here { Peer(world.dev.veth2) } else { Neigh(world.dev.underlay) };
        let mut case = translated(sent(world, "to the VIP", asked, decision), len);
        if new && number == 0 {
            case = case.counts(Counter::VipFlow, len);
        }
        if here {
            case.counts(Counter::Delivered, len).becomes(inner).check(&mut world.harness)?;
        } else {
            case.counts(Counter::Encapsulated, len + 50)
                .becomes(tunnelled(VTEP, task.vtep, APP, ([0; 6], [0; 6]), &inner))
                .check_tunnelled(&mut world.harness)?;
        }
    }
    Ok(())
}

#[test]
fn the_pieces_of_a_datagram_follow_the_first_to_the_vips_backend() -> Result<()> {
    world(|world| {
        for (port, task) in (3000..).zip([LOCAL2, REMOTE1, REMOTE2]) {
            world.harness.set_cursor(&vip_set(VIP), u64::from(port - 3000))?;
            vip_gives_to(world, port, &task, &datagram(port, 53), true)?;
            // The same flow again, and the same identification for another flow: its own first piece decides.
            vip_gives_to(world, port + 100, &task, &datagram(port, 53), false)?;
        }
        vip_gives_to(world, 3000, &REMOTE1, &datagram(3001, 53), false)?;
        vip_gives_to(world, 3000, &LOCAL2, &datagram(3000, 53), false)
    })
}

#[test]
fn a_datagram_without_a_checksum_stays_without() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        let l4 = L4::Udp { sport: 3000, dport: 53, payload: vec![7; 110], checksum: false };
        vip_gives_to(world, 1, &REMOTE1, &l4, true)
    })
}

#[test]
fn a_later_piece_alone_is_dropped() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        let ours = Ip { id: 7, ..ip(LOCAL1.ip, VIP) };
        let later = |ip: &Ip| frames(mac(LOCAL1.ip), STALE, ip, &datagram(3000, 53)).remove(1);
        let dropped = |world: &mut World, what, packet| {
            sent(world, what, packet, Drop(DropReason::Fragment)).check(&mut world.harness)
        };
        dropped(world, "before its first", later(&ours))?;
        vip_gives_to(world, 7, &LOCAL2, &datagram(3000, 53), true)?;
        dropped(world, "of another datagram", later(&Ip { id: 8, ..ours.clone() }))?;
        dropped(world, "to another VIP", later(&Ip { dst: SELF_VIP, ..ours.clone() }))?;
        let twin = golden("in another network", Program::FromContainer, world.dev.twin, later(&ours), Pass);
        let outcome = twin.run(&mut world.harness)?;
        assert_eq!(outcome.counters.get(&Counter::FragmentTranslated), None, "{outcome:?}");
        let piece = pieces(&ours, &datagram(3000, 53), SIZE).remove(1).0;
        let tcp = frame(mac(LOCAL1.ip), STALE, &piece, &L4::Raw { proto: 6, payload: vec![0; SIZE] });
        dropped(world, "of another protocol", tcp)?;
        world.harness.age_fragments(LIFETIME_NS - 1_000_000_000)?;
        let packet = later(&ours);
        let len = packet.len();
        let inner =
            frames(mac(LOCAL1.ip), mac(LOCAL2.ip), &Ip { id: 7, ..ip(LOCAL1.ip, LOCAL2.ip) }, &datagram(3000, 53));
        translated(sent(world, "late", packet, Peer(world.dev.veth2)), len)
            .counts(Counter::Delivered, len)
            .becomes(inner[1].clone())
            .check(&mut world.harness)?;
        world.harness.age_fragments(2_000_000_000)?;
        dropped(world, "too late", later(&ours))
    })
}

#[test]
fn pieces_do_not_follow_to_a_task_that_took_the_place_of_theirs() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        vip_gives_to(world, 7, &LOCAL2, &datagram(3000, 53), true)?;
        let key = EndpointKey { net: net(APP), ip: LOCAL2.ip };
        world.state.endpoints.get_mut(&key).unwrap().tag = [77; 8];
        world.harness.apply(&world.state)?;
        let later = frames(mac(LOCAL1.ip), STALE, &Ip { id: 7, ..ip(LOCAL1.ip, VIP) }, &datagram(3000, 53)).remove(1);
        let len = later.len();
        translated(sent(world, "its backend is gone", later, Drop(DropReason::BackendGone)), len)
            .check(&mut world.harness)
    })
}

#[test]
fn a_first_piece_that_goes_nowhere_takes_the_others_along() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        vip_gives_to(world, 7, &LOCAL2, &datagram(3000, 53), true)?;
        world.state.sets.insert(vip_set(VIP), Vec::<Backend>::new());
        world.harness.apply(&world.state)?;
        let pieces = frames(mac(LOCAL1.ip), STALE, &Ip { id: 7, ..ip(LOCAL1.ip, VIP) }, &datagram(4000, 53));
        sent(world, "another flow's first", pieces[0].clone(), Drop(DropReason::NoBackend))
            .check(&mut world.harness)?;
        sent(world, "its later one", pieces[1].clone(), Drop(DropReason::Fragment)).check(&mut world.harness)
    })
}

#[test]
fn a_reply_in_pieces_gets_the_vip_as_its_source() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        // Nothing is to be noted about what goes to LOCAL1 directly.
        world.state.endpoints.get_mut(&EndpointKey { net: net(APP), ip: LOCAL1.ip }).unwrap().flags = 0;
        world.harness.apply(&world.state)?;
        // The fast path's outer header.
        let arriving = |inner: &[u8]| tunnelled(PEER, VTEP, APP, (ROUTER_MAC, NODE_MAC), inner);
        for (cursor, task) in [LOCAL2, REMOTE1].into_iter().enumerate() {
            world.harness.set_cursor(&vip_set(VIP), cursor as u64)?;
            let port = 3000 + cursor as u16;
            vip_gives_to(world, port, &task, &datagram(port, 53), true)?;
            let back = |src: Ip4, id: u16, sport| {
                frames(mac(task.ip), mac(LOCAL1.ip), &Ip { id, ..ip(src, LOCAL1.ip) }, &datagram(sport, port))
            };
            let case = |packet: &Vec<u8>| {
                if task.vtep == VTEP {
                    golden("reply", Program::FromContainer, dev.veth2, packet.clone(), Peer(dev.veth1))
                } else {
                    golden("reply", Program::FromUnderlay, dev.underlay, arriving(packet), Peer(dev.veth1))
                }
            };
            for (answer, out) in back(task.ip, 9, 53).iter().zip(back(VIP, 9, 53)) {
                let len = answer.len();
                translated(case(answer), len).counts(Counter::Delivered, len).becomes(out).check(&mut world.harness)?;
            }
            // Another flow's pieces are nobody's reply; with the same identification neither, from their first on.
            for id in [10, 9] {
                for answer in back(task.ip, id, 54) {
                    let len = answer.len();
                    case(&answer).counts(Counter::Delivered, len).becomes(answer).check(&mut world.harness)?;
                }
            }
        }
        Ok(())
    })
}

/// A client's datagram at the ingress node; every piece goes to `task`.
fn mesh_gives_to(world: &mut World, node: Ip4, task: &Task, l4: &L4, new: bool) -> Result<()> {
    let dev = world.dev;
    let (program, ifindex) =
        if node == VTEP { (Program::FromUnderlay, dev.underlay) } else { (Program::FromClient, dev.client) };
    let from = Ip { ttl: 57, ..ip(CLIENT, node) };
    let L4::Udp { sport, ref payload, checksum, .. } = *l4 else { unreachable!("a datagram") };
    let to_target = L4::Udp { sport, dport: TARGET_PORT, payload: payload.clone(), checksum };
    let inside = frames(VIRTUAL_MAC, mac(GW1), &Ip { dst: GW1, ..from.clone() }, &to_target);
    let passed_on = frames(node_mac(VTEP), mac(task.ingress), &from, l4);
    for (number, packet) in frames(ROUTER_MAC, NODE_MAC, &from, l4).into_iter().enumerate() {
        let len = packet.len();
        let here = task.vtep == VTEP;
        let decision = if here { Peer(dev.gw1) } else { Neigh(dev.underlay) };
        let mut case = golden("a client's", program, ifindex, packet, decision).counts(Counter::MeshForward, len);
        if new && number == 0 {
            case = case.counts(Counter::MeshFlow, len);
        }
        if here {
            // Ingress and backend's node in one: noted twice.
            case.counts_packets(Counter::FragmentTranslated, 2, len)
                .counts(Counter::Delivered, len)
                .becomes(inside[number].clone())
                .check(&mut world.harness)?;
        } else {
            translated(case, len)
                .counts(Counter::Encapsulated, len + 50)
                .becomes(tunnelled(VTEP, task.vtep, MESH, ([0; 6], [0; 6]), &passed_on[number]))
                .check_tunnelled(&mut world.harness)?;
        }
    }
    Ok(())
}

#[test]
fn a_clients_pieces_are_given_to_one_backend() -> Result<()> {
    world(|world| {
        for (node, first) in [(VTEP, 4000), (NODE2, 5000)] {
            world.harness.set_cursor(&port_set(17, PUBLISHED), 0)?;
            for (port, task) in (first..).zip(BACKENDS) {
                mesh_gives_to(world, node, &task, &datagram(port, PUBLISHED), true)?;
                mesh_gives_to(world, node, &task, &datagram(port, PUBLISHED), false)?;
            }
        }
        Ok(())
    })
}

#[test]
fn pieces_to_a_node_that_are_nobodys_are_the_stacks() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        let from = client_ip();
        let all = |port| frames(ROUTER_MAC, NODE_MAC, &from, &datagram(CLIENT_PORT, port));
        for packet in all(PUBLISHED).drain(1..) {
            underlay(world, "without its first", packet, Pass).check(&mut world.harness)?;
        }
        mesh_gives_to(world, VTEP, &REMOTE1, &datagram(CLIENT_PORT, PUBLISHED), true)?;
        // A datagram of the same identification to the node itself, and one to a port that nobody serves.
        for port in [53, PUBLISHED_EMPTY] {
            for packet in all(port) {
                underlay(world, "to the node itself", packet, Pass).check(&mut world.harness)?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_nodes_tunnel_in_pieces_is_no_client() -> Result<()> {
    world(|world| {
        // A node is a client, too; its own tunnel uses the same identification next.
        let marked = mark::FRAGMENT | u32::from_be_bytes([0, PEER[1], PEER[2], PEER[3]]);
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        let as_client = frames(ROUTER_MAC, NODE_MAC, &ip(PEER, VTEP), &datagram(CLIENT_PORT, PUBLISHED));
        for packet in &as_client {
            let outcome = underlay(world, "client", packet.clone(), Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)));
        }
        for packet in frames(ROUTER_MAC, NODE_MAC, &ip(PEER, VTEP), &datagram(50000, 4789)) {
            underlay(world, "tunnel", packet, Pass).leaves_mark(marked).check(&mut world.harness)?;
        }
        Ok(())
    })
}

/// What arrives at the backend's node through the tunnel.
fn forwarded_here(from: Ip4, task: &Task, ip: &Ip, l4: &L4) -> Vec<Vec<u8>> {
    let inner = frames(node_mac(from), mac(task.ingress), ip, l4);
    inner.iter().map(|inner| tunnelled(from, VTEP, MESH, (ROUTER_MAC, NODE_MAC), inner)).collect()
}

/// A client's datagram arrives from `node` and goes into LOCAL1's container.
fn delivered_to_the_task(world: &mut World, node: Ip4, id: u16, port: u16) -> Result<()> {
    let from = Ip { ttl: 57, id, ..ip(CLIENT, node) };
    let inside = frames(VIRTUAL_MAC, mac(GW1), &Ip { dst: GW1, ..from.clone() }, &datagram(port, TARGET_PORT));
    for (packet, out) in forwarded_here(node, &LOCAL1, &from, &datagram(port, PUBLISHED)).into_iter().zip(inside) {
        let len = out.len();
        translated(underlay(world, "for a task here", packet, Peer(world.dev.gw1)), len)
            .counts(Counter::Delivered, len)
            .becomes(out)
            .check(&mut world.harness)?;
    }
    Ok(())
}

#[test]
fn the_backends_node_delivers_all_pieces() -> Result<()> {
    world(|world| {
        delivered_to_the_task(world, PEER, 7, CLIENT_PORT)?;
        delivered_to_the_task(world, PEER, 8, CLIENT_PORT)?;
        delivered_to_the_task(world, PEER, 7, CLIENT_PORT + 1)
    })
}

#[test]
fn pieces_at_the_backends_node_that_did_not_come_the_way_of_their_first() -> Result<()> {
    world(|world| {
        world.state.vteps.insert(THIRD, dataplane_common::endpoint::Vtep { hiveway: 1, ..Default::default() });
        world.harness.apply(&world.state)?;
        let from = Ip { ttl: 57, id: 7, ..ip(CLIENT, PEER) };
        let l4 = datagram(CLIENT_PORT, PUBLISHED);
        let later = |node, task: &Task, ip: &Ip| forwarded_here(node, task, ip, &l4).remove(1);
        let dropped = |world: &mut World, what, packet| -> Result<()> {
            let outcome = underlay(world, what, packet, Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Drop(DropReason::Fragment)), "{what}");
            Ok(())
        };
        dropped(world, "without its first", later(PEER, &LOCAL1, &from))?;
        delivered_to_the_task(world, PEER, 7, CLIENT_PORT)?;
        dropped(world, "another datagram", later(PEER, &LOCAL1, &Ip { id: 8, ..from.clone() }))?;
        dropped(world, "another ingress node", later(THIRD, &LOCAL1, &from))?;
        dropped(world, "another task", later(PEER, &LOCAL2, &from))
    })
}

#[test]
fn a_tasks_reply_in_pieces_goes_back_through_the_ingress_node() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        delivered_to_the_task(world, PEER, 7, CLIENT_PORT)?;
        let reply = |id, port| frames(mac(GW1), [9; 6], &Ip { id, ..ip(GW1, CLIENT) }, &datagram(TARGET_PORT, port));
        for packet in reply(20, CLIENT_PORT).drain(1..) {
            gateway(world, "without its first", packet, Pass).check(&mut world.harness)?;
        }
        let back = frames(
            mac(LOCAL1.ingress),
            node_mac(PEER),
            &Ip { id: 20, ..ip(PEER, CLIENT) },
            &datagram(PUBLISHED, CLIENT_PORT),
        );
        for (packet, inner) in reply(20, CLIENT_PORT).into_iter().zip(back) {
            let len = packet.len();
            translated(gateway(world, "reply", packet, Neigh(dev.underlay)), len)
                .counts(Counter::MeshReturn, len)
                .counts(Counter::Encapsulated, len + 50)
                .becomes(tunnelled(VTEP, PEER, MESH, ([0; 6], [0; 6]), &inner))
                .check_tunnelled(&mut world.harness)?;
        }
        // The container's own traffic with the same identification is nothing of the mesh's, from its first piece on.
        for packet in reply(20, 53) {
            gateway(world, "its own", packet, Pass).check(&mut world.harness)?;
        }
        Ok(())
    })
}

/// What arrives at the ingress node from the backend's.
fn returned_here(from: Ip4, task: &Task, id: u16, l4: &L4) -> Vec<(Vec<u8>, Vec<u8>)> {
    let inner = frames(mac(task.ingress), node_mac(VTEP), &Ip { id, ..ip(VTEP, CLIENT) }, l4);
    let plain = frames(ROUTER_MAC, NODE_MAC, &Ip { id, ..ip(VTEP, CLIENT) }, l4);
    inner.iter().map(|inner| tunnelled(from, VTEP, MESH, (ROUTER_MAC, NODE_MAC), inner)).zip(plain).collect()
}

#[test]
fn the_ingress_node_hands_back_what_it_has_checked() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        world.state.vteps.insert(THIRD, dataplane_common::endpoint::Vtep { hiveway: 1, ..Default::default() });
        world.harness.apply(&world.state)?;
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        mesh_gives_to(world, VTEP, &REMOTE1, &datagram(CLIENT_PORT, PUBLISHED), true)?;
        let l4 = datagram(PUBLISHED, CLIENT_PORT);
        let bad = |world: &mut World, what, packet: Vec<u8>, reason| {
            underlay(world, what, packet, Drop(reason)).check(&mut world.harness)
        };
        bad(world, "without its first", returned_here(PEER, &REMOTE1, 5, &l4)[1].0.clone(), DropReason::Fragment)?;
        for (packet, out) in returned_here(PEER, &REMOTE1, 5, &l4) {
            let len = out.len();
            let case = underlay(world, "reply", packet.clone(), Neigh(dev.underlay));
            case.leaves_mark(mark::MESH_REPLY)
                .counts(Counter::FragmentTranslated, packet.len())
                .counts(Counter::MeshReply, len)
                .becomes(out)
                .check(&mut world.harness)?;
        }
        let later = |from, task: &Task, id| returned_here(from, task, id, &l4)[1].0.clone();
        bad(world, "another datagram", later(PEER, &REMOTE1, 6), DropReason::Fragment)?;
        let outcome = underlay(world, "another task", later(PEER, &REMOTE2, 5), Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Drop(DropReason::MeshBadReturn)));
        let outcome = underlay(world, "another node", later(THIRD, &REMOTE1, 5), Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Drop(DropReason::MeshBadReturn)));
        // A first piece that answers nobody ends what another one has begun.
        let forged = returned_here(PEER, &REMOTE1, 5, &datagram(PUBLISHED, 9));
        bad(world, "a forged first", forged[0].0.clone(), DropReason::MeshBadReturn)?;
        bad(world, "its later one", forged[1].0.clone(), DropReason::Fragment)
    })
}

#[test]
fn pieces_of_a_task_on_the_ingress_node_itself() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&port_set(17, PUBLISHED), 0)?;
        mesh_gives_to(world, VTEP, &LOCAL1, &datagram(CLIENT_PORT, PUBLISHED), true)?;
        let reply = frames(mac(GW1), [9; 6], &Ip { id: 3, ..ip(GW1, CLIENT) }, &datagram(TARGET_PORT, CLIENT_PORT));
        let out = frames(mac(GW1), [9; 6], &Ip { id: 3, ..ip(VTEP, CLIENT) }, &datagram(PUBLISHED, CLIENT_PORT));
        for (packet, out) in reply.into_iter().zip(out) {
            let len = packet.len();
            gateway(world, "reply", packet, Neigh(world.dev.underlay))
                .leaves_mark(mark::MESH_REPLY)
                .counts_packets(Counter::FragmentTranslated, 2, len)
                .counts(Counter::MeshReturn, len)
                .counts(Counter::MeshReply, len)
                .becomes(out)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}
