//! Golden packets of SCTP (RFC 9260) and of protocols without ports, through VIPs and the routing mesh: addresses and
//! the IP header's checksum change, everything behind it stays.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Drop, Neigh, Pass, Peer, Refuse},
};
use dataplane_common::{
    addr::VIRTUAL_MAC,
    counter::Counter,
    drop_reason::DropReason,
    flow::flag,
    mesh::{Target, TargetKey},
};
use support::{
    golden::golden,
    mesh::*,
    packets::{Ip, L4, frame, ip, routed},
    replies::{Goes, answers, asks, direct_world},
    vip::*,
    world::*,
};

const SCTP: u8 = 132;
const GRE: u8 = 47;
const ESP: u8 = 50;
/// Chunk types.
const DATA: u8 = 0;
const INIT: u8 = 1;
const SACK: u8 = 3;
const HEARTBEAT: u8 = 4;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// CRC32c (RFC 9260 appendix A), bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// A packet with one chunk and a checksum that is right.
fn sctp(sport: u16, dport: u16, chunk: u8) -> L4 {
    let mut payload =
        [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &[0; 8], &[chunk, 0, 0, 20], &[0x11; 16]].concat();
    let crc = crc32c(&payload).to_le_bytes();
    payload[8..12].copy_from_slice(&crc);
    L4::Raw { proto: SCTP, payload }
}

#[test]
fn the_checksum_is_the_standards() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

/// The backend's packet gets the VIP as its source on its way to LOCAL1.
fn comes_back(world: &mut World, what: &'static str, task: &Task, l4: &L4) -> Result<()> {
    let answer = frame(mac(task.ip), mac(LOCAL1.ip), &ip(task.ip, LOCAL1.ip), l4);
    let out = frame(mac(task.ip), mac(LOCAL1.ip), &ip(VIP, LOCAL1.ip), l4);
    let len = answer.len();
    golden(what, Program::FromContainer, world.dev.veth2, answer, Peer(world.dev.veth1))
        .counts(Counter::Delivered, len)
        .becomes(out)
        .check(&mut world.harness)
}

#[test]
fn an_association_with_a_vip() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        goes_to(world, "INIT", VIP, &LOCAL2, &sctp(3000, 80, INIT), true)?;
        comes_back(world, "INIT ACK", &LOCAL2, &sctp(80, 3000, 2))?;
        goes_to(world, "another INIT", VIP, &REMOTE1, &sctp(3001, 80, INIT), true)?;
        let len = sent(VIP, &sctp(3000, 80, 10)).len();
        case(world, "COOKIE ECHO", sent(VIP, &sctp(3000, 80, 10)), Peer(world.dev.veth2))
            .counts(Counter::FlowPromoted, len)
            .counts(Counter::Delivered, len)
            .becomes(frame(mac(LOCAL1.ip), mac(LOCAL2.ip), &ip(LOCAL1.ip, LOCAL2.ip), &sctp(3000, 80, 10)))
            .check(&mut world.harness)?;
        goes_to(world, "DATA", VIP, &LOCAL2, &sctp(3000, 80, DATA), false)?;
        comes_back(world, "DATA back", &LOCAL2, &sctp(80, 3000, DATA))?;
        let ended = |world: &World| -> Result<usize> {
            Ok(world.harness.flows()?.values().filter(|flow| flow.flags & flag::ENDED != 0).count())
        };
        // Whatever a client says, with whose address it may be: its backend has to agree.
        for chunk in [ABORT, SHUTDOWN_COMPLETE, SHUTDOWN_ACK] {
            goes_to(world, "the client's end", VIP, &LOCAL2, &sctp(3000, 80, chunk), false)?;
            goes_to(world, "INIT", VIP, &LOCAL2, &sctp(3000, 80, INIT), false)?;
            assert_eq!(ended(world)?, 0);
        }
        for chunk in [SHUTDOWN_ACK, ABORT, SHUTDOWN_COMPLETE] {
            comes_back(world, "the backend's end", &LOCAL2, &sctp(80, 3000, chunk))?;
            assert_eq!(ended(world)?, 2);
            comes_back(world, "INIT ACK", &LOCAL2, &sctp(80, 3000, 2))?;
            assert_eq!(ended(world)?, 0);
        }
        // It aborts a stranger's malformed INIT, and its association goes on.
        for chunk in [DATA, SACK, HEARTBEAT] {
            comes_back(world, "ABORT", &LOCAL2, &sctp(80, 3000, ABORT))?;
            comes_back(world, "it goes on", &LOCAL2, &sctp(80, 3000, chunk))?;
            assert_eq!(ended(world)?, 0);
        }
        // Whatever has become of it: its own backend knows.
        for chunk in [ABORT, SHUTDOWN_ACK] {
            comes_back(world, "the end", &LOCAL2, &sctp(80, 3000, chunk))?;
            goes_to(world, "INIT again", VIP, &LOCAL2, &sctp(3000, 80, INIT), false)?;
        }
        Ok(())
    })
}

#[test]
fn only_init_opens_an_association() -> Result<()> {
    world(|world| {
        for chunk in [DATA, 2, 10, SHUTDOWN_COMPLETE] {
            let outcome = case(world, "no INIT", sent(VIP, &sctp(3000, 80, chunk)), Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Refuse(DropReason::NoFlow)), "chunk {chunk}");
        }
        case(world, "an end is not answered", sent(VIP, &sctp(3000, 80, ABORT)), Drop(DropReason::NoFlow))
            .check(&mut world.harness)?;
        assert_eq!(world.harness.flows()?.len(), 0);
        // Without room for a chunk it is no SCTP.
        let short = L4::Raw { proto: SCTP, payload: vec![0; 15] };
        case(world, "cut off", sent(VIP, &short), Drop(DropReason::Truncated)).check(&mut world.harness)
    })
}

#[test]
fn a_collision_is_no_reason_to_change_a_port() -> Result<()> {
    world(|world| {
        // Two VIPs lead to one backend.
        let only = world.state.sets[&vip_set(SELF_VIP)].clone();
        assert_eq!(only[0].ip, LOCAL1.ip);
        let backends = world.state.sets[&vip_set(VIP)][..1].to_vec();
        world.state.sets.insert(vip_set(VIP), backends.clone());
        world.state.sets.insert(vip_set(SELF_VIP), backends);
        world.harness.apply(&world.state)?;
        goes_to(world, "the first", VIP, &LOCAL2, &sctp(3000, 80, INIT), true)?;
        case(world, "the second", sent(SELF_VIP, &sctp(3000, 80, INIT)), Drop(DropReason::FlowCollision))
            .check(&mut world.harness)?;
        goes_to(world, "the first goes on", VIP, &LOCAL2, &sctp(3000, 80, INIT), false)
    })
}

#[test]
fn protocols_without_ports_are_balanced_by_addresses() -> Result<()> {
    world(|world| {
        for (number, proto) in [GRE, ESP].into_iter().enumerate() {
            world.harness.set_cursor(&vip_set(VIP), 0)?;
            let l4 = L4::Raw { proto, payload: (0..40 + number as u8).collect() };
            goes_to(world, "the first packet", VIP, &LOCAL2, &l4, true)?;
            goes_to(world, "the second", VIP, &LOCAL2, &l4, false)?;
            comes_back(world, "the answer", &LOCAL2, &l4)?;
        }
        let nobody = L4::Raw { proto: GRE, payload: vec![1; 40] };
        let outcome = case(world, "nobody serves", sent(EMPTY_VIP, &nobody), Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Refuse(DropReason::NoBackend)));
        Ok(())
    })
}

/// Publishes a port of LOCAL1's and REMOTE1's for SCTP.
fn publish(world: &mut World, target: u16) -> Result<()> {
    let backends = world.state.sets[&port_set(17, PUBLISHED)][..2].to_vec();
    world.state.sets.insert(port_set(SCTP, PUBLISHED), backends);
    let key = |proto| TargetKey { ip: LOCAL1.ingress, port: PUBLISHED.to_be_bytes(), proto, _pad: 0 };
    let to = Target { port: target.to_be_bytes(), ..world.state.targets[&key(17)] };
    world.state.targets.insert(key(SCTP), to);
    let changes = world.harness.apply(&world.state)?;
    assert_eq!(changes.failures, []);
    Ok(world.harness.set_cursor(&port_set(SCTP, PUBLISHED), 1)?)
}

#[test]
fn an_association_through_the_mesh() -> Result<()> {
    world(|world| {
        publish(world, PUBLISHED)?;
        let dev = world.dev;
        for chunk in [DATA, ABORT] {
            let packet = from_client(&sctp(CLIENT_PORT, PUBLISHED, chunk));
            underlay(world, "no INIT: the stack's", packet, Pass).check(&mut world.harness)?;
        }
        // This node as ingress node.
        given_to(world, "INIT", &REMOTE1, &sctp(CLIENT_PORT, PUBLISHED, INIT), true)?;
        given_to(world, "DATA", &REMOTE1, &sctp(CLIENT_PORT, PUBLISHED, DATA), false)?;
        let (back, l4) = (ip(VTEP, CLIENT), sctp(PUBLISHED, CLIENT_PORT, 2));
        let out = frame(ROUTER_MAC, NODE_MAC, &back, &l4);
        underlay(world, "INIT ACK", returning(PEER, &REMOTE1, &back, &l4), Neigh(dev.underlay))
            .counts(Counter::MeshReply, out.len())
            .becomes(out)
            .check(&mut world.harness)?;
        for chunk in [ABORT, SHUTDOWN_ACK] {
            let packet = returning(PEER, &REMOTE1, &back, &sctp(PUBLISHED, CLIENT_PORT, chunk));
            underlay(world, "the end", packet, Pass).run(&mut world.harness)?;
            let packet = from_client(&sctp(CLIENT_PORT, PUBLISHED, INIT));
            let outcome = underlay(world, "INIT again", packet, Pass).run(&mut world.harness)?;
            assert!(!outcome.counters.contains_key(&Counter::MeshFlow), "chunk {chunk}");
        }
        // As backend's node.
        let init = sctp(CLIENT_PORT, PUBLISHED, INIT);
        let out = frame(VIRTUAL_MAC, mac(GW1), &Ip { ttl: 57, ..ip(CLIENT, GW1) }, &init);
        underlay(world, "INIT", arriving(PEER, &LOCAL1, &Ip { ttl: 57, ..ip(CLIENT, PEER) }, &init), Peer(dev.gw1))
            .counts(Counter::Delivered, out.len())
            .becomes(out)
            .check(&mut world.harness)?;
        let answer = frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &l4);
        let len = answer.len();
        let out =
            mesh_frame(([0; 6], [0; 6]), VTEP, PEER, mac(LOCAL1.ingress), node_mac(PEER), &routed(PEER, CLIENT), &l4);
        gateway(world, "INIT ACK", answer, Neigh(dev.underlay))
            .counts(Counter::MeshReturn, len)
            .counts(Counter::Encapsulated, len + 50)
            .becomes(out)
            .check_tunnelled(&mut world.harness)
            .map(|_| ())
    })
}

/// The ingress node keeps an entry for as long as its association may still be there: of the backend it has to hear
/// what ends one, and what shows that an end was meant for another's packet.
#[test]
fn with_direct_server_return_an_associations_end_goes_back_through_the_ingress_node() -> Result<()> {
    direct_world(|world| {
        publish(world, PUBLISHED)?;
        let direct = Goes::Directly(world.dev.underlay);
        let says = |world: &mut World, what, chunk, goes| {
            let l4 = sctp(PUBLISHED, CLIENT_PORT, chunk);
            answers(world, what, CLIENT, &l4, &l4, goes)
        };
        let asked = |world: &mut World, chunk| asks(world, CLIENT, &sctp(CLIENT_PORT, PUBLISHED, chunk));
        asked(world, INIT)?;
        says(world, "INIT ACK", 2, Goes::Tunnel)?;
        asked(world, COOKIE_ECHO)?;
        says(world, "COOKIE ACK", COOKIE_ACK, direct)?;
        says(world, "DATA", DATA, direct)?;
        // The client has the last word then: it is no end yet.
        says(world, "SHUTDOWN", SHUTDOWN, direct)?;
        for chunk in [SHUTDOWN_ACK, ABORT, SHUTDOWN_COMPLETE] {
            says(world, "an end", chunk, Goes::Tunnel)?;
            says(world, "the same again", chunk, Goes::Tunnel)?;
            says(world, "it goes on", SACK, Goes::Tunnel)?;
            says(world, "and on", DATA, direct)?;
        }
        // What the client says alone is no end.
        for chunk in [ABORT, SHUTDOWN_COMPLETE] {
            asked(world, chunk)?;
            says(world, "DATA", DATA, direct)?;
        }
        Ok(())
    })
}

#[test]
fn a_target_port_of_its_own_cannot_be_had() -> Result<()> {
    world(|world| {
        publish(world, TARGET_PORT)?;
        let packet = arriving(PEER, &LOCAL1, &ip(CLIENT, PEER), &sctp(CLIENT_PORT, PUBLISHED, INIT));
        let outcome = underlay(world, "another port", packet, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Drop(DropReason::MeshNoTarget)));
        Ok(())
    })
}
