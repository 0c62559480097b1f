//! Golden packets of `from_sandbox` and `to_sandbox`: VIPs on a network that the engine carries. LOCAL1 is the client,
//! LOCAL2, REMOTE1 and REMOTE2 serve the VIP. What stays the engine's is in `golden_sandbox_engine`.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Drop, Pass, Refuse, Reply},
};
use dataplane_common::{
    addr::VIRTUAL_MAC,
    counter::Counter,
    drop_reason::DropReason,
    endpoint::{EndpointKey, endpoint_flag},
};
use etherparse::{IpNumber, Ipv4Header, TcpHeader};
use support::{
    engine::*,
    golden::golden,
    icmp::{self, PORT, quote, unreachable},
    packets::{Ip, Ip4, L4, Mac, frame, ip, pieces, ping, pong, tcp, udp},
    world::*,
};

const BACKENDS: [Task; 3] = [LOCAL2, REMOTE1, REMOTE2];

#[test]
fn connections_are_balanced_and_answered_by_the_vip() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        for (port, task) in (3000..).zip(&BACKENDS) {
            goes_to(world, "SYN", task, &tcp(port, 80, "S"), true)?;
            goes_to(world, "SYN again", task, &tcp(port, 80, "S"), false)?;
            comes_from_vip(world, "SYN-ACK", task, &tcp(80, port, "SA"))?;
            promoted(world, "the handshake's last packet", task, &tcp(port, 80, "K"))?;
            goes_to(world, "data", task, &tcp(port, 80, "PA"), false)?;
            comes_from_vip(world, "data back", task, &tcp(80, port, "PA"))?;
            goes_to(world, "FIN", task, &tcp(port, 80, "FA"), false)?;
            comes_from_vip(world, "FIN back", task, &tcp(80, port, "FA"))?;
        }
        for (port, task) in (3000..).zip(&BACKENDS) {
            goes_to(world, "datagram", task, &udp(port, 53), true)?;
            comes_from_vip(world, "answer", task, &udp(53, port))?;
            promoted(world, "next datagram", task, &udp(port, 53))?;
        }
        Ok(())
    })
}

#[test]
fn arp_for_a_vip_is_answered_and_other_arp_is_the_engines() -> Result<()> {
    use etherparse::ArpOperation;
    use support::packets::arp;

    world(|world| {
        let own = (mac(LOCAL1.ip), LOCAL1.ip);
        let all = [0xff; 6];
        // The table says what the engine's balancer has.
        let key = EndpointKey { net: net(APP), ip: VIP };
        world.state.endpoints.get_mut(&key).unwrap().mac = ENGINES;
        world.harness.apply(&world.state)?;
        for (what, eth_dst, vip, answer) in
            [("broadcast", all, VIP, ENGINES), ("refresh", ENGINES, VIP, ENGINES), ("all", all, EMPTY_VIP, VIRTUAL_MAC)]
        {
            for sender in [own, (own.0, [0; 4]), (own.0, [10, 0, 1, 77])] {
                let reply = arp(ArpOperation::REPLY, (answer, vip), sender, sender.0);
                out(world, what, arp(ArpOperation::REQUEST, sender, ([0; 6], vip), eth_dst), Reply(world.dev.veth1))
                    .counts(Counter::ArpReply, reply.len())
                    .becomes(reply)
                    .check(&mut world.harness)?;
            }
        }
        for (what, packet) in [
            ("for a container", arp(ArpOperation::REQUEST, own, ([0; 6], LOCAL2.ip), all)),
            ("for the gateway", arp(ArpOperation::REQUEST, own, ([0; 6], GATEWAY), all)),
            ("gratuitous", arp(ArpOperation::REQUEST, (own.0, VIP), ([0; 6], VIP), all)),
            ("an answer", arp(ArpOperation::REPLY, own, (ENGINES, VIP), ENGINES)),
            ("truncated", arp(ArpOperation::REQUEST, own, ([0; 6], VIP), all)[..30].to_vec()),
        ] {
            out(world, what, packet.clone(), Pass).check(&mut world.harness)?;
            back(world, what, packet).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn pings_of_a_vip_are_answered() -> Result<()> {
    world(|world| {
        let question = ip(LOCAL1.ip, VIP);
        let answer = frame(VIRTUAL_MAC, mac(LOCAL1.ip), &ip(VIP, LOCAL1.ip), &pong(7));
        out(world, "ping", sent(&question, &ping(7)), Reply(world.dev.veth1))
            .counts(Counter::EchoReply, answer.len())
            .becomes(answer)
            .check(&mut world.harness)?;
        out(world, "ping of a container", to(LOCAL2.ip, &ping(7)), Pass).check(&mut world.harness)?;
        out(world, "an unasked answer", to(VIP, &pong(7)), Drop(DropReason::UnsupportedProtocol))
            .check(&mut world.harness)
    })
}

#[test]
fn nobody_serves_is_said_at_once() -> Result<()> {
    world(|world| {
        let question = ip(LOCAL1.ip, EMPTY_VIP);
        let mut reset = TcpHeader::new(80, 1000, 0, 0);
        (reset.rst, reset.ack, reset.acknowledgment_number) = (true, true, 1001);
        let pseudo = Ipv4Header::new(20, 64, IpNumber::TCP, EMPTY_VIP, LOCAL1.ip)?;
        reset.checksum = reset.calc_checksum_ipv4(&pseudo, &[])?;
        let reset = L4::Raw { proto: 6, payload: reset.to_bytes().to_vec() };
        let answer = |ip: Ip, l4: &L4| frame(VIRTUAL_MAC, mac(LOCAL1.ip), &ip, l4);
        out(world, "SYN", sent(&question, &tcp(1000, 80, "S")), Refuse(DropReason::NoBackend))
            .becomes(answer(ip(EMPTY_VIP, LOCAL1.ip), &reset))
            .check(&mut world.harness)?;
        for (what, l4, code) in [("UDP", udp(1000, 53), PORT), ("ping", ping(9), icmp::HOST)] {
            let told = Ip { id: 0, dont_fragment: false, ..ip(EMPTY_VIP, LOCAL1.ip) };
            out(world, what, sent(&question, &l4), Refuse(DropReason::NoBackend))
                .becomes(answer(told, &unreachable(code, &quote(&question, &l4, 8))))
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn a_connection_whose_backend_is_gone_is_reset() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        goes_to(world, "SYN", &REMOTE1, &tcp(1000, 80, "S"), true)?;
        world.state.endpoints.remove(&EndpointKey { net: net(APP), ip: REMOTE1.ip });
        world.harness.apply(&world.state)?;
        let outcome = out(world, "data", to(VIP, &tcp(1000, 80, "PA")), Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Refuse(DropReason::BackendGone)));
        Ok(())
    })
}

#[test]
fn a_task_that_is_its_own_backend_sees_the_vip() -> Result<()> {
    world(|world| {
        let asked = to(SELF_VIP, &tcp(1000, 80, "S"));
        let own = |src, dst, l4: &L4| frame(VIRTUAL_MAC, mac(LOCAL1.ip), &ip(src, dst), l4);
        let seen = own(SELF_VIP, LOCAL1.ip, &tcp(1000, 80, "S"));
        out(world, "SYN", asked.clone(), Reply(world.dev.veth1))
            .counts(Counter::VipFlow, asked.len())
            .counts(Counter::Delivered, asked.len())
            .becomes(seen.clone())
            .check(&mut world.harness)?;
        back(world, "the same, coming in", seen).check(&mut world.harness)?;
        let heard = own(SELF_VIP, LOCAL1.ip, &tcp(80, 1000, "SA"));
        out(world, "SYN-ACK", to(SELF_VIP, &tcp(80, 1000, "SA")), Reply(world.dev.veth1))
            .counts(Counter::Delivered, heard.len())
            .becomes(heard.clone())
            .check(&mut world.harness)?;
        back(world, "the same, coming in", heard).check(&mut world.harness)
    })
}

#[test]
fn the_pieces_of_a_datagram_follow_the_first() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        let datagram = |sport, dport| L4::Udp { sport, dport, payload: (0..110).collect(), checksum: true };
        let question = pieces(&ip(LOCAL1.ip, VIP), &datagram(1000, 53), 48);
        let expected = pieces(&ip(LOCAL1.ip, REMOTE1.ip), &datagram(1000, 53), 48);
        for (number, ((ip, l4), (ip_out, l4_out))) in question.iter().zip(&expected).enumerate() {
            let asked = sent(ip, l4);
            let mut case = out(world, "a piece", asked.clone(), Pass).counts(Counter::FragmentTranslated, asked.len());
            if number == 0 {
                case = case.counts(Counter::VipFlow, asked.len());
            }
            case.becomes(frame(mac(LOCAL1.ip), mac(REMOTE1.ip), ip_out, l4_out)).check(&mut world.harness)?;
        }
        let answer = pieces(&ip(REMOTE1.ip, LOCAL1.ip), &datagram(53, 1000), 48);
        let expected = pieces(&ip(VIP, LOCAL1.ip), &datagram(53, 1000), 48);
        for ((ip, l4), (ip_out, l4_out)) in answer.iter().zip(&expected) {
            let arrived = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), ip, l4);
            back(world, "a piece back", arrived.clone())
                .counts(Counter::FragmentTranslated, arrived.len())
                .becomes(frame(mac(REMOTE1.ip), mac(LOCAL1.ip), ip_out, l4_out))
                .check(&mut world.harness)?;
        }
        // A later piece whose first nobody has seen.
        let (stray, l4) = (Ip { id: 9, ..question[1].0.clone() }, &question[1].1);
        out(world, "a stray piece", sent(&stray, l4), Drop(DropReason::Fragment)).check(&mut world.harness)
    })
}

#[test]
fn errors_follow_their_connection_both_ways() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        let l4 = udp(1000, 53);
        goes_to(world, "datagram", &REMOTE1, &l4, true)?;
        // The backend's about the client's datagram.
        let told = |at: Ip4| {
            let error = unreachable(PORT, &quote(&ip(LOCAL1.ip, at), &l4, 8));
            frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &ip(at, LOCAL1.ip), &error)
        };
        back(world, "port unreachable", told(REMOTE1.ip))
            .counts(Counter::IcmpTranslated, told(VIP).len())
            .becomes(told(VIP))
            .check(&mut world.harness)?;
        // The client's about the VIP's answer.
        let answer = udp(53, 1000);
        comes_from_vip(world, "answer", &REMOTE1, &answer)?;
        let about = |from: Ip4, dst: Mac| {
            let error = unreachable(PORT, &quote(&ip(from, LOCAL1.ip), &answer, 8));
            frame(mac(LOCAL1.ip), dst, &ip(LOCAL1.ip, from), &error)
        };
        out(world, "an error about it", about(VIP, VIRTUAL_MAC), Pass)
            .counts(Counter::IcmpTranslated, about(VIP, VIRTUAL_MAC).len())
            .becomes(about(REMOTE1.ip, mac(REMOTE1.ip)))
            .check(&mut world.harness)
    })
}

#[test]
fn direct_connections_to_a_backend_are_told_apart() -> Result<()> {
    world(|world| {
        world.state.endpoints.get_mut(&EndpointKey { net: net(APP), ip: LOCAL2.ip }).unwrap().flags =
            endpoint_flag::VIP_BACKEND;
        world.harness.apply(&world.state)?;
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        let direct = |l4: &L4| frame(mac(LOCAL1.ip), mac(LOCAL2.ip), &ip(LOCAL1.ip, LOCAL2.ip), l4);
        out(world, "noted", direct(&tcp(2000, 80, "S")), Pass)
            .counts(Counter::DirectNoted, direct(&tcp(2000, 80, "S")).len())
            .check(&mut world.harness)?;
        goes_to(world, "the VIP's", &LOCAL2, &tcp(1000, 80, "S"), true)?;
        let outcome = out(world, "the same port", direct(&tcp(1000, 80, "S")), Pass).run(&mut world.harness)?;
        assert_eq!((outcome.decision, outcome.counters.contains_key(&Counter::DirectTranslated)), (Some(Pass), true));
        let port = u16::from_be_bytes([outcome.packet[34], outcome.packet[35]]);
        assert_eq!(outcome.packet, direct(&tcp(port, 80, "S")));
        assert_ne!(port, 1000);
        let answer = |port| frame(mac(LOCAL2.ip), mac(LOCAL1.ip), &ip(LOCAL2.ip, LOCAL1.ip), &tcp(80, port, "SA"));
        back(world, "its answer", answer(port)).becomes(answer(1000)).check(&mut world.harness)?;
        comes_from_vip(world, "the VIP's answer", &LOCAL2, &tcp(80, 1000, "SA"))
    })
}

#[test]
fn a_backend_in_another_subnet_is_reached_by_the_gateway() -> Result<()> {
    world(|world| {
        let backend = dataplane_common::service::Backend { tag: [13; 8], ip: OTHER_SUBNET, vtep: PEER };
        world.state.sets.insert(vip_set(VIP), vec![backend]);
        world.harness.apply(&world.state)?;
        let l4 = udp(1000, 53);
        // The VIP in that subnet too: the container has sent to its gateway.
        let asked = frame(mac(LOCAL1.ip), ENGINES, &ip(LOCAL1.ip, VIP), &l4);
        out(world, "through the gateway", asked.clone(), Pass)
            .counts(Counter::VipFlow, asked.len())
            .becomes(frame(mac(LOCAL1.ip), ENGINES, &ip(LOCAL1.ip, OTHER_SUBNET), &l4))
            .check(&mut world.harness)?;
        out(world, "no way there", to(VIP, &l4), Drop(DropReason::NoRoute)).check(&mut world.harness)
    })
}

#[test]
fn answers_are_translated_only_for_whom_they_are() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        goes_to(world, "SYN", &REMOTE1, &tcp(1000, 80, "S"), true)?;
        let answer = |src: Ip4, dst: Ip4, l4: &L4| frame(mac(src), mac(dst), &ip(src, dst), l4);
        for (what, packet) in [
            ("another port", answer(REMOTE1.ip, LOCAL1.ip, &tcp(80, 1001, "SA"))),
            ("another task", answer(REMOTE2.ip, LOCAL1.ip, &tcp(80, 1000, "SA"))),
            ("another client", answer(REMOTE1.ip, LOCAL2.ip, &tcp(80, 1000, "SA"))),
            ("a ping's answer", answer(REMOTE1.ip, LOCAL1.ip, &pong(4))),
        ] {
            back(world, what, packet).check(&mut world.harness)?;
        }
        // A piece of the same network's traffic on the container's other interface: another network.
        let twin = golden("on another network", Program::ToSandbox, world.dev.veth1, to(VIP, &tcp(1, 1, "S")), Pass);
        twin.of_sandbox(SANDBOX2).check(&mut world.harness)
    })
}
