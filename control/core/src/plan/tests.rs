//! Plans against a tiny simulated kernel.

mod kernel;
mod properties;
mod shared;

use std::collections::BTreeSet;

use super::*;
use crate::{
    desired::{GatewayBridge, HostLink, Interface, LocalTask, OverlayNetwork, OverlaySubnet, Peer, Role},
    observed::{GATEWAY_ALIAS, Inside, Kind, Layer, Link, Namespace},
};
use dataplane_common::addr::Mac;
use kernel::Kernel;

const TUNNEL: Tunnel = Tunnel { local: std::net::Ipv4Addr::new(192, 168, 77, 11), port: 4789, underlay_mtu: 1500 };

const HOST_IP: std::net::Ipv4Addr = crate::settings::DEFAULT_HOST_IP;

/// What mesh frames on the slow path call the other node.
const NODE: Mac = [2, 0x48, 192, 168, 77, 12];

/// Network `app` (VNI 4097) with one remote peer, one local task on it and on the gateway bridge.
fn desired() -> Desired {
    Desired {
        networks: vec![network(4097)],
        tasks: vec![task("web.1", 4097, 3)],
        gateway: Some(GatewayBridge { bridge: "hw-gwbridge".into(), address: "172.18.0.1/16".parse().unwrap() }),
        host_link: Some(HostLink { ip: HOST_IP }),
        ..Desired::default()
    }
}

fn network(vni: u32) -> OverlayNetwork {
    let vtep = [192, 168, 77, 12].into();
    OverlayNetwork {
        id: format!("net{vni}"),
        name: format!("net{vni}"),
        bridge: format!("hwb{vni}"),
        mtu: 1450,
        subnets: vec![OverlaySubnet {
            vni,
            vxlan: format!("hwx{vni}"),
            subnet: "10.0.1.0/24".parse().unwrap(),
            gateway: [10, 0, 1, 1].into(),
            peers: BTreeSet::from([Peer { ip: [10, 0, 1, 9].into(), mac: [2, 0x42, 10, 0, 1, 9], vtep }]),
            flood: BTreeSet::from([vtep]),
            mesh: [(NODE, vtep)].into(),
        }],
    }
}

fn task(id: &str, vni: u32, host: u8) -> LocalTask {
    LocalTask {
        id: id.into(),
        tag: [host; 8],
        netns: None,
        interfaces: vec![
            Interface {
                host: format!("hwv{vni:08x}{host:04x}"),
                container: "eth0".into(),
                bridge: format!("hwb{vni}"),
                address: format!("10.0.1.{host}/24").parse().unwrap(),
                mac: [2, 0x42, 10, 0, 1, host],
                mtu: 1450,
                routes: vec![],
                role: Role::Overlay { net: vni, vni },
            },
            Interface {
                host: format!("hwvffffffff{host:04x}"),
                container: "eth1".into(),
                bridge: "hw-gwbridge".into(),
                address: format!("172.18.0.{host}/16").parse().unwrap(),
                mac: [2, 0x42, 172, 18, 0, host],
                mtu: 1500,
                routes: vec![("0.0.0.0/0".parse().unwrap(), [172, 18, 0, 1].into())],
                role: Role::Gateway,
            },
        ],
    }
}

/// A kernel with the namespaces of `desired`'s tasks, and what was planned for it already done.
fn settled(desired: &Desired) -> Kernel {
    let mut kernel = Kernel::with_namespaces(desired);
    let plan = plan(&kernel.observed, desired, TUNNEL);
    assert_eq!(plan.blocked, []);
    kernel.run(&plan);
    kernel
}

fn again(kernel: &Kernel, desired: &Desired) -> Plan {
    plan(&kernel.observed, desired, TUNNEL)
}

#[test]
fn nothing_wanted_and_nothing_there_is_no_plan() {
    assert_eq!(plan(&Observed::default(), &Desired::default(), TUNNEL), Plan::default());
}

#[test]
fn planning_on_the_result_yields_nothing() {
    let desired = desired();
    assert_eq!(again(&settled(&desired), &desired), Plan::default());
}

#[test]
fn container_facing_links_go_up_last() {
    let desired = desired();
    let plan = plan(&Kernel::with_namespaces(&desired).observed, &desired, TUNNEL);
    for step in &plan.steps {
        if let Action::Set { name, setting: Setting::Up } = &step.action {
            let ours = name.starts_with("hwb") || name.starts_with("hw-");
            assert_eq!(step.stage, if ours { Stage::Prepare } else { Stage::Finish }, "{name}");
        }
    }
}

#[test]
fn a_task_without_namespace_waits_and_the_rest_goes_on() {
    let desired = desired();
    let mut kernel = Kernel::with_namespaces(&desired);
    kernel.observed.namespaces.insert("web.1".into(), Namespace::Missing { path: "/run/netns/web.1".into() });
    let plan = plan(&kernel.observed, &desired, TUNNEL);
    assert!(plan.blocked[0].waiting, "{plan:?}");
    assert!(plan.blocked[0].why.contains("/run/netns/web.1"), "{plan:?}");
    assert!(!plan.steps.iter().any(|step| step.item == Item::Task("web.1".into())));
    kernel.run(&plan);
    assert!(kernel.observed.links.contains_key("hwb4097") && kernel.observed.links.contains_key("hw-gwbridge"));
}

#[test]
fn a_replaced_namespace_gets_fresh_interfaces() {
    let desired = desired();
    let mut kernel = settled(&desired);
    let before = kernel.observed.links["hwv000010010003"].index;
    kernel.observed.namespaces.insert("web.1".into(), Namespace::Present(Inside::default()));
    let plan = again(&kernel, &desired);
    assert_eq!(plan.blocked, []);
    kernel.run(&plan);
    assert_ne!(kernel.observed.links["hwv000010010003"].index, before);
    assert_eq!(again(&kernel, &desired), Plan::default());
}

#[test]
fn foreign_links_are_never_touched() {
    let desired = desired();
    let mut kernel = Kernel::with_namespaces(&desired);
    // Our name, not our alias; and our prefix without an alias.
    kernel.foreign("hwb4097", Kind::Bridge, Some("someone else's"));
    kernel.foreign("hwvdeadbeef", Kind::Veth { peer: 7 }, None);
    kernel.foreign("docker0", Kind::Bridge, None);
    let before = kernel.observed.clone();
    let plan = again(&kernel, &desired);
    assert_eq!(plan.blocked[0].item, Item::Network("net4097".into()));
    kernel.run(&plan);
    for name in ["hwb4097", "hwvdeadbeef", "docker0"] {
        assert_eq!(kernel.observed.links[name], before.links[name], "{name}");
    }
}

#[test]
fn foreign_ports_of_our_bridges_go_and_others_stay() {
    let mut desired = desired();
    desired.networks.push(network(4098));
    let mut kernel = Kernel::with_namespaces(&desired);
    kernel.foreign("hwb4098", Kind::Bridge, Some("someone else's"));
    kernel.run(&again(&kernel, &desired));
    kernel.foreign("docker_gwbridge", Kind::Bridge, None);
    let ports = [("evil0", "hwb4097"), ("evil1", "hw-gwbridge"), ("good0", "docker_gwbridge"), ("good1", "hwb4098")];
    for (name, bridge) in ports {
        kernel.foreign(name, Kind::Veth { peer: 7 }, None);
        kernel.observed.links.get_mut(name).unwrap().master = Some(bridge.into());
    }
    let plan = again(&kernel, &desired);
    let gone: Vec<_> = plan.steps.iter().map(|step| step.item.to_string()).collect();
    assert_eq!(gone, ["foreign interface evil0 on bridge hwb4097", "foreign interface evil1 on bridge hw-gwbridge"]);
    kernel.run(&plan);
    let master = |name: &&str| kernel.observed.links[*name].master.is_some();
    assert!(!["evil0", "evil1"].iter().any(master) && ["good0", "good1"].iter().all(master));
    assert_eq!(again(&kernel, &desired).steps, []);
}

#[test]
fn a_foreign_interface_inside_the_namespace_blocks_the_task_only() {
    let desired = desired();
    let mut kernel = Kernel::with_namespaces(&desired);
    kernel.inside("web.1").links.insert("eth0".into(), Default::default());
    let plan = again(&kernel, &desired);
    assert!(plan.blocked[0].why.contains("eth0") && !plan.blocked[0].waiting, "{plan:?}");
    assert!(!plan.steps.iter().any(|step| step.item == Item::Task("web.1".into())));
    assert!(!plan.steps.is_empty());
}

#[test]
fn an_unnamed_link_of_a_dead_agent_is_adopted() {
    let desired = desired();
    let mut kernel = settled(&desired);
    for name in ["hwb4097", "hwx4097", "hw-gwbridge"] {
        kernel.observed.links.get_mut(name).unwrap().alias = None;
    }
    let plan = again(&kernel, &desired);
    assert_eq!(plan.steps.len(), 3, "{plan:?}");
    kernel.run(&plan);
    assert_eq!(again(&kernel, &desired), Plan::default());
}

#[test]
fn an_adopted_gateway_bridge_is_left_as_it_is() {
    let mut desired = desired();
    desired.gateway.as_mut().unwrap().bridge = "docker_gwbridge".into();
    desired.tasks[0].interfaces[1].bridge = "docker_gwbridge".into();
    let mut kernel = Kernel::with_namespaces(&desired);
    kernel.foreign("docker_gwbridge", Kind::Bridge, None);
    let plan = again(&kernel, &desired);
    kernel.run(&plan);
    assert_eq!(kernel.observed.links["docker_gwbridge"].alias, None);
    assert!(kernel.observed.links["docker_gwbridge"].addresses.is_empty());
    // Nothing of it goes when nothing is wanted any more.
    kernel.run(&again(&kernel, &Desired::default()));
    assert_eq!(kernel.observed.links.keys().collect::<Vec<_>>(), ["docker_gwbridge"]);
}

#[test]
fn a_peer_that_moves_keeps_one_place() {
    let mut desired = desired();
    let mut kernel = settled(&desired);
    let peer = desired.networks[0].subnets[0].peers.pop_first().unwrap();
    let vtep = [192, 168, 77, 13].into();
    desired.networks[0].subnets[0].peers.insert(Peer { vtep, ..peer });
    desired.networks[0].subnets[0].flood = BTreeSet::from([vtep]);
    kernel.run(&again(&kernel, &desired));
    let node = (NODE, [192, 168, 77, 12].into());
    assert_eq!(kernel.observed.links["hwx4097"].fdb, BTreeSet::from([(network::FLOOD, vtep), (peer.mac, vtep), node]));
    assert_eq!(again(&kernel, &desired), Plan::default());
}

/// The nodes of the mesh are forwarding entries like any other, but no neighbours.
#[test]
fn forwarding_entries_of_the_mesh_are_kept() {
    let mut desired = desired();
    let mut kernel = settled(&desired);
    let vtep = std::net::Ipv4Addr::from([192, 168, 77, 12]);
    assert!(kernel.observed.links["hwx4097"].fdb.contains(&(NODE, vtep)));
    assert_eq!(kernel.observed.links["hwx4097"].neighbours.len(), 1);
    for damaged in [None, Some([9, 9, 9, 9].into())] {
        let fdb = &mut kernel.observed.links.get_mut("hwx4097").unwrap().fdb;
        fdb.retain(|(mac, _)| *mac != NODE);
        fdb.extend(damaged.map(|elsewhere| (NODE, elsewhere)));
        kernel.run(&again(&kernel, &desired));
        let fdb: Vec<_> = kernel.observed.links["hwx4097"].fdb.iter().filter(|(mac, _)| *mac == NODE).collect();
        assert_eq!(fdb, [&(NODE, vtep)], "{damaged:?}");
    }
    desired.networks[0].subnets[0].mesh.clear();
    kernel.run(&again(&kernel, &desired));
    assert!(!kernel.observed.links["hwx4097"].fdb.contains(&(NODE, vtep)), "the node has left");
    // One place per MAC: a task's own entry counts.
    let peer = *desired.networks[0].subnets[0].peers.first().unwrap();
    desired.networks[0].subnets[0].mesh.insert(peer.mac, [192, 168, 77, 13].into());
    assert_eq!(again(&kernel, &desired), Plan::default());
}

#[test]
fn a_vxlan_device_with_other_settings_is_made_anew() {
    let desired = desired();
    let mut kernel = settled(&desired);
    let tunnel = Tunnel { port: 4790, ..TUNNEL };
    let plan = plan(&kernel.observed, &desired, tunnel);
    assert_eq!(plan.steps[0].action, Action::DeleteLink { name: "hwx4097".into() });
    kernel.run(&plan);
    assert_eq!(super::plan(&kernel.observed, &desired, tunnel), Plan::default());
}

#[test]
fn our_gateway_bridge_goes_with_the_last_task() {
    let kernel = settled(&desired());
    assert_eq!(kernel.observed.links["hw-gwbridge"].alias.as_deref(), Some(GATEWAY_ALIAS));
    let plan = again(&kernel, &Desired::default());
    let names: Vec<_> = plan
        .steps
        .iter()
        .map(|step| match &step.action {
            Action::DeleteLink { name } => name.as_str(),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(names, ["hw-host", "hwv000010010003", "hwvffffffff0003", "hwx4097", "hw-gwbridge", "hwb4097"]);
}

fn bare(index: u32, kind: Kind, alias: Option<String>, mtu: u32) -> Link {
    Link {
        index,
        kind,
        layer: Layer::Ethernet,
        alias,
        master: None,
        vlan_on: None,
        mtu,
        mac: [0; 6],
        up: false,
        addresses: BTreeSet::new(),
        carrier: true,
        isolated: false,
        fdb: BTreeSet::new(),
        neighbours: Default::default(),
    }
}
