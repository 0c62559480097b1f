//! Random valid tables as JSON, and their permutations.
#![allow(dead_code)] // each file uses its own part

use proptest::prelude::*;
use serde_json::{Map, Value, json};

const STATES: [&str; 14] = [
    "new",
    "pending",
    "assigned",
    "accepted",
    "preparing",
    "ready",
    "starting",
    "running",
    "complete",
    "shutdown",
    "failed",
    "rejected",
    "remove",
    "orphaned",
];

/// What is drawn at random about one task: node, service, which networks, states, own ports.
type Draw = (u8, u8, u8, u8, u8, u8);

/// A valid table. Addresses, VNIs and published ports are given out by position, so that nothing clashes.
pub(crate) fn table() -> impl Strategy<Value = Value> {
    let services = prop::collection::vec((any::<bool>(), any::<u8>(), any::<u8>()), 0..5);
    let tasks = prop::collection::vec(any::<Draw>(), 0..16);
    let nodes = prop::collection::vec((0u8..4, any::<bool>(), any::<bool>()), 1..5);
    let networks = prop::collection::vec((1u8..3, any::<bool>()), 0..4);
    (nodes, networks, services, tasks).prop_map(|(nodes, networks, services, tasks)| {
        let n = networks.len();
        json!({
            "version": 1,
            "nodes": nodes.iter().enumerate().map(|(i, draw)| node(i, *draw, n)).collect::<Vec<_>>(),
            "networks": (0..=n).map(|i| network(i, networks.get(i.wrapping_sub(1)).copied())).collect::<Vec<_>>(),
            "services": services.iter().enumerate().map(|(i, draw)| service(i, *draw, n)).collect::<Vec<_>>(),
            "tasks": tasks.iter().enumerate().map(|(i, d)| task(i, *d, nodes.len(), n, services.len())).collect::<Vec<_>>(),
        })
    })
}

fn node(i: usize, (state, none, addressed): (u8, bool, bool), networks: usize) -> Value {
    let state = ["ready", "down", "disconnected", "unknown"][usize::from(state)];
    // The first node is the one looked from.
    let dataplane = if none && i > 0 { "none" } else { "hiveway" };
    let addresses: Map<String, Value> = (0..=networks)
        .filter(|_| addressed)
        .map(|n| (format!("net{n}"), json!(format!("10.{n}.0.{}", 200 + i))))
        .collect();
    json!({"id": format!("n{i}"), "hostname": format!("host{i}"), "address": format!("192.0.2.{}", i + 1),
           "state": state, "dataplane": dataplane, "addresses": addresses})
}

/// Network 0 is the ingress network.
fn network(i: usize, draw: Option<(u8, bool)>) -> Value {
    let (subnets, internal) = draw.unwrap_or((1, false));
    let subnets: Vec<_> = (0..subnets)
        .map(|s| json!({"subnet": format!("10.{i}.{s}.0/24"), "vni": 5000 - i * 10 + usize::from(s)}))
        .collect();
    json!({"id": format!("net{i}"), "name": format!("name{}", 9 - i), "subnets": subnets, "internal": internal,
           "ingress": i == 0})
}

fn service(i: usize, (dnsrr, nets, draw): (bool, u8, u8), networks: usize) -> Value {
    let vips: Map<String, Value> = (0..=networks)
        .filter(|n| !dnsrr && nets >> n & 1 == 1)
        .map(|n| (format!("net{n}"), json!(format!("10.{n}.0.{}", 100 + i))))
        .collect();
    let ports: Vec<_> = (0..draw % 4)
        .map(|p| {
            json!({"protocol": (["tcp", "udp", "tcp"][usize::from(p)]), "target_port": 80 + u16::from(p),
                   "published_port": 8000 + i * 10 + usize::from(p),
                   "publish_mode": if draw > 200 { "host" } else { "ingress" }})
        })
        .collect();
    let allow = ["10.0.0.0/8", "10.0.0.0/24,192.0.2.0/28", "192.0.2.7,fd00::/8"].get(usize::from(draw / 4 % 5));
    let labels = allow.map_or(json!({}), |list| json!({"hiveway.allow": list}));
    json!({"id": format!("s{i}"), "name": format!("svc{i}"), "endpoint_mode": if dnsrr { "dnsrr" } else { "vip" },
           "virtual_ips": vips, "ports": ports, "labels": labels})
}

fn task(
    i: usize,
    (node, service, nets, desired, state, ports): Draw,
    nodes: usize,
    networks: usize,
    services: usize,
) -> Value {
    // Mostly running, or there would be little to see.
    let pick = |draw: u8| STATES[usize::from(draw).checked_sub(128).map_or(7, |d| d % STATES.len())];
    let addresses: Map<String, Value> = (0..=networks)
        .filter(|n| nets >> n & 1 == 1)
        .map(|n| (format!("net{n}"), json!(format!("10.{n}.0.{}", 10 + i))))
        .collect();
    let mut task = json!({"id": format!("t{}", i * 7 % 16), "node_id": format!("n{}", usize::from(node) % nodes),
        "desired_state": pick(desired), "state": pick(state), "addresses": addresses});
    if services > 0 && service < 240 {
        task["service_id"] = json!(format!("s{}", usize::from(service) % services));
        if ports > 200 {
            let own = usize::from(service) % services;
            task["ports"] = json!([{"target_port": 1000 + i, "published_port": 8000 + own * 10}]);
        }
    }
    task
}

/// The same table with every list in another order.
pub(crate) fn shuffled(table: Value, seed: u64) -> Value {
    let mut random = seed | 1;
    shuffle(table, &mut random)
}

fn shuffle(value: Value, random: &mut u64) -> Value {
    match value {
        Value::Array(items) => {
            let mut items: Vec<_> = items.into_iter().map(|v| shuffle(v, random)).collect();
            for i in (1..items.len()).rev() {
                // xorshift64: the order only has to be another one.
                *random ^= *random << 13;
                *random ^= *random >> 7;
                *random ^= *random << 17;
                items.swap(i, (*random % (i as u64 + 1)) as usize);
            }
            Value::Array(items)
        }
        Value::Object(map) => Value::Object(map.into_iter().map(|(k, v)| (k, shuffle(v, random))).collect()),
        other => other,
    }
}
