//! Golden packets of `from_container` towards a service's virtual address. Those that nobody serves are in
//! `golden_refused`.

mod support;

use std::collections::BTreeMap;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Drop, Peer, Refuse, Reply, SlowPath},
};
use dataplane_common::{
    counter::Counter,
    drop_reason::DropReason,
    endpoint::EndpointKey,
    flow::{Flow, FlowKey},
    service::Backend,
};
use support::{
    golden::golden,
    packets::{Ip, L4, frame, ip, ping, pong, tcp, udp},
    vip::*,
    world::*,
};

/// The backends of [`VIP`], in the order of its set.
const BACKENDS: [Task; 3] = [LOCAL2, REMOTE1, REMOTE2];

#[test]
fn new_flows_are_given_the_backends_in_turn() -> Result<()> {
    world(|world| {
        for syn_or_datagram in [|port| tcp(port, 80, "S"), |port| udp(port, 53)] {
            world.harness.set_cursor(&vip_set(VIP), 0)?;
            for (port, task) in (3000..3009).zip(BACKENDS.iter().cycle()) {
                goes_to(world, "a new flow", VIP, task, &syn_or_datagram(port), true)?;
            }
        }
        Ok(())
    })
}

#[test]
fn every_backend_gets_exactly_its_share() -> Result<()> {
    world(|world| {
        // From wherever the cursor stands, also across the end of its range.
        for start in [0, 1, u64::MAX - 150] {
            world.harness.forget_connections()?;
            world.harness.set_cursor(&vip_set(VIP), start)?;
            for port in 1000..1300 {
                case(world, "one of 300", sent(VIP, &tcp(port, 80, "S")), Decision::Pass).run(&mut world.harness)?;
            }
            let mut shares = BTreeMap::<[u8; 8], u32>::new();
            for flow in world.harness.flows()?.values().filter(|flow| flow.src == LOCAL1.ip) {
                *shares.entry(flow.tag).or_default() += 1;
            }
            if start < u64::MAX - 300 {
                assert_eq!(shares, BACKENDS.iter().map(|task| (task.tag, 100)).collect());
            } else {
                // 2^64 is no multiple of three: one turn is cut short when the cursor wraps, every 10^19 flows.
                assert!(shares.values().all(|share| share.abs_diff(100) <= 1), "{shares:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_flow_keeps_its_backend() -> Result<()> {
    world(|world| {
        for (port, task) in (4000..).zip(&BACKENDS) {
            world.harness.set_cursor(&vip_set(VIP), u64::from(port - 4000))?;
            goes_to(world, "SYN", VIP, task, &tcp(port, 80, "S"), true)?;
            goes_to(world, "SYN again", VIP, task, &tcp(port, 80, "S"), false)?;
            goes_to(world, "data", VIP, task, &tcp(port, 80, "PA"), false)?;
            goes_to(world, "FIN", VIP, task, &tcp(port, 80, "FA"), false)?;
            goes_to(world, "last ACK", VIP, task, &tcp(port, 80, "A"), false)?;
        }
        // The same ports again after the end are another connection. What the client says is none.
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        goes_to(world, "SYN after FIN", VIP, &BACKENDS[0], &tcp(4000, 80, "S"), false)?;
        let reset = frame(mac(LOCAL2.ip), [2; 6], &ip(LOCAL2.ip, LOCAL1.ip), &tcp(80, 4000, "R"));
        golden("RST", Program::FromContainer, world.dev.veth2, reset, Decision::Pass).run(&mut world.harness)?;
        goes_to(world, "SYN after RST", VIP, &BACKENDS[1], &tcp(4000, 80, "S"), true)
    })
}

#[test]
fn a_drained_backend_keeps_its_flows_and_gets_no_new_ones() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        goes_to(world, "SYN", VIP, &REMOTE1, &tcp(1000, 80, "S"), true)?;
        goes_to(world, "datagram", VIP, &REMOTE2, &udp(1000, 53), true)?;
        let only: Vec<Backend> = world.state.sets[&vip_set(VIP)][..1].to_vec();
        world.state.sets.insert(vip_set(VIP), only);
        world.harness.apply(&world.state)?;
        goes_to(world, "data of the drained", VIP, &REMOTE1, &tcp(1000, 80, "PA"), false)?;
        goes_to(world, "datagram of the drained", VIP, &REMOTE2, &udp(1000, 53), false)?;
        for port in 2000..2006 {
            goes_to(world, "new ones", VIP, &LOCAL2, &tcp(port, 80, "S"), true)?;
        }
        Ok(())
    })
}

#[test]
fn when_a_backend_is_gone_tcp_ends_and_udp_moves() -> Result<()> {
    world(|world| {
        // Gone, or its address given to another task: both are another backend.
        for replace in [false, true] {
            world.harness.forget_connections()?;
            let mut state = world.state.clone();
            world.harness.apply(&state)?;
            world.harness.set_cursor(&vip_set(VIP), 1)?;
            goes_to(world, "SYN", VIP, &REMOTE1, &tcp(1000, 80, "S"), true)?;
            world.harness.set_cursor(&vip_set(VIP), 1)?;
            goes_to(world, "datagram", VIP, &REMOTE1, &udp(1000, 53), true)?;

            let key = EndpointKey { net: net(APP), ip: REMOTE1.ip };
            let endpoint = state.endpoints.remove(&key).unwrap();
            if replace {
                state.endpoints.insert(key, dataplane_common::endpoint::Endpoint { tag: [99; 8], ..endpoint });
            }
            let set = vip_set(VIP);
            let rest = state.sets[&set].iter().copied().filter(|backend| backend.tag != REMOTE1.tag).collect();
            state.sets.insert(set, rest);
            world.harness.apply(&state)?;
            world.harness.set_cursor(&vip_set(VIP), 0)?;
            for reason in [DropReason::BackendGone, DropReason::NoFlow] {
                let packet = sent(VIP, &tcp(1000, 80, "PA"));
                let outcome = case(world, "data for the dead", packet, Decision::Pass).run(&mut world.harness)?;
                assert_eq!(outcome.decision, Some(Refuse(reason)));
            }
            goes_to(world, "UDP moves on", VIP, &LOCAL2, &udp(1000, 53), true)?;
            goes_to(world, "so does a new connection", VIP, &REMOTE2, &tcp(1000, 80, "S"), true)?;
        }
        Ok(())
    })
}

#[test]
fn pings_of_vip_and_gateway_are_answered_by_the_node() -> Result<()> {
    world(|world| {
        for target in [VIP, GATEWAY] {
            for options in [vec![], vec![1; 8]] {
                let question = Ip { options, ..ip(LOCAL1.ip, target) };
                let answer = Ip { src: target, dst: LOCAL1.ip, ..question.clone() };
                let out = frame(STALE, mac(LOCAL1.ip), &answer, &pong(77));
                case(world, "ping", frame(mac(LOCAL1.ip), STALE, &question, &ping(77)), Reply(world.dev.veth1))
                    .counts(Counter::EchoReply, out.len())
                    .becomes(out)
                    .check(&mut world.harness)?;
            }
            case(world, "an unasked answer", sent(target, &pong(77)), Drop(DropReason::UnsupportedProtocol))
                .check(&mut world.harness)?;
            // A later piece has no header to tell that it was a ping.
            for (more_fragments, fragment_offset, reason) in
                [(true, 0, DropReason::Fragment), (false, 4, DropReason::UnsupportedProtocol)]
            {
                let piece = Ip { dont_fragment: false, more_fragments, fragment_offset, ..ip(LOCAL1.ip, target) };
                case(world, "a piece of a ping", frame(mac(LOCAL1.ip), STALE, &piece, &ping(77)), Drop(reason))
                    .check(&mut world.harness)?;
            }
        }
        Ok(())
    })
}

#[test]
fn what_a_vip_does_not_serve() -> Result<()> {
    world(|world| {
        // Pieces of a datagram whose first piece never came.
        for l4 in [tcp(1000, 80, "S"), udp(1000, 53)] {
            for (more_fragments, fragment_offset) in [(true, 8), (false, 8)] {
                let piece = Ip { dont_fragment: false, more_fragments, fragment_offset, ..ip(LOCAL1.ip, VIP) };
                let packet = frame(mac(LOCAL1.ip), STALE, &piece, &l4);
                case(world, "a fragment", packet, Drop(DropReason::Fragment)).check(&mut world.harness)?;
            }
        }
        // Nothing goes through the gateway but packets with a destination in the network.
        case(
            world,
            "a connection to the gateway",
            sent(GATEWAY, &tcp(1, 2, "S")),
            Drop(DropReason::UnsupportedProtocol),
        )
        .check(&mut world.harness)?;
        Ok(())
    })
}

#[test]
fn checksums_are_right_after_translation() -> Result<()> {
    world(|world| {
        let datagram = |payload: Vec<u8>, checksum| L4::Udp { sport: 1000, dport: 53, payload, checksum };
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        goes_to(world, "UDP without a checksum", VIP, &LOCAL2, &datagram(vec![1, 2, 3], false), true)?;

        // A payload with which the translated datagram sums up to zero, which is sent as 0xffff (RFC 768).
        let translated = |payload: &[u8]| {
            let packet = support::packets::ipv4(&ip(LOCAL1.ip, LOCAL2.ip), &datagram(payload.to_vec(), true));
            u16::from_be_bytes([packet[26], packet[27]])
        };
        let payload = translated(&[0, 0]).to_be_bytes().to_vec();
        assert_eq!(translated(&payload), 0xffff);
        goes_to(world, "UDP whose checksum becomes zero", VIP, &LOCAL2, &datagram(payload, true), false)?;
        Ok(())
    })
}

#[test]
fn a_task_that_is_its_own_backend() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        for (l4, back) in [(tcp(1000, 80, "S"), tcp(80, 1000, "SA")), (udp(1000, 53), udp(53, 1000))] {
            // It must see the VIP as its client, or it would answer itself past us.
            let asked = sent(SELF_VIP, &l4);
            let out = frame(mac(LOCAL1.ip), mac(LOCAL1.ip), &ip(SELF_VIP, LOCAL1.ip), &l4);
            case(world, "question to itself", asked.clone(), Peer(dev.veth1))
                .counts(Counter::VipFlow, asked.len())
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
            let answer = sent(SELF_VIP, &back);
            let out = frame(mac(LOCAL1.ip), mac(LOCAL1.ip), &ip(SELF_VIP, LOCAL1.ip), &back);
            case(world, "answer to itself", answer, Peer(dev.veth1))
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn two_services_with_one_backend_are_not_crossed() -> Result<()> {
    world(|world| {
        let dev = world.dev;
        let set = vec![Backend { tag: LOCAL2.tag, ip: LOCAL2.ip, vtep: VTEP }];
        world.state.sets.insert(vip_set(VIP), set.clone());
        world.state.sets.insert(vip_set(EMPTY_VIP), set);
        world.harness.apply(&world.state)?;

        goes_to(world, "through the first service", VIP, &LOCAL2, &udp(1000, 53), true)?;
        // The same client port through the second one would look the same to the backend.
        let asked = sent(EMPTY_VIP, &udp(1000, 53));
        let out = case(world, "through the second service", asked, Peer(dev.veth2)).run(&mut world.harness)?;
        assert_eq!(out.decision, Some(Peer(dev.veth2)));
        let sport = u16::from_be_bytes([out.packet[34], out.packet[35]]);
        assert_ne!(sport, 1000, "the backend cannot tell the two flows apart");
        let expected = frame(mac(LOCAL1.ip), mac(LOCAL2.ip), &ip(LOCAL1.ip, LOCAL2.ip), &udp(sport, 53));
        assert_eq!(out.packet, expected);
        for (vip, sport) in [(VIP, 1000), (EMPTY_VIP, sport)] {
            let answer = frame(mac(LOCAL2.ip), STALE, &ip(LOCAL2.ip, LOCAL1.ip), &udp(53, sport));
            let out = frame(mac(LOCAL2.ip), mac(LOCAL1.ip), &ip(vip, LOCAL1.ip), &udp(53, 1000));
            golden("its answer", Program::FromContainer, dev.veth2, answer, Peer(dev.veth1))
                .counts(Counter::Delivered, out.len())
                .becomes(out)
                .check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn a_full_table_refuses_nobody_and_keeps_what_it_holds() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 0)?;
        goes_to(world, "while there is room", VIP, &LOCAL2, &tcp(1000, 80, "S"), true)?;
        for i in 0..u32::MAX {
            let key = FlowKey { zone: [0xee; 4], src: i.to_be_bytes(), proto: 6, ..FlowKey::default() };
            if world.harness.put_flow(key, Flow::default()).is_err() {
                break;
            }
        }
        goes_to(world, "waits outside", VIP, &REMOTE1, &tcp(1001, 80, "S"), true)?;
        goes_to(world, "and goes on there", VIP, &REMOTE1, &tcp(1001, 80, "PA"), false)?;
        goes_to(world, "data of the old one", VIP, &LOCAL2, &tcp(1000, 80, "PA"), false)
    })
}

#[test]
fn a_translated_packet_that_does_not_fit() -> Result<()> {
    world(|world| {
        let l4 = L4::Udp { sport: 1000, dport: 53, payload: vec![0; 1451 - 28], checksum: true };
        let sent = |dont_fragment| frame(mac(LOCAL1.ip), STALE, &Ip { dont_fragment, ..ip(LOCAL1.ip, VIP) }, &l4);
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        // With DF it is answered: see `golden_frag_needed.rs`.
        case(world, "one byte too long", sent(true), Refuse(DropReason::MtuExceeded)).run(&mut world.harness)?;
        // Bridge and vxlan device fragment it on its way to the backend.
        let packet = Ip { dont_fragment: false, ..ip(LOCAL1.ip, REMOTE1.ip) };
        case(world, "may be fragmented", sent(false), SlowPath)
            .becomes(frame(mac(LOCAL1.ip), mac(REMOTE1.ip), &packet, &l4))
            .check(&mut world.harness)
    })
}
