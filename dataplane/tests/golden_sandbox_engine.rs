//! Golden packets of `from_sandbox` and `to_sandbox`: what stays the engine's on a network that it carries.

mod support;

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{Pass, Refuse},
};
use dataplane_common::{drop_reason::DropReason, endpoint::local_flag};
use support::{
    engine::*,
    golden::golden,
    icmp::{PORT, quote, unreachable},
    packets::{L4, ethernet, frame, ip, ping, tcp, udp},
    world::*,
};

#[test]
fn what_is_too_big_for_the_tunnel_is_the_engines_business() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        let big = L4::Udp { sport: 1, dport: 2, payload: vec![7; 1472], checksum: true };
        goes_to(world, "1500 bytes with DF", &REMOTE1, &big, true)
    })
}

#[test]
fn what_began_before_the_takeover_stays_with_the_engines_balancer() -> Result<()> {
    world(|world| {
        for (what, l4) in [("data", tcp(1000, 80, "PA")), ("FIN", tcp(1000, 80, "FA")), ("reset", tcp(1000, 80, "R"))] {
            out(world, what, to(VIP, &l4), Pass).check(&mut world.harness)?;
        }
        let about = unreachable(PORT, &quote(&ip(VIP, LOCAL1.ip), &udp(53, 1000), 8));
        out(world, "an error about it", to(VIP, &about), Pass).check(&mut world.harness)?;
        back(world, "its answer", frame(ENGINES, mac(LOCAL1.ip), &ip(VIP, LOCAL1.ip), &tcp(80, 1000, "PA")))
            .check(&mut world.harness)?;
        assert_eq!(world.harness.flows()?.len(), 0);

        // Where there is no such balancer nobody would ever answer.
        world.state.locals.get_mut(&SANDBOX1).unwrap().flags = local_flag::NO_BALANCER;
        world.harness.apply(&world.state)?;
        let outcome = out(world, "data", to(VIP, &tcp(1000, 80, "PA")), Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Refuse(DropReason::NoFlow)));
        Ok(())
    })
}

#[test]
fn who_leaves_opens_nothing_and_ends_nothing() -> Result<()> {
    use etherparse::ArpOperation;

    world(|world| {
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        goes_to(world, "SYN", &REMOTE1, &tcp(1000, 80, "S"), true)?;
        world.harness.set_cursor(&vip_set(VIP), 1)?;
        goes_to(world, "datagram", &REMOTE1, &udp(1000, 53), true)?;
        world.state.locals.get_mut(&SANDBOX1).unwrap().flags = local_flag::LEAVING;
        world.harness.apply(&world.state)?;
        goes_to(world, "SYN again", &REMOTE1, &tcp(1000, 80, "S"), false)?;
        comes_from_vip(world, "SYN-ACK", &REMOTE1, &tcp(80, 1000, "SA"))?;
        promoted(world, "ACK", &REMOTE1, &tcp(1000, 80, "K"))?;
        goes_to(world, "next datagram", &REMOTE1, &udp(1000, 53), false)?;
        // What the client says is no end.
        goes_to(world, "FIN", &REMOTE1, &tcp(1000, 80, "FA"), false)?;
        goes_to(world, "SYN after FIN", &REMOTE1, &tcp(1000, 80, "S"), false)?;
        comes_from_vip(world, "RST", &REMOTE1, &tcp(80, 1000, "R"))?;
        let request =
            support::packets::arp(ArpOperation::REQUEST, (mac(LOCAL1.ip), LOCAL1.ip), ([0; 6], VIP), [0xff; 6]);
        for (what, packet) in [
            ("the port again", to(VIP, &tcp(1000, 80, "S"))),
            ("a new connection", to(VIP, &tcp(1001, 80, "S"))),
            ("a new flow", to(VIP, &udp(1001, 53))),
            ("to nobody", to(EMPTY_VIP, &udp(1001, 53))),
            ("a ping", to(VIP, &ping(3))),
            ("ARP", request),
        ] {
            out(world, what, packet, Pass).check(&mut world.harness)?;
        }
        Ok(())
    })
}

#[test]
fn everything_else_passes_whatever_it_looks_like() -> Result<()> {
    world_without_backends(|world| {
        let syn = tcp(1000, 80, "S");
        let bad = |at: usize, byte: u8| {
            let mut packet = to(VIP, &syn);
            packet[at] = byte;
            packet
        };
        let tagged = [&to(VIP, &syn)[..12], &[0x81, 0, 0, 5], &to(VIP, &syn)[12..]].concat();
        for (what, packet) in [
            ("to a container", to(LOCAL2.ip, &syn)),
            ("to nobody we know", to([10, 0, 1, 99], &syn)),
            ("to the outside", to([192, 0, 2, 99], &syn)),
            ("from a strange address", frame(mac(LOCAL1.ip), ENGINES, &ip([1, 2, 3, 4], LOCAL2.ip), &syn)),
            ("from a strange MAC", frame(ENGINES, ENGINES, &ip(LOCAL1.ip, LOCAL2.ip), &syn)),
            ("broadcast", frame(mac(LOCAL1.ip), [0xff; 6], &ip(LOCAL1.ip, VIP), &syn)),
            ("multicast", frame(mac(LOCAL1.ip), [1, 0, 0x5e, 0, 0, 1], &ip(LOCAL1.ip, [224, 0, 0, 1]), &syn)),
            ("IPv6", ethernet(mac(LOCAL1.ip), ENGINES, 0x86dd, &[0x60; 60])),
            ("another protocol", ethernet(mac(LOCAL1.ip), ENGINES, 0x88cc, &[7; 60])),
            // In the frame, as a container's own packet socket leaves it; the hook sees that as another protocol.
            ("with a VLAN", tagged),
            ("IP version 5", bad(14, 0x55)),
            ("IHL 4", bad(14, 0x44)),
            ("total length beyond the end", bad(16, 0xff)),
            ("TCP header length 4", bad(46, 0x10)),
        ] {
            out(world, what, packet.clone(), Pass).check(&mut world.harness)?;
            back(world, what, packet).check(&mut world.harness)?;
        }
        // Truncated at every place up to the end of the TCP header; a run takes no frame without its IP header.
        let whole = to(VIP, &syn);
        for len in 34..whole.len() {
            out(world, "truncated", whole[..len].to_vec(), Pass).check(&mut world.harness)?;
        }
        // Nobody has said whose interface it is, or it is another's.
        for id in [0, 0x8000_0099] {
            golden("no such sandbox", Program::FromSandbox, world.dev.veth1, whole.clone(), Pass)
                .of_sandbox(id)
                .check(&mut world.harness)?;
        }
        assert_eq!(world.harness.flows()?.len(), 0);
        Ok(())
    })
}
