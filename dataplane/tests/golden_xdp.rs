//! Golden packets of the routing mesh's hot path in XDP: what it carries is, byte for byte and counter for counter,
//! what the TC programs make of the same packet in the same state; everything else passes untouched and uncounted.

mod support;

use anyhow::{Context as _, Result};
use dataplane::{Program, XdpMode, testing::Decision::Pass};
use dataplane_common::{
    counter::Counter,
    endpoint::Vtep,
    flow::{Affinity, AffinityKey, flag},
};
use support::{
    mesh::*,
    packets::{Ip, L4, Mac, frame, ip, ping, tcp, udp, vxlan},
    sandbox::run,
    world::*,
    xdp::*,
};

#[test]
fn clients_packets_become_what_tc_makes_of_them() -> Result<()> {
    established(|world| {
        let dev = world.dev;
        let macs = (mac_of_device("eth0")?, PEER_MAC);
        let there = |flags| tcp(CLIENT_PORT, PUBLISHED, flags);
        for (what, from, l4) in [
            ("ACK", client_ip(), there("A")),
            ("data", client_ip(), there("PA")),
            ("marked ECT(0), DSCP EF", Ip { tos: 46 << 2 | 2, ..client_ip() }, there("PA")),
            ("congestion experienced", Ip { tos: 3, ..client_ip() }, there("PA")),
            ("without DF", Ip { dont_fragment: false, ..client_ip() }, there("PA")),
            ("SYN again", client_ip(), there("S")),
            ("with TCP options", client_ip(), long(CLIENT_PORT, PUBLISHED, 100)),
            ("just fits", client_ip(), long(CLIENT_PORT, PUBLISHED, 1450 - 20 - 32)),
            ("datagram", client_ip(), udp(CLIENT_PORT, PUBLISHED)),
            (
                "empty datagram without checksum",
                client_ip(),
                L4::Udp { sport: CLIENT_PORT, dport: PUBLISHED, payload: vec![], checksum: false },
            ),
            ("FIN", client_ip(), there("FA")),
            ("RST", client_ip(), there("R")),
        ] {
            let arrives = (Program::FromUnderlay, dev.underlay);
            carries(world, what, arrives, client(&from, &l4), (XDP_TX, macs), Counter::XdpForward)?;
        }
        // A short frame that the wire has padded.
        let mut padded = client(&client_ip(), &there("A"));
        padded.resize(60, 0);
        let arrives = (Program::FromUnderlay, dev.underlay);
        carries(world, "padded", arrives, padded, (XDP_TX, macs), Counter::XdpForward)
    })
}

#[test]
fn answers_become_what_tc_makes_of_them() -> Result<()> {
    established(|world| {
        let arrives = (Program::FromUnderlay, world.dev.underlay);
        let macs = (mac_of_device("eth0")?, ROUTER_MAC);
        let back = |flags| tcp(PUBLISHED, CLIENT_PORT, flags);
        for (what, l4) in [
            ("ACK", back("A")),
            ("data", back("PA")),
            ("longest", long(PUBLISHED, CLIENT_PORT, 1450 - 20 - 32)),
            ("datagram", udp(PUBLISHED, CLIENT_PORT)),
            ("FIN", back("FA")),
            ("RST", back("R")),
        ] {
            // TC marks datagrams for `to_outside`, which what XDP sends does not come by.
            carries(world, what, arrives, answer(&client_ip(), &l4), (XDP_TX, macs), Counter::XdpReply)?;
        }
        // For the neighbour's sake.
        passes(world, "SYN-ACK again", &answer(&client_ip(), &back("SA")), world.dev.underlay)?;
        // The checksum of the outer UDP header may be there.
        let inner = frame(mac(REMOTE1.ingress), node_mac(VTEP), &ip(VTEP, CLIENT), &back("PA"));
        let (outer, tunnel) = vxlan(PEER, VTEP, 50000, MESH, &inner);
        let L4::Udp { sport, dport, payload, .. } = tunnel else { unreachable!() };
        let summed = frame(ROUTER_MAC, NODE_MAC, &outer, &L4::Udp { sport, dport, payload, checksum: true });
        carries(world, "with outer checksum", arrives, summed, (XDP_TX, macs), Counter::XdpReply)
    })
}

#[test]
fn from_one_interface_to_another_only_where_xdp_can_send() -> Result<()> {
    established(|world| {
        let dev = world.dev;
        let near = ip(NEAR, NODE2);
        let there = frame(NEAR_MAC, NODE_MAC, &near, &tcp(CLIENT_PORT, PUBLISHED, "PA"));
        let back = answer(&near, &tcp(PUBLISHED, CLIENT_PORT, "PA"));
        let clients = (Program::FromClient, dev.client);
        let tunnels = (Program::FromUnderlay, dev.underlay);
        let (native, generic) = (XdpMode::Native, XdpMode::Generic);
        for (client, underlay, may_go_out, may_come_back) in [
            (None, None, false, false),
            (Some(native), None, false, true),
            // Noted nowhere: its MAC is not known.
            (None, Some(native), false, false),
            (Some(native), Some(native), true, true),
            (Some(native), Some(generic), false, true),
            (Some(generic), Some(generic), true, true),
        ] {
            for (ifindex, mode) in [(dev.client, client), (dev.underlay, underlay)] {
                match mode {
                    Some(mode) => world.harness.put_xdp_device(ifindex, mode, NODE_MAC)?,
                    None => world.harness.remove_xdp_device(ifindex)?,
                }
            }
            if may_go_out {
                let to = (XDP_REDIRECT, (mac_of_device("eth0")?, PEER_MAC));
                carries(world, "out", clients, there.clone(), to, Counter::XdpForward)?;
            } else {
                passes(world, "out", &there, dev.client)?;
            }
            if may_come_back {
                let to = (XDP_REDIRECT, (mac_of_device("eth1")?, NEAR_MAC));
                carries(world, "back", tunnels, back.clone(), to, Counter::XdpReply)?;
            } else {
                passes(world, "back", &back, dev.underlay)?;
            }
        }
        Ok(())
    })
}

#[test]
fn what_nobody_knows_or_is_served_here_passes() -> Result<()> {
    established(|world| {
        let dev = world.dev.underlay;
        let there = |port, flags| client(&client_ip(), &tcp(port, PUBLISHED, flags));
        let back = |port, flags| answer(&client_ip(), &tcp(PUBLISHED, port, flags));
        passes(world, "nobody's", &there(1000, "PA"), dev)?;
        passes(world, "nobody's answer", &back(1000, "PA"), dev)?;
        // To a task on this node.
        world.harness.set_cursor(&port_set(6, PUBLISHED), 0)?;
        through_tc(world, there(1001, "S"))?;
        let answer = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &tcp(TARGET_PORT, 1001, "SA"));
        gateway(world, "SYN-ACK", answer, Pass).run(&mut world.harness)?;
        through_tc(world, there(1001, "K"))?;
        assert_eq!(world.harness.established_affinity()?.len(), 5);
        passes(world, "to a task here", &there(1001, "PA"), dev)?;
        // A connection that has ended, and begins anew.
        through_tc(world, back(CLIENT_PORT, "R"))?;
        passes(world, "SYN after RST", &there(CLIENT_PORT, "S"), dev)?;
        // The port is not published any more.
        world.state.sets.remove(&port_set(6, PUBLISHED));
        world.harness.apply(&world.state)?;
        passes(world, "not published", &there(CLIENT_PORT, "PA"), dev)
    })
}

#[test]
fn entries_of_another_kind_pass() -> Result<()> {
    established(|world| {
        let dev = world.dev.underlay;
        let there = client(&client_ip(), &tcp(CLIENT_PORT, PUBLISHED, "PA"));
        let back = answer(&client_ip(), &tcp(PUBLISHED, CLIENT_PORT, "PA"));
        let find = |world: &World| -> Result<(AffinityKey, Affinity)> {
            let mut all = world.harness.established_affinity()?.into_iter();
            all.find(|(key, _)| key.client == CLIENT && key.proto == 6).context("the connection")
        };
        let (key, entry) = find(world)?;
        world.harness.put_affinity(key, Affinity { flags: entry.flags | flag::OWN, ..entry })?;
        passes(world, "of the node's own", &there, dev)?;
        passes(world, "answer to the node's own", &back, dev)?;
        world.harness.put_affinity(key, Affinity { flags: entry.flags | flag::STOCK, ..entry })?;
        passes(world, "to a node without Hiveway", &there, dev)?;
        world.harness.put_affinity(key, entry)?;
        // Hiveway was taken down there: UDP is given to another backend.
        world.state.vteps.insert(PEER, Vtep::default());
        world.harness.apply(&world.state)?;
        passes(world, "left behind", &client(&client_ip(), &udp(CLIENT_PORT, PUBLISHED)), dev)?;
        passes(world, "from a node without Hiveway", &back, dev)?;
        world.state.vteps.remove(&PEER);
        world.harness.apply(&world.state)?;
        passes(world, "from a stranger", &back, dev)
    })
}

#[test]
fn the_time_is_renewed_as_tc_does_but_for_a_sample() -> Result<()> {
    established(|world| {
        let dev = world.dev.underlay;
        let there = client(&client_ip(), &tcp(CLIENT_PORT, PUBLISHED, "PA"));
        let all = world.harness.established_affinity()?;
        let (key, entry) = all.into_iter().find(|(key, _)| key.client == CLIENT && key.proto == 6).context("entry")?;
        let old = Affinity { last_seen: entry.last_seen - 10_000_000_000, ..entry };
        let (mut carried, mut passed) = (0, 0);
        while carried == 0 || passed == 0 {
            world.harness.put_affinity(key, old)?;
            let outcome = through_xdp(world, &there, dev)?;
            let last_seen = world.harness.established_affinity()?[&key].last_seen;
            if outcome.verdict == XDP_TX {
                assert!(last_seen >= entry.last_seen, "not renewed");
                carried += 1;
            } else {
                // TC renews it.
                assert_eq!((outcome.verdict, last_seen), (XDP_PASS, old.last_seen));
                passed += 1;
            }
            assert!(carried + passed < 1_000_000, "{carried} carried, {passed} passed");
        }
        Ok(())
    })
}

#[test]
fn what_is_difficult_passes() -> Result<()> {
    established(|world| {
        let dev = world.dev;
        let data = tcp(CLIENT_PORT, PUBLISHED, "PA");
        let datagram = udp(CLIENT_PORT, PUBLISHED);
        let from = client_ip();
        let whole = client(&from, &data);
        let mut vlan = whole.clone();
        vlan.splice(12..12, [0x81, 0, 0, 5]);
        let mut version = whole.clone();
        version[14] = 0x65;
        let mut offset = whole.clone();
        offset[46] = 0x40;
        let mut length = whole.clone();
        length[17] = 27;
        for (what, packet) in [
            ("IP options", client(&Ip { options: vec![1; 4], ..from.clone() }, &data)),
            ("first fragment", client(&Ip { dont_fragment: false, more_fragments: true, ..from.clone() }, &datagram)),
            ("later fragment", client(&Ip { dont_fragment: false, fragment_offset: 3, ..from.clone() }, &datagram)),
            ("one byte too long", client(&from, &long(CLIENT_PORT, PUBLISHED, 1451 - 20 - 32))),
            ("ping", client(&from, &ping(1))),
            ("SCTP", client(&from, &L4::Raw { proto: 132, payload: vec![0x1f; 32] })),
            ("another port", client(&from, &tcp(CLIENT_PORT, 22, "PA"))),
            ("another address", client(&ip(CLIENT, [10, 9, 9, 9]), &data)),
            ("VLAN", vlan),
            ("no IPv4", version),
            ("TCP header too short", offset),
            ("IP length too short", length),
        ] {
            passes(world, what, &packet, dev.underlay)?;
        }
        for len in 14..whole.len() {
            passes(world, "cut off", &whole[..len], dev.underlay)?;
        }
        run("ip neigh del 192.0.2.2 dev eth0")?;
        passes(world, "no neighbour", &whole, dev.underlay)?;
        run("ip route add blackhole 192.0.2.2")?;
        passes(world, "no route", &whole, dev.underlay)
    })
}

#[test]
fn answers_that_are_difficult_or_not_in_order_pass() -> Result<()> {
    established(|world| {
        let dev = world.dev;
        let (back, data) = (ip(VTEP, CLIENT), tcp(PUBLISHED, CLIENT_PORT, "PA"));
        let datagram = udp(PUBLISHED, CLIENT_PORT);
        let whole = returning(PEER, &REMOTE1, &back, &data);
        passes(world, "on another interface", &whole, dev.client)?;
        let raw = |outer: &dyn Fn(Ip) -> Ip, vni: u32, eth: (Mac, Mac)| {
            let (ip, l4) = vxlan(PEER, VTEP, 50000, vni, &frame(eth.0, eth.1, &back, &data));
            frame(ROUTER_MAC, NODE_MAC, &outer(ip), &l4)
        };
        let right = (mac(REMOTE1.ingress), node_mac(VTEP));
        let same = |ip: Ip| ip;
        let mut no_vni = whole.clone();
        no_vni[42] = 0;
        for (what, packet) in [
            ("from another backend", returning(PEER, &REMOTE2, &back, &data)),
            ("from a stranger", returning(STRANGER, &REMOTE1, &back, &data)),
            ("from a node without Hiveway", returning(PLAIN, &REMOTE1, &back, &data)),
            ("from an address that is not ours", returning(PEER, &REMOTE1, &ip(PEER, CLIENT), &data)),
            ("to another client", returning(PEER, &REMOTE1, &ip(VTEP, [8; 4]), &data)),
            ("from another port", returning(PEER, &REMOTE1, &back, &tcp(81, CLIENT_PORT, "PA"))),
            ("to another node", raw(&same, MESH, (right.0, node_mac(PEER)))),
            ("to a task", raw(&same, MESH, (right.0, mac(LOCAL1.ingress)))),
            ("another VNI", raw(&same, APP, right)),
            ("no VNI", no_vni),
            ("outer options", raw(&|ip| Ip { options: vec![1; 4], ..ip }, MESH, right)),
            ("outer fragment", raw(&|ip| Ip { dont_fragment: false, more_fragments: true, ..ip }, MESH, right)),
            ("congestion in the tunnel", raw(&|ip| Ip { tos: 3, ..ip }, MESH, right)),
            ("inner options", returning(PEER, &REMOTE1, &Ip { options: vec![1; 4], ..back.clone() }, &data)),
            (
                "inner fragment",
                returning(
                    PEER,
                    &REMOTE1,
                    &Ip { dont_fragment: false, more_fragments: true, ..back.clone() },
                    &datagram,
                ),
            ),
            ("ping", returning(PEER, &REMOTE1, &back, &ping(1))),
        ] {
            passes(world, what, &packet, dev.underlay)?;
        }
        for len in 14..whole.len() {
            passes(world, "cut off", &whole[..len], dev.underlay)?;
        }
        run("ip link set eth0 mtu 1400")?;
        passes(world, "too big for the way", &answer(&client_ip(), &long(PUBLISHED, CLIENT_PORT, 1398)), dev.underlay)?;
        run("ip route del default")?;
        passes(world, "no route", &whole, dev.underlay)
    })
}
