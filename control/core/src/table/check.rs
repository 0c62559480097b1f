//! Sense: references, duplicates, overlaps. What comes out is a [`Model`] (only meaningful without errors).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
};

use super::{
    Reserved,
    addresses::{Addresses, On},
    place::{Element, Place},
    read::{Placed, RawNetwork, RawNode, RawTable, RawTask},
    services,
};
use crate::{
    model::{
        Address, ByNetwork, Carrier, DEFAULT_MTU, Id, Model, Network, Node, NodeState, Ports, Service, Subnet, Task,
        TaskState,
    },
    near::closest,
    problem::{Kind, Problem},
};

/// Checks a table and makes a model of it.
pub(super) fn check(raw: RawTable, reserved: Reserved, problems: &mut Vec<Problem>) -> Model {
    unique_ids(&raw.nodes, "node", problems);
    unique_ids(&raw.networks, "network", problems);
    unique_ids(&raw.services, "service", problems);
    unique_ids(&raw.tasks, "task", problems);
    let node_ids: BTreeSet<Id> = raw.nodes.iter().filter_map(|n| n.id.clone()).collect();
    let network_ids: BTreeSet<Id> = raw.networks.iter().filter_map(|n| n.id.clone()).collect();
    let service_ids: BTreeSet<Id> = raw.services.iter().filter_map(|s| s.id.clone()).collect();

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
    drop(addresses);
    let services = services.into_iter().map(|(id, service)| (id, Arc::new(service))).collect();
    let tasks = tasks.into_iter().map(|(_, task)| (task.id.clone(), task)).collect();
    Model { nodes, networks, services, tasks, jobs_serve: false }
}

fn unique_ids<T>(items: &[Placed<T>], what: &str, problems: &mut Vec<Problem>) {
    let mut first: HashMap<&str, Place> = HashMap::with_capacity(items.len());
    for Placed { place, id, .. } in items {
        let Some(id) = id else { continue };
        if *id == "." || *id == ".." || id.contains(['/', '\0']) || id.chars().any(char::is_control) {
            let message = format!("{id:?} can't be an id: ids become file names and must not contain slashes");
            problems.push(Problem::error(format!("{place}.id"), message).of(Kind::HidesIds(place.section)));
        }
        match first.get(id.as_str()) {
            Some(other) => {
                problems.push(Problem::error(format!("{place}.id"), format!("{what} {id:?} is already {other}")));
            }
            None => drop(first.insert(id, *place)),
        }
    }
}

fn networks(raw: Vec<Placed<RawNetwork>>, reserved: Reserved, problems: &mut Vec<Problem>) -> BTreeMap<Id, Network> {
    let mut networks = BTreeMap::new();
    let mut seen: Vec<(Element, Subnet)> = Vec::new();
    let mut ingress: Option<Place> = None;
    for Placed { place, id, item } in raw {
        let (Some(id), Some(raw)) = (id, item) else { continue };
        if raw.encrypted && raw.carrier == Carrier::Hiveway {
            let message = "encrypted networks are not supported yet and never carried in cleartext; remove the network \
                           or its encryption";
            problems.push(Problem::error(format!("{place}.encrypted"), message));
        }
        if raw.ingress && raw.internal {
            problems.push(Problem::error(format!("{place}.internal"), "the ingress network can't be internal"));
        }
        if raw.ingress {
            match &ingress {
                Some(other) => problems.push(Problem::error(
                    format!("{place}.ingress"),
                    format!("{other} is the ingress network already; there can be one"),
                )),
                None => ingress = Some(place),
            }
        }
        let mut subnets = Vec::new();
        for raw in raw.subnets {
            let first_host = Ipv4Addr::from_bits(raw.subnet.network().to_bits() + 1);
            let subnet = Subnet { vni: raw.vni, subnet: raw.subnet, gateway: raw.gateway.unwrap_or(first_host) };
            if !subnet.usable(subnet.gateway) {
                let message = format!("{} is no usable address of {}", subnet.gateway, subnet.subnet);
                problems.push(Problem::error(format!("{}.gateway", raw.place), message));
            }
            if subnet.vni.get() == reserved.mesh_vni {
                let message = format!("{} is the routing mesh's VNI (--mesh-vni); use another", subnet.vni);
                problems.push(Problem::error(format!("{}.vni", raw.place), message));
            }
            for (other_place, other) in &seen {
                if other.vni == subnet.vni {
                    let message = format!("VNI {} is used by {other_place} already", subnet.vni);
                    problems.push(Problem::error(format!("{}.vni", raw.place), message));
                }
                if other.subnet.contains(&subnet.subnet) || subnet.subnet.contains(&other.subnet) {
                    let message = format!("{} overlaps {} of {other_place}", subnet.subnet, other.subnet);
                    problems.push(Problem::error(format!("{}.subnet", raw.place), message));
                }
            }
            seen.push((raw.place, subnet));
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

fn nodes(raw: Vec<Placed<RawNode>>, addresses: &mut Addresses<'_>, problems: &mut Vec<Problem>) -> BTreeMap<Id, Node> {
    let mut nodes = BTreeMap::new();
    let mut vteps: BTreeMap<Ipv4Addr, Place> = BTreeMap::new();
    let mut hostnames: BTreeMap<String, Place> = BTreeMap::new();
    for Placed { place, id, item } in raw {
        let (Some(id), Some(raw)) = (id, item) else { continue };
        let own_vtep = raw.vtep.is_some();
        let vtep = raw.vtep.unwrap_or(raw.address);
        match vteps.get(&vtep) {
            Some(other) => {
                let field = if own_vtep { "vtep" } else { "address" };
                let message = format!("tunnel address {vtep} is already that of {other}");
                problems.push(Problem::error(format!("{place}.{field}"), message));
            }
            None => drop(vteps.insert(vtep, place)),
        }
        match hostnames.get(&raw.hostname) {
            Some(other) => {
                let message = format!("{other} has the host name {:?} too; agents need --node ID", raw.hostname);
                problems.push(Problem::warning(format!("{place}.hostname"), message));
            }
            None => drop(hostnames.insert(raw.hostname.clone(), place)),
        }
        let mut own = Vec::new();
        for On { network, entry, value: ip } in addresses.placed(raw.addresses, problems) {
            addresses.take(network, ip, entry, problems);
            own.push((network.id.clone(), ip));
        }
        let node = Node {
            id: id.clone(),
            hostname: raw.hostname,
            state: raw.state,
            address: raw.address,
            vtep,
            dataplane: raw.dataplane,
            vxlan_port: None,
            addresses: own.into_iter().collect(),
        };
        nodes.entry(id).or_insert(node);
    }
    nodes
}

/// What tasks may refer to; the id sets include items that were wrong themselves.
struct Known<'m> {
    nodes: &'m BTreeMap<Id, Node>,
    node_ids: BTreeSet<Id>,
    services: &'m BTreeMap<Id, Service>,
    service_ids: BTreeSet<Id>,
}

/// In order of ids. Of two with one id the first counts.
fn tasks(
    raw: Vec<Placed<RawTask>>,
    known: &Known<'_>,
    addresses: &mut Addresses<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<(Place, Arc<Task>)> {
    let mut tasks = Vec::with_capacity(raw.len());
    let mut spaces = Namespaces::default();
    for Placed { place, id, item } in raw {
        let (Some(id), Some(raw)) = (id, item) else { continue };
        reference(place, ("service", "services"), raw.service.as_deref(), &known.service_ids, problems);
        reference(place, ("node", "nodes"), raw.node.as_deref(), &known.node_ids, problems);
        if raw.node.is_none() && raw.state.is_networked() {
            let message =
                format!("missing: a task in state {} should have a node; without one it is not networked", raw.state);
            problems.push(Problem::warning(format!("{place}.node_id"), message));
        }
        let on_down = raw.node.as_ref().and_then(|id| known.nodes.get(id)).is_some_and(|n| n.state == NodeState::Down);
        if on_down && raw.state == TaskState::Running && raw.desired_state == TaskState::Running {
            let message = "runs on a node that is down: it gets no new flows until the node is back";
            problems.push(Problem::warning(format!("{place}.node_id"), message));
        }
        let mut macs = addresses.by_network(raw.macs, problems);
        let mut placed = ByNetwork::default();
        for On { network, entry, value: ip } in addresses.placed(raw.addresses, problems) {
            if raw.state.is_live() {
                addresses.take(network, ip, entry, problems);
            }
            let mac = macs.iter().position(|mac| mac.network.id == network.id).map(|index| macs.remove(index).value);
            let default = Address::with_default_mac(ip);
            placed.insert(network.id.clone(), Address { ip, mac: mac.unwrap_or(default.mac) });
        }
        for mac in macs {
            problems.push(Problem::error(mac.entry.to_string(), "the task has no (valid) address on this network"));
        }
        let ports = match raw.ports {
            Some(own) => services::ports(own, problems),
            None => service_ports(raw.service.as_deref(), known),
        };
        let task = Task {
            id,
            service: raw.service,
            slot: raw.slot,
            node: raw.node,
            desired_state: raw.desired_state,
            state: raw.state,
            unhealthy: raw.unhealthy,
            unreachable: false,
            addresses: placed,
            created: raw.created,
            netns: raw.netns,
            ports,
        };
        spaces.take(place, &task, addresses, problems);
        tasks.push((place, Arc::new(task)));
    }
    tasks.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
    tasks.dedup_by(|(_, a), (_, b)| a.id == b.id);
    tasks
}

/// Which task a network namespace is of, by node and path.
#[derive(Default)]
struct Namespaces(HashMap<(Id, PathBuf), (Place, bool)>);

impl Namespaces {
    /// Reports a namespace that is another task's already. What an engine has made may be shared: a container has a
    /// task for each network that it was attached to.
    fn take(&mut self, place: Place, task: &Task, addresses: &Addresses<'_>, problems: &mut Vec<Problem>) {
        let (Some(node), Some(netns)) = (&task.node, &task.netns) else { return };
        if !task.state.is_networked() || task.addresses.is_empty() {
            return;
        }
        let ours = task.addresses.keys().any(|network| addresses.carrier(network) == Some(Carrier::Hiveway));
        // As the kernel reads a path: without its dots and double slashes.
        let key = (node.clone(), netns.components().collect());
        match self.0.get_mut(&key) {
            Some((other, others)) if ours || *others => {
                let message = format!(
                    "{} is the network namespace of {other} already; each task has one of its own",
                    netns.display()
                );
                problems.push(Problem::error(format!("{place}.netns"), message));
            }
            Some((_, others)) => *others |= ours,
            None => drop(self.0.insert(key, (place, ours))),
        }
    }
}

fn service_ports(service: Option<&str>, known: &Known<'_>) -> Ports {
    service.and_then(|id| known.services.get(id)).map(|s| s.ports.clone()).unwrap_or_default()
}

/// Reports an id of something of a section that is not there.
fn reference(
    place: Place,
    (what, section): (&str, &'static str),
    id: Option<&str>,
    known: &BTreeSet<Id>,
    problems: &mut Vec<Problem>,
) {
    let Some(id) = id.filter(|id| !known.contains(*id)) else { return };
    let hint = closest(id, known.iter().map(Id::as_str)).map(|near| format!("; did you mean {near:?}?"));
    let message = format!("unknown {what} {id:?}{}", hint.unwrap_or_default());
    problems.push(Problem::error(format!("{place}.{what}_id"), message).of(Kind::UnknownId(section)));
}
