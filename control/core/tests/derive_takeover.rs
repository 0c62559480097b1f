//! Beside a Docker engine: nothing is made for networks that it carries, and everything is known about them.

mod support;

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, sync::Arc};

use dataplane_common::{
    addr::VIRTUAL_MAC,
    endpoint::{EndpointKey, Local, kind},
    mesh::{TargetKey, shown_as},
    state::MapState,
};
use hiveway_core::{
    Desired, Facts, GatewayAddresses, Model, Settings, derive, map_state,
    observed::{GatewayPort, OverlayLink, Sandbox},
};
use support::{
    facts,
    maps::{APP1, INGRESS, kinds, kinds_of, port, set, table, vip},
};

const TABLE: &str = include_str!("support/takeover.yaml");
const GATEWAY_PORT: u32 = 77;

/// As with an adopted docker_gwbridge.
fn settings(node: &str) -> Settings {
    Settings {
        gwbridge: "docker_gwbridge".into(),
        gwbridge_subnet: "172.18.0.1/16".parse().expect("a subnet"),
        ..Settings::new(node)
    }
}

fn desired(model: &Model, settings: &Settings) -> Desired {
    derive(model, settings, &mut GatewayAddresses::new()).expect("derivable")
}

/// Every interface of every attached task was found.
fn all_found(desired: &Desired) -> Facts {
    let mut facts = Facts { engine_balances: true, ..facts(desired) };
    for task in &desired.attached {
        let overlay_ports = task
            .overlay_ports
            .iter()
            .map(|port| (port.id, OverlayLink { name: "eth0".into(), mac: [2, 1, 1, 1, 1, 1] }));
        let gateway = task.gateway.then(|| GatewayPort {
            name: "eth2".to_owned(),
            host: "veth1".into(),
            ifindex: GATEWAY_PORT,
            address: "172.18.0.3/16".parse().expect("an address"),
            mac: [2, 3, 3, 3, 3, 3],
        });
        facts
            .sandboxes
            .insert(task.id.clone(), Sandbox { overlay_ports: overlay_ports.collect(), gateway, ..Sandbox::default() });
    }
    facts
}

fn maps(text: &str, settings: &Settings) -> (Desired, MapState) {
    let model = table(text);
    let desired = desired(&model, settings);
    let state = map_state(&model, &desired, settings, &all_found(&desired));
    (desired, state)
}

#[test]
fn the_engine_keeps_its_links_and_we_keep_ours() {
    let desired = desired(&table(TABLE), &settings("n1"));
    let names = |ids: &mut dyn Iterator<Item = &String>| ids.cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(names(&mut desired.networks.iter().map(|n| &n.id)), "ours");
    assert_eq!(names(&mut desired.tasks.iter().map(|t| &t.id)), "own.1");
    assert_eq!(names(&mut desired.attached.iter().map(|t| &t.id)), "cli web.1");
    let [cli, web] = desired.attached.as_slice() else { panic!("{:?}", desired.attached) };
    assert_eq!(cli.netns.as_deref(), Some(Path::new("/run/docker/netns/c")));
    // Only who serves published ports is reached over the engine's gateway bridge.
    assert_eq!((cli.gateway, web.gateway), (false, true));
    assert_eq!(names(&mut web.overlay_ports.iter().map(|t| &t.network)), "app", "not the ingress network's");
    assert!(
        web.overlay_ports
            .iter()
            .all(|port| port.id >> 31 == 1 && port.net == 4097 && port.ip == Ipv4Addr::new(10, 0, 1, 11))
    );
    assert_ne!(cli.overlay_ports[0].id, web.overlay_ports[0].id);
    // Host mode is the engine's.
    assert_eq!(desired.published, [(6, 8080)].into());
    assert_eq!(desired.left_out, []);
}

#[test]
fn maps_know_everybody_but_no_device_of_the_engine() {
    let (desired, state) = maps(TABLE, &settings("n1"));
    assert_eq!(state.vnis.keys().map(|vni| vni[3]).collect::<Vec<_>>(), [2], "of its VNIs none (0x1002 is ours)");
    assert_eq!(state.config.ingress_vxlan_ifindex, 0);
    assert_eq!(state.config.gateway_ip, [172, 18, 0, 1]);
    let app = [
        ("10.0.1.2", kind::VIP),
        ("10.0.1.11", kind::LOCAL),
        ("10.0.1.12", kind::REMOTE),
        ("10.0.1.13", kind::REMOTE),
        ("10.0.1.21", kind::LOCAL),
        ("10.0.1.202", kind::NODE),
        ("10.0.1.203", kind::NODE),
    ];
    assert_eq!(kinds(&state, APP1), kinds_of(app));
    assert_eq!(set(&state, vip(APP1, [10, 0, 1, 2])), ["10.0.1.11@1", "10.0.1.12@2", "10.0.1.13@3"]);
    let vip = state.endpoints[&EndpointKey { net: APP1, ip: [10, 0, 1, 2] }];
    assert_eq!(vip.mac, [2, 0x42, 10, 0, 1, 201], "as the engine's own balancer here");
    let web = desired.attached.iter().find(|t| t.id == "web.1").expect("attached");
    let port =
        Local { tag: web.tag, net: APP1, vni: APP1, ip: [10, 0, 1, 11], mac: [2, 1, 1, 1, 1, 1], ..Local::default() };
    assert_eq!(state.locals[&web.overlay_ports[0].id], port);
    let port = Local { tag: web.tag, ip: [172, 18, 0, 3], mac: [2, 3, 3, 3, 3, 3], ..Local::default() };
    assert_eq!(state.locals[&GATEWAY_PORT], port);
    let local = state.endpoints[&EndpointKey { net: APP1, ip: [10, 0, 1, 11] }];
    assert_eq!((local.mac, local.ifindex), ([2, 1, 1, 1, 1, 1], 0), "the MAC that it really has");
}

#[test]
fn without_an_address_of_the_balancer_vips_have_our_mac() {
    let (_, state) =
        maps(&TABLE.replace("addresses: {app: 10.0.1.201, ingress: 10.0.0.201}", "addresses: {}"), &settings("n1"));
    assert_eq!(state.endpoints[&EndpointKey { net: APP1, ip: [10, 0, 1, 2] }].mac, VIRTUAL_MAC);
    // Nor can stock nodes be spoken to.
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.11@1", "10.0.0.12@2"]);
    assert_eq!((state.config.ingress_ip, state.config.ingress_vni), ([0; 4], [0; 4]));
}

#[test]
fn published_ports_lead_to_stock_nodes_too() {
    let (_, state) = maps(TABLE, &settings("n1"));
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.11@1", "10.0.0.12@2", "10.0.0.13@3"]);
    assert_eq!((state.config.ingress_ip, state.config.ingress_vni), ([10, 0, 0, 201], INGRESS));
    assert_eq!(state.vteps[&[192, 0, 2, 3]].hiveway, 0);
    let target = state.targets[&TargetKey { ip: [10, 0, 0, 11], port: 8080u16.to_be_bytes(), proto: 6, _pad: 0 }];
    assert_eq!((target.ip, target.ifindex, target.mac), ([172, 18, 0, 3], GATEWAY_PORT, [2, 3, 3, 3, 3, 3]));
    assert_eq!(target.port, 80u16.to_be_bytes());
    assert_eq!(state.targets.len(), 1);
    let rules: BTreeMap<_, _> =
        state.clients.iter().map(|((length, prefix), rule)| ((prefix.ip, length - 32), rule.shown_as)).collect();
    assert_eq!(rules[&([172, 18, 0, 0], 16)], shown_as::INGRESS_NODE);
    assert_eq!(rules[&([10, 0, 1, 0], 24)], shown_as::GATEWAY);
}

#[test]
fn what_was_not_found_yet_gets_no_clients() {
    let model = table(TABLE);
    let settings = settings("n1");
    let desired = desired(&model, &settings);
    let state = map_state(&model, &desired, &settings, &facts(&desired));
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.12@2", "10.0.0.13@3"]);
    assert!(state.targets.is_empty() && state.locals.keys().all(|id| id >> 31 == 0));
    // The engine carries to it, found or not.
    assert_eq!(set(&state, vip(APP1, [10, 0, 1, 2])).len(), 3);
}

#[test]
fn a_task_without_a_gateway_interface_is_left_out_and_a_service_of_them_is_the_engine_s() {
    let settings = settings("n1");
    let with = |unreachable: &[&str]| {
        let mut model = table(TABLE);
        for id in unreachable {
            Arc::make_mut(model.tasks.get_mut(*id).expect("a task")).unreachable = true;
        }
        let desired = desired(&model, &settings);
        let state = map_state(&model, &desired, &settings, &all_found(&desired));
        (desired, state)
    };
    let said = |desired: &Desired| desired.left_out.iter().map(|l| l.what.clone()).collect::<Vec<_>>();
    let (desired, state) = with(&["web.2"]);
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.11@1", "10.0.0.13@3"]);
    assert_eq!(said(&desired), ["task web.2 as backend of published port 8080"]);
    assert!(desired.left_out[0].why.contains("gateway bridge of its node n2"), "{:?}", desired.left_out);
    assert_eq!(set(&state, vip(APP1, [10, 0, 1, 2])).len(), 3, "its VIP needs no gateway bridge");

    let (desired, state) = with(&["web.1", "web.2", "web.3"]);
    assert!(desired.published.is_empty() && !state.sets.contains_key(&port(6, 8080)), "the engine's mesh answers");
    assert_eq!(said(&desired)[0], "published port 8080 of service web");
    // Looked for all the same, should it get one.
    assert!(desired.attached.iter().any(|task| task.id == "web.1" && task.gateway && task.unreachable));
}

#[test]
fn a_mesh_that_is_not_taken_over_answers_nobody() {
    let encrypted = TABLE.replace("ingress: true, carrier", "ingress: true, encrypted: true, carrier");
    let refused = Settings { mesh_refused: Some("the firewall".into()), ..settings("n1") };
    for (text, settings, why) in [(encrypted.as_str(), settings("n1"), "encrypted"), (TABLE, refused, "the firewall")] {
        let (desired, state) = maps(text, &settings);
        assert!(desired.published.is_empty());
        assert!(state.sets.keys().all(|key| *key != port(6, 8080)));
        // An encrypted one is nobody's. But what a node refuses its own clients, other nodes may still serve with its
        // tasks.
        let serves = why != "encrypted";
        assert_eq!(state.targets.is_empty(), !serves, "{why}");
        assert_eq!(
            state.locals.contains_key(&GATEWAY_PORT),
            serves,
            "{why}: whether its gateway bridge is our business"
        );
        let said: Vec<_> = desired.left_out.iter().map(|l| (l.what.as_str(), l.why.as_str())).collect();
        assert!(matches!(said.as_slice(), [("routing mesh", reason)] if reason.contains(why)), "{said:?}");
        assert_eq!(set(&state, vip(APP1, [10, 0, 1, 2])).len(), 3, "VIPs are balanced all the same");
    }
}

#[test]
fn a_task_on_networks_of_both_kinds_keeps_the_engine_s() {
    let text = TABLE.replace("{app: 10.0.1.21}", "{app: 10.0.1.21, ours: 10.0.2.21}");
    let (desired, _) = maps(&text, &settings("n1"));
    assert!(desired.tasks.iter().all(|task| task.id != "cli"));
    assert!(desired.attached.iter().any(|task| task.id == "cli" && task.overlay_ports.len() == 1));
    let said: Vec<_> = desired.left_out.iter().map(|l| l.what.as_str()).collect();
    assert_eq!(said, ["network ours (ours) of task cli"]);
}

#[test]
fn a_node_without_the_network_knows_nothing_of_it() {
    let (desired, state) = maps(&TABLE.replace("node_id: n1", "node_id: n2"), &settings("n1"));
    assert!(desired.attached.is_empty());
    assert!(kinds(&state, APP1).is_empty());
    // But whoever serves published ports is known everywhere.
    assert_eq!(set(&state, port(6, 8080)), ["10.0.0.11@2", "10.0.0.12@2", "10.0.0.13@3"]);
    assert_eq!(kinds(&state, INGRESS).len(), 5);
}
