//! When connections are established: only once both ends have proved that they are there.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Neigh, Pass, Peer},
};
use dataplane_common::counter::Counter;
use support::{
    golden::golden,
    mesh::*,
    packets::{L4, frame, ip, tcp, udp},
    vip::{answers, says},
    world::*,
};

/// (pending, established) entries of VIP and mesh flows.
fn flows(world: &World) -> Result<(usize, usize)> {
    Ok((world.harness.pending_flows()?.len(), world.harness.established_flows()?.len()))
}

fn affinities(world: &World) -> Result<(usize, usize)> {
    Ok((world.harness.pending_affinity()?.len(), world.harness.established_affinity()?.len()))
}

#[test]
fn a_handshake_that_is_completed_is_established() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        says(world, &tcp(1000, 80, "S"))?;
        assert_eq!(flows(world)?, (2, 0));
        // Not before the answer, and not with any number.
        says(world, &tcp(1000, 80, "K"))?;
        answers(world, &tcp(80, 1000, "SA"))?;
        says(world, &tcp(1000, 80, "A"))?;
        says(world, &tcp(1000, 80, "PA"))?;
        assert_eq!(flows(world)?, (2, 0), "a blind ACK proves nothing");
        let packet = frame(mac(LOCAL1.ip), [2; 6], &ip(LOCAL1.ip, VIP), &tcp(1000, 80, "K"));
        let len = packet.len();
        let out = frame(mac(LOCAL1.ip), mac(LOCAL2.ip), &ip(LOCAL1.ip, LOCAL2.ip), &tcp(1000, 80, "K"));
        golden("ACK", Program::FromContainer, world.dev.veth1, packet, Peer(world.dev.veth2))
            .counts(Counter::FlowPromoted, len)
            .counts(Counter::Delivered, len)
            .becomes(out)
            .check(&mut world.harness)?;
        assert_eq!(flows(world)?, (0, 2));
        says(world, &tcp(1000, 80, "K"))?;
        assert_eq!(flows(world)?, (0, 2));
        Ok(())
    })
}

#[test]
fn a_server_that_speaks_has_seen_the_client() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        says(world, &tcp(1000, 80, "S"))?;
        answers(world, &tcp(80, 1000, "RA"))?;
        assert_eq!(flows(world)?, (2, 0), "a refusal is no handshake");
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        says(world, &tcp(1000, 80, "S"))?;
        // What a server in SYN-RECEIVED says to a second SYN.
        answers(world, &tcp(80, 1000, "A"))?;
        assert_eq!(flows(world)?, (2, 0), "a plain ACK needs no completed handshake");
        answers(world, &tcp(80, 1000, "PA"))?;
        assert_eq!(flows(world)?, (0, 2));
        Ok(())
    })
}

#[test]
fn an_answer_alone_establishes_no_udp_flow() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        says(world, &udp(1000, 53))?;
        says(world, &udp(1000, 53))?;
        answers(world, &udp(53, 1000))?;
        assert_eq!(flows(world)?, (2, 0));
        says(world, &udp(1000, 53))?;
        assert_eq!(flows(world)?, (0, 2));
        Ok(())
    })
}

#[test]
fn a_connection_keeps_its_backend_and_translation_when_it_is_established() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        says(world, &tcp(1000, 80, "S"))?;
        let pending = world.harness.pending_flows()?;
        answers(world, &tcp(80, 1000, "SA"))?;
        says(world, &tcp(1000, 80, "K"))?;
        let established = world.harness.established_flows()?;
        assert_eq!(pending.keys().collect::<Vec<_>>(), established.keys().collect::<Vec<_>>());
        for (key, was) in pending {
            let is = established[&key];
            assert_eq!((was.tag, was.src, was.dst, was.sport, was.dport), (is.tag, is.src, is.dst, is.sport, is.dport));
            assert_eq!(was.created, is.created);
        }
        Ok(())
    })
}

#[test]
fn either_entry_is_made_again_from_the_other() -> Result<()> {
    world(|world| {
        for reply in [false, true] {
            world.harness.forget_connections()?;
            world.harness.set_cursor(&vip_set(VIP), 0)?;
            says(world, &tcp(1000, 80, "S"))?;
            let whole = world.harness.pending_flows()?;
            let (lost, _) = *whole.iter().find(|(_, f)| (f.flags & 1 != 0) == reply).as_ref().unwrap();
            world.harness.remove_pending_flow(lost)?;
            if reply {
                // The client's retransmission brings the reply entry back.
                says(world, &tcp(1000, 80, "S"))?;
            }
            answers(world, &tcp(80, 1000, "SA"))?;
            if !reply {
                // The server's own segment is proof enough, and brings the forward entry back.
                answers(world, &tcp(80, 1000, "PA"))?;
            }
            says(world, &tcp(1000, 80, "K"))?;
            let established = world.harness.established_flows()?;
            assert_eq!(established.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
            for (key, flow) in established {
                let was = whole[&key];
                assert_eq!((was.src, was.dst, was.sport, was.dport), (flow.src, flow.dst, flow.sport, flow.dport));
            }
        }
        Ok(())
    })
}

#[test]
fn the_mesh_asks_for_the_same_proof_at_both_ends() -> Result<()> {
    world(|world| {
        // Ingress node here, backend elsewhere.
        world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
        given_to(world, "SYN", &REMOTE1, &tcp(1000, PUBLISHED, "S"), true)?;
        assert_eq!(affinities(world)?, (1, 0));
        let reply = |l4: &L4| returning(REMOTE1.vtep, &REMOTE1, &ip(VTEP, CLIENT), l4);
        underlay(world, "SYN-ACK", reply(&tcp(PUBLISHED, 1000, "SA")), Pass).run(&mut world.harness)?;
        underlay(world, "wrong ACK", from_client(&tcp(1000, PUBLISHED, "A")), Pass).run(&mut world.harness)?;
        assert_eq!(affinities(world)?, (1, 0));
        underlay(world, "ACK", from_client(&tcp(1000, PUBLISHED, "K")), Pass).run(&mut world.harness)?;
        assert_eq!(affinities(world)?, (0, 1));

        // Backend here, client through another ingress node.
        let arrives = |l4: &L4| arriving(PEER, &LOCAL1, &ip(CLIENT, PEER), l4);
        underlay(world, "SYN", arrives(&tcp(3000, PUBLISHED, "S")), Pass).run(&mut world.harness)?;
        assert_eq!(flows(world)?, (2, 0));
        let out = frame(mac(GW1), [2; 6], &ip(GW1, CLIENT), &tcp(TARGET_PORT, 3000, "SA"));
        gateway(world, "SYN-ACK", out, Neigh(0)).run(&mut world.harness)?;
        underlay(world, "wrong ACK", arrives(&tcp(3000, PUBLISHED, "A")), Pass).run(&mut world.harness)?;
        assert_eq!(flows(world)?, (2, 0));
        underlay(world, "ACK", arrives(&tcp(3000, PUBLISHED, "K")), Pass).run(&mut world.harness)?;
        assert_eq!(flows(world)?, (0, 2));
        Ok(())
    })
}
