//! The table as a message: what was sent arrives, and nonsense is left out.

#[path = "../core/tests/support/generate.rs"]
mod generate;

use std::{num::NonZeroU16, path::Path, sync::Arc};

use control::relay::convert::{carried, decode, encode};
use hiveway_core::{LeftOut, Model, model::TaskState, sanitize, table};
use hiveway_proto::relay as wire;
use proptest::prelude::*;
use prost::Message;

fn model(text: &str) -> Model {
    table::parse_file(text, Path::new("t.json")).unwrap_or_else(|problems| panic!("{problems:?}\n{text}")).model
}

fn through(model: &Model, left_out: &[LeftOut]) -> (Model, Vec<LeftOut>) {
    let bytes = encode(model, left_out).encode_to_vec();
    decode(wire::Table::decode(&bytes[..]).unwrap())
}

fn rich() -> Model {
    model(
        r#"{"version": 1,
        "nodes": [{"id": "n1", "hostname": "h1", "address": "192.0.2.1", "vtep": "198.51.100.1", "state": "down",
                   "dataplane": "none", "addresses": {"app": "10.0.1.250"}},
                  {"id": "n2", "hostname": "h2", "address": "192.0.2.2", "state": "disconnected"}],
        "networks": [{"id": "ing", "name": "ingress", "ingress": true, "mtu": 1400, "carrier": "engine",
                      "subnets": [{"subnet": "10.0.0.0/24", "gateway": "10.0.0.1", "vni": 4096}]},
                     {"id": "app", "name": "app", "internal": true, "encrypted": true, "carrier": "engine",
                      "subnets": [{"subnet": "10.0.1.0/24", "gateway": "10.0.1.9", "vni": 5000},
                                  {"subnet": "10.0.2.0/24", "gateway": "10.0.2.1", "vni": 4097}]}],
        "services": [{"id": "s", "name": "web", "virtual_ips": {"app": "10.0.1.2", "ing": "10.0.0.5"},
                      "ports": [{"protocol": "udp", "target_port": 53, "published_port": 53, "publish_mode": "host"},
                                {"protocol": "sctp", "target_port": 7}],
                      "labels": {"hiveway.allow": "10.0.0.0/8", "secret": "password"}},
                     {"id": "d", "name": "dns", "endpoint_mode": "dnsrr"}],
        "tasks": [{"id": "t", "service_id": "s", "slot": 3, "node_id": "n1", "desired_state": "running",
                   "state": "running", "unhealthy": true, "addresses": {"app": "10.0.1.3", "ing": "10.0.0.6"},
                   "macs": {"app": "02:00:00:00:00:07"}, "created_at": "2026-11-21T00:27:35.5Z", "netns": "/run/netns/x",
                   "ports": [{"target_port": 80, "published_port": 8080}]},
                  {"id": "u", "desired_state": "shutdown", "state": "orphaned"}]}"#,
    )
}

#[test]
fn everything_arrives_but_what_stays_with_its_node() {
    let mut sent = rich();
    sent.nodes.get_mut("n2").unwrap().vxlan_port = NonZeroU16::new(7789);
    assert!(sent.tasks["t"].netns.is_some() && sent.services["s"].labels.contains_key("secret"));
    let left_out = [LeftOut { what: "network x".into(), why: "no VNI".into() }];
    let (arrived, named) = through(&sent, &left_out);
    assert_eq!(named, left_out);
    assert_eq!(arrived, carried(sent));
    assert_eq!(arrived.tasks["t"].netns, None);
    assert_eq!(arrived.services["s"].labels.keys().collect::<Vec<_>>(), ["hiveway.allow"]);
    let mut vanished = rich();
    Arc::make_mut(vanished.services.get_mut("s").unwrap()).vanished = true;
    assert_eq!(through(&vanished, &[]).0, carried(vanished));
    let jobs = Model { jobs_serve: true, ..rich() };
    assert_eq!(through(&jobs, &[]).0, carried(jobs));
}

#[test]
fn a_long_list_of_what_was_left_out_is_cut() {
    let many: Vec<_> = (0..10_000).map(|i| LeftOut { what: format!("task {i}"), why: "x".into() }).collect();
    let (_, named) = through(&Model::default(), &many);
    assert_eq!(named.len(), 501);
    assert!(named.iter().any(|item| item.what == "9500 more items"), "{:?}", named[0]);
}

/// Breaks one thing of [`rich`]; returns what is left and what was named.
fn broken(change: impl FnOnce(&mut wire::Table)) -> (Model, String) {
    let mut table = encode(&rich(), &[]);
    change(&mut table);
    let (model, left_out) = decode(table);
    (model, left_out.iter().map(|item| format!("{}: {}\n", item.what, item.why)).collect())
}

#[test]
fn what_makes_no_sense_is_left_out_alone() {
    let whole = carried(rich());
    let (model, why) = broken(|t| t.services[1].endpoint_mode = 9);
    assert!(why.contains("service web (s): its endpoint mode 9 is unknown"), "{why}");
    assert_eq!((model.services.len(), model.tasks.len()), (1, 2), "its task drains");

    let (model, why) = broken(|t| t.networks[0].subnets[0].vni = 4096);
    assert!(why.contains("has its VNI 4096 too"), "{why}");
    assert!(model.networks.len() == 1 && model.tasks["t"].addresses.len() == 1);

    let (model, why) = broken(|t| t.nodes[1].vtep = t.nodes[0].vtep);
    assert!(why.contains("that node h1 (n1) reports: it is node h2's; 192.0.2.1 is used"), "{why}");
    assert_eq!(model.nodes.len(), 2);

    let (model, why) = broken(|t| drop(t.nodes.remove(0)));
    assert!(why.contains("task t: its node n1 is unknown"), "{why}");
    assert_eq!(model.tasks.len(), 1);

    let (model, _) = broken(|t| t.tasks[0].state = 777);
    assert_eq!(model.tasks["t"].state, TaskState::Shutdown);

    type Change = fn(&mut wire::Table);
    let changes: [(Change, &str); 13] = [
        (|t| t.tasks[0].addresses[0].mac = vec![1], "six bytes"),
        (|t| t.tasks[0].addresses[0].mac = vec![1; 6], "multicast"),
        (|t| t.tasks[0].addresses[0].ip = 1, "outside network"),
        (|t| t.networks[0].subnets[0].prefix_len = 99, "no prefix length"),
        (|t| t.networks[0].mtu = 0, "MTU 0"),
        (|t| t.networks[0].carrier = 0, "carrier 0"),
        (|t| t.networks[0].subnets.clear(), "no subnet"),
        (|t| t.services[1].ports[0].target_port = 0, "no target port"),
        (|t| t.services[1].ports[0].target_port = 70_000, "no port"),
        (|t| t.services[1].ports[0].protocol = 99, "protocol 99"),
        (|t| t.nodes[0].address = 0, "no node's address"),
        (|t| t.tasks[0].id = "../x".into(), "file name"),
        (|t| t.tasks[0].id = t.tasks[1].id.clone(), "listed twice"),
    ];
    for (change, expected) in changes {
        let (model, why) = broken(change);
        assert!(why.contains(expected), "{expected}: {why}");
        assert_ne!(model, whole, "{expected}");
        let kept = model.nodes.len() + model.networks.len() + model.services.len() + model.tasks.len();
        assert!(kept >= 6, "{expected}: {why}");
    }
}

fn ids() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "b", "c", "..", "x/y", "\0"]).prop_map(str::to_owned)
}

fn ips() -> impl Strategy<Value = u32> {
    prop_oneof![0x0a00_0000u32..0x0a00_0008, 0x0a00_0100u32..0x0a00_0104, Just(0), any::<u32>()]
}

fn addresses() -> impl Strategy<Value = Vec<wire::NetworkAddress>> {
    let mac = prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 0..8)];
    let one = (ids(), ips(), mac).prop_map(|(network_id, ip, mac)| wire::NetworkAddress { network_id, ip, mac });
    prop::collection::vec(one, 0..4)
}

fn port_lists() -> impl Strategy<Value = Vec<wire::Port>> {
    let one =
        (0..5i32, 0..70_000u32, 0..3u32, 0..4i32).prop_map(|(protocol, published_port, target_port, publish_mode)| {
            wire::Port { protocol, published_port, target_port, publish_mode }
        });
    prop::collection::vec(one, 0..3)
}

/// Tables in which little makes sense.
fn nonsense() -> impl Strategy<Value = wire::Table> {
    let node = (ids(), ids(), -1..5i32, ips(), ips(), 0..3i32, addresses(), 0..70_000u32).prop_map(
        |(id, hostname, state, address, vtep, dataplane, addresses, vxlan_port)| wire::Node {
            id,
            hostname,
            state,
            address,
            vtep,
            dataplane,
            addresses,
            vxlan_port,
        },
    );
    let subnet = (ips(), 20..40u32, ips(), 0..4u32).prop_map(|(address, prefix_len, gateway, vni)| wire::Subnet {
        address,
        prefix_len,
        gateway,
        vni,
    });
    let network = (ids(), prop::collection::vec(subnet, 0..3), any::<bool>(), any::<bool>(), 0..3i32, any::<bool>())
        .prop_map(|(id, subnets, ingress, internal, carrier, encrypted)| wire::Network {
            name: id.clone(),
            id,
            subnets,
            ingress,
            internal,
            mtu: 1450,
            carrier,
            encrypted,
        });
    let service = (ids(), 0..4i32, addresses(), port_lists(), any::<bool>()).prop_map(
        |(id, endpoint_mode, virtual_ips, ports, vanished)| wire::Service {
            name: id.clone(),
            id,
            endpoint_mode,
            virtual_ips,
            ports,
            labels: Default::default(),
            vanished,
        },
    );
    let task = (ids(), ids(), ids(), 0..900u32, 0..900u32, addresses(), port_lists()).prop_map(
        |(id, service_id, node_id, desired_state, state, addresses, ports)| wire::Task {
            id,
            service_id,
            node_id,
            desired_state,
            state,
            addresses,
            ports,
            ..Default::default()
        },
    );
    (
        prop::collection::vec(node, 0..4),
        prop::collection::vec(network, 0..4),
        prop::collection::vec(service, 0..4),
        prop::collection::vec(task, 0..5),
    )
        .prop_map(|(nodes, networks, services, tasks)| wire::Table {
            nodes,
            networks,
            services,
            tasks,
            ..Default::default()
        })
}

proptest! {
    #[test]
    fn a_valid_table_arrives_as_it_was_sent(table in generate::table()) {
        let sent = model(&table.to_string());
        prop_assert_eq!(sanitize(sent.clone()), (sent.clone(), Vec::new()));
        prop_assert_eq!(through(&sent, &[]), (carried(sent), Vec::new()));
    }

    /// Whatever arrives, what is left keeps the invariants: there is nothing more to leave out, and it can be sent on.
    #[test]
    fn nonsense_becomes_a_sound_table(table in nonsense()) {
        let (model, _) = decode(table);
        prop_assert_eq!(sanitize(model.clone()), (model.clone(), Vec::new()));
        prop_assert_eq!(through(&model, &[]), (model, Vec::new()));
    }
}
