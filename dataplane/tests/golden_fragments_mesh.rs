//! Golden packets of fragmented datagrams through the routing mesh: at the ingress node, at the backend's node, and
//! back.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Drop, Neigh, Pass, Peer},
};
use dataplane_common::{addr::VIRTUAL_MAC, counter::Counter, drop_reason::DropReason, mark};
use support::{
    fragments::*,
    golden::golden,
    mesh::*,
    packets::{Ip, Ip4, L4, hop, ip, routed},
    world::*,
};

/// A client's datagram at the ingress node; every piece goes to `task`.
fn mesh_gives_to(world: &mut World, node: Ip4, task: &Task, l4: &L4, new: bool) -> Result<()> {
    let dev = world.dev;
    let (program, ifindex) =
        if node == VTEP { (Program::FromUnderlay, dev.underlay) } else { (Program::FromClient, dev.client) };
    let from = Ip { ttl: 57, ..ip(CLIENT, node) };
    let L4::Udp { sport, ref payload, checksum, .. } = *l4 else { unreachable!("a datagram") };
    let to_target = L4::Udp { sport, dport: TARGET_PORT, payload: payload.clone(), checksum };
    let inside = frames(VIRTUAL_MAC, mac(GW1), &Ip { dst: GW1, ..hop(&from) }, &to_target);
    let passed_on = frames(node_mac(VTEP), mac(task.ingress), &hop(&from), l4);
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
            &Ip { id: 20, ..routed(PEER, CLIENT) },
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
        let out = frames(mac(GW1), [9; 6], &Ip { id: 3, ..routed(VTEP, CLIENT) }, &datagram(PUBLISHED, CLIENT_PORT));
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
