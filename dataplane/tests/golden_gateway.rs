//! Golden packets of `from_gateway`: what leaves a container through the gateway bridge. Replies to clients of the
//! routing mesh are in `golden_mesh`.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Drop, Pass},
};
use dataplane_common::drop_reason::DropReason;
use etherparse::ArpOperation;
use support::{
    golden::{Golden, golden},
    packets::{Ip, Ip4, L4, arp, ethernet, frame, ip, ping, tcp, udp},
    world::*,
};

/// The gateway bridge.
const BRIDGE_MAC: [u8; 6] = [0x02, 0x42, 172, 18, 0, 1];
const BRIDGE: Ip4 = [172, 18, 0, 1];
const OUTSIDE: Ip4 = [198, 51, 100, 99];

fn case(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromGateway, world.dev.gw1, packet, decision)
}

fn sent(ip: &Ip, l4: &L4) -> Vec<u8> {
    frame(mac(GW1), BRIDGE_MAC, ip, l4)
}

#[test]
fn ordinary_traffic_passes_untouched() -> Result<()> {
    world(|world| {
        let fragment = Ip { dont_fragment: false, more_fragments: true, ..ip(GW1, OUTSIDE) };
        let ipv6 = ethernet(mac(GW1), BRIDGE_MAC, 0x86dd, &[0x60; 40]);
        let request = arp(ArpOperation::REQUEST, (mac(GW1), GW1), ([0; 6], BRIDGE), [0xff; 6]);
        let probe = arp(ArpOperation::REQUEST, (mac(GW1), [0; 4]), ([0; 6], GW1), [0xff; 6]);
        for (what, packet) in [
            ("a connection to the outside", sent(&ip(GW1, OUTSIDE), &tcp(40000, 443, "S"))),
            ("its data", sent(&ip(GW1, OUTSIDE), &tcp(40000, 443, "PA"))),
            ("DNS", sent(&ip(GW1, OUTSIDE), &udp(40000, 53))),
            ("a ping", sent(&ip(GW1, OUTSIDE), &ping(1))),
            ("SCTP", sent(&ip(GW1, OUTSIDE), &L4::Raw { proto: 132, payload: vec![0; 32] })),
            ("a fragment", sent(&fragment, &udp(40000, 53))),
            ("IP options", sent(&Ip { options: vec![1; 8], ..ip(GW1, OUTSIDE) }, &udp(40000, 53))),
            ("1500 bytes", sent(&ip(GW1, OUTSIDE), &L4::Raw { proto: 6, payload: tcp_of(1480) })),
            ("from the published port, to no client of ours", sent(&ip(GW1, OUTSIDE), &tcp(80, 40000, "A"))),
            ("IPv6", ipv6),
            ("ARP", request),
            ("an ARP probe", probe),
        ] {
            case(world, what, packet, Pass).check(&mut world.harness)?;
        }
        Ok(())
    })
}

/// A TCP segment of that many bytes, header included.
fn tcp_of(len: usize) -> Vec<u8> {
    let mut segment = vec![0; len];
    segment[12] = 0x50;
    segment
}

#[test]
fn spoofed_senders_are_dropped() -> Result<()> {
    world(|world| {
        let good = ip(GW1, OUTSIDE);
        let foreign = frame(mac(GW2), BRIDGE_MAC, &good, &udp(1, 2));
        case(world, "another's MAC", foreign, Drop(DropReason::SpoofedMac)).check(&mut world.harness)?;
        for src in [GW2, BRIDGE, VTEP, PEER, CLIENT, LOCAL1.ip, [0; 4], [127, 0, 0, 1]] {
            let packet = sent(&Ip { src, ..good.clone() }, &udp(1, 2));
            case(world, "another's address", packet, Drop(DropReason::SpoofedIp)).check(&mut world.harness)?;
        }
        for ip in [GW2, BRIDGE] {
            let poison = arp(ArpOperation::REPLY, (mac(GW1), ip), (mac(GW2), GW2), mac(GW2));
            case(world, "another's address in ARP", poison, Drop(DropReason::SpoofedIp)).check(&mut world.harness)?;
        }
        let mut poison = arp(ArpOperation::REPLY, (mac(GW1), GW1), (mac(GW2), GW2), mac(GW2));
        poison[22..28].copy_from_slice(&mac(GW2));
        case(world, "another's MAC in ARP", poison, Drop(DropReason::SpoofedMac)).check(&mut world.harness)?;
        golden(
            "nobody's interface",
            Program::FromGateway,
            world.dev.stray,
            sent(&good, &udp(1, 2)),
            Drop(DropReason::UnknownInterface),
        )
        .check(&mut world.harness)?;
        // Behind one with VID 0, see `golden_container.rs`.
        for tag in [0x8100, 0x88a8] {
            let tagged = ethernet(mac(GW1), BRIDGE_MAC, tag, &[0, 1, 8, 0, 0x45, 0, 0, 0, 0, 0]);
            case(world, "a second tag", tagged, Drop(DropReason::UnsupportedProtocol)).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn forged_tunnels_are_dropped() -> Result<()> {
    world(|world| {
        for to in [VTEP, PEER, PLAIN] {
            for sport in [50000, 4789] {
                case(
                    world,
                    "to a node's VXLAN port",
                    sent(&ip(GW1, to), &udp(sport, 4789)),
                    Drop(DropReason::ForgedTunnel),
                )
                .check(&mut world.harness)?;
            }
            let first = Ip { dont_fragment: false, more_fragments: true, ..ip(GW1, to) };
            case(world, "in pieces", sent(&first, &udp(50000, 4789)), Drop(DropReason::ForgedTunnel))
                .check(&mut world.harness)?;
            let options = Ip { options: vec![1; 40], ..ip(GW1, to) };
            case(world, "behind options", sent(&options, &udp(50000, 4789)), Drop(DropReason::ForgedTunnel))
                .check(&mut world.harness)?;
            // Other services of a node are reachable, and so is that port elsewhere.
            case(world, "another port", sent(&ip(GW1, to), &udp(4789, 4790)), Pass).check(&mut world.harness)?;
            case(world, "another protocol", sent(&ip(GW1, to), &tcp(50000, 4789, "S")), Pass)
                .check(&mut world.harness)?;
        }
        case(world, "somebody else's tunnel", sent(&ip(GW1, OUTSIDE), &udp(50000, 4789)), Pass)
            .check(&mut world.harness)
    })
}

#[test]
fn headers_cut_off_or_senseless_are_dropped() -> Result<()> {
    world(|world| {
        for (l4, header) in [(tcp(1000, 80, "S"), 20), (udp(1000, 80), 8), (ping(1), 8)] {
            let whole = sent(&ip(GW1, OUTSIDE), &l4);
            for len in [34, 35, 34 + header - 1, whole.len() - 1] {
                case(world, "cut off", whole[..len].to_vec(), Drop(DropReason::Truncated)).check(&mut world.harness)?;
            }
        }
        let good = sent(&ip(GW1, OUTSIDE), &tcp(1000, 80, "S"));
        for (offset, value, reason) in [
            (14, 0x55, DropReason::MalformedIp),
            (14, 0x44, DropReason::MalformedIp),
            (46, 0x40, DropReason::MalformedHeader),
        ] {
            let mut packet = good.clone();
            packet[offset] = value;
            case(world, "nonsense", packet, Drop(reason)).check(&mut world.harness)?;
        }
        let request = arp(ArpOperation::REQUEST, (mac(GW1), GW1), ([0; 6], BRIDGE), [0xff; 6]);
        case(world, "ARP cut off", request[..41].to_vec(), Drop(DropReason::Truncated)).check(&mut world.harness)
    })
}
