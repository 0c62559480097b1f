//! Golden packets of `from_container` and `from_underlay`: headers that are cut off or make no sense.

mod support;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use dataplane::{
    Program,
    testing::Decision::{self, Drop, Pass},
};
use dataplane_common::drop_reason::DropReason;
use support::{
    golden::{Golden, golden},
    packets::{Ip, L4, frame, ip, ping, tcp, udp, vxlan},
    sandbox::send_raw,
    world::*,
};

const IN: Program = Program::FromContainer;

/// LOCAL1 sends.
fn sent(ip: &Ip, l4: &L4) -> Vec<u8> {
    frame(mac(LOCAL1.ip), [0x02, 0, 0, 0, 0, 0x99], ip, l4)
}

fn case(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, IN, world.dev.veth1, packet, decision)
}

#[test]
fn headers_cut_off_are_dropped() -> Result<()> {
    world(|world| {
        // Every length at which a transport header has not begun, has begun, or lacks its last byte.
        for to in [LOCAL2.ip, REMOTE1.ip, VIP] {
            for (l4, header) in [(tcp(1000, 80, "S"), 20), (udp(1000, 80), 8), (ping(1), 8)] {
                let whole = sent(&ip(LOCAL1.ip, to), &l4);
                for len in [14 + 20, 14 + 21, 14 + 20 + header - 1, whole.len() - 1] {
                    if len < whole.len() {
                        let cut = whole[..len].to_vec();
                        case(world, "cut off", cut, Drop(DropReason::Truncated)).check(&mut world.harness)?;
                    }
                }
            }
        }
        Ok(())
    })
}

#[test]
fn ip_headers_cut_off_are_dropped() -> Result<()> {
    world(|world| {
        // BPF_PROG_TEST_RUN takes no IPv4 packet without a whole IPv4 header; devices do.
        world.harness.attach(IN, "hwv1")?;
        let whole = sent(&ip(LOCAL1.ip, LOCAL2.ip), &udp(1000, 53));
        for (sent, len) in (1..).zip([14, 15, 14 + 19]) {
            send_raw("c1", &whole[..len])?;
            let truncated = || Ok::<_, anyhow::Error>(world.harness.drops()?[&DropReason::Truncated].packets);
            let deadline = Instant::now() + Duration::from_secs(60);
            while truncated()? < sent && Instant::now() < deadline {
                sleep(Duration::from_millis(2));
            }
            assert_eq!(truncated()?, sent, "{len} bytes");
        }
        let all: u64 = world.harness.drops()?.values().map(|stat| stat.packets).sum();
        let other = world.harness.drops()?[&DropReason::SpoofedMac].packets;
        // The containers' kernels send router solicitations with MACs of their own; nothing else is dropped.
        assert_eq!(all - other, 3);
        Ok(())
    })
}

#[test]
fn transport_headers_outside_the_ip_packet_are_dropped() -> Result<()> {
    world(|world| {
        // The header says that the packet ends before its transport header does; what follows is padding.
        for to in [LOCAL2.ip, VIP] {
            for (l4, header) in [(tcp(1000, 80, "S"), 20u16), (udp(1000, 80), 8), (ping(1), 8)] {
                for ip_payload in [0, header - 1] {
                    let mut packet = sent(&ip(LOCAL1.ip, to), &l4);
                    shorten(&mut packet, 20 + ip_payload);
                    case(world, "padding as a transport header", packet, Drop(DropReason::Truncated))
                        .check(&mut world.harness)?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn nonsense_in_headers_is_dropped() -> Result<()> {
    world(|world| {
        let good = sent(&ip(LOCAL1.ip, LOCAL2.ip), &tcp(1000, 80, "S"));
        let with = |offset: usize, value: u8| {
            let mut packet = good.clone();
            packet[offset] = value;
            packet
        };
        for (what, packet) in [
            ("IP version 5", with(14, 0x55)),
            ("IP version 0", with(14, 0x05)),
            ("an IP header of 16 bytes", with(14, 0x44)),
            ("an IP header of 0 bytes", with(14, 0x40)),
        ] {
            case(world, what, packet, Drop(DropReason::MalformedIp)).check(&mut world.harness)?;
        }
        for total_len in [0, 19] {
            let mut packet = good.clone();
            packet[16..18].copy_from_slice(&u16::to_be_bytes(total_len));
            case(world, "a total length below the header's", packet, Drop(DropReason::MalformedIp))
                .check(&mut world.harness)?;
        }
        let packet = with(14 + 20 + 12, 0x40);
        case(world, "a TCP header of 16 bytes", packet, Drop(DropReason::MalformedHeader)).check(&mut world.harness)?;
        Ok(())
    })
}

/// A segment from REMOTE1 to LOCAL1, in the tunnel.
fn tunnelled() -> Vec<u8> {
    let inner = frame(mac(REMOTE1.ip), mac(LOCAL1.ip), &ip(REMOTE1.ip, LOCAL1.ip), &tcp(80, 1000, "S"));
    let (outer, l4) = vxlan(PEER, VTEP, 50000, APP, &inner);
    frame(ROUTER_MAC, NODE_MAC, &outer, &l4)
}

fn arrives(world: &World, what: &'static str, packet: Vec<u8>, decision: Decision) -> Golden {
    golden(what, Program::FromUnderlay, world.dev.underlay, packet, decision)
}

#[test]
fn tunnel_headers_cut_off_are_dropped() -> Result<()> {
    world(|world| {
        let whole = tunnelled();
        // The outer packet is as long as it says; what it carries ends inside the VXLAN, Ethernet, IP or TCP header.
        for carried in [0, 7, 8, 8 + 13, 8 + 14, 8 + 14 + 19, 8 + 14 + 20, 8 + 14 + 20 + 13, 8 + 14 + 20 + 19] {
            let L4::Udp { sport, dport, payload, checksum } = vxlan(PEER, VTEP, 50000, APP, &whole[50..]).1 else {
                unreachable!("a tunnel is UDP")
            };
            let payload = payload[..carried].to_vec();
            let packet = frame(ROUTER_MAC, NODE_MAC, &ip(PEER, VTEP), &L4::Udp { sport, dport, payload, checksum });
            arrives(world, "cut off inside the tunnel", packet, Drop(DropReason::Truncated))
                .check(&mut world.harness)?;
        }
        // The frame itself ends before the outer packet does: that is the stack's to judge.
        arrives(world, "the outer packet is cut off", whole[..whole.len() - 1].to_vec(), Pass)
            .check(&mut world.harness)?;
        Ok(())
    })
}

#[test]
fn nonsense_in_tunnel_headers_is_dropped() -> Result<()> {
    world(|world| {
        let good = tunnelled();
        let with = |offset: usize, value: u8| {
            let mut packet = good.clone();
            packet[offset] = value;
            packet
        };
        let (vxlan, inner_ip) = (42, 64);
        for (what, packet, reason) in [
            ("no VNI flag", with(vxlan, 0), DropReason::MalformedHeader),
            ("inner IP version 6 under an IPv4 type", with(inner_ip, 0x65), DropReason::MalformedIp),
            ("an inner IP header of 12 bytes", with(inner_ip, 0x43), DropReason::MalformedIp),
            ("an inner TCP header of 8 bytes", with(inner_ip + 20 + 12, 0x20), DropReason::MalformedHeader),
        ] {
            arrives(world, what, packet, Drop(reason)).check(&mut world.harness)?;
        }
        Ok(())
    })
}

/// Changes the total length in the IPv4 header of a frame, and the checksum with it.
fn shorten(frame: &mut [u8], total_len: u16) {
    let mut header = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap().0;
    header.total_len = total_len;
    header.header_checksum = header.calc_header_checksum();
    frame[14..34].copy_from_slice(&header.to_bytes());
}
