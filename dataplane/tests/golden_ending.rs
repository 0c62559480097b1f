//! When a connection has ended: not because a client says so, whose address anybody can use, but because its backend
//! does, or because the client says it at the sequence number that the backend waits for.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Device, Neigh, Pass, Peer},
};
use dataplane_common::{
    addr::VIRTUAL_MAC,
    counter::Counter,
    flow::{Affinity, Flow, flag},
};
use etherparse::{Ipv4HeaderSlice, TcpHeader, TcpHeaderSlice};
use support::{
    golden::golden,
    mesh::*,
    packets::{Ip, L4, frame, ip},
    world::*,
};

/// Where the client's stream and the backend's begin.
const ISN: (u32, u32) = (0x1000_0000, 0x2000_0000);
/// How far both have come after the handshake.
const NEXT: (u32, u32) = (ISN.0 + 1, ISN.1 + 1);

/// A segment without data.
fn segment(ports: (u16, u16), flags: &str, sequence: u32, acknowledgement: u32) -> L4 {
    let mut tcp = TcpHeader::new(ports.0, ports.1, sequence, 1024);
    tcp.acknowledgment_number = acknowledgement;
    tcp.syn = flags.contains('S');
    tcp.ack = flags.contains('A');
    tcp.fin = flags.contains('F');
    tcp.rst = flags.contains('R');
    L4::Raw { proto: 6, payload: tcp.to_bytes().to_vec() }
}

/// LOCAL1 says to the VIP, from port 1000.
fn client(world: &mut World, flags: &str, sequence: u32, acknowledgement: u32) -> Result<Ip4> {
    let l4 = segment((1000, 80), flags, sequence, acknowledgement);
    let packet = frame(mac(LOCAL1.ip), [2; 6], &ip(LOCAL1.ip, VIP), &l4);
    let outcome = golden("client", Program::FromContainer, world.dev.veth1, packet, Pass).run(&mut world.harness)?;
    // Behind the headers of a tunnel, if it leads to another node.
    let packet = outcome.packet;
    let inner = if matches!(outcome.decision, Some(Neigh(_))) { &packet[50..] } else { &packet[..] };
    Ok(Ipv4HeaderSlice::from_slice(&inner[14..])?.destination())
}

type Ip4 = [u8; 4];

/// LOCAL2, the VIP's backend, answers.
fn backend(world: &mut World, flags: &str, sequence: u32, acknowledgement: u32) -> Result<()> {
    let l4 = segment((80, 1000), flags, sequence, acknowledgement);
    let packet = frame(mac(LOCAL2.ip), [2; 6], &ip(LOCAL2.ip, LOCAL1.ip), &l4);
    golden("backend", Program::FromContainer, world.dev.veth2, packet, Pass).run(&mut world.harness)?;
    Ok(())
}

/// A connection of LOCAL1's through the VIP to LOCAL2.
fn connected(world: &mut World) -> Result<()> {
    world.harness.set_cursor(&vip_set(VIP), 0)?;
    assert_eq!(client(world, "S", ISN.0, 0)?, LOCAL2.ip);
    backend(world, "SA", ISN.1, NEXT.0)?;
    client(world, "A", NEXT.0, NEXT.1)?;
    assert_eq!(world.harness.established_flows()?.len(), 2);
    Ok(())
}

/// Whether the connection has ended, on both its entries.
fn ended(world: &World) -> Result<bool> {
    let flows = world.harness.established_flows()?;
    let ended = flows.values().filter(|flow| flow.flags & flag::ENDED != 0).count();
    assert!(flows.len() == 2 && (ended == 0 || ended == 2), "{flows:?}");
    Ok(ended == 2)
}

/// A SYN from the client's port, with any number, goes to the connection's own backend.
fn still_goes_to_its_backend(world: &mut World) -> Result<()> {
    assert!(!ended(world)?);
    assert_eq!(client(world, "S", 77, 0)?, LOCAL2.ip);
    assert!(!ended(world)?);
    Ok(())
}

/// It opens another one, with the next backend, whose turn it is.
fn goes_to_the_next(world: &mut World) -> Result<()> {
    assert!(ended(world)?);
    world.harness.set_cursor(&vip_set(VIP), 1)?;
    assert_eq!(client(world, "S", 77, 0)?, REMOTE1.ip);
    Ok(())
}

#[test]
fn an_rst_with_any_number_ends_nothing() -> Result<()> {
    world(|world| {
        connected(world)?;
        for sequence in [0, 77, ISN.1, NEXT.0 + 0x400, NEXT.0 - 0x400, NEXT.0 + 0x8000_0000] {
            client(world, "R", sequence, 0)?;
            client(world, "RA", sequence, NEXT.1)?;
            still_goes_to_its_backend(world)?;
        }
        Ok(())
    })
}

#[test]
fn an_rst_where_the_backend_waits_for_it_does() -> Result<()> {
    world(|world| {
        // Right after the handshake; and after the backend has acknowledged more.
        for more in [0, 5000] {
            world.harness.forget_connections()?;
            connected(world)?;
            if more != 0 {
                backend(world, "A", NEXT.1, NEXT.0 + more)?;
                client(world, "R", NEXT.0, 0)?;
                assert!(!ended(world)?, "an old number");
            }
            client(world, "R", NEXT.0 + more, 0)?;
            goes_to_the_next(world)?;
        }
        Ok(())
    })
}

#[test]
fn a_backend_that_goes_on_has_not_ended() -> Result<()> {
    world(|world| {
        connected(world)?;
        backend(world, "R", NEXT.1, 0)?;
        assert!(ended(world)?);
        backend(world, "A", NEXT.1, NEXT.0)?;
        still_goes_to_its_backend(world)?;
        backend(world, "RA", NEXT.1, 0)?;
        goes_to_the_next(world)
    })
}

#[test]
fn both_fins_end_a_connection_once_the_clients_is_acknowledged() -> Result<()> {
    world(|world| {
        for client_first in [true, false] {
            world.harness.forget_connections()?;
            connected(world)?;
            if client_first {
                client(world, "FA", NEXT.0, NEXT.1)?;
                still_goes_to_its_backend(world)?;
                backend(world, "A", NEXT.1, NEXT.0 + 1)?;
                still_goes_to_its_backend(world)?;
                backend(world, "FA", NEXT.1, NEXT.0 + 1)?;
            } else {
                backend(world, "FA", NEXT.1, NEXT.0)?;
                still_goes_to_its_backend(world)?;
                // Long enough for the upper 24 bits of its end to be others.
                client(world, "FA", NEXT.0 + 0x1000, NEXT.1 + 1)?;
                still_goes_to_its_backend(world)?;
                backend(world, "A", NEXT.1 + 1, NEXT.0 + 0x1001)?;
            }
            goes_to_the_next(world)?;
        }
        Ok(())
    })
}

#[test]
fn a_fin_that_the_backend_does_not_acknowledge_is_nobodys() -> Result<()> {
    world(|world| {
        connected(world)?;
        backend(world, "FA", NEXT.1, NEXT.0)?;
        client(world, "FA", 0x7777_0000, 0)?;
        backend(world, "A", NEXT.1 + 1, NEXT.0)?;
        still_goes_to_its_backend(world)?;
        // Nor does it make an RST with its own number believed.
        client(world, "R", 0x7777_0001, 0)?;
        still_goes_to_its_backend(world)
    })
}

#[test]
fn what_the_backend_opens_anew_is_open() -> Result<()> {
    world(|world| {
        connected(world)?;
        client(world, "FA", NEXT.0, NEXT.1)?;
        backend(world, "FA", NEXT.1, NEXT.0)?;
        // The client has forgotten the connection and begins again.
        client(world, "S", 0x3000_0000, 0)?;
        backend(world, "SA", 0x4000_0000, 0x3000_0001)?;
        let flows = world.harness.established_flows()?;
        assert!(flows.values().all(|flow| flow.flags & (flag::FIN | flag::ENDED) == 0), "{flows:?}");
        Ok(())
    })
}

/// REMOTE1, to which the client's connection through the published port was given, answers.
fn returns(world: &mut World, flags: &str, sequence: u32, acknowledgement: u32) -> Result<()> {
    let l4 = segment((PUBLISHED, CLIENT_PORT), flags, sequence, acknowledgement);
    let packet = returning(PEER, &REMOTE1, &ip(VTEP, CLIENT), &l4);
    underlay(world, "answer", packet, Pass).run(&mut world.harness)?;
    Ok(())
}

/// The client says so to the published port. Whether a backend was chosen.
fn arrives(world: &mut World, flags: &str, sequence: u32, acknowledgement: u32) -> Result<bool> {
    let packet = from_client(&segment((CLIENT_PORT, PUBLISHED), flags, sequence, acknowledgement));
    let outcome = underlay(world, "client", packet, Pass).run(&mut world.harness)?;
    Ok(outcome.counters.contains_key(&Counter::MeshFlow))
}

/// A client's connection to REMOTE1 through this node.
fn opened(world: &mut World) -> Result<()> {
    world.harness.forget_connections()?;
    world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
    assert!(arrives(world, "S", ISN.0, 0)?);
    returns(world, "SA", ISN.1, NEXT.0)?;
    arrives(world, "A", NEXT.0, NEXT.1)?;
    assert_eq!(world.harness.established_affinity()?.len(), 1);
    Ok(())
}

#[test]
fn at_the_ingress_node_only_the_backend_ends_a_connection() -> Result<()> {
    world(|world| {
        opened(world)?;
        for (flags, sequence) in [("R", 77), ("R", NEXT.0), ("RA", NEXT.0), ("FA", 77), ("FA", NEXT.0)] {
            arrives(world, flags, sequence, NEXT.1)?;
            assert!(!arrives(world, "S", 77, 0)?, "{flags}");
        }
        returns(world, "R", NEXT.1, 0)?;
        returns(world, "A", NEXT.1, NEXT.0)?;
        assert!(!arrives(world, "S", 77, 0)?, "it goes on");
        returns(world, "R", NEXT.1, 0)?;
        assert!(arrives(world, "S", 77, 0)?);
        Ok(())
    })
}

/// A backend that has not accepted the connection yet answers so to whoever acknowledges what it never sent, and keeps
/// it.
#[test]
fn at_the_ingress_node_an_rst_before_the_backend_has_spoken_moves_nothing() -> Result<()> {
    world(|world| {
        opened(world)?;
        for stranger in [NEXT.1 + 0x100, 77] {
            arrives(world, "A", NEXT.0, stranger)?;
            returns(world, "R", stranger, 0)?;
            assert!(!arrives(world, "S", 77, 0)?, "{stranger}");
            // It says again what the client knows.
            returns(world, "SA", ISN.1, NEXT.0)?;
            assert!(!arrives(world, "S", 77, 0)?, "{stranger}");
        }
        // It has accepted, and means it.
        returns(world, "A", NEXT.1, NEXT.0 + 9)?;
        returns(world, "R", NEXT.1, 0)?;
        assert!(arrives(world, "S", 77, 0)?);
        Ok(())
    })
}

#[test]
fn at_the_ingress_node_a_fin_counts_once_it_is_acknowledged() -> Result<()> {
    world(|world| {
        for (end, acknowledged, over) in [(0x1000, 0x1001, true), (0x1000, 0, false)] {
            opened(world)?;
            returns(world, "FA", NEXT.1, NEXT.0)?;
            assert!(!arrives(world, "S", 77, 0)?, "the backend's FIN alone");
            arrives(world, "FA", NEXT.0 + end, NEXT.1 + 1)?;
            assert!(!arrives(world, "S", 77, 0)?, "the client's word");
            returns(world, "A", NEXT.1 + 1, NEXT.0 + acknowledged)?;
            // A last segment may be lost behind this node still: the backend sends it again, the client acknowledges
            // it.
            assert!(!arrives(world, "S", 77, 0)?, "at once");
            quiet(world)?;
            assert_eq!(arrives(world, "S", 77, 0)?, over);
        }
        Ok(())
    })
}

/// Nothing has gone by for 4 s.
fn quiet(world: &mut World) -> Result<()> {
    for (key, known) in world.harness.established_affinity()? {
        let known = Affinity { last_seen: known.last_seen - 4_000_000_000, ..known };
        world.harness.put_affinity(key, known)?;
    }
    Ok(())
}

/// The upper bits of a number can be guessed, and the backend acknowledges every segment that is out of place.
#[test]
fn an_end_that_was_guessed_is_taken_back() -> Result<()> {
    world(|world| {
        opened(world)?;
        returns(world, "FA", NEXT.1, NEXT.0)?;
        arrives(world, "FA", NEXT.0 + 0x1000, NEXT.1 + 1)?;
        returns(world, "A", NEXT.1 + 1, NEXT.0 + 0x1001)?;
        let over = |world: &World| -> Result<bool> {
            Ok(world.harness.established_affinity()?.values().all(|known| known.flags & flag::ENDED != 0))
        };
        assert!(over(world)?);
        // Somebody else's FIN changes nothing now.
        arrives(world, "FA", 0x7777_0000, NEXT.1 + 1)?;
        returns(world, "A", NEXT.1 + 1, NEXT.0 + 0x1001)?;
        assert!(over(world)?);
        returns(world, "A", NEXT.1 + 1, NEXT.0 + 0x2000)?;
        assert!(!over(world)?, "the client has sent more");

        connected(world)?;
        backend(world, "FA", NEXT.1, NEXT.0)?;
        client(world, "FA", NEXT.0 + 0x1000, NEXT.1 + 1)?;
        backend(world, "A", NEXT.1 + 1, NEXT.0 + 0x1001)?;
        assert!(ended(world)?);
        backend(world, "A", NEXT.1 + 1, NEXT.0 + 0x2000)?;
        still_goes_to_its_backend(world)
    })
}

/// During the handshake a wrong acknowledgement makes the backend say RST.
#[test]
fn an_end_before_the_client_has_proved_itself_does_not_outlast_it() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
        assert!(arrives(world, "S", ISN.0, 0)?);
        returns(world, "SA", ISN.1, NEXT.0)?;
        returns(world, "R", 0x7777_0000, 0)?;
        arrives(world, "A", NEXT.0, NEXT.1)?;
        assert!(!arrives(world, "S", 77, 0)?);

        world.harness.set_cursor(&vip_set(VIP), 0)?;
        client(world, "S", ISN.0, 0)?;
        backend(world, "SA", ISN.1, NEXT.0)?;
        backend(world, "R", 0x7777_0000, 0)?;
        client(world, "A", NEXT.0, NEXT.1)?;
        still_goes_to_its_backend(world)
    })
}

/// The entries of a version that noted no acknowledgements have zero there.
#[test]
fn an_rst_is_believed_only_where_something_was_acknowledged() -> Result<()> {
    world(|world| {
        connected(world)?;
        for (key, flow) in world.harness.established_flows()? {
            world.harness.put_flow(key, Flow { tcp_number: [0; 3], ..flow })?;
        }
        client(world, "R", 77, 0)?;
        still_goes_to_its_backend(world)
    })
}

#[test]
fn at_the_ingress_node_what_the_backend_opens_anew_is_open() -> Result<()> {
    world(|world| {
        opened(world)?;
        arrives(world, "FA", NEXT.0, NEXT.1)?;
        returns(world, "FA", NEXT.1, NEXT.0)?;
        arrives(world, "S", 0x3000_0000, 0)?;
        returns(world, "SA", 0x4000_0000, 0x3000_0001)?;
        let bits = flag::FIN | flag::BACKEND_FIN | flag::ENDED;
        let affinity = world.harness.established_affinity()?;
        assert!(affinity.values().all(|known| known.flags & bits == 0), "{affinity:?}");
        Ok(())
    })
}

/// A backend that has taken the RST answers the question with one of its own.
#[test]
fn at_its_node_the_backend_is_asked_about_an_rst() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let to = Ip { ttl: 57, ..ip(CLIENT, PEER) };
        // Nobody is asked before the handshake is complete, which an ACK might complete; nor with data in it.
        for (flags, question, text) in [
            ("S", false, 0),
            ("R", false, 0),
            ("A", false, 0),
            ("FA", false, 0),
            ("R", true, 0),
            ("RA", true, 0),
            ("RA", false, 1),
        ] {
            if flags == "A" {
                backend_at_n2(world)?;
            }
            let mut l4 = segment((CLIENT_PORT, PUBLISHED), flags, NEXT.0, NEXT.1);
            if let L4::Raw { payload, .. } = &mut l4 {
                payload.resize(payload.len() + text, 7);
            }
            let decision = if question { Device(dev.gw1) } else { Peer(dev.gw1) };
            let case = underlay(world, "delivered", arriving(PEER, &LOCAL1, &to, &l4), decision);
            let outcome = case.run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(decision), "{flags}");
            let asked = if question { "A" } else { flags };
            let (ethernet, rest) = outcome.packet.split_at(14);
            assert_eq!(ethernet[..12], [mac(GW1), VIRTUAL_MAC].concat());
            let (header, tcp) = (Ipv4HeaderSlice::from_slice(rest)?, TcpHeaderSlice::from_slice(&rest[20..])?);
            let (tcp, data) = (tcp.to_header(), &rest[40..]);
            assert_eq!((tcp.rst, tcp.ack, tcp.syn, tcp.fin), flags_of(asked));
            assert_eq!((tcp.sequence_number, tcp.destination_port), (NEXT.0, TARGET_PORT));
            // No checksum was given; what was changed since is accounted for.
            let given = TcpHeaderSlice::from_slice(&bytes(&l4))?.to_header();
            let before = given.calc_checksum_ipv4_raw(CLIENT, PEER, data)?;
            let now = tcp.calc_checksum_ipv4_raw(header.source(), header.destination(), data)?;
            assert_eq!(sum(now, tcp.checksum), sum(before, given.checksum), "{flags}");
        }
        Ok(())
    })
}

/// LOCAL1 answers the SYN that it was given on behalf of another node.
fn backend_at_n2(world: &mut World) -> Result<()> {
    let l4 = segment((TARGET_PORT, CLIENT_PORT), "SA", ISN.1, NEXT.0);
    gateway(world, "SYN-ACK", frame(mac(GW1), [9; 6], &ip(GW1, CLIENT), &l4), Pass).run(&mut world.harness)?;
    Ok(())
}

fn flags_of(flags: &str) -> (bool, bool, bool, bool) {
    (flags.contains('R'), flags.contains('A'), flags.contains('S'), flags.contains('F'))
}

fn bytes(l4: &L4) -> Vec<u8> {
    match l4 {
        L4::Raw { payload, .. } => payload.clone(),
        _ => unreachable!("`segment` makes no other"),
    }
}

/// How far a checksum is off, in ones' complement.
fn sum(right: u16, found: u16) -> u16 {
    let off = u32::from(found) + u32::from(!right);
    ((off & 0xffff) + (off >> 16)) as u16
}
