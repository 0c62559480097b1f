//! Who is where, seen from one node: what [`crate::derive`] and [`crate::map_state`] have in common.

mod ports;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

pub(crate) use ports::{HostPort, Published};

use crate::{
    desired::LeftOut,
    model::{Address, Dataplane, Model, Network, Service, Task},
    roles::TaskRole,
    settings::Settings,
};

/// A networked task with its node.
pub(crate) struct Placed<'a> {
    pub(crate) task: &'a Task,
    pub(crate) role: TaskRole,
    pub(crate) node: &'a str,
    /// VTEP of its node; this node's own for a local one.
    pub(crate) vtep: Ipv4Addr,
    pub(crate) local: bool,
    /// Its node can take mesh frames.
    pub(crate) in_mesh: bool,
}

/// The swarm seen from one node. Networks that clash with this node's settings are not in it.
pub(crate) struct Topology<'a> {
    pub(crate) model: &'a Model,
    pub(crate) vtep: Ipv4Addr,
    pub(crate) networks: BTreeMap<&'a str, &'a Network>,
    /// All endpoints, by task id.
    pub(crate) endpoints: BTreeMap<&'a str, Placed<'a>>,
    /// Ids of endpoints by network, and by (service, network): a look-up must not walk a large swarm's whole table.
    by_network: BTreeMap<&'a str, Vec<&'a str>>,
    by_service: BTreeMap<(&'a str, &'a str), Vec<&'a str>>,
    /// Ids of networks with an endpoint on this node.
    pub(crate) joined: BTreeSet<&'a str>,
    /// Ids of networks whose slow path this node has: the joined ones, and the ingress network wherever ports answer.
    pub(crate) carried: BTreeSet<&'a str>,
    /// Ports in ingress mode, by (IP protocol number, port).
    pub(crate) published: BTreeMap<(u8, u16), Published<'a>>,
    /// Ports of local tasks in host mode, likewise. No port is in both.
    pub(crate) host_ports: BTreeMap<(u8, u16), HostPort<'a>>,
    pub(crate) left_out: Vec<LeftOut>,
}

impl<'a> Topology<'a> {
    /// Seen from node `me` (an id), whose tunnel address is `vtep`.
    pub(crate) fn new(model: &'a Model, settings: &Settings, me: &str, vtep: Ipv4Addr) -> Self {
        let mut left_out = Vec::new();
        let networks: BTreeMap<_, _> = model
            .networks
            .values()
            .filter(|network| match clash(network, settings) {
                None => true,
                Some(why) => {
                    left_out.push(LeftOut { what: format!("network {} ({})", network.name, network.id), why });
                    false
                }
            })
            .map(|network| (network.id.as_str(), network))
            .collect();

        let mut endpoints = BTreeMap::new();
        let mut by_network: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut by_service: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        let mut joined = BTreeSet::new();
        for task in model.tasks.values() {
            let role = model.role(task);
            let Some(node) = task.node.as_ref().and_then(|id| model.nodes.get(id)) else { continue };
            let on: Vec<&str> =
                task.addresses.keys().map(String::as_str).filter(|id| networks.contains_key(id)).collect();
            if !role.is_endpoint() || on.is_empty() {
                continue;
            }
            for network in &on {
                by_network.entry(network).or_default().push(&task.id);
                if let Some(service) = &task.service {
                    by_service.entry((service, network)).or_default().push(&task.id);
                }
            }
            let local = node.id == me;
            if local {
                joined.extend(on);
            }
            let placed = Placed {
                task,
                role,
                node: &node.id,
                vtep: if local { vtep } else { node.vtep },
                local,
                in_mesh: local || node.dataplane == Dataplane::Hiveway,
            };
            endpoints.insert(task.id.as_str(), placed);
        }
        let published = ports::published(model, settings, &endpoints, &mut left_out);
        let ingress = networks.values().find(|n| n.ingress && !published.is_empty()).map(|n| n.id.as_str());
        let carried = joined.iter().copied().chain(ingress).collect();
        let mut topology = Self {
            model,
            vtep,
            networks,
            endpoints,
            by_network,
            by_service,
            joined,
            carried,
            published,
            host_ports: BTreeMap::new(),
            left_out,
        };
        ports::host_mode(&mut topology, settings);
        topology
    }

    /// Endpoints with an address on `network`.
    pub(crate) fn on<'s>(&'s self, network: &'s Network) -> impl Iterator<Item = (&'s Placed<'a>, Address)> {
        self.placed(self.by_network.get(network.id.as_str()), network)
    }

    /// Endpoints of `service` with an address on `network`.
    pub(crate) fn of_service<'s>(
        &'s self,
        service: &'s Service,
        network: &'s Network,
    ) -> impl Iterator<Item = (&'s Placed<'a>, Address)> {
        self.placed(self.by_service.get(&(service.id.as_str(), network.id.as_str())), network)
    }

    fn placed<'s>(
        &'s self,
        ids: Option<&'s Vec<&'a str>>,
        network: &'s Network,
    ) -> impl Iterator<Item = (&'s Placed<'a>, Address)> {
        ids.into_iter().flatten().filter_map(|id| {
            let placed = self.endpoints.get(id)?;
            Some((placed, *placed.task.addresses.get(&network.id)?))
        })
    }

    /// Usable networks on which `task` has an address.
    pub(crate) fn networks_of<'s>(&'s self, task: &'s Task) -> impl Iterator<Item = &'a Network> + 's {
        task.addresses.keys().filter_map(|id| self.networks.get(id.as_str()).copied())
    }

    /// Whether a task has a way out, and clients a way to it: one of its networks is not internal.
    pub(crate) fn needs_gateway(&self, task: &Task) -> bool {
        self.networks_of(task).any(|n| n.ingress || !n.internal)
    }

    /// Other nodes' own addresses on `network`, with their VTEPs.
    pub(crate) fn node_addresses<'s>(
        &'s self,
        network: &'s Network,
        me: &'s str,
    ) -> impl Iterator<Item = (Address, Ipv4Addr)> + 's {
        self.model.nodes.values().filter(move |n| n.id != me).filter_map(|n| {
            let ip = *n.addresses.get(&network.id)?;
            Some((Address::with_default_mac(ip), n.vtep))
        })
    }

    /// Ids of usable networks where `service` has a VIP.
    pub(crate) fn vips<'s>(&'s self, service: &'s Service) -> impl Iterator<Item = (&'a Network, Ipv4Addr)> + 's {
        service.virtual_ips.iter().filter_map(|(id, ip)| Some((*self.networks.get(id.as_str())?, *ip)))
    }

    /// The usable ingress network.
    pub(crate) fn ingress(&self) -> Option<&'a Network> {
        self.networks.values().copied().find(|n| n.ingress)
    }
}

/// Why a network can't be had with these settings.
fn clash(network: &Network, settings: &Settings) -> Option<String> {
    let gateway = settings.gwbridge_subnet.trunc();
    network.subnets.iter().find_map(|s| {
        if s.vni.get() == settings.mesh_vni {
            return Some(format!("VNI {} is the routing mesh's; start the agents with another --mesh-vni", s.vni));
        }
        let overlap = s.subnet.contains(&gateway) || gateway.contains(&s.subnet);
        overlap.then(|| {
            format!(
                "subnet {} overlaps the gateway bridge's {gateway}; start the agents with another --gwbridge-subnet",
                s.subnet
            )
        })
    })
}
