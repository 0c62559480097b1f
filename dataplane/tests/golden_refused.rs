//! Golden packets that are refused: nobody serves them, and the sender is told at once by a reset or an ICMP error.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Drop, Refuse},
};
use dataplane_common::drop_reason::DropReason;
use etherparse::{IpNumber, Ipv4Header, TcpHeader};
use support::{
    golden::{Golden, golden},
    icmp,
    packets::{Ip, Ip4, L4, Mac, frame, ip, ping, tcp, udp},
    world::*,
};

const GIVEN: Mac = [0x02, 0, 0, 0, 0, 0x99];

fn case(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromContainer, world.dev.veth1, packet, decision)
}

/// LOCAL1 sends.
fn sent(ip: &Ip, l4: &L4) -> Vec<u8> {
    frame(mac(LOCAL1.ip), GIVEN, ip, l4)
}

/// A reset in the name of `packet`'s destination.
fn reset(packet: &Ip, sport: u16, dport: u16, seq: u32, ack: Option<u32>) -> Vec<u8> {
    let mut tcp = TcpHeader::new(sport, dport, seq, 0);
    tcp.rst = true;
    if let Some(ack) = ack {
        (tcp.ack, tcp.acknowledgment_number) = (true, ack);
    }
    let back = Ip { src: packet.dst, dst: packet.src, ..packet.clone() };
    let pseudo = Ipv4Header::new(20, 64, IpNumber::TCP, back.src, back.dst).expect("20 bytes fit");
    tcp.checksum = tcp.calc_checksum_ipv4(&pseudo, &[]).expect("20 bytes fit");
    frame(GIVEN, mac(LOCAL1.ip), &back, &L4::Raw { proto: 6, payload: tcp.to_bytes().to_vec() })
}

/// An ICMP destination unreachable in the name of `packet`'s destination, with its header and eight bytes.
fn unreachable(packet: &Ip, l4: &L4, code: u8) -> Vec<u8> {
    let back = Ip { id: 0, dont_fragment: false, ..ip(packet.dst, packet.src) };
    frame(GIVEN, mac(LOCAL1.ip), &back, &icmp::unreachable(code, &icmp::quote(packet, l4, 8)))
}

#[test]
fn a_service_without_backends_refuses_connections() -> Result<()> {
    world(|world| {
        for options in [vec![], vec![1; 8]] {
            let packet = Ip { options, tos: 0x10, ttl: 61, ..ip(LOCAL1.ip, EMPTY_VIP) };
            for mss in [None, Some(1460)] {
                let syn = L4::Tcp { sport: 1000, dport: 80, flags: "S", mss, payload: vec![] };
                case(world, "SYN", sent(&packet, &syn), Refuse(DropReason::NoBackend))
                    .becomes(reset(&packet, 80, 1000, 0, Some(1001)))
                    .check(&mut world.harness)?;
            }
        }
        // Data in a SYN (TCP fast open) is acknowledged with it.
        let packet = ip(LOCAL1.ip, EMPTY_VIP);
        let payload = b"hello".to_vec();
        let syn = L4::Tcp { sport: 1000, dport: 80, flags: "S", mss: Some(1460), payload };
        case(world, "SYN with data", sent(&packet, &syn), Refuse(DropReason::NoBackend))
            .becomes(reset(&packet, 80, 1000, 0, Some(1006)))
            .check(&mut world.harness)
    })
}

#[test]
fn tcp_in_the_middle_of_an_unknown_connection_is_reset() -> Result<()> {
    world(|world| {
        for to in [VIP, EMPTY_VIP] {
            let packet = ip(LOCAL1.ip, to);
            for flags in ["A", "PA", "FA", "SA"] {
                let l4 = tcp(1000, 80, flags);
                case(world, "acknowledges what nobody sent", sent(&packet, &l4), Refuse(DropReason::NoFlow))
                    .becomes(reset(&packet, 80, 1000, 2000, None))
                    .check(&mut world.harness)?;
            }
            for (flags, next) in [("F", 1001), ("", 1000)] {
                case(world, "no ACK", sent(&packet, &tcp(1000, 80, flags)), Refuse(DropReason::NoFlow))
                    .becomes(reset(&packet, 80, 1000, 0, Some(next)))
                    .check(&mut world.harness)?;
            }
            // A reset is never answered.
            for flags in ["R", "RA", "SR"] {
                case(world, "RST", sent(&packet, &tcp(1000, 80, flags)), Drop(DropReason::NoFlow))
                    .check(&mut world.harness)?;
            }
        }
        assert_eq!(world.harness.flows()?.len(), 0, "what is refused leaves an entry");
        Ok(())
    })
}

#[test]
fn datagrams_and_pings_to_nobody_are_answered_with_icmp() -> Result<()> {
    world(|world| {
        for (what, l4, code) in [
            ("UDP", udp(1000, 53), 3),
            ("UDP without payload", L4::Udp { sport: 1, dport: 2, payload: vec![], checksum: true }, 3),
            ("UDP of 1400 bytes", L4::Udp { sport: 1, dport: 2, payload: vec![7; 1400], checksum: false }, 3),
            ("ping", ping(9), 1),
        ] {
            for options in [vec![], vec![1; 4], vec![1; 40]] {
                let packet = Ip { options, tos: 0xb9, ttl: 3, ..ip(LOCAL1.ip, EMPTY_VIP) };
                case(world, what, sent(&packet, &l4), Refuse(DropReason::NoBackend))
                    .becomes(unreachable(&packet, &l4, code))
                    .check(&mut world.harness)?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_connection_whose_backend_is_gone_is_reset() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        let packet = ip(LOCAL1.ip, VIP);
        case(world, "SYN", sent(&packet, &tcp(1000, 80, "S")), Decision::Pass).run(&mut world.harness)?;
        let key = dataplane_common::endpoint::EndpointKey { net: net(APP), ip: REMOTE1.ip };
        world.state.endpoints.remove(&key);
        world.harness.apply(&world.state)?;
        case(world, "data", sent(&packet, &tcp(1000, 80, "PA")), Refuse(DropReason::BackendGone))
            .becomes(reset(&packet, 80, 1000, 2000, None))
            .check(&mut world.harness)?;
        assert_eq!(world.harness.flows()?.len(), 0);
        Ok(())
    })
}

#[test]
fn what_must_not_be_answered_is_only_dropped() -> Result<()> {
    world(|world| {
        let to: Ip4 = EMPTY_VIP;
        let first = Ip { dont_fragment: false, more_fragments: true, ..ip(LOCAL1.ip, to) };
        case(world, "a fragment", sent(&first, &udp(1000, 53)), Drop(DropReason::NoBackend)).check(&mut world.harness)
    })
}
