//! Golden packets of `from_vxlan`: what the kernel's vxlan device took out of its tunnel.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Drop, Pass, Peer},
};
use dataplane_common::{counter::Counter, drop_reason::DropReason, mark};
use etherparse::ArpOperation;
use support::{
    golden::{Golden, golden},
    packets::{Ip4, arp, ethernet, frame, ip, udp},
    world::*,
};

fn case(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromVxlan, world.dev.vxlan, packet, decision)
}

fn from(src: Ip4) -> Vec<u8> {
    frame(mac(src), mac(LOCAL1.ip), &ip(src, LOCAL1.ip), &udp(53, 1000))
}

/// What `from_underlay` leaves on pieces of a frame from that node.
fn pieces_from(node: Ip4) -> u32 {
    mark::FRAGMENT | u32::from_be_bytes([0, node[1], node[2], node[3]])
}

#[test]
fn checked_frames_pass_and_lose_their_mark() -> Result<()> {
    world(|world| {
        let request = arp(ArpOperation::REQUEST, (mac(REMOTE1.ip), REMOTE1.ip), ([0; 6], LOCAL1.ip), [0xff; 6]);
        let ipv6 = ethernet(mac(REMOTE1.ip), [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &[0x60; 40]);
        let broadcast = frame(mac(REMOTE1.ip), [0xff; 6], &ip(REMOTE1.ip, [10, 0, 1, 255]), &udp(53, 1000));
        let elsewhere = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &ip(REMOTE1.ip, [10, 0, 1, 77]), &udp(53, 1000));
        for packet in [broadcast, elsewhere, request] {
            case(world, "checked", packet, Pass).marked(mark::CHECKED | APP).check(&mut world.harness)?;
        }
        case(world, "IPv6", ipv6, Pass).marked(mark::OTHER | APP).check(&mut world.harness)?;
        delivered(world, from(REMOTE1.ip), mark::CHECKED | APP)
    })
}

/// They may have come behind another one, which was looked at.
#[test]
fn only_frames_without_a_sender_pass_as_such() -> Result<()> {
    world(|world| {
        let request = arp(ArpOperation::REQUEST, (mac(REMOTE1.ip), REMOTE1.ip), ([0; 6], LOCAL1.ip), [0xff; 6]);
        let ipv6 = ethernet(mac(REMOTE1.ip), [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &[0x60; 40]);
        for (what, packet, decision) in [
            ("IPv6", ipv6, Pass),
            ("IPv4", from(REMOTE1.ip), Drop(DropReason::UncheckedTunnel)),
            ("ARP", request, Drop(DropReason::UncheckedTunnel)),
        ] {
            case(world, what, packet, decision).marked(mark::OTHER | APP).check(&mut world.harness)?;
        }
        Ok(())
    })
}

/// A frame to LOCAL1 that is in order goes into its container.
fn delivered(world: &mut World, packet: Vec<u8>, mark: u32) -> Result<()> {
    case(world, "to a task here", packet.clone(), Peer(world.dev.veth1))
        .marked(mark)
        .counts(Counter::Delivered, packet.len())
        .check(&mut world.harness)
}

#[test]
fn frames_that_nobody_has_checked_are_dropped() -> Result<()> {
    world(|world| {
        for mark in [0, 1, APP, 0x4700_0000 | APP, 0x4a00_0000 | APP, u32::MAX] {
            case(world, "came in past us", from(REMOTE1.ip), Drop(DropReason::UncheckedTunnel))
                .marked(mark)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn frames_that_came_in_pieces_are_checked_here() -> Result<()> {
    world(|world| {
        for (node, src) in [(PEER, REMOTE1.ip), (PLAIN, ON_PLAIN.ip), (PLAIN, NODE_ON_APP)] {
            delivered(world, from(src), pieces_from(node))?;
        }
        for (what, node, src) in [
            ("a task of another node", PEER, ON_PLAIN.ip),
            ("a task of this node", PEER, LOCAL2.ip),
            ("nobody", PEER, [10, 0, 1, 77]),
            ("a VIP", PEER, VIP),
            ("from a stranger", STRANGER, REMOTE1.ip),
        ] {
            case(world, what, from(src), Drop(DropReason::BadInnerSource))
                .marked(pieces_from(node))
                .check(&mut world.harness)?;
        }
        let ipv6 = ethernet(mac(REMOTE1.ip), [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &[0x60; 40]);
        case(world, "nothing to check", ipv6, Drop(DropReason::UncheckedTunnel))
            .marked(pieces_from(PEER))
            .check(&mut world.harness)?;
        let whole = from(REMOTE1.ip);
        for len in [34, 41, whole.len() - 1] {
            case(world, "cut off", whole[..len].to_vec(), Drop(DropReason::Truncated))
                .marked(pieces_from(PEER))
                .check(&mut world.harness)?;
        }
        golden("no such device", Program::FromVxlan, world.dev.stray, whole, Drop(DropReason::UnknownInterface))
            .marked(pieces_from(PEER))
            .check(&mut world.harness)
    })
}
