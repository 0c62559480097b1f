//! Golden packets that do not fit the tunnel and may be fragmented: to the kernel's vxlan devices, and what these hand
//! back at the other end.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Device, Drop, Neigh, Pass, Peer, SlowPath},
};
use dataplane_common::{
    addr::VIRTUAL_MAC, counter::Counter, drop_reason::DropReason, endpoint::Vtep, flow::MESH_ZONE, mark,
};
use support::{
    golden::{Golden, golden},
    mesh::*,
    packets::{Ip, Ip4, L4, Mac, frame, hop, ip, pieces, routed, udp, vxlan},
    world::*,
};

const STALE: Mac = [0x02, 0, 0, 0, 0, 0x99];

fn of_length(len: usize, sport: u16, dport: u16) -> L4 {
    L4::Udp { sport, dport, payload: vec![0x5a; len - 28], checksum: true }
}

fn may_be_cut(ip: Ip) -> Ip {
    Ip { dont_fragment: false, ..ip }
}

/// What `from_underlay` leaves on pieces of a frame from that node.
fn pieces_from(node: Ip4) -> u32 {
    mark::FRAGMENT | u32::from_be_bytes([0, node[1], node[2], node[3]])
}

/// What the kernel's vxlan device at this end hands over, from pieces that `node` has sent.
fn out_of_vxlan(what: &'static str, device: u32, node: Ip4, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromVxlan, device, packet, decision).marked(pieces_from(node))
}

#[test]
fn a_clients_packet_leaves_by_the_ingress_networks_device() -> Result<()> {
    world(|world| {
        let vxlan = world.join_ingress()?;
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        for len in [1451, 1500] {
            let (from, l4) = (may_be_cut(client_ip()), of_length(len, CLIENT_PORT, PUBLISHED));
            let packet = frame(ROUTER_MAC, NODE_MAC, &from, &l4);
            let bytes = packet.len();
            let mut case = underlay(world, "a client's", packet, Device(vxlan))
                .counts(Counter::MeshForward, bytes)
                .counts(Counter::SlowPath, bytes)
                .becomes(frame(node_mac(VTEP), mac(REMOTE1.ingress), &hop(&from), &l4));
            if len == 1451 {
                case = case.counts(Counter::MeshFlow, bytes);
            }
            case.check(&mut world.harness)?;
        }
        let packet = frame(ROUTER_MAC, NODE_MAC, &may_be_cut(client_ip()), &of_length(1450, CLIENT_PORT, PUBLISHED));
        let outcome = underlay(world, "just fits", packet, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)));
        Ok(())
    })
}

#[test]
fn without_an_ingress_network_it_cannot_leave() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        let packet = frame(ROUTER_MAC, NODE_MAC, &may_be_cut(client_ip()), &of_length(1500, CLIENT_PORT, PUBLISHED));
        let outcome = underlay(world, "nowhere to go", packet, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Drop(DropReason::MtuExceeded)));
        Ok(())
    })
}

#[test]
fn small_last_pieces_stay_behind_their_first() -> Result<()> {
    world(|world| {
        let device = world.join_ingress()?;
        let dev = world.dev;
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        // A client: 1500 and 48 bytes.
        let (from, l4) = (client_ip(), of_length(1520, CLIENT_PORT, PUBLISHED));
        for (ip, l4) in pieces(&from, &l4, 1480) {
            let packet = frame(ROUTER_MAC, NODE_MAC, &ip, &l4);
            let outcome = underlay(world, "to a backend", packet, Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Device(device)));
            assert_eq!(outcome.packet, frame(node_mac(VTEP), mac(REMOTE1.ingress), &hop(&ip), &l4));
        }
        // A datagram of the same identification that fits.
        for (ip, l4) in pieces(&from, &of_length(520, CLIENT_PORT, PUBLISHED), 480) {
            let outcome =
                underlay(world, "fits", frame(ROUTER_MAC, NODE_MAC, &ip, &l4), Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Neigh(dev.underlay)));
        }
        // A container's, direct and to a VIP: the client's node must see the first piece of a reply first.
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        for (id, to) in [(1, REMOTE1.ip), (2, VIP)] {
            for (ip, l4) in pieces(&Ip { id, ..ip(LOCAL1.ip, to) }, &of_length(1520, 3000, 53), 1440) {
                let packet = frame(mac(LOCAL1.ip), STALE, &ip, &l4);
                let outcome = golden("out of a container", Program::FromContainer, dev.veth1, packet, Pass)
                    .run(&mut world.harness)?;
                assert_eq!(outcome.decision, Some(SlowPath));
                assert_eq!(outcome.packet[..6], mac(REMOTE1.ip));
                assert_eq!(outcome.packet[30..34], REMOTE1.ip);
            }
            for (ip, l4) in pieces(&Ip { id, ..ip(LOCAL1.ip, to) }, &of_length(520, 3000, 53), 480) {
                let packet = frame(mac(LOCAL1.ip), STALE, &ip, &l4);
                let outcome =
                    golden("fits", Program::FromContainer, dev.veth1, packet, Pass).run(&mut world.harness)?;
                assert_eq!(outcome.decision, Some(Neigh(dev.underlay)));
            }
        }
        Ok(())
    })
}

#[test]
fn a_tasks_reply_leaves_by_the_ingress_networks_device() -> Result<()> {
    world(|world| {
        let device = world.join_ingress()?;
        let question = arriving(PEER, &LOCAL1, &ip(CLIENT, PEER), &udp(CLIENT_PORT, PUBLISHED));
        underlay(world, "question", question, Pass).run(&mut world.harness)?;
        let sent =
            |len| frame(mac(GW1), [9; 6], &may_be_cut(ip(GW1, CLIENT)), &of_length(len, TARGET_PORT, CLIENT_PORT));
        let back = |len| {
            let (ip, l4) = (may_be_cut(routed(PEER, CLIENT)), of_length(len, PUBLISHED, CLIENT_PORT));
            frame(mac(LOCAL1.ingress), node_mac(PEER), &ip, &l4)
        };
        gateway(world, "reply", sent(1451), Device(device))
            .counts(Counter::MeshReturn, 1451 + 14)
            .counts(Counter::SlowPath, 1451 + 14)
            .becomes(back(1451))
            .check(&mut world.harness)?;
        for (number, (packet, l4)) in
            pieces(&ip(GW1, CLIENT), &of_length(1600, TARGET_PORT, CLIENT_PORT), 1480).into_iter().enumerate()
        {
            let out = pieces(&routed(PEER, CLIENT), &of_length(1600, PUBLISHED, CLIENT_PORT), 1480).remove(number);
            let packet = frame(mac(GW1), [9; 6], &packet, &l4);
            let len = packet.len();
            gateway(world, "reply in pieces", packet, Device(device))
                .counts(Counter::FragmentTranslated, len)
                .counts(Counter::MeshReturn, len)
                .counts(Counter::SlowPath, len)
                .becomes(frame(mac(LOCAL1.ingress), node_mac(PEER), &out.0, &out.1))
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn mesh_frames_out_of_the_ingress_networks_device_are_delivered() -> Result<()> {
    world(|world| {
        let device = world.join_ingress()?;
        let from = Ip { ttl: 57, ..may_be_cut(ip(CLIENT, PEER)) };
        let inside = |ip: &Ip, l4: &L4| frame(VIRTUAL_MAC, mac(GW1), &Ip { dst: GW1, ..ip.clone() }, l4);
        let arrived = |ip: &Ip, l4: &L4| frame(node_mac(PEER), mac(LOCAL1.ingress), ip, l4);
        let whole = arrived(&from, &of_length(1500, CLIENT_PORT, PUBLISHED));
        let len = whole.len();
        out_of_vxlan("whole", device, PEER, whole, Peer(world.dev.gw1))
            .counts(Counter::Delivered, len)
            .becomes(inside(&from, &of_length(1500, CLIENT_PORT, TARGET_PORT)))
            .check(&mut world.harness)?;
        assert!(world.harness.flows()?.values().all(|flow| flow.peer == PEER && flow.task == LOCAL1.ingress));
        assert!(world.harness.flows()?.keys().all(|key| key.zone == MESH_ZONE));
        let inside_ip = Ip { dst: GW1, ..from.clone() };
        let out = pieces(&inside_ip, &of_length(3000, CLIENT_PORT, TARGET_PORT), 1480);
        for ((ip, l4), (out_ip, out_l4)) in
            pieces(&from, &of_length(3000, CLIENT_PORT, PUBLISHED), 1480).iter().zip(out)
        {
            let packet = arrived(ip, l4);
            let len = packet.len();
            out_of_vxlan("in pieces", device, PEER, packet, Peer(world.dev.gw1))
                .counts(Counter::FragmentTranslated, len)
                .counts(Counter::Delivered, len)
                .becomes(inside(&out_ip, &out_l4))
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

/// The client's connection is given to REMOTE1 on PEER.
fn opened(world: &mut World) -> Result<()> {
    world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
    given_to(world, "a client's", &REMOTE1, &udp(CLIENT_PORT, PUBLISHED), true)
}

#[test]
fn replies_out_of_the_ingress_networks_device_go_to_the_client() -> Result<()> {
    world(|world| {
        let device = world.join_ingress()?;
        opened(world)?;
        let back = may_be_cut(ip(VTEP, CLIENT));
        let arrived = |ip: &Ip, l4: &L4| frame(mac(REMOTE1.ingress), node_mac(VTEP), ip, l4);
        let reply = arrived(&back, &of_length(1500, PUBLISHED, CLIENT_PORT));
        let len = reply.len();
        out_of_vxlan("whole", device, PEER, reply, Neigh(world.dev.underlay))
            .leaves_mark(mark::MESH_REPLY)
            .counts(Counter::MeshReply, len)
            .check(&mut world.harness)?;
        for (ip, l4) in pieces(&back, &of_length(3000, PUBLISHED, CLIENT_PORT), 1480) {
            let packet = arrived(&ip, &l4);
            let len = packet.len();
            out_of_vxlan("in pieces", device, PEER, packet, Neigh(world.dev.underlay))
                .leaves_mark(mark::MESH_REPLY)
                .counts(Counter::FragmentTranslated, len)
                .counts(Counter::MeshReply, len)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn forged_mesh_frames_on_the_slow_path_are_dropped() -> Result<()> {
    world(|world| {
        let device = world.join_ingress()?;
        world.state.vteps.insert(THIRD, Vtep { hiveway: 1, ..Vtep::default() });
        world.harness.apply(&world.state)?;
        opened(world)?;
        let question = |src: Mac, dst: Mac, port| {
            frame(src, dst, &may_be_cut(ip(CLIENT, PEER)), &of_length(1500, CLIENT_PORT, port))
        };
        let answer = |src: Mac, dst: Mac, from: Ip4, to: Ip4| {
            frame(src, dst, &may_be_cut(ip(from, to)), &of_length(1500, PUBLISHED, CLIENT_PORT))
        };
        let task = mac(LOCAL1.ingress);
        let (good, own) = (question(node_mac(PEER), task, PUBLISHED), node_mac(VTEP));
        for (what, node, packet, reason) in [
            ("speaks for another node", THIRD, good.clone(), DropReason::BadInnerSource),
            ("no Hiveway node", PLAIN, question(node_mac(PLAIN), task, PUBLISHED), DropReason::BadInnerSource),
            ("nobody's node", STRANGER, question(node_mac(STRANGER), task, PUBLISHED), DropReason::BadInnerSource),
            ("our own node", VTEP, question(own, task, PUBLISHED), DropReason::BadInnerSource),
            ("no node at all", PEER, question(mac(REMOTE1.ingress), task, PUBLISHED), DropReason::BadInnerSource),
            ("another port", PEER, question(node_mac(PEER), task, 81), DropReason::MeshNoTarget),
            ("no such task", PEER, question(node_mac(PEER), mac(REMOTE1.ingress), PUBLISHED), DropReason::MeshNoTarget),
            ("another node's", PEER, question(node_mac(PEER), node_mac(THIRD), PUBLISHED), DropReason::MeshNoTarget),
            (
                "a reply of another node's",
                THIRD,
                answer(mac(REMOTE1.ingress), own, VTEP, CLIENT),
                DropReason::BadInnerSource,
            ),
            (
                "a reply of another task",
                PEER,
                answer(mac(REMOTE2.ingress), own, VTEP, CLIENT),
                DropReason::MeshBadReturn,
            ),
            ("a reply of no task", PEER, answer(node_mac(PEER), own, VTEP, CLIENT), DropReason::MeshBadReturn),
            (
                "a reply to nobody",
                PEER,
                answer(mac(REMOTE1.ingress), own, VTEP, [8, 8, 8, 8]),
                DropReason::MeshBadReturn,
            ),
            (
                "a reply from elsewhere",
                PEER,
                answer(mac(REMOTE1.ingress), own, REMOTE1.ingress, CLIENT),
                DropReason::MeshBadReturn,
            ),
        ] {
            out_of_vxlan(what, device, node, packet, Drop(reason)).check(&mut world.harness)?;
        }
        golden("came in past us", Program::FromVxlan, device, good.clone(), Drop(DropReason::UncheckedTunnel))
            .check(&mut world.harness)?;
        // On another network such MACs mean nothing.
        out_of_vxlan("another network", world.dev.vxlan, PEER, good, Drop(DropReason::BadInnerSource))
            .check(&mut world.harness)
    })
}

#[test]
fn the_fast_path_leaves_small_last_pieces_of_the_mesh_to_the_device() -> Result<()> {
    world(|world| {
        world.join_ingress()?;
        // As the kernel's vxlan device sends it: without outer DF.
        let tunnelled = |vni, inner: &[u8]| {
            let (outer, l4) = vxlan(PEER, VTEP, 50000, vni, inner);
            frame(ROUTER_MAC, NODE_MAC, &Ip { id: 99, ..may_be_cut(outer) }, &l4)
        };
        let from = may_be_cut(ip(CLIENT, PEER));
        let all = pieces(&from, &of_length(1520, CLIENT_PORT, PUBLISHED), 1480);
        let mesh = |ip: &Ip, l4: &L4| tunnelled(INGRESS, &frame(node_mac(PEER), mac(LOCAL1.ingress), ip, l4));
        underlay(world, "behind its first", mesh(&all[1].0, &all[1].1), SlowPath)
            .leaves_mark(pieces_from(PEER))
            .check(&mut world.harness)?;
        // Whatever else looks like a mesh frame has no business here.
        let whole = mesh(&from, &udp(CLIENT_PORT, PUBLISHED));
        underlay(world, "whole", whole, Drop(DropReason::BadInnerSource)).check(&mut world.harness)?;
        let other = frame(mac(REMOTE1.ingress), mac(LOCAL1.ingress), &all[1].0, &all[1].1);
        underlay(world, "no node's MAC", tunnelled(INGRESS, &other), Drop(DropReason::BadInnerSource))
            .check(&mut world.harness)?;
        let elsewhere = tunnelled(APP, &frame(node_mac(PEER), mac(LOCAL1.ip), &all[1].0, &all[1].1));
        underlay(world, "another network", elsewhere, Drop(DropReason::BadInnerSource)).check(&mut world.harness)?;
        // A container's fragment that another node's kernel has tunnelled.
        for (ip, l4) in pieces(&ip(REMOTE1.ip, LOCAL1.ip), &of_length(600, 53, 3000), 480) {
            let inner = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &ip, &l4);
            underlay(world, "by a kernel", tunnelled(APP, &inner), SlowPath)
                .leaves_mark(mark::CHECKED | APP)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn a_vips_reply_off_the_slow_path_is_translated() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        let question = frame(mac(LOCAL1.ip), STALE, &ip(LOCAL1.ip, VIP), &udp(3000, 53));
        golden("question", Program::FromContainer, world.dev.veth1, question, Pass).run(&mut world.harness)?;
        let reply = |src: Ip4, len| {
            let all = pieces(&ip(src, LOCAL1.ip), &of_length(len, 53, 3000), 1440);
            all.iter().map(|(ip, l4)| frame(mac(REMOTE1.ip), mac(LOCAL1.ip), ip, l4)).collect::<Vec<_>>()
        };
        for (number, (packet, out)) in reply(REMOTE1.ip, 1520).into_iter().zip(reply(VIP, 1520)).enumerate() {
            let len = packet.len();
            // The first piece came in pieces, the second whole.
            let mark = [pieces_from(PEER), mark::CHECKED | APP][number];
            golden("reply", Program::FromVxlan, world.dev.vxlan, packet, Peer(world.dev.veth1))
                .marked(mark)
                .counts(Counter::FragmentTranslated, len)
                .counts(Counter::Delivered, len)
                .becomes(out)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}
