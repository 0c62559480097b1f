//! What the routing mesh and the programs' special cases need from the table: translated clients, backends of VIPs, the
//! slow path.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use dataplane_common::{
    endpoint::{endpoint_flag::VIP_BACKEND, kind},
    mesh::shown_as::{GATEWAY, INGRESS_NODE, ITSELF},
    state::MapState,
};
use hiveway_core::{Desired, GatewayAddresses, Model, Settings, derive, names, observed::Replies};
use support::{
    BASE, base_with, capture,
    maps::{APP1, INGRESS, maps, maps_with, table},
};

/// `10.0.1.0/24` → rule, of the clients of one interface.
fn clients(state: &MapState, ifindex: u32) -> BTreeMap<String, u8> {
    let of = state.clients.iter().filter(|((_, prefix), _)| prefix.ifindex == ifindex.to_be_bytes());
    of.map(|((length, prefix), rule)| (format!("{}/{}", Ipv4Addr::from(prefix.ip), length - 32), rule.shown_as))
        .collect()
}

fn rules(expected: impl IntoIterator<Item = (&'static str, u8)>) -> BTreeMap<String, u8> {
    expected.into_iter().map(|(subnet, rule)| (subnet.to_owned(), rule)).collect()
}

fn node(model: &Model, node: &str) -> Desired {
    derive(model, &Settings::new(node), &mut GatewayAddresses::new()).expect("derivable")
}

#[test]
fn clients_in_connected_subnets_are_shown_with_another_address() {
    let model = capture("20-plugin-network-global").model;
    let mut index = BTreeMap::new();
    let state = maps_with(&model, "n1", |_, facts| index.clone_from(&facts.ifindex));
    let gateway = |task: &str| index[&names::veth(task, names::GATEWAY)];
    let of = |prefix: &str| {
        let task = model.tasks.keys().find(|id| id.starts_with(prefix)).unwrap_or_else(|| panic!("{prefix}"));
        clients(&state, gateway(task))
    };
    let always = [("172.18.0.0/16", INGRESS_NODE), ("127.0.0.0/8", INGRESS_NODE)];
    let with = |more: &[(&str, u8)]| -> BTreeMap<String, u8> {
        let all = always.iter().chain(more);
        all.map(|(subnet, rule)| ((*subnet).to_owned(), *rule)).collect()
    };
    // web.1 on app1 and ingress.
    assert_eq!(of("usrgm"), with(&[("10.0.1.0/24", GATEWAY), ("10.0.0.0/24", GATEWAY)]));
    // Nobody comes to those without a published port through the mesh: dnsrr only, two subnets only.
    assert_eq!((of("9gv5l"), of("0ba1o")), (BTreeMap::new(), BTreeMap::new()));
    let interfaces: BTreeSet<_> = state.clients.keys().map(|(_, prefix)| prefix.ifindex).collect();
    let targets: BTreeSet<_> = state.targets.values().map(|t| t.ifindex.to_be_bytes()).collect();
    assert_eq!(interfaces, targets);
}

/// The network's other subnet is reached over the overlay too, so replies would not come back by the gateway.
#[test]
fn every_subnet_of_a_connected_network_counts() {
    let text = base_with("vni: 4097}]", "vni: 4097}, {subnet: 10.0.2.0/24, vni: 4098}]");
    let mut gateway = 0;
    let state =
        maps_with(&table(&text), "n1", |_, facts| gateway = facts.ifindex[&names::veth("web.1", names::GATEWAY)]);
    let expected = [
        ("10.0.0.0/24", GATEWAY),
        ("10.0.1.0/24", GATEWAY),
        ("10.0.2.0/24", GATEWAY),
        ("127.0.0.0/8", INGRESS_NODE),
        ("172.18.0.0/16", INGRESS_NODE),
    ];
    assert_eq!(clients(&state, gateway), rules(expected));
    let bare = maps_with(&table(&text), "n1", |_, f| {
        f.ifindex.retain(|name, _| *name != names::veth("web.1", names::GATEWAY))
    });
    assert!(bare.clients.is_empty(), "nothing is keyed by an interface that does not exist");
}

/// A VPN's routes: what they lead elsewhere has the longest prefix's say.
#[test]
fn clients_with_a_route_of_their_own_are_shown_as_the_gateway_bridge() {
    let net = |text: &str| text.parse::<ipnet::Ipv4Net>().expect("a CIDR");
    let mut gateway = 0;
    let mut with = |routes: &[(&str, bool)]| {
        let state = maps_with(&table(BASE), "n1", |_, facts| {
            gateway = facts.ifindex[&names::veth("web.1", names::GATEWAY)];
            let elsewhere = routes.iter().map(|(to, elsewhere)| (net(to), *elsewhere)).collect();
            facts.replies.insert("web.1".into(), Replies { elsewhere, more: 0 });
        });
        clients(&state, gateway)
    };
    let own = [("0.0.0.0/0", false), ("10.0.0.0/24", true), ("10.0.1.0/24", true), ("172.18.0.0/16", false)];
    let usual = [
        ("10.0.0.0/24", GATEWAY),
        ("10.0.1.0/24", GATEWAY),
        ("127.0.0.0/8", INGRESS_NODE),
        ("172.18.0.0/16", INGRESS_NODE),
    ];
    assert_eq!(with(&own), rules(usual), "as without looking");
    let office = [&own[..], &[("198.51.100.0/24", true), ("198.51.100.128/25", false)]].concat();
    let more = [("198.51.100.0/24", GATEWAY), ("198.51.100.128/25", ITSELF)];
    assert_eq!(with(&office), rules(usual.into_iter().chain(more)));
    // The default route leads elsewhere, and with it the way to the ingress node's address.
    let all = [&[("0.0.0.0/0", true)], &own[1..]].concat();
    let lost = usual.map(|(net, _)| (net, GATEWAY)).into_iter().chain([("0.0.0.0/0", GATEWAY)]);
    assert_eq!(with(&all), rules(lost.clone()));
    let nodes = [&all[..], &[("192.168.77.0/24", false)]].concat();
    let kept = usual.into_iter().chain([("0.0.0.0/0", GATEWAY), ("192.168.77.0/24", ITSELF)]);
    assert_eq!(with(&nodes), rules(kept));
}

/// Nodes and overlays may share a range; a container would look for such a node on its overlay.
#[test]
fn ingress_nodes_inside_a_connected_subnet_are_not_shown() {
    let shown = |vtep: &str| {
        let model = table(&base_with("address: 192.168.77.12}", &format!("address: {vtep}}}")));
        let state = maps(&model, "n1");
        let of =
            |length: u32| state.clients.iter().filter(move |((l, _), _)| *l == 32 + length).map(|(_, r)| r.shown_as);
        (of(16).collect::<Vec<_>>(), of(8).collect::<Vec<_>>())
    };
    assert_eq!(shown("10.0.1.200"), (vec![GATEWAY], vec![GATEWAY]));
    assert_eq!(shown("10.0.2.200"), (vec![INGRESS_NODE], vec![INGRESS_NODE]));
}

#[test]
fn the_gateway_address_is_the_bridges_own() {
    let settings = Settings { gwbridge_subnet: "192.168.5.2/24".parse().expect("a subnet"), ..Settings::new("n1") };
    let model = table(BASE);
    let desired = derive(&model, &settings, &mut GatewayAddresses::new()).expect("derivable");
    let state = hiveway_core::map_state(&model, &desired, &settings, &support::facts(&desired));
    assert_eq!(state.config.gateway_ip, [192, 168, 5, 2]);
    assert!(state.clients.keys().any(|(length, p)| *length == 32 + 24 && p.ip == [192, 168, 5, 0]));
}

/// Endpoints with the flag: `10.0.1.3`, per network.
fn flagged(state: &MapState, net: [u8; 4]) -> Vec<String> {
    let on = state.endpoints.iter().filter(|(key, e)| key.net == net && e.flags & VIP_BACKEND != 0);
    on.inspect(|(_, e)| assert!([kind::LOCAL, kind::REMOTE].contains(&e.kind)))
        .map(|(key, _)| Ipv4Addr::from(key.ip).to_string())
        .collect()
}

#[test]
fn tasks_behind_a_vip_are_flagged_whatever_their_state() {
    // Four run, two drain, two are about to start.
    let all: Vec<_> = (12..20).map(|last| format!("10.0.1.{last}")).collect();
    for node in ["n1", "n2", "n3"] {
        assert_eq!(flagged(&maps(&capture("05b-drain-n3-done").model, node), APP1), all, "{node}");
    }
}

/// Its clients may still talk to a task whose service was removed a moment ago.
#[test]
fn tasks_stay_flagged_when_their_service_is_gone() {
    let mut model = capture("05b-drain-n3-done").model;
    model.services.clear();
    for node in ["n1", "n2"] {
        assert_eq!(flagged(&maps(&model, node), APP1).len(), 8, "{node}");
    }
}

#[test]
fn tasks_without_a_vip_on_the_network_are_not() {
    // Service rr (dnsrr) has 10.0.1.27 to .29.
    let state = maps(&capture("10-dnsrr").model, "n1");
    assert_eq!(flagged(&state, APP1), ["10.0.1.20", "10.0.1.26"]);
    // A VIP on one network only.
    let one = table(&base_with("virtual_ips: {app: 10.0.1.2, ingress: 10.0.0.5}", "virtual_ips: {app: 10.0.1.2}"));
    let state = maps(&one, "n1");
    assert_eq!((flagged(&state, APP1), flagged(&state, INGRESS)), (vec!["10.0.1.3".into(), "10.0.1.4".into()], vec![]));
    // A standalone container.
    let alone = maps(&table(&BASE.replace("service_id: web, slot: 2,", "")), "n1");
    assert_eq!(flagged(&alone, APP1), ["10.0.1.3"]);
}

/// Forwarding entries for mesh frames on the slow path, `02:48:…`, and their absence elsewhere.
#[test]
fn the_mesh_has_a_slow_path_on_every_node() {
    let model = capture("06b-scale-2-done").model;
    // n2 has no task at all.
    let n2 = node(&model, "n2");
    assert_eq!(n2.networks.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["ingress"]);
    let vtep = |last: u8| Ipv4Addr::new(192, 168, 77, last);
    let node_mac = |last: u8| [2, 0x48, 192, 168, 77, last];
    let task_mac = |last: u8| [2, 0x42, 10, 0, 0, last];
    let ingress = &n2.networks[0].subnets[0];
    assert_eq!(
        ingress.mesh,
        [(node_mac(11), vtep(11)), (node_mac(13), vtep(13)), (task_mac(20), vtep(13)), (task_mac(25), vtep(11))].into()
    );
    let peers: Vec<_> = ingress.peers.iter().map(|p| p.ip.to_string()).collect();
    assert_eq!(peers, ["10.0.0.20", "10.0.0.25"], "nodes are no neighbours");
    // A node with a task knows the nodes without.
    let n1 = node(&model, "n1");
    let n1: BTreeMap<_, _> = n1.networks.iter().map(|n| (n.name.as_str(), &n.subnets[0].mesh)).collect();
    assert!(n1["app1"].is_empty());
    assert_eq!(n1["ingress"].get(&node_mac(12)), Some(&vtep(12)));
    // Nothing is published: nobody needs it.
    assert!(node(&capture("01-networks-no-services").model, "n3").networks.is_empty());
}

#[test]
fn nodes_without_hiveway_are_not_on_it_and_macs_of_the_table_do_not_matter() {
    let none = base_with("hostname: n2,", "hostname: n2, dataplane: none,");
    assert!(node(&table(&none), "n1").networks.iter().all(|n| n.subnets.iter().all(|s| s.mesh.is_empty())));
    // Mesh frames name the task by its address, the network itself by its MAC.
    let own = base_with(
        "addresses: {app: 10.0.1.4, ingress: 10.0.0.7}",
        "addresses: {app: 10.0.1.4, ingress: 10.0.0.7}, mac: {ingress: \"02:00:00:00:00:09\"}",
    );
    let n1 = node(&table(&own), "n1");
    let ingress = &n1.networks.iter().find(|n| n.name == "ingress").expect("joined").subnets[0];
    let peers: Vec<_> = ingress.peers.iter().map(|p| p.mac).collect();
    assert_eq!(peers, [[2, 0, 0, 0, 0, 9]]);
    assert!(ingress.mesh.contains_key(&[2, 0x42, 10, 0, 0, 7]));
}
