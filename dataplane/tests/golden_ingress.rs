//! The ingress node's decision about a client's packet, made by the loaded programs: the cases of
//! `dataplane-ebpf/core/tests/ingress.rs`, written into maps. `Harness::run` runs `xdp_mesh` first, and compares each
//! packet that XDP carries with TC's result.

#[path = "../../dataplane-ebpf/core/tests/cases/ingress.rs"]
mod cases;
mod support;

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result};
use cases::{Became, Case, HOST_LINK, Node};
use dataplane::{
    Program,
    testing::{Decision, Outcome},
};
use dataplane_common::{
    addr::HOST_PEER_MAC,
    counter::Counter,
    drop_reason::DropReason,
    endpoint::Vtep,
    flow::{Affinity, AffinityKey, flag},
    headers::{ETH_LEN, IPV4_LEN, ipproto},
    mesh::NodeAddress,
    reverse::{LOOPBACK, ReversePath, reverse_mode},
    service::{AllowPrefix, LEFT_BITS, LeftPrefix, PortKey, port_flag},
    state::MapState,
};
use support::{
    golden::golden,
    packets::{Ip, L4, Mac, frame, ip, tcp, udp},
    sandbox::{run, veth},
    world::*,
};

/// Somebody else.
const ANOTHER: [u8; 4] = [198, 51, 100, 99];

/// The node of a case as the agent would write it down. `link`: the index of the host link's far end.
fn state_of(node: &Node, dev: &Devices, usual: &MapState, link: u32) -> MapState {
    let mut state = usual.clone();
    (state.config.host_ifindex, state.config.host_ip) = (link, HOST_LINK);
    let at = |ifindex| NodeAddress { ifindex, classes: node.classes };
    state.node_addresses = BTreeMap::from([(cases::NODE, at(dev.underlay)), (HOST_LINK, at(link))]);
    let PortKey { proto, port, .. } = port_of(node);
    let key = PortKey { proto, _pad: 0, port };
    let backends = if node.served { usual.sets[&port_set(ipproto::TCP, PUBLISHED)].clone() } else { Vec::new() };
    state.sets.insert(port_set(proto, PUBLISHED), backends);
    let whom = |really: bool| if really { node.packet.src } else { ANOTHER };
    if node.port.flags & port_flag::RESTRICTED != 0 {
        state.restricted.insert(key);
        state.allow.insert((64, AllowPrefix { port: key, ip: whom(node.allowed) }));
    }
    if node.port.flags & port_flag::BOUND != 0 {
        state.bound.insert(key, node.port.class);
    }
    let left = node.port.flags & port_flag::LEFT;
    if left != 0 {
        assert_eq!(left, port_flag::LEFT_AT_PORT);
        let prefix = LeftPrefix { port: key, ip: whom(node.left), ..LeftPrefix::default() };
        state.left = Arc::new([(LEFT_BITS + 32, prefix)].into());
        state.left_flags.insert(key, left);
    }
    if node.stock {
        state.vteps.insert(cases::VTEP, Vtep::default());
    }
    state
}

fn port_of(node: &Node) -> PortKey {
    PortKey { proto: node.packet.proto, _pad: 0, port: PUBLISHED.to_be_bytes() }
}

/// The packet of a case.
fn packet_of(node: &Node) -> Vec<u8> {
    const TCP_FLAGS: usize = ETH_LEN + IPV4_LEN + 13;
    let packet = &node.packet;
    let (sport, dport) = (u16::from_be_bytes(packet.sport), u16::from_be_bytes(packet.dport));
    let l4 = match packet.proto {
        ipproto::TCP => tcp(sport, dport, "A"),
        ipproto::UDP => udp(sport, dport),
        proto => {
            let ports = [packet.sport, packet.dport].concat();
            L4::Raw { proto, payload: [&ports, &[0; 8][..], &[packet.flags, 0, 0, 4]].concat() }
        }
    };
    let to = if node.on_host_link { HOST_PEER_MAC } else { NODE_MAC };
    let mut bytes = frame(ROUTER_MAC, to, &Ip { ttl: packet.ttl, ..ip(packet.src, packet.dst) }, &l4);
    if packet.proto == ipproto::TCP {
        // Nobody looks at the checksum.
        bytes[TCP_FLAGS] = packet.flags;
    }
    bytes
}

/// The entry of its connection, made before any that the packet makes.
fn entry_of(known: &Affinity) -> Affinity {
    let last_seen = dataplane::monotonic_now();
    Affinity { last_seen, created: last_seen - 1_000_000_000, tag: REMOTE1.tag, ip: REMOTE1.ingress, ..*known }
}

/// What the programs have made of it, as far as it can be seen from outside: what is no published port's, the stack's
/// or a connection's of this node's own passes.
fn became(outcome: &Outcome) -> Result<Became> {
    let counts = |counter| outcome.counters.contains_key(&counter);
    let opened = counts(Counter::MeshFlow);
    Ok(match outcome.decision.context("no decision")? {
        Decision::Pass if counts(Counter::LeftToHost) => Became::Left,
        Decision::Pass => Became::Passes,
        Decision::Drop(DropReason::NotAllowed) => Became::Refused,
        Decision::Refuse(DropReason::TtlExceeded) => Became::TimeExceeded,
        _ if counts(Counter::MeshForward) && opened => Became::Opens { replaces: false },
        _ if counts(Counter::MeshForward) => Became::Forwarded,
        other => anyhow::bail!("{other:?}"),
    })
}

/// What is wanted, as far as it can be seen.
fn seen(node: &Node, wanted: Became) -> Became {
    match wanted {
        Became::Unpublished | Became::Own => Became::Passes,
        // Whose turn it is finds out that it is nobody's.
        Became::Opens { .. } if !node.served => Became::Passes,
        Became::Opens { .. } => Became::Opens { replaces: false },
        other => other,
    }
}

/// Runs the cases of a table, and returns which XDP has carried.
fn carried(cases: Vec<Case>) -> Result<Vec<&'static str>> {
    let (results, of_all) = std::sync::mpsc::channel();
    world(move |world| {
        let link = veth("hw-mesh", "hw-host")?;
        run(&format!("ip link set hw-mesh address {}", text(HOST_PEER_MAC)))?;
        let usual = world.state.clone();
        for (what, node, wanted) in &cases {
            let case = || format!("{what}: {node:?}");
            world.harness.forget_connections()?;
            let failures = world.harness.apply(&state_of(node, &world.dev, &usual, link))?.failures;
            assert!(failures.is_empty(), "{}: {failures:?}", case());
            refuse(world, node.refused)?;
            // A backend elsewhere has the turn; where Hiveway was taken down, one that is here.
            if node.served {
                world.harness.set_cursor(&port_set(node.packet.proto, PUBLISHED), u64::from(!node.stock))?;
            }
            let packet = &node.packet;
            let ends = ((packet.src, packet.sport), (packet.dst, packet.dport));
            let key = AffinityKey::new(ends.0, ends.1, packet.proto);
            let before = node.known.as_ref().map(entry_of);
            if let Some(entry) = before {
                world.harness.put_affinity(key, entry)?;
            }
            let (program, ifindex) = match node.on_host_link {
                true => (Program::FromClient, link),
                false => (Program::FromUnderlay, world.dev.underlay),
            };
            let outcome = golden(what, program, ifindex, packet_of(node), Decision::Pass).run(&mut world.harness);
            let outcome = outcome.with_context(case)?;
            assert_eq!(became(&outcome).with_context(case)?, seen(node, *wanted), "{}", case());
            let after = world.harness.affinity()?.get(&key).copied();
            match wanted {
                Became::Opens { .. } if node.served => {
                    let opened = after.with_context(case)?;
                    assert!(before.is_none_or(|before| before.created != opened.created), "{}", case());
                }
                Became::Own => assert_ne!(after.with_context(case)?.flags & flag::SEEN, 0, "{}", case()),
                _ => assert_eq!(after.is_some(), before.is_some(), "{}", case()),
            }
            if world.harness.xdp_carried() {
                results.send(*what)?;
            }
        }
        Ok(())
    })?;
    Ok(of_all.iter().collect())
}

/// Has the reverse-path filter of the underlay's interface refuse everybody behind the router, or nobody.
fn refuse(world: &mut World, refuses: bool) -> Result<()> {
    let index = world.dev.underlay;
    let filter = ReversePath { mode: reverse_mode::STRICT, at: index, from: LOOPBACK };
    let filters = if refuses { BTreeMap::from([(index, filter)]) } else { BTreeMap::new() };
    world.harness.keep_filters(&filters)?;
    let action = if refuses { "replace" } else { "flush" };
    run(&format!("ip route {action} 198.51.100.7 via 203.0.113.50 dev eth1"))?;
    Ok(())
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn what_opens_a_connection() -> Result<()> {
    let by_xdp = carried(cases::what_opens_a_connection())?;
    assert_eq!(by_xdp, ["SYN", "SYN with ECN", "datagram"]);
    Ok(())
}

#[test]
fn whom_it_is_for() -> Result<()> {
    assert_eq!(carried(cases::whom_it_is_for())?, [""; 0]);
    Ok(())
}

#[test]
fn where_a_port_is_bound_connections_are_opened_at_its_addresses_only() -> Result<()> {
    let by_xdp = carried(cases::where_a_port_is_bound_connections_are_opened_at_its_addresses_only())?;
    assert_eq!(by_xdp, ["here", "the last class", "a known one elsewhere", "without the flag"]);
    Ok(())
}

#[test]
fn where_no_connection_begins() -> Result<()> {
    let by_xdp = carried(cases::where_no_connection_begins())?;
    assert_eq!(by_xdp, ["from the reserved rest", "from the loopback, in the middle", "it does, of a known one"]);
    Ok(())
}

#[test]
fn who_may_open_connections_to_a_restricted_port() -> Result<()> {
    assert_eq!(carried(cases::who_may_open_connections_to_a_restricted_port())?, ["of a known one"]);
    Ok(())
}

#[test]
fn what_is_left_to_the_host() -> Result<()> {
    assert_eq!(carried(cases::what_is_left_to_the_host())?, [""; 0]);
    Ok(())
}

#[test]
fn what_belongs_to_a_known_connection() -> Result<()> {
    // What is given to a node without Hiveway is translated, by `mesh_stock.rs`: see `golden_mesh_stock.rs`.
    let mut cases = cases::what_belongs_to_a_known_connection();
    cases.retain(|(_, node, _)| node.known.as_ref().is_none_or(|known| known.flags & flag::STOCK == 0));
    assert_eq!(
        carried(cases)?,
        ["a segment", "its SYN again", "a segment after the end", "taken down there, in the middle"]
    );
    Ok(())
}

#[test]
fn whose_time_has_come() -> Result<()> {
    assert_eq!(carried(cases::whose_time_has_come())?, ["2"]);
    Ok(())
}
