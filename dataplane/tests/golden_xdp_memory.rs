//! What XDP remembers so that it need not ask for each packet: answers, which hold for a generation, and ways to other
//! nodes, which hold while somebody follows them.

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use dataplane::{XdpMode, testing::XdpOutcome};
use dataplane_common::{
    counter::Counter,
    endpoint::{Vtep, vtep_mesh},
    flow::{Affinity, AffinityKey},
    xdp::{Hop, reply_hop},
};
use support::{
    mesh::*,
    packets::{Ip4, L4, Mac, ip, tcp, udp},
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
    connection_of(world, CLIENT)
}

fn connection_of(world: &World, client: Ip4) -> Result<(AffinityKey, Affinity)> {
    let mut all = world.harness.established_affinity()?.into_iter();
    all.find(|(key, _)| key.client == client && key.proto == 6).context("the connection")
}

/// The connection's last packet was seen just now, however slow the machine is: the next one is no sample.
fn be_young(world: &mut World) -> Result<()> {
    let (key, entry) = connection(world)?;
    Ok(world.harness.put_affinity(key, Affinity { last_seen: dataplane::monotonic_now(), ..entry })?)
}

/// Sends a packet; XDP carries it, and remembers what it has heard.
fn heard(world: &mut World) -> Result<()> {
    be_young(world)?;
    assert_eq!(through_xdp(world, &data(), world.dev.underlay)?.verdict, XDP_TX);
    assert_eq!(connection(world)?.1.generation, world.harness.generation() as u32);
    Ok(())
}

/// The same. Returns where it is sent to.
fn sent_to(world: &mut World) -> Result<Mac> {
    be_young(world)?;
    next_sent_to(world)
}

fn next_sent_to(world: &mut World) -> Result<Mac> {
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
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            world.harness.put_affinity(key, old)?;
            next_sent_to(world)?;
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

/// Where the reply to a connection goes that was heard of just now, or it might be a sample.
fn replies_to(world: &mut World, client: Ip4, l4: &L4) -> Result<XdpOutcome> {
    let (key, entry) = connection_of(world, client)?;
    world.harness.put_affinity(key, Affinity { last_seen: dataplane::monotonic_now(), ..entry })?;
    let packet = answer(&ip(client, key.node), l4);
    let outcome = through_xdp(world, &packet, world.dev.underlay)?;
    assert!([XDP_TX, XDP_REDIRECT].contains(&outcome.verdict), "{client:?}: {}", outcome.verdict);
    Ok(outcome)
}

/// The same of data to CLIENT.
fn replied_to(world: &mut World) -> Result<Mac> {
    let outcome = replies_to(world, CLIENT, &tcp(PUBLISHED, CLIENT_PORT, "PA"))?;
    Ok(outcome.packet[..6].try_into()?)
}

#[test]
fn a_replys_next_hop_is_valid_for_a_tenth_of_a_second() -> Result<()> {
    const OTHER_MAC: Mac = [0x52, 0x54, 0, 0, 0, 0xfd];
    established(|world| {
        assert_eq!(replied_to(world)?, ROUTER_MAC);
        let (key, old) = connection(world)?;
        run("ip neigh change 192.0.2.254 lladdr 52:54:00:00:00:fd dev eth0 nud permanent")?;
        assert_eq!(replied_after(world, (key, old), 0)?, ROUTER_MAC, "it was asked again at once");
        assert_eq!(replied_after(world, (key, old), reply_hop::STEPS)?, OTHER_MAC);
        assert_eq!(replied_after(world, (key, old), 1 << 15)?, OTHER_MAC);
        run("ip neigh change 192.0.2.254 lladdr 52:54:00:00:00:fe dev eth0 nud permanent")?;
        std::thread::sleep(Duration::from_millis(130));
        assert_eq!(replied_to(world)?, ROUTER_MAC);
        Ok(())
    })
}

/// Where data to CLIENT goes if it was asked for so many steps ago, and `entry` remembers what was answered.
fn replied_after(world: &mut World, (key, entry): (AffinityKey, Affinity), steps: u16) -> Result<Mac> {
    loop {
        let now = reply_hop::step(dataplane::monotonic_now());
        world.harness.put_affinity(key, Affinity { reply_hop_asked: now.wrapping_sub(steps), ..entry })?;
        let mac = replied_to(world)?;
        // A machine may take long for that.
        if reply_hop::is_fresh(now, reply_hop::step(dataplane::monotonic_now())) {
            return Ok(mac);
        }
    }
}

#[test]
fn a_reply_that_is_too_long_for_its_next_hop_passes() -> Result<()> {
    established(|world| {
        run("ip route replace default via 192.0.2.254 mtu lock 600")?;
        let of = |payload| long(PUBLISHED, CLIENT_PORT, payload);
        let room = 600 - 20 - 32;
        for _ in 0..3 {
            replies_to(world, CLIENT, &of(room))?;
            passes(world, "too long", &answer(&client_ip(), &of(room + 1)), world.dev.underlay)?;
        }
        Ok(())
    })
}

#[test]
fn each_connection_remembers_its_own_next_hop() -> Result<()> {
    established(|world| {
        for ifindex in [world.dev.underlay, world.dev.client] {
            world.harness.put_xdp_device(ifindex, XdpMode::Native, NODE_MAC)?;
        }
        let l4 = tcp(PUBLISHED, CLIENT_PORT, "PA");
        for _ in 0..3 {
            let (far, near) = (replies_to(world, CLIENT, &l4)?, replies_to(world, NEAR, &l4)?);
            assert_eq!((far.verdict, &far.packet[..6]), (XDP_TX, &ROUTER_MAC[..]));
            assert_eq!((near.verdict, &near.packet[..6]), (XDP_REDIRECT, &NEAR_MAC[..]));
        }
        // What lies where an entry points to is another connection's way, or nobody's: the kernel is asked.
        let ((key, mine), (_, other)) = (connection_of(world, CLIENT)?, connection_of(world, NEAR)?);
        assert_ne!((mine.reply_hop, mine.reply_hop_version), (other.reply_hop, other.reply_hop_version));
        for entry in [
            Affinity { reply_hop: other.reply_hop, ..mine },
            Affinity { reply_hop: mine.reply_hop.wrapping_add(1), ..mine },
            Affinity { reply_hop_version: mine.reply_hop_version ^ 1, ..mine },
        ] {
            assert_eq!(replied_after(world, (key, entry), 0)?, ROUTER_MAC, "{entry:?}");
            let (_, now) = connection_of(world, CLIENT)?;
            assert_eq!((now.reply_hop, now.reply_hop_version), (mine.reply_hop, mine.reply_hop_version));
        }
        Ok(())
    })
}
