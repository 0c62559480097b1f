//! Packets through `xdp_mesh`, and what TC makes of the same.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use dataplane::{
    Program,
    testing::{
        Decision::{Neigh, Pass},
        Input, Outcome, XdpOutcome,
    },
};
use dataplane_common::{
    counter::{Counter, Stat},
    flow::{Affinity, AffinityKey},
    xdp::Hop,
};

use super::{
    golden::golden,
    mesh::*,
    packets::{Ip, L4, Mac, frame, ip, tcp, udp},
    sandbox::run,
    world::*,
};

pub const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;
pub const XDP_REDIRECT: u32 = 4;

/// The usual node; its neighbours are known, nobody keeps the ways, and CLIENT's and NEAR's connections to REMOTE1 are
/// established.
pub fn established(test: impl FnOnce(&mut World) -> Result<()> + Send + 'static) -> Result<()> {
    world(|world| {
        keep_way(world, None)?;
        world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
        establish(world, &client_ip())?;
        world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
        establish(world, &ip(NEAR, NODE2))?;
        // A datagram, an answer, another datagram.
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        for from in [client_ip(), ip(NEAR, NODE2)] {
            world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
            through_tc(world, client(&from, &udp(CLIENT_PORT, PUBLISHED)))?;
            through_tc(world, answer(&from, &udp(PUBLISHED, CLIENT_PORT)))?;
            through_tc(world, client(&from, &udp(CLIENT_PORT, PUBLISHED)))?;
        }
        assert_eq!(world.harness.pending_affinity()?, BTreeMap::new());
        assert_eq!(world.harness.established_affinity()?.len(), 4);
        test(world)
    })
}

/// The handshake of a connection that is given to REMOTE1.
pub fn establish(world: &mut World, from: &Ip) -> Result<()> {
    through_tc(world, client(from, &tcp(CLIENT_PORT, PUBLISHED, "S")))?;
    through_tc(world, answer(from, &tcp(PUBLISHED, CLIENT_PORT, "SA")))?;
    through_tc(world, client(from, &tcp(CLIENT_PORT, PUBLISHED, "K")))
}

/// As it arrives from the client.
pub fn client(from: &Ip, l4: &L4) -> Vec<u8> {
    frame(ROUTER_MAC, NODE_MAC, from, l4)
}

/// As REMOTE1's answer to `from` arrives.
pub fn answer(from: &Ip, l4: &L4) -> Vec<u8> {
    returning(PEER, &REMOTE1, &Ip { ttl: 63, ..ip(from.dst, from.src) }, l4)
}

pub fn through_tc(world: &mut World, packet: Vec<u8>) -> Result<()> {
    underlay(world, "on the way", packet, Pass).run(&mut world.harness)?;
    Ok(())
}

pub fn through_xdp(world: &mut World, packet: &[u8], ifindex: u32) -> Result<XdpOutcome> {
    Ok(world.harness.run_xdp(&Input { packet: packet.to_vec(), ifindex, ..Input::default() })?)
}

/// The MAC of a device of this test.
pub fn mac_of_device(name: &str) -> Result<Mac> {
    let text = run(&format!("ip -o link show dev {name}"))?;
    let address =
        text.split_once("link/ether ").and_then(|(_, rest)| rest.split_whitespace().next()).context("no MAC")?;
    let bytes: Vec<u8> = address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("no MAC")
}

/// What XDP knows beforehand.
#[derive(Clone, Copy, Debug)]
pub enum Knows {
    /// Nothing: it asks.
    Nothing,
    /// What it has asked before, which the entry remembers.
    Answers,
    /// The way, too: the agent keeps it.
    Way,
}

/// XDP carries the packet, whatever it knows beforehand: what it makes of it but for the Ethernet addresses (which the
/// kernel writes later for TC), what it counts and what it notes is what TC does. It goes from MAC to MAC.
pub fn carries(
    world: &mut World,
    what: &'static str,
    (program, ifindex): (Program, u32),
    packet: Vec<u8>,
    (verdict, macs): (u32, (Mac, Mac)),
    counter: Counter,
) -> Result<()> {
    let before = world.harness.established_affinity()?;
    let tc = golden(what, program, ifindex, packet.clone(), Pass).run(&mut world.harness)?;
    assert!(matches!(tc.decision, Some(Neigh(_))), "{what}: TC decides {:?}", tc.decision);
    let noted = flags(world)?;
    for knows in [Knows::Nothing, Knows::Answers, Knows::Way] {
        keep_way(world, matches!(knows, Knows::Way).then_some(PEER_MAC))?;
        // Back to what it was before.
        let current = world.harness.generation() as u32;
        for (key, entry) in &before {
            let (generation, hop) = match knows {
                Knows::Nothing => (0, 0),
                _ => (current, hop_number(world)?),
            };
            // Seen just now, or it might be a sample.
            let last_seen = dataplane::monotonic_now();
            world.harness.put_affinity(*key, Affinity { generation, hop, last_seen, ..*entry })?;
        }
        let what = format!("{what}, knowing {knows:?}");
        is_carried(world, &what, &packet, ifindex, (verdict, macs), counter, &tc, &noted)?;
        // Answers do not ask for all that is remembered.
        let remembers = world.harness.established_affinity()?.values().any(|entry| entry.generation == current);
        assert!(remembers || counter == Counter::XdpReply, "{what}");
    }
    keep_way(world, None)
}

/// Stores the way to PEER, or that there is none.
pub fn keep_way(world: &mut World, next: Option<Mac>) -> Result<()> {
    let way = |dst| -> Result<Hop> {
        Ok(Hop { vtep: PEER, ifindex: world.dev.underlay, src: mac_of_device("eth0")?, dst, mtu: 1500 })
    };
    let way = next.map(way).transpose()?;
    world.harness.put_hop(PEER, way)?;
    world.harness.hops_valid_for(if next.is_some() { Duration::from_secs(3600) } else { Duration::ZERO });
    Ok(())
}

pub fn hop_number(world: &World) -> Result<u16> {
    Ok(world.harness.hop_number(PEER)?)
}

#[expect(clippy::too_many_arguments, reason = "a test's")]
pub fn is_carried(
    world: &mut World,
    what: &str,
    packet: &[u8],
    ifindex: u32,
    (verdict, macs): (u32, (Mac, Mac)),
    counter: Counter,
    tc: &Outcome,
    noted: &[(AffinityKey, u8)],
) -> Result<()> {
    let xdp = through_xdp(world, packet, ifindex)?;
    assert_eq!(xdp.verdict, verdict, "{what}: verdict");
    assert_eq!(flags(world)?, noted, "{what}: noted");
    assert_eq!(xdp.packet[12..], tc.packet[12..], "{what}: packet");
    assert_eq!((&xdp.packet[6..12], &xdp.packet[..6]), (&macs.0[..], &macs.1[..]), "{what}: MACs");
    let bytes = match counter {
        Counter::XdpForward => packet.len(),
        _ => packet.len() - 50,
    };
    let mut counters = tc.counters.clone();
    counters.insert(counter, Stat { packets: 1, bytes: bytes as u64 });
    assert_eq!((&xdp.counters, &xdp.drops), (&counters, &tc.drops), "{what}: counted");
    Ok(())
}

pub fn flags(world: &World) -> Result<Vec<(AffinityKey, u8)>> {
    Ok(world.harness.established_affinity()?.into_iter().map(|(key, entry)| (key, entry.flags)).collect())
}

/// XDP leaves the packet to TC, and no trace of having seen it.
pub fn passes(world: &mut World, what: &str, packet: &[u8], ifindex: u32) -> Result<()> {
    let before = world.harness.affinity()?;
    let outcome = through_xdp(world, packet, ifindex).with_context(|| what.to_owned())?;
    let nothing =
        XdpOutcome { verdict: XDP_PASS, packet: packet.to_vec(), drops: BTreeMap::new(), counters: BTreeMap::new() };
    assert_eq!(outcome, nothing, "{what}");
    assert_eq!(world.harness.affinity()?, before, "{what}: noted");
    Ok(())
}

/// A TCP segment with options and so many bytes of payload.
pub fn long(sport: u16, dport: u16, payload: usize) -> L4 {
    L4::Tcp { sport, dport, flags: "PA", mss: Some(1400), payload: vec![0x5a; payload] }
}
