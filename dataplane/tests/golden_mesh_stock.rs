//! Golden packets of the routing mesh at the ingress node, to a backend on a node without Hiveway: translated here, and
//! sent as ordinary traffic of the ingress network, which the engine carries.

mod support;

use std::collections::BTreeSet;

use anyhow::Result;
use dataplane::{
    Kind, MapName, Program, Sizes,
    testing::{
        Decision::{Drop, Neigh, Pass, Refuse},
        Harness,
    },
};
use dataplane_common::{
    config::node_flag,
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{Vtep, vtep_mesh},
    flow::{Flow, FlowKey, STOCK_ZONE, flag},
    mark,
    service::Backend,
};
use etherparse::{IpNumber, Ipv4Header, TcpHeader};
use support::{
    golden::golden,
    icmp::{PORT, TOO_BIG, error, quote, unreachable},
    mesh::*,
    packets::{Ip, Ip4, L4, frame, hop, ip, pieces, ping, routed, syn, tcp, udp, vxlan},
    world::*,
};

/// This node on the ingress network.
const OWN: Ip4 = [10, 0, 0, 2];
const SECOND: Task = Task { ip: [10, 0, 1, 24], ingress: [10, 0, 0, 27], tag: [22; 8], vtep: PLAIN };

/// The only backends of the published port live on the plain node; the engine carries the ingress network.
fn stock(test: impl FnOnce(&mut World) -> Result<()> + Send + 'static) -> Result<()> {
    world(|world| {
        (world.state.config.ingress_ip, world.state.config.ingress_vni) = (OWN, net(INGRESS));
        world.state.config.flags = node_flag::STOCK_NODES;
        let backend = |task: &Task| Backend { tag: task.tag, ip: task.ingress, vtep: task.vtep };
        for proto in [6, 17] {
            world.state.sets.insert(port_set(proto, PUBLISHED), [ON_PLAIN, SECOND].iter().map(backend).collect());
        }
        world.harness.apply(&world.state)?;
        for proto in [6, 17] {
            world.harness.set_cursor(&port_set(proto, PUBLISHED), 0)?;
        }
        test(world)
    })
}

/// `packet` on the ingress network, between this node and a task.
fn tunnelled(from: Ip4, to: Ip4, src: Ip4, dst: Ip4, packet: (&Ip, &L4)) -> Vec<u8> {
    let inner = frame(mac(src), mac(dst), packet.0, packet.1);
    let (outer, tunnel) = vxlan(from, to, 50000, INGRESS, &inner);
    // Nobody tries the path to such a node: routers may fragment what this node sends there.
    let outer = Ip { dont_fragment: from != VTEP, ..outer };
    let eth = if from == VTEP { ([0; 6], [0; 6]) } else { (ROUTER_MAC, NODE_MAC) };
    frame(eth.0, eth.1, &outer, &tunnel)
}

/// What a packet of the client's with TTL 57 becomes.
fn shown(task: &Task, ip: &Ip, l4: &L4) -> Vec<u8> {
    tunnelled(VTEP, PLAIN, OWN, task.ingress, (&Ip { src: OWN, dst: task.ingress, ..hop(ip) }, l4))
}

/// The same for a node that has got Hiveway since.
fn with_df(mut packet: Vec<u8>) -> Vec<u8> {
    packet[20] |= 0x40;
    let (sum, borrow) = u16::from_be_bytes([packet[24], packet[25]]).overflowing_sub(0x4000);
    packet[24..26].copy_from_slice(&sum.wrapping_sub(borrow.into()).to_be_bytes());
    packet
}

/// CLIENT's packet is given to `task`; `out` is the same with the ports that the task sees.
fn given(
    world: &mut World,
    what: &'static str,
    task: &Task,
    l4: &L4,
    out: &L4,
    new: bool,
    promoted: bool,
) -> Result<()> {
    let packet = from_client(l4);
    let len = packet.len();
    let mut case = underlay(world, what, packet, Neigh(world.dev.underlay))
        .counts(Counter::MeshForward, len)
        .counts(Counter::Encapsulated, len + 50)
        .becomes(match world.state.vteps.get(&PLAIN).map(|vtep| vtep.hiveway) {
            Some(vtep_mesh::MEMBER) => with_df(shown(task, &client_ip(), out)),
            _ => shown(task, &client_ip(), out),
        });
    if new {
        case = case.counts(Counter::MeshFlow, len).counts(Counter::MeshStock, len);
    }
    if promoted {
        // In both tables, and counted once.
        case = case.counts(Counter::FlowPromoted, len);
    }
    case.check_tunnelled(&mut world.harness).map(|_| ())
}

/// What arrives from a task on node `from`.
fn arriving(from: Ip4, task: &Task, ip: &Ip, l4: &L4) -> Vec<u8> {
    tunnelled(from, VTEP, task.ingress, OWN, (ip, l4))
}

/// The task answers OWN, and CLIENT hears from the published port.
fn answered(world: &mut World, what: &'static str, task: &Task, l4: &L4, out: &L4) -> Result<()> {
    let packet = arriving(PLAIN, task, &ip(task.ingress, OWN), l4);
    let out_frame = frame(ROUTER_MAC, NODE_MAC, &routed(VTEP, CLIENT), out);
    let mark = if matches!(l4, L4::Udp { .. }) { mark::MESH_REPLY } else { 0 };
    underlay(world, what, packet, Neigh(world.dev.underlay))
        .leaves_mark(mark)
        .counts(Counter::MeshReply, out_frame.len())
        .becomes(out_frame)
        .check(&mut world.harness)
}

#[test]
fn a_connection_goes_and_comes_back_translated() -> Result<()> {
    stock(|world| {
        for (port, task) in (CLIENT_PORT..).zip([ON_PLAIN, SECOND]) {
            let mut go = |flags, new, promoted| {
                let l4 = tcp(port, PUBLISHED, flags);
                given(world, flags, &task, &l4, &l4, new, promoted)
            };
            go("S", true, false)?;
            go("S", false, false)?;
            let back = |world: &mut World, flags| {
                let l4 = tcp(PUBLISHED, port, flags);
                answered(world, flags, &task, &l4, &l4)
            };
            back(world, "SA")?;
            let l4 = tcp(port, PUBLISHED, "K");
            given(world, "handshake done", &task, &l4, &l4, false, true)?;
            let l4 = tcp(port, PUBLISHED, "PA");
            given(world, "data", &task, &l4, &l4, false, false)?;
            back(world, "PA")?;
            back(world, "FA")?;
            let l4 = tcp(port, PUBLISHED, "FA");
            given(world, "FIN", &task, &l4, &l4, false, false)?;
        }
        assert_eq!(world.harness.established_affinity()?.len(), 2);
        assert!(world.harness.established_affinity()?.values().all(|entry| entry.flags & flag::STOCK != 0));
        let flows = world.harness.established_flows()?;
        assert_eq!(flows.len(), 4);
        let numbers = |direction| {
            let of = flows.values().filter(|flow| flow.flags & flag::REPLY == direction);
            of.map(|flow| u32::from_be_bytes([0, flow.tcp_number[0], flow.tcp_number[1], flow.tcp_number[2]])).collect()
        };
        let (ends, acknowledged): (Vec<_>, Vec<_>) = (numbers(0), numbers(flag::REPLY));
        assert_eq!((ends, acknowledged), (vec![1001 >> 8; 2], vec![2000 >> 8; 2]));
        // One row for both tables.
        let rows = world.harness.rows()?;
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert!(rows.iter().all(|row| row.kind == Kind::Ingress && row.peer == Some(PLAIN.into())), "{rows:?}");
        Ok(())
    })
}

/// Pieces of two packets with one identification could be put together (RFC 6864).
#[test]
fn packets_that_may_be_cut_have_identifications() -> Result<()> {
    stock(|world| {
        let l4 = udp(CLIENT_PORT, PUBLISHED);
        let mut seen = BTreeSet::new();
        for _ in 0..20 {
            let outcome = underlay(world, "datagram", from_client(&l4), Pass).run(&mut world.harness)?;
            seen.insert([outcome.packet[18], outcome.packet[19]]);
        }
        assert!(seen.len() > 10, "{seen:?}");
        Ok(())
    })
}

/// Nobody else does: the engine over there knows nothing of the client's way.
#[test]
fn segment_sizes_are_clamped_in_both_directions() -> Result<()> {
    stock(|world| {
        world.state.config.underlay_mtu = 1400;
        world.harness.apply(&world.state)?;
        let option = |mss: u16| [&[2, 4][..], &mss.to_be_bytes()].concat();
        for (port, offered, seen) in [(2000, 1460, 1310), (2001, 1310, 1310), (2002, 536, 536)] {
            world.harness.set_cursor(&port_set(6, PUBLISHED), 0)?;
            let there = |src, dst, mss| syn(src, dst, (port, PUBLISHED), false, &option(mss));
            given(
                world,
                "SYN",
                &ON_PLAIN,
                &there(CLIENT, VTEP, offered),
                &there(OWN, ON_PLAIN.ingress, seen),
                true,
                false,
            )?;
            let back = |src, dst, mss| syn(src, dst, (PUBLISHED, port), true, &option(mss));
            let (sent, heard) = (back(ON_PLAIN.ingress, OWN, offered), back(VTEP, CLIENT, seen));
            answered(world, "SYN ACK", &ON_PLAIN, &sent, &heard)?;
        }
        Ok(())
    })
}

#[test]
fn datagrams_keep_their_backend() -> Result<()> {
    stock(|world| {
        let (question, answer) = (udp(CLIENT_PORT, PUBLISHED), udp(PUBLISHED, CLIENT_PORT));
        given(world, "datagram", &ON_PLAIN, &question, &question, true, false)?;
        answered(world, "answer", &ON_PLAIN, &answer, &answer)?;
        given(world, "next", &ON_PLAIN, &question, &question, false, true)?;
        answered(world, "answer", &ON_PLAIN, &answer, &answer)
    })
}

#[test]
fn two_clients_with_one_port_are_told_apart() -> Result<()> {
    stock(|world| {
        // Both to the first backend.
        let other = [198, 51, 100, 8];
        let l4 = udp(CLIENT_PORT, PUBLISHED);
        given(world, "the first", &ON_PLAIN, &l4, &l4, true, false)?;
        world.harness.set_cursor(&port_set(17, PUBLISHED), 0)?;
        let packet = frame(ROUTER_MAC, NODE_MAC, &ip(other, VTEP), &l4);
        let outcome = underlay(world, "the second", packet, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)));
        let port = u16::from_be_bytes([outcome.packet[84], outcome.packet[85]]);
        assert!(port >= 1024 && port != CLIENT_PORT, "{port}");
        let back = arriving(PLAIN, &ON_PLAIN, &ip(ON_PLAIN.ingress, OWN), &udp(PUBLISHED, port));
        let heard = frame(ROUTER_MAC, NODE_MAC, &routed(VTEP, other), &udp(PUBLISHED, CLIENT_PORT));
        underlay(world, "answer to the second", back, Neigh(world.dev.underlay))
            .leaves_mark(mark::MESH_REPLY)
            .counts(Counter::MeshReply, heard.len())
            .becomes(heard)
            .check(&mut world.harness)?;
        answered(world, "answer to the first", &ON_PLAIN, &udp(PUBLISHED, CLIENT_PORT), &udp(PUBLISHED, CLIENT_PORT))
    })
}

/// The port that the backend sees of a packet.
fn shown_port(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[84], packet[85]])
}

#[test]
fn thousands_of_clients_with_one_port_all_get_one_of_their_own() -> Result<()> {
    stock(|world| {
        let mut ports = BTreeSet::new();
        for client in 0..500u16 {
            world.harness.set_cursor(&port_set(6, PUBLISHED), 0)?;
            let [high, low] = client.to_be_bytes();
            let syn = tcp(CLIENT_PORT, PUBLISHED, "S");
            let packet = frame(ROUTER_MAC, NODE_MAC, &ip([198, 18, high, low], VTEP), &syn);
            let outcome = underlay(world, "SYN", packet, Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)), "client {client}");
            assert!(ports.insert(shown_port(&outcome.packet)), "client {client} got a port that is in use");
        }
        assert!(ports.range(..1024).next().is_none() && ports.range(1024..0x8000).next().is_some());
        Ok(())
    })
}

/// A SYN of the client's with these TCP options (a multiple of four bytes), and with another sequence number than
/// [`tcp`]'s.
fn syn_with(options: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(CLIENT_PORT, PUBLISHED, 0x5a00_0000, 64_240);
    header.syn = true;
    header.set_options_raw(options).unwrap();
    let mut between = Ipv4Header::new(0, 64, IpNumber::TCP, CLIENT, VTEP).unwrap();
    between.set_payload_len(header.header_len()).unwrap();
    header.checksum = header.calc_checksum_ipv4(&between, &[]).unwrap();
    frame(ROUTER_MAC, NODE_MAC, &ip(CLIENT, VTEP), &L4::Raw { proto: 6, payload: header.to_bytes().to_vec() })
}

/// Occupies every port towards [`ON_PLAIN`] by an established connection that has ended so, and lets a SYN with these
/// options try to get one. The SYN as the backend sees it.
fn reopened(world: &mut World, options: &[u8], ended: &Flow, pending: bool) -> Result<Option<Vec<u8>>> {
    world.harness.forget_connections()?;
    world.harness.set_cursor(&port_set(6, PUBLISHED), 0)?;
    for port in 0..=u16::MAX {
        let key = FlowKey::new(STOCK_ZONE, (ON_PLAIN.ingress, PUBLISHED.to_be_bytes()), (OWN, port.to_be_bytes()), 6);
        let was = Flow { dport: port.to_be_bytes(), ..*ended };
        if pending { world.harness.put_pending_flow(key, was)? } else { world.harness.put_flow(key, was)? }
    }
    let outcome = underlay(world, "SYN", syn_with(options), Pass).run(&mut world.harness)?;
    let through = outcome.decision == Some(Neigh(world.dev.underlay));
    assert!(through || outcome.decision == Some(Drop(DropReason::FlowCollision)), "{outcome:?}");
    Ok(through.then_some(outcome.packet))
}

/// A connection to [`ON_PLAIN`] of another client's, silent for four seconds, that has ended with both FINs; `end` are
/// the upper 24 bits of the number behind its client's.
fn ended(end: u32) -> Flow {
    let last_seen = dataplane::monotonic_now() - 4_000_000_000;
    let [_, a, b, c] = end.to_be_bytes();
    Flow {
        last_seen,
        created: last_seen,
        tag: ON_PLAIN.tag,
        src: VTEP,
        dst: [198, 18, 0, 2],
        sport: PUBLISHED.to_be_bytes(),
        dport: [0; 2],
        peer: PLAIN,
        task: ON_PLAIN.ingress,
        flags: flag::REPLY | flag::SEEN | flag::FIN | flag::ENDED,
        tcp_number: [a, b, c],
    }
}

#[test]
fn a_syn_takes_the_port_of_an_ended_connection_whose_end_it_lies_behind() -> Result<()> {
    stock(|world| {
        // So many lines that no pending one of all ports is displaced.
        let lines = Sizes { max_flows: 1 << 17, max_pending: 1 << 18 };
        world.harness = Harness::with_lines(&[(MapName::Flows, 1 << 17)], lines)?;
        world.harness.apply(&world.state)?;
        let isn = 0x5a_0000;
        let mut taken = |flow: Flow, pending| anyhow::Ok(reopened(world, &[], &flow, pending)?.is_some());
        let behind = ended(isn - 1);
        assert!(taken(behind, false)?, "behind its end");
        assert!(!taken(ended(isn), false)?, "not surely behind it");
        assert!(!taken(ended(isn + 1), false)?, "before it");
        let unconfirmed = Flow { flags: flag::REPLY | flag::SEEN | flag::FIN, ..behind };
        assert!(!taken(unconfirmed, false)?, "the client's end was not acknowledged");
        let reset = Flow { flags: flag::REPLY | flag::SEEN | flag::ENDED, ..behind };
        assert!(!taken(reset, false)?, "the backend's end was not seen");
        // Ahead of now, for it takes a while to put all the entries there.
        let lately = Flow { last_seen: dataplane::monotonic_now() + 60_000_000_000, ..behind };
        assert!(!taken(lately, false)?, "a segment may be on its way");
        assert!(!taken(behind, true)?, "the number in a pending entry is another one");
        Ok(())
    })
}

/// To the backend the client's clock would seem to go back.
#[test]
fn a_syn_that_takes_an_ended_connections_port_loses_its_timestamps() -> Result<()> {
    const TIMESTAMPS: [u8; 10] = [8, 10, 0xfe, 0xdc, 0xba, 0x98, 0, 0, 0, 0];
    const NOPS: [u8; 10] = [1; 10];
    stock(|world| {
        world.harness = Harness::with_sizes(&[(MapName::Flows, 1 << 17)])?;
        world.harness.apply(&world.state)?;
        let mut becomes = |what: &str, before: &[u8], behind: &[u8], removed: bool| -> Result<()> {
            let with = [before, &TIMESTAMPS, behind].concat();
            let packet = reopened(world, &with, &ended(0x59_0000), false)?.expect(what);
            let (between, rest) = Ipv4Header::from_slice(&packet[64..])?;
            let (header, _) = TcpHeader::from_slice(rest)?;
            let expected = [before, if removed { &NOPS } else { &TIMESTAMPS }, behind].concat();
            assert_eq!(header.options.as_slice(), expected, "{what}");
            assert_eq!(header.checksum, header.calc_checksum_ipv4(&between, &[])?, "{what}");
            Ok(())
        };
        becomes("as Linux sends it", &[2, 4, 5, 100, 4, 2], &[1, 3, 3, 7], true)?;
        becomes("at an odd place", &[2, 4, 5, 100, 1, 1, 1], &[3, 3, 7], true)?;
        becomes("as the last of ten options", &[1; 9], &[0], true)?;
        becomes("what looks like it within another option", &[253, 20, 0, 0, 0, 0], &[0, 0, 0, 0], false)?;
        becomes("behind the end of the options", &[0, 1], &[], false)?;
        becomes("behind an option without a length", &[2, 0], &[], false)
    })
}

#[test]
fn what_answers_nothing_of_ours_is_the_engines() -> Result<()> {
    stock(|world| {
        let l4 = tcp(CLIENT_PORT, PUBLISHED, "S");
        given(world, "SYN", &ON_PLAIN, &l4, &l4, true, false)?;
        let (back, l4) = (ip(ON_PLAIN.ingress, OWN), tcp(PUBLISHED, CLIENT_PORT, "SA"));
        let piece = |fragment_offset| Ip { dont_fragment: false, fragment_offset, ..back.clone() };
        let options = {
            let inner = frame(mac(ON_PLAIN.ingress), mac(OWN), &back, &l4);
            let (outer, tunnel) = vxlan(PLAIN, VTEP, 50000, INGRESS, &inner);
            frame(ROUTER_MAC, NODE_MAC, &Ip { options: vec![1; 4], ..outer }, &tunnel)
        };
        let arp = {
            let (outer, tunnel) = vxlan(PLAIN, VTEP, 50000, INGRESS, &[&[0xff; 12][..], &[8, 6], &[0; 28]].concat());
            frame(ROUTER_MAC, NODE_MAC, &outer, &tunnel)
        };
        let good = arriving(PLAIN, &ON_PLAIN, &back, &l4);
        for (what, packet) in [
            ("from another node", arriving(PEER, &ON_PLAIN, &back, &l4)),
            ("from a stranger", arriving(STRANGER, &ON_PLAIN, &back, &l4)),
            ("from another task", arriving(PLAIN, &SECOND, &ip(SECOND.ingress, OWN), &l4)),
            ("from another port", arriving(PLAIN, &ON_PLAIN, &back, &tcp(81, CLIENT_PORT, "SA"))),
            ("to another port", arriving(PLAIN, &ON_PLAIN, &back, &tcp(PUBLISHED, 41, "SA"))),
            ("another protocol", arriving(PLAIN, &ON_PLAIN, &back, &udp(PUBLISHED, CLIENT_PORT))),
            ("to a task of this node", arriving(PLAIN, &ON_PLAIN, &ip(ON_PLAIN.ingress, LOCAL1.ingress), &l4)),
            ("a ping", arriving(PLAIN, &ON_PLAIN, &back, &ping(3))),
            ("a stray piece", arriving(PLAIN, &ON_PLAIN, &piece(3), &l4)),
            (
                "an error about nothing",
                arriving(
                    PLAIN,
                    &ON_PLAIN,
                    &back,
                    &unreachable(PORT, &quote(&ip(OWN, ON_PLAIN.ingress), &udp(7, 8), 8)),
                ),
            ),
            ("with outer options", options),
            ("ARP", arp),
            ("cut off in the inner TCP header", good[..good.len() - 1].to_vec()),
            ("cut off in the inner IP header", good[..70].to_vec()),
            ("cut off in the inner Ethernet header", good[..55].to_vec()),
        ] {
            underlay(world, what, packet, Pass).check(&mut world.harness)?;
        }
        // The connection has timed out.
        world.harness.forget_connections()?;
        underlay(world, "expired", good, Pass).check(&mut world.harness)?;
        // Another VNI of the engine's.
        let inner = frame(mac(ON_PLAIN.ingress), mac(OWN), &back, &l4);
        let (outer, tunnel) = vxlan(PLAIN, VTEP, 50000, FOREIGN, &inner);
        underlay(world, "another VNI", frame(ROUTER_MAC, NODE_MAC, &outer, &tunnel), Pass).check(&mut world.harness)
    })
}

/// Anybody may send frames with the ingress network's VNI.
#[test]
fn what_a_stranger_says_of_a_connection_is_not_noted() -> Result<()> {
    stock(|world| {
        let l4 = tcp(CLIENT_PORT, PUBLISHED, "S");
        given(world, "SYN", &ON_PLAIN, &l4, &l4, true, false)?;
        for complete in [false, true] {
            if complete {
                let l4 = tcp(PUBLISHED, CLIENT_PORT, "SA");
                answered(world, "SYN-ACK", &ON_PLAIN, &l4, &l4)?;
                let l4 = tcp(CLIENT_PORT, PUBLISHED, "K");
                given(world, "handshake done", &ON_PLAIN, &l4, &l4, false, true)?;
            }
            let before = (world.harness.flows()?, world.harness.affinity()?);
            assert_eq!(world.harness.established_flows()?.is_empty(), !complete);
            for from in [[192, 0, 2, 99], PEER] {
                for flags in ["SA", "PA", "FA", "R"] {
                    let l4 = tcp(PUBLISHED, CLIENT_PORT, flags);
                    let packet = arriving(from, &ON_PLAIN, &ip(ON_PLAIN.ingress, OWN), &l4);
                    underlay(world, flags, packet, Pass).check(&mut world.harness)?;
                    assert_eq!((world.harness.flows()?, world.harness.affinity()?), before, "{from:?} {flags}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn clients_in_mid_connection_are_the_engines() -> Result<()> {
    stock(|world| {
        for flags in ["A", "PA", "FA", "R"] {
            let packet = from_client(&tcp(CLIENT_PORT, PUBLISHED, flags));
            underlay(world, "older than the takeover", packet, Pass).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn what_does_not_fit_the_tunnel() -> Result<()> {
    stock(|world| {
        let of_length =
            |len: usize| L4::Udp { sport: CLIENT_PORT, dport: PUBLISHED, payload: vec![7; len - 28], checksum: true };
        let fits = of_length(1450);
        given(world, "just fits", &ON_PLAIN, &fits, &fits, true, false)?;
        let packet = from_client(&of_length(1451));
        let outcome = underlay(world, "too long", packet, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Refuse(DropReason::MtuExceeded)));
        // Without DF the engine's own balancer takes it.
        let packet = frame(ROUTER_MAC, NODE_MAC, &Ip { dont_fragment: false, ..client_ip() }, &of_length(1451));
        underlay(world, "may be fragmented", packet, Pass).check(&mut world.harness)
    })
}

#[test]
fn pieces_of_datagrams_follow_the_first() -> Result<()> {
    stock(|world| {
        let datagram = |sport, dport| L4::Udp { sport, dport, payload: (0..110).collect(), checksum: true };
        let seen = Ip { src: OWN, dst: ON_PLAIN.ingress, ..hop(&client_ip()) };
        let question = pieces(&client_ip(), &datagram(CLIENT_PORT, PUBLISHED), 48);
        let expected = pieces(&seen, &datagram(CLIENT_PORT, PUBLISHED), 48);
        for (number, ((ip, l4), (ip_out, l4_out))) in question.iter().zip(&expected).enumerate() {
            let packet = frame(ROUTER_MAC, NODE_MAC, ip, l4);
            let len = packet.len();
            let mut case = underlay(world, "a piece", packet, Neigh(world.dev.underlay))
                .counts(Counter::FragmentTranslated, len)
                .counts(Counter::MeshForward, len)
                .counts(Counter::Encapsulated, len + 50)
                .becomes(tunnelled(VTEP, PLAIN, OWN, ON_PLAIN.ingress, (ip_out, l4_out)));
            if number == 0 {
                case = case.counts(Counter::MeshFlow, len).counts(Counter::MeshStock, len);
            }
            case.check_tunnelled(&mut world.harness)?;
        }
        let answer = pieces(&ip(ON_PLAIN.ingress, OWN), &datagram(PUBLISHED, CLIENT_PORT), 48);
        let expected = pieces(&routed(VTEP, CLIENT), &datagram(PUBLISHED, CLIENT_PORT), 48);
        for (number, ((ip, l4), (ip_out, l4_out))) in answer.iter().zip(&expected).enumerate() {
            let packet = arriving(PLAIN, &ON_PLAIN, ip, l4);
            let out = frame(ROUTER_MAC, NODE_MAC, ip_out, l4_out);
            // A later one is noted before the tunnel is off.
            let noted = if number == 0 { out.len() } else { packet.len() };
            underlay(world, "a piece back", packet, Neigh(world.dev.underlay))
                .leaves_mark(mark::MESH_REPLY)
                .counts(Counter::FragmentTranslated, noted)
                .counts(Counter::MeshReply, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        let stray = arriving(PEER, &ON_PLAIN, &answer[1].0, &answer[1].1);
        let outcome = underlay(world, "a piece from another node", stray, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Pass));
        Ok(())
    })
}

/// Nobody is told: the kernel turns no packet into its answer that was in a tunnel.
#[test]
fn an_answer_that_has_no_hop_left_is_dropped() -> Result<()> {
    stock(|world| {
        let (question, answer) = (udp(CLIENT_PORT, PUBLISHED), udp(PUBLISHED, CLIENT_PORT));
        given(world, "datagram", &ON_PLAIN, &question, &question, true, false)?;
        for ttl in [0, 1] {
            let packet = arriving(PLAIN, &ON_PLAIN, &Ip { ttl, ..ip(ON_PLAIN.ingress, OWN) }, &answer);
            let outcome = underlay(world, "spent", packet, Pass).run(&mut world.harness)?;
            assert_eq!(outcome.decision, Some(Drop(DropReason::TtlExceeded)));
            assert_eq!(outcome.counters.len(), 0, "{:?}", outcome.counters);
        }
        answered(world, "answer", &ON_PLAIN, &answer, &answer)
    })
}

#[test]
fn errors_follow_their_connection_both_ways() -> Result<()> {
    stock(|world| {
        let (question, answer) = (udp(CLIENT_PORT, PUBLISHED), udp(PUBLISHED, CLIENT_PORT));
        given(world, "datagram", &ON_PLAIN, &question, &question, true, false)?;
        // The task's, and a router's on the way, about the client's datagram.
        let router = [10, 0, 0, 77];
        for (src, told_by) in [(ON_PLAIN.ingress, VTEP), (router, router)] {
            let about = |from, to| unreachable(PORT, &quote(&Ip { ttl: 56, ..ip(from, to) }, &question, 8));
            let packet = arriving(PLAIN, &ON_PLAIN, &ip(src, OWN), &about(OWN, ON_PLAIN.ingress));
            let out = frame(ROUTER_MAC, NODE_MAC, &routed(told_by, CLIENT), &about(CLIENT, VTEP));
            underlay(world, "port unreachable", packet, Neigh(world.dev.underlay))
                .counts(Counter::IcmpTranslated, out.len())
                .counts(Counter::MeshReply, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        // The client's side about the answer.
        answered(world, "answer", &ON_PLAIN, &answer, &answer)?;
        let about = |from, to| error(3, TOO_BIG, 1300, &quote(&ip(from, to), &answer, 8));
        let packet = frame(ROUTER_MAC, NODE_MAC, &client_ip(), &about(VTEP, CLIENT));
        let len = packet.len();
        underlay(world, "fragmentation needed", packet, Neigh(world.dev.underlay))
            .counts(Counter::IcmpTranslated, len)
            .counts(Counter::MeshForward, len)
            .counts(Counter::Encapsulated, len + 50)
            .becomes(shown(&ON_PLAIN, &client_ip(), &about(ON_PLAIN.ingress, OWN)))
            .check_tunnelled(&mut world.harness)
            .map(|_| ())
    })
}

#[test]
fn what_the_agent_has_not_said_is_not_guessed() -> Result<()> {
    stock(|world| {
        (world.state.config.ingress_ip, world.state.config.ingress_vni) = ([0; 4], [0; 4]);
        world.harness.apply(&world.state)?;
        let packet = from_client(&tcp(CLIENT_PORT, PUBLISHED, "S"));
        let outcome = underlay(world, "no address of our own", packet, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Drop(DropReason::NotConfigured)));
        let answer = arriving(PLAIN, &ON_PLAIN, &ip(ON_PLAIN.ingress, [0; 4]), &tcp(PUBLISHED, CLIENT_PORT, "SA"));
        underlay(world, "an answer", answer, Pass).check(&mut world.harness)
    })
}

#[test]
fn a_node_that_changes_sides() -> Result<()> {
    stock(|world| {
        let l4 = udp(CLIENT_PORT, PUBLISHED);
        given(world, "datagram", &ON_PLAIN, &l4, &l4, true, false)?;
        // Hiveway is installed there: what has begun goes on as it has, new connections keep their client's address.
        world.state.vteps.insert(PLAIN, Vtep { hiveway: 1, ..Vtep::default() });
        world.harness.apply(&world.state)?;
        given(world, "the same flow", &ON_PLAIN, &l4, &l4, false, false)?;
        world.harness.set_cursor(&port_set(17, PUBLISHED), 0)?;
        let new = udp(CLIENT_PORT + 1, PUBLISHED);
        let len = from_client(&new).len();
        underlay(world, "a new flow", from_client(&new), Neigh(world.dev.underlay))
            .counts(Counter::MeshFlow, len)
            .counts(Counter::MeshForward, len)
            .counts(Counter::Encapsulated, len + 50)
            .becomes(forwarded(&ON_PLAIN, &client_ip(), &new))
            .check_tunnelled(&mut world.harness)?;
        // And being taken down again: soon nobody will understand mesh frames there.
        world.state.vteps.insert(PLAIN, Vtep { hiveway: 2, ..Vtep::default() });
        world.harness.apply(&world.state)?;
        world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
        given(world, "given anew", &SECOND, &new, &new, true, false)?;
        assert!(world.harness.flows()?.keys().all(|key| key.zone == STOCK_ZONE));
        Ok(())
    })
}

#[test]
fn the_other_interfaces_too() -> Result<()> {
    stock(|world| {
        let (packet, l4) = (ip(NEAR, NODE2), tcp(CLIENT_PORT, PUBLISHED, "S"));
        let arrived = frame(NEAR_MAC, NODE_MAC, &packet, &l4);
        let len = arrived.len();
        golden("SYN", Program::FromClient, world.dev.client, arrived, Neigh(world.dev.underlay))
            .counts(Counter::MeshFlow, len)
            .counts(Counter::MeshStock, len)
            .counts(Counter::MeshForward, len)
            .counts(Counter::Encapsulated, len + 50)
            .becomes(shown(&ON_PLAIN, &packet, &l4))
            .check_tunnelled(&mut world.harness)?;
        let back = tcp(PUBLISHED, CLIENT_PORT, "SA");
        let out = frame(ROUTER_MAC, NODE_MAC, &routed(NODE2, NEAR), &back);
        let packet = arriving(PLAIN, &ON_PLAIN, &ip(ON_PLAIN.ingress, OWN), &back);
        underlay(world, "SYN-ACK", packet, Neigh(world.dev.client))
            .counts(Counter::MeshReply, out.len())
            .becomes(out)
            .check(&mut world.harness)
    })
}
