//! Golden packets of `from_container`: what leaves a container through its overlay interface.

mod support;

use std::collections::BTreeMap;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Drop, Neigh, Peer, SlowPath},
};
use dataplane_common::{counter::Counter, drop_reason::DropReason, endpoint::local_flag::VIP_BACKEND};
use support::{
    golden::{Golden, golden},
    packets::{Ip, L4, ethernet, frame, ip, tcp, udp, vxlan},
    world::*,
};

const IN: Program = Program::FromContainer;
/// What the container believes to be its peer's MAC; the program knows better.
const STALE: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];

/// LOCAL1 sends.
fn sent(ip: &Ip, l4: &L4) -> Vec<u8> {
    frame(mac(LOCAL1.ip), STALE, ip, l4)
}

fn case(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, IN, world.dev.veth1, packet, decision)
}

/// The packet on its way to another node.
fn tunnelled(to: [u8; 4], tos: u8, vni: u32, inner: &[u8]) -> Vec<u8> {
    let (mut outer, l4) = vxlan(VTEP, to, 0, vni, inner);
    outer.tos = tos;
    frame([0; 6], [0; 6], &outer, &l4)
}

#[test]
fn to_a_container_on_this_node() -> Result<()> {
    world_without_backends(|world| {
        let dev = world.dev;
        for l4 in [tcp(1000, 80, "S"), udp(1000, 53), support::packets::ping(7), raw(132)] {
            let packet = ip(LOCAL1.ip, LOCAL2.ip);
            let out = frame(mac(LOCAL1.ip), mac(LOCAL2.ip), &packet, &l4);
            case(world, "delivered on this node", sent(&packet, &l4), Peer(dev.veth2))
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

fn raw(proto: u8) -> L4 {
    L4::Raw { proto, payload: vec![0xaa; 24] }
}

#[test]
fn to_a_container_on_another_node() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        for (to, node) in [(REMOTE1, PEER), (ON_PLAIN, PLAIN)] {
            let mut ports = Vec::new();
            // DSCP stays inside, ECN is copied (RFC 6040).
            for (tos, outer_tos) in [(0, 0), (0xb8, 0), (0xba, 0x02), (0x01, 0x01), (0x03, 0x03)] {
                let packet = Ip { tos, ..ip(LOCAL1.ip, to.ip) };
                let l4 = tcp(1000, 80, "PA");
                let inner = frame(mac(LOCAL1.ip), mac(to.ip), &packet, &l4);
                let out = tunnelled(node, outer_tos, APP, &inner);
                let port = case(world, "to another node", sent(&packet, &l4), Neigh(dev.underlay))
                    .counts(Counter::Encapsulated, out.len())
                    .becomes(out)
                    .check_tunnelled(&mut world.harness)?;
                ports.push(port);
            }
            assert!(ports.iter().all(|port| *port == ports[0]), "one flow took several paths: {ports:?}");
        }
        Ok(())
    })
}

#[test]
fn flows_spread_over_outer_source_ports() -> Result<()> {
    world_without_backends(|world| {
        let dev = world.dev;
        let mut ports = std::collections::BTreeSet::new();
        for sport in 2000..2032 {
            let (packet, l4) = (ip(LOCAL1.ip, REMOTE1.ip), udp(sport, 80));
            let inner = frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &packet, &l4);
            let out = tunnelled(PEER, 0, APP, &inner);
            ports.insert(
                case(world, "one of many flows", sent(&packet, &l4), Neigh(dev.underlay))
                    .counts(Counter::Encapsulated, out.len())
                    .becomes(out)
                    .check_tunnelled(&mut world.harness)?,
            );
        }
        assert!(ports.len() > 16, "32 flows use only {} outer source ports", ports.len());
        Ok(())
    })
}

#[test]
fn between_subnets_of_one_network() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let (packet, l4) = (ip(LOCAL1.ip, OTHER_SUBNET), udp(1000, 53));
        let inner = frame(mac(LOCAL1.ip), mac(OTHER_SUBNET), &packet, &l4);
        let out = tunnelled(PEER, 0, APP2, &inner);
        case(world, "to the other subnet's VNI", sent(&packet, &l4), Neigh(dev.underlay))
            .counts(Counter::Encapsulated, out.len())
            .becomes(out)
            .check_tunnelled(&mut world.harness)?;
        Ok(())
    })
}

#[test]
fn networks_with_the_same_addresses_are_apart() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        // LOCAL1's twin has the same address and MAC on another network, where nobody else lives.
        for to in [LOCAL2.ip, REMOTE1.ip, VIP, GATEWAY] {
            let packet = sent(&ip(LOCAL1.ip, to), &udp(1000, 53));
            golden("the other network knows nobody", IN, dev.twin, packet, SlowPath).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn spoofed_senders_are_dropped() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let good = ip(LOCAL1.ip, LOCAL2.ip);
        let foreign_mac = frame(mac(LOCAL2.ip), mac(LOCAL2.ip), &good, &udp(1, 2));
        case(world, "another's MAC", foreign_mac, Drop(DropReason::SpoofedMac)).check(&mut world.harness)?;
        for src in [LOCAL2.ip, REMOTE1.ip, GATEWAY, VIP, VTEP, [0; 4], [127, 0, 0, 1], [255; 4]] {
            let packet = sent(&Ip { src, ..good.clone() }, &udp(1, 2));
            case(world, "another's address", packet, Drop(DropReason::SpoofedIp)).check(&mut world.harness)?;
        }
        let stray = sent(&good, &udp(1, 2));
        golden("nobody's interface", IN, dev.stray, stray, Drop(DropReason::UnknownInterface))
            .check(&mut world.harness)?;
        // What the slow path carries comes from the container's own MAC too.
        let ipv6 = ethernet(mac(LOCAL2.ip), STALE, 0x86dd, &[0x60; 40]);
        case(world, "IPv6 with another's MAC", ipv6, Drop(DropReason::SpoofedMac)).check(&mut world.harness)?;
        // The hook sees a tag in the frame only behind one with VID 0, which the kernel has moved into the metadata.
        // (Tags in the metadata are the namespace lab's: a test run cannot set them.)
        for tag in [0x8100, 0x88a8] {
            let tagged = ethernet(mac(LOCAL1.ip), STALE, tag, &[0, 1, 8, 0, 0x45, 0, 0, 0, 0, 0]);
            case(world, "a second tag", tagged, Drop(DropReason::UnsupportedProtocol)).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn ip_options_are_carried() -> Result<()> {
    world_without_backends(|world| {
        let dev = world.dev;
        // Router alert, and a full 40 bytes of no-operations.
        for options in [vec![0x94, 4, 0, 0], vec![1; 40]] {
            let (packet, l4) = (Ip { options, ..ip(LOCAL1.ip, LOCAL2.ip) }, udp(1000, 53));
            let out = frame(mac(LOCAL1.ip), mac(LOCAL2.ip), &packet, &l4);
            case(world, "options, on this node", sent(&packet, &l4), Peer(dev.veth2))
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
            let packet = Ip { dst: REMOTE1.ip, ..packet };
            let inner = frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &packet, &l4);
            let out = tunnelled(PEER, 0, APP, &inner);
            case(world, "options, to another node", sent(&packet, &l4), Neigh(dev.underlay))
                .counts(Counter::Encapsulated, out.len())
                .becomes(out)
                .check_tunnelled(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn fragments_take_the_same_way_as_whole_packets() -> Result<()> {
    world_without_backends(|world| {
        let dev = world.dev;
        let base = Ip { dont_fragment: false, ..ip(LOCAL1.ip, REMOTE1.ip) };
        let first = (Ip { more_fragments: true, ..base.clone() }, udp(1000, 53));
        let later = (Ip { fragment_offset: 3, ..base }, raw(17));
        for (packet, l4) in [first, later] {
            let inner = frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &packet, &l4);
            let out = tunnelled(PEER, 0, APP, &inner);
            case(world, "a fragment to another node", sent(&packet, &l4), Neigh(dev.underlay))
                .counts(Counter::Encapsulated, out.len())
                .becomes(out)
                .check_tunnelled(&mut world.harness)?;
            let packet = Ip { dst: LOCAL2.ip, ..packet };
            let out = frame(mac(LOCAL1.ip), mac(LOCAL2.ip), &packet, &l4);
            case(world, "a fragment on this node", sent(&packet, &l4), Peer(dev.veth2))
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn packets_that_do_not_fit_the_underlay() -> Result<()> {
    world_without_backends(|world| {
        let dev = world.dev;
        // 1500 bytes of underlay less 50 of tunnel.
        let of_length = |len: usize, dont_fragment| {
            let payload = vec![0x55; len - 28];
            let l4 = L4::Udp { sport: 1, dport: 2, payload, checksum: true };
            (Ip { dont_fragment, ..ip(LOCAL1.ip, REMOTE1.ip) }, l4)
        };
        for dont_fragment in [true, false] {
            let (packet, l4) = of_length(1450, dont_fragment);
            let out = tunnelled(PEER, 0, APP, &frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &packet, &l4));
            assert_eq!(out.len(), 14 + 1500);
            case(world, "just fits", sent(&packet, &l4), Neigh(dev.underlay))
                .counts(Counter::Encapsulated, out.len())
                .becomes(out)
                .check_tunnelled(&mut world.harness)?;
        }
        // With DF it is answered: see `golden_frag_needed.rs`.
        let (packet, l4) = of_length(1451, false);
        case(world, "one byte too long, may be fragmented", sent(&packet, &l4), SlowPath)
            .becomes(frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &packet, &l4))
            .check(&mut world.harness)?;
        // On this node nothing is in the way.
        let (packet, l4) = of_length(1500, true);
        let packet = Ip { dst: LOCAL2.ip, ..packet };
        let out = frame(mac(LOCAL1.ip), mac(LOCAL2.ip), &packet, &l4);
        case(world, "long, on this node", sent(&packet, &l4), Peer(dev.veth2))
            .counts(Counter::Delivered, out.len())
            .becomes(out)
            .check(&mut world.harness)?;
        Ok(())
    })
}

#[test]
fn what_the_kernel_does_better_is_left_to_it() -> Result<()> {
    world(|world| {
        let to_all = frame(mac(LOCAL1.ip), [0xff; 6], &ip(LOCAL1.ip, [10, 0, 1, 255]), &udp(1, 2));
        case(world, "broadcast", to_all, SlowPath).check(&mut world.harness)?;
        let group = frame(mac(LOCAL1.ip), [1, 0, 0x5e, 0, 0, 0xfb], &ip(LOCAL1.ip, [224, 0, 0, 251]), &udp(1, 2));
        case(world, "multicast", group, SlowPath).check(&mut world.harness)?;
        let unknown = sent(&ip(LOCAL1.ip, [10, 0, 1, 77]), &udp(1, 2));
        case(world, "an address that nobody has", unknown, SlowPath).check(&mut world.harness)?;
        let ipv6 = ethernet(mac(LOCAL1.ip), [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &[0x60; 40]);
        case(world, "IPv6", ipv6, SlowPath).check(&mut world.harness)?;
        let lldp = ethernet(mac(LOCAL1.ip), [1, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, &[0; 46]);
        case(world, "no IP at all", lldp, SlowPath).check(&mut world.harness)?;
        Ok(())
    })
}

#[test]
fn udp_without_checksum_stays_without() -> Result<()> {
    world_without_backends(|world| {
        let dev = world.dev;
        let l4 = L4::Udp { sport: 1000, dport: 53, payload: b"no sum".to_vec(), checksum: false };
        let packet = ip(LOCAL1.ip, LOCAL2.ip);
        let out = frame(mac(LOCAL1.ip), mac(LOCAL2.ip), &packet, &l4);
        case(world, "UDP checksum 0", sent(&packet, &l4), Peer(dev.veth2))
            .counts(Counter::Delivered, out.len())
            .becomes(out)
            .check(&mut world.harness)?;
        Ok(())
    })
}

#[test]
fn replies_of_vip_flows_get_the_vip_back_on_this_node() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        // LOCAL1 asks the VIP and is given LOCAL2 ...
        let asked = sent(&ip(LOCAL1.ip, VIP), &udp(1000, 53));
        case(world, "question", asked, Peer(dev.veth2)).run(&mut world.harness)?;
        // ... which answers LOCAL1 itself.
        let answer = frame(mac(LOCAL2.ip), STALE, &ip(LOCAL2.ip, LOCAL1.ip), &udp(53, 1000));
        let out = frame(mac(LOCAL2.ip), mac(LOCAL1.ip), &ip(VIP, LOCAL1.ip), &udp(53, 1000));
        golden("answer", IN, dev.veth2, answer.clone(), Peer(dev.veth1))
            .counts(Counter::Delivered, out.len())
            .becomes(out)
            .check(&mut world.harness)?;
        // Other packets from there are not touched.
        let other = frame(mac(LOCAL2.ip), STALE, &ip(LOCAL2.ip, LOCAL1.ip), &tcp(53, 1000, "PA"));
        let out = frame(mac(LOCAL2.ip), mac(LOCAL1.ip), &ip(LOCAL2.ip, LOCAL1.ip), &tcp(53, 1000, "PA"));
        golden("no answer", IN, dev.veth2, other, Peer(dev.veth1))
            .counts(Counter::Delivered, out.len())
            .becomes(out)
            .check(&mut world.harness)?;
        let flags: BTreeMap<_, _> =
            world.harness.flows()?.into_iter().map(|(key, flow)| (key.src, flow.flags)).collect();
        assert_eq!(flags, BTreeMap::from([(LOCAL1.ip, 2), (LOCAL2.ip, 3)]), "forward seen; reply seen");
        Ok(())
    })
}

#[test]
fn only_what_a_backend_sends_is_looked_up_as_a_reply() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        // The same reply entry for a task that a VIP leads to and for one that none does.
        for (flags, src) in [(VIP_BACKEND, VIP), (0, LOCAL2.ip)] {
            world.state.locals.get_mut(&dev.veth2).unwrap().flags = flags;
            world.harness.apply(&world.state)?;
            world.harness.forget_connections()?;
            world.harness.set_cursor(&vip_set(VIP), 0)?;
            let asked = sent(&ip(LOCAL1.ip, VIP), &tcp(1000, 80, "S"));
            case(world, "question", asked, Peer(dev.veth2)).run(&mut world.harness)?;
            let answer = frame(mac(LOCAL2.ip), STALE, &ip(LOCAL2.ip, LOCAL1.ip), &tcp(80, 1000, "SA"));
            let out = frame(mac(LOCAL2.ip), mac(LOCAL1.ip), &ip(src, LOCAL1.ip), &tcp(80, 1000, "SA"));
            golden("answer", IN, dev.veth2, answer, Peer(dev.veth1))
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}
