//! Golden packets of ARP on overlay interfaces: what is answered on the spot, and what is not.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Drop, Reply, SlowPath},
};
use dataplane_common::{addr::VIRTUAL_MAC, counter::Counter, drop_reason::DropReason};
use etherparse::ArpOperation;
use support::{
    golden::{Golden, golden},
    packets::{Ip4, Mac, arp, ethernet},
    world::*,
};

const ALL: Mac = [0xff; 6];
const UNKNOWN: Mac = [0; 6];

fn case(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromContainer, world.dev.veth1, packet, decision)
}

/// LOCAL1 asks who has `target`.
fn request(target: Ip4) -> Vec<u8> {
    arp(ArpOperation::REQUEST, (mac(LOCAL1.ip), LOCAL1.ip), (UNKNOWN, target), ALL)
}

#[test]
fn known_addresses_are_answered_with_what_the_table_says() -> Result<()> {
    world(|world| {
        for (what, target, answer) in [
            ("a container on this node", LOCAL2.ip, mac(LOCAL2.ip)),
            ("a container on another node", REMOTE1.ip, mac(REMOTE1.ip)),
            ("a container on a plain node", ON_PLAIN.ip, mac(ON_PLAIN.ip)),
            ("a VIP", VIP, VIRTUAL_MAC),
            ("a VIP without backends", EMPTY_VIP, VIRTUAL_MAC),
            ("the gateway", GATEWAY, VIRTUAL_MAC),
            ("a plain node's own address", NODE_ON_APP, mac(NODE_ON_APP)),
        ] {
            let asked = request(target);
            let reply = arp(ArpOperation::REPLY, (answer, target), (mac(LOCAL1.ip), LOCAL1.ip), mac(LOCAL1.ip));
            case(world, what, asked, Reply(world.dev.veth1))
                .counts(Counter::ArpReply, reply.len())
                .becomes(reply)
                .check(&mut world.harness)?;
        }
        // A neighbour's refresh is unicast.
        let asked = arp(ArpOperation::REQUEST, (mac(LOCAL1.ip), LOCAL1.ip), (UNKNOWN, LOCAL2.ip), mac(LOCAL2.ip));
        let reply = arp(ArpOperation::REPLY, (mac(LOCAL2.ip), LOCAL2.ip), (mac(LOCAL1.ip), LOCAL1.ip), mac(LOCAL1.ip));
        case(world, "a unicast request", asked, Reply(world.dev.veth1))
            .counts(Counter::ArpReply, reply.len())
            .becomes(reply)
            .check(&mut world.harness)?;
        // Padding up to Ethernet's minimum stays.
        let (mut asked, mut reply) = (
            request(LOCAL2.ip),
            arp(ArpOperation::REPLY, (mac(LOCAL2.ip), LOCAL2.ip), (mac(LOCAL1.ip), LOCAL1.ip), mac(LOCAL1.ip)),
        );
        asked.resize(60, 0);
        reply.resize(60, 0);
        case(world, "a padded request", asked, Reply(world.dev.veth1))
            .counts(Counter::ArpReply, 60)
            .becomes(reply)
            .check(&mut world.harness)?;
        Ok(())
    })
}

#[test]
fn a_probe_is_answered_so_that_a_duplicate_is_noticed() -> Result<()> {
    world(|world| {
        let probe = arp(ArpOperation::REQUEST, (mac(LOCAL1.ip), [0; 4]), (UNKNOWN, LOCAL2.ip), ALL);
        let reply = arp(ArpOperation::REPLY, (mac(LOCAL2.ip), LOCAL2.ip), (mac(LOCAL1.ip), [0; 4]), mac(LOCAL1.ip));
        case(world, "a probe for a taken address", probe, Reply(world.dev.veth1))
            .counts(Counter::ArpReply, reply.len())
            .becomes(reply)
            .check(&mut world.harness)?;
        // Nobody may claim the asker's own address, least of all we.
        let probe = arp(ArpOperation::REQUEST, (mac(LOCAL1.ip), [0; 4]), (UNKNOWN, LOCAL1.ip), ALL);
        case(world, "duplicate address detection", probe, SlowPath).check(&mut world.harness)?;
        let announcement = arp(ArpOperation::REQUEST, (mac(LOCAL1.ip), LOCAL1.ip), (UNKNOWN, LOCAL1.ip), ALL);
        case(world, "a gratuitous request", announcement, SlowPath).check(&mut world.harness)?;
        Ok(())
    })
}

#[test]
fn what_must_cross_is_left_to_the_bridge() -> Result<()> {
    world(|world| {
        case(world, "an address that nobody has", request([10, 0, 1, 77]), SlowPath).check(&mut world.harness)?;
        let own = (mac(LOCAL1.ip), LOCAL1.ip);
        let reply = arp(ArpOperation::REPLY, own, (mac(LOCAL2.ip), LOCAL2.ip), mac(LOCAL2.ip));
        case(world, "an answer of the container's own", reply, SlowPath).check(&mut world.harness)?;
        // On the other network the same address belongs to nobody.
        golden("the twin network", Program::FromContainer, world.dev.twin, request(LOCAL2.ip), SlowPath)
            .check(&mut world.harness)?;
        // Token ring, 8-byte protocol addresses: not ARP for IPv4 over Ethernet.
        for (offset, value) in [(14, 6), (18, 8), (16, 0x86)] {
            let mut odd = request(LOCAL2.ip);
            odd[offset] = value;
            case(world, "another kind of ARP", odd, SlowPath).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn spoofed_senders_are_dropped() -> Result<()> {
    world(|world| {
        let target = (UNKNOWN, LOCAL2.ip);
        for (what, sender, reason) in [
            ("another's address", (mac(LOCAL1.ip), REMOTE1.ip), DropReason::SpoofedIp),
            ("the gateway's address", (mac(LOCAL1.ip), GATEWAY), DropReason::SpoofedIp),
            ("a VIP", (mac(LOCAL1.ip), VIP), DropReason::SpoofedIp),
        ] {
            for operation in [ArpOperation::REQUEST, ArpOperation::REPLY] {
                case(world, what, arp(operation, sender, target, ALL), Drop(reason)).check(&mut world.harness)?;
            }
        }
        // The MAC in the frame is right, the one in the ARP packet is not.
        let mut poison = arp(ArpOperation::REPLY, (mac(LOCAL1.ip), LOCAL1.ip), target, ALL);
        poison[22..28].copy_from_slice(&mac(LOCAL2.ip));
        case(world, "another's MAC inside", poison, Drop(DropReason::SpoofedMac)).check(&mut world.harness)?;
        let mut foreign = request(LOCAL2.ip);
        foreign[6..12].copy_from_slice(&mac(LOCAL2.ip));
        case(world, "another's MAC outside", foreign, Drop(DropReason::SpoofedMac)).check(&mut world.harness)?;
        Ok(())
    })
}

#[test]
fn arp_cut_off_is_dropped() -> Result<()> {
    world(|world| {
        let whole = request(LOCAL2.ip);
        for len in [14 + 1, 14 + 8, 14 + 27] {
            case(world, "cut off", whole[..len].to_vec(), Drop(DropReason::Truncated)).check(&mut world.harness)?;
        }
        let empty = ethernet(mac(LOCAL1.ip), ALL, 0x0806, &[0]);
        case(world, "nothing but a type", empty, Drop(DropReason::Truncated)).check(&mut world.harness)?;
        Ok(())
    })
}
