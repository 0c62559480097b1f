//! Tasks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use super::{
    api,
    items::insert,
    services::{on_network, port},
};
use crate::{
    desired::LeftOut,
    model::{Address, ByNetwork, Id, Model, Ports, Task, TaskState},
    roles::TaskRole,
};

pub(super) fn load(raw: Vec<api::Task>, unusable: &BTreeSet<String>, model: &mut Model, left_out: &mut Vec<LeftOut>) {
    let mut tasks = BTreeMap::new();
    for raw in raw {
        let what = describe(&raw, model);
        match task(&raw, &what, unusable, model, left_out) {
            Ok(task) => insert(&mut tasks, task.id.clone(), Arc::new(task), || what, left_out),
            Err(why) => left_out.push(LeftOut { what, why }),
        }
    }
    model.tasks = tasks;
    one_per_address(model, left_out);
}

/// As `docker service ps` would say it: `task web.3 (cpxn…)`.
fn describe(raw: &api::Task, model: &Model) -> String {
    let service = model.services.get(raw.service.as_str()).map_or("", |s| s.name.as_str());
    match (service, raw.slot) {
        ("", _) => format!("task {}", raw.id),
        (name, 0) => format!("task {name} ({})", raw.id),
        (name, slot) => format!("task {name}.{slot} ({})", raw.id),
    }
}

fn task(
    raw: &api::Task,
    what: &str,
    unusable: &BTreeSet<String>,
    model: &Model,
    left_out: &mut Vec<LeftOut>,
) -> Result<Task, String> {
    let state: TaskState = raw.status.state.parse()?;
    let desired_state: TaskState = raw.desired_state.parse()?;
    let node = model.nodes.get(raw.node.as_str()).map(|node| node.id.clone());
    if let Some(id) = Some(&raw.node).filter(|id| node.is_none() && !id.is_empty()) {
        // Tasks of removed nodes are listed for a while; only live ones are worth a word.
        if !state.is_networked() {
            return Ok(bare(raw, model, state, desired_state));
        }
        return Err(format!("its node {id} is unknown"));
    }
    let mut addresses = BTreeMap::new();
    for attachment in &raw.attachments {
        let id = &attachment.network.id;
        let Some(network) = model.networks.get(id.as_str()) else {
            if state.is_networked() && !attachment.addresses.is_empty() && !unusable.contains(id) {
                left_out
                    .push(LeftOut { what: format!("{what} on network {id}"), why: "the network is unknown".into() });
            }
            continue;
        };
        for text in &attachment.addresses {
            match on_network(network, text) {
                Ok(ip) => {
                    addresses.entry(network.id.clone()).or_insert(Address::with_default_mac(ip));
                }
                Err(why) if state.is_networked() => {
                    left_out
                        .push(LeftOut { what: format!("address {text} of {what} on network {}", network.name), why });
                }
                // What ended tasks still carry is nobody's concern.
                Err(_) => {}
            }
        }
    }
    let ports = match &raw.endpoint {
        Some(endpoint) => own_ports(endpoint),
        None => model.services.get(raw.service.as_str()).map(|s| s.ports.clone()).unwrap_or_default(),
    };
    let addresses = addresses.into_iter().collect();
    Ok(Task { node, addresses, ports, ..bare(raw, model, state, desired_state) })
}

/// The ports that a task was made with; what is wrong with one is said of its service.
fn own_ports(endpoint: &api::Endpoint) -> Ports {
    endpoint.ports.iter().filter_map(|raw| port(raw).ok()).collect()
}

fn bare(raw: &api::Task, model: &Model, state: TaskState, desired_state: TaskState) -> Task {
    let service = || match model.services.get(raw.service.as_str()) {
        Some(service) => service.id.clone(),
        None => Id::from(&raw.service),
    };
    Task {
        id: Id::from(&raw.id),
        service: (!raw.service.is_empty()).then(service),
        slot: Some(raw.slot).filter(|slot| *slot != 0),
        node: None,
        desired_state,
        state,
        unhealthy: false,
        unreachable: false,
        addresses: ByNetwork::default(),
        // Only decides between two that claim one port of a node.
        created: raw.created_at.parse().ok(),
        netns: None,
        ports: Ports::default(),
    }
}

/// Of several endpoints with one address the one that serves counts; VIPs come first.
pub(crate) fn one_per_address(model: &mut Model, left_out: &mut Vec<LeftOut>) {
    let vips = model.services.values().flat_map(|s| s.virtual_ips.iter().map(move |(net, ip)| ((net.clone(), *ip), s)));
    let mut taken: BTreeMap<(Id, Ipv4Addr), String> =
        vips.map(|(key, s)| (key, format!("the virtual address of service {}", s.name))).collect();
    let mut order: Vec<_> = model
        .tasks
        .values()
        .map(|task| (model.role(task), task.id.clone()))
        .filter(|(role, _)| *role != TaskRole::Absent)
        .collect();
    order.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    for (_, id) in order {
        let Some(task) = model.tasks.get_mut(&id) else { continue };
        Arc::make_mut(task).addresses.retain(|network, address| {
            let key = (network.clone(), address.ip);
            if let Some(other) = taken.get(&key) {
                left_out.push(LeftOut {
                    what: format!("address {} of task {id}", address.ip),
                    why: format!("it is taken by {other}"),
                });
                return false;
            }
            taken.insert(key, format!("task {id}"));
            true
        });
    }
}
