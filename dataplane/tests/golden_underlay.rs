//! Golden packets of `from_underlay`: tunnelled frames of the overlay, and what is none of our business. Those cut off
//! are in `golden_malformed`.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Drop, Pass, Peer, SlowPath},
};
use dataplane_common::{counter::Counter, drop_reason::DropReason, endpoint::EndpointKey, mark};
use etherparse::ArpOperation;
use support::{
    golden::{Golden, golden},
    packets::{Ip, Ip4, L4, arp, ethernet, frame, ip, ipv4, ping, tcp, udp, vxlan},
    world::*,
};

fn case(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromUnderlay, world.dev.underlay, packet, decision)
}

/// A frame from another node's VTEP to ours, in the overlay network `vni`.
fn tunnelled(from: Ip4, vni: u32, inner: &[u8]) -> Vec<u8> {
    let (outer, l4) = vxlan(from, VTEP, 50000, vni, inner);
    frame(ROUTER_MAC, NODE_MAC, &outer, &l4)
}

/// From a task of another node to one of ours.
fn inner(from: Ip4, to: Ip4, l4: &L4) -> Vec<u8> {
    frame(mac(from), mac(to), &ip(from, to), l4)
}

#[test]
fn into_a_container() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        for (node, from) in [(PEER, REMOTE1.ip), (PLAIN, ON_PLAIN.ip), (PLAIN, NODE_ON_APP)] {
            for l4 in [tcp(80, 1000, "PA"), udp(53, 1000), ping(3), L4::Raw { proto: 132, payload: vec![1; 30] }] {
                let inner = inner(from, LOCAL1.ip, &l4);
                case(world, "into a container", tunnelled(node, APP, &inner), Peer(dev.veth1))
                    .counts(Counter::Delivered, inner.len())
                    .becomes(inner)
                    .check(&mut world.harness)?;
            }
        }
        Ok(())
    })
}

#[test]
fn what_would_hide_its_sender_from_the_checks_is_dropped() -> Result<()> {
    world(|world| {
        let forged = inner(ON_PLAIN.ip, LOCAL1.ip, &tcp(80, 1000, "R"));
        for (kind, vid) in [(0x8100, 0), (0x8100, 5), (0x88a8, 0)] {
            let (addresses, rest) = forged.split_at(12);
            let tagged = [addresses, &u16::to_be_bytes(kind), &u16::to_be_bytes(vid), rest].concat();
            case(world, "in a tag", tunnelled(PEER, APP, &tagged), Drop(DropReason::UnsupportedProtocol))
                .check(&mut world.harness)?;
        }
        // Linux takes hardware type 6 on Ethernet, too.
        let sender = (mac(ON_PLAIN.ip), ON_PLAIN.ip);
        let mut poison = arp(ArpOperation::REPLY, sender, (mac(LOCAL1.ip), LOCAL1.ip), mac(LOCAL1.ip));
        poison[15] = 6;
        case(world, "ARP of IEEE 802", tunnelled(PEER, APP, &poison), Drop(DropReason::UnsupportedProtocol))
            .check(&mut world.harness)
    })
}

#[test]
fn the_receivers_mac_comes_from_the_table() -> Result<()> {
    world(|world| {
        // A peer that believes in an older MAC, as after a task was replaced.
        let stale = frame(mac(REMOTE1.ip), mac([9; 4]), &ip(REMOTE1.ip, LOCAL1.ip), &udp(53, 1000));
        let out = inner(REMOTE1.ip, LOCAL1.ip, &udp(53, 1000));
        case(world, "another inner MAC", tunnelled(PEER, APP, &stale), Peer(world.dev.veth1))
            .counts(Counter::Delivered, out.len())
            .becomes(out)
            .check(&mut world.harness)
    })
}

#[test]
fn outer_checksums_are_accepted_zero_and_not() -> Result<()> {
    world(|world| {
        let inner = inner(REMOTE1.ip, LOCAL1.ip, &udp(53, 1000));
        for with in [false, true] {
            let (outer, l4) = vxlan(PEER, VTEP, 50000, APP, &inner);
            let L4::Udp { sport, dport, payload, .. } = l4 else { unreachable!("a tunnel is UDP") };
            let l4 = L4::Udp { sport, dport, payload, checksum: with };
            let packet = frame(ROUTER_MAC, NODE_MAC, &outer, &l4);
            case(world, "outer UDP checksum", packet, Peer(world.dev.veth1))
                .counts(Counter::Delivered, inner.len())
                .becomes(inner.clone())
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn congestion_crosses_the_end_of_the_tunnel() -> Result<()> {
    world(|world| {
        // RFC 6040: (outer, inner) gives this inner ECN, or a drop.
        for (outer_ecn, inner_ecn, out) in [
            (0, 0, Some(0)),
            (0, 2, Some(2)),
            (2, 2, Some(2)),
            (1, 1, Some(1)),
            (3, 1, Some(3)),
            (3, 2, Some(3)),
            (3, 3, Some(3)),
            (0, 3, Some(3)),
            (3, 0, None),
        ] {
            let with = |ecn: u8| {
                let packet = Ip { tos: 0xb8 | ecn, ..ip(REMOTE1.ip, LOCAL1.ip) };
                frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &packet, &udp(53, 1000))
            };
            let (outer, l4) = vxlan(PEER, VTEP, 50000, APP, &with(inner_ecn));
            let packet = frame(ROUTER_MAC, NODE_MAC, &Ip { tos: outer_ecn, ..outer }, &l4);
            match out {
                Some(ecn) => case(world, "ECN", packet, Peer(world.dev.veth1))
                    .counts(Counter::Delivered, with(ecn).len())
                    .becomes(with(ecn))
                    .check(&mut world.harness)?,
                None => {
                    let outcome = case(world, "CE on what is not ECN-capable", packet, Pass).run(&mut world.harness)?;
                    assert_eq!(outcome.decision, Some(Drop(DropReason::EcnViolation)));
                    assert_eq!(outcome.drops.keys().collect::<Vec<_>>(), [&DropReason::EcnViolation]);
                }
            }
        }
        Ok(())
    })
}

#[test]
fn only_nodes_of_the_swarm_may_speak() -> Result<()> {
    world(|world| {
        let inner = inner(REMOTE1.ip, LOCAL1.ip, &udp(53, 1000));
        for from in [STRANGER, VTEP, CLIENT] {
            case(world, "an unknown sender", tunnelled(from, APP, &inner), Drop(DropReason::UnknownVtep))
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn the_inner_source_must_live_on_the_sending_node() -> Result<()> {
    world(|world| {
        for (what, node, from) in [
            ("a task of the third node", PEER, ON_PLAIN.ip),
            ("a task of the second node", PLAIN, REMOTE1.ip),
            ("a task of this node", PEER, LOCAL2.ip),
            ("the receiver itself", PEER, LOCAL1.ip),
            ("the gateway", PEER, GATEWAY),
            ("a VIP", PEER, VIP),
            ("nobody", PEER, [10, 0, 1, 77]),
            ("another node's own address", PEER, NODE_ON_APP),
        ] {
            let packet = tunnelled(node, APP, &inner(from, LOCAL1.ip, &udp(53, 1000)));
            case(world, what, packet, Drop(DropReason::BadInnerSource)).check(&mut world.harness)?;
            // Also where the slow path would carry it.
            let to_all = frame(mac(from), [0xff; 6], &ip(from, [10, 0, 1, 255]), &udp(1, 2));
            case(world, what, tunnelled(node, APP, &to_all), Drop(DropReason::BadInnerSource))
                .check(&mut world.harness)?;
            let poison = arp(ArpOperation::REPLY, (mac(from), from), (mac(LOCAL1.ip), LOCAL1.ip), mac(LOCAL1.ip));
            case(world, what, tunnelled(node, APP, &poison), Drop(DropReason::BadInnerSource))
                .check(&mut world.harness)?;
        }
        // On the twin network REMOTE1's address is nobody's.
        let packet = tunnelled(PEER, TWIN, &inner(REMOTE1.ip, LOCAL1.ip, &udp(53, 1000)));
        case(world, "right address, wrong network", packet, Drop(DropReason::BadInnerSource))
            .check(&mut world.harness)?;
        Ok(())
    })
}

#[test]
fn the_inner_destination_must_live_here() -> Result<()> {
    world(|world| {
        for to in [REMOTE2.ip, ON_PLAIN.ip, VIP, GATEWAY, [10, 0, 1, 77], NODE_ON_APP] {
            let packet = tunnelled(PEER, APP, &inner(REMOTE1.ip, to, &udp(53, 1000)));
            case(world, "no receiver here", packet, Drop(DropReason::UnknownDestination)).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn other_peoples_vnis_and_ports_pass_untouched() -> Result<()> {
    world(|world| {
        let inner = inner(REMOTE1.ip, LOCAL1.ip, &udp(53, 1000));
        for from in [PEER, STRANGER] {
            case(world, "a VNI that is not ours", tunnelled(from, FOREIGN, &inner), Pass).check(&mut world.harness)?;
        }
        let (outer, _) = vxlan(PEER, VTEP, 50000, APP, &inner);
        let other_port = frame(ROUTER_MAC, NODE_MAC, &outer, &udp(50000, 8472));
        case(world, "another UDP port", other_port, Pass).check(&mut world.harness)?;
        let (outer, l4) = vxlan(PEER, [192, 0, 2, 50], 50000, APP, &inner);
        let elsewhere = frame(ROUTER_MAC, NODE_MAC, &outer, &l4);
        case(world, "not to our VTEP", elsewhere, Pass).check(&mut world.harness)?;
        Ok(())
    })
}

#[test]
fn what_is_no_business_of_ours_passes_however_broken() -> Result<()> {
    world(|world| {
        let ssh = frame(ROUTER_MAC, NODE_MAC, &ip(CLIENT, VTEP), &tcp(40000, 22, "S"));
        let ipv6 = ethernet(ROUTER_MAC, NODE_MAC, 0x86dd, &[0x60; 40]);
        let arp = arp(ArpOperation::REQUEST, (ROUTER_MAC, [192, 0, 2, 254]), ([0; 6], VTEP), [0xff; 6]);
        let mut version = ssh.clone();
        version[14] = 0x55;
        for (what, packet) in [
            ("a service of the host's", ssh.clone()),
            ("IPv6", ipv6),
            ("ARP", arp),
            ("IP version 5", version),
            ("TCP cut off", ssh[..40].to_vec()),
            ("routed through this node", frame(ROUTER_MAC, NODE_MAC, &ip(CLIENT, [10, 9, 9, 9]), &udp(1, 2))),
        ] {
            case(world, what, packet, Pass).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn options_in_either_header() -> Result<()> {
    world(|world| {
        let options = vec![1; 12];
        let packet = Ip { options: options.clone(), ..ip(REMOTE1.ip, LOCAL1.ip) };
        let inner = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &packet, &udp(53, 1000));
        case(world, "inner options", tunnelled(PEER, APP, &inner), Peer(world.dev.veth1))
            .counts(Counter::Delivered, inner.len())
            .becomes(inner.clone())
            .check(&mut world.harness)?;
        // The kernel's vxlan device takes that off; the sender check follows behind it.
        // Somebody else's VNI goes to its owner whoever sends it; the mesh has no such device.
        for (from, vni, decision, leaves) in [
            (PEER, APP, SlowPath, mark::FRAGMENT | 0x00_02_02),
            (STRANGER, APP, Drop(DropReason::UnknownVtep), 0),
            (STRANGER, FOREIGN, Pass, 0),
            (PEER, MESH, Drop(DropReason::MalformedIp), 0),
        ] {
            let (outer, l4) = vxlan(from, VTEP, 50000, vni, &inner);
            let packet = frame(ROUTER_MAC, NODE_MAC, &Ip { options: options.clone(), ..outer }, &l4);
            case(world, "outer options", packet, decision).leaves_mark(leaves).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn outer_fragments_go_to_the_stack_with_their_sender_noted() -> Result<()> {
    world(|world| {
        let inner = inner(REMOTE1.ip, LOCAL1.ip, &udp(53, 1000));
        for (from, leaves) in [(PEER, mark::FRAGMENT | 0x00_02_02), (STRANGER, 0)] {
            for (more_fragments, fragment_offset) in [(true, 0), (true, 4), (false, 4)] {
                let (outer, l4) = vxlan(from, VTEP, 50000, APP, &inner);
                let piece = Ip { dont_fragment: false, more_fragments, fragment_offset, ..outer };
                let packet = frame(ROUTER_MAC, NODE_MAC, &piece, &l4);
                case(world, "a piece of a tunnelled frame", packet, Pass)
                    .leaves_mark(leaves)
                    .check(&mut world.harness)?;
            }
        }
        Ok(())
    })
}

#[test]
fn inner_fragments_are_delivered() -> Result<()> {
    world(|world| {
        for (more_fragments, fragment_offset) in [(true, 0), (false, 3)] {
            let piece = Ip { dont_fragment: false, more_fragments, fragment_offset, ..ip(REMOTE1.ip, LOCAL1.ip) };
            let inner = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &piece, &udp(53, 1000));
            case(world, "an inner fragment", tunnelled(PEER, APP, &inner), Peer(world.dev.veth1))
                .counts(Counter::Delivered, inner.len())
                .becomes(inner.clone())
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn what_the_slow_path_carries_is_checked_and_marked() -> Result<()> {
    world(|world| {
        let checked = mark::CHECKED | APP;
        let sender = (mac(REMOTE1.ip), REMOTE1.ip);
        let broadcast = frame(mac(REMOTE1.ip), [0xff; 6], &ip(REMOTE1.ip, [10, 0, 1, 255]), &udp(1, 2));
        let multicast = frame(mac(REMOTE1.ip), [1, 0, 0x5e, 0, 0, 0xfb], &ip(REMOTE1.ip, [224, 0, 0, 251]), &udp(1, 2));
        let request = arp(ArpOperation::REQUEST, sender, ([0; 6], LOCAL1.ip), [0xff; 6]);
        let probe = arp(ArpOperation::REQUEST, (mac(REMOTE1.ip), [0; 4]), ([0; 6], LOCAL1.ip), [0xff; 6]);
        let ipv6 = ethernet(mac(REMOTE1.ip), [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &[0x60; 40]);
        // The tunnel's datagrams may be several, of which this frame is the first.
        let several = mark::FRAGMENT | u32::from_be_bytes([0, PEER[1], PEER[2], PEER[3]]);
        let other = mark::OTHER | APP;
        for (what, inner, one, more) in [
            ("broadcast", broadcast, checked, several),
            ("multicast", multicast, checked, several),
            ("ARP", request, checked, several),
            ("an ARP probe", probe, checked, several),
            ("IPv6", ipv6, other, other),
        ] {
            let packet = || case(world, what, tunnelled(PEER, APP, &inner), SlowPath);
            let (alone, first) = (packet().leaves_mark(one), packet().segments(200).leaves_mark(more));
            alone.check(&mut world.harness)?;
            first.check(&mut world.harness)?;
            case(world, what, tunnelled(STRANGER, APP, &inner), Drop(DropReason::UnknownVtep))
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn replies_of_vip_flows_get_the_vip_back_on_the_clients_node() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        for (question, answer) in [(tcp(1000, 80, "S"), tcp(80, 1000, "SA")), (udp(1000, 53), udp(53, 1000))] {
            world.harness.set_cursor(&vip_set(VIP), 1)?;
            let asked = frame(mac(LOCAL1.ip), [2; 6], &ip(LOCAL1.ip, VIP), &question);
            golden("question", Program::FromContainer, dev.veth1, asked, Pass).run(&mut world.harness)?;
            let out = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &ip(VIP, LOCAL1.ip), &answer);
            let packet = tunnelled(PEER, APP, &inner(REMOTE1.ip, LOCAL1.ip, &answer));
            case(world, "the backend's answer", packet, Peer(dev.veth1))
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        // Somebody else on that node cannot slip into the flow.
        let other = inner(REMOTE2.ip, LOCAL1.ip, &udp(53, 1000));
        case(world, "another task's packet", tunnelled(PEER, APP, &other), Peer(dev.veth1))
            .counts(Counter::Delivered, other.len())
            .becomes(other)
            .check(&mut world.harness)
    })
}

#[test]
fn only_what_a_backend_sends_is_looked_up_as_a_reply() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        let asked = frame(mac(LOCAL1.ip), [2; 6], &ip(LOCAL1.ip, VIP), &udp(1000, 53));
        golden("question", Program::FromContainer, world.dev.veth1, asked, Pass).run(&mut world.harness)?;
        // Never so in earnest: the flag stays as long as the task.
        world.state.endpoints.get_mut(&EndpointKey { net: net(APP), ip: REMOTE1.ip }).unwrap().flags = 0;
        world.harness.apply(&world.state)?;
        let answer = inner(REMOTE1.ip, LOCAL1.ip, &udp(53, 1000));
        case(world, "of a task without VIP", tunnelled(PEER, APP, &answer), Peer(world.dev.veth1))
            .counts(Counter::Delivered, answer.len())
            .becomes(answer)
            .check(&mut world.harness)
    })
}

#[test]
fn decapsulation_undoes_encapsulation() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        // What this node sends to REMOTE1, seen by a node on which REMOTE1 lives: here, with the roles exchanged.
        let sent = frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &ip(LOCAL1.ip, REMOTE1.ip), &tcp(1000, 80, "PA"));
        let out = golden("out", Program::FromContainer, dev.veth1, sent.clone(), Pass).run(&mut world.harness)?;
        let mut state = world.state.clone();
        (state.config.vtep, state.config.underlay_ip) = (PEER, PEER);
        state.vteps.insert(VTEP, state.vteps[&PEER]);
        for (task, vtep, kind) in [(LOCAL1, VTEP, 2), (REMOTE1, PEER, 1)] {
            let key = dataplane_common::endpoint::EndpointKey { net: net(APP), ip: task.ip };
            let endpoint = state.endpoints.get_mut(&key).expect("every task is an endpoint");
            (endpoint.vtep, endpoint.kind, endpoint.ifindex) = (vtep, kind, dev.veth2);
        }
        world.harness.apply(&state)?;
        // The kernel writes the addresses after the program.
        let arrives = [&NODE_MAC[..], &out.packet[6..]].concat();
        case(world, "and in again", arrives, Peer(dev.veth2))
            .counts(Counter::Delivered, sent.len())
            .becomes(sent.clone())
            .check(&mut world.harness)?;
        assert_eq!(ipv4(&ip(LOCAL1.ip, REMOTE1.ip), &tcp(1000, 80, "PA")), sent[14..]);
        Ok(())
    })
}
