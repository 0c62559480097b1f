//! What the host's packet filters may close is left to the host: packets pass to the stack untouched, whether they open
//! a connection or belong to one; everything else is served as ever.

mod support;

use std::sync::Arc;

use anyhow::Result;
use dataplane::testing::Decision::{Drop, Pass};
use dataplane_common::{
    addr::Ip4,
    counter::Counter,
    drop_reason::DropReason,
    service::{AllowPrefix, LEFT_BITS, LeftPrefix, PortKey, port_flag},
};
use support::{
    golden::golden,
    mesh::*,
    packets::{L4, tcp, udp},
    world::*,
    xdp::{XDP_TX, client, established, keep_way, passes, through_xdp},
};

const TCP: PortKey = PortKey { proto: 6, _pad: 0, port: PUBLISHED.to_be_bytes() };
const UDP: PortKey = PortKey { proto: 17, _pad: 0, port: PUBLISHED.to_be_bytes() };
const ANY: PortKey = PortKey { proto: 0, _pad: 0, port: [0; 2] };

/// Leaves one prefix, under these flags, to the host.
fn leave(world: &mut World, flags: u8, ifindex: u32, port: PortKey, ip: Ip4, length: u32) -> Result<()> {
    let prefix = LeftPrefix { ifindex: ifindex.to_ne_bytes(), port, ip };
    world.state.left = Arc::new([(LEFT_BITS + length, prefix)].into());
    world.state.left_flags = [(TCP, flags), (UDP, flags)].into();
    world.harness.apply(&world.state)?;
    Ok(())
}

/// The client has opened a connection to REMOTE1 from port 1000, and is left to the host since.
fn opened_and_left(world: &mut World) -> Result<()> {
    world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
    given_to(world, "before", &REMOTE1, &tcp(1000, PUBLISHED, "S"), true)?;
    leave(world, port_flag::LEFT_EVERYWHERE, 0, ANY, CLIENT, 32)
}

/// Whether the client's packet is left on the underlay, and on the other interface.
fn left(world: &mut World, l4: &L4) -> Result<[bool; 2]> {
    let mut all = [false; 2];
    for (at, (program, ifindex)) in
        [(dataplane::Program::FromUnderlay, world.dev.underlay), (dataplane::Program::FromClient, world.dev.client)]
            .into_iter()
            .enumerate()
    {
        let packet = from_client(l4);
        let len = packet.len();
        let outcome = golden("a client's packet", program, ifindex, packet, Pass).run(&mut world.harness)?;
        all[at] = outcome.counters.contains_key(&Counter::LeftToHost);
        assert_eq!(outcome.decision == Some(Pass), all[at], "{:?}", outcome.decision);
        assert_eq!(outcome.counters.contains_key(&Counter::MeshForward), !all[at]);
        if all[at] {
            assert_eq!(outcome.counters[&Counter::LeftToHost].bytes, len as u64);
        }
    }
    Ok(all)
}

#[test]
fn each_scope_leaves_what_it_says() -> Result<()> {
    world(|world| {
        let (syn, datagram) = (tcp(1000, PUBLISHED, "S"), udp(1000, PUBLISHED));
        assert_eq!((left(world, &syn)?, left(world, &datagram)?), ([false; 2], [false; 2]));
        let device = world.dev.client;
        for (flags, ifindex, port, tcp, udp) in [
            (port_flag::LEFT_EVERYWHERE, 0, ANY, [true, true], [true, true]),
            (port_flag::LEFT_AT_INTERFACE, device, ANY, [false, true], [false, true]),
            (port_flag::LEFT_AT_PORT, 0, TCP, [true, true], [false, false]),
            (port_flag::LEFT_AT_BOTH, device, UDP, [false, false], [false, true]),
            // Nobody looks without the flag.
            (0, 0, ANY, [false, false], [false, false]),
        ] {
            for (prefix, length, inside) in [
                (CLIENT, 32, true),
                ([0; 4], 0, true),
                ([CLIENT[0], CLIENT[1], CLIENT[2], 0], 24, true),
                ([CLIENT[0], CLIENT[1], CLIENT[2], CLIENT[3] ^ 1], 32, false),
            ] {
                leave(world, flags, ifindex, port, prefix, length)?;
                let want = |all: [bool; 2]| all.map(|left| left && inside);
                assert_eq!(left(world, &syn)?, want(tcp), "{flags:#x} {prefix:?}/{length}");
                assert_eq!(left(world, &datagram)?, want(udp), "{flags:#x} {prefix:?}/{length}");
            }
        }
        Ok(())
    })
}

/// The host's rules do not know who may use a port: who may not is shut out all the same.
#[test]
fn what_is_left_to_the_host_keeps_to_the_ports_lists() -> Result<()> {
    world(|world| {
        opened_and_left(world)?;
        world.state.restricted.insert(TCP);
        for (allowed, decision) in [(NODE2, Drop(DropReason::NotAllowed)), (CLIENT, Pass)] {
            world.state.allow = [(32 + 32, AllowPrefix { port: TCP, ip: allowed })].into();
            world.harness.apply(&world.state)?;
            let packet = from_client(&tcp(1001, PUBLISHED, "S"));
            let len = packet.len();
            let case = underlay(world, "opens one", packet, decision);
            let case = if decision == Pass { case.counts(Counter::LeftToHost, len) } else { case };
            case.check(&mut world.harness)?;
            for (what, port, flags) in [("of one that was given away", 1000, "PA"), ("of the stack's", 1002, "PA")] {
                let packet = from_client(&tcp(port, PUBLISHED, flags));
                let len = packet.len();
                underlay(world, what, packet, Pass).counts(Counter::LeftToHost, len).check(&mut world.harness)?;
            }
        }
        Ok(())
    })
}

#[test]
fn an_open_connection_is_left_while_it_is_closed() -> Result<()> {
    world(|world| {
        opened_and_left(world)?;
        let data = tcp(1000, PUBLISHED, "PA");
        let packet = from_client(&data);
        let len = packet.len();
        underlay(world, "closed", packet, Pass).counts(Counter::LeftToHost, len).check(&mut world.harness)?;
        (world.state.left, world.state.left_flags) = Default::default();
        world.harness.apply(&world.state)?;
        given_to(world, "open again", &REMOTE1, &data, false)
    })
}

#[test]
fn xdp_leaves_it_too() -> Result<()> {
    established(|world| {
        keep_way(world, Some(PEER_MAC))?;
        let (underlay, ours) = (world.dev.underlay, client(&client_ip(), &tcp(CLIENT_PORT, PUBLISHED, "PA")));
        let another = client(&support::packets::ip(NEAR, NODE2), &tcp(CLIENT_PORT, PUBLISHED, "PA"));
        let carried = |world: &mut World, packet: &[u8]| -> Result<bool> {
            Ok(through_xdp(world, packet, underlay)?.verdict == XDP_TX)
        };
        // Twice: what was asked once is remembered.
        assert!(carried(world, &ours)? && carried(world, &ours)? && carried(world, &another)?);
        leave(world, port_flag::LEFT_EVERYWHERE, 0, ANY, CLIENT, 32)?;
        passes(world, "closed", &ours, underlay)?;
        passes(world, "closed, again", &ours, underlay)?;
        assert!(carried(world, &another)?, "another client's");
        // TC opens connections as long as anything is left.
        let opens = client(&support::packets::ip(NEAR, NODE2), &tcp(CLIENT_PORT + 1, PUBLISHED, "S"));
        passes(world, "opens", &opens, underlay)?;
        (world.state.left, world.state.left_flags) = Default::default();
        world.harness.apply(&world.state)?;
        assert!(carried(world, &ours)?, "open again");
        Ok(())
    })
}
