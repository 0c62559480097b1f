//! Makes a table of items from elsewhere: whatever breaks the model's invariants is left out, each item alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use crate::{
    clashes::one_per_vtep,
    desired::LeftOut,
    docker_api::one_per_address,
    model::{Carrier, EndpointMode, Id, Model, Network},
};

/// `model` as far as the invariants of [`crate::model`] hold, and what had to go. A consistent model stays as it is.
pub fn sanitize(model: Model) -> (Model, Vec<LeftOut>) {
    let mut left_out = Vec::new();
    let Model { nodes, networks, services, tasks, jobs_serve } = model;
    let mut model = Model {
        nodes: one_per_vtep(named(nodes, "node", |n| &n.id, &mut left_out), |_| None, |_| (), &mut left_out),
        networks: apart(named(networks, "network", |n| &n.id, &mut left_out), &mut left_out),
        services: named(services, "service", |s| &s.id, &mut left_out),
        tasks: named(tasks, "task", |t| &t.id, &mut left_out),
        jobs_serve,
    };
    virtual_ips(&mut model, &mut left_out);
    tasks_on_networks(&mut model, &mut left_out);
    one_per_address(&mut model, &mut left_out);
    addresses_of_nodes(&mut model, &mut left_out);
    left_out.sort();
    left_out.dedup();
    (model, left_out)
}

/// Items whose key is their id, which can be a file name.
fn named<T>(
    items: BTreeMap<Id, T>,
    kind: &str,
    id: impl Fn(&T) -> &Id,
    left_out: &mut Vec<LeftOut>,
) -> BTreeMap<Id, T> {
    let mut good = BTreeMap::new();
    for (key, item) in items {
        let bad = key.is_empty() || key == "." || key == ".." || key.contains('/') || key.contains(char::is_control);
        if bad || *id(&item) != key {
            left_out.push(LeftOut { what: format!("{kind} {key:?}"), why: "its id can't be a file name".into() });
        } else {
            good.insert(key, item);
        }
    }
    good
}

/// Networks that can be told apart.
fn apart(networks: BTreeMap<Id, Network>, left_out: &mut Vec<LeftOut>) -> BTreeMap<Id, Network> {
    let mut good: BTreeMap<Id, Network> = BTreeMap::new();
    for (id, mut network) in networks {
        network.subnets.sort();
        network.internal &= !network.ingress;
        match trouble(&network, &good) {
            None => drop(good.insert(id, network)),
            Some(why) => left_out.push(LeftOut { what: format!("network {} ({id})", network.name), why }),
        }
    }
    good
}

fn trouble(network: &Network, others: &BTreeMap<Id, Network>) -> Option<String> {
    let vnis: BTreeSet<_> = network.subnets.iter().map(|s| s.vni).collect();
    if network.subnets.is_empty() {
        return Some("it has no subnet".into());
    }
    if vnis.len() != network.subnets.len() {
        return Some("two of its subnets have the same VNI".into());
    }
    if let Some(bad) = network.subnets.iter().find(|s| !s.usable(s.gateway)) {
        return Some(format!("{} can't be the gateway of {}", bad.gateway, bad.subnet));
    }
    if network.encrypted && network.carrier == Carrier::Hiveway {
        return Some("encrypted networks are not supported yet and never carried in cleartext".into());
    }
    others.values().find_map(|other| {
        if let Some(shared) = other.subnets.iter().find(|s| vnis.contains(&s.vni)) {
            return Some(format!("network {} has its VNI {} too", other.name, shared.vni));
        }
        (other.ingress && network.ingress).then(|| format!("network {} is the ingress network already", other.name))
    })
}

/// Why no host can have `ip` on the network with this id.
fn misplaced(networks: &BTreeMap<Id, Network>, id: &str, ip: Ipv4Addr) -> Option<String> {
    let Some(network) = networks.get(id) else { return Some(format!("network {id} is unknown")) };
    match network.subnet_of(ip) {
        Some(subnet) if ip == subnet.gateway => Some(format!("it is the gateway of {}", subnet.subnet)),
        Some(subnet) if subnet.usable(ip) => None,
        Some(subnet) => Some(format!("no host can have it in {}", subnet.subnet)),
        None => Some(format!("it is outside network {}", network.name)),
    }
}

fn virtual_ips(model: &mut Model, left_out: &mut Vec<LeftOut>) {
    let Model { networks, services, .. } = model;
    let mut order: Vec<_> = services.values_mut().map(Arc::make_mut).collect();
    order.sort_by_key(|s| s.vanished);
    let mut taken = BTreeSet::new();
    for service in order {
        if service.endpoint_mode == EndpointMode::Dnsrr {
            service.virtual_ips.clear();
        }
        let what = format!("service {} ({})", service.name, service.id);
        service.virtual_ips.retain(|network, ip| {
            let twice = || (!taken.insert((network.clone(), *ip))).then(|| "another service has it too".to_owned());
            let Some(why) = misplaced(networks, network, *ip).or_else(twice) else { return true };
            left_out.push(LeftOut { what: format!("virtual address {ip} of {what}"), why });
            false
        });
    }
}

fn tasks_on_networks(model: &mut Model, left_out: &mut Vec<LeftOut>) {
    let Model { nodes, networks, tasks, .. } = model;
    tasks.retain(|id, task| {
        let task = Arc::make_mut(task);
        let networked = task.state.is_networked();
        if let Some(node) = task.node.as_ref().filter(|node| !nodes.contains_key(*node)) {
            if networked {
                left_out.push(LeftOut { what: format!("task {id}"), why: format!("its node {node} is unknown") });
                return false;
            }
            task.node = None;
        }
        task.addresses.retain(|network, address| {
            let Some(why) = misplaced(networks, network, address.ip) else { return true };
            if networked {
                left_out.push(LeftOut { what: format!("address {} of task {id}", address.ip), why });
                return false;
            }
            // What ended tasks still carry is nobody's concern, as long as the network has room for it.
            networks.get(network).and_then(|n| n.subnet_of(address.ip)).is_some_and(|s| s.usable(address.ip))
        });
        true
    });
}

/// Nodes' own addresses come last: tasks and services are what packets are for.
fn addresses_of_nodes(model: &mut Model, left_out: &mut Vec<LeftOut>) {
    let endpoints = model.tasks.values().filter(|task| model.role(task).is_endpoint());
    let of_tasks = endpoints.flat_map(|t| t.addresses.iter().map(|(network, address)| (network.clone(), address.ip)));
    let of_services = model.services.values().flat_map(|s| s.virtual_ips.iter().map(|(n, ip)| (n.clone(), *ip)));
    let mut taken: BTreeSet<(Id, Ipv4Addr)> = of_tasks.chain(of_services).collect();
    for node in model.nodes.values_mut() {
        let what = format!("node {} ({})", node.hostname, node.id);
        node.addresses.retain(|network, ip| {
            let twice = || (!taken.insert((network.clone(), *ip))).then(|| "somebody else has it too".to_owned());
            let Some(why) = misplaced(&model.networks, network, *ip).or_else(twice) else { return true };
            left_out.push(LeftOut { what: format!("address {ip} of {what}"), why });
            false
        });
    }
}
