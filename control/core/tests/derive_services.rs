//! Services whose shape is less usual: without a VIP, over several subnets, sharing a port number, changing their
//! ports.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use dataplane_common::{
    endpoint::{EndpointKey, kind},
    state::{MapState, SetKey},
};
use hiveway_core::{GatewayAddresses, Model, Settings, derive, docker_api::Loaded, tag};
use support::{
    BASE, base_with, capture,
    maps::{APP1, INGRESS, kinds, maps, port, set, table, vip},
};

const PORTS: &str = "ports: [{protocol: tcp, target_port: 80, published_port: 8080, publish_mode: ingress}]";

fn vips(state: &MapState) -> BTreeSet<String> {
    let of = |key: &SetKey| match key {
        SetKey::Vip { ip, .. } => Some(Ipv4Addr::from(*ip).to_string()),
        SetKey::Port { .. } => None,
    };
    state.sets.keys().filter_map(of).collect()
}

/// Target ports of this node's tasks: `web.1 8080` → 80.
fn targets(model: &Model, state: &MapState) -> BTreeMap<String, u16> {
    let name = |t| model.tasks.keys().find(|id| tag(id) == t).map_or("?", |id| id.as_str());
    let row = |(k, t): (&dataplane_common::mesh::TargetKey, &dataplane_common::mesh::Target)| {
        (format!("{} {}", name(t.tag), u16::from_be_bytes(k.port)), u16::from_be_bytes(t.port))
    };
    state.targets.iter().map(row).collect()
}

#[test]
fn captured_dnsrr() {
    let model = capture("10-dnsrr").model;
    for node in ["n1", "n2", "n3"] {
        let state = maps(&model, node);
        let web: &[&str] = if node == "n2" { &["10.0.1.2"] } else { &["10.0.1.2", "10.0.0.5"] };
        assert_eq!(vips(&state), web.iter().map(|ip| (*ip).to_owned()).collect(), "of web alone, on {node}");
        let rr: Vec<_> = (27..30).map(|last| kinds(&state, APP1)[&format!("10.0.1.{last}")]).collect();
        assert!(rr.iter().all(|k| [kind::LOCAL, kind::REMOTE].contains(k)), "its tasks are reached by name: {rr:?}");
    }
}

/// Addresses that a table gives such a service all the same mean nothing: neither set nor answer to ARP.
#[test]
fn dnsrr_with_virtual_addresses() {
    let model = table(&base_with("endpoint_mode: vip", "endpoint_mode: dnsrr"));
    let state = maps(&model, "n1");
    assert_eq!(vips(&state), BTreeSet::new());
    assert!(!kinds(&state, APP1).contains_key("10.0.1.2") && !kinds(&state, INGRESS).contains_key("10.0.0.5"));
    // What it publishes does not depend on it.
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.6@11", "10.0.0.7@12"]);
}

/// A subnet has a VNI of its own and its own neighbours; who serves is a matter of the network.
#[test]
fn a_service_over_two_subnets() {
    let text = base_with("vni: 4097}]", "vni: 4097}, {subnet: 10.0.2.0/24, gateway: 10.0.2.1, vni: 4098}]");
    let model = table(&text.replace("app: 10.0.1.4", "app: 10.0.2.4"));
    let second = 4098u32.to_be_bytes();
    for node in ["n1", "n2"] {
        let state = maps(&model, node);
        assert_eq!(set(&state, vip(APP1, [10, 0, 1, 2])), ["10.0.1.3@11", "10.0.2.4@12"], "{node}");
        let vni = |ip: [u8; 4]| state.endpoints[&EndpointKey { net: APP1, ip }].vni;
        assert_eq!((vni([10, 0, 1, 3]), vni([10, 0, 2, 4])), (APP1, second));
        assert_eq!((vni([10, 0, 1, 1]), vni([10, 0, 2, 1])), (APP1, second), "a gateway each");
        assert_eq!((state.vnis[&APP1].net, state.vnis[&second].net), (APP1, APP1));
        assert_ne!(state.vnis[&APP1].vxlan_ifindex, state.vnis[&second].vxlan_ifindex);
    }
    let n1 = derive(&model, &Settings::new("n1"), &mut GatewayAddresses::new()).expect("derivable");
    let app = n1.networks.iter().find(|n| n.name == "app").expect("joined");
    let peers: Vec<Vec<_>> = app.subnets.iter().map(|s| s.peers.iter().map(|p| p.ip.to_string()).collect()).collect();
    assert_eq!(peers, [vec![], vec!["10.0.2.4".to_owned()]]);
    assert!(app.subnets.iter().all(|s| s.flood.len() == 1), "broadcast goes to the network's nodes in both");
    let eth0 = &n1.tasks[0].interfaces[0];
    assert_eq!(eth0.routes.iter().map(|(to, via)| format!("{to} {via}")).collect::<Vec<_>>(), ["10.0.2.0/24 10.0.1.1"]);
}

/// One number, two protocols, two services: two sets, two targets.
#[test]
fn one_port_number_in_tcp_and_udp() {
    let dns = "  - {id: dns, name: dns, virtual_ips: {}, labels: {hiveway.allow: \"10.0.0.0/8\"}, \
               ports: [{protocol: udp, target_port: 53, published_port: 8080}]}\ntasks:\n  \
               - {id: dns.1, service_id: dns, node_id: n1, desired_state: running, state: running, \
               addresses: {ingress: 10.0.0.9}}\n";
    let model = table(&base_with("tasks:\n", dns));
    let state = maps(&model, "n1");
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.6@11", "10.0.0.7@12"]);
    assert_eq!(set(&state, port(17, 8080)), ["10.0.0.9@11"]);
    let by_proto: BTreeMap<_, _> =
        state.targets.iter().map(|(k, t)| (k.proto, (t.tag, u16::from_be_bytes(t.port)))).collect();
    assert_eq!(by_proto, [(6, (tag("web.1"), 80)), (17, (tag("dns.1"), 53))].into());
    assert_eq!(state.restricted.iter().map(|key| key.proto).collect::<Vec<_>>(), [17], "a list is one service's");
}

/// A service changes its target port: the table knows only the new one, old tasks keep theirs, new ones have the new
/// one.
#[test]
fn old_and_new_target_ports_side_by_side() {
    let before = capture("03b-scale-6-done").model;
    let mut after: Loaded = capture("04a-rolling-update-mid");
    let change = |model: &mut Model| {
        let new = 8000.try_into().expect("not zero");
        model.services.values_mut().for_each(|s| Arc::make_mut(s).ports.change(|p| p.target_port = new));
        model.tasks.values_mut().for_each(|t| Arc::make_mut(t).ports.change(|p| p.target_port = new));
    };
    // As the API answers during the update: every task seems to have the service's new port.
    change(&mut after.model);
    after.remember(&before);
    // odjap is an old task on n1, xt2ll has replaced zq82g there.
    let state = maps(&after.model, "n1");
    let shown: BTreeMap<_, _> =
        targets(&after.model, &state).into_iter().map(|(name, port)| (name[..5].to_owned(), port)).collect();
    assert_eq!(shown, [("odjap".to_owned(), 80), ("xt2ll".to_owned(), 8000)].into());
    assert_eq!(state.sets[&port(6, 8080)].len(), 6, "one published port for all of them");
}

/// A published port changes: the old one answers while old tasks have it, and only they serve it.
#[test]
fn old_and_new_published_ports_side_by_side() {
    let text = base_with(PORTS, "ports: [{target_port: 80, published_port: 9090}]");
    let old = "ports: [{target_port: 80, published_port: 8080}], netns: /run/netns/web1";
    let text = text.replace("netns: /run/netns/web1", old);
    let model = table(&text);
    for node in ["n1", "n2"] {
        let state = maps(&model, node);
        assert_eq!(set(&state, port(6, 8080)), ["10.0.0.6@11"], "{node}");
        assert_eq!(set(&state, port(6, 9090)), ["10.0.0.7@12"], "{node}");
    }
    assert_eq!(targets(&model, &maps(&model, "n1")), [("web.1 8080".to_owned(), 80)].into());
    // The last old task drains: its port refuses new connections, and goes with it.
    let drains = text.replacen("desired_state: running", "desired_state: shutdown", 1);
    let state = maps(&table(&drains), "n2");
    assert_eq!(set(&state, port(6, 8080)), [""; 0]);
    let gone = text.replacen("desired_state: running, state: running", "desired_state: shutdown, state: shutdown", 1);
    assert!(!maps(&table(&gone), "n2").sets.contains_key(&port(6, 8080)));
    assert!(!maps(&table(BASE), "n1").sets.contains_key(&port(6, 9090)));
}
