//! Contents of the BPF maps that follow from captures and from small tables.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use dataplane_common::{
    ABI_VERSION,
    addr::VIRTUAL_MAC,
    config::Config,
    endpoint::{Endpoint, EndpointKey, Local, VniInfo, endpoint_flag::VIP_BACKEND, kind, local_flag},
    mesh::{NodeAddress, Target, TargetKey},
    service::Backend,
    state::SetKey,
};
use hiveway_core::{GatewayAddresses, Settings, derive, map_state, names, tag};
use support::{
    BASE, base_with, capture, facts,
    maps::{APP1, INGRESS, kinds, kinds_of, maps, maps_with, port, set, table, vip},
};

const TASK_N1: &str = "zq82gd7vkhc9f1sdf7iogk7o2";
const NET_APP1: &str = "mg4mgvyj2uov4s1ot8n37cytu";
const NET_INGRESS: &str = "tborf1j99y7jea326xn8grrbv";

/// One node, entry by entry.
#[test]
fn three_replicas_on_n1() {
    let model = capture("02b-web3-running").model;
    let mut index = BTreeMap::new();
    let state = maps_with(&model, "n1", |_, facts| {
        facts.node_addresses.insert(Ipv4Addr::new(203, 0, 113, 7), 3);
        index.clone_from(&facts.ifindex);
    });
    let (app1, ingress) = (index[&names::veth(TASK_N1, NET_APP1)], index[&names::veth(TASK_N1, NET_INGRESS)]);
    let gateway = index[&names::veth(TASK_N1, names::GATEWAY)];
    let own = [192, 168, 77, 11];

    assert_eq!(
        state.config,
        Config {
            abi: ABI_VERSION,
            underlay_ifindex: 2,
            vtep: own,
            underlay_ip: own,
            mesh_vni: [0, 0xff, 0xff, 0xfe],
            vxlan_port: [0x12, 0xb5],
            underlay_mtu: 1500,
            underlay_mac: [0x52, 0x54, 0, 0, 0, 1],
            gateway_ip: [172, 18, 0, 1],
            ingress_net: INGRESS,
            ingress_vxlan_ifindex: index["hwx4096"],
            ..Config::default()
        }
    );
    let local = |net, ip: [u8; 4]| Local {
        tag: tag(TASK_N1),
        net,
        vni: net,
        ip,
        mac: [2, 0x42, ip[0], ip[1], ip[2], ip[3]],
        flags: if net == [0; 4] { 0 } else { local_flag::VIP_BACKEND },
        _pad: 0,
    };
    let expected = [
        (app1, local(APP1, [10, 0, 1, 4])),
        (ingress, local(INGRESS, [10, 0, 0, 7])),
        (gateway, local([0; 4], [172, 18, 0, 2])),
        // The vxlan devices: only their network, for the sender check on the slow path.
        (index["hwx4097"], Local { net: APP1, vni: APP1, ..Local::default() }),
        (index["hwx4096"], Local { net: INGRESS, vni: INGRESS, ..Local::default() }),
    ];
    assert_eq!(state.locals, BTreeMap::from(expected));
    let vni = |net, vni: u32| VniInfo { net, vxlan_ifindex: index[&names::vxlan(vni)] };
    assert_eq!(state.vnis, BTreeMap::from([(APP1, vni(APP1, 4097)), (INGRESS, vni(INGRESS, 4096))]));
    let vteps: Vec<_> = state.vteps.iter().map(|(ip, v)| (ip[3], v.hiveway)).collect();
    assert_eq!(vteps, [(12, 1), (13, 1)]);
    assert_eq!(
        state.node_addresses,
        BTreeMap::from([
            (own, NodeAddress { ifindex: 2, ..NodeAddress::default() }),
            ([203, 0, 113, 7], NodeAddress { ifindex: 3, ..NodeAddress::default() }),
        ])
    );

    let endpoint = |last: u8| state.endpoints[&EndpointKey { net: APP1, ip: [10, 0, 1, last] }];
    let common = Endpoint { vni: APP1, ..Endpoint::default() };
    assert_eq!(endpoint(1), Endpoint { kind: kind::GATEWAY, mac: VIRTUAL_MAC, ..common });
    assert_eq!(endpoint(2), Endpoint { kind: kind::VIP, mac: VIRTUAL_MAC, ..common });
    let task = Endpoint { tag: tag(TASK_N1), mac: [2, 0x42, 10, 0, 1, 4], vtep: own, flags: VIP_BACKEND, ..common };
    assert_eq!(endpoint(4), Endpoint { kind: kind::LOCAL, ifindex: app1, ..task });
    let remote = Endpoint { tag: tag("5kjv4jsfuqb08390uuegqss8z"), mac: [2, 0x42, 10, 0, 1, 3], ..task };
    assert_eq!(endpoint(3), Endpoint { kind: kind::REMOTE, vtep: [192, 168, 77, 13], ..remote });
    assert_eq!(
        kinds(&state, APP1),
        kinds_of([
            ("10.0.1.1", kind::GATEWAY),
            ("10.0.1.2", kind::VIP),
            ("10.0.1.3", kind::REMOTE),
            ("10.0.1.4", kind::LOCAL),
            ("10.0.1.5", kind::REMOTE),
        ])
    );
    assert_eq!(
        kinds(&state, INGRESS),
        kinds_of([
            ("10.0.0.1", kind::GATEWAY),
            ("10.0.0.5", kind::VIP),
            ("10.0.0.6", kind::REMOTE),
            ("10.0.0.7", kind::LOCAL),
            ("10.0.0.8", kind::REMOTE),
        ])
    );

    let on_app1 = ["10.0.1.3@13", "10.0.1.4@11", "10.0.1.5@12"];
    assert_eq!(set(&state, vip(APP1, [10, 0, 1, 2])), on_app1);
    let on_ingress = ["10.0.0.6@13", "10.0.0.7@11", "10.0.0.8@12"];
    assert_eq!(set(&state, vip(INGRESS, [10, 0, 0, 5])), on_ingress);
    assert_eq!(set(&state, port(6, 8080)), on_ingress);
    assert_eq!(state.sets.len(), 3);
    assert_eq!(state.sets[&port(6, 8080)][1], Backend { tag: tag(TASK_N1), ip: [10, 0, 0, 7], vtep: own });

    let key = TargetKey { ip: [10, 0, 0, 7], port: 8080u16.to_be_bytes(), proto: 6, _pad: 0 };
    let target = Target {
        tag: tag(TASK_N1),
        ifindex: gateway,
        ip: [172, 18, 0, 2],
        port: 80u16.to_be_bytes(),
        mac: [2, 0x42, 172, 18, 0, 2],
        ..Target::default()
    };
    assert_eq!(state.targets, BTreeMap::from([(key, target)]));
}

/// A node without tasks still answers published ports: it knows who the backends are, has the mesh's slow path, and
/// nothing of other networks.
#[test]
fn ingress_node_without_tasks() {
    let state = maps(&capture("06b-scale-2-done").model, "n2");
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.20@13", "10.0.0.25@11"]);
    let known = [("10.0.0.1", kind::GATEWAY), ("10.0.0.20", kind::REMOTE), ("10.0.0.25", kind::REMOTE)];
    assert_eq!(kinds(&state, INGRESS), kinds_of(known));
    assert!(kinds(&state, APP1).is_empty());
    assert_eq!(state.vnis.keys().collect::<Vec<_>>(), [&INGRESS]);
    assert_eq!(state.locals.values().map(|l| l.net).collect::<Vec<_>>(), [INGRESS], "the vxlan device alone");
    assert_eq!(state.config.gateway_ip, [0; 4]);
    assert_eq!(
        (state.config.ingress_net, state.config.ingress_vxlan_ifindex),
        (INGRESS, state.vnis[&INGRESS].vxlan_ifindex)
    );
    assert_eq!(state.sets.len(), 1, "no VIP of networks that the node has not joined");
}

#[test]
fn draining_tasks_keep_what_flows_need() {
    let state = maps(&capture("05b-drain-n3-done").model, "n3");
    let active = ["10.0.1.12@11", "10.0.1.14@12", "10.0.1.15@12", "10.0.1.16@11"];
    assert_eq!(set(&state, vip(APP1, [10, 0, 1, 2])), active);
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.12@11", "10.0.0.14@12", "10.0.0.15@12", "10.0.0.16@11"]);
    // xa83f and xuyhq drain on this node.
    let app1 = kinds(&state, APP1);
    assert_eq!((app1["10.0.1.13"], app1["10.0.1.17"]), (kind::LOCAL, kind::LOCAL));
    let targets: Vec<_> = state.targets.keys().map(|k| Ipv4Addr::from(k.ip).to_string()).collect();
    assert_eq!(targets, ["10.0.0.13", "10.0.0.17"]);
    // On the others they are still known, but the replacements get no flows yet.
    let n1 = kinds(&maps(&capture("05b-drain-n3-done").model, "n1"), APP1);
    assert_eq!((n1["10.0.1.13"], n1["10.0.1.18"], n1["10.0.1.19"]), (kind::REMOTE, kind::REMOTE, kind::LOCAL));
    assert!(!n1.contains_key("10.0.1.3"), "ended tasks are gone");
}

#[test]
fn services_without_backends_keep_their_sets() {
    let state = maps(&capture("02a-web3-starting").model, "n1");
    let keys = [vip(APP1, [10, 0, 1, 2]), vip(INGRESS, [10, 0, 0, 5]), port(6, 8080)];
    assert_eq!(state.sets, keys.map(|key| (key, Vec::new())).into());
    // Also with nobody at all: pend and crash.
    let state = maps(&capture("20-plugin-network-global").model, "n1");
    for last in [41, 43, 46] {
        assert_eq!(set(&state, vip(APP1, [10, 0, 1, last])), [""; 0]);
    }
}

#[test]
fn kinds_of_services() {
    let state = maps(&capture("16-attachable-standalone-multinet").model, "n1");
    let ports: BTreeSet<_> = state.sets.keys().filter(|k| matches!(k, SetKey::Port { .. })).copied().collect();
    // 8081 is published in host mode, 30000 was assigned by the manager.
    let everywhere = [port(6, 8080), port(6, 9090), port(17, 9090), port(6, 30000), port(17, 5353)];
    assert_eq!(ports, everywhere.into_iter().chain([port(6, 8081)]).collect());
    assert_eq!(set(&state, port(17, 5353)), ["10.0.0.27@12", "10.0.0.28@11"]);
    assert_eq!(set(&state, port(6, 30000)), ["10.0.0.30@12", "10.0.0.31@13"]);
    assert_eq!(set(&state, vip(APP1, [10, 0, 1, 31])), ["10.0.1.32@13", "10.0.1.33@11", "10.0.1.34@12"], "host mode");
    // The mode dnsrr has no VIP; its tasks are endpoints all the same.
    let rr: Vec<_> =
        kinds(&state, APP1).into_iter().filter(|(ip, _)| ["10.0.1.27", "10.0.1.29"].contains(&&**ip)).collect();
    assert_eq!(rr, [("10.0.1.27".to_owned(), kind::REMOTE), ("10.0.1.29".to_owned(), kind::LOCAL)]);
}

/// One network with two subnets: one identity, two VNIs, two gateways.
#[test]
fn two_subnets() {
    let state = maps(&capture("20-plugin-network-global").model, "n1");
    let (first, second) = (4105u32.to_be_bytes(), 4106u32.to_be_bytes());
    assert_eq!((state.vnis[&first].net, state.vnis[&second].net), (first, first));
    assert_eq!(
        kinds(&state, first),
        kinds_of([
            ("10.60.0.1", kind::GATEWAY),
            ("10.60.0.2", kind::REMOTE),
            ("10.60.0.3", kind::LOCAL),
            ("10.60.1.1", kind::GATEWAY),
            ("10.60.1.2", kind::VIP),
        ])
    );
    let vni = |ip: [u8; 4]| state.endpoints[&EndpointKey { net: first, ip }].vni;
    assert_eq!((vni([10, 60, 0, 2]), vni([10, 60, 1, 2]), vni([10, 60, 1, 1])), (first, second, second));
    assert_eq!(set(&state, vip(first, [10, 60, 1, 2])), ["10.60.0.2@12", "10.60.0.3@11"]);
}

#[test]
fn nothing_of_encrypted_networks() {
    let state = maps(&capture("13-encrypted-global").model, "n1");
    let enc = 4099u32.to_be_bytes();
    assert!(kinds(&state, enc).is_empty() && !state.vnis.contains_key(&enc));
    assert!(!state.sets.keys().any(|k| matches!(k, SetKey::Vip { net, .. } if *net == enc)));
}

#[test]
fn node_down() {
    let state = maps(&capture("30a-n3-down-mid").model, "n1");
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.25@11"]);
    assert_eq!(set(&state, vip(APP1, [10, 0, 1, 2])), ["10.0.1.26@11"]);
    assert_eq!(kinds(&state, APP1)["10.0.1.20"], kind::REMOTE, "still known: it may be alive");
    assert!(state.vteps.contains_key(&[192, 168, 77, 13]), "and what it sends is its own");
    for keep in ["unknown", "disconnected"] {
        let model = table(&base_with("{id: n2, hostname: n2,", &format!("{{id: n2, hostname: n2, state: {keep},")));
        assert_eq!(set(&maps(&model, "n1"), port(6, 8080)), ["10.0.0.6@11", "10.0.0.7@12"], "{keep} counts as ready");
    }
}

#[test]
fn node_without_hiveway() {
    let model = table(&base_with(
        "hostname: n2,",
        "hostname: n2, dataplane: none, addresses: {app: 10.0.1.6, ingress: 10.0.0.9},",
    ));
    let state = maps(&model, "n1");
    assert_eq!(state.vteps[&[192, 168, 77, 12]].hiveway, 0);
    assert_eq!(set(&state, vip(APP1, [10, 0, 1, 2])), ["10.0.1.3@11", "10.0.1.4@12"]);
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.6@11"]);
    let node = state.endpoints[&EndpointKey { net: APP1, ip: [10, 0, 1, 6] }];
    let expected = Endpoint {
        kind: kind::NODE,
        mac: [2, 0x42, 10, 0, 1, 6],
        vtep: [192, 168, 77, 12],
        vni: APP1,
        ..Endpoint::default()
    };
    assert_eq!(node, expected);
    assert_eq!(kinds(&state, INGRESS)["10.0.0.9"], kind::NODE);
}

/// Old and new tasks of a service while its ports are being changed.
#[test]
fn ports_belong_to_tasks() {
    let text = base_with(
        "netns: /run/netns/web1",
        "ports: [{target_port: 8000, published_port: 8080}, {target_port: 9, published_port: 9000}]",
    );
    let state = maps(&table(&text), "n1");
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.6@11", "10.0.0.7@12"]);
    assert_eq!(set(&state, port(6, 9000)), ["10.0.0.6@11"], "only the old task still has it");
    let targets: Vec<_> =
        state.targets.iter().map(|(k, t)| (u16::from_be_bytes(k.port), u16::from_be_bytes(t.port))).collect();
    assert_eq!(targets, [(8080, 8000), (9000, 9)]);
    let n2 = maps(&table(&text), "n2");
    let targets: Vec<_> =
        n2.targets.iter().map(|(k, t)| (u16::from_be_bytes(k.port), u16::from_be_bytes(t.port))).collect();
    assert_eq!(targets, [(8080, 80)]);
    // Its last owner drains: the port stays, empty, so that established flows are not cut off.
    let draining =
        text.replace("slot: 1, node_id: n1, desired_state: running", "slot: 1, node_id: n1, desired_state: shutdown");
    let state = maps(&table(&draining), "n1");
    assert_eq!(set(&state, port(6, 9000)), [""; 0]);
    assert_eq!(state.targets.len(), 2);
}

/// Links come one by one: what has no interface yet is not in the maps, nor a backend on this node.
#[test]
fn interfaces_that_do_not_exist_yet() {
    let model = capture("02b-web3-running").model;
    let bare = maps_with(&model, "n1", |_, facts| facts.ifindex.clear());
    assert!(bare.locals.is_empty() && bare.vnis.is_empty() && bare.targets.is_empty());
    assert_eq!(set(&bare, port(6, 8080)), ["10.0.0.6@13", "10.0.0.8@12"]);
    assert_eq!(set(&bare, vip(APP1, [10, 0, 1, 2])), ["10.0.1.3@13", "10.0.1.5@12"]);

    let no_gateway = maps_with(&model, "n1", |_, f| {
        f.ifindex.remove(&names::veth(TASK_N1, names::GATEWAY));
    });
    assert!(no_gateway.targets.is_empty());
    assert_eq!(set(&no_gateway, port(6, 8080)), ["10.0.0.6@13", "10.0.0.8@12"]);
    assert_eq!(set(&no_gateway, vip(APP1, [10, 0, 1, 2])).len(), 3, "the overlay does not need it");
}

/// Containers hear before they can speak: this node leads nobody to one whose interface has not been up yet. The
/// entries are there, for what it sends then is answered.
#[test]
fn interfaces_that_have_not_been_up_yet() {
    let model = capture("02b-web3-running").model;
    let whole = maps(&model, "n1");
    let [app, gateway] = [NET_APP1, names::GATEWAY].map(|network| {
        maps_with(&model, "n1", |_, facts| {
            facts.unopened.insert(names::veth(TASK_N1, network));
        })
    });
    for state in [&app, &gateway] {
        assert_eq!((&state.locals, &state.endpoints), (&whole.locals, &whole.endpoints));
        assert_eq!((&state.targets, &state.clients), (&whole.targets, &whole.clients));
    }
    assert_eq!(set(&app, vip(APP1, [10, 0, 1, 2])), ["10.0.1.3@13", "10.0.1.5@12"]);
    assert_eq!(set(&app, port(6, 8080)).len(), 3, "the port does not need it");
    assert_eq!(set(&gateway, port(6, 8080)), ["10.0.0.6@13", "10.0.0.8@12"]);
    assert_eq!(set(&gateway, vip(APP1, [10, 0, 1, 2])).len(), 3, "the overlay does not need it");
    let elsewhere = maps_with(&model, "n2", |_, facts| {
        facts.unopened.insert(names::veth(TASK_N1, NET_APP1));
    });
    assert_eq!(set(&elsewhere, vip(APP1, [10, 0, 1, 2])).len(), 3, "an interface is its own node's");
}

#[test]
fn own_vtep_from_the_settings() {
    let model = table(BASE);
    let settings = Settings { vtep: Some(Ipv4Addr::new(10, 9, 9, 9)), ..Settings::new("n1") };
    let desired = derive(&model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    let state = map_state(&model, &desired, &settings, &facts(&desired));
    assert_eq!(state.config.vtep, [10, 9, 9, 9]);
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.6@9", "10.0.0.7@12"]);
    assert_eq!(state.vteps.keys().map(|ip| ip[3]).collect::<Vec<_>>(), [12]);
}

/// A table in which two services claim a port (a live one; a file is refused): the first by id has it.
#[test]
fn contested_port() {
    let mut model = table(BASE);
    let mut thief = hiveway_core::model::Service::clone(&model.services["web"]);
    thief.id = "zzz".into();
    thief.name = "thief".into();
    thief.virtual_ips.clear();
    model.services.insert(thief.id.clone(), thief.into());
    let desired = derive(&model, &Settings::new("n1"), &mut GatewayAddresses::new()).expect("derivable");
    assert_eq!(desired.left_out.len(), 1);
    assert_eq!(desired.left_out[0].what, "port 8080/tcp of service thief (zzz)");
    assert_eq!(set(&maps(&model, "n1"), port(6, 8080)), ["10.0.0.6@11", "10.0.0.7@12"]);
}
