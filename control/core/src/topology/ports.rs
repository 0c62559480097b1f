//! Which ports answer at this node, and whose they are.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{Endpoints, Placed, Topology};
use crate::{
    desired::LeftOut,
    model::{Carrier, Model, Port, Protocol, PublishMode, Service},
    roles::TaskRole,
    settings::Settings,
};

/// A port that answers on every node.
pub(crate) struct Published<'a> {
    /// Whose it is.
    pub(crate) service: &'a str,
}

/// A port that answers on this node because of a task here.
pub(crate) struct HostPort<'a> {
    /// The service of the task that has it.
    pub(crate) service: &'a str,
    /// The task that gets new connections, if any does: never more than one.
    pub(crate) backend: Option<&'a str>,
}

/// Which ports answer on every node, and whose they are: what services say, then what their tasks still have.
pub(super) fn published<'a>(
    model: &'a Model,
    settings: &Settings,
    endpoints: &Endpoints<'a>,
    left_out: &mut Vec<LeftOut>,
) -> BTreeMap<(u8, u16), Published<'a>> {
    let mut published: BTreeMap<(u8, u16), Published<'a>> = BTreeMap::new();
    let by_service = model.services.values().filter(|s| !s.vanished).flat_map(|s| s.ports.iter().map(move |p| (s, p)));
    let by_task =
        endpoints.values().filter(|p| matches!(p.role, TaskRole::Backend | TaskRole::Draining)).flat_map(|p| {
            let service = p.task.service.as_ref().and_then(|id| model.services.get(id));
            // What a service says itself needs no look at each of its tasks.
            let service = service.filter(|service| service.vanished || service.ports != p.task.ports);
            service.into_iter().flat_map(move |s| p.task.ports.iter().map(move |port| (s, port)))
        });
    for (service, port) in by_service.chain(by_task) {
        let Some(key) = port.ingress() else { continue };
        if let Some(why) = unusable(port, settings) {
            name_once(LeftOut { what: of_service(port, service), why }, left_out);
            continue;
        }
        let owner = published.entry(key).or_insert(Published { service: &service.id });
        if service.id != *owner.service {
            let other = model.services.get(owner.service).map_or(owner.service, |s| s.name.as_str());
            let why = format!("service {other} publishes it too; publish another port");
            name_once(LeftOut { what: of_service(port, service), why }, left_out);
        }
    }
    published
}

/// Ports of local tasks in host mode. Draining tasks keep a port open for what they have; of several running ones the
/// newest gets it.
pub(super) fn host_mode<'a>(topology: &mut Topology<'a>, settings: &Settings) {
    let mut left_out = unassigned(topology.model);
    let mut found: BTreeMap<(u8, u16), HostPort<'a>> = BTreeMap::new();
    for placed in topology.newest_first() {
        let Some(service) = placed.task.service.as_ref().and_then(|id| topology.model.services.get(id)) else {
            continue;
        };
        for port in &placed.task.ports {
            let Some(key) = port.host() else { continue };
            let why = if topology.needs_gateway(placed.task) {
                unusable(port, settings).or_else(|| answers_everywhere(topology, key))
            } else {
                Some("all its networks are internal, so nobody can come in; attach one that is not".into())
            };
            if let Some(why) = why {
                name_once(LeftOut { what: of_service(port, service), why }, &mut left_out);
                continue;
            }
            let runs = (placed.role == TaskRole::Backend).then_some(placed.task.id.as_str());
            match found.entry(key) {
                Entry::Vacant(free) => drop(free.insert(HostPort { service: &service.id, backend: runs })),
                Entry::Occupied(taken) => {
                    if let (Some(newest), Some(task)) = (taken.get().backend, runs) {
                        left_out.push(LeftOut {
                            what: format!("port {port} of task {task}"),
                            why: format!("task {newest}, which is newer, has it on this node; stop one of them"),
                        });
                    }
                }
            }
        }
    }
    topology.host_ports = found;
    topology.left_out.append(&mut left_out);
}

impl<'a> Topology<'a> {
    /// Local tasks with flows whose ports are ours (the engine publishes those of its own tasks): running ones before
    /// draining ones, each kind from the newest to the oldest; by id where the table does not say when they were made.
    fn newest_first(&self) -> Vec<&Placed<'a>> {
        let mut local: Vec<_> =
            self.endpoints.values().filter(|p| p.local && !p.attached && p.role >= TaskRole::Draining).collect();
        local.sort_by_key(|p| std::cmp::Reverse((p.role, &p.task.created, &p.task.id)));
        local
    }
}

/// Host-mode ports without a number: the engine would pick one, and does not say which.
fn unassigned(model: &Model) -> Vec<LeftOut> {
    // Where an engine carries everything, it also publishes everything in host mode.
    let ours = model.networks.values().any(|network| network.carrier == Carrier::Hiveway);
    let services = model.services.values().filter(|_| ours);
    let ports = services.flat_map(|s| s.ports.iter().map(move |p| (s, p)));
    ports
        .filter(|(_, port)| port.publish_mode == PublishMode::Host && port.published_port.is_none())
        .map(|(service, port)| LeftOut {
            what: of_service(port, service),
            why: "published in host mode without a port number; publish a fixed one".into(),
        })
        .collect()
}

fn answers_everywhere(topology: &Topology<'_>, key: (u8, u16)) -> Option<String> {
    let owner = topology.published.get(&key)?.service;
    let name = topology.model.services.get(owner).map_or(owner, |s| s.name.as_str());
    Some(format!("service {name} publishes it in ingress mode, which answers on every node; publish another port"))
}

/// Why a port can't be published here.
fn unusable(port: &Port, settings: &Settings) -> Option<String> {
    if port.needs_sctp_translation() {
        return Some(format!("SCTP ports can't be translated; publish the target port {} itself", port.target_port));
    }
    (port.protocol == Protocol::Udp && port.published_port.is_some_and(|p| p.get() == settings.vxlan_port))
        .then(|| "it is the VXLAN port; publish another one or start the agents with another --vxlan-port".into())
}

fn of_service(port: &Port, service: &Service) -> String {
    format!("port {port} of service {} ({})", service.name, service.id)
}

fn name_once(item: LeftOut, left_out: &mut Vec<LeftOut>) {
    if !left_out.contains(&item) {
        left_out.push(item);
    }
}
