//! Services and their ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Reserved,
    addresses::{Addresses, On},
    place::{Element, Place},
    read::{Placed, RawService},
    tree::Keyed,
};
use crate::{
    model::{
        ByNetwork, EndpointMode, Id, Network, Oddity, Port, Ports, Protocol, PublishMode, Service, Task, TaskState,
        oddities,
    },
    problem::Problem,
};

/// Checks services.
pub(super) fn check(
    raw: Vec<Placed<RawService>>,
    reserved: Reserved,
    addresses: &mut Addresses<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<Id, Service> {
    let mut services = BTreeMap::new();
    // By port: where the service is, and the port.
    let mut published: BTreeMap<(u8, u16), (Place, Element)> = BTreeMap::new();
    let everywhere = answering_everywhere(&raw);
    for Placed { place: own, id, item } in raw {
        let (Some(id), Some(raw)) = (id, item) else { continue };
        for (place, port) in &raw.ports {
            if let Some(key) = port.ingress() {
                match published.get(&key) {
                    // Twice in one service is found by `ports`.
                    Some((service, _)) if *service == own => {}
                    Some((_, other)) => {
                        let message = format!("{port} is published in ingress mode by {other} already");
                        problems.push(Problem::error(format!("{place}.published_port"), message));
                    }
                    None => drop(published.insert(key, (own, *place))),
                }
            }
            if let Some(other) = port.host().and_then(|key| everywhere.get(&key)) {
                let message = format!("{port} is published in ingress mode by {other}, which answers on every node");
                problems.push(Problem::error(format!("{place}.published_port"), message));
            }
            if port.ingress().or(port.host()) == Some((Protocol::Udp.number(), reserved.vxlan_port)) {
                let message = format!("{port} is the VXLAN port (--vxlan-port); publish another");
                problems.push(Problem::error(format!("{place}.published_port"), message));
            }
        }
        let mut virtual_ips = ByNetwork::default();
        if raw.endpoint_mode == EndpointMode::Dnsrr && !raw.virtual_ips.is_empty() {
            let message = "a service in mode dnsrr has no virtual addresses; these are ignored";
            problems.push(Problem::warning(format!("{own}.virtual_ips"), message));
        }
        for On { network, entry, value: ip } in addresses.placed(raw.virtual_ips, problems) {
            addresses.take(network, ip, entry, problems);
            if raw.endpoint_mode == EndpointMode::Vip {
                virtual_ips.insert(network.id.clone(), ip);
            }
        }
        let service = Service {
            id: id.clone(),
            name: raw.name,
            endpoint_mode: raw.endpoint_mode,
            virtual_ips,
            ports: ports(raw.ports, problems),
            labels: labels(raw.labels, problems),
            vanished: false,
        };
        services.entry(id).or_insert(service);
    }
    services
}

/// Ports in ingress mode, with the place of the first that has it.
fn answering_everywhere(raw: &[Placed<RawService>]) -> BTreeMap<(u8, u16), Element> {
    let ports = raw.iter().filter_map(|placed| placed.item.as_ref()).flat_map(|service| &service.ports);
    // Backwards, so that the first one stays.
    ports.rev().filter_map(|(place, port)| Some((port.ingress()?, *place))).collect()
}

/// Checks the labels that mean something to us.
fn labels(raw: Vec<Keyed<String>>, problems: &mut Vec<Problem>) -> BTreeMap<String, String> {
    for label in &raw {
        for oddity in oddities(&label.entry.key, &label.value) {
            let place = label.entry.to_string();
            problems.push(match oddity {
                Oddity::Ignored(entry) => {
                    Problem::warning(place, format!("{entry} is ignored: IPv6 is not supported yet"))
                }
                Oddity::Unreadable(why) => Problem::error(place, why),
            });
        }
    }
    raw.into_iter().map(|label| (label.entry.key.into(), label.value)).collect()
}

/// Checks a list of ports by itself.
pub(super) fn ports(raw: Vec<(Element, Port)>, problems: &mut Vec<Problem>) -> Ports {
    let mut seen: BTreeMap<(Protocol, u16, PublishMode), Element> = BTreeMap::new();
    for (place, port) in &raw {
        if port.needs_sctp_translation() {
            let message =
                format!("SCTP ports can't be translated; publish the target port {} itself", port.target_port);
            problems.push(Problem::error(format!("{place}.published_port"), message));
        }
        if let Some(published) = port.published_port {
            let key = (port.protocol, published.get(), port.publish_mode);
            match seen.get(&key) {
                Some(other) => {
                    let message = format!("{port} is published by {other} already");
                    problems.push(Problem::error(format!("{place}.published_port"), message));
                }
                None => drop(seen.insert(key, *place)),
            }
        }
    }
    raw.into_iter().map(|(_, port)| port).collect()
}

/// Warns of tasks that should serve a published port but can't be reached over the ingress network.
pub(super) fn without_ingress(
    services: &BTreeMap<Id, Service>,
    tasks: &[(Place, Arc<Task>)],
    networks: &BTreeMap<Id, Network>,
    problems: &mut Vec<Problem>,
) {
    let ingress: BTreeSet<&str> = networks.values().filter(|n| n.ingress).map(|n| n.id.as_str()).collect();
    for (place, task) in tasks {
        let published = task.ports.iter().find(|p| p.ingress().is_some());
        let Some(port) = published.filter(|_| task.service.as_ref().is_some_and(|id| services.contains_key(id))) else {
            continue;
        };
        let reachable = task.addresses.keys().any(|id| ingress.contains(id.as_str()));
        if task.state == TaskState::Running && task.desired_state == TaskState::Running && !reachable {
            let message = format!("no address on the ingress network: can't serve the published port {port}");
            problems.push(Problem::warning(format!("{place}.addresses"), message));
        }
    }
}

/// Warns of live tasks that still publish a port which is another service's now. Not an error: in a swarm a port can be
/// given to a service while tasks of its former owner are still being replaced.
pub(super) fn contested(services: &BTreeMap<Id, Service>, tasks: &[(Place, Arc<Task>)], problems: &mut Vec<Problem>) {
    let owners: BTreeMap<(u8, u16), &Service> =
        services.values().flat_map(|s| s.ports.iter().filter_map(move |p| Some((p.ingress()?, s)))).collect();
    for (place, task) in tasks.iter().filter(|(_, t)| t.state.is_live()) {
        for port in &task.ports {
            let owner = port.ingress().and_then(|key| owners.get(&key));
            if let Some(owner) = owner.filter(|o| task.service.as_ref() != Some(&o.id)) {
                let message = format!("{port} is published by service {} now and goes to its tasks only", owner.name);
                problems.push(Problem::warning(format!("{place}.ports"), message));
            }
        }
    }
}

/// Warns of running tasks that claim one port of one node.
pub(super) fn crowded(tasks: &[(Place, Arc<Task>)], problems: &mut Vec<Problem>) {
    let mut claimed: BTreeMap<(&str, u8, u16), &Place> = BTreeMap::new();
    let wanted = |task: &Task| task.state == TaskState::Running && task.desired_state == TaskState::Running;
    for (place, task) in tasks.iter().filter(|(_, task)| wanted(task)) {
        let Some(node) = &task.node else { continue };
        for port in &task.ports {
            let Some((proto, number)) = port.host() else { continue };
            match claimed.get(&(node, proto, number)) {
                Some(other) => {
                    let message = format!(
                        "{port} is published in host mode by {other} on the same node too; the one made last gets it"
                    );
                    problems.push(Problem::warning(format!("{place}.ports"), message));
                }
                None => drop(claimed.insert((node, proto, number), place)),
            }
        }
    }
}
