//! What `hiveway network ls`, `service ls` and `endpoint ls` list. The JSON keys are a stable interface: append only.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use serde::Serialize;

use crate::{
    model::{AllowList, Model, Network, Port, Task, TaskState},
    roles::TaskRole,
};

/// A row of `network ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkView {
    /// Network id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its subnets, by VNI.
    pub subnets: Vec<SubnetView>,
    /// MTU of the containers' interfaces.
    pub mtu: u32,
    /// The routing mesh's network.
    pub ingress: bool,
    /// Without a way out.
    pub internal: bool,
    /// This node has an endpoint in it.
    pub joined: bool,
    /// Endpoints in it, on all nodes.
    pub endpoints: usize,
}

/// A subnet of a [`NetworkView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SubnetView {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// Its gateway.
    pub gateway: Ipv4Addr,
    /// Its VNI.
    pub vni: u32,
}

/// A row of `service ls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceView {
    /// Service id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `vip` or `dnsrr`.
    pub endpoint_mode: &'static str,
    /// Virtual addresses, by network name.
    pub vips: Vec<VipView>,
    /// Ports.
    pub ports: Vec<Port>,
    /// Who may use its published ports at this node; `null`: everybody.
    pub allow: Option<AllowList>,
    /// At which addresses of a node they answer, by its label: CIDRs and interfaces; `null`: at all.
    pub addresses: Option<Vec<String>>,
    /// Who may not, whatever `allow` says; empty: no client.
    pub deny: AllowList,
    /// Tasks with flows, by id.
    pub backends: Vec<BackendView>,
    /// The manager has deleted it; its tasks drain.
    pub vanished: bool,
}

/// A virtual address of a [`ServiceView`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct VipView {
    /// The network's name.
    pub network: String,
    /// Its id.
    pub network_id: String,
    /// The virtual address.
    pub address: Ipv4Addr,
}

/// A task of a [`ServiceView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendView {
    /// Task id.
    pub task: String,
    /// Id of its node.
    pub node: String,
    /// Host name of its node.
    pub hostname: String,
    /// Its address on the first of the service's networks by name; the ingress network only if there is no other.
    pub address: Ipv4Addr,
    /// All its addresses, by network name.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// Whether it gets new flows.
    pub state: BackendState,
}

/// Whether a backend gets new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// New flows and old ones.
    Active,
    /// Old flows only.
    Draining,
}

/// A row of `endpoint ls`: one address of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointView {
    /// Task id.
    pub task: String,
    /// Name of its service; `null` for standalone containers.
    pub service: Option<String>,
    /// Id of its node.
    pub node: String,
    /// Host name of its node.
    pub hostname: String,
    /// Its node's tunnel address.
    pub vtep: Ipv4Addr,
    /// On this node.
    pub local: bool,
    /// Name of the network.
    pub network: String,
    /// Overlay address.
    pub address: Ipv4Addr,
    /// MAC, as `02:42:0a:00:01:03`.
    pub mac: String,
    /// What the manager wants.
    pub desired_state: TaskState,
    /// What it is.
    pub state: TaskState,
    /// `active`, `draining`, or `null` for what never got flows.
    pub backend: Option<BackendState>,
}

/// `network ls`, by name, seen from `node` (an id).
pub fn networks(model: &Model, node: &str) -> Vec<NetworkView> {
    // Per network: how many endpoints, and whether one is here.
    let mut counts: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
    for task in model.tasks.values().filter(|t| model.role(t).is_endpoint()) {
        for network in task.addresses.keys() {
            let (endpoints, joined) = counts.entry(network).or_default();
            *endpoints += 1;
            *joined |= task.node.as_deref() == Some(node);
        }
    }
    let view = |network: &Network| {
        let (endpoints, joined) = counts.get(network.id.as_str()).copied().unwrap_or_default();
        let subnets = network.subnets.iter();
        NetworkView {
            id: network.id.to_string(),
            name: network.name.clone(),
            subnets: subnets.map(|s| SubnetView { subnet: s.subnet, gateway: s.gateway, vni: s.vni.get() }).collect(),
            mtu: network.mtu,
            ingress: network.ingress,
            internal: network.internal,
            joined,
            endpoints,
        }
    };
    let mut views: Vec<_> = model.networks.values().map(view).collect();
    views.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    views
}

/// `service ls`, by name; `node_allow` and `node_deny` are what this node says for all services.
pub fn services(model: &Model, node_allow: Option<&AllowList>, node_deny: &AllowList) -> Vec<ServiceView> {
    let mut backends: BTreeMap<&str, Vec<BackendView>> = BTreeMap::new();
    for task in model.tasks.values() {
        if let (Some(service), Some(view)) = (&task.service, backend(model, task)) {
            backends.entry(service).or_default().push(view);
        }
    }
    let mut views: Vec<_> = model
        .services
        .values()
        .map(|service| {
            let mut vips: Vec<_> = service
                .virtual_ips
                .iter()
                .map(|(id, ip)| VipView { network: name(model, id), network_id: id.to_string(), address: *ip })
                .collect();
            vips.sort();
            ServiceView {
                id: service.id.to_string(),
                name: service.name.clone(),
                endpoint_mode: service.endpoint_mode.name(),
                vips,
                ports: service.ports.to_vec(),
                allow: service.allowed(node_allow),
                addresses: service.places().map(|at| at.all().iter().map(ToString::to_string).collect()),
                deny: service.denied(node_deny),
                backends: backends.remove(service.id.as_str()).unwrap_or_default(),
                vanished: service.vanished,
            }
        })
        .collect();
    views.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    views
}

/// `endpoint ls`, by network and address, seen from `node` (an id).
pub fn endpoints(model: &Model, node: &str) -> Vec<EndpointView> {
    let mut views = Vec::new();
    for task in model.tasks.values() {
        let role = model.role(task);
        let Some(on) = task.node.as_ref().and_then(|id| model.nodes.get(id)).filter(|_| role.is_endpoint()) else {
            continue;
        };
        for (network, address) in task.addresses.iter() {
            views.push(EndpointView {
                task: task.id.to_string(),
                service: task
                    .service
                    .as_ref()
                    .map(|id| model.services.get(id).map_or(id.as_str(), |s| &s.name).to_owned()),
                node: on.id.to_string(),
                hostname: on.hostname.clone(),
                vtep: on.vtep,
                local: on.id == *node,
                network: name(model, network),
                address: address.ip,
                mac: address.mac.map(|byte| format!("{byte:02x}")).join(":"),
                desired_state: task.desired_state,
                state: task.state,
                backend: backend_state(role),
            });
        }
    }
    views.sort_by(|a, b| (&a.network, a.address, &a.task).cmp(&(&b.network, b.address, &b.task)));
    views
}

fn name(model: &Model, network: &str) -> String {
    model.networks.get(network).map_or(network, |n| n.name.as_str()).to_owned()
}

fn backend_state(role: TaskRole) -> Option<BackendState> {
    match role {
        TaskRole::Backend => Some(BackendState::Active),
        TaskRole::Draining => Some(BackendState::Draining),
        TaskRole::Endpoint | TaskRole::Absent => None,
    }
}

fn backend(model: &Model, task: &Task) -> Option<BackendView> {
    let state = backend_state(model.role(task))?;
    let node = model.nodes.get(task.node.as_ref()?)?;
    let mut networks: Vec<_> =
        task.addresses.iter().filter_map(|(id, address)| Some((model.networks.get(id)?, address.ip))).collect();
    networks.sort_by_key(|(n, _)| (n.ingress, &n.name, &n.id));
    Some(BackendView {
        task: task.id.to_string(),
        node: node.id.to_string(),
        hostname: node.hostname.clone(),
        address: networks.first()?.1,
        addresses: networks.iter().map(|(n, ip)| (n.name.clone(), *ip)).collect(),
        state,
    })
}
