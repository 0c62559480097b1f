//! Golden packets of probes: on their way out through the host link, turned round by the other node's data plane, and
//! noted when the answer is back.

mod support;

use std::collections::BTreeSet;

use anyhow::Result;
use dataplane::{
    PathLimit, Program, monotonic_now,
    testing::{
        Decision::{Drop, Neigh, Pass, Taken},
        Input,
    },
};
use dataplane_common::{
    addr::{HOST_MAC, HOST_PEER_MAC},
    counter::Counter,
    drop_reason::DropReason,
    probe::{Probe, Probed, VERSION, kind},
};
use support::{
    golden::{Golden, golden},
    mesh::*,
    packets::{Ip, Ip4, L4, Mac, frame, ip, vxlan},
    sandbox::run,
    world::*,
};

const SPORT: u16 = 50_123;
const SMALL: u16 = 110;
const NONCE: u64 = 0x1122_3344_5566_7788;

/// `dev.client` plays the host link.
fn probing(test: impl FnOnce(&mut World) -> Result<()> + Send + 'static) -> Result<()> {
    world(|world| {
        let mac = HOST_PEER_MAC.map(|byte| format!("{byte:02x}")).join(":");
        run(&format!("ip link set eth1 address {mac}"))?;
        world.state.config.host_ifindex = world.dev.client;
        world.state.config.host_ip = [169, 254, 72, 1];
        world.harness.apply(&world.state)?;
        world.harness.put_probed(PEER, Probed { nonce: NONCE, ..Probed::default() })?;
        test(world)
    })
}

fn request(size: u16) -> Probe {
    Probe {
        version: VERSION,
        kind: kind::REQUEST,
        size: size.to_be_bytes(),
        mtu: 1480u16.to_be_bytes(),
        nonce: NONCE.to_ne_bytes(),
        sent: monotonic_now().to_ne_bytes(),
        sequence: 7u32.to_ne_bytes(),
        ..Probe::default()
    }
}

/// An answer as PEER makes it.
fn answer(size: u16) -> Probe {
    Probe { kind: kind::ANSWER, ..request(size) }
}

/// The packet in the tunnel's frame whose outer IP packet has this size.
fn carried(ports: (u16, u16), probe: Probe, size: u16) -> L4 {
    let mut payload = probe.to_bytes().to_vec();
    payload.resize(usize::from(size) - 50 - 28, 0);
    L4::Udp { sport: ports.0, dport: ports.1, payload, checksum: false }
}

fn between(src: Ip4, dst: Ip4) -> Ip {
    Ip { id: 0, ..ip(src, dst) }
}

/// A probe's frame from another node as it arrives.
fn arrives(from: Ip4, probe: Probe, ports: (u16, u16), size: u16) -> Vec<u8> {
    let macs = (ROUTER_MAC, NODE_MAC);
    mesh_frame(macs, from, VTEP, node_mac(from), node_mac(VTEP), &between(from, VTEP), &carried(ports, probe, size))
}

fn on_underlay(world: &World, what: &'static str, packet: Vec<u8>, decision: dataplane::testing::Decision) -> Golden {
    golden(what, Program::FromUnderlay, world.dev.underlay, packet, decision)
}

#[test]
fn a_probe_leaves_through_the_tunnel() -> Result<()> {
    probing(|world| {
        let (underlay, link) = (world.dev.underlay, world.dev.client);
        for size in [SMALL, 1400, 1500] {
            let l4 = carried((SPORT, 9), request(size), size);
            let inner = between(VTEP, PEER);
            let sent = frame(HOST_MAC, HOST_PEER_MAC, &inner, &l4);
            let out = mesh_frame(([0; 6], [0; 6]), VTEP, PEER, node_mac(VTEP), node_mac(PEER), &inner, &l4);
            assert_eq!(out.len(), usize::from(size) + 14);
            let len = sent.len();
            golden("sent", Program::FromClient, link, sent, Neigh(underlay))
                .becomes(out)
                .counts(Counter::ProbeSent, len)
                .counts(Counter::Encapsulated, len + 50)
                .check_tunnelled(&mut world.harness)?;
        }
        let l4 = carried((SPORT, 9), request(SMALL), SMALL);
        let to = |dst| frame(HOST_MAC, HOST_PEER_MAC, &between(VTEP, dst), &l4);
        golden("to a stranger", Program::FromClient, link, to(STRANGER), Drop(DropReason::UnknownVtep))
            .check(&mut world.harness)?;
        // Only on the host link.
        for (program, ifindex) in [(Program::FromClient, world.dev.stray), (Program::FromUnderlay, underlay)] {
            let packet = frame(HOST_MAC, NODE_MAC, &between(VTEP, PEER), &l4);
            golden("elsewhere", program, ifindex, packet, Pass).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn a_request_is_turned_round_and_cut() -> Result<()> {
    probing(|world| {
        let limits = [(PEER, PathLimit { route: 1400, probed: 0 }), (PLAIN, PathLimit::default())];
        world.harness.paths()?.limit(&limits.into_iter().collect(), 1500)?;
        for size in [SMALL, 576, 1500] {
            world.harness.put_probed(PEER, Probed { nonce: NONCE, ..Probed::default() })?;
            let before = monotonic_now();
            let packet = arrives(PEER, request(size), (SPORT, 9), size);
            let len = packet.len();
            // It says how long the request was that came in, and how long a packet may be that goes back.
            let probe = Probe { kind: kind::ANSWER, mtu: 1400u16.to_be_bytes(), ..request_of(&packet) };
            let l4 = carried((9, SPORT), probe, SMALL);
            let back = between(VTEP, PEER);
            let out = mesh_frame(([0; 6], [0; 6]), VTEP, PEER, node_mac(VTEP), node_mac(PEER), &back, &l4);
            on_underlay(world, "turned round", packet, Neigh(world.dev.underlay))
                .becomes(out)
                .counts(Counter::ProbeReply, len)
                .check_tunnelled(&mut world.harness)?;
            let noted = world.harness.probed(PEER)?;
            assert!(noted.heard >= before && noted.their_mtu == 1480 && noted.answered == 0, "{noted:?}");
        }
        Ok(())
    })
}

/// The probe in a frame.
fn request_of(packet: &[u8]) -> Probe {
    Probe::from_bytes(packet[64 + 28..][..32].try_into().expect("32 bytes"))
}

#[test]
fn requests_are_answered_at_a_bounded_rate() -> Result<()> {
    probing(|world| {
        let mut refused = 0;
        // Without looking at the maps in between: that takes an emulated kernel longer than the rate allows for.
        let shooter = world.harness.shooter(Program::FromUnderlay)?;
        let packet = arrives(PEER, request(SMALL), (SPORT, 9), SMALL);
        let input = Input { packet, ifindex: world.dev.underlay, ..Input::default() };
        for _ in 0..200 {
            refused += u32::from(shooter.run(&input)?.decision == Some(Drop(DropReason::ProbeRate)));
        }
        assert!(refused > 0);
        // Before this node's agent has begun to probe that one.
        world.harness.remove_probed(PEER)?;
        let packet = arrives(PEER, request(SMALL), (SPORT, 9), SMALL);
        let outcome = on_underlay(world, "of a new node", packet, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)));
        let noted = world.harness.probed(PEER)?;
        assert!(noted.heard > 0 && noted.nonce == 0 && noted.their_mtu == 1480, "{noted:?}");
        Ok(())
    })
}

#[test]
fn answers_are_noted() -> Result<()> {
    probing(|world| {
        let taken = |world: &mut World, what, probe: Probe| {
            let packet = arrives(PEER, probe, (9, SPORT), SMALL);
            let len = packet.len();
            on_underlay(world, what, packet, Taken).counts(Counter::ProbeAnswered, len).check(&mut world.harness)
        };
        taken(world, "another agent's", Probe { nonce: [9; 8], ..answer(SMALL) })?;
        assert_eq!(world.harness.probed(PEER)?, Probed { nonce: NONCE, ..Probed::default() });
        taken(world, "small", answer(SMALL))?;
        let noted = world.harness.probed(PEER)?;
        assert_eq!((noted.answers, noted.sequence, noted.their_mtu, noted.heard), (1, 7, 1480, 0), "{noted:?}");
        assert!(noted.answered > 0 && noted.large_sequence == 0, "{noted:?}");
        taken(world, "large", Probe { sequence: 8u32.to_ne_bytes(), ..answer(1500) })?;
        let noted = world.harness.probed(PEER)?;
        assert_eq!((noted.answers, noted.sequence, noted.large_size, noted.large_sequence), (1, 7, 1500, 8));
        Ok(())
    })
}

#[test]
fn what_is_no_probe_is_dropped() -> Result<()> {
    probing(|world| {
        let l4 = || carried((SPORT, 9), request(SMALL), SMALL);
        let macs = (ROUTER_MAC, NODE_MAC);
        let made =
            |from: Ip4, src: Mac, inner: Ip, l4: &L4| mesh_frame(macs, from, VTEP, src, node_mac(VTEP), &inner, l4);
        let short = L4::Udp { sport: SPORT, dport: 9, payload: vec![1, 1, 0, 0], checksum: false };
        let odd = |probe| carried((SPORT, 9), probe, SMALL);
        let from_peer = || between(PEER, VTEP);
        let cases = [
            (
                "from a stranger",
                made(STRANGER, node_mac(STRANGER), between(STRANGER, VTEP), &l4()),
                DropReason::UnknownVtep,
            ),
            (
                "from a node without Hiveway",
                made(PLAIN, node_mac(PLAIN), between(PLAIN, VTEP), &l4()),
                DropReason::UnknownVtep,
            ),
            ("in another's name", made(PEER, node_mac(THIRD), from_peer(), &l4()), DropReason::BadInnerSource),
            (
                "from another address",
                made(PEER, node_mac(PEER), between(THIRD, VTEP), &l4()),
                DropReason::BadInnerSource,
            ),
            ("to another address", made(PEER, node_mac(PEER), between(PEER, NODE2), &l4()), DropReason::BadInnerSource),
            (
                "with options",
                made(PEER, node_mac(PEER), Ip { options: vec![1; 4], ..from_peer() }, &l4()),
                DropReason::BadInnerSource,
            ),
            (
                "a fragment",
                made(PEER, node_mac(PEER), Ip { more_fragments: true, ..from_peer() }, &l4()),
                DropReason::BadInnerSource,
            ),
            (
                "TCP",
                made(PEER, node_mac(PEER), from_peer(), &support::packets::tcp(1, 9, "S")),
                DropReason::BadInnerSource,
            ),
            ("cut off", made(PEER, node_mac(PEER), from_peer(), &short), DropReason::Truncated),
            (
                "of a later version",
                made(PEER, node_mac(PEER), from_peer(), &odd(Probe { version: 2, ..request(SMALL) })),
                DropReason::MalformedHeader,
            ),
            (
                "of another kind",
                made(PEER, node_mac(PEER), from_peer(), &odd(Probe { kind: 3, ..request(SMALL) })),
                DropReason::MalformedHeader,
            ),
        ];
        for (what, packet, reason) in cases {
            on_underlay(world, what, packet, Drop(reason)).check(&mut world.harness)?;
        }
        assert_eq!(world.harness.probed(PEER)?.heard, 0);
        Ok(())
    })
}

#[test]
fn a_node_that_uses_another_port_is_noted() -> Result<()> {
    probing(|world| {
        let stray = |from: Ip4, vni, size: u16| {
            let inner =
                frame(node_mac(from), node_mac(VTEP), &between(from, VTEP), &carried((SPORT, 9), request(size), size));
            let (outer, mut tunnel) = vxlan(from, VTEP, 50_000, vni, &inner);
            if let L4::Udp { dport, .. } = &mut tunnel {
                *dport = 7789;
            }
            frame(ROUTER_MAC, NODE_MAC, &outer, &tunnel)
        };
        for (what, packet) in [
            ("not followed", stray(PLAIN, MESH, SMALL)),
            ("another VNI", stray(PEER, APP, SMALL)),
            ("large", stray(PEER, MESH, 1500)),
        ] {
            on_underlay(world, what, packet, Pass).check(&mut world.harness)?;
            assert_eq!(world.harness.probed(PEER)?.stray, 0, "{what}");
        }
        on_underlay(world, "to port 7789", stray(PEER, MESH, SMALL), Pass).check(&mut world.harness)?;
        let noted = world.harness.probed(PEER)?;
        assert_eq!((noted.stray > 0, noted.stray_port, noted.heard), (true, 7789u16.to_be_bytes(), 0));
        assert_eq!(BTreeSet::from([PEER]), world.harness.all_probed()?);
        Ok(())
    })
}
