//! What each target does with an input.

use std::{collections::BTreeSet, iter, path::Path, str::from_utf8};

use control::{
    certs::Identity,
    relay::convert::{decode, decode_paths, decode_report, encode, encode_paths, encode_report, text},
    status::protocol::{Request, Response},
    swarm,
};
use hiveway_core::{
    Desired, Facts, GatewayAddresses, Model, Settings, derive,
    docker_api::{EngineCapture, Loaded, assemble, parse},
    firewall::{Ignored, Path as Way, Ranges, Ruleset, ipset, iptables, judgement, nftables},
    map_state,
    merge::{LocalView, merge},
    model::{AllowList, Carrier},
    plan::{Tunnel, plan},
    sanitize,
    table::parse_file,
    views,
};
use hiveway_proto::{
    relay::{FromAgent, FromManager, Report, from_manager::Message},
    swarm::WatchMessage,
};
use prost::Message as _;
use serde_json::Value;

use crate::SEPARATOR;
pub(crate) use crate::packets::packets;

/// Nodes of a model whose state is derived: more of them only repeat the same code.
const NODES: usize = 2;
/// Messages of a push stream that are read.
const MESSAGES: usize = 16;

/// The first `N` texts of an input. Missing texts are empty; `None` if one of them is not UTF-8.
fn texts<const N: usize>(data: &[u8]) -> Option<[&str; N]> {
    let mut parts = data.splitn(N, |byte| *byte == SEPARATOR).map(from_utf8);
    let mut found = [""; N];
    for text in &mut found {
        *text = parts.next().unwrap_or(Ok("")).ok()?;
    }
    Some(found)
}

/// Does with a model what the agents of its first nodes do: desired state, maps, plan, and what the CLI shows.
fn use_model(model: &Model) {
    for node in model.nodes.values().take(NODES) {
        let settings = Settings::new(node.id.to_string());
        views::networks(model, &node.id);
        views::endpoints(model, &node.id);
        if let Ok(desired) = derive(model, &settings, &mut GatewayAddresses::default()) {
            map_state(model, &desired, &settings, &facts(&desired));
            let tunnel = Tunnel { local: node.vtep, port: settings.vxlan_port, underlay_mtu: 1500 };
            plan(&Default::default(), &desired, tunnel);
        }
    }
    views::services(model, None, &AllowList::default());
}

/// Facts of a node on which every desired interface exists.
fn facts(desired: &Desired) -> Facts {
    let tasks = desired.tasks.iter().flat_map(|task| task.interfaces.iter().map(|interface| interface.host.clone()));
    let devices = desired.networks.iter().flat_map(|network| {
        iter::once(network.bridge.clone()).chain(network.subnets.iter().map(|subnet| subnet.vxlan.clone()))
    });
    let names: BTreeSet<_> = tasks.chain(devices).collect();
    Facts {
        ifindex: names.into_iter().zip(100..).collect(),
        underlay_ifindex: 2,
        underlay_mtu: 1500,
        underlay_mac: [0x52, 0x54, 0, 0, 0, 1],
        node_addresses: desired.vtep.map(|ip| (ip, 2)).into_iter().collect(),
        ..Facts::default()
    }
}

/// A model that has been sent to another agent and back does not change when it is sent once more.
fn send_twice(model: &Model) {
    let (arrived, _) = decode(encode(model, &[]));
    let (again, left_out) = decode(encode(&arrived, &[]));
    assert!(left_out.is_empty(), "left out of a table that has arrived: {left_out:?}");
    assert!(arrived == again, "changed by being sent once more");
}

/// Does with a live table what the agent of its first node does before it uses the model.
fn use_live(mut loaded: Loaded) {
    loaded.settle(|_| None);
    let node = loaded.model.nodes.keys().next().map(ToString::to_string);
    let merged = merge(&loaded, &LocalView { node, ..LocalView::default() }, None);
    use_model(&merged.model);
    send_twice(&merged.model);
}

/// A task table's file: YAML, or JSON.
pub(crate) fn table(data: &[u8]) {
    let Ok(text) = from_utf8(data) else { return };
    for name in ["table.yaml", "table.json"] {
        match parse_file(text, Path::new(name)) {
            Ok(table) => {
                let (same, left_out) = sanitize(table.model.clone());
                assert!(left_out.is_empty(), "a table without errors has {left_out:?}");
                assert!(same == table.model, "a table without errors is not consistent");
                use_model(&table.model);
                send_twice(&table.model);
            }
            Err(problems) => assert!(!problems.is_empty(), "refused without a reason"),
        }
    }
}

/// Answers of the Engine API: nodes, services, tasks, networks.
pub(crate) fn engine(data: &[u8]) {
    let Some([nodes, services, tasks, networks]) = texts(data) else { return };
    if let Ok(loaded) = parse(&EngineCapture { nodes, services, tasks, networks }) {
        use_live(loaded);
    }
}

/// Messages of a manager's push stream, each after its length. The first one stands for the lists.
pub(crate) fn stream(data: &[u8]) {
    let mut rest = data;
    let messages = iter::from_fn(|| WatchMessage::decode_length_delimited(&mut rest).ok()).take(MESSAGES);
    let mut before: Option<Model> = None;
    for objects in swarm::replay(messages) {
        let mut loaded = assemble(objects, Carrier::Engine);
        if let Some(before) = &before {
            loaded.remember(before);
        }
        before = Some(loaded.model.clone());
        use_live(loaded);
    }
}

/// Messages between agents.
pub(crate) fn relay(data: &[u8]) {
    if let Ok(FromManager { message: Some(Message::Table(table)) }) = FromManager::decode(data) {
        let (model, _) = decode(table);
        let (same, left_out) = sanitize(model.clone());
        assert!(same == model && left_out.is_empty(), "not consistent on arrival: {left_out:?}");
        use_model(&model);
        send_twice(&model);
    }
    if let Ok(FromAgent { version, vtep, report, .. }) = FromAgent::decode(data) {
        let mut report = report.unwrap_or(Report { vtep, ..Report::default() });
        if let Some(Ok((rows, age))) = report.paths.take().map(decode_paths) {
            let again = decode_paths(encode_paths(&rows, age));
            assert!(again.as_ref() == Ok(&(rows, age)), "paths changed by being sent: {again:?}");
        }
        if let Ok(report) = decode_report(report, &version) {
            let again = decode_report(encode_report(&report), text(&version));
            assert!(again.as_ref() == Ok(&report), "report changed by being sent: {again:?}");
        }
    }
}

/// A node's certificate, in DER.
pub(crate) fn certificates(data: &[u8]) {
    if let Ok(identity) = Identity::of(data) {
        assert!(!identity.node.is_empty(), "a node without an id");
    }
}

/// Rules of the host's packet filters: `nft -j list ruleset`, `nft -a list ruleset`, `iptables-save`, answers of
/// `nft -j list set` one per line, `ipset save`.
pub(crate) fn firewall(data: &[u8]) {
    let Some([json, listing, saved, elements, set]) = texts(data) else { return };
    let addresses = match ipset::set(set) {
        Some(ipset::Set::Of(addresses)) => Some(addresses),
        Some(ipset::Set::Lists(_)) | None => None,
    };
    // Every set that the rules name is this one.
    let sets = iptables::set_names(saved).filter_map(|name| Some((name, addresses.clone()?))).collect();
    let saved_tables = iptables::tables(saved, &sets);
    let mut tables = saved_tables.clone();
    if let Ok(ruleset) = serde_json::from_str::<Value>(json) {
        nftables::has_opaque_rules(&ruleset, "ip", "filter");
        let elements = set_elements(elements);
        let named = nftables::set_names(&ruleset).into_iter();
        let elements = named.filter_map(|key| Some((key.clone(), elements.get(&key)?.clone()))).collect();
        tables.extend(nftables::tables(&ruleset, &elements, &nftables::texts(listing), &saved_tables));
    }
    let rules = Ruleset { tables, sandbox: iptables::ingress_sandbox(saved), unread: Vec::new() };
    let way = published_port();
    for ignored in [Ignored::None, Ignored::Chains(["ip:filter:DOCKER-USER".to_owned()].into())] {
        ignored.missing(&rules);
        judgement(&rules, &way, &ignored);
    }
}

/// Elements of nftables' sets and maps, out of one answer of `nft -j` per line.
fn set_elements(answers: &str) -> nftables::Elements {
    let answers = answers.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = nftables::Elements::new();
    for answer in answers {
        let objects = answer["nftables"].as_array().into_iter().flatten();
        for set in objects.filter_map(|object| object.get("set").or_else(|| object.get("map"))) {
            let word = |key: &str| set[key].as_str().unwrap_or_default().to_owned();
            let all = set["elem"].as_array().cloned().unwrap_or_default();
            found.insert((word("family"), word("table"), word("name")), all);
        }
    }
    found
}

fn published_port() -> Way {
    let net = |text: &str| text.parse().map_or_else(|_| Ranges::default(), Ranges::net);
    Way {
        engine: true,
        ports: BTreeSet::from([(6, 8080), (17, 53)]),
        interfaces: BTreeSet::from(["eth0".to_owned(), "eth1".to_owned()]),
        addresses: net("192.0.2.1/32"),
        bridge: "docker_gwbridge".to_owned(),
        bridge_subnet: net("172.18.0.0/16"),
        containers: [("docker_gwbridge".to_owned(), net("172.18.0.0/16"))].into(),
    }
}

/// What is asked of the status socket, and what it answers.
pub(crate) fn protocol(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let text = serde_json::to_string(&request).expect("a request can be written");
        assert_eq!(serde_json::from_str::<Request>(&text).ok().as_ref(), Some(&request), "changed by being written");
        if let Request::Flows(filter) = &request {
            let _ = filter.clients();
        }
    }
    if let Ok(response) = serde_json::from_slice::<Response>(data) {
        serde_json::to_string(&response).expect("a response can be written");
    }
}
