//! Who may use a published port, and with which address a task sees its clients.

mod support;

use anyhow::Result;
use dataplane::testing::Decision::{Drop, Neigh, Pass, Peer};
use dataplane_common::{
    counter::Counter,
    drop_reason::DropReason,
    mesh::{ClientPrefix, ClientRule, TargetKey, shown_as, target_flag},
    service::{AllowPrefix, PortKey},
};
use support::{
    mesh::*,
    packets::{Ip4, L4, frame, ip, tcp, udp},
    world::*,
};

const PORT: PortKey = PortKey { proto: 6, _pad: 0, port: PUBLISHED.to_be_bytes() };
const GATEWAY_IP: Ip4 = [172, 18, 0, 1];

fn client(ip4: Ip4, l4: &L4) -> Vec<u8> {
    frame(ROUTER_MAC, NODE_MAC, &ip(ip4, VTEP), l4)
}

#[test]
fn only_listed_clients_open_connections_to_a_restricted_port() -> Result<()> {
    world(|world| {
        world.state.restricted.insert(PORT);
        world.state.allow.insert((32 + 24, AllowPrefix { port: PORT, ip: [198, 51, 100, 0] }));
        world.state.allow.insert((32 + 32, AllowPrefix { port: PORT, ip: [203, 0, 113, 7] }));
        world.state.deny.insert((32 + 25, AllowPrefix { port: PORT, ip: [198, 51, 100, 128] }));
        world.harness.apply(&world.state)?;
        assert!(world.harness.apply(&world.state)?.maps.is_empty(), "a second time changes nothing");
        for (source, allowed) in [
            ([198, 51, 100, 0], true),
            ([198, 51, 100, 127], true),
            ([198, 51, 100, 128], false),
            ([198, 51, 100, 255], false),
            ([198, 51, 101, 0], false),
            ([198, 51, 99, 255], false),
            ([203, 0, 113, 7], true),
            ([203, 0, 113, 8], false),
        ] {
            let outcome =
                underlay(world, "SYN", client(source, &tcp(1000, PUBLISHED, "S")), Pass).run(&mut world.harness)?;
            let dropped = outcome.decision == Some(Drop(DropReason::NotAllowed));
            assert_eq!(dropped, !allowed, "{source:?}: {:?}", outcome.decision);
            assert_eq!(outcome.counters.contains_key(&Counter::MeshFlow), allowed);
        }
        // The list is that port's and protocol's.
        let outsider = client([203, 0, 113, 8], &udp(1000, PUBLISHED));
        let outcome = underlay(world, "UDP", outsider, Pass).run(&mut world.harness)?;
        assert!(outcome.counters.contains_key(&Counter::MeshFlow));
        Ok(())
    })
}

#[test]
fn a_restricted_port_without_a_list_is_closed_and_old_connections_go_on() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
        given_to(world, "before", &REMOTE1, &tcp(1000, PUBLISHED, "S"), true)?;
        world.state.restricted.insert(PORT);
        world.harness.apply(&world.state)?;
        underlay(world, "another", from_client(&tcp(1001, PUBLISHED, "S")), Drop(DropReason::NotAllowed))
            .check(&mut world.harness)?;
        given_to(world, "goes on", &REMOTE1, &tcp(1000, PUBLISHED, "PA"), false)?;
        world.state.restricted.clear();
        world.harness.apply(&world.state)?;
        given_to(world, "open again", &REMOTE2, &tcp(1001, PUBLISHED, "S"), true)
    })
}

#[test]
fn a_bound_port_opens_connections_at_its_addresses_alone() -> Result<()> {
    world(|world| {
        world.harness.set_cursor(&port_set(6, PUBLISHED), 1)?;
        given_to(world, "before", &REMOTE1, &tcp(1000, PUBLISHED, "S"), true)?;
        world.state.bound.insert(PORT, 3);
        for (address, classes) in [(VTEP, !(1 << 3)), (NODE2, 1 << 3)] {
            world.state.node_addresses.get_mut(&address).expect("an address of the node").classes = classes;
        }
        world.harness.apply(&world.state)?;
        underlay(world, "to another address", from_client(&tcp(1001, PUBLISHED, "S")), Pass)
            .check(&mut world.harness)?;
        given_to(world, "goes on", &REMOTE1, &tcp(1000, PUBLISHED, "PA"), false)?;
        let opened = |world: &mut World, l4: &L4| -> Result<bool> {
            let packet = frame(ROUTER_MAC, NODE_MAC, &ip(CLIENT, NODE2), l4);
            let outcome = underlay(world, "to its address", packet, Pass).run(&mut world.harness)?;
            Ok(outcome.counters.contains_key(&Counter::MeshFlow))
        };
        assert!(opened(world, &tcp(1002, PUBLISHED, "S"))?);
        // The other protocol's port is not bound.
        let udp = underlay(world, "UDP", from_client(&udp(1003, PUBLISHED)), Pass).run(&mut world.harness)?;
        assert!(udp.counters.contains_key(&Counter::MeshFlow));
        // In a class that no address is of it answers nowhere.
        world.state.bound.insert(PORT, 31);
        world.harness.apply(&world.state)?;
        assert!(!opened(world, &tcp(1004, PUBLISHED, "S"))?);
        world.state.bound.clear();
        world.harness.apply(&world.state)?;
        world.harness.set_cursor(&port_set(6, PUBLISHED), 2)?;
        given_to(world, "open again", &REMOTE2, &tcp(1001, PUBLISHED, "S"), true)
    })
}

/// The source address that LOCAL1 sees of a client, whose packet came through `ingress`.
fn seen(world: &mut World, source: Ip4, ingress: Ip4, l4: &L4) -> Result<(Ip4, u16)> {
    let packet =
        if ingress == VTEP { client(source, l4) } else { arriving(ingress, &LOCAL1, &ip(source, ingress), l4) };
    world.harness.set_cursor(&port_set(6, PUBLISHED), 0)?;
    let outcome = underlay(world, "a client", packet, Pass).run(&mut world.harness)?;
    assert_eq!(outcome.decision, Some(Peer(world.dev.gw1)), "{:?}", outcome.drops);
    let port = u16::from_be_bytes([outcome.packet[34], outcome.packet[35]]);
    Ok((outcome.packet[26..30].try_into()?, port))
}

#[test]
fn clients_whose_replies_would_stay_inside_are_shown_with_a_nodes_address() -> Result<()> {
    world(|world| {
        let prefix = |ip| ClientPrefix { ifindex: world.dev.gw1.to_be_bytes(), ip };
        let rule = |shown_as| ClientRule { shown_as, ..ClientRule::default() };
        world.state.config.gateway_ip = GATEWAY_IP;
        world.state.clients.insert((32 + 16, prefix([172, 18, 0, 0])), rule(shown_as::INGRESS_NODE));
        world.state.clients.insert((32 + 24, prefix([10, 0, 1, 0])), rule(shown_as::GATEWAY));
        world.harness.apply(&world.state)?;
        let syn = tcp(1000, PUBLISHED, "S");
        for (source, ingress, shown) in [
            (CLIENT, VTEP, CLIENT),
            (CLIENT, PEER, CLIENT),
            ([172, 18, 200, 9], VTEP, VTEP),
            ([172, 18, 200, 9], PEER, PEER),
            ([10, 0, 1, 77], VTEP, GATEWAY_IP),
            ([10, 0, 1, 78], PEER, GATEWAY_IP),
            ([10, 0, 3, 77], PEER, [10, 0, 3, 77]),
        ] {
            assert_eq!(seen(world, source, ingress, &syn)?.0, shown, "{source:?} through {ingress:?}");
        }
        // The same port of another client in that subnet: told apart by the port.
        let (first, second) = (seen(world, [10, 0, 1, 80], PEER, &syn)?, seen(world, [10, 0, 1, 81], PEER, &syn)?);
        assert_eq!((first.0, second.0), (GATEWAY_IP, GATEWAY_IP));
        assert_ne!(first.1, second.1);
        // The answer goes to the client itself.
        let answer = frame(mac(GW1), [2; 6], &ip(GW1, GATEWAY_IP), &tcp(TARGET_PORT, second.1, "SA"));
        let outcome = gateway(world, "SYN-ACK", answer, Neigh(world.dev.underlay)).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Neigh(world.dev.underlay)));
        let inner = &outcome.packet[50..];
        assert_eq!(inner[26..34], [PEER, [10, 0, 1, 81]].concat());
        assert_eq!(inner[34..38], [PUBLISHED.to_be_bytes(), 1000u16.to_be_bytes()].concat());
        Ok(())
    })
}

#[test]
fn a_port_published_in_host_mode_is_for_this_nodes_clients_only() -> Result<()> {
    world(|world| {
        let key = TargetKey { ip: LOCAL1.ingress, port: PUBLISHED.to_be_bytes(), proto: 6, _pad: 0 };
        world.state.targets.get_mut(&key).unwrap().flags = target_flag::LOCAL_ONLY;
        world.harness.apply(&world.state)?;
        let packet = arriving(PEER, &LOCAL1, &ip(CLIENT, PEER), &tcp(1000, PUBLISHED, "S"));
        let outcome = underlay(world, "from another node", packet, Pass).run(&mut world.harness)?;
        assert_eq!(outcome.decision, Some(Drop(DropReason::MeshNoTarget)));
        assert_eq!(seen(world, CLIENT, VTEP, &tcp(1000, PUBLISHED, "S"))?, (CLIENT, 1000));
        Ok(())
    })
}
