//! Golden packets of ICMP errors about VIP connections: each is translated to whoever must see it, quote included. What
//! is expected is built anew with all checksums, not updated.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Drop, Neigh, Pass, Peer},
};
use dataplane_common::{
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{Endpoint, EndpointKey, kind},
};
use support::{
    golden::{Golden, golden},
    icmp::{HOST, PORT, TIME_EXCEEDED, TOO_BIG, error, quote, unreachable},
    packets::{Ip, Ip4, L4, Mac, ethernet, frame, ip, ipv4, tcp, udp, vxlan},
    world::*,
};

const GIVEN: Mac = [0x02, 0, 0, 0, 0, 0x99];
/// A router between client and backend, if there were one: any other address.
const ROUTER: Ip4 = [10, 0, 1, 99];

fn container(world: &World, what: &'static str, ip: &Ip, l4: &L4, decision: Decision) -> Golden {
    let ifindex = if ip.src == LOCAL2.ip { world.dev.veth2 } else { world.dev.veth1 };
    golden(what, Program::FromContainer, ifindex, frame(mac(ip.src), GIVEN, ip, l4), decision)
}

/// In a tunnel from the other node to LOCAL1.
fn tunnelled(world: &World, what: &'static str, src: Ip4, ip: &Ip, l4: &L4) -> Golden {
    let inner = frame(mac(src), mac(LOCAL1.ip), ip, l4);
    let (outer, tunnel) = vxlan(PEER, VTEP, 50000, APP, &inner);
    let packet = frame(ROUTER_MAC, NODE_MAC, &outer, &tunnel);
    golden(what, Program::FromUnderlay, world.dev.underlay, packet, Peer(world.dev.veth1))
}

/// LOCAL1 opens a connection with the VIP; `cursor` says whose turn it is (LOCAL2, REMOTE1, REMOTE2).
fn open(world: &mut World, cursor: u64, l4: &L4) -> Result<()> {
    world.harness.set_cursor(&vip_set(VIP), cursor)?;
    container(world, "the first packet", &ip(LOCAL1.ip, VIP), l4, Pass).run(&mut world.harness)?;
    Ok(())
}

/// Another packet of a connection: something to quote.
fn datagram(sport: u16, dport: u16, checksum: bool) -> L4 {
    L4::Udp { sport, dport, payload: b"quite a long datagram".to_vec(), checksum }
}

#[test]
fn an_error_about_a_backend_is_one_about_the_vip_to_the_client() -> Result<()> {
    world(|world| {
        open(world, 1, &udp(1000, 53))?;
        open(world, 1, &tcp(1000, 80, "S"))?;
        let segment = L4::Tcp { sport: 1000, dport: 80, flags: "PA", mss: None, payload: vec![7; 50] };
        // Eight bytes; up to and beyond the TCP checksum, which is translated where it can be seen.
        for (l4, lengths) in [
            (datagram(1000, 53, true), &[8, 9, 29][..]),
            (datagram(1000, 53, false), &[8, 29]),
            (segment, &[8, 16, 17, 18, 20, 70]),
        ] {
            for &len in lengths {
                for options in [vec![], vec![1; 8]] {
                    // As the backend got it, with what a hop on the way may have changed.
                    let seen = Ip { ttl: 63, tos: 0x20, options, ..ip(LOCAL1.ip, REMOTE1.ip) };
                    let sent = Ip { dst: VIP, ..seen.clone() };
                    let (of_backend, mut of_vip) = (quote(&seen, &l4, len), quote(&sent, &l4, len));
                    // Half a TCP checksum cannot be translated.
                    if len == 17 {
                        of_vip.pop();
                        of_vip.extend(of_backend.last());
                    }
                    for (what, kind, code, rest) in [
                        ("port unreachable", 3, PORT, 0),
                        ("host unreachable", 3, HOST, 0),
                        ("fragmentation needed", 3, TOO_BIG, 1300),
                        ("source quench", 4, 0, 0),
                        ("time exceeded", TIME_EXCEEDED, 1, 0),
                        ("parameter problem", 12, 0, 0x1400_0000),
                    ] {
                        // From the backend itself, and from somebody on the way, who stays who he is.
                        for (src, shown) in [(REMOTE1.ip, VIP), (ROUTER, ROUTER)] {
                            let remote = EndpointKey { net: net(APP), ip: REMOTE1.ip };
                            let node = Endpoint { kind: kind::NODE, ..world.state.endpoints[&remote] };
                            world.state.endpoints.insert(EndpointKey { net: net(APP), ip: ROUTER }, node);
                            world.harness.apply(&world.state)?;
                            let arrived = error(kind, code, rest, &of_backend);
                            let out = frame(
                                mac(src),
                                mac(LOCAL1.ip),
                                &ip(shown, LOCAL1.ip),
                                &error(kind, code, rest, &of_vip),
                            );
                            tunnelled(world, what, src, &ip(src, LOCAL1.ip), &arrived)
                                .counts(Counter::IcmpTranslated, out.len())
                                .counts(Counter::Delivered, out.len())
                                .becomes(out)
                                .check(&mut world.harness)?;
                        }
                    }
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_translated_source_port_is_translated_back_in_the_quote() -> Result<()> {
    world(|world| {
        // Two services lead the client's port to one backend: the second connection is shown another source port.
        let twin_vip = [10, 0, 1, 30];
        let vip = world.state.endpoints[&EndpointKey { net: net(APP), ip: VIP }];
        world.state.endpoints.insert(EndpointKey { net: net(APP), ip: twin_vip }, vip);
        let backends = world.state.sets[&vip_set(VIP)].clone();
        world.state.sets.insert(vip_set(twin_vip), backends);
        world.harness.apply(&world.state)?;
        open(world, 1, &udp(1000, 53))?;
        world.harness.set_cursor(&vip_set(twin_vip), 1)?;
        let out =
            container(world, "the second", &ip(LOCAL1.ip, twin_vip), &udp(1000, 53), Pass).run(&mut world.harness)?;
        let inner_udp = 14 + 50 + 20;
        let shown = u16::from_be_bytes([out.packet[inner_udp], out.packet[inner_udp + 1]]);
        assert_ne!(shown, 1000);
        for (checksum, len) in [(true, 8), (false, 20)] {
            let seen = quote(&ip(LOCAL1.ip, REMOTE1.ip), &datagram(shown, 53, checksum), len);
            let sent = quote(&ip(LOCAL1.ip, twin_vip), &datagram(1000, 53, checksum), len);
            let out = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &ip(twin_vip, LOCAL1.ip), &unreachable(PORT, &sent));
            tunnelled(world, "port", REMOTE1.ip, &ip(REMOTE1.ip, LOCAL1.ip), &unreachable(PORT, &seen))
                .counts(Counter::IcmpTranslated, out.len())
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn an_error_of_a_backend_on_this_node_is_translated_too() -> Result<()> {
    world(|world| {
        open(world, 0, &udp(1000, 53))?;
        let seen = quote(&ip(LOCAL1.ip, LOCAL2.ip), &datagram(1000, 53, true), 29);
        let sent = quote(&ip(LOCAL1.ip, VIP), &datagram(1000, 53, true), 29);
        let out = frame(mac(LOCAL2.ip), mac(LOCAL1.ip), &ip(VIP, LOCAL1.ip), &unreachable(PORT, &sent));
        container(world, "local", &ip(LOCAL2.ip, LOCAL1.ip), &unreachable(PORT, &seen), Peer(world.dev.veth1))
            .counts(Counter::IcmpTranslated, out.len())
            .counts(Counter::Delivered, out.len())
            .becomes(out)
            .check(&mut world.harness)
    })
}

#[test]
fn a_clients_error_about_a_reply_reaches_the_backend() -> Result<()> {
    world(|world| {
        for (cursor, backend, l4) in [(1, REMOTE1, udp(53, 1000)), (0, LOCAL2, udp(53, 1001))] {
            let L4::Udp { dport: port, .. } = l4 else { unreachable!("UDP it is") };
            open(world, cursor, &udp(port, 53))?;
            for (kind, code) in [(3, PORT), (11, 1)] {
                let got = quote(&ip(VIP, LOCAL1.ip), &l4, 8);
                let sent = quote(&ip(backend.ip, LOCAL1.ip), &l4, 8);
                let case =
                    |decision| container(world, "error", &ip(LOCAL1.ip, VIP), &error(kind, code, 0, &got), decision);
                let inner = |dst| frame(mac(LOCAL1.ip), dst, &ip(LOCAL1.ip, backend.ip), &error(kind, code, 0, &sent));
                let out = inner(mac(backend.ip));
                if backend.vtep == VTEP {
                    case(Peer(world.dev.veth2))
                        .counts(Counter::IcmpTranslated, out.len())
                        .counts(Counter::Delivered, out.len())
                        .becomes(out)
                        .check(&mut world.harness)?;
                } else {
                    let (outer, tunnel) = vxlan(VTEP, backend.vtep, 50000, APP, &out);
                    case(Neigh(world.dev.underlay))
                        .counts(Counter::IcmpTranslated, out.len())
                        .counts(Counter::Encapsulated, out.len() + 50)
                        .becomes(frame([0; 6], [0; 6], &outer, &tunnel))
                        .check_tunnelled(&mut world.harness)?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_task_that_is_its_own_backend_gets_its_own_error() -> Result<()> {
    world(|world| {
        container(world, "hairpin", &ip(LOCAL1.ip, SELF_VIP), &udp(1000, 53), Pass).run(&mut world.harness)?;
        // As its own server, it got the datagram from the VIP.
        let seen = quote(&ip(SELF_VIP, LOCAL1.ip), &datagram(1000, 53, true), 8);
        let sent = quote(&ip(LOCAL1.ip, SELF_VIP), &datagram(1000, 53, true), 8);
        let out = frame(mac(LOCAL1.ip), mac(LOCAL1.ip), &ip(SELF_VIP, LOCAL1.ip), &unreachable(PORT, &sent));
        container(world, "error", &ip(LOCAL1.ip, SELF_VIP), &unreachable(PORT, &seen), Peer(world.dev.veth1))
            .counts(Counter::IcmpTranslated, out.len())
            .counts(Counter::Delivered, out.len())
            .becomes(out)
            .check(&mut world.harness)
    })
}

#[test]
fn errors_about_other_connections_are_delivered_as_they_are() -> Result<()> {
    world(|world| {
        open(world, 1, &udp(1000, 53))?;
        let l4 = datagram(1000, 53, true);
        let to = ip(LOCAL1.ip, REMOTE1.ip);
        let mut truncated = quote(&to, &l4, 8);
        truncated.truncate(27);
        let mut version = quote(&to, &l4, 8);
        version[0] = 0x65;
        let mut ihl = quote(&to, &l4, 8);
        ihl[0] = 0x44;
        let mut options = quote(&to, &l4, 8);
        options[0] = 0x4f;
        let later = quote(&Ip { fragment_offset: 3, ..to.clone() }, &l4, 8);
        let foreign = ip(LOCAL2.ip, REMOTE1.ip);
        let reply = ip(REMOTE1.ip, LOCAL1.ip);
        for (what, payload) in [
            ("another source port", quote(&to, &datagram(1001, 53, true), 8)),
            ("another port of the backend", quote(&to, &datagram(1000, 54, true), 8)),
            ("what lies behind it", quote(&ip(LOCAL1.ip, [203, 0, 113, 9]), &l4, 8)),
            ("another protocol", quote(&to, &tcp(1000, 53, "S"), 8)),
            ("another container's", quote(&foreign, &l4, 8)),
            ("the other direction", quote(&reply, &datagram(53, 1000, true), 8)),
            ("a quoted ping", quote(&to, &support::packets::ping(1), 8)),
            ("a quote of 27 bytes", truncated),
            ("nothing quoted", vec![]),
            ("half a header", quote(&to, &l4, 8)[..12].to_vec()),
            ("a quote of IPv6", version),
            ("a quoted header that is too short", ihl),
            ("a quoted header longer than the quote", options),
            ("a later fragment", later),
        ] {
            let arrived = unreachable(PORT, &payload);
            let out = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &reply, &arrived);
            tunnelled(world, what, REMOTE1.ip, &reply, &arrived)
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        // What only looks like a longer quote is padding behind the packet.
        let short = &ipv4(&reply, &unreachable(PORT, &quote(&to, &l4, 8)[..20]));
        let padded = [&short[..], &quote(&to, &l4, 8)[20..]].concat();
        let inner = ethernet(mac(REMOTE1.ip), mac(LOCAL1.ip), 0x0800, &padded);
        let (outer, tunnel) = vxlan(PEER, VTEP, 50000, APP, &inner);
        let packet = frame(ROUTER_MAC, NODE_MAC, &outer, &tunnel);
        golden("padding", Program::FromUnderlay, world.dev.underlay, packet, Peer(world.dev.veth1))
            .counts(Counter::Delivered, inner.len())
            .becomes(inner)
            .check(&mut world.harness)?;
        // A redirect quotes, too, but is for routers.
        let arrived = error(5, 1, 0x0a00_0101, &quote(&to, &l4, 8));
        let out = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &reply, &arrived);
        tunnelled(world, "redirect", REMOTE1.ip, &reply, &arrived)
            .counts(Counter::Delivered, out.len())
            .becomes(out)
            .check(&mut world.harness)
    })
}

/// Containers are no routers for one another.
#[test]
fn a_container_says_nothing_about_anothers_connection() -> Result<()> {
    world(|world| {
        open(world, 1, &udp(1000, 53))?;
        let l4 = datagram(1000, 53, true);
        for (what, about) in [("to its backend", REMOTE1.ip), ("to the VIP", VIP), ("to a third one", REMOTE2.ip)] {
            let sent = unreachable(PORT, &quote(&ip(LOCAL1.ip, about), &l4, 8));
            let about = container(world, what, &ip(LOCAL2.ip, LOCAL1.ip), &sent, Drop(DropReason::IcmpUnmatched));
            about.check(&mut world.harness)?;
        }
        // Nor in a form that would be judged as something else.
        let sent = unreachable(PORT, &quote(&ip(LOCAL1.ip, REMOTE1.ip), &l4, 8));
        let many = frame(mac(LOCAL2.ip), [0xff; 6], &ip(LOCAL2.ip, LOCAL1.ip), &sent);
        let piece = Ip { dont_fragment: false, more_fragments: true, ..ip(LOCAL2.ip, LOCAL1.ip) };
        let first = frame(mac(LOCAL2.ip), GIVEN, &piece, &sent);
        for hidden in [many, first] {
            golden("hidden", Program::FromContainer, world.dev.veth2, hidden, Drop(DropReason::IcmpUnmatched))
                .check(&mut world.harness)?;
        }
        // Its own, and one about something behind it.
        for about in [LOCAL2.ip, [203, 0, 113, 9]] {
            let sent = unreachable(PORT, &quote(&ip(LOCAL1.ip, about), &l4, 8));
            let outcome =
                container(world, "its own", &ip(LOCAL2.ip, LOCAL1.ip), &sent, Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Peer(world.dev.veth1)), "{about:?}");
        }
        Ok(())
    })
}

#[test]
fn errors_towards_a_vip_that_are_about_nothing_are_dropped() -> Result<()> {
    world(|world| {
        open(world, 1, &udp(1000, 53))?;
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        container(world, "LOCAL2's", &ip(LOCAL2.ip, VIP), &udp(1000, 53), Pass).run(&mut world.harness)?;
        let l4 = datagram(53, 1000, true);
        let own = ip(VIP, LOCAL1.ip);
        let mut truncated = quote(&own, &l4, 8);
        truncated.truncate(27);
        for (what, payload) in [
            ("another port", quote(&own, &datagram(53, 1001, true), 8)),
            ("another server port", quote(&own, &datagram(54, 1000, true), 8)),
            ("another container's connection", quote(&ip(VIP, LOCAL2.ip), &l4, 8)),
            ("not to the VIP's own", quote(&ip(REMOTE1.ip, LOCAL1.ip), &l4, 8)),
            ("truncated", truncated),
        ] {
            let sent = unreachable(PORT, &payload);
            container(world, what, &ip(LOCAL1.ip, VIP), &sent, Drop(DropReason::IcmpUnmatched))
                .check(&mut world.harness)?;
        }
        // Its backend is gone.
        world.state.endpoints.remove(&EndpointKey { net: net(APP), ip: REMOTE1.ip });
        world.harness.apply(&world.state)?;
        let sent = unreachable(PORT, &quote(&own, &l4, 8));
        container(world, "backend gone", &ip(LOCAL1.ip, VIP), &sent, Drop(DropReason::IcmpUnmatched))
            .check(&mut world.harness)?;
        Ok(())
    })
}
