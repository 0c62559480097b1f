//! Sense: references, duplicates, overlaps. What comes out is a [`Model`] (only meaningful without errors).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use super::{
    Reserved,
    addresses::Addresses,
    read::{Placed, RawNetwork, RawNode, RawTable, RawTask},
    services,
    tree::closest,
};
use crate::{
    model::{Address, Carrier, DEFAULT_MTU, Model, Network, Node, NodeState, Port, Service, Subnet, Task, TaskState},
    problem::Problem,
};

/// Checks a table and makes a model of it.
pub(super) fn check(raw: RawTable, reserved: Reserved, problems: &mut Vec<Problem>) -> Model {
    unique_ids(&raw.nodes, "node", problems);
    unique_ids(&raw.networks, "network", problems);
    unique_ids(&raw.services, "service", problems);
    unique_ids(&raw.tasks, "task", problems);
    let node_ids: BTreeSet<String> = raw.nodes.iter().filter_map(|n| n.id.clone()).collect();
    let network_ids: BTreeSet<String> = raw.networks.iter().filter_map(|n| n.id.clone()).collect();
    let service_ids: BTreeSet<String> = raw.services.iter().filter_map(|s| s.id.clone()).collect();

    let networks = networks(raw.networks, reserved, problems);
    let broken = network_ids.into_iter().filter(|id| !networks.contains_key(id)).collect();
    let mut addresses = Addresses::new(&networks, broken);
    let nodes = nodes(raw.nodes, &mut addresses, problems);
    let services = services::check(raw.services, reserved, &mut addresses, problems);
    let known = Known { nodes: &nodes, node_ids, services: &services, service_ids };
    let tasks = tasks(raw.tasks, &known, &mut addresses, problems);
    services::without_ingress(&services, &tasks, &networks, problems);
    services::contested(&services, &tasks, problems);
    services::crowded(&tasks, problems);
    let services = services.into_iter().map(|(id, service)| (id, Arc::new(service))).collect();
    Model { nodes, networks, services, tasks: tasks.into_iter().map(|(id, (_, task))| (id, Arc::new(task))).collect() }
}

fn unique_ids<T>(items: &[Placed<T>], what: &str, problems: &mut Vec<Problem>) {
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    for Placed { path, id, .. } in items {
        let Some(id) = id else { continue };
        if id == "." || id == ".." || id.contains(['/', '\0']) || id.chars().any(char::is_control) {
            let message = format!("{id:?} can't be an id: ids become file names and must not contain slashes");
            problems.push(Problem::error(format!("{path}.id"), message));
        }
        match first.get(id.as_str()) {
            Some(other) => {
                problems.push(Problem::error(format!("{path}.id"), format!("{what} {id:?} is already {other}")));
            }
            None => {
                first.insert(id, path);
            }
        }
    }
}

fn networks(
    raw: Vec<Placed<RawNetwork>>,
    reserved: Reserved,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Network> {
    let mut networks = BTreeMap::new();
    let mut seen: Vec<(String, Subnet)> = Vec::new();
    let mut ingress: Option<String> = None;
    for Placed { path, id, item } in raw {
        let (Some(id), Some(raw)) = (id, item) else { continue };
        if raw.encrypted && raw.carrier == Carrier::Hiveway {
            let message = "encrypted networks are not supported yet and never carried in cleartext; remove the network \
                           or its encryption";
            problems.push(Problem::error(format!("{path}.encrypted"), message));
        }
        if raw.ingress && raw.internal {
            problems.push(Problem::error(format!("{path}.internal"), "the ingress network can't be internal"));
        }
        if raw.ingress {
            match &ingress {
                Some(other) => problems.push(Problem::error(
                    format!("{path}.ingress"),
                    format!("{other} is the ingress network already; there can be one"),
                )),
                None => ingress = Some(path.clone()),
            }
        }
        let mut subnets = Vec::new();
        for raw in raw.subnets {
            let first_host = Ipv4Addr::from_bits(raw.subnet.network().to_bits() + 1);
            let subnet = Subnet { vni: raw.vni, subnet: raw.subnet, gateway: raw.gateway.unwrap_or(first_host) };
            if !subnet.usable(subnet.gateway) {
                let message = format!("{} is no usable address of {}", subnet.gateway, subnet.subnet);
                problems.push(Problem::error(format!("{}.gateway", raw.path), message));
            }
            if subnet.vni.get() == reserved.mesh_vni {
                let message = format!("{} is the routing mesh's VNI (--mesh-vni); use another", subnet.vni);
                problems.push(Problem::error(format!("{}.vni", raw.path), message));
            }
            for (other_path, other) in &seen {
                if other.vni == subnet.vni {
                    let message = format!("VNI {} is used by {other_path} already", subnet.vni);
                    problems.push(Problem::error(format!("{}.vni", raw.path), message));
                }
                if other.subnet.contains(&subnet.subnet) || subnet.subnet.contains(&other.subnet) {
                    let message = format!("{} overlaps {} of {other_path}", subnet.subnet, other.subnet);
                    problems.push(Problem::error(format!("{}.subnet", raw.path), message));
                }
            }
            seen.push((raw.path, subnet));
            subnets.push(subnet);
        }
        subnets.sort();
        let network = Network {
            id: id.clone(),
            name: raw.name,
            subnets,
            ingress: raw.ingress,
            internal: raw.internal,
            carrier: raw.carrier,
            encrypted: raw.encrypted,
            mtu: raw.mtu.unwrap_or(DEFAULT_MTU),
        };
        // Of two with one id the first counts: fewer follow-up errors.
        networks.entry(id).or_insert(network);
    }
    networks
}

fn nodes(
    raw: Vec<Placed<RawNode>>,
    addresses: &mut Addresses<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Node> {
    let mut nodes = BTreeMap::new();
    let mut vteps: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
    let mut hostnames: BTreeMap<String, String> = BTreeMap::new();
    for Placed { path, id, item } in raw {
        let (Some(id), Some(raw)) = (id, item) else { continue };
        let own_vtep = raw.vtep.is_some();
        let vtep = raw.vtep.unwrap_or(raw.address);
        match vteps.get(&vtep) {
            Some(other) => {
                let field = if own_vtep { "vtep" } else { "address" };
                let message = format!("tunnel address {vtep} is already that of {other}");
                problems.push(Problem::error(format!("{path}.{field}"), message));
            }
            None => drop(vteps.insert(vtep, path.clone())),
        }
        match hostnames.get(&raw.hostname) {
            Some(other) => {
                let message = format!("{other} has the host name {:?} too; agents need --node ID", raw.hostname);
                problems.push(Problem::warning(format!("{path}.hostname"), message));
            }
            None => drop(hostnames.insert(raw.hostname.clone(), path.clone())),
        }
        let mut own = BTreeMap::new();
        for (network, (path, ip)) in addresses.placed(raw.addresses, problems) {
            addresses.take(network, ip, &path, problems);
            own.insert(network.to_owned(), ip);
        }
        let node = Node {
            id: id.clone(),
            hostname: raw.hostname,
            state: raw.state,
            address: raw.address,
            vtep,
            dataplane: raw.dataplane,
            addresses: own,
        };
        nodes.entry(id).or_insert(node);
    }
    nodes
}

/// What tasks may refer to; the id sets include items that were wrong themselves.
struct Known<'m> {
    nodes: &'m BTreeMap<String, Node>,
    node_ids: BTreeSet<String>,
    services: &'m BTreeMap<String, Service>,
    service_ids: BTreeSet<String>,
}

fn tasks(
    raw: Vec<Placed<RawTask>>,
    known: &Known<'_>,
    addresses: &mut Addresses<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, (String, Task)> {
    let mut tasks = BTreeMap::new();
    for Placed { path, id, item } in raw {
        let (Some(id), Some(raw)) = (id, item) else { continue };
        reference(&path, "service", raw.service.as_deref(), &known.service_ids, problems);
        reference(&path, "node", raw.node.as_deref(), &known.node_ids, problems);
        if raw.node.is_none() && raw.state.is_networked() {
            let message =
                format!("missing: a task in state {} should have a node; without one it is not networked", raw.state);
            problems.push(Problem::warning(format!("{path}.node_id"), message));
        }
        let on_down = raw.node.as_ref().and_then(|id| known.nodes.get(id)).is_some_and(|n| n.state == NodeState::Down);
        if on_down && raw.state == TaskState::Running && raw.desired_state == TaskState::Running {
            let message = "runs on a node that is down: it gets no new flows until the node is back";
            problems.push(Problem::warning(format!("{path}.node_id"), message));
        }
        let mut macs = addresses.by_network(raw.macs, problems);
        let mut placed = BTreeMap::new();
        for (network, (path, ip)) in addresses.placed(raw.addresses, problems) {
            if raw.state.is_live() {
                addresses.take(network, ip, &path, problems);
            }
            let mac = macs.remove(network).map(|(_, mac)| mac);
            let default = Address::with_default_mac(ip);
            placed.insert(network.to_owned(), Address { ip, mac: mac.unwrap_or(default.mac) });
        }
        for (path, _) in macs.into_values() {
            problems.push(Problem::error(path, "the task has no (valid) address on this network"));
        }
        let ports = match raw.ports {
            Some(own) => services::ports(own, problems),
            None => service_ports(raw.service.as_deref(), known),
        };
        let task = Task {
            id: id.clone(),
            service: raw.service,
            slot: raw.slot,
            node: raw.node,
            desired_state: raw.desired_state,
            state: raw.state,
            unhealthy: raw.unhealthy,
            addresses: placed.into_iter().collect(),
            created: raw.created,
            netns: raw.netns,
            ports,
        };
        tasks.insert(id, (path, task));
    }
    tasks
}

fn service_ports(service: Option<&str>, known: &Known<'_>) -> Vec<Port> {
    service.and_then(|id| known.services.get(id)).map(|s| s.ports.clone()).unwrap_or_default()
}

fn reference(path: &str, what: &str, id: Option<&str>, known: &BTreeSet<String>, problems: &mut Vec<Problem>) {
    let Some(id) = id.filter(|id| !known.contains(*id)) else { return };
    let hint = closest(id, known.iter().map(String::as_str)).map(|near| format!("; did you mean {near:?}?"));
    let message = format!("unknown {what} {id:?}{}", hint.unwrap_or_default());
    problems.push(Problem::error(format!("{path}.{what}_id"), message));
}
