//! The reverse-path filter of the interface where a client's packet arrives is asked before the packet opens a
//! connection.

mod support;

use std::collections::BTreeMap;

use anyhow::Result;
use dataplane::{Program, testing::Decision::Pass};
use dataplane_common::{
    counter::Counter,
    reverse::{EVERY_INTERFACE, LOOPBACK, ReversePath, reverse_mode},
    service::{AllowPrefix, PortKey},
};
use support::{
    golden::golden,
    mesh::*,
    packets::{Ip4, L4, frame, ip, tcp, udp},
    sandbox::run,
    world::*,
};

/// Behind the default route, which leads out of `eth0`.
const FAR: Ip4 = [198, 51, 100, 9];
/// Behind two routers, one at each interface.
const BOTH: [u8; 3] = [198, 51, 102];

/// Keeps this mode for both interfaces, as it is on interfaces that belong to no other.
fn filter(world: &mut World, mode: u32) -> Result<()> {
    let own = |index| (index, ReversePath { mode, at: index, from: LOOPBACK });
    Ok(world.harness.keep_filters(&BTreeMap::from([own(world.dev.underlay), own(world.dev.client)]))?)
}

/// Whether the first packet from `source` opens a connection. What does not is left to the kernel.
fn opens(world: &mut World, (program, ifindex): (Program, u32), source: Ip4, l4: &L4) -> Result<bool> {
    let before = world.harness.pending_affinity()?.len();
    world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
    world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
    let case = golden("a client", program, ifindex, frame(ROUTER_MAC, NODE_MAC, &ip(source, VTEP), l4), Pass);
    let outcome = case.run(&mut world.harness)?;
    let opened = outcome.counters.contains_key(&Counter::MeshFlow);
    assert_eq!(opened, outcome.decision != Some(Pass), "{source:?}: {:?}", outcome.decision);
    assert_eq!(world.harness.pending_affinity()?.len() > before, opened, "{source:?}");
    assert!(outcome.drops.is_empty(), "{source:?}: {:?}", outcome.drops);
    Ok(opened)
}

/// Whether it opens connections at `eth0` and at `eth1`, by either protocol.
fn opens_at(world: &mut World, source: Ip4, port: u16) -> Result<[bool; 2]> {
    let dev = world.dev;
    let mut found = [false; 2];
    for (found, at) in found.iter_mut().zip([(Program::FromUnderlay, dev.underlay), (Program::FromClient, dev.client)])
    {
        let protocols = [tcp(port, PUBLISHED, "S"), udp(port, PUBLISHED)];
        let [tcp, udp] = protocols.map(|l4| opens(world, at, source, &l4));
        let (tcp, udp) = (tcp?, udp?);
        assert_eq!(tcp, udp, "{source:?}");
        *found = tcp;
        // Each of them opens once.
        world.harness.forget_connections()?;
    }
    Ok(found)
}

#[test]
fn strict_and_loose_let_in_what_the_kernel_lets_in() -> Result<()> {
    use reverse_mode::{LOOSE, NONE, STRICT};
    world(|world| {
        run("ip route add blackhole 198.51.103.0/24")?;
        run("ip route add unreachable 198.51.104.0/24")?;
        run("ip route add prohibit 198.51.105.0/24")?;
        run("ip route add throw 198.51.106.0/24")?;
        let everywhere = |mode| if mode == NONE { [true; 2] } else { [false; 2] };
        for mode in [NONE, STRICT, LOOSE] {
            filter(world, mode)?;
            let routed = |at| if mode == STRICT { at } else { [true; 2] };
            for (source, expected) in [
                (FAR, routed([true, false])),
                (PEER, routed([true, false])),
                (NEAR, routed([false, true])),
                ([198, 51, 103, 1], everywhere(mode)),
                ([198, 51, 104, 1], everywhere(mode)),
                ([198, 51, 105, 1], everywhere(mode)),
                // A subnet's broadcast address.
                ([192, 0, 2, 255], everywhere(mode)),
                // The next table has no route.
                ([198, 51, 106, 1], everywhere(mode)),
            ] {
                assert_eq!(opens_at(world, source, 1000)?, expected, "mode {mode}, {source:?}");
            }
        }
        run("ip route del default")?;
        filter(world, LOOSE)?;
        assert_eq!(opens_at(world, FAR, 1000)?, [false; 2], "no route");
        assert_eq!(opens_at(world, NEAR, 1000)?, [true; 2]);
        Ok(())
    })
}

#[test]
fn every_next_hop_of_a_multipath_route_counts() -> Result<()> {
    world(|world| {
        let [a, b, c] = BOTH;
        run(&format!("ip route add {a}.{b}.{c}.0/24 nexthop via 192.0.2.254 nexthop via 203.0.113.50"))?;
        // Of the same metric, and more specific.
        run(&format!("ip route add {a}.{b}.{c}.128/25 via 192.0.2.254"))?;
        filter(world, reverse_mode::STRICT)?;
        for policy in [0, 1] {
            run(&format!("sysctl -qw net.ipv4.fib_multipath_hash_policy={policy}"))?;
            for host in 1..40 {
                assert_eq!(opens_at(world, [a, b, c, host], 1000 + u16::from(host))?, [true; 2], "{host}");
                assert_eq!(opens_at(world, [a, b, c, 128 + host], 1000 + u16::from(host))?, [true, false], "{host}");
            }
        }
        // What the helper is not asked about where an interface does not forward, is found out all the same.
        run("sysctl -qw net.ipv4.conf.eth1.forwarding=0")?;
        assert_eq!(opens_at(world, [a, b, c, 1], 1000)?, [true; 2]);
        assert_eq!(opens_at(world, [a, b, c, 129], 1000)?, [true, false]);
        // Without any answer nobody is cut.
        run("sysctl -qw net.ipv4.conf.lo.forwarding=0")?;
        assert_eq!(opens_at(world, FAR, 1000)?, [true; 2]);
        Ok(())
    })
}

#[test]
fn routing_rules_are_followed() -> Result<()> {
    world(|world| {
        run("ip route add default via 203.0.113.50 table 7")?;
        run("ip rule add iif lo from 192.0.2.1 ipproto udp dport 4000 table 7")?;
        filter(world, reverse_mode::STRICT)?;
        let (client, underlay) = ((Program::FromClient, world.dev.client), (Program::FromUnderlay, world.dev.underlay));
        assert!(opens(world, client, FAR, &udp(4000, PUBLISHED))?, "the rule's way");
        assert!(opens(world, underlay, FAR, &udp(4001, PUBLISHED))?, "no rule of this port's");
        assert!(opens(world, underlay, FAR, &tcp(4000, PUBLISHED, "S"))?, "nor of this protocol's");
        assert!(!opens(world, client, FAR, &tcp(4001, PUBLISHED, "S"))?);
        Ok(())
    })
}

#[test]
fn the_interface_that_the_kernel_sees_is_compared() -> Result<()> {
    world(|world| {
        let (underlay, client) = (world.dev.underlay, world.dev.client);
        let strict = |at| ReversePath { mode: reverse_mode::STRICT, at, from: LOOPBACK };
        // eth1 as a port of eth0, as far as the kernel is concerned.
        world.harness.keep_filters(&BTreeMap::from([(client, strict(underlay))]))?;
        assert_eq!(opens_at(world, FAR, 1000)?, [true; 2], "eth0 has no filter");
        assert_eq!(opens_at(world, NEAR, 1000)?, [true, false]);
        // What conf.all asks holds where nothing else is known.
        world.harness.keep_filters(&BTreeMap::from([(EVERY_INTERFACE, strict(0))]))?;
        assert_eq!(opens_at(world, FAR, 1000)?, [true, false]);
        assert_eq!(opens_at(world, NEAR, 1000)?, [false, true]);
        world.harness.keep_filters(&BTreeMap::new())?;
        assert_eq!(opens_at(world, FAR, 1000)?, [true; 2], "nothing is known");
        Ok(())
    })
}

#[test]
fn what_is_open_is_not_asked_again_and_lists_come_first() -> Result<()> {
    world(|world| {
        let at = (Program::FromClient, world.dev.client);
        assert!(opens(world, at, FAR, &udp(1000, PUBLISHED))?);
        filter(world, reverse_mode::STRICT)?;
        let packet = frame(ROUTER_MAC, NODE_MAC, &ip(FAR, VTEP), &udp(1000, PUBLISHED));
        let goes_on = golden("goes on", at.0, at.1, packet, Pass).run(&mut world.harness)?;
        assert!(goes_on.counters.contains_key(&Counter::MeshForward), "{:?}", goes_on.decision);
        assert!(!opens(world, at, FAR, &udp(1001, PUBLISHED))?);
        // Who is not on the list is dropped here: the host's own path does not know the list.
        let port = PortKey { proto: 17, _pad: 0, port: PUBLISHED.to_be_bytes() };
        world.state.restricted.insert(port);
        world.state.allow.insert((32 + 32, AllowPrefix { port, ip: PEER }));
        world.harness.apply(&world.state)?;
        assert!(!opens(world, at, PEER, &udp(1001, PUBLISHED))?, "a forged address on the list");
        let packet = frame(ROUTER_MAC, NODE_MAC, &ip(FAR, VTEP), &udp(1001, PUBLISHED));
        let outcome = golden("not allowed", at.0, at.1, packet, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.drops.len(), 1, "{:?}", outcome.decision);
        Ok(())
    })
}

#[test]
fn where_sources_are_checked_tc_opens_and_xdp_goes_on() -> Result<()> {
    world(|world| {
        let carried = |world: &mut World, port: u16| -> Result<bool> {
            world.harness.set_cursor(&port_set(17, PUBLISHED), 1)?;
            underlay(world, "a datagram", from_client(&udp(port, PUBLISHED)), Pass).run(&mut world.harness)?;
            Ok(world.harness.xdp_carried())
        };
        assert!(carried(world, 1000)?, "no filter");
        for (mode, port) in [(reverse_mode::STRICT, 1001), (reverse_mode::LOOSE, 1002)] {
            filter(world, mode)?;
            assert!(!carried(world, port)?, "the first packet");
            assert!(carried(world, port)?, "the second");
        }
        filter(world, reverse_mode::NONE)?;
        assert!(carried(world, 1003)?, "no filter");
        Ok(())
    })
}
