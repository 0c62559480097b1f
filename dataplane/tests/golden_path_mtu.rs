//! Golden packets of the tunnel's own path-MTU discovery (RFC 1191): a router's word about a tunnel's packet is
//! believed as the kernel would believe it, and from then on everything towards that node keeps to it.

mod support;

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use dataplane::{
    Belief, PathLimit, Program,
    testing::Decision::{Neigh, Pass, Peer, Refuse, SlowPath},
};
use dataplane_common::{addr::VIRTUAL_MAC, counter::Counter, drop_reason::DropReason, mark};
use support::{
    golden::{Golden, golden},
    icmp::{TOO_BIG, error, quote},
    mesh::*,
    packets::{Ip, Ip4, L4, Mac, frame, ip, pieces, vxlan},
    world::*,
    xdp::{XDP_TX, passes, through_xdp},
};

const GIVEN: Mac = [0x02, 0, 0, 0, 0, 0x99];
/// On the way to PEER.
const ROUTER: Ip4 = [198, 51, 100, 254];

fn believing(test: impl FnOnce(&mut World) -> Result<()> + Send + 'static) -> Result<()> {
    world(|world| {
        world.harness.paths()?.believe(Belief { min: 552, expires: Duration::from_secs(600) });
        limit(world, &[])?;
        test(world)
    })
}

/// What the agent knows of the paths to PEER and PLAIN.
fn limit(world: &mut World, known: &[(Ip4, PathLimit)]) -> Result<BTreeMap<Ip4, u16>> {
    let mut limits = BTreeMap::from([(PEER, PathLimit::default()), (PLAIN, PathLimit::default())]);
    limits.extend(known.iter().copied());
    Ok(world.harness.paths()?.limit(&limits, 1500)?)
}

/// A full-size packet of the tunnel from this node to `to`.
fn tunnelled(to: Ip4) -> (Ip, L4) {
    let inner = L4::Udp { sport: 1000, dport: 53, payload: vec![0x5a; 1422], checksum: true };
    vxlan(VTEP, to, 50000, APP, &frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &ip(LOCAL1.ip, REMOTE1.ip), &inner))
}

/// "No more than `mtu`", about `sent`, in an ICMP packet to this node.
fn told(mtu: u16, (outer, l4): &(Ip, L4), quoted: usize) -> Vec<u8> {
    let answer = error(3, TOO_BIG, u32::from(mtu), &quote(outer, l4, quoted));
    frame(ROUTER_MAC, NODE_MAC, &ip(ROUTER, VTEP), &answer)
}

fn passes_on(world: &World, what: &'static str, packet: Vec<u8>) -> Golden {
    golden(what, Program::FromUnderlay, world.dev.underlay, packet, Pass)
}

fn believed(world: &mut World, what: &'static str, packet: Vec<u8>) -> Result<()> {
    let len = packet.len();
    passes_on(world, what, packet).counts(Counter::PathMtuLearned, len).check(&mut world.harness)
}

/// UDP of so many bytes as an IP packet.
fn datagram(len: u16) -> L4 {
    L4::Udp { sport: 1000, dport: 53, payload: vec![0x5a; usize::from(len) - 28], checksum: true }
}

/// A container's packet to `to`: what fits is tunnelled, one byte more is refused with that size.
fn fits(world: &mut World, to: Ip4, size: u16) -> Result<()> {
    let packet = ip(LOCAL1.ip, to);
    let sent = frame(mac(LOCAL1.ip), GIVEN, &packet, &datagram(size));
    let outcome = golden("fits", Program::FromContainer, world.dev.veth1, sent, Pass).run(&mut world.harness)?;
    assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)), "{size} bytes to {to:?}");
    let long = datagram(size + 1);
    let back = Ip { id: 0, dont_fragment: false, ..ip(to, LOCAL1.ip) };
    let answer = error(3, TOO_BIG, u32::from(size), &quote(&packet, &long, 8));
    let sent = frame(mac(LOCAL1.ip), GIVEN, &packet, &long);
    let len = sent.len();
    golden("one more", Program::FromContainer, world.dev.veth1, sent, Refuse(DropReason::MtuExceeded))
        .becomes(frame(GIVEN, mac(LOCAL1.ip), &back, &answer))
        .counts(Counter::FragNeeded, len)
        .check(&mut world.harness)
}

#[test]
fn a_routers_word_about_a_tunnel_is_believed() -> Result<()> {
    believing(|world| {
        fits(world, REMOTE1.ip, 1450)?;
        // RFC 792 asks for eight bytes of a quote only.
        believed(world, "quoting ports", told(1400, &tunnelled(PEER), 8))?;
        fits(world, REMOTE1.ip, 1350)?;
        // Another node's path is another path.
        fits(world, ON_PLAIN.ip, 1450)?;
        believed(world, "smaller, quoting much", told(1300, &tunnelled(PEER), 500))?;
        fits(world, REMOTE1.ip, 1250)?;
        // Without DF the kernel's device fragments the outer packet.
        let packet = Ip { dont_fragment: false, ..ip(LOCAL1.ip, REMOTE1.ip) };
        let sent = frame(mac(LOCAL1.ip), GIVEN, &packet, &datagram(1251));
        golden("without DF", Program::FromContainer, world.dev.veth1, sent, SlowPath)
            .becomes(frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &packet, &datagram(1251)))
            .check(&mut world.harness)?;
        // On any interface.
        let packet = told(1200, &tunnelled(PEER), 8);
        let len = packet.len();
        golden("through another interface", Program::FromClient, world.dev.client, packet, Pass)
            .counts(Counter::PathMtuLearned, len)
            .check(&mut world.harness)?;
        fits(world, REMOTE1.ip, 1150)
    })
}

#[test]
fn it_holds_until_it_expires() -> Result<()> {
    believing(|world| {
        believed(world, "told", told(1400, &tunnelled(PEER), 8))?;
        assert_eq!(limit(world, &[])?, BTreeMap::from([(PEER, 1400), (PLAIN, 1500)]));
        fits(world, REMOTE1.ip, 1350)?;
        // A larger one means nothing: whoever knows the addresses could undo what is right.
        passes_on(world, "larger", told(1450, &tunnelled(PEER), 8)).check(&mut world.harness)?;
        fits(world, REMOTE1.ip, 1350)?;
        world.harness.paths()?.believe(Belief { min: 552, expires: Duration::from_millis(1) });
        believed(world, "told again, for a millisecond", told(1400, &tunnelled(PEER), 8))?;
        std::thread::sleep(Duration::from_millis(30));
        fits(world, REMOTE1.ip, 1450)?;
        assert_eq!(limit(world, &[])?[&PEER], 1500);
        assert_eq!(world.harness.paths()?.get(&PEER)?, None);
        Ok(())
    })
}

#[test]
fn no_less_than_the_minimum_is_believed() -> Result<()> {
    believing(|world| {
        believed(world, "68", told(68, &tunnelled(PEER), 8))?;
        fits(world, REMOTE1.ip, 502)?;
        believed(world, "0, from a router of before RFC 1191", told(0, &tunnelled(PEER), 8))?;
        fits(world, REMOTE1.ip, 502)
    })
}

#[test]
fn what_a_router_would_not_say_is_not_believed() -> Result<()> {
    believing(|world| {
        let good = || tunnelled(PEER);
        let short = vxlan(VTEP, PEER, 50000, APP, &frame([1; 6], [2; 6], &ip(LOCAL1.ip, REMOTE1.ip), &datagram(100)));
        let tcp_quote = (Ip { id: 0, ..ip(VTEP, PEER) }, L4::Raw { proto: 6, payload: vec![0x12; 1200] });
        let mut port = good();
        if let L4::Udp { dport, .. } = &mut port.1 {
            *dport = 4788;
        }
        let later = (Ip { fragment_offset: 100, ..good().0 }, good().1);
        let options = (Ip { options: vec![1; 4], ..good().0 }, good().1);
        let mut cases = vec![
            ("about another node's tunnel", told(1400, &vxlan(PEER, PLAIN, 50000, APP, &[0; 1400]), 8)),
            ("about a tunnel to a stranger", told(1400, &tunnelled(STRANGER), 8)),
            ("about a tunnel to itself", told(1400, &tunnelled(VTEP), 8)),
            ("about another port", told(1400, &port, 8)),
            ("about another protocol", told(1400, &tcp_quote, 8)),
            ("about a later fragment", told(1400, &later, 8)),
            ("about options that it has not", told(1400, &options, 8)),
            ("about a packet that would have fitted", told(1400, &short, 8)),
            ("no smaller than the interface", told(1500, &good(), 8)),
        ];
        for (what, kind, code) in [("host unreachable", 3, 1), ("time exceeded", 11, 0), ("redirect", 5, 1)] {
            let l4 = error(kind, code, 1400, &quote(&good().0, &good().1, 8));
            cases.push((what, frame(ROUTER_MAC, NODE_MAC, &ip(ROUTER, VTEP), &l4)));
        }
        let l4 = error(3, TOO_BIG, 1400, &quote(&good().0, &good().1, 8));
        cases.push(("to another address", frame(ROUTER_MAC, NODE_MAC, &ip(ROUTER, NODE2), &l4)));
        let cut = error(3, TOO_BIG, 1400, &quote(&good().0, &good().1, 3));
        cases.push(("without its ports", frame(ROUTER_MAC, NODE_MAC, &ip(ROUTER, VTEP), &cut)));
        for (what, packet) in cases {
            passes_on(world, what, packet).check(&mut world.harness)?;
        }
        world.harness.paths()?.believe(Belief { min: 552, expires: Duration::ZERO });
        passes_on(world, "with ip_no_pmtu_disc", told(1400, &good(), 8)).check(&mut world.harness)?;
        fits(world, REMOTE1.ip, 1450)
    })
}

/// A tunnel's packet from `node` that was cut after `size` bytes of payload: the first and the last fragment.
fn cut(node: Ip4, size: usize) -> [Vec<u8>; 2] {
    let inner = L4::Udp { sport: 1000, dport: 53, payload: vec![0x5a; 1422], checksum: true };
    let (outer, l4) = vxlan(
        node,
        VTEP,
        50000,
        INGRESS,
        &frame(mac(ON_PLAIN.ip), mac(LOCAL1.ip), &ip(ON_PLAIN.ip, LOCAL1.ip), &inner),
    );
    let pieces = pieces(&outer, &l4, size);
    [&pieces[0], &pieces[pieces.len() - 1]].map(|(ip, l4)| frame(ROUTER_MAC, NODE_MAC, ip, l4))
}

/// Nodes without Hiveway send without DF, and what arrives in pieces says how narrow the path is.
#[test]
fn a_cut_tunnel_of_a_node_without_hiveway_is_believed() -> Result<()> {
    believing(|world| {
        let fragment = |low: Ip4| mark::FRAGMENT | u32::from_be_bytes([0, low[1], low[2], low[3]]);
        let arrives = |world: &mut World, what, node, size, learned| {
            let [first, last] = cut(node, size);
            let len = first.len();
            let case = passes_on(world, what, first).leaves_mark(if node == STRANGER { 0 } else { fragment(node) });
            let case = if learned { case.counts(Counter::PathMtuLearned, len) } else { case };
            case.check(&mut world.harness)?;
            let outcome = passes_on(world, "the last fragment", last).run(&mut world.harness)?;
            assert!(!outcome.counters.contains_key(&Counter::PathMtuLearned));
            anyhow::Ok(())
        };
        arrives(world, "from a member, which cuts what it sends itself", PEER, 1376, false)?;
        arrives(world, "from a stranger", STRANGER, 1376, false)?;
        fits(world, ON_PLAIN.ip, 1450)?;
        arrives(world, "cut after 1396 bytes", PLAIN, 1376, true)?;
        fits(world, ON_PLAIN.ip, 1346)?;
        arrives(world, "a longer one", PLAIN, 1400, false)?;
        fits(world, ON_PLAIN.ip, 1346)?;
        fits(world, REMOTE1.ip, 1450)?;
        arrives(world, "a tiny one", PLAIN, 64, true)?;
        fits(world, ON_PLAIN.ip, 502)?;
        world.harness.paths()?.believe(Belief { min: 552, expires: Duration::ZERO });
        arrives(world, "with ip_no_pmtu_disc", PLAIN, 64, false)
    })
}

#[test]
fn a_route_and_probes_limit_a_path_as_well() -> Result<()> {
    believing(|world| {
        let mtus = limit(world, &[(PEER, PathLimit { route: 1450, probed: 1420 })])?;
        assert_eq!(mtus, BTreeMap::from([(PEER, 1420), (PLAIN, 1500)]));
        fits(world, REMOTE1.ip, 1370)?;
        believed(world, "smaller still", told(1400, &tunnelled(PEER), 8))?;
        fits(world, REMOTE1.ip, 1350)?;
        assert_eq!(limit(world, &[(PEER, PathLimit { route: 1450, probed: 0 })])?[&PEER], 1400);
        // The interface's own is what counts where it is smaller, and a node that is gone has no path.
        let interface = world.harness.paths()?.limit(&BTreeMap::from([(PLAIN, PathLimit::default())]), 1300)?;
        assert_eq!(interface, BTreeMap::from([(PLAIN, 1300)]));
        assert_eq!(world.harness.paths()?.get(&PEER)?, None);
        Ok(())
    })
}

/// A client's SYN or a SYN-ACK.
fn syn(sport: u16, dport: u16, flags: &'static str, mss: u16) -> L4 {
    L4::Tcp { sport, dport, flags, mss: Some(mss), payload: Vec::new() }
}

#[test]
fn segments_are_clamped_to_the_path_at_both_ends() -> Result<()> {
    believing(|world| {
        limit(world, &[(PEER, PathLimit { route: 1400, probed: 0 })])?;
        // N2: what the client says, and what the task says.
        let client = |dst| Ip { ttl: 57, ..ip(CLIENT, dst) };
        let packet = arriving(PEER, &LOCAL1, &client(PEER), &syn(9000, PUBLISHED, "S", 1460));
        let out = frame(VIRTUAL_MAC, mac(GW1), &client(GW1), &syn(9000, TARGET_PORT, "S", 1310));
        underlay(world, "SYN at N2", packet, Peer(world.dev.gw1))
            .counts(Counter::Delivered, out.len())
            .becomes(out)
            .check(&mut world.harness)?;
        // N1: the task's answer, which N2 has clamped to what its own way takes.
        world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
        for (what, flags, offered, left) in
            [("larger", "SA", 1410, 1310), ("as large", "SA", 1310, 1310), ("smaller", "SA", 536, 536)]
        {
            let port = 20_000 + offered;
            world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
            given_to(world, "SYN", &REMOTE1, &syn(port, PUBLISHED, "S", 1460), true)?;
            let reply = Ip { ttl: 63, ..ip(VTEP, CLIENT) };
            let answer = returning(PEER, &REMOTE1, &reply, &syn(PUBLISHED, port, flags, offered));
            let carried = through_xdp(world, &answer, world.dev.underlay)?.verdict == XDP_TX;
            assert_eq!(carried, offered == left, "{what}: XDP");
            let out = frame(ROUTER_MAC, NODE_MAC, &reply, &syn(PUBLISHED, port, flags, left));
            let len = out.len();
            underlay(world, what, answer, Neigh(world.dev.underlay))
                .becomes(out)
                .counts(Counter::MeshReply, len)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn xdp_keeps_to_the_path() -> Result<()> {
    believing(|world| {
        world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
        support::xdp::establish(world, &client_ip())?;
        let segment = |payload| {
            let l4 =
                L4::Tcp { sport: CLIENT_PORT, dport: PUBLISHED, flags: "PA", mss: None, payload: vec![1; payload] };
            from_client(&l4)
        };
        let dev = world.dev.underlay;
        assert_eq!(through_xdp(world, &segment(1350 - 40), dev)?.verdict, XDP_TX);
        assert_eq!(through_xdp(world, &segment(1351 - 40), dev)?.verdict, XDP_TX);
        believed(world, "told", told(1400, &tunnelled(PEER), 8))?;
        assert_eq!(through_xdp(world, &segment(1350 - 40), dev)?.verdict, XDP_TX);
        passes(world, "one more", &segment(1351 - 40), dev)?;
        let back = Ip { id: 0, dont_fragment: false, ..ip(VTEP, CLIENT) };
        let long = L4::Tcp { sport: CLIENT_PORT, dport: PUBLISHED, flags: "PA", mss: None, payload: vec![1; 1311] };
        let answer = error(3, TOO_BIG, 1350, &quote(&client_ip(), &long, 8));
        let sent = segment(1351 - 40);
        let len = sent.len();
        underlay(world, "TC answers", sent, Refuse(DropReason::MtuExceeded))
            .becomes(frame(NODE_MAC, ROUTER_MAC, &back, &answer))
            .counts(Counter::FragNeeded, len)
            .check(&mut world.harness)
    })
}
