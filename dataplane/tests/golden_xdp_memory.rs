//! What XDP remembers so that it need not ask for each packet: answers, which hold for a generation, and ways to other
//! nodes, which hold while somebody follows them.

mod support;

use std::time::Duration;

use anyhow::{Context as _, Result};
use dataplane_common::{
    counter::Counter,
    endpoint::{Vtep, vtep_mesh},
    flow::{Affinity, AffinityKey},
    xdp::Hop,
};
use support::{
    mesh::*,
    packets::{Mac, tcp, udp},
    sandbox::run,
    world::*,
    xdp::*,
};

/// Whom the agent says to be the next hop; the kernel knows better.
const KEPT_MAC: Mac = [0x52, 0x54, 0, 0, 0, 0x77];

fn data() -> Vec<u8> {
    client(&client_ip(), &tcp(CLIENT_PORT, PUBLISHED, "PA"))
}

/// CLIENT's TCP connection.
fn connection(world: &World) -> Result<(AffinityKey, Affinity)> {
    let mut all = world.harness.established_affinity()?.into_iter();
    all.find(|(key, _)| key.client == CLIENT && key.proto == 6).context("the connection")
}

/// Sends a packet; XDP carries it, and remembers what it has heard.
fn heard(world: &mut World) -> Result<()> {
    assert_eq!(through_xdp(world, &data(), world.dev.underlay)?.verdict, XDP_TX);
    assert_eq!(connection(world)?.1.generation, world.harness.generation() as u32);
    Ok(())
}

fn sent_to(world: &mut World) -> Result<Mac> {
    let sent = through_xdp(world, &data(), world.dev.underlay)?;
    assert_eq!((sent.verdict, sent.counters[&Counter::XdpForward].packets), (XDP_TX, 1));
    Ok(sent.packet[..6].try_into()?)
}

#[test]
fn what_is_taken_back_is_asked_again() -> Result<()> {
    established(|world| {
        let dev = world.dev.underlay;
        let first = world.harness.generation();
        heard(world)?;
        // Nothing is taken back: what is remembered stays in force.
        world.state.vteps.insert([192, 0, 2, 9], Vtep { hiveway: vtep_mesh::MEMBER, ..Vtep::default() });
        world.harness.apply(&world.state)?;
        assert_eq!(world.harness.generation(), first);
        // A port that is not published any more, an address that is given up, a node without Hiveway.
        let full = world.state.clone();
        let published = world.state.sets[&port_set(6, PUBLISHED)].clone();
        world.state.sets.remove(&port_set(6, PUBLISHED));
        world.harness.apply(&world.state)?;
        let second = world.harness.generation();
        assert!(second > first && second.is_multiple_of(2), "{first} {second}");
        passes(world, "not published", &data(), dev)?;
        world.state.sets.insert(port_set(6, PUBLISHED), published);
        world.harness.apply(&world.state)?;
        heard(world)?;
        world.state.node_addresses.remove(&VTEP);
        world.harness.apply(&world.state)?;
        assert!(world.harness.generation() > second);
        passes(world, "no address of ours", &data(), dev)?;
        world.state = full.clone();
        world.harness.apply(&world.state)?;
        let third = world.harness.generation();
        let datagram = client(&client_ip(), &udp(CLIENT_PORT, PUBLISHED));
        let back = answer(&client_ip(), &tcp(PUBLISHED, CLIENT_PORT, "PA"));
        heard(world)?;
        world.state.vteps.insert(PEER, Vtep::default());
        world.harness.apply(&world.state)?;
        assert!(world.harness.generation() > third);
        passes(world, "Hiveway has left", &datagram, dev)?;
        passes(world, "Hiveway has left", &back, dev)?;
        // What goes on says nothing about what would begin.
        assert_eq!(through_xdp(world, &data(), dev)?.verdict, XDP_TX);
        assert_eq!(connection(world)?.1.generation, 0);
        passes(world, "SYN, Hiveway has left", &client(&client_ip(), &tcp(CLIENT_PORT, PUBLISHED, "S")), dev)
    })
}

#[test]
fn nothing_is_believed_while_something_is_taken_back() -> Result<()> {
    established(|world| {
        heard(world)?;
        let (key, entry) = connection(world)?;
        world.harness.begin_change();
        assert!(!world.harness.generation().is_multiple_of(2));
        // The port is gone, the number not raised yet: an agent that has died in between.
        world.harness.remove_port(6, PUBLISHED)?;
        passes(world, "asks", &data(), world.dev.underlay)?;
        world.harness.apply(&world.state)?;
        world.harness.begin_change();
        world.harness.put_affinity(key, Affinity { generation: 0, hop: 0, ..entry })?;
        // It hears yes, and does not remember it.
        sent_to(world)?;
        assert_eq!(connection(world)?.1.generation, 0);
        // The next agent's first table ends it.
        world.harness.apply(&world.state)?;
        assert!(world.harness.generation().is_multiple_of(2));
        heard(world)
    })
}

#[test]
fn the_way_is_believed_while_somebody_follows_it() -> Result<()> {
    established(|world| {
        heard(world)?;
        let hop =
            Hop { vtep: PEER, ifindex: world.dev.underlay, src: mac_of_device("eth0")?, dst: KEPT_MAC, mtu: 1500 };
        world.harness.put_hop(PEER, Some(hop))?;
        assert_eq!(sent_to(world)?, PEER_MAC, "nobody follows");
        world.harness.hops_valid_for(Duration::from_secs(3600));
        assert_eq!(sent_to(world)?, KEPT_MAC);
        // Also before the entry remembers anything.
        let (key, entry) = connection(world)?;
        world.harness.put_affinity(key, Affinity { generation: 0, hop: 0, ..entry })?;
        assert_eq!(sent_to(world)?, KEPT_MAC);
        // It moves, it is another node's, there is none.
        world.harness.put_hop(PEER, Some(Hop { dst: ROUTER_MAC, ..hop }))?;
        assert_eq!(sent_to(world)?, ROUTER_MAC);
        world.harness.put_hop(PEER, Some(Hop { vtep: PLAIN, ..hop }))?;
        assert_eq!(sent_to(world)?, PEER_MAC, "another node's");
        world.harness.put_hop(PEER, None)?;
        assert_eq!(sent_to(world)?, PEER_MAC, "none");
        // Whoever followed it is gone.
        world.harness.put_hop(PEER, Some(hop))?;
        world.harness.hops_valid_for(Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(sent_to(world)?, PEER_MAC, "nobody follows any more");
        // Too long for the way, and through a device that XDP cannot send out of.
        world.harness.hops_valid_for(Duration::from_secs(3600));
        world.harness.put_hop(PEER, Some(Hop { mtu: 100, ..hop }))?;
        let long = client(&client_ip(), &long(CLIENT_PORT, PUBLISHED, 100));
        passes(world, "too long for the way", &long, world.dev.underlay)?;
        world.harness.put_hop(PEER, Some(Hop { ifindex: world.dev.client, ..hop }))?;
        passes(world, "through a device without XDP", &data(), world.dev.underlay)
    })
}

#[test]
fn what_is_followed_needs_no_sample() -> Result<()> {
    established(|world| {
        let (key, entry) = connection(world)?;
        let old = Affinity { last_seen: entry.last_seen - 10_000_000_000, ..entry };
        keep_way(world, Some(PEER_MAC))?;
        run("ip neigh del 192.0.2.2 dev eth0")?;
        let until = std::time::Instant::now() + Duration::from_millis(200);
        while std::time::Instant::now() < until {
            world.harness.put_affinity(key, old)?;
            sent_to(world)?;
            assert!(connection(world)?.1.last_seen >= entry.last_seen, "not renewed");
        }
        Ok(())
    })
}

#[test]
fn what_is_remembered_answers_no_question_about_the_packet() -> Result<()> {
    established(|world| {
        heard(world)?;
        let hop =
            Hop { vtep: PEER, ifindex: world.dev.underlay, src: mac_of_device("eth0")?, dst: KEPT_MAC, mtu: 9000 };
        world.harness.put_hop(PEER, Some(hop))?;
        world.harness.hops_valid_for(Duration::from_secs(3600));
        let dev = world.dev;
        let fitting = client(&client_ip(), &long(CLIENT_PORT, PUBLISHED, 1450 - 20 - 32));
        assert_eq!(through_xdp(world, &fitting, dev.underlay)?.verdict, XDP_TX);
        let longer = client(&client_ip(), &long(CLIENT_PORT, PUBLISHED, 1451 - 20 - 32));
        passes(world, "too long for the underlay, whatever the way would take", &longer, dev.underlay)?;
        // The address is the host link's now: from anywhere else it is the stack's.
        world.state.config.host_ip = client_ip().dst;
        world.state.config.host_ifindex = dev.client;
        world.harness.apply(&world.state)?;
        passes(world, "to the host link's address, from outside", &data(), dev.underlay)
    })
}
