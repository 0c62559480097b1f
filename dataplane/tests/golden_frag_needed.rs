//! Golden packets of path-MTU discovery (RFC 1191): what does not fit the tunnel and must not be fragmented is answered
//! with the size that fits.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Drop, Refuse},
};
use dataplane_common::{counter::Counter, drop_reason::DropReason};
use support::{
    golden::{Golden, golden},
    icmp::{PORT, TOO_BIG, error, quote, unreachable},
    packets::{Ip, Ip4, L4, Mac, frame, ip},
    world::*,
};

const GIVEN: Mac = [0x02, 0, 0, 0, 0, 0x99];
/// The underlay's 1500 bytes without the tunnel's 50.
const FITS: u16 = 1450;

/// UDP of so many bytes as an IP packet without options.
fn datagram(len: u16, checksum: bool) -> L4 {
    L4::Udp { sport: 1000, dport: 53, payload: vec![0x5a; usize::from(len) - 28], checksum }
}

fn container(world: &World, what: &'static str, ip: &Ip, l4: &L4) -> Golden {
    let sent = frame(mac(LOCAL1.ip), GIVEN, ip, l4);
    golden(what, Program::FromContainer, world.dev.veth1, sent, Refuse(DropReason::MtuExceeded))
}

/// The answer to `packet`: "this many bytes fit".
fn too_big(packet: &Ip, l4: &L4, mtu: u16) -> (Ip, L4) {
    let back = Ip { id: 0, dont_fragment: false, ..ip(packet.dst, packet.src) };
    (back, error(3, TOO_BIG, u32::from(mtu), &quote(packet, l4, 8)))
}

#[test]
fn a_container_is_told_what_fits_the_tunnel() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        // To a backend itself, and to a VIP, in whose name the answer comes.
        for to in [REMOTE1.ip, VIP] {
            for (what, l4) in [
                ("UDP", datagram(FITS + 1, true)),
                ("UDP without a checksum", datagram(1500, false)),
                ("TCP", L4::Tcp { sport: 1001, dport: 80, flags: "S", mss: None, payload: vec![1; 1420] }),
            ] {
                for options in [vec![], vec![1; 4], vec![1; 40]] {
                    let packet = Ip { options, tos: 0x12, ttl: 7, ..ip(LOCAL1.ip, to) };
                    let len = 14 + packet.options.len() + 20;
                    let (back, answer) = too_big(&packet, &l4, FITS);
                    let mut case =
                        container(world, what, &packet, &l4).becomes(frame(GIVEN, mac(LOCAL1.ip), &back, &answer));
                    let transport = match &l4 {
                        L4::Udp { payload, .. } => 8 + payload.len(),
                        L4::Tcp { payload, .. } => 20 + payload.len(),
                        _ => 0,
                    };
                    case = case.counts(Counter::FragNeeded, len + transport);
                    if to == VIP && packet.options.is_empty() && !what.contains("without") {
                        case = case.counts(Counter::VipFlow, len + transport);
                    }
                    case.check(&mut world.harness)?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn the_size_follows_the_underlay() -> Result<()> {
    world(|world| {
        // No more than a page fits such a run; larger MTUs are `tests/netns/mtu.rs`'s.
        for mtu in [1400u16, 3000] {
            world.state.config.underlay_mtu = mtu;
            world.harness.apply(&world.state)?;
            let packet = ip(LOCAL1.ip, REMOTE1.ip);
            let (fits, exceeds) = (datagram(mtu - 50, true), datagram(mtu - 49, true));
            let sent = frame(mac(LOCAL1.ip), GIVEN, &packet, &fits);
            let outcome =
                golden("fits", Program::FromContainer, world.dev.veth1, sent, Refuse(DropReason::MtuExceeded))
                    .run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(dataplane::testing::Decision::Neigh(world.dev.underlay)));
            let (back, answer) = too_big(&packet, &exceeds, mtu - 50);
            container(world, "one more", &packet, &exceeds)
                .becomes(frame(GIVEN, mac(LOCAL1.ip), &back, &answer))
                .counts(Counter::FragNeeded, usize::from(mtu) - 49 + 14)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn nobody_is_told_about_what_must_not_be_answered() -> Result<()> {
    world(|world| {
        let to = |dst: Ip4| ip(LOCAL1.ip, dst);
        // An ICMP error never causes another one, and what kind of message this is we do not know.
        let long = quote(&to(REMOTE1.ip), &datagram(1500, true), 1480);
        for (what, l4) in [
            ("an ICMP error", unreachable(PORT, &long)),
            ("a redirect", error(5, 1, 0, &long)),
            ("an ICMP type of the future", error(77, 0, 0, &long)),
        ] {
            let sent = frame(mac(LOCAL1.ip), GIVEN, &to(REMOTE1.ip), &l4);
            golden(what, Program::FromContainer, world.dev.veth1, sent, Drop(DropReason::MtuExceeded))
                .check(&mut world.harness)?;
        }
        let later = Ip { fragment_offset: 100, ..to(REMOTE1.ip) };
        let sent = frame(mac(LOCAL1.ip), GIVEN, &later, &L4::Raw { proto: 17, payload: vec![0; 1450] });
        golden("a later fragment", Program::FromContainer, world.dev.veth1, sent, Drop(DropReason::MtuExceeded))
            .check(&mut world.harness)
    })
}

#[test]
fn pings_are_told_too() -> Result<()> {
    world(|world| {
        let packet = ip(LOCAL1.ip, REMOTE2.ip);
        for reply in [false, true] {
            let l4 = L4::Echo { reply, id: 9, payload: vec![8; 1423] };
            let (back, answer) = too_big(&packet, &l4, FITS);
            container(world, "ping", &packet, &l4)
                .becomes(frame(GIVEN, mac(LOCAL1.ip), &back, &answer))
                .counts(Counter::FragNeeded, 1451 + 14)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn nothing_is_too_big_for_this_node() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        for to in [LOCAL2.ip, VIP] {
            let sent = frame(mac(LOCAL1.ip), GIVEN, &ip(LOCAL1.ip, to), &datagram(1500, true));
            let outcome = golden("local", Program::FromContainer, world.dev.veth1, sent, Drop(DropReason::MtuExceeded))
                .run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(dataplane::testing::Decision::Peer(world.dev.veth2)));
        }
        Ok(())
    })
}
