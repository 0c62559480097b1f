//! What holds for every table.

#[path = "support/generate.rs"]
mod generate;
mod support;

use std::{collections::BTreeSet, fmt::Write as _, net::Ipv4Addr, path::Path};

use dataplane_common::{
    endpoint::{EndpointKey, kind},
    mesh::target_flag::LOCAL_ONLY,
    state::{MapState, SetKey},
};
use generate::{shuffled, table};
use hiveway_core::{
    Desired, GatewayAddresses, Model, Settings, TaskRole, derive,
    docker_api::{EngineCapture, parse},
    map_state,
    model::AllowList,
    table::parse_file,
    views,
};
use proptest::prelude::*;
use serde_json::Value;
use support::{BASE, facts};

fn model(table: &Value) -> Model {
    let text = table.to_string();
    let table = parse_file(&text, Path::new("t.json"));
    table.unwrap_or_else(|problems| panic!("generated tables are valid: {problems:#?}\n{text}")).model
}

fn all(model: &Model, node: &str, addresses: &mut GatewayAddresses) -> (Desired, MapState) {
    let settings = Settings::new(node);
    let desired = derive(model, &settings, addresses).expect("the node is in the table");
    let state = map_state(model, &desired, &settings, &facts(&desired));
    (desired, state)
}

/// Whether a port answers because of a task here.
fn host_mode(state: &MapState, proto: u8, port: [u8; 2]) -> bool {
    state.targets.iter().any(|(k, t)| (k.proto, k.port) == (proto, port) && t.flags & LOCAL_ONLY != 0)
}

/// Everything that a model is used for; must not panic, whatever the model.
fn use_model(model: &Model) {
    for node in model.nodes.keys() {
        let settings = Settings::new(node.clone());
        let mut addresses = GatewayAddresses::new();
        if let Ok(desired) = derive(model, &settings, &mut addresses) {
            map_state(model, &desired, &settings, &facts(&desired));
        }
        views::networks(model, node);
        views::endpoints(model, node);
    }
    views::services(model, None, &AllowList::default());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The order of lists in the file means nothing.
    #[test]
    fn order_means_nothing(table in table(), seed in any::<u64>()) {
        let (one, other) = (model(&table), model(&shuffled(table, seed)));
        prop_assert_eq!(&one, &other);
        let (a, b) = (all(&one, "n0", &mut GatewayAddresses::new()), all(&other, "n0", &mut GatewayAddresses::new()));
        prop_assert_eq!(a, b);
    }

    /// Deriving again changes nothing, and an address stays with its task through any other table that has the task.
    #[test]
    fn addresses_are_stable(first in table(), second in table()) {
        let (first, second) = (model(&first), model(&second));
        let mut addresses = GatewayAddresses::new();
        let once = all(&first, "n0", &mut addresses);
        let before = addresses.clone();
        prop_assert_eq!(&once, &all(&first, "n0", &mut addresses));
        prop_assert_eq!(&before, &addresses);

        all(&second, "n0", &mut addresses);
        for (task, ip) in &before {
            prop_assert_eq!(addresses.get(task), second.tasks.contains_key(task.as_str()).then_some(ip));
        }
        let distinct: BTreeSet<_> = addresses.values().collect();
        prop_assert_eq!(distinct.len(), addresses.len());
        prop_assert!(!distinct.contains(&Ipv4Addr::new(172, 18, 0, 1)) && !distinct.contains(&Ipv4Addr::new(172, 18, 0, 0)));
    }

    /// Every backend in every set is an endpoint of that task, and a role of backend; every VIP has an endpoint.
    #[test]
    fn backends_are_endpoints(table in table()) {
        let model = model(&table);
        let (desired, state) = all(&model, "n0", &mut GatewayAddresses::new());
        let backends: BTreeSet<_> = model
            .tasks
            .values()
            .filter(|t| model.role(t) == TaskRole::Backend)
            .map(|t| hiveway_core::tag(&t.id))
            .collect();
        for (key, set) in &state.sets {
            let net = match key {
                SetKey::Vip { net, ip } => {
                    let vip = state.endpoints.get(&EndpointKey { net: *net, ip: *ip });
                    prop_assert_eq!(vip.map(|e| e.kind), Some(kind::VIP));
                    *net
                }
                SetKey::Port { proto, port } => {
                    prop_assert!(desired.published.contains(&(*proto, u16::from_be_bytes(*port))));
                    if host_mode(&state, *proto, *port) {
                        continue; // see properties_mesh.rs
                    }
                    model.ingress().expect("generated tables have one").net_id()
                }
            };
            prop_assert!(set.windows(2).all(|w| (w[0].ip, w[0].tag) < (w[1].ip, w[1].tag)), "sorted, no doubles");
            for backend in set {
                let endpoint = state.endpoints.get(&EndpointKey { net, ip: backend.ip });
                let endpoint = endpoint.expect("a backend is an endpoint");
                prop_assert_eq!((endpoint.tag, endpoint.vtep), (backend.tag, backend.vtep));
                prop_assert!(backends.contains(&backend.tag));
                let local = backend.vtep == state.config.vtep;
                prop_assert_eq!(endpoint.kind, if local { kind::LOCAL } else { kind::REMOTE });
                if let (SetKey::Port { proto, port }, true) = (key, local) {
                    let target = state.targets.iter().find(|(k, _)| k.ip == backend.ip && k.port == *port && k.proto == *proto);
                    prop_assert_eq!(target.map(|(_, t)| t.tag), Some(backend.tag), "N2 knows what mesh frames name");
                }
            }
        }
        let ports = state.sets.keys().filter(|k| matches!(k, SetKey::Port { .. })).count();
        prop_assert_eq!(ports, desired.published.len(), "every published port has a set, empty or not");
    }

    /// All nodes agree on who serves what is published everywhere.
    #[test]
    fn nodes_agree(table in table()) {
        let model = model(&table);
        let ports = |node: &str| -> Vec<_> {
            let (_, state) = all(&model, node, &mut GatewayAddresses::new());
            let everywhere = |key: &SetKey| matches!(key, SetKey::Port { proto, port } if !host_mode(&state, *proto, *port));
            state.sets.iter().filter(|(key, _)| everywhere(key)).map(|(key, set)| (*key, set.clone())).collect()
        };
        let running_hiveway = model.nodes.values().filter(|n| n.dataplane == hiveway_core::model::Dataplane::Hiveway);
        let views: Vec<_> = running_hiveway.map(|n| ports(&n.id)).collect();
        prop_assert!(views.windows(2).all(|w| w[0] == w[1]), "{views:#?}");
    }

    /// Interfaces: names unique on the node, one default route at most, each on a bridge that is wanted.
    #[test]
    fn links_are_consistent(table in table()) {
        let (desired, state) = all(&model(&table), "n0", &mut GatewayAddresses::new());
        let mut hosts = BTreeSet::new();
        let mut bridges: BTreeSet<&str> = desired.networks.iter().map(|n| n.bridge.as_str()).collect();
        bridges.extend(desired.gateway.as_ref().map(|g| g.bridge.as_str()));
        for task in &desired.tasks {
            let defaults = task.interfaces.iter().flat_map(|i| &i.routes).filter(|(to, _)| to.prefix_len() == 0).count();
            prop_assert!(defaults <= 1 && !task.interfaces.is_empty());
            for interface in &task.interfaces {
                prop_assert!(interface.host.len() <= 15 && hosts.insert(&interface.host));
                prop_assert!(bridges.contains(interface.bridge.as_str()));
                for (_, via) in &interface.routes {
                    prop_assert!(interface.address.contains(via), "{via} is reached through {}", interface.address);
                }
            }
        }
        let vnis: usize = desired.networks.iter().map(|n| n.subnets.len()).sum();
        prop_assert_eq!(state.locals.len(), hosts.len() + vnis);
        for network in &desired.networks {
            for subnet in &network.subnets {
                prop_assert!(subnet.peers.iter().all(|p| desired.vteps.contains(&p.vtep) && subnet.subnet.contains(&p.ip)));
                prop_assert!(subnet.flood.is_subset(&desired.vteps));
            }
        }
    }
}

/// `text` with some bytes changed: (where, how, what).
fn mutated(text: &str, mutations: &[(prop::sample::Index, u8, u8)]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for (place, how, byte) in mutations {
        if bytes.is_empty() {
            break;
        }
        let i = place.index(bytes.len());
        match how % 4 {
            0 => bytes[i] = *byte,
            1 => bytes.insert(i, *byte),
            2 => drop(bytes.remove(i)),
            // Cut and paste: duplicates keys, lines, brackets.
            _ => {
                let end = (i + usize::from(*byte)).min(bytes.len());
                let part = bytes[i..end].to_vec();
                bytes.splice(i..i, part);
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    // Half of the bytes are ones that mean something in YAML and JSON.
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"{}[],:\"'-&*!|>#%@`?\n\t 0179.n\\".to_vec())];
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), byte), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// No damage to a file makes the parser panic, and what it accepts can be used.
    #[test]
    fn damaged_tables(mutations in mutations(), json in any::<bool>()) {
        let text = if json {
            let value: Value = serde_saphyr::from_str(BASE).expect("valid");
            value.to_string()
        } else {
            BASE.to_owned()
        };
        match parse_file(&mutated(&text, &mutations), Path::new(if json { "t.json" } else { "t.yaml" })) {
            Ok(table) => use_model(&table.model),
            Err(problems) => {
                prop_assert!(!problems.is_empty());
                let mut shown = String::new();
                problems.iter().for_each(|p| { let _ = writeln!(shown, "{p}"); });
                prop_assert!(!shown.is_empty());
            }
        }
    }

    /// Nor to a capture.
    #[test]
    fn damaged_captures(mutations in mutations(), which in 0usize..4) {
        let mut files = CAPTURE.map(str::to_owned);
        files[which] = mutated(&files[which], &mutations);
        let [nodes, services, tasks, networks] = &files;
        if let Ok(loaded) = parse(&EngineCapture { nodes, services, tasks, networks }) {
            use_model(&loaded.model);
        }
    }
}

/// Nodes, services, tasks, networks.
const CAPTURE: [&str; 4] = [
    include_str!("../../../tests/fixtures/swarm/02b-web3-running/nodes.json"),
    include_str!("../../../tests/fixtures/swarm/02b-web3-running/services.json"),
    include_str!("../../../tests/fixtures/swarm/02b-web3-running/tasks.json"),
    include_str!("../../../tests/fixtures/swarm/02b-web3-running/networks.json"),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Live sources say things that make no sense: values of a capture replaced at random.
    #[test]
    fn nonsense_captures(changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..9), 1..20)) {
        let name = "20-plugin-network-global";
        let read = |file: &str| -> Value {
            let path = format!("{}/../../tests/fixtures/swarm/{name}/{file}.json", env!("CARGO_MANIFEST_DIR"));
            serde_json::from_str(&std::fs::read_to_string(path).expect("readable")).expect("JSON")
        };
        let mut all = serde_json::json!([read("nodes"), read("services"), read("tasks"), read("networks")]);
        for (place, replacement) in changes {
            let mut leaves = Vec::new();
            collect(&mut all, &mut leaves);
            let i = place.index(leaves.len());
            *leaves.swap_remove(i) = [
                Value::Null, "".into(), 0.into(), "10.0.1.1/24".into(), "4097".into(), "running".into(),
                "4294967296".into(), Value::Array(vec![]), "../x".into(),
            ][replacement].clone();
        }
        let texts: Vec<_> = all.as_array().expect("four").iter().map(Value::to_string).collect();
        let [nodes, services, tasks, networks] = &texts[..] else { panic!("four") };
        let loaded = parse(&EngineCapture { nodes, services, tasks, networks }).expect("lists of whatever");
        use_model(&loaded.model);
        let mut again = loaded.clone();
        again.remember(&loaded.model);
        prop_assert_eq!(again, loaded, "remembering oneself changes nothing");
    }
}

/// All values that are neither lists nor objects.
fn collect<'v>(value: &'v mut Value, leaves: &mut Vec<&'v mut Value>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|v| collect(v, leaves)),
        Value::Object(map) => map.values_mut().for_each(|v| collect(v, leaves)),
        leaf => leaves.push(leaf),
    }
}
