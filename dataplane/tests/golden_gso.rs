//! Golden packets that are to be segmented later (GSO), of the kinds that the kernel's helper puts no tunnel around or
//! takes none off rightly: only the kernel's own tunnel device can.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Drop, Peer, SlowPath},
};
use dataplane_common::{counter::Counter, drop_reason::DropReason, mark};
use support::{
    golden::golden,
    mesh::*,
    packets::{Ip, L4, frame, ip, tcp, udp, vxlan},
    world::*,
};

/// `GSO_BY_FRAGS`: a list of packets, as SCTP makes them.
const LIST: u32 = 0xffff;

/// An SCTP packet with an INIT chunk.
fn sctp(dport: u16) -> L4 {
    let payload = [&3000u16.to_be_bytes()[..], &dport.to_be_bytes(), &[0; 8], &[1, 0, 0, 20], &[0x11; 16]].concat();
    L4::Raw { proto: 132, payload }
}

#[test]
fn a_list_of_sctp_packets_is_delivered_here_and_takes_the_slow_path_elsewhere() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let sent = |task: &Task| frame(mac(LOCAL1.ip), mac(task.ip), &ip(LOCAL1.ip, task.ip), &sctp(80));
        let here = sent(&LOCAL2);
        golden("here", Program::FromContainer, dev.veth1, here.clone(), Peer(dev.veth2))
            .segments(LIST)
            .counts(Counter::Delivered, here.len())
            .check(&mut world.harness)?;
        golden("elsewhere", Program::FromContainer, dev.veth1, sent(&REMOTE1), SlowPath)
            .segments(LIST)
            .check(&mut world.harness)
    })
}

/// The mesh's packets have no kernel device; as many bytes as a list has, they are not told that they are too big.
#[test]
fn a_list_of_sctp_packets_in_the_mesh_is_counted_under_a_reason_of_its_own() -> Result<()> {
    world(|world| {
        let backends = world.state.sets[&port_set(17, PUBLISHED)][1..2].to_vec();
        world.state.sets.insert(port_set(132, PUBLISHED), backends);
        world.harness.apply(&world.state)?;
        let syn = from_client(&sctp(PUBLISHED));
        let outcome = underlay(world, "the list", syn, Drop(DropReason::UnsupportedGso))
            .segments(LIST)
            .run(&mut world.harness)?;
        assert_eq!(outcome.drops.keys().collect::<Vec<_>>(), [&DropReason::UnsupportedGso], "{outcome:?}");
        Ok(())
    })
}

/// What the kernel would cut as if the tunnel were still around it.
#[test]
fn datagrams_in_one_gso_packet_are_left_in_their_tunnel() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        for (name, l4) in [("an overlay's datagrams", udp(53, 4000)), ("an overlay's SCTP", sctp(4000))] {
            let several = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &ip(REMOTE1.ip, LOCAL1.ip), &l4);
            let (outer, tunnel) = vxlan(PEER, VTEP, 50000, APP, &several);
            // The tunnel's datagrams may be several as well, each with a frame of its own: looked at one by one.
            golden(name, Program::FromUnderlay, dev.underlay, frame(ROUTER_MAC, NODE_MAC, &outer, &tunnel), SlowPath)
                .segments(4)
                .leaves_mark(mark::FRAGMENT | u32::from_be_bytes([0, PEER[1], PEER[2], PEER[3]]))
                .check(&mut world.harness)?;
        }
        // Whatever is in the first of them.
        let first = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &ip(REMOTE1.ip, LOCAL1.ip), &tcp(80, 4000, "A"));
        let (outer, tunnel) = vxlan(PEER, VTEP, 50000, APP, &[&first[..], &first].concat());
        let both = frame(ROUTER_MAC, NODE_MAC, &outer, &tunnel);
        golden("TCP, and a frame behind it", Program::FromUnderlay, dev.underlay, both, SlowPath)
            .segments(first.len() as u32)
            .leaves_mark(mark::FRAGMENT | u32::from_be_bytes([0, PEER[1], PEER[2], PEER[3]]))
            .check(&mut world.harness)?;
        let client = Ip { ttl: 57, ..ip(CLIENT, PEER) };
        let mesh = arriving(PEER, &LOCAL1, &client, &udp(CLIENT_PORT, PUBLISHED));
        underlay(world, "the mesh's", mesh.clone(), Drop(DropReason::UnsupportedGso))
            .segments(4)
            .check(&mut world.harness)?;
        // One by one they pass.
        underlay(world, "one", mesh, Peer(dev.gw1)).run(&mut world.harness).map(|one| {
            assert_eq!(one.decision, Some(Peer(dev.gw1)));
        })?;
        Ok(())
    })
}
